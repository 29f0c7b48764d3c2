"""Batch normalization against PyTorch's own modules and against its definition."""

import copy
import inspect

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from comparison import (
    DEVICES,
    VIEWS,
    assert_as_accurate,
    assert_same,
    assert_same_signature,
    normal,
    randomized,
    step,
    tolerance,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from fast.normalize import Normalize, batch_norm_in_training, normalize
from layers import BatchNorm, BatchNorm1d, BatchNorm2d, batch_norm, batch_statistics


class ByHand:
    """Computed by fast/normalize.py, with its derivative written out by hand."""

    def forward(self, x):
        return normalize(x, self) if self.uses_batch_statistics() else BatchNorm.forward(self, x)


OURS = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}
BY_HAND = {theirs: type("ByHand", (ByHand, ours), {}) for theirs, ours in OURS.items()}
NORMS = list(OURS)
both_ways = pytest.mark.parametrize("kinds", [OURS, BY_HAND], ids=["definition", "by hand"])
HAS_BIAS_ARGUMENT = "bias" in inspect.signature(nn.BatchNorm1d).parameters  # older versions of PyTorch do not know it


def pair(theirs_class, *arguments, kinds=OURS, **options):
    """A module of PyTorch with random parameters, and ours with its state."""
    theirs = randomized(theirs_class(*arguments, **options))
    ours = kinds[theirs_class](*arguments, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def shape_for(norm, *sizes):
    """(N, C) for BatchNorm1d, (N, C, H, W) for BatchNorm2d, from N, C, H and W."""
    return sizes[:2] if norm is nn.BatchNorm1d else sizes


# Interface


@pytest.mark.parametrize("norm", NORMS)
def test_signature(norm):
    assert_same_signature(OURS[norm], norm)
    assert_same_signature(OURS[norm].forward, norm.forward)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"dtype": torch.float64},
                                     {"momentum": None}])
def test_initial_state(norm, options):
    ours, theirs = OURS[norm](3, **options), norm(3, **options)
    assert_same(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in theirs.named_buffers()]
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("norm", NORMS)
def test_parameters_and_statistics_start_over(norm):
    ours = randomized(OURS[norm](3))
    ours(normal(shape_for(norm, 4, 3, 2, 2)))
    ours.reset_running_stats()
    assert ours.running_mean.eq(0).all() and ours.running_var.eq(1).all() and ours.num_batches_tracked == 0
    ours.reset_parameters()
    assert_same(ours.state_dict(), norm(3).state_dict(), rtol=0, atol=0)


def outcome(module, x):
    """The type of the error that `module` raises, None if it raises none."""
    try:
        module(x)
    except Exception as error:
        return type(error)
    return None


SHAPES = [(3,), (2, 3), (1, 3), (1, 5), (2, 5), (1, 3, 1), (1, 3, 2), (2, 3, 4), (3, 4, 4), (2, 3, 4, 4), (1, 3, 1, 1),
          (1, 5, 1, 1), (2, 5, 2, 2), (1, 3, 1, 2), (2, 3, 2, 2, 2), (0, 3), (2, 3, 0), (0, 3, 4, 4), (2, 3, 0, 4)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False},
                                     {"affine": False, "track_running_stats": False}])
@pytest.mark.parametrize("norm", NORMS)
def test_same_errors(norm, options, training):
    for shape in SHAPES:
        ours, theirs = (module.train(training) for module in pair(norm, 3, **options))
        x = normal(shape)
        assert outcome(ours, x) is outcome(theirs, x), shape


