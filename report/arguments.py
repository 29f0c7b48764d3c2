"""What the older report argues and never measured: a figure and an answer for each argument.

Differences are in validation accuracy over the last quarter of the epochs, in percentage points.
"""

import math

from matplotlib.figure import Figure

from report.drawing import (
    BLUE,
    DASHES,
    GREEN,
    MARKERS,
    ORANGE,
    footer,
    legend_below,
    line,
    log_axis,
    notes,
    nothing,
    pair,
    scale,
    title_of,
)
from report.statistics import Estimate, Pool
from report.studies import (
    DECAYS,
    DROP_RATES,
    HIDDEN_SIZES,
    PATCHES,
    RATES_AGAINST_DECAY,
    SMALL_BATCHES,
    TRAIN_IMAGES,
    View,
)

MEASURE = "quarter_val_acc"
ARMS = {"with": ("with batch normalization", BLUE, "-", "o"),
        "without": ("without", ORANGE, "--", "s"),
        "detached": ("with, statistics detached", GREEN, ":", "^")}


def points(estimate: Estimate | None) -> str:
    """A difference of accuracies in percentage points, with its 95 % interval."""
    if estimate is None:
        return "not run yet"
    mean, half = 100 * estimate.mean, 100 * estimate.half
    return f"{mean:+.1f}" + f" [{mean - half:+.1f}, {mean + half:+.1f}]" * (not math.isnan(half))


def lines(axes, view: View, xs, pattern: str, key: str, **style) -> None:
    """A measure over xs, where `pattern` names the curve of each x."""
    found = [(x, curve) for x in xs if (curve := view.complete(pattern.format(x)))]
    if found:
        line(axes, [x for x, _ in found], [curve for _, curve in found], key, **style)


def by_rate(figure: Figure, view: View, xs, name: str, rates) -> list:
    """Validation and training accuracy over xs, a line per drop rate."""
    both = pair(figure)
    for axes, key, split in zip(both, (MEASURE, "quarter_train_acc"), ("validation", "training"),
                                strict=True):
        for i, p in enumerate(rates):
            lines(axes, view, xs, f"{{}}_{p}", key, label=f"drop rate {p}",
                  color=scale(len(rates))[i], ls=DASHES[p], marker=MARKERS[i], ms=4.5)
        axes.set(title=split, ylabel=f"{split} accuracy (%)")
        log_axis(axes, xs, name)
        if axes.containers:
            legend_below(axes, 2)
    return both


def capacity(figure: Figure, view: View) -> None:
    by_rate(figure, view, HIDDEN_SIZES, "hidden units", DROP_RATES)


def data_size(figure: Figure, view: View) -> None:
    by_rate(figure, view, TRAIN_IMAGES, "training images", DROP_RATES[:4])


def weight_decay(figure: Figure, view: View) -> None:
    """Either way of regularizing over its own range."""
    left, right = pair(figure)
    for axes, label, xs, name in ((left, "drop_{}", RATES_AGAINST_DECAY, "drop rate"),
                                  (right, "decay_{}", DECAYS, "weight decay")):
        for key, colour, dash, text in (("val_acc", BLUE, "-", "validation, best epoch"),
                                        (MEASURE, BLUE, "--", "validation, last quarter"),
                                        ("quarter_train_acc", ORANGE, ":",
                                         "training, last quarter")):
            lines(axes, view, xs, label, key, color=colour, ls=dash, marker="o", ms=4.5, label=text)
        axes.set(title=name, xlabel=name, ylabel="accuracy (%)")
        if axes.containers:
            legend_below(axes)
    right.sharey(left)
    log_axis(right, DECAYS, "weight decay, decoupled (AdamW)")


def batch_norm(figure: Figure, view: View) -> None:
    for axes, key, split in zip(pair(figure), (MEASURE, "quarter_train_acc"),
                                ("validation", "training"), strict=True):
        for arm, (text, colour, dash, marker) in ARMS.items():
            lines(axes, view, SMALL_BATCHES, f"{{}}_{arm}", key, color=colour, ls=dash,
                  marker=marker,
                  ms=4.5, label=text)
        axes.set(title=split, ylabel=f"{split} accuracy (%)")
        log_axis(axes, SMALL_BATCHES, "batch size")
        if axes.containers:
            legend_below(axes)


def shuffled_patches(figure: Figure, views: dict[str, View]) -> None:
    """Both networks over the side of the patches that change places."""
    axes = figure.add_axes((0.09, 0.2, 0.88, 0.72))
    for name, colour, marker in (("MLP", ORANGE, "s"), ("CNN", BLUE, "o")):
        lines(axes, views[f"{name}_shuffled_patches"], [str(size) for size in PATCHES], "{}",
              MEASURE,
              color=colour, marker=marker, label=name)
    axes.set(title="Accuracy when patches change places, alike in training and test",
             xlabel="side of a patch in pixels (32: the whole image)",
             ylabel="validation accuracy (%)")
    if axes.containers:
        axes.legend()


