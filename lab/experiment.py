"""From settings to finished runs: takes each run's lock, takes up its checkpoint, trains, writes, reports."""

import contextlib
import ctypes
import io
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

# Read when torch is loaded. Threads that wait for each other in a long busy loop, as is their habit, make training
# ten times slower as soon as any other program wants a core; putting them to sleep at once costs a tenth.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # of PyTorch's OpenMP on Linux: rounds of it, under a millisecond

import torch
from torch import nn
from tqdm import tqdm

from fast.side_by_side import Team
from lab.tracking import Tracking, chosen_tools
from load_data import Data
from store.files import UserError, is_number, one_line
from store.run import COLUMNS, Run
from store.settings import Settings
from training import Diverged, Trainer, on_device

SIDE_BY_SIDE = 8  # small MLPs at once: enough to gain from it, few enough for several workers
BAR = "{desc} |{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]"


def run_experiment(options, build: Callable[[Settings, int], nn.Module],
                   load: Callable[[Path, bool], Data]) -> int:
    """Do what the command line says; returns the exit code."""
    for name in ("stdout", "stderr"):  # closed, as some services start their programs
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        started = float(os.environ.get("RETRY_BEFORE", time.time()))  # run_grid.sh: when it was called
        chosen_tools(options)  # one that is missing is told before any work
        device = choose_device(options.device)
        keep_freed_memory()
        if options.evaluate is not None:
            from lab.evaluation import evaluate_run

            return evaluate_run(options, build, load, device)
        data = load(options.data_dir, options.synthetic)
        return train_all(options, lambda settings: build(settings, len(data.classes)), data, device, started)
    except (UserError, OSError) as error:
        print(one_line(f"{sys.argv[0]}: error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last finished epoch", file=sys.stderr)
        return 130


def choose_device(name: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        usable = ", ".join(kind for kind in available if available[kind])
        raise UserError(f"argument --device: {name} is not available here; choose auto or one of: {usable}")
    if name == "cuda":  # bit for bit the same when run again; TF32 for speed
        torch.backends.cudnn.deterministic = True
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_float32_matmul_precision("high")
    return torch.device(name)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory. By default it gives every large tensor back to the system, and fetching
    the pages again takes most of a CNN's training step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        no_mmap, trim_threshold = (-4, 0), (-1, 2 ** 31 - 1)
        libc = ctypes.CDLL(None)
        for parameter in (no_mmap, trim_threshold):
            libc.mallopt(*parameter)


def train_all(options, build: Callable[[Settings], nn.Module], data: Data, device: torch.device,
              started: float) -> int:
    """Train every run of the list that is not finished and that no other process trains.

    Waits for the others in the end, unless --no_wait, and takes over what they leave if they die.
    """
    todo = {settings: Run(options.runs_dir / options.network / settings.name) for settings in options.settings}
    for settings, run in todo.items():
        refuse_impossible(settings, run, data)
    data = Data(*(on_device(split, device) for split in data[:3]), *data[3:])
    tools, places = chosen_tools(options), {settings: place for place, settings in enumerate(todo, 1)}
    size = SIDE_BY_SIDE if gains_from_company(options, device) else 1

    def is_open(settings: Settings, run: Run) -> bool:
        if run.finished(settings.num_epochs):
            return False
        failure = run.failure()
        # Of several workers with --retry just one takes a failed run up again: what fails now is not old.
        return failure is None or options.retry and failure.get("time", 0) < started

    waiting_for = None
    while open_runs := {settings: run for settings, run in todo.items() if is_open(settings, run)}:
        trained = False
        for candidates in teams(list(open_runs), size):
            with contextlib.ExitStack() as stack:
                team = []
                for settings in candidates:
                    run, ends = todo[settings], stack.enter_context(contextlib.ExitStack())
                    if ends.enter_context(run.hold()) and is_open(settings, run):
                        place = f"{places[settings]}/{len(todo)} " if len(todo) > 1 else ""
                        team.append(Training(run, settings, build, data, device, ends, tools, place))
                    else:
                        ends.close()
                train(team)
                trained = trained or bool(team)
        if not trained and options.no_wait:
            break
        if not trained:
            run = next(iter(open_runs.values()))
            if waiting_for != run.name:
                print(f"{run.name}: waiting for {run.holder() or 'its lock'}", flush=True)
                waiting_for = run.name
            time.sleep(0.5)
    print_table(todo)
    return 1 if any(run.failure() for run in todo.values()) else 0


def gains_from_company(options, device: torch.device) -> bool:
    """Whether runs are trained side by side: small MLPs whose first layers have the same input."""
    settings = options.settings[0]  # all have these in common
    small = settings.network == "mlp" and settings.hidden_size <= 1000
    plain = not settings.augment and not settings.compile
    return small and plain and device.type == "cpu" and not options.wandb  # W&B takes one run of a process at a time


def teams(runs: list[Settings], size: int) -> list[list[Settings]]:
    """Groups of up to `size` runs that see the same batches."""
    alike: dict = {}
    for settings in runs:
        alike.setdefault((settings.batch_size, settings.seed), []).append(settings)
    return [group[start:start + size] for group in alike.values() for start in range(0, len(group), size)]


def refuse_impossible(settings: Settings, run: Run, data: Data) -> None:
    if settings.batch_size > len(data.train.labels):
        raise UserError(f"argument --batch_size: {settings.batch_size} is not allowed, the training set has "
                        f"{len(data.train.labels)} images")
    config = run.config()
    if config and config["data"].get("fingerprint") != data.fingerprint:
        raise UserError(f"{run.folder} was trained on other data ({config['data'].get('source')}); choose "
                        "another --runs_dir, or delete the folder to train it anew")


def describe(settings: Settings, data: Data, device: torch.device) -> dict:
    """config.json: every setting, and what else the numbers depend on."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {
        **vars(settings),
        "data": {"source": data.source, "fingerprint": data.fingerprint, "classes": list(data.classes),
                 "images": {name: len(split.labels) for name, split in splits.items()}},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def processor() -> str:
    """The processor's name and the vector instructions that PyTorch uses on it, which decide how sums are rounded."""
    names = [platform.processor() or platform.machine()]
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:  # Linux has its full name there only
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")] or names
    return f"{names[0]}, {torch.backends.cpu.get_cpu_capability()}"


class Training:
    """One run in this process, whose lock is held: its trainer, and what shows and writes down how it goes.

    `ends` is closed as soon as the run is finished or failed, and gives the lock back.
    """

    def __init__(self, run: Run, settings: Settings, build: Callable[[Settings], nn.Module], data: Data,
                 device: torch.device, ends: contextlib.ExitStack, tools: list[type] = (), place: str = ""):
        self.run, self.settings, self.data, self.ends = run, settings, data, ends
        self.trainer = take_up(run, lambda: Trainer(lambda: build(settings), data, settings, device), settings, data)
        config = describe(settings, data, device)
        run.start(config)
        if self.trainer.epoch:
            run.save_views(self.trainer.rows, best_file(self.trainer))  # they may be older or newer than the checkpoint
        self.tracking = Tracking(tools, run.folder, config, self.trainer.rows)
        ends.callback(self.tracking.close)
        self.progress = Progress(settings, self.trainer.epoch, place)
        ends.callback(self.progress.close)
        self.recorded: Future | None = None
        self.failed = False

    @property
    def goes_on(self) -> bool:
        return not self.failed and self.trainer.epoch < self.settings.num_epochs

    @contextlib.contextmanager
    def failure_recorded(self) -> Iterator[None]:
        """What goes wrong within is noted in the run's folder, so that the other runs go on."""
        try:
            yield
        except (UserError, OSError):
            raise  # no fault of the run
        except Exception as error:
            self.failed = True
            reason = one_line(str(error) if isinstance(error, Diverged) else f"{type(error).__name__}: {error}")
            self.run.fail({"reason": reason, "epoch": self.trainer.epoch + 1, "step": getattr(error, "step", None),
                           "time": time.time()})
            self.progress.say(f"failed: {reason}")
            self.ends.close()

    def take(self, outcome: dict | Exception, recorder: ThreadPoolExecutor) -> None:
        """Have `recorder` write the row of an epoch and the state after it."""
        with self.failure_recorded():
            self.wait()
            if isinstance(outcome, Exception):
                raise outcome
            self.progress.level(self.trainer.epoch)
            checkpoint = as_bytes({"identity": identity(self.settings, self.data), **self.trainer.state_dict()})
            best = best_file(self.trainer) if self.trainer.best is outcome else None
            self.recorded = recorder.submit(self.record, self.trainer.rows[:], checkpoint, best)

    def record(self, rows: list[dict], checkpoint: bytes, best: bytes | None) -> None:
        self.run.save(rows, checkpoint, best)
        self.tracking.epoch(rows[-1])
        self.progress.epoch(rows[-1])

    def wait(self) -> None:
        """Until the last epoch is written; raises what went wrong with it."""
        if self.recorded:
            self.recorded.result()

    def finish(self) -> None:
        if self.failed:
            return
        with self.failure_recorded():
            self.wait()
            rows, best = self.trainer.rows, self.trainer.best
            result = {"epochs": len(rows), "best_epoch": best["epoch"],
                      **{key: best[key] for key in ("val_loss", "val_acc", "test_loss", "test_acc")},
                      "seconds": round(sum(row["seconds"] for row in rows), 3)}
            self.tracking.finish(result)
            self.run.finish(result)
            self.ends.close()


def train(team: list[Training]) -> None:
    """Train runs side by side, each to its end or to its failure."""
    with ThreadPoolExecutor(max_workers=1) as recorder:  # disks are slow: the next epoch trains meanwhile
        while going := [training for training in team if training.goes_on]:
            epoch = min(training.trainer.epoch for training in going)
            level = [training for training in going if training.trainer.epoch == epoch]  # not so after a crash
            for training, outcome in zip(level, run_epoch(level), strict=True):
                training.take(outcome, recorder)
        for training in team:
            training.finish()


def run_epoch(team: list[Training]) -> list[dict | Exception]:
    """The next epoch of runs that stand at the same one: each run's row, or what went wrong with it."""
    trainers = [training.trainer for training in team]

    def on_step(share: float) -> None:
        for training in team:
            training.progress.step(share)

    try:
        return [trainers[0].run_epoch(on_step)] if len(team) == 1 else Team(trainers).run_epoch(on_step)
    except Exception as error:
        return [error] * len(team)


def identity(settings: Settings, data: Data) -> dict:
    return {**settings.identity(), "fingerprint": data.fingerprint}


def take_up(run: Run, new_trainer: Callable[[], Trainer], settings: Settings, data: Data) -> Trainer:
    """A trainer at the last usable checkpoint of the run, or a new one."""
    for path, content in run.checkpoints():
        trainer = new_trainer()
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if state["identity"] != identity(settings, data):
                print(one_line(f"{path} belongs to another experiment and is not used"), file=sys.stderr)
                continue
            refuse_odd_rows(state)
            trainer.load_state_dict(state)
        except Exception as error:  # whatever the file holds instead of a checkpoint, it must not end the run
            print(one_line(f"{path} is no usable checkpoint ({type(error).__name__}) and is not used"), file=sys.stderr)
            continue
        if path.name != "checkpoint.pt":
            run.step_back()  # or the next one would push it out
        return trainer
    return new_trainer()


def refuse_odd_rows(state: dict) -> None:
    rows = state["rows"]
    if ([row["epoch"] for row in rows] != list(range(1, len(rows) + 1)) or state["best"] not in rows
            or not all(tuple(row) == COLUMNS and all(map(is_number, row.values())) for row in rows)
            or state["best_weights"].keys() != state["network"].keys()):
        raise ValueError("not what was saved")


def best_file(trainer: Trainer) -> bytes:
    return as_bytes({"network": trainer.best_weights, **trainer.best})


def as_bytes(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


class Progress:
    """What one run shows: a bar on a terminal; where the output goes elsewhere, a line per epoch."""

    def __init__(self, settings: Settings, epoch: int, place: str):
        self.title = f"{place}{settings.network} {settings.name}"
        self.num_epochs = settings.num_epochs
        self.bar = None
        if sys.stderr.isatty() and sys.stdout.isatty():
            # Without the defaults at its end, a name that --evaluate takes as well, a line has room for a bar.
            short = self.title.removesuffix("_seed0").removesuffix("_2d").removesuffix("_False_False")
            self.bar = tqdm(total=max(settings.num_epochs, epoch), initial=epoch, desc=short, bar_format=BAR,
                            dynamic_ncols=True)

    def step(self, share: float) -> None:
        if self.bar is not None:
            self.bar.update(share)

    def level(self, epoch: int) -> None:
        """Free the bar of the rounding of its shares."""
        if self.bar is not None:
            self.bar.n = epoch

    def epoch(self, row: dict) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"val loss {row['val_loss']:.3f} acc {row['val_acc']:.3f}, "
                                     f"{row['seconds']:.1f} s/epoch")
        else:
            self.say(f"epoch {row['epoch']}/{self.num_epochs}  train {row['train_loss']:.4f} {row['train_acc']:.4f}  "
                     f"val {row['val_loss']:.4f} {row['val_acc']:.4f}  "
                     f"test {row['test_loss']:.4f} {row['test_acc']:.4f}  {row['seconds']:.1f} s")

    def say(self, text: str) -> None:
        tqdm.write(f"{self.title}  {text}", file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def print_table(runs: dict[Settings, Run]) -> None:
    """The outcome of each run; losses and accuracies are those at the best validation accuracy."""
    width = max(len(run.name) for run in runs.values())
    print(f"\n{'run':{width}}  epochs  best  val loss  val acc  test loss  test acc    seconds")
    for run in runs.values():
        if result := run.result():
            print(f"{run.name:{width}}  {result['epochs']:6}  {result['best_epoch']:4}  {result['val_loss']:8.4f}"
                  f"  {result['val_acc']:7.4f}  {result['test_loss']:9.4f}  {result['test_acc']:8.4f}"
                  f"  {result['seconds']:9.1f}")
        elif failure := run.failure():
            print(f"{run.name:{width}}  failed: {failure.get('reason')}")
