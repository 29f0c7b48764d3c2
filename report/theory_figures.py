"""The figures of what theory.py measured, and of the older report's own runs."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from report.drawing import (
    BLUE,
    DASHES,
    GREY,
    OF_NETWORK,
    ORANGE,
    SKY,
    headline,
    log_axis,
    notes,
    plain_ticks,
)
from report.evidence import Evidence
from report.frame import Source, plural
from report.measured import TRAIN_IMAGES, expected
from report.results import RESULTS
from store.settings import NETWORKS

OLDER = {"mlp": "without batch normalization, without dropout", "cnn": "drop rate 0.8"}


def catalogue(evidence: Evidence) -> dict[str, Callable[[Figure], None]]:
    """Those of the topics that theory.py has measured, and the older runs."""
    theory = evidence.theory
    figures: dict[str, Callable[[Figure], None]] = {"older": partial(older, evidence=evidence)}
    if moved := {n: theory[n]["shifts"] for n in NETWORKS if "shifts" in theory.get(n, {})}:
        figures["shifts"] = partial(shifts, topics=moved)
    for draw in (bagging, statistics, confusion, order):
        for network in NETWORKS:
            if known := theory.get(network, {}).get(draw.__name__):
                more = {"source": evidence.source} if draw is confusion else {}
                figures[f"{network.upper()}_{draw.__name__}"] = partial(
                    draw, network=network.upper(), topic=known, **more)
    return figures


def pair(figure: Figure, **more):
    figure.set_size_inches(8.4, 4.2)
    return figure.subplots(1, 2, **more)


def older(figure: Figure, evidence: Evidence) -> None:
    """Two runs of the older report, epoch by epoch, over ours of the settings they seem to have."""
    cells = {"mlp": evidence.views["MLP_ablation"].find(without_BatchNorm=True,
                                                       without_dropout=True),
             "cnn": evidence.views["dropout"].find(drop_rate=0.8)}
    known = {network: curve for network, curve in cells.items() if curve}
    if not known:
        return
    for axes, (network, curve) in zip(pair(figure), known.items(), strict=False):
        theirs = pd.read_csv(RESULTS / "older" / f"{network}.csv")
        for split, colour in (("train", ORANGE), ("val", BLUE)):
            ours = 100 * curve.over_epochs(f"{split}_acc")
            what = {"train": "training", "val": "validation"}[split]
            axes.plot(ours.columns, ours.mean(), color=colour, lw=1.7,
                      label=f"{what}, here, n = {len(ours)}")
            axes.plot(theirs.epoch, 100 * theirs[f"{split}_acc"], color=colour, ls=DASHES[0.4],
                      lw=2, label=f"{what}, older report")
        axes.set(xlabel="epoch", ylabel="accuracy (%)", title=network.upper())
        axes.legend(loc="lower right", fontsize=8.5)
    headline(figure, "Two runs of the older report over runs here")
    notes(figure, "; ".join(f"{network.upper()}: {curve.label}, {OLDER[network]}"
                            for network, curve in known.items())
          + "; which settings the older runs have follows from their numbers, no file says it")


def bagging(figure: Figure, network: str, topic: dict) -> None:
    """Squared error over the number of averaged networks, and over that of dropout masks."""
    left, right = pair(figure)
    k = np.arange(1, len(topic["measured"]) + 1)
    smooth = np.linspace(1, len(k), 200)
    v, c = topic["variance"], topic["covariance"]
    if len(k) > 1:
        left.plot(smooth, v / smooth + (smooth - 1) * c / smooth, color=ORANGE, ls="--",
                  label="predicted: v/k + (k − 1) c/k")
        left.axhline(c, color=GREY, ls=":", lw=1, label="c, the limit of many networks")
    left.plot(k, topic["measured"], "o", color=BLUE, label="measured on the test images")
    left.set(xlabel="number k of averaged networks", ylabel="squared error of a probability",
             title=f"{network}: ensemble of seeds")
    left.set_xticks(k)
    right.plot(topic["masks"], topic["masked"], "o-", color=BLUE,
               label="average over dropout masks")
    right.axhline(topic["measured"][0], color=ORANGE, ls="--",
                  label="single pass in evaluation mode")
    right.set(title=f"{network}: ensemble of masks")
    log_axis(right, topic["masks"], "number of dropout masks")
    for axes in (left, right):
        axes.legend(loc="upper right")
    notes(figure, f"{topic['data']}; {plural(len(topic['runs']), 'network')}: {topic['setting']}, "
                  "one per seed; v and c from the validation images, the rest on the test images")


def statistics(figure: Figure, network: str, topic: dict) -> None:
    """How far a batch's statistics lie from the training set's, and the cost of using them."""
    if not topic["batch_sizes"]:  # fewer than 16 test images
        return
    left, right = pair(figure)
    n = np.array(topic["batch_sizes"])
    for key, colour, marker, dash, unit in (
            ("variance", ORANGE, "s", "--", "relative"),
            ("mean", BLUE, "o", "-", "in standard deviations")):
        left.plot(n, topic[key], marker, color=colour, label=f"{key}, {unit}")
        left.plot(n, topic[f"{key}_theory"] * expected(n), color=colour, lw=1, ls=dash,
                  label=f"{key}, theory: ∝ √((1 − n/N)/n)")
    left.set(xscale="log", yscale="log", ylabel="distance from the training set's")
    plain_ticks(left)
    right.plot(n, 100 * np.array(topic["batch_accuracy"]), "o-", color=BLUE,
               label="with the batch's statistics")
    right.axhline(100 * topic["running_accuracy"], color=ORANGE, ls="--",
                  label="with the running statistics")
    right.set_ylabel("test accuracy (%)")
    log_axis(left, n, "batch size n")
    log_axis(right, n, "batch size n in evaluation")
    left.legend(loc="lower left", fontsize=8.5)
    right.legend(loc="lower right", fontsize=8.5)
    headline(figure, f"{network}: a batch's statistics, and the accuracy with them")
    notes(figure, f"{topic['data']}; first BatchNorm layer (left) of {topic['setting']}, root mean "
                  f"square, mean over {plural(len(topic['runs']), 'seed')}; N = {TRAIN_IMAGES:,}")


def shifts(figure: Figure, topics: dict[str, dict]) -> None:
    """Test accuracy over the number of pixels that images move by, and what is left of it."""
    left, right = pair(figure)
    for network, marker in (("mlp", "s"), ("cnn", "o")):
        if topic := topics.get(network):
            accuracy = 100 * np.array(topic["accuracy"])
            share = 100 * accuracy / accuracy[:, :1].clip(1e-9)
            n = len(accuracy)
            for axes, values in ((left, accuracy), (right, share)):
                deviation = values.std(0, ddof=1) if n > 1 else None
                axes.errorbar(topic["shifts"], values.mean(0), yerr=deviation, capsize=2,
                              marker=marker, mfc=OF_NETWORK[network] if n > 1 else "white",
                              color=OF_NETWORK[network], label=f"{network.upper()}, n = {n}")
    left.set(xlabel="pixels", ylabel="test accuracy (%)", ylim=(0, None))
    right.set(xlabel="pixels", ylabel="share of the unmoved accuracy (%)", ylim=(0, None))
    left.legend(loc="lower left")
    headline(figure, "Test accuracy when the images move")
    notes(figure, "; ".join(
        f"{topic['data']}, {topic['setting']}, best epoch of "
        f"{' and '.join(map(str, dict.fromkeys(topic.get('epochs', ['?']))))} epochs"
        for topic in topics.values()), "mean over the four directions; bars: ± 1 sd; hollow: one "
                                       "network")


def order(figure: Figure, network: str, topic: dict) -> None:
    """What dropout before pooling does to the statistics behind it, and to the test accuracy."""
    left, right = pair(figure)
    table = pd.DataFrame(topic["networks"])
    columns = {"running_accuracy": ("running statistics", "-", 1),
               "retaken_accuracy": ("retaken without dropout", ":", 0)}
    for (kind, first), part in table.groupby(["dropout_type", "pool_first"]):
        colour, marker = {("1d", False): (ORANGE, "s"), ("2d", False): (BLUE, "o"),
                          ("1d", True): (SKY, "^"), ("2d", True): (GREY, "D")}[kind, first]
        name = f"{kind}{', behind pooling' * first}"
        mean = part.groupby("drop_rate").mean(numeric_only=True)
        left.plot(mean.index, mean.inflation, marker=marker, color=colour, label=name)
        for key, (text, dash, filled) in columns.items():
            right.plot(mean.index, 100 * mean[key], marker=marker, color=colour, ls=dash,
                       mfc=colour if filled else "white", label=f"{name}, {text}")
    left.set(xlabel="drop rate", ylabel="mean behind pooling, training ÷ evaluation")
    right.set(xlabel="drop rate", ylabel="test accuracy (%)")
    left.legend(fontsize=8.5)
    right.legend(fontsize=8)
    headline(figure, f"{network}: dropout before max pooling, then batch normalization")
    notes(figure, f"{topic['data']}; {plural(len(table), 'network')}, mean over those of a kind")


def rank(name: str, network: str, source: Source) -> str:
    """How a run stands among those whose validation accuracy is known."""
    best = sorted((run for run in source.of(network) if run.result),
                  key=lambda run: -run.result["val_acc"])
    names = [run.name for run in best]
    return (f", number {names.index(name) + 1} of {len(names)} by best validation accuracy"
            if name in names else "")


def confusion(figure: Figure, network: str, topic: dict, source: Source) -> None:
    """Which class the best network takes for which, in percent of the true class."""
    figure.set_size_inches(8.4, 6.4)
    counts = np.array(topic["confusion"])
    matrix = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        axes.text(j, i, f"{value:.0f}" if value > 0.5 else "·", ha="center", va="center",
                  fontsize=9.5, color="white" if value > 55 else "black")
    axes.set_xticks(range(len(matrix)), topic["classes"], rotation=45, ha="right")
    axes.set_yticks(range(len(matrix)), topic["classes"])
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="true",
             title=f"{network}: percent of each class taken for …")
    notes(figure, f"{topic['data']}, test images; {topic['runs'][0]}"
                  f"{rank(topic['runs'][0], network.lower(), source)}; "
                  f"test accuracy {100 * counts.trace() / max(counts.sum(), 1):.1f} %")
