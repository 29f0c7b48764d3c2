"""The blocks of the CNN in fewer passes over memory: BatchNorm, ReLU, dropout and MaxPool in one.

A convolution's output is large (51 MB for a batch of 128), and a CPU spends its time on moving it.
MaxPool keeps a quarter of it. Every other step rises in its input, so it commutes with the maximum:

    MaxPool(mask * ReLU(weight * xhat + bias)) = mask * ReLU(weight * MaxPool(xhat) + bias)

for weight >= 0; for weight < 0 the maximum becomes a minimum. So the large tensor is read once, for
the statistics and the pooling, and everything else touches the quarter. The gradient of the pooled
values is scattered back, and the part through mean and variance is added in the same pass.

The mask of `Dropout2d` is one factor for a whole map. That of `Dropout` differs within a pooling
window: MaxPool takes the largest value that is kept, and the mask is 0 if the window keeps none.

cnn/model.py and layers/ define the blocks; tests hold the two against each other. choice.py says
when these functions apply.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import BatchNorm2d, Dropout2d
from layers.functional import accumulator, batch_norm, batch_norm_in_training, kept, per_channel
from layers.normalize import differentiate, parameter_gradients

SLICE_VALUES = 5 << 18  # so many values (5 MB) are worked on at a time: they stay in the cache
POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)  # window, stride, padding, dilation, ceil_mode


def drop_rate(dropout: nn.Module) -> float:
    """The probability with which it drops now."""
    return 0.0 if type(dropout) is nn.Identity else dropout.rate()


def plain_derivative(g: Tensor) -> bool:
    """Whether PyTorch has to differentiate: once more, or for a batch of gradients at once."""
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(g)


def norm_relu_dropout_pool(x: Tensor, norm: BatchNorm2d, dropout: nn.Module) -> Tensor:
    """MaxPool(dropout(ReLU(norm(x)))) for (N, C, H, W) → (N, C, H // 2, W // 2)."""
    norm.check_input(x)
    affine = norm.weight, norm.bias, norm.eps
    if not norm.uses_batch_statistics():
        sign = signs(norm.weight, x)
        pooled = F.max_pool2d(x, 2) if sign is None else F.max_pool2d(x * sign, 2) * sign
        return dropout(F.relu(batch_norm(pooled, norm.running_mean, norm.running_var, *affine)))
    rate, whole_maps = drop_rate(dropout), type(dropout) is Dropout2d
    y, mean, variance = NormReluPool.apply(x, *affine, rate, whole_maps)
    norm.track(mean, variance, x.numel() // x.size(1))
    return y


def signs(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """-1 for the channels with a negative weight, else 1; None if all are 1."""
    if weight is None or weight.min().item() >= 0:
        return None
    return per_channel(torch.where(weight < 0, -1, 1).to(x.dtype), x)


def pool(x: Tensor, out: Tensor, indices: Tensor) -> None:
    torch.ops.aten.max_pool2d_with_indices.out(x, *POOL, out=out, indices=indices)


def pool_kept(x: Tensor, mask: Tensor, out: Tensor, indices: Tensor, some: Tensor) -> None:
    """`pool` of what `Dropout` keeps; `some` becomes 0 for a window that keeps none, else 1."""
    dropped = mask.reciprocal_().sub_(1)  # infinity for these, else 0
    pool(torch.sub(x, dropped, out=dropped), out, indices)
    some.copy_(out).gt_(-torch.inf)
    out.clamp_(min=torch.finfo(out.dtype).min)  # finite: times `some` it must become 0, not NaN


class NormReluPool(torch.autograd.Function):
    """MaxPool(dropout(ReLU(batch_norm(x)))), mean, variance; derivative as in layers.Normalize."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, p: float,
                whole_maps: bool):
        sign = signs(weight, x)
        shape = (x.size(0), x.size(1), x.size(2) // 2, x.size(3) // 2)
        pooled = torch.empty(shape, dtype=x.dtype, device=x.device,
                             memory_format=torch.channels_last)
        chosen = torch.empty_like(pooled, dtype=torch.int64)
        by_value = p > 0 and not whole_maps
        mask = (torch.empty_like(pooled) if by_value
                else kept(x, p, torch.Size([*shape[:2], 1, 1])))
        sums, left = ShiftedSums(x), len(x)
        for part, out, indices, some in slices(x, pooled, chosen, mask):
            signed, left = part if sign is None else part * sign, left - len(part)
            if by_value:
                pool_kept(signed, kept(part, p, part.shape, left == 0), out, indices, some)
            else:
                pool(signed, out, indices)
            sums.add(part)
        if sign is not None:
            pooled *= sign
        mean, error, variance = sums.statistics()
        r = torch.rsqrt(variance + eps)
        factor = 1 / (1 - p) if p < 1 else 0.0
        scale = r * factor if weight is None else r * factor * per_channel(weight, x)
        offset = -error * scale
        if bias is not None:
            offset += per_channel(bias, x).to(scale.dtype) * factor
        y, work = torch.empty_like(pooled), workspace(pooled)
        for part, some, out in slices(pooled, mask, y):
            d = shifted(part, mean, work)
            out.copy_(torch.addcmul(offset, d, scale, out=d).relu_()).mul_(some)
        ctx.factor, ctx.eps = factor, eps
        ctx.save_for_backward(x, weight, bias, mean, error, r, scale, pooled, chosen, y)
        mean, variance = (mean + error).flatten(), variance.flatten()
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx, g: Tensor, *_):
        x, weight, bias, mean, error, r, scale, pooled, chosen, y = ctx.saved_tensors
        if plain_derivative(g):
            with torch.enable_grad():
                normalized, *_ = batch_norm_in_training(x, weight, bias, ctx.eps)
                largest = normalized.flatten(2).gather(2, chosen.flatten(2)).view_as(y)
                result = largest * (y > 0) * ctx.factor
                return *differentiate(result, (x, weight, bias), g), None, None, None
        g = g.contiguous(memory_format=torch.channels_last)  # the linear layer's gradient is not
        g = torch.ops.aten.threshold_backward(g, y, 0)  # 0 where ReLU or dropout made y 0
        small = workspace(g)
        sum_g, sum_gd = gradient_sums(pooled, g, mean, small)
        sum_gxhat = (sum_gd - error * sum_g) * r
        # d x = scale * g + c * x + d, the last two being the part through mean and variance;
        # what dropout keeps is multiplied by `factor`, which `scale` contains
        share = scale * (-x.size(1) / x.numel())
        c = share * sum_gxhat * r
        d = share * sum_g - c * mean - c * error
        dx, work, wide = torch.empty_like(x), workspace(x), workspace(x)
        for part, gradient, indices, out in slices(x, g, chosen, dx):
            scaled = torch.mul(widened(gradient, small), scale, out=small[:len(part)])
            part = widened(part, work)
            # half precision is rounded once, at the end
            result = out if out.dtype == wide.dtype else wide[:len(part)]
            torch.ops.aten.max_pool2d_with_indices_backward.grad_input(
                scaled, part, *POOL, indices, grad_input=result)
            out.copy_(result.addcmul_(part, c).add_(d))
        of_parameters = parameter_gradients(weight, bias, sum_g * ctx.factor,
                                            sum_gxhat * ctx.factor)
        return dx, *of_parameters, None, None, None


# Large tensors of shape (N, C, H, W), a few samples at a time


def slices(*tensors: Tensor):
    """Walk through tensors of N samples together, a few samples at a time (see SLICE_VALUES)."""
    rows = samples_in_a_slice(tensors[0])
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def samples_in_a_slice(x: Tensor) -> int:
    return -(-len(x) // -(-x.numel() // SLICE_VALUES))


def workspace(x: Tensor) -> Tensor:
    """Room for a slice of `x` in its accumulator's type; used for all, it stays in the cache."""
    return torch.empty_like(x[:samples_in_a_slice(x)], dtype=accumulator(x))


def widened(part: Tensor, work: Tensor) -> Tensor:
    """A slice in the type of its workspace, in which it is put if it has another."""
    return part if part.dtype == work.dtype else work[:len(part)].copy_(part)


def shifted(part: Tensor, shift: Tensor, work: Tensor) -> Tensor:
    """part - shift, put in the slice's workspace."""
    return torch.sub(widened(part, work), shift, out=work[:len(part)])


def sums_of_samples(x: Tensor) -> Tensor:
    """The sum of each channel within each sample, shape (N, C, 1, 1).

    Threads divide this sum by samples, as they divide every element-wise operation, so each finds
    its data in its own core's cache. They would divide a sum over the samples by channels.
    """
    return x.sum((2, 3), keepdim=True)


def total(sums: list[Tensor]) -> Tensor:
    return torch.cat(sums).sum(0, keepdim=True)


class ShiftedSums:
    """`batch_statistics` in one pass: sums over d = x - shift and d^2, with a shift near the mean.

    The shift is the mean of an eighth of the first slice. As that is a part of the batch,
    (mean - shift)^2 is at most variance * N / (samples in it): only a few bits cancel in
    E[d^2] - E[d]^2.

    In half precision only the squares are shifted, which saves a pass: x has so few digits that
    float32 has enough of them for the sum of x as well.
    """

    def __init__(self, x: Tensor):
        self.n = x.numel() // x.size(1)
        self.work = workspace(x)
        few = x[:max(1, len(self.work) // 8)]
        self.shift = few.mean((0, 2, 3), keepdim=True, dtype=self.work.dtype)
        self.half = x.dtype != self.work.dtype
        self.left = self.shift if self.half else self.shift.new_zeros(())  # to subtract in squaring
        self.sums, self.sums_of_squares = [], []

    def add(self, part: Tensor) -> None:
        """Take in a slice of x."""
        part = widened(part, self.work) if self.half else shifted(part, self.shift, self.work)
        self.sums.append(sums_of_samples(part))
        squares = torch.ops.aten.mse_loss.out(part, self.left, 0, out=part)  # (part - left)^2
        self.sums_of_squares.append(sums_of_samples(squares))

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, its rounding error, and biased variance, shape (1, C, 1, 1)."""
        offset = total(self.sums) / self.n - self.left
        mean = self.shift + offset
        error = offset - (mean - self.shift)
        return mean, error, total(self.sums_of_squares) / self.n - offset.square()


def gradient_sums(x: Tensor, g: Tensor, mean: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """sum(g) and sum(g * (x - mean)), shape (1, C, 1, 1); `wide` has room for a slice."""
    work, sums_g, sums_gd = workspace(x), [], []
    for part, gradient in slices(x, g):
        gradient = widened(gradient, wide)
        sums_g.append(sums_of_samples(gradient))
        sums_gd.append(sums_of_samples(shifted(part, mean, work).mul_(gradient)))
    return total(sums_g), total(sums_gd)
