"""What theory.py measured, as tables for REPORT.md."""

import numpy as np
import pandas as pd

from report.frame import Source
from report.tables import NOT_YET, markdown
from store.settings import NETWORKS

# Parameters, and multiplications for one picture; a test counts them, as torch is not loaded here.
SIZES = {"mlp": (308_510, 308_200), "cnn": (106_954, 18_166_272)}
TRAIN_IMAGES = 40_000  # that batches are drawn from


def expected(sizes) -> np.ndarray:
    """How far the mean of n of N values lies off, drawn without replacement: of its deviation."""
    n = np.array(sizes)
    return np.sqrt((1 - n / max(TRAIN_IMAGES, *sizes)) / n)


def known(source: Source, topic: str) -> list[tuple[str, dict]]:
    """What theory.py knows of a topic, by network."""
    return [(n, source.theory[n][topic]) for n in NETWORKS if topic in source.theory.get(n, {})]


def bagging(source: Source) -> str:
    """Averages of networks and of dropout masks, the members and the largest numbers of each."""
    rows = []
    for network, topic in known(source, "bagging"):
        k, masks = len(topic["measured"]), topic["masks"]
        for what, predicted, error, accuracy in (
                ("1 network", topic["predicted"][0], topic["measured"][0], topic["accuracy"][0]),
                (f"{k} networks", topic["predicted"][-1], topic["measured"][-1],
                 topic["accuracy"][-1]),
                ("1 mask of one network", None, topic["masked"][0], topic["masked_accuracy"][0]),
                (f"{masks[-1]} masks of one network", None, topic["masked"][-1],
                 topic["masked_accuracy"][-1])):
            rows.append([network.upper(), what, f"{predicted:.5f}" if predicted else "–",
                         f"{error:.5f}", f"{accuracy:.4f}"])
    return markdown(["", "averaged", "predicted", "measured", "test accuracy"], rows)


def correlation(source: Source) -> str:
    parts = [f"{n.upper()} v = {t['variance']:.5f}, c = {t['covariance']:.5f}, c/v = "
             f"{t['covariance'] / t['variance']:.3f}" for n, t in known(source, "bagging")
             if len(t["measured"]) > 1 and t["variance"]]
    return "; ".join(parts) or "not measured yet"


def statistics(source: Source) -> str:
    """Distances of batch statistics at the smallest, a middle and the largest size."""
    rows = []
    for network, topic in known(source, "statistics"):
        table = pd.DataFrame({"n": topic["batch_sizes"], "mean": topic["mean"],
                              "variance": topic["variance"], "accuracy": topic["batch_accuracy"]})
        if table.empty:  # fewer than 16 test images
            continue
        theory = expected(table.n)
        for i in sorted({0, len(table) // 2, len(table) - 1}):
            row = table.iloc[i]
            rows.append([network.upper(), int(row.n), f"{row['mean']:.4f}",
                         f"{theory[i] * topic['mean_theory']:.4f}", f"{row.variance:.4f}",
                         f"{theory[i] * topic['variance_theory']:.4f}", f"{row.accuracy:.4f}",
                         f"{topic['running_accuracy']:.4f}"])
    return markdown(["", "batch size", "mean off by", "theory", "variance off by", "theory",
                     "test accuracy with the batch's statistics", "with running statistics"], rows)


def shifts(source: Source) -> str:
    """The sizes of both networks, and their accuracy on moved images."""
    moves, rows, topics = (0, 1, 2, 4, 8), [], dict(known(source, "shifts"))
    for network in NETWORKS:
        topic = topics.get(network)
        accuracy = 100 * np.mean(topic["accuracy"], 0) if topic else None
        trained = " and ".join(map(str, dict.fromkeys(topic.get("epochs", ())))) if topic else ""
        rows.append([network.upper(), *(f"{number:,}" for number in SIZES[network]),
                     f"{len(topic['runs'])} (epochs: {trained})" if topic else NOT_YET,
                     *(f"{accuracy[n]:.1f}" if topic else "–" for n in moves)])
    return markdown(["", "parameters", "multiplications per image", "networks measured",
                     *(f"moved by {n} (%)" for n in moves)], rows)


def epoch_seconds(source: Source) -> str:
    """What an epoch's training takes by batch size, as the bench measures it."""
    topics = known(source, "epoch_seconds")
    if not topics:
        return ("The seconds of an epoch by batch size: not measured yet; "
                "`python bench/batch_sizes.py` does it. The runs shared their machines.")
    parts = []
    for network, topic in topics:
        medians = [f"{np.median(seconds):.2f} s at {n}" for n, seconds in topic["seconds"].items()]
        rounds = len(next(iter(topic["seconds"].values())))
        parts.append(f"{network.upper()} {', '.join(medians)} (median of {rounds} rounds)")
    machines = "; ".join(dict.fromkeys(topic["machine"] for _, topic in topics))
    return (f"Training for one epoch by batch size: {'; '.join(parts)}. "
            f"`python bench/batch_sizes.py`; {machines}.")


def order(source: Source) -> str:
    """Dropout before pooling: the inflated mean, and test accuracy with both statistics."""
    rows = []
    for network, topic in known(source, "order"):
        columns = ["inflation", "running_accuracy", "retaken_accuracy", "masked_accuracy"]
        table = pd.DataFrame(topic["networks"])
        groups = table.groupby(["dropout_type", "pool_first", "drop_rate"])[columns]
        for (kind, first, rate), mean in groups.mean().iterrows():
            n = len(groups.get_group((kind, first, rate)))
            rows.append([network.upper(), kind, "behind pooling" if first else "before pooling",
                         rate, n, f"{mean.inflation:.2f}",
                         *(f"{100 * mean[key]:.1f}" for key in columns[1:])])
    return markdown(["", "type", "dropout", "drop rate", "networks", "mean, training ÷ evaluation",
                     "test accuracy, running statistics (%)", "retaken without dropout (%)",
                     "one mask, batch statistics (%)"], rows) if rows else ""
