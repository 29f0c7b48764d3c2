"""The runs that a report is made of: a user's own in RUNS_DIR, or the published ones in results/.

    results/<mlp|cnn>.json    configuration, result and failure of each run, a line per run
    results/<mlp|cnn>.csv     metrics.csv of all runs, with the run's name in the first column
    results/<mlp|cnn>_predictions.npz   NAME.val and NAME.test: the classes that a run predicts
    results/theory.json       what theory.py measured on the networks themselves
    results/data.json         names for data sets that the runs know by their fingerprint alone

`collect` writes all but the last from a folder of runs. A file in results/ that is there and cannot
be read is an error, and never written over. Nothing in here imports torch.
"""

import contextlib
import csv
import io
import json
import math
import sys
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

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
        described, rows = _read_described(folder, network), _read_rows(folder, network)
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


def _read_described(folder: Path, network: str) -> dict:
    path = folder / f"{network}.json"
    try:
        value = json.loads(read_published(folder, path.name, network) or b"{}")
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged or cannot be read; {remedy(path)}")
    return value


def _read_rows(folder: Path, network: str) -> dict[str, list[dict]]:
    """The rows of each run in a file of all runs; none if there is no file."""
    path, rows = folder / f"{network}.csv", {}
    try:
        text = (read_published(folder, path.name, network) or b"").decode()
        for row in csv.DictReader(io.StringIO(text, newline="")):
            run = rows.setdefault(row["name"], [])
            run.append(metrics_row(row))
            if run[-1]["epoch"] != len(run):
                raise ValueError
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged or cannot be read; {remedy(path)}") from error
    return rows


def collect(runs_dir: Path, folder: Path = RESULTS) -> list[str]:
    """Take the ended runs of RUNS_DIR, and its theory.json, into results/; returns their names.

    Runs that are there already are replaced, unless they have more epochs or are of other data.
    The bytes written follow from the runs alone, whatever the order in which they were collected.
    """
    make_folder(folder)
    with lock(folder / "lock"):
        known = {(run.network, run.name): run for run in read_results(folder)}
        ended = {(run.network, run.name): run for run in read_runs(runs_dir)
                 if run.result or run.failure}
        new = {key: run for key, run in ended.items() if is_whole(run)}
        _leave_out([name for _, name in ended.keys() - new.keys()], runs_dir,
                   "have lost rows of metrics.csv")
        theory = read_object(runs_dir / "theory.json")
        if not new and not theory:
            raise UserError(f"no finished runs in {runs_dir}; "
                            f"./run_grid.sh STUDY --runs_dir {runs_dir} makes them")
        foreign = [key for key in new if key in known
                   and new[key].fingerprint != known[key].fingerprint]
        _leave_out([name for _, name in foreign], runs_dir,
                   f"are of other data than those of their names in {folder}")
        new = {key: run for key, run in new.items() if key not in foreign and (
            key not in known or len(run.rows) >= len(known[key].rows))}
        known |= new
        for network in NETWORKS:
            add_predictions(folder, network, runs_dir, [n for own, n in new if own == network])
            _write_runs(folder, network, [known[key] for key in sorted(known) if key[0] == network])
        if theory:
            write_theory(folder / "theory.json", theory)
        return [f"{network}/{name}" for network, name in new]


