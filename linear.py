"""Linear layers at the full rate of a processor with AVX-512, whoever made it.

PyTorch leaves products of float32 matrices on a CPU to MKL, which makes no use of AVX-512 on processors of AMD. oneDNN,
to which PyTorch leaves convolutions, does: on Zen 5 a product takes half the time (bench/README.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FASTER = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def applies(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes the place of torch.nn.functional.linear."""
    return (FASTER and x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
            and x.dim() == 2 and x.size(1) == weight.size(1) and x.numel() > 0
            and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.t() + bias, shapes (N, F), (C, F) and (C,) → (N, C): torch.nn.functional.linear."""
    return OneDNNLinear.apply(x, weight, bias) if applies(x, weight) else F.linear(x, weight, bias)


class OneDNNLinear(torch.autograd.Function):
    """`linear`, whose derivatives are such products again. Forward-mode derivatives (torch.func.jvp) it has not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (linear(g, weight.t()) if ctx.needs_input_grad[0] else None,
                linear(g.t(), x.t()) if ctx.needs_input_grad[1] else None,
                g.sum(0) if ctx.needs_input_grad[2] else None)


class Linear(nn.Linear):
    """torch.nn.Linear, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
