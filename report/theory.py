"""What theory says about batch normalization and dropout, measured on networks that runs have left.

Each topic below is a function of the networks and the data; theory.py at the top says what it does.
"""

import itertools
import json
import subprocess
import sys

from fast.machine import choose_device, keep_freed_memory  # before torch: says how its threads wait

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cnn.model
import mlp.model
from layers import BatchNorm, Dropout
from load_data import Data, Split, load_cifar_2d, load_cifar_4d, normalize
from report.frame import experiment, kind
from report.results import data_name, read_runs, write_theory
from store.files import ROOT, UserError
from store.images import evaluation_batches, prepared
from store.run import RunFolder
from store.settings import Settings
from store.trained import confusion_matrix, read_trained, restore
from studies import SMALL_BATCHES, STUDIES, SWEEP

BUILD = {"mlp": mlp.model.build, "cnn": cnn.model.build}
DRAWN = 200  # batches of each size
MASKS = (1, 2, 4, 8, 16, 32, 64)
SHIFTS = range(9)  # pixels


def measure_all(options) -> bool:
    """Every topic asked for; returns whether there were networks for each."""
    keep_freed_memory()
    complete = True
    for network, topic in itertools.product(options.network, options.topics):
        if topic == "rates":
            learning_rates(network, options)
        elif network == "cnn" or topic not in ("confusion", "order"):
            complete &= measure(network, topic, options)
    return complete


def learning_rates(network: str, options) -> None:
    """Short runs at every rate of the sweep. That some diverge is a result."""
    data = ["--synthetic"] if options.synthetic else ["--data_dir", str(options.data_dir)]
    command = [sys.executable, str(ROOT / network / "main.py"), "--learning_rate", *map(str, SWEEP),
               "--num_epochs", str(options.num_epochs), "--runs_dir", str(options.runs_dir),
               "--device", options.device, *data]
    for flags in ([], ["--without_BatchNorm"]):
        if subprocess.run([*command, *flags]).returncode not in (0, 1):
            raise UserError("the runs could not be made, see above")


def measure(network: str, topic: str, options) -> bool:
    """Measure one topic and write it down; returns whether there were networks for it."""
    runs = networks_for(network, topic, options)
    if not runs:
        print(f"{network} {topic}: no finished runs for it in {options.runs_dir}; "
              f"./run_grid.sh ablation --runs_dir {options.runs_dir} makes them", file=sys.stderr)
        return False
    device = choose_device(options.device)
    load = load_cifar_4d if network == "cnn" else load_cifar_2d
    data = load(options.data_dir, options.synthetic)
    if any(run.fingerprint != data.fingerprint for run in runs):
        raise UserError(f"runs in {options.runs_dir} learned from other data than "
                        f"{options.data_dir}; name theirs")
    build = BUILD[network]
    trained = [read_trained(RunFolder(options.runs_dir / network / run.name), network, build)
               for run in runs]
    data = prepared(data, trained[0].settings, device)
    torch.manual_seed(0)
    with torch.inference_mode():
        networks = [restore(one, build, device) for one in trained]
        for run, network_of in zip(runs, networks, strict=True):
            if not all(each.isfinite().all() for each in network_of.state_dict().values()):
                raise UserError(f"best.pt of {run.name} holds weights that are not finite; "
                                "retrain that run")
        result = TOPICS[topic](networks, data)
    result = json.loads(json.dumps(result), parse_float=lambda text: round(float(text), 6))
    names = [run.name for run in runs]
    write_theory(options.runs_dir / "theory.json", {network: {topic: {
        "data": data_name(runs[0]), "setting": runs[0].setting, "runs": names,
        "epochs": [run.result["epochs"] for run in runs], **result}}})
    print(f"{network} {topic}: measured on {', '.join(names)}")
    return True


def networks_for(network: str, topic: str, options) -> list:
    """The runs whose networks a topic takes: of the default setting, or those it is about."""
    variant = "synthetic" * options.synthetic
    runs = [run for run in read_runs(options.runs_dir) if run.network == network and run.result
            and run.settings and kind(run)[0] == variant]
    if topic == "confusion":
        return sorted(runs, key=lambda run: run.result["val_acc"])[-1:]
    wanted = {experiment(Settings(network))}
    if topic == "order":
        wanted = {experiment(each) for study in STUDIES if study.figures in ("dimention", "pooling")
                  for each in study.settings.values() if each.drop_rate}
    return sorted((run for run in runs if experiment(run.settings) in wanted),
                  key=lambda run: run.seed)


