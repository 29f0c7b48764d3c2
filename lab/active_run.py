"""One run that this process trains: its lock is held, and each epoch is shown and written down."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from fast.gpu.guard import way_of
from fast.machine import versions
from fast.processor import processor
from lab.checkpoint import best_files, identity_of, resume, snapshot
from lab.errors import NO_THREADS, in_words, is_out_of_threads
from lab.progress import Pace, Progress
from lab.side_by_side import SideBySide
from lab.tracking import Tracking
from load_data import Data
from store.code import code_version
from store.files import UserError
from store.run import RunFolder
from store.settings import Settings
from store.trained import Build
from training import Trainer

ISA = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR",
       "MKL_ENABLE_INSTRUCTIONS")  # limits to what the processor can


def describe(settings: Settings, data: Data, device: torch.device, data_dir: Path | None) -> dict:
    """config.json: every setting, and what else the numbers depend on."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {
        **vars(settings),
        "data": {"source": data.source, "fingerprint": data.fingerprint,
                 "classes": list(data.classes),
                 "images": {name: len(split.labels) for name, split in splits.items()},
                 **({"folder": str(data_dir.resolve())} if data_dir else {})},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": versions(device),
        "arithmetic": arithmetic(),
        "code": code_version(device.type == "cuda"),
    }


def arithmetic() -> dict:
    """Switches of PyTorch and of the environment that change how sums are rounded."""
    isa = {name: os.environ[name] for name in sorted(os.environ) if name in ISA}
    return {"float32_matmul_precision": torch.get_float32_matmul_precision(),
            "mkldnn": torch.backends.mkldnn.enabled, **isa}


def is_lost(device: torch.device) -> bool:
    """Whether the device can do no more work in this process: CUDA repeats such an error."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize()
    except Exception:
        return True
    return False


class ActiveRun:
    """`ends` is closed as soon as the run is finished or failed, and gives the lock back."""

    def __init__(self, folder: RunFolder, settings: Settings, data: Data, device: torch.device,
                 ends: contextlib.ExitStack, place: str = "", pace: Pace | None = None):
        self.folder, self.settings, self.data, self.device = folder, settings, data, device
        self.ends = ends
        self.place, self.pace = place, pace
        self.trainer: Trainer | None = None
        self.tracking: Tracking | None = None
        self.recorded: Future | None = None
        self.saved = len(folder.metrics())  # epochs
        self.failed = False

    def begin(self, build: Build, tools: list[type], data_dir: Path | None = None) -> None:
        """Resume from the last checkpoint, or start."""
        self.config = describe(self.settings, self.data, self.device, data_dir)
        self.config |= {"fast": way} if (way := (self.folder.config() or {}).get("fast")) else {}
        self.progress = Progress(self.settings, self.place, self.pace)
        self.ends.callback(self.progress.close)
        with self.failure_recorded():
            self.trainer = resume(
                self.folder, lambda: Trainer(build, self.data, self.settings, self.device))
            self.saved = self.trainer.epoch
            self.folder.start(self.config, self.saved, self.settings.num_epochs)
            if self.saved:  # what is written may be older or newer than the checkpoint
                state = {"identity": identity_of(self.trainer), **vars(self.trainer)}
                self.folder.save_views(self.trainer.rows, best_files(state))
            self.progress.begin(self.saved)
            self.tracking = Tracking(tools, self.folder.folder, self.config, self.trainer.rows)
            self.ends.callback(lambda: self.tracking.close(self.failed))

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
            if is_out_of_threads(error):
                raise UserError(NO_THREADS) from error
            self.failed = True
            if self.trainer is None:
                self.folder.start(self.config, self.saved, self.settings.num_epochs)
            reason, epoch = in_words(error), min(self.saved + 1, self.settings.num_epochs)
            step = getattr(error, "step", None)
            self.folder.fail({"reason": reason, "epoch": epoch, "step": step, "time": time.time()})
            self.progress.say(f"failed: {reason}")
            self.ends.close()
            self.trainer = None  # the others may need its memory
            if is_lost(self.device):
                raise UserError(f"the device is no longer usable ({reason}); run the same command "
                                "again, with --retry for this run") from error

    def end_epoch(self, outcome: dict | Exception, recorder: ThreadPoolExecutor) -> None:
        """Have `recorder` write the row of an epoch and the state after it."""
        with self.failure_recorded():
            self.wait()
            if isinstance(outcome, Exception):
                raise outcome
            self.progress.level(self.trainer.epoch)
            self.recorded = recorder.submit(self.record, self.trainer.rows[:],
                                            snapshot(self.trainer))

    def record(self, rows: list[dict], files: Callable[[], tuple[bytes, dict[str, bytes]]]) -> None:
        self.folder.save(rows, *files())
        if self.device.type == "cuda":
            self.note_way(way_of(self.settings.network, self.trainer.graph), len(rows) - 1)
        self.saved = len(rows)
        self.tracking.epoch(rows[-1])
        self.progress.epoch(rows[-1])

    def note_way(self, way: dict, epochs: int) -> None:
        """Note by which kernels an epoch was computed; say so where others were by other ones."""
        before, self.config["fast"] = self.config.get("fast"), way
        if before != way:
            self.folder.start(self.config, epochs, self.settings.num_epochs)
            if before:
                self.progress.say(f"goes on with {way}, after {before}")

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
            metrics = {key: best[key] for key in ("val_loss", "val_acc", "test_loss", "test_acc")}
            result = {"epochs": len(rows), "best_epoch": best["epoch"], **metrics,
                      "seconds": round(sum(row["seconds"] for row in rows), 3)}
            self.tracking.finish(result)
            self.folder.finish(result)
            self.ends.close()


def train(runs: list[ActiveRun]) -> None:
    """Train runs side by side, each to its end or to its failure."""
    # writing takes 10 to 35 ms an epoch: with a thread for it, eight MLPs are 8 % sooner
    with ThreadPoolExecutor(max_workers=1) as recorder:
        while going := [run for run in runs if run.goes_on]:
            epoch = min(run.trainer.epoch for run in going)
            level = [run for run in going if run.trainer.epoch == epoch]  # not so after a crash
            for run, outcome in zip(level, run_epoch(level), strict=True):
                run.end_epoch(outcome, recorder)
        for run in runs:
            run.finish()


def run_epoch(runs: list[ActiveRun]) -> list[dict | Exception]:
    """The next epoch of runs that stand at the same one: each one's row, or what went wrong."""
    trainers = [run.trainer for run in runs]

    def on_step() -> None:
        for run in runs:
            run.progress.step(1 / run.trainer.steps)

    try:
        if len(runs) == 1:
            return [trainers[0].run_epoch(on_step)]
        return SideBySide(trainers).run_epoch(on_step)
    except Exception as error:
        return [error] * len(runs)
