"""Every figure of the report by name, and `draw_all`, which writes them."""

import io
import math
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import blended_transform_factory
from PIL import Image

from report import sweeps, theory_figures
from report.drawing import (
    BLUE,
    DASHES,
    GREY,
    HUES,
    INTERVALS,
    OF_NETWORK,
    ORANGE,
    SKY,
    WIDTHS,
    epoch_axis,
    footer,
    headline,
    is_there,
    label_ends,
    legend_below,
    limit,
    notes,
    pinned_palette,
    scale,
    title_of,
)
from report.evidence import FAILS, HOLDS, Evidence, Finding
from report.frame import Curve, Source, View
from report.statistics import Pool
from report.tables import COLUMNS
from report.variance import grids, shares
from store.files import make_folder, write_file

DPI = 160
METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
SPLITS = {"train": "training", "val": "validation", "test": "test"}
QUANTITIES = {"acc": ("accuracy", "accuracy (%)", 100),
              "loss": ("loss", "loss, cross entropy (nats)", 1)}
SHOWN = 10  # curves of a grid
SMALL_TEXT = 9
MILD = 0.4  # the highest drop rate of the bars without the extreme ones
UNITS = {"acc": "accuracy (percentage points)", "loss": "loss (nats)", "time": "share of the time"}
VERDICTS = {HOLDS: (BLUE, "o"), FAILS: (ORANGE, "s")}


def draw_all(evidence: Evidence, found: list[Finding], folder: Path, kind: str = "png",
             only: tuple[str, ...] = ()) -> list[Path]:
    """Draw every figure that has runs into the folder, or `only` some; returns their paths."""
    make_folder(folder)
    figure = Figure(dpi=DPI)
    canvas, palette = FigureCanvasAgg(figure), pinned_palette()
    paths = []
    for name, draw in catalogue(evidence, found).items():
        if only and name not in only:
            continue
        figure.clear()
        figure.set_size_inches(8.4, 4.8)
        draw(figure)
        if not any(axes.has_data() for axes in figure.axes):
            continue
        picture = io.BytesIO()
        if kind == "png":
            canvas.draw()
            pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            shaded = any(axes.images for axes in figure.axes)
            pixels = pixels.quantize() if shaded else pixels.quantize(
                palette=palette, dither=Image.Dither.NONE)
            pixels.save(picture, "png")
        else:
            figure.savefig(picture, format=kind, metadata=METADATA[kind])
        paths.append(folder / f"{name}.{kind}")
        write_file(paths[-1], picture.getvalue())
    return paths


def catalogue(evidence: Evidence, found: list[Finding]) -> dict[str, Callable[[Figure], None]]:
    """The figures by name, each as a function that draws it, or nothing where it has no runs."""
    figures: dict[str, Callable[[Figure], None]] = {}
    for name, view in evidence.views.items():
        for split in view.study.splits:
            for quantity in QUANTITIES:
                draw = best_of_grid if is_grid(view) else curves
                figures[f"{name}_{split}_{quantity}"] = partial(
                    draw, view=view, pool=evidence.pool, split=split, quantity=quantity)
        if is_grid(view):
            figures[f"{name}_heatmap"] = partial(heat_maps, view=view)
    return figures | {
        "claims": partial(claims, found=found), "networks": partial(networks, evidence=evidence),
        "variance": partial(variance, source=evidence.source),
        "far": partial(far, source=evidence.source)
    } | sweeps.catalogue(evidence) | theory_figures.catalogue(evidence)


def is_grid(view: View) -> bool:
    return "test" in view.study.splits


# Curves over the epochs


def curves(figure: Figure, view: View, pool: Pool, split: str, quantity: str) -> None:
    """A metric over the epochs, a curve per setting; over several seeds mean and deviation."""
    what, unit, factor = QUANTITIES[quantity]
    if not view.curves:
        return
    shown = distinct(view)
    axes, drawn = figure.subplots(), []
    for curve, style in ((curve, style_of(view, curve)) for curve, _ in shown):
        drawn += draw_curve(axes, curve, f"{split}_{quantity}", factor, style)
    cut = limit(axes, drawn)
    axes.set(xlabel="epoch", ylabel=f"{SPLITS[split]} {unit}",
             title=title_of(view, f"{view.study.title}: {SPLITS[split]} {what}"))
    epoch_axis(axes, view.epochs)
    label_ends(axes, [name + f"  n={len(curve.runs)}" * (len(view.seeds) > 1)
                      for curve, name in shown])
    band = "; band: ± 1 sd over seeds" * (max(view.seeds) > 1)
    notes(figure, *footer(view, key_of(view) + band
                          + "; the axis leaves out the first epochs" * cut))


