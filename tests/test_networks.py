"""The networks against the same networks of PyTorch's own modules, and the faster blocks against their definitions."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from comparison import (
    DEVICES,
    assert_results_as_accurate,
    assert_same,
    normal,
    randomized,
    step,
    tolerance,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import settings_of
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize, prune

from cnn import model as cnn
from cnn.model import CNN
from fast import blocks
from fast.agreement import choose
from fast.blocks import NormReluPool
from fast.choice import CNN_BLOCK, HIDDEN, cnn_variant, early_variant, pool_early
from fast.normalize import Normalize
from layers import (
    BatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    Dropout,
    Dropout2d,
    GaussianDropout,
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
    if network in (MLP, TorchMLP):
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
            if not isinstance(module, nn.Linear | nn.Conv2d | nn.Identity | nn.ModuleList)]


@pytest.mark.parametrize("model", [mlp, cnn])
def test_settings_choose_the_layers(model):
    def built(num_classes=10, **changes):
        return model.build(settings_of(model.__name__.split(".")[0], **changes), num_classes)

    norms = [module for module in built(detach_statistics=True).modules() if isinstance(module, BatchNorm)]
    assert norms and all(norm.detach_statistics for norm in norms)
    assert not any(getattr(module, "detach_statistics", False) for module in built().modules())
    assert kinds(built(without_BatchNorm=True)) == ["Dropout" if model is mlp else "Dropout2d"]
    assert kinds(built(without_dropout=True)) == (["BatchNorm1d"] if model is mlp else ["BatchNorm2d"] * 2)
    assert built(drop_rate=0.3).dropout.p == 0.3
    assert list(built(num_classes=7).children())[-1].out_features == 7
    if model is cnn:
        assert kinds(built()) == ["BatchNorm2d", "BatchNorm2d", "Dropout2d"]
        assert kinds(built(dropout_type="1d")) == ["BatchNorm2d", "BatchNorm2d", "Dropout"]
        with pytest.raises(ValueError, match="dropout_type"):
            CNN(dropout_type="3d")
        assert built(pool_first=True).pool_first and not built().pool_first
    else:
        assert kinds(built()) == ["BatchNorm1d", "Dropout"]
        assert built(hidden_size=64).linear1.out_features == built(hidden_size=64).norm.num_features == 64
        assert len(built(hidden_layers=3).deeper) == 2
        assert type(built(gaussian_dropout=True).dropout) is GaussianDropout


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_hidden_layers_repeat_linear_norm_relu_and_dropout(training, without):
    """As written out in PyTorch's modules, where nothing is dropped; each layer has a norm of its own."""
    torch.manual_seed(0)
    ours = MLP(20, 0.0, without_BatchNorm=without, hidden_layers=3).double().train(training)
    norms = [nn.Identity() if without else nn.BatchNorm1d(20).double() for _ in range(3)]
    linears = [ours.linear1, *(linear for linear, _ in ours.deeper), ours.linear2]
    theirs = nn.Sequential(*(part for linear, norm in zip(linears, norms, strict=False)
                             for part in (linear, norm, nn.ReLU())), linears[-1]).train(training)
    x, _ = batch(MLP, 6, dtype=torch.float64)
    found, expected = (step(copy.deepcopy(network), x) for network in (ours, theirs))
    torch.testing.assert_close(found["y"], expected["y"])
    torch.testing.assert_close([found[f"d {n}.weight"] for n in ("linear1", "deeper.0.0", "deeper.1.0", "linear2")],
                               [expected[f"d {i}.weight"] for i in (0, 3, 6, 9)])
    dropping = MLP(5000, 0.5, hidden_layers=2)
    seen = []
    dropping.dropout.register_forward_hook(lambda module, inputs, y: seen.append((y[inputs[0] > 0] == 0).double().mean()))
    dropping(x.float())
    assert seen == pytest.approx([0.5, 0.5], abs=0.03)


@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_pool_first_drops_what_is_pooled(kind):
    def by_definition(net, x):
        for conv, norm in ((net.conv1, net.norm1), (net.conv2, net.norm2)):
            x = net.dropout(F.max_pool2d(F.relu(norm(conv(x))), 2))
        return net.linear(x.flatten(1))

    net, (x, _) = CNN(0.5, dropout_type=kind, pool_first=True), batch(CNN, 4)
    found = []
    for function in (net, lambda x: by_definition(net, x)):
        torch.manual_seed(1)
        found.append((function(x), torch.rand(1)))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


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


