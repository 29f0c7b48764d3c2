"""The modules: parameters, running statistics, and a switch between training and evaluation.

Drop-in replacements for the torch.nn modules of the same names, but no subclasses. So tools that
search by class (swa_utils.update_bn, SyncBatchNorm.convert_sync_batchnorm) do not see them.
torch.compile, torch.export and torch.func work. Compiled, dropout draws other masks than in eager
mode; a network exported in training mode cannot be switched to evaluation. torch.jit.script
refuses them; torch.fx.symbolic_trace needs a tracer that takes them for leaves. docs/tools.md has
more.
"""

from functools import partial

import torch
from torch import Tensor, nn

from layers.functional import (
    accumulator,
    batch_norm,
    batch_statistics,
    dropout,
    gaussian_dropout,
)


class BatchNorm(nn.Module):
    """Batch normalization of (N, C, ...) over all dimensions but C.

        training:    y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
                     running_mean <- (1 - momentum) * running_mean + momentum * mean(x)
                     running_var  <- (1 - momentum) * running_var + momentum * var(x) * n / (n - 1)
        evaluation:  y = (x - running_mean) / sqrt(running_var + eps) * weight + bias

    var is the biased variance of a channel's n values, which normalizes them. The running variance
    stands for all data, of which a batch is a sample, so it follows the unbiased estimate. Running
    statistics are buffers: in the state_dict, but moved by no gradient. Evaluation uses them, as a
    prediction must not depend on the other images of its batch.

    The arguments are PyTorch's: `momentum` None averages over all batches, and without running
    statistics evaluation uses the batch's. With `detach_statistics`, for a study, mean and variance
    count as constants in the derivative. `check_input` raises the errors.
    """

    dimensions: tuple[int, ...]  # that an input may have
    _version = 2  # of its state_dict, as in PyTorch: num_batches_tracked came with 2

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, track_running_stats: bool = True, device=None, dtype=None, *,
                 bias: bool = True, detach_statistics: bool = False):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.detach_statistics = detach_statistics
        empty = partial(torch.empty, num_features, device=device, dtype=dtype)
        for name, wanted in (("weight", affine), ("bias", affine and bias)):
            self.register_parameter(name, nn.Parameter(empty()) if wanted else None)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, empty() if track_running_stats else None)
        count = torch.empty((), device=device, dtype=torch.long)
        self.register_buffer("num_batches_tracked", count if track_running_stats else None)
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

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        if self.uses_batch_statistics():
            seen = input.detach() if self.detach_statistics else input
            mean, variance = batch_statistics(seen)
            self.track(mean, variance, input.numel() // input.size(1))
        else:
            mean, variance = self.running_mean, self.running_var
        return batch_norm(input, mean, variance, self.weight, self.bias, self.eps)

    def uses_batch_statistics(self) -> bool:
        return self.training or self.running_mean is None

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running statistics towards those of a batch with `n` values per channel."""
        if not (self.training and self.track_running_stats):
            return
        momentum, count = self.momentum, self.num_batches_tracked
        if count is not None:
            count.add_(1)
        if n == 0 or self.running_mean is None:
            return  # an empty batch, or no running statistics
        if momentum is None:  # average over all batches; without their count do nothing
            momentum = 0 if count is None else 1 / float(count)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * (n / (n - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)

    def check_input(self, x: Tensor) -> None:
        """Raise PyTorch's errors for what does not fit, before anything is tracked."""
        if x.dim() not in self.dimensions:
            allowed = " or ".join(f"{n}D" for n in self.dimensions)
            raise ValueError(f"expected {allowed} input (got {x.dim()}D input)")
        if self.uses_batch_statistics() and x.numel() == x.size(1):
            raise ValueError(f"Expected more than 1 value per channel when training, got {x.shape}")
        if self.eps < 0 or self.training and self.eps == 0:
            raise ValueError(f"eps must be positive, in evaluation at least 0, but got {self.eps}")
        if not x.is_floating_point():
            raise NotImplementedError(f"batch_norm takes floating-point numbers, not {x.dtype}")
        if (self.running_mean is None) != (self.running_var is None):
            raise ValueError("running_mean and running_var must both be None or neither")
        for each in (self.weight, self.bias, self.running_mean, self.running_var):
            if each is not None and each.shape != (x.size(1),):
                raise RuntimeError(f"expected {len(each)} channels (got shape {tuple(x.shape)})")
            if each is not None and each.dtype not in (x.dtype, accumulator(x)):
                raise RuntimeError(f"mixed dtype: {x.dtype} in a layer with {each.dtype}")

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others) -> None:
        count = self.num_batches_tracked
        if count is not None and local_metadata.get("version", 1) < 2:  # saved without a count
            count = torch.zeros_like(count, device="cpu") if count.is_meta else count
            state_dict.setdefault(prefix + "num_batches_tracked", count)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    def extra_repr(self) -> str:
        return (f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine="
                f"{self.affine}, bias={self.bias is not None}, track_running_stats="
                f"{self.track_running_stats}" + self.detach_statistics * ", detach_statistics=True")


class BatchNorm1d(BatchNorm):
    """Batch normalization of (N, C), or of (N, C, L) over N and L: normalizes each feature."""

    dimensions = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch normalization of (N, C, H, W) over N, H and W: normalizes each feature map."""

    dimensions = (4,)


class Dropout(nn.Module):
    """In training, drop each value with probability `p` and divide the others by 1 - p.

    Takes any shape and returns it. Raises ValueError unless 0 <= p <= 1, at each call.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        self.p, self.inplace = p, inplace
        self.rate()

    def rate(self) -> float:
        """The probability with which it drops now: 0 in evaluation."""
        if not 0 <= self.p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {self.p}")
        return float(self.p) if self.training else 0.0

    def forward(self, input: Tensor) -> Tensor:
        if (p := self.rate()) == 0:
            return input
        y = dropout(input, p, self.mask_shape(input))
        return input.copy_(y) if self.inplace else y

    def mask_shape(self, x: Tensor) -> torch.Size:
        return x.shape

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class GaussianDropout(Dropout):
    """In training, multiply by Gaussian noise with the mean and variance of dropout's mask."""

    def forward(self, input: Tensor) -> Tensor:
        p = self.rate()
        return gaussian_dropout(input, p, self.mask_shape(input)) if p else input


class Dropout2d(Dropout):
    """In training, drop whole feature maps of (N, C, H, W) with probability `p`.

    Neighbouring values of a map tell nearly the same, so dropping single ones hides little
    (Tompson et al. 2015).
    """

    def mask_shape(self, x: Tensor) -> torch.Size:
        if x.dim() < 2:
            raise RuntimeError(f"Dropout2d needs at least 2 dimensions (got {x.dim()})")
        return torch.Size([*x.shape[:2], *[1] * (x.dim() - 2)])
