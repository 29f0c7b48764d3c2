"""The networks' blocks on a GPU, as functions of tensors with their derivatives.

PyTorch draws the masks of dropout, the very ones of the plain path. That of a CNN's single values
is a byte each, and read once: forward notes a byte for each window, which of its four values
MaxPool took, or that ReLU or dropout made it zero. An MLP's y tells the same. A CUDA graph draws
other masks at every replay.

A convolution before a batch normalization runs without its bias, which the normalization takes out
again. The mean that is tracked contains it, and its gradient is zero. To add it, and to sum what is
zero but for rounding, would take two more passes over the largest tensors.
"""

import torch
from torch import Tensor, nn

from fast.blocks import plain_derivative
from fast.conditions import drop_rate
from fast.gpu import kernels
from fast.normalize import batch_norm_in_training, differentiate
from layers import BatchNorm, Dropout2d
from layers.functional import dropout_mask

WINDOWS, CHANNELS, COLUMNS = kernels.WINDOWS, kernels.CHANNELS, kernels.COLUMNS


def norm_relu_dropout_pool(x: Tensor, conv: nn.Conv2d, norm: BatchNorm,
                           dropout: nn.Module) -> Tensor:
    """MaxPool(dropout(ReLU(norm(conv(x))))), 2x2 windows: (N, C, H, W) → (N, C, H // 2, W // 2)."""
    weight, offset = conv._parameters["weight"], conv._parameters["bias"]
    x = dense(conv._conv_forward(x, weight, None))
    if not norm.uses_batch_statistics():
        return evaluated(x, offset, norm)
    maps, values, p = None, None, drop_rate(dropout)
    if p > 0 and type(dropout) is Dropout2d:
        maps = dropout_mask(x, p, torch.Size([*x.shape[:2], 1, 1]))
    elif p > 0:
        values = dropout_mask(torch.empty_like(x, dtype=torch.uint8), p, x.shape)
    return NormReluPool.apply(x, offset, *affine(norm), norm, maps, values, factor(p))


def norm_relu_dropout(x: Tensor, norm: BatchNorm, dropout: nn.Module) -> Tensor:
    """dropout(ReLU(norm(x))) of (N, C)."""
    p, x = drop_rate(dropout), x.contiguous()
    mask = dropout_mask(x, p, x.shape) if p > 0 else None
    return NormRelu.apply(x, *affine(norm), norm, mask, factor(p))


def factor(p: float) -> float:  # by which dropout multiplies what it keeps
    return 1 / (1 - p) if p < 1 else 0.0


def tracked(norm: BatchNorm) -> tuple:
    """What a batch moves: running mean and variance, and the count of batches."""
    if norm.training and norm.track_running_stats:
        return tuple(norm._buffers.values())
    return None, None, None


