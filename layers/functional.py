"""The definitions of batch normalization and dropout, in plain tensor operations."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Give `values`, shape (C,), a shape that meets the channels of `x`, shape (N, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def all_but_channels(x: Tensor) -> list[int]:
    """The dimensions of `x`, shape (N, C, ...), but C."""
    return [0, *range(2, x.dim())]


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, shapes (C,), of each channel of `x`, shape (N, C, ...).

    E[x^2] - E[x]^2 would save a pass. But with a large mean both terms share all their digits, and
    nothing is left of the variance.
    """
    dims = all_but_channels(x)
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


def batch_norm_in_training(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
                           detach: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm` with the `batch_statistics` of `x`, which `detach` makes constants in the
    derivative; returns the result, mean and variance."""
    mean, variance = batch_statistics((x.detach() if detach else x).to(accumulator(x)))
    return batch_norm(x, mean, variance, weight, bias, eps), mean, variance


def dropout(x: Tensor, p: float, shape: torch.Size) -> Tensor:
    """Set values of `x` to zero with probability `p` and divide the others by 1 - p.

    Every value keeps its expectation, so evaluation has nothing to do (Srivastava et al. 2014 scale
    there instead). `shape` is the mask's: along a dimension of 1 in it values fall together.
    """
    return x * kept(x, p, shape).div_(1 - p) if p < 1 else x * 0


def kept(x: Tensor, p: float, shape: torch.Size, last: bool = True) -> Tensor:
    """The mask: 1 with probability 1 - p, else 0; of this shape, in dtype and memory order of `x`.

    Drawn in parts, of which one is the `last`, it is the same (see fast/choice.py).
    """
    mask = torch.empty_like(x) if shape == x.shape else x.new_empty(shape)
    if p in (0, 1):
        return mask.fill_(1 - p)
    if by_bits(x, p):  # four int16 in an int64, each from -32768 to 32767
        bits = torch.empty(mask.numel() // 4 + last, dtype=torch.int64, device="cpu")
        bits = bits.random_(-(2 ** 63), None).view(torch.int16)
        bits = bits.as_strided(mask.shape, mask.stride())
        # lt_ writes int16, in vector instructions; lt would write bool
        return mask.copy_(bits.lt_(round((1 - p) * 65536) - 32768))
    return mask.bernoulli_(1 - p)


def by_bits(x: Tensor, p: float) -> bool:
    """Whether 16 random bits decide over a value: a CPU draws them seven times faster than values.
    They round the rate by up to 1 / 131072, which is too coarse near 0 or 1."""
    return x.device.type == "cpu" and 0.001 < p < 0.999 and eager()


def accumulator(x: Tensor) -> torch.dtype:
    """Statistics of half-precision data are computed and kept in float32."""
    return torch.promote_types(x.dtype, torch.float32)


def eager() -> bool:
    """Whether operators just run, under no compiler, tracer, torch.func or forward-mode AD."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing()
                or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)
