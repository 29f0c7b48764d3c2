"""The training loop of both networks. It opens no file.

Every random number follows from (seed, epoch): a run that goes on equals one never interrupted. The
data set lies on the device, and an epoch waits for the device once, when its losses are read.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.adam import adam
from fast.gpu.graph import GraphedStep, wants_graph
from load_data import Data, Split
from store.images import augmented, bootstrap_sample, evaluation_batches, take
from store.settings import Settings
from store.trained import on_cpu


class Diverged(Exception):
    """The loss is not finite since `epoch` and `step` (the last one, if evaluation shows it)."""

    def __init__(self, epoch: int, step: int):
        super().__init__(f"the loss is not finite in epoch {epoch}, step {step}")
        self.epoch = epoch
        self.step = step


class Trainer:
    """A network in training: weights, optimizer, and a row of metrics per finished epoch.

    `best` is the row with the best validation accuracy; `best_weights`, the network's state_dict,
    and `best_predictions`, the classes of all validation and test images, are those of its epoch,
    on the CPU. `data` lies on the device.
    """

    def __init__(self, build: Callable[[Settings, int], nn.Module], data: Data, settings: Settings,
                 device: torch.device):
        self.settings = settings
        self.data = data
        seed_epoch(settings.seed, 0)
        self.network = build(settings, len(data.classes))
        self.network.to(device, memory_format=torch.channels_last)
        if settings.compile:
            self.network.compile()
        self.optimizer, self.rate = adam(self.network, settings, device), settings.learning_rate
        self.graph = GraphedStep(self.network, self.optimizer) if wants_graph(device) else None
        self.rows: list[dict] = []
        self.best: dict = {}
        self.best_weights: dict[str, Tensor] = {}
        self.best_predictions: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        return len(self.rows)  # the finished ones

    @property
    def steps(self) -> int:  # in an epoch, without the incomplete last batch
        return len(self.data.train.labels) // self.settings.batch_size

    def run_epoch(self, on_step: Callable[[], None] = lambda: None) -> dict:
        """Train for an epoch and evaluate; returns the epoch's row, or raises Diverged."""
        start, results, order = time.perf_counter(), [], self.begin_epoch()
        self.network.train()
        for step, index in enumerate(order.split(self.settings.batch_size)):
            self.set_learning_rate(step)
            results.append(self.graph(self.step, index) if self.graph else self.step(index))
            on_step()
        losses, logits = zip(*results, strict=True)
        results = {"train": (torch.stack(losses), torch.cat(logits))}
        self.network.eval()
        for name in ("val", "test"):
            split = getattr(self.data, name)
            results[name] = evaluate(self.network, split, self.settings.precision)
        return self.end_epoch(order, results, start)

    def begin_epoch(self) -> Tensor:
        """Seed all random numbers of the next epoch; returns the order of its training images."""
        settings, labels = self.settings, self.data.train.labels
        order = torch.randperm(len(labels), generator=seed_epoch(settings.seed, self.epoch + 1))
        if settings.bootstrap:
            order = bootstrap_sample(settings.seed, len(labels))[order]
        return order[:self.steps * settings.batch_size].to(labels.device)

    def step(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step on the images at `index`; returns their mean loss and logits.
        lab/side_by_side.py takes the same step for several MLPs."""
        x, y = take(self.data.train, index)
        if self.settings.augment:
            x = augmented(x)
        logits = logits_of(self.network, x, self.settings.precision)
        loss = cross_entropy(logits, y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), logits.detach()

    def set_learning_rate(self, step: int) -> None:
        progress = (self.epoch + step / self.steps) / self.settings.num_epochs
        rate = self.settings.learning_rate * schedule(self.settings.schedule, progress)
        if rate != self.rate:
            self.rate, (group,) = rate, self.optimizer.param_groups
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate

    def end_epoch(self, order: Tensor, results: dict[str, tuple[Tensor, Tensor]],
                  start: float) -> dict:
        """The row of an epoch begun at `start`, from the losses and logits of each split."""
        labels = {name: getattr(self.data, name).labels for name in results}
        labels["train"] = labels["train"][order]
        predicted = {name: logits.argmax(1) for name, (_, logits) in results.items()}
        shares = [torch.stack((losses.mean(), (predicted[name] == labels[name]).sum()))
                  for name, (losses, _) in results.items()]
        row = {"epoch": self.epoch + 1}
        shares = torch.stack(shares).tolist()  # waits for the device
        for name, (loss, right) in zip(results, shares, strict=True):
            accuracy = right / len(labels[name])
            row |= {f"{name}_loss": round(loss, 6), f"{name}_acc": round(accuracy, 6)}
        if not all(map(math.isfinite, row.values())):
            infinite = (~results["train"][0].isfinite()).nonzero()
            raise Diverged(row["epoch"], int(infinite[0]) + 1 if len(infinite) else self.steps)
        row["seconds"] = round(time.perf_counter() - start, 3)  # the device has finished by now
        self.rows.append(row)
        if not self.best or row["val_acc"] > self.best["val_acc"]:
            self.best = row
            self.best_weights = on_cpu(self.network.state_dict())
            small = torch.uint8 if len(self.data.classes) <= 256 else torch.int16
            self.best_predictions = on_cpu({name: predicted[name].to(small)
                                            for name in ("val", "test")})
        return row

    def state_dict(self) -> dict:
        own = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**on_cpu(own), "rows": self.rows[:], "best": self.best,
                "best_weights": self.best_weights, "best_predictions": self.best_predictions}

    def load_state_dict(self, state: dict) -> None:
        """Take up weights, moments and rows; all else of the optimizer is the run's own."""
        self.network.load_state_dict(state["network"])
        moments = {"state": state["optimizer"]["state"]}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), **moments})
        self.rows, self.best, self.best_weights = map(state.get, ("rows", "best", "best_weights"))
        self.best_predictions = state.get("best_predictions", {})


def seed_epoch(seed: int, epoch: int) -> torch.Generator:
    """Start all random numbers of one epoch, epoch 0 being the initialization.

    The order of samples has the returned stream, so it is the same whatever else draws."""
    order, others = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)
    torch.manual_seed(int(others))
    return torch.Generator().manual_seed(int(order))


def schedule(kind: str, progress: float) -> float:
    """The factor of the learning rate after this share of the run's steps."""
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    warm_up = 0.3  # one cycle: from 1/25 up to 1, and down to nearly nothing
    if progress < warm_up:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / warm_up)) / 2
    return (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


def logits_of(network: Callable[[Tensor], Tensor], x: Tensor, precision: str) -> Tensor:
    """The network's logits for `x`, float32, computed in the run's precision."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(x).float()


def cross_entropy(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """F.cross_entropy of N x classes. On a CPU log_softmax of the transposed view works on many
    samples at once, which is several times faster."""
    if logits.device.type != "cpu":
        return F.cross_entropy(logits, y, reduction=reduction)
    return F.nll_loss(logits.t().log_softmax(0).t(), y, reduction=reduction)


@torch.no_grad()
def evaluate(network: nn.Module, split: Split, precision: str) -> tuple[Tensor, Tensor]:
    """The loss of every sample of a split, and its logits."""
    parts = []
    for x, y in evaluation_batches(split):
        logits = logits_of(network, x, precision)
        parts.append((cross_entropy(logits, y, "none"), logits))
    losses, logits = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(logits)
