"""torch.optim.Adam, which starts sooner."""

import inspect
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from fast.agreement import say_slower
from store.settings import Settings


class Adam(torch.optim.Adam):
    """Adam without the wrappers that prepare its methods for being compiled themselves.

    Here nobody compiles them, and at their first call they import torch._dynamo, which takes longer
    than all else that comes before the first step.
    """

    add_param_group, load_state_dict, state_dict, zero_grad = map(inspect.unwrap, (
        torch.optim.Adam.add_param_group, torch.optim.Adam.load_state_dict,
        torch.optim.Adam.state_dict, torch.optim.Adam.zero_grad))
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class Together(Adam):
    """Adams of equal settings, as one whose step a GPU takes in two kernels."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))  # without the hooks of one
    _warned_capturable_if_run_uncaptured = True  # or PyTorch asks for a CUDA graph at each step

    def __init__(self, optimizers: Sequence[Adam]):
        self.optimizers, self.param_groups = optimizers, optimizers[0].param_groups

    def _init_group(self, group: dict, *lists: list) -> bool:
        for own in self.optimizers:
            own._init_group(own.param_groups[0], *lists)
        return False  # whether one holds complex numbers


def step_together(optimizers: Sequence[Adam]) -> None:
    """A step of each, and no gradients left."""
    Together(optimizers).step()
    for optimizer in optimizers:
        optimizer.zero_grad()


def adam(network: nn.Module, settings: Settings, device: torch.device) -> Adam:
    """The optimizer of a run. On a GPU its rate is a tensor: a CUDA graph knows it by its place."""
    on_gpu, rate = device.type == "cuda", settings.learning_rate
    return Adam(network.parameters(), torch.tensor(rate, device=device) if on_gpu else rate,
                fused=takes_fused(device), capturable=on_gpu, weight_decay=settings.weight_decay,
                decoupled_weight_decay=True)


@cache
def takes_fused(device: torch.device) -> bool:
    """Whether a step can be one kernel; MPS on an older macOS refuses, and a line says so."""
    if device.type == "mps":
        weight = nn.Parameter(torch.zeros(1, device=device))
        weight.grad = torch.zeros_like(weight)
        try:
            Adam([weight], fused=True).step()
        except Exception as error:
            say_slower("Adam's step is not fused here", error)
            return False
    return True
