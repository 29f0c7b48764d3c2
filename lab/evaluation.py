"""A trained network put to use: how it does on the test set, and the classes of one's own pictures.

    python main.py --evaluate 128_0.001_0.2                          # a run, by its path or its name
    python main.py --evaluate 128_0.001_0.2 --predict cat.jpg dog.png

`--evaluate` prints a table and leaves two files in the run's folder:

    evaluation.json   loss, accuracy, per_class, confusion, classes, epoch: a list per class in the order of
                      `classes`; confusion[i][j] counts the pictures of class i that were taken for class j
    mistakes.png      the wrong answers that the network was surest of
"""

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from load_data import DATA_DIR, Data, Split, normalize
from store.files import MAX_CHECKPOINT, UserError, one_line, read_file, write_file, write_json
from store.pictures import read_picture
from store.run import Run, intact
from store.settings import Settings
from training import EVALUATION_BATCH, Trainer, on_device

WIDTH = 100  # columns of the table
MISTAKES = 32  # pictures in mistakes.png
LIKELIEST = 3  # classes printed for a picture
Build = Callable[[Settings, int], nn.Module]


class Trained(NamedTuple):
    """A run as its folder tells it."""

    run: Run
    settings: Settings
    data: dict  # "data" of config.json
    best: dict  # best.pt: the weights as "network", and the row of their epoch

    @property
    def classes(self) -> list[str]:
        return self.data["classes"]


def evaluate_run(options, build: Build, load: Callable[[Path, bool], Data], device: torch.device) -> int:
    """Do what --evaluate and --predict say; returns the exit code."""
    trained = read_run(find_run(options.runs_dir / options.network, options.evaluate), options.network)
    if options.predict:
        predict(trained, options.predict, build)
        return 0
    synthetic = options.synthetic or trained.settings.synthetic and options.data_dir == DATA_DIR
    if trained.data["source"] == "image folder" and not synthetic and not (options.data_dir / "train").exists():
        raise UserError(f"{trained.run.name} was trained on an image folder; name it with --data_dir")
    data = load(options.data_dir, synthetic)
    evaluate(trained, data, build, device)
    return 0


# The run


def find_run(folder: Path, name: str) -> Run:
    """The run at the path `name`, or the one of that name in `folder`.

    A name is complete, or lacks parts at its end that are at their defaults, or is the start of just one run's.
    """
    if (Path(name) / "config.json").is_file():
        return Run(Path(name))
    there = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if not there:
        raise UserError(f"argument --evaluate: {name} is not a run's folder, and {folder} has no runs; train one first")
    name = with_floats(name.strip("/"))
    for whole in completions(name):
        if whole in there:
            return Run(folder / whole)
    fitting = [run for run in there if run.startswith(f"{name}_")]
    if len(fitting) == 1:
        return Run(folder / fitting[0])
    if fitting:
        raise UserError(f"argument --evaluate: {name} could be any of {listed(fitting)}; name more of it")
    raise UserError(f"argument --evaluate: there is no run {name} in {folder}, which has {listed(there)}")


def with_floats(name: str) -> str:
    """The learning rate and the drop rate as Python prints them: 128_1e-3_0 becomes 128_0.001_0.0."""
    parts = name.split("_")
    for i in (1, 2):
        try:
            parts[i] = str(float(parts[i]))
        except (IndexError, ValueError):
            return name
    return "_".join(parts)


def completions(name: str):
    """The name, and the name with its missing parts at their defaults."""
    yield name
    for defaults in (["False", "False", "2d", "seed0"], ["False", "False", "seed0"]):
        missing = defaults[max(0, name.count("_") - 2):]
        yield "_".join([name, *missing])


def listed(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_run(run: Run, network: str) -> Trained:
    """Read what is needed of the run's folder; UserError if something is missing, damaged, or of another network."""
    config = run.config() or {}
    if config.get("network") not in (None, network):
        raise UserError(f"{run.folder} is a run of the {config['network']}; evaluate it with its main.py")
    try:
        names = [field.name for field in dataclasses.fields(Settings)]
        settings = Settings(**{name: config[name] for name in names if name in config})
        data = {"classes": list(map(str, config["data"]["classes"])),
                **{key: str(config["data"][key]) for key in ("source", "fingerprint")}}
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.folder / 'config.json'} is missing or damaged, so the run cannot be evaluated; "
                        "train it anew") from error
    return Trained(run, settings, data, read_best(run.folder / "best.pt"))


