"""run_grid.sh and status.py: studies are complete, nothing is lost or trained twice, whoever dies when."""

import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_main
from grid import (
    call,
    differences,
    epochs_per_run,
    kill_worker,
    processes,
    start,
    wait_until,
    workers,
)

from lab import status
from store.run import RunFolder

STUDIES = {"mlp": 60, "cnn": 60, "ablation": 8, "dropout_type": 9, "drop_rate": 5, "batch_size": 4}
RUNS, EPOCHS = 4, 10


def flags(data: Path, runs: Path, epochs: int = EPOCHS) -> list:
    """Four quick runs of the study mlp."""
    return ["--batch_size", 32, "--learning_rate", 0.001, "--drop_rate", 0, 0.4, "--seed", 0, 1, "--num_epochs", epochs,
            "--data_dir", data, "--runs_dir", runs]


@pytest.fixture(scope="module")
def undisturbed(image_folder, tmp_path_factory):
    """A folder with four finished runs, and what the call that trained them printed."""
    runs = tmp_path_factory.mktemp("undisturbed")
    return runs, call("mlp", *flags(image_folder, runs))


def stamps(runs: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in runs.glob("mlp/**/*")}


# What a study is

def plan(*arguments) -> list[str]:
    done = call(*arguments, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_studies_have_their_runs_and_a_run_of_several_is_named_once(tmp_path):
    runs = tmp_path / "runs"
    lines = {study: plan(study, "--runs_dir", runs) for study in STUDIES}
    for study, count in STUDIES.items():
        assert len(lines[study]) == len(set(lines[study])) == count, study
    together = plan("all", "--runs_dir", runs)
    assert len(together) == len(set(together)) == 128
    assert set(together) == set().union(*lines.values())
    assert sorted(plan("batch_size", "mlp", "--runs_dir", runs)) == sorted(lines["mlp"])
    assert f"{runs}/cnn/128_0.001_0.2_False_False_1d_seed0  (" in "\n".join(lines["dropout_type"])
    assert f"{runs}/mlp/1024_0.001_0.0_True_False_seed0  (" in "\n".join(lines["ablation"])
    assert not runs.exists()


def test_flags_vary_a_study(tmp_path):
    lines = plan("mlp", *flags(tmp_path, tmp_path, 3))
    assert [line.split("/")[-1] for line in lines] == [
        f"32_0.001_{rate}_False_False_seed{seed}  (3 epochs)" for seed in (0, 1) for rate in (0.0, 0.4)]
    lines = plan("ablation", "--network", "mlp", "--drop_rate", 0.4, "--seed", 0, 1)  # one arm is without dropout
    assert [line.split("/")[-1] for line in lines] == [
        f"1024_0.001_{rate}_{norm}_False_seed{seed}  (20 epochs)"
        for seed in (0, 1) for norm in (False, True) for rate in (0.4, 0.0)]


def test_one_network_of_a_study(tmp_path):
    both = plan("ablation", "--runs_dir", tmp_path)
    assert plan("ablation", "--network", "mlp", "--runs_dir", tmp_path) == [line for line in both if "/mlp/" in line]
    assert plan("ablation", "--network=cnn", "--runs_dir", tmp_path) == [line for line in both if "/cnn/" in line]


@pytest.mark.parametrize(("arguments", "named"), [
    (["mpl"], "mpl"), ([], "study"), (["mlp", "cnm"], "cnm"), (["mlp", "-j", "0"], "'0'"), (["-jx", "mlp"], "'x'"),
    (["mlp", "-j"], "-j"), (["mlp", "--drop_rate", "1"], "'1'"), (["mlp", "--speed", "3"], "--speed"),
    (["mlp", "--dropout_type", "1d"], "--dropout_type"), (["mlp", "--evaluate", "x"], "--evaluate"),
    (["mlp", "--dry-run", "--status"], "--dry-run"), (["mlp", "--network", "mpl"], "'mpl'"),
    (["mlp", "--network=cnn"], "of the cnn"), (["mlp", "--network="], "--network")])
def test_what_is_wrong_is_told_in_one_line_before_any_work(tmp_path, arguments, named):
    done = call(*arguments, *(["--runs_dir", tmp_path / "runs"] if arguments else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_bad_data_folder_is_told_once_however_many_workers(tmp_path):
    picture = tmp_path / "data" / "train" / "cat" / "1.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"no picture")
    done = call("mlp", "-j", 2, *flags(tmp_path / "data", tmp_path / "runs"))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "data") in done.stderr
    assert "Traceback" not in done.stderr


# How far it is

def write_rows(folder: Path, epochs: int, seconds: float, accuracy: float = 0.5) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    rows = [f"{epoch},1,0.1,1,{accuracy},1,0.1,{seconds}" for epoch in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text("\n".join(
        ["epoch,train_loss,train_acc,val_loss,val_acc,test_loss,test_acc,seconds", *rows]) + "\n")


HOLDER = """
import sys, time
from pathlib import Path
from store.run import RunFolder
with RunFolder(Path(sys.argv[1])).hold():
    print("held", flush=True)
    time.sleep(60)
"""


def test_status_tells_the_state_of_each_run_and_the_time_left(tmp_path, capsys):
    run = {rate: tmp_path / "mlp" / f"512_0.001_{rate}_False_False_seed0" for rate in (0.0, 0.2, 0.4, 0.6, 0.8)}
    for rate, epochs, seconds in ((0.0, 10, 3), (0.2, 4, 5), (0.4, 6, 7), (0.6, 2, 1)):
        write_rows(run[rate], epochs, seconds, accuracy=0.25 + rate)
    (run[0.0] / "result.json").write_text(
        '{"epochs": 10, "best_epoch": 3, "val_loss": 1, "val_acc": 0.5, "test_loss": 1, "test_acc": 1, "seconds": 30}')
    (run[0.6] / "failed.json").write_text('{"reason": "the loss was nan", "epoch": 3, "step": 1, "time": 1}')
    entries = [status.Entry(RunFolder(folder), 10) for folder in run.values()]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, run[0.2]], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        reports = [entry.read() for entry in entries]
        assert [report.state for report in reports] == ["finished", "running", "interrupted", "failed", "missing"]
        # 6 epochs of 5 s and 4 of 7 s; the missing run's ten take the mean of the others with its batch size, 4 s
        assert status.seconds_left(reports) == pytest.approx(30 + 28 + 40)
        status.print_status(reports)
        table = capsys.readouterr().out.splitlines()
        for line, rest in zip(table[1:6], (r"failed +2/10 +1.00 +0.8500 +0.1000  the loss was nan",
                                           r"interrupted +6/10 +7.00 +0.6500", r"running +4/10 +5.00 +0.4500",
                                           r"finished +10/10 +3.00 +0.2500 +0.1000", r"missing +0/10 +- +- +-"),
                              strict=True):  # best first
            assert re.search(rest, line), line
        assert "5 runs: 1 finished, 1 running, 1 interrupted, 1 failed, 1 missing" in table[6]
        assert "98 s" in table[6]
    finally:
        holder.kill()
        holder.communicate()
    assert entries[1].read().state == "interrupted"  # its holder was killed
    assert status.seconds_left([entries[4].read()]) is None


def test_runs_that_one_process_trains_side_by_side_have_one_worker(tmp_path):
    runs = [RunFolder(tmp_path / "mlp" / f"run_{i}") for i in range(3)]
    for run in runs:
        write_rows(run.folder, 1, 10.0)
    with runs[0].hold(), runs[1].hold():
        reports = [status.Entry(run, 3).read() for run in runs]
    assert [report.state for report in reports].count("running") == 2
    assert status.workers(reports) == 1
    assert status.seconds_left(reports) == 3 * 2 * 10


def test_status_needs_folders_only_whatever_their_name(undisturbed, tmp_path):
    runs = tmp_path / "two  spaces and\u00a0an unusual one (3 epochs)"
    shutil.copytree(undisturbed[0], runs)
    done = call("mlp", *flags(tmp_path / "no data", runs), "--status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 runs: 4 finished, 0 running, 0 interrupted, 0 failed, 0 missing" in done.stdout.splitlines()
    assert "best settings, mlp" in done.stdout
    longer = call("mlp", *flags(tmp_path / "no data", runs), "--num_epochs", EPOCHS + 5, "--status")
    assert f"4 of these are finished with {EPOCHS} epochs" in longer.stdout


# Training

def test_trains_every_run_and_prints_plain_lines_into_a_pipe(undisturbed):
    runs, done = undisturbed
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\r"} & set(done.stdout + done.stderr)
    lines = done.stdout.splitlines()
    assert any(line.startswith("4 runs: 4 finished") for line in lines)
    best = max(("0.0", "0.4"), key=lambda rate: sum(
        RunFolder(folder).result()["val_acc"] for folder in runs.glob(f"mlp/32_0.001_{rate}_*")))
    table = lines.index(next(line for line in lines if line.startswith("best settings, mlp")))
    assert re.match(rf"32_0.001_{best}_False_False( +0\.\d+ ± 0\.\d+){{2}} +2$", lines[table + 1])
    command, = (line for line in lines if line.startswith("the best:"))
    again = run_main("mlp", *shlex.split(command)[4:])  # it names the same two runs
    assert again.returncode == 0 and again.stdout.count(f"32_0.001_{best}") == 2 and "epoch 1/" not in again.stdout
    assert f"{runs}/mlp/32_0.001_{best}_False_False_seed0" in done.stdout
    assert f"plot.py --runs_dir={runs} --output" in done.stdout and "--explore" in done.stdout
    assert all(RunFolder(folder).finished(EPOCHS) for folder in (runs / "mlp").iterdir())
    assert epochs_per_run(runs) == dict.fromkeys(epochs_per_run(runs), EPOCHS) and len(epochs_per_run(runs)) == 4


def test_a_second_call_trains_nothing(undisturbed, image_folder):
    runs, _ = undisturbed
    before, logs = stamps(runs), len(list(runs.glob("logs/*")))
    done = call("mlp", "-j", 2, *flags(image_folder, runs))
    assert (done.returncode, done.stderr) == (0, "")
    assert stamps(runs) == before
    assert len(list(runs.glob("logs/*"))) == logs  # no worker was started


def test_a_lost_table_of_a_finished_run_is_written_again(undisturbed, image_folder, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    table, *_ = tmp_path.glob("mlp/*/metrics.csv")
    before = table.read_bytes()
    table.unlink()
    assert call("mlp", *flags(image_folder, tmp_path)).returncode == 0
    assert table.read_bytes() == before


def test_a_deleted_run_is_trained_again_and_a_terminal_shows_the_bar(undisturbed, image_folder, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(undisturbed[0], runs)
    deleted = runs / "mlp" / "32_0.001_0.4_False_False_seed1"
    shutil.rmtree(deleted)
    before = stamps(runs)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = start("mlp", *flags(image_folder, runs), stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:
        pass  # how Linux says that all have closed the terminal
    os.close(ours)
    assert process.wait() == 0
    assert "% |" in shown.decode() and f"/{4 * EPOCHS} epochs" in shown.decode()
    assert {path: stamp for path, stamp in stamps(runs).items() if path in before and path.name != "mlp"} == before
    assert differences(runs, undisturbed[0], RUNS) == []


def test_failed_runs_are_listed_and_the_others_finish_and_retry_takes_them_up_once(image_folder, tmp_path):
    # These are the same two runs for either study.
    arguments = ("--batch_size", 32, "--learning_rate", "1e30", "0.001", "--drop_rate", 0, "--num_epochs", 2,
                 "--data_dir", image_folder, "--runs_dir", tmp_path)
    bad, good = (RunFolder(tmp_path / "mlp" / f"32_{rate}_0.0_False_False_seed0") for rate in ("1e+30", "0.001"))

    def check(done):
        assert done.returncode == 1
        line = next(line for line in done.stderr.splitlines() if bad.name in line)
        assert line.startswith("failed: ") and bad.failure()["reason"] in line
        assert "2 runs: 1 finished, 0 running, 0 interrupted, 1 failed" in done.stdout
        assert good.finished(2) and not bad.result()

    def failures() -> int:
        return sum(len(re.findall(r"mlp \S+  failed: ", log.read_text())) for log in tmp_path.glob("logs/*"))

    check(call("mlp", *arguments))
    assert failures() == 1
    assert bad.failure()["epoch"] == 1
    (good.folder / "result.json").unlink()
    (good.folder / "failed.json").write_text('{"reason": "no memory", "epoch": 2, "step": 1, "time": 1}')
    check(call("mlp", "batch_size", *arguments, "--retry"))
    assert failures() == 2


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_signals_and_kills_end_workers_and_lose_nothing(undisturbed, image_folder, tmp_path):
    def told() -> int:
        return sum(epochs_per_run(tmp_path).values())

    def started(*arguments):
        """A call of run_grid.sh that has trained an epoch."""
        before = told()
        process = start("mlp", *arguments, *flags(image_folder, tmp_path), stderr=subprocess.PIPE, text=True)
        wait_until(lambda: told() > before)
        return process

    def stop(process, number: int) -> None:
        since = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        wait_until(lambda: not processes(process.mark))
        assert time.monotonic() - since < 20  # at most two seconds on a machine that is not busy
        assert process.returncode == 128 + number
        assert errors.endswith("run_grid.sh: stopped; the same call goes on from the last finished epoch of each run\n")
        assert "Traceback" not in errors

    first = started("-j", 2)
    assert len(workers(first.mark)) == 2
    stop(first, signal.SIGINT)

    second = started("-j", 2)
    kill_worker([second.mark])
    third = start("mlp", *flags(image_folder, tmp_path), stderr=subprocess.PIPE, text=True)
    stop(second, signal.SIGTERM)

    before = told()
    wait_until(lambda: told() > before)
    assert told() < RUNS * EPOCHS, "all was finished before the last kill"
    kill_worker([third.mark])
    _, errors = third.communicate()
    assert third.returncode == 1
    assert "a worker was ended by signal 9" in errors and "interrupted: mlp/" in errors
    assert "Killed" not in errors and "Traceback" not in errors

    assert call("mlp", *flags(image_folder, tmp_path)).returncode == 0
    assert differences(tmp_path, undisturbed[0], RUNS) == []
    assert max(epochs_per_run(tmp_path).values()) <= EPOCHS  # no epoch was trained twice


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_run_in_other_hands_keeps_no_worker_from_the_rest_and_is_taken_over(image_folder, tmp_path):
    held, free = (tmp_path / "cnn" / f"60_0.001_0.0_False_False_{kind}_seed0" for kind in ("1d", "2d"))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, held], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        process = start("dropout_type", "--batch_size", 60, "--drop_rate", 0, "--num_epochs", 1,
                        "--data_dir", image_folder, "--runs_dir", tmp_path)
        wait_until(lambda: RunFolder(free).finished(1))
        wait_until(lambda: not workers(process.mark))  # it waits without torch
        assert RunFolder(held).read().state(1) == "running" and process.poll() is None
    finally:
        holder.kill()
        holder.communicate()
    assert process.wait() == 0
    assert RunFolder(held).finished(1)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_workers_end_with_run_grid_whatever_ends_it(number, image_folder, tmp_path):
    process = start("mlp", "-j", 2, *flags(image_folder, tmp_path, 100_000))
    wait_until(lambda: len(epochs_per_run(tmp_path)) >= 2)
    os.kill(workers(process.mark)[0], signal.SIGSTOP)  # goes on, if at all, to find its parent gone
    process.send_signal(number)
    process.wait()
    wait_until(lambda: len(processes(process.mark)) == 1, 20)
    os.kill(workers(process.mark)[0], signal.SIGCONT)
    wait_until(lambda: not processes(process.mark), 20)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_stopped_worker_is_told_and_holds_up_nobody_once_all_is_done(image_folder, tmp_path):
    process = start("mlp", "-j", 2, *flags(image_folder, tmp_path), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(workers(process.mark)) == 2)
    victim = workers(process.mark)[0]  # imports torch still, and holds no run
    os.kill(victim, signal.SIGSTOP)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and f"worker {victim} was stopped" in errors
    wait_until(lambda: not processes(process.mark))


# Stands for torch in a worker, which then trains nothing and tells what it was given.
NO_TRAINING = """\
import os
print(f"gpu {os.environ.get('CUDA_VISIBLE_DEVICES')}, {os.environ['OMP_NUM_THREADS']} threads", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("environment", "told"), [
    ({}, ["gpu 0, 2 threads", "gpu 1, 2 threads", "gpu 0, 2 threads"]),
    ({"CUDA_VISIBLE_DEVICES": "5,7"}, ["gpu 5, 2 threads", "gpu 7, 2 threads", "gpu 5, 2 threads"]),
    ({"CUDA_VISIBLE_DEVICES": ""}, ["gpu , 2 threads"] * 3),
    ({"SLURM_JOB_ID": "1", "OMP_NUM_THREADS": "3"}, ["gpu 0, 3 threads", "gpu 1, 3 threads", "gpu 0, 3 threads"])])
def test_workers_share_cores_and_gpus(tmp_path, environment, told):
    for name, text in {"torch.py": NO_TRAINING, "nvidia-smi": "#!/bin/sh\nprintf '0\\n1\\n'\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    done = call("drop_rate", "-j", 3, "--runs_dir", tmp_path / "runs", env={
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "",
        "SLURM_CPUS_PER_TASK": "07", **environment})
    logs = sorted((tmp_path / "runs" / "logs").iterdir(), key=lambda log: log.name.split("-")[-1])
    assert [log.read_text().splitlines()[0] for log in logs] == told
    assert done.returncode == 1
    assert done.stderr.count("missing: cnn/") == 5 and str(tmp_path / "runs" / "logs") in done.stderr


def test_two_overlapping_calls_train_every_run_once(image_folder, tmp_path):
    shared = ("--learning_rate", 0.001, "--num_epochs", 3, "--data_dir", image_folder, "--runs_dir", tmp_path)
    calls = [start("mlp", "--batch_size", 32, "--drop_rate", 0, 0.4, *shared),
             start("batch_size", "--batch_size", 32, 48, "--seed", 0, 1, *shared)]
    assert [process.wait() for process in calls] == [0, 0]
    assert epochs_per_run(tmp_path) == {
        f"mlp {name}_False_False_seed{seed}": 3
        for name, seed in (("32_0.001_0.0", 0), ("32_0.001_0.4", 0), ("48_0.001_0.0", 0), ("32_0.001_0.0", 1),
                           ("48_0.001_0.0", 1))}


# Around it

def test_make_hands_a_folder_on_as_it_is_and_names_half_an_environment(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / ".venv" / "installed").touch()
    name = """/a $b "c" 'd' `id` $(HOME)"""
    for asked, told in (([f"DATA={name}"], ["--data_dir", name]), ([], [])):
        done = subprocess.run(["make", "-s", "train", *asked], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.splitlines() == ["quickstart.py", *told]
    (tmp_path / ".venv" / "installed").unlink()
    python.write_text("#!/bin/sh\nexit 1\n")  # it has no pip
    done = subprocess.run(["make", "-s", "train"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "rm -r .venv" in done.stderr


def test_a_clone_with_the_line_ends_of_windows_still_runs(tmp_path):
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", ROOT, tmp_path / "clone"], check=True)
    done = subprocess.run([tmp_path / "clone" / "run_grid.sh", "batch_size", "--dry-run"], capture_output=True,
                          text=True, env={**os.environ, "PYTHON": sys.executable})
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize("environment", [
    {"PYTHON": f"{sys.executable} -X dev"}, {"PYTHON": "/nowhere/python"}, {"PYTHON": str(ROOT)}])
def test_an_interpreter_that_is_none_is_told_in_one_line(environment):
    done = call("mlp", "--dry-run", env=environment)
    assert done.returncode == 2 and done.stderr.startswith("run_grid.sh: error: PYTHON is") and (
        done.stderr.count("\n") == 1)


def test_a_log_is_never_written_over_and_odd_numbers_of_cores_are_not_used(tmp_path, monkeypatch):
    from lab import grid

    monkeypatch.setattr(grid.time, "time_ns", lambda: 7)  # as where host name and process repeat
    monkeypatch.setattr(grid.socket, "gethostname", lambda: "a/b")
    monkeypatch.setattr(grid, "crew", [])
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "abc")
    options = grid.argparse.Namespace(j=1, studies=["mlp"], network=None, flags=[])
    plan = [status.Entry(RunFolder(tmp_path / "mlp" / "x"), 1)]
    grid.hire(options, plan)
    log = Path(grid.crew[0].log.name)
    assert log.name == f"a-b-{os.getpid()}-7-0.log" and grid.cores() >= 1
    log.write_text("what a worker printed")
    with pytest.raises(grid.UserError):
        grid.hire(options, plan)
    assert log.read_text() == "what a worker printed"
    target = tmp_path / "elsewhere"
    log.unlink()
    log.symlink_to(target)
    with pytest.raises(grid.UserError):
        grid.hire(options, plan)
    assert not target.exists()