HALF_AND_MORE = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", HALF_AND_MORE)
@pytest.mark.parametrize("norm", NORMS)
def test_dtypes_that_do_not_fit(norm, layer, training):
    for dtype in (*HALF_AND_MORE, torch.uint8, torch.int64, torch.bool, torch.complex64):
        for options in ({}, {"affine": False, "track_running_stats": False}):
            ours, theirs = (m.to(layer).train(training) for m in pair(norm, 3, **options))
            before = copy.deepcopy(ours.state_dict())
            x = normal(shape_for(norm, 4, 3, 2, 2)).to(dtype)
            error = outcome(ours, x)
            assert error is outcome(theirs, x), dtype
            if error:
                assert_same(ours.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("taken", ["running_mean", "running_var"])
@pytest.mark.parametrize("norm", NORMS)
def test_one_statistic_alone_is_refused(norm, taken):
    for module in pair(norm, 3):
        setattr(module, taken, None)
        with pytest.raises(ValueError, match="both be None"):
            module(normal(shape_for(norm, 4, 3, 2, 2)))


@pytest.mark.parametrize("norm", NORMS)
def test_weights_from_before_the_batch_counter(norm):
    def load(module, version):
        module.num_batches_tracked.fill_(7)
        network = nn.Sequential(module)
        old = nn.Sequential(randomized(norm(3), 5)).state_dict()
        del old["0.num_batches_tracked"]
        if version is None:
            old = dict(old)
        else:
            old._metadata["0"]["version"] = version
        network.load_state_dict(old, strict=True)
        return network.state_dict()

    for version in (None, 1):
        ours, theirs = (load(module, version) for module in pair(norm, 3))
        assert_same(ours, theirs, rtol=0, atol=0)
        assert ours["0.num_batches_tracked"] == 7
    for module in pair(norm, 3):
        with pytest.raises(RuntimeError, match="num_batches_tracked"):
            load(module, nn.BatchNorm1d._version)


@pytest.mark.parametrize("norm", NORMS)
def test_weights_from_before_the_batch_counter_fill_what_has_no_memory(norm):
    old = {name: each for name, each in norm(3).state_dict().items() if name != "num_batches_tracked"}
    with torch.device("meta"):
        ours, theirs = OURS[norm](3), norm(3)
    for module in (ours, theirs):
        module.load_state_dict(copy.deepcopy(old), assign=True)
    x = normal(shape_for(norm, 4, 3, 2, 2))
    assert_same(step(ours, x), step(theirs, x), **tolerance(x.dtype))


CHANGES = {
    "no batch counter": ({}, {"num_batches_tracked": None}),
    "no batch counter for an average": ({"momentum": None}, {"num_batches_tracked": None}),
    "tracking switched off": ({}, {"track_running_stats": False}),
    "tracking switched on": ({"track_running_stats": False}, {"track_running_stats": True}),
    "no running statistics": ({}, {"running_mean": None, "running_var": None}),
}


@pytest.mark.parametrize("options, changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("norm", NORMS)
def test_modules_changed_later(norm, options, changes):
    modules = pair(norm, 3, **options)
    for module in modules:
        for name, value in changes.items():
            setattr(module, name, value)
    for seed, training in enumerate((True, True, False)):
        x = normal(shape_for(norm, 4, 3, 2, 2), seed)
        assert_same(*(step(module.train(training), x) for module in modules), **tolerance(x.dtype))


# Batch normalization


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_module_samples_of_pytorch(norm, training):
    pytest.importorskip("expecttest", reason="PyTorch's module samples need expecttest")
    from torch.testing._internal.common_modules import module_db

    info, = (info for info in module_db if info.module_cls is norm)
    samples = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=training)
    assert len(samples) >= 6
    for sample in samples:
        constructor, (x,) = sample.constructor_input, sample.forward_input.args
        ours, theirs = (m.train(training) for m in pair(norm, *constructor.args, **constructor.kwargs))
        for _ in range(2):
            assert_same(step(ours, x), step(theirs, x), **tolerance(x.dtype))


sizes = st.integers(1, 6)


@st.composite
def norm_cases(draw):
    """A pair of modules and batches for it."""
    norm, kinds = draw(st.sampled_from(NORMS)), draw(st.sampled_from([OURS, BY_HAND]))
    channels = draw(sizes)
    places = draw(st.lists(sizes, max_size=1) if norm is nn.BatchNorm1d else st.lists(sizes, min_size=2, max_size=2))
    shape = (draw(sizes), channels, *places)
    assume(torch.Size(shape).numel() > channels)
    options = {"eps": draw(st.sampled_from([1e-5, 1e-3, 0.5])),
               "momentum": draw(st.none() | st.floats(0, 1)),
               "affine": draw(st.booleans()),
               "track_running_stats": draw(st.booleans()),
               "dtype": draw(st.sampled_from([torch.float32, torch.float64]))}
    if HAS_BIAS_ARGUMENT:
        options["bias"] = draw(st.booleans())
    scale, offset = draw(st.sampled_from([0.3, 1, 20])), draw(st.floats(-5, 5))
    channels_last = norm is nn.BatchNorm2d and draw(st.booleans())
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    seed = draw(st.integers(0, 1000))
    batches = [(normal(shape, seed + i, options["dtype"]) * scale + offset).contiguous(memory_format=memory_format)
               for i in range(4)]
    return *pair(norm, channels, kinds=kinds, **options), batches, memory_format


@settings(max_examples=60, deadline=None, database=None)
@given(norm_cases())
def test_same_as_pytorch_on_random_shapes_and_arguments(case):
    ours, theirs, (*batches, last), memory_format = case
    accuracy = tolerance(last.dtype)
    for x in batches:
        found = step(ours, x)
        assert_same(found, step(theirs, x), **accuracy)
        assert found["y"].is_contiguous(memory_format=memory_format)
        assert not isinstance(ours, ByHand) or found["d x"].is_contiguous(memory_format=memory_format)
    ours.eval(), theirs.eval()
    found = step(ours, last)
    assert_same(found, step(theirs, last), **accuracy)
    assert found["y"].is_contiguous(memory_format=memory_format)
    assert_same(ours.state_dict(), theirs.state_dict(), **accuracy)
    theirs.load_state_dict(ours.state_dict())
    assert_same(step(ours, last), step(theirs, last), **accuracy)


@both_ways
@pytest.mark.parametrize("view", VIEWS)
def test_inputs_that_do_not_lie_densely(view, kinds):
    x = view(normal((4, 4, 4, 4)))
    ours, theirs = pair(nn.BatchNorm2d, 4, kinds=kinds)
    assert_same(step(ours, x), step(theirs, x), **tolerance(x.dtype))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (0, 3, 4, 4), (2, 3, 0, 4)])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_batch_without_values(shape, options, training):
    ours, theirs = (m.train(training) for m in pair(NORMS[len(shape) == 4], 3, **options))
    assert_same(step(ours, normal(shape)), step(theirs, normal(shape)))


