"""Which function computes a network's block: decided here, for every device.

A CNN's block is MaxPool(dropout(ReLU(norm(x)))), an MLP's dropout(ReLU(norm(x))). A function may
take its modules' place only where nobody could tell: for exactly the classes of layers/ as they
were written, with no hook on them. All else is called as a module: a subclass, PyTorch's own layer,
a pruned or observed one.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fast.blocks import drop_rate, norm_relu_dropout_pool
from fast.gpu import guard
from layers import BatchNorm1d, BatchNorm2d, Dropout, Dropout2d
from layers.functional import by_bits, eager

# A layer acts through these two; anyone may put something else in their place.
ORIGINAL = {kind: (kind.__call__, kind.forward)
            for kind in (BatchNorm1d, BatchNorm2d, Dropout, Dropout2d, nn.Identity)}


def faster(x: Tensor, norm: nn.Module, dropout: nn.Module) -> Callable | None:
    """A function of x, norm and dropout that gives a CNN's block sooner; None: call them."""
    if x.dim() != 4 or not ours(x, norm, dropout):
        return None
    if fuses(x, norm, dropout):
        return norm_relu_dropout_pool
    return guard.cnn_block(x, norm, dropout) or pool_early


def faster_hidden(x: Tensor, norm: nn.Module, dropout: nn.Module) -> Callable | None:
    """A function of x, [norm] and [dropout] that gives an MLP's block sooner; None: call them.

    It also takes several networks at once that it was given for: a stack of x, norms, dropouts.
    """
    return guard.mlp_block(x, norm, dropout) if ours(x, norm, dropout) else None


def ours(x: Tensor, norm: nn.Module, dropout: nn.Module) -> bool:
    """Whether nothing is there but a tensor and our own modules."""
    return (type(x) is Tensor and untouched(norm) and untouched(dropout)
            and not getattr(dropout, "inplace", False))


def untouched(module: nn.Module) -> bool:
    """Whether the module is exactly one of ours, and nothing watches or changes it."""
    kind = type(module)
    return (kind in ORIGINAL and ORIGINAL[kind] == (kind.__call__, kind.forward)
            and "forward" not in module.__dict__ and module._compiled_call_impl is None
            and not (module._forward_hooks or module._forward_pre_hooks
                     or module._backward_hooks or module._backward_pre_hooks
                     or _has_any_global_hook()))


def fuses(x: Tensor, norm: nn.Module, dropout: nn.Module) -> bool:
    """Whether blocks.py, for a CPU, can compute the block of untouched modules."""
    return (type(norm) is BatchNorm2d and not norm.detach_statistics
            and x.device.type == "cpu" and x.numel() > 0 and eager()
            and (type(dropout) is not Dropout or (p := drop_rate(dropout)) == 0
                 or norm.uses_batch_statistics() and drawn_in_parts(x, p)))


def drawn_in_parts(x: Tensor, p: float) -> bool:
    """Whether the mask of `x`, drawn for some samples at a time, is the one drawn for all."""
    values = x.numel() // len(x)
    return by_bits(x, p) and values % 4 == 0 and x.stride(0) == values


def pool_early(x: Tensor, norm: nn.Module, dropout: nn.Module) -> Tensor:
    """The block in the order that leaves a quarter of the values to ReLU and dropout.

    ReLU keeps order, so MaxPool may come before it. A mask over whole maps is one factor per
    pooling window, so MaxPool may come before that too; a mask over single values not.
    """
    x = norm(x)
    if type(dropout) is Dropout:
        return F.relu(F.max_pool2d(dropout(x), 2))
    return dropout(F.relu(F.max_pool2d(x, 2)))
