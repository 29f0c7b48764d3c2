"""The blocks of the CNN on a CPU, from Conv to MaxPool, in fewer passes over memory.

A convolution's output is large (51 MB for a batch of 128), and a CPU spends its time on moving it.
MaxPool keeps a quarter of it. Every other step rises in its input, so it commutes with the maximum:

    MaxPool(mask * ReLU(weight * xhat + bias)) = mask * ReLU(weight * MaxPool(xhat) + bias)

for weight >= 0; for weight < 0 the maximum becomes a minimum. So the convolution goes through the
batch a few samples at a time, and its output is read for the statistics and the pooling while it is
in the cache. Everything else touches the quarter. Backward goes through the same samples: gradients
of pooled values are scattered, the part through mean and variance is added, and the convolution's
weight takes its gradient, so that the large gradient never leaves the cache.

The mask of `Dropout2d` is one factor for a whole map. That of `Dropout` differs within a pooling
window: MaxPool takes the largest value that is kept, and the mask is 0 if the window keeps none.

A bias of the convolution shifts its channel, which normalization takes out again. So it is added to
the mean that is tracked, and nowhere else, and its gradient is zero. In its place the convolution
gets a bias that puts each channel's mean near 0: then sums of squares lose no digits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.conditions import drop_rate
from fast.normalize import batch_norm_in_training, differentiate, parameter_gradients
from layers import BatchNorm2d, Dropout2d, batch_norm
from layers.functional import accumulator, dropout_mask, per_channel, random_bits, threshold

SLICE_VALUES = 5 << 18  # of the convolution's output (5 MB) at a time: they stay in the cache
POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)  # window, stride, padding, dilation, ceil_mode
CONV = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)  # stride, padding, dilation, none, none, groups


def plain_derivative(g: Tensor) -> bool:
    """Whether PyTorch has to differentiate: once more, or for a batch of gradients at once."""
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(g)


def block(x: Tensor, conv: nn.Conv2d, norm: BatchNorm2d, dropout: nn.Module,
          slice_values: int = SLICE_VALUES) -> Tensor:
    """MaxPool(dropout(ReLU(norm(conv(x))))) for (N, C, H, W), in 2x2 windows."""
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
    x, kernel = (each.to(dtype, memory_format=torch.channels_last) for each in (x, conv.weight))
    height, width = (size - side + 1
                     for size, side in zip(x.shape[2:], kernel.shape[2:], strict=True))
    slices = -(-len(x) * len(kernel) * height * width // slice_values)
    rows = -(-len(x) // slices)
    if not norm.uses_batch_statistics():
        return dropout(F.relu(evaluated(x, kernel, conv.bias, norm, rows)))
    y, mean, variance = NormReluPool.apply(
        x, kernel, conv.bias, norm.weight, norm.bias, norm.eps, drop_rate(dropout),
        type(dropout) is Dropout2d, rows)
    norm.track(mean, variance, len(x) * height * width)
    return y


def evaluated(x: Tensor, kernel: Tensor, conv_bias: Tensor | None, norm: BatchNorm2d,
              rows: int) -> Tensor:
    """MaxPool(norm(conv(x))) by the running statistics."""
    sign, shift = signs(norm.weight), -norm.running_mean
    shift = (shift if conv_bias is None else shift + conv_bias).to(x.dtype)
    parts = (F.conv2d(part, kernel, shift) for part in x.split(rows))
    pooled = torch.cat([F.max_pool2d(part if sign is None else part * sign, 2) for part in parts])
    return batch_norm(pooled if sign is None else pooled * sign, torch.zeros_like(shift),
                      norm.running_var, norm.weight, norm.bias, norm.eps)


def signs(weight: Tensor | None) -> Tensor | None:
    """-1 for the channels with a negative weight, else 1, shape (C, 1, 1); None if all are 1."""
    if weight is None or weight.min().item() >= 0:
        return None
    return torch.where(weight < 0, -1, 1)[:, None, None]


def pool(x: Tensor, out: Tensor, indices: Tensor) -> None:
    torch.ops.aten.max_pool2d_with_indices.out(x, *POOL, out=out, indices=indices)


def pool_kept(x: Tensor, kept: Tensor, out: Tensor, indices: Tensor, some: Tensor) -> None:
    """`pool` of the values that are `kept`; `some` becomes 0 for a window without, else 1."""
    dropped = kept.reciprocal_().sub_(1)  # infinity for these, else 0
    pool(torch.sub(x, dropped, out=dropped), out, indices)
    some.copy_(out).gt_(-torch.inf)
    out.clamp_(min=torch.finfo(out.dtype).min)  # finite: times `some` it must become 0, not NaN


class NormReluPool(torch.autograd.Function):
    """The block, with mean and variance of conv(x); `rows` are the samples at a time.

    The derivative is that of fast/normalize.py.
    """

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, conv_bias: Tensor | None, weight: Tensor | None,
                bias: Tensor | None, eps: float, p: float, whole_maps: bool, rows: int):
        few = F.conv2d(x[:max(1, rows // 8)], kernel)
        shift = few.mean((0, 2, 3), dtype=accumulator(x)).to(x.dtype)
        N, (C, H, W) = len(x), few.shape[1:]
        pooled = torch.empty(N, C, H // 2, W // 2, dtype=x.dtype, device="cpu",
                             memory_format=torch.channels_last)
        # places in a map, which MaxPool gives as int64: a slice of them stays in the cache
        chosen = torch.empty_like(pooled, dtype=torch.int16 if H * W < 2 ** 15 else torch.int64)
        indices, sign = torch.empty_like(pooled[:rows], dtype=torch.int64), signs(weight)
        if by_value := 0 < p < 1 and not whole_maps:
            mask = torch.empty_like(pooled)
            bits = random_bits(x, N * H * W * C).view(N, H, W, C).permute(0, 3, 1, 2)
        else:  # nothing is drawn to drop nothing
            mask = dropout_mask(few, p, torch.Size([N, C, 1, 1])) if p else few.new_ones(N, 1, 1, 1)
        large, sums = [], None  # the convolution's output, slice by slice
        for i in range(0, N, rows):
            own = slice(i, i + rows)
            part = F.conv2d(x[own], kernel, -shift)
            signed = part if sign is None else part * sign
            if by_value:
                kept = torch.empty_like(part).copy_(bits[own].lt_(threshold(p)))
                pool_kept(signed, kept, pooled[own], indices[:len(part)], mask[own])
            else:
                pool(signed, pooled[own], indices[:len(part)])
            chosen[own] = indices[:len(part)]
            sums = sums or Sums(part)
            sums.add(part)
            large.append(part)
        if sign is not None:
            pooled *= sign
        mean, variance = sums.statistics(N * H * W)  # the mean is that of `large`
        r = torch.rsqrt(variance + eps)
        scale = r / (1 - p) if weight is None else r / (1 - p) * per_channel(weight, x)
        offset = -mean * scale
        if bias is not None:
            offset += per_channel(bias, x).to(scale.dtype) / (1 - p)
        y, work = torch.empty_like(pooled), workspace(pooled[:rows])
        for part, some, out in zip(*(each.split(rows) for each in (pooled, mask, y)), strict=True):
            part = widened(part, work)
            result = out if out.dtype == part.dtype else part
            torch.addcmul(offset, part, scale, out=result).relu_().mul_(some)
            if result is not out:
                out.copy_(result)
        ctx.factor, ctx.eps, ctx.rows, ctx.n = 1 / (1 - p), eps, rows, N * H * W
        ctx.save_for_backward(x, kernel, conv_bias, weight, bias, mean, r, scale, pooled, chosen, y,
                              *large)
        mean = shift + mean.flatten() + (0 if conv_bias is None else conv_bias)
        ctx.mark_non_differentiable(mean, variance := variance.flatten())
        return y, mean, variance

    @staticmethod
    def backward(ctx, g: Tensor, *_):
        (x, kernel, conv_bias, weight, bias, mean, r, scale, pooled, chosen, y,
         *large) = ctx.saved_tensors
        if plain_derivative(g):
            inputs = x, kernel, conv_bias, weight, bias
            with torch.enable_grad():
                own = None if conv_bias is None else conv_bias.to(x.dtype)
                normalized, *_ = batch_norm_in_training(F.conv2d(x, kernel, own), weight, bias,
                                                        ctx.eps)
                largest = normalized.flatten(2).gather(2, chosen.long().flatten(2)).view_as(y)
                return *differentiate(largest * (y > 0) * ctx.factor, inputs, g), *[None] * 4
        # hooks on saved tensors may give another memory order, as the linear layer's gradient has
        g, x, pooled, chosen, y, *large = (
            each.contiguous(memory_format=torch.channels_last)
            for each in (g, x, pooled, chosen, y, *large))
        by_slice = [each.split(ctx.rows) for each in (x, g, y, pooled, chosen)]
        small, work = workspace(pooled[:ctx.rows]), workspace(large[0])
        sum_g, sum_gp = gradient_sums(*by_slice[1:4], small)
        sum_gxhat = (sum_gp - mean * sum_g) * r
        # the gradient of conv(x) is scale * g + c * conv(x) + d, the last two being the part
        # through mean and variance; `scale` contains the factor of what dropout keeps
        share = -scale / ctx.n
        c = share * sum_gxhat * r
        d = share * sum_g - c * mean
        dconv, dx, dkernel = torch.empty_like(large[0]), [], None
        places = torch.empty_like(pooled[:ctx.rows], dtype=torch.int64)
        wide = dconv if dconv.dtype == work.dtype else torch.empty_like(work)
        for part, images, own_g, own_y, _, indices in zip(large, *by_slice, strict=True):
            out, result, part = dconv[:len(part)], wide[:len(part)], widened(part, work)
            torch.ops.aten.max_pool2d_with_indices_backward.grad_input(
                passed(own_g, own_y, small).mul_(scale), part, *POOL,
                places[:len(part)].copy_(indices), grad_input=result)
            result.addcmul_(part, c).add_(d)
            if wide is not dconv:  # half precision is rounded once, here
                out.copy_(result)
            dimages, dslice, _ = torch.ops.aten.convolution_backward(
                out, images, kernel, None, *CONV, [*ctx.needs_input_grad[:2], False])
            dx.append(dimages)
            dkernel = dslice if dkernel is None else dkernel.add_(dslice)
        dweight, dbias = parameter_gradients(weight, bias, sum_g * ctx.factor,
                                             sum_gxhat * ctx.factor)
        return (joined(dx), dkernel, None if conv_bias is None else torch.zeros_like(conv_bias),
                dweight, dbias, *[None] * 4)


def passed(g: Tensor, y: Tensor, work: Tensor) -> Tensor:
    """The gradient that ReLU and dropout pass on: 0 where y is. In the workspace."""
    if g.dtype != work.dtype:
        return work[:len(g)].copy_(torch.ops.aten.threshold_backward(g, y, 0))
    return torch.ops.aten.threshold_backward.grad_input(g, y, 0, grad_input=work[:len(g)])


def joined(parts: list[Tensor | None]) -> Tensor | None:
    return parts[0] if len(parts) == 1 or parts[0] is None else torch.cat(parts)


def gradient_sums(gs, ys, pooled, work: Tensor) -> tuple[Tensor, Tensor]:
    """sum(g) and sum(g * pooled), shape (1, C, 1, 1), where ReLU and dropout pass g on."""
    sums_g, sums_gp = [], []
    for g, y, part in zip(gs, ys, pooled, strict=True):
        g = passed(g, y, work)
        sums_g.append(sums_of_samples(g))
        sums_gp.append(sums_of_samples(g.mul_(part)))
    return total(sums_g), total(sums_gp)


class Sums:
    """`batch_statistics` slice by slice, of values whose mean is near 0: their sums and those of
    their squares. As the shift is that of a part of the batch, few bits cancel in E[x^2] - E[x]^2.
    """

    def __init__(self, first: Tensor):
        self.work, self.sums, self.squares = workspace(first), [], []

    def add(self, part: Tensor) -> None:
        part, work = widened(part, self.work), self.work[:len(part)]
        self.sums.append(sums_of_samples(part))
        self.squares.append(sums_of_samples(torch.mul(part, part, out=work)))

    def statistics(self, n: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of n values, shape (1, C, 1, 1)."""
        mean = total(self.sums) / n
        return mean, total(self.squares) / n - mean.square()


def workspace(part: Tensor) -> Tensor:
    """Room for a slice in its accumulator's type; used for all, it stays in the cache."""
    return torch.empty_like(part, dtype=accumulator(part))


def widened(part: Tensor, work: Tensor) -> Tensor:
    """A slice in the type of its workspace, in which it is put if it has another."""
    return part if part.dtype == work.dtype else work[:len(part)].copy_(part)


def sums_of_samples(x: Tensor) -> Tensor:
    """The sum of each channel within each sample, shape (N, C, 1, 1).

    Threads divide this sum by samples, as they divide every element-wise operation, so each finds
    its data in its own core's cache. They would divide a sum over the samples by channels.
    """
    return x.sum((2, 3), keepdim=True)


def total(sums: list[Tensor]) -> Tensor:
    return torch.cat(sums).sum(0, keepdim=True)
