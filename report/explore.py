"""All runs to look through: one flat table, and one page for the browser.

The page is explore.html with explore.js, plotly.js and the runs in it, so it needs no server and
no network. Names of runs and classes can hold anything; they reach it as JSON alone.
"""

import json
import re
from pathlib import Path

from report.drawing import DASHES, HUES, OF_NETWORK
from report.frame import Source
from report.results import data_name
from report.variance import grids, shares
from store.files import UserError, as_csv, make_folder, one_line, plural, write_file
from store.run import COLUMNS, Run
from store.settings import SETTINGS

TEMPLATE = Path(__file__).with_name("explore.html")
CURVES = COLUMNS[1:-1]
RESULTS = ("val_acc", "val_loss", "test_acc", "test_loss", "train_acc", "train_loss")
FLAT = ("name", *SETTINGS, "data", "device", "state", "epochs", "best_epoch", *RESULTS,
        *(f"last_{key}" for key in CURVES), "seconds", "failure")
MORE_HUES = ("#c98a00", "#009e73", "#aa4499", "#888888", "#a0522d", "#e07ba8", "#8a8a00", "#5a5ad0")
LONGEST, WIDEST = 300, 40  # letters on the page of any text and of a setting, if a stranger's


def flat(run: Run, source: Source) -> dict:
    """All of a run but its curves, a value per column; results as in the report's other tables."""
    values = {key: run.config.get(key, own.default_of(run.network))  # older runs do not name all
              for key, own in SETTINGS.items()} | {
        "network": run.network, "name": run.name, "data": data_name(run),
        "device": run.config.get("device"), "epochs": len(run.rows),
        "state": "finished" if run.result else "failed" if run.failure else "unfinished",
        "seconds": round(sum(row["seconds"] for row in run.rows), 3),
        "failure": run.failure.get("reason") if run.failure else None}
    values |= source.summaries.get((run.network, run.name), {})
    return {key: encodable(values.get(key)) for key in FLAT}


def encodable(value):
    """A folder's name may hold bytes that are no text, and a configuration anything."""
    if value is None or isinstance(value, int | float):
        return value
    return str(value).encode(errors="backslashreplace").decode()


def write_runs(source: Source, folder: Path) -> Path:
    """runs.csv: a row per run, those of no study too. The same runs give the same bytes."""
    make_folder(folder)
    rows = sorted((flat(run, source) for run in source.records),
                  key=lambda row: (row["network"], row["name"]))
    write_file(folder / "runs.csv", as_csv(FLAT, rows))
    return folder / "runs.csv"


def write_page(source: Source, path: Path) -> str:
    """Write the page; returns a line that says so. UserError where plotly is not installed."""
    if not path.name or path.exists() and not path.is_file():  # /dev/null would be replaced
        raise UserError(f"argument --explore: {path} is no file; name one, such as runs.html")
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("argument --explore: plotly is not installed; "
                        "pip install plotly, or pip install -r requirements-extra.txt") from error
    parts = {"data": as_json(page_data(source)), "plotly": get_plotlyjs(),
             "code": TEMPLATE.with_suffix(".js").read_text(encoding="utf-8")}
    page = re.sub(r"/\* (\w+) \*/", lambda match: parts[match[1]],
                  TEMPLATE.read_text(encoding="utf-8")).encode()
    make_folder(path.absolute().parent)
    write_file(path, page)
    count = plural(len(source.records), "run")
    return one_line(f"{count} in {path}, {len(page) / 1e6:.1f} MB; open it in a browser")


def page_data(source: Source) -> dict:
    rows = [page_row(run, source) for run in source.records]
    others = {row["learning_rate"] for row in rows} - {*HUES}
    hues = HUES | {rate: MORE_HUES[i % len(MORE_HUES)]
                   for i, rate in enumerate(sorted(others, key=lambda x: (str(type(x)), x)))}
    for row in rows:
        dash = DASHES.get(row["drop_rate"], (0, (2, 2)))
        row["color"] = hues[row["learning_rate"]]
        row["dash"] = "" if dash == "-" else ",".join(f"{2 * length}px" for length in dash[1])
    found = {key: {grid.network: grid for grid in grids(source, key)} for key in RESULTS}
    usual = {key: None if own.several else own.default_of("mlp") or own.default_of("cnn")
             for key, own in SETTINGS.items()}
    return {"settings": [*SETTINGS, "data", "state"], "usual": usual, "results": RESULTS,
            "runs": rows,
            "grids": [{"title": str(grid), "seeds": len(grid.seeds), "color": OF_NETWORK[network],
                       "shares": {key: shares(found[key][network].values) for key in RESULTS}}
                      for network, grid in found["val_acc"].items()]}


def page_row(run: Run, source: Source) -> dict:
    """A run and its curves. Runs of one group differ in their seed alone."""
    config = {key: part for key, part in run.config.items() if key not in SETTINGS}
    return {**shortened(flat(run, source)), "machine": shortened(dict(leaves("", config))),
            "group": f"{run.network}/{run.setting}/{run.variant}/{run.fingerprint[:LONGEST]}",
            "curves": {key: [row[key] for row in run.rows] for key in CURVES}}


def shortened(row: dict) -> dict:
    return {key[:LONGEST]: value[:WIDEST if key in (*SETTINGS, "data") else LONGEST]
            if isinstance(value, str) else value for key, value in row.items()}


def leaves(name: str, value):
    """The entries of a configuration, under names with dots."""
    if isinstance(value, dict):
        for key, part in value.items() if name.count(".") < 9 else ():
            yield from leaves(f"{name}.{key}" if name else key, part)
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else value


def as_json(value) -> str:
    """JSON that never ends a script early; NaN and infinity, which it lacks, are null."""
    numbers = json.loads(json.dumps(value), parse_constant=lambda name: None)
    return json.dumps(numbers, separators=(",", ":")).replace("<", "\\u003c")
