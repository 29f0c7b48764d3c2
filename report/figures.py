"""Every figure of the report. Each function below draws one on an empty matplotlib Figure; `draw_all` writes them.

Curves differ in colour, lightness and dash, so that they can be told apart without colours too. The colours are
those of Okabe and Ito, which all common kinds of colour vision keep apart.
"""

import io
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from report.studies import DROP_RATES, LEARNING_RATES, SWEEP, Source, View
from store.files import make_folder, write_file
from store.settings import NETWORKS

matplotlib.rcParams.update({
    "font.size": 9, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": "figures",
    "image.cmap": "cividis"})
BLACK, BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER = (
    "#000000", "#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#c98a00")
DASHES = ["-", (0, (6, 1.5)), (0, (1.2, 1)), (0, (8, 1.5, 1.2, 1.5)), (0, (3, 1.5, 1.2, 1.5, 1.2, 1.5))]
STYLES = [(BLACK, "-"), (ORANGE, (0, (5, 1.2))), (SKY, "-"), (BLUE, (0, (1.2, 1))), (AMBER, (0, (8, 1.5, 1.2, 1.5))),
          (GREEN, (0, (11, 2))), (PURPLE, (0, (3, 1.2))), ("#777777", (0, (1.2, 2.4))),
          (BLUE, (0, (6, 1.5, 1.2, 1.5, 1.2, 1.5))), (ORANGE, (0, (3, 3)))]
SPLITS = {"train": "training", "val": "validation", "test": "test"}
QUANTITIES = {"acc": ("accuracy", "accuracy (%)", 100), "loss": ("loss", "loss, cross entropy (nats)", 1)}
DPI = 170
SHOWN = 10  # curves in a figure


def draw_all(views: dict[str, View], source: Source, folder: Path, kind: str = "png") -> list[Path]:
    """Draw every figure into the folder; those without any run say so. Returns their paths."""
    make_folder(folder)
    figure = Figure(dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    paths = []
    for name, draw in catalogue(views, source).items():
        figure.clear()
        figure.set_size_inches(8.4, 4.6)
        draw(figure)
        if kind == "png":
            canvas.draw()
            picture = with_palette(Image.fromarray(np.asarray(canvas.buffer_rgba())))
        else:
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, metadata={"svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind])
        paths.append(folder / f"{name}.{kind}")
        write_file(paths[-1], picture.getvalue())
    return paths


def with_palette(picture: Image.Image) -> io.BytesIO:
    """As PNG with 256 colours at most, which takes a third of the space."""
    file = io.BytesIO()
    picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, "png")
    return file


def catalogue(views: dict[str, View], source: Source) -> dict[str, Callable[[Figure], None]]:
    """The figures by name, each as a function that draws it."""
    figures: dict[str, Callable[[Figure], None]] = {}
    for name, view in views.items():
        if name.endswith("learning_rates"):
            figures[name] = partial(learning_rates, view=view)
        for split in view.study.splits:
            for quantity in QUANTITIES:
                figures[f"{name}_{split}_{quantity}"] = partial(curves, view=view, split=split, quantity=quantity)
        if view.study.is_grid:
            figures[f"{name}_heatmap"] = partial(heat_maps, view=view)
    for network in NETWORKS:
        for draw in (bagging, statistics) + ((confusion, filters) if network == "cnn" else ()):
            topic = source.theory.get(network, {}).get(draw.__name__)
            name = f"{network.upper()}_{draw.__name__}"
            figures[name] = partial(draw, network=network.upper(), topic=topic) if topic else partial(
                nothing, title=name, command=f"python theory.py {draw.__name__} --network {network}")
    return figures


def nothing(figure: Figure, title: str, command: str) -> None:
    figure.text(0.5, 0.5, f"{title}\n\nno runs yet; {command} makes them", ha="center", va="center", color="#555555")


def notes(figure: Figure, *lines: str) -> None:
    """Small print below the axes."""
    wrapped = [part for line in lines if line for part in textwrap.wrap(line, 165)]
    figure.text(0.008, 0.012, "\n".join(wrapped), fontsize=6.5, color="#555555", va="bottom", linespacing=1.25)


def footer(view: View, *lines: str) -> list[str]:
    missing = view.missing
    names = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
    epochs = f"{view.epochs} epoch{'s' * (view.epochs != 1)}"
    return [f"{view.data}; {epochs}, {view.seeds_text}", *lines,
            f"missing, {len(missing)} of {len(view.settings)}: {names}" if missing else ""]


def pair(figure: Figure):
    """Two axes beside each other, with room for legends below."""
    figure.set_size_inches(8, 5)
    return figure.add_axes((0.1, 0.37, 0.38, 0.56)), figure.add_axes((0.61, 0.37, 0.38, 0.56))


def legend_below(axes, columns: int = 1) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.21), fontsize=8, ncols=columns, handlelength=3)


