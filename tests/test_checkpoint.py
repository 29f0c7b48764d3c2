"""A checkpoint may be hostile, foreign or old, and the machine short of memory: nothing is lost."""

import io
import json
import math
import os
import resource
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faults import Child, outcome
from in_process import BUILD, LOAD, main, only_run, random_data, settings_of, trainer_of
from torch import Tensor
from torch._subclasses import FakeTensorMode

from lab import active_run, checkpoint, experiment
from lab.checkpoint import as_bytes, resume, snapshot
from store.files import UserError
from store.run import FILES, RunFolder
from store.trained import copied, is_out_of_memory
from training import Diverged, Trainer, on_cpu

SETTINGS = settings_of("mlp", hidden_size=2)
DATA = random_data("mlp")
FLAGS = ("--batch_size", 40, "--hidden_size", 4, "--device", "cpu")
NO_MEMORY = [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
             RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                          "allocate memory: you tried to allocate 12 bytes"),
             RuntimeError("std::bad_alloc"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")]


@pytest.fixture(scope="module")
def good() -> bytes:
    """A checkpoint after one epoch."""
    trainer = trainer_of(SETTINGS, DATA)
    trainer.run_epoch()
    return snapshot(trainer)()[0]


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> dict[int, Path]:
    """--runs_dir of a run of two epochs, and of the same with three."""
    places = {epochs: tmp_path_factory.mktemp(f"epochs{epochs}") for epochs in (2, 3)}
    for epochs, place in places.items():
        assert train(images, place, epochs) == 0
    return places


@pytest.fixture
def finished(trained, tmp_path) -> RunFolder:
    """A run that is finished with two epochs."""
    shutil.copytree(trained[2], tmp_path / "runs")
    return only_run(tmp_path / "runs", "mlp")


@pytest.fixture
def half_done(finished) -> RunFolder:
    """The same, to have three, stopped after the second."""
    (finished.folder / "result.json").unlink()
    return finished


def train(images: Path, place: Path, epochs: int, *flags) -> int:
    return main("mlp", "--data_dir", images, "--runs_dir", place, "--num_epochs", epochs, *FLAGS, *flags)


def runs_dir(run: RunFolder) -> Path:
    return run.folder.parents[1]


def content(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.folder.iterdir()}


def state_of(run: RunFolder) -> dict:
    return torch.load(run.folder / "checkpoint.pt", weights_only=True)


def errors(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def as_if_uninterrupted(run: RunFolder, trained) -> bool:
    return outcome(run.folder) == outcome(only_run(trained[3], "mlp").folder)


def with_memory(limit: int, work):
    """`work`, in a process that may take so many bytes more than it has."""
    def limited() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + limit
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return work()
    return limited


# Hostile


def moment(change):
    def hostile(state: dict) -> None:
        state["optimizer"]["state"][0]["exp_avg"] = change(state["optimizer"]["state"][0]["exp_avg"])
    return hostile


def entry(*keys, value):
    def hostile(state: dict) -> None:
        place = state
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value(place.get(keys[-1])) if callable(value) else value
    return hostile


TWO = torch.tensor([1, 2])
HOSTILE = {
    "a moment of one value": moment(lambda x: torch.zeros(1)),
    "sparse": moment(Tensor.to_sparse),
    "quantized": moment(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)),
    "conjugate": moment(lambda x: x.to(torch.complex64).conj()),
    "nested": moment(lambda x: torch.nested.nested_tensor([x, x[:1]])),
    "no moments": entry("optimizer", "state", value={}),
    "a step of two": entry("optimizer", "state", 0, "step", value=TWO),
    "8 GB in a value": entry("network", "linear1.weight", value=torch.zeros(1).expand(2 ** 31)),
    "best weights of one value": entry("best_weights", "linear1.weight", value=torch.zeros(1)),
    "an identity of tensors": entry("identity", "seed", value=TWO),
    "no identity": entry("identity", value=[]),
    "predictions of one image": entry("best_predictions", "val", value=torch.zeros(1, dtype=torch.uint8)),
    "predictions that are none": entry("best_predictions", value=[1, 2]),
    "predictions of more": entry("best_predictions", "train", value=torch.zeros(70, dtype=torch.uint8)),
    "rows that are a tensor": entry("rows", value=TWO),
    "a row of tensors": entry("rows", value=lambda rows: [{**rows[0], "epoch": TWO}]),
    "a row that is not finite": entry("rows", value=lambda rows: [{**rows[0], "seconds": math.nan}]),
    "a best row of another run": entry("best", value=lambda row: {**row, "val_acc": 2.0}),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch's, on rare kinds of tensors
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_state_is_refused_and_takes_no_memory(kind, good, tmp_path):
    """In a process of its own: what is let in ends it by a signal, or needs all memory."""
    state = torch.load(io.BytesIO(good), weights_only=True)
    HOSTILE[kind](state)
    (tmp_path / "checkpoint.pt").write_bytes(as_bytes(state))

    def work() -> int:
        with pytest.raises(UserError, match="is whole, but nothing that this run can go on from"):
            resume(RunFolder(tmp_path), lambda: trainer_of(SETTINGS, DATA))
        return 0

    log = tmp_path / "log"
    assert Child(with_memory(10 ** 9, work), log).wait() == 0, log.read_text()


@pytest.mark.parametrize("strides", ["all 0", "in another order"])
def test_strides_of_a_file_do_not_matter(strides, half_done, images, trained):
    """PyTorch alone may have written it, for a network in another order of memory."""
    for name in ("checkpoint.pt", "best.pt"):
        state = torch.load(half_done.folder / name, weights_only=True)
        weight = state["network"]["linear1.weight"]
        state["network"]["linear1.weight"] = weight.t().contiguous().t()
        if name == "checkpoint.pt":
            moments = state["optimizer"]["state"][0]
            moments["exp_avg"] = moments["exp_avg"].t().contiguous().t()
            if strides == "all 0":
                moments["exp_avg"] = torch.zeros(1).expand(weight.shape)
        torch.save(state, half_done.folder / name)
    folder = half_done.folder.parents[1]
    assert main("mlp", "--runs_dir", folder, "--evaluate", half_done.folder, "--data_dir", images) == 0
    for name in ("evaluation.json", "mistakes.png"):
        (half_done.folder / name).unlink(missing_ok=True)
    assert train(images, folder, 3) == 0
    assert (strides == "all 0") != as_if_uninterrupted(half_done, trained)


def test_of_the_optimizer_the_moments_alone_are_taken(half_done, images, trained):
    state = state_of(half_done)
    state["optimizer"]["param_groups"][0].update(lr=9.0, betas=(0.1, 0.1), eps=1.0, weight_decay=0.5,
                                                 maximize=True, amsgrad=True)
    (half_done.folder / "checkpoint.pt").write_bytes(as_bytes(state))
    assert train(images, runs_dir(half_done), 3) == 0
    assert as_if_uninterrupted(half_done, trained)


@pytest.mark.parametrize("left_out", [False, True])
def test_a_run_of_before_some_settings_were_there_goes_on(left_out, half_done, images, trained, capsys):
    """Its identity names every setting of then, at its default too, and none of the later ones."""
    state = state_of(half_done)
    state["identity"] = {
        "network": "mlp", "batch_size": 40, "learning_rate": 0.001, "drop_rate": 0.2, "seed": 0,
        "without_BatchNorm": False, "without_dropout": False, "dropout_type": None, "hidden_size": 4,
        "precision": "fp32", "compile": False, "augment": False, "schedule": "constant",
        "synthetic": False, "fingerprint": state["identity"]["fingerprint"]}
    if left_out:  # as the next versions wrote it
        own = ("network", "batch_size", "learning_rate", "drop_rate", "seed", "hidden_size", "fingerprint")
        state["identity"] = {name: state["identity"][name] for name in own}
    (half_done.folder / "checkpoint.pt").write_bytes(as_bytes(state))
    (half_done.folder / "checkpoint.previous.pt").unlink()
    assert train(images, runs_dir(half_done), 3) == 0
    assert "epoch 1/3" not in capsys.readouterr().out
    assert as_if_uninterrupted(half_done, trained)


def test_best_weights_lie_on_the_cpu_fresh_and_resumed(half_done):
    for name in ("checkpoint.pt", "best.pt"):
        assert b"cuda" not in (half_done.folder / name).read_bytes()
    with FakeTensorMode():
        card = {"weight": torch.empty(3, device="cuda")}  # one that is not there
    trainer = trainer_of(SETTINGS)
    trainer.network = SimpleNamespace(state_dict=lambda: card)
    ones = torch.ones(30), torch.ones(30, 10)
    order = torch.arange(30)
    trainer.end_epoch(order, dict.fromkeys(("train", "val", "test"), ones), time.perf_counter())
    for weights in (trainer.best_weights, on_cpu(trainer.network.state_dict())):
        assert weights["weight"].device.type == "cpu"


def test_files_hold_the_epoch_they_were_asked_for_whenever_they_are_made(monkeypatch):
    trainer, asked = trainer_of(SETTINGS, DATA), []
    for _ in range(3):
        trainer.run_epoch()
        asked.append((snapshot(trainer), snapshot(trainer)(), trainer.best is trainer.rows[-1]))
    assert len({checkpoint for _, (checkpoint, _), _ in asked}) == 3
    for files, made_at_once, is_best in asked:
        assert files() == made_at_once and bool(made_at_once[1]) == is_best


def test_the_device_is_waited_for_where_bytes_are_made_not_where_the_epoch_ends(monkeypatch):
    trainer, told = trainer_of(SETTINGS, DATA), []
    trainer.run_epoch()
    event = SimpleNamespace(record=lambda: told.append("copies are in the stream"),
                            synchronize=lambda: told.append("copied"))
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: event)
    monkeypatch.setattr(checkpoint, "as_bytes", lambda state: told.append("bytes"))
    monkeypatch.setattr(checkpoint, "copied", lambda device: copied(torch.device("cuda")))
    files = snapshot(trainer)
    assert told == ["copies are in the stream"]
    files()
    assert told == ["copies are in the stream", "copied", "bytes", "bytes"]


# What was finished


def test_a_finished_run_without_checkpoints_never_starts_again(finished, images, capsys):
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (finished.folder / name).unlink()
    before = content(finished)
    assert train(images, runs_dir(finished), 3) == 2
    line, = errors(capsys)
    assert "finished with 2 epochs" in line and "delete the folder to retrain it" in line
    assert content(finished) == before
    assert train(images, runs_dir(finished), 2) == 0


def test_a_finished_run_with_damaged_checkpoints_keeps_what_it_has_and_the_others_go_on(
        finished, images, capsys):
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (finished.folder / name).write_bytes(b"damaged")
    before = content(finished)
    assert train(images, runs_dir(finished), 3, "--drop_rate", 0.2, 0.4) == 1
    assert finished.failure()["reason"].startswith("it was finished with 2 epochs")
    other, = (path for path in finished.folder.parent.iterdir() if path != finished.folder)
    assert RunFolder(other).finished(3)
    after = content(finished)
    assert all(after[name] == data for name, data in before.items() if name != "config.json")
    capsys.readouterr()
    assert train(images, runs_dir(finished), 2) == 0  # what it was finished with
    assert "failed" not in capsys.readouterr().out


def test_a_finished_run_that_is_extended_and_diverges_keeps_its_result(
        finished, images, trained, monkeypatch, capsys):
    result = (finished.folder / "result.json").read_bytes()

    def diverge(trainer, on_step):
        raise Diverged(3, 1)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", diverge)
        assert train(images, runs_dir(finished), 3) == 1
    assert "epoch 3, step 1" in finished.failure()["reason"]
    assert (finished.folder / "result.json").read_bytes() == result
    assert finished.read().state(2) == "finished" and finished.read().state(3) == "failed"
    capsys.readouterr()
    assert train(images, runs_dir(finished), 2) == 0
    assert "failed" not in capsys.readouterr().out
    assert train(images, runs_dir(finished), 3, "--retry") == 0
    assert as_if_uninterrupted(finished, trained)


# What made it, and whose it is


def test_a_run_that_two_versions_made_names_both_by_epochs(finished, images, monkeypatch):
    first = finished.config()
    assert "origins" not in first
    monkeypatch.setattr(active_run, "code_version", lambda on_gpu: {**first["code"], "hash": "of the next one"})
    (finished.folder / "metrics.csv").unlink()  # is written again, and no epoch is trained
    assert train(images, runs_dir(finished), 2) == 0 and finished.config() == first
    assert train(images, runs_dir(finished), 3) == 0
    config = finished.config()
    assert [(one["epoch"], one["code"]["hash"]) for one in config["origins"]] == [
        (1, first["code"]["hash"]), (3, "of the next one")]
    assert finished.read().codes == [first["code"]["hash"], "of the next one"]
    assert config["code"]["hash"] == "of the next one"


def test_config_json_says_how_sums_are_rounded(images, tmp_path, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with torch.backends.mkldnn.flags(enabled=False):
        found = active_run.arithmetic()
    assert found == {**active_run.arithmetic(), "mkldnn": False} and found["ONEDNN_MAX_CPU_ISA"] == "AVX2"


@pytest.mark.parametrize("name", ["40_0.001_0.2_False_False_seed7_hidden4", "40_0.001_0.2_False_False_seed0_hidden4_backup"])
def test_a_copied_or_renamed_folder_is_no_further_run(name, finished, images, capsys):
    copy = finished.folder.with_name(name)
    shutil.copytree(finished.folder, copy)
    assert RunFolder(copy).read().is_copy and not finished.read().is_copy
    if "seed7" in name:
        assert train(images, runs_dir(finished), 2, "--seed", 7) == 2
        assert f"is a copy of the run {finished.name}" in errors(capsys)[0]
    assert main("mlp", "--runs_dir", runs_dir(finished), "--evaluate", copy) == 2
    assert "is a copy of the run" in errors(capsys)[0]


def test_the_best_weights_of_another_run_are_not_believed(finished, images, capsys):
    assert train(images, runs_dir(finished), 2, "--seed", 1) == 0
    other, = (path for path in finished.folder.parent.iterdir() if path != finished.folder)
    shutil.copy(other / "best.pt", finished.folder / "best.pt")
    capsys.readouterr()
    assert main("mlp", "--runs_dir", runs_dir(finished), "--evaluate", finished.folder, "--data_dir", images) == 2
    assert "it is of another run" in errors(capsys)[0]


@pytest.mark.parametrize("change", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b",", b";")],
                         ids=["byte order mark", "semicolons"])
