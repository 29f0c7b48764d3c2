"""Batch normalization and dropout: the mathematics, written once, for both networks.

`batch_statistics`, `batch_norm` and `dropout` are the definitions, in plain tensor operations. `BatchNorm`,
`Dropout` and `Dropout2d` are the modules, which take the place of the PyTorch modules of the same names and do
one thing in training and another in evaluation, switched by `self.training`:

                    training                                     evaluation
    BatchNorm       the batch's mean and variance; tracks them   the tracked (running) mean and variance
    Dropout         drops each value with probability p          nothing
    Dropout2d       drops each feature map with probability p    nothing

Between them stands `Normalize`: the definition in training once more, with its derivative written out. It is what
trains, where fused.py does not take its place as well; the definition is what both are tested against, what evaluates,
and what a compiler gets.
"""

import torch
from torch import Tensor, nn


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Give `values`, shape (C,), a shape that meets the channels of `x`, shape (N, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def all_but_channels(x: Tensor) -> list[int]:
    """The dimensions of `x`, shape (N, C, ...), but C."""
    return [0, *range(2, x.dim())]


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, shapes (C,), of each channel of `x`, shape (N, C, ...).

    The mean is subtracted before squaring. E[x^2] - E[x]^2 would need one pass less, but with a large mean
    the two terms agree in all their digits, and nothing of the variance is left.
    """
    dims = all_but_channels(x)
    mean = x.mean(dims, keepdim=True)
    return mean.flatten(), (x - mean).square().mean(dims)


def batch_norm(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None,
               eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias for each channel: Ioffe and Szegedy 2015, algorithm 1.

    `x` and the result have the shape (N, C, ...), all the others (C,). Half precision is computed in float32.
    """
    mean, variance = mean.to(accumulator(x)), variance.to(accumulator(x))
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    y = (x - per_channel(mean, x)) * per_channel(scale, x)
    if bias is not None:
        y = y + per_channel(bias, x)
    return y.to(x.dtype)


def batch_norm_in_training(x: Tensor, weight: Tensor | None, bias: Tensor | None,
                           eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm` with the `batch_statistics` of `x` itself; returns the result, mean and variance."""
    mean, variance = batch_statistics(x.to(accumulator(x)))
    return batch_norm(x, mean, variance, weight, bias, eps), mean, variance


def dropout(x: Tensor, p: float, shape: torch.Size) -> Tensor:
    """Set values of `x` to zero with probability `p` and divide the others by 1 - p.

    Every value keeps its expectation, so that evaluation has nothing to do. (Srivastava et al. 2014 scale in
    evaluation instead; this "inverted" form is today's usual one.) `shape` is that of the mask: with ones in
    it, all values along those dimensions are dropped or kept together.
    """
    if p == 0:
        return x
    return x * kept(x, p, shape).div_(1 - p) if p < 1 else x * 0


def kept(x: Tensor, p: float, shape: torch.Size) -> Tensor:
    """1 with probability 1 - p, else 0; of the given shape, with dtype and memory order of `x`."""
    mask = torch.empty_like(x) if shape == x.shape else x.new_empty(shape)
    if p in (0, 1):
        return mask.fill_(1 - p)
    if x.device.type == "cpu" and 0.001 < p < 0.999 and not torch.compiler.is_compiling():
        # A CPU draws random bits seven times faster than bernoulli_ draws its values: 16 of them decide over
        # one value, which keeps the rate to within 1 / 131072, too coarse for a rate near 0 or 1.
        bits = torch.empty(mask.numel() // 4 + 1, dtype=torch.int64).random_(-(2 ** 63), None).view(torch.int16)
        bits = bits.as_strided(mask.shape, mask.stride())
        return mask.copy_(bits.lt_(round((1 - p) * 65536) - 32768))  # in place is vectorized, to bool is not
    return mask.bernoulli_(1 - p)


def accumulator(x: Tensor) -> torch.dtype:
    """Statistics of half-precision data are computed and kept in float32."""
    return torch.promote_types(x.dtype, torch.float32)


class Normalize(torch.autograd.Function):
    """`batch_norm_in_training`, with its derivative written out: fewer passes over memory than one found step by step.

    With xhat = (x - mean) * r, r = 1 / sqrt(variance + eps), y = xhat * weight + bias and the gradient g of y,
    over the n values of a channel:

        d bias = sum(g)        d weight = sum(g * xhat)
        d x = weight * r * (g - sum(g) / n - xhat * sum(g * xhat) / n)

    The last two terms are there because mean and variance depend on x too: a gradient that would shift or
    scale the whole channel has no effect and is taken out.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        wide, dims = x.to(accumulator(x)), all_but_channels(x)
        mean = wide.mean(dims, keepdim=True)
        d = wide - mean
        error = d.mean(dims, keepdim=True)  # the sum of many large values is rounded by much
        mean += error
        d -= error
        variance = d.square().mean(dims, keepdim=True)
        r = torch.rsqrt(variance + eps)
        scale = r if weight is None else r * per_channel(weight, x)
        y = d * scale if bias is None else torch.addcmul(per_channel(bias, x), d, scale)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, bias, mean, r, scale)
        mean, variance = mean.flatten(), variance.flatten()
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx, g: Tensor, *_):
        x, weight, bias, mean, r, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *differentiate(batch_norm_in_training(x, weight, bias, ctx.eps)[0], (x, weight, bias), g), None
        dims, n = all_but_channels(x), x.numel() // x.size(1)
        d, g = x.to(mean.dtype) - mean, g.to(mean.dtype)
        sum_g, sum_gxhat = g.sum(dims, keepdim=True), (g * d).sum(dims, keepdim=True) * r
        share = -scale / n
        dx = torch.addcmul(share * sum_g, d, share * sum_gxhat * r)  # what runs through mean and variance
        dx.addcmul_(g, scale)
        return dx.to(x.dtype), *parameter_gradients(weight, bias, sum_g, sum_gxhat), None


def differentiate(y: Tensor, inputs: tuple[Tensor | None, ...], g: Tensor) -> list[Tensor | None]:
    """The gradients of `inputs`, left to PyTorch, so that they can be differentiated once more.

    A backward function runs with gradients enabled when a second derivative is wanted (create_graph=True).
    """
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    gradients = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
    return [next(gradients) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


def parameter_gradients(weight: Tensor | None, bias: Tensor | None, sum_g: Tensor, sum_gxhat: Tensor):
    return (None if weight is None else sum_gxhat.flatten().to(weight.dtype),
            None if bias is None else sum_g.flatten().to(bias.dtype))


class BatchNorm(nn.Module):
    """Batch normalization of (N, C, ...) over all dimensions but C; the base of BatchNorm1d and BatchNorm2d.

        training:     y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
                      running_mean <- (1 - momentum) * running_mean + momentum * mean(x)
                      running_var  <- (1 - momentum) * running_var  + momentum * var(x) * n / (n - 1)
        evaluation:   y = (x - running_mean) / sqrt(running_var + eps) * weight + bias

    n is the number of values per channel, var the biased variance. The batch is what it is, so it is
    normalized by its own, biased, variance; the running variance stands for all data, of which the batch is
    a sample, and so it follows the unbiased estimate, var * n / (n - 1).

    The running statistics are buffers: part of the state_dict, but no parameters, so no gradient step moves
    them. Why evaluation must not use the batch's statistics: a prediction would depend on what other images
    happen to be in the batch.

    Derivatives of any order come from torch.autograd; the transforms of torch.func are not supported.

    Args:
        num_features: C
        eps: added to the variance, so that a constant channel does not divide by zero
        momentum: weight of the newest batch in the running statistics; None: their plain average so far
        affine: learn weight and bias, initially 1 and 0
        track_running_stats: keep running statistics; without them evaluation uses the batch's as well
        bias: with affine, learn the bias

    Raises:
        ValueError: `x` has the wrong number of dimensions, or just one value per channel where the batch's
            statistics are used; `eps` is not positive (in evaluation 0 will do)
        RuntimeError: `x` has another number of channels than `num_features`; without weight and running
            statistics there is nothing that it would have to fit, and any number will do
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
                 track_running_stats: bool = True, device=None, dtype=None, *, bias: bool = True):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats

        def parameter(wanted: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if wanted else None

        def buffer(dtype, shape) -> Tensor | None:
            return torch.empty(shape, device=device, dtype=dtype) if track_running_stats else None

        self.register_parameter("weight", parameter(affine))
        self.register_parameter("bias", parameter(affine and bias))
        self.register_buffer("running_mean", buffer(dtype, num_features))
        self.register_buffer("running_var", buffer(dtype, num_features))
        self.register_buffer("num_batches_tracked", buffer(torch.long, ()))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def check_dimensions(self, x: Tensor) -> None:
        """Raise ValueError unless `x` has a number of dimensions that the layer takes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if not self.uses_batch_statistics():
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)
        if x.numel() == 0:
            mean, variance = torch.zeros_like(x[:1].sum()).expand(2, x.size(1))
            y = batch_norm(x, mean, variance, self.weight, self.bias, self.eps)
        elif torch.compiler.is_compiling():  # the compiler fuses the definition by itself
            y, mean, variance = batch_norm_in_training(x, self.weight, self.bias, self.eps)
        else:
            y, mean, variance = Normalize.apply(x, self.weight, self.bias, self.eps)
        self.track(mean, variance, x.numel() // x.size(1))
        return y

    def uses_batch_statistics(self) -> bool:
        return self.training or self.running_mean is None

    def check_input(self, x: Tensor) -> None:
        self.check_dimensions(x)
        if self.uses_batch_statistics() and x.numel() == x.size(1):
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        if self.eps < 0 or self.training and self.eps == 0:
            raise ValueError(f"batch_norm eps must be positive, in evaluation at least 0, but got {self.eps}")
        per_feature = self.running_mean if self.weight is None else self.weight
        if per_feature is not None and x.size(1) != self.num_features:
            raise RuntimeError(f"expected {self.num_features} channels (got input of shape {tuple(x.shape)})")

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running statistics towards those of a batch with `n` values per channel."""
        if not (self.training and self.track_running_stats):
            return
        self.num_batches_tracked.add_(1)
        if n == 0 or self.running_mean is None:
            return  # nothing was seen, or nobody wants to know
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * (n / (n - 1))).to(self.running_var.dtype), momentum)

    def extra_repr(self) -> str:
        return (f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
                f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}")


class Dropout(nn.Module):
    """In training, drop each value with probability `p` and divide the others by 1 - p; else do nothing.

    Takes any shape. Raises ValueError unless 0 <= p <= 1.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        y = dropout(x, self.p, self.mask_shape(x))
        return x.copy_(y) if self.inplace else y

    def mask_shape(self, x: Tensor) -> torch.Size:
        return x.shape

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Dropout2d(Dropout):
    """In training, drop whole feature maps of (N, C, H, W) with probability `p` (Tompson et al. 2015).

    Neighbouring values of a feature map tell nearly the same, so dropping some of them one by one hides little.
    """

    def mask_shape(self, x: Tensor) -> torch.Size:
        if x.dim() < 2:
            raise RuntimeError(f"Dropout2d takes inputs with at least 2 dimensions (got {x.dim()})")
        return torch.Size([*x.shape[:2], *[1] * (x.dim() - 2)])
