"""How figures look: colours and dashes with a meaning, small print, labels at the ends of curves.

Hue is the learning rate where it varies, dash the drop rate, width the batch size. Where one of
the latter two is all that varies, a scale from dark to light says it too. All differ in lightness,
so that grey and all common kinds of colour vision keep them apart.
"""

import math
import textwrap

import store.figures  # noqa: F401  before the rest of matplotlib

# isort: split
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from report.frame import Curve, View, plural
from report.statistics import Pool

matplotlib.rcParams.update({
    "font.size": 10.5, "axes.titlesize": 12, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 9.5, "legend.handlelength": 3,
    "svg.hashsalt": "figures", "image.cmap": "cividis", "text.parse_math": False})
BLUE, ORANGE, SKY, GREY, GREEN = "#0b4f8a", "#d55e00", "#6cb6e0", "#777777", "#009e73"
OF_NETWORK = {"mlp": ORANGE, "cnn": BLUE}
HUES = {0.001: BLUE, 0.0005: ORANGE, 0.0001: SKY}  # of learning rates
DASHES = {0.0: "-", 0.2: (0, (6, 1.5)), 0.4: (0, (1.2, 1)), 0.6: (0, (8, 1.5, 1.2, 1.5)),
          0.8: (0, (3, 1.5, 1.2, 1.5, 1.2, 1.5))}  # of drop rates
WIDTHS = (1.2, 1.8, 2.5, 3.3)  # of batch sizes, ascending
SCALE = [matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](x))
         for x in np.linspace(0, 0.84, 9)]
SMALL = 8.5
MARKERS = "os^Dv*P"


def scale(n: int) -> list[str]:
    """n colours from dark to light, in order in grey too."""
    return [SCALE[round(i)] for i in np.linspace(0, len(SCALE) - 1, n)] if n <= len(SCALE) else (
        scale(len(SCALE)) * n)[:n]


def pinned_palette() -> Image.Image:
    """All colours above with their tints: files are small, and a colour is the same in each."""
    tints = np.linspace(0, 0.94, 15)[:, None]
    names = (*SCALE, BLUE, ORANGE, SKY, GREEN)
    colours = [np.array(matplotlib.colors.to_rgb(colour)) for colour in names]
    greys = np.append(np.linspace(0, 0.94, 255 - 16 * len(colours)), 1)[:, None] * np.ones(3)
    values = np.concatenate([greys, [ink(name) for name in names],
                             *(colour + (1 - colour) * tints for colour in colours)])
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * values).round().astype(np.uint8).tobytes())
    return palette


# Around the axes


def headline(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.012, ha="left", weight="bold", fontsize=12)


def notes(figure: Figure, *lines: str) -> None:
    """Small print at the bottom; all else is laid out above it."""
    width = int(15.6 * figure.get_figwidth())
    wrapped = [part for line in lines if line for part in textwrap.wrap(shortened(line), width)]
    below = (0.12 + 0.145 * len(wrapped)) / figure.get_figheight()
    figure.text(0.008, 0.012, "\n".join(wrapped), fontsize=SMALL, color="#555555", va="bottom",
                linespacing=1.2)
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0.5, below), figure.transFigure)
        below += legend.get_window_extent().height / figure.bbox.height
    figure.set_layout_engine("constrained", rect=(0.004, below, 0.992, 0.99 - below))


def shortened(text: str) -> str:
    """What a foreign run's configuration says may be of any length, or no text."""
    text = text if len(text) <= 600 else f"{text[:600]} …"
    return text.encode(errors="replace").decode()


def footer(view: View, *lines: str) -> list[str]:
    """On what data, over how many epochs and seeds, of which code, and what is missing."""
    names = ", ".join(view.missing[:3])
    more = f" and {len(view.missing) - 3} more" if len(view.missing) > 3 else ""
    return [f"{view.data}; {plural(view.epochs, 'epoch')}, {view.seeds_text}"
            + f"; {view.origin}" * (not view.is_of_one),
            *lines, f"missing, {len(view.missing)} of {len(view.settings)}: {names}{more}"
            if view.missing else ""]


def title_of(view: View, text: str) -> str:
    """With the number of epochs where it is not the protocol's."""
    return text + (f" ({plural(view.epochs, 'epoch')})" if view.epochs != view.study.epochs else "")


