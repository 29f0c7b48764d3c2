"""The networks against the same networks of PyTorch's own modules, and the fused CNN block against its parts."""

import ast
import copy
import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from comparison import (
    DEVICES,
    Operators,
    assert_as_accurate,
    assert_same,
    normal,
    randomized,
    step,
    tolerance,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize, prune

from cnn import model as cnn
from cnn.model import CNN
from fast.blocks import NormReluPool, norm_relu_dropout_pool
from fast.choice import faster, fuses, pool_early
from layers import (
    BatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    Dropout,
    Dropout2d,
    Normalize,
    batch_statistics,
)
from mlp import model as mlp
from mlp.model import MLP

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = [MLP, CNN]


class TorchMLP(nn.Module):
    """MLP, of PyTorch's modules."""

    def __init__(self, drop_rate: float = 0.2):
        super().__init__()
        self.linear1 = nn.Linear(3072, 100)
        self.norm = nn.BatchNorm1d(100)
        self.dropout = nn.Dropout(drop_rate)
        self.linear2 = nn.Linear(100, 10)

    def forward(self, x):
        return self.linear2(self.dropout(F.relu(self.norm(self.linear1(x)))))


class TorchCNN(nn.Module):
    """CNN, of PyTorch's modules, in the order in which the design names them."""

    def __init__(self, drop_rate: float = 0.2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 128, 5)
        self.norm1 = nn.BatchNorm2d(128)
        self.conv2 = nn.Conv2d(128, 64, 3)
        self.norm2 = nn.BatchNorm2d(64)
        self.dropout = nn.Dropout2d(drop_rate)
        self.linear = nn.Linear(2304, 10)

    def forward(self, x):
        x = F.max_pool2d(self.dropout(F.relu(self.norm1(self.conv1(x)))), 2)
        x = F.max_pool2d(self.dropout(F.relu(self.norm2(self.conv2(x)))), 2)
        return self.linear(x.flatten(1))


REFERENCE = {MLP: TorchMLP, CNN: TorchCNN}


def batch(network, n: int = 8, seed: int = 0, dtype=torch.float32, device="cpu"):
    """`n` pictures, as the network takes them, and labels."""
    pixels = normal((n, 3, 32, 32), seed, dtype, device) / 4
    labels = torch.arange(n, device=device) % 10
    if network is MLP:
        return pixels.flatten(1), labels
    return pixels.contiguous(memory_format=torch.channels_last), labels


def pair(network, dtype=torch.float32, device="cpu", **options):
    """A network and the reference with the same weights."""
    torch.manual_seed(0)
    ours, theirs = network(**options), REFERENCE[network](**options)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(device, dtype), theirs.to(device, dtype)


# Networks


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("options", [{}, {"without_BatchNorm": True}, {"without_dropout": True}, {"num_classes": 7},
                                     {"without_BatchNorm": True, "without_dropout": True}])
@pytest.mark.parametrize("network", NETWORKS)
def test_logits_have_a_row_per_picture(network, options, n):
    module = network(**options).eval()
    x, _ = batch(network, n)
    assert module(x).shape == (n, options.get("num_classes", 10))


def kinds(network: nn.Module) -> list[str]:
    return [type(module).__name__ for module in network.children()
            if not isinstance(module, nn.Linear | nn.Conv2d | nn.Identity)]


def test_options_choose_the_layers():
    assert kinds(MLP()) == ["BatchNorm1d", "Dropout"]
    assert kinds(MLP(without_BatchNorm=True)) == ["Dropout"]
    assert kinds(MLP(without_dropout=True)) == ["BatchNorm1d"]
    assert kinds(CNN()) == ["BatchNorm2d", "BatchNorm2d", "Dropout2d"]
    assert kinds(CNN(dropout_type="1d")) == ["BatchNorm2d", "BatchNorm2d", "Dropout"]
    assert kinds(CNN(without_BatchNorm=True)) == ["Dropout2d"]
    assert kinds(CNN(without_dropout=True)) == ["BatchNorm2d", "BatchNorm2d"]
    assert MLP(hidden_size=256).linear1.out_features == MLP(hidden_size=256).norm.num_features == 256
    assert MLP(drop_rate=0.7).dropout.p == CNN(drop_rate=0.7).dropout.p == 0.7
    with pytest.raises(ValueError, match="dropout_type"):
        CNN(dropout_type="3d")


SETTINGS = {"hidden_size": 64, "drop_rate": 0.3, "without_BatchNorm": False, "without_dropout": False,
            "dropout_type": "2d", "detach_statistics": False}


@pytest.mark.parametrize("model", [mlp, cnn])
def test_settings_choose_the_layers(model):
    def built(num_classes=10, **changes):
        return model.build(SimpleNamespace(**SETTINGS | changes), num_classes)

    norms = [module for module in built(detach_statistics=True).modules() if isinstance(module, BatchNorm)]
    assert norms and all(norm.detach_statistics for norm in norms)
    assert not any(getattr(module, "detach_statistics", False) for module in built().modules())
    assert kinds(built(without_BatchNorm=True)) == ["Dropout" if model is mlp else "Dropout2d"]
    assert "Dropout" not in str(built(without_dropout=True))
    assert built().dropout.p == 0.3
    assert list(built(num_classes=7).children())[-1].out_features == 7
    assert kinds(cnn.build(SimpleNamespace(**SETTINGS | {"dropout_type": "1d"})))[-1] == "Dropout"
    assert mlp.build(SimpleNamespace(**SETTINGS)).linear1.out_features == 64


@pytest.mark.parametrize("network", NETWORKS)
def test_dropout_acts_in_training_alone(network):
    module, (x, _) = network(drop_rate=0.5), batch(network)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("network", NETWORKS)
def test_state_dict_is_that_of_pytorch_modules(network):
    ours, theirs = network(), REFERENCE[network]()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(REFERENCE[network]().state_dict())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_same_logits_and_gradients_as_pytorch(network, training, device):
    ours, theirs = (module.train(training) for module in pair(network, device=device, drop_rate=0))
    x, _ = batch(network, device=device)
    assert_same(step(ours, x), step(theirs, x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES[:2])
@pytest.mark.parametrize("network", NETWORKS)
def test_same_training_as_pytorch(network, device):
    """In float64: the bias before a BatchNorm has no gradient but rounding errors, which Adam makes full steps of."""
    modules = pair(network, torch.float64, device, drop_rate=0)
    optimizers = [torch.optim.Adam(module.parameters(), 0.001) for module in modules]
    for seed in range(4):
        x, labels = batch(network, seed=seed, dtype=torch.float64, device=device)
        found = []
        for module, optimizer in zip(modules, optimizers, strict=True):
            logits = module(x)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append({"logits": logits, "loss": loss} | {n: p.grad.clone() for n, p in module.named_parameters()})
        assert_same(*found, rtol=1e-6, atol=1e-8)
        assert_same(*(module.state_dict() for module in modules), rtol=1e-6, atol=1e-8)
    ours, theirs = (module.eval() for module in modules)
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("network", NETWORKS)
def test_autocast(network, device):
    ours, theirs = pair(network, device=device, drop_rate=0)
    x, labels = batch(network, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        logits, expected = ours(x), theirs(x)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05)
    F.cross_entropy(logits.float(), labels).backward()
    F.cross_entropy(expected.float(), labels).backward()
    for (name, found), wanted in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        error = (found.grad - wanted.grad).norm()
        assert error <= 0.1 * wanted.grad.norm() + 1e-2, name
    for (name, found), wanted in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3, msg=lambda s, name=name: f"{name}: {s}")


def batched_gradients(module, x):
    x.requires_grad_()
    y = module(x)
    g = normal((2, *y.shape), 1, y.dtype)
    return y, *torch.autograd.grad(y, [x, *module.parameters()], g, is_grads_batched=True)


def along(module, x):
    with fwAD.dual_level():
        return fwAD.unpack_dual(module(fwAD.make_dual(x, normal(x.shape, 1, x.dtype))))


def without_counter(module, x):
    for norm in module.modules():
        if hasattr(norm, "num_batches_tracked"):
            norm.num_batches_tracked = None
    return step(module, x)


def inplace(module, x):
    module.dropout.inplace = True
    return step(module, x)


def elsewhere(module, x):
    with torch.device("meta"):
        y = module(x)
        return y, *torch.autograd.grad(y.pow(3).sum(), module.parameters())


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("work", [batched_gradients, along, without_counter, inplace, elsewhere])
@pytest.mark.parametrize("network", NETWORKS)
def test_unusual_uses_as_pytorch(network, work, training):
    modules = (module.train(training) for module in pair(network, torch.float64, drop_rate=0))
    torch.testing.assert_close(*(work(module, batch(network, 4, dtype=torch.float64)[0]) for module in modules))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_rate_that_is_no_probability_any_more(network, training):
    for module in pair(network):
        module.train(training).dropout.p = 1.5
        with pytest.raises(ValueError, match="between 0 and 1"):
            module(batch(network, 4)[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_dtypes_that_do_not_fit(network):
    for module in pair(network):
        for name, norm in module.named_children():
            if "norm" in name:
                norm.double()
        with pytest.raises(RuntimeError, match="mixed dtype"):
            module(batch(network, 4)[0])


@pytest.mark.parametrize("dropout_type", ["1d", "2d"])
def test_compiled_cnn(dropout_type):
    """The backend changes nothing; what is tested is that our code takes the compiler's way and arrives at the same."""
    check_compiled(CNN(0.0, dropout_type=dropout_type), *batch(CNN, 4))


def test_compiled_mlp():
    check_compiled(MLP(drop_rate=0.0), *batch(MLP))


def check_compiled(network: nn.Module, x, labels) -> None:
    for module in (network, twin := copy.deepcopy(network)):
        module.double()
    compiled, x = torch.compile(twin, backend="eager", fullgraph=True), x.double()
    for training in (True, True, False):
        found, expected = (step(module.train(training), x) for module in (compiled, network))
        torch.testing.assert_close(found.pop("y"), expected.pop("y"))
        torch.testing.assert_close(list(found.values()), list(expected.values()))


@pytest.mark.parametrize("module", [Dropout(0.3), Dropout2d(0.3)])
def test_compiled_dropout(module):
    torch.manual_seed(0)
    y = torch.compile(module, backend="eager", fullgraph=True)(torch.ones(200, 50, 2, 2))
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / 0.7]))
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y)) == isinstance(module, Dropout2d)


