"""When the kernels take PyTorch's place on a GPU, and whether they are right on this card.

Nobody can try every card, driver and version of triton. So each kind of block is tried on a small
input at its first use in a process, against its definition in float64, and a batch against
store/images.take, of which no bit may differ. Where it fails or differs, one line says so, and
it is computed without them.
"""

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.agreement import eager, say_slower
from fast.blocks import drop_rate
from fast.normalize import batch_norm_in_training
from layers import BatchNorm, Dropout, Dropout2d, batch_norm

DEVICE = "cuda"  # tests put "cpu" here, for triton's interpreter
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative error of a whole tensor
EPS = 1e-5


def cnn_block(x: Tensor, norm: nn.Module, dropout: nn.Module) -> Callable | None:
    """A function for x (N, C, H, W) through norm, ReLU, dropout and MaxPool, layers of ours.

    It takes x, norm and dropout. None where the kernels do not apply.
    """
    p = drop_rate(dropout)
    kind = "pool by value" if p and type(dropout) is Dropout else "pool"
    if (suits(x, norm) and x.dim() == 4 and min(x.shape[2:]) > 1
            and (norm.uses_batch_statistics() or p == 0 and not wants_gradient(x, norm))
            and works(kind, x.dtype, x.device)):
        return blocks().norm_relu_dropout_pool
    return None


def mlp_block(x: Tensor, norm: nn.Module, dropout: nn.Module) -> Callable | None:
    """A function for x (N, C) through norm, ReLU and dropout, in training.

    It takes lists of norms and dropouts: of one network, or of several whose x are stacked.
    """
    p = drop_rate(dropout)
    if (suits(x, norm) and norm.uses_batch_statistics() and x.dim() == 2
            and (p in (0, 1) or 1e-6 < p < 1 - 1e-6)  # torch.rand has 24 bits
            and type(dropout) is not Dropout2d and works("columns", x.dtype, x.device)):
        return blocks().norm_relu_dropout
    return None


def batch(images: Tensor, index: Tensor) -> Callable | None:
    """A function of images and an index into them that normalizes as store/images.take does."""
    if (on_gpu(images) and images.dtype == torch.uint8 and index.device == images.device
            and index.dtype == torch.int64 and index.is_contiguous()
            and images.is_contiguous(memory_format=memory_order(images))
            and works("batch", images.dtype, images.device)):
        return blocks().batch
    return None


def memory_order(images: Tensor) -> torch.memory_format:
    return torch.channels_last if images.dim() == 4 else torch.contiguous_format


def blocks() -> ModuleType:
    """fast/gpu/blocks.py, which needs triton; loaded when it is asked for."""
    return importlib.import_module("fast.gpu.blocks")


def on_gpu(x: Tensor) -> bool:  # the one of this process
    return (x.device.type == DEVICE
            and (DEVICE == "cpu" or x.get_device() == torch.cuda.current_device()))


def suits(x: Tensor, norm: nn.Module) -> bool:
    """Whether a kernel can take x, on a GPU, and the norm's parameters, in float32."""
    return (on_gpu(x) and x.dtype in TOLERANCE and 0 < x.numel() < 2 ** 31
            and isinstance(norm, BatchNorm) and not norm.detach_statistics and eager()
            and all(values.dtype == torch.float32 and values.device == x.device
                    and values.is_contiguous()
                    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
                    if values is not None))


def wants_gradient(x: Tensor, norm: BatchNorm) -> bool:
    return torch.is_grad_enabled() and any(
        values is not None and values.requires_grad for values in (x, norm.weight, norm.bias))


