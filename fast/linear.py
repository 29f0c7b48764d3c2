"""Linear layers at the full rate of a processor of AMD with AVX-512.

PyTorch leaves products of float32 matrices on a CPU to MKL, which makes no use of AVX-512 on AMD's
processors. oneDNN, which computes PyTorch's convolutions, does: on Zen 5 a product takes half the
time. On Intel's processors MKL is the faster one, and PyTorch is left alone (bench/README.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.agreement import eager
from fast.processor import processor

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # it has no public name
FASTER = torch.backends.cpu.get_cpu_capability() == "AVX512" and "Intel" not in processor()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.t() + bias, (N, F), (C, F) and (C,) → (N, C): torch.nn.functional.linear."""
    return (OneDNNLinear.apply if applies(x, weight, bias) else F.linear)(x, weight, bias)


def applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN can take these inputs; F.linear takes the rest.

    F.linear also takes what a mode watches, such as FlopCounterMode, which knows its products.
    """
    return (ONEDNN and FASTER and torch.backends.mkldnn.enabled and eager()
            and not torch.is_autocast_enabled("cpu") and not torch._C._len_torch_dispatch_stack()
            and all(type(each) in (Tensor, nn.Parameter) and each.device.type == "cpu"
                    and each.layout == torch.strided and each.dtype == torch.float32
                    for each in (x, weight, bias) if each is not None)
            and x.dim() == weight.dim() == 2 and x.size(1) == weight.size(1) and x.numel() > 0
            and (bias is None or bias.shape == weight.shape[:1]))


class OneDNNLinear(torch.autograd.Function):
    """`linear`, whose derivatives are such products again."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        bias = None if bias is None else bias.contiguous()
        return torch.ops.mkldnn._linear_pointwise(x, dense(weight), bias, "none", [], "")

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (linear(g, weight.t()) if ctx.needs_input_grad[0] else None,
                linear(g.t(), x.t()) if ctx.needs_input_grad[1] else None,
                g.sum(0) if ctx.needs_input_grad[2] else None)


def dense(weight: Tensor) -> Tensor:
    """A matrix that lies row by row or column by column, as the operator needs its second one."""
    return weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
