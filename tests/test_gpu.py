"""The kernels of fast/gpu/ against definitions in float64: on a card, or in triton's interpreter.

The interpreter is numpy underneath: it shows wrong numbers, but no races, no alignment, no speed.
"""

import pytest
import torch
import torch.nn.functional as F
from apart import DEVICE, on_kernels
from comparison import normal
from in_process import build, random_data, settings_of, untimed
from torch import Tensor, nn

from fast.gpu import guard
from lab.side_by_side import SideBySide
from layers import BatchNorm1d, BatchNorm2d, Dropout, Dropout2d
from layers.functional import dropout_mask
from load_data import Split
from store.images import prepared, take
from training import Trainer

DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 1e-2}  # the interpreter truncates to bfloat16


# The CNN's block


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


def results(function, x: Tensor, norm: nn.Module, g: Tensor | None = None) -> dict[str, Tensor]:
    """What `function` makes of x, and its gradients for some gradient of the result."""
    x = x.detach().requires_grad_()
    y = function(x)
    own = dict(norm.named_parameters())
    g = normal(y.shape, 3, y.dtype, str(y.device)) if g is None else g
    gradients = torch.autograd.grad(y, (x, *own.values()), g)
    found = dict(zip(("dx", *own), gradients, strict=True))
    return {"y": y, **found, **{name: value.clone() for name, value in norm.named_buffers()}}


def pool_block(x: Tensor, norm: nn.Module, dropout: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    from fast.gpu.blocks import norm_relu_dropout_pool

    x, norm = x.to(DEVICE).contiguous(memory_format=torch.channels_last), norm.to(DEVICE)
    torch.manual_seed(seed)
    return results(lambda x: norm_relu_dropout_pool(x, norm, dropout), x, norm)


def plain_pool_block(x: Tensor, norm: nn.Module, mask: Tensor | float) -> dict[str, Tensor]:
    """The definition in float64."""
    norm = norm.to("cpu", torch.float64)
    norm.reset_running_stats()
    return results(lambda x: F.max_pool2d(F.relu(norm(x)) * mask, 2), x.cpu().double(), norm)


def drawn_mask(x: Tensor, dropout: nn.Module, seed: int = 0) -> Tensor | float:
    """The mask that the block draws after manual_seed(seed), divided by 1 - p."""
    torch.manual_seed(seed)
    p = dropout.p if isinstance(dropout, Dropout) else 0.0
    if p in (0, 1):
        return 1.0 - p
    if isinstance(dropout, Dropout2d):
        return dropout_mask(x.to(DEVICE), p, torch.Size([*x.shape[:2], 1, 1])).cpu().double() / (1 - p)
    seed = torch.empty(1, dtype=torch.int64, device=DEVICE).random_()
    return guard.kept_by_value(seed.cpu(), p, x.shape).double() / (1 - p)


KINDS = [nn.Identity(), Dropout2d(0.3), Dropout(0.3)]
ODD = (3, 70, 5, 7)  # of several programs, the last ones not full
CASES = [*((shape, dropout, torch.float32)
           for shape in ((6, 16, 8, 8), ODD, (1, 5, 6, 3)) for dropout in KINDS),
         *(((2, 5, 5, 6), kind(p), torch.float32)
           for kind in (Dropout, Dropout2d) for p in (0.0, 1e-6, 0.999, 1.0)),
         *((ODD, dropout, torch.bfloat16) for dropout in KINDS)]


@pytest.mark.parametrize("shape, dropout, dtype", CASES, ids=str)
@on_kernels
def test_cnn_block(shape, dropout, dtype):
    x, norm = inputs(shape, dtype)
    found = pool_block(x, norm, dropout)
    expected = plain_pool_block(x, norm, drawn_mask(x, dropout))
    assert_near(found, expected, ROUNDING[dtype])


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
def test_cnn_block_takes_any_memory_order():
    from fast.gpu.blocks import norm_relu_dropout_pool

    x, norm = inputs((4, 8, 6, 6), torch.float32)
    norm, dense = norm.to(DEVICE), x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    orders = (dense, dense.contiguous(), dense.transpose(2, 3).contiguous().transpose(2, 3))
    first, *others = (results(lambda x: norm_relu_dropout_pool(x, norm, nn.Identity()), each, norm)
                      for each in orders)
    for other in others:
        assert torch.equal(first["y"], other["y"]) and torch.equal(first["dx"], other["dx"])


@pytest.mark.parametrize("kind", [Dropout, Dropout2d])
@on_kernels
def test_a_step_repeats_bit_for_bit_and_another_seed_drops_others(kind):
    x, _ = inputs(ODD, torch.float32)
    one, same, other = (pool_block(x, BatchNorm2d(ODD[1]), kind(0.5), seed) for seed in (1, 1, 2))
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
        y = norm_relu_dropout_pool(x.to(DEVICE), norm, Dropout2d(0.0))
    assert y[1, 3, 1, 1].isnan() and y[:, :3].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@on_kernels
def test_cnn_block_in_evaluation(dtype):
    from fast.gpu.blocks import norm_relu_dropout_pool

    x, norm = inputs((3, 70, 7, 6), dtype)
    norm.running_mean.copy_(normal((70,), 4))
    norm.running_var.copy_(normal((70,), 5).square())
    norm.to(DEVICE).eval()
    with torch.no_grad():
        found = norm_relu_dropout_pool(x.to(DEVICE), norm, Dropout2d(0.3).eval())
        expected = F.max_pool2d(F.relu(norm.to("cpu", torch.float64)(x.double())), 2)
    assert relative(found, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("kind", [Dropout, Dropout2d])
@on_kernels
def test_second_derivatives_of_the_cnn_block(kind):
    from fast.gpu.blocks import norm_relu_dropout_pool

    def second(function, x, norm):
        x = x.detach().requires_grad_()
        y = function(x)
        g = normal(y.shape, 3, y.dtype, str(y.device))
        dx, dweight = torch.autograd.grad(y, (x, norm.weight), g, create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dweight.square().sum(), (x, norm.weight))

    x, norm = inputs((3, 8, 5, 6), torch.float32)
    norm, dropout = norm.to(DEVICE), kind(0.3)
    torch.manual_seed(0)
    found = second(lambda x: norm_relu_dropout_pool(x, norm, dropout), x.to(DEVICE), norm)
    mask, norm = drawn_mask(x, dropout), norm.to("cpu", torch.float64)
    expected = second(lambda x: F.max_pool2d(F.relu(norm(x)) * mask, 2), x.double(), norm)
    assert_near(dict(enumerate(found)), dict(enumerate(expected)), 1e-5)


# The MLP's


def hidden(x: Tensor, norms: list, dropouts: list, g: Tensor | None = None) -> dict[str, Tensor]:
    from fast.gpu.blocks import norm_relu_dropout

    torch.manual_seed(0)
    layers = nn.ModuleList(norms).to(DEVICE)
    return results(lambda x: norm_relu_dropout(x, norms, dropouts), x.to(DEVICE), layers, g)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 1e-5, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(70, 10), (1030, 3), (4, 5)], ids=str)
