"""The grammar of a run's name, what a file may say of a run, and which code made its numbers."""

import dataclasses
import json

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
          "weight_decay": 5e-4, "detach_statistics": True, "shuffled_patches": 4, "gaussian_dropout": True, "bootstrap": True}
OWN = {"mlp": {"hidden_size": 256, "hidden_layers": 3}, "cnn": {"dropout_type": "1d", "pool_first": True}}


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
    for place in code.DECIDING:
        path = tmp_path / place if place.endswith(".py") else tmp_path / place / "part.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('"""What it is for."""\n\n\ndef f(x):\n    """Doc."""\n    return x * 2  # why\n')
    return tmp_path


@pytest.mark.parametrize("old, new", [("# why", "# because"), ("Doc.", "Other words."), ("\n\n\n", "\n"),
                                      ('"""What it is for."""', "'It is so.'")])
def test_words_are_no_part_of_the_code_that_decides(old, new, sources):
    before, path = sources_hash(False, sources), sources / "training.py"
    path.write_text(path.read_text().replace(old, new))
    assert sources_hash(False, sources) == before


@pytest.mark.parametrize("old, new", [("* 2", "* 3"), ("    return", "    x\n    return"), ("f(x)", "f(x, y)"),
                                      ("return x * 2", "return 'x'")])
@pytest.mark.parametrize("place", code.DECIDING)
def test_a_change_of_the_program_is_another_code(place, old, new, sources):
    before = sources_hash(True, sources)
    path = sources / place if place.endswith(".py") else sources / place / "part.py"
    path.write_text(path.read_text().replace(old, new))
    assert sources_hash(True, sources) != before


def test_files_that_no_one_imports_are_no_part_of_the_code(sources):
    before = sources_hash(True, sources)
    (sources / "layers" / "._part.py").write_bytes(b"\x00\x05\x16\x07\xff")  # of macOS
    (sources / "fast" / ".ipynb_checkpoints").mkdir()
    (sources / "fast" / ".ipynb_checkpoints" / "part-checkpoint.py").write_text("x = (")
    assert sources_hash(True, sources) == before


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    code.code_version.cache_clear()
    monkeypatch.setattr(code, "_git", lambda *arguments: "")
    version = code.code_version(False)
    code.code_version.cache_clear()
    assert version == {"commit": None, "dirty": None, "hash": sources_hash(False)}


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