def plain_ticks(axes) -> None:
    """A logarithmic y axis with few round numbers at every power of ten, written out."""
    low, high = axes.get_ylim()
    for digits in ([1], [1, 2, 5], [1, 1.2, 1.5, 2, 3, 5, 7]):
        ticks = [tick for power in range(-5, 6) for tick in 10.0 ** power * np.array(digits) if low <= tick <= high]
        if len(ticks) >= 4:
            break
    axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def curves(figure: Figure, view: View, split: str, quantity: str) -> None:
    """A metric over the epochs, a curve per setting, best first; over several seeds mean and deviation."""
    what, unit, factor = QUANTITIES[quantity]
    title = f"{view.study.title}: {SPLITS[split]} {what}"
    if not view.curves:
        nothing(figure, title, view.study.command)
        return
    axes = figure.add_axes((0.073, 0.175, 0.607, 0.745))
    shown = list(view.curves.values())[:SHOWN]
    for i, curve in reversed(list(enumerate(shown))):
        colour, dash = style(view, i)
        values = factor * curve.values(f"{split}_{quantity}")
        epochs, mean = np.arange(1, curve.epochs + 1), values.mean(0)
        label = curve.label + (f" (n = {len(curve.runs)})" if len(view.seeds) > 1 else "")
        axes.plot(epochs, mean, color=colour, ls=dash, lw=1.3 if i else 2.6, label=label, zorder=3 - i / SHOWN,
                  marker="o" if curve.epochs == 1 else None)
        if len(values) > 1:
            deviation = values.std(0, ddof=1)
            axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0, zorder=1)
    last = view.epochs
    step = next((step for step in (1, 5, 10, 20) if last <= 12 * step), last // 10)
    axes.set(xlabel="epoch", ylabel=f"{SPLITS[split]} {unit}", xlim=(1, last) if last > 1 else (0.5, 1.5), title=title)
    axes.set_xticks([1, *range(step + (step == 1), last + 1, step)])
    handles, labels = axes.get_legend_handles_labels()
    head = "lowest validation loss first"
    if max(view.seeds) > 1:
        head += f"\nmean ± 1 sd of {view.seeds[0]} seeds" if len(view.seeds) == 1 else "\nmean ± 1 sd (over n seeds)"
    legend = figure.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(0.683, 0.935), title=head,
                           fontsize=8.5, title_fontsize=8, alignment="left", handlelength=3.6, labelspacing=0.55)
    legend.get_texts()[0].set_fontweight("bold")
    beyond = legend.get_window_extent().x1 / figure.bbox.width - 0.995
    if beyond > 0:  # long names take their room from the axes
        legend.set_bbox_to_anchor((0.683 - beyond, 0.935))
        axes.set_position((0.073, 0.175, 0.607 - beyond, 0.745))
    ranking = f"the {len(shown)} best of {len(view.curves)} settings by lowest validation loss over the epochs"
    scheme = "batch size_learning rate_drop rate" + {"CNN_ablation": "_without BatchNorm_without dropout",
                                                     "MLP_ablation": "_without BatchNorm_without dropout",
                                                     "dimention": "_dropout type"}.get(view.study.name, "")
    notes(figure, *footer(view, f"{ranking + '; ' if view.study.is_grid else ''}curves are named {scheme}"))


def style(view: View, rank: int):
    """Colour and dash of a curve; with two kinds of dropout a colour for each kind, a dash for each rate."""
    rate, _, kind = list(view.curves)[rank].rpartition("_")
    if kind not in ("1d", "2d"):
        return STYLES[rank]
    rates = sorted({label.rpartition("_")[0] for label in view.curves})
    return {"1d": AMBER, "2d": BLUE}[kind], DASHES[rates.index(rate) % len(DASHES)]


