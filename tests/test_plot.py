"""plot.py: figures, tables, findings and report, from fabricated runs and the published ones."""

import csv
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_main
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import nn

from cnn.model import CNN
from mlp.model import MLP
from report import text as report
from report.drawing import BLUE, GREEN, ORANGE, SCALE, SKY, ink
from report.figures import catalogue, draw_all
from report.findings import (
    AT_LEAST_SAME,
    FAILS,
    HOLDS,
    POSITIVE,
    SAME,
    UNDECIDED,
    Check,
    Finding,
    findings,
)
from report.measured import SIZES
from report.results import collect, read_results, read_runs, write_theory
from report.statistics import Estimate, Pool, holm, optimism, p_value, pooled, t_quantile
from report.studies import ARGUMENTS, STUDIES, Curve, Source, View, experiment, read_source, summary
from report.tables import HEADER, finding_rows, write_tables
from store.files import UserError, lock
from store.run import COLUMNS, Run, RunFolder
from store.settings import Settings

PLOT = ROOT / "plot.py"
CURVES = [f"{name}_{split}_{quantity}.png" for name, splits in {
    "MLP": ("train", "val", "test"), "CNN": ("train", "val", "test"),
    "MLP_ablation": ("train", "val"),
    "CNN_ablation": ("train", "val"), "dimention": ("train", "val"), "dropout": ("train", "val"),
    "batchsize": ("train", "val")}.items() for split in splits for quantity in ("acc", "loss")]


def fabricate(network, names, seeds=(0,), epochs=8, asked=None, level=None, **config):
    """Runs that nobody trained. `level` maps a setting to its accuracy; seeds scatter a little."""
    records = []
    for setting, seed in itertools.product(names, seeds):
        settings = dataclasses.replace(Settings.parse(network, setting), seed=seed,
                                       num_epochs=asked or epochs,
                                       synthetic=config.get("synthetic", False))
        name, batch_size, drop_rate = settings.name, settings.batch_size, settings.drop_rate
        noise = np.random.RandomState(zlib.crc32(name.encode()))
        top = (level or {}).get(setting, 0.5) + 0.002 * (noise.rand() - 0.5)
        rows = []
        for epoch in range(1, epochs + 1):
            row = {"epoch": epoch, "seconds": 1.5}
            for split, more in (("train", 0.05 - 0.1 * float(drop_rate)), ("val", 0),
                                ("test", -0.005)):
                share = (1 - math.exp(-epoch / 2)) / (1 - math.exp(-epochs / 2))
                value = top * share + more * epoch / epochs
                row |= {f"{split}_acc": round(value, 6),
                        f"{split}_loss": round(2.3 * (1 - value) ** 0.8, 6)}
            rows.append({key: row[key] for key in COLUMNS})
        settled = {"network": network, "batch_size": int(batch_size), "num_epochs": asked or epochs,
                   "data": {"source": "image folder", "fingerprint": "00"}, "device": "cpu",
                   "processor": "x86_64",
                   "threads": 1, "versions": {"torch": "0"}, **config}
        result = {"epochs": epochs, **summary(rows),
                  "seconds": 9.0} if asked in (None, epochs) else None
        records.append(Run(network, name, settled, rows, result))
    return records


