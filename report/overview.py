"""Figures over several studies: claims, the grids' variance, both networks, types of dropout."""

import math

import numpy as np
from matplotlib.figure import Figure

from report.drawing import (
    BLUE,
    DASHES,
    GREY,
    ORANGE,
    SKY,
    footer,
    label_ends,
    legend_below,
    line,
    notes,
    nothing,
    pair,
    scale,
)
from report.findings import FAILS, HOLDS, Check, Finding
from report.studies import BASES, BATCH_SIZES, DROP_RATES, LEARNING_RATES, Source, View
from report.variance import shares

VERDICTS = {HOLDS: (BLUE, "o"), FAILS: (ORANGE, "s")}
FACTORS = ("batch size", "learning rate", "drop rate")


def claims(figure: Figure, found: list[Finding]) -> None:
    """Every number that decides a claim, as an interval; claims from top to bottom."""
    rows = [(finding, check, verdict) for finding in found for check, _, verdict in finding.decided
            if isinstance(check, Check) and check.estimate and not math.isnan(check.estimate.half)]
    if not rows:
        nothing(figure, "The claims", "./run_grid.sh all")
        return
    figure.set_size_inches(8.4, max(4.0, 1.5 + 0.2 * len(rows)))
    height = figure.get_figheight()
    axes = figure.add_axes((0.47, 1 / height, 0.51, 1 - 1.45 / height))
    for y, (finding, check, verdict) in enumerate(rows):
        colour, marker = VERDICTS.get(verdict, (GREY, "D"))
        estimate = check.estimate
        axes.errorbar(estimate.mean, -y, xerr=estimate.half, color=colour, marker=marker, ms=4.5,
                      capsize=2, lw=1.3, mfc=colour if marker != "D" else "white")
        for bound in check.bounds:
            if math.isfinite(bound) and bound:
                axes.plot([bound, bound], [-y - 0.4, -y + 0.4], color="black", lw=1)
        if y and finding is not rows[y - 1][0]:
            axes.axhline(0.5 - y, color="#bbbbbb", lw=0.6)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xscale("symlog", linthresh=0.02)
    ticks = [-0.1, -0.02, -0.01, 0, 0.01, 0.02, 0.1, 0.3]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8.5)
    axes.minorticks_off()
    axes.set_yticks([-y for y in range(len(rows))],
                    [f"{check.what[:62]}  [{finding.number}]" for finding, check, _ in rows],
                    fontsize=8)
    axes.grid(axis="y", visible=False)
    axes.set(ylim=(-len(rows) + 0.4, 0.6), xlabel="difference, in accuracy or loss")
    figure.text(0.03, 1 - 0.27 / height, "The claims: differences and their 95 % intervals",
                weight="bold", fontsize=12)
    notes(figure, "right of 0 (or between the ticks) the claim is right; blue circle: holds, "
                  "orange "
                  "square: does not hold, white: undecided; [number of the claim]")


def variance(figure: Figure, views: dict[str, View]) -> None:
    """Which setting decides a grid's validation accuracy: the analysis of variance."""
    grids = {name: grid for name in ("MLP", "CNN")
             if (grid := grid_values(views[name])) is not None}
    if not grids:
        nothing(figure, "What decides a grid", "./run_grid.sh mlp cnn")
        return
    lower = 0.2
    for (name, values), left in zip(grids.items(), (0.2, 0.68), strict=False):
        axes = figure.add_axes((left, lower, 0.3 if len(grids) > 1 else 0.7, 0.7))
        parts = [shares(values, FACTORS), shares(values[:, :, :3], FACTORS)]
        names = list(parts[0])[::-1]
        for i, (part, colour, text) in enumerate(zip(parts, (BLUE, SKY), (
                "all drop rates", "drop rates up to 0.4"), strict=True)):
            places = np.arange(len(names)) + 0.2 - 0.4 * i
            axes.barh(places, [100 * part.get(each, 0) for each in names], 0.38, color=colour,
                      label=text)
            for place, each in zip(places, names, strict=True):
                share = 100 * part.get(each, 0)
                axes.text(share + 1, place, f"{share:.1f}", va="center", fontsize=8.5)
        short = [each.replace(" × ", " ×\n", 1) if left > 0.5 or each.count("×") > 1 else each
                 for each in names]
        axes.set_yticks(range(len(names)), [each.replace("learning rate", "lr").replace(
            "batch size", "batch").replace("drop rate", "drop").replace("\n", " ")
                                            for each in short])
        axes.set(title=f"{name} grid", xlabel="share of the variance (%)", xlim=(0, 112))
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower right", fontsize=9)
    notes(figure, "best validation accuracy over the full grid, seeds that all settings have; "
                  + "; ".join(f"{name}: {views[name].epochs} epochs, {grid.shape[-1]} "
                              f"seed{'s' * (grid.shape[-1] > 1)}" for name, grid in grids.items()))


