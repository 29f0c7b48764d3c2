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
from types import SimpleNamespace

import numpy as np
import pandas as pd
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
from report import measured
from report.claims import CLAIMS
from report.drawing import BLUE, GREEN, ORANGE, SCALE, SKY, ink
from report.evidence import (
    BEST,
    FAILS,
    HOLDS,
    LAST,
    POSITIVE,
    QUARTER,
    SAME,
    TEST,
    UNDECIDED,
    Claim,
    Evidence,
    Finding,
    Number,
)
from report.figures import catalogue, draw_all
from report.frame import Source, experiment, read_source, summaries
from report.measured import SIZES
from report.results import collect, read_arrays, read_results, read_runs, read_theory, write_theory
from report.statistics import Estimate, Pool, holm, optimism, p_value, pooled, t_quantile
from report.sweeps import TABLES, differences, rates_table
from report.tables import write_tables
from report.text import Report, fill
from store.files import UserError, lock
from store.run import COLUMNS, RESULT, Run, RunFolder
from store.settings import Settings
from studies import STUDIES

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
        best = max(rows, key=lambda row: row["val_acc"])
        result = {"epochs": epochs, **{key: best.get(key) for key in RESULT if key in best},
                  "best_epoch": best["epoch"], "seconds": 9.0} if asked in (None, epochs) else None
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


BY_FIGURES = {study.figures: study for study in STUDIES}


def all_settings(*names):
    """What a study trains: of settings that are one network one."""
    return list(dict.fromkeys(experiment(settings) for name in names
                              for settings in BY_FIGURES[name].settings.values()))


@pytest.fixture(scope="module")
def every_run(tmp_path_factory):
    """Every run of every study, the MLP's with three seeds, and what theory.py measures."""
    folder = tmp_path_factory.mktemp("runs")
    spread = {}
    for study in STUDIES:
        for settings in study.settings.values():
            name = experiment(settings)
            spread[name] = 0.5 - 0.1 * abs(settings.drop_rate - 0.2) - 0.01 * (
                zlib.crc32(name.encode()) % 100) / 99 + 0.02 * (settings.learning_rate == 0.001)
    thrice = all_settings("MLP", "MLP_ablation", "MLP_learning_rates")
    write(folder, fabricate("mlp", thrice, (0, 1, 2), level=spread))
    others = {name for study in STUDIES if study.network == "mlp"
              for name in all_settings(study.figures)}
    write(folder, fabricate("mlp", sorted(others - set(thrice)), level=spread))
    cnn = {name for study in STUDIES if study.network == "cnn"
           for name in all_settings(study.figures)}
    write(folder, fabricate("cnn", sorted(cnn), level={n: 0.2 + spread[n] for n in cnn}))
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
        "order": {**common, "networks": [
            {"dropout_type": kind, "pool_first": first, "drop_rate": p, "inflation": 1.2,
             "running_accuracy": 0.5, "retaken_accuracy": 0.6, "masked_accuracy": 0.4}
            for kind in ("1d", "2d") for first in (False, True) for p in (0.2, 0.4)]}}})
    return folder


def look_at(records, theory=None):
    return Evidence(Source(records, theory))


def decide(evidence):
    return [Finding(claim, evidence) for claim in CLAIMS]


def report_of(evidence, drawn=frozenset()):
    return Report(evidence, decide(evidence), set(drawn))


def draw(evidence, folder, *names):
    """Some of the figures; returns the names of those that were drawn."""
    names = [name for name in catalogue(evidence, []) if name.startswith(names)]
    return {path.stem for path in draw_all(evidence, decide(evidence), folder, only=names)}


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
    pictures = {path.stem: path for path in (output / "pics").glob("*.png")}
    assert len(CURVES) == 32
    topics = ("heatmap", "bagging", "statistics", "learning_rates")
    extra = {f"{network}_{topic}" for network in ("MLP", "CNN") for topic in topics}
    overview = {"claims", "variance", "networks", "dropout_types", "capacity", "weight_decay",
                "data_size", "batch_norm", "shuffled_patches", "CNN_confusion", "CNN_order",
                "older", "depth", "pooling", "noise", "decayed_dropout"}
    assert pictures.keys() == {*(name[:-4] for name in CURVES), *extra, *overview}
    for path in pictures.values():
        assert path.stat().st_size <= 200_000 and size_of(path)[0] >= 1000, path
    assert "missing" not in text and "no runs yet" not in text
    assert 5 < (output / "REPORT.md").read_text().count("![") <= 16
    page = (output / "pics" / "README.md").read_text()
    assert set(pictures) == set(re.findall(r"\]\((\w+)\.png\)", page))


def test_tables(drawn, every_run):
    folder = drawn[0] / "results" / "tables"
    for name in ("MLP", "CNN", "dropout", "findings", "runs"):
        assert (folder / f"{name}.md").read_text().startswith("| ")
    rows = read_csv(folder / "MLP.csv")
    assert len(rows) == 60
    losses = [float(row["val_loss"]) for row in rows]
    assert losses == sorted(losses)
    names = [f"{rows[0]['setting']}_False_False_seed{seed}" for seed in range(3)]
    runs = [RunFolder(every_run / "mlp" / name).metrics() for name in names]
    for key in ("test_acc", "test_loss", "val_acc"):
        best = [max(run, key=lambda row: row["val_acc"])[key] for run in runs]
        assert float(rows[0][key]) == pytest.approx(np.mean(best), rel=1e-5)
        assert float(rows[0][f"{key}_sd"]) == pytest.approx(np.std(best, ddof=1), rel=1e-4)