def write(folder, records):
    """The runs' folders, as main.py leaves them but for the weights."""
    for record in records:
        place = folder / record.network / record.name
        place.mkdir(parents=True)
        for name in ("config", "result", "failure"):
            if (value := getattr(record, name)) is not None:
                (place / f"{name.replace('failure', 'failed')}.json").write_text(json.dumps(value))
        with open(place / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(record.rows)
    return folder


def all_settings(*names):
    """What a study trains: of settings that are one network one."""
    names = [(STUDIES[name].network, setting) for name in names
             for setting in STUDIES[name].settings.values()]
    return list(dict.fromkeys(experiment(Settings.parse(*name)) for name in names))


@pytest.fixture(scope="module")
def every_run(tmp_path_factory):
    """Every run of every study, the MLP's with three seeds, and what theory.py measures."""
    folder = tmp_path_factory.mktemp("runs")
    spread = {s: 0.5 - 0.1 * abs(float(s.split("_")[2]) - 0.2) - 0.02 * i / 99 + 0.02
              * (s.split("_")[1] == "0.001")
              for i, s in enumerate(all_settings(*STUDIES))}
    write(folder, fabricate("mlp", all_settings("MLP", "MLP_ablation", "MLP_learning_rates"),
                            (0, 1, 2), level=spread))
    arguments = set(all_settings(*(name for name in ARGUMENTS if ARGUMENTS[name].network == "mlp")))
    write(folder, fabricate("mlp", sorted(arguments - set(all_settings("MLP", "MLP_ablation"))),
                            level=spread))
    more = {setting: 0.2 + value for setting, value in spread.items()}
    cnn = ("CNN", "CNN_ablation", "dimention", "CNN_learning_rates", "CNN_shuffled_patches")
    write(folder, fabricate("cnn", all_settings(*cnn), level=more))
    sizes = [16, 64, 256]
    for network in ("mlp", "cnn"):
        common = {"data": "made up", "setting": "x", "runs": ["x_seed0", "x_seed1"]}
        write_theory(folder / "theory.json", {network: {
            "bagging": {**common, "variance": 0.06, "covariance": 0.05, "predicted": [0.06, 0.055],
                        "measured": [0.061, 0.056], "accuracy": [0.5, 0.52], "masks": [1, 2, 4],
                        "masked": [0.07, 0.065, 0.06], "masked_accuracy": [0.4, 0.45, 0.5]},
            "statistics": {**common, "batch_sizes": sizes, "mean": [n ** -0.5 for n in sizes],
                           "mean_theory": 1,
                           "variance": [1.7 * n ** -0.5 for n in sizes], "variance_theory": 1.7,
                           "batch_accuracy": [0.4, 0.5, 0.51], "running_accuracy": 0.52}}})
    random = np.random.RandomState(0)
    labels = np.arange(500) % 10
    answers = np.where(random.rand(500) < 0.7, labels, random.randint(0, 10, 500))
    matrix = np.bincount(labels * 10 + answers, minlength=100).reshape(10, 10)
    write_theory(folder / "theory.json", {"cnn": {
        "confusion": {**common, "classes": [f"class{i}" for i in range(10)],
                      "confusion": matrix.tolist()},
        "filters": {**common, "shape": [128, 3, 5, 5],
                    "weights": random.randn(9600).round(4).tolist()}}})
    return folder


def look_at(records, theory=None):
    source = Source(records, theory)
    return {name: View(study, source) for name, study in STUDIES.items()}, source


def plot(*arguments):
    return subprocess.run([sys.executable, str(PLOT), *map(str, arguments)], capture_output=True,
                          text=True)


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def size_of(png):
    return [int.from_bytes(png.read_bytes()[start:start + 4], "big") for start in (16, 20)]


# Figures and tables


@pytest.fixture(scope="module")
def drawn(every_run, tmp_path_factory):
    """What the command makes of all runs."""
    output = tmp_path_factory.mktemp("drawn")
    result = plot("--runs_dir", every_run, "--output", output)
    assert result.returncode == 0, result.stderr
    return output, result.stdout


def test_all_figures_of_the_report(drawn):
    output, text = drawn
    pictures = {path.name: path for path in (output / "pics").iterdir()}
    assert len(CURVES) == 32
    topics = ("heatmap", "bagging", "statistics", "learning_rates")
    extra = {f"{network}_{topic}.png" for network in ("MLP", "CNN") for topic in topics}
    overview = {"claims", "variance", "networks", "dropout_types", "capacity",
                "weight_decay",
                "data_size", "batch_norm", "shuffled_patches", "CNN_confusion", "CNN_filters"}
    assert pictures.keys() == {*CURVES, *extra, *(f"{name}.png" for name in overview)}
    for path in pictures.values():
        assert path.stat().st_size <= 200_000
        assert size_of(path)[0] >= 1000
    assert "missing" not in text and "no runs yet" not in text


def test_tables(drawn, every_run):
    folder = drawn[0] / "results" / "tables"
    for name in ("MLP", "CNN", "dropout", "findings"):
        assert (folder / f"{name}.md").read_text().startswith("| ")
    rows = read_csv(folder / "MLP.csv")
    assert len(rows) == 60
    assert [float(row["val_loss"]) for row in rows] == sorted(float(row["val_loss"])
                                                              for row in rows)
    names = [f"{rows[0]['setting']}_False_False_seed{seed}" for seed in range(3)]
    runs = [summary(RunFolder(every_run / "mlp" / name).metrics()) for name in names]
    for key in ("test_acc", "test_loss", "val_acc", "last_train_acc"):
        assert float(rows[0][key]) == pytest.approx(np.mean([run[key] for run in runs]), rel=1e-5)
        assert float(rows[0][f"{key}_sd"]) == pytest.approx(np.std([run[key] for run in runs],
                                                                   ddof=1), rel=1e-4)


def test_drawing_again_gives_the_same_bytes(drawn, every_run, tmp_path):
    views, source = look_at(read_runs(every_run),
                            json.loads((every_run / "theory.json").read_text()))
    some = {name: views[name] for name in ("MLP", "dimention", "MLP_learning_rates")}
    for path in draw_all(some, source, tmp_path):
        assert path.read_bytes() == (drawn[0] / "pics" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_other_formats(kind, tmp_path):
    write(tmp_path / "runs", fabricate("mlp", all_settings("batchsize")))
    assert plot("--runs_dir", tmp_path / "runs", "--format", kind, "--output",
                tmp_path).returncode == 0
    pictures = list((tmp_path / "pics").iterdir())
    expected = {f"{name[:-4]}.{kind}" for name in CURVES if name.startswith("batchsize")}
    assert expected <= {path.name for path in pictures}
    assert all(path.read_bytes()[:4] in (b"<?xm", b"%PDF") for path in pictures)
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", (tmp_path / "REPORT.md").read_text())
    assert len(links) >= 20 and all((tmp_path / link).exists() for link in links)


class Notebook:
    """Takes the place of a Figure's text, to be read."""

    def __init__(self, monkeypatch):
        self.lines = []
        monkeypatch.setattr(Figure, "text", lambda figure, x, y, text,
                            **options: self.lines.append(text))

    def read(self):
        return "\n".join(self.lines)


def test_missing_runs_are_named(tmp_path, monkeypatch):
    settings = list(STUDIES["batchsize"].settings.values())
    records = fabricate("mlp", settings[:2], epochs=8) + fabricate("mlp", settings[2:3], epochs=3,
                                                                   asked=8)
    records += fabricate("mlp", ["96_0.07_0.1_False_False"])
    for run in records:
        run.config["data"]["folder"] = "/my pictures"
    write(tmp_path / "runs", records)
    result = plot("--runs_dir", tmp_path / "runs", "--output", tmp_path)
    assert result.returncode == 0
    missing = "missing 2 of 4: 2048_0.001_0.0 (3 of 8 epochs), 4096_0.001_0.0\n"
    assert f"batchsize: {missing}" in result.stdout
    assert "in no figure, only in results/tables/runs.csv and --explore: mlp 96_0.07_0.1_False_False\n" in result.stdout
    flag = f" --runs_dir {tmp_path / 'runs'} --data_dir '/my pictures'"
    [empty] = re.findall(r"no runs yet: (.*); the report names the command of each\n", result.stdout)
    assert {"CNN", "CNN_shuffled_patches"} < set(empty.split(", ")) and "batchsize" not in empty
    text, drawn = (tmp_path / "REPORT.md").read_text(), {path.name for path in (tmp_path / "pics").iterdir()}
    assert "batchsize_val_acc.png" in drawn
    assert "CNN_val_acc.png" not in drawn
    assert set(re.findall(r"\(pics/(.*?)\)", text)) == drawn
    makers = re.findall(r"Not run yet. `(.*?)`", text)
    assert len(makers) > 8
    assert all(command.endswith(flag) for command in makers)

    views, source = look_at(records)
    assert len(views["batchsize"].curves) == 3
    notebook = Notebook(monkeypatch)
    draw_all({"batchsize": views["batchsize"]}, source, tmp_path / "again")
    assert "missing, 2 of 4: 2048_0.001_0.0 (3 of 8 epochs), 4096_0.001_0.0" in notebook.read()


def test_failed_runs_are_named():
    records = fabricate("mlp", all_settings("MLP_learning_rates"))
    failure = {"reason": "the loss is not finite in epoch 1, step 2"}
    records[-1] = dataclasses.replace(records[-1], rows=[], result=None, failure=failure)
    views, source = look_at(records)
    assert views["MLP_learning_rates"].missing == ["1.0_True (failed: the loss is not finite in "
                                                   "epoch 1, step 2)"]
    assert re.search(r"^\| 1.0 \| 0\.\d+ \| diverges \|$", report.blocks(views, source)["rates"],
                     re.MULTILINE)


def test_rates_that_were_not_run_are_told():
    settings = all_settings("MLP_learning_rates")
    records = fabricate("mlp", [name for name in settings if name != "1024_0.3_0.2_False_False"],
                        level={"1024_0.001_0.2_False_False": 0.4})
    text = report.blocks(*look_at(records))["rates"]
    assert re.search(r"^\| 0.001 \| (0\.4|0\.39)", text, re.MULTILINE)
    assert re.search(r"^\| 0.3 \| Not run yet. \| 0\.\d+ \|$", text, re.MULTILINE)
    assert "CNN: Not run yet." in text


@pytest.mark.filterwarnings("error")
def test_no_heat_map_before_any_setting_is_finished(tmp_path):
    views, source = look_at(fabricate("mlp", all_settings("MLP")[:1], epochs=2, asked=20))
    names = {path.stem for path in draw_all({"MLP": views["MLP"]}, source, tmp_path)}
    assert "MLP_val_acc" in names
    assert "MLP_heatmap" not in names


def texts_of(draw, monkeypatch):
    """Where a figure draws which text: what is seen, not what its axes hold."""
    figure, seen = Figure(figsize=(8.4, 4.8), dpi=100), {}
    canvas, draw_text = FigureCanvasAgg(figure), Text.draw

    def noted(text, renderer):
        if text.get_visible() and text.get_text().strip():
            seen[text] = text.get_window_extent(renderer)
        draw_text(text, renderer)

    draw(figure)
    with monkeypatch.context() as patched:
        patched.setattr(Text, "draw", noted)
        canvas.draw()
    return figure, {text.get_text(): box for text, box in seen.items()}, list(seen.values())


def test_no_text_is_cut_or_under_another(every_run, monkeypatch):
    """In any figure, with names as long as they get and curves that end together."""
    theory = json.loads((every_run / "theory.json").read_text())
    settings = all_settings("CNN_ablation", "dimention", "CNN")
    few = look_at(fabricate("cnn", settings[:1], (0, 1)) + fabricate("cnn", settings[1:]))
    for views, source in (look_at(read_runs(every_run), theory), few):
        for name, draw in catalogue(views, source).items():
            figure, texts, boxes = texts_of(draw, monkeypatch)
            for text, box in texts.items():
                assert (box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1
                        and box.y1 < figure.bbox.y1 + 1), f"{name}: {text} is cut"
            for one, other in itertools.combinations(boxes, 2):
                both = Bbox.intersection(one, other)
                assert both is None or min(both.width, both.height) < 3, f"{name}: {one} {other}"


def test_a_curve_that_ends_early_has_its_label_there(monkeypatch):
    views, source = look_at(fabricate("mlp", all_settings("MLP_ablation"), epochs=20)
                            + fabricate("cnn", all_settings("CNN_ablation"), epochs=50))
    figure, texts, _ = texts_of(catalogue(views, source)["networks"], monkeypatch)
    end = figure.axes[0].transData.transform((20, 0))[0]
    assert end < texts["MLP, training"].x0 < end + 0.1 * figure.bbox.width


def test_labels_are_dark_enough_to_read():
    for colour in [*SCALE, BLUE, ORANGE, SKY, GREEN]:
        assert 1.05 / (ink(colour) ** 2.2 @ (0.2126, 0.7152, 0.0722) + 0.05) >= 4.4, colour


@pytest.mark.parametrize("what", ["folder", "nothing"])
def test_no_runs_at_all(what, tmp_path):
    runs = tmp_path / "runs"
    if what == "folder":
        runs.mkdir()
    result = plot("--runs_dir", runs, "--output", tmp_path / "out")
    assert result.returncode == 2 and "./run_grid.sh all" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_wrong_options():
    for wrong in (["--format", "gif"], ["--collect", "a", "--runs_dir", "b"], ["--nonsense"]):
        result = plot(*wrong)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr


def test_an_ablation_of_two_epochs(tmp_path):
    records = [run for n in ("mlp", "cnn")
               for run in fabricate(n, all_settings(f"{n.upper()}_ablation"), epochs=2)]
    views, source = look_at(records)
    paths = draw_all({name: views[name] for name in ("MLP_ablation", "CNN_ablation")}, source,
                     tmp_path)
    assert {name for name in CURVES if "ablation" in name} <= {path.name for path in paths}
    assert "image folder; 2 epochs, 1 seed" in report.blocks(views, source)["CNN_ablation"]


# What belongs to a study


def test_runs_that_went_on_are_cut():
    """The CNN's grid at 10 epochs, some of it at 50 for another study."""
    grid, longer = all_settings("CNN"), all_settings("dropout")
    views, _ = look_at(fabricate("cnn", [setting for setting in grid if setting not in longer],
                                 epochs=10)
                       + fabricate("cnn", longer, epochs=50))
    assert views["CNN"].epochs == 10 and views["dropout"].epochs == 50
    assert {curve.epochs for curve in views["CNN"].curves.values()} == {10}
    assert views["dropout"].curves["128_0.001_0.2"].values("val_acc").shape == (1, 50)


def test_half_a_study_that_went_on_leaves_none_of_it_missing():
    settings = all_settings("dimention")
    views, _ = look_at(fabricate("cnn", settings[:4], epochs=50) + fabricate("cnn", settings[4:],
                                                                             epochs=10))
    assert views["dimention"].epochs == 10 and not views["dimention"].missing


def test_a_seed_that_is_still_going_waits():
    settings = all_settings("batchsize")
    views, _ = look_at(fabricate("mlp", settings) + fabricate("mlp", settings, (1,), epochs=3,
                                                              asked=8))
    assert views["batchsize"].seeds == [1] and views["batchsize"].epochs == 8


GRIDS = sorted({study.command for study in STUDIES.values()} - {
    f"python theory.py rates --network {network}" for network in ("mlp", "cnn")})


@pytest.mark.parametrize("command", GRIDS)
def test_run_grid_trains_the_runs_of_a_study(command, tmp_path):
    """The same runs, for the same number of epochs."""
    done = subprocess.run([*command.split(), "--dry-run", "--runs_dir", tmp_path],
                          check=True, text=True, cwd=ROOT,
                          capture_output=True, env={**os.environ, "PYTHON": sys.executable})
    lines = [re.fullmatch(r".*/(\w+)/(\S+)  \((\d+) epochs\)", line).groups()
             for line in done.stdout.splitlines()]
    trained = {(network, experiment(Settings.parse(network, name)), epochs) for network, name,
               epochs in lines}
    assert len(trained) == len(lines)
    studies = [study for study in STUDIES.values() if study.command == command]
    assert trained == {(study.network, experiment(Settings.parse(study.network, name)),
                        str(study.epochs))
                       for study in studies for name in study.settings.values()}


SYNTHETIC = {"synthetic": True, "data": {"source": "synthetic", "fingerprint": "11"}}


def test_other_experiments_stay_out():
    settings = all_settings("batchsize")
    views, source = look_at(fabricate("mlp", settings) + fabricate("mlp", settings[:2],
                                                                   **SYNTHETIC))
    assert views["batchsize"].data == "image folder" and views["batchsize"].seeds == [1]
    assert source.notes == ["mlp: 2 synthetic runs on other data or with other options are not in "
                            "the studies"]


def test_synthetic_runs_are_said_to_be(tmp_path, monkeypatch):
    views, source = look_at(fabricate("mlp", all_settings("batchsize"), **SYNTHETIC))
    notebook = Notebook(monkeypatch)
    draw_all({"batchsize": views["batchsize"]}, source, tmp_path)
    assert "generated data, not CIFAR-10" in notebook.read()


def test_the_shared_images_have_their_name():
    data = {"source": "image folder", "fingerprint": "5aa62ecac20e0d82"}
    assert look_at(fabricate("mlp", all_settings("batchsize"),
                             data=data))[1].data["mlp"] == "CIFAR-10, JPEG re-encoded"


def test_another_drop_rate_joins_the_study():
    more = ["128_0.001_0.1_False_False_2d", "64_0.001_0.1_False_False_2d"]
    view = look_at(fabricate("cnn", [*all_settings("dropout"), *more]))[0]["dropout"]
    assert set(view.curves) == {f"128_0.001_{p}" for p in (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)}


def test_collect(every_run, tmp_path):
    """results/ says the same as the runs, in the same bytes whatever the order."""
    assert len(collect(every_run, tmp_path / "a")) == len(read_runs(every_run))
    keys = ("network", "name", "config", "rows", "result", "failure")
    runs, published = ([[getattr(record, key) for key in keys] for record in read()] for read in (
        lambda: read_runs(every_run), lambda: read_results(tmp_path / "a")))
    assert runs == published
    for network in ("mlp", "cnn"):
        shutil.copytree(every_run / network, tmp_path / network / network)
        collect(tmp_path / network, tmp_path / "b")
    shutil.copy(every_run / "theory.json", tmp_path / "mlp" / "theory.json")
    collect(tmp_path / "mlp", tmp_path / "b")
    write(tmp_path / "short", fabricate("mlp", all_settings("batchsize"), epochs=2))
    assert collect(tmp_path / "short", tmp_path / "b") == []
    for name in ("mlp.json", "mlp.csv", "cnn.json", "cnn.csv", "theory.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# The published results are damaged, or changed by others


COLLECT = """
import sys
from pathlib import Path
from report.results import collect
collect(*map(Path, sys.argv[1:]))"""


def published(folder, count=4):
    """Some runs in the place of results/, as `collect` leaves them."""
    write(folder / "runs", fabricate("mlp", all_settings("batchsize")[:count]))
    collect(folder / "runs", folder / "results")
    return folder / "results"


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGE = {
    "a comma": ("mlp.json", '"config":', '"config",'),
    "no config": ("mlp.json", '"config":', '"konfig":'),
    "config is a list": ("mlp.json", '{"config": {', '{"config": [], "more": {'),
    "no data": ("mlp.json", '"data":', '"date":'),
    "fingerprint is a list": ("mlp.json", '"fingerprint": "00"', '"fingerprint": ["00"]'),
    "epochs below 0": ("mlp.json", '"num_epochs": 8', '"num_epochs": -3'),
    "epochs in words": ("mlp.json", '"num_epochs": 8', '"num_epochs": "eight"'),
    "versions is a text": ("mlp.json", '"versions": {"torch": "0"}', '"versions": "0"'),
    "result is a number": ("mlp.json", '"result": {', '"result": 7, "old": {'),
    "result without accuracy": ("mlp.json", '"val_acc":', '"accuracy":'),
    "another result": ("mlp.json", '"epochs": 8', '"epochs": 9'),
    "failure is a text": ("mlp.json", '"failure": null', '"failure": "no"'),
    "no run": ("mlp.json", '{"config"', '7, "x": {"config"'),
    "a word among the rows": ("mlp.csv", ",1.5", ",often"),
    "a column less": ("mlp.csv", "name,epoch,", "name,"),
    "an epoch twice": ("mlp.csv", "seed0,2,", "seed0,1,"),
    "a row of no run": ("mlp.csv", "512_0.001_0.0_False_False_seed0,1,", "x,1,"),
    "bytes": ("mlp.csv", "name,epoch,", "name,\0epoch,"),
    "theory": ("theory.json", "{", "["),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_results_are_refused_and_kept(what, tmp_path):
    results = published(tmp_path)
    write_theory(results / "theory.json", {"mlp": {"bagging": {}}})
    name, old, new = DAMAGE[what]
    change(results / name, old, new)
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    for act in (lambda: collect(tmp_path / "runs", results), lambda: read_source(None, results)):
        if name == "theory.json" and act.__code__.co_names[0] == "collect":
            write_theory(tmp_path / "runs" / "theory.json", {"mlp": {"bagging": {}}})
        with pytest.raises(UserError, match=re.escape(str(results / name.replace("csv", "")))):
            act()
        assert {path.name: path.read_bytes() for path in results.iterdir()} == before


def test_the_command_refuses_damaged_results_in_one_line(tmp_path):
    """As a user meets it: in a copy of the repository, with one comma too many."""
    for name in ("report", "store", "lab", "layers", "results", "plot.py", "REPORT.md",
                 "README.md"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    change(tmp_path / "results" / "mlp.json", '"config":', '"config",:')
    write(tmp_path / "runs", fabricate("mlp", all_settings("batchsize")))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
              and path.suffix != ".pyc"}
    for arguments in ([], ["--collect", "runs"]):
        done = subprocess.run([sys.executable, "plot.py", *arguments], cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode == 2
        assert "mlp.json is damaged" in done.stderr and "git checkout" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in before} == before


def test_two_collect_at_once_lose_nothing(tmp_path):
    """Each of them reads what the other has written."""
    settings = all_settings("MLP")
    parts = [write(tmp_path / str(k), fabricate("mlp", settings[k::4])) for k in range(4)]
    calls = [subprocess.Popen([sys.executable, "-c", COLLECT, part, tmp_path / "results"], cwd=ROOT)
             for part in parts]
    assert [call.wait() for call in calls] == [0] * 4
    assert {record.setting for record in read_results(tmp_path / "results")} == set(settings)
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"mlp.json", "mlp.csv"}


def test_collect_waits_for_the_lock(tmp_path):
    results = published(tmp_path)
    with lock(results / "lock"):
        call = subprocess.Popen([sys.executable, "-c", COLLECT, tmp_path / "runs", results],
                                cwd=ROOT)
        with pytest.raises(subprocess.TimeoutExpired):
            call.wait(1.5)
    assert call.wait() == 0


@pytest.mark.parametrize("epochs", [8, 12])
def test_collect_killed_between_two_files_is_noticed(epochs, tmp_path, monkeypatch):
    """With more runs than before, and with longer ones."""
    results = published(tmp_path, 3)
    write(tmp_path / "more", fabricate("mlp", all_settings("batchsize"), epochs=epochs))
    from report import results as module

    written = []

    def once(path, data, write_file=module.write_file):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_file(path, data)

    monkeypatch.setattr(module, "write_file", once)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "more", results)
    with pytest.raises(UserError, match="mlp.json is damaged at"):
        read_results(results)


def test_the_folder_of_the_data_is_not_published(tmp_path):
    records = fabricate("mlp", all_settings("batchsize"))
    for run in records:
        run.config["data"] = {**run.config["data"], "folder": "/home/me/pictures"}
    collect(write(tmp_path / "runs", records), tmp_path / "results")
    text = (tmp_path / "results" / "mlp.json").read_text()
    assert "fingerprint" in text
    assert "/home/me" not in text


def test_what_a_run_has_lost_is_not_collected(tmp_path, capsys):
    """Else its rows would not give its result, and the published ones were refused."""
    runs = write(tmp_path / "runs", fabricate("mlp", all_settings("batchsize")))
    path = runs / "mlp" / "512_0.001_0.0_False_False_seed0" / "metrics.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:4]))
    assert len(collect(runs, tmp_path / "results")) == 3
    assert "512_0.001_0.0" in capsys.readouterr().err
    assert len(read_results(tmp_path / "results")) == 3


def test_odd_runs_of_ones_own_are_left_out(tmp_path, capsys):
    runs = write(tmp_path / "runs", fabricate("mlp", all_settings("batchsize")))
    for place, (old, new) in zip(sorted((runs / "mlp").iterdir()), (
            ('"num_epochs": 8', '"num_epochs": -3'), ('"00"', '["00"]'), ("{", "")), strict=False):
        change(place / "config.json", old, new)
    assert len(read_runs(runs)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"3 of the runs in {runs} cannot be read and are left out: "
                           f"mlp/1024_0.001")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_runs_of_another_user_are_left_out(capsys):
    with tempfile.TemporaryDirectory() as folder:
        runs = write(Path(folder), fabricate("mlp", all_settings("batchsize")))
        runs.chmod(0o755)
        (runs / "mlp" / "512_0.001_0.0_False_False_seed0").chmod(0o700)
        (runs / "mlp" / "1024_0.001_0.0_False_False_seed0" / "config.json").chmod(0o000)
        os.seteuid(65534)
        try:
            assert len(read_runs(runs)) == 2
        finally:
            os.seteuid(0)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"2 of the runs in {runs} cannot be read and are left out: "
                           f"mlp/1024_0.001")


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e300", "-5"])
def test_a_clock_that_went_wrong(seconds, tmp_path):
    runs = write(tmp_path / "runs", fabricate("mlp", all_settings("batchsize")))
    path = runs / "mlp" / "512_0.001_0.0_False_False_seed0" / "metrics.csv"
    path.write_text(path.read_text().replace(",1.5", f",{seconds}"))
    views, source = look_at(read_runs(runs))
    assert "MLP, 36 s of training: cpu" in report.blocks(views, source)["runs"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_a_report_of_a_run_that_has_just_begun(network, tmp_path):
    setting = next(iter(STUDIES[f"{network.upper()}_ablation"].settings.values()))
    views, source = look_at(fabricate(network, [setting], epochs=1, asked=20))
    draw_all(views, source, tmp_path)
    write_tables(views, findings(views, {}), tmp_path)
    report.blocks(views, source)
    assert any(name.endswith("(1 of 20 epochs)")
               for name in views[f"{network.upper()}_ablation"].missing)


# Findings


def test_t_quantiles():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 10: 2.2281, 30: 2.0423,
             120: 1.9799}
    for freedom, value in table.items():
        assert t_quantile(freedom) == pytest.approx(value, abs=1e-4)
        assert p_value(value, freedom) == pytest.approx(0.05, abs=1e-5)
    assert t_quantile(4, 0.995) == pytest.approx(4.6041, abs=1e-4)
    assert p_value(-2.5, 7.5) == pytest.approx(0.0387, abs=1e-3)  # between those of 7 and 8


def test_holm():
    """The example of Holm's rule: the smallest times 3, the next times 2, none below one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_the_best_of_many_is_flattered():
    """Of n equal means the lowest lies below by the mean of the highest of n normal numbers."""
    assert optimism([0.0] * 10, [1.0] * 10) == pytest.approx(1.539, abs=0.03)
    assert optimism([0.0, 9.0], [0.01, 0.01]) == pytest.approx(0, abs=1e-3)


def curve_of(values, network="mlp", label="x"):
    """A setting whose seeds have these validation accuracies."""
    base = {"mlp": "1024_0.001_0.2_False_False", "cnn": "128_0.001_0.2_False_False_2d"}[network]
    runs = fabricate(network, [base], range(len(values)), epochs=1)
    for run, value in zip(runs, values, strict=True):
        run.rows[0]["val_acc"] = value
    return Curve(label, {run.seed: run for run in runs}, 1)


def pool_of(*curves):
    pool = Pool({})
    pool.curves = dict(enumerate(curves))
    return pool


def test_welch():
    """Two samples of different spread, with Welch's degrees of freedom, worked out by hand."""
    a, b = curve_of([0.1, 0.2, 0.3, 0.4]), curve_of([0.5, 0.52, 0.54])
    found = pool_of().estimate("val_acc", a, b)
    assert found.mean == pytest.approx(-0.27) and not found.pooled
    assert found.mean / found.error == pytest.approx(-0.27 / 0.0043 ** 0.5)
    assert found.freedom == pytest.approx(3.1902, abs=1e-3)


def test_a_difference_of_differences():
    a, b, c, d = (curve_of([x - 0.01, x, x + 0.01]) for x in (0.9, 0.5, 0.4, 0.3))
    found = pool_of().estimate("val_acc", a, b, c, d)
    assert found.mean == pytest.approx((0.9 - 0.5) - (0.4 - 0.3))
    assert found.error == pytest.approx(0.01 * math.sqrt(4 / 3)) and found.freedom == pytest.approx(8)


def test_few_seeds_take_the_pooled_deviation():
    """One seed decides, where others tell the spread; never that of another network."""
    known = [curve_of([0.1, 0.12, 0.14]), curve_of([0.3, 0.32])]
    pool = pool_of(*known, curve_of([0.1, 0.9], "cnn"))
    found = pool.estimate("val_acc", curve_of([0.5]), curve_of([0.2]))
    deviation = math.sqrt((2 * 0.02 ** 2 + 0.0002) / 3)
    assert found.pooled and 2 < found.freedom < 3 and found.n == "1*"
    assert found.error == pytest.approx(deviation * math.sqrt(2))
    assert Finding(1, "", [Check("x", found)]).verdict == HOLDS
    alone = pool_of().estimate("val_acc", curve_of([0.5]), curve_of([0.2]))
    assert math.isnan(alone.error)
    finding = Finding(1, "", [Check("x", alone)])
    assert finding.verdict == UNDECIDED and finding.reason == "no setting has a second seed"


@pytest.mark.parametrize("rho", [0, 0.3, 0.7])
def test_settings_that_vary_alike_tell_less(rho):
    """A variance with f degrees of freedom has itself the variance 2 sigma^4 / f."""
    random, k = np.random.RandomState(0), 30
    draws = (math.sqrt(rho) * random.standard_normal((2000, 1, 3))
             + math.sqrt(1 - rho) * random.standard_normal((2000, k, 3)))
    found = [pooled([dict(enumerate(numbers)) for numbers in draw]) for draw in draws]
    variances, freedoms = np.array([(deviation ** 2, freedom) for deviation, freedom in found]).T
    assert variances.mean() == pytest.approx(1, rel=0.05)
    assert np.median(freedoms) == pytest.approx(2 / variances.var(), rel=0.45)
    assert pooled([]) == (pytest.approx(math.nan, nan_ok=True), 0)


def test_the_report_says_which_verdicts_depend_on_the_deviation():
    """Three seeds decide nothing by their own wide spread; many quiet settings beside them do."""
    noise = {"1024_0.001_0.2_False_False": 0.05}
    records = fabricate("mlp", all_settings("MLP", "MLP_ablation"), (0, 1, 2), epochs=20)
    for run in records:
        for row in run.rows:
            row["val_acc"] += noise.get(run.setting, 0) * (run.seed - 1) + 0.03 * (run.setting in noise)
    views, source = look_at(records)
    own, same = (findings(views, {}, few=few)[6].verdict for few in (3, math.inf))
    assert (own, same) == (UNDECIDED, FAILS)
    assert "otherwise: " in report.blocks(views, source)["findings"]


def estimate_of(low, high):
    """An estimate whose 95 % interval is this."""
    return Estimate((low + high) / 2, (high - low) / 2 / t_quantile(8), 8, (5, 5))


@pytest.mark.parametrize("low, high, bounds, verdict", [
    (0.1, 0.2, POSITIVE, HOLDS), (-0.2, -0.1, POSITIVE, FAILS), (-0.1, 0.1, POSITIVE, UNDECIDED),
    (-0.005, 0.005, SAME, HOLDS), (0.005, 0.02, SAME, UNDECIDED), (0.02, 0.03, SAME, FAILS),
    (-0.03, -0.02, SAME, FAILS),
    (-0.005, 0.3, AT_LEAST_SAME, HOLDS), (-0.3, -0.02, AT_LEAST_SAME, FAILS)])
def test_verdict_of_an_interval(low, high, bounds, verdict):
    def decide(obstacle=""):
        return Finding(1, "", [Check("x", estimate_of(low, high), bounds, obstacle)]).verdict

    assert decide() == verdict
    assert decide("an obstacle") == UNDECIDED


def test_many_numbers_need_more():
    """An interval that just excludes 0 decides alone, and not as the least of many."""
    check = Check("x", estimate_of(0.001, 0.1))
    assert Finding(1, "", [check]).verdict == HOLDS
    assert Finding(1, "", [Check(f"y{i}", estimate_of(0.001, 0.1))
                           for i in range(5)]).verdict == UNDECIDED
    rival = check._replace(family=59)
    assert Finding(1, "", [rival]).verdict == UNDECIDED
    assert re.match(r"about \d+ seeds of each would decide", Finding(1, "", [rival]).reason)


def find(records):
    return {finding.number: finding for finding in findings(look_at(records)[0], {})}


def test_findings_hold():
    """A world in which the older report is right on most claims."""
    mlp = {s: 0.5 - 0.1 * abs(float(s.split("_")[2]) - 0.2) - 0.02
           * (not s.startswith("1024_0.001"))
           for s in all_settings("MLP")} | {"1024_0.001_0.0_False_False": 0.4925,
                                            "1024_0.001_0.2_True_False": 0.45}
    cnn = {s: 0.7 - 0.1 * abs(float(s.split("_")[2]) - 0.2) - 0.02 * (not s.startswith("128_0.001"))
           - 0.02 * s.endswith("1d") for s in all_settings("CNN", "dimention")}
    cnn |= {"128_0.001_0.0_False_False_2d": 0.65, "128_0.001_0.2_True_False_2d": 0.6}
    seeds = (0, 1, 2, 3)
    found = find(fabricate("mlp", all_settings("MLP", "MLP_ablation"), seeds, epochs=20, level=mlp)
                 + fabricate("cnn", all_settings("CNN", "CNN_ablation", "dimention"), seeds,
                             epochs=50, level=cnn))
    right = (1, 2, 3, 7, 9, 12, 14)
    assert {number: found[number].verdict for number in right} == dict.fromkeys(right, HOLDS)
    assert found[8].verdict == FAILS  # what leaves the MLP as it was is not needed
    assert found[5].verdict == FAILS  # nothing overfits in there
    assert found[10].verdict == FAILS  # nor is the training accuracy better without normalization
    assert {check.estimate.seeds for finding in found.values() for check in finding.checks
            if isinstance(check, Check) and check.estimate} == {(4, 4), (4,)}


def test_a_short_grid_does_not_say_what_is_best():
    found = find(fabricate("mlp", all_settings("MLP"), (0, 1, 2),
                           level={"1024_0.001_0.2_False_False": 0.6}))
    assert found[1].verdict == UNDECIDED and found[1].reason == "8 of 20 epochs"


def test_findings_on_falling_accuracy():
    falling = {s: 0.5 - 0.1 * float(s.split("_")[2]) for n in ("MLP", "dropout")
               for s in all_settings(n)}
    found = find(fabricate("mlp", all_settings("MLP"), (0, 1, 2), level=falling)
                 + fabricate("cnn", all_settings("dropout"), (0, 1, 2), level=falling))
    assert found[13].verdict == HOLDS and found[14].verdict == FAILS


def test_best_epoch_last_epoch_and_test_stand_beside_the_last_quarter():
    """A network that falls at its end: its last epoch says so, its best one does not."""
    dropped, falling = "1024_0.001_0.2_False_False", "1024_0.001_0.0_False_False"
    records = fabricate("mlp", all_settings("MLP_ablation"), (0, 1, 2), epochs=20)
    for run in records:
        if run.setting == falling:
            run.rows[-1]["val_acc"] -= 0.1
    assert {dropped, falling} <= {run.setting for run in records}
    [row] = finding_rows(find(records)[7])
    shown = dict(zip(HEADER, row, strict=True))
    assert shown["by the last epoch"].mean > 0.09 > 0.02 > abs(shown["by the best epoch"].mean)
    assert abs(shown["on the test images"].mean) < 0.02
    # a fifth of the last five epochs
    assert 0.015 < float(shown["difference [95 %]"].split()[0]) < 0.025


def test_findings_on_overfitting():
    """Some overfit: the CNN alone is enough. And the plateau is counted over settings."""
    records = fabricate("mlp", all_settings("MLP_ablation"), (0, 1, 2), epochs=20)
    overfitting = fabricate("cnn", all_settings("CNN_ablation"), (0, 1, 2), epochs=50)
    for run in overfitting:
        for row in run.rows[4:]:
            row["val_loss"] += 0.2 * (row["epoch"] - 4)
    found = find(records + overfitting)
    assert found[5].verdict == HOLDS
    mlp, cnn = found[4].checks
    assert (cnn.yes, cnn.of, cnn.outcome) == (4, 4, HOLDS) and mlp.of == 4


def test_findings_do_not_hold():
    better = {"512_0.001_0.0_False_False": 0.6, "1024_0.001_0.0_False_False": 0.56,
              "1024_0.001_0.2_True_False": 0.6}
    found = find(fabricate("mlp", all_settings("MLP", "MLP_ablation"), (0, 1, 2), epochs=20, level=better))
    assert {n: found[n].verdict for n in (1, 7, 9, 15)} == dict.fromkeys((1, 7, 9, 15), FAILS)
    assert found[1].checks[0].what == "lowest validation loss, 512_0.001_0.0 − 1024_0.001_0.2"


def test_findings_are_undecided():
    found = find(fabricate("mlp", all_settings("MLP")[:-1], (0, 1, 2),
                           level={"1024_0.001_0.2_False_False": 0.6}))
    assert found[1].verdict == UNDECIDED and found[1].reason == "1 of 60 settings missing"
    assert found[2].verdict == UNDECIDED and found[2].reason == "not run yet"
    one = find(fabricate("cnn", all_settings("CNN_ablation", "dimention")))
    assert one[12].verdict == UNDECIDED and one[12].reason == "no setting has a second seed"


def test_a_better_rival_refutes_whatever_is_missing():
    found = find(fabricate("mlp", all_settings("MLP")[:-1], (0, 1, 2), epochs=20,
                           level={"512_0.001_0.0_False_False": 0.6}))
    assert found[1].verdict == FAILS


def test_different_data_is_no_comparison():
    found = find(fabricate("mlp", all_settings("MLP_ablation"), (0, 1, 2))
                 + fabricate("cnn", all_settings("CNN_ablation"), (0, 1, 2),
                             data={"source": "x", "fingerprint": "22"},
                             level={"128_0.001_0.2_False_False_2d": 0.7}))
    assert found[3].reason == "the two were trained on different data"


# Which code made a run


CODE = {"code": {"commit": "0" * 40, "dirty": False, "hash": "aaaa"}}


def test_runs_that_tell_their_code_take_the_place_of_others():
    """Three seeds do, or as many as there were; a first one joins them, and is told."""
    settings = all_settings("batchsize")
    old = fabricate("mlp", settings[:3], (0, 1, 2, 3)) + fabricate("mlp", settings[3:])
    new = fabricate("mlp", settings[:1], (4, 5, 6), **CODE) + fabricate("mlp", settings[1:], (7,),
                                                                        **CODE)
    views, _ = look_at(old + new)
    seeds = {curve.label.split("_")[0]: list(curve.runs)
             for curve in views["batchsize"].curves.values()}
    assert seeds == {"512": [4, 5, 6], "1024": [0, 1, 2, 3, 7], "2048": [0, 1, 2, 3, 7],
                     "4096": [7]}
    assert views["batchsize"].origin.startswith("6 runs of code aaaa, 8 runs whose code was not")


def test_several_versions_are_told(tmp_path, monkeypatch):
    settings = all_settings("batchsize")
    mixed = fabricate("mlp", settings[:1], **CODE) + fabricate("mlp", settings[1:])
    views, source = look_at(mixed)
    assert views["batchsize"].origin == (
        "1 run of code aaaa, 3 runs whose code was not recorded; 1 processor")
    assert "; MLP, batch size; " in report.blocks(views, source)["runs"]
    notebook = Notebook(monkeypatch)
    draw_all({"batchsize": views["batchsize"]}, source, tmp_path)
    assert "code aaaa" in notebook.read()
    one, _ = look_at(fabricate("mlp", settings, **CODE))
    assert one["batchsize"].is_of_one


def test_settings_that_are_one_network_are_one():
    """Trained under any of its names, it stands in both places."""
    names = ["128_0.001_0.0_False_False_2d", "128_0.001_0.0_False_False_1d",
             "128_0.001_0.2_False_True_2d"]
    for name in names:
        views, _ = look_at(fabricate("cnn", [name]))
        assert set(views["dimention"].curves) == {"128_0.001_0.0_1d", "128_0.001_0.0_2d"}
        assert set(views["CNN_ablation"].curves) == {"128_0.001_0.2_False_True"}
    assert len({experiment(Settings.parse("cnn", name)) for name in names}) == 1
    other = experiment(Settings.parse("cnn", "128_0.001_0.0_True_False_2d"))
    assert other != experiment(Settings.parse("cnn", names[0]))


def test_training_and_validation_accuracy_of_one_row_are_of_one_epoch():
    rows = [{"epoch": e, "seconds": 1,
             **{f"{s}_{q}": e + 100 * i for i, (s, q) in enumerate(itertools.product(
        ("train", "val", "test"), ("acc", "loss")))}} for e in (1, 2, 3, 4, 5, 6, 7, 8)]
    rows[4]["val_acc"] = 1000
    numbers = summary(rows)
    assert (numbers["best_epoch"], numbers["train_acc"], numbers["last_train_acc"]) == (5, 5, 8)
    assert (numbers["quarter_train_acc"], numbers["quarter_val_acc"]) == (7.5, 207.5)


def test_arguments_are_answered():
    """Capacity: dropout gains with 1600 units and loses with 50, and the table says so."""
    level = {name: 0.5 + (0.05 if "1600" in name else -0.05) * (float(name.split("_")[2]) == 0.4)
             + 0.05 * float(name.split("_")[2]) for name in all_settings("capacity")}
    views, source = look_at(fabricate("mlp", all_settings("capacity"), (0, 1, 2), epochs=20,
                                      level=level))
    text = report.blocks(views, source)["capacity"]
    [row] = [line for line in text.splitlines() if line.startswith("| 1600 |")]
    assert "| 0.4 | 50.0 | +" in row
    [row] = [line for line in text.splitlines() if line.startswith("| 50 |")]
    assert "| 0.4 |" not in row
    assert "- The gain rises with the hidden layer: **holds**: gain at 1600 − at 50 +" in text


def argument(name, seeds, level=None, epochs=20):
    """An argument's section when each setting has so many seeds."""
    networks = {"mlp": all_settings(*(n for n in ARGUMENTS if n.endswith(name) and n[:3] != "CNN")),
                "cnn": all_settings("CNN_shuffled_patches") if "patches" in name else []}
    views, source = look_at([run for network, settings in networks.items() for run in fabricate(
        network, settings, range(seeds), epochs=epochs, level=level)])
    return report.blocks(views, source)[name]


@pytest.mark.parametrize("name", ["capacity", "data_size", "weight_decay", "batch_norm",
                                  "shuffled_patches"])
@pytest.mark.parametrize("seeds", [0, 1, 2, 3, 5])
def test_an_argument_says_what_its_seeds_allow(name, seeds):
    text = argument(name, seeds)
    verdicts = re.findall(r"^- .*?: \*\*(.*?)\*\*", text, re.MULTILINE)
    if not seeds:
        assert text.endswith("makes the runs.") and not verdicts
        return
    assert len(verdicts) >= 1 and set(verdicts) <= {HOLDS, FAILS, UNDECIDED}
    assert ("No setting of this length has a second seed" in text) == (seeds == 1)
    assert ("take the pooled deviation" in text) == (seeds == 2)
    assert ("[" in text.replace("![", "")) == (seeds > 1)  # an interval
    if seeds == 1:
        assert set(verdicts) == {UNDECIDED} and "(no setting has a second seed)" in text


def test_arguments_are_decided_by_their_numbers():
    """Each of these worlds gives another verdict than its opposite."""
    def level(of):
        return {name: 0.5 + of(Settings.parse("mlp", name)) for n in ARGUMENTS if n[:3] != "CNN"
                for name in all_settings(n)}

    def verdict(name, of):
        return re.search(r"^- .*?: \*\*(.*?)\*\*", argument(name, 3, level(of)),
                         re.MULTILINE)[1]

    worlds = {
        "capacity": lambda run: 0.1 * run.drop_rate * (run.hidden_size == 1600),
        "data_size": lambda run: 0.1 * run.drop_rate * (run.train_images == 5000),
        "weight_decay": lambda run: 0.1 * (run.drop_rate == 0.2),
        "batch_norm": lambda run: -0.1 * run.without_BatchNorm * (run.batch_size == 4096),
        "shuffled_patches": lambda run: 0}
    opposite = {
        "capacity": lambda run: 0.1 * run.drop_rate * (run.hidden_size == 50),
        "data_size": lambda run: 0.1 * run.drop_rate * (run.train_images is None),
        "weight_decay": lambda run: 0.1 * (run.weight_decay == 0.1),
        "batch_norm": lambda run: -0.1 * run.without_BatchNorm * (run.batch_size == 16),
        "shuffled_patches": lambda run: -0.1 * (run.shuffled_patches == 1)}
    end = argument("weight_decay", 3, level(lambda run: 0.1 * (run.drop_rate == 0.6)))
    assert "**undecided** (a best setting lies at the end of its range)" in end
    for name in opposite:
        assert (verdict(name, worlds[name]), verdict(name, opposite[name])) == (HOLDS, FAILS), name


def test_patches_of_unlike_lengths_are_no_comparison():
    records = (fabricate("mlp", all_settings("MLP_shuffled_patches"), (0, 1, 2), epochs=10)
               + fabricate("cnn", all_settings("CNN_shuffled_patches"), (0, 1, 2), epochs=50))
    text = report.blocks(*look_at(records))["shuffled_patches"]
    assert "the MLP was trained for 10 epochs, the CNN for 50)" in text
    assert re.search(r"^\| 32 \| [\d.]+ \| [\d.]+ \| – \|$", text, re.MULTILINE)


def test_larger_batches_are_timed_by_the_bench():
    """By rounds in turns: what every round shows holds, whatever the machine's drift."""
    views, source = look_at(fabricate("mlp", all_settings("batchsize")))
    assert "not measured yet; `python bench/batch_sizes.py`" in report.blocks(views, source)[
        "batchsize"]
    drift = np.array([1, 1.5, 2, 1.2])

    def claim(second):
        seconds = {"512": list(drift), "1024": list(drift * second)}
        source.theory = {network: {"epoch_seconds": {"machine": "a machine", "seconds": seconds}}
                         for network in ("mlp", "cnn")}
        [found] = [each for each in findings(views, source.theory) if "Larger" in each.claim]
        return found

    assert claim([0.8, 0.81, 0.79, 0.8]).verdict == HOLDS
    assert claim([1.1, 1.12, 1.1, 1.11]).verdict == FAILS
    unclear = claim([0.9, 1.2, 0.8, 1.0])
    assert unclear.verdict == UNDECIDED and "rounds of the bench" in unclear.reason
    assert "| MLP | 512 | 1.35 (1.15–1.62) | 4 |" in report.blocks(views, source)["batchsize"]


def test_the_sizes_of_the_networks_need_no_trained_one():
    for name, network, x in (("mlp", MLP(), torch.zeros(1, 3072)), ("cnn", CNN(), torch.zeros(1, 3, 32, 32))):
        counts = []  # each weight of a convolution or linear layer counts once for each place
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(lambda module, _, y, counts=counts: counts.append(
                    module.weight.numel() * (y[0, 0].numel() if y.dim() == 4 else 1)))
        network.eval()(x)
        assert SIZES[name] == (sum(each.numel() for each in network.parameters()), sum(counts))
    multiplications = 28 ** 2 * 128 * 3 * 25 + 12 ** 2 * 64 * 128 * 9 + 2304 * 10
    views, source = look_at(fabricate("mlp", all_settings("batchsize")))
    text = report.blocks(views, source)["shifts"]
    assert f"| CNN | 106,954 | {multiplications:,} | Not run yet. |" in text


def test_bench_of_batch_sizes_writes_what_the_report_reads(tmp_path):
    output = tmp_path / "theory.json"
    result = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "batch_sizes.py"), "--rounds", "1", "--images", "32",
         "--output", str(output)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    views, source = look_at(fabricate("mlp", all_settings("batchsize")),
                            json.loads(output.read_text()))
    text = report.blocks(views, source)["batchsize"]
    assert len(re.findall(r"^\| (MLP|CNN) \| \d+ \| [\d.]+ ", text, re.MULTILINE)) == 8


