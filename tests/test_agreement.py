"""What a reader edits is what trains; a faster function is used only where nobody can tell."""

import functools
import warnings

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from comparison import assert_same, normal, step
from forked import copied, edit, run_in  # noqa: F401
from test_networks import CNN, MLP, NETWORKS, REFERENCE, batch, pair
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import cnn.model
import mlp.model
from fast import agreement, blocks, linear
from fast.agreement import choose
from fast.choice import CNN_BLOCK, HIDDEN, PRODUCT
from layers import BatchNorm1d, BatchNorm2d, Dropout, Dropout2d

# Edits as text, in a copy

SOURCES = ("layers", "fast", "store", "mlp", "cnn")
STEP = """
import copy, sys, torch
import torch.nn.functional as F
sys.path.insert(0, "")
import cnn.model, mlp.model

def step(network, x):
    torch.manual_seed(1)
    logits = network(x)
    loss = F.cross_entropy(logits, torch.arange(len(x)) % 10)
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, materialize_grads=True)
    names = [name for name, _ in network.named_parameters()]
    return {"logits": logits.detach(), **{f"d {name}": g for name, g in zip(names, gradients)},
            **{name: buffer.clone() for name, buffer in network.named_buffers()},
            "in evaluation": network.eval()(x).detach()}

found, networks = {}, {}
for name, build, shape in (("mlp", mlp.model.MLP, (4, 3072)), ("cnn", cnn.model.CNN, (4, 3, 32, 32))):
    torch.manual_seed(0)
    networks[name] = build().to(memory_format=torch.channels_last), torch.randn(shape)
for way in ("trained", "by definition"):
    for name, (network, x) in networks.items():
        found[name, way] = step(copy.deepcopy(network), x)
    for model in (cnn.model, mlp.model):
        model.block = getattr(model.block, "__wrapped__", None)
torch.save(found, "found.pt")
"""
PARTS = {"the CNN's block for a CPU", "pooling early", "the MLP's block"}
RELU = "dropout(F.relu(norm("
EDITS = {  # the text in files, the text that it becomes, networks that have to change, functions that are refused
    "BatchNorm.forward gives 7": (
        {"layers/modules.py": {
            "        self.check_input(input)\n        if self.uses": "        return input * 0 + 7\n        if self.uses"}},
        {"mlp", "cnn"}, PARTS),
    "dropout gives 0": (
        {"layers/functional.py": {"return x * (dropout_mask(x, p, shape) / (1 - p)) if p < 1 else x * 0": "return x * 0"}},
        {"mlp", "cnn"}, {"the CNN's block for a CPU"}),
    "batch_norm times 100": (
        {"layers/functional.py": {"return (y if bias is None": "y = y * 100\n    return (y if bias is None"}},
        {"mlp", "cnn"}, PARTS),
    "nothing is tracked": (
        {"layers/modules.py": {"        if not (self.training and self.track_running_stats):\n": "        if True:\n"}},
        {"mlp", "cnn"}, set()),
    "gelu for relu in the models": (
        {f"{network}/model.py": {RELU: RELU.replace("relu", "gelu")} for network in ("mlp", "cnn")},
        {"mlp", "cnn"}, PARTS),
    "Normalize times 100": (
        {"fast/normalize.py": {"return y.to(x.dtype), mean, variance": "return 100 * y.to(x.dtype), mean, variance"}},
        set(), {"the MLP's block"}),
    "the CNN's fast block times 100": (
        {"fast/blocks.py": {"        return y, mean, variance\n": "        return 100 * y, mean, variance\n"}},
        set(), {"the CNN's block for a CPU"}),
}


def assert_alike(found: dict, expected: dict) -> None:
    """But for the gradient of a convolution's bias that a norm takes out: 0, or rounding noise."""
    for name, values in expected.items():
        if not (name.startswith("d conv") and name.endswith("bias") and found[name].norm() + values.norm() < 1e-5):
            torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-5, msg=lambda s, name=name: f"{name}: {s}")


@pytest.fixture(scope="module")
def unedited(run_in, tmp_path_factory) -> dict:  # noqa: F811
    folder = copied(tmp_path_factory.mktemp("unedited"), *SOURCES)
    code, _, said = run_in(folder, STEP)
    assert (code, said) == (0, "")
    return torch.load(folder / "found.pt", weights_only=True)


SEEN_IN = {"dropout gives 0": ("logits", "gradients"), "nothing is tracked": ("in evaluation",)}  # else in all


@pytest.mark.parametrize("name", EDITS)
def test_what_a_reader_edits_is_what_trains(name, run_in, unedited, tmp_path):  # noqa: F811
    changes, changed, refused = EDITS[name]
    edit(copied(tmp_path, *SOURCES), changes)
    code, _, said = run_in(tmp_path, STEP)
    assert code == 0, said
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for network, first in (("mlp", "d linear1.weight"), ("cnn", "d conv1.weight")):
        assert_alike(found[network, "trained"], found[network, "by definition"])
        for outcome in ("logits", first, "in evaluation"):
            values, before = (each[network, "trained"][outcome] for each in (found, unedited))
            if network not in changed:
                torch.testing.assert_close(values, before, rtol=1e-3, atol=1e-5)
            elif outcome.replace(first, "gradients") in SEEN_IN.get(name, (outcome, "gradients")):
                assert not torch.allclose(values, before, rtol=1e-3, atol=1e-5), (network, outcome)
    lines = said.splitlines()
    assert sorted(line.split(" differs from the modules")[0] for line in lines) == sorted(refused), said


