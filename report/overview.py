"""Figures over several studies: claims, the grids' variance, both networks, types of dropout."""

import math

import numpy as np
from matplotlib.figure import Figure

from report.arguments import by_split
from report.drawing import (
    BLUE,
    DASHES,
    GREY,
    OF_NETWORK,
    ORANGE,
    SKY,
    footer,
    headline,
    label_ends,
    legend_below,
    notes,
    of_quarter,
    scale,
)
from report.findings import FAILS, HOLDS, Check, Finding
from report.old_studies import BASES, Source, View
from report.variance import grids, shares

VERDICTS = {HOLDS: (BLUE, "o"), FAILS: (ORANGE, "s")}
MILD = 0.4  # the highest drop rate of the bars without the extreme ones


def claims(figure: Figure, found: list[Finding]) -> None:
    """Every number that decides a claim, as an interval; claims from top to bottom."""
    rows = [(finding, check, verdict) for finding in found for check, _, verdict in finding.decided
            if isinstance(check, Check) and check.estimate and not math.isnan(check.estimate.half)]
    if not rows:
        return
    figure.set_size_inches(8.4, max(4.0, 1.5 + 0.19 * len(rows)))
    axes = figure.subplots()
    for y, (finding, check, verdict) in enumerate(rows):
        colour, marker = VERDICTS.get(verdict, (GREY, "D"))
        axes.errorbar(check.estimate.mean, -y, xerr=check.estimate.half, color=colour,
                      marker=marker, ms=4.5, capsize=2, lw=1.3,
                      mfc=colour if marker != "D" else "white")
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
                    [f"{check.what}  [{finding.number}]" for finding, check, _ in rows], fontsize=8)
    axes.grid(axis="y", visible=False)
    axes.set(ylim=(-len(rows) + 0.4, 0.6), xlabel="difference, in accuracy, loss or share of time")
    headline(figure, "The claims: differences and their 95 % intervals")
    notes(figure, "[number of the claim]; right of 0 (or between the ticks) the claim is right; "
                  "blue circle: holds, orange square: does not hold, white diamond: undecided; "
                  "intervals are not corrected, verdicts are (Holm, and for the best of several)")


def variance(figure: Figure, source: Source) -> None:
    """Which setting decides a grid's validation accuracy: the analysis of variance."""
    found = grids(source)
    if not found:
        return
    names = list(dict.fromkeys(name for grid in found for name in shares(grid.values)))
    names.sort(key=lambda name: (name != "seed", -name.count("×")))  # seed below, factors on top
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, grid in zip(panels, found, strict=True):
        mild = [rate <= MILD for rate in grid.levels[-1]]
        bars = [("all drop rates", BLUE, grid.values)]
        if 0 < sum(mild) < len(mild):
            bars.append((f"drop rates up to {MILD}", SKY, grid.values[:, :, mild]))
        for i, (text, colour, values) in enumerate(bars):
            part, up = shares(values), 0.2 * (len(bars) - 1 - 2 * i)
            for place, name in enumerate(names):
                share = 100 * part.get(name, 0)
                axes.barh(place + up, share, 0.38, color=colour, label=text * (place == 0))
                axes.text(share + 1.5, place + up, f"{share:.1f}" if name in part else "–",
                          va="center", fontsize=8.5)
        axes.set(title=f"{grid.network.upper()} grid", xlim=(0, 104),
                 xlabel="share of the variance (%)")
        axes.set_yticks(range(len(names)), [
            name.replace("_", " ").replace(" × ", " ×\n", name.count("×") - 1)
            for name in names], fontsize=9.5)
        axes.grid(axis="y", visible=False)
    legend_below(figure)
    notes(figure, "best validation accuracy over the full grid, seeds that all settings have; "
                  + "; ".join(map(str, found))
                  + "; with one seed the interaction of all holds chance too"
                  * any(len(grid.seeds) == 1 for grid in found))


def networks(figure: Figure, views: dict[str, View]) -> None:
    """The MLP beside the CNN, each at its defaults: training and validation accuracy."""
    used = {name: view for name in ("MLP", "CNN")
            if defaults(name) in (view := views[f"{name}_ablation"]).curves}
    if not used:
        return
    axes, names = figure.subplots(), []
    for name, view in used.items():
        for key, dash in (("val_acc", "-"), ("train_acc", DASHES[0.4])):
            mean = 100 * view.curves[defaults(name)].values(key).mean(0)
            axes.plot(np.arange(1, len(mean) + 1), mean, ls=dash, lw=1.8,
                      color=OF_NETWORK[view.study.network])
            names.append(f"{name}, {'validation' if key == 'val_acc' else 'training'}")
    longest = max(line.get_xdata()[-1] for line in axes.lines)
    axes.set(xlabel="epoch", ylabel="accuracy (%)", xlim=(1, max(2, longest)),
             title="The CNN beside the MLP, at their defaults")
    label_ends(axes, names)
    notes(figure, *(f"{name}: {footer(view)[0]}" for name, view in used.items()),
          "each for its own epochs; mean over seeds")


def defaults(name: str) -> str:
    return f"{BASES[name.lower()]}_False_False"


def dropout_types(figure: Figure, view: View) -> None:
    """Accuracy over the drop rate, dropping values or maps."""
    if not view.curves:
        return
    rates = sorted({float(label.split("_")[2]) for label in view.curves})
    by_split(figure, view, rates, "drop rate", {
        "128_0.001_{}_1d": {"label": "1d: single activations", "color": ORANGE, "ls": "--",
                            "marker": "s"},
        "128_0.001_{}_2d": {"label": "2d: whole maps", "color": BLUE, "ls": "-", "marker": "o"},
    }, log=False)
    headline(figure, view.study.title)
    notes(figure, *footer(view, of_quarter(view)))


def far(figure: Figure, source: Source) -> None:
    """The CNN with crops, flips and a schedule: accuracy over the epochs."""
    runs = [run for run in source.of("cnn") if run.settings and run.settings.augment and run.rows]
    if not runs:
        return
    axes = figure.subplots()
    for run, colour in zip(runs, scale(len(runs)), strict=True):
        for key, dash, text in (("test_acc", "-", "test"),
                                ("train_acc", DASHES[0.4], "training, on crops")):
            axes.plot([row["epoch"] for row in run.rows], [100 * row[key] for row in run.rows],
                      color=colour, ls=dash, lw=1.7,
                      label=f"{run.settings.learning_rate:g}, {len(run.rows)} epochs, {text}")
    axes.set(xlabel="epoch", ylabel="accuracy (%)",
             title="The CNN with crops, flips and one cycle",
             xlim=(1, max(len(run.rows) for run in runs) + 1))
    axes.legend(loc="lower right", title="highest learning rate", alignment="left",
                title_fontsize=9.5)
    notes(figure, "; ".join(run.name for run in runs))
