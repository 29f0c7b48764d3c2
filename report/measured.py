"""What theory.py measured, in words and tables, for REPORT.md."""

import numpy as np

from report.studies import SWEEP, Source, View
from report.tables import NOT_YET, markdown, value
from store.settings import NETWORKS

LEARNS = 1.2  # times the validation accuracy of guessing


def figure(name: str, alternative: str) -> str:
    return f"![{alternative}](pics/{name}.png)"


def of_topic(source: Source, topic: str, describe) -> str:
    """A section for both networks: figure, and what `describe` makes of the numbers."""
    parts = []
    for network in NETWORKS:
        measured, name = source.theory.get(network, {}).get(topic), network.upper()
        parts += [figure(f"{name}_{topic}", f"{name}: {topic}"),
                  f"{name}, networks: {', '.join(f'`{run}`' for run in measured['runs'])} "
                  f"({measured['data']}).\n\n"
                  f"{describe(measured)}" if measured else
                  f"{name}: {NOT_YET} `python theory.py {topic} --network {network}` measures it."]
    return "\n\n".join(parts)


def bagging(topic: dict) -> str:
    measured, predicted, masked = topic["measured"], topic["predicted"], topic["masked"]
    off = max(abs(m / p - 1) for m, p in zip(measured, predicted, strict=True))
    table = markdown(["averaged", "predicted", "measured", "test accuracy"], [
        *([f"{k} network{'s' * (k > 1)}", f"{p:.5f}", f"{m:.5f}", f"{accuracy:.4f}"] for k,
          (p, m, accuracy)
          in enumerate(zip(predicted, measured, topic["accuracy"], strict=True), 1)),
        *([f"{n} mask{'s' * (n > 1)} of one network", "", f"{m:.5f}", f"{accuracy:.4f}"]
          for n, m, accuracy in zip(topic["masks"], masked, topic["masked_accuracy"],
                                    strict=True))])
    v, c = topic["variance"], topic["covariance"]
    correlation = f", c = {c:.5f}, correlation c/v = {c / v:.3f}"
    fall = (f"{predicted[0] - predicted[-1]:.5f} predicted, "
            f"{measured[0] - measured[-1]:.5f} measured")
    return (f"{table}\n\nv = {topic['variance']:.5f}{correlation if len(measured) > 1 else ''}. "
            f"Prediction and "
            f"measurement differ by at most {100 * off:.2f} %; from one network to {len(measured)} "
            f"the error falls by "
            f"{fall}. Against the single pass in evaluation mode (1 network) "
            f"the error of one mask differs by {100 * (masked[0] / measured[0] - 1):+.2f} %, that "
            f"of "
            f"{topic['masks'][-1]} masks by {100 * (masked[-1] / measured[0] - 1):+.2f} %.")


def statistics(topic: dict) -> str:
    sizes = topic["batch_sizes"]
    powers = [np.polyfit(np.log(sizes), np.log(topic[key]), 1)[0] for key in ("mean", "variance")]
    table = markdown(["batch size", "mean off by, standard deviations", "theory",
                      "variance off by, relative", "theory",
                      "test accuracy with batch statistics"],
                     [[n, f"{mean:.4f}", f"{topic['mean_theory'] / n ** 0.5:.4f}",
                       f"{variance:.4f}",
                       f"{topic['variance_theory'] / n ** 0.5:.4f}", f"{accuracy:.4f}"] for n,
                      mean, variance, accuracy
                      in zip(sizes, topic["mean"], topic["variance"], topic["batch_accuracy"],
                             strict=True)])
    return (f"{table}\n\nThe mean's distance falls as n to the power of {powers[0]:.2f}, the "
            f"variance's as n to the "
            f"power of {powers[1]:.2f}; theory says −0.5. Test accuracy with running statistics: "
            f"{topic['running_accuracy']:.4f}.")


def shifts(source: Source) -> str:
    """The accuracy of both networks on moved images, and their sizes."""
    rows = []
    for network in NETWORKS:
        if topic := source.theory.get(network, {}).get("shifts"):
            accuracy = 100 * np.mean(topic["accuracy"], 0)
            rows.append([network.upper(), f"{topic['parameters']:,}",
                         f"{topic['multiplications']:,}",
                         len(topic["runs"]), *(f"{accuracy[n]:.1f}" for n in (0, 1, 2, 4, 8))])
    picture = figure("shifts", "Test accuracy when the images move")
    if not rows:
        return f"{picture}\n\n{NOT_YET} `python theory.py shifts` measures it."
    header = ["", "parameters", "multiplications per image", "networks",
              *(f"test accuracy (%), moved by {n}" for n in (0, 1, 2, 4, 8))]
    return f"{picture}\n\n{markdown(header, rows)}"


def learning_rates(view: View) -> str:
    picture, name = figure(view.study.name, view.study.title), view.study.network.upper()
    if not view.curves:
        return f"{picture}\n\n{name}: {NOT_YET} `{view.study.command}` makes the runs."
    return (f"{picture}\n\n{name}, {view.epochs} epochs, {view.seeds_text} ({view.data}). It "
            f"learns where its "
            f"validation accuracy is more than {LEARNS} times that of guessing, "
            f"{view.guessing['val_acc']:.3g}. "
            f"{what_rates_show(view, False)} {what_rates_show(view, True)}")


def what_rates_show(view: View, without: bool) -> str:
    """At which rates a network learns, at which not, and at which nobody knows."""
    arm = f"{'Without' if without else 'With'} batch normalization"
    points = {lr: curve for lr in SWEEP if (curve := view.complete(f"{lr}_{without}"))}
    failed = [lr for lr in SWEEP if f"{lr}_{without}" in view.failed and lr not in points]
    if not points and not failed:
        return f"{arm}: {NOT_YET.lower()}"
    reached = {lr: curve.mean("val_acc") for lr, curve in points.items()}
    learned = [lr for lr in reached if reached[lr] > LEARNS * view.guessing["val_acc"]]
    best = max(reached, key=reached.get, default=None)

    def listed(rates) -> str:
        return ", ".join(map(str, rates)) or "none"

    text = f"{arm} it learns at {listed(learned)}"
    if learned:
        text += f", best at {best} (validation accuracy {value(points[best], 'val_acc')})"
    others = (("not at", [lr for lr in reached if lr not in learned]), ("diverges at", failed),
              ("was not run at", [lr for lr in SWEEP if lr not in reached and lr not in failed]))
    return "; ".join([text, *(f"{what} {listed(rates)}" for what, rates in others if rates)]) + "."


def confusion(topic: dict | None) -> str:
    pictures = (f"{figure('CNN_confusion', 'Confusion matrix')}\n\n"
                f"{figure('CNN_filters', 'First-layer filters')}\n\n")
    if not topic:
        return f"{pictures}{NOT_YET} `python theory.py confusion filters --network cnn` makes them."
    classes, counts = topic["classes"], np.array(topic["confusion"])
    wrong = [(counts[i, j], classes[i], classes[j]) for i, j in np.ndindex(counts.shape) if i != j
             and counts[i, j]]
    frequent = ", ".join(f"{one} for {other} ({n})" for n, one,
                         other in sorted(wrong, key=lambda w: -w[0])[:3])
    return (f"{pictures}`{topic['runs'][0]}` ({topic['data']}) gets "
            f"{counts.trace() / counts.sum():.4f} of the test "
            f"images right. Most often it takes {frequent}.")
