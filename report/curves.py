"""The figures of curves over the epochs, and the heat maps of the grids."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from report.drawing import (
    BLUE,
    DASHES,
    HUES,
    ORANGE,
    WIDTHS,
    footer,
    headline,
    label_ends,
    notes,
    scale,
    title_of,
)
from report.old_studies import BATCH_SIZES, DROP_RATES, LEARNING_RATES, Curve, View

SPLITS = {"train": "training", "val": "validation", "test": "test"}
QUANTITIES = {"acc": ("accuracy", "accuracy (%)", 100),
              "loss": ("loss", "loss, cross entropy (nats)", 1)}
SHOWN = 10  # curves in a figure
WORDS = {"False_False": "both", "False_True": "BN, no dropout", "True_False": "dropout, no BN",
         "True_True": "neither"}


def curves(figure: Figure, view: View, split: str, quantity: str) -> None:
    """A metric over the epochs, a curve per setting; over several seeds mean and deviation."""
    what, unit, factor = QUANTITIES[quantity]
    title = f"{view.study.title}: {SPLITS[split]} {what}"
    if not view.curves:
        return
    grid = view.study.is_grid
    shown = list(view.curves.values())[:SHOWN]
    names = [f"{rank}  {curve.label}" if grid else name_of(view, curve)
             for rank, curve in enumerate(shown, 1)]
    names = [name + f"  n={len(curve.runs)}" * (len(view.seeds) > 1)
             for name, curve in zip(names, shown, strict=True)]
    axes, drawn = figure.subplots(), []
    for curve, name in zip(shown, names, strict=True):
        values = factor * curve.values(f"{split}_{quantity}")
        epochs, mean = np.arange(1, curve.epochs + 1), values.mean(0)
        style = style_of(view, curve)
        axes.plot(epochs, mean, label=name, marker="o" if curve.epochs == 1 else None, **style)
        drawn.append(mean)
        if len(values) > 1:
            deviation = values.std(0, ddof=1)
            drawn += [mean - deviation, mean + deviation]
            axes.fill_between(epochs, mean - deviation, mean + deviation, color=style["color"],
                              alpha=0.13, lw=0, zorder=1)
    cut = limit(axes, drawn)
    last = view.epochs
    step = next((step for step in (1, 5, 10, 20) if last <= 12 * step), last // 10)
    axes.set(xlabel="epoch", ylabel=f"{SPLITS[split]} {unit}", title=title_of(view, title),
             xlim=(1, last) if last > 1 else (0.5, 1.5))
    axes.set_xticks([1, *range(step + (step == 1), last + 1, step)])
    label_ends(axes, [str(rank) for rank in range(1, len(shown) + 1)] if grid else names)
    if grid:
        axes.legend(loc="upper left", bbox_to_anchor=(1.08, 1.02), title="lowest loss first",
                    title_fontsize=9.5, alignment="left", labelspacing=0.7, handlelength=2.6)
    notes(figure, *footer(view, remarks(view, len(shown))
                          + "; the axis leaves out the first epochs" * cut))


def remarks(view: View, shown: int) -> str:
    """How to read the curves."""
    ranking = f"the {shown} best of {len(view.curves)} settings by lowest validation loss"
    key = {"dimention": "colour: drop rate; dash: type",
           "dropout": "colour and dash: drop rate", "batchsize": "colour and width: batch size"}
    text = key.get(view.study.name, "colour: learning rate; dash: drop rate; width: batch size")
    if "ablation" in view.study.name:
        base = next(iter(view.study.settings)).rsplit("_", 2)[0]
        text = f"BN: batch normalization; both: the run {base}"
    spread = "; band: ± 1 sd over seeds" if max(view.seeds) > 1 else ""
    scheme = "; batch size_learning rate_drop rate" * ("ablation" not in view.study.name)
    return (ranking + "; " if view.study.is_grid else "") + text + scheme + spread


def name_of(view: View, curve: Curve) -> str:
    if "ablation" in view.study.name:
        return WORDS["_".join(curve.label.split("_")[-2:])]
    return curve.label


def style_of(view: View, curve: Curve) -> dict:
    """Colour, dash and width; each means the same in every figure."""
    settings = next(iter(curve.runs.values())).settings
    rate, batch_size = settings.drop_rate, settings.batch_size
    sizes = BATCH_SIZES[curve.network]
    rates = sorted({*DROP_RATES, *(float(label.split("_")[2]) for label in view.curves)})
    dash = DASHES.get(rate, (0, (2, 2)))
    colours = dict(zip(rates, scale(len(rates)), strict=True))
    if view.study.name == "dimention":
        whole = curve.label.endswith("2d")
        return {"color": colours[rate], "ls": "-" if whole else (0, (4, 1.5)), "lw": 1.7}
    if view.study.name == "dropout":
        return {"color": colours[rate], "ls": dash, "lw": 1.7}
    if view.study.name == "batchsize":
        tried = sorted({int(label.split("_")[0]) for label in view.curves})
        return {"color": scale(len(tried))[tried.index(batch_size)],
                "lw": WIDTHS[sizes.index(batch_size)] if batch_size in sizes else 0.7}
    if "ablation" in view.study.name:
        without_norm, without_dropout = (part == "True" for part in curve.label.split("_")[-2:])
        return {"color": ORANGE if without_norm else BLUE, "lw": 1.7,
                "ls": "-" if without_dropout else DASHES[0.2]}
    return {"color": HUES[settings.learning_rate], "ls": dash,
            "lw": WIDTHS[sizes.index(batch_size)]}


def limit(axes, lines: list[np.ndarray]) -> bool:
    """Limit the y axis to all but the first epochs, which would flatten the rest."""
    later = np.concatenate([values[-(-len(values) // 8):] if len(values) > 4 else values
                            for values in lines])
    low, high = later.min(), later.max()
    pad = 0.05 * (high - low) or 1e-3
    axes.set_ylim(low - pad, high + pad)
    return any(values.min() < low - pad or values.max() > high + pad for values in lines)


def heat_maps(figure: Figure, view: View) -> None:
    """Best validation accuracy of every setting of a grid, a panel per batch size."""
    title = title_of(view, f"{view.study.title}: best validation accuracy (%)")
    done = {label: curve for label in view.curves if (curve := view.complete(label))}
    if not done:
        return
    accuracy = {label: 100 * curve.mean("val_acc") for label, curve in done.items()}
    marked = {max(accuracy, key=accuracy.get): "-"}, {next(iter(done)): ":"}  # and lowest loss
    scaled = [value for label, value in accuracy.items() if not label.endswith("_0.8")]
    low, high = min(scaled or accuracy.values()), max(accuracy.values())
    figure.set_size_inches(8.4, 5.2)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for i, size in enumerate(BATCH_SIZES[view.study.network]):
        axes = panels.flat[i]
        labels = [[f"{size}_{lr}_{p}" for p in DROP_RATES] for lr in LEARNING_RATES]
        values = np.array([[accuracy.get(label, np.nan) for label in row] for row in labels])
        picture = axes.imshow(values, vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        axes.set_facecolor("#eeeeee")
        for (j, k), value in np.ndenumerate(values):
            label = labels[j][k]
            text = "–" if np.isnan(value) else f"{value:.1f}"
            if len(view.seeds) > 1 and label in done and len(done[label].runs) > 1:
                text += f"\nn={len(done[label].runs)}"
            light = np.isnan(value) or value - low > (high - low) / 2
            axes.text(k, j, text, ha="center", va="center", fontsize=9.5, linespacing=0.95,
                      color="black" if light else "white")
            for inset, dashes in zip((0, 0.06), marked, strict=True):
                if label in dashes:
                    axes.add_patch(matplotlib.patches.Rectangle(
                        (k - 0.46 + inset, j - 0.44 + inset), 0.92 - 2 * inset, 0.88 - 2 * inset,
                        fill=False, lw=2, ls=dashes[label], ec="black",
                        path_effects=[withStroke(linewidth=4, foreground="white")]))
        axes.set_xticks(range(len(DROP_RATES)), DROP_RATES)
        axes.set_yticks(range(len(LEARNING_RATES)), LEARNING_RATES)
        axes.set_title(f"batch size {size}", fontsize=10.5)
        axes.set(xlabel="drop rate" * (i > 1), ylabel="learning rate" * (i % 2 == 0))
        axes.grid(False)
        axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=panels, extend="min", aspect=30).outline.set_visible(False)
    headline(figure, title)
    darkest = "; values below the lowest of drop rates up to 0.6 share the darkest colour" * any(
        value < low for value in accuracy.values())
    one = "; cells without n have one seed" * (1 in view.seeds and len(view.seeds) > 1)
    notes(figure, *footer(view, "solid frame: highest accuracy; dotted: lowest validation loss, "
                                "by which settings are ranked" + darkest + one))
