"""Linear layers computed by oneDNN against PyTorch's own."""

import pytest
import torch
from comparison import VIEWS, assert_same, normal, randomized, step
from test_networks import Operators
from torch import nn

import linear
from linear import Linear


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def faster(request, monkeypatch):
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(linear, "FASTER", request.param)
    return request.param


def pair(*sizes: int, **options) -> tuple[Linear, nn.Linear]:
    theirs = randomized(nn.Linear(*sizes, **options))
    ours = Linear(*sizes, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 7), (5, 7), (1024, 3072), (0, 7), (7,), (2, 3, 7)])
def test_same_as_pytorch(shape, bias, faster):
    ours, theirs = pair(shape[-1], 4, bias=bias)
    assert_same(step(ours, normal(shape)), step(theirs, normal(shape)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("view", VIEWS)
def test_inputs_that_do_not_lie_densely(view, faster):
    x = view(normal((4, 4, 4, 4)))[:, 0, :, 0]
    ours, theirs = pair(x.size(1), 3)
    assert_same(step(ours, x), step(theirs, x), rtol=1e-5, atol=1e-5)


def test_gradient_of_a_gradient_as_pytorch(faster):
    def penalty(module):
        x = normal((6, 3)).requires_grad_()
        inputs = [x, *module.parameters()]
        gradients = torch.autograd.grad(module(x).pow(3).sum(), inputs, create_graph=True)
        return [*gradients, *torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)]

    ours, theirs = pair(3, 4)
    torch.testing.assert_close(penalty(ours), penalty(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_by_torch_func(faster):
    def gradients(module):
        def loss(parameters, x):
            return torch.func.functional_call(module, parameters, (x,)).square().sum()

        parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, normal((2, 5, 7)))

    ours, theirs = map(gradients, pair(7, 4))
    assert_same(ours, theirs)


@pytest.mark.parametrize("x", [normal((5, 6)), normal((5, 7), dtype=torch.float64), normal((6,)), torch.tensor(1.0)])
def test_same_errors(x, faster):
    errors = []
    for module in pair(7, 4):
        with pytest.raises(RuntimeError) as error:
            module(x)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_not_single_precision_is_left_to_pytorch(dtype, faster):
    ours, theirs = (module.to(dtype) for module in pair(7, 4))
    x = normal((5, 7), dtype=dtype)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_autocast(faster):
    ours, theirs = pair(7, 4)
    x = normal((5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_onednn_computes_forward_and_backward(faster):
    ours, _ = pair(7, 4)
    x = normal((5, 7)).requires_grad_()
    with Operators() as operators:
        ours(x).sum().backward()
    used = {name.split(".")[0] for name in operators.names} & {"_linear_pointwise", "addmm", "mm"}
    assert used == ({"_linear_pointwise"} if faster else {"addmm", "mm"})
