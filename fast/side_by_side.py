"""Train several MLPs at once that see the same batches: the runs of a grid on a CPU.

Each batch is prepared once for all of them, and their first layers, which take most of the time, are one product: with
the columns of eight networks it reads the images from memory once instead of eight times. All else is each network's
own: its random numbers, loss, optimizer, rows, and what goes wrong with it. Each ends as it would with
Trainer.run_epoch, bit for bit where the matrix product sums a column in the same order whatever stands beside it: with
100 hidden units oneDNN (linear.py) does so on up to 32 threads, MKL on up to 3. Elsewhere, as with MKL and less than a
dozen hidden units, it is the same but for rounding.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fast.linear import linear
from training import Trainer


class Linears(torch.autograd.Function):
    """Several linear layers on one input: x (N x F), their weights (each C x F), their biases (each C) → each N x C."""

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
        return (None, *weights.split([own.size(1) for own in gradients]), *(own.sum(0) for own in gradients))


def logits(trainer: Trainer, hidden: Tensor) -> Tensor:
    return trainer.logits(hidden, trainer.network.after_linear1)


class Team:
    """Trainers of MLPs with the same data, seed, batch size, precision and epoch."""

    def __init__(self, trainers: Sequence[Trainer]):
        self.trainers = trainers
        self.streams: dict[Trainer, Tensor] = {}  # each one's state of the generator of random numbers
        self.outcomes: dict = {}  # what each one did last, or the exception that ended it

    def run_epoch(self, on_step: Callable[[float], None] = lambda share: None) -> list[dict | Exception]:
        """Trainer.run_epoch for all; returns each one's row, or what went wrong instead: Diverged or another exception.

        The seconds are those of one: its share of the time.
        """
        start, first = time.perf_counter(), self.trainers[0]
        self.each(Trainer.start_epoch)
        for x, y in first.training_batches():
            self.step(x, y)
            on_step(1 / first.steps)
        self.each(lambda trainer: trainer.network.eval())
        with torch.no_grad():
            for name in ("val", "test"):
                for x, y in first.evaluation_batches(name):
                    self.evaluate(name, x, y)
        seconds = (time.perf_counter() - start) / len(self.trainers)
        self.each(lambda trainer: trainer.end_epoch(seconds))
        return [self.outcomes[trainer] for trainer in self.trainers]

    def step(self, x: Tensor, y: Tensor) -> None:
        self.each(lambda trainer, hidden: trainer.loss(logits(trainer, hidden), y), self.linear1(x))
        torch.autograd.backward([loss for loss in self.outcomes.values() if isinstance(loss, Tensor)])
        self.each(Trainer.update)

    def evaluate(self, name: str, x: Tensor, y: Tensor) -> None:
        self.each(lambda trainer, hidden: trainer.evaluate(name, logits(trainer, hidden), y), self.linear1(x))

    def linear1(self, x: Tensor) -> tuple[Tensor, ...]:
        layers = [trainer.network.linear1 for trainer in self.trainers]
        x = x.to(torch.bfloat16) if self.trainers[0].settings.precision == "bf16" else x
        return Linears.apply(x, *(layer.weight for layer in layers), *(layer.bias for layer in layers))

    def each(self, work: Callable, *arguments: Iterable) -> None:
        """Do it for each trainer that nothing went wrong with, with its own arguments and random numbers."""
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
