"""Batch normalization in training with its derivative written out by hand.

Autograd differentiates the definition in layers/ step by step. `Normalize` gives the same in fewer
passes over memory. Let y = xhat * weight + bias, xhat = (x - mean) * r and
r = 1 / sqrt(variance + eps). For the gradient g of y, summed over the n values of a channel:

    d bias = sum(g)        d weight = sum(g * xhat)
    d x = weight * r * (g - sum(g) / n - xhat * sum(g * xhat) / n)

The last two terms come through mean and variance. They take out of the gradient what would shift or
scale the whole channel, as that has no effect.
"""

import torch
from torch import Tensor

from layers import BatchNorm, batch_norm, batch_statistics
from layers.functional import accumulator, all_but_channels, per_channel


def normalize(x: Tensor, norm: BatchNorm) -> Tensor:
    """norm(x) in training or evaluation, for a norm that does not detach its statistics."""
    if not norm.uses_batch_statistics():
        return norm(x)
    norm.check_input(x)
    y, mean, variance = Normalize.apply(x, norm.weight, norm.bias, norm.eps)
    norm.track(mean, variance, x.numel() // x.size(1))
    return y


class Normalize(torch.autograd.Function):
    """y, mean and variance. A large mean is rounded by much, so it is carried as two numbers:
    `mean`, and its `error`, the mean of x - mean."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        wide, dims = x.to(accumulator(x)), all_but_channels(x)
        mean = wide.mean(dims, keepdim=True)
        d = wide - mean
        error = d.mean(dims, keepdim=True)
        d -= error
        variance = d.square().mean(dims, keepdim=True)
        r = torch.rsqrt(variance + eps)
        scale = r if weight is None else r * per_channel(weight, x)
        y = d * scale if bias is None else torch.addcmul(per_channel(bias, x), d, scale)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, bias, mean, error, r, scale)
        mean, variance = (mean + error).flatten(), variance.flatten()
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx, g: Tensor, *_):
        x, weight, bias, mean, error, r, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted (create_graph=True)
            y, *_ = batch_norm_in_training(x, weight, bias, ctx.eps)
            return *differentiate(y, (x, weight, bias), g), None
        dims, n = all_but_channels(x), x.numel() // x.size(1)
        d, g = (x.to(mean.dtype) - mean).sub_(error), g.to(mean.dtype)  # d * r is xhat
        sum_g, sum_gxhat = g.sum(dims, keepdim=True), (g * d).sum(dims, keepdim=True) * r
        share = -scale / n
        dx = torch.addcmul(share * sum_g, d, share * sum_gxhat * r)  # through mean and variance
        dx.addcmul_(g, scale)
        return dx.to(x.dtype), *parameter_gradients(weight, bias, sum_g, sum_gxhat), None


def batch_norm_in_training(x: Tensor, weight: Tensor | None, bias: Tensor | None,
                           eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and variance by the definition, which PyTorch differentiates."""
    mean, variance = batch_statistics(x)
    return batch_norm(x, mean, variance, weight, bias, eps), mean, variance


def differentiate(y: Tensor, inputs: tuple[Tensor | None, ...], g: Tensor) -> list[Tensor | None]:
    """PyTorch's own gradients of `inputs`, which can be differentiated once more."""
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None
            for tensor in inputs]


def parameter_gradients(weight: Tensor | None, bias: Tensor | None, sum_g: Tensor,
                        sum_gxhat: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The sums in the parameters' shape and type (batched gradients reshape, but not flatten)."""
    return (None if weight is None else sum_gxhat.reshape(weight.shape).to(weight.dtype),
            None if bias is None else sum_g.reshape(bias.shape).to(bias.dtype))