def test_drawing_again_gives_the_same_bytes(drawn, every_run, tmp_path):
    evidence = Evidence(read_source(every_run))
    for name in draw(evidence, tmp_path, "MLP_val_acc", "dimention_val", "MLP_learning_rates"):
        again = (tmp_path / f"{name}.png").read_bytes()
        assert again == (drawn[0] / "pics" / f"{name}.png").read_bytes(), name


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_other_formats(kind, tmp_path):
    write(tmp_path / "runs", fabricate("mlp", all_settings("batchsize")))
    assert plot("--runs_dir", tmp_path / "runs", "--format", kind, "--output",
                tmp_path).returncode == 0
    pictures = list((tmp_path / "pics").glob(f"*.{kind}"))
    expected = {f"{name[:-4]}.{kind}" for name in CURVES if name.startswith("batchsize")}
    assert expected <= {path.name for path in pictures}
    assert all(path.read_bytes()[:4] in (b"<?xm", b"%PDF") for path in pictures)
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", (tmp_path / "REPORT.md").read_text())
    own = ("results/plan.md", "pics/README.md")  # of the repository; written beside
    assert len(links) >= 10 and all((tmp_path / link).exists() for link in links if link not in own)


STRANGE = {"dark": "figure.facecolor: black\ntext.color: white", "usetex": "text.usetex: True",
           "large": "font.size: 20", "backend": "backend: TkAgg"}