def affine(norm: BatchNorm) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias; `norm.weight` takes five times as long, a tenth of a block altogether."""
    return norm._parameters["weight"], norm._parameters["bias"]


class NormReluPool(torch.autograd.Function):
    """MaxPool(dropout(ReLU(batch_norm(x + offset)))) for x in channels_last order.

    The derivative is that of layers.Normalize. A mask of maps (N, C, 1, 1) or of values, like x,
    decides who is dropped; without both nothing is.
    """

    @staticmethod
    def forward(ctx, x: Tensor, offset: Tensor | None, weight: Tensor | None, bias: Tensor | None,
                norm: BatchNorm, maps: Tensor | None, values: Tensor | None, factor: float):
        N, C, H, W = x.shape
        ctx.sizes = size, groups, column_groups, programs = sizes(N, C, H, W)
        pooled = pooled_like(x)
        code, y = torch.empty_like(pooled, dtype=torch.uint8), torch.empty_like(pooled)
        stats = x.new_empty((4 + 3 * programs, C), dtype=torch.float32)
        kernels.pool_kernel[programs, groups](
            x, weight, values, pooled, code, stats, N, H, W, C, PROGRAMS=programs)
        kernels.statistics_kernel[column_groups,](
            x, stats, offset, *tracked(norm), C, norm.eps, norm.momentum, PROGRAMS=programs,
            num_warps=8)
        kernels.forward_kernel[-(-N * size // WINDOWS), groups](
            pooled, code, weight, bias, stats, maps, y, factor, N * size, size, C)
        ctx.norm, ctx.factor, ctx.offset = norm, factor, offset is not None
        ctx.save_for_backward(x, weight, bias, pooled, code, stats)
        return y

    @staticmethod
    def backward(ctx, g: Tensor):
        x, weight, bias, pooled, code, stats = ctx.saved_tensors
        N, C, H, W = x.shape
        if plain_derivative(g):
            with torch.enable_grad():
                y = batch_norm_in_training(x, weight, bias, ctx.norm.eps)[0].flatten(2)
                y = y.gather(2, places(code, W)).view_as(code) * (code < 4) * ctx.factor
                dx, dweight, dbias = differentiate(y.to(x.dtype), (x, weight, bias), g)
            zero = (g.sum((0, 2, 3)) * 0).float() if ctx.offset else None
            return dx, zero, dweight, dbias, *[None] * 4
        # what saved the tensors meanwhile may give them back in another order
        x, pooled, code, g = dense(x), dense(pooled), dense(code), dense(g)
        size, groups, column_groups, programs = ctx.sizes
        sums, dx = x.new_empty((3 + 2 * programs, C), dtype=torch.float32), torch.empty_like(x)
        kernels.sums_kernel[programs, groups](
            g, pooled, code, stats, sums, ctx.factor, N * size, C, PROGRAMS=programs)
        kernels.add_kernel[column_groups,](sums, C, PROGRAMS=programs, num_warps=8)
        kernels.backward_kernel[-(-windows(N, H, W) // WINDOWS), groups](
            x, g, code, weight, stats, sums, dx, ctx.factor, N, H, W, C)
        dbias, dweight, zero = sums[:3].unbind()
        return (dx, zero if ctx.offset else None, None if weight is None else dweight,
                None if bias is None else dbias, *[None] * 4)


def evaluated(x: Tensor, offset: Tensor | None, norm: BatchNorm) -> Tensor:
    """MaxPool(ReLU(norm(x + offset))) by the running statistics, without derivatives."""
    N, C, H, W = x.shape
    y = pooled_like(x)
    kernels.evaluation_kernel[-(-windows(N, H, W) // WINDOWS), -(-C // CHANNELS)](
        x, *affine(norm), offset, norm.running_mean, norm.running_var, y, norm.eps,
        N, H, W, C)
    return y


class NormRelu(torch.autograd.Function):
    """dropout(ReLU(batch_norm(x))) of (N, C); mask (N, C), or None, decides who is dropped."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: BatchNorm,
                mask: Tensor | None, factor: float):
        N, C = x.shape
        y, stats = torch.empty_like(x), x.new_empty((4, C), dtype=torch.float32)
        kernels.columns_forward_kernel[-(-C // COLUMNS),](
            x, weight, bias, mask, y, stats, *tracked(norm), norm.eps, factor, norm.momentum, N, C,
            num_warps=8)
        ctx.norm, ctx.factor = norm, factor
        ctx.save_for_backward(x, weight, bias, stats, y)
        return y

    @staticmethod
    def backward(ctx, g: Tensor):
        x, weight, bias, stats, y = ctx.saved_tensors
        N, C = x.shape
        if plain_derivative(g):
            with torch.enable_grad():
                again = batch_norm_in_training(x, weight, bias, ctx.norm.eps)[0]
                again = (again * (y > 0) * ctx.factor).to(y.dtype)
                return *differentiate(again, (x, weight, bias), g), *[None] * 3
        x, y, g = x.contiguous(), y.contiguous(), g.contiguous()
        sums, dx = x.new_empty((2, C), dtype=torch.float32), torch.empty_like(x)
        kernels.columns_backward_kernel[-(-C // COLUMNS),](
            x, y, g, weight, stats, sums, dx, ctx.factor, N, C, num_warps=8)
        dbias, dweight = sums.unbind()
        return (dx, None if weight is None else dweight, None if bias is None else dbias,
                *[None] * 3)


def places(code: Tensor, W: int) -> Tensor:
    """Where in its map each window's value lies, (N, C, windows of a map)."""
    row, column = (torch.arange(size, device=code.device) for size in code.shape[2:])
    tap = code.clamp(max=3).long()
    return ((row[:, None] * 2 + tap // 2) * W + column * 2 + tap % 2).flatten(2)


# Sizes, from the shape alone: they decide the order of sums. Plain integers, as triton's own
# functions of them take longer than a kernel.


def windows(N: int, H: int, W: int) -> int:
    """2x2 windows that cover x, half ones at odd edges too."""
    return N * ((H + 1) // 2) * ((W + 1) // 2)


def sizes(N: int, C: int, H: int, W: int) -> tuple[int, int, int, int]:
    """Windows of a map that MaxPool takes, programs for the channels, for columns, and for sums."""
    blocks = -(-windows(N, H, W) // WINDOWS)
    programs = min(kernels.MOST_PROGRAMS, 1 << (blocks - 1).bit_length())
    return (H // 2) * (W // 2), -(-C // CHANNELS), -(-C // COLUMNS), programs


def dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def pooled_like(x: Tensor) -> Tensor:
    N, C, H, W = x.shape
    return torch.empty((N, C, H // 2, W // 2), dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last)