def read_best(path: Path) -> dict:
    try:
        content = read_file(path, MAX_CHECKPOINT)
    except ValueError:
        content = b""  # damaged, see below
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a run has it after its first epoch") from error
    try:
        if not intact(content):
            raise ValueError
        best = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {**best, **{key: float(best[key]) for key in ("test_loss", "test_acc")}, "epoch": int(best["epoch"])}
    except Exception as error:  # whatever the file holds instead
        raise UserError(f"{path} is damaged; train the run again, which writes it anew") from error


def restore(trained: Trained, build: Build, device: torch.device, **changes) -> Trainer:
    """A trainer that holds the run's best network, in evaluation mode, and no data; `changes` are to its settings."""
    settings = dataclasses.replace(trained.settings, **changes)
    try:
        trainer = Trainer(lambda: build(settings, len(trained.classes)), None, settings, device)
        trainer.network.load_state_dict(trained.best["network"])
    except Exception as error:  # settings and weights come from two files, either of which may be damaged
        raise UserError(f"config.json and best.pt of {trained.run.folder} do not belong together "
                        f"({type(error).__name__}); train the run anew") from error
    trainer.network.eval()
    return trainer


# --evaluate


def evaluate(trained: Trained, data: Data, build: Build, device: torch.device) -> None:
    """Print how the run's best network does on the test set; leave evaluation.json and mistakes.png in its folder."""
    if list(data.classes) != trained.classes:
        raise UserError(f"{trained.run.folder} was trained on other classes ({listed(trained.classes)}) than the data "
                        f"has ({listed(list(data.classes))}); name its data with --data_dir or --synthetic")
    test = on_device(data.test, device)
    trainer = restore(trained, build, device)
    probabilities, summary = measure(trainer, test, trained)
    own = data.fingerprint == trained.data["fingerprint"]
    print_evaluation(trained, data, summary, own)
    if own:
        keep(trained.run.folder, summary, data.test, probabilities)
    else:
        print("\nnothing is kept in the run's folder, as this was not its own test set")


@torch.no_grad()
def measure(trainer: Trainer, test: Split, trained: Trained) -> tuple[Tensor, dict]:
    """The probabilities of every class for every picture, and what evaluation.json holds."""
    logits = torch.cat([trainer.logits(normalize(images)) for images in test.images.split(EVALUATION_BATCH)])
    loss = F.cross_entropy(logits, test.labels, reduction="none").mean().item()
    confusion = confusion_matrix(test.labels, logits.argmax(1), len(trained.classes))
    right, count = confusion.diagonal(), confusion.sum(1)
    return logits.softmax(1).cpu(), {
        "loss": round(loss, 6), "accuracy": round(right.sum().item() / len(test.labels), 6),
        "per_class": [round(share, 6) for share in (right / count.clamp(min=1)).tolist()],
        "confusion": confusion.tolist(), "classes": trained.classes, "epoch": trained.best["epoch"]}


def confusion_matrix(labels: Tensor, answers: Tensor, n: int) -> Tensor:
    """How many pictures of class i were taken for class j, on the CPU: n x n."""
    return torch.bincount(labels.cpu() * n + answers.cpu(), minlength=n * n).view(n, n)


def print_evaluation(trained: Trained, data: Data, summary: dict, own: bool) -> None:
    run, best, result = trained.run, trained.best, trained.run.result()
    state = f"of {result['epochs']}" if result else "of a run that is not finished"
    print(f"{trained.settings.network} {run.name}, weights of epoch {best['epoch']} {state}")
    print(f"test set: {len(data.test.labels)} images, {data.source}"
          f"{'' if own else ' -- NOT the data of this run, some of these may have trained it'}\n")
    print(f"loss      {summary['loss']:.4f}" + (f"   (the run recorded {best['test_loss']:.4f})" if own else ""))
    print(f"accuracy  {summary['accuracy']:.4f}" + (f"   (the run recorded {best['test_acc']:.4f})" if own else ""))
    print("\n" + table(summary))