@on_kernels
def test_mlp_block(shape, p, dtype):
    x, norm = inputs(shape, dtype, mean=1e4 if dtype == torch.float32 else 0.0)
    found = hidden(x, [norm], [Dropout(p)])
    torch.manual_seed(0)
    stay = torch.rand(shape, device=DEVICE).cpu() < 1 - p
    mask = stay.double() / (1 - p) if p < 1 else 0.0
    norm = norm.to("cpu", torch.float64)
    norm.reset_running_stats()
    expected = results(lambda x: F.relu(norm(x)) * mask, x.double(), nn.ModuleList([norm]))
    assert_near(found, expected, ROUNDING[dtype] * 3)


@on_kernels
def test_mlps_side_by_side_compute_what_each_does_alone():
    rates, width = (0.0, 0.2, 0.6), 7
    x, g = (normal((len(rates), 40, width), seed, device=DEVICE) for seed in (0, 1))
    norms = [BatchNorm1d(width, eps=10.0 ** -i) for i in range(1, 4)]
    dropouts = [Dropout(p) for p in rates]
    together = hidden(x, norms, dropouts, g)
    assert all(together[name].stride(0) * 4 % 512 == 0 for name in ("y", "dx")), "not as apart"
    for i, (norm, dropout) in enumerate(zip(norms, dropouts, strict=True)):
        found = {name.removeprefix(f"{i}."): value for name, value in together.items()
                 if name[0] == str(i)}
        found |= {name: together[name][i] for name in ("y", "dx")}
        norm.reset_running_stats()
        alone = hidden(x[i], [norm], [dropout], g[i])
        assert {name: torch.equal(value, alone[name] if name in alone else alone[f"0.{name}"])
                for name, value in found.items()} == dict.fromkeys(found, True)


