"""Nothing lost, nothing let in: every fault is caused, and what is left is compared with an undisturbed run.

FAULTS=full runs the whole count (make faults), otherwise a tenth of it. What was counted is printed with -rP.
"""

import contextlib
import errno
import fcntl
import functools
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from faults import (
    FULL,
    Case,
    Child,
    Operations,
    Undisturbed,
    at,
    case,
    count,
    die,
    moments,
    outcome,
)
from in_process import main, only_run, random_data, settings_of, trainer_of

from lab import active_run, experiment
from lab.checkpoint import as_bytes, resume, snapshot
from store import files
from store.files import UserError, is_whole, lock, write_file
from store.run import RESULT, RunFolder


@pytest.fixture(scope="session")
def undisturbed(images, tmp_path_factory) -> Undisturbed:
    return Undisturbed(images, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def half_done(undisturbed, tmp_path) -> tuple[Case, Path]:
    """A run of three epochs that was stopped after the second: both checkpoints are there."""
    return stopped_after_two(undisturbed, tmp_path / "runs")


def stopped_after_two(undisturbed, place: Path) -> tuple[Case, Path]:
    whole = case("mlp")
    two = Case("mlp", (*whole.flags, "--num_epochs", 2))
    shutil.copytree(undisturbed(two)[2], place)
    folder = whole.folder(place)
    (folder / "result.json").unlink()
    return whole, folder


def finishes(wanted: Case, undisturbed, place: Path) -> None:
    assert wanted.run(undisturbed.data, place) == 0
    assert outcome(wanted.folder(place)) == undisturbed(wanted)[0]


def one_error(capsys, *words: str) -> str:
    """The only line on stderr that is no remark on the data; it has all the words."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("decoding")]
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), (lines, words)
    return lines[0]


# Killed at any moment


def crash_and_resume(wanted: Case, faults: list, undisturbed, place: Path) -> list[int]:
    """Run with each fault in turn, then without; the outcome must be that of the undisturbed run."""
    log, codes = place.with_suffix(".log"), []
    for fault in faults:
        def work(fault=fault) -> int:
            with Operations(fault if callable(fault) else lambda index, moment: None):
                return wanted.run(undisturbed.data, place)

        child = Child(work, log)
        if not callable(fault):
            time.sleep(fault)
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        codes.append(child.wait())
    last = Child(lambda: wanted.run(undisturbed.data, place), log)
    assert last.wait() == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    assert outcome(wanted.folder(place)) == undisturbed(wanted)[0]
    return codes


@pytest.mark.parametrize("network, at_points, by_clock", [("mlp", 110, 40), ("cnn", 35, 15)])
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(network, at_points, by_clock, undisturbed, tmp_path,
                                                                 record_property):
    chance, cases = random.Random(20), [case(network, seed) for seed in range(5 if network == "mlp" else 2)]
    killed, chosen = 0, count(at_points)
    for i in range(chosen):
        points = moments(undisturbed(cases[i % len(cases)])[1])
        point = points[i * len(points) // chosen]
        faults = [at(point, die)]
        if i % 3 == 0:  # and once more on the way
            faults.append(at(chance.choice(points[:len(points) // 3]), die))
        codes = crash_and_resume(cases[i % len(cases)], faults, undisturbed, tmp_path / f"point{i}")
        assert codes[0] == -9, (point, codes)
        killed += codes.count(-9)
    by_the_clock = 0
    for i in range(count(by_clock)):
        fault = chance.uniform(0, undisturbed.seconds[cases[i % len(cases)]])
        codes = crash_and_resume(cases[i % len(cases)], [fault], undisturbed, tmp_path / f"clock{i}")
        by_the_clock += codes.count(-9)
    record_property(f"kills {network}", f"{killed} at writes, fsyncs and renames, {by_the_clock} by the clock")
    assert killed >= chosen and by_the_clock >= count(by_clock) // 4


def test_before_a_file_takes_its_name_it_is_on_the_disk_and_its_folder_is_told(undisturbed):
    """What outlives a power cut is what was synced: the bytes before the rename, the folder after it."""
    seen = 0
    for wanted in (case("mlp"), case("cnn")):
        log = undisturbed(wanted)[1]
        for i, entry in enumerate(log):
            if entry[0] == "rename" and not entry[1].endswith("/checkpoint.pt"):
                (write, written), (sync, synced) = log[i - 2:i]
                assert (write, sync) == ("write", "fsync") and written == entry[1]
                assert os.path.realpath(synced) == os.path.realpath(written)
                assert log[i + 1] == ("fsync", os.path.realpath(Path(entry[2]).parent))
                seen += 1
    assert seen >= 15


# Refused by the system


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_refused_at_any_moment_it_says_so_in_one_line_and_goes_on_later(number, undisturbed, tmp_path, capsys,
                                                                         record_property):
    def refuse():
        raise OSError(number, os.strerror(number))

    wanted = case("mlp")
    points = [point for point in moments(undisturbed(wanted)[1]) if point[1] != "after"]
    points = points[number % 4::4 if FULL else 20]
    for i, point in enumerate(points):
        place = tmp_path / str(i)
        with Operations(at(point, refuse)):
            code = wanted.run(undisturbed.data, place)
        one_error(capsys, os.strerror(number))
        assert code == 2
        folder = wanted.folder(place)
        assert not (folder / "failed.json").exists()
        assert not list(folder.glob(".*.tmp"))
        if point[0] > 10:
            assert any(is_whole(path.read_bytes()) for path in folder.glob("checkpoint*.pt"))
        finishes(wanted, undisturbed, place)
    record_property(f"refused with {errno.errorcode[number]}", f"{len(points)}")


@pytest.mark.parametrize("number", sorted(files.NO_FSYNC))
def test_a_file_system_that_cannot_sync_folders_trains_all_the_same_and_says_so_once(number, undisturbed, tmp_path,
                                                                                     monkeypatch, capsys):
    fsync = os.fsync

    def of_files_alone(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    wanted = case("mlp")
    undisturbed(wanted)
    monkeypatch.setattr(files, "_unsynced", set())
    monkeypatch.setattr(os, "fsync", of_files_alone)
    finishes(wanted, undisturbed, tmp_path)
    one_error(capsys, "cannot sync folders", "power cut")


def test_a_failure_of_the_future_is_tried_again_with_retry_alone(half_done, undisturbed):
    """A clock that was wrong and was moved back."""
    wanted, folder = half_done
    failure = {"reason": "no memory", "epoch": 3, "step": None, "time": time.time() + 10 ** 9}
    RunFolder(folder).fail(failure)
    assert wanted.run(undisturbed.data, folder.parents[1]) == 1
    assert RunFolder(folder).failure() == failure
    assert Case("mlp", (*wanted.flags, "--retry")).run(undisturbed.data, folder.parents[1]) == 0
    assert outcome(folder) == undisturbed(wanted)[0]


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_keeps_the_last_checkpoint_and_with_space_it_goes_on(undisturbed, disk, capsys, record_property):
    wanted, cases, stopped, went_on = case("mlp"), count(60), 0, 0
    for i in range(cases):
        place, filler = disk / "runs", disk / "filler"
        if i % 2:  # the disk fills up under a run that is half done
            stopped_after_two(undisturbed, place)
            for path in place.glob("mlp/*/checkpoint.previous.pt"):
                path.unlink()  # the only good one is the last
        space = os.statvfs(disk)
        free = space.f_bavail * space.f_bsize
        with open(filler, "wb") as file, contextlib.suppress(OSError):
            file.write(bytes(max(0, free - i * 3_000_000 // cases)))
        code = wanted.run(undisturbed.data, place)
        if code == 2:
            one_error(capsys, os.strerror(errno.ENOSPC), str(disk))
            stopped += 1
            if kept := list(place.glob("mlp/*/checkpoint*.pt")):
                assert any(is_whole(path.read_bytes()) for path in kept)
                went_on += 1
            assert kept or not i % 2
        filler.unlink()
        finishes(wanted, undisturbed, place)
        shutil.rmtree(place)
        capsys.readouterr()
    record_property("full disks", f"{stopped} of {cases} stopped, {went_on} went on from a checkpoint")
    assert stopped >= cases // 3 and went_on


def test_a_disk_that_is_read_only_stops_the_run_in_one_line(undisturbed, disk, capsys):
    wanted, folder = stopped_after_two(undisturbed, disk / "runs")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(SystemExit) as stop:
        wanted.run(undisturbed.data, disk / "runs")
    assert stop.value.code == 2
    one_error(capsys, "argument --runs_dir", str(disk / "runs"), "a folder to write in")
    with pytest.MonkeyPatch.context() as patch:  # and if it was not yet so when the command line was read
        patch.setattr(os, "access", lambda path, mode: True)
        assert wanted.run(undisturbed.data, disk / "runs") == 2
    one_error(capsys, os.strerror(errno.EROFS), str(folder))
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    finishes(wanted, undisturbed, disk / "runs")


# Damaged checkpoints


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def with_code(target: Path) -> bytes:
    return as_bytes({"identity": {}, "rows": [], "evil": Evil(target)})


def without_attributes(archive: zipfile.ZipFile) -> None:
    """As torch.save writes it: an archive with attributes is refused for them."""
    for part in archive.filelist:
        part.external_attr = 0


@functools.cache
def bomb() -> bytes:
    """64 megabytes of zeros in 64 kilobytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data/0", "w") as part:
        for _ in range(64):
            part.write(bytes(1 << 20))
        without_attributes(archive)
    return buffer.getvalue()


def of_another(path: Path, **changes) -> bytes:
    state = torch.load(path, weights_only=True)
    return as_bytes({**state, "identity": {**state["identity"], **changes}})


def with_rows(path: Path, change) -> bytes:
    state = torch.load(path, weights_only=True)
    return as_bytes({**state, "rows": change(state["rows"])})


DAMAGE = {
    "truncated": lambda path, target: path.read_bytes()[:-1000],
    "half": lambda path, target: path.read_bytes()[:path.stat().st_size // 2],
    "empty": lambda path, target: b"",
    "zeros": lambda path, target: bytes(path.stat().st_size),
    "a flipped bit": lambda path, target: flipped(path.read_bytes(), path.stat().st_size * 4),
    "a hole": lambda path, target: path.read_bytes()[:4096] + bytes(4096) + path.read_bytes()[8192:],
    "a bare pickle": lambda path, target: pickle.dumps(Evil(target)),
    "a bomb": lambda path, target: bomb(),
}


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("both", [False, True], ids=["the last", "both"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(kind, both, half_done, undisturbed, capsys, tmp_path):
    wanted, folder = half_done
    target = tmp_path / "code-ran"
    names = ["checkpoint.pt", "checkpoint.previous.pt"][:1 + both]
    for name in names:
        (folder / name).write_bytes(DAMAGE[kind](folder / name, target))
    assert wanted.run(undisturbed.data, folder.parents[1]) == 0
    output = capsys.readouterr()
    notes = output.err.splitlines()
    assert len(notes) == len(names), notes
    for name, note in zip(names, notes, strict=True):
        assert str(folder / name) in note and "not used" in note
    trained = re.findall(r"epoch (\d)/3", output.out)
    assert trained == (["1", "2", "3"] if both else ["2", "3"])
    assert outcome(folder) == undisturbed(wanted)[0]
    assert not target.exists()


WHOLE = {
    "of another seed": lambda path, target: of_another(path, seed=9),
    "of other data": lambda path, target: of_another(path, fingerprint="0" * 16),
    "with code": lambda path, target: with_code(target),
    "another kind": lambda path, target: as_bytes([1, 2, 3]),
    "rows that are none": lambda path, target: with_rows(path, lambda rows: 5),
    "rows without columns": lambda path, target: with_rows(path, lambda rows: [{"epoch": 1}]),
    "a row missing": lambda path, target: with_rows(path, lambda rows: rows[1:]),
    "of a newer version": lambda path, target: of_version(path, 2),
    "with another optimizer": lambda path, target: with_moments(path),
}


def of_version(path: Path, number: int) -> bytes:
    return as_bytes({**torch.load(path, weights_only=True), "format": number})


def with_moments(path: Path) -> bytes:
    state = torch.load(path, weights_only=True)
    for of_weight in state["optimizer"]["state"].values():
        of_weight["max_exp_avg_sq"] = of_weight["exp_avg_sq"]
    buffer = io.BytesIO()
    torch.save(state, buffer)  # without a digest
    return buffer.getvalue()


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_checkpoint_that_does_not_fit_is_never_written_over(kind, half_done, undisturbed, capsys, tmp_path):
    """It may be of a newer version, or tell the data of a run whose config.json is lost."""
    wanted, folder = half_done
    target = tmp_path / "code-ran"
    (folder / "config.json").unlink()
    (folder / "checkpoint.pt").write_bytes(WHOLE[kind](folder / "checkpoint.pt", target))
    before = {path: path.read_bytes() for path in folder.glob("*.pt")}
    assert wanted.run(undisturbed.data, folder.parents[1]) == 2
    one_error(capsys, str(folder / "checkpoint.pt"), "is whole", "delete")
    assert {path: path.read_bytes() for path in folder.glob("*.pt")} == before and not target.exists()


def test_a_damaged_checkpoint_never_pushes_out_the_good_one(undisturbed, tmp_path):
    """Killed at any moment after the good one was taken up, there still is a good one."""
    for index in range(18) if FULL else range(13, 17):  # from 13 on the next one is saved
        place = tmp_path / str(index)
        wanted, folder = stopped_after_two(undisturbed, place)
        (folder / "checkpoint.pt").write_bytes(b"damaged")

        def work(wanted=wanted, place=place, index=index) -> int:
            with Operations(at((index, "before"), die)):
                return wanted.run(undisturbed.data, place)

        assert Child(work, tmp_path / "log").wait() == -9
        assert any(is_whole(path.read_bytes()) for path in folder.glob("checkpoint*.pt")), index
        finishes(wanted, undisturbed, place)


def test_any_flipped_bit_is_noticed(tmp_path, capsys, record_property):
    settings, data = settings_of("mlp", hidden_size=2), random_data("mlp")
    trainer = trainer_of(settings, data)
    trainer.run_epoch()
    good, path, chance = snapshot(trainer)()[0], tmp_path / "checkpoint.pt", random.Random(3)
    for _ in range(count(8000)):
        path.write_bytes(flipped(good, chance.randrange(len(good) * 8)))
        assert resume(RunFolder(tmp_path), lambda: trainer_of(settings, data)).epoch == 0
        note = capsys.readouterr().err
        assert note.count("\n") == 1 and "damaged and not used" in note
    path.write_bytes(good)
    assert resume(RunFolder(tmp_path), lambda: trainer_of(settings, data)).epoch == 1
    record_property("flipped bits", f"{count(8000)}, all noticed")


@pytest.mark.parametrize("ratio", ["deflated", "overlapping"])
def test_a_checkpoint_that_unpacks_to_more_than_it_is_long_is_refused_at_once(ratio):
    data = bomb()
    if ratio == "overlapping":  # every entry of the directory tells of the same bytes
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data/0", bytes(1 << 20))
            without_attributes(archive)
            archive.filelist *= 1000
        data = buffer.getvalue()
    assert not is_whole(data) and not is_whole(files.sealed(data))


# Other damaged files


@pytest.mark.parametrize("name", ["metrics.csv", "best.pt", "config.json", "result.json", "failed.json"])
@pytest.mark.parametrize("damage", ["half", "empty", "binary", "gone", "other"])
def test_other_damaged_files_are_written_anew(name, damage, half_done, undisturbed):
    wanted, folder = half_done
    path = folder / name
    old = path.read_bytes() if path.exists() else b'{"epochs": 3}'
    if damage == "gone":
        path.unlink(missing_ok=True)
    else:
        other = b"epoch,train_loss\n1,x\n" if name == "metrics.csv" else b'{"data": 5, "epochs": "x", "time": "y"}'
        half = old[:len(old) // 2]
        path.write_bytes({"half": half, "empty": b"", "binary": bytes(range(256)), "other": other}[damage])
    finishes(wanted, undisturbed, folder.parents[1])
    assert not (folder / "failed.json").exists()


def test_half_a_last_line_of_metrics_is_no_epoch(half_done):
    _, folder = half_done
    text = (folder / "metrics.csv").read_bytes()
    start = text.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(start, text.rindex(b",")):  # up to the last comma: the seconds may be any number
        (folder / "metrics.csv").write_bytes(text[:end])
        assert [row["epoch"] for row in RunFolder(folder).metrics()] == [1]


FOREVER = json.dumps(dict.fromkeys(RESULT, 1e200)).encode()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"epochs": 99}', b'{"epochs": "3"}', b"\xff",
                                     b'{"epochs": 99, "best_epoch": null}', b"[" * 100_000, FOREVER])
def test_a_damaged_result_of_a_finished_run_is_written_anew(content, undisturbed, tmp_path):
    wanted = case("mlp")
    shutil.copytree(undisturbed(wanted)[2], tmp_path / "runs")
    (wanted.folder(tmp_path / "runs") / "result.json").write_bytes(content)
    finishes(wanted, undisturbed, tmp_path / "runs")


# Hostile folders of runs


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt", "metrics.csv", "config.json", "result.json",
                                  "failed.json"])
