"""What the older report argues and never measured: figure, table and verdicts for each argument.

Differences are in validation accuracy over the last quarter of the epochs, in percentage points.
"""

import math
from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from report.drawing import (
    BLUE,
    DASHES,
    GREEN,
    MARKERS,
    OF_NETWORK,
    ORANGE,
    footer,
    headline,
    legend_below,
    line,
    log_axis,
    notes,
    of_quarter,
    pair,
    scale,
    title_of,
)
from report.findings import SAME, Check, Finding
from report.old_statistics import Estimate, Pool
from report.old_studies import (
    DECAYS,
    DROP_RATES,
    HIDDEN_SIZES,
    PATCHES,
    RATES_AGAINST_DECAY,
    SMALL_BATCHES,
    TRAIN_IMAGES,
    Curve,
    View,
)
from report.tables import NOT_YET, markdown, p_text

MEASURE = "quarter_val_acc"
ARMS = {"with": ("with batch normalization", BLUE, "-", "o"),
        "without": ("without", ORANGE, "--", "s"),
        "detached": ("with, statistics detached", GREEN, ":", "^")}


# Figures


def lines(axes, view: View, xs, pattern: str, key: str, **style) -> None:
    """A measure over xs, where `pattern` names the curve of each x."""
    found = [(x, curve) for x in xs if (curve := view.complete(pattern.format(x)))]
    if found:
        line(axes, [x for x, _ in found], [curve for _, curve in found], key, **style)


def by_split(figure: Figure, view: View, xs, name: str, styles: dict[str, dict],
             log: bool = True) -> None:
    """Validation and training accuracy over xs, a line per pattern of curves' names."""
    for axes, key, split in zip(pair(figure), (MEASURE, "quarter_train_acc"),
                                ("validation", "training"), strict=True):
        for pattern, style in styles.items():
            lines(axes, view, xs, pattern, key, **style)
        axes.set(xlabel=name, ylabel=f"{split} accuracy (%)")
        if log:
            log_axis(axes, xs, name)
    legend_below(figure)


def by_rate(figure: Figure, view: View, xs, name: str, rates) -> None:
    by_split(figure, view, xs, name, {
        f"{{}}_{p}": {"label": f"drop rate {p}", "color": scale(len(rates))[i], "ls": DASHES[p],
                      "marker": MARKERS[i]} for i, p in enumerate(rates)})


def batch_norm(figure: Figure, view: View) -> None:
    by_split(figure, view, SMALL_BATCHES, "batch size", {
        f"{{}}_{arm}": {"label": text, "color": colour, "ls": dash, "marker": marker}
        for arm, (text, colour, dash, marker) in ARMS.items()})


def weight_decay(figure: Figure, view: View) -> None:
    """Either way of regularizing over its own range, and neither as a line across."""
    figure.set_size_inches(8.4, 6)
    validation = [("val_acc", "-", "o", "best epoch"), (MEASURE, "--", "s", "last quarter")]
    training = [("quarter_train_acc", ":", "^", "last quarter")]
    for row, split, keys in zip(figure.subplots(2, 2, sharey="row"), ("validation", "training"),
                                (validation, training), strict=True):
        for axes, label, xs in zip(row, ("drop_{}", "decay_{}"), (RATES_AGAINST_DECAY, DECAYS),
                                   strict=True):
            for key, dash, marker, text in keys:
                lines(axes, view, xs, label, key, color=BLUE, ls=dash, marker=marker,
                      label=f"{split}, {text}")
                if neither := view.complete("drop_0.0"):
                    axes.axhline(100 * neither.mean(key), color=ORANGE, lw=1, ls=dash,
                                 label="the same with neither")
        row[0].set(xlabel="drop rate", ylabel=f"{split} accuracy (%)")
        log_axis(row[1], DECAYS, "decoupled weight decay" + (
            "; worse ones lie below" * (split == "validation")))
        if split == "validation" and row[0].lines:  # or the strongest would flatten all else
            row[0].set_ylim(row[0].dataLim.y0 - 1)
    legend_below(figure)


def shuffled_patches(figure: Figure, *both: View) -> None:
    """The MLP and the CNN over the side of the patches that change places."""
    axes = figure.subplots()
    for view, marker in zip(both, "so", strict=True):
        network = view.study.network
        lines(axes, view, [str(size) for size in PATCHES], "{}", MEASURE,
              color=OF_NETWORK[network], marker=marker, label=network.upper())
    axes.set(title="Accuracy when patches change places, alike in training and test",
             xlabel="side of a patch in pixels (32: the whole image)",
             ylabel="validation accuracy (%)")
    if axes.containers:
        axes.legend()