def test_the_agreement_is_reached_once_per_variant(monkeypatch):
    """However many steps, batches and networks there are."""
    counted, difference = [], agreement.difference
    monkeypatch.setattr(agreement, "difference", lambda *variant: counted.append(variant) or difference(*variant))
    agreement.tried.cache_clear()
    monkeypatch.setattr(linear, "FASTER", linear.ONEDNN)
    for n in (2, 3, 2):
        for network in NETWORKS:
            for training in (True, False):
                with torch.no_grad():
                    network().train(training)(batch(network, n)[0])
    of_cnn = [(what.what, variant) for what, _, variant in counted if what in CNN_BLOCK]
    assert len(counted) == len(set(counted)) == len(of_cnn) + 1 + linear.ONEDNN
    assert len(of_cnn) == 2 and {what for what, _ in of_cnn} == {"the CNN's block for a CPU"}


# Where somebody could tell


class Gelu(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return F.gelu(args[0]) if function is F.relu else function(*args, **(kwargs or {}))


class Louder(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        return 2 * y if function is torch.ops.aten.relu.default else y


def replaced(name: str, other):
    def replace(monkeypatch):
        monkeypatch.setattr(F, name, other)
    return replace


linear_of_torch, conv2d_of_torch = F.linear, F.conv2d
TOLD = {
    "a TorchFunctionMode": Gelu,
    "a TorchDispatchMode": Louder,
    "F.relu": replaced("relu", F.gelu),
    "F.max_pool2d": replaced("max_pool2d", F.avg_pool2d),
    "F.linear": replaced("linear", lambda *inputs: 2 * linear_of_torch(*inputs)),
    "F.conv2d": replaced("conv2d", lambda *inputs: conv2d_of_torch(*inputs).abs()),
}


@pytest.mark.parametrize("change", TOLD.values(), ids=TOLD)
@pytest.mark.parametrize("network", NETWORKS)
def test_who_changes_what_pytorch_computes_changes_ours(network, change, monkeypatch):
    monkeypatch.setattr(linear, "FASTER", linear.ONEDNN)
    ours, theirs = pair(network, drop_rate=0)
    x, _ = batch(network, 4)
    before = step(ours, x)["y"]
    ours, theirs = pair(network, drop_rate=0)
    if isinstance(change, type):
        with change():
            found, expected = step(ours, x), step(theirs, x)
    else:
        with monkeypatch.context() as patch:
            change(patch)
            found, expected = step(ours, x), step(theirs, x)
    assert_same(found, expected, rtol=1e-3, atol=1e-3)
    touches = not (network is MLP and change in (TOLD["F.max_pool2d"], TOLD["F.conv2d"]))
    assert torch.allclose(found["y"], before, rtol=1e-3, atol=1e-3) != touches


def functions_in_use() -> list:
    """What is chosen for each network's block and for the MLP's product, in training."""
    conv, norm, dropout = nn.Conv2d(3, 4, 3), BatchNorm2d(4), Dropout2d(0.5)
    x = normal((4, 3, 8, 8))
    return [choose(CNN_BLOCK, cnn.model.block.__wrapped__, x, conv, norm, dropout),
            choose(HIDDEN, mlp.model.block.__wrapped__, normal((4, 6)), BatchNorm1d(6), Dropout(0.5)),
            choose(PRODUCT, mlp.model.product.__wrapped__, normal((4, 6)), nn.Linear(6, 5))]


def test_a_default_device_does_not_cost_the_fast_path(monkeypatch):
    monkeypatch.setattr(linear, "FASTER", linear.ONEDNN)
    expected = functions_in_use()
    assert expected[0] is blocks.block and all(expected[:2 + linear.ONEDNN])
    with torch.device("cpu"):
        assert functions_in_use() == expected
        with Gelu():
            assert functions_in_use() == [None] * 3
    try:
        torch.set_default_device("cpu")
        assert functions_in_use() == expected
    finally:
        torch.set_default_device(None)


# Tools


def test_tools_that_go_by_exact_class_find_plain_layers():
    kinds = {type(module) for network in (MLP(hidden_layers=3), CNN()) for module in network.modules()
             if getattr(module, "weight", None) is not None and module.weight.dim() > 1}
    assert kinds == {nn.Linear, nn.Conv2d} and type(MLP().linear1) is nn.Linear


def test_quantize_dynamic_takes_every_linear_layer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (torch.ao.quantization.quantize_dynamic(net.eval(), {nn.Linear}) for net in pair(MLP))
    x, _ = batch(MLP, 16)
    assert type(ours.linear1) is type(theirs.linear1) is not nn.Linear
    torch.testing.assert_close(ours(x), theirs(x))


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return type(module).__module__ == "layers.modules" or super().is_leaf_module(module, name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [*NETWORKS, functools.partial(MLP, hidden_layers=2),
                                   functools.partial(CNN, dropout_type="1d", pool_first=True)])
def test_symbolic_trace_with_the_layers_as_leaves(build, training):
    network = build(without_dropout=True).train(training)
    x, _ = batch(MLP if isinstance(network, MLP) else CNN, 4)
    traced = torch.fx.GraphModule(network, Leaves().trace(network))
    torch.testing.assert_close(traced(x), network(x), rtol=1e-3, atol=1e-4)
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(network)
    assert type(network) not in REFERENCE.values()
