"""Every figure of the report by name, and `draw_all`, which writes them."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from report import arguments, overview, theory_figures
from report.curves import QUANTITIES, curves, heat_maps
from report.drawing import pinned_palette
from report.findings import findings
from report.old_studies import STUDIES, Source, View
from store.files import make_folder, write_file
from store.settings import NETWORKS

DPI = 160
METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def draw_all(views: dict[str, View], source: Source, folder: Path, kind: str = "png") -> list[Path]:
    """Draw every figure that has runs into the folder; returns their paths."""
    make_folder(folder)
    figure = Figure(dpi=DPI)
    canvas, palette = FigureCanvasAgg(figure), pinned_palette()
    paths = []
    for name, draw in catalogue(views, source).items():
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


def catalogue(views: dict[str, View], source: Source) -> dict[str, Callable[[Figure], None]]:
    """The figures by name, each as a function that draws it, or nothing where it has no runs."""
    figures: dict[str, Callable[[Figure], None]] = {}
    for name, view in views.items():
        figures |= {f"{name}_{split}_{quantity}": partial(curves, view=view, split=split,
                                                          quantity=quantity)
                    for split in view.study.splits for quantity in QUANTITIES}
        if view.study.is_grid:
            figures[f"{name}_heatmap"] = partial(heat_maps, view=view)
        if name.endswith("learning_rates"):
            figures[name] = partial(theory_figures.learning_rates, view=view)
        if name == "dimention":
            figures["dropout_types"] = partial(overview.dropout_types, view=view)
    if views.keys() >= STUDIES.keys():
        figures |= {"networks": partial(overview.networks, views=views),
                    "claims": partial(overview.claims, found=findings(views, source.theory)),
                    "variance": partial(overview.variance, source=source),
                    "far": partial(overview.far, source=source)}
        figures |= {name: partial(arguments.draw, name=name, views=views)
                    for name in arguments.FIGURES}
    return figures | of_theory(source)


def of_theory(source: Source) -> dict[str, Callable[[Figure], None]]:
    """Those of the topics that theory.py has measured."""
    figures: dict[str, Callable[[Figure], None]] = {}
    if moved := {n: source.theory[n]["shifts"] for n in NETWORKS
                 if "shifts" in source.theory.get(n, {})}:
        figures["shifts"] = partial(theory_figures.shifts, topics=moved)
    topics = [(n, topic) for n in NETWORKS for topic in ("bagging", "statistics")]
    for network, topic in [*topics, ("cnn", "confusion"), ("cnn", "filters")]:
        if known := source.theory.get(network, {}).get(topic):
            more = {"source": source} if topic in ("confusion", "filters") else {}
            figures[f"{network.upper()}_{topic}"] = partial(
                getattr(theory_figures, topic), network=network.upper(), topic=known, **more)
    return figures
