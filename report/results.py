"""The runs that a report is made of: a user's own in RUNS_DIR, or the published ones in results/.

    results/<mlp|cnn>.json    configuration, result and failure of each run, a line per run
    results/<mlp|cnn>.csv     metrics.csv of all runs, with the run's name in the first column
    results/theory.json       what theory.py measured on the networks themselves
    results/data.json         names for data sets that the runs know by their fingerprint alone

`collect` writes the first three from a folder of runs. A file in results/ that is there and cannot
be read is an error, and never written over. Nothing in here imports torch.
"""

import csv
import io
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from store.files import (
    ROOT,
    UserError,
    as_csv,
    lock,
    make_folder,
    one_line,
    read_file,
    read_json,
    write_file,
)
from store.run import COLUMNS, RESULT, Run, RunFolder, metrics_row
from store.settings import NETWORKS

RESULTS = ROOT / "results"
KINDS = {"num_epochs": int, "device": str, "processor": str, "threads": int, "versions": dict,
         "data": dict, "code": dict}
DATA_KINDS = {"source": str, "fingerprint": str, "classes": list}


def checked(run: Run) -> Run:
    """The run; ValueError if something is not of the kind that main.py writes."""
    config, result, failure = run.config, run.result, run.failure
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        raise ValueError("it has no configuration")
    for values, kinds in (config, KINDS), (config["data"], DATA_KINDS):
        for key, kind in kinds.items():
            if key in values and type(values[key]) is not kind:
                raise ValueError(f"{key} is {str(values[key])[:40]!r}")
    if config.get("num_epochs", 1) < 1:
        raise ValueError(f"num_epochs is {config['num_epochs']}")
    if not (result is None or isinstance(result, dict) and result.keys() >= set(RESULT)):
        raise ValueError(f"result is {str(result)[:40]!r}")
    if not (failure is None or isinstance(failure, dict)):
        raise ValueError(f"failure is {str(failure)[:40]!r}")
    return run


def is_whole(run: Run) -> bool:
    """Whether its result, if it has one, is that of its rows."""
    best = max(run.rows, key=lambda row: row["val_acc"], default={})
    return run.result is None or run.result["epochs"] == len(run.rows) and all(
        run.result[key] == best.get(key) for key in ("val_acc", "test_acc", "test_loss"))


def seconds(run: Run) -> float:
    """Of training, as far as its clock can be believed."""
    return sum(s for row in run.rows if 0 <= (s := row["seconds"]) < 1e9)


def version(run: Run) -> str:
    """The code that made it, by the hash of its sources; '' for runs of before it was noted.

    Where several versions made a run, all of them."""
    return " and ".join(run.codes)


def read_runs(folder: Path) -> list[Run]:
    """The runs in a RUNS_DIR, finished or not. Names on stderr those that cannot be read."""
    runs, copies, unreadable = [], [], []
    for path in (path for n in NETWORKS for path in sorted((folder / n).glob("*_seed*"))):
        try:
            run = checked(replace(RunFolder(path).read(), worker=""))
            (copies if run.is_copy else runs).append(run)
        except (OSError, ValueError):
            if is_there(path / "config.json"):
                unreadable.append(f"{path.parent.name}/{path.name}")
    _leave_out(unreadable, folder, "cannot be read")
    _leave_out([f"{run.network}/{run.name}" for run in copies], folder,
               "are copies, as their config.json says,")
    return runs


def _leave_out(names: list[str], folder: Path, why: str) -> None:
    if names:
        print(one_line(f"{len(names)} of the runs in {folder} {why} and are left out: "
                       f"{', '.join(names[:3])}{', …' * (len(names) > 3)}"), file=sys.stderr)


