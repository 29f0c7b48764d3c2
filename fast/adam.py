"""torch.optim.Adam, which starts sooner."""

import inspect

import torch
from torch import nn

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


def adam(network: nn.Module, settings: Settings, device: torch.device) -> Adam:
    """The optimizer of a run. On a GPU its rate is a tensor: a CUDA graph knows it by its place."""
    on_gpu, rate = device.type == "cuda", settings.learning_rate
    return Adam(network.parameters(), torch.tensor(rate, device=device) if on_gpu else rate,
                fused=True, capturable=on_gpu, weight_decay=settings.weight_decay,
                decoupled_weight_decay=True)