@pytest.mark.parametrize("network", NETWORKS)
def test_compiled(network):
    """The backend changes nothing; what is tested is that our code takes the compiler's way and arrives at the same."""
    module, x = network(drop_rate=0.0).double(), batch(network, 4, dtype=torch.float64)[0]
    compiled = torch.compile(copy.deepcopy(module), backend="eager", fullgraph=True)
    for training in (True, True, False):
        found, expected = (step(net.train(training), x) for net in (compiled, module))
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


NAMED = re.compile(rf"(torch|nn|F|functional|aten|ops)\.\w*({TORCHS_OWN.pattern})|from torch[\w.]* import .*({TORCHS_OWN.pattern})",
                   re.IGNORECASE)


@pytest.mark.parametrize("source", ["nn.BatchNorm2d(3)", "torch.batch_norm(x)", "from torch.nn import Dropout",
                                    "F.dropout2d(x)", "torch.ops.aten.native_dropout(x)"])
def test_uses_are_found(source):
    assert NAMED.search(source)


@pytest.mark.parametrize("file", [
    *(str(path.relative_to(ROOT)) for folder in ("layers", "fast") for path in (ROOT / folder).glob("**/*.py")),
    "mlp/model.py", "cnn/model.py", "training.py"])
def test_source_uses_none_of_torchs_own(file):
    code = re.sub(r'""".*?"""|#.*', "", (ROOT / file).read_text(), flags=re.DOTALL)
    assert not NAMED.search(code)


@pytest.mark.parametrize("build", [*NETWORKS, lambda: CNN(dropout_type="1d"), TorchMLP, TorchCNN],
                         ids=["MLP", "CNN", "CNN-1d", "TorchMLP", "TorchCNN"])