def test_metrics_that_a_spreadsheet_saved_are_read_and_written_again(change, finished, images):
    path = finished.folder / "metrics.csv"
    good, rows = path.read_bytes(), finished.metrics()
    path.write_bytes(change(good))
    assert finished.metrics() == rows
    config = finished.config()
    assert train(images, runs_dir(finished), 2) == 0
    assert path.read_bytes() == good and finished.config() == config


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_read_through_a_link_in_a_folder_of_a_run(name, finished, images, tmp_path, capsys):
    path = finished.folder / name
    path.touch()
    shutil.move(path, tmp_path / name)
    path.symlink_to(tmp_path / name)
    assert train(images, runs_dir(finished), 3) == 2
    assert f"{name} is a link" in errors(capsys)[0]
    run = finished.read()
    lost = {"config.json": run.config, "metrics.csv": run.rows, "result.json": run.result, "failed.json": run.failure}
    assert not lost.get(name)
    if name in ("best.pt", "config.json"):
        assert main("mlp", "--runs_dir", runs_dir(finished), "--evaluate", finished.folder) == 2


def test_where_no_thread_can_be_started_no_run_is_marked(images, tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        assert train(images, tmp_path, 1, "--drop_rate", 0, 0.2) == 2
    line, = errors(capsys)
    assert "no more threads" in line and not list(tmp_path.glob("*/*/failed.json"))
    assert train(images, tmp_path, 1, "--drop_rate", 0, 0.2) == 0


# No memory


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
@pytest.mark.parametrize("where", ["reading", "loading"])
def test_no_memory_while_a_checkpoint_is_taken_up_is_no_verdict_on_it(
        where, error, half_done, images, trained, monkeypatch):
    def refuse(*_, **__):
        raise error

    before = content(half_done)
    with monkeypatch.context() as patch:
        if where == "reading":
            patch.setattr(torch, "load", refuse)
        else:
            patch.setattr(Trainer, "load_state_dict", refuse)
        assert train(images, runs_dir(half_done), 3) == 1
    after, failure = content(half_done), half_done.failure()
    assert all(after[name] == before[name] for name in before if name.endswith(".pt"))
    assert failure["reason"].startswith("no memory") and failure["epoch"] == 3
    assert train(images, runs_dir(half_done), 3, "--retry") == 0
    assert as_if_uninterrupted(half_done, trained)


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_no_memory_for_one_network_and_the_others_are_trained(error, images, tmp_path, monkeypatch,
                                                              capsys):
    def build_or_not(settings, num_classes):
        if settings.drop_rate == 0.4:
            raise error
        return mlp(settings, num_classes)

    mlp = BUILD["mlp"]
    monkeypatch.setitem(BUILD, "mlp", build_or_not)
    assert train(images, tmp_path, 1, "--drop_rate", 0.2, 0.4, 0.6) == 1
    assert not errors(capsys)
    runs = {json.loads((path / "config.json").read_text())["drop_rate"]: RunFolder(path)
            for path in (tmp_path / "mlp").iterdir()}
    assert {rate for rate, run in runs.items() if run.finished(1)} == {0.2, 0.6}
    assert runs[0.4].failure()["reason"].startswith("no memory")
    assert runs[0.4].failure()["epoch"] == 1 and runs[0.4].read().state(1) == "failed"


@pytest.mark.parametrize("error", [*NO_MEMORY, RuntimeError("CUDA error: all CUDA-capable devices are "
                                                            "busy or unavailable")], ids=repr)
@pytest.mark.parametrize("where", ["load_cifar_2d", "prepared"])
def test_no_memory_for_the_data_is_one_line(where, error, images, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise error

    if where == "prepared":
        monkeypatch.setattr(experiment, where, refuse)
    else:
        monkeypatch.setitem(LOAD, "mlp", refuse)
    assert train(images, tmp_path, 1) == 2
    line, = errors(capsys)
    assert "error: " in line and ("memory" in line or "busy" in line)
    assert not list(tmp_path.iterdir())


def test_no_memory_while_a_checkpoint_is_written_tells_the_epoch_and_the_reason(
        images, tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data) -> int:
            if self.tell() > 4096:
                raise MemoryError
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.io, "BytesIO", Full)
        with pytest.raises(RuntimeError, match="unexpected pos"):  # PyTorch's reason
            torch.save(torch.zeros(9999), Full())
        assert train(images, tmp_path, 1) == 1
    failure = only_run(tmp_path, "mlp").failure()
    assert failure["reason"] == "no memory: for a checkpoint" and failure["epoch"] == 1


def test_memory_that_truly_ends_is_recognized(tmp_path):
    """PyTorch's own words for it, as they are on this machine."""
    def work() -> int:
        found = 0
        for take in (lambda: torch.zeros(10 ** 10), lambda: bytearray(10 ** 10),
                     lambda: torch.ones(10 ** 6).repeat(10 ** 4)):
            try:
                take()
            except Exception as error:
                found += is_out_of_memory(error)
        return found

    assert Child(with_memory(10 ** 9, work), tmp_path / "log").wait() == 3


# A device that is lost


def test_a_device_that_is_lost_ends_the_process_and_blames_no_later_run(
        images, tmp_path, monkeypatch, capsys):
    def fault(trainer, on_step):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(experiment, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(Trainer, "run_epoch", fault)
    monkeypatch.setattr(active_run, "is_lost", lambda device: True)
    assert train(images, tmp_path, 1, "--drop_rate", 0.2, 0.4) == 2
    line, = errors(capsys)
    assert "no longer usable" in line and "device-side assert" in line and "--retry" in line
    assert only_run(tmp_path, "mlp").failure()["epoch"] == 1
    assert not (only_run(tmp_path, "mlp").folder / "lock").exists()
    monkeypatch.setattr(active_run, "is_lost", lambda device: False)
    assert train(images, tmp_path, 1, "--drop_rate", 0.2, 0.4, "--retry") == 1  # both are tried


def test_a_lost_device_is_one_whose_error_comes_again(monkeypatch):
    def fail():
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not active_run.is_lost(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert active_run.is_lost(torch.device("cuda"))
    assert not active_run.is_lost(torch.device("cpu"))


# The files that --evaluate reads


def changed_config(**changes):
    def change(run: RunFolder) -> None:
        config = json.loads((run.folder / "config.json").read_text())
        (run.folder / "config.json").write_text(json.dumps({**config, **changes}))
    return change


def changed_best(change):
    def write(run: RunFolder) -> None:
        best = torch.load(run.folder / "best.pt", weights_only=True)
        change(best)
        (run.folder / "best.pt").write_bytes(as_bytes(best))
    return write


def endless_best(run: RunFolder) -> None:
    os.truncate(run.folder / "best.pt", 3 * 10 ** 9)


FOREIGN = {
    "a network of 6 GB": changed_config(hidden_size=500_000),
    "a network of 800 MB": changed_config(hidden_size=65_536),
    "compile that is no flag": changed_config(compile="yes"),
    "classes without end": changed_config(data={"classes": ["x"] * 10 ** 6, "source": "", "fingerprint": ""}),
    "a rate beyond floats": changed_config(learning_rate=10 ** 400),
    "a seed that is true": changed_config(seed=True),
    "no hidden size": changed_config(hidden_size=None),
    "weights that are not finite": changed_best(lambda best: best["network"]["linear1.bias"].fill_(math.nan)),
    "a loss that is not finite": changed_best(lambda best: best.update(test_loss=math.nan)),
    "an accuracy that is a tensor": changed_best(lambda best: best.update(test_acc=TWO)),
    "an epoch that is meta": changed_best(lambda best: best.update(epoch=torch.zeros((), device="meta"))),
    "8 GB in a value": changed_best(lambda best: best["network"].update(
        {"linear1.weight": torch.zeros(1).expand(2 ** 31)})),
    "3 GB of nothing": endless_best,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_does_not_fit_is_told_in_one_line_before_it_is_built(kind, finished, images, tmp_path):
    FOREIGN[kind](finished)
    log, started = tmp_path / "log", time.monotonic()

    def work() -> int:
        return main("mlp", "--data_dir", images, "--evaluate", finished.folder, "--device", "cpu")

    assert Child(with_memory(6 * 10 ** 8, work), log).wait() == 2, log.read_text()
    assert log.read_text().count("\n") == 1 and ": error: " in log.read_text(), log.read_text()
    assert "memory" not in log.read_text() and str(finished.folder) in log.read_text()
    assert time.monotonic() - started < 60
    assert not (finished.folder / "evaluation.json").exists()