def add_predictions(folder: Path, network: str, runs_dir: Path, names: list[str]) -> None:
    """Take in what these runs predict; written first, since more of it does no harm."""
    path = folder / f"{network}_predictions.npz"
    known = read_arrays(path)
    for name in names:
        arrays = read_arrays(runs_dir / network / name / "predictions.npz")
        known |= {f"{name}.{split}": arrays[split] for split in ("val", "test") if split in arrays}
    if known and names:
        file = io.BytesIO()
        np.savez_compressed(file, **dict(sorted(known.items())))
        write_file(path, file.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The predicted classes in an archive; none if there is none, or it is no such archive."""
    with contextlib.suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if all(each.dtype in (np.uint8, np.uint16) and each.ndim == 1 for each in arrays.values()):
            return arrays
    return {}


def _write_runs(folder: Path, network: str, runs: list[Run]) -> None:
    """Both files of a network; until both are there, `pending` holds the two and counts."""
    if not runs:
        return
    rows = ({"name": run.name, **row} for run in runs for row in run.rows)
    described = {run.name: {"config": published(run.config), "result": run.result,
                            "failure": run.failure} for run in runs}
    files = {f"{network}.csv": as_csv(("name", *COLUMNS), rows).decode(),
             f"{network}.json": lines_of(described) + "\n"}
    write_file(pending(folder, network), json.dumps(files).encode())
    for name, text in files.items():
        write_file(folder / name, text.encode())
    pending(folder, network).unlink()


def pending(folder: Path, network: str) -> Path:
    return folder / f"{network}.pending"


def read_published(folder: Path, name: str, network: str) -> bytes | None:
    """One of a network's two files, out of `pending` if a collect was killed; None if not there."""
    if files := read_json(pending(folder, network)):
        return files[name].encode()
    return read_file(folder / name) if is_there(folder / name) else None


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
    try:
        json.dumps(theory, allow_nan=False)
    except ValueError as error:
        raise UserError("what was measured holds numbers that are not finite; nothing is "
                        "written") from error
    with lock(path.with_suffix(".lock")):
        old = read_object(path)
        blocks = []
        for network in NETWORKS:
            if topics := old.get(network, {}) | theory.get(network, {}):
                blocks.append(f"{json.dumps(network)}: {lines_of(dict(sorted(topics.items())))}")
        write_file(path, ("{\n" + ",\n".join(blocks) + "\n}\n").encode())


SHARED = {"data": str, "setting": str, "runs": list}
TOPICS = {  # for each topic its lists of numbers, of equal lengths within a group; single numbers
    "bagging": ((("predicted", "measured", "accuracy"), ("masks", "masked", "masked_accuracy")),
                ("variance", "covariance")),
    "statistics": ((("batch_sizes", "mean", "variance", "batch_accuracy"),),
                   ("mean_theory", "variance_theory", "running_accuracy")),
    "shifts": ((("shifts",),), ()), "confusion": ((("classes",),), ()), "order": ((), ()),
    "epoch_seconds": ((), ())}


def read_theory(folder: Path) -> dict:
    """The topics of theory.json as theory.py writes them; others are named and left out."""
    theory, odd = read_object(folder / "theory.json"), []
    sound: dict = {}
    for network in NETWORKS:
        topics = theory.get(network, {})
        for name, topic in topics.items() if isinstance(topics, dict) else ():
            if name in TOPICS and is_sound(name, topic):
                sound.setdefault(network, {})[name] = topic
            elif name in TOPICS:
                odd.append(f"{network} {name}")
    if odd:
        print(one_line(f"{folder / 'theory.json'}: left out, as not what theory.py writes: "
                       f"{', '.join(odd)}"), file=sys.stderr)
    return sound


def is_sound(name: str, topic) -> bool:
    groups, single = TOPICS[name]
    try:
        if name == "epoch_seconds":
            parts = [topic["seconds"][n] for n in topic["seconds"] if int(n) > 0]
            return isinstance(topic["machine"], str) and len(set(map(len, parts))) == 1 and all(
                are_numbers(part) and len(part) for part in parts)
        texts = [*topic["runs"], *topic.get("classes", ())]
        right = (all(isinstance(topic[key], kind) for key, kind in SHARED.items())
                 and bool(topic["runs"]) and all(isinstance(text, str) for text in texts))
        for keys in groups:
            right &= len({len(topic[key]) for key in keys}) == 1 and all(
                are_numbers(topic[key]) for key in keys if key != "classes")
        right &= all(are_numbers([topic[key]]) for key in single)
        if name == "bagging":
            right &= len(topic["measured"]) > 0 and len(topic["masks"]) > 0
        if name == "shifts":
            right &= all(len(row) == len(topic["shifts"]) == 9 and are_numbers(row)
                         for row in topic["accuracy"]) and len(topic["accuracy"]) > 0
        if name == "confusion":
            right &= all(len(row) == len(topic["classes"]) == len(topic["confusion"]) > 0
                         and are_numbers(row) for row in topic["confusion"])
        if name == "order":
            right &= bool(topic["networks"]) and all(are_numbers(
                [each[key] for key in ORDER]) for each in topic["networks"])
        return bool(right)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


ORDER = ("drop_rate", "inflation", "running_accuracy", "retaken_accuracy", "masked_accuracy")


def are_numbers(values) -> bool:
    return isinstance(values, list) and all(
        type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e30
        for value in values)


@cache
def _names() -> dict:
    return read_object(RESULTS / "data.json")


def data_name(run: Run) -> str:
    """The data of a run in words."""
    source = one_line(run.data.get("source", "unknown data"))[:80]
    return _names().get(run.fingerprint) or {
        "official": "CIFAR-10", "synthetic": "generated data, not CIFAR-10"}.get(source, source)
