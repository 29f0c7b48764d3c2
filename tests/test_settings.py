"""The grammar of a run's name, what a file may say of a run, and which code made its numbers."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from in_process import options_of, settings_of

from fast import machine
from store import code
from store.code import sources_hash
from store.files import ROOT
from store.settings import SETTINGS, Settings, without_defaults

VALUES = {"batch_size": 64, "learning_rate": 1e-05, "drop_rate": 0.0, "seed": 7,
          "without_BatchNorm": True, "without_dropout": True, "precision": "bf16", "compile": True,
          "augment": True, "schedule": "cosine", "synthetic": True, "train_images": 500,
          "weight_decay": 5e-4, "detach_statistics": True, "shuffled_patches": 4, "bootstrap": True}
OWN = {"mlp": {"hidden_size": 256, "hidden_layers": 3, "gaussian_dropout": True}, "cnn": {"dropout_type": "1d", "pool_first": True}}


def test_every_setting_is_tried_in_a_name():
    assert SETTINGS.keys() == {"network", "num_epochs", *VALUES, *OWN["mlp"], *OWN["cnn"]}


@pytest.mark.parametrize("network", OWN)
def test_every_published_name_is_read_and_written_as_it_is(network):
    for name in json.loads((ROOT / "results" / f"{network}.json").read_text()):
        assert Settings.parse(network, name).name == name


@pytest.mark.parametrize("network", OWN)
def test_the_flag_of_each_setting_makes_the_run_that_its_name_tells(network):
    for name, value in {**VALUES, **OWN[network]}.items():
        options = options_of(network, f"--{name}", *([] if value is True else [value]))
        assert options.settings == [settings_of(network, **{name: value})]
    other = "cnn" if network == "mlp" else "mlp"
    for name in OWN[other]:
        with pytest.raises(SystemExit):
            options_of(network, f"--{name}")
        with pytest.raises(ValueError):
            Settings.parse(network, settings_of(other, **{name: OWN[other][name]}).name)


@pytest.mark.parametrize("network", OWN)
def test_a_name_tells_every_setting_that_it_was_made_of(network):
    values = {**VALUES, **OWN[network]}
    cases = [{}, values, *({field: value} for field, value in values.items())]
    names = set()
    for changes in cases:
        settings = settings_of(network, **changes)
        read = Settings.parse(network, settings.name)
        assert dataclasses.replace(read, num_epochs=settings.num_epochs) == settings
        assert settings.schedule == "constant" or read.num_epochs == settings.num_epochs
        names.add(settings.name)
    assert len(names) == len(cases)


@pytest.mark.parametrize("name", ["", "x", "128_0.001_0.2_2d_1d", "128_1..5", "128_0.001_1.0", "0_0.001",
                                  "9" * 5000, "128_0.001_0.2_False_False_seed0_patches3",
                                  "128_0.001_0.2_False_False_seed0_hidden65537", "128_1e999"])
def test_what_is_no_name_is_a_value_error(name):
    with pytest.raises(ValueError):
        Settings.parse("mlp", name)


def test_a_tilde_is_the_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = options_of("mlp", "--runs_dir=~/runs", "--data_dir=~")
    assert (options.runs_dir, options.data_dir) == (tmp_path / "runs", tmp_path)
    with pytest.raises(SystemExit):
        options_of("mlp", "--runs_dir=~nobody-of-this-name/runs")


def test_a_network_that_is_none_is_a_value_error():
    with pytest.raises(ValueError, match="network is 'rnn'"):
        Settings.parse("rnn", "128_0.001_0.2")


def test_settings_out_of_a_file_are_as_the_command_line_allows():
    good = json.loads(json.dumps(dataclasses.asdict(settings_of("mlp"))))
    assert Settings.read({**good, "versions": {}}) == settings_of("mlp")
    assert Settings.read({**good, "drop_rate": 0}).name == settings_of("mlp", drop_rate=0.0).name
    wrong = {"network": "rnn", "batch_size": 1.5, "learning_rate": float("nan"), "drop_rate": 1,
             "seed": True, "num_epochs": None, "without_BatchNorm": 0, "without_dropout": 1,
             "dropout_type": "3d", "hidden_size": 500_000, "precision": ["fp32"], "compile": "yes", "augment": {},
             "schedule": "linear", "synthetic": None, "train_images": 0, "weight_decay": -1.0,
             "detach_statistics": "False", "shuffled_patches": 3, "hidden_layers": 65,
             "pool_first": 1, "gaussian_dropout": "yes", "bootstrap": 0}
    assert wrong.keys() == SETTINGS.keys()
    for field, value in wrong.items():
        with pytest.raises(ValueError, match=field):
            Settings.read({**good, field: value})
    with pytest.raises(ValueError, match="learning_rate"):
        Settings.read({**good, "learning_rate": 10 ** 400})
    with pytest.raises(ValueError, match="seed"):
        Settings.read({field: value for field, value in good.items() if field != "seed"})


def test_a_new_setting_at_its_default_is_the_same_experiment():
    old = {"network": "mlp", "batch_size": 32, "seed": 0, "precision": "fp32", "fingerprint": "f"}
    assert without_defaults(old) == without_defaults({**old, "weight_decay": 0.0, "train_images": None})
    assert without_defaults(old) != without_defaults({**old, "weight_decay": 0.1})
    settings = settings_of("mlp", num_epochs=3)
    assert settings.identity() == settings_of("mlp", num_epochs=9).identity()
    cosine = settings_of("mlp", num_epochs=3, schedule="cosine")
    assert cosine.identity() != dataclasses.replace(cosine, num_epochs=9).identity()


# Which code, which machine


@pytest.fixture
def sources(tmp_path):
    for name in code._sources(ROOT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_code_is_every_source_that_decides_and_any_byte_of_it(sources):
    """Whatever training loads of these folders is summed, and each file of layers/ and fast/."""
    summed = {sources / name for name in code._sources(ROOT)}
    for name in ("training.py", "mlp/model.py", "cnn/model.py", "lab/side_by_side.py", "store/images.py"):
        assert sources / name in summed
    for folder in ("layers", "fast"):
        assert {sources / path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")} <= summed
    before = sources_hash(True, sources)
    assert sources_hash(True) == before
    for path in summed:
        source = path.read_bytes()
        path.write_bytes(source + b"# a comment\n")
        assert sources_hash(True, sources) != before, path
        path.write_bytes(source)


def test_files_that_no_one_imports_are_no_part_of_the_code(sources):
    before = sources_hash(True, sources)
    (sources / "layers" / "scratch.py").write_bytes(b"caf\xe9 (\n  half")
    os.mkfifo(sources / "fast" / "pipe.py")
    assert sources_hash(True, sources) == before
    (sources / "layers" / "modules.py").open("a").write("\nfrom layers.scratch import half\n")
    (sources / "layers" / "scratch.py").write_text("half = 1\n")
    after = sources_hash(True, sources)
    (sources / "layers" / "scratch.py").write_text("half = 2\n")
    assert sources_hash(True, sources) not in (before, after)


def test_a_hash_stands_for_the_code_that_was_loaded(monkeypatch):
    code._loaded()
    monkeypatch.setattr(code, "_sources", lambda root: {"training.py": b"pulled meanwhile"})
    assert sources_hash(False) != sources_hash(False, Path("elsewhere"))


def git(place, *words):
    command = ["git", "-C", place, "-c", "user.name=a", "-c", "user.email=a@example.org", *words]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one file, inside another one, as the place of the program."""
    for place in (tmp_path, tmp_path / "own"):
        place.mkdir(exist_ok=True)
        git(place, "init", "-q")
        (place / "file").write_text(place.name)
        git(place, "add", "file")
        git(place, "commit", "-qm", "x")
    monkeypatch.setattr(code, "ROOT", tmp_path / "own")
    code._git.cache_clear()
    yield tmp_path / "own"
    code._git.cache_clear()


