"""What the command line refuses, and how; and that no bytes, of flags or of files, end in a traceback.

FAULTS=full multiplies the cases of every fuzz test by five (make faults).
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_main, write_image_folder
from faults import FULL
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from in_process import main, only_run, options_of, settings_of

from lab.experiment import refuse_impossible
from lab.progress import print_results
from load_data import load_cifar_4d
from store.cache import CACHE
from store.files import UserError

TIMES = 5 if FULL else 1


def fuzz(cases: int):
    return settings(max_examples=cases * TIMES, deadline=None, database=None, derandomize=not FULL,
                    suppress_health_check=list(HealthCheck))


def refused(capsys, network: str, *arguments) -> str:
    """The one line on stderr of a command line that ends with code 2, in this process."""
    try:
        code = main(network, *arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2, (code, captured)
    lines = captured.err.splitlines()
    assert len(lines) == 1 and captured.err.endswith("\n"), lines
    return lines[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """16 pictures to train."""
    return write_image_folder(tmp_path_factory.mktemp("images") / "images", 2, 1)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty folder to stand in, in which nothing may appear."""
    place = tmp_path / "nowhere"
    place.mkdir()
    monkeypatch.chdir(place)
    yield place
    assert not list(place.iterdir())


# Values of flags

WHOLE, RATE = "whole number, 1 or more", "finite number above 0"
NO_NUMBERS = ["nan", "inf", "-inf", "", " ", "x", "1e", "0x10", "1,5", "1 2", "None", "\u221e", "1\n"]
WRONG = {
    "batch_size": (WHOLE, ["0", "-1", "1.0", "1.5", "1e3", "9" * 5000, *NO_NUMBERS[:-1]]),
    "num_epochs": (WHOLE, ["0", "-1", "1.0", "2.5", "1e3", *NO_NUMBERS[:-1]]),
    "learning_rate": (RATE, ["0", "-0.0", "-1", "-1e-300", "1e-400", "1e309", *NO_NUMBERS[:-1]]),
    "drop_rate": ("from 0 to below 1", ["-1e-300", "-0.1", "1", "1.0", "1.5", "1e309", *NO_NUMBERS[:-1]]),
    "seed": ("whole number, 0 or more", ["-1", "0.0", "1e3", *NO_NUMBERS[:-1]]),
    "hidden_size": ("from 1 to 65536", ["0", "-1", "65537", "1.5", *NO_NUMBERS[:-1]]),
    "dropout_type": ("1d", ["3d", "", "2D", "nan", "1d\n2d"]),
    "schedule": ("constant", ["linear", "", "Cosine", "0"]),
    "precision": ("fp32", ["fp16", "", "32", "bf16 "]),
    "weight_decay": ("0 or more", ["-1", "-1e-9", *NO_NUMBERS[:-1]]),
    "train_images": (WHOLE, ["0", "-1", "1.5", *NO_NUMBERS[:-1]]),
    "shuffled_patches": ("1, 2, 4, 8 or 16", ["0", "3", "32", "-8", *NO_NUMBERS[:-1]]),
    "device": ("cpu", ["gpu", "", "cuda:0", "CPU"]),
}
RIGHT = {
    "batch_size": ["2", "80", str(10 ** 50)], "num_epochs": ["1", "1000000"],
    "seed": ["0", str(2 ** 64), str(10 ** 50)],
    "learning_rate": ["5e-324", "1e-30", "1.7976931348623157e308"],
    "drop_rate": ["0", "-0.0", "1e-300", "0.9999999999999999"],
    "hidden_size": ["1", "65536"], "dropout_type": ["1d", "2d"], "schedule": ["constant", "cosine", "onecycle"],
    "weight_decay": ["0", "-0.0", "1e-300", "3"], "train_images": ["1", "40000"],
    "shuffled_patches": ["1", "2", "4", "8", "16"],
    "precision": ["fp32", "bf16"], "device": ["auto", "cpu", "cuda", "mps"],
}


def network_with(flag: str) -> str:
    return "cnn" if flag == "dropout_type" else "mlp"


@pytest.mark.parametrize("flag", WRONG)
def test_a_value_beyond_its_limits_is_named_with_what_is_allowed(flag, nowhere, capsys):
    allowed, values = WRONG[flag]
    for value in values:
        line = refused(capsys, network_with(flag), f"--{flag}={value}")
        assert f"argument --{flag}: " in line and repr(value) in line and allowed in line, line


