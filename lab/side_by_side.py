"""Train several MLPs at once that see the same batches: the runs of a grid.

Each batch is prepared once for all. All else is each network's own: random numbers, loss,
optimizer, rows, and what goes wrong with it. Each ends as it would alone, in fp32 bit for bit.

On a CPU their first layers take most of the time. Where oneDNN computes them (bf16, fast/linear.py)
they are one product, which reads the images from memory once instead of eight times. In fp32 it
sums a column in the same order whatever stands beside it, with 100 hidden units on up to 32
threads. MKL does not.

On a GPU they share the batch and the optimizers' steps. Each network keeps products of its own:
cuBLAS chooses its kernel by the shape, so that of a joint product, batched or wide, would round by
the company, and a run may go on in another one. Nobody has run this on a card yet; `make gpu`
compares it with networks one by one.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fast.adam import step_together
from fast.agreement import say_slower
from fast.linear import applies, linear
from store.images import evaluation_batches, take
from training import Trainer, cross_entropy, logits_of


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


@functools.cache
def say_one_by_one() -> None:
    say_slower("MLPs that train at once compute one by one", "else they differ from the network")


class SideBySide:
    """Trainers of MLPs with the same data, seed, batch size, precision and epoch."""

    def __init__(self, trainers: Sequence[Trainer]):
        self.trainers = trainers
        self.precision = trainers[0].settings.precision
        self.device = trainers[0].data.train.labels.device
        self.streams: dict[Trainer, Tensor] = {}  # each one's state of the random generator
        self.outcomes: dict = {}  # what each one did last, or the exception that ended it
        self.whole = not self.begins_as_alone()

    def run_epoch(self, on_step: Callable[[], None] = lambda: None) -> list[dict | Exception]:
        """Trainer.run_epoch for all: each one's row, or the exception that ended it.

        The seconds are those of one: its share of the time.
        """
        start = time.perf_counter()
        data = self.trainers[0].data
        order = self.start()
        for step, index in enumerate(order.split(self.trainers[0].settings.batch_size)):
            self.step(step, *take(data.train, index))
            on_step()
        for trainer in self.trainers:
            trainer.network.eval()
        for name in ("val", "test"):
            for x, y in evaluation_batches(getattr(data, name)):
                self.evaluate(name, x, y)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / len(self.trainers)
        self.each(lambda trainer: trainer.end_epoch(
            order, {name: (torch.cat(losses), torch.cat(logits))
                    for name, (losses, logits) in self.results[trainer].items()},
            time.perf_counter() - seconds))
        return [self.outcomes[trainer] for trainer in self.trainers]

    def start(self) -> Tensor:
        """Begin an epoch; returns the order of its training images, which all share."""
        self.results = {trainer: {name: ([], []) for name in ("train", "val", "test")}
                        for trainer in self.trainers}
        self.each(Trainer.begin_epoch)
        for trainer in self.trainers:
            trainer.network.train()
        return next((found for found in self.outcomes.values() if isinstance(found, Tensor)),
                    torch.empty(0, dtype=torch.int64))

    def step(self, step: int, x: Tensor, y: Tensor) -> None:
        self.each(lambda *own: self.loss("train", *own, y, "mean"), self.begun(x))
        losses = {trainer: loss for trainer, loss in self.outcomes.items()
                  if isinstance(loss, Tensor)}
        one = torch.ones((), device=self.device)
        torch.autograd.backward(list(losses.values()), [one] * len(losses))
        alike = {}
        for trainer in losses:
            trainer.set_learning_rate(step)
            kind = trainer.rate, trainer.settings.weight_decay
            alike.setdefault(kind, []).append(trainer.optimizer)
        for optimizers in alike.values():
            step_together(optimizers)

    @torch.no_grad()
    def evaluate(self, name: str, x: Tensor, y: Tensor) -> None:
        self.each(lambda *own: self.loss(name, *own, y, "none"), self.begun(x))

    def begun(self, x: Tensor) -> list[tuple[Callable, Tensor]]:
        """The layers that each network still has to compute, and their input."""
        if self.whole:
            return [(trainer.network, x) for trainer in self.trainers]
        return [(trainer.network.after_linear1, own)
                for trainer, own in zip(self.trainers, self.linear1(x), strict=True)]

    @torch.no_grad()
    def begins_as_alone(self) -> bool:
        """Whether a network begun by `linear1` ends as by its own forward; a line says if not."""
        network = self.trainers[0].network.eval()
        inputs = network.linear1.in_features
        x = torch.linspace(-0.5, 0.5, 2 * inputs, device=self.device).view(2, -1)
        found = logits_of(network.after_linear1, self.linear1(x)[0], self.precision)
        off = 0.05 if self.precision == "bf16" else 1e-3
        if torch.allclose(found, logits_of(network, x, self.precision), off, off, equal_nan=True):
            return True
        say_one_by_one()
        return False

    def linear1(self, x: Tensor) -> tuple[Tensor, ...]:
        """The first layer of each network."""
        layers = [trainer.network.linear1 for trainer in self.trainers]
        half = self.precision == "bf16"
        if half:
            x = x.to(torch.bfloat16)
        if x.device.type != "cpu" or not half and not applies(x, layers[0].weight, layers[0].bias):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                return tuple(layer(x) for layer in layers)
        return Linears.apply(x, *(layer.weight for layer in layers),
                             *(layer.bias for layer in layers))

    def loss(self, name: str, trainer: Trainer, begun: tuple[Callable, Tensor], y: Tensor,
             reduction: str) -> Tensor:
        """The loss of a network begun; it and the logits count for the epoch's row."""
        logits = logits_of(*begun, self.precision)
        loss = cross_entropy(logits, y, reduction)
        losses, all_logits = self.results[trainer][name]
        losses.append(loss.detach().reshape(-1))
        all_logits.append(logits.detach())
        return loss

    def each(self, work: Callable, *arguments: Iterable) -> None:
        """Do it for each trainer that nothing went wrong with, with its own random numbers."""
        for trainer, *own in zip(self.trainers, *arguments, strict=True):
            if isinstance(self.outcomes.get(trainer), Exception):
                continue
            with self.random_numbers(trainer):
                try:
                    self.outcomes[trainer] = work(trainer, *own)
                except Exception as error:
                    self.outcomes[trainer] = error

    @contextlib.contextmanager
    def random_numbers(self, trainer: Trainer) -> Iterator[None]:
        """Go on with a trainer's random numbers, where it left off."""
        generator = (torch.cuda.default_generators[torch.cuda.current_device()]
                     if self.device.type == "cuda" else torch.default_generator)
        if trainer in self.streams:
            generator.set_state(self.streams[trainer])
        yield
        self.streams[trainer] = generator.get_state()