def switch(network: nn.Module, kind: type, training: bool) -> None:
    """Put the layers of one kind alone into training or evaluation mode."""
    for module in network.modules():
        if isinstance(module, kind):
            module.train(training)


def probabilities(network: nn.Module, split: Split) -> Tensor:
    """Of each class for each image, float64 on the CPU: not every device has that type."""
    return torch.cat([network(x).cpu().double().softmax(1) for x, _ in evaluation_batches(split)])


def bagging(networks: list[nn.Module], data: Data) -> dict:
    """v and c from the validation images, and the error of averages on the test images.

    Averaged are all choices of k networks, and dropout masks of one network (mean over networks).
    """
    n, classes = len(networks), len(data.classes)
    validation_truth, test_truth = (F.one_hot(split.labels.cpu(), classes)
                                    for split in (data.val, data.test))

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
    averaged = [torch.stack([score(sum(chosen) / k)
                             for chosen in itertools.combinations(single, k)]).mean(0)
                for k in range(1, n + 1)]
    masked = torch.zeros(len(MASKS), 2, dtype=torch.double)
    for network in networks:
        switch(network, Dropout, True)
        total = torch.zeros_like(single[0])
        for mask in range(1, MASKS[-1] + 1):
            total += probabilities(network, data.test)
            if mask in MASKS:
                masked[MASKS.index(mask)] += score(total / mask) / n
    error, accuracy = torch.stack(averaged).T.tolist()
    masked_error, masked_accuracy = masked.T.tolist()
    return {"variance": v, "covariance": c,
            "predicted": [v / k + (k - 1) * c / k for k in range(1, n + 1)],
            "measured": error, "accuracy": accuracy, "masks": MASKS,
            "masked": masked_error, "masked_accuracy": masked_accuracy}


def statistics(networks: list[nn.Module], data: Data) -> dict:
    """How far batch statistics lie from the training set's, and the test accuracy with them."""
    sizes = [n for n in SMALL_BATCHES if n <= len(data.test.labels)]
    each = [[*distances(network, data.train, sizes), *accuracies(network, data, sizes)]
            for network in networks]
    keys = ("mean", "variance", "mean_theory", "variance_theory", "batch_accuracy",
            "running_accuracy")
    columns = zip(keys, zip(*each, strict=True), strict=True)
    return {"batch_sizes": sizes, **{key: torch.tensor(values).mean(0).tolist()
                                     for key, values in columns}}


def distances(network: nn.Module, split: Split,
              sizes: list[int]) -> tuple[list, list, float, float]:
    """How far a random batch's mean and variance lie from those of all images, for each size.

    Root mean square over channels and batches, the mean's in standard deviations, the variance's
    relative; and the two constants that theory divides by the square root of n.
    """
    first = next(network.children())  # the first BatchNorm normalizes what it gives out
    moments = [torch.stack([x.mean(2), x.square().mean(2)]) for part, _ in evaluation_batches(split)
               for x in [first(part).cpu().double().reshape(len(part), first.weight.size(0), -1)]]
    moments = torch.cat(moments, 1)  # 2 x images x channels: over the positions of an image
    varies = (moments[1].mean(0) - moments[0].mean(0).square()) > 1e-12
    moments = moments[:, :, varies]

    def moments_to_statistics(moments: Tensor) -> tuple[Tensor, Tensor]:
        mean, square = moments.mean(1)
        return mean, square - mean.square()

    mean, variance = moments_to_statistics(moments)

    def rms(values: list[Tensor] | Tensor) -> float:
        return (torch.stack(values) if isinstance(values, list)
                else values).square().mean().sqrt().item()

    off_mean, off_variance = [], []
    for n in sizes:
        batches = [moments_to_statistics(moments[:, torch.randperm(len(split.labels))[:n]])
                   for _ in range(DRAWN)]
        off_mean.append(rms([(batch_mean - mean) / variance.sqrt() for batch_mean, _ in batches]))
        off_variance.append(rms([batch_variance / variance - 1 for _, batch_variance in batches]))
    # the mean of (x - mean)^2 over an image
    around_mean = moments[1] - 2 * mean * moments[0] + mean.square()
    return (off_mean, off_variance, rms(moments[0].std(0) / variance.sqrt()),
            rms(around_mean.std(0) / variance))


