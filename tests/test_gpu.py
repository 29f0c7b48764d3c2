"""The kernels of fast/gpu/ against definitions in float64: on a card, or in triton's interpreter.

The interpreter is numpy underneath: it shows wrong numbers, but no races, no alignment, no speed.
"""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from apart import DEVICE, on_kernels
from comparison import normal
from in_process import build, random_data, settings_of, untimed
from torch import Tensor, nn

from lab.side_by_side import SideBySide
from layers import BatchNorm1d, BatchNorm2d, Dropout, Dropout2d
from layers.functional import dropout_mask
from store.images import prepared
from training import Trainer

DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 1e-2}  # the interpreter truncates to bfloat16
ODD = (3, 70, 5, 7)  # of several programs, the last ones not full


class Given(nn.Module):
    """A convolution, all but its bias done already."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_parameter("weight", None)
        self.bias = nn.Parameter(normal((channels,), 4))

    def _conv_forward(self, x: Tensor, weight: None, bias: None) -> Tensor:
        return x


def relative(found: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    norm = expected.norm().item()
    return (found.detach().cpu().double() - expected).norm().item() / (norm or 1)


def assert_near(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    errors = {name: relative(found[name], value) for name, value in expected.items()}
    assert all(error <= tolerance for error in errors.values()), errors


def inputs(shape: tuple, dtype: torch.dtype, mean: float = 0.0) -> tuple[Tensor, nn.Module]:
    """A batch, and a norm with weights of both signs and a zero."""
    norm = (BatchNorm2d if len(shape) == 4 else BatchNorm1d)(shape[1], eps=0.1)
    with torch.no_grad():
        norm.weight.copy_(normal(shape[1:2], 1))
        norm.bias.copy_(normal(shape[1:2], 2))
        norm.weight[0], norm.bias[0] = 0, 1
    return (normal(shape) * 2 + mean).to(dtype), norm


def results(function, x: Tensor, *modules: nn.Module) -> dict[str, Tensor]:
    """What `function` makes of x and modules, and its gradients for some gradient of the result."""
    x = x.detach().requires_grad_()
    y = function(x, *modules)
    own = {name: value for module in modules for name, value in module.named_parameters(
        prefix=type(module).__name__)}
    gradients = torch.autograd.grad(y, (x, *own.values()), normal(y.shape, 3, y.dtype, str(y.device)))
    tracked = {name: value.clone() for module in modules for name, value in module.named_buffers()}
    return {"y": y, "dx": gradients[0], **dict(zip(own, gradients[1:], strict=True)), **tracked}


def pool_block(x: Tensor, norm: nn.Module, dropout: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    from fast.gpu.blocks import norm_relu_dropout_pool

    x, norm = x.to(DEVICE).contiguous(memory_format=torch.channels_last), norm.to(DEVICE)
    torch.manual_seed(seed)
    return results(norm_relu_dropout_pool, x, Given(x.size(1)).to(DEVICE), norm, dropout)


def plain_pool_block(x: Tensor, norm: nn.Module, mask: Tensor | float) -> dict[str, Tensor]:
    """The definition in float64; the bias before the normalization has no gradient."""
    norm, given = norm.to("cpu", torch.float64), Given(x.size(1)).double()
    norm.reset_running_stats()
    found = results(lambda x, given, norm: F.max_pool2d(
        F.relu(norm(x + given.bias[:, None, None])) * mask, 2), x.cpu().double(), given, norm)
    assert found["Given.bias"].abs().max() < 1e-12
    return found | {"Given.bias": torch.zeros(x.size(1))}


def drawn_mask(x: Tensor, dropout: nn.Module, seed: int = 0) -> Tensor | float:
    """The mask that the modules draw after manual_seed(seed), divided by 1 - p."""
    torch.manual_seed(seed)
    p = dropout.p if isinstance(dropout, Dropout) else 0.0
    if p in (0, 1):
        return 1.0 - p
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.to(DEVICE)
    return dropout_mask(x, p, dropout.mask_shape(x)).cpu().double() / (1 - p)


# The CNN's block

KINDS = [nn.Identity(), Dropout2d(0.3), Dropout(0.3)]
CASES = [*((shape, dropout, torch.float32)
           for shape in ((6, 16, 8, 8), (1, 5, 6, 3)) for dropout in KINDS),
         *(((2, 5, 5, 6), kind(p), torch.float32)
           for kind in (Dropout, Dropout2d) for p in (0.0, 1e-6, 0.999, 1.0)),
         *((ODD, dropout, dtype) for dropout in KINDS for dtype in DTYPES)]


@pytest.mark.parametrize("shape, dropout, dtype", CASES, ids=str)
@on_kernels
def test_cnn_block(shape, dropout, dtype):
    x, norm = inputs(shape, dtype)
    found = pool_block(x, norm, dropout)
    expected = plain_pool_block(x, norm, drawn_mask(x, dropout))
    assert_near(found, expected, ROUNDING[dtype])


@on_kernels
def test_cnn_block_whose_programs_take_several_rounds():
    """As in training; and more blocks of windows than one program for each."""
    from fast.gpu import kernels

    assert (2 if DEVICE == "cpu" else 512) == kernels.MOST_PROGRAMS
    n = kernels.MOST_PROGRAMS * kernels.WINDOWS * 5 // (2 * 9)
    x, norm = inputs((n, 20, 5, 6), torch.float32)
    found = pool_block(x, norm, Dropout2d(0.3))
    assert_near(found, plain_pool_block(x, norm, drawn_mask(x, Dropout2d(0.3))), 3e-6)


@pytest.mark.parametrize("mean", [1e4, -300.0])
@on_kernels
def test_cnn_block_with_a_large_mean_loses_no_digits(mean):
    """PyTorch's layer, which keeps the mean in float32, is off by 1e-4 at 10 000."""
    x, norm = inputs((4, 8, 8, 8), torch.float32, mean)
    found = pool_block(x, norm, nn.Identity())
    assert_near(found, plain_pool_block(x, norm, 1.0), 1e-6)


