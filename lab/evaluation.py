"""A trained network put to use: how it does on the test set, and the classes of one's own pictures.

    python main.py --evaluate 128_0.001_0.2                       # a run, by path or name
    python main.py --evaluate 128_0.001_0.2 --predict cat.jpg dog.png

`--evaluate` prints a table and leaves two files in the run's folder:

    evaluation.json   loss, accuracy, per_class, confusion, classes, epoch: a list per class in the
                      order of `classes`; confusion[i][j] counts the pictures of class i that were
                      taken for class j
    mistakes.png      the wrong answers that the network was surest of
"""

import contextlib
import io
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from fast.machine import choose_device, keep_freed_memory  # before torch: says how threads wait

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.errors import in_one_line
from lab.table import columns
from load_data import DATA_DIR, Data, Split
from store.files import UserError, one_line, write_file, write_json
from store.images import evaluation_batches, prepared
from store.official import find_official
from store.pictures import read_picture
from store.run import Run, RunFolder
from store.settings import Settings
from store.trained import (
    Build,
    Trained,
    class_probabilities,
    confusion_matrix,
    read_trained,
    restore,
)
from training import logits_of

WIDTH = 100  # of the table, at most
MISTAKES = 32  # pictures in mistakes.png
LIKELIEST = 3  # classes printed for a picture
Load = Callable[[Path, bool], Data]


@in_one_line
def evaluate_run(options, build: Build, load: Load) -> int:
    """Do what --evaluate and --predict say; returns the exit code."""
    device = choose_device(options.device)
    keep_freed_memory()
    folder = find_run(options.runs_dir / options.network, options.evaluate, options.network)
    trained = read_trained(folder, options.network, build)
    if options.predict:
        return predict(trained, options.predict, build)
    synthetic = options.synthetic or trained.settings.synthetic and options.data_dir is None
    data_dir = None if synthetic else options.data_dir or its_data_dir(trained.run)
    evaluate_best(trained, load(data_dir, synthetic), build, device)
    return 0


def its_data_dir(run: Run) -> Path | None:
    """The folder that --data_dir named when the run was trained; None for the default one."""
    named, images = run.data.get("folder"), run.data["source"] == "image folder"
    if not (named or images):
        return None
    folder = Path(str(named or DATA_DIR))
    if not ((folder / "train").exists() if images else find_official(folder)):  # downloads nothing
        raise UserError(f"{run.name} was trained on {'an image folder' if images else 'data'} that "
                        f"is not in {folder}; name the folder with --data_dir")
    return folder


# The run


def find_run(place: Path, text: str, network: str) -> RunFolder:
    """The run at the path `text`, or the one of that name in `place`.

    A name is complete, or lacks parts at its end that are at their defaults, or is the start of
    just one run's.
    """
    if (Path(text) / "config.json").is_file():
        return RunFolder(Path(text))
    there = sorted(path.parent.name for path in place.glob("*/config.json"))
    if not there:
        raise UserError(f"argument --evaluate: {text} is not a run's folder, and {place} has no "
                        "runs; give the folder of one, or its --runs_dir")
    text = text.strip("/")
    with contextlib.suppress(ValueError):
        name = Settings.parse(network, text).name
        if name in there:
            return RunFolder(place / name)
    fitting = [name for name in there if name == text or name.startswith(f"{text}_")]
    if len(fitting) == 1:
        return RunFolder(place / fitting[0])
    if fitting:
        raise UserError(f"argument --evaluate: {text} could be any of {listed(fitting)}; name "
                        "more of it")
    raise UserError(f"argument --evaluate: there is no run {text} in {place}, which has "
                    f"{listed(there)}")


