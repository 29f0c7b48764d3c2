"""The modules: definitions with parameters, running statistics, and a switch between training and evaluation."""

import torch
from torch import Tensor, nn

from layers.functional import accumulator, batch_norm, batch_norm_in_training, batch_statistics, dropout, eager
from layers.normalize import Normalize


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
        detach_statistics: mean and variance count as constants in the derivative, for a study; the usual
            layer backpropagates through them

    Raises:
        ValueError: `x` has the wrong number of dimensions, or just one value per channel where the batch's
            statistics are used; `eps` is not positive (in evaluation 0 will do)
        RuntimeError: `x` has another number of channels than `num_features`; without weight and running
            statistics there is nothing that it would have to fit, and any number will do
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
                 track_running_stats: bool = True, device=None, dtype=None, *, bias: bool = True,
                 detach_statistics: bool = False):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.detach_statistics = detach_statistics

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
        elif self.detach_statistics:
            mean, variance = (each.detach() for each in batch_statistics(x.to(accumulator(x))))
            y = batch_norm(x, mean, variance, self.weight, self.bias, self.eps)
        else:  # a compiler or a transform gets the definition
            normalize = Normalize.apply if eager() else batch_norm_in_training
            y, mean, variance = normalize(x, self.weight, self.bias, self.eps)
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
                f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
                + self.detach_statistics * ", detach_statistics=True")


class BatchNorm1d(BatchNorm):
    """Batch normalization of (N, C), or of (N, C, L) over N and L: normalizes each of C features.

    A drop-in replacement for torch.nn.BatchNorm1d; see BatchNorm for formulas and arguments.
    """

    def check_dimensions(self, x: Tensor) -> None:
        if x.dim() not in (2, 3):
            raise ValueError(f"expected 2D or 3D input (got {x.dim()}D input)")


class BatchNorm2d(BatchNorm):
    """Batch normalization of (N, C, H, W) over N, H and W: normalizes each of C feature maps.

    A drop-in replacement for torch.nn.BatchNorm2d; see BatchNorm for formulas and arguments.
    """

    def check_dimensions(self, x: Tensor) -> None:
        if x.dim() != 4:
            raise ValueError(f"expected 4D input (got {x.dim()}D input)")


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