@pytest.mark.parametrize("affine, bias", [(False, False), (True, False)])
@on_kernels
def test_cnn_block_without_weight_or_bias(affine, bias):
    x, _ = inputs((4, 8, 6, 6), torch.float32)
    norm = BatchNorm2d(8, affine=affine, bias=bias)
    found = pool_block(x, norm, Dropout2d(0.3))
    assert_near(found, plain_pool_block(x, norm, drawn_mask(x, Dropout2d(0.3))), 3e-6)


@on_kernels
def test_cnn_block_takes_any_memory_order_also_of_what_it_saved():
    """save_on_cpu gives saved tensors back in another one."""
    from fast.gpu.blocks import norm_relu_dropout_pool

    x, norm = inputs((4, 8, 6, 6), torch.float32)
    x, norm, given = x.to(DEVICE), norm.to(DEVICE), Given(8).to(DEVICE)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda values: values.clone(memory_format=torch.contiguous_format), lambda values: values)
    dense = x.contiguous(memory_format=torch.channels_last)
    first, *others = [results(norm_relu_dropout_pool, dense, given, norm, nn.Identity())]
    for hook, values in ((contextlib.nullcontext(), x), (hooks, dense), (contextlib.nullcontext(),
                         dense.transpose(2, 3).contiguous().transpose(2, 3))):
        with hook:
            others.append(results(norm_relu_dropout_pool, values, given, norm, nn.Identity()))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first if "." in name or len(name) < 3)


