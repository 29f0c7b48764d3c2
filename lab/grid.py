"""Train the runs of studies, on one machine or on a Slurm cluster: what run_grid.sh calls.

Workers share the runs out among themselves by the runs' locks. Where a worker dies, another one is
started again for what it has left. Older Pythons read this file too, up to where they are refused.
"""

import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from lab.terminal import begin

WORKER = "--worker"  # and the process that started it
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
crew: list = []  # of Worker


def stop(number: int, _) -> None:
    """End all workers and this process."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    for worker in working() if crew else ():  # else that is not even defined yet
        worker.end()
    text = "stopped; the same call goes on from the last finished epoch of each run"
    line = "\n" if crew and os.isatty(2) else ""  # behind the bar
    os.write(2, f"{line}run_grid.sh: {text if crew else 'interrupted'}\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    sys.argv[0] = "run_grid.sh"  # in all that is told
    begin()  # before all that takes time, as Ctrl-C may come
    for each in SIGNALS:
        if WORKER not in sys.argv[1:2] and signal.getsignal(each) != signal.SIG_IGN:  # nohup
            signal.signal(each, stop)

import argparse
import contextlib
import copy
import dataclasses
import difflib
import functools
import importlib
import re
import shlex
import socket
import subprocess
import threading
import time
from pathlib import Path

from lab.options import Parser, build_parser, entry, flags_of, number, read_options
from lab.status import ENDED, Entry, print_outcome, print_plan, print_status, progress
from store.files import UserError, make_folder, one_line, plural
from store.run import forget_failures
from store.settings import NETWORKS, Settings
from studies import GROUPS, STUDIES, trained

USAGE = """\
./run_grid.sh STUDY… [-j N] [--dry-run | --status] [flags for main.py…]
       sbatch --array=1-8 run_grid.sh STUDY… [flags for main.py…]        each task is a worker"""
MORE = """
All other flags go to main.py, e.g. --num_epochs 2 --seed 0 1 2 --data_dir DIR --retry; see
cnn/main.py --help. A flag that one network lacks fits studies of the other network.

Runs land in --runs_dir (default runs/), the workers' output in logs/ there. Runs that several
studies share are trained once. Ctrl-C ends all workers, and the same call goes on where they were.
Another call beside it adds workers. PYTHON=… picks the interpreter, by default that of .venv.