def table(summary: dict) -> str:
    """Accuracy per class and the confusion matrix, in at most WIDTH columns; `.` stands for none.

    With more classes than have room, the most frequent confusions take the matrix' place.
    """
    classes, confusion = [one_line(name) for name in summary["classes"]], summary["confusion"]
    name_width = min(16, max(map(len, classes)))
    left = name_width + len("  accuracy  ")
    digits = len(str(max(map(max, confusion))))
    cell = min(max(map(len, classes)) + 1, (WIDTH - left) // len(classes))
    lines = []
    if matrix := cell > max(digits, 3):
        lines.append(" " * left + " taken for")
    lines.append(f"{'class':{name_width}}  accuracy  "
                 + "".join(f"{name[:cell - 1]:>{cell}}" for name in classes if matrix))
    for name, accuracy, counts in zip(classes, summary["per_class"], confusion, strict=True):
        cells = "".join(f"{count or '.':>{cell}}" for count in counts if matrix)
        lines.append(f"{name[:name_width]:{name_width}}  {accuracy:8.4f}  {cells}".rstrip())
    if not matrix:
        lines += ["", "most frequent confusions", *frequent(classes, confusion, name_width)]
    return "\n".join(lines)


def frequent(classes: list[str], confusion: list[list[int]], width: int, limit: int = 10) -> list[str]:
    pairs = [(count, i, j) for i, row in enumerate(confusion) for j, count in enumerate(row) if count and i != j]
    return [f"{count:6}  {classes[i][:width]:{width}} taken for {classes[j][:width]}"
            for count, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:limit]]


def keep(folder: Path, summary: dict, test: Split, probabilities: Tensor) -> None:
    """Write both files; where nothing can be written, the printed table has to do."""
    try:
        print()
        write_json(folder / "evaluation.json", summary)
        print(f"{folder / 'evaluation.json'}: these numbers")
        count = draw_mistakes(folder / "mistakes.png", test, probabilities, summary["classes"])
        if count:
            print(f"{folder / 'mistakes.png'}: the {count} wrong answers that the network was surest of")
    except UserError as error:
        print(f"not kept: {error}", file=sys.stderr)


def draw_mistakes(path: Path, test: Split, probabilities: Tensor, classes: list[str]) -> int:
    """Draw the pictures whose wrong class got the highest probability; returns how many there are."""
    from matplotlib.figure import Figure

    images, labels = test
    confidence, answers = probabilities.max(1)
    order = confidence.where(answers != labels, -1).argsort(descending=True)[:MISTAKES]
    order = order[answers[order] != labels[order]]
    if not len(order):
        path.unlink(missing_ok=True)
        return 0
    columns = 8
    rows = -(-len(order) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.6 * rows + 0.4), layout="constrained")
    figure.suptitle("The surest mistakes: the answer with its probability, and the truth")
    for position, i in enumerate(order.tolist()):
        axes = figure.add_subplot(rows, columns, position + 1)
        axes.imshow(images[i].view(3, 32, 32).permute(1, 2, 0).cpu().numpy())
        answer, truth = (one_line(classes[label])[:12] for label in (answers[i], labels[i]))
        axes.set_title(f"{answer} {confidence[i]:.3f}\n{truth}", fontsize=8, parse_math=False)
        axes.axis("off")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_file(path, picture.getvalue())
    return len(order)


# --predict


def predict(trained: Trained, paths: list[Path], build: Build) -> None:
    """Print the likeliest classes of each picture.

    In float64, on the CPU: a picture gets the same answer, to the last printed digit, alone and among others.
    Nothing else would part them, as evaluation normalizes by the running statistics and not by the batch's.
    """
    pictures = torch.from_numpy(np.stack([read_picture(path) for path in paths]))
    if trained.settings.network == "mlp":
        pictures = pictures.flatten(1)
    trainer = restore(trained, build, torch.device("cpu"), precision="fp32", compile=False)
    probabilities = class_probabilities(trainer.network.double(), pictures)
    width = max(len(one_line(str(path))) for path in paths)
    for path, row in zip(paths, probabilities, strict=True):
        best = row.topk(min(LIKELIEST, len(row)))
        answer = "  ".join(f"{one_line(trained.classes[label])} {share:.4f}"
                           for share, label in zip(best.values.tolist(), best.indices.tolist(), strict=True))
        print(f"{one_line(str(path)):{width}}  {answer}")


@torch.no_grad()
def class_probabilities(network: nn.Module, pictures: Tensor) -> Tensor:
    """Softmax of the network's answers to `pictures`, uint8, in float64."""
    return torch.cat([network(normalize(part).double()).softmax(1) for part in pictures.split(EVALUATION_BATCH)])