@pytest.mark.parametrize("flag", RIGHT)
def test_a_value_at_its_limits_is_taken(flag, nowhere):
    for value in RIGHT[flag]:
        options = options_of(network_with(flag), f"--{flag}={value}")
        name = options.settings[0].name
        assert len(name) < 256 and "-0.0" not in name


def test_a_name_longer_than_a_folder_may_have_is_refused(nowhere, capsys):
    line = refused(capsys, "mlp", "--seed", "9" * 250)
    assert "too many digits" in line and "at most 255" in line


def test_a_flag_without_its_value_is_named(nowhere, capsys):
    for flag in [*RIGHT, "data_dir", "runs_dir", "evaluate", "predict"]:
        assert f"argument --{flag}: " in refused(capsys, network_with(flag), f"--{flag}")
    assert "--no_such_flag" in refused(capsys, "mlp", "--no_such_flag")
    assert "--batch" in refused(capsys, "mlp", "--batch", 5)
    assert "--dropout_type" in refused(capsys, "mlp", "--dropout_type", "2d")
    assert "--hidden_size" in refused(capsys, "cnn", "--hidden_size", 5)
    assert "a b" in refused(capsys, "mlp", "a\nb")


@pytest.mark.parametrize("arguments, words", [
    (("--synthetic", "--data_dir", "."), ("--data_dir", "not allowed with", "--synthetic")),
    (("--dry-run", "--evaluate", "x"), ("--evaluate", "not allowed with", "--dry-run")),
    (("--predict", "x.png"), ("--predict", "--evaluate")),
    (("--batch_size", 1), ("--batch_size", "1 is not allowed", "BatchNorm1d", "2 or more")),
    (("--batch_size", 32, 1), ("--batch_size", "1 is not allowed", "BatchNorm1d")),
])
def test_flags_that_exclude_each_other(arguments, words, nowhere, capsys):
    line = refused(capsys, "mlp", *arguments)
    assert all(word in line for word in words), line


def test_a_batch_of_one_works_where_it_can(images, tmp_path):
    common = ("--batch_size", 1, "--num_epochs", 1, "--data_dir", images, "--runs_dir", tmp_path)
    assert main("mlp", "--without_BatchNorm", *common) == 0
    assert main("cnn", *common) == 0


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_a_batch_larger_than_the_training_set_is_refused(network, images, nowhere, capsys):
    load_cifar_4d(images)
    capsys.readouterr()
    line = refused(capsys, network, "--batch_size", 8, 17, "--data_dir", images, "--runs_dir", nowhere / "runs")
    assert "argument --batch_size: 17 is not allowed" in line and "16 images" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_without_one(images, nowhere, capsys):
    line = refused(capsys, "mlp", "--device", "cuda", "--data_dir", images, "--runs_dir", nowhere / "runs")
    assert "argument --device: cuda is not available" in line and "cpu" in line


# Paths


@pytest.mark.parametrize("flag", ["data_dir", "runs_dir"])
def test_folders_that_cannot_be_are_named_before_any_work(flag, nowhere, tmp_path, capsys):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for value in ("", tmp_path / "file", tmp_path / "file" / "below", tmp_path / "circle",
                  tmp_path / "circle" / "below", tmp_path / "dangling", "a" * 256, "a/" * 3000, "nul\0", "/dev/null",
                  "/dev/null/x", "\ud800"):
        line = refused(capsys, "mlp", f"--{flag}={value}")
        assert f"argument --{flag}: " in line and "a folder, or where one can be made" in line, line