@cache
def works(kind: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels of a kind agree with their definition; a line on stderr if not."""
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            fault = (difference_of_batch(device) if kind == "batch" else
                     difference(kind, dtype, device))
    except Exception as error:  # no triton, no compiler, a card that it does not know
        fault = error
    if fault:
        say_slower(f"the GPU kernels for '{kind}' in {dtype} are not used", fault)
    return not fault


def difference(kind: str, dtype: torch.dtype, device: torch.device) -> str:
    """The first result of the kernels that is not the definition's, in words; empty if none."""
    def on(values: Tensor) -> Tensor:
        return values.to(device)

    random, p, pools = torch.Generator().manual_seed(0), 0.4, kind != "columns"
    shape = (5, 32, 7, 6) if pools else (2, 33, 36)  # two networks side by side
    x = (torch.randn(shape, generator=random) * 2 + 5).to(dtype)
    weight, bias = torch.randn(2, 32 if pools else 72, generator=random)
    uniform = torch.rand((5, 32, 1, 1) if pools else (33, 36), generator=random)
    seed = torch.tensor([2 ** 40 + 7])
    mask = kept_by_value(seed, p, shape) if kind == "pool by value" else uniform < 1 - p
    function, others = {
        "columns": (blocks().NormRelu, (*on(torch.tensor([[EPS] * 2, [1 - p] * 2])), on(uniform))),
        "pool": (blocks().NormReluPool, (EPS, p, on(mask).to(dtype), None)),
        "pool by value": (blocks().NormReluPool, (EPS, p, None, on(seed)))}[kind]

    def definition(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        norm = batch_norm_in_training if pools else normalize_each
        y, mean, variance = norm(x, weight, bias, EPS)
        y = F.relu(y) * mask / (1 - p)
        return F.max_pool2d(y, 2) if pools else y, mean, variance

    expected = step(definition, x.double(), weight.double(), bias.double())
    dense = x.contiguous(memory_format=torch.channels_last) if pools else x
    found = step(lambda *own: function.apply(*own, *others), on(dense), on(weight), on(bias))
    if kind == "pool":
        statistics = [expected["mean"].float(), expected["variance"].float()]
        plain = batch_norm(x.double(), *statistics, weight, bias, EPS)
        expected["evaluation"] = F.max_pool2d(F.relu(plain), 2)
        found["evaluation"] = blocks().evaluated(*map(on, (x, *statistics, weight, bias)), EPS)
    for name, value in expected.items():
        error = (found[name].detach().cpu().double().view_as(value) - value).norm() / value.norm()
        if not error < TOLERANCE[dtype]:
            return f"{name} is off by {error:.1g}"
    return ""


def difference_of_batch(device: torch.device) -> str:
    """How the kernel's batch is not `take`'s, in words; empty if it is."""
    from load_data import Split  # not at the top: a network needs no data set
    from store.images import take

    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=random).to(device)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    index = torch.tensor([3, 0, 4, 3], device=device)
    expected, _ = take(Split(pictures, pictures), index)
    return "" if torch.equal(blocks().batch(pictures, index), expected) else "values differ"


def step(function: Callable, *inputs: Tensor) -> dict[str, Tensor]:
    """What a block computes in training, and the gradients for some gradient of y."""
    inputs = [values.requires_grad_() for values in inputs]
    y, mean, variance = function(*inputs)
    g = torch.arange(y.numel(), device=y.device).view(y.shape).cos().to(y.dtype)
    gradients = torch.autograd.grad(y, inputs, g)
    return dict(zip(("y", "mean", "variance", "dx", "dweight", "dbias"),
                    (y, mean, variance, *gradients), strict=True))


# Networks side by side, and the masks that the CNN's kernel draws


def normalize_each(x: Tensor, weight: Tensor | None, bias: Tensor | None,
                   eps: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm_in_training` of networks on their own: (N, C) or (networks, N, C)."""
    N, C = x.shape[-2:]
    side_by_side = x.reshape(-1, N, C).transpose(0, 1).flatten(1)  # (N, networks * C)
    y, *statistics = batch_norm_in_training(side_by_side, weight, bias, eps)
    return y.unflatten(1, (-1, C)).transpose(0, 1).reshape(x.shape), *statistics


def kept_by_value(seed: Tensor, p: float, shape: tuple[int, ...]) -> Tensor:
    """Which values of (N, C, H, W) stay: one of Philox's four numbers for each in a 2x2 window."""
    N, C, H, W = shape
    index = torch.arange(N * C * (H // 2) * (W // 2)).view(N, H // 2, W // 2, C)
    mask = torch.stack(philox(seed.item(), index)) >> 1 >= round(p * 2 ** 31)
    mask = mask.view(2, 2, *index.shape).permute(2, 5, 3, 0, 4, 1).flatten(4).flatten(2, 3)
    return F.pad(mask, (0, W % 2, 0, H % 2), value=True)  # MaxPool takes none of an odd edge


def philox(seed: int, index: Tensor) -> tuple[Tensor, ...]:
    """Philox-4x32-10 of the counter (index, 0, 0, 0), as int64: Salmon et al. 2011."""
    whole = 2 ** 32 - 1
    a, b, c, d = index, *[torch.zeros_like(index)] * 3
    for i in range(10):
        keys = (seed & whole) + i * 0x9E3779B9, (seed >> 32) + i * 0xBB67AE85
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = ((right >> 32 ^ b ^ keys[0]) & whole, right & whole,
                      (left >> 32 ^ d ^ keys[1]) & whole, left & whole)
    return a, b, c, d
