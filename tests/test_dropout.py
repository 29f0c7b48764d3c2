"""Dropout: rate, scale, which values fall together, gradient and evaluation."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.fx
from comparison import DEVICES, VIEWS, assert_same_signature, normal, step
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from layers import Dropout, Dropout2d, GaussianDropout, dropout

OURS = {nn.Dropout: Dropout, nn.Dropout2d: Dropout2d}
DROPOUTS = list(OURS)


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_signature(theirs):
    assert_same_signature(OURS[theirs], theirs)


@pytest.mark.parametrize("p", [-0.1, 1.1])
@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_refuses_what_is_no_probability(theirs, p):
    for module in (OURS[theirs], theirs):
        with pytest.raises(ValueError, match="between 0 and 1"):
            module(p)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [-0.5, 1.5])
@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_refuses_what_is_no_probability_any_more(theirs, p, training):
    for module in (OURS[theirs](0.5).train(training), theirs(0.5).train(training)):
        module.p = p
        with pytest.raises(ValueError, match="between 0 and 1"):
            module(normal((4, 3, 2, 2)))


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_of_a_rate_that_is_a_tensor(theirs):
    for module in (OURS[theirs](torch.tensor(0.5)), theirs(torch.tensor(0.5))):
        assert module(input=torch.ones(200, 50, 1, 1)).unique().tolist() == [0, 2]


@pytest.mark.filterwarnings("ignore:dropout2d. Received a 1-D input")
@pytest.mark.parametrize("module", [nn.Dropout2d(0.0), Dropout2d(0.0), nn.Dropout2d(0.5).eval(), Dropout2d(0.5).eval()])
def test_dropout2d_that_drops_nothing_takes_any_shape(module):
    x = normal((5,))
    assert module(x) is x


def test_dropout2d_refuses_what_has_no_maps():
    with pytest.raises(RuntimeError, match="at least 2 dimensions"):
        Dropout2d()(normal((5,)))


def assert_rate(dropped: torch.Tensor, p: float) -> None:
    """The number of Trues is within 6 standard deviations of that of a binomial distribution."""
    n = dropped.numel()
    assert abs(dropped.sum().item() - n * p) <= 6 * (n * p * (1 - p)) ** 0.5 + 1


def assert_independent(dropped: torch.Tensor, p: float, lag: int, dim: int) -> None:
    """Values `lag` apart are dropped together as often as chance has it, within 6 standard deviations."""
    length = dropped.size(dim) - lag
    together = dropped.narrow(dim, 0, length) & dropped.narrow(dim, lag, length)
    assert abs(together.double().mean().item() - p * p) <= 6 * p / together.numel() ** 0.5


@settings(max_examples=30, deadline=None, database=None)
@given(st.floats(0.01, 0.99), st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_dropout_rate_and_scale(p, seed, dtype):
    torch.manual_seed(seed)
    y = Dropout(p)(torch.ones(30_001, dtype=dtype))
    assert_rate(y == 0, p)
    assert y[y != 0].eq(torch.ones((), dtype=dtype) / (1 - p)).all()


@pytest.mark.parametrize("p", [1e-6, 0.9999])
def test_dropout_keeps_rate_and_expectation_near_the_limits(p):
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(4_000_000))
    assert_rate(y == 0, p)
    assert y.mean().item() == pytest.approx(1, abs=6 * (p / (1 - p) / y.numel()) ** 0.5 + 1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_gaussian_dropout_has_the_mean_and_variance_of_dropout(p):
    torch.manual_seed(0)
    n, variance = 1_000_000, p / (1 - p)
    x = torch.full((n,), 2.0, requires_grad=True)
    y = GaussianDropout(p)(x)
    assert y.mean().item() == pytest.approx(2, abs=2 * 6 * (variance / n) ** 0.5)
    assert y.var().item() == pytest.approx(4 * variance, rel=6 * (2 / n) ** 0.5)
    assert (y - 2).pow(3).mean().abs() < 8 * 6 * (15 * variance ** 3 / n) ** 0.5  # symmetric, unlike a mask
    gradient, = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, y / 2)
    for module in (GaussianDropout(p).eval(), GaussianDropout(0.0)):
        assert module(x) is x
    with pytest.raises(ValueError, match="between 0 and 1"):
        GaussianDropout(1.5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.5, 0.8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dropout_drops_each_value_by_itself(p, memory_format, device):
    torch.manual_seed(0)
    x = torch.ones(64, 16, 9, 7, device=device).contiguous(memory_format=memory_format)
    dropped = Dropout(p)(x) == 0
    assert_rate(dropped, p)
    for dim in range(4):
        for lag in (1, 2, 4):
            assert_independent(dropped, p, lag, dim)
    in_memory = dropped.permute(0, 2, 3, 1).flatten()  # neighbours that were decided by the same random number
    for lag in range(1, 5):
        assert_independent(in_memory, p, lag, 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.5, 0.8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dropout2d_drops_whole_maps(p, memory_format, device):
    torch.manual_seed(0)
    x = torch.ones(256, 64, 3, 5, device=device).contiguous(memory_format=memory_format)
    y = Dropout2d(p)(x)
    maps = y[:, :, 0, 0]
    assert torch.equal(y, maps[:, :, None, None].expand_as(y))
    torch.testing.assert_close(maps[maps != 0].unique(), torch.tensor([1 / (1 - p)], device=device))
    assert_rate(maps == 0, p)
    for dim in range(2):
        for lag in (1, 2, 4):
            assert_independent(maps == 0, p, lag, dim)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (7, 5, 3, 3)])
def test_dropout2d_takes_the_shapes_that_pytorch_takes(shape):
    torch.manual_seed(0)
    y = Dropout2d(0.5)(torch.ones(shape)).view(7, 5, -1)
    assert 0 < y.count_nonzero() < y.numel()
    assert torch.equal(y, y[:, :, :1].expand_as(y))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (0, 3), (3, 5, 7), (2, 3, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dropout_keeps_shape_and_dtype(shape, dtype):
    x = normal(shape, dtype=dtype)
    y = Dropout(0.3)(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    torch.testing.assert_close(y, torch.where(y == 0, 0, x / 0.7))


@pytest.mark.parametrize("theirs", DROPOUTS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dropout_keeps_memory_order(theirs, memory_format):
    x = normal((4, 3, 5, 7)).contiguous(memory_format=memory_format).requires_grad_()
    y = OURS[theirs](0.3)(x)
    gradient, = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.is_contiguous(memory_format=memory_format) and gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_gradient_is_the_mask(theirs):
    x = (normal((8, 6, 3, 3)).abs() + 1).requires_grad_()
    y = OURS[theirs](0.4)(x)
    gradient, = torch.autograd.grad(y, x, torch.full_like(y, 2))
    torch.testing.assert_close(gradient, 2 * (y / x).detach())


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_derivatives(theirs):
    module = OURS[theirs](0.4)

    def function(x):
        torch.manual_seed(3)
        return module(x).square()

    x = normal((4, 3, 2, 2), dtype=torch.float64).requires_grad_()
    assert gradcheck(function, x) and gradgradcheck(function, x)


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_draws_anew_and_follows_the_seed(theirs):
    module, x = OURS[theirs](0.5), torch.ones(16, 16, 2, 2)
    torch.manual_seed(5)
    first, second = module(x), module(x)
    torch.manual_seed(5)
    assert torch.equal(module(x), first) and not torch.equal(first, second)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_at_the_limits_and_in_evaluation(theirs, inplace):
    x = normal((4, 3, 5, 5))
    for p, training, factor in ((0, True, 1), (1, True, 0), (0.5, False, 1), (1, False, 1)):
        for module in (OURS[theirs](p, inplace), theirs(p, inplace)):
            found = step(nn.Sequential(nn.Hardtanh(-9, 9), module.train(training)), x)  # inplace takes no leaf
            torch.testing.assert_close(found, {"y": x * factor, "d x": normal(x.shape) * factor})


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_inplace(theirs):
    x = normal((4, 3, 5, 5))
    torch.manual_seed(0)
    expected = OURS[theirs](0.5)(x)
    torch.manual_seed(0)
    y = OURS[theirs](0.5, inplace=True)(x)
    assert y is x and torch.equal(y, expected)


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_inplace_of_nothing_leaves_what_relu_saved(theirs):
    for module in (OURS[theirs](0.0, inplace=True), theirs(0.0, inplace=True)):
        found = step(nn.Sequential(nn.ReLU(), module), normal((4, 3, 2, 2)))
        torch.testing.assert_close(found, step(nn.ReLU(), normal((4, 3, 2, 2))))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_under_vmap(theirs, p):
    module, x = OURS[theirs](p), torch.ones(3, 40, 50, 2, 2)
    for randomness in ("different", "same"):
        y = torch.func.vmap(module, randomness=randomness)(x)
        assert (y == 0).double().mean().item() == pytest.approx(p, abs=0.05)
        assert torch.equal(y[0], y[1]) == (randomness == "same" or p in (0, 1))
        assert torch.equal(y, y[..., :1, :1].expand_as(y)) == (theirs is nn.Dropout2d or p in (0, 1))
    errors = [refused(lambda each=each: torch.func.vmap(each)(x)) for each in (module, theirs(p))]
    assert errors[0] is errors[1]


def refused(work):
    try:
        work()
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_in_forward_mode(theirs):
    x, v = torch.ones(8, 6, 3, 3), normal((8, 6, 3, 3))
    with fwAD.dual_level():
        y, tangent = fwAD.unpack_dual(OURS[theirs](0.5)(fwAD.make_dual(x, v)))
    assert 0 < y.count_nonzero() < y.numel()
    torch.testing.assert_close(tangent, y * v)


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_dropout_on_a_default_device_of_another_kind(theirs):
    x = torch.ones(200, 50, 1, 1)
    with torch.device("meta"):
        y = OURS[theirs](0.5)(x)
    assert y.unique().tolist() == [0, 2]


@pytest.mark.parametrize("theirs", DROPOUTS)
def test_symbolic_trace_ends_in_a_clear_error(theirs):
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(nn.Sequential(OURS[theirs](0.5)))


def test_dropout_mask_of_any_shape():
    torch.manual_seed(0)
    y = dropout(torch.ones(50, 40), 0.5, torch.Size([50, 1]))
    assert torch.equal(y, y[:, :1].expand_as(y)) and len(y.unique()) == 2


@pytest.mark.parametrize("view", VIEWS)
def test_inputs_that_do_not_lie_densely(view):
    x = view(normal((4, 4, 4, 4)))
    y = Dropout(0.5)(x)
    torch.testing.assert_close(y, torch.where(y == 0, 0, 2 * x))
