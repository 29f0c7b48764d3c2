"""The training loop, for both networks. It knows nothing of files.

Every random number follows from (seed, epoch): a run that is taken up after any epoch equals one that was never
interrupted. The data set lies on the device as a whole, and the device is waited for once per epoch only, when
the epoch's losses are read.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from load_data import Data, Split, normalize
from options import Settings

EVALUATION_BATCH = 250  # large enough to be fast, small enough that the CNN's activations take 100 MB


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
        self.optimizer = torch.optim.Adam(self.network.parameters(), settings.learning_rate, fused=True)
        self.rows: list[dict] = []
        self.best: dict = {}
        self.best_weights: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.rows)

    def state_dict(self) -> dict:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "rows": self.rows,
                "best": self.best, "best_weights": self.best_weights}

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows, self.best, self.best_weights = state["rows"], state["best"], state["best_weights"]

    def run_epoch(self, on_step: Callable[[float], None] = lambda share: None) -> dict:
        """Train for one epoch and evaluate; returns the epoch's row.

        `on_step` is called after each step with the share of the epoch that it was.

        Raises:
            Diverged: the loss, or that of the evaluation, was not finite
        """
        start = time.perf_counter()
        losses, correct = self.train_epoch(on_step)
        splits = {"train": (losses.mean(), correct), "val": self.evaluate(self.data.val),
                  "test": self.evaluate(self.data.test)}
        sizes = (len(losses) * self.settings.batch_size, len(self.data.val.labels), len(self.data.test.labels))
        measured = torch.stack([torch.stack(pair) for pair in splits.values()]).tolist()  # waits for the device
        row = {"epoch": self.epoch + 1}
        for name, size, (loss, count) in zip(splits, sizes, measured, strict=True):
            row |= {f"{name}_loss": round(loss, 6), f"{name}_acc": round(count / size, 6)}
        if not all(map(math.isfinite, row.values())):
            infinite = (~losses.isfinite()).nonzero()
            raise Diverged(row["epoch"], int(infinite[0]) + 1 if len(infinite) else len(losses))
        row["seconds"] = round(time.perf_counter() - start, 3)
        self.rows.append(row)
        if not self.best or row["val_acc"] > self.best["val_acc"]:
            self.best = row
            self.best_weights = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        return row

    def train_epoch(self, on_step: Callable[[float], None]) -> tuple[Tensor, Tensor]:
        """One pass over the training set, in new order, without the incomplete last batch.

        Returns the losses, one per step, and the number of right answers, both taken in training mode on the way.
        """
        settings = self.settings
        images, labels = self.data.train
        order = torch.randperm(len(labels), generator=seed_epoch(settings.seed, self.epoch + 1)).to(self.device)
        batches = [batch for batch in order.split(settings.batch_size) if len(batch) == settings.batch_size]
        self.network.train()
        losses, correct = [], torch.zeros((), device=self.device)
        for step, index in enumerate(batches):
            progress = (self.epoch + step / len(batches)) / settings.num_epochs
            for group in self.optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(settings.schedule, progress)
            loss, right = self.step(images, labels, index)
            losses.append(loss)
            correct += right
            on_step(1 / len(batches))
        return torch.stack(losses), correct

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimizer on the samples at `index`; returns the loss and the number of right answers."""
        x, y = normalize(take(images, index)), labels.index_select(0, index)
        logits = self.logits(augmented(x) if self.settings.augment else x)
        loss = F.cross_entropy(logits, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == y).sum()

    @torch.no_grad()
    def evaluate(self, split: Split) -> tuple[Tensor, Tensor]:
        """Mean loss and number of right answers over every sample of the split, in evaluation mode."""
        self.network.eval()
        losses, correct = [], torch.zeros((), device=self.device)
        for images, y in zip(*(tensor.split(EVALUATION_BATCH) for tensor in split), strict=True):
            logits = self.logits(normalize(images))
            losses.append(F.cross_entropy(logits, y, reduction="none"))
            correct += (logits.argmax(1) == y).sum()
        return torch.cat(losses).mean(), correct

    def logits(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            return self.network(x).float()