# Nothing of PyTorch's own normalization or dropout

TORCHS_OWN = re.compile(r"(batch|layer|group|instance|rms|response|sync)_?norm|dropout|^native_", re.IGNORECASE)


def uses_of_torchs_own(source: str) -> list[str]:
    """Names of PyTorch's normalization and dropout that the source takes out of torch or a part of it."""
    tree = ast.parse(source)
    torchs, found = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            torchs |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] == "torch"}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            torchs |= {a.asname or a.name for a in node.names}
            found += [a.name for a in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in torchs:
                found.append(node.attr)
    return [name for name in found if TORCHS_OWN.search(name)]


@pytest.mark.parametrize("source", [
    "from torch import nn\nnn.BatchNorm2d(3)", "import torch\ntorch.batch_norm(x)", "from torch.nn import Dropout",
    "import torch.nn.functional as F\nF.dropout2d(x)", "import torch as t\nt.nn.Dropout(0.5)",
    "import torch\ntorch.ops.aten.native_dropout(x)"])
def test_uses_are_found(source):
    assert uses_of_torchs_own(source)


@pytest.mark.parametrize("file", [
    *(str(path.relative_to(ROOT)) for folder in ("layers", "fast") for path in (ROOT / folder).glob("**/*.py")),
    "mlp/model.py", "cnn/model.py", "training.py"])
def test_source_uses_none_of_torchs_own(file):
    assert not uses_of_torchs_own((ROOT / file).read_text())


@pytest.mark.parametrize("build", [*NETWORKS, lambda: CNN(dropout_type="1d"), TorchMLP, TorchCNN],
                         ids=["MLP", "CNN", "CNN-1d", "TorchMLP", "TorchCNN"])
def test_operators_run_are_none_of_torchs_own(build):
    module = build()
    x, labels = batch(MLP if isinstance(module, MLP | TorchMLP) else CNN, 4)
    with Operators() as operators:
        for training in (True, False):
            F.cross_entropy(module.train(training)(x), labels).backward()
    assert any(map(TORCHS_OWN.search, operators.names)) == isinstance(module, TorchMLP | TorchCNN)


# The fused block of the CNN


class Block(nn.Module):
    """MaxPool(dropout(ReLU(norm(x)))): as its definition says, or by the functions of fast/."""

    def __init__(self, norm: nn.Module, dropout: nn.Module, way: str):
        super().__init__()
        self.norm, self.dropout, self.way = norm, dropout, way

    def forward(self, x):
        if self.way == "definition":
            return F.max_pool2d(self.dropout(F.relu(self.norm(x))), 2)
        with mock.patch("fast.choice.fuses", fuses if self.way == "fused" else lambda *_: False):
            return CNN.norm_relu_dropout_pool(self, x, self.norm)


def assert_ways_agree(norm, dropout, x, training=(True, True, False), **accuracy) -> None:
    blocks = [Block(copy.deepcopy(norm), dropout, way) for way in ("definition", "plain", "fused")]
    for mode in training:
        for block in blocks:
            block.train(mode)
        expected, *others = (step(block, x) for block in blocks)
        for found in others:
            assert_same(found, expected, **accuracy)


@settings(max_examples=60, deadline=None, database=None)
@given(n=st.integers(1, 5), c=st.integers(1, 4), h=st.integers(2, 13), w=st.integers(2, 13), affine=st.booleans(),
       tracking=st.booleans(), kind=st.sampled_from([Dropout, Dropout2d]),
       p=st.sampled_from([None, 0.0, 0.3, 0.5, 0.9, 1.0]), channels_last=st.booleans(),
       slice_values=st.sampled_from([1, 100, 1 << 20]), seed=st.integers(0, 1000))
def test_fused_block_is_its_definition(n, c, h, w, affine, tracking, kind, p, channels_last, slice_values, seed):
    x = normal((n, c, h, w), seed, torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    norm = randomized(BatchNorm2d(c, affine=affine, track_running_stats=tracking, dtype=torch.float64), seed)
    dropout = nn.Identity() if p is None else kind(p)
    whole = type(dropout) is not Dropout or p == 0 or p < 1 and c * h * w % 4 == 0  # else the masks would differ
    assert faster(x, norm, dropout) is (norm_relu_dropout_pool if whole else pool_early)
    if whole:
        with mock.patch("fast.blocks.SLICE_VALUES", slice_values):
            assert_ways_agree(norm, dropout, x)


@pytest.mark.parametrize("dropout", [Dropout2d(0.4), Dropout(0.4), nn.Identity()])
@pytest.mark.parametrize("shape", [(6, 5, 13, 13), (6, 5, 28, 28)])
def test_block_in_single_precision(shape, dropout):
    norm = randomized(BatchNorm2d(5))
    x = normal(shape).contiguous(memory_format=torch.channels_last)
    assert_ways_agree(norm, dropout, x, **tolerance(x.dtype))


def test_which_function_computes_a_block():
    norm, still, x = BatchNorm2d(3), BatchNorm2d(3).eval(), normal((4, 3, 6, 6))
    for wide in (x, x.contiguous(memory_format=torch.channels_last)):
        for dropout in (nn.Identity(), Dropout2d(0.5), Dropout(0.5)):
            assert faster(wide, norm, dropout) is norm_relu_dropout_pool
    for other in (x[..., :5, :5], x.transpose(0, 1).contiguous().transpose(0, 1)):  # in parts the mask is another
        assert faster(other, norm, Dropout2d(0.5)) is norm_relu_dropout_pool
        assert faster(other, norm, Dropout(0.5)) is pool_early
    assert faster(x, norm, Dropout(0.0005)) is pool_early
    for dropout in (nn.Identity(), Dropout2d(0.5), Dropout(0.5)):
        assert faster(x, nn.Identity(), dropout) is faster(x[:0], norm, dropout) is pool_early
        assert faster(x, BatchNorm2d(3, detach_statistics=True), dropout) is pool_early
    assert faster(x, still, Dropout(0.5)) is pool_early
    for dropout in (Dropout2d(0.5), Dropout(0.5).eval(), Dropout(0.0)):
        assert faster(x, still, dropout) is norm_relu_dropout_pool
    assert faster(x[0], norm, dropout) is faster(x, norm, Dropout(0.5, inplace=True)) is None


class Called(CNN):
    """CNN, whose layers are always called one by one."""

    def norm_relu_dropout_pool(self, x, norm):
        return F.max_pool2d(self.dropout(F.relu(norm(x))), 2)


def shifted(module, *tensors):
    """A hook that does something: it adds to what passes."""
    return next(each[0] if isinstance(each, tuple) else each for each in reversed(tensors) if each is not None) + 0.5


def halved(module, gradients, *_):
    return tuple(g / 2 for g in gradients)


class Louder(BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class MoreMaps(Dropout2d):
    def mask_shape(self, x):
        return torch.Size([1, 1, 1, 1])


def put(name: str, build):
    return lambda net: setattr(net, name, build())


def hook(name: str, kind: str, function):
    return lambda net: getattr(net.get_submodule(name), f"register_{kind}")(function)


def forward_of_its_own(name: str):
    def change(net):
        module = net.get_submodule(name)
        module.forward = lambda x: type(module).forward(module, x) + 1

    return change


class Plus(nn.Module):
    def forward(self, x):
        return x + 0.25


TOUCHED = {
    **{f"{kind} on {name}": hook(name, kind, function) for name in ("norm1", "norm2", "dropout")
       for kind, function in (("forward_hook", shifted), ("forward_pre_hook", lambda module, x: shifted(module, x)),
                              ("full_backward_hook", halved), ("full_backward_pre_hook", halved))},
    **{f"another forward of {name}": forward_of_its_own(name) for name in ("norm1", "norm2", "dropout")},
    "no dropout": put("dropout", nn.Identity),
    "PyTorch's Dropout": put("dropout", lambda: nn.Dropout(0.5)),
    "PyTorch's Dropout2d": put("dropout", lambda: nn.Dropout2d(0.5)),
    "another module for dropout": put("dropout", Plus),
    "a subclass of Dropout2d": put("dropout", lambda: MoreMaps(0.5)),
    "PyTorch's norm": put("norm1", lambda: nn.BatchNorm2d(128)),
    "a subclass of the norm": put("norm2", lambda: Louder(64)),
    "no norm": put("norm1", nn.Identity),
    "pruned norm": lambda net: prune.random_unstructured(net.norm1, "weight", 0.5),
    "parametrized norm": lambda net: parametrize.register_parametrization(net.norm2, "weight", Plus()),
    "weight_norm": lambda net: torch.nn.utils.weight_norm(net.norm1, "weight"),
    "frozen norm": lambda net: net.norm1.eval(),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", TOUCHED.values(), ids=TOUCHED)
def test_touched_layers_are_called(change, training):
    """As in a network that calls its layers one by one, whose random numbers are the same."""
    found = []
    for network in (CNN, Called):
        torch.manual_seed(0)
        net = network(0.0).train(training)
        change(net)
        found.append(step(net.double(), batch(CNN, 4, dtype=torch.float64)[0]))
    assert_same(*found)


@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_a_block_drops_what_its_modules_drop(kind):
    """Slice by slice, from the same random numbers, of which the same are left."""
    found = []
    for network in (CNN, Called):
        torch.manual_seed(0)
        net = network(0.3, dropout_type=kind)
        with mock.patch("fast.blocks.SLICE_VALUES", 1 << 18):
            found.append((net(batch(CNN, 9)[0]), torch.rand(1)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_global_hooks_see_the_layers():
    def seen(network):
        names, net = [], network()
        with nn.modules.module.register_module_forward_hook(lambda module, *_: names.append(type(module).__name__)):
            net(batch(CNN, 2)[0])
        return names[:-1]

    assert seen(CNN) == seen(Called)


def test_a_class_whose_forward_is_replaced(monkeypatch):
    monkeypatch.setattr(BatchNorm2d, "forward", lambda self, x: torch.zeros_like(x))
    net = CNN(without_dropout=True)
    torch.testing.assert_close(net(batch(CNN, 2)[0]), net.linear.bias.expand(2, -1))


@pytest.mark.parametrize("training", [True, False])
def test_tensors_without_values(training):
    with FakeTensorMode():
        for network in NETWORKS:
            assert step(network().train(training), batch(network, 4)[0])["y"].shape == (4, 10)


@pytest.mark.parametrize("dropout", [Dropout2d(0.6), Dropout(0.6)])
def test_a_weight_of_zero(dropout):
    norm = randomized(BatchNorm2d(3, dtype=torch.float64))
    with torch.no_grad():
        norm.weight[1] = 0
        norm.bias[1] = 0.5
    x = normal((6, 3, 7, 7), dtype=torch.float64)
    expected, found = (step(Block(copy.deepcopy(norm), dropout, way), x) for way in ("definition", "fused"))
    found["d norm.weight"][1] = expected["d norm.weight"][1]  # of equal values in a window, either is the largest
    assert_same(found, expected)


@pytest.mark.parametrize("kind", [Dropout2d, Dropout])
def test_the_fused_block_drops_at_the_rate_of_its_dropout(kind):
    x = normal((50, 200, 2, 2))
    norm = BatchNorm2d(200)
    nn.init.constant_(norm.bias, 100)
    torch.manual_seed(0)
    dropped = (norm_relu_dropout_pool(x, norm, kind(0.6)) == 0).double().mean().item()
    assert dropped == pytest.approx(0.6 if kind is Dropout2d else 0.6 ** 4, abs=0.015)  # ± 3 standard deviations


@pytest.mark.parametrize("kind", [Dropout2d, Dropout])
def test_dropout_while_the_statistics_stand_still(kind):
    norm = randomized(BatchNorm2d(4, dtype=torch.float64)).eval()
    x = normal((6, 4, 5, 5), dtype=torch.float64)
    expected, *others = (step(Block(norm, kind(0.5), way), x) for way in ("definition", "plain", "fused"))
    for found in others:
        assert_same(found, expected)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 4, 6, 6), (2, 3, 6)])
def test_fused_block_refuses_what_the_norm_refuses(shape):
    x, errors = normal(shape), []
    for way in ("fused", "plain"):
        with pytest.raises((ValueError, RuntimeError)) as error:
            Block(BatchNorm2d(3), nn.Identity(), way)(x)
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("dtype, offset", [(torch.float32, 10_000), (torch.bfloat16, 1), (torch.float16, 1)])
@pytest.mark.parametrize("slice_values", [1000, 1 << 20])
@pytest.mark.parametrize("dropout", [nn.Identity(), Dropout(0.5)])  # 1 / (1 - p) is exact in half precision
def test_fused_block_as_accurate_as_pytorch(dtype, offset, slice_values, dropout):
    norm = randomized(BatchNorm2d(4))
    theirs = nn.BatchNorm2d(4)
    theirs.load_state_dict(norm.state_dict())
    x = (normal((32, 4, 13, 13)) + offset).to(dtype).contiguous(memory_format=torch.channels_last)
    truth = Block(copy.deepcopy(theirs), dropout, "definition")
    with mock.patch("fast.blocks.SLICE_VALUES", slice_values):
        assert_as_accurate(Block(norm, dropout, "fused"), Block(theirs, dropout, "definition"), truth, x)


@pytest.mark.parametrize("way", ["fused", "plain"])
@pytest.mark.parametrize("kind", [Dropout2d, Dropout])
def test_a_large_mean_is_carried_as_two_numbers(kind, way):
    """One float32 rounds a mean of 100 000 by 0.004, and the normalized values with it."""
    x = (normal((32, 4, 12, 12)) + 1e5).contiguous(memory_format=torch.channels_last)
    norm, exact = randomized(BatchNorm2d(4)), randomized(BatchNorm2d(4)).double()
    found = step(Block(norm, kind(0.0), way), x)
    truth = step(Block(exact, kind(0.0), "definition"), x.double())
    assert_same(found, {name: value.to(found[name].dtype) for name, value in truth.items()}, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("slice_values", [100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_precision_far_from_zero(dtype, slice_values):
    x = (normal((128, 3, 6, 6)) + 1000).to(dtype)
    expected = [each.float() for each in batch_statistics(x.double())]
    with mock.patch("fast.blocks.SLICE_VALUES", slice_values):
        for _, *found in (Normalize.apply(x, None, None, 1e-5), NormReluPool.apply(x, None, None, 1e-5, 0.0, True)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("way", ["fused", "plain"])
@pytest.mark.parametrize("dropout", [nn.Identity(), Dropout2d(0.4), Dropout(0.4)])
@pytest.mark.parametrize("affine", [True, False])
def test_first_and_second_derivatives_of_the_block(affine, dropout, way):
    norm = randomized(BatchNorm2d(2, affine=affine, dtype=torch.float64))
    block = Block(norm, dropout, way)
    names, parameters = zip(*block.named_parameters(), strict=True) if affine else ((), ())
    # No two values are so near each other that the maximum of a window changes hands.
    x = (torch.randperm(72, generator=torch.Generator().manual_seed(0)).double() / 20).view(3, 2, 4, 3).requires_grad_()

    def function(x, *parameters):
        torch.manual_seed(0)
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), x)

    assert gradcheck(function, (x, *parameters))
    assert gradgradcheck(function, (x, *parameters))


def test_norms_of_the_networks_check_their_input():
    with pytest.raises(ValueError, match="4D"):
        BatchNorm2d(3)(normal((2, 3)))
    with pytest.raises(ValueError, match="2D or 3D"):
        BatchNorm1d(3)(normal((2, 3, 4, 4)))