def accuracies(network: nn.Module, data: Data, sizes: list[int]) -> tuple[list[float], float]:
    """Test accuracy when batches of n normalize by their own statistics, or by running ones."""
    images, labels = data.test

    def accuracy(n: int) -> float:
        order = torch.randperm(len(labels)).to(labels.device)
        right = torch.zeros((), device=labels.device)
        for batch in order.split(n):
            whole = torch.cat([batch, order[:n - len(batch)]])  # the last is filled with others
            answers = network(normalize(images[whole])).argmax(1)
            right += (answers == labels[whole])[:len(batch)].sum()
        return right.item() / len(labels)

    running = accuracy(min(250, len(labels)))
    switch(network, BatchNorm, True)  # moves the running statistics too, which nobody needs now
    return [accuracy(n) for n in sizes], running


def confusion(networks: list[nn.Module], data: Data) -> dict:
    answers = probabilities(networks[0], data.test).argmax(1)
    matrix = confusion_matrix(data.test.labels, answers, len(data.classes))
    return {"classes": data.classes, "confusion": matrix.tolist()}


def order(networks: list[nn.Module], data: Data) -> dict:
    """What dropout before max pooling does to the statistics of batch normalization behind it.

    `inflation` is the mean of the first block's output with dropout, divided by that without. Test
    accuracy is with running statistics, with those of all training images retaken without dropout,
    and with one mask for each image.
    """
    measured = []
    for network in networks:
        means = {}
        for dropping in (True, False):
            switch(network, Dropout, dropping)
            parts = [network.block(x, network.conv1, network.norm1).mean().item()
                     for x, _ in evaluation_batches(data.val)]
            means[dropping] = sum(parts) / len(parts)
        known = {"running_accuracy": right(network, data.test)}
        switch(network, Dropout, True)
        known["masked_accuracy"] = right(network, data.test)
        switch(network, Dropout, False)
        known["retaken_accuracy"] = right(retaken(network, data.train), data.test)
        dropout = network.dropout
        measured.append({"drop_rate": dropout.p, "pool_first": network.pool_first,
                         "dropout_type": "1d" if type(dropout) is Dropout else "2d",
                         "inflation": means[True] / means[False], **known})
    return {"networks": measured}


def right(network: nn.Module, split: Split) -> float:
    """The share of a split's images that it classifies right."""
    return sum((network(x).argmax(1) == y).sum().item()
               for x, y in evaluation_batches(split)) / len(split.labels)


def retaken(network: nn.Module, split: Split) -> nn.Module:
    """The network with running statistics that are averages over all batches of these images."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    switch(network, BatchNorm, True)
    for x, _ in evaluation_batches(split):
        network(x)
    switch(network, BatchNorm, False)
    return network


def shifts(networks: list[nn.Module], data: Data) -> dict:
    """Test accuracy of each network when all images move by n pixels, mean over four directions.

    The border that a move uncovers repeats the image's edge.
    """
    images, labels = data.test

    def accuracy(network: nn.Module, n: int, axis: int) -> float:
        source = (torch.arange(32, device=images.device) - n).clamp(0, 31)
        pictures = images.reshape(-1, 3, 32, 32).index_select(axis, source).reshape(images.shape)
        return right(network, Split(pictures, labels))

    def mean(network: nn.Module, n: int) -> float:
        moves = list(itertools.product((n, -n), (2, 3))) if n else [(0, 2)]
        return sum(accuracy(network, *move) for move in moves) / len(moves)

    return {"shifts": list(SHIFTS),
            "accuracy": [[mean(network, n) for n in SHIFTS] for network in networks]}


TOPICS = {"bagging": bagging, "statistics": statistics, "shifts": shifts, "order": order,
          "confusion": confusion}
