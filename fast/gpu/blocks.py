"""The networks' blocks on a GPU, as functions of tensors with their derivatives, and their batches.

Where dropout's masks come from:
    whole maps              PyTorch draws one number a map, the very ones of the plain path
    single values of a CNN  as large as x, so never stored: PyTorch draws a seed on the device, from
                            which the kernel draws by Philox
    an MLP                  torch.rand; networks side by side share the numbers, which are those
                            of each alone, as they have one seed
All follow from torch.manual_seed, and a CUDA graph draws other ones at every replay.

No mask is kept for the derivatives. Forward notes a byte for each window: which of its four values
MaxPool took, or that ReLU or dropout made it zero. An MLP's y tells the same.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from triton import cdiv, next_power_of_2

from fast.blocks import drop_rate, plain_derivative
from fast.gpu import kernels
from fast.gpu.guard import memory_order, normalize_each
from fast.normalize import batch_norm_in_training, differentiate, parameter_gradients
from layers import BatchNorm, Dropout2d
from layers.functional import dropout_mask

WHOLE = 2 ** 31  # Philox draws whole numbers below
WINDOWS = kernels.WINDOWS.value


def norm_relu_dropout_pool(x: Tensor, norm: BatchNorm, dropout: nn.Module) -> Tensor:
    """MaxPool(dropout(ReLU(norm(x)))), 2x2 windows: (N, C, H, W) → (N, C, H // 2, W // 2)."""
    norm.check_input(x)
    if not norm.uses_batch_statistics():
        return evaluated(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    p, mask, seed = drop_rate(dropout), None, None
    if p > 0 and isinstance(dropout, Dropout2d):
        mask = dropout_mask(x, p, torch.Size([*x.shape[:2], 1, 1]))
    elif p > 0:
        seed = torch.empty(1, dtype=torch.int64, device=x.device).random_()
    x = x.contiguous(memory_format=torch.channels_last)
    y, mean, variance = NormReluPool.apply(x, norm.weight, norm.bias, norm.eps, p, mask, seed)
    track([norm], mean[None], variance[None], x.numel() // x.size(1))
    return y


def norm_relu_dropout(x: Tensor, norms: Sequence[BatchNorm],
                      dropouts: Sequence[nn.Module]) -> Tensor:
    """dropout(ReLU(norm(x))) of one network, (N, C), or of several, (networks, N, C)."""
    N, C = x.shape[-2:]
    for norm in norms:
        norm.check_input(x.view(-1, N, C)[0])
    rates = tuple(map(drop_rate, dropouts))
    random = torch.rand(N, C, dtype=torch.float32, device=x.device) if any(rates) else None
    weight, bias = (joined([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
    eps, keep = constants(tuple(norm.eps for norm in norms), rates, x.device)
    y, mean, variance = NormRelu.apply(x.contiguous(), weight, bias, eps, keep, random)
    track(norms, mean, variance, N)
    return y


def batch(images: Tensor, index: Tensor) -> Tensor:
    """Images at `index`, normalized, in the memory order of store/images.take."""
    x = torch.empty((len(index), *images.shape[1:]), device=images.device,
                    memory_format=memory_order(images))
    F = images[0].numel()
    kernels.batch_kernel[len(index), cdiv(F, kernels.BYTES.value)](
        images, index, x, F, num_warps=8)  # four bytes for each thread
    return x


def joined(parameters: list[Tensor | None]) -> Tensor | None:
    one = len(parameters) == 1 or parameters[0] is None
    return parameters[0] if one else torch.cat(parameters)


@cache  # a copy to the device in every step would wait for it
def constants(eps: tuple[float, ...], rates: tuple[float, ...], device) -> Tensor:
    """eps and 1 - p of each network, (2, networks)."""
    return torch.tensor([eps, [1 - p for p in rates]], dtype=torch.float32, device=device)


@torch.no_grad()
def track(norms: Sequence[BatchNorm], mean: Tensor, variance: Tensor, n: int) -> None:
    """BatchNorm.track for each norm and row of mean and variance, in three kernels for all."""
    momentum = norms[0].momentum
    if momentum is None or not all(norm.training and norm.track_running_stats
                                   and norm.momentum == momentum for norm in norms):
        for norm, *own in zip(norms, mean, variance, strict=True):
            norm.track(*own, n)
        return
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    running = [*(norm.running_mean for norm in norms), *(norm.running_var for norm in norms)]
    torch._foreach_lerp_(running, [*mean, *(variance * (n / (n - 1)))], momentum)


class NormReluPool(torch.autograd.Function):
    """MaxPool(dropout(ReLU(batch_norm(x)))) for x in channels_last order, with mean and variance.

    The derivative is that of layers.Normalize. mask (N, C, 1, 1) or seed (1,) decide who is
    dropped; without both nothing is.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, p: float,
                mask: Tensor | None, seed: Tensor | None):
        N, C, H, W = x.shape
        pooled = pooled_like(x)
        code, y = torch.empty_like(pooled, dtype=torch.uint8), torch.empty_like(pooled)
        programs = summing_programs(x)
        parts, stats = float32(x, 3, programs, C), float32(x, 4, C)
        limit, factor = min(round(p * WHOLE), WHOLE - 1), 1 / (1 - p) if p < 1 else 0.0
        kernels.pool_kernel[programs, groups(C)](
            x, weight, seed, pooled, code, parts, limit, N, H, W, C, PROGRAMS=programs)
        kernels.statistics_kernel[column_groups(C)](
            x, parts, stats, C, eps, PROGRAMS=programs, num_warps=8)
        total = N * (H // 2) * (W // 2)
        kernels.forward_kernel[cdiv(total, WINDOWS), groups(C)](
            pooled, code, weight, bias, stats, mask, y, factor, total, (H // 2) * (W // 2), C)
        ctx.eps, ctx.factor = eps, factor
        ctx.save_for_backward(x, weight, bias, pooled, code, stats)
        return y, *statistics(ctx, stats)

    @staticmethod
    def backward(ctx, g: Tensor, *_):
        x, weight, bias, pooled, code, stats = ctx.saved_tensors
        N, C, H, W = x.shape
        if plain_derivative(g):
            with torch.enable_grad():
                y = batch_norm_in_training(x, weight, bias, ctx.eps)[0].flatten(2)
                y = y.gather(2, places(code, W)).view_as(code) * (code < 4) * ctx.factor
                return *differentiate(y.to(x.dtype), (x, weight, bias), g), *[None] * 4
        g = g.contiguous(memory_format=torch.channels_last)
        programs, total = summing_programs(x), code.numel() // C
        parts, sums, dx = float32(x, 2, programs, C), float32(x, 2, C), torch.empty_like(x)
        kernels.sums_kernel[programs, groups(C)](
            g, pooled, code, stats, parts, ctx.factor, total, C, PROGRAMS=programs)
        kernels.add_kernel[column_groups(C)](parts, sums, C, PROGRAMS=programs, num_warps=8)
        kernels.backward_kernel[cdiv(windows(x), WINDOWS), groups(C)](
            x, g, code, weight, stats, sums, dx, ctx.factor, N, H, W, C)
        return dx, *parameter_gradients(weight, bias, *sums), *[None] * 4


def evaluated(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None,
              bias: Tensor | None, eps: float) -> Tensor:
    """MaxPool(ReLU(batch_norm(x))) by the statistics given, without derivatives."""
    x = x.contiguous(memory_format=torch.channels_last)
    N, C, H, W = x.shape
    y = pooled_like(x)
    kernels.evaluation_kernel[cdiv(windows(x), WINDOWS), groups(C)](
        x, weight, bias, mean, variance, y, eps, N, H, W, C)
    return y


class NormRelu(torch.autograd.Function):
    """dropout(ReLU(batch_norm(x))) of (N, C) or (networks, N, C), with mean and variance.

    weight and bias (networks * C,), eps and keep (networks,), random: see columns_forward_kernel.
    Each network's y and d x begin as its own tensors would, at a multiple of 512 bytes: the kernel
    that computes a product may depend on that.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: Tensor,
                keep: Tensor, random: Tensor | None):
        (N, C), networks = x.shape[-2:], len(keep)
        (y, room), stats = apart(x), float32(x, 4, networks, C)
        kernels.columns_forward_kernel[(*column_groups(C), networks)](
            x, weight, bias, keep, eps, random, y, stats, N, C, room, num_warps=8)
        ctx.save_for_backward(x, weight, bias, eps, keep, stats, y)
        return y, *statistics(ctx, stats)

    @staticmethod
    def backward(ctx, g: Tensor, *_):
        x, weight, bias, eps, keep, stats, y = ctx.saved_tensors
        N, C = x.shape[-2:]
        if plain_derivative(g):
            factor = torch.where(keep > 0, 1 / keep, 0).view(-1, *[1] * (x.dim() - 1))
            with torch.enable_grad():
                again = normalize_each(x, weight, bias, eps.repeat_interleave(C))[0]
                again = (again * (y > 0) * factor).to(y.dtype)
                return *differentiate(again, (x, weight, bias), g), *[None] * 3
        sums, (dx, room) = float32(x, 2, len(keep), C), apart(x)
        kernels.columns_backward_kernel[(*column_groups(C), len(keep))](
            x, y, g.contiguous(), weight, keep, stats, sums, dx, N, C, room, num_warps=8)
        return dx, *parameter_gradients(weight, bias, *sums), *[None] * 3


def apart(x: Tensor) -> tuple[Tensor, int]:
    """An empty tensor like x, (N, C) or (networks, N, C), and how far apart its networks begin."""
    N, C = x.shape[-2:]
    room = cdiv(N * C, 256) * 256  # values: a multiple of 512 bytes
    return x.new_empty_strided(x.shape, (room, C, 1)[-x.dim():]), room


def statistics(ctx, stats: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, which have no derivative here."""
    mean, _, variance, _ = stats
    ctx.mark_non_differentiable(mean, variance)
    ctx.set_materialize_grads(False)  # or zeros are filled in for these two
    return mean, variance


def places(code: Tensor, W: int) -> Tensor:
    """Where in its map each window's value lies, (N, C, windows of a map)."""
    row, column = (torch.arange(size, device=code.device) for size in code.shape[2:])
    tap = code.clamp(max=3).long()
    return ((row[:, None] * 2 + tap // 2) * W + column * 2 + tap % 2).flatten(2)


# Sizes, from the shape alone: they decide the order of sums


def windows(x: Tensor) -> int:
    """2x2 windows that cover x, half ones at odd edges too."""
    return len(x) * cdiv(x.size(2), 2) * cdiv(x.size(3), 2)


def summing_programs(x: Tensor) -> int:
    return min(kernels.MOST_PROGRAMS, next_power_of_2(cdiv(windows(x), WINDOWS)))


def groups(C: int) -> int:
    return cdiv(C, kernels.CHANNELS.value)


def column_groups(C: int) -> tuple[int]:
    return cdiv(C, kernels.COLUMNS.value),


def pooled_like(x: Tensor) -> Tensor:
    N, C, H, W = x.shape
    return torch.empty((N, C, H // 2, W // 2), dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last)


def float32(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float32)