def test_a_runs_dir_that_takes_no_files_is_named_before_any_work(nowhere, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    line = refused(capsys, "mlp", "--runs_dir", nowhere / "a" / "b")
    assert "argument --runs_dir: " in line and "a folder to write in" in line


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder in which none can be made is known here")
def test_a_runs_dir_that_cannot_be_made_is_named(images, nowhere, capsys):
    load_cifar_4d(images)
    capsys.readouterr()
    assert "/proc/x" in refused(capsys, "mlp", "--runs_dir", "/proc/x", "--data_dir", images, "--batch_size", 8)


def test_evaluate_on_what_is_no_run(nowhere, tmp_path, capsys):
    runs = tmp_path / "runs"
    (runs / "mlp" / "empty").mkdir(parents=True)
    (tmp_path / "file").write_text("a file")
    for value in ("x", ".", "/", "..", runs, tmp_path / "file", runs / "mlp" / "empty", "32_0.001_0.2", "-", "*",
                  "a\nb"):
        line = refused(capsys, "mlp", f"--evaluate={value}", "--runs_dir", runs)
        assert "argument --evaluate: " in line and " ".join(str(value).split()) in line, line
    for value in ("", "nul\0", "a" * 300, tmp_path / "file" / "x"):
        line = refused(capsys, "mlp", f"--evaluate={value}", "--runs_dir", runs)
        assert "argument --evaluate: " in line and "name of a run" in line, line
    assert not list((runs / "mlp" / "empty").iterdir())


def test_line_breaks_in_names_stay_in_the_line(nowhere, tmp_path, capsys):
    folder = tmp_path / "a\nb\x1b[2J\u2028c"
    (folder / "train").mkdir(parents=True)
    assert "a b?[2J c has no folder test/" in refused(capsys, "mlp", "--data_dir", folder, "--runs_dir", nowhere / "no")


def test_from_a_shell_too_it_is_code_2_and_one_line(tmp_path):
    for network, arguments, word in (("mlp", ["--drop_rate", "1"], "--drop_rate"),
                                     ("cnn", ["--runs_dir", __file__], "--runs_dir")):
        done = run_main(network, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and word in done.stderr and "main.py: error" in done.stderr
    assert not list(tmp_path.iterdir())


# Any command line

FLAGS = [f"--{name}" for name in (*WRONG, "runs_dir", "data_dir", "evaluate", "predict", "synthetic", "retry", "help",
                                  "augment", "without_BatchNorm", "without_dropout", "compile", "dry-run", "no_wait",
                                  "tensorboard")]
VALUES = st.one_of(
    st.sampled_from([value for _, values in WRONG.values() for value in values]),
    st.sampled_from([value for values in RIGHT.values() for value in values]),
    st.integers().map(str), st.floats().map(repr), st.text(max_size=20))
COMMANDS = st.lists(st.one_of(
    st.sampled_from(FLAGS).map(lambda flag: [flag]),
    st.tuples(st.sampled_from(FLAGS), st.lists(VALUES, max_size=3)).map(lambda pair: [pair[0], *pair[1]]),
    st.tuples(st.sampled_from(FLAGS), VALUES).map(lambda pair: ["=".join(pair)]), VALUES.map(lambda value: [value])),
    max_size=5).map(lambda groups: sum(groups, []))


def parsed(network: str, arguments: list[str]):
    """The options, or the exit code; and what was printed on stderr."""
    err, out = io.StringIO(), io.TextIOWrapper(io.BytesIO(), "utf-8")  # strict, as a pipe is
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        return options_of(network, *arguments), err.getvalue()
    except SystemExit as stop:
        return stop.code, err.getvalue()
    finally:
        sys.stdout, sys.stderr = kept


@fuzz(900)
@given(st.sampled_from(["mlp", "cnn"]), COMMANDS)
@example("mlp", ["--dry-run", "--runs_dir", "\udcff"])
def test_any_command_line_is_taken_or_refused_in_one_line(network, arguments):
    outcome, err = parsed(network, arguments)
    if isinstance(outcome, int):
        assert outcome in (0, 2)
        assert err.count("\n") == (outcome == 2), err
        assert len(err.splitlines()) <= 1
    else:
        assert not err
        for chosen in outcome.settings:
            assert chosen.batch_size >= 1 and chosen.num_epochs >= 1 and chosen.seed >= 0
            assert 0 < chosen.learning_rate < float("inf") and 0 <= chosen.drop_rate < 1
            assert len(chosen.name.encode()) < 256 and "/" not in chosen.name


# Any bytes in files


def damaged(good: bytes):
    """The bytes with parts overwritten, cut off, doubled or all replaced."""
    def apply(kind: str, place: int, new: bytes) -> bytes:
        place %= len(good) + 1
        return {"over": good[:place] + new + good[place + len(new):], "cut": good[:place],
                "insert": good[:place] + new + good[place:], "drop": good[:place] + good[place + len(new):],
                "all": new}[kind]

    return st.builds(apply, st.sampled_from(["over", "over", "cut", "insert", "drop", "all"]),
                     st.integers(0, len(good)) | st.integers(0, 400) | st.integers(max(0, len(good) - 900), len(good)),
                     st.binary(min_size=1, max_size=24))


class Files:
    """A finished run of tiny data, whose files can be damaged and put back."""

    def __init__(self, place: Path):
        self.images = write_image_folder(place / "images", 2, 1)
        self.runs = place / "runs"
        assert main("mlp", "--data_dir", self.images, "--runs_dir", self.runs, "--batch_size", 8,
                    "--hidden_size", 2) == 0
        self.run = only_run(self.runs, "mlp")
        self.data = load_cifar_4d(self.images)
        self.settings = settings_of("mlp", hidden_size=2, batch_size=8)
        self.good = {path: path.read_bytes() for path in [*self.run.folder.iterdir(), self.images / CACHE]}


FILES = []


def files() -> Files:
    if not FILES:
        FILES.append(Files(Path(tempfile.mkdtemp(prefix="fuzz"))))
    return FILES[0]


@pytest.fixture(scope="module", autouse=True)
def _remove_files():
    yield
    while FILES:
        shutil.rmtree(FILES.pop().runs.parent)


def drawn(data, path: Path) -> None:
    """Put damaged bytes in the place of a file."""
    path.write_bytes(data.draw(damaged(files().good[path])))


@fuzz(250)
@given(st.data())
def test_any_bytes_in_the_cache_give_the_same_data(data):
    drawn(data, files().images / CACHE)
    again = load_cifar_4d(files().images)
    assert again.fingerprint == files().data.fingerprint and again.classes == files().data.classes
    assert torch.equal(again.train.images, files().data.train.images)


@fuzz(250)
@given(st.data())
def test_any_bytes_in_a_picture_are_a_picture_or_named_in_one_line(data):
    path = files().images / "train" / "class0" / "0000.png"
    good = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(good)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_cifar_4d(files().images).train.images.shape == (16, 3, 32, 32)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    finally:
        path.write_bytes(good)
        (files().images / CACHE).unlink(missing_ok=True)
        (files().images / CACHE).write_bytes(files().good[files().images / CACHE])


SMALL = settings_of("mlp", hidden_size=1, batch_size=8)


@fuzz(250)
@given(st.data())
def test_any_bytes_in_metrics_are_rows_or_none(data):
    path = files().run.folder / "metrics.csv"
    drawn(data, path)
    for row in files().run.metrics():
        assert isinstance(row["epoch"], int) and isinstance(row["val_acc"], float)
    path.write_bytes(files().good[path])


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["data", "epochs", "time", "best_epoch", "val_loss", "fingerprint", "classes",
                                         "network", "reason", "seconds"]), inner, max_size=5), max_leaves=12)