@pytest.mark.parametrize("norm", NORMS)
def test_evaluation_depends_on_no_other_sample(norm):
    ours, _ = pair(norm, 3)
    x = normal(shape_for(norm, 8, 3, 4, 4))
    ours(x)
    ours.eval()
    before = copy.deepcopy(ours.state_dict())
    torch.testing.assert_close(ours(x)[:2], ours(x[:2]))
    assert_same(ours.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("norm", NORMS)
@both_ways
def test_training_and_evaluation_on_each_device(kinds, norm, momentum, device):
    ours, theirs = (m.to(device) for m in pair(norm, 3, momentum=momentum, kinds=kinds))
    for seed in range(3):
        x = normal(shape_for(norm, 8, 3, 5, 5), seed, device=device)
        assert_same(step(ours, x), step(theirs, x), **tolerance(x.dtype))
    assert_same(step(ours.eval(), x), step(theirs.eval(), x), **tolerance(x.dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", NORMS)
@both_ways
def test_half_precision_with_statistics_in_single(kinds, norm, dtype, device):
    ours, theirs = (m.to(device) for m in pair(norm, 3, kinds=kinds))
    for training in (True, True, False):
        x = normal(shape_for(norm, 16, 3, 5, 5), dtype=dtype, device=device) + 1
        found, expected = (step(m.train(training), x) for m in (ours, theirs))
        assert_same({"y": found.pop("y")}, {"y": expected.pop("y")}, **tolerance(dtype))
        assert_same({"d x": found.pop("d x")}, {"d x": expected.pop("d x")}, **tolerance(dtype))
        assert_same(found, expected, **tolerance(torch.float32))
    assert ours.running_var.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", NORMS)
@both_ways
def test_modules_in_half_precision_as_accurate_as_pytorchs(kinds, norm, dtype, training):
    ours, theirs = (m.train(training).to(dtype) for m in pair(norm, 3, kinds=kinds))
    for module in (ours, theirs):
        module.running_mean += 20
    x = (normal(shape_for(norm, 128, 3, 6, 6)) + 20).to(dtype)
    assert_as_accurate(ours, theirs, copy.deepcopy(theirs), x, factor=1.5)


def test_float16_evaluates_what_it_cannot_subtract():
    ours, theirs = (m.half().eval() for m in pair(nn.BatchNorm1d, 1))
    for module in (ours, theirs):
        module.running_mean.fill_(-40_000)
        module.running_var.fill_(60_000)
    x = torch.full((2, 1), 40_000.0, dtype=torch.float16)
    assert theirs(x).isfinite().all()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kinds, factor", [(OURS, 8), (BY_HAND, 2)], ids=["definition", "by hand"])
def test_far_from_zero_as_accurate_as_pytorch(kinds, factor, norm):
    """The definition rounds the mean to one float32, by hand it is carried as two."""
    ours, theirs = pair(norm, 3, kinds=kinds)
    x = normal(shape_for(norm, 128, 3, 6, 6)) + 10_000
    assert_as_accurate(ours, theirs, copy.deepcopy(theirs), x, factor)
    torch.testing.assert_close(ours.running_var, torch.ones(3), rtol=0.1, atol=0)


def test_a_large_mean_is_carried_as_two_numbers():
    """One float32 rounds a mean of 100 000 by 0.004, and the normalized values with it."""
    ours, exact = pair(nn.BatchNorm2d, 4, kinds=BY_HAND)
    x = normal((32, 4, 12, 12)) + 1e5
    found, truth = step(ours, x), step(exact.double(), x.double())
    assert_same(found, {name: value.to(found[name].dtype) for name, value in truth.items()}, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("affine", [True, False])
def test_normalize_is_its_definition(affine):
    x = normal((5, 3, 4, 2), dtype=torch.float64).requires_grad_()
    weight, bias = normal((2, 3), 1, torch.float64).requires_grad_() if affine else (None, None)
    inputs = [x, weight, bias] if affine else [x]

    def results(function):
        y, *statistics = function(x, weight, bias, 1e-5)
        return y, *statistics, *torch.autograd.grad(y, inputs, normal(x.shape, 2, torch.float64))

    torch.testing.assert_close(results(Normalize.apply), results(batch_norm_in_training))


@both_ways
@pytest.mark.parametrize("norm", NORMS)
def test_running_statistics_are_no_part_of_the_graph(norm, kinds):
    ours, _ = pair(norm, 3, kinds=kinds)
    for _ in range(2):
        ours(normal(shape_for(norm, 4, 3, 2, 2)).requires_grad_())
    for buffer in ours.buffers():
        assert not buffer.requires_grad and buffer.grad_fn is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize("norm", NORMS)
@both_ways
def test_first_and_second_derivatives(kinds, norm, options, training):
    module, _ = pair(norm, 2, dtype=torch.float64, kinds=kinds, **options)
    module.train(training)
    names, parameters = zip(*module.named_parameters(), strict=True) if module.affine else ((), ())
    x = normal(shape_for(norm, 4, 2, 2, 2), dtype=torch.float64).requires_grad_()

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), x)

    assert gradcheck(function, (x, *parameters))
    assert gradgradcheck(function, (x, *parameters))


@pytest.mark.parametrize("norm", NORMS)
def test_detached_statistics_are_constants_in_the_derivative(norm):
    ours = randomized(OURS[norm](3, dtype=torch.float64, detach_statistics=True))
    twin = copy.deepcopy(ours)
    twin.detach_statistics = False
    x = normal(shape_for(norm, 6, 3, 2, 2), dtype=torch.float64)
    mean, variance = batch_statistics(x)
    inputs = [x.requires_grad_(), ours.weight, ours.bias]
    y = ours(x)
    torch.testing.assert_close(y, twin(x))
    assert_same(dict(ours.named_buffers()), dict(twin.named_buffers()))
    expected = batch_norm(x, mean, variance, ours.weight, ours.bias, ours.eps)
    g = normal(x.shape, 1, torch.float64)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g))
    assert not torch.allclose(*(torch.autograd.grad(each(x), x, g)[0] for each in (ours, twin)))
    torch.testing.assert_close(ours.eval()(x), twin.eval()(x))


