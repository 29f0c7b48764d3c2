"""Train several MLPs at once that see the same batches: the runs of a grid.

Each batch is prepared once for all. All else is each network's own: random numbers, loss,
optimizer, rows, and what goes wrong with it. Each ends as it would alone, in fp32 bit for bit.

Their first layers take most of the time. Where oneDNN computes them (bf16, fast/linear.py) they
are one product, which reads the images from memory once instead of eight times. In fp32 it sums a
column in the same order whatever stands beside it, with 100 hidden units on up to 32 threads. MKL
does not.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fast.linear import applies, linear
from store.images import evaluation_batches, take
from training import Trainer, answer, cross_entropy


class Linears(torch.autograd.Function):
    """Linear layers on one input: x (N x F), weights (each C x F), biases (each C) → each N x C."""

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        weights, biases = parameters[:len(parameters) // 2], parameters[len(parameters) // 2:]
        ctx.save_for_backward(x)
        widths = [len(bias) for bias in biases]
        weight = torch.cat(weights, out=x.new_empty(sum(widths), x.size(1)))
        y = linear(x, weight, torch.cat(biases).to(x.dtype))
        return tuple(own.contiguous() for own in y.split(widths, dim=1))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, = ctx.saved_tensors
        weights = linear(torch.cat(gradients, dim=1).t(), x.t())
        return (None, *weights.split([own.size(1) for own in gradients]),
                *(own.sum(0) for own in gradients))


class SideBySide:
    """Trainers of MLPs with the same data, seed, batch size, precision and epoch."""

    def __init__(self, trainers: Sequence[Trainer]):
        self.trainers = trainers
        self.precision = trainers[0].settings.precision
        self.streams: dict[Trainer, Tensor] = {}  # each one's state of the random generator
        self.outcomes: dict = {}  # what each one did last, or the exception that ended it

    def run_epoch(self, on_step: Callable[[], None] = lambda: None) -> list[dict | Exception]:
        """Trainer.run_epoch for all: each one's row, or the exception that ended it.

        The seconds are those of one: its share of the time.
        """
        start = time.perf_counter()
        data = self.trainers[0].data
        for step, index in enumerate(self.start()):
            self.step(step, *take(data.train, index))
            on_step()
        for trainer in self.trainers:
            trainer.network.eval()
        for name in ("val", "test"):
            for x, y in evaluation_batches(getattr(data, name)):
                self.evaluate(name, x, y)
        seconds = (time.perf_counter() - start) / len(self.trainers)
        self.each(lambda trainer: trainer.end_epoch(
            {name: (torch.cat(losses), torch.cat(right))
             for name, (losses, right) in self.measured[trainer].items()},
            time.perf_counter() - seconds))
        return [self.outcomes[trainer] for trainer in self.trainers]

    def start(self) -> tuple[Tensor, ...]:
        """Begin an epoch; returns its batches, which all share."""
        self.measured = {trainer: {name: ([], []) for name in ("train", "val", "test")}
                         for trainer in self.trainers}
        self.each(Trainer.batches)
        for trainer in self.trainers:
            trainer.network.train()
        return next((found for found in self.outcomes.values() if isinstance(found, tuple)), ())

    def step(self, step: int, x: Tensor, y: Tensor) -> None:
        self.each(lambda *own: self.loss("train", *own, y, "mean"), self.linear1(x))
        losses = [loss for loss in self.outcomes.values() if isinstance(loss, Tensor)]
        torch.autograd.backward(losses)
        self.each(lambda trainer: update(trainer, step))

    @torch.no_grad()
    def evaluate(self, name: str, x: Tensor, y: Tensor) -> None:
        self.each(lambda *own: self.loss(name, *own, y, "none"), self.linear1(x))

    def linear1(self, x: Tensor) -> tuple[Tensor, ...]:
        """The first layer of each network."""
        layers = [trainer.network.linear1 for trainer in self.trainers]
        if self.precision == "bf16":
            x = x.to(torch.bfloat16)
        elif not applies(x, layers[0].weight, layers[0].bias):
            return tuple(layer(x) for layer in layers)
        return Linears.apply(x, *(layer.weight for layer in layers),
                             *(layer.bias for layer in layers))

    def loss(self, name: str, trainer: Trainer, hidden: Tensor, y: Tensor,
             reduction: str) -> Tensor:
        """The loss behind the first layer; it and the right answers count for the epoch's row."""
        logits = answer(trainer.network.after_linear1, hidden, self.precision)
        loss = cross_entropy(logits, y, reduction)
        losses, right = self.measured[trainer][name]
        losses.append(loss.detach().reshape(-1))
        right.append(logits.detach().argmax(1) == y)
        return loss

    def each(self, work: Callable, *arguments: Iterable) -> None:
        """Do it for each trainer that nothing went wrong with, with its own random numbers."""
        for trainer, *own in zip(self.trainers, *arguments, strict=True):
            if isinstance(self.outcomes.get(trainer), Exception):
                continue
            if trainer in self.streams:
                torch.set_rng_state(self.streams[trainer])
            try:
                self.outcomes[trainer] = work(trainer, *own)
            except Exception as error:
                self.outcomes[trainer] = error
            self.streams[trainer] = torch.get_rng_state()


def update(trainer: Trainer, step: int) -> None:
    trainer.set_learning_rate(step)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