def test_a_matplotlibrc_or_backend_of_the_user_changes_no_figure(tmp_path):
    """matplotlib reads the file of the working directory when it is loaded."""
    runs = write(tmp_path / "runs", fabricate("mlp", all_settings("batchsize")[:2]))
    pictures = set()
    for name, text in {"plain": "", **STRANGE}.items():
        place = tmp_path / name
        place.mkdir()
        (place / "matplotlibrc").write_text(text)
        code = ("import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
                "from report.figures import draw_all\nfrom report.evidence import Evidence\n"
                "from report.frame import read_source\n"
                "draw_all(Evidence(read_source(Path(sys.argv[2]))), [], Path('out'), "
                "only=('batchsize_val_acc',))")
        done = subprocess.run([sys.executable, "-c", code, str(ROOT), str(runs)], cwd=place,
                              env={**os.environ, "MPLBACKEND": "module://not_here"},
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pictures.add((place / "out" / "batchsize_val_acc.png").read_bytes())
    assert len(pictures) == 1


class Notebook:
    """Takes the place of a Figure's text, to be read."""

    def __init__(self, monkeypatch):
        self.lines = []
        monkeypatch.setattr(Figure, "text", lambda figure, x, y, text,
                            **options: self.lines.append(text))

    def read(self):
        return "\n".join(self.lines)


def test_missing_runs_are_named(tmp_path, monkeypatch):
    settings = all_settings("batchsize")
    records = fabricate("mlp", settings[:2]) + fabricate("mlp", settings[2:3], epochs=3, asked=8)
    records += fabricate("mlp", ["96_0.07_0.1_False_False"])
    for run in records:
        run.config["data"]["folder"] = "/my pictures"
    write(tmp_path / "runs", records)
    result = plot("--runs_dir", tmp_path / "runs", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    missing = "missing 2 of 4: 2048_0.001_0.0 (3 of 8 epochs), 4096_0.001_0.0"
    assert f"batchsize: {missing}\n" in result.stdout
    assert ("in no figure, only in results/tables/runs.csv and --explore: mlp "
            "96_0.07_0.1_False_False\n") in result.stdout
    flag = f" --runs_dir {tmp_path / 'runs'} --data_dir '/my pictures'"
    [empty] = re.findall(r"no runs yet: (.*); the report names", result.stdout)
    assert {"CNN", "CNN_shuffled_patches"} < set(empty.split(", ")) and "batchsize" not in empty
    drawn = {path.name for path in (tmp_path / "pics").glob("*.png")}
    assert "batchsize_val_acc.png" in drawn and "CNN_val_acc.png" not in drawn
    text = (tmp_path / "REPORT.md").read_text()
    assert set(re.findall(r"!\[.*?\]\(pics/(.*?)\)", text)) <= drawn
    makers = re.findall(r"Not run yet. `(.*?)`", text)
    assert len(makers) > 8 and all(command.endswith(flag) for command in makers)
    notebook = Notebook(monkeypatch)
    draw(look_at(records), tmp_path / "again", "batchsize_val_acc")
    assert missing.replace("missing", "missing,") in notebook.read()


def test_failed_and_missing_rates_are_told():
    records = fabricate("mlp", [name for name in all_settings("MLP_learning_rates")
                                if name != "1024_0.3_0.2_False_False"],
                        level={"1024_0.001_0.2_False_False": 0.4})
    records[-1] = dataclasses.replace(records[-1], rows=[], result=None, failure={
        "reason": "the loss is not finite in epoch 1, step 2"})
    view = look_at(records).views["MLP_learning_rates"]
    assert "1.0_True (failed: the loss is not finite in epoch 1, step 2)" in view.missing
    text = rates_table(view)
    assert re.search(r"^\| 1.0 \| 0\.\d+ \| diverges \|$", text, re.MULTILINE)
    assert re.search(r"^\| 0.001 \| (0\.4|0\.39)", text, re.MULTILINE)
    assert re.search(r"^\| 0.3 \| Not run yet. \| 0\.\d+ \|$", text, re.MULTILINE)


@pytest.mark.filterwarnings("error")
def test_no_heat_map_before_any_setting_is_finished(tmp_path):
    evidence = look_at(fabricate("mlp", all_settings("MLP")[:1], epochs=2, asked=20))
    names = draw(evidence, tmp_path, "MLP_val", "MLP_heatmap")
    assert "MLP_val_acc" in names and "MLP_heatmap" not in names


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
    settings = all_settings("CNN_ablation", "dimention", "CNN")
    few = look_at(fabricate("cnn", settings[:1], (0, 1)) + fabricate("cnn", settings[1:]))
    for evidence in (Evidence(read_source(every_run)), few):
        for name, drawing in catalogue(evidence, decide(evidence)).items():
            figure, texts, boxes = texts_of(drawing, monkeypatch)
            for text, box in texts.items():
                assert (box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1
                        and box.y1 < figure.bbox.y1 + 1), f"{name}: {text} is cut"
            for one, other in itertools.combinations(boxes, 2):
                both = Bbox.intersection(one, other)
                assert both is None or min(both.width, both.height) < 3, f"{name}: {one} {other}"


def test_a_curve_that_ends_early_has_its_label_there(monkeypatch):
    evidence = look_at(fabricate("mlp", all_settings("MLP_ablation"), epochs=20)
                       + fabricate("cnn", all_settings("CNN_ablation"), epochs=50))
    figure, texts, _ = texts_of(catalogue(evidence, [])["networks"], monkeypatch)
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
    evidence = look_at([run for n in ("mlp", "cnn") for run in fabricate(
        n, all_settings(f"{n.upper()}_ablation"), epochs=2)])
    names = draw(evidence, tmp_path, "MLP_ablation", "CNN_ablation")
    assert {name[:-4] for name in CURVES if "ablation" in name} == names
    assert "image folder; 2 epochs, 1 run each" in report_of(evidence).status("CNN_ablation")


# What belongs to a study


def test_runs_that_went_on_are_cut():
    """The CNN's grid at 10 epochs, some of it at 50 for another study."""
    grid, longer = all_settings("CNN"), all_settings("dropout")
    views = look_at(fabricate("cnn", [setting for setting in grid if setting not in longer],
                              epochs=10) + fabricate("cnn", longer, epochs=50)).views
    assert views["CNN"].epochs == 10 and views["dropout"].epochs == 50
    assert {curve.epochs for curve in views["CNN"].curves.values()} == {10}
    assert views["dropout"].curves["128_0.001_0.2"].over_epochs("val_acc").shape == (1, 50)
    assert views["CNN"].find(batch_size=128, learning_rate=0.001, drop_rate=0.2).numbers[
        "best_epoch"].max() <= 10  # its numbers are of the rows that are left


def test_half_a_study_that_went_on_leaves_none_of_it_missing():
    settings = all_settings("dimention")
    view = look_at(fabricate("cnn", settings[:4], epochs=50)
                   + fabricate("cnn", settings[4:], epochs=10)).views["dimention"]
    assert view.epochs == 10 and not view.missing


def test_a_seed_that_is_still_going_waits():
    settings = all_settings("batchsize")
    view = look_at(fabricate("mlp", settings) + fabricate(
        "mlp", settings, (1,), epochs=3, asked=8)).views["batchsize"]
    assert view.seeds == [1] and view.epochs == 8


def test_a_study_begins_with_a_run_of_its_own():
    """What other studies share with it is no part of it before."""
    shared = fabricate("mlp", all_settings("weight_decay"), epochs=100)
    assert not look_at(shared).views["noise"].curves
    own = fabricate("mlp", ["1024_0.001_0.2_False_False_gaussian"], epochs=20)
    assert look_at(shared + own).views["noise"].curves


SYNTHETIC = {"synthetic": True, "data": {"source": "synthetic", "fingerprint": "11"}}


def test_other_experiments_stay_out():
    settings = all_settings("batchsize")
    evidence = look_at(fabricate("mlp", settings) + fabricate("mlp", settings[:2], **SYNTHETIC))
    view = evidence.views["batchsize"]
    assert view.data == "image folder" and view.seeds == [1]
    assert evidence.source.notes == ["mlp: 2 synthetic runs on other data or with other options "
                                     "are not in the studies"]


def test_synthetic_runs_are_said_to_be(tmp_path, monkeypatch):
    notebook = Notebook(monkeypatch)
    draw(look_at(fabricate("mlp", all_settings("batchsize"), **SYNTHETIC)), tmp_path, "batchsize")
    assert "generated data, not CIFAR-10" in notebook.read()


def test_the_shared_images_have_their_name():
    data = {"source": "image folder", "fingerprint": "5aa62ecac20e0d82"}
    records = fabricate("mlp", all_settings("batchsize"), data=data)
    assert look_at(records).source.data["mlp"] == "CIFAR-10, JPEG re-encoded"


def test_another_drop_rate_joins_the_study():
    more = ["128_0.001_0.1_False_False_2d", "64_0.001_0.1_False_False_2d"]
    view = look_at(fabricate("cnn", [*all_settings("dropout"), *more])).views["dropout"]
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
    for name in ("report", "store", "lab", "layers", "results", "plot.py", "studies.py",
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


@pytest.mark.parametrize("moment", [1, 2, 3])
@pytest.mark.parametrize("epochs", [8, 12])
def test_collect_that_is_killed_loses_nothing(epochs, moment, tmp_path, monkeypatch):
    """With more runs than before, and with longer ones: what was there can be read."""
    results = published(tmp_path, 3)
    before = {run.name for run in read_results(results)}
    write(tmp_path / "more", fabricate("mlp", all_settings("batchsize"), epochs=epochs))
    from report import results as module

    written = []

    def killed(path, data, write_file=module.write_file):
        write_file(path, data)
        written.append(path)
        if len(written) == moment:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "more", results)
    assert before < {run.name for run in read_results(results)}
    collect(tmp_path / "more", results)
    assert not list(results.glob("*pending"))


def test_collect_keeps_a_published_run_from_one_on_other_data(tmp_path, capsys):
    results = published(tmp_path)
    foreign = fabricate("mlp", all_settings("batchsize"), epochs=12,
                        data={"source": "x", "fingerprint": "22"})
    assert collect(write(tmp_path / "foreign", foreign), results) == []
    assert "are of other data" in capsys.readouterr().err
    assert {run.fingerprint for run in read_results(results)} == {"00"}


def test_collect_takes_what_runs_predict(tmp_path):
    runs = write(tmp_path / "runs", fabricate("mlp", all_settings("batchsize")))
    name = "512_0.001_0.0_False_False_seed0"
    known = {"val": np.arange(5, dtype=np.uint8), "test": np.arange(7, dtype=np.uint8)}
    np.savez(runs / "mlp" / name / "predictions.npz", **known)
    (runs / "mlp" / "1024_0.001_0.0_False_False_seed0" / "predictions.npz").write_bytes(b"no")
    collect(runs, tmp_path / "results")
    arrays = read_arrays(tmp_path / "results" / "mlp_predictions.npz")
    assert {key: each.tolist() for key, each in arrays.items()} == {
        f"{name}.{split}": each.tolist() for split, each in known.items()}


WRITE = """
import sys
from pathlib import Path
from report.results import write_theory
for i in range(60):
    write_theory(Path(sys.argv[1]), {sys.argv[2]: {f"topic{i}": [i] * 100}})"""


def test_two_theory_at_once_lose_nothing(tmp_path):
    path = tmp_path / "theory.json"
    both = [subprocess.Popen([sys.executable, "-c", WRITE, path, network], cwd=ROOT)
            for network in ("mlp", "cnn")]
    assert [call.wait() for call in both] == [0, 0]
    assert {n: len(topics) for n, topics in json.loads(path.read_text()).items()} == {
        "mlp": 60, "cnn": 60}
    with pytest.raises(UserError, match="not finite"):
        write_theory(path, {"mlp": {"bagging": {"variance": math.nan}}})


ODD = {"a list": [], "no runs": {"data": "x", "setting": "x", "runs": []},
       "text": {"data": "x", "setting": "x", "runs": ["x"], "shifts": "0", "accuracy": [["a"]]},
       "short": {"data": "x", "setting": "x", "runs": ["x"], "shifts": [0, 1],
                 "accuracy": [[0.5]]}}


@pytest.mark.parametrize("what", ODD)
def test_odd_topics_are_left_out(what, tmp_path, capsys):
    runs = write(tmp_path, fabricate("mlp", all_settings("batchsize")))
    (runs / "theory.json").write_text(json.dumps({"mlp": {"shifts": ODD[what]}}))
    assert read_theory(runs) == {} and "mlp shifts" in capsys.readouterr().err
    report_of(Evidence(read_source(runs))).render()


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
    assert "MLP 36 s" in report_of(look_at(read_runs(runs))).trained()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [1e299, -1e299, 3e38])
def test_numbers_beyond_any_axis(number, tmp_path):
    records = fabricate("mlp", all_settings("MLP_ablation"), (0, 1))
    for row in records[0].rows:
        row["val_loss"] = row["train_loss"] = number
    evidence = look_at(records)
    draw(evidence, tmp_path, "MLP_ablation", "claims")
    report_of(evidence).render()


def test_texts_of_foreign_runs(tmp_path):
    """Dollars, half surrogates and a megabyte of text."""
    text = "$x_{$ \udce9 " + "y" * 1_000_000
    records = fabricate("mlp", all_settings("batchsize"), processor=text,
                        data={"source": text, "fingerprint": "00"})
    evidence = look_at(records)
    draw(evidence, tmp_path, "batchsize_val_acc")
    assert len(report_of(evidence).render()) < 100_000


def test_all_seeds_equal(tmp_path):
    """Without any spread there is an interval of no width, and no verdict."""
    records = fabricate("mlp", all_settings("MLP_ablation", "batchsize"), (0, 1), epochs=20)
    for run in records:
        for row in run.rows:
            row |= {key: 1.0 if key.endswith("acc") else 0.0 for key in row if "_" in key}
    evidence = look_at(records)
    draw(evidence, tmp_path, "MLP_ablation", "claims", "variance")
    assert "all seeds give the same number" in report_of(evidence).render()
    assert {f.verdict() for f in decide(evidence)} <= {UNDECIDED, FAILS, "no number"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_a_report_of_a_run_that_has_just_begun(network, tmp_path):
    name = f"{network.upper()}_ablation"
    evidence = look_at(fabricate(network, all_settings(name)[:1], epochs=1, asked=20))
    draw(evidence, tmp_path, name, "claims", "networks", "older")
    write_tables(evidence, decide(evidence), tmp_path, differences(evidence))
    report_of(evidence).render()
    assert any(each.endswith("(1 of 20 epochs)") for each in evidence.views[name].missing)


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


def curve_of(values, network="mlp"):
    """A setting whose seeds have these validation accuracies."""
    runs = fabricate(network, all_settings(f"{network.upper()}_ablation")[:1], range(len(values)),
                     epochs=1)
    for run, value in zip(runs, values, strict=True):
        run.rows[0]["val_acc"] = value
    return next(iter(look_at(runs).views[f"{network.upper()}_ablation"].curves.values()))


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
    assert found.error == pytest.approx(0.01 * math.sqrt(4 / 3))
    assert found.freedom == pytest.approx(8)


def finding_of(*numbers, some=False):
    """A claim that rests on these numbers."""
    finding = Finding(Claim("1", "", "–", some=some), Evidence(Source([])))
    finding.numbers = list(numbers)
    return finding


def test_few_seeds_take_the_pooled_deviation():
    """One seed decides, where others tell the spread; never that of another network."""
    known = [curve_of([0.1, 0.12, 0.14]), curve_of([0.3, 0.32])]
    pool = pool_of(*known, curve_of([0.1, 0.9], "cnn"))
    found = pool.estimate("val_acc", curve_of([0.5]), curve_of([0.2]))
    deviation = math.sqrt((2 * 0.02 ** 2 + 0.0002) / 3)
    assert found.pooled and 2 < found.freedom < 3 and found.n == "1*"
    assert found.error == pytest.approx(deviation * math.sqrt(2))
    assert finding_of(Number("x", {QUARTER: found})).verdict() == HOLDS
    alone = pool_of().estimate("val_acc", curve_of([0.5]), curve_of([0.2]))
    assert math.isnan(alone.error)
    finding = finding_of(Number("x", {QUARTER: alone}))
    assert finding.verdict() == UNDECIDED and finding.reason == "no setting has a second seed"


@pytest.mark.parametrize("rho", [0, 0.3, 0.7])
def test_settings_that_vary_alike_tell_less(rho):
    """A variance with f degrees of freedom has itself the variance 2 sigma^4 / f."""
    random, k = np.random.RandomState(0), 30
    draws = (math.sqrt(rho) * random.standard_normal((300, 1, 3))
             + math.sqrt(1 - rho) * random.standard_normal((300, k, 3)))
    found = [pooled([pd.Series(numbers) for numbers in draw]) for draw in draws]
    variances, freedoms = np.array([(deviation ** 2, freedom) for deviation, freedom in found]).T
    assert variances.mean() == pytest.approx(1, rel=0.1)
    assert np.median(freedoms) == pytest.approx(2 / variances.var(), rel=0.5)
    assert pooled([]) == (pytest.approx(math.nan, nan_ok=True), 0)


def test_every_run_of_a_setting_counts():
    """Two runs of one network and seed, under two names, are two replicates."""
    names = ["128_0.001_0.0_False_False_2d", "128_0.001_0.2_False_True_2d"]
    records = [run for name in names for run in fabricate("cnn", [name], (0, 1))]
    curve = look_at(records).views["CNN_ablation"].find(without_BatchNorm=False,
                                                        without_dropout=True)
    assert len(curve.runs) == 4 and sorted(curve.by_seed("val_acc").index) == [0, 0, 1, 1]


def estimate_of(low, high):
    """An estimate whose 95 % interval is this."""
    return Estimate((low + high) / 2, (high - low) / 2 / t_quantile(8), 8, (5, 5))


@pytest.mark.parametrize("low, high, bounds, verdict", [
    (0.1, 0.2, POSITIVE, HOLDS), (-0.2, -0.1, POSITIVE, FAILS), (-0.1, 0.1, POSITIVE, UNDECIDED),
    (-0.005, 0.005, SAME, HOLDS), (0.005, 0.02, SAME, UNDECIDED), (0.02, 0.03, SAME, FAILS),
    (-0.03, -0.02, SAME, FAILS)])
def test_verdict_of_an_interval(low, high, bounds, verdict):
    estimate = estimate_of(low, high)
    assert finding_of(Number("x", {QUARTER: estimate}, bounds)).verdict() == verdict
    assert finding_of(Number("x", {QUARTER: estimate}, bounds,
                             obstacle="an obstacle")).verdict() == UNDECIDED


def test_the_test_images_must_agree():
    clear, unclear = estimate_of(0.1, 0.2), estimate_of(-0.1, 0.2)
    assert finding_of(Number("x", {QUARTER: clear, TEST: clear})).verdict() == HOLDS
    finding = finding_of(Number("x", {QUARTER: clear, TEST: unclear}))
    assert finding.verdict() == UNDECIDED
    assert finding.reason == "the test images do not confirm it"


def test_many_numbers_need_more():
    """An interval that just excludes 0 decides alone, and not as the least of many."""
    number = Number("x", {QUARTER: estimate_of(0.001, 0.1)})
    assert finding_of(number).verdict() == HOLDS
    assert finding_of(*[dataclasses.replace(number, what=str(i)) for i in range(5)]
                      ).verdict() == UNDECIDED
    rival = finding_of(dataclasses.replace(number, family=59))
    assert rival.verdict() == UNDECIDED
    assert re.match(r"about \d+ seeds of each would decide", rival.reason)


def test_some_needs_one():
    numbers = [Number("x", {QUARTER: estimate_of(*ends)}) for ends in ((0.1, 0.2), (-0.2, -0.1))]
    assert finding_of(*numbers).verdict() == FAILS
    assert finding_of(*numbers, some=True).verdict() == HOLDS


def find(records):
    return {finding.claim.number: finding for finding in decide(look_at(records))}


def of(network, name, rule, base):
    """A level for each setting of some studies, by its settings."""
    return {each: base + rule(Settings.parse(network, each)) for each in all_settings(*name)}


def test_findings_hold():
    """A world in which the older report is right on most claims."""
    def rule(own):
        gain = -0.1 * abs(own.drop_rate * (not own.without_dropout) - 0.2)
        usual = {"mlp": 1024, "cnn": 128}[own.network]
        return (gain - 0.02 * ((own.batch_size, own.learning_rate) != (usual, 0.001))
                - 0.05 * own.without_BatchNorm + 0.01 * (own.dropout_type == "1d"))

    mlp = of("mlp", ("MLP", "MLP_ablation"), rule, 0.5) | {
        "1024_0.001_0.0_False_False": 0.495, "1024_0.001_0.0_True_False": 0.445}
    cnn = of("cnn", ("CNN", "CNN_ablation", "dimention"), rule, 0.7)
    seeds = (0, 1, 2, 3)
    found = find(fabricate("mlp", list(mlp), seeds, epochs=20, level=mlp)
                 + fabricate("cnn", list(cnn), seeds, epochs=50, level=cnn))
    right = ("1", "2", "3", "9a", "11a", "11b", "13a", "17a", "19b")
    assert {n: found[n].verdict() for n in right} == dict.fromkeys(right, HOLDS)
    assert found["5"].verdict() != HOLDS  # nothing overfits in there
    assert found["13b"].verdict() == FAILS  # training is not better without normalization either


def test_a_grid_that_is_short_or_not_whole_does_not_say_what_is_best():
    best = {"1024_0.001_0.2_False_False": 0.6}
    short = find(fabricate("mlp", all_settings("MLP"), (0, 1, 2), level=best))
    assert (short["1"].verdict(), short["1"].reason) == (UNDECIDED, "8 of 20 epochs")
    part = find(fabricate("mlp", all_settings("MLP")[:-1], (0, 1, 2), level=best))
    assert (part["1"].verdict(), part["1"].reason) == (UNDECIDED, "1 of 60 settings missing")
    assert part["2"].reason == "not run yet"
    rival = find(fabricate("mlp", all_settings("MLP")[:-1], (0, 1, 2), epochs=20,
                           level={"512_0.001_0.0_False_False": 0.6}))
    assert rival["1"].verdict() == FAILS  # whatever is missing


def test_measures_stand_side_by_side():
    """A network that falls at its end: its last epoch says so, its best one does not."""
    records = fabricate("mlp", all_settings("MLP_ablation"), (0, 1, 2), epochs=20)
    for run in records:
        if run.setting == "1024_0.001_0.0_False_False":
            run.rows[-1]["val_acc"] -= 0.1
    number, *_ = find(records)["11a"].numbers
    assert number.by[LAST].mean > 0.09 > 0.025 > number.by[QUARTER].mean > 0.015
    assert abs(number.by[BEST].mean) < 0.02 and abs(number.by[TEST].mean) < 0.02


def test_findings_on_overfitting():
    """Some overfit: the CNN alone is enough. And the plateau is counted over the ten best."""
    records = fabricate("mlp", all_settings("MLP_ablation", "MLP"), (0, 1, 2), epochs=20)
    overfitting = fabricate("cnn", all_settings("CNN_ablation", "CNN"), (0, 1, 2), epochs=50)
    for run in overfitting:
        for row in run.rows[4:]:
            row["val_loss"] += 0.2 * (row["epoch"] - 4)
            row["test_loss"] += 0.2 * (row["epoch"] - 4)
    found = find(records + overfitting)
    assert found["5"].verdict() == HOLDS
    _, cnn = found["4"].numbers
    assert cnn.counts[QUARTER] == (10, 0, 10)


def test_different_data_or_lengths_are_no_comparison():
    found = find(fabricate("mlp", all_settings("MLP_ablation"), (0, 1, 2))
                 + fabricate("cnn", all_settings("CNN_ablation"), (0, 1, 2),
                             data={"source": "x", "fingerprint": "22"},
                             level={"128_0.001_0.2_False_False_2d": 0.7}))
    assert found["3"].reason == "the two were trained on different data"
    found = find(fabricate("mlp", all_settings("MLP_shuffled_patches"), (0, 1, 2), epochs=10)
                 + fabricate("cnn", all_settings("CNN_shuffled_patches"), (0, 1, 2), epochs=50))
    assert "the CNN was trained for 50 epochs" in found["8a"].reason


def test_arguments_are_decided_by_their_numbers():
    """Each of these worlds gives another verdict than its opposite."""
    worlds = {
        "25b": ("capacity", lambda own: 0.1 * own.drop_rate * (own.hidden_size == 1600),
                lambda own: 0.1 * own.drop_rate * (own.hidden_size == 50)),
        "25c": ("data_size", lambda own: 0.1 * own.drop_rate * (own.train_images == 5000),
                lambda own: 0.1 * own.drop_rate * (own.train_images is None)),
        "25a": ("weight_decay", lambda own: 0.1 * (own.drop_rate == 0.2),
                lambda own: 0.1 * (own.weight_decay == 0.1)),
        "15a": ("depth", lambda own: -0.1 * own.without_BatchNorm * (own.hidden_layers == 8),
                lambda own: -0.1 * own.without_BatchNorm * (own.hidden_layers == 1)),
        "21b": ("batch_norm", lambda own: -0.1 * own.without_BatchNorm * (own.batch_size == 4096),
                lambda own: -0.1 * own.without_BatchNorm * (own.batch_size == 16)),
        "26b": ("noise", lambda own: 0, lambda own: 0.05 * own.gaussian_dropout)}
    for number, (study, right, wrong) in worlds.items():
        for rule, verdict in ((right, HOLDS), (wrong, FAILS)):
            level = of("mlp", (study,), rule, 0.5)
            found = find(fabricate("mlp", list(level), (0, 1, 2), epochs=20, level=level))
            assert found[number].verdict() == verdict, number
    level = of("mlp", ("weight_decay",), lambda own: 0.1 * (own.drop_rate == 0.6), 0.5)
    found = find(fabricate("mlp", list(level), (0, 1, 2), level=level))
    assert found["25a"].reason == "a best setting lies at the end of its range"


def test_every_claim_of_the_older_report_is_there():
    numbers = {re.match(r"\d+", claim.number)[0] for claim in CLAIMS}
    assert numbers == set(map(str, range(1, 27)))
    assert len({claim.number for claim in CLAIMS}) == len(CLAIMS)


# Which code made a run


CODE = {"code": {"commit": "0" * 40, "dirty": False, "hash": "aaaa"}}


def test_runs_that_tell_their_code_take_the_place_of_others():
    """Three seeds do, or as many as there were; a first one joins them, and is told."""
    settings = all_settings("batchsize")
    old = fabricate("mlp", settings[:3], (0, 1, 2, 3)) + fabricate("mlp", settings[3:])
    new = fabricate("mlp", settings[:1], (4, 5, 6), **CODE) + fabricate("mlp", settings[1:], (7,),
                                                                        **CODE)
    view = look_at(old + new).views["batchsize"]
    seeds = {curve.settings.batch_size: [run.seed for run in curve.runs]
             for curve in view.curves.values()}
    assert seeds == {512: [4, 5, 6], 1024: [0, 1, 2, 3, 7], 2048: [0, 1, 2, 3, 7], 4096: [7]}
    assert view.origin.startswith("6 runs of code aaaa, 8 runs whose code was not")


def test_several_versions_are_told(tmp_path, monkeypatch):
    settings = all_settings("batchsize")
    mixed = look_at(fabricate("mlp", settings[:1], **CODE) + fabricate("mlp", settings[1:]))
    assert mixed.views["batchsize"].origin == (
        "1 run of code aaaa, 3 runs whose code was not recorded; 1 processor")
    assert "MLP, batch size" in report_of(mixed).mixed()
    notebook = Notebook(monkeypatch)
    draw(mixed, tmp_path, "batchsize_val_acc")
    assert "code aaaa" in notebook.read()
    assert look_at(fabricate("mlp", settings, **CODE)).views["batchsize"].is_of_one


def test_settings_that_are_one_network_are_one():
    """Trained under any of its names, it stands in both places."""
    names = ["128_0.001_0.0_False_False_2d", "128_0.001_0.0_False_False_1d",
             "128_0.001_0.2_False_True_2d"]
    for name in names:
        views = look_at(fabricate("cnn", [name])).views
        assert set(views["dimention"].curves) == {"128_0.001_0.0_1d", "128_0.001_0.0_2d"}
        assert set(views["CNN_ablation"].curves) == {"128_0.001_0.2_False_True"}
    assert len({experiment(Settings.parse("cnn", name)) for name in names}) == 1
    other = experiment(Settings.parse("cnn", "128_0.001_0.0_True_False_2d"))
    assert other != experiment(Settings.parse("cnn", names[0]))


def test_numbers_of_one_row_are_of_one_epoch():
    rows = pd.DataFrame([{"run": "x", "epoch": e, **{f"{s}_{q}": e + 100.0 * i for i, (s, q)
                          in enumerate(itertools.product(("train", "val", "test"),
                                                         ("acc", "loss")))}}
                         for e in range(1, 9)])
    rows.loc[4, "val_acc"] = 1000
    numbers = summaries(rows, ["run"]).loc["x"]
    assert (numbers["best_epoch"], numbers["train_acc"], numbers["last_train_acc"]) == (5, 5, 8)
    assert (numbers["quarter_train_acc"], numbers["quarter_val_acc"]) == (7.5, 207.5)
    assert numbers["quarter_rise"] == 2 and numbers["quarter_gap"] == 200


@pytest.mark.parametrize("seeds", [0, 1, 2, 3])
def test_an_argument_says_what_its_seeds_allow(seeds):
    for name in ("capacity", "data_size", "weight_decay", "batch_norm", "noise"):
        report = report_of(look_at(fabricate("mlp", all_settings(name), range(seeds), epochs=20)))
        text = report.argument(name, "25b", table=True)
        if not seeds:
            assert text.endswith("makes the runs.")
            continue
        assert ("No setting of this length has a second seed" in text) == (seeds == 1)
        assert ("take the pooled deviation" in text) == (seeds == 2)
        assert ("[" in text.replace("![", "")) == (seeds > 1)  # an interval
    assert TABLES.keys() > {"depth", "pooling"}


def test_larger_batches_are_timed_by_the_bench():
    """By rounds in turns: what every round shows holds, whatever the machine's drift."""
    evidence = look_at(fabricate("mlp", all_settings("batchsize")))
    assert "not measured yet; `python bench/batch_sizes.py`" in measured.epoch_seconds(
        evidence.source)
    drift = np.array([1, 1.5, 2, 1.2])

    def claim(second):
        seconds = {"512": list(drift), "1024": list(drift * second)}
        evidence.source.theory = evidence.theory = {network: {"epoch_seconds": {
            "machine": "a machine", "seconds": seconds}} for network in ("mlp", "cnn")}
        return next(each for each in decide(evidence) if each.claim.number == "22a")

    assert claim([0.8, 0.81, 0.79, 0.8]).verdict() == HOLDS
    assert claim([1.1, 1.12, 1.1, 1.11]).verdict() == FAILS
    unclear = claim([0.9, 1.2, 0.8, 1.0])
    assert unclear.verdict() == UNDECIDED and "rounds of the bench" in unclear.reason
    assert "MLP 1.35 s at 512" in measured.epoch_seconds(evidence.source)


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
    text = measured.shifts(look_at(fabricate("mlp", all_settings("batchsize"))).source)
    assert f"| CNN | 106,954 | {multiplications:,} | Not run yet. |" in text


def test_bench_of_batch_sizes_writes_what_the_report_reads(tmp_path):
    output = tmp_path / "theory.json"
    result = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "batch_sizes.py"), "--rounds", "1", "--images", "32",
         "--output", str(output)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    topics = read_theory(tmp_path)
    text = measured.epoch_seconds(Source([], topics))
    assert len(re.findall(r"[\d.]+ s at \d+", text)) == 8


# The report


@pytest.fixture(scope="module")
def of_the_project():
    evidence = Evidence(read_source(None))
    drawn = {path.stem for path in (ROOT / "pics").glob("*.png")}
    return Report(evidence, decide(evidence), drawn)


def test_report_is_what_the_published_runs_say(of_the_project):
    """REPORT.md, README.md and pics/README.md are what plot.py writes from results/."""
    texts = {"REPORT.md": of_the_project.render(), "pics/README.md": of_the_project.figures_page()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    texts["README.md"] = fill(readme, of_the_project.for_readme())
    for name, text in texts.items():
        same = text == (ROOT / name).read_text(encoding="utf-8")
        assert same, f"{name} is out of date: run python plot.py"
    assert len(texts["REPORT.md"].splitlines()) <= 500


def test_published_tables(of_the_project, tmp_path):
    evidence, found = of_the_project.evidence, of_the_project.found
    for path in write_tables(evidence, found, tmp_path, differences(evidence)):
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
    records = fabricate("mlp", all_settings("MLP", "MLP_ablation"))
    before = report_of(look_at(records)).render()
    for record in records:
        for row in record.rows:
            row["test_acc"] += 0.001
    assert report_of(look_at(records)).render() != before


def test_code_is_quoted_as_it_is(of_the_project):
    quoted = of_the_project.quote("layers/modules.py", "Dropout.forward")
    assert "self.mask_shape(" in quoted
    line = int(re.search(r"#L(\d+)", quoted)[1])
    lines = (ROOT / "layers/modules.py").read_text().splitlines()
    assert lines[line - 1].strip().startswith("def forward(self, ")


def test_the_report_needs_no_torch():
    code = ("import sys; import plot, report.text, report.figures, report.explore\n"
            "assert 'torch' not in sys.modules")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


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


def test_theory_of_tiny_networks(image_folder, tmp_path, monkeypatch):
    """From three seeds that main.py trained to theory.json, its figures and the report."""
    from report import theory

    run = run_main("mlp", "--batch_size", 24, "--num_epochs", 1, "--seed", 0, 1, 2, "--data_dir",
                   image_folder, "--runs_dir", tmp_path, "--device", "cpu")
    assert run.returncode == 0, run.stderr
    monkeypatch.setattr(theory, "networks_for", lambda *_: read_runs(tmp_path))
    assert theory.measure_all(SimpleNamespace(
        network=["mlp"], topics=["bagging", "statistics", "shifts"], runs_dir=tmp_path,
        data_dir=image_folder, synthetic=False, device="cpu"))
    known = json.loads((tmp_path / "theory.json").read_text())["mlp"]
    bagging, statistics = known["bagging"], known["statistics"]
    assert len(bagging["runs"]) == 3
    v, c = bagging["variance"], bagging["covariance"]
    assert bagging["predicted"] == pytest.approx([v, v / 2 + c / 2, v / 3 + 2 * c / 3], abs=2e-6)
    assert bagging["measured"] == sorted(bagging["measured"], reverse=True)
    assert statistics["batch_sizes"] == [16, 32] and 0 < statistics["running_accuracy"] <= 1
    # 16 of 240 without replacement
    assert statistics["mean"][0] == pytest.approx(statistics["mean_theory"] / 4
                                                  * (224 / 239) ** 0.5, rel=0.1)
    evidence = Evidence(read_source(tmp_path))
    assert {"MLP_bagging", "MLP_statistics", "shifts"} <= draw(
        evidence, tmp_path / "pics", "MLP_", "shifts")
    assert np.shape(known["shifts"]["accuracy"]) == (3, 9)
    assert f"v = {v:.5f}" in measured.correlation(evidence.source)
    assert "| MLP | 308,510 | 308,200 | 3 (epochs: 1) | " in measured.shifts(evidence.source)


def test_order_of_dropout_and_pooling():
    """Single activations inflate the mean behind pooling; maps, and dropout behind it, do not."""
    from load_data import Data, Split
    from report.theory import order

    torch.manual_seed(0)
    split = Split(torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8), torch.arange(60) % 10)
    data = Data(split, split, split, range(10), "", "")
    arms = [("1d", False), ("2d", False), ("1d", True), ("2d", True)]
    with torch.inference_mode():
        networks = [CNN(0.6, dropout_type=kind, pool_first=first).eval() for kind, first in arms]
        before = [network.norm2.running_mean.clone() for network in networks]
        found = order(networks, data)["networks"]
    assert [(each["dropout_type"], each["pool_first"]) for each in found] == arms
    inflation = [each["inflation"] for each in found]
    assert inflation[0] > 1.2
    assert inflation[1:] == pytest.approx([1, 1, 1], abs=0.12)
    assert not any(torch.equal(network.norm2.running_mean, old)
                   for network, old in zip(networks, before, strict=True))
