"""Show runs in TensorBoard or Weights & Biases: while they train (--tensorboard, --wandb), or finished ones.

    python mlp/main.py --tensorboard                 # live; then: tensorboard --logdir runs
    python tracking.py runs --tensorboard --wandb    # every run below runs/, afterwards

Both get the curves of every epoch, the settings as hyper-parameters, and the metrics at the best epoch, so that
the HPARAMS view has a table and parallel coordinates of all runs. What they get is written anew from metrics.csv
when a run goes on, so no epoch stands there twice. Files land in the run's folder: events.out.tfevents.* and wandb/.
Weights & Biases is told at once where it has an API key, else offline, for `wandb sync` later; WANDB_MODE decides
otherwise, WANDB_PROJECT names the project.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import netrc
import os
import shutil
import sys
import time
import uuid
from pathlib import Path

from lab.options import Parser
from store.files import UserError, write_file
from store.run import COLUMNS, RunFolder
from store.settings import LIMITS, Settings

PROJECT = "batchnorm-dropout"
PATIENCE = 20.0  # seconds for Weights & Biases to answer
CURVES = {column: "/".join(reversed(column.replace("acc", "accuracy").split("_"))) for column in COLUMNS[1:-1]}
FINAL = ("val_loss", "val_acc", "test_loss", "test_acc")
SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))
OPTIONAL = {field.name: LIMITS[field.name].kind() for field in dataclasses.fields(Settings)
            if field.default is None}


class TensorBoard:
    """Event files in the run's folder, with what the HPARAMS view needs."""

    package = "tensorboard"

    def __init__(self, folder: Path, config: dict, rows: list[dict]):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(folder)
        given = {key: config[key] for key in SETTINGS if config.get(key) is not None}
        # The view takes its columns from any one run, so each names those of both networks.
        columns = {**OPTIONAL, **given}
        metrics = dict.fromkeys([f"best/{key}" for key in FINAL])
        experiment = hparams(columns, metrics)[0]
        _, start, self.end = hparams(given, metrics)
        for summary in (experiment, start):
            self.writer.file_writer.add_summary(summary)
        self.time = time.time() - sum(row["seconds"] for row in rows)
        for row in rows:
            self.epoch(row)

    def epoch(self, row: dict) -> None:
        self.time += row["seconds"]  # of training: the pauses of a run that was stopped do not show
        for column, curve in CURVES.items():
            self.writer.add_scalar(curve, row[column], row["epoch"], walltime=self.time)
        self.writer.flush()

    def finish(self, result: dict) -> None:
        for key in FINAL:
            self.writer.add_scalar(f"best/{key}", result[key], result["best_epoch"])
        self.writer.file_writer.add_summary(self.end)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A W&B run with an identity that stays in the folder, so that a run that goes on is the same run there."""

    package = "wandb"

    def __init__(self, folder: Path, config: dict, rows: list[dict]):
        for variable, value in (("WANDB_SILENT", "true"), ("WANDB_CONSOLE", "off"), ("WANDB_DISABLE_GIT", "true"),
                                ("WANDB_DISABLE_CODE", "true"), ("WANDB_ERROR_REPORTING", "false")):
            os.environ.setdefault(variable, value)
        import wandb

        for old in (folder / "wandb").glob("offline-run-*"):
            shutil.rmtree(old)
        os.environ.setdefault("WANDB_PROJECT", PROJECT)
        options = {"name": folder.name, "group": config["network"], "id": identity(folder / "wandb" / "id"),
                   "resume": "allow", "dir": folder, "config": {key: config.get(key) for key in SETTINGS}}
        try:
            self.run = wandb.init(mode=mode(), settings=wandb.Settings(init_timeout=PATIENCE), **options)
        except wandb.errors.CommError as error:
            print(f"Weights & Biases cannot be reached, so it goes on offline ({error})", file=sys.stderr)
            os.environ["WANDB_MODE"] = "offline"  # for the runs to come as well
            wandb.teardown()  # or the name of the run is taken
            self.run = wandb.init(mode="offline", **options)
        known = self.run.step  # epochs that the server has; it takes each once
        for row in rows:
            if row["epoch"] >= known:
                self.epoch(row)

    def epoch(self, row: dict) -> None:
        self.run.log({curve: row[column] for column, curve in CURVES.items()}, step=row["epoch"])

    def finish(self, result: dict) -> None:
        self.run.summary.update({f"best/{key}": result[key] for key in (*FINAL, "best_epoch")})

    def close(self) -> None:
        self.run.finish()


def mode() -> str:
    """Offline where there is no API key: W&B would ask for one and wait."""
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    known = bool(os.environ.get("WANDB_API_KEY"))
    with contextlib.suppress(OSError, netrc.NetrcParseError):  # where `wandb login` puts it
        known = known or netrc.netrc().authenticators("api.wandb.ai") is not None
    return "online" if known else "offline"


def identity(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_file(path, uuid.uuid4().hex[:12].encode())
    return path.read_text()


TOOLS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def chosen_tools(options) -> list[type]:
    """The tools that the flags name; UserError, with how to install it, for one that is not installed."""
    tools = [tool for flag, tool in TOOLS.items() if getattr(options, flag)]
    for tool in tools:
        found = importlib.util.find_spec(tool.package)
        if found is None or found.origin is None:  # a folder of the same name is no package
            raise UserError(f"argument --{tool.package}: {tool.package} is not installed; "
                            f"pip install {tool.package}, or pip install -r requirements-extra.txt")
    return tools


class Tracking:
    """Tells the tools of one run. A tool that fails is named and left alone, and the training goes on."""

    def __init__(self, tools: list[type], folder: Path, config: dict, rows: list[dict]):
        self.tools: list = []
        self.name = folder.name
        for tool in tools:
            with self._or_leave(tool):
                self.tools.append(tool(folder, config, rows))

    def epoch(self, row: dict) -> None:
        self._tell("epoch", row)

    def finish(self, result: dict) -> None:
        self._tell("finish", result)

    def close(self) -> None:
        self._tell("close")

    def _tell(self, what: str, *values) -> None:
        for tool in list(self.tools):
            with self._or_leave(tool):
                getattr(tool, what)(*values)

    @contextlib.contextmanager
    def _or_leave(self, tool):
        try:
            yield
        except Exception as error:  # of another program: whatever it is, it must not end a run
            self.tools = [other for other in self.tools if other is not tool]
            print(f"{self.name}: no more for {tool.package} ({type(error).__name__}: {error})", file=sys.stderr)


def export(folder: RunFolder, tools: list[type]) -> bool:
    """Write what the tools need of a run that nobody trains; returns whether it could."""
    with folder.hold() as held:
        run = folder.read()
        if not held or not run.config:
            return False
        tracking = Tracking(tools, folder.folder, run.config, run.rows)
        if run.result:
            tracking.finish(run.result)
        tracking.close()
        return len(tracking.tools) == len(tools)


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs_dir", type=Path, metavar="RUNS_DIR", help="what --runs_dir named; a part of it will do")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's event files")
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases")
    options = parser.parse_args()
    if not (options.tensorboard or options.wandb):
        parser.error("give --tensorboard, --wandb or both")
    try:
        tools = chosen_tools(options)
        folders = sorted({path.parent for depth in ("", "*/", "*/*/")
                          for path in options.runs_dir.glob(f"{depth}config.json")})
        if not folders:
            raise UserError(f"{options.runs_dir} has no runs; give the folder that --runs_dir named")
        left = [folder.name for folder in folders if not export(RunFolder(folder), tools)]
    except UserError as error:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
        return 2
    print(f"{len(folders) - len(left)} of {len(folders)} runs exported")
    for name in left:
        print(f"not {name}: it is being trained, or what is above went wrong")
    return 1 if left else 0
