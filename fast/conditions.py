"""What the faster functions ask of modules."""

import torch
from torch import Tensor, nn

from layers import Dropout, Dropout2d

DROPOUTS = (nn.Identity, Dropout, Dropout2d)


def there(device: torch.device, dtype: torch.dtype, *vectors: Tensor | None) -> bool:
    """Whether all lie on the device, in that type. A loop, as it is asked in every step."""
    for values in vectors:
        if values is not None and (values.device != device or values.dtype != dtype):
            return False
    return True


def normalizes(norm: nn.Module, size: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether it is one of ours, whole, on the device, for `size` channels."""
    mean, variance = map(norm._buffers.get, ("running_mean", "running_var"))
    own = *norm._parameters.values(), mean, variance  # norm.weight takes five times as long
    for values in own:
        if values is not None and (values.stride() != (1,) or values.numel() != size):
            return False
    return (norm.eps > 0 and not norm.detach_statistics and (mean is None) == (variance is None)
            and there(device, dtype, *own))


def drops(dropout: nn.Module) -> bool:
    return type(dropout) in DROPOUTS and not getattr(dropout, "inplace", False)


def drop_rate(dropout: nn.Module) -> float:
    """The probability with which it drops now."""
    return 0.0 if type(dropout) is nn.Identity else dropout.rate()


def convolves(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is plain, and gives at least one window for MaxPool."""
    plain = (conv.stride == conv.dilation == (1, 1) and conv.padding == (0, 0)
             and conv.groups == 1 and conv.padding_mode == "zeros")
    height, width = conv.kernel_size
    return (plain and x.dim() == 4 and x.size(1) == conv.in_channels
            and x.size(2) > height and x.size(3) > width)