def draw(figure: Figure, name: str, views: dict[str, View]) -> None:
    view = views[name if name in views else "CNN_shuffled_patches"]
    if not any(views[each].curves for each in views if each.endswith(name)):
        nothing(figure, view.study.title, view.study.command)
    elif name == "shuffled_patches":
        shuffled_patches(figure, views)
        notes(figure, *(line for each in ("MLP", "CNN")
                        for line in footer(views[f"{each}_{name}"])))
    else:
        FIGURES[name](figure, view)
        notes(figure, title_of(view, view.study.title),
              *footer(view, "mean over the last quarter of the "
                      "epochs; bars: ± 1 sd over seeds"))


FIGURES = {"capacity": capacity, "weight_decay": weight_decay, "data_size": data_size,
           "batch_norm": batch_norm, "shuffled_patches": shuffled_patches}


def answer(name: str, views: dict[str, View], pool: Pool) -> str:
    """What the runs say to an argument, in sentences."""
    if name == "shuffled_patches":
        return answer_patches(views, pool)
    view = views[name]
    return {"capacity": answer_capacity, "weight_decay": answer_decay, "data_size": answer_size,
            "batch_norm": answer_norm}[name](view, pool)


def gains(view: View, pool: Pool, xs, rates, unit: str) -> list[str]:
    """For each x, the best drop rate above 0 against none."""
    rows = []
    for x in xs:
        none = view.complete(f"{x}_0.0")
        dropped = [curve for p in rates[1:] if (curve := view.complete(f"{x}_{p}"))]
        if none and dropped:
            best = max(dropped, key=lambda curve: curve.mean(MEASURE))
            rate = best.label.rpartition("_")[2]
            rows.append(f"| {x} {unit} | {rate} | {100 * none.mean(MEASURE):.1f} | "
                        f"{points(pool.estimate(MEASURE, best, none))} |")
    return rows


def table_of_gains(rows: list[str], what: str) -> str:
    head = f"| {what} | best drop rate above 0 | accuracy without dropout (%) | gain of dropout |"
    return "\n".join([head, "| --- | --- | --- | --- |", *rows])


def answer_capacity(view: View, pool: Pool) -> str:
    return table_of_gains(gains(view, pool, HIDDEN_SIZES, DROP_RATES, "units"), "hidden layer")


def answer_size(view: View, pool: Pool) -> str:
    return table_of_gains(gains(view, pool, TRAIN_IMAGES, DROP_RATES[:4], "images"), "training set")


def answer_decay(view: View, pool: Pool) -> str:
    def best(label: str, xs, measure: str):
        found = [curve for x in xs if (curve := view.complete(label.format(x)))]
        return max(found, key=lambda curve: curve.mean(measure), default=None)

    parts = []
    for measure, where in ((MEASURE, "over the last quarter"), ("val_acc", "at the best epoch")):
        drop, decay = best("drop_{}", RATES_AGAINST_DECAY[1:], measure), best("decay_{}", DECAYS,
                                                                              measure)
        if drop and decay:
            neither = pool.estimate(measure, decay, view.complete("drop_0.0"))
            parts.append(f"{where} dropout at its best ({drop.label.partition('_')[2]}) gives "
                         f"{points(pool.estimate(measure, drop, decay))} points against weight "
                         f"decay at its "
                         f"best ({decay.label.partition('_')[2]}), which gives {points(neither)} "
                         f"against neither")
    return "; ".join(parts).capitalize() + "." if parts else "Not run yet."


def answer_norm(view: View, pool: Pool) -> str:
    rows = []
    for size in SMALL_BATCHES:
        arms = {arm: view.complete(f"{size}_{arm}") for arm in ARMS}
        if arms["with"] and (arms["without"] or arms["detached"]):
            rows.append(f"| {size} | {100 * arms['with'].mean(MEASURE):.1f} | "
                        f"{points(pool.estimate(MEASURE, arms['with'], arms['without']))} | "
                        f"{points(pool.estimate(MEASURE, arms['detached'], arms['with']))} |")
    head = "| batch size | accuracy with it (%) | with − without | detached − with |"
    return "\n".join([head, "| --- | --- | --- | --- |", *rows]) if rows else "Not run yet."


def answer_patches(views: dict[str, View], pool: Pool) -> str:
    mlp, cnn = (views[f"{name}_shuffled_patches"] for name in ("MLP", "CNN"))
    parts = []
    for view, name in ((mlp, "MLP"), (cnn, "CNN")):
        change = pool.estimate(MEASURE, view.complete("1"), view.complete("32"))
        parts.append(f"with single pixels shuffled the {name} changes by {points(change)} points"
                     if change else f"the {name} has not been run on shuffled pixels yet")
    for size in ("32", "1"):
        lead = pool.estimate(MEASURE, cnn.complete(size), mlp.complete(size))
        if lead:
            parts.append(f"the CNN's lead is {points(lead)} points on "
                         f"{'whole images' if size == '32' else 'shuffled pixels'}")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."