FIGURES = {
    "capacity": partial(by_rate, xs=HIDDEN_SIZES, name="hidden units", rates=DROP_RATES),
    "weight_decay": weight_decay,
    "data_size": partial(by_rate, xs=TRAIN_IMAGES, name="training images", rates=DROP_RATES[:4]),
    "batch_norm": batch_norm, "shuffled_patches": shuffled_patches}


def draw(figure: Figure, name: str, views: dict[str, View]) -> None:
    own = of_argument(name, views)
    shown = [view for view in own if view.curves]
    if not shown:
        return
    FIGURES[name](figure, *own)
    if len(own) > 1:
        notes(figure, *(f"{view.study.network.upper()}: {text}" for view in shown
                        for text in footer(view) if text),
              of_quarter(max(shown, key=lambda view: max(view.seeds))))
    else:
        headline(figure, title_of(own[0], own[0].study.title))
        notes(figure, *footer(own[0], of_quarter(own[0])))


def of_argument(name: str, views: dict[str, View]) -> list[View]:
    return [view for key, view in views.items() if key.endswith(name)]


# Tables and verdicts


def points(estimate: Estimate | None) -> str:
    """A difference of accuracies in percentage points, with its 95 % interval."""
    if estimate is None:
        return "not run yet"
    mean, half = 100 * estimate.mean, 100 * estimate.half
    return f"{mean:+.1f}" + f" [{mean - half:+.1f}, {mean + half:+.1f}]" * (not math.isnan(half))


def answer(name: str, views: dict[str, View], pool: Pool) -> str:
    """A table of differences, and what they make of the argument."""
    table, claims = ANSWERS[name](pool, *of_argument(name, views))
    return f"{table}\n\n" + "\n".join(map(sentence, claims))


def sentence(claim: Finding) -> str:
    """A claim's verdict, and the numbers that decide it."""
    numbers = "; ".join(
        f"{check.what} {points(check.estimate)}"
        + ("" if math.isnan(check.estimate.error) else f", p {p_text(p)}")
        for check, p, _ in claim.decided if check.estimate)
    reason = f" ({claim.reason})" * bool(claim.reason)
    return f"- {claim.claim}: **{claim.verdict}**{reason}" + f": {numbers}" * bool(numbers) + "."


def best(view: View, labels, measure: str = MEASURE) -> Curve | None:
    found = [curve for label in labels if (curve := view.complete(label))]
    return max(found, key=lambda curve: curve.mean(measure), default=None)


def percent(curve: Curve | None, measure: str = MEASURE) -> str:
    return f"{100 * curve.mean(measure):.1f}" if curve else NOT_YET


class Gains:
    """At each x, the best drop rate above 0 and none."""

    def __init__(self, pool: Pool, view: View, xs, rates):
        self.pool, self.family = pool, len(rates) - 1
        self.at = {x: (best(view, [f"{x}_{p}" for p in rates[1:]]), view.complete(f"{x}_0.0"))
                   for x in xs}

    def table(self, what: str) -> str:
        return markdown([what, "best drop rate above 0", "without dropout (%)", "gain of dropout"],
                        [[x, dropped.label.rpartition("_")[2], percent(none),
                          points(self.pool.estimate(MEASURE, dropped, none))]
                         for x, (dropped, none) in self.at.items() if dropped and none])

    def more(self, x: int, y: int, family: int = 1) -> Check:
        """How much larger the gain is at x than at y."""
        return Check(f"gain at {x} − at {y}",
                     self.pool.estimate(MEASURE, *self.at[x], *self.at[y]),
                     family=family * self.family)


def of_capacity(pool: Pool, view: View) -> tuple[str, list[Finding]]:
    gains = Gains(pool, view, HIDDEN_SIZES, DROP_RATES)
    return gains.table("hidden units"), [Finding(0, "The gain rises with the hidden layer", [
        gains.more(HIDDEN_SIZES[-1], HIDDEN_SIZES[0])])]


def of_data_size(pool: Pool, view: View) -> tuple[str, list[Finding]]:
    gains = Gains(pool, view, TRAIN_IMAGES, DROP_RATES[:4])
    fewest, *between, most = TRAIN_IMAGES
    middle = max(between, key=lambda n: -math.inf if None in gains.at[n] else
                 gains.at[n][0].mean(MEASURE) - gains.at[n][1].mean(MEASURE))
    return gains.table("training images"), [Finding(0, "The gain is largest in between", [
        gains.more(middle, end, len(between)) for end in (fewest, most)])]


