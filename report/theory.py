"""Measure what theory says about batch normalization and dropout, on the networks that finished runs have left.

    bagging      squared error of averaged networks against v/k + (k - 1) c/k; of averaged dropout masks
    statistics   how far a batch's mean and variance lie from the training set's; evaluation with them
    rates        trains at nine learning rates from 0.0001 to 1, with and without batch normalization: 18 short runs
    confusion    what the CNN with the best validation accuracy takes for what
    filters      its first layer

The numbers land in RUNS_DIR/theory.json, the runs of `rates` among the others; plot.py draws both. bagging and
statistics take 1024_0.001_0.2 (MLP) and 128_0.001_0.2 (CNN), a network per seed, at its best validation accuracy.

exit code: 0 done, 2 something for you to mend, such as runs that are not there
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

from fast.machine import choose_device, keep_freed_memory  # before torch: says how its threads wait

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cnn.model
import mlp.model
from lab.options import Parser, setting
from layers import BatchNorm, Dropout
from load_data import Data, Split, load_cifar_2d, load_cifar_4d, normalize
from report.studies import BASES, NETWORKS, SWEEP, data_name, read_runs, write_theory
from store.files import ROOT, UserError
from store.images import evaluation_batches, prepared
from store.run import RunFolder
from store.trained import confusion_matrix, read_trained, restore

BUILD = {"mlp": mlp.model.build, "cnn": cnn.model.build}
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
DRAWN = 200  # batches of each size
MASKS = (1, 2, 4, 8, 16, 32, 64)


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("topics", nargs="*", default=[*TOPICS, "rates"], metavar="TOPIC", help="default: all of them")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS, help="default: both")
    parser.add_argument("--runs_dir", type=Path, default=ROOT / "runs", metavar="DIR",
                        help="where the runs are; default: runs/ of this repository")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", metavar="DIR",
                        help="the data set that they learned from; default: data/ of this repository")
    parser.add_argument("--synthetic", action="store_true", help="they learned from the generated set")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                        help="auto (default) takes a GPU if there is one")
    parser.add_argument("--num_epochs", type=setting("num_epochs"), default=5, metavar="N",
                        help="of `rates`, default 5")
    options = parser.parse_args()
    if unknown := [topic for topic in options.topics if topic not in (*TOPICS, "rates")]:
        parser.error(f"argument TOPIC: {unknown[0]!r} is not allowed, it must be one of {', '.join(TOPICS)}, rates")
    complete = True
    try:
        keep_freed_memory()
        for network in options.network:
            for topic in options.topics:
                if topic == "rates":
                    learning_rates(network, options)
                elif network == "cnn" or topic not in ("confusion", "filters"):
                    complete &= measure(network, topic, options)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return 0 if complete else 2


def learning_rates(network: str, options) -> None:
    """Short runs at every rate of the sweep. That some diverge is a result."""
    command = [sys.executable, str(ROOT / network / "main.py"), "--num_epochs", str(options.num_epochs),
               "--learning_rate", *map(str, SWEEP), "--runs_dir", str(options.runs_dir), "--device", options.device,
               *(["--synthetic"] if options.synthetic else ["--data_dir", str(options.data_dir)])]
    for flags in ([], ["--without_BatchNorm"]):
        if subprocess.run([*command, *flags]).returncode not in (0, 1):
            raise UserError("the runs could not be made, see above")


def measure(network: str, topic: str, options) -> bool:
    """Do one of the experiments and write what it measured; returns whether there were networks for it."""
    records = [record for record in read_runs(options.runs_dir)
               if record.network == network and record.result and record.variant == "synthetic" * options.synthetic]
    if topic in ("bagging", "statistics"):
        setting = f"{BASES[network]}_False_False" + "_2d" * (network == "cnn")
        records = sorted((r for r in records if r.setting == setting), key=lambda record: record.seed)
    else:
        records = sorted(records, key=lambda record: record.result["val_acc"])[-1:]
    if not records:
        print(f"{network} {topic}: no finished runs for it in {options.runs_dir}; "
              f"./run_grid.sh ablation --runs_dir {options.runs_dir} makes them", file=sys.stderr)
        return False
    device = choose_device(options.device)
    data = (load_cifar_4d if network == "cnn" else load_cifar_2d)(options.data_dir, options.synthetic)
    if any(record.fingerprint != data.fingerprint for record in records):
        raise UserError(f"runs in {options.runs_dir} learned from other data than {options.data_dir}; name theirs")
    build = BUILD[network]
    trained = [read_trained(RunFolder(options.runs_dir / network / record.name), network, build)
               for record in records]
    data = prepared(data, trained[0].settings, device)
    torch.manual_seed(0)
    with torch.inference_mode():
        result = TOPICS[topic]([restore(one, build, device) for one in trained], data)
    result = json.loads(json.dumps(result), parse_float=lambda text: round(float(text), 6))
    write_theory(options.runs_dir / "theory.json", {network: {topic: {
        "data": data_name(records[0]), "setting": records[0].setting, "runs": [record.name for record in records],
        **result}}})
    print(f"{network} {topic}: measured on {', '.join(record.name for record in records)}")
    return True


def switch(network: nn.Module, kind: type, training: bool) -> None:
    """Put the layers of one kind alone into training or evaluation mode."""
    for module in network.modules():
        if isinstance(module, kind):
            module.train(training)


def probabilities(network: nn.Module, split: Split) -> Tensor:
    """Of each class for each image, in float64 on the CPU (not every device has that type): N x classes."""
    return torch.cat([network(x).cpu().double().softmax(1) for x, _ in evaluation_batches(split)])


def bagging(networks: list[nn.Module], data: Data) -> dict:
    """v and c from the validation images, and the error of averages on the test images: over all choices of k
    networks, and over dropout masks of one network (mean over the networks)."""
    n, classes = len(networks), len(data.classes)

    validation_truth, test_truth = (F.one_hot(split.labels.cpu(), classes) for split in (data.val, data.test))

    def score(answers: Tensor) -> Tensor:
        """Mean squared error and accuracy of class probabilities on the test images."""
        right = (answers.argmax(1) == test_truth.argmax(1)).double().mean()
        return torch.stack([(answers - test_truth).square().mean(), right])

    answers = torch.stack([probabilities(network, data.val) for network in networks])
    errors = (answers - validation_truth).flatten(1)
    products = errors @ errors.T / errors.size(1)
    v = products.diagonal().mean().item()
    c = ((products.sum() - products.trace()) / max(1, n * (n - 1))).item()
    single = [probabilities(network, data.test) for network in networks]
    averaged = [torch.stack([score(sum(chosen) / k) for chosen in itertools.combinations(single, k)]).mean(0)
                for k in range(1, n + 1)]
    masked = torch.zeros(len(MASKS), 2, dtype=torch.double)
    for network in networks:
        switch(network, Dropout, True)
        total = torch.zeros_like(single[0])
        for mask in range(1, MASKS[-1] + 1):
            total += probabilities(network, data.test)
            if mask in MASKS:
                masked[MASKS.index(mask)] += score(total / mask) / n
    (error, accuracy), (masked_error, masked_accuracy) = torch.stack(averaged).T.tolist(), masked.T.tolist()
    return {"variance": v, "covariance": c, "predicted": [v / k + (k - 1) * c / k for k in range(1, n + 1)],
            "measured": error, "accuracy": accuracy, "masks": MASKS, "masked": masked_error,
            "masked_accuracy": masked_accuracy}


def statistics(networks: list[nn.Module], data: Data) -> dict:
    """How far batch statistics lie from the training set's, and the test accuracy with them; mean over networks."""
    sizes = [n for n in BATCH_SIZES if n <= len(data.test.labels)]
    each = [[*distances(network, data.train, sizes), *accuracies(network, data, sizes)] for network in networks]
    keys = ("mean", "variance", "mean_theory", "variance_theory", "batch_accuracy", "running_accuracy")
    return {"batch_sizes": sizes, **{key: torch.tensor(values).mean(0).tolist()
                                     for key, values in zip(keys, zip(*each, strict=True), strict=True)}}