@pytest.mark.parametrize("kind", [Dropout, Dropout2d])
@on_kernels
def test_a_step_repeats_bit_for_bit_and_another_seed_drops_others(kind):
    x, _ = inputs((3, 20, 5, 7), torch.float32)
    one, same, other = (pool_block(x, BatchNorm2d(20), kind(0.5), seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["y"] == 0, other["y"] == 0)


@pytest.mark.parametrize("training", [True, False])
@on_kernels
def test_a_value_that_is_not_a_number_shows(training):
    from fast.gpu.blocks import norm_relu_dropout_pool

    x, norm = inputs((2, 8, 4, 4), torch.float32)
    x[1, 3, 2, 2] = torch.nan
    norm.to(DEVICE).train(training)
    with torch.no_grad():
        y = norm_relu_dropout_pool(x.to(DEVICE), Given(8).to(DEVICE), norm, nn.Identity())
    assert y[1, 3, 1, 1].isnan() and y[:, :3].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@on_kernels
def test_cnn_block_in_evaluation(dtype):
    from fast.gpu.blocks import norm_relu_dropout_pool

    x, norm = inputs((3, 70, 7, 6), dtype)
    norm.running_mean.copy_(normal((70,), 4))
    norm.running_var.copy_(normal((70,), 5).square())
    norm, given = norm.to(DEVICE).eval(), Given(70).to(DEVICE)
    with torch.no_grad():
        found = norm_relu_dropout_pool(x.to(DEVICE), given, norm, Dropout2d(0.3).eval())
        x = x.double() + given.bias.cpu().double()[:, None, None]
        expected = F.max_pool2d(F.relu(norm.to("cpu", torch.float64)(x)), 2)
    assert relative(found, expected) < ROUNDING[dtype]


# The MLP's


def hidden(x: Tensor, norm: nn.Module, dropout: nn.Module) -> dict[str, Tensor]:
    from fast.gpu.blocks import norm_relu_dropout

    torch.manual_seed(0)
    return results(norm_relu_dropout, x.to(DEVICE), norm.to(DEVICE), dropout)


@pytest.mark.parametrize("p, dtype", [(0.0, torch.float32), (1e-5, torch.float32), (0.3, torch.float32),
                                      (0.3, torch.bfloat16), (1.0, torch.float32)], ids=str)
@pytest.mark.parametrize("shape", [(70, 10), (1030, 3), (600, 5)], ids=str)
@on_kernels
def test_mlp_block(shape, p, dtype):
    x, norm = inputs(shape, dtype, mean=1e4 if dtype == torch.float32 else 0.0)
    found = hidden(x, norm, Dropout(p))
    mask, norm = drawn_mask(x, Dropout(p)), norm.to("cpu", torch.float64)
    norm.reset_running_stats()
    expected = results(lambda x, norm: F.relu(norm(x)) * mask, x.double(), norm)
    assert_near(found, expected, ROUNDING[dtype] * 3)


# Derivatives by PyTorch


def second(function, x: Tensor, norm: nn.Module) -> dict[int, Tensor]:
    """Gradients of a function of the gradients."""
    x = x.detach().requires_grad_()
    y = function(x)
    first = torch.autograd.grad(y, (x, norm.weight), normal(y.shape, 3, y.dtype, str(y.device)),
                                create_graph=True)
    return dict(enumerate(torch.autograd.grad(sum(each.square().sum() for each in first),
                                              (x, norm.weight))))


@pytest.mark.parametrize("kind, shape", [(Dropout, (3, 8, 5, 6)), (Dropout2d, (3, 8, 5, 6)),
                                         (Dropout, (20, 5))])
@on_kernels
def test_second_derivatives(kind, shape):
    from fast.gpu.blocks import norm_relu_dropout, norm_relu_dropout_pool

    (x, norm), dropout, given = inputs(shape, torch.float32), kind(0.3), Given(shape[1]).to(DEVICE)
    norm.to(DEVICE)
    torch.manual_seed(0)
    found = second(lambda x: norm_relu_dropout(x, norm, dropout) if x.dim() == 2 else
                   norm_relu_dropout_pool(x, given, norm, dropout), x.to(DEVICE), norm)
    mask, norm = drawn_mask(x, dropout), norm.to("cpu", torch.float64)
    expected = second(lambda x: F.relu(norm(x)) * mask if x.dim() == 2 else
                      F.max_pool2d(F.relu(norm(x)) * mask, 2), x.double(), norm)
    assert_near(found, expected, 1e-5)


@pytest.mark.parametrize("kind, shape", [(Dropout, (3, 8, 5, 6)), (Dropout2d, (3, 8, 5, 6)),
                                         (Dropout, (20, 5))])
@on_kernels
def test_a_batch_of_gradients_gives_what_each_gives(kind, shape):
    """Also a second way to the derivative, by PyTorch, held against the kernels."""
    from fast.gpu.blocks import norm_relu_dropout, norm_relu_dropout_pool

    given, x = Given(shape[1]).to(DEVICE), normal(shape, device=DEVICE).requires_grad_()
    norm = (BatchNorm2d if len(shape) == 4 else BatchNorm1d)(shape[1]).to(DEVICE)
    y = (norm_relu_dropout_pool(x, given, norm, kind(0.3)) if len(shape) == 4
         else norm_relu_dropout(x, norm, kind(0.3)))
    g = normal((4, *y.shape), 3, device=DEVICE)
    wanted = (x, given.bias) if len(shape) == 4 else (x,)
    found = torch.autograd.grad(y, wanted, g, is_grads_batched=True, retain_graph=True)
    expected = zip(*(torch.autograd.grad(y, wanted, each, retain_graph=True) for each in g), strict=True)
    assert all(relative(one, torch.stack(each).cpu()) < 1e-5
               for one, each in zip(found, expected, strict=True))


@on_kernels
def test_trainers_side_by_side_end_as_alone():
    """Bit for bit, with kernels and without, whatever the company."""
    settings = [settings_of("mlp", batch_size=16, hidden_size=8, schedule="cosine", **changes)
                for changes in ({"drop_rate": 0.0}, {"learning_rate": 0.01}, {"without_BatchNorm": True})]
    device = torch.device(DEVICE)
    data = prepared(random_data("mlp", train=40), settings[0], device)

    alone, company = ([Trainer(build, data, one, device) for one in settings] for _ in range(2))
    for _ in range(2):
        for trainer in alone:
            trainer.run_epoch()
    for order in (company, company[::-1]):
        SideBySide(order).run_epoch()
    for found, expected in zip(company, alone, strict=True):
        assert untimed(found.rows) == untimed(expected.rows)
        assert_near(found.network.state_dict(), expected.network.state_dict(), 0)