def test_operators_run_are_none_of_torchs_own(build):
    """As the profiler sees them, which costs no fast path."""
    module = build()
    x, labels = batch(MLP if isinstance(module, MLP | TorchMLP) else CNN, 4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for training in (True, False):
            F.cross_entropy(module.train(training)(x), labels).backward()
    names = [row.key.split("::")[-1] for row in profile.key_averages()]
    assert any("relu" in name or "threshold" in name for name in names)
    assert any(map(TORCHS_OWN.search, names)) == isinstance(module, TorchMLP | TorchCNN)


# The faster functions for the CNN's block

DEFINITION = cnn.block.__wrapped__
CHANNELS_LAST = torch.channels_last


def fused(*block, slice_values: int = 2000):
    return blocks.block(*block, slice_values)


class Block(nn.Module):
    """MaxPool(dropout(ReLU(norm(conv(x))))): as its definition says, or by a function of fast/."""

    def __init__(self, way, conv, norm, dropout):
        super().__init__()
        self.way, self.conv, self.norm, self.dropout = way, conv, norm, dropout

    def forward(self, x):
        return self.way(x, self.conv, self.norm, self.dropout)


def block_of(way, channels: int = 4, dropout=None, inputs: int = 3, kernel=3, conv_bias=True, dtype=torch.float64,
             seed: int = 0, **options) -> Block:
    """With weights that follow from the seed, half of a norm's negative."""
    conv = nn.Conv2d(inputs, channels, kernel, bias=conv_bias)
    norm, dropout = BatchNorm2d(channels, **options), nn.Identity() if dropout is None else dropout
    return randomized(Block(way, conv, norm, dropout), seed).to(dtype, memory_format=CHANNELS_LAST)


def images_of(*shape: int, seed: int = 0, dtype=torch.float64):
    return normal(shape, seed, dtype).contiguous(memory_format=CHANNELS_LAST)


def assert_same_block(found: dict, expected: dict, **accuracy) -> None:
    """But for the convolution's bias, which a norm takes out again: its gradient is 0, or rounding noise."""
    if (noise := expected.pop("d conv.bias", None)) is not None:
        assert found.pop("d conv.bias").eq(0).all()
        assert noise.norm() <= 1e-5 * (1 + noise.numel() * expected["d conv.weight"].norm())
    assert_same(found, expected, **accuracy)


@settings(max_examples=60, deadline=None, database=None)
@given(n=st.integers(1, 5), c=st.integers(1, 4), inputs=st.integers(1, 3), h=st.integers(4, 11), w=st.integers(4, 11),
       kernel=st.sampled_from([1, 3, (2, 3)]), affine=st.booleans(), conv_bias=st.booleans(), tracking=st.booleans(),
       kind=st.sampled_from([Dropout, Dropout2d]), p=st.sampled_from([None, 0.0, 0.3, 0.5, 0.9, 1.0]),
       channels_last=st.booleans(), slice_values=st.sampled_from([1, 200, 1 << 20]), seed=st.integers(0, 1000))
def test_fused_block_is_its_definition(n, c, inputs, h, w, kernel, affine, conv_bias, tracking, kind, p, channels_last,
                                       slice_values, seed):
    x = normal((n, inputs, h, w), seed, torch.float64)
    x = x.contiguous(memory_format=CHANNELS_LAST) if channels_last else x
    dropout = nn.Identity() if p is None else kind(p)
    ways = [block_of(way, c, dropout, inputs, kernel, conv_bias, affine=affine, track_running_stats=tracking, seed=seed)
            .to(memory_format=CHANNELS_LAST if channels_last else torch.contiguous_format)
            for way in (DEFINITION, lambda *block: fused(*block, slice_values=slice_values), pool_early)]
    for mode in (True, True, False):
        (conv, norm), expected = (ways[0].conv, ways[0].norm), step(ways[0].train(mode), x)
        applies = cnn_variant(x, conv, norm, dropout) is not None
        by_value = kind is Dropout and p and mode
        assert applies or p == 1 and mode or by_value and (not channels_last or inputs == 1)
        if applies:
            trains = norm.uses_batch_statistics()
            (assert_same_block if trains else assert_same)(step(ways[1].train(mode), x), dict(expected))
        else:
            ways[1].load_state_dict(ways[0].state_dict())
        assert early_variant(x, conv, norm, dropout)
        assert_same(step(ways[2].train(mode), x), expected)


@pytest.mark.parametrize("dropout", [Dropout2d(0.4), Dropout(0.4), nn.Identity()])
@pytest.mark.parametrize("shape", [(6, 3, 15, 15), (6, 3, 30, 30)])
def test_block_in_single_precision(shape, dropout):
    x = images_of(*shape, dtype=torch.float32)
    ways = [block_of(way, 5, dropout, dtype=torch.float32) for way in (DEFINITION, fused)]
    for mode in (True, True, False):
        expected, found = (step(block.train(mode), x) for block in ways)
        (assert_same_block if mode else assert_same)(found, expected, **tolerance(x.dtype))


def test_which_function_computes_a_block():
    def chosen(x, dropout=None, training=True, conv=None, norm=None):
        modules = conv or nn.Conv2d(3, 4, 3), norm or BatchNorm2d(4), dropout or nn.Identity()
        for module in modules:
            module.to(memory_format=CHANNELS_LAST).train(training)
        return choose(CNN_BLOCK, DEFINITION, x, *modules)

    x = images_of(4, 3, 8, 8, dtype=torch.float32)
    kinds = (nn.Identity, lambda: Dropout2d(0.5), lambda: Dropout(0.5))
    for other in (x, x.contiguous(), x[..., :5, :5], x.double()):
        norm, conv = BatchNorm2d(4, dtype=other.dtype), nn.Conv2d(3, 4, 3, dtype=other.dtype)
        assert all(chosen(other, kind(), conv=conv, norm=norm) is blocks.block for kind in kinds)
    assert chosen(x, Dropout(0.0005)) is pool_early
    for kind in kinds:
        assert chosen(x, kind(), norm=nn.Identity()) is pool_early
        assert chosen(x, kind(), norm=BatchNorm2d(4, detach_statistics=True)) is None
        assert chosen(x, kind(), conv=nn.Conv2d(3, 4, 3, stride=2)) is pool_early
        assert chosen(x, kind(), training=False) is blocks.block
    assert chosen(x[:0]) is chosen(x[0]) is chosen(x, Dropout(0.5, inplace=True)) is None
    assert chosen(x, GaussianDropout(0.5)) is None


@pytest.mark.parametrize("dropout", [nn.Identity(), Dropout(0.4)])
def test_the_mlps_block_is_its_definition(dropout):
    class Hidden(Block):
        def forward(self, x):
            return self.way(x, self.norm, self.dropout)

    x, found = normal((9, 6), dtype=torch.float64), []
    for way in (HIDDEN[1].function, mlp.block.__wrapped__):
        block = Hidden(way, nn.Identity(), randomized(BatchNorm1d(6, dtype=torch.float64)), dropout.train())
        found.append(step(block, x) | {"the next random number": torch.rand(1)})
    assert_same(*found)
    assert choose(HIDDEN, mlp.block.__wrapped__, x, block.norm, dropout) is HIDDEN[1].function
    assert choose(HIDDEN, mlp.block.__wrapped__, x, block.norm.eval(), dropout) is None


# Layers that somebody touched


def shifted(module, *tensors):
    """A hook that does something: it adds to what passes."""
    return next(each[0] if isinstance(each, tuple) else each for each in reversed(tensors) if each is not None) + 0.5


def halved(module, gradients, *_):
    return tuple(g if g is None else g / 2 for g in gradients)


class Louder(BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class LouderConv(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class MoreMaps(Dropout2d):
    def mask_shape(self, x):
        return torch.Size([1, 1, 1, 1])


class Plus(nn.Module):
    def forward(self, x):
        return x + 0.25


def put(name: str, build):
    return lambda block: setattr(block, name, build())


def hook(name: str, kind: str, function):
    return lambda block: getattr(block.get_submodule(name), f"register_{kind}")(function)


def forward_of_its_own(name: str):
    def change(block):
        module = block.get_submodule(name)
        module.forward = lambda x: type(module).forward(module, x) + 1

    return change


PARTS = ("conv", "norm", "dropout")
TOUCHED = {
    **{f"{kind} on {name}": hook(name, kind, function) for name in PARTS
       for kind, function in (("forward_hook", shifted), ("forward_pre_hook", lambda module, x: shifted(module, x)),
                              ("full_backward_hook", halved), ("full_backward_pre_hook", halved))},
    **{f"another forward of {name}": forward_of_its_own(name) for name in PARTS},
    **{f"pruned {name}": lambda block, name=name: prune.random_unstructured(block.get_submodule(name), "weight", 0.5)
       for name in PARTS[:2]},
    **{f"parametrized {name}": lambda block, name=name: parametrize.register_parametrization(
       block.get_submodule(name), "weight", Plus()) for name in PARTS[:2]},
    **{f"weight_norm of {name}": lambda block, name=name: nn.utils.weight_norm(block.get_submodule(name), "weight")
       for name in PARTS[:2]},
    "spectral_norm": lambda block: nn.utils.spectral_norm(block.conv),
    "no dropout": put("dropout", nn.Identity),
    "PyTorch's Dropout": put("dropout", lambda: nn.Dropout(0.5)),
    "PyTorch's Dropout2d": put("dropout", lambda: nn.Dropout2d(0.5)),
    "another module for dropout": put("dropout", Plus),
    "a subclass of Dropout2d": put("dropout", lambda: MoreMaps(0.5)),
    "PyTorch's norm": put("norm", lambda: nn.BatchNorm2d(4)),
    "a subclass of the norm": put("norm", lambda: Louder(4)),
    "no norm": put("norm", nn.Identity),
    "a subclass of the convolution": put("conv", lambda: LouderConv(3, 4, 3)),
    "strided": put("conv", lambda: nn.Conv2d(3, 4, 3, 2)),
    "dilated": put("conv", lambda: nn.Conv2d(3, 4, 3, dilation=2)),
    "padded": put("conv", lambda: nn.Conv2d(3, 4, 3, padding=1)),
    "circular": put("conv", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")),
    "a lazy convolution": put("conv", lambda: nn.LazyConv2d(4, 3)),
    "a compiled norm": lambda block: block.norm.compile(backend="eager"),
    "frozen norm": lambda block: block.norm.eval(),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*", "ignore:.*spectral_norm.*", "ignore:Lazy modules")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", TOUCHED.values(), ids=TOUCHED)
def test_touched_layers_are_called(change, training):
    """As in a block that calls its layers one by one, whose random numbers are the same."""
    found, x = [], images_of(4, 3, 8, 8)
    for way in (cnn.block, DEFINITION):
        block = block_of(way, dropout=Dropout2d(0.5)).to(memory_format=torch.contiguous_format)
        torch.manual_seed(0)
        change(block.train(training))
        block.double()(x)
        found.append(step(block, x))
    assert_same(*found, rtol=1e-7, atol=1e-11)  # also of the bias of a convolution that is normalized


class Called(CNN):
    """CNN, whose layers are always called one by one."""

    def block(self, x, conv, norm):
        return DEFINITION(x, conv, norm, self.dropout)


class Fused(CNN):
    """CNN, whose blocks are always computed by fast/blocks.py, in several slices."""

    def block(self, x, conv, norm):
        return fused(x, conv, norm, self.dropout, slice_values=1 << 18)


@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_a_block_drops_what_its_modules_drop(kind):
    """Slice by slice, from the same random numbers, of which the same are left."""
    found = []
    for network in (Fused, Called):
        torch.manual_seed(0)
        net = network(0.3, dropout_type=kind).to(memory_format=CHANNELS_LAST)
        found.append((net(batch(CNN, 9)[0]), torch.rand(1)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_a_network_trained_by_the_block_stays_the_one_trained_by_its_definition(kind):
    """But for the bias of a convolution, whose gradient is 0 there, and rounding noise here."""
    torch.manual_seed(0)
    one = Fused(0.2, dropout_type=kind).double().to(memory_format=CHANNELS_LAST)
    other = Called(0.2, dropout_type=kind).double().to(memory_format=CHANNELS_LAST)
    other.load_state_dict(one.state_dict())
    x, labels = batch(CNN, 8, dtype=torch.float64)
    for net in (one, other):
        optimizer = torch.optim.Adam(net.parameters(), 0.001)
        for seed in range(3):
            torch.manual_seed(seed)
            F.cross_entropy(net(x), labels).backward()
            for conv in (net.conv1, net.conv2):
                gradient = conv.bias.grad
                assert gradient.eq(0).all() if net is one else 0 < gradient.norm() < 1e-12
                conv.bias.grad = None  # of noise Adam would make full steps
            optimizer.step()
            optimizer.zero_grad()
    assert_same(one.state_dict(), other.state_dict(), rtol=1e-6, atol=1e-8)


def test_the_tracked_mean_has_the_bias_of_the_convolution():
    x = images_of(4, 3, 8, 8)
    plain, moved = (block_of(fused, track_running_stats=True, momentum=1.0) for _ in range(2))
    with torch.no_grad():
        moved.conv.bias += 5
    first, second = step(plain, x), step(moved, x)
    torch.testing.assert_close(second["norm.running_mean"], first["norm.running_mean"] + 5)
    torch.testing.assert_close(second["y"], first["y"])
    torch.testing.assert_close(*(block.eval()(x) for block in (plain, moved)))


def test_global_hooks_see_the_layers():
    def seen(network):
        names, net = [], network()
        with nn.modules.module.register_module_forward_hook(lambda module, *_: names.append(type(module).__name__)):
            net(batch(CNN, 2)[0])
        return names[:-1]

    assert seen(CNN) == seen(Called)


@pytest.mark.parametrize("training", [True, False])
def test_tensors_without_values(training):
    with FakeTensorMode():
        for network in NETWORKS:
            assert step(network().train(training), batch(network, 4)[0])["y"].shape == (4, 10)


def test_tensors_that_watch_what_is_done_to_them():
    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs)

    seen = []
    for network in NETWORKS:
        assert type(network()(batch(network, 4)[0].as_subclass(Watching))) is Watching
    assert seen.count(F.relu) == 3


# What the fused block must not lose


@pytest.mark.parametrize("dropout", [Dropout2d(0.6), Dropout(0.6)])
def test_a_weight_of_zero(dropout):
    ways = [block_of(way, 3, dropout) for way in (DEFINITION, fused)]
    for block in ways:
        with torch.no_grad():
            block.norm.weight[1] = 0
            block.norm.bias[1] = 0.5
    expected, found = (step(block, images_of(6, 3, 9, 9)) for block in ways)
    found["d norm.weight"][1] = expected["d norm.weight"][1]  # of equal values in a window, either is the largest
    assert_same_block(found, expected)


@pytest.mark.parametrize("kind", [Dropout2d, Dropout])
def test_the_fused_block_drops_at_the_rate_of_its_dropout(kind):
    block = block_of(fused, 200, kind(0.6), kernel=1)
    nn.init.constant_(block.norm.bias, 100)
    torch.manual_seed(0)
    dropped = (block(images_of(50, 3, 2, 2)) == 0).double().mean().item()
    assert dropped == pytest.approx(0.6 if kind is Dropout2d else 0.6 ** 4, abs=0.015)  # ± 3 standard deviations


@pytest.mark.parametrize("kind", [Dropout2d, Dropout])
def test_dropout_while_the_statistics_stand_still(kind):
    ways = [block_of(way, dropout=kind(0.5))
            for way in (DEFINITION, pool_early, fused if kind is Dropout2d else cnn.block)]
    for block in ways:
        block.norm.eval()
    expected, *others = (step(block, images_of(6, 3, 7, 7)) for block in ways)
    for found in others:
        assert_same(found, expected)


@pytest.mark.parametrize("shape", [(1, 3, 3, 3), (2, 4, 6, 6), (3, 6, 6), (2, 3, 2, 2), (2, 3, 3, 3)])
def test_the_block_refuses_what_the_modules_refuse(shape):
    errors = []
    for way in (cnn.block, DEFINITION):
        with pytest.raises((ValueError, RuntimeError)) as error:
            block_of(way, dtype=torch.float32)(normal(shape))
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("slice_values", [1000, 1 << 20])
@pytest.mark.parametrize("dropout", [nn.Identity(), Dropout(0.5)])
@pytest.mark.parametrize("half, offset", [(False, 1000), (False, 0), (True, 1)])
def test_fused_block_as_accurate_as_pytorch(half, offset, dropout, slice_values):
    """With a mean far from zero, which the convolution's bias and weights give its output."""
    def ours(*block):
        return fused(*block, slice_values=slice_values)

    ways = [block_of(way, dropout=dropout, dtype=torch.float32) for way in (ours, DEFINITION, DEFINITION)]
    for block in ways:
        nn.init.constant_(block.conv.bias, offset)
        nn.init.uniform_(block.conv.weight, 0.1, 0.3, generator=torch.Generator().manual_seed(0))
    for block in ways[1:]:
        norm, block.norm = block.norm, nn.BatchNorm2d(4)
        block.norm.load_state_dict(norm.state_dict())
    x = images_of(16, 3, 15, 15, dtype=torch.float32) + offset
    if half:  # what the products round is the same for both
        x = x.bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found, theirs = (step(block, x) for block in ways[:2])
    truth = step(ways[2].double(), x.double())
    for each in (found, theirs, truth):
        each.pop("d conv.bias")
    assert_results_as_accurate(found, theirs, truth)


@pytest.mark.parametrize("slice_values", [1000, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_far_from_zero(dtype, slice_values):
    """Of a convolution that passes x through, so that they are those of x."""
    x = (images_of(128, 3, 6, 6) + 1000).to(dtype)
    expected = [each.float() for each in batch_statistics(x.double())]
    kernel = torch.eye(3, dtype=dtype)[:, :, None, None].contiguous(memory_format=CHANNELS_LAST)
    _, *found = NormReluPool.apply(x, kernel, None, None, None, 1e-5, 0.0, True, max(1, slice_values // 108))
    for mean, variance in (found, Normalize.apply(x, None, None, 1e-5)[1:]):
        torch.testing.assert_close([mean, variance], expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("way", [fused, pool_early])
@pytest.mark.parametrize("dropout", [nn.Identity(), Dropout2d(0.4), Dropout(0.4)])
@pytest.mark.parametrize("affine", [True, False])
def test_first_and_second_derivatives_of_the_block(affine, dropout, way):
    block = block_of(way, 2, dropout, inputs=2, kernel=2, affine=affine)
    names, parameters = zip(*block.named_parameters(), strict=True)
    x = images_of(3, 2, 3, 3, seed=1).requires_grad_()

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
