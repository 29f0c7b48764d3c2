"""The faster functions for the networks' blocks and products: when they apply, and their trials.

A CNN's block is MaxPool(dropout(ReLU(norm(conv(x))))), an MLP's dropout(ReLU(norm(x))).
fast/agreement.py says what has to hold besides. Where none applies, the modules are called.
"""

from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast import blocks, linear
from fast.agreement import Faster
from fast.conditions import block_trial, convolves, drop_rate, drops, normalizes, there
from fast.gpu import guard
from fast.normalize import normalize
from layers import BatchNorm1d, BatchNorm2d, Dropout

# The CNN's block on a CPU


def cnn_variant(x: Tensor, conv: nn.Module, norm: nn.Module, dropout: nn.Module) -> Hashable | None:
    """Kind of dropout, whether it trains, whether in bf16."""
    half = torch.is_autocast_enabled("cpu")
    if not (x.device.type == "cpu" and type(conv) is nn.Conv2d and type(norm) is BatchNorm2d
            and drops(dropout) and convolves(conv, x) and len(x) > 0
            and x.dtype in (torch.float32, torch.float64)
            and normalizes(norm, conv.out_channels, x.device, x.dtype)
            and there(x.device, x.dtype, *conv._parameters.values())
            and (not half or x.dtype == torch.float32
                 and torch.get_autocast_dtype("cpu") == torch.bfloat16)):
        return None
    p, trains = drop_rate(dropout), norm.uses_batch_statistics()
    kind = type(dropout) if 0 < p < 1 else nn.Identity
    if p == 1 or kind is Dropout and not (trains and 0.001 < p < 0.999
                                          and any(map(by_channels, (x, conv.weight)))):
        return None
    return kind, trains, half, norm.training


def by_channels(x: Tensor) -> bool:
    """Whether it is in channels_last order beyond doubt, in which the block draws single values."""
    return x.stride(1) == 1 < x.size(1) == x.stride(3)


def cnn_trial(variant: tuple, device: str = "cpu") -> tuple[Tensor, list[nn.Module], dict]:
    """Several slices, the last one smaller; an odd edge."""
    kind, trains, half, training = variant
    x, modules = block_trial((5, 3, 9, 8), 8, kind, trains, training, torch.device(device))
    return x, modules, {"half": half, "slice_values": 2 * 8 * 7 * 6}


FUSED = Faster("the CNN's block for a CPU", blocks.block, cnn_variant, cnn_trial)


# Any block that pools early, on any device


def early_variant(x: Tensor, conv: nn.Module, norm: nn.Module, dropout: nn.Module) -> Hashable:
    """Where no kernel computes the block."""
    ours = (type(norm) is nn.Identity
            or type(norm) is BatchNorm2d and not norm.detach_statistics and x.numel() > 0)
    if x.dim() == 4 and type(conv) is nn.Conv2d and ours and drops(dropout):
        return type(norm), type(dropout), norm.training, x.device.type
    return None


def pool_early(x: Tensor, conv: nn.Conv2d, norm: nn.Module, dropout: nn.Module) -> Tensor:
    """The block in the order that leaves a quarter of the values to ReLU and dropout.

    ReLU keeps order, so MaxPool may come before it. A mask over whole maps is one factor per
    pooling window, so MaxPool may come before that too; a mask over single values not.
    """
    x = conv(x)
    x = x if type(norm) is nn.Identity else normalize(x, norm)
    if type(dropout) is Dropout:
        return F.relu(F.max_pool2d(dropout(x), 2))
    return dropout(F.relu(F.max_pool2d(x, 2)))


def early_trial(variant: tuple) -> tuple[Tensor, list[nn.Module], dict]:
    norm, dropout, training, device = variant
    x, modules, _ = cnn_trial((dropout, training, False, training), device)
    modules[1] = nn.Identity() if norm is nn.Identity else modules[1]
    return x, modules, {}


EARLY = Faster("pooling early", pool_early, early_variant, early_trial)
CNN_BLOCK = (guard.CNN, FUSED, EARLY)


# The MLP's block and product


def hidden(x: Tensor, norm: BatchNorm1d, dropout: nn.Module) -> Tensor:
    return dropout(F.relu(normalize(x, norm)))


def hidden_variant(x: Tensor, norm: nn.Module, dropout: nn.Module) -> Hashable | None:
    if (type(norm) is BatchNorm1d and not norm.detach_statistics and x.numel() > 0
            and norm.uses_batch_statistics() and drops(dropout)):
        return type(dropout), norm.training, x.device.type
    return None


def hidden_trial(variant: tuple) -> tuple[Tensor, list[nn.Module], dict]:
    dropout, training, device = variant
    norm = BatchNorm1d(6, track_running_stats=training)
    nn.init.normal_(norm.weight)
    modules = [norm, nn.Identity() if dropout is nn.Identity else dropout(0.4)]
    for module in modules:
        module.to(device).train(training)
    return (torch.randn(9, 6) + 1).to(device), modules, {}


HIDDEN = (guard.MLP, Faster("the MLP's block", hidden, hidden_variant, hidden_trial))


def product_variant(x: Tensor, layer: nn.Module) -> Hashable | None:
    plain = type(layer) is nn.Linear and linear.applies(x, layer.weight, layer.bias)
    return "product" if plain else None


def product_trial(variant: str) -> tuple[Tensor, list[nn.Module], dict]:
    return torch.randn(5, 7), [nn.Linear(7, 3)], {}


PRODUCT = (Faster("oneDNN's product", lambda x, layer: linear.linear(x, layer.weight, layer.bias),
                  product_variant, product_trial),)