# Other ways to differentiate, trace and place


def along(module, x, v):
    with fwAD.dual_level():
        return fwAD.unpack_dual(module(fwAD.make_dual(x, v)))


def batched(module, x, v):
    inputs = [x.requires_grad_(), *module.parameters()]
    return torch.autograd.grad(module(x), inputs, torch.stack([v, v * x]), is_grads_batched=True)


def ensemble(module, x, v):
    """Two copies of the module, each with statistics of its own."""
    parameters, buffers = torch.func.stack_module_state([module, copy.deepcopy(module)])
    y = torch.func.vmap(lambda *state: torch.func.functional_call(module, state, (x,)))(parameters, buffers)
    return y, buffers


def cubed(module):
    return lambda x: module(x).pow(3).sum()


WAYS = {
    "forward mode": along,
    "batched gradients": batched,
    "an ensemble": ensemble,
    "vectorized jacobian": lambda m, x, v: torch.autograd.functional.jacobian(m, x, vectorize=True),
    "vectorized jacobian, forward": lambda m, x, v: torch.autograd.functional.jacobian(
        m, x, vectorize=True, strategy="forward-mode"),
    "vectorized hessian": lambda m, x, v: torch.autograd.functional.hessian(cubed(m), x, vectorize=True),
    "jvp": lambda m, x, v: torch.func.jvp(m, (x,), (v,)),
    "vjp": lambda m, x, v: torch.func.vjp(m, x)[1](v),
    "jacfwd": lambda m, x, v: torch.func.jacfwd(m)(x),
    "jacrev": lambda m, x, v: torch.func.jacrev(m)(x),
    "hessian": lambda m, x, v: torch.func.hessian(cubed(m))(x),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("norm", NORMS)
def test_transforms_as_pytorch(norm, way, tracking, training):
    """Some refuse that statistics move which they were not given: for ours as for PyTorch's."""
    x, v = (normal(shape_for(norm, 4, 3, 2, 2), seed, torch.float64) for seed in (0, 1))
    found = []
    for module in pair(norm, 3, dtype=torch.float64, track_running_stats=tracking):
        module.train(training)
        try:
            found.append((way(module, x.clone(), v), *module.buffers()))
        except RuntimeError as error:
            assert tracking and training and "would mutate a captured Tensor" in str(error)
            found.append(())
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("norm", NORMS)
def test_batches_of_batches_need_statistics_of_their_own(norm):
    for module in pair(norm, 3):
        with pytest.raises(RuntimeError, match="place"):
            torch.func.vmap(module)(normal((2, *shape_for(norm, 4, 3, 2, 2))))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_default_device_of_another_kind(norm, training):
    ours, theirs = (module.train(training) for module in pair(norm, 3))
    for n in (4, 0):
        x = normal(shape_for(norm, n, 3, 2, 2))
        with torch.device("meta"):
            found = ours(x)
        torch.testing.assert_close(found, theirs(x))
    assert_same(dict(ours.named_buffers()), dict(theirs.named_buffers()))