# The report


def test_report_is_what_the_published_runs_say():
    """REPORT.md, README.md and results/tables/ are what plot.py writes from results/."""
    source = read_source(None)
    views = {name: View(study, source) for name, study in STUDIES.items()}
    parts = report.blocks(views, source)
    for name in ("REPORT.md", "README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert report.fill(text, parts) == text, f"{name} is out of date: run python plot.py"
    used = set(re.findall(r"<!-- ([\w.]+) -->", (ROOT / "REPORT.md").read_text(encoding="utf-8")))
    assert used == parts.keys() - {"results"}


def test_published_tables(tmp_path):
    source = read_source(None)
    views = {name: View(study, source) for name, study in STUDIES.items()}
    for path in write_tables(views, findings(views, source.theory), tmp_path):
        published = ROOT / "results" / "tables" / path.name
        same = path.read_bytes() == published.read_bytes()
        assert same, f"{path.name} is out of date: run python plot.py"


def test_pictures_of_the_report_exist():
    for path in re.findall(r"\]\((pics/[^)]+)\)", (ROOT / "REPORT.md").read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


def test_published_results_agree_with_their_metrics():
    for record in read_results():
        if record.result:
            best = max(record.rows, key=lambda row: row["val_acc"])
            assert record.result["epochs"] == len(record.rows), record.name
            assert {key: record.result[key] for key in ("val_acc", "test_acc", "test_loss")} == {
                key: best[key] for key in ("val_acc", "test_acc", "test_loss")}, record.name


def test_a_changed_number_shows():
    records = fabricate("mlp", all_settings("MLP"))
    text = "<!-- summary -->\n<!-- /summary -->"
    before = report.fill(text, report.blocks(*look_at(records)))
    for record in records:
        for row in record.rows:
            row["test_acc"] += 0.0001
    assert report.fill(text, report.blocks(*look_at(records))) != before


def test_code_is_quoted_as_it_is():
    quoted = report.quote("layers/modules.py", "Dropout.forward")
    assert "self.mask_shape(" in quoted
    line = int(re.search(r"line (\d+)", quoted)[1])
    lines = (ROOT / "layers/modules.py").read_text().splitlines()
    assert lines[line - 1].strip().startswith("def forward(self, ")


# theory.py


def test_bagging_is_an_identity_on_the_same_images():
    import torch

    from load_data import Data, Split
    from mlp.model import MLP
    from report.theory import bagging

    torch.manual_seed(0)
    split = Split(torch.randint(0, 256, (60, 3072), dtype=torch.uint8), torch.arange(60) % 10)
    with torch.inference_mode():
        result = bagging([MLP(drop_rate=0.5).eval() for _ in range(3)],
                         Data(split, split, split, range(10), "", ""))
    assert result["measured"] == pytest.approx(result["predicted"], rel=1e-5)
    assert result["measured"] == sorted(result["measured"], reverse=True)
    assert result["measured"][-1] > result["covariance"]
    assert result["masked"][0] > result["masked"][-1]


def test_theory_of_tiny_networks(image_folder, tmp_path):
    """From three seeds that main.py trained to theory.json, its figures and the report."""
    place = ["--data_dir", image_folder, "--runs_dir", tmp_path, "--device", "cpu"]
    run = run_main("mlp", "--batch_size", 24, "--num_epochs", 1, "--seed", 0, 1, 2, *place)
    assert run.returncode == 0, run.stderr
    for path in list((tmp_path / "mlp").iterdir()):
        path.rename(path.with_name(path.name.replace("24_", "1024_",
                                                     1)))  # the setting that theory.py looks at
    command = [sys.executable, str(ROOT / "theory.py"), "bagging", "statistics", "shifts",
               "--network", "mlp", *map(str, place)]
    result = subprocess.run(command, capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    measured = json.loads((tmp_path / "theory.json").read_text())["mlp"]
    bagging, statistics = measured["bagging"], measured["statistics"]
    assert len(bagging["runs"]) == 3
    v, c = bagging["variance"], bagging["covariance"]
    assert bagging["predicted"] == pytest.approx([v, v / 2 + c / 2, v / 3 + 2 * c / 3], abs=2e-6)
    assert bagging["measured"] == sorted(bagging["measured"], reverse=True)
    assert statistics["batch_sizes"] == [16, 32] and 0 < statistics["running_accuracy"] <= 1
    # 16 of 240 without replacement
    assert statistics["mean"][0] == pytest.approx(statistics["mean_theory"] / 4
                                                  * (224 / 239) ** 0.5, rel=0.1)
    views, source = look_at(read_runs(tmp_path), {"mlp": measured})
    draw_all({"MLP": views["MLP"]}, source, tmp_path / "pics")
    parts = report.blocks(views, source)
    assert f"v = {v:.5f}" in parts["bagging"]
    assert np.shape(measured["shifts"]["accuracy"]) == (3, 9)
    assert "| MLP | 308,510 | 308,200 | 3 (epochs: 1) | " in parts["shifts"]
