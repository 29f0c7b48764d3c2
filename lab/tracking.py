"""Show runs in TensorBoard or Weights & Biases: while they train, or finished ones.

    python mlp/main.py --tensorboard                 # live; then: tensorboard --logdir runs
    python tracking.py runs --tensorboard --wandb    # every run below runs/, afterwards

Both get curves, settings as hyper-parameters, and the metrics at the best epoch, for the HPARAMS
view's table and parallel coordinates. A resumed run is written again from metrics.csv, so no epoch
appears twice. Files land in the run's folder: events.out.tfevents.* and wandb/.

Without an API key Weights & Biases works offline, for `wandb sync` later. WANDB_MODE overrides
that, and WANDB_PROJECT names the project. Offline it keeps the last 15 s or 32 KiB in memory: the
log of a killed run may be empty. Resume the run, or call this command, and it has every epoch.
"""

import contextlib
import importlib.util
import netrc
import os
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

from lab.options import FILE, Parser
from store.files import UserError, one_line, plural, read_file, write_file
from store.run import COLUMNS, RunFolder
from store.settings import SETTINGS, may_be_none

PROJECT = "batchnorm-dropout"
PATIENCE = 20.0  # seconds for Weights & Biases to answer
LONGEST_CALL = 60.0  # seconds: a tool that takes more hangs
WANDB_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")
CURVES = {column: "/".join(reversed(column.replace("acc", "accuracy").split("_")))
          for column in COLUMNS[1:-1]}
FINAL = ("val_loss", "val_acc", "test_loss", "test_acc")
OPTIONAL = {name: own.limit.kind() for name, own in SETTINGS.items() if may_be_none(name)}


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

    def close(self, failed: bool) -> None:
        if failed:
            self.writer.file_writer.add_summary(end_of_a_failure())
        self.writer.close()


def end_of_a_failure():
    """The record that ends a run in the HPARAMS view, as `hparams` makes it, but for its status."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_FAILURE)
    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    return Summary(value=[Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=data)])


class WeightsAndBiases:
    """A W&B run whose id stays in the folder: a resumed run is the same run there."""

    package = "wandb"

    def __init__(self, folder: Path, config: dict, rows: list[dict]):
        for variable in ("SILENT=true", "CONSOLE=off", "DISABLE_GIT=true", "DISABLE_CODE=true",
                         "ERROR_REPORTING=false", f"PROJECT={PROJECT}"):
            os.environ.setdefault(*f"WANDB_{variable}".split("="))
        import wandb

        if (folder / "wandb").is_symlink():
            raise UserError(f"{folder / 'wandb'} is a link, and nothing here follows links")
        for old in (folder / "wandb").glob("offline-run-*"):
            shutil.rmtree(old)
        options = {"name": folder.name, "group": config["network"], "dir": folder,
                   "id": run_id(folder / "wandb" / "id"), "resume": "allow",
                   "config": {key: config.get(key) for key in SETTINGS}}
        try:
            self.run = wandb.init(mode=wandb_mode(), **options,
                                  settings=wandb.Settings(init_timeout=PATIENCE))
        except wandb.errors.CommError as error:
            print(one_line(f"Weights & Biases cannot be reached, so it goes on offline ({error})"),
                  file=sys.stderr)
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

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def wandb_mode() -> str:
    """Offline where there is no API key: W&B would ask for one and wait."""
    if given := os.environ.get("WANDB_MODE"):
        if given in WANDB_MODES:
            return given
        raise UserError(f"WANDB_MODE is {given!r}; it must be one of {', '.join(WANDB_MODES)}")
    key = os.environ.get("WANDB_API_KEY")
    with contextlib.suppress(OSError, netrc.NetrcParseError):  # where `wandb login` puts it
        key = key or netrc.netrc().authenticators("api.wandb.ai")
    return "online" if key else "offline"


def run_id(path: Path) -> str:
    """The run's id at Weights & Biases, kept in `path`."""
    with contextlib.suppress(OSError, ValueError):
        name = read_file(path, 64).decode()
        if re.fullmatch(r"\w+", name) and not path.is_symlink():
            return name
    path.parent.mkdir(exist_ok=True)
    write_file(path, name := uuid.uuid4().hex[:12].encode())
    return name.decode()


TOOLS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def chosen_tools(options) -> list[type]:
    """The tools that the flags name; UserError, with how to install it, for one that is missing."""
    tools = [tool for flag, tool in TOOLS.items() if getattr(options, flag)]
    for tool in tools:
        found = importlib.util.find_spec(tool.package)
        if found is None or found.origin is None:  # a folder of the same name is no package
            raise UserError(f"argument --{tool.package}: {tool.package} is not installed; "
                            f"pip install {tool.package}, or pip install -r requirements-extra.txt")
    if WeightsAndBiases in tools:
        wandb_mode()
    return tools


class Tracking:
    """Tells the tools of one run. One that fails, exits or hangs is named and left behind."""

    def __init__(self, tools: list[type], folder: Path, config: dict, rows: list[dict]):
        self.name, self.tools = folder.name, [tool.__new__(tool) for tool in tools]
        self.tell("__init__", folder, config, rows)

    def tell(self, event: str, *values) -> None:
        for tool in list(self.tools):
            errors: list = []
            # a thread, and one that cannot keep the process: a tool may never answer
            thread = threading.Thread(target=attempt, daemon=True,
                                      args=(getattr(tool, event), values, errors))
            thread.start()
            thread.join(LONGEST_CALL)
            if thread.is_alive():
                errors.append(f"TimeoutError: no answer within {LONGEST_CALL:g} seconds")
            if errors:
                self.tools.remove(tool)
                print(one_line(f"{self.name}: no more for {tool.package} ({errors[0]})"),
                      file=sys.stderr)

    epoch = partialmethod(tell, "epoch")
    finish = partialmethod(tell, "finish")
    close = partialmethod(tell, "close")


def attempt(work: Callable, values: tuple, errors: list) -> None:
    """Note what went wrong, in words: a tool that calls sys.exit must not end a run either."""
    try:
        work(*values)
    except UserError as error:
        errors.append(str(error))
    except BaseException as error:
        errors.append(f"{type(error).__name__}: {error}")


def export(folder: RunFolder, tools: list[type]) -> bool:
    """Write what the tools need of a run that nobody trains; returns whether it could."""
    with folder.hold() as held:
        run = folder.read()
        if not held or not run.config:
            return False
        tracking = Tracking(tools, folder.folder, run.config, run.rows)
        if run.result:
            tracking.finish(run.result)
        tracking.close(not run.result and run.failure is not None)
        return len(tracking.tools) == len(tools)


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("runs_dir", type=FILE, metavar="RUNS_DIR",
                        help="the folder that --runs_dir named, or one within")
    parser.add_argument("--tensorboard", action="store_true",
                        help="write TensorBoard's event files")
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases")
    options = parser.parse_args()
    if not (options.tensorboard or options.wandb):
        parser.error("give --tensorboard, --wandb or both")
    try:
        tools = chosen_tools(options)
        folders = sorted({path.parent for depth in ("", "*/", "*/*/")
                          for path in options.runs_dir.glob(f"{depth}config.json")})
        if not folders:
            raise UserError(f"{options.runs_dir} has no runs; give the folder that --runs_dir "
                            "named")
        left = [folder.name for folder in folders if not export(RunFolder(folder), tools)]
    except UserError as error:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
        return 2
    print(f"{len(folders) - len(left)} of {plural(len(folders), 'run')} exported")
    for name in left:
        print(f"not {name}: it is being trained, or what is above went wrong")
    return 1 if left else 0