def of_decay(pool: Pool, view: View) -> tuple[str, list[Finding]]:
    names = [f"drop_{p}" for p in RATES_AGAINST_DECAY[1:]], [f"decay_{d}" for d in DECAYS]
    neither = view.complete("drop_0.0")
    rows, checks = [], []
    for measure, where in ((MEASURE, "last quarter"), ("val_acc", "best epoch")):
        pick = [best(view, labels, measure) for labels in names]
        against = pool.estimate(measure, *pick)
        at_end = any(curve and curve.label == labels[-1]
                     for curve, labels in zip(pick, names, strict=True))
        checks.append(Check(f"dropout − decay, {where}", against, obstacle=
                            "a best setting lies at the end of its range" * at_end,
                            family=math.prod(map(len, names))))
        rows.append([where, percent(neither, measure),
                     *(curve.label.partition("_")[2] if curve else NOT_YET for curve in pick),
                     *(points(pool.estimate(measure, curve, neither)) for curve in pick),
                     points(against)])
    return markdown(["accuracy", "neither (%)", "best drop rate", "best decay", "dropout − neither",
                     "decay − neither", "dropout − decay"], rows), [
        Finding(0, "Dropout beats weight decay", checks)]


def of_norm(pool: Pool, view: View) -> tuple[str, list[Finding]]:
    arms = {n: {arm: view.complete(f"{n}_{arm}") for arm in ARMS} for n in SMALL_BATCHES}

    def gain(without: str, *sizes: int, measure: str = MEASURE) -> Estimate | None:
        """Of the whole layer over another arm, at one batch size or at one more than at another."""
        return pool.estimate(measure, *(arms[n][arm] for n in sizes for arm in ("with", without)))

    few, most, usual = SMALL_BATCHES[0], SMALL_BATCHES[-1], 1024
    table = markdown(["batch size", "with it (%)", "with − without",
                      "with − without, training accuracy", "with − detached"],
                     [[n, percent(known["with"]), points(gain("without", n)),
                       points(gain("without", n, measure="quarter_train_acc")),
                       points(gain("detached", n))] for n, known in arms.items()
                      if any(known.values())])
    return table, [
        Finding(0, "Batch normalization gains more with large batches than with small ones", [
            Check(f"gain at {most} − at {few}", gain("without", most, few))]),
        Finding(0, f"At {usual} it is worse without the gradient through its statistics", [
            Check("with − detached", gain("detached", usual))]),
        Finding(0, "Detached statistics cost more the larger the batch", [
            Check(f"cost at {most} − at {few}", gain("detached", most, few))])]


def of_patches(pool: Pool, mlp: View, cnn: View) -> tuple[str, list[Finding]]:
    (mlp_whole, mlp_pixels), (cnn_whole, cnn_pixels) = (
        [view.complete(str(size)) for size in (PATCHES[0], PATCHES[-1])] for view in (mlp, cnn))

    unlike = "" if mlp.epochs == cnn.epochs else (
        f"the MLP was trained for {mlp.epochs} epochs, the CNN for {cnn.epochs}")

    def check(what: str, *curves: Curve | None, **more) -> Check:
        return Check(what, pool.estimate(MEASURE, *curves), **more)

    table = markdown(["side of a patch", "MLP (%)", "CNN (%)", "CNN − MLP"],
                     [[size, percent(one), percent(other),
                       "–" if unlike else points(pool.estimate(MEASURE, other, one))]
                      for size in PATCHES
                      for one, other in [[view.complete(str(size)) for view in (mlp, cnn)]]
                      if one or other])
    return table, [
        Finding(0, "Shuffling pixels takes nothing from the MLP, less than a point either way", [
            check("shuffled pixels − whole images", mlp_pixels, mlp_whole, bounds=SAME)]),
        Finding(0, "It takes accuracy from the CNN", [
            check("whole images − shuffled pixels", cnn_whole, cnn_pixels)]),
        Finding(0, "The CNN's lead is larger on whole images than on shuffled pixels", [
            check("lead on whole images − on shuffled pixels",
                  cnn_whole, mlp_whole, cnn_pixels, mlp_pixels, obstacle=unlike)])]


ANSWERS: dict[str, Callable[..., tuple[str, list[Finding]]]] = {
    "capacity": of_capacity, "weight_decay": of_decay, "data_size": of_data_size,
    "batch_norm": of_norm, "shuffled_patches": of_patches}
