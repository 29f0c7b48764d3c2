"""What theory.py measured, in words and tables, for REPORT.md."""

import numpy as np

from report.old_studies import SWEEP, Source, View
from report.tables import NOT_YET, markdown, value
from store.settings import NETWORKS

# Parameters, and multiplications for one picture; a test counts them, as torch is not loaded here.
SIZES = {"mlp": (308_510, 308_200), "cnn": (106_954, 18_166_272)}


TRAIN_IMAGES = 40_000  # that batches are drawn from


def expected(sizes) -> np.ndarray:
    """How far the mean of n of N values lies off, drawn without replacement: of its deviation."""
    n = np.array(sizes)
    return np.sqrt((1 - n / max(TRAIN_IMAGES, *sizes)) / n)


def figure(name: str, alternative: str) -> str:
    return f"![{alternative}](pics/{name}.png)"


def of_topic(source: Source, topic: str, describe) -> str:
    """A section for both networks: figure, and what `describe` makes of the numbers."""
    parts = []
    for network in NETWORKS:
        name, known = network.upper(), source.theory.get(network, {}).get(topic)
        parts.append(figure(f"{name}_{topic}", f"{name}: {topic}"))
        if known:
            runs = ", ".join(f"`{run}`" for run in known["runs"])
            parts.append(f"{name}, networks: {runs} ({known['data']}).\n\n{describe(known)}")
        else:
            parts.append(f"{name}: {NOT_YET} `python theory.py {topic} --network {network}` "
                         "measures it.")
    return "\n\n".join(parts)


def bagging(topic: dict) -> str:
    measured, predicted, masked = topic["measured"], topic["predicted"], topic["masked"]
    gains = [values[0] - values[-1] for values in (predicted, measured)]
    networks = zip(predicted, measured, topic["accuracy"], strict=True)
    masks = zip(topic["masks"], masked, topic["masked_accuracy"], strict=True)
    table = markdown(["averaged", "predicted", "measured", "test accuracy"], [
        *([f"{k} network{'s' * (k > 1)}", f"{p:.5f}", f"{m:.5f}", f"{accuracy:.4f}"]
          for k, (p, m, accuracy) in enumerate(networks, 1)),
        *([f"{n} mask{'s' * (n > 1)} of one network", "–", f"{m:.5f}", f"{accuracy:.4f}"]
          for n, m, accuracy in masks)])
    v, c = topic["variance"], topic["covariance"]
    correlation = f", c = {c:.5f}, correlation c/v = {c / v:.3f}" * (len(measured) > 1)
    gain = ("Averaging {} networks gains {:.5f} by the formula and {:.5f} on the test images. "
            .format(len(measured), *gains) * (len(measured) > 1))
    return (f"{table}\n\nv = {v:.5f}{correlation}. {gain}1 network is the single pass in "
            "evaluation mode.")


def statistics(topic: dict) -> str:
    sizes = topic["batch_sizes"]
    theory = {key: expected(sizes) * topic[f"{key}_theory"] for key in ("mean", "variance")}
    powers = {key: [np.polyfit(np.log(sizes), np.log(values), 1)[0]
                    for values in (topic[key], theory[key])] for key in theory}
    columns = zip(sizes, topic["mean"], theory["mean"], topic["variance"], theory["variance"],
                  topic["batch_accuracy"], strict=True)
    table = markdown(["batch size", "mean off by, standard deviations", "theory",
                      "variance off by, relative", "theory",
                      "test accuracy with batch statistics"],
                     [[n, *(f"{number:.4f}" for number in numbers)] for n, *numbers in columns])
    texts = ["the {}'s to the power of {:.2f} (theory: {:.2f})".format(key, *found)
             for key, found in powers.items()]
    return (f"{table}\n\nOver these sizes the distances fall as a power of n: "
            f"{' and '.join(texts)}. Test accuracy with running statistics: "
            f"{topic['running_accuracy']:.4f}.")


def shifts(source: Source) -> str:
    """The sizes of both networks, and their accuracy on moved images."""
    moves, rows = (0, 1, 2, 4, 8), []
    for network in NETWORKS:
        topic = source.theory.get(network, {}).get("shifts")
        accuracy = 100 * np.mean(topic["accuracy"], 0) if topic else None
        trained = " and ".join(map(str, dict.fromkeys(topic.get("epochs", ())))) if topic else ""
        rows.append([network.upper(), *(f"{number:,}" for number in SIZES[network]),
                     f"{len(topic['runs'])}" + f" (epochs: {trained})" * bool(trained)
                     if topic else NOT_YET,
                     *(f"{accuracy[n]:.1f}" if topic else "–" for n in moves)])
    header = ["", "parameters", "multiplications per image", "networks measured",
              *(f"test accuracy (%), moved by {n}" for n in moves)]
    return (f"{figure('shifts', 'Test accuracy when the images move')}\n\n"
            f"{markdown(header, rows)}\n\n`python theory.py shifts` moves the images.")


def epoch_seconds(source: Source) -> str:
    """What an epoch's training takes by batch size, as the bench measures it."""
    topics = {network: topic for network in NETWORKS
              if (topic := source.theory.get(network, {}).get("epoch_seconds"))}
    if not topics:
        return ("The seconds of an epoch by batch size: not measured yet; "
                "`python bench/batch_sizes.py` does it. The runs shared their machines.")
    rows = [[network.upper(), n, "{1:.2f} ({0:.2f}–{2:.2f})".format(
        *np.percentile(seconds, (25, 50, 75))), len(seconds)]
            for network, topic in topics.items() for n, seconds in topic["seconds"].items()]
    machines = "; ".join(dict.fromkeys(topic["machine"] for topic in topics.values()))
    return (markdown(["", "batch size", "training, seconds scaled to an epoch: median (quartiles)",
                      "rounds, in turns"], rows)
            + f"\n\n`python bench/batch_sizes.py`; {machines}.")


def learning_rates(view: View) -> str:
    """Best validation accuracy at each rate, with and without batch normalization."""
    picture, name = figure(view.study.name, view.study.title), view.study.network.upper()
    if not view.curves:
        return f"{picture}\n\n{name}: {NOT_YET} `{view.study.command}` makes the runs."

    def cell(label: str) -> str:
        if curve := view.complete(label):
            return value(curve, "val_acc")
        return "diverges" if label in view.failed else NOT_YET

    table = markdown(["learning rate", "with batch normalization", "without"],
                     [[lr, *(cell(f"{lr}_{without}") for without in (False, True))]
                      for lr in SWEEP])
    return (f"{picture}\n\n{name}, best validation accuracy in {view.epochs} epochs, "
            f"{view.seeds_text} ({view.data}); guessing: {view.guessing['val_acc']:.3g}.\n\n"
            + table)


def confusion(topic: dict | None) -> str:
    pictures = (f"{figure('CNN_confusion', 'Confusion matrix')}\n\n"
                f"{figure('CNN_filters', 'First-layer filters')}")
    return pictures if topic else (
        f"{pictures}\n\n{NOT_YET} `python theory.py confusion filters --network cnn` makes them.")