def heat_maps(figure: Figure, view: View) -> None:
    """Best validation accuracy of every setting of a grid: drop rate x learning rate, a panel per batch size."""
    title = f"{view.study.title}: best validation accuracy (%)"
    if not any(view.complete(label) for label in view.curves):
        nothing(figure, title, view.study.command)
        return
    sizes = sorted({int(label.split("_")[0]) for label in view.study.settings})
    values = np.full((len(sizes), len(LEARNING_RATES), len(DROP_RATES)), np.nan)
    for (i, b), (j, lr), (k, p) in ((x, y, z) for x in enumerate(sizes) for y in enumerate(LEARNING_RATES)
                                    for z in enumerate(DROP_RATES)):
        if curve := view.complete(f"{b}_{lr}_{p}"):
            values[i, j, k] = 100 * curve.mean("val_acc")
    low, high = np.nanmin(values), np.nanmax(values)
    for i, size in enumerate(sizes):
        axes = figure.add_axes((0.105 + 0.44 * (i % 2), 0.565 - 0.37 * (i // 2), 0.365, 0.27))
        picture = axes.imshow(values[i], vmin=low, vmax=high, aspect="auto")
        axes.set_facecolor("#eeeeee")
        for (j, k), value in np.ndenumerate(values[i]):
            text, best = ("–", False) if np.isnan(value) else (f"{value:.1f}", value == high)
            axes.text(k, j, text, ha="center", va="center", weight="bold" if best else "normal", fontsize=9,
                      color="black" if np.isnan(value) or value - low > 0.5 * (high - low) else "white")
            if best:
                axes.add_patch(matplotlib.patches.Rectangle((k - 0.47, j - 0.45), 0.94, 0.9, fill=False, lw=2))
        axes.set_xticks(range(len(DROP_RATES)), DROP_RATES)
        axes.set_yticks(range(len(LEARNING_RATES)), LEARNING_RATES)
        axes.set_title(f"batch size {size}", fontsize=9.5)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="drop rate" if i > 1 else "", ylabel="learning rate" if i % 2 == 0 else "")
    figure.colorbar(picture, cax=figure.add_axes((0.935, 0.195, 0.014, 0.64))).outline.set_visible(False)
    figure.text(0.03, 0.94, title, weight="bold", fontsize=10.5)
    notes(figure, *footer(view, "framed: the highest; elsewhere settings are ranked by lowest validation loss"))


def learning_rates(figure: Figure, view: View) -> None:
    """What a few epochs reach over the learning rate, with and without BatchNorm: accuracy and loss."""
    if not view.failed and not any(view.complete(label) for label in view.curves):
        nothing(figure, view.study.title, view.study.command)
        return
    for axes, key, factor in zip(pair(figure), ("val_acc", "val_loss"), (100, 1), strict=True):
        for without, colour, marker, dash in ((False, BLUE, "o", "-"), (True, ORANGE, "s", "--")):
            name = f"{'without' if without else 'with'} batch normalization"
            points = [(lr, curve) for lr in SWEEP if (curve := view.complete(f"{lr}_{without}"))]
            axes.plot([lr for lr, _ in points], [factor * curve.mean(key) for _, curve in points],
                      color=colour, marker=marker, ls=dash, label=name)
            failed = [lr for lr in SWEEP if f"{lr}_{without}" in view.failed]
            if failed:
                axes.plot(failed, [factor * view.guessing[key]] * len(failed), "x", color=colour, ms=9,
                          label=f"{name}: diverged")
        axes.axhline(factor * view.guessing[key], color="#777777", lw=1, ls=":", label="guessing")
        axes.set(xscale="log", xlabel="learning rate of Adam")
        legend_below(axes)
    left, right = figure.axes
    left.set(title=f"{view.study.title} and accuracy …", ylim=(0, None), ylabel="best validation accuracy (%)")
    right.set(title=f"… and loss, in {view.epochs} epochs", yscale="log", ylabel="lowest validation loss (nats)")
    plain_ticks(right)
    notes(figure, *footer(view, "one setting but for the learning rate and batch normalization"))


def bagging(figure: Figure, network: str, topic: dict) -> None:
    """Squared error over the number of averaged networks, measured and predicted; and over dropout masks."""
    left, right = pair(figure)
    k = np.arange(1, len(topic["measured"]) + 1)
    left.plot(k, topic["predicted"], color=ORANGE, ls="--", label="predicted: v/k + (k − 1) c/k")
    left.plot(k, topic["measured"], "o", color=BLUE, label="measured on the test images")
    if len(k) > 1:
        left.axhline(topic["covariance"], color="#777777", ls=":", lw=1, label="c, the limit of many networks")
    left.set(xlabel="number k of averaged networks", ylabel="squared error of a class probability",
             title=f"{network}: bagging")
    left.set_xticks(k)
    legend_below(left)
    right.plot(topic["masks"], topic["masked"], "o-", color=BLUE, label="average over dropout masks")
    right.axhline(topic["measured"][0], color=ORANGE, ls="--", label="single pass in evaluation mode")
    right.set(xscale="log", xlabel="number of dropout masks", title=f"{network}: dropout as bagging",
              ylabel="squared error of a class probability")
    right.set_xticks(topic["masks"], topic["masks"])
    right.xaxis.set_minor_formatter(NullFormatter())
    legend_below(right)
    n = len(topic["runs"])
    notes(figure, f"{topic['data']}; {n} network{'s' * (n != 1)}: {topic['setting']}, one per seed; v and c from the "
                  "validation images, the rest on the test images")


def statistics(figure: Figure, network: str, topic: dict) -> None:
    """How far a batch's statistics lie from the training set's, and what evaluating with them costs."""
    left, right = pair(figure)
    n = np.array(topic["batch_sizes"])
    left.plot(n, topic["mean"], "o", color=BLUE, label="mean, in standard deviations")
    left.plot(n, topic["mean_theory"] / np.sqrt(n), color=BLUE, lw=1, label="theory: ∝ 1/√n")
    left.plot(n, topic["variance"], "s", color=ORANGE, label="variance, relative")
    left.plot(n, topic["variance_theory"] / np.sqrt(n), color=ORANGE, lw=1, ls="--", label="theory: ∝ 1/√n")
    left.set(xscale="log", yscale="log", xlabel="batch size n", ylabel="distance from the training set's (rms)",
             title=f"{network}: a batch's mean and variance")
    plain_ticks(left)
    right.plot(n, 100 * np.array(topic["batch_accuracy"]), "o-", color=BLUE, label="the batch's statistics")
    right.axhline(100 * topic["running_accuracy"], color=ORANGE, ls="--", label="running statistics")
    right.set(xscale="log", xlabel="batch size n in evaluation", ylabel="test accuracy (%)",
              title=f"{network}: evaluated with …")
    for axes in (left, right):
        axes.set_xticks(n, n, fontsize=7.5)
        axes.xaxis.set_minor_formatter(NullFormatter())
        legend_below(axes)
    notes(figure, f"{topic['data']}; first BatchNorm layer (left) of {topic['setting']}, mean over "
                  f"{len(topic['runs'])} seed{'s' * (len(topic['runs']) != 1)}")


def confusion(figure: Figure, network: str, topic: dict) -> None:
    """Which class the best network takes for which, in percent of the true class."""
    figure.set_size_inches(7.2, 6.2)
    counts = np.array(topic["confusion"])
    matrix = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes = figure.add_axes((0.14, 0.17, 0.82, 0.75))
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        axes.text(j, i, f"{value:.0f}" if value > 0.5 else "·", ha="center", va="center", fontsize=8.5,
                  color="white" if value > 55 else "black")
    axes.set_xticks(range(len(matrix)), topic["classes"], rotation=45, ha="right")
    axes.set_yticks(range(len(matrix)), topic["classes"])
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="true", title=f"{network}: percent of each class taken for …")
    notes(figure, f"{topic['data']}, test images; {topic['runs'][0]}, the {network} with the best validation accuracy; "
                  f"test accuracy {100 * counts.trace() / counts.sum():.1f} %")


def filters(figure: Figure, network: str, topic: dict) -> None:
    """The first layer's filters as small pictures, each stretched to the full range of brightness."""
    figure.set_size_inches(8, 4.7)
    weights = np.reshape(topic["weights"], topic["shape"])  # filters x 3 x 5 x 5
    low, high = weights.min((1, 2, 3), keepdims=True), weights.max((1, 2, 3), keepdims=True)
    pictures = ((weights - low) / np.maximum(high - low, 1e-12)).transpose(0, 2, 3, 1)
    rows, size = -(-len(pictures) // 16), pictures.shape[1]
    wall = np.ones((rows * (size + 1) - 1, 16 * (size + 1) - 1, 3))
    for i, picture in enumerate(pictures):
        y, x = (i // 16) * (size + 1), (i % 16) * (size + 1)
        wall[y:y + size, x:x + size] = picture
    axes = figure.add_axes((0.01, 0.06, 0.98, 0.86))
    axes.imshow(wall, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{network}: the {len(pictures)} filters of the first layer, {size} x {size} pixels in colour")
    notes(figure, f"{topic['data']}; {topic['runs'][0]}, the {network} with the best validation accuracy; each filter "
                  "is stretched to the full range")