def draw_curve(axes, curve: Curve, key: str, factor: float, style: dict) -> list[np.ndarray]:
    """One setting over the epochs; returns the lines that the axis has to show."""
    values = factor * curve.over_epochs(key).to_numpy()
    epochs, mean = np.arange(1, curve.epochs + 1), values.mean(0)
    axes.plot(epochs, mean, marker="o" if curve.epochs == 1 else None, **style)
    if len(values) < 2:
        return [mean]
    deviation = values.std(0, ddof=1)
    axes.fill_between(epochs, mean - deviation, mean + deviation, color=style["color"],
                      alpha=0.13, lw=0, zorder=1)
    return [mean, mean - deviation, mean + deviation]


def distinct(view: View) -> list[tuple[Curve, str]]:
    """The curves and their names; settings that are one network are drawn once."""
    named: dict[tuple, list[Curve]] = {}
    for curve in view.curves.values():
        named.setdefault(tuple(curve.numbers.index), []).append(curve)
    return [(same[0], " = ".join(name_of(view, curve) for curve in same))
            for same in named.values()]


def name_of(view: View, curve: Curve) -> str:
    settings = curve.settings
    if "without_BatchNorm" not in view.varying:
        return curve.label
    return {(False, False): "both", (False, True): "BN, no dropout", (True, False):
            "dropout, no BN", (True, True): "neither"}[
                settings.without_BatchNorm, settings.without_dropout]


def key_of(view: View) -> str:
    """How to read the curves."""
    if "without_BatchNorm" in view.varying:
        return f"BN: batch normalization; both: the run {next(iter(view.study.settings))}"
    what = {"drop_rate": "colour and dash: drop rate", "batch_size": "colour and width: batch size"}
    text = "; ".join(what[key] for key in view.varying if key in what)
    if "dropout_type" in view.varying:
        text = ("colour: drop rate; solid: whole maps (2d), dashed: single activations (1d); "
                "at drop rate 0 both are one network")
    return text + "; batch size_learning rate_drop rate"


def style_of(view: View, curve: Curve) -> dict:
    """Colour, dash and width; each means the same in every figure."""
    settings, varying = curve.settings, view.varying
    if "without_BatchNorm" in varying:
        return {"color": ORANGE if settings.without_BatchNorm else BLUE, "lw": 1.7,
                "ls": "-" if settings.without_dropout else DASHES[0.2]}
    if "drop_rate" in varying:
        rates = varying["drop_rate"]
        dash = DASHES.get(settings.drop_rate, (0, (2, 2)))
        if "dropout_type" in varying:
            dash = (0, (4, 1.5)) if settings.dropout_type == "1d" and settings.drop_rate else "-"
        return {"color": scale(len(rates))[rates.index(settings.drop_rate)], "ls": dash, "lw": 1.7}
    sizes = varying["batch_size"]
    place = sizes.index(settings.batch_size)
    return {"color": scale(len(sizes))[place], "lw": WIDTHS[min(place, 3)]}