def legend_below(figure: Figure, columns: int = 3) -> None:
    """One legend for all axes."""
    named = {name: handle for axes in figure.axes
             for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(named.values(), named, loc="lower center", ncols=columns,
                      columnspacing=1.4)


# In the axes


def plain_ticks(axes) -> None:
    """A logarithmic y axis with few round numbers at every power of ten, written out."""
    low, high = axes.get_ylim()
    for digits in ([1], [1, 2, 5], [1, 1.2, 1.5, 2, 3, 5, 7]):
        ticks = [tick for power in range(-5, 6) for tick in 10.0 ** power * np.array(digits)
                 if low <= tick <= high]
        if len(ticks) >= 4:
            break
    axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_axis(axes, values, label: str) -> None:
    """A logarithmic x axis with a tick at each of these values."""
    axes.set(xscale="log", xlabel=label)
    texts = [f"{value:g}" if value < 10_000 else f"{value // 1000}k" for value in values]
    axes.set_xticks(values, texts, fontsize=SMALL if len(values) > 5 else None)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def apart(values: list[float], gap: float) -> np.ndarray:
    """Positions in 0…1, at least `gap` apart, close to the values."""
    order = np.argsort(values)
    places = np.clip(np.array(values, float)[order], 0, 1)
    for _ in range(300):
        lacking = np.maximum(gap - np.diff(places), 0) / 2
        places[:-1] -= lacking
        places[1:] += lacking
        places = np.clip(places, 0, 1)
    result = np.empty_like(places)
    result[order] = places
    return result


def ink(colour) -> np.ndarray:
    """The colour for text: dark enough for a contrast of 4.5 on white."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return rgb * min(1, 0.18 / (rgb ** 2.2 @ (0.2126, 0.7152, 0.0722))) ** (1 / 2.2)


def label_ends(axes, texts: list[str], gap: float = 0.054) -> None:
    """The name of each line of the axes at its end, in its colour, none over another."""
    box, lines = axes.viewLim, list(axes.lines)
    ends = [((x[-1] - box.x0) / box.width, min(max((y[-1] - box.y0) / box.height, 0), 1))
            for x, y in (line.get_data() for line in lines)]
    for line, text, (x, y), place in zip(lines, texts, ends, apart([y for _, y in ends], gap),
                                         strict=True):
        axes.plot([x, x + 0.03], [y, place], color="#999999", lw=0.6, transform=axes.transAxes,
                  clip_on=False)
        axes.annotate(text, (x + 0.035, place), xycoords="axes fraction", va="center",
                      fontsize=9.5, color=ink(line.get_color()), annotation_clip=False)


def line(axes, x, curves: list[Curve], measure: str, pool: Pool, factor: float = 100, **style):
    """A measure over x with 95 % intervals; a hollow marker is a single run."""
    if not curves:
        return
    y = [factor * curve.mean(measure) for curve in curves]
    halves = [factor * pool.estimate(measure, curve).half for curve in curves]
    style = {"marker": "o", "ms": 5} | style
    axes.errorbar(x, y, yerr=np.nan_to_num(halves), capsize=2, elinewidth=0.8, **style)
    single = [i for i, curve in enumerate(curves) if len(curve.runs) == 1]
    axes.plot([x[i] for i in single], [y[i] for i in single], ls="", marker=style["marker"],
              ms=style["ms"], color=style["color"], mfc="white", zorder=3)


INTERVALS = "bars: 95 % intervals, with the pooled deviation below 3 seeds; hollow: one seed"


def limit(axes, lines: list[np.ndarray]) -> bool:
    """Limit the y axis to all but the first epochs, which would flatten the rest."""
    later = np.concatenate([values[-(-len(values) // 8):] if len(values) > 4 else values
                            for values in lines])
    low, high = later.min(), later.max()
    pad = 0.05 * (high - low) or 1e-3
    axes.set_ylim(low - pad, high + pad)
    return any(values.min() < low - pad or values.max() > high + pad for values in lines)


def epoch_axis(axes, last: int) -> None:
    step = next((step for step in (1, 5, 10, 20) if last <= 12 * step), last // 10)
    axes.set_xlim((1, last) if last > 1 else (0.5, 1.5))
    axes.set_xticks([1, *range(step + (step == 1), last + 1, step)])


def is_there(estimate) -> bool:
    return estimate is not None and not math.isnan(estimate.half)