def is_there(path: Path) -> bool:
    """Whether there is such a file, though perhaps none to read."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


def read_object(path: Path) -> dict:
    """The object in a JSON file, {} if there is no file. Raises UserError if it cannot be read."""
    value = read_json(path)
    if value is None and is_there(path):
        raise UserError(f"{path} is damaged or cannot be read; {remedy(path)}")
    return value or {}


def remedy(path: Path) -> str:
    published = RESULTS in path.parents
    return ("git checkout results brings the published one back" if published
            else "mend or remove it")


def read_results(folder: Path = RESULTS) -> list[Run]:
    """The published runs; UserError if their files are damaged, or do not belong together."""
    runs = []
    for network in NETWORKS:
        path = folder / f"{network}.json"
        described, rows = read_object(path), _read_rows(folder / f"{network}.csv")
        for name in rows | described:
            known = described.get(name)
            try:
                if not isinstance(known, dict):
                    raise ValueError("nothing describes its rows")
                run = checked(Run(network, name, known.get("config"), rows.get(name, []),
                                  known.get("result"), known.get("failure")))
                if not is_whole(run):
                    raise ValueError(f"its rows in {network}.csv do not give its result")
            except ValueError as error:
                raise UserError(f"{path} is damaged at {name}: {error}; {remedy(path)}") from error
            runs.append(run)
    return runs


def _read_rows(path: Path) -> dict[str, list[dict]]:
    """The rows of each run in a file of all runs; none if there is no file."""
    rows: dict[str, list[dict]] = {}
    if is_there(path):
        try:
            for row in csv.DictReader(io.StringIO(read_file(path).decode(), newline="")):
                run = rows.setdefault(row["name"], [])
                run.append(metrics_row(row))
                if run[-1]["epoch"] != len(run):
                    raise ValueError
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(f"{path} is damaged or cannot be read; {remedy(path)}") from error
    return rows


def collect(runs_dir: Path, folder: Path = RESULTS) -> list[str]:
    """Take the ended runs of RUNS_DIR, and its theory.json, into results/; returns their names.

    Runs that are there already are replaced, unless they have more epochs. The bytes written follow
    from the runs alone, whatever the order in which they were collected.
    """
    make_folder(folder)
    with lock(folder / "lock"):
        known = {(run.network, run.name): run for run in read_results(folder)}
        ended = [run for run in read_runs(runs_dir) if run.result or run.failure]
        broken = [run.name for run in ended if not is_whole(run)]
        _leave_out(broken, runs_dir, "have lost rows of metrics.csv")
        new = {(run.network, run.name): run for run in ended if is_whole(run)}
        theory = read_object(runs_dir / "theory.json")
        if not new and not theory:
            raise UserError(f"no finished runs in {runs_dir}; "
                            f"./run_grid.sh STUDY --runs_dir {runs_dir} makes them")
        new = {key: run for key, run in new.items()
               if key not in known or len(run.rows) >= len(known[key].rows)}
        known |= new
        for network in NETWORKS:
            runs = [known[key] for key in sorted(known) if key[0] == network]
            if runs:
                _write_runs(folder / network, runs)
        if theory:
            write_theory(folder / "theory.json", theory)
        return [f"{network}/{name}" for network, name in new]


def _write_runs(stem: Path, runs: list[Run]) -> None:
    rows = ({"name": run.name, **row} for run in runs for row in run.rows)
    write_file(stem.with_suffix(".csv"), as_csv(("name", *COLUMNS), rows))
    known = {run.name: {"config": published(run.config), "result": run.result,
                        "failure": run.failure} for run in runs}
    write_file(stem.with_suffix(".json"), lines_of(known).encode() + b"\n")


def published(config: dict) -> dict:
    """Without the folder of the data, which is of one machine."""
    data = {key: value for key, value in config["data"].items() if key != "folder"}
    return {**config, "data": data}


def lines_of(values: dict) -> str:
    """As JSON, a line for each entry."""
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def write_theory(path: Path, theory: dict) -> None:
    """Bring {network: {topic: value}} into the file, which keeps its other topics."""
    old = read_object(path)
    blocks = []
    for network in NETWORKS:
        if topics := old.get(network, {}) | theory.get(network, {}):
            blocks.append(f"{json.dumps(network)}: {lines_of(dict(sorted(topics.items())))}")
    write_file(path, ("{\n" + ",\n".join(blocks) + "\n}\n").encode())


@cache
def _names() -> dict:
    return read_object(RESULTS / "data.json")


def data_name(run: Run) -> str:
    """The data of a run in words."""
    source = run.data.get("source", "unknown data")
    return _names().get(run.fingerprint) or {
        "official": "CIFAR-10", "synthetic": "generated data, not CIFAR-10"}.get(source, source)
