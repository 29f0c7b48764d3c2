"""When GPU kernels compute a network's block, and what they are tried on before they do.

Nobody can try every card, driver and version of triton. So fast/agreement.py tries each variant at
its first use in a process, against the modules. Where it fails or differs, one line says so, and
the modules run. The trials take the programs that training takes, each of them several rounds, so
that the compiled kernels are those that train.
"""

import importlib
from collections.abc import Hashable
from types import ModuleType

import torch
from torch import Tensor, nn

from fast.agreement import Faster
from fast.blocks import convolves, drop_rate, drops, normalizes
from layers import BatchNorm1d, BatchNorm2d

DEVICE = "cuda"  # tests put "cpu" here, for triton's interpreter


def blocks() -> ModuleType:
    """fast/gpu/blocks.py, which needs triton; loaded when it is asked for."""
    return importlib.import_module("fast.gpu.blocks")


def on_gpu(x: Tensor, *values: Tensor | None) -> bool:
    """Whether the GPU of this process has x, and the others, in float32, dense."""
    here = DEVICE == "cpu" or x.get_device() == torch.cuda.current_device()
    return x.device.type == DEVICE and here and x.numel() > 0 and all(
        each is None or each.device == x.device and each.dtype == torch.float32
        and each.is_contiguous() for each in values)


def tracks(norm: nn.Module) -> bool:
    """Whether the kernels can move what a norm tracks."""
    return norm.momentum is not None or not norm.training


def buffers(norm: nn.Module) -> tuple[Tensor | None, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


# The CNN's block


def cnn_block(x: Tensor, *modules: nn.Module) -> Tensor:
    return blocks().norm_relu_dropout_pool(x, *modules)


def cnn_variant(x: Tensor, conv: nn.Module, norm: nn.Module, dropout: nn.Module) -> Hashable | None:
    """Device, kind of dropout, whether by the batch's statistics, whether in bf16."""
    if not (x.device.type == DEVICE and type(conv) is nn.Conv2d and type(norm) is BatchNorm2d
            and drops(dropout) and x.dtype == torch.float32 and convolves(conv, x)
            and len(x) * conv.out_channels * x[0, 0].numel() < 2 ** 31
            and normalizes(norm, conv.out_channels) and tracks(norm)
            and on_gpu(x, conv.bias, *buffers(norm))):
        return None
    half, p, trains = torch.is_autocast_enabled(DEVICE), drop_rate(dropout), norm.uses_batch_statistics()
    if half and torch.get_autocast_dtype(DEVICE) != torch.bfloat16:
        return None
    if not trains and (p > 0 or torch.is_grad_enabled() and any(
            each.requires_grad for each in (x, *conv.parameters(), *norm.parameters()))):
        return None  # without derivatives
    return x.device, type(dropout) if p else nn.Identity, trains, norm.training, half