def listed(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# --evaluate


def evaluate_best(trained: Trained, data: Data, build: Build, device: torch.device) -> None:
    """Print how the run's best network does on the test set; leave two files in its folder."""
    if list(data.classes) != trained.classes:
        raise UserError(f"{trained.folder.folder} was trained on other classes "
                        f"({listed(trained.classes)}) than the data has "
                        f"({listed(list(data.classes))}); name its data with --data_dir or "
                        "--synthetic")
    test = prepared(data, trained.settings, device).test
    probabilities, summary = test_metrics(restore(trained, build, device), test, trained)
    own = data.fingerprint == trained.run.fingerprint
    print_evaluation(trained, data, summary, own)
    if own:
        write_evaluation(trained.folder.folder, summary, data.test, probabilities)
    else:
        print("\nnothing is kept in the run's folder, as this was not its own test set")


@torch.no_grad()
def test_metrics(network: nn.Module, test: Split, trained: Trained) -> tuple[Tensor, dict]:
    """The probabilities of every class for every picture, and what evaluation.json holds."""
    logits = torch.cat([logits_of(network, x, trained.settings.precision)
                        for x, _ in evaluation_batches(test)])
    loss = F.cross_entropy(logits, test.labels, reduction="none").mean().item()
    if not math.isfinite(loss):
        raise UserError(f"best.pt of {trained.folder.folder} holds weights that are not finite; "
                        "retrain the run")
    confusion = confusion_matrix(test.labels, logits.argmax(1), len(trained.classes))
    right, count = confusion.diagonal(), confusion.sum(1)
    return logits.softmax(1).cpu(), {
        "loss": round(loss, 6), "accuracy": round(right.sum().item() / len(test.labels), 6),
        "per_class": [round(share, 6) for share in (right / count.clamp(min=1)).tolist()],
        "confusion": confusion.tolist(), "classes": trained.classes,
        "epoch": trained.best["epoch"]}


def print_evaluation(trained: Trained, data: Data, summary: dict, own: bool) -> None:
    run, best, result = trained.run, trained.best, trained.run.result
    state = f"of {result['epochs']}" if result else "of a run that is not finished"
    print(f"{trained.settings.network} {run.name}, weights of epoch {best['epoch']} {state}")
    print(f"test set: {len(data.test.labels)} images, {data.source}"
          f"{'' if own else ' -- NOT the data of this run, some of these may have trained it'}\n")
    for name, key in (("loss", "test_loss"), ("accuracy", "test_acc")):
        recorded = f"   (the run recorded {best[key]:.4f})" if own else ""
        print(f"{name:8}  {summary[name]:.4f}{recorded}")
    print("\n" + table(summary, min(WIDTH, columns())))


def table(summary: dict, width: int) -> str:
    """Accuracy per class and the confusion matrix, in at most `width` columns; `.` stands for none.

    Where names have no room above the matrix it counts the classes; where the matrix itself has
    none, the most frequent confusions take its place.
    """
    classes, confusion = [one_line(name) for name in summary["classes"]], summary["confusion"]
    digits = max(len(str(max(map(max, confusion)))), 3)
    numbers = [str(i) for i in range(len(classes))]
    numbered = [f"{i:>{len(numbers[-1])}} {name}" for i, name in enumerate(classes)]
    for titles, names in ((classes, classes), (numbers, numbered), ([], classes)):
        left = max(5, *map(len, names))
        cells = [max(len(title), digits) + 1 for title in titles]
        if left + len("  0.0000") + sum(cells) <= width:
            break
    above = "".join(f"{title:>{cell}}" for title, cell in zip(titles, cells, strict=True))
    lines = [" " * (left + 9) + "taken for"] * bool(titles)
    lines.append(f"{'class':{left}}     acc{above}".rstrip())
    for name, accuracy, counts in zip(names, summary["per_class"], confusion, strict=True):
        row = "".join(f"{count or '.':>{cell}}" for count, cell in zip(counts, cells, strict=False))
        lines.append(f"{name:{left}}  {accuracy:.4f}{row}".rstrip())
    if not titles:
        lines += ["", "most frequent confusions", *frequent(classes, confusion, left)]
    return "\n".join(lines)


def frequent(classes: list[str], confusion: list[list[int]], width: int, limit: int = 10) -> list:
    pairs = [(count, i, j) for i, row in enumerate(confusion) for j, count in enumerate(row)
             if count and i != j]
    return [f"{count:6}  {classes[i]:{width}} taken for {classes[j]}"
            for count, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:limit]]


def write_evaluation(folder: Path, summary: dict, test: Split, probabilities: Tensor) -> None:
    """Write both files; where nothing can be written, the printed table has to do."""
    try:
        print()
        write_json(folder / "evaluation.json", summary)
        print(f"{folder / 'evaluation.json'}: these numbers")
        count = draw_mistakes(folder / "mistakes.png", test, probabilities, summary["classes"])
        if count:
            print(f"{folder / 'mistakes.png'}: the {count} wrong answers that the network was "
                  "surest of")
    except UserError as error:
        print(f"not kept: {error}", file=sys.stderr)


def draw_mistakes(path: Path, test: Split, probabilities: Tensor, classes: list[str]) -> int:
    """Draw the pictures whose wrong class got the highest probability; returns their number."""
    from matplotlib.figure import Figure

    import store.figures  # noqa: F401  matplotlib as the project sets it

    images, labels = test
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[confidence[wrong].argsort(descending=True)[:MISTAKES]]
    if not len(order):
        path.unlink(missing_ok=True)
        return 0
    rows = -(-len(order) // 8)
    figure = Figure(figsize=(1.3 * 8, 1.6 * rows + 0.4), layout="constrained")
    figure.suptitle("The surest mistakes: the answer with its probability, and the truth")
    for position, i in enumerate(order.tolist()):
        axes = figure.add_subplot(rows, 8, position + 1)
        axes.imshow(images[i].view(3, 32, 32).permute(1, 2, 0).cpu().numpy())
        guess, truth = (one_line(classes[label])[:12] for label in (predicted[i], labels[i]))
        axes.set_title(f"{guess} {confidence[i]:.3f}\n{truth}", fontsize=8, parse_math=False)
        axes.axis("off")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_file(path, picture.getvalue())
    return len(order)


# --predict


def predict(trained: Trained, paths: list[Path], build: Build) -> int:
    """Print the likeliest classes of each picture; returns the exit code, 2 if one is unreadable.

    In float64, on the CPU: a picture gets the same answer, to the last printed digit, alone and
    among others. Nothing else would part them, as evaluation normalizes by the running statistics.
    """
    pictures, readable = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on odd files
        for path in paths:
            try:
                pictures.append(read_picture(path))
                readable.append(path)
            except UserError as error:
                print(f"{sys.argv[0]}: error: argument --predict: {error}", file=sys.stderr)
    if readable:
        print_classes(trained, build, readable, torch.from_numpy(np.stack(pictures)))
    return 0 if readable == paths else 2


def print_classes(trained: Trained, build: Build, paths: list[Path], pictures: Tensor) -> None:
    if trained.settings.network == "mlp":
        pictures = pictures.flatten(1)
    network = restore(trained, build, torch.device("cpu")).double()
    answers = []
    for row in class_probabilities(network, pictures):
        best = row.topk(min(LIKELIEST, len(row)))
        answers.append("  ".join(
            f"{one_line(trained.classes[label])} {share:.4f}"
            for share, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)))
    names = [one_line(str(path)) for path in paths]
    width = max(map(len, names))
    beside = width + 2 + max(map(len, answers)) <= columns()
    for name, text in zip(names, answers, strict=True):
        print(f"{name:{width}}  {text}" if beside else f"{name}\n    {text}")