def grid_values(view: View) -> np.ndarray | None:
    """Best validation accuracy: batch size x learning rate x drop rate x seed."""
    labels = [f"{b}_{lr}_{p}" for b in BATCH_SIZES[view.study.network] for lr in LEARNING_RATES
              for p in DROP_RATES]
    cells = [curve.by_seed("val_acc") for label in labels if (curve := view.complete(label))]
    if len(cells) < len(labels):
        return None
    seeds = sorted(set.intersection(*map(set, cells)))
    values = np.array([[cell[seed] for seed in seeds] for cell in cells])
    return values.reshape(-1, len(LEARNING_RATES), len(DROP_RATES), len(seeds)) if seeds else None


def networks(figure: Figure, views: dict[str, View]) -> None:
    """The MLP beside the CNN, each at its defaults: training and validation accuracy."""
    axes = figure.add_axes((0.078, 0.2, 0.72, 0.72))
    names, used = [], []
    for name, colour in (("MLP", ORANGE), ("CNN", BLUE)):
        view = views[f"{name}_ablation"]
        if curve := view.curves.get(f"{BASES[name.lower()]}_False_False"):
            used.append(view)
            for key, dash, text in (("val_acc", "-", "validation"),
                                    ("train_acc", DASHES[0.4], "training")):
                mean = 100 * curve.values(key).mean(0)
                axes.plot(np.arange(1, len(mean) + 1), mean, color=colour, ls=dash, lw=1.8)
                names.append(f"{name}, {text}")
    if not names:
        nothing(figure, "The CNN beside the MLP", "./run_grid.sh ablation")
        return
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title="The CNN beside the MLP, at their "
                                                          "defaults")
    longest = max(line.get_xdata()[-1] for line in axes.lines)
    axes.set_xlim(1, max(2, longest))
    label_ends(axes, names)
    notes(figure, *(each for view in used for each in footer(view)[:1]),
          "each for the epochs of its protocol; mean over seeds")


def dropout_types(figure: Figure, view: View) -> None:
    """Accuracy over the drop rate, dropping values or maps."""
    if not view.curves:
        nothing(figure, view.study.title, view.study.command)
        return
    for axes, key, split in zip(pair(figure), ("quarter_val_acc", "quarter_train_acc"),
                                ("validation", "training"), strict=True):
        for kind, colour, dash, marker, text in (("1d", ORANGE, "--", "s",
                                                  "1d: single activations"),
                                                 ("2d", BLUE, "-", "o", "2d: whole maps")):
            found = {float(label.split("_")[2]): curve for label in view.curves
                     if label.endswith(kind) and (curve := view.complete(label))}
            if found:
                line(axes, sorted(found), [found[p] for p in sorted(found)], key, color=colour,
                     ls=dash,
                     marker=marker, label=text)
        axes.set(title=split, xlabel="drop rate", ylabel=f"{split} accuracy (%)")
        if axes.containers:
            legend_below(axes)
    notes(figure, *footer(view, "mean over the last quarter of the epochs; bars: ± 1 sd"))


def far(figure: Figure, source: Source) -> None:
    """The CNN with crops, flips and a schedule: accuracy over the epochs."""
    runs = [run for run in source.of("cnn") if run.settings and run.settings.augment and run.rows]
    if not runs:
        nothing(figure, "How far the CNN goes", "python cnn/main.py --augment --schedule onecycle")
        return
    axes = figure.add_axes((0.078, 0.2, 0.66, 0.72))
    names = []
    for run, colour in zip(runs, scale(len(runs)), strict=True):
        for key, dash, text in (("test_acc", "-", "test"), ("train_acc", DASHES[0.4], "training")):
            axes.plot([row["epoch"] for row in run.rows], [100 * row[key] for row in run.rows],
                      color=colour, ls=dash, lw=1.7)
            names.append(f"{run.settings.learning_rate:g}, {len(run.rows)} epochs, {text}")
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title="The CNN with crops, flips and one cycle",
             xlim=(1, max(len(run.rows) for run in runs) + 1))
    label_ends(axes, names)
    notes(figure, "; ".join(run.name for run in runs), "training accuracy is measured on crops")

