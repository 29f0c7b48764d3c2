"""How figures look: colours and dashes with a meaning, small print, labels at the ends of curves.

Hue is the learning rate where it varies, dash the drop rate, width the batch size. Where one of
the latter two is all that varies, a scale from dark to light says it too. All differ in lightness,
so that grey and all common kinds of colour vision keep them apart.
"""

import textwrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from report.studies import View

matplotlib.rcParams.update({
    "font.size": 10.5, "axes.titlesize": 12, "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "svg.hashsalt": "figures", "image.cmap": "cividis"})
BLUE, ORANGE, SKY, GREY, GREEN = "#0b4f8a", "#d55e00", "#6cb6e0", "#777777", "#009e73"
HUES = {0.001: BLUE, 0.0005: ORANGE, 0.0001: SKY}  # of learning rates
DASHES = {0.0: "-", 0.2: (0, (6, 1.5)), 0.4: (0, (1.2, 1)), 0.6: (0, (8, 1.5, 1.2, 1.5)),
          0.8: (0, (3, 1.5, 1.2, 1.5, 1.2, 1.5))}  # of drop rates
WIDTHS = (1.0, 1.6, 2.3, 3.1)  # of batch sizes, ascending
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
    colours = [np.array(matplotlib.colors.to_rgb(colour)) for colour in (
        *SCALE, BLUE, ORANGE, SKY, GREEN)]
    greys = np.append(np.linspace(0, 0.94, 255 - 15 * len(colours)), 1)[:, None] * np.ones(3)
    values = np.concatenate([greys, *(colour + (1 - colour) * tints for colour in colours)])
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * values).round().astype(np.uint8).tobytes())
    return palette


def nothing(figure: Figure, title: str, command: str) -> None:
    figure.text(0.5, 0.5, f"{title}\n\nno runs yet; {command} makes them", ha="center", va="center",
                color="#555555")


def notes(figure: Figure, *lines: str) -> None:
    """Small print below the axes."""
    width = int(15.6 * figure.get_figwidth())
    wrapped = [part for line in lines if line for part in textwrap.wrap(line, width)]
    figure.text(0.008, 0.012, "\n".join(wrapped), fontsize=SMALL, color="#555555", va="bottom",
                linespacing=1.2)


def footer(view: View, *lines: str) -> list[str]:
    """On what data, over how many epochs and seeds, of which code, and what is missing."""
    names = ", ".join(view.missing[:3])
    more = f" and {len(view.missing) - 3} more" if len(view.missing) > 3 else ""
    epochs = f"{view.epochs} epoch{'s' * (view.epochs != 1)}"
    return [f"{view.data}; {epochs}, {view.seeds_text}" + f"; {view.origin}" * (not view.is_of_one),
            *lines, f"missing, {len(view.missing)} of {len(view.settings)}: {names}{more}"
            if view.missing else ""]


def title_of(view: View, text: str) -> str:
    """With the number of epochs where it is not the protocol's."""
    return text + (f" ({view.epochs} epochs)" if view.epochs != view.study.epochs else "")


def pair(figure: Figure, below: float = 0.4):
    """Two axes beside each other, with room for legends below."""
    figure.set_size_inches(8.4, 5)
    return [figure.add_axes((left, below, 0.385, 0.92 - below)) for left in (0.095, 0.605)]


def legend_below(axes, columns: int = 1, title: str | None = None, lower: float = -0.23) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, lower), fontsize=9.5, ncols=columns,
                handlelength=3, title=title, columnspacing=1.2)


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
    axes.set_xticks(values, texts, fontsize=SMALL if len(values) > 7 else None)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def spread(values: list[float], gap: float) -> np.ndarray:
    """Places from 0 to 1, at least `gap` apart, as near to the values as may be."""
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


def label_ends(axes, texts: list[str], gap: float = 0.052) -> None:
    """The name of each line of the axes at its end, in its colour, none over another."""
    low, high = axes.get_ylim()
    ends = [(line.get_ydata()[-1] - low) / (high - low) for line in axes.lines]
    for line, text, end, place in zip(axes.lines, texts, ends, spread(ends, gap), strict=True):
        axes.annotate(text, (1, min(max(end, 0), 1)), (1.035, place), xycoords="axes fraction",
                      textcoords="axes fraction", va="center", fontsize=9.5, annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "lw": 0.6, "color": "#999999",
                                  "shrinkA": 1, "shrinkB": 1})
        axes.texts[-1].set_color(matplotlib.colors.to_rgb(line.get_color()))


def line(axes, x, curves, measure: str, factor: float = 100, **style):
    """A measure over x, a point per curve, with one standard deviation where there are seeds."""
    y = [factor * curve.mean(measure) for curve in curves]
    errors = [factor * curve.deviation(measure) for curve in curves]
    axes.errorbar(x, y, yerr=np.nan_to_num(errors), capsize=2, elinewidth=0.8, **style)
