"""Ctrl-C, terminals, pipes and names: from whatever a command is called, no traceback and no lost run."""

import ast
import contextlib
import fcntl
import json
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import ROOT, run_main
from grid import GRID, call, processes, start, wait_until
from in_process import settings_of

from lab import status, table
from lab.options import build_parser, entry, read_options
from lab.progress import print_results
from store.run import RunFolder

COMMANDS = ("mlp/main.py", "cnn/main.py", "plot.py", "quickstart.py", "theory.py", "tracking.py")


def python(*arguments, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run([sys.executable, *map(str, arguments)], text=True, env=environment,
                          **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def write_run(folder: Path, epochs: int = 2, accuracy: float = 0.5, result: bool = True, reason: str = "") -> RunFolder:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"data": {}}')
    rows = [f"{epoch},1,0.1,1,{accuracy},1,0.25,3" for epoch in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text("\n".join(
        ["epoch,train_loss,train_acc,val_loss,val_acc,test_loss,test_acc,seconds", *rows]) + "\n")
    if reason:
        (folder / "failed.json").write_text(json.dumps({"reason": reason, "epoch": 1, "step": 1, "time": 1}))
    elif result:
        (folder / "result.json").write_text(json.dumps({
            "epochs": epochs, "best_epoch": 1, "val_loss": 1, "val_acc": accuracy, "test_loss": 1, "test_acc": 0.25,
            "seconds": 3}))
    return RunFolder(folder)


def in_terminal(command: list, columns: int = 100, tostop: bool = False, **options) -> tuple[int, str]:
    """The exit code of a command that leads a session in a terminal of so many columns, and what it shows."""
    pid, ours = pty.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
            modes = termios.tcgetattr(0)
            modes[3] |= termios.TOSTOP * tostop
            termios.tcsetattr(0, termios.TCSANOW, modes)
            os.execve(command[0], list(map(str, command)), {
                **os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "TERM": "xterm", **options})
        os._exit(99)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that all have closed the terminal
        while select.select([ours], [], [], 120)[0] and (part := os.read(ours, 4096)):
            shown += part
    os.close(ours)  # which ends by SIGHUP what still has it
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


# Ctrl-C

STOPPING = """\
import os, signal, sys, time
here = os.path.dirname(__file__)
sys.path = [path for path in sys.path if path != here]
if not os.path.exists(here + "/done"):
    open(here + "/done", "w").close()
    {}
del sys.modules[__name__]
__import__(__name__)
"""


def stopping_module(folder: Path, name: str, action: str) -> dict:
    """An environment in which the first import of a module does something first."""
    (folder / f"{name}.py").write_text(STOPPING.format(action))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(("command", "module"), [
    *((command, "argparse") for command in COMMANDS), ("mlp/main.py", "torch"), ("plot.py", "csv")])
def test_ctrl_c_during_imports_is_one_line_and_130(command, module, tmp_path):
    environment = stopping_module(tmp_path, module, "os.kill(os.getpid(), signal.SIGINT); time.sleep(5)")
    done = python(ROOT / command, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("flag", ["--status", "--synthetic"])
def test_a_signal_while_run_grid_prepares_is_one_line(number, flag, tmp_path):
    whom = "os.killpg(0" if number == signal.SIGINT else "os.kill(os.getpgrp()"  # a terminal signals all
    done = call("mlp", flag, "--runs_dir", tmp_path / "runs",
                env=stopping_module(tmp_path, "argparse", f"{whom}, {int(number)}); time.sleep(0.2)"))
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "run_grid.sh: interrupted\n")
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_during_training_gives_the_lock_back_and_a_second_one_ends_at_once(image_folder, tmp_path):
    arguments = ["--batch_size", "32", "--num_epochs", "100000", "--data_dir", image_folder, "--runs_dir", tmp_path]
    process = subprocess.Popen([sys.executable, ROOT / "mlp" / "main.py", *map(str, arguments)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert "epoch 1/" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from the last finished epoch"
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("mlp/*/lock"))

    done = python("-c", """
import os, signal, sys, time
from lab.terminal import begin, graceful_interrupt
begin()
with graceful_interrupt():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        print("first", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
""", cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "first\n", "interrupted\n")


def test_ctrl_c_ends_a_watcher_that_was_stopped(image_folder, tmp_path):
    process = start("drop_rate", "--drop_rate", 0, "--batch_size", 60, "--num_epochs", 1000,
                    "--data_dir", image_folder, "--runs_dir", tmp_path, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(tmp_path.glob("cnn/*/metrics.csv")))
    for watcher in processes(process.mark, "--watch"):
        os.kill(watcher, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(30) == 130
    finally:
        for pid in processes(process.mark):
            os.kill(pid, signal.SIGKILL)


def test_the_first_look_leaves_ctrl_c_to_what_it_calls(tmp_path):
    """A terminal signals both; the child says so, from its first import on."""
    environment = stopping_module(tmp_path, "difflib", "os.killpg(0, signal.SIGINT); time.sleep(5)")
    (tmp_path / "done").touch()  # not for quickstart.py itself
    code = ("import sys, os; import quickstart; from lab.terminal import begin; begin(); "
            f"os.remove({str(tmp_path / 'done')!r}); quickstart.cnn_epochs = lambda: 1; "
            f"sys.argv = ['quickstart.py', '--data_dir=x', {f'--runs_dir={tmp_path}/runs'!r}]; "
            "sys.exit(quickstart.main())")
    done = python("-c", code, env=environment, cwd=ROOT, start_new_session=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


# Output

@pytest.fixture(params=["reader gone", "disk full", "closed"])
def unwritable(request):
    """Keywords for subprocess.run, whose standard output takes nothing."""
    if request.param == "closed":
        yield {"stdout": None, "preexec_fn": lambda: os.close(1)}
    elif request.param == "disk full":
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        with open("/dev/full", "w") as full:
            yield {"stdout": full}
    else:
        reader, writer = os.pipe()
        os.close(reader)
        yield {"stdout": writer}
        os.close(writer)


def test_output_that_nobody_takes_ends_nothing(unwritable, image_folder, tmp_path):
    for arguments in (["--dry-run"], ["--help"],
                      ["--batch_size", "32", "--num_epochs", "1", "--data_dir", image_folder]):
        done = python(ROOT / "mlp" / "main.py", *arguments, *["--runs_dir", tmp_path][:2 * (arguments != ["--help"])],
                      **unwritable)
        told = [line for line in done.stderr.splitlines() if not line.startswith("decoding ")]
        assert (done.returncode, told) == (0, []), arguments
    assert len(list(tmp_path.glob("mlp/*/result.json"))) == 1
    for flag in ("--dry-run", "--status", "--help"):
        process = start("batch_size", flag, "--runs_dir", tmp_path, stderr=subprocess.PIPE, text=True,
                        **{key: value for key, value in unwritable.items() if key == "stdout"})
        assert (process.communicate()[1], process.returncode) == ("", 0), flag


@pytest.mark.parametrize("environment", [
    {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_name_that_the_encoding_lacks_is_replaced(environment, tmp_path):
    done = run_main("mlp", "--dry-run", "--runs_dir", "läufe", env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "ufe/mlp/1024_0.001" in done.stdout
    done = run_main("mlp", "--bätch", env=environment, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert run_main("mlp", "--help", env=environment).returncode == 0
    done = call("batch_size", "--status", "--runs_dir", "läufe…", env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "4 missing" in done.stdout
    assert not list(tmp_path.iterdir())


# Places and names

@pytest.mark.parametrize("name", [b"\xda\xa9\xd8\xaa\xd8\xa7\xd8\xa8\xe2\x80\x8c\xd9\x87\xd8\xa7",
                                  "\U0001f4a9".encode(), "so\u00adft".encode(),
                                  b"\x1b[2J", b"two\nlines", b"end\n", b"\xff", b"-x", b" a  'b\" $c"])
def test_whatever_the_name_of_its_folder_a_run_is_found_there(name, tmp_path):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    write_run(place / "mlp" / "32_0.001_0.0_False_False_seed0")
    stub = tmp_path.with_name(tmp_path.name + "_stub")
    stub.mkdir()
    (stub / "torch.py").write_text("import os; os._exit(0)")  # nothing is trained
    done = call("mlp", "--batch_size", 32, "--learning_rate", 0.001, "--drop_rate", 0, 0.4, "--num_epochs", 2,
                "--runs_dir=" + os.fsdecode(name), cwd=tmp_path, env={"PYTHONPATH": str(stub)})
    assert done.returncode == 1, done.stderr
    assert "2 runs: 1 finished, 0 running, 0 interrupted, 0 failed, 1 missing" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert len(list(place.glob("logs/*.log"))) == 1


def test_a_deleted_working_directory_and_logs_that_take_no_file_are_told_in_one_line(tmp_path):
    gone = tmp_path / "gone"
    for command in (f"{sys.executable} {ROOT}/mlp/main.py --dry-run", f"{sys.executable} {ROOT}/plot.py --help"):
        done = subprocess.run(["sh", "-c", f"mkdir {gone}; cd {gone}; rmdir {gone}; exec {command}"],
                              capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "working directory" in done.stderr
    (tmp_path / "logs").write_text("a file")
    done = call("mlp", "--runs_dir", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(tmp_path / "logs") in done.stderr


def test_run_grid_is_found_through_links_and_from_other_shells_and_python_alone(tmp_path):
    (tmp_path / "link").symlink_to(GRID)
    environment = {**os.environ, "PYTHON": sys.executable}
    for command in ([tmp_path / "link"], ["sh", GRID], ["bash", "--posix", GRID]):
        done = subprocess.run([*command, "batch_size", "--dry-run", "--runs_dir", tmp_path], capture_output=True,
                              text=True, env=environment, cwd=tmp_path)
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 4), command
    for command in COMMANDS:
        done = python("-I", ROOT / command, "--help", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
    done = call("batch_size", "--dry-run", env={"PYTHONSAFEPATH": "1"}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("command", "package"), [("mlp/main.py", "torch"), ("plot.py", "numpy")])
def test_a_package_that_is_missing_is_told_in_one_line(command, package, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('gone', name={package!r})")
    done = python(ROOT / command, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"no {package}" in done.stderr


def test_without_fcntl_it_is_one_line(tmp_path):
    for command in COMMANDS:
        done = python("-c", f"import runpy, sys; sys.modules['fcntl'] = None; sys.argv = ['x', '--help']; "
                            f"runpy.run_path({str(ROOT / command)!r}, run_name='__main__')", cwd=tmp_path)
        assert done.returncode and done.stderr.count("\n") == 1 and "WSL" in done.stderr, command


# Sessions that go on after a command, and old Pythons

SESSION = """
import os, runpy, signal, sys
def run(*arguments):
    sys.argv = ["mlp/main.py", *arguments]
    try:
        runpy.run_path("mlp/main.py", run_name="__main__")
    except SystemExit as end:
        return end.code
"""


def in_session(code: str, **options) -> subprocess.CompletedProcess:
    """A command within a process that goes on afterwards, as with a notebook's %run."""
    return python("-c", SESSION + code, cwd=ROOT, **options)


def test_a_session_keeps_its_signals_streams_and_hooks_and_an_edited_module_is_read_again():
    done = in_session("""
def own():
    return signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr, sys.excepthook, os.environ["MPLBACKEND"]
before = own()
assert run("--dry-run") == 0 and own() == before
settings = sys.modules["store.settings"]
assert run("--dry-run") == 0 and sys.modules["store.settings"] is not settings
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("alive")
""", env={"MPLBACKEND": "agg"})
    assert done.returncode == 0 and done.stdout.endswith("alive\n"), done.stderr


def test_a_notebook_keeps_its_backend_and_style():
    done = in_session("""
import builtins, matplotlib
builtins.get_ipython = None
matplotlib.use("svg")
matplotlib.rcParams["lines.linewidth"] = 7
import store.figures
print(matplotlib.get_backend(), matplotlib.rcParams["lines.linewidth"], os.environ["MPLBACKEND"])
""", env={"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (0, "svg 7.0 agg\n"), done.stderr


def test_an_interrupt_in_a_session_waits_until_torch_is_imported():
    """Half imported, it could not be imported again until the session ends."""
    done = in_session("""
class Interrupt:
    def find_spec(self, name, *_):
        if name == "torch._tensor":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
try:
    run("--dry-run")
except KeyboardInterrupt:
    print("again", run("--dry-run"))
""")
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["again 0"]), done.stderr


@pytest.mark.parametrize("how", ["import layers", "import types; sys.modules['training'] = types.ModuleType('training')"])
def test_a_module_of_the_sessions_own_that_stands_in_the_way_is_named(how, tmp_path):
    (tmp_path / "layers.py").touch()
    done = in_session(f"sys.path.insert(0, {str(tmp_path)!r}); {how}; sys.exit(run('--dry-run'))")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "restart the session" in done.stderr
    assert ("layers" if "layers" in how else "training of this session") in done.stderr


@pytest.mark.parametrize("command", [*COMMANDS, "lab/terminal.py"])
def test_an_old_python_is_told_in_one_line(command):
    ast.parse((ROOT / command).read_text(encoding="utf-8"), feature_version=(3, 8))
    done = in_session("sys.version_info = (3, 9, 18); sys.path.insert(0, '.'); from lab.terminal import begin; begin()")
    assert (done.returncode, done.stderr) == (2, "-c: error: Python 3.9 is too old, this needs 3.10 or newer\n")


@pytest.mark.parametrize("variable", ["TQDM_ASCII=1", "TQDM_DISABLE=1", "TQDM_POSITION=x", "MPLBACKEND=nonsense"])
def test_no_variable_of_a_bar_or_a_notebook_ends_a_run(variable, image_folder, tmp_path):
    arguments = ["--num_epochs", 1, "--batch_size", 32, "--data_dir", image_folder, "--runs_dir", tmp_path]
    name, value = variable.split("=")
    code, shown = in_terminal([sys.executable, ROOT / "mlp" / "main.py", *arguments], **{name: value})
    assert code == 0 and ("|" in shown) == (name != "TQDM_DISABLE") != ("epoch 1/1" in shown), shown
    code, shown = in_terminal([sys.executable, ROOT / "mlp" / "main.py", "--evaluate", 32, *arguments[4:]], **{name: value})
    assert code == 0 and "mistakes.png" in shown


# The first look

def first_look(runs, **environment) -> subprocess.CompletedProcess:
    """`make train` after its training: each network's command does nothing."""
    code = ("import quickstart, sys; quickstart.cnn_epochs = lambda: 1; quickstart.train = lambda *_: 0; "
            f"sys.argv = ['quickstart.py', '--data_dir=x', {f'--runs_dir={runs}'!r}]; sys.exit(quickstart.main())")
    return python("-c", code, cwd=ROOT, env=environment)


def test_the_first_look_writes_its_picture_whole_through_no_link_or_says_why_not(tmp_path):
    for name in ("mlp/1024_0.001_0.2_False_False_seed0", "cnn/128_0.001_0.2_False_False_2d_seed0"):
        run = write_run(tmp_path / name)
    picture, victim = tmp_path / "first_look.png", tmp_path / "victim"
    victim.write_text("precious")
    picture.symlink_to(victim)
    done = first_look(tmp_path)
    assert done.returncode == 0 and "0.2500" in done.stdout and str(picture) in done.stdout, done.stderr
    assert victim.read_text() == "precious" and picture.read_bytes().startswith(b"\x89PNG")
    (run.folder / "config.json").write_text("")
    (run.folder / "result.json").unlink()
    assert first_look(tmp_path).returncode == 0
    picture.unlink()
    picture.mkdir()
    done = first_look(tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "first_look.png" in done.stderr
    assert "0.2500" in done.stdout  # the table is there all the same


def test_more_workers_than_any_machine_has_are_refused(tmp_path):
    done = call("mlp", "-j", "9223372036854775808", "--runs_dir", tmp_path / "runs")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "-j" in done.stderr


# Progress

def test_a_terminal_that_stops_writers_in_the_background_stops_no_study(image_folder, tmp_path):
    code, shown = in_terminal([GRID, "drop_rate", "--drop_rate", 0, "--batch_size", 60, "--num_epochs", 1,
                               "--data_dir", image_folder, "--runs_dir", tmp_path], tostop=True)
    assert code == 0 and "1 run: 1 finished" in shown


def test_the_time_left_is_summed_in_linear_time(monkeypatch, tmp_path):
    def count(runs: int) -> int:
        calls = []
        monkeypatch.setattr(status, "kinds", lambda each: calls.append(each) or [("mlp",)])
        run = status.Entry(write_run(tmp_path / f"{runs}" / "mlp" / "32", result=False), 3).read()
        other = run._replace(run=status.Run("mlp", "33", {}, []))
        status.seconds_left([run] * runs + [other] * runs)
        return len(calls)

    assert count(200) <= 2 * count(100)


# Text

def asked(num_epochs: int, *folders) -> dict:
    """Runs that a command asks so many epochs of."""
    return {settings_of("mlp", seed=i, num_epochs=num_epochs): folder for i, folder in enumerate(folders)}


ESCAPE = "\x1b[2Jbad\nfinished: mlp/forged"


def test_escape_codes_and_line_breaks_of_a_reason_stay_off_the_terminal(tmp_path, capsys):
    run = write_run(tmp_path / "mlp" / "32_0.001", reason=ESCAPE)
    entry = status.Entry(run, 3)
    status.print_status([entry.read()])
    status.print_outcome([entry])
    print_results(asked(3, run))
    shown = "".join(capsys.readouterr())
    assert "\x1b" not in shown and shown.count("bad finished: mlp/forged") == 3


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_tables_keep_their_numbers_whole_at_any_width(columns, monkeypatch, tmp_path, capsys):
    runs = [write_run(tmp_path / "mlp" / f"512_0.0001_{rate}_False_False_seed{seed}", 20, rate)
            for rate in (0.2, 0.4) for seed in (0, 11)]
    monkeypatch.setattr(table, "columns", lambda: columns)
    print_results(asked(20, *runs))
    status.print_status([status.Entry(run, 20).read() for run in runs])
    lines = [line for line in capsys.readouterr().out.splitlines() if "512_" in line and "--evaluate" not in line]
    assert len(lines) == 10 and all(len(line) < columns for line in lines)
    assert all("0.2500" in line for line in lines[:4])  # the test accuracy
    assert ("20" in lines[0].split()) == (columns > 60)
    assert ("512_0.0001_0.2_False_False_seed11" in lines[1]) == (columns == 160)


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_the_bar_has_room_at_any_width(columns):
    code = """
from lab.progress import Progress
from store.settings import Settings
bar = Progress(Settings("cnn", 128, 0.0001, 0.2, seed=11), "12/60 ")
bar.epoch({"val_loss": 1.2, "val_acc": 0.5, "seconds": 12.3})
bar.close()
"""
    _, shown = in_terminal([sys.executable, "-c", code], columns, PYTHONPATH=str(ROOT))
    line = [line for line in shown.replace("\r", "\n").splitlines() if "|" in line][-1]
    assert "acc 0.500]" in line or "acc 0.500, " in line
    assert len(line) <= columns and len(line.split("|")[1]) >= 5


def test_what_is_misspelt_names_the_nearest(tmp_path):
    for arguments, near in ((["--bath_size", 5], "--batch_size"), (["--schedule", "cosin"], "cosine")):
        done = run_main("mlp", *arguments)
        assert done.returncode == 2 and f"did you mean {near}?" in done.stderr, done.stderr
    assert "did you mean ablation?" in call("abltion").stderr
    assert "\x1b" not in call("\x1b[2J").stderr
    assert "the study comes first" in call("--num_epochs", 2, "mlp", "--runs_dir", tmp_path / "runs").stderr


def test_what_stands_already_is_told(tmp_path, capsys):
    done = write_run(tmp_path / "mlp" / "1024_0.001_0.2_False_False_seed0", 8)
    failed = write_run(tmp_path / "mlp" / "1024_0.001_0.2_False_False_seed1", 1, reason="no luck")
    print_results(asked(2, done, failed))
    shown = capsys.readouterr().out
    assert "finished with 8 epochs" in shown and "1 of 2 runs failed" in shown and "--retry" in shown
    assert "best epoch" in shown
    listing = run_main("mlp", "--dry-run", "--seed", 0, 1, 2, "--num_epochs", 2, "--runs_dir", tmp_path).stdout
    assert [line.split(")")[1].strip() for line in listing.splitlines()] == ["finished", "failed", ""]


def test_several_runs_show_the_time_left_for_all_and_their_folder(image_folder, tmp_path):
    done = run_main("mlp", "--batch_size", 32, "--seed", 0, 1, "--num_epochs", 2, "--data_dir", image_folder,
                    "--runs_dir", tmp_path)
    lines = [line for line in done.stdout.splitlines() if "  epoch " in line]
    assert len(lines) == 4 and all(" left" in line for line in lines) and lines[-1].endswith("all 0 s left")
    assert f"runs are in {tmp_path}/mlp" in done.stdout


def test_the_best_command_trains_the_best_setting(tmp_path, capsys):
    names = {f"32_0.001_{rate}_False_False_seed{seed}_hidden50": accuracy for rate, seed, accuracy in (
        (0.0, 0, 0.9), (0.0, 1, 0.1), (0.4, 0, 0.6), (0.4, 3, 0.6))}
    for name, accuracy in names.items():
        write_run(tmp_path / "mlp" / name, 2, accuracy)
    options, parser = ["--batch_size", "32", "--drop_rate", "0", "0.4", "--seed", "0", "1", "3", "--hidden_size", "50",
                       "--num_epochs", "2", "--runs_dir", str(tmp_path)], build_parser("mlp", "")
    options = read_options(parser, "mlp", options)
    assert status.print_outcome([entry(parser, options, run) for run in options.settings]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in shown if line.startswith("32_")] == [
        "32_0.001_0.4_False_False_hidden50 0.6000 ± 0.0000 0.2500 ± 0.0000 2",
        "32_0.001_0.0_False_False_hidden50 0.5000 ± 0.5657 0.2500 ± 0.0000 2"]
    command, = (line.partition("python mlp/main.py")[2] for line in shown if line.startswith("the best:"))
    listed = run_main("mlp", "--dry-run", *shlex.split(command)).stdout.splitlines()
    assert [Path(line.split("  (")[0]).name for line in listed] == [
        f"32_0.001_0.4_False_False_seed{seed}_hidden50" for seed in (0, 3)]
    assert all(line.endswith("finished") for line in listed)