def distances(network: nn.Module, split: Split, sizes: list[int]) -> tuple[list, list, float, float]:
    """Root mean square distance of a batch's mean (in standard deviations) and variance (relative) from those of
    all images, over channels and random batches, per size; and by what theory divides the square root of n."""
    first = next(network.children())  # the first BatchNorm normalizes what it gives out
    moments = [torch.stack([x.mean(2), x.square().mean(2)]) for part, _ in evaluation_batches(split)
               for x in [first(part).cpu().double().reshape(len(part), first.weight.size(0), -1)]]
    moments = torch.cat(moments, 1)  # 2 x images x channels: over the positions of an image
    moments = moments[:, :, (moments[1].mean(0) - moments[0].mean(0).square()) > 1e-12]  # channels that vary

    def moments_to_statistics(moments: Tensor) -> tuple[Tensor, Tensor]:
        mean, square = moments.mean(1)
        return mean, square - mean.square()

    mean, variance = moments_to_statistics(moments)

    def rms(values: list[Tensor] | Tensor) -> float:
        return (torch.stack(values) if isinstance(values, list) else values).square().mean().sqrt().item()

    off_mean, off_variance = [], []
    for n in sizes:
        batches = [moments_to_statistics(moments[:, torch.randperm(len(split.labels))[:n]]) for _ in range(DRAWN)]
        off_mean.append(rms([(batch_mean - mean) / variance.sqrt() for batch_mean, _ in batches]))
        off_variance.append(rms([batch_variance / variance - 1 for _, batch_variance in batches]))
    around_mean = moments[1] - 2 * mean * moments[0] + mean.square()  # of an image: mean of (x - mean)^2
    return off_mean, off_variance, rms(moments[0].std(0) / variance.sqrt()), rms(around_mean.std(0) / variance)


def accuracies(network: nn.Module, data: Data, sizes: list[int]) -> tuple[list[float], float]:
    """Test accuracy when batches of n normalize by their own statistics, for each size, and by the running ones."""
    images, labels = data.test

    def accuracy(n: int) -> float:
        order = torch.randperm(len(labels)).to(labels.device)
        right = torch.zeros((), device=labels.device)
        for batch in order.split(n):
            whole = torch.cat([batch, order[:n - len(batch)]])  # the last one is filled up with other images
            right += (network(normalize(images[whole])).argmax(1) == labels[whole])[:len(batch)].sum()
        return right.item() / len(labels)

    running = accuracy(min(250, len(labels)))
    switch(network, BatchNorm, True)  # moves the running statistics too, which nobody needs any more
    return [accuracy(n) for n in sizes], running


def confusion(networks: list[nn.Module], data: Data) -> dict:
    answers = probabilities(networks[0], data.test).argmax(1)
    matrix = confusion_matrix(data.test.labels, answers, len(data.classes))
    return {"classes": data.classes, "confusion": matrix.tolist()}


def filters(networks: list[nn.Module], data: Data) -> dict:
    weights = networks[0].conv1.weight
    return {"shape": list(weights.shape), "weights": weights.flatten().tolist()}


TOPICS = {"bagging": bagging, "statistics": statistics, "confusion": confusion, "filters": filters}
