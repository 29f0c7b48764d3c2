"""The figures of what theory says, measured: one function for each topic of theory.py."""

import numpy as np
from matplotlib.figure import Figure

from report.drawing import (
    BLUE,
    GREY,
    OF_NETWORK,
    ORANGE,
    footer,
    headline,
    legend_below,
    log_axis,
    notes,
    pair,
    plain_ticks,
)
from report.measured import TRAIN_IMAGES, expected
from report.old_studies import SWEEP, Source, View


def learning_rates(figure: Figure, view: View) -> None:
    """What a few epochs reach over the learning rate, with and without batch normalization."""
    if not view.failed and not any(view.complete(label) for label in view.curves):
        return
    left, right = pair(figure)
    for axes, key, factor in (left, "val_acc", 100), (right, "val_loss", 1):
        for without, colour, marker, dash in ((False, BLUE, "o", "-"), (True, ORANGE, "s", "--")):
            name = f"{'without' if without else 'with'} batch normalization"
            points = [(lr, curve) for lr in SWEEP if (curve := view.complete(f"{lr}_{without}"))]
            axes.plot([lr for lr, _ in points], [factor * curve.mean(key) for _, curve in points],
                      color=colour, marker=marker, ls=dash, label=name)
            failed = [lr for lr in SWEEP if f"{lr}_{without}" in view.failed]
            if failed:
                axes.plot(failed, [factor * view.guessing[key]] * len(failed), "x", color=colour,
                          ms=9, label=f"{name}: diverged")
        axes.axhline(factor * view.guessing[key], color=GREY, lw=1, ls=":", label="guessing")
        axes.set(xscale="log", xlabel="learning rate of Adam")
    left.set(ylim=(0, None), ylabel="best validation accuracy (%)")
    right.set(yscale="log", ylabel="lowest validation loss (nats)")
    plain_ticks(right)
    legend_below(figure)
    headline(figure, f"{view.study.title} and validation accuracy and loss, in {view.epochs} "
                     f"epoch{'s' * (view.epochs != 1)}")
    notes(figure, *footer(view, "one setting but for the learning rate and batch normalization"))


def bagging(figure: Figure, network: str, topic: dict) -> None:
    """Squared error over the number of averaged networks, and over that of dropout masks."""
    left, right = pair(figure)
    k = np.arange(1, len(topic["measured"]) + 1)
    smooth = np.linspace(1, len(k), 200)
    v, c = topic["variance"], topic["covariance"]
    if len(k) > 1:
        left.plot(smooth, v / smooth + (smooth - 1) * c / smooth, color=ORANGE, ls="--",
                  label="predicted: v/k + (k − 1) c/k")
        left.axhline(c, color=GREY, ls=":", lw=1, label="c, the limit of many networks")
    left.plot(k, topic["measured"], "o", color=BLUE, label="measured on the test images")
    left.set(xlabel="number k of averaged networks", ylabel="squared error of a probability",
             title=f"{network}: ensemble of seeds")
    left.set_xticks(k)
    right.plot(topic["masks"], topic["masked"], "o-", color=BLUE,
               label="average over dropout masks")
    right.axhline(topic["measured"][0], color=ORANGE, ls="--",
                  label="single pass in evaluation mode")
    right.set(title=f"{network}: ensemble of masks")
    log_axis(right, topic["masks"], "number of dropout masks")
    for axes in (left, right):
        axes.legend(loc="upper right")
    n = len(topic["runs"])
    notes(figure, f"{topic['data']}; {n} network{'s' * (n != 1)}: {topic['setting']}, one per "
                  "seed; v and c from the validation images, the rest on the test images")


