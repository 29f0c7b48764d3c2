"""The MLP's product by oneDNN against PyTorch's own."""

from collections import Counter

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from comparison import assert_same, normal, randomized, step
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fast import linear
from fast.choice import PRODUCT
from mlp.model import product

pytestmark = pytest.mark.skipif(not linear.ONEDNN, reason="this PyTorch lacks oneDNN's operator")


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    monkeypatch.setattr(linear, "FASTER", True)


class Product(nn.Module):
    def __init__(self, way, layer: nn.Linear):
        super().__init__()
        self.way, self.layer = way, layer

    def forward(self, x):
        return self.way(x, self.layer)


def pair(*sizes: int, **options) -> list[Product]:
    """The product as oneDNN takes it, and as PyTorch does."""
    ways = PRODUCT[0].function, product.__wrapped__
    return [Product(way, randomized(nn.Linear(*sizes, **options))) for way in ways]


def operators_of(work) -> Counter:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return Counter({row.key.split("::")[-1]: row.count for row in profile.key_averages()})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 7), (5, 7), (256, 3072), (0, 7), (7,), (2, 3, 7)])
def test_same_as_pytorch(shape, bias):
    ours, theirs = pair(shape[-1], 4, bias=bias)
    assert_same(step(ours, normal(shape)), step(theirs, normal(shape)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("x", [normal((10, 7))[::2], normal((5, 14))[:, ::2], normal((7, 5)).t(),
                               normal((7, 9)).t()[::2], normal((1, 7)).expand(5, -1), normal((5, 1)).expand(-1, 7),
                               normal((11,)).unfold(0, 7, 1)])
@pytest.mark.parametrize("bias", [normal((4,)), normal((8,))[::2], normal((1,)).expand(4), normal((1,)), normal((1, 4)),
                                  normal((5, 4)), normal(())])
def test_inputs_that_do_not_lie_densely(x, bias):
    def results(function):
        inputs = [each.detach().requires_grad_() for each in (x, normal((8, 7))[::2], bias)]
        y = function(*inputs)
        return y, *torch.autograd.grad(y, inputs, normal(y.shape).t().contiguous().t())

    torch.testing.assert_close(results(linear.linear), results(F.linear), rtol=1e-5, atol=1e-5)


def test_derivatives_of_higher_order():
    def penalty(module):
        x = normal((6, 3)).requires_grad_()
        inputs = [x, *module.parameters()]
        gradients = torch.autograd.grad(module(x).pow(3).sum(), inputs, create_graph=True)
        return [*gradients, *torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)]

    ours, theirs = pair(3, 4)
    torch.testing.assert_close(penalty(ours), penalty(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.*torch.jit.script.* is deprecated")
def test_derivatives_by_torch_func():
    def loss(module):
        return lambda parameters, x: torch.func.functional_call(module, parameters, (x,)).pow(3).sum()

    def derivatives(module):
        parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
        x = normal((2, 5, 7))
        of_each = torch.func.vmap(torch.func.grad(loss(module)), (None, 0))(parameters, x)
        along = torch.func.jvp(loss(module), (parameters, x[0]), (parameters, x[1]))
        return of_each, along, torch.func.hessian(loss(module), argnums=1)(parameters, x[0])

    ours, theirs = map(derivatives, pair(7, 4))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("x", [normal((5, 6)), normal((5, 7), dtype=torch.float64), normal((6,)), torch.tensor(1.0)])
def test_same_errors(x):
    assert len({message(lambda module=module: module(x)) for module in pair(7, 4)}) == 1


@pytest.mark.parametrize("weight", [normal((4, 7, 1)), normal((4, 7), dtype=torch.float64)])
@pytest.mark.parametrize("bias", [None, normal((3,)), normal((4,), dtype=torch.float64)])
def test_same_errors_of_the_function(weight, bias):
    assert len({message(lambda f=f: f(normal((5, 7)), weight, bias)) for f in (linear.linear, F.linear)}) == 1


def message(work) -> str:
    with pytest.raises(RuntimeError) as error:
        work()
    return str(error.value)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_not_single_precision_is_left_to_pytorch(dtype, half):
    ours, theirs = (module.to(dtype) for module in pair(7, 4))
    x = normal((5, 7), dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        exact = dtype != torch.float32 or half
        torch.testing.assert_close(ours(x), theirs(x), **({"rtol": 0, "atol": 0} if exact else {}))


def test_the_compiler_sees_a_linear_layer():
    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    seen, (ours, _) = [], pair(7, 4)
    torch.compile(ours, backend=backend, fullgraph=True)(normal((5, 7)))
    assert len(seen) == 1 and "linear" in seen[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_the_tracer_sees_a_linear_layer():
    assert "aten::linear" in str(torch.jit.trace(pair(7, 4)[0], normal((5, 7))).inlined_graph)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("off", ["no", "onednn is off", "a processor where MKL is faster"])
@pytest.mark.parametrize("layer", [0, 1])
def test_onednn_computes_what_is_needed_forward_and_backward(layer, off, monkeypatch):
    monkeypatch.setattr(linear, "FASTER", "processor" not in off)
    ours = Product(product, nn.Linear(7, 4))
    x = normal((5, 7)).requires_grad_(layer > 0)  # the first layer of a network needs no gradient of its input
    with torch.backends.mkldnn.flags(enabled="onednn" not in off):
        ours(x)  # at first use it is compared
        found = operators_of(lambda: ours(x).sum().backward())
    assert found["_linear_pointwise"] == (2 + layer if off == "no" else 0)
    assert found["addmm"] + found["mm"] == (0 if off == "no" else 2 + layer)


def test_products_are_counted():
    def count(module):
        with FlopCounterMode(display=False) as counter:
            module(normal((5, 7)).requires_grad_()).sum().backward()
        return counter.get_total_flops()

    ours, theirs = pair(7, 4)
    assert count(ours) == count(theirs) == 3 * 2 * 5 * 7 * 4


def test_tensors_that_watch_what_is_done_to_them():
    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs)

    seen, x = [], normal((5, 7)).as_subclass(Watching)
    for function in (linear.linear, F.linear):
        assert type(function(x, normal((4, 7)), normal((4,)))) is Watching
    ours, theirs = pair(7, 4)
    assert type(ours(x)) is type(theirs(x)) is Watching
    assert seen.count(F.linear) == 4


def test_forward_mode_derivatives():
    def along(function):
        with fwAD.dual_level():
            x = fwAD.make_dual(normal((5, 7)), normal((5, 7), 1))
            return fwAD.unpack_dual(function(x, normal((4, 7)), normal((4,)))).tangent

    torch.testing.assert_close(along(linear.linear), along(F.linear))
