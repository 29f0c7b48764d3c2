"""What the faster functions ask of modules, and what they are tried on."""

import torch
from torch import Tensor, nn

from layers import BatchNorm2d, Dropout, Dropout2d

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


def block_trial(shape: tuple[int, ...], channels: int, kind: type, trains: bool, training: bool,
                device: torch.device) -> tuple[Tensor, list[nn.Module]]:
    """Pictures and modules of a CNN's block that no precision rounds, so that MaxPool takes the
    same: whole numbers, and weights of both signs that keep the values of a window apart."""
    conv = nn.Conv2d(shape[1], channels, 3)
    norm = BatchNorm2d(channels, track_running_stats=training or not trains)
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-1, 2, conv.weight.shape))
        conv.bias.copy_(torch.randint(-3, 4, conv.bias.shape))
        norm.weight.uniform_(1, 2)[::2] *= -1
        norm.bias.normal_()
        if norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(4, 16)
    modules = [conv, norm, nn.Identity() if kind is nn.Identity else kind(0.4)]
    for module in modules:
        module.to(device, memory_format=torch.channels_last).train(training)
    x = torch.randint(-2, 3, shape).float()
    return x.to(device, memory_format=torch.channels_last), modules
