"""A training step as one CUDA graph: recorded once, replayed by a single call.

A small network's step is some hundred kernels of a few microseconds each, and Python takes longer
to start them than the card to run them. A graph holds addresses, so all that changes from step to
step lies in tensors that stay where they are: weights, moments, running statistics, the batch's
indices and the learning rate. Random numbers go on from the generator's state, as without a graph.

CUDA_GRAPH=1 in the environment asks for it. It becomes the default, and CUDA_GRAPH=0 the way out,
as soon as a card has confirmed it (`make gpu`).
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fast.agreement import say_slower


def wants_graph(device: torch.device) -> bool:
    return device.type == "cuda" and os.environ.get("CUDA_GRAPH", "0") == "1"


def record(function: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable, tuple[Tensor, ...]]:
    """Capture a function: what replays it, and the tensors that then hold its results."""
    stream, before = torch.cuda.Stream(), torch.cuda.current_stream()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    spare = generator.clone_state()
    try:
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            for _ in range(3):  # loads kernels and takes workspaces, which must not be captured
                function()
        before.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may write files
            results = function()
    except Exception:  # PyTorch may stay on the capture's stream, and its generator in capture
        torch.cuda.set_stream(before)
        generator.graphsafe_set_state(spare)
        raise
    return graph.replay, results


class GraphedStep:
    """Calls `step(index)`, always the same step, for indices of one shape.

    It is recorded at the first call; where that fails, a line says so, and `step` goes on. The
    optimizer is capturable, and its learning rate a tensor that is filled in place.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer,
                 record: Callable = record):
        self.network, self.optimizer, self.record = network, optimizer, record
        self.index: Tensor | None = None
        self.replay: Callable | None = None  # stays None where recording fails
        self.outcome = "no step yet"

    def __call__(self, step: Callable, index: Tensor) -> tuple[Tensor, ...]:
        if self.index is None:
            self.index = index.clone()
            self.prepare(step)
        if self.replay is None:
            return step(index)
        self.index.copy_(index)
        self.replay()
        return tuple(result.clone() for result in self.results)

    def prepare(self, step: Callable) -> None:
        """Record the step on the index buffer, and leave weights and all else as they were."""
        try:
            with unchanged(self.network, self.optimizer, self.index.device):
                self.replay, self.results = self.record(lambda: step(self.index))
            self.outcome = "recorded"
        except Exception as error:
            self.outcome = f"not recorded: {say_slower('a step is not run as a CUDA graph', error)}"


@contextlib.contextmanager
def unchanged(network: nn.Module, optimizer: torch.optim.Optimizer,
              device: torch.device) -> Iterator[None]:
    """Give weights, running statistics, moments and random numbers back their values, in place."""
    def state() -> dict:
        moments = {(parameter, name): value for parameter, values in optimizer.state.items()
                   for name, value in values.items()}
        return {**network.state_dict(), **moments}

    before = {key: value.clone() for key, value in state().items()}
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        optimizer.zero_grad()
        with torch.no_grad():
            for key, value in state().items():
                # An optimizer without steps has no moments yet; they begin at zero.
                value.copy_(before[key]) if key in before else value.zero_()
