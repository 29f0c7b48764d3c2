"""What the tests of layers and networks share: devices, and one step of a module as a dict of tensors to compare."""

import inspect

import pytest
import torch
from torch import Tensor, nn

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device here")),
]

VIEWS = [lambda x: x[::2], lambda x: x.transpose(0, 3), lambda x: x[:, :1].expand(-1, 4, -1, -1),
         lambda x: x.permute(0, 2, 1, 3)[..., 1:]]  # of (4, 4, 4, 4), none of them dense in memory


def normal(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Normal values that depend on shape and seed alone, drawn beside the default generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with normal parameters, about half of them negative."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(parameter.shape, seed + i, device=parameter.device))
    return module


def step(module: nn.Module, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Forward and backward with some gradient of the result: y, the gradient of x and parameters, and the buffers."""
    x = x.detach().requires_grad_()
    torch.manual_seed(seed)
    y = module(x)
    names, parameters = zip(("x", x), *module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, parameters, normal(y.shape, seed, y.dtype, y.device))
    return ({"y": y.detach()} | {f"d {name}": gradient for name, gradient in zip(names, gradients, strict=True)}
            | {name: buffer.clone() for name, buffer in module.named_buffers()})


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float | None = None,
                atol: float | None = None) -> None:
    """Same names in the same order, same shapes and dtypes, and values within the tolerance."""
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=rtol, atol=atol, msg=lambda s, name=name: f"{name}: {s}")


def assert_same_signature(ours: type, theirs: type) -> None:
    """`ours` takes what `theirs` takes; an older version of PyTorch may lack the last arguments."""
    ours, theirs = (inspect.signature(each).parameters for each in (ours, theirs))
    assert list(ours)[:len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert (parameter.kind, parameter.default) == (ours[name].kind, ours[name].default), name


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {torch.float64: {"rtol": 1e-7, "atol": 1e-8}, torch.float32: {"rtol": 1e-3, "atol": 3e-4},
            torch.float16: {"rtol": 5e-3, "atol": 5e-3}, torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2}}[dtype]


def assert_as_accurate(ours: nn.Module, theirs: nn.Module, truth: nn.Module, x: Tensor, factor: float = 2) -> None:
    """The error of `ours` against `truth`, in float64, is at most `factor` times that of `theirs`, on average."""
    assert_results_as_accurate(step(ours, x), step(theirs, x), step(truth.double(), x.double()), factor)


def assert_results_as_accurate(ours: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor],
                               factor: float = 2) -> None:
    for name, value in truth.items():
        error, other = ((found[name].double() - value).square().mean().sqrt().item() / (1 + value.abs().max())
                        for found in (ours, theirs))
        assert error <= factor * other + 1e-6, (name, error, other)
