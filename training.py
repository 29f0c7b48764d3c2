"""The training loop, for both networks. It knows nothing of files.

Every random number follows from (seed, epoch): a run that is taken up after any epoch equals one that was never
interrupted. The data set lies on the device as a whole, and the device is waited for once per epoch only, when
the epoch's losses are read.
"""

import inspect
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from load_data import Data, Split, normalize
from store.settings import Settings

SPLITS = ("train", "val", "test")
EVALUATION_BATCH = 250  # large enough to be fast, small enough that the CNN's activations take 100 MB
FLAT_EVALUATION_BATCH = 2000  # of flat images: the MLP's activations are small


class Diverged(Exception):
    """The loss is no longer finite; `epoch` and `step`, both counted from 1, say since when."""

    def __init__(self, epoch: int, step: int):
        super().__init__(f"the loss is not finite in epoch {epoch}, step {step}")
        self.epoch = epoch
        self.step = step


def seed_epoch(seed: int, epoch: int) -> torch.Generator:
    """Start all random numbers of one epoch, epoch 0 being the initialization.

    The order of the samples has a stream of its own, the returned one, the same on every device and whatever
    else is drawn. Weights, masks and augmentation draw from the default generators.
    """
    order, others = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)
    torch.manual_seed(int(others))
    return torch.Generator().manual_seed(int(order))


def on_device(split: Split, device: torch.device) -> Split:
    """Move a split to the device, pictures in channels_last order, in which convolutions are fast on all hardware."""
    images = split.images
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return Split(images.to(device), split.labels.to(device))


def take(images: Tensor, index: Tensor) -> Tensor:
    """The images at `index`, still in channels_last order, if they are pictures."""
    if images.dim() == 4:
        return images.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return images.index_select(0, index)


def augmented(pixels: Tensor) -> Tensor:
    """Move each picture of (N, 3, 32, 32) by up to 4 pixels both ways, filling up with grey, and flip every other.

    Random crop with padding 4 and random horizontal flip, in one gather for the whole batch. Takes flat images too.
    """
    shape = pixels.shape
    pixels = pixels.view(-1, 3, 32, 32) if pixels.dim() == 2 else pixels
    n, device = len(pixels), pixels.device
    padded = F.pad(pixels, (4, 4, 4, 4))  # zero is the middle of the value range
    shift = torch.randint(0, 9, (2, n, 1), device=device)
    line = torch.arange(32, device=device)
    columns = torch.where(torch.rand(n, 1, device=device) < 0.5, line, 31 - line) + shift[0]
    rows = line + shift[1]
    sample = torch.arange(n, device=device)[:, None, None]
    crop = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return crop.reshape(shape) if len(shape) == 2 else crop


