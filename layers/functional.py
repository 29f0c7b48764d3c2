"""The definitions of batch normalization and dropout, in plain tensor operations."""

import math

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Give `values`, shape (C,), a shape that meets the channels of `x`, shape (N, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def all_but_channels(x: Tensor) -> list[int]:
    """The dimensions of `x`, shape (N, C, ...), but C."""
    return [0, *range(2, x.dim())]


def accumulator(x: Tensor) -> torch.dtype:
    """Statistics of half-precision data are computed and kept in float32."""
    return torch.float32 if x.dtype in HALF else x.dtype


# Batch normalization


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, shapes (C,), of each channel of `x`, shape (N, C, ...).

    E[x^2] - E[x]^2 would save a pass. But with a large mean both terms share all their digits, and
    nothing is left of the variance.
    """
    x, dims = x.to(accumulator(x)), all_but_channels(x)
    if x.numel() == 0:  # the mean of nothing is NaN, which would reach a gradient
        return x.new_zeros(x.size(1)), x.new_zeros(x.size(1))
    mean = x.mean(dims, keepdim=True)
    return mean.flatten(), (x - mean).square().mean(dims)


def batch_norm(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None,
               bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias: Ioffe and Szegedy 2015, algorithm 1.

    `x` is (N, C, ...), as the result, all else (C,). Half precision is computed in float32.
    """
    mean, variance = mean.to(accumulator(x)), variance.to(accumulator(x))
    r = torch.rsqrt(variance + eps)
    scale = r if weight is None else r * weight
    y = (x - per_channel(mean, x)) * per_channel(scale, x)
    return (y if bias is None else y + per_channel(bias, x)).to(x.dtype)


# Dropout


def dropout(x: Tensor, p: float, shape: torch.Size) -> Tensor:
    """Set values of `x` to zero with probability `p` and divide the others by 1 - p.

    Every value keeps its expectation, so evaluation has nothing to do (Srivastava et al. 2014 scale
    there instead). `shape` is the mask's: along a dimension of 1 in it values fall together.
    """
    return x * (dropout_mask(x, p, shape) / (1 - p)) if p < 1 else x * 0


def gaussian_dropout(x: Tensor, p: float, shape: torch.Size) -> Tensor:
    """Multiply `x` by noise N(1, p / (1 - p)), of the mean and variance that dropout's has.

    Nothing becomes zero (Srivastava et al. 2014, section 10).
    """
    return x * (1 + math.sqrt(p / (1 - p)) * x.new_empty(shape).normal_())


def dropout_mask(x: Tensor, p: float, shape: torch.Size) -> Tensor:
    """1 with probability 1 - p, else 0; of this shape, in dtype and memory order of `x`."""
    mask = torch.empty_like(x) if shape == x.shape else x.new_empty(shape)
    by_bits = x.device.type == "cpu" and not torch.compiler.is_compiling()
    if by_bits and 0.001 < p < 0.999:  # the rate is rounded by up to 1 / 131072
        bits = random_bits(x, mask.numel()).as_strided(mask.shape, mask.stride())
        return mask.copy_(bits.lt_(threshold(p)))
    return mask.bernoulli_(1 - p)


def random_bits(x: Tensor, n: int) -> Tensor:
    """n whole numbers from -32768 to 32767, for `x` on a CPU, which draws four of them at once;
    bernoulli_ takes five times as long."""
    bits = x.new_empty(n // 4 + 1, dtype=torch.int64).random_(-(2 ** 63), None)
    return bits.view(torch.int16)[:n]


def threshold(p: float) -> int:
    """`random_bits` lie below it with probability 1 - p."""
    return round((1 - p) * 65536) - 32768