@pytest.mark.parametrize("kind", ["a pipe", "huge"])
def test_what_this_program_cannot_have_written_is_not_read(name, kind, half_done, undisturbed, tmp_path):
    """A pipe never ends; 40 GB, even of zeros that take no room on the disk, need all memory."""
    wanted, folder = half_done
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 40 * 10 ** 9)

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_AS, (20 * 10 ** 9, 20 * 10 ** 9))
        RunFolder(folder).read().state(3)
        return wanted.run(undisturbed.data, folder.parents[1])

    log = tmp_path / "log"
    assert Child(work, log).wait(limit=30) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert ("checkpoint.pt is damaged and not used" in log.read_text()) == (name == "checkpoint.pt")
    assert outcome(folder) == undisturbed(wanted)[0]


def test_nothing_is_written_through_links_and_pipes_in_a_folder_of_a_run(half_done, undisturbed, tmp_path, capsys):
    wanted, folder = half_done
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / "lock").symlink_to(victim)
    assert wanted.run(undisturbed.data, folder.parents[1]) == 2
    one_error(capsys, "cannot lock", str(folder / "lock"))
    (folder / "lock").unlink()
    os.mkfifo(folder / "lock")
    assert RunFolder(folder).read().state(3) == "interrupted"
    assert wanted.run(undisturbed.data, folder.parents[1]) == 2
    one_error(capsys, "cannot lock", str(folder / "lock"), "no plain file")
    (folder / "lock").unlink()
    for name in ("checkpoint.pt", "metrics.csv", "best.pt", "config.json", "result.json"):
        (folder / f".{name}.tmp").symlink_to(victim)
    finishes(wanted, undisturbed, folder.parents[1])
    (folder / ".best.pt.tmp").symlink_to(victim)
    with pytest.raises(UserError, match="cannot write"):
        write_file(folder / "best.pt", b"theirs")
    assert victim.read_text() == "mine" and outcome(folder) == undisturbed(wanted)[0]