exit code: 0 all finished, 1 some failed or are not finished, 2 something for you to mend, 130
stopped by Ctrl-C"""


def say(text: str) -> None:
    print(f"run_grid.sh: {one_line(text)}", file=sys.stderr)


# The command line

def read_call() -> tuple[argparse.Namespace, dict[Settings, argparse.Namespace]]:
    """The options of run_grid.sh, and the runs, each with the options of main.py."""
    names = [*dict.fromkeys(study.name for study in STUDIES), *GROUPS]
    lines = [f"  {study.name:17} {study.title}: {plural(len(study.settings), 'run')} of "
             f"{study.epochs} epochs" for study in STUDIES]
    lines += [f"  {name:17} {', '.join(group[:5])}{', …' * (len(group) > 5)}"
              for name, group in GROUPS.items()]
    parser = Parser(prog="run_grid.sh", usage=USAGE, allow_abbrev=False,
                    description="\n".join(["STUDY is one of", *lines]), epilog=MORE)
    parser.add_argument("studies", nargs="+", metavar="study", help=argparse.SUPPRESS)
    parser.add_argument("-j", type=number(int, "a whole number from 1 to 9999",
                                          lambda n: 1 <= n <= 9999), default=1, metavar="N",
                        help="workers (default 1), which share the runs, the cores and the GPUs")
    parser.add_argument("--network", choices=NETWORKS, help="only the runs of one network")
    show = parser.add_mutually_exclusive_group()
    show.add_argument("--dry-run", action="store_true", help="print the runs, and do nothing")
    show.add_argument("--status", action="store_true", help="print how far each run is")
    parser.add_argument(WORKER, type=int, help=argparse.SUPPRESS)
    call, call.flags = parser.parse_known_args()
    while call.flags and not call.flags[0].startswith("-"):
        call.studies.append(call.flags.pop(0))
    for name in call.studies:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            parser.error(f"there is no study '{name}'" + (f", did you mean {close[0]}?" if close
                         else f", and the study comes first; choose among {' '.join(names)}"))
    runs = read_runs(call)
    if not runs:
        parser.error(f"no run of {' '.join(call.studies)} is of the {call.network}")
    if any(options.evaluate is not None for options in runs.values()):
        parser.error("studies are trained; mlp/main.py and cnn/main.py do --evaluate")
    return call, runs


@functools.cache
def parser_of(network: str) -> Parser:
    return build_parser(network, "")


def read_runs(call: argparse.Namespace) -> dict[Settings, argparse.Namespace]:
    """The runs of the studies in their order.

    A flag of the command line wins over the study's own, but for the ablation's drop rate 0.
    """
    runs: dict = {}
    for name in sum((GROUPS.get(name, (name,)) for name in call.studies), ()):
        found: dict = {}
        for study in STUDIES:
            if study.name == name and call.network in (None, study.network):
                parser = parser_of(study.network)
                for settings in study.settings.values():
                    flags = flags_of(parser, vars(trained(settings))) + call.flags
                    flags += ["--drop_rate", "0"] if settings.without_dropout else []
                    options = read_options(parser, study.network, flags)
                    found |= dict.fromkeys(options.settings, options)
        for settings in sorted(found, key=lambda settings: settings.seed):
            runs.setdefault(settings, found[settings])
    return runs


# What a worker does

def work(runs: dict[Settings, argparse.Namespace], parent: int) -> int:
    """Train what no other process trains; returns the exit code."""
    from lab.experiment import run_experiment  # before torch

    # isort: split
    from lab.errors import in_one_line
    from load_data import load_cifar_2d, load_cifar_4d

    @functools.lru_cache(1)  # the calls for one network share it
    def load(network: str, *place):
        return (load_cifar_2d if network == "mlp" else load_cifar_4d)(*place)

    @in_one_line
    def train_each() -> int:
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()
        for options in calls(runs):
            build = importlib.import_module(f"{options.network}.model").build
            code = run_experiment(options, build, functools.partial(load, options.network))
            if code > 1:  # not of a failed run, which does not keep the others from being trained
                return code
        return 0

    return train_each()


def end_with(parent: int) -> None:
    """End this process soon after the one that started it, whatever ended that."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def calls(runs: dict[Settings, argparse.Namespace]) -> list[argparse.Namespace]:
    """Options of main.py, each for all runs that one command line could name."""
    found: dict = {}
    for settings, options in runs.items():
        alike = dataclasses.replace(settings, seed=0, batch_size=1, learning_rate=1, drop_rate=0)
        if alike not in found:
            found[alike] = copy.copy(options)
            vars(found[alike]).update(settings=[], no_wait=True, retry=False)
        found[alike].settings.append(settings)
    return list(found.values())


# What starts the workers