@on_kernels
def test_second_derivatives_of_the_mlp_block():
    from fast.gpu.blocks import norm_relu_dropout

    def second(function, x, norm):
        x = x.detach().requires_grad_()
        dx, = torch.autograd.grad(function(x), x, normal(x.shape, 3, x.dtype).to(x.device),
                                  create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, norm.weight))

    x, norm = inputs((20, 5), torch.float32)
    norm = norm.to(DEVICE)
    torch.manual_seed(0)
    found = second(lambda x: norm_relu_dropout(x, [norm], [Dropout(0.3)]), x.to(DEVICE), norm)
    torch.manual_seed(0)
    mask = (torch.rand(20, 5, device=DEVICE).cpu() < 0.7) / 0.7
    norm = norm.to("cpu", torch.float64)
    expected = second(lambda x: F.relu(norm(x)) * mask, x.double(), norm)
    assert_near(dict(enumerate(found)), dict(enumerate(expected)), 1e-5)


@pytest.mark.parametrize("block", ["cnn by map", "cnn by value", "mlp", "mlps side by side"])
@on_kernels
def test_a_batch_of_gradients_gives_what_each_gives(block):
    """Also a second way to the derivative, by PyTorch, held against the kernels."""
    from fast.gpu.blocks import norm_relu_dropout, norm_relu_dropout_pool

    shape = {"mlp": (20, 5), "mlps side by side": (2, 20, 5)}.get(block, (3, 5, 6, 7))
    norms = [BatchNorm1d(5).to(DEVICE) for _ in range(2 if len(shape) == 3 else 1)]
    x = normal(shape, device=DEVICE).requires_grad_()
    torch.manual_seed(0)
    if len(shape) == 4:
        dropout = (Dropout2d if block == "cnn by map" else Dropout)(0.3)
        y = norm_relu_dropout_pool(x, BatchNorm2d(5).to(DEVICE), dropout)
    else:
        y = norm_relu_dropout(x, norms, [Dropout(0.3), Dropout(0.6)][:len(norms)])
    g = normal((4, *y.shape), 3, device=DEVICE)
    found, = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)
    expected = torch.stack([torch.autograd.grad(y, x, each, retain_graph=True)[0] for each in g])
    assert relative(found, expected.cpu()) < 1e-5


# A batch


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "flat"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 5, 7), (3, 21, 17)], ids=str)
@pytest.mark.parametrize("index", [[4, 0, 4, 1, 1], [3]], ids=str)
@on_kernels
def test_a_batch_is_that_of_take_bit_for_bit_and_in_its_order(index, shape, pictures):
    from fast.gpu.blocks import batch

    bytes = torch.arange(5 * torch.Size(shape).numel())
    images = (bytes * 7 % 257 % 256).to(torch.uint8).view(5, *shape).to(DEVICE)
    images = images.contiguous(memory_format=torch.channels_last) if pictures else images.flatten(1)
    assert len(images.unique()) == 256
    index = torch.tensor(index, device=DEVICE)
    found, (expected, _) = batch(images, index), take(Split(images, images[:, 0]), index)
    assert found.dtype == expected.dtype and found.stride() == expected.stride()
    assert torch.equal(found, expected)


@on_kernels
def test_a_batch_has_every_byte_as_the_definition_in_float64():
    from fast.gpu.blocks import batch

    images = torch.arange(256).to(torch.uint8).view(1, 256).to(DEVICE)
    found = batch(images, torch.tensor([0], device=DEVICE)).cpu()
    assert torch.equal(found[0], ((torch.arange(256.0).double() - 128) / 255).float())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@on_kernels
def test_trainers_side_by_side_end_as_alone_whatever_the_company(precision):
    """Bit for bit: some on the kernels, some not, the last one failing at once."""
    on_kernels = [{"drop_rate": 0.0}, {"drop_rate": 0.5}, {"learning_rate": 0.01}]
    alone = [{"without_BatchNorm": True, "drop_rate": 0.5}, {"drop_rate": 1e-7}]
    settings = [settings_of("mlp", precision=precision, batch_size=16, hidden_size=8,
                            schedule="cosine", **changes)
                for changes in (*on_kernels, *alone, {"drop_rate": 0.6, "learning_rate": 0.2})]
    device = torch.device(DEVICE)
    data = prepared(random_data("mlp", train=40), settings[0], device)

    def trainers(settings: list) -> list[Trainer]:
        return [Trainer(build, data, one, device) for one in settings]

    def results(trainer: Trainer) -> list[Tensor]:
        return [*trainer.network.state_dict().values(), *(
            value for state in trainer.optimizer.state.values() for value in state.values())]

    *expected, _ = trainers(settings)
    for trainer in expected:
        for _ in range(2):
            trainer.run_epoch()
    company = trainers(settings)
    with torch.no_grad():
        company[-1].network.linear2.bias.fill_(torch.nan)
    for order in (company, company[3::-1] + company[4:]):
        SideBySide(order).run_epoch()
    for found, trainer in zip(company, expected, strict=False):
        assert untimed(found.rows) == untimed(trainer.rows)
        assert all(map(torch.equal, results(found), results(trainer)))