def best_of_grid(figure: Figure, view: View, pool: Pool, split: str, quantity: str) -> None:
    """The ten best settings: their results with intervals, and their curves by batch size."""
    what, unit, factor = QUANTITIES[quantity]
    shown = list(view.curves.values())[:SHOWN]
    if not shown:
        return
    figure.set_size_inches(8.4, 5.6)
    sizes = view.varying["batch_size"]
    mosaic = figure.subplot_mosaic([["dots", *sizes[:2]], ["dots", *sizes[2:]]],
                                   width_ratios=(1.25, 1, 1))
    drawn = [values for rank, curve in enumerate(shown, 1) for values in draw_curve(
        mosaic[curve.settings.batch_size], curve, f"{split}_{quantity}", factor, grid_style(curve))]
    for size in sizes:
        axes = mosaic[size]
        cut = limit(axes, drawn)
        epoch_axis(axes, view.epochs)
        axes.set_title(f"batch {size}", fontsize=10.5)
        if not axes.lines:
            axes.text(0.5, 0.5, "none of the ten", transform=axes.transAxes, ha="center",
                      fontsize=SMALL_TEXT, color=GREY)
            axes.plot([], [])
        axes.tick_params(labelsize=9)
        axes.set_xlabel("epoch" if size in sizes[2:] else "")
    dots(mosaic["dots"], shown, pool, split, quantity)
    headline(figure, title_of(view, f"{view.study.title}: {SPLITS[split]} {what}"))
    handles = [Line2D([], [], color=colour, lw=1.7, label=f"learning rate {rate:g}")
               for rate, colour in HUES.items() if any(
                    curve.settings.learning_rate == rate for curve in shown)]
    handles += [Line2D([], [], color=GREY, ls=dash, lw=1.7, label=f"drop rate {rate:g}")
                for rate, dash in DASHES.items() if any(
                    curve.settings.drop_rate == rate for curve in shown)]
    figure.legend(handles=handles, loc="lower center", ncols=4, columnspacing=1.4)
    notes(figure, *footer(
        view, f"the {len(shown)} best of {len(view.curves)} settings, batch size_learning "
        f"rate_drop rate, lowest validation loss first; {INTERVALS}; bands: ± 1 sd over seeds"
        + "; the axes leave out the first epochs" * cut))


def grid_style(curve: Curve) -> dict:
    return {"color": HUES[curve.settings.learning_rate], "lw": 1.5,
            "ls": DASHES.get(curve.settings.drop_rate, (0, (2, 2)))}


def dots(axes, shown: list[Curve], pool: Pool, split: str, quantity: str) -> None:
    """A result of each setting with its interval, the best on top."""
    _, _, factor = QUANTITIES[quantity]
    measure = f"{split}_{quantity}"
    for rank, curve in enumerate(shown):
        estimate = pool.estimate(measure, curve)
        colour = HUES[curve.settings.learning_rate]
        axes.errorbar(factor * estimate.mean, -rank, color=colour, marker="o", ms=5, capsize=2,
                      xerr=np.nan_to_num(factor * estimate.half), elinewidth=1,
                      mfc=colour if len(curve.runs) > 1 else "white")
    axes.set_yticks([-rank for rank in range(len(shown))], [
        f"{curve.label}  n={len(curve.runs)}" for curve in shown], fontsize=SMALL_TEXT)
    axes.set_ylim(-len(shown) + 0.4, 0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="x", labelsize=9)
    named = COLUMNS.get(measure, f"{SPLITS[split]} {quantity} there").replace(
        " there", " at the\nbest validation accuracy").replace("loss at", "loss at")
    axes.set_xlabel(named + (" (%)" if quantity == "acc" else " (nats)"), fontsize=9.5)