@fuzz(400)
@given(st.data(), st.sampled_from(["config.json", "result.json", "failed.json"]))
def test_any_bytes_in_json_are_taken_or_seen_as_damaged(data, name):
    run, path = files().run, files().run.folder / name
    good = files().good.get(path) or b'{"reason": "x", "epoch": 1, "step": 2, "time": 5.0}'
    values = JSON.map(lambda value: json.dumps(value).encode())
    # What was right, with one value that is anything.
    changed = st.builds(lambda key, value: json.dumps({**json.loads(good), key: value}).encode(),
                        st.sampled_from(sorted(json.loads(good))), JSON)
    path.write_bytes(data.draw(st.one_of(values, changed, damaged(good))))
    try:
        run.read().state(2)
        print_results({files().settings: run})
        refuse_impossible(files().settings, run, files().data)
        if name == "config.json":
            main("mlp", "--runs_dir", files().runs, "--evaluate", run.name, "--predict",
                 files().images / "test" / "class0" / "0000.png")
    except UserError as error:
        assert "other data" in str(error) or "is a copy" in str(error)
    finally:
        path.write_bytes(files().good[path]) if path in files().good else path.unlink()


# Other versions of Python


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"])
def test_each_version_of_python_reads_every_file_and_answers_without_torch(version, tmp_path):
    """Torch is there for one version; what needs none of it runs, and the rest is compiled."""
    places = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    python = next((str(place) for place in places if place and not subprocess.run(
        [place, "-c", ""], capture_output=True).returncode), None)
    if python is None:
        pytest.skip(f"no Python {version} here")
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert len(files) > 60
    check = "import sys, pathlib; [compile(pathlib.Path(f).read_text('utf-8'), f, 'exec') for f in sys.argv[1:]]"
    subprocess.run([python, "-W", "error", "-c", check, *files], check=True, cwd=ROOT)

    for command, answer in (([python, ROOT / "mlp" / "main.py", "--help"], "examples:"),
                            ([python, ROOT / "cnn" / "main.py", "--dry-run"], "128_0.001_0.2_False_False_2d_seed0"),
                            ([ROOT / "run_grid.sh", "all", "--status", "--runs_dir", tmp_path], "128 missing")):
        done = subprocess.run(command, env={**os.environ, "PYTHON": python}, capture_output=True, text=True)
        assert answer in done.stdout and not done.stderr, done