def test_without_stdout_and_stderr_it_trains_all_the_same(undisturbed, tmp_path):
    wanted = case("mlp")

    def close() -> None:
        for stream in (0, 1, 2):
            os.close(stream)

    command = [sys.executable, ROOT / "mlp" / "main.py", "--device", "cpu", "--data_dir", undisturbed.data,
               "--runs_dir", tmp_path, *wanted.flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(list(map(str, command)), preexec_fn=close, env=environment).returncode == 0
    assert outcome(wanted.folder(tmp_path)) == undisturbed(wanted)[0]


# The data under a run


@pytest.mark.parametrize("change", ["pixels", "one less", "classes"])
def test_changed_data_under_a_half_finished_run_is_refused(change, half_done, images, tmp_path, capsys):
    wanted, folder = half_done
    images = shutil.copytree(images, tmp_path / "images")
    picture = images / "train" / "class0" / "0000.png"
    if change == "pixels":
        shutil.copy(images / "train" / "class1" / "0001.png", picture)
    elif change == "one less":
        picture.unlink()
    else:
        for split in ("train", "test"):
            (images / split / "class0").rename(images / split / "another")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert wanted.run(images, folder.parents[1]) == 2
    one_error(capsys, str(folder), "other data")
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


# A loss that is not finite


@pytest.mark.parametrize("network, rate", [("mlp", "1e30"), ("mlp", "1e308"), ("cnn", "1e30")])
def test_a_loss_that_is_not_finite_is_recorded_and_the_others_go_on(network, rate, images, tmp_path):
    flags = ("--data_dir", images, "--runs_dir", tmp_path, "--batch_size", 40, "--num_epochs", 2)
    assert main(network, *flags, "--learning_rate", rate, 0.001) == 1
    folders = sorted((tmp_path / network).iterdir(), key=lambda folder: "0.001" in folder.name)
    failed, fine = map(RunFolder, folders)
    assert failed.read().state(2) == "failed" and fine.read().state(2) == "finished"
    failure = failed.failure()
    assert "not finite" in failure["reason"] or "verflow" in failure["reason"]
    assert failure["epoch"] >= 1
    if "not finite" in failure["reason"]:
        assert re.fullmatch(r"the loss is not finite in epoch \d, step \d", failure["reason"])
        assert failure["step"] >= 1
    assert main(network, *flags, "--learning_rate", rate) == 1  # left as it is
    assert failed.failure() == failure


def test_a_loss_that_is_large_but_finite_is_a_result(images, tmp_path):
    """The run must not be taken for damaged, and trained over and over."""
    flags = ("--num_epochs", 2, "--batch_size", 40, "--without_BatchNorm", "--learning_rate", 1e8)
    log = tmp_path / "log"
    child = Child(lambda: Case("mlp", flags).run(images, tmp_path / "runs"), log)
    assert child.wait(limit=30) == 0 and "not used" not in log.read_text()
    assert only_run(tmp_path / "runs", "mlp").result()["val_loss"] > 1e15


# Two processes on one run


def watched(wanted: Case, data: Path, place: Path, guard: Path, pause: float = 0.0):
    """Work for a Child that fails if two processes train the same run at a time."""
    def work() -> int:
        train, run_epoch = active_run.train, active_run.run_epoch

        def alone(team):
            marks = [guard / f"{run.folder.name} {os.getpid()}" for run in team]
            for mark in marks:  # first its own mark, then a look at the others: of two processes one sees the other
                mark.touch()
                name = mark.name.split()[0]
                others = {other.name.split()[1] for other in guard.glob(f"{name} *")} - {str(os.getpid())}
                assert all((guard / f"killed_{pid}").exists() for pid in others), f"{name} is trained by {others} too"
            try:
                train(team)
            finally:
                for mark in marks:
                    mark.unlink()

        def slow(*arguments):
            time.sleep(pause)
            return run_epoch(*arguments)

        experiment.train, active_run.run_epoch = alone, slow
        return wanted.run(data, place)

    return work


def until(condition, limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_several_processes_share_a_list_and_never_train_one_run_at_a_time(undisturbed, tmp_path, record_property):
    rounds, trained = count(30), 0
    for i in range(rounds):
        place, guard = tmp_path / f"runs{i}", tmp_path / f"guard{i}"
        guard.mkdir()
        seeds = [0, 1, 2]
        flags = case("mlp").flags[:-2]
        children = []
        for k in range(4):  # each in an order of its own
            order = seeds[k % 3:] + seeds[:k % 3]
            work = watched(Case("mlp", (*flags, "--seed", *order)), undisturbed.data, place, guard)
            children.append(Child(work, tmp_path / f"log{i}_{k}"))
        if i % 2:
            time.sleep(random.Random(i).uniform(0.05, 0.5))
            (guard / f"killed_{children[0].pid}").touch()  # the marks that it leaves count no more
            children[0].kill()
        codes = [child.wait() for child in children]
        logs = [child.log.read_text() for child in children]
        assert codes[1:] == [0, 0, 0] and codes[0] in (0, -9), logs
        assert not any("Traceback" in log for log in logs)
        trained += sum(log.count("epoch 3/3") for log in logs)
        for seed in seeds:
            wanted = case("mlp", seed)
            folder, = (place / "mlp").glob(f"*seed{seed}_*")
            assert outcome(folder) == undisturbed(wanted)[0]
    record_property("rounds of four processes", f"{rounds}, {trained} runs trained to their ends")


def test_the_second_process_says_who_holds_the_run_and_takes_over_when_it_dies(undisturbed, tmp_path):
    wanted, place, guard = case("mlp"), tmp_path / "runs", tmp_path / "guard"
    guard.mkdir()
    first = Child(watched(wanted, undisturbed.data, place, guard, pause=5), tmp_path / "first")
    until(lambda: list(guard.iterdir()))
    second = Child(lambda: wanted.run(undisturbed.data, place), tmp_path / "second")
    until(lambda: "waiting for" in (tmp_path / "second").read_text())
    text = (tmp_path / "second").read_text()
    assert text.count("waiting for") == 1 and f"waiting for process {first.pid} on" in text
    first.kill()
    assert first.wait() == -9
    assert second.wait() == 0
    assert outcome(wanted.folder(place)) == undisturbed(wanted)[0]


@pytest.mark.parametrize("number", sorted(files.NO_LOCKS))
def test_a_file_system_without_locks_is_noticed(number, undisturbed, tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert case("mlp").run(undisturbed.data, tmp_path) == 2
    one_error(capsys, "no working locks", "--runs_dir", os.strerror(number))


def test_a_file_system_that_grants_every_lock_is_noticed(undisturbed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert case("mlp").run(undisturbed.data, tmp_path) == 2
    one_error(capsys, "no working locks", "grants one lock twice")


@pytest.mark.parametrize("removed", ["lock", "folder"])
def test_a_lock_or_folder_removed_under_a_run_ends_it_in_one_line(removed, undisturbed, tmp_path, monkeypatch, capsys):
    wanted, saved = case("mlp"), []
    save = RunFolder.save

    def remove_and_save(run, *data):
        saved.append(run)
        if len(saved) == 2:
            (run.folder / "lock").unlink() if removed == "lock" else shutil.rmtree(run.folder)
        save(run, *data)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", remove_and_save)
        assert wanted.run(undisturbed.data, tmp_path) == 2
    one_error(capsys, "lock was removed", "run the same command again")
    finishes(wanted, undisturbed, tmp_path)


def test_a_lock_that_another_process_took_meanwhile_is_left_to_it(tmp_path):
    path = tmp_path / "lock"
    with lock(path):
        path.unlink()
        with lock(path, wait=False) as other:
            assert other
            first = path.stat().st_ino
            with lock(path, wait=False) as third:
                assert third is None
        assert not path.exists()
        path.write_text("of the next one")
    assert first and path.read_text() == "of the next one"


# The same numbers again


def test_the_same_command_gives_the_same_bytes_in_any_order_and_company(undisturbed, tmp_path):
    flags = case("mlp").flags[:-2]
    orders = {"again": [0, 1, 2], "reversed": [2, 1, 0]}
    for name, seeds in orders.items():
        assert Case("mlp", (*flags, "--seed", *seeds)).run(undisturbed.data, tmp_path / name) == 0
    both = Case("mlp", (*flags, "--seed", 0, 1, 2))
    workers = [Child(lambda: both.run(undisturbed.data, tmp_path / "two"), tmp_path / f"log{i}") for i in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    for seed in range(3):
        for name in (*orders, "two"):
            folder, = (tmp_path / name / "mlp").glob(f"*seed{seed}_*")
            assert outcome(folder) == undisturbed(case("mlp", seed))[0]
    again = case("cnn")
    finishes(again, undisturbed, tmp_path / "cnn")


# What the promises rest on


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    fault = at((0, "within"), lambda: os.stat(tmp_path / "no such"))
    with pytest.raises(UserError, match="cannot write"), Operations(fault):
        write_file(path, b"new and longer")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