def cross_entropy(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """F.cross_entropy for N x classes. A CPU takes a log_softmax of few classes several times faster when it may
    work on many samples at once, so they are put side by side in memory."""
    return F.nll_loss(logits.t().log_softmax(0).t(), y, reduction=reduction)


def learning_rate_factor(schedule: str, progress: float) -> float:
    """What the learning rate is multiplied by, `progress` being the share of the run's steps already done."""
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    warm_up = 0.3  # one cycle: from 1/25 up to 1, and down to nearly nothing
    if progress < warm_up:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / warm_up)) / 2
    return (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


class Adam(torch.optim.Adam):
    """torch.optim.Adam without the wrappers that prepare its methods for being compiled themselves, which is not done
    here: at their first call they import torch._dynamo, longer than all else that comes before the first step."""

    add_param_group, load_state_dict, state_dict, zero_grad = map(inspect.unwrap, (
        torch.optim.Adam.add_param_group, torch.optim.Adam.load_state_dict, torch.optim.Adam.state_dict,
        torch.optim.Adam.zero_grad))
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class Trainer:
    """A network on its way: its weights, its optimizer, and the metrics of its epochs so far.

    `rows` holds a dict per finished epoch (runs.COLUMNS), `best` the row with the best validation accuracy, and
    `best_weights` the network's state_dict at that epoch.
    """

    def __init__(self, build: Callable[[], nn.Module], data: Data, settings: Settings, device: torch.device):
        self.settings = settings
        self.data = data  # on the device already, see on_device
        self.device = device
        seed_epoch(settings.seed, 0)
        self.network = build().to(device, memory_format=torch.channels_last)
        if settings.compile:
            self.network.compile()
        self.optimizer = Adam(self.network.parameters(), settings.learning_rate, fused=True)
        self.rows: list[dict] = []
        self.best: dict = {}
        self.best_weights: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.rows)

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return len(self.data.train.labels) // self.settings.batch_size

    def state_dict(self) -> dict:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "rows": self.rows,
                "best": self.best, "best_weights": self.best_weights}

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows, self.best, self.best_weights = state["rows"], state["best"], state["best_weights"]

    def run_epoch(self, on_step: Callable[[float], None] = lambda share: None) -> dict:
        """Train for an epoch and evaluate; returns the epoch's row, or raises Diverged.

        `on_step` is called after each step with the share of the epoch that it was.
        """
        start = time.perf_counter()
        self.start_epoch()
        for x, y in self.training_batches():
            self.step(x, y)
            on_step(1 / self.steps)
        self.network.eval()
        with torch.no_grad():
            for name in ("val", "test"):
                for x, y in self.evaluation_batches(name):
                    self.evaluate(name, self.logits(x), y)
        return self.end_epoch(time.perf_counter() - start)

    def start_epoch(self) -> None:
        """Seed all random numbers, shuffle the training set, and forget the last epoch's losses."""
        order = torch.randperm(len(self.data.train.labels), generator=seed_epoch(self.settings.seed, self.epoch + 1))
        self.order = order.to(self.device)
        self.losses = {name: [] for name in SPLITS}
        self.correct = {name: torch.zeros((), device=self.device) for name in SPLITS}
        self.network.train()

    def training_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images, normalized, and labels of each step: the training set in the epoch's order, without the incomplete
        last batch."""
        images, labels = self.data.train
        for index in self.order.split(self.settings.batch_size)[:self.steps]:
            yield normalize(take(images, index)), labels.index_select(0, index)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step of the optimizer on a batch."""
        self.loss(self.logits(augmented(x) if self.settings.augment else x), y).backward()
        self.update()

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of a training batch. It and the right answers, those of training mode, count for the epoch's row."""
        loss = cross_entropy(logits, y)
        self.note("train", loss.detach()[None], logits.detach(), y)
        return loss

    def update(self) -> None:
        """Change the weights by their gradients, at the learning rate of this step."""
        progress = (self.epoch + (len(self.losses["train"]) - 1) / self.steps) / self.settings.num_epochs
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_factor(self.settings.schedule, progress)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluation_batches(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Images, normalized, and labels of a split: every sample."""
        images, labels = getattr(self.data, name)
        size = EVALUATION_BATCH if images.dim() == 4 else FLAT_EVALUATION_BATCH
        for part, y in zip(images.split(size), labels.split(size), strict=True):
            yield normalize(part), y

    def evaluate(self, name: str, logits: Tensor, y: Tensor) -> None:
        """Count a batch of a split, computed in evaluation mode, for the epoch's row."""
        self.note(name, cross_entropy(logits, y, reduction="none"), logits, y)

    def note(self, name: str, losses: Tensor, logits: Tensor, y: Tensor) -> None:
        self.losses[name].append(losses)
        self.correct[name] += (logits.argmax(1) == y).sum()

    def end_epoch(self, seconds: float) -> dict:
        """The row of an epoch that took so long; raises Diverged."""
        losses = {name: torch.cat(self.losses[name]) for name in SPLITS}
        sizes = (self.steps * self.settings.batch_size, len(self.data.val.labels), len(self.data.test.labels))
        measured = torch.stack([torch.stack((losses[name].mean(), self.correct[name])) for name in SPLITS])
        row = {"epoch": self.epoch + 1}
        for name, size, (loss, count) in zip(SPLITS, sizes, measured.tolist(), strict=True):  # waits for the device
            row |= {f"{name}_loss": round(loss, 6), f"{name}_acc": round(count / size, 6)}
        if not all(map(math.isfinite, row.values())):
            infinite = (~losses["train"].isfinite()).nonzero()
            raise Diverged(row["epoch"], int(infinite[0]) + 1 if len(infinite) else self.steps)
        row["seconds"] = round(seconds, 3)
        self.rows.append(row)
        if not self.best or row["val_acc"] > self.best["val_acc"]:
            self.best = row
            self.best_weights = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        return row

    def logits(self, x: Tensor, network: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What the network, or the given end of it, makes of `x`, computed in the run's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            return (network or self.network)(x).float()