def heat_maps(figure: Figure, view: View) -> None:
    """Best validation accuracy of every setting of a grid, a panel per batch size."""
    done = {(s.batch_size, s.learning_rate, s.drop_rate): curve for curve in view.all_complete()
            for s in [curve.settings]}
    if not done:
        return
    accuracy = {key: 100 * curve.mean("val_acc") for key, curve in done.items()}
    marked = {max(accuracy, key=accuracy.get): "-"}, {next(iter(done)): ":"}  # and lowest loss
    sizes, learning_rates, rates = (view.varying[key] for key in (
        "batch_size", "learning_rate", "drop_rate"))
    learning_rates = learning_rates[::-1]
    scaled = [value for key, value in accuracy.items() if key[2] < rates[-1]]
    low, high = min(scaled or accuracy.values()), max(accuracy.values())
    figure.set_size_inches(8.4, 5.2)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for i, size in enumerate(sizes):
        axes = panels.flat[i]
        keys = [[(size, lr, p) for p in rates] for lr in learning_rates]
        values = np.array([[accuracy.get(key, np.nan) for key in row] for row in keys])
        picture = axes.imshow(values, vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        axes.set_facecolor("#eeeeee")
        for (j, k), value in np.ndenumerate(values):
            curve = done.get(keys[j][k])
            text = f"{value:.1f}" if curve else "–"
            if len(view.seeds) > 1 and curve and len(curve.runs) > 1:
                text += f"\nn={len(curve.runs)}"
            light = not curve or value - low > (high - low) / 2
            axes.text(k, j, text, ha="center", va="center", fontsize=9.5, linespacing=0.95,
                      color="black" if light else "white")
            for inset, dashes in zip((0, 0.06), marked, strict=True):
                if keys[j][k] in dashes:
                    axes.add_patch(Rectangle(
                        (k - 0.46 + inset, j - 0.44 + inset), 0.92 - 2 * inset, 0.88 - 2 * inset,
                        fill=False, lw=2, ls=dashes[keys[j][k]], ec="black",
                        path_effects=[withStroke(linewidth=4, foreground="white")]))
        axes.set_xticks(range(len(rates)), rates)
        axes.set_yticks(range(len(learning_rates)), learning_rates)
        axes.set_title(f"batch size {size}", fontsize=10.5)
        axes.set(xlabel="drop rate" * (i > 1), ylabel="learning rate" * (i % 2 == 0))
        axes.grid(False)
        axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=panels, extend="min", aspect=30).outline.set_visible(False)
    headline(figure, title_of(view, f"{view.study.title}: best validation accuracy (%)"))
    darkest = "; values below the lowest of drop rates up to 0.6 share the darkest colour" * any(
        value < low for value in accuracy.values())
    one = "; cells without n have one seed" * (1 in view.seeds and len(view.seeds) > 1)
    notes(figure, *footer(view, "solid frame: highest accuracy; dotted: lowest validation loss, "
                                "by which settings are ranked" + darkest + one))


# Over several studies


def unit_of(of: str) -> str:
    return next(unit for unit in ("acc", "time", "loss") if unit in of or unit == "loss")


def claims(figure: Figure, found: list[Finding]) -> None:
    """Every number that decides a claim, as an interval: a panel per unit, claims as headings."""
    panels: dict[str, list] = {}
    for finding in found:
        for number, _, verdict in finding.decided():
            if is_there(number.by.get(finding.by)):
                panels.setdefault(unit_of(number.of), []).append((finding, number, verdict))
    if not panels:
        return
    order = [unit for unit in UNITS if unit in panels]
    lengths = [len(panels[unit]) + 1.2 * len({row[0].claim.number for row in panels[unit]})
               for unit in order]
    figure.set_size_inches(8.4, 1.6 + 0.165 * sum(lengths))
    all_axes = figure.subplots(len(order), height_ratios=lengths, squeeze=False)[:, 0]
    for axes, unit in zip(all_axes, order, strict=True):
        claim_panel(axes, panels[unit], UNITS[unit], 100 if unit == "acc" else 1)
    headline(figure, "The claims: each number that decides one, with its 95 % interval")
    notes(figure, "on the shaded side the claim is right; blue circle: holds, orange square: does "
                  "not hold, white diamond: undecided. Intervals are not corrected, verdicts are "
                  "(Holm, the best of several, and the test images). Claims that only count or "
                  "argue have no row: 4 is in the table. Beyond the inner tenth of each axis the "
                  "scale is logarithmic")