class Worker:
    """A process that trains, started again as long as there is something for it."""

    def __init__(self, command: list[str], environment: dict, log=None):
        self.command, self.environment, self.log = command, {**os.environ, **environment}, log
        self.process: subprocess.Popen | None = None
        self.code = 0  # of its last end
        self.stopped = False
        self.seen: set = set()  # what there was to train when it was started

    def start(self, seen: set) -> None:
        self.seen, self.process = seen, subprocess.Popen(  # leads a group, to be ended as a whole
            self.command, env=self.environment, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=self.log, stderr=self.log and subprocess.STDOUT)

    def look(self) -> bool:
        """Whether something has happened to it since the last look."""
        pid, status = os.waitpid(self.process.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if not pid:
            return False
        self.stopped = os.WIFSTOPPED(status)
        if self.stopped:
            say(f"worker {pid} was stopped; kill -CONT {pid} lets it go on")
        elif not os.WIFCONTINUED(status):
            self.code = self.process.returncode = os.waitstatus_to_exitcode(status)
            self.process = None
            if self.code < 0:
                say(f"a worker was ended by signal {-self.code}; the others took over, or the same "
                    "call goes on")
        return True

    def end(self) -> None:
        """End its group, even if that is stopped."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            for each in (signal.SIGTERM, signal.SIGCONT):
                os.killpg(self.process.pid, each)
            self.process.wait(10)

    @property
    def error(self) -> str:
        """What is to be mended: the last line that it printed."""
        lines = Path(self.log.name).read_text(errors="replace").splitlines() if self.log else []
        return "".join(lines[-1:]) or f"run_grid.sh: a worker ended with exit code {self.code}"


def working() -> list[Worker]:
    return [worker for worker in crew if worker.process]


def hire(call: argparse.Namespace, plan: list[Entry]) -> None:
    """The workers, each with its share of the cores and a GPU."""
    count = min(call.j, len(plan))
    network = ["--network", call.network] if call.network else []
    command = [sys.executable, __file__, WORKER, str(os.getpid()), *call.studies, *network,
               *call.flags]
    shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(cores() // count or 1)}
    if "SLURM_JOB_ID" in os.environ and count == 1:  # the other tasks are the other workers
        crew.append(Worker(command, shared))
        return
    logs = plan[0].folder.folder.parents[1] / "logs"
    make_folder(logs)
    host, gpus = re.sub(r"[^\w.-]", "-", socket.gethostname()), list_gpus()
    for k in range(count):
        own = {"CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]} if len(gpus) > 1 else {}
        path = logs / f"{host}-{os.getpid()}-{time.time_ns()}-{k}.log"
        try:
            log = open(path, "xb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        crew.append(Worker(command, {**shared, **own}, log))


def cores() -> int:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if re.fullmatch("0*[1-9][0-9]{0,5}", os.environ.get(name, "")):
            return int(os.environ[name])
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def list_gpus() -> list[str]:
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    try:
        told = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
                              capture_output=True, text=True, errors="replace", timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in told.split("\n") if re.fullmatch("[0-9]+", line)]  # else an error


def attend(read) -> None:
    """Start the workers, and again where one that died has left a run, until all is done."""
    for worker in crew:
        worker.start(set())
    while True:
        left = {(entry.name, entry.state, entry.epochs) for entry in read()
                if entry.state not in ENDED}
        idle = [run for run in left if run[1] != "running"]
        free = [worker for worker in crew if not worker.process and not worker.code]
        for worker in [worker for worker in free if worker.seen != left][:len(idle)]:
            worker.start(left)
        if not left and all(worker.stopped for worker in working()):
            break
        if not working() and (not free or len(idle) == len(left)):
            break
        for _ in range(20):
            if sum(worker.look() for worker in working()):
                break
            time.sleep(0.05)
    for worker in working():
        worker.end()


def train(call: argparse.Namespace, plan: list[Entry]) -> int:
    if all(entry.read().state == "finished" and not entry.folder.lost_views for entry in plan):
        return print_outcome(plan)
    if "--retry" in call.flags:  # failures are forgotten once, before any worker starts
        forget_failures(entry.folder for entry in plan)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # after `stty tostop` the bar would stop it
    hire(call, plan)
    log = crew[0].log
    with progress(plan) if log else contextlib.nullcontext(
            lambda: [entry.read() for entry in plan]) as read:
        attend(read)
    errors = {worker.error for worker in crew if worker.code > 1}
    if errors:
        print(*map(one_line, sorted(errors)), sep="\n", file=sys.stderr)
        return 2
    code = print_outcome(plan)
    if code and log:
        say(f"what the workers printed is in {shlex.quote(str(Path(log.name).parent))}")
    return code


def main() -> int:
    call, runs = read_call()
    if call.worker:
        return work(runs, call.worker)
    plan = [entry(parser_of(settings.network), options, settings)
            for settings, options in runs.items()]
    if call.dry_run or call.status:
        print_plan(plan) if call.dry_run else print_status(plan)
        return 0
    return train(call, plan)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, OSError) as error:  # no more processes, for one
        say(f"error: {error}")
        sys.exit(2)
