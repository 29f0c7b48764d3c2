"""Studies that vary one setting along an axis: their figures, and the tables of differences."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from report.claims import (
    DECAYED,
    DROPPED,
    HIDDEN_SIZES,
    PATCHES,
    RATES,
    SMALL_BATCHES,
    TRAIN_IMAGES,
    deep,
    gain,
    noisy,
    norm,
    patches,
    pooled,
)
from report.drawing import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    INTERVALS,
    MARKERS,
    OF_NETWORK,
    ORANGE,
    SKY,
    footer,
    headline,
    legend_below,
    line,
    log_axis,
    notes,
    plain_ticks,
    scale,
    title_of,
)
from report.evidence import BEST, QUARTER, Cell, Evidence, cell
from report.frame import Curve, View
from report.tables import NOT_YET, markdown, value
from studies import SWEEP

QUARTERS = (("quarter_val_acc", "validation accuracy (%)"),
            ("quarter_train_acc", "training accuracy (%)"))
NORM = {False: ("with batch normalization", BLUE, "-", "o"),
        True: ("without", ORANGE, "--", "s")}
FULL = {"train_images": 40_000, "shuffled_patches": 32}  # what None stands for on an axis


@dataclass(frozen=True)
class Sweep:
    """A figure over one setting: a line for each arm of the others."""

    study: str
    along: str
    axis: str  # its name on the axis
    arm: Callable[[Curve], tuple]  # text, colour, dash, marker
    log: bool = True


def by_rate(curve: Curve) -> tuple:
    rate = curve.settings.drop_rate
    place = min(round(5 * rate), 4)
    return f"drop rate {rate:g}", scale(5)[place], DASHES.get(rate, "-"), MARKERS[place]


def by_norm(curve: Curve) -> tuple:
    if curve.settings.detach_statistics:
        return "with, statistics detached", GREEN, ":", "^"
    return NORM[curve.settings.without_BatchNorm]


def by_type(curve: Curve) -> tuple:
    kind, behind = curve.settings.dropout_type, bool(curve.settings.pool_first)
    colour, marker = {("1d", False): (ORANGE, "s"), ("2d", False): (BLUE, "o"),
                      ("1d", True): (SKY, "^"), ("2d", True): (GREEN, "D")}[kind, behind]
    text = "1d: single activations" if kind == "1d" else "2d: whole maps"
    return text + ", behind pooling" * behind, colour, "--" if kind == "1d" else "-", marker


def by_depth(curve: Curve) -> tuple:
    text, colour, dash, marker = by_norm(curve)
    if rate := curve.settings.drop_rate:
        return f"{text}, drop rate {rate:g}", SKY if colour == BLUE else GREEN, dash, marker
    return f"{text}, no dropout", colour, dash, marker


def by_noise(curve: Curve) -> tuple:
    return (("Gaussian noise of the same variance", ORANGE, "--", "s")
            if curve.settings.gaussian_dropout else ("dropout", BLUE, "-", "o"))


SWEEPS = {
    "capacity": Sweep("capacity", "hidden_size", "hidden units", by_rate),
    "data_size": Sweep("data_size", "train_images", "training images", by_rate),
    "batch_norm": Sweep("batch_norm", "batch_size", "batch size", by_norm),
    "dropout_types": Sweep("dimention", "drop_rate", "drop rate", by_type, log=False),
    "depth": Sweep("depth", "hidden_layers", "hidden layers, at the best learning rate", by_depth),
    "pooling": Sweep("pooling", "drop_rate", "drop rate", by_type, log=False),
    "noise": Sweep("noise", "drop_rate", "drop rate", by_noise, log=False),
    "decayed_dropout": Sweep("decayed_dropout", "weight_decay", "decoupled weight decay", by_rate)}


def catalogue(evidence: Evidence) -> dict[str, Callable[[Figure], None]]:
    views = evidence.views
    return {name: partial(draw, sweep=sweep, view=views[sweep.study], evidence=evidence)
            for name, sweep in SWEEPS.items()} | {
        "weight_decay": partial(weight_decay, view=views["weight_decay"], evidence=evidence),
        "shuffled_patches": partial(shuffled_patches, evidence=evidence)} | {
        f"{n}_learning_rates": partial(learning_rates, view=views[f"{n}_learning_rates"],
                                       evidence=evidence) for n in ("MLP", "CNN")}


def lines(axes, curves: list[Curve], along: str, key: str, arm: Callable, evidence: Evidence,
          factor: float = 100) -> None:
    """A line for each arm; where several curves share a place, the best on validation."""
    arms: dict[tuple, dict[float, Curve]] = {}
    for curve in curves:
        at = arms.setdefault(arm(curve), {})
        x = getattr(curve.settings, along) or FULL.get(along, 0)
        at[x] = max(curve, at.get(x, curve), key=lambda each: each.mean("quarter_val_acc"))
    for text, colour, dash, marker in sorted(arms, key=str):
        at = dict(sorted(arms[text, colour, dash, marker].items()))
        line(axes, list(at), list(at.values()), key, evidence.pool, factor, label=text,
             color=colour, ls=dash, marker=marker)


def draw(figure: Figure, sweep: Sweep, view: View, evidence: Evidence) -> None:
    """Validation and training accuracy over one setting."""
    curves = view.all_complete()
    if not curves:
        return
    figure.set_size_inches(8.4, 4.2)
    for axes, (key, text) in zip(figure.subplots(1, 2), QUARTERS, strict=True):
        lines(axes, curves, sweep.along, key, sweep.arm, evidence)
        axes.set(xlabel=sweep.axis, ylabel=text)
        if sweep.log:
            log_axis(axes, sorted({getattr(curve.settings, sweep.along) or FULL.get(sweep.along, 0)
                                   for curve in curves}), sweep.axis)
    legend_below(figure)
    headline(figure, title_of(view, view.study.title))
    notes(figure, *footer(view, f"mean over the last quarter of the epochs; {INTERVALS}"))


def weight_decay(figure: Figure, view: View, evidence: Evidence) -> None:
    """Either way of regularizing over its own range, and neither as a line across."""
    curves = view.all_complete()
    if not curves:
        return
    figure.set_size_inches(8.4, 6.2)
    keys = (("val_acc", "validation, best epoch", "-", "o"),
            ("quarter_val_acc", "validation, last quarter", "--", "s"),
            ("quarter_train_acc", "training, last quarter", ":", "^"))
    for row, split in zip(figure.subplots(2, 2, sharey="row"), ("validation", "training"),
                          strict=True):
        for axes, along in zip(row, ("drop_rate", "weight_decay"), strict=True):
            own = [curve for curve in curves if getattr(curve.settings, along)]
            neither = view.find(drop_rate=0.0, weight_decay=0.0)
            for key, text, dash, marker in (each for each in keys if split in each[1]):
                lines(axes, own, along, key, lambda curve, style=(text, BLUE, dash, marker): style,
                      evidence)
                if neither:
                    axes.axhline(100 * neither.mean(key), color=ORANGE, lw=1, ls=dash,
                                 label=f"neither, {text}")
        row[0].set(xlabel="drop rate", ylabel=f"{split} accuracy (%)")
        log_axis(row[1], sorted({curve.settings.weight_decay for curve in curves} - {0.0}) or [1],
                 "decoupled weight decay")
    legend_below(figure, 2)
    headline(figure, title_of(view, view.study.title))
    notes(figure, *footer(view, f"the measure stands in the legend; {INTERVALS}"))


def shuffled_patches(figure: Figure, evidence: Evidence) -> None:
    """The MLP and the CNN over the side of the patches that change places."""
    both = [evidence.views[f"{n}_shuffled_patches"] for n in ("MLP", "CNN")]
    if not any(view.all_complete() for view in both):
        return
    axes = figure.subplots()
    for view, marker in zip(both, "so", strict=True):
        network = view.study.network
        style = (network.upper(), OF_NETWORK[network], "-", marker)
        lines(axes, view.all_complete(), "shuffled_patches", "quarter_val_acc",
              lambda curve, style=style: style, evidence)
    axes.set(title="Accuracy when patches change places, alike in training and test",
             ylabel="validation accuracy (%)")
    log_axis(axes, [1, 2, 4, 8, 16, 32], "side of a patch in pixels (32: the whole image)")
    axes.legend()
    notes(figure, *(f"{view.study.network.upper()}: {text}" for view in both if view.curves
                    for text in footer(view) if text),
          f"mean over the last quarter of the epochs; {INTERVALS}")


def learning_rates(figure: Figure, view: View, evidence: Evidence) -> None:
    """What a few epochs reach over the learning rate, with and without batch normalization."""
    curves = view.all_complete()
    if not view.failed and not curves:
        return
    figure.set_size_inches(8.4, 4.2)
    left, right = figure.subplots(1, 2)
    for axes, key, factor in (left, "val_acc", 100), (right, "val_loss", 1):
        lines(axes, curves, "learning_rate", key, by_norm, evidence, factor)
        for without, (name, colour, *_) in NORM.items():
            failed = [settings.learning_rate for label, settings in view.settings.items()
                      if label in view.failed and settings.without_BatchNorm == without]
            if failed:
                axes.plot(failed, [factor * view.guessing[key]] * len(failed), "x", color=colour,
                          ms=9, label=f"{name}: diverged")
        axes.axhline(factor * view.guessing[key], color=GREY, lw=1, ls=":", label="guessing")
        axes.set(xscale="log", xlabel="learning rate of Adam")
    left.set(ylim=(0, None), ylabel="best validation accuracy (%)")
    right.set(yscale="log", ylabel="lowest validation loss (nats)")
    plain_ticks(right)
    legend_below(figure)
    headline(figure, title_of(view, f"{view.study.title} and validation accuracy and loss"))
    notes(figure, *footer(view, f"best of the epochs; {INTERVALS}"))


# Tables


def percent(curve: Curve | None, measure: str = "quarter_val_acc") -> str:
    return f"{100 * curve.mean(measure):.1f}" if curve else NOT_YET


def rows_of_gain(evidence: Evidence, study: str, along: str, values: tuple, rates: tuple) -> str:
    """At each value the gain of the best drop rate above 0 over none."""
    name = {"hidden_size": "hidden units", "train_images": "training images"}[along]
    rows = []
    for x in values:
        dropped, none = (evidence.curve(each) for each in gain(study, rates, **{along: x}))
        if dropped and none:
            rows.append([x or FULL[along], dropped.settings.drop_rate, percent(none),
                         evidence.pool.estimate("quarter_val_acc", dropped, none).points])
    return markdown([name, "best drop rate above 0", "without dropout (%)", "gain of dropout"],
                    rows)


def points(evidence: Evidence, *cells: Cell, **how) -> str:
    estimate = evidence.difference(*cells, **how)
    return estimate.points if estimate else "not run yet"


def capacity(evidence: Evidence) -> str:
    return rows_of_gain(evidence, "capacity", "hidden_size", HIDDEN_SIZES, RATES[1:])


def data_size(evidence: Evidence) -> str:
    return rows_of_gain(evidence, "data_size", "train_images", TRAIN_IMAGES, RATES[1:4])


def decay(evidence: Evidence) -> str:
    neither = cell("weight_decay", drop_rate=0.0, weight_decay=0.0)
    rows = []
    for by, measure in ((QUARTER, "quarter_val_acc"), (BEST, "val_acc")):
        best = [evidence.curve(each, measure) for each in (DROPPED, DECAYED)]
        rows.append([by, percent(evidence.curve(neither), measure),
                     best[0].settings.drop_rate if best[0] else NOT_YET,
                     best[1].settings.weight_decay if best[1] else NOT_YET,
                     *(points(evidence, *pair, by=by) for pair in (
                         (DROPPED, neither), (DECAYED, neither), (DROPPED, DECAYED)))])
    return markdown(["accuracy", "neither (%)", "best drop rate", "best decay", "dropout − neither",
                     "decay − neither", "dropout − decay"], rows)


def batch_norm(evidence: Evidence) -> str:
    rows = [[n, percent(evidence.curve(norm(n))), points(evidence, norm(n), norm(n, without=True)),
             points(evidence, norm(n), norm(n, without=True), of="train_acc"),
             points(evidence, norm(n), norm(n, detached=True))] for n in SMALL_BATCHES
            if evidence.curve(norm(n)) or evidence.curve(norm(n, without=True))]
    return markdown(["batch size", "with it (%)", "with − without", "with − without, training",
                     "with − detached"], rows)


def patch_table(evidence: Evidence) -> str:
    same = len({evidence.views[f"{n}_shuffled_patches"].epochs for n in ("MLP", "CNN")}) == 1
    rows = []
    for side in PATCHES:
        mlp, cnn = (evidence.curve(patches(n, side)) for n in ("MLP", "CNN"))
        if mlp or cnn:
            rows.append([side or 32, percent(mlp), percent(cnn), points(
                evidence, patches("CNN", side), patches("MLP", side)) if same else "–"])
    return markdown(["side of a patch", "MLP (%)", "CNN (%)", "CNN − MLP"], rows)


def depth(evidence: Evidence) -> str:
    return markdown(["hidden layers", "with − without, no dropout",
                     "with − without, drop rate 0.2"],
                    [[n, *(points(evidence, deep(n, False, p), deep(n, True, p))
                           for p in (0.0, 0.2))] for n in (1, 2, 4, 8)])


def pooling(evidence: Evidence) -> str:
    """The same network with dropout behind pooling and before it, and the two types there."""
    pairs = {"1d: behind − before pooling": (("1d", True), ("1d", False)),
             "2d: behind − before pooling": (("2d", True), ("2d", False)),
             "behind pooling: 1d − 2d": (("1d", True), ("2d", True))}
    return markdown(["drop rate", *pairs], [
        [p, *(points(evidence, *(pooled(*arm, p) for arm in pair)) for pair in pairs.values())]
        for p in (0.2, 0.4, 0.6)])


def noise(evidence: Evidence) -> str:
    return markdown(["drop rate", "dropout − Gaussian noise"], [
        [p, points(evidence, noisy(p, False), noisy(p, True))] for p in (0.1, 0.2, 0.4, 0.6)])


def bagged(evidence: Evidence) -> str:
    return markdown(["", "bootstrap − all images"], [["one network", points(evidence, *(
        cell("bagging", bootstrap=bootstrap) for bootstrap in (True, False)))]])


TABLES = {"capacity": capacity, "data_size": data_size, "weight_decay": decay,
          "batch_norm": batch_norm, "shuffled_patches": patch_table, "depth": depth,
          "pooling": pooling, "noise": noise, "bagging": bagged}


def differences(evidence: Evidence) -> str:
    """All of these tables, for results/tables/differences.md."""
    parts = []
    for name, table in TABLES.items():
        views = [view for key, view in evidence.views.items() if key.endswith(name) and view.curves]
        parts += [f"## {views[0].study.title}\n\n{table(evidence)}"] if views else []
    parts += [f"## {view.study.title}\n\n{rates_table(view)}" for key, view in
              evidence.views.items() if view.study.name == "rates" and view.curves]
    return "# Differences in percentage points, and the best at each learning rate\n\n" + (
        "\n\n".join(parts))


def rates_table(view: View) -> str:
    """Best validation accuracy at each learning rate, with and without batch normalization."""
    def text(lr: float, without: bool) -> str:
        if curve := view.find(learning_rate=lr, without_BatchNorm=without):
            return value(curve, "val_acc")
        label = next(label for label, settings in view.settings.items() if (
            settings.learning_rate, settings.without_BatchNorm) == (lr, without))
        return "diverges" if label in view.failed else NOT_YET

    return markdown(["learning rate", "with batch normalization", "without"],
                    [[lr, *(text(lr, without) for without in (False, True))] for lr in SWEEP])