def claim_panel(axes, rows: list, unit: str, factor: float) -> None:
    """The numbers of one unit from top to bottom, under the words of their claims."""
    y, places, names, before = 0.0, [], [], None
    widest = max(abs(factor * number.by[finding.by].mean) for finding, number, _ in rows) or 1.0
    edge = 3 * widest
    for finding, number, verdict in rows:
        if finding.claim.number != before:
            y -= 1.2
            words = textwrap.shorten(finding.claim.words, 100, placeholder=" …")
            place = blended_transform_factory(axes.figure.transFigure, axes.transData)
            axes.text(0.012, y, f"{finding.claim.number}  {words}", fontsize=8, weight="bold",
                      va="center", transform=place, in_layout=False)
            before = finding.claim.number
        y -= 1
        estimate, (low, high) = number.by[finding.by], number.bounds
        left, right = max(factor * low, -edge), min(factor * high, edge)
        axes.add_patch(Rectangle((left, y - 0.5), right - left, 1, color="#e3ecf3", zorder=0))
        colour, marker = VERDICTS.get(verdict, (GREY, "D"))
        axes.errorbar(factor * estimate.mean, y, xerr=factor * estimate.half, color=colour,
                      marker=marker, ms=4.5, capsize=2, lw=1.3,
                      mfc=colour if marker != "D" else "white")
        places.append(y)
        names.append(number.what)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xscale("symlog", linthresh=widest / 10, linscale=0.8)
    digits = 10.0 ** math.floor(math.log10(max(widest, 1e-9)))
    ticks = [sign * digits * part for part in (0.1, 1) for sign in (-1, 1)] + [0]
    axes.set_xticks(ticks, [f"{tick:g}" if tick else "" for tick in ticks], fontsize=8.5)
    axes.minorticks_off()
    axes.set_yticks(places, names, fontsize=8)
    axes.grid(axis="y", visible=False)
    axes.set(ylim=(y - 0.6, -0.5), xlim=(-edge, edge))
    axes.set_xlabel(unit, fontsize=9.5)


def networks(figure: Figure, evidence: Evidence) -> None:
    """The MLP beside the CNN, each at its defaults: training and validation accuracy."""
    axes, names, used = figure.subplots(), [], []
    for name in ("MLP", "CNN"):
        view = evidence.views[f"{name}_ablation"]
        curve = view.find(without_BatchNorm=False, without_dropout=False)
        if curve is None:
            continue
        used.append(f"{name}, {curve.label.removesuffix('_False_False')}: {view.data}; "
                    f"{curve.epochs} epochs, n = {len(curve.runs)}"
                    + f"; {view.origin}" * (not view.is_of_one))
        for key, dash in (("val_acc", "-"), ("train_acc", DASHES[0.4])):
            mean = 100 * curve.over_epochs(key).mean(axis=0)
            axes.plot(mean.index, mean, ls=dash, lw=1.8, color=OF_NETWORK[curve.network])
            names.append(f"{name}, {'validation' if key == 'val_acc' else 'training'}")
    if used:
        longest = max(line.get_xdata()[-1] for line in axes.lines)
        axes.set(xlabel="epoch", ylabel="accuracy (%)", xlim=(1, max(2, longest)),
                 title="The CNN beside the MLP, at their defaults")
        label_ends(axes, names)
        notes(figure, *used, "each for its own epochs; mean over seeds")


def variance(figure: Figure, source: Source) -> None:
    """Which setting decides a grid's validation accuracy: the analysis of variance."""
    found = [grid for grid in grids(source) if shares(grid.values)]
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


def far(figure: Figure, source: Source, aim: float = 80, error: float = 0.8) -> None:
    """The CNN with crops, flips and a schedule: accuracy over the epochs, beside the aim."""
    runs = [run for run in source.of("cnn") if run.settings and run.settings.augment and run.rows]
    if not runs:
        return
    axes = figure.subplots()
    for run, colour in zip(runs, scale(len(runs) + 1), strict=False):
        for key, dash, text in (("test_acc", "-", "test"),
                                ("train_acc", DASHES[0.4], "training, on crops")):
            accuracy = [100 * row[key] for row in run.rows]
            axes.plot(range(1, len(accuracy) + 1), accuracy, color=colour, ls=dash, lw=1.7,
                      label=f"{run.settings.learning_rate:g}, {len(run.rows)} epochs, {text}")
            axes.plot(len(accuracy), accuracy[-1], "o", color=colour, mfc="white", ms=5)
    axes.axhspan(aim - error, aim + error, color="#e4e4e4", zorder=0)
    axes.set(xlabel="epoch", ylabel="accuracy (%)",
             title="The CNN with crops, flips and one cycle",
             xlim=(1, max(len(run.rows) for run in runs) + 1))
    axes.legend(loc="lower right", title="highest learning rate", alignment="left",
                title_fontsize=9.5)
    notes(figure, f"hollow: one seed each. Grey: the aim of {aim} % ± two standard errors of "
                  f"10,000 images, {error} points", "; ".join(run.name for run in runs))