def asked() -> dict:
    code._git.cache_clear()
    return code._git()


def test_the_commit_is_the_one_of_this_project_whatever_lies_around_it(checkout, monkeypatch, capfd):
    own = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(checkout.parent / ".git"))
    assert asked() == {"commit": own, "dirty": False}
    (checkout / "file").write_text("changed")
    assert asked() == {"commit": own, "dirty": True}
    shutil.rmtree(checkout / ".git")
    assert asked() == {"commit": None, "dirty": None}
    assert capfd.readouterr().err == ""
    (checkout / ".git").mkdir()  # damaged
    assert asked() == {"commit": None, "dirty": None}
    assert capfd.readouterr().err.count("git does not tell the version") == 1


def test_git_is_only_read_and_not_waited_for(checkout, tmp_path, monkeypatch, capfd):
    (tmp_path / "monitor").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "monitor").chmod(0o755)
    git(checkout, "config", "core.fsmonitor", tmp_path / "monitor")
    os.utime(checkout / "file", (1, 1))
    index = (checkout / ".git" / "index").read_bytes()
    assert asked()["dirty"] is False
    assert (checkout / ".git" / "index").read_bytes() == index and not (tmp_path / "ran").exists()
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(code, "PATIENCE", 0.2)
    assert asked() == code._git() == {"commit": None, "dirty": None}
    line, = capfd.readouterr().err.splitlines()
    assert "git does not tell the version" in line and "timed out after 0.2 seconds" in line


def test_on_a_gpu_the_versions_name_all_that_rounds(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(machine, "driver", lambda: "570.1")
    found = machine.versions(torch.device("cuda"))
    assert {key: found[key] for key in ("cuda", "cudnn", "driver")} == {
        "cuda": "12.8", "cudnn": 91002, "driver": "570.1"}
    assert type(found["tf32"]) is bool
    for wanted in (False, True):
        monkeypatch.setenv("CUDA_GRAPH", str(int(wanted)))
        assert machine.versions(torch.device("cuda"))["cuda_graph"] == wanted
    assert machine.versions(torch.device("cpu")).keys() == {"python", "torch"}