def statistics(figure: Figure, network: str, topic: dict) -> None:
    """How far a batch's statistics lie from the training set's, and the cost of using them."""
    left, right = pair(figure)
    n = np.array(topic["batch_sizes"])
    for key, colour, marker, dash, unit in (
            ("variance", ORANGE, "s", "--", "relative"),
            ("mean", BLUE, "o", "-", "in standard deviations")):
        left.plot(n, topic[key], marker, color=colour, label=f"{key}, {unit}")
        left.plot(n, topic[f"{key}_theory"] * expected(n), color=colour, lw=1, ls=dash,
                  label="theory: ∝ √((1 − n/N)/n)" * (key == "mean"))
    left.set(xscale="log", yscale="log", ylabel="distance from the training set's")
    plain_ticks(left)
    right.plot(n, 100 * np.array(topic["batch_accuracy"]), "o-", color=BLUE,
               label="with the batch's statistics")
    right.axhline(100 * topic["running_accuracy"], color=ORANGE, ls="--",
                  label="with the running statistics")
    right.set_ylabel("test accuracy (%)")
    log_axis(left, n, "batch size n")
    log_axis(right, n, "batch size n in evaluation")
    legend_below(figure)
    headline(figure, f"{network}: a batch's statistics, and the accuracy with them")
    seeds = len(topic["runs"])
    notes(figure, f"{topic['data']}; first BatchNorm layer (left) of {topic['setting']}, root mean "
                  f"square, mean over {seeds} seed{'s' * (seeds != 1)}; N = {TRAIN_IMAGES:,}")


def shifts(figure: Figure, topics: dict[str, dict]) -> None:
    """Test accuracy of both networks over the number of pixels that the images move by."""
    axes = figure.subplots()
    for network, marker in (("mlp", "s"), ("cnn", "o")):
        if topic := topics.get(network):
            accuracy = 100 * np.array(topic["accuracy"])
            spread = accuracy.std(0, ddof=1) if len(accuracy) > 1 else None
            axes.errorbar(topic["shifts"], accuracy.mean(0), yerr=spread, capsize=2, marker=marker,
                          color=OF_NETWORK[network], label=network.upper())
    axes.set(title="Test accuracy when the images move", xlabel="pixels",
             ylabel="test accuracy (%)", ylim=(0, None))
    axes.legend(loc="lower left")
    notes(figure, "; ".join(f"{topic['data']}, {topic['setting']}, n = {len(topic['runs'])}"
                            for topic in topics.values()),
          "mean over the four directions; bars: ± 1 sd")


def rank(name: str, network: str, source: Source) -> str:
    """How a run stands among those whose validation accuracy is known."""
    best = sorted((run for run in source.of(network) if run.result),
                  key=lambda run: -run.result["val_acc"])
    names = [run.name for run in best]
    return (f", number {names.index(name) + 1} of {len(names)} by best validation accuracy"
            if name in names else "")


def confusion(figure: Figure, network: str, topic: dict, source: Source) -> None:
    """Which class the best network takes for which, in percent of the true class."""
    figure.set_size_inches(8.4, 6.4)
    counts = np.array(topic["confusion"])
    matrix = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        axes.text(j, i, f"{value:.0f}" if value > 0.5 else "·", ha="center", va="center",
                  fontsize=9.5, color="white" if value > 55 else "black")
    axes.set_xticks(range(len(matrix)), topic["classes"], rotation=45, ha="right")
    axes.set_yticks(range(len(matrix)), topic["classes"])
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="true",
             title=f"{network}: percent of each class taken for …")
    notes(figure, f"{topic['data']}, test images; {topic['runs'][0]}"
                  f"{rank(topic['runs'][0], network.lower(), source)}; "
                  f"test accuracy {100 * counts.trace() / counts.sum():.1f} %")


def filters(figure: Figure, network: str, topic: dict, source: Source) -> None:
    """The first layer's filters as small pictures, each stretched to the full brightness."""
    figure.set_size_inches(8.4, 4.9)
    weights = np.reshape(topic["weights"], topic["shape"])  # filters x 3 x 5 x 5
    low, high = weights.min((1, 2, 3), keepdims=True), weights.max((1, 2, 3), keepdims=True)
    pictures = ((weights - low) / np.maximum(high - low, 1e-12)).transpose(0, 2, 3, 1)
    rows, size = -(-len(pictures) // 16), pictures.shape[1]
    wall = np.ones((rows * (size + 1) - 1, 16 * (size + 1) - 1, 3))
    for i, picture in enumerate(pictures):
        y, x = (i // 16) * (size + 1), (i % 16) * (size + 1)
        wall[y:y + size, x:x + size] = picture
    axes = figure.subplots()
    axes.imshow(wall, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{network}: the {len(pictures)} filters of the first layer, {size} x {size} "
                   "pixels")
    notes(figure, f"{topic['data']}; {topic['runs'][0]}"
                  f"{rank(topic['runs'][0], network.lower(), source)}; "
                  "each filter is stretched to the full range")
