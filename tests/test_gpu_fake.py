"""What a step asks of the host, without a GPU: its time against PyTorch's layers, and waits.

Waits and copies show on fake CUDA tensors, which have shapes, but no numbers. The engine of
autograd needs a real device, so gradients are made up.
"""

import collections
import contextlib
import importlib.util
import time
from unittest import mock

import pytest
import torch
from comparison import normal
from in_process import BUILD
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cnn.model
import mlp.model
import training
from fast import agreement
from fast.gpu import guard
from layers import BatchNorm1d, BatchNorm2d, Dropout, Dropout2d
from load_data import Data, Split
from store.settings import Settings

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no triton here")


class Launched:
    """Stands in for a kernel of triton's and counts its calls."""

    def __init__(self, name: str, kernels: collections.Counter):
        self.name, self.kernels = name, kernels

    def __getitem__(self, grid):
        self.kernels[self.name] += 1
        return nothing


def nothing(*arguments, **constants):
    pass


@contextlib.contextmanager
def on_gpu(kind: str, launched: collections.Counter):
    """Tensors of this kind take a GPU's way through the code, and its kernels launch nothing."""
    from fast.gpu import blocks, kernels

    def mask(x, p, shape):  # as a GPU draws it
        return (torch.empty_like(x) if shape == x.shape else x.new_empty(shape)).bernoulli_(1 - p)

    names = [name for name in vars(kernels) if name.endswith("_kernel")]
    with (mock.patch.object(guard, "DEVICE", kind), mock.patch.object(blocks, "dropout_mask", mask),
          mock.patch.object(agreement, "agrees", lambda *_: True),
          mock.patch.multiple(kernels, **{name: Launched(name, launched) for name in names})):
        yield


# The host's time


def blocks(network: str) -> tuple:
    """A block's definition, its input, and its modules, ours and PyTorch's."""
    if network == "mlp":
        return (mlp.model.block, normal((8, 16)), [BatchNorm1d(16), Dropout(0.2)],
                [nn.BatchNorm1d(16), nn.Dropout(0.2)])
    kind = "Dropout2d" if network == "cnn 2d" else "Dropout"
    ours, theirs = ([nn.Conv2d(8, 8, 1), norm, dropout(0.2)] for norm, dropout in (
        (BatchNorm2d(8), {"Dropout": Dropout, "Dropout2d": Dropout2d}[kind]),
        (nn.BatchNorm2d(8), getattr(nn, kind))))
    return (cnn.model.block, normal((2, 8, 4, 4)).contiguous(memory_format=torch.channels_last),
            ours, theirs)


@pytest.mark.parametrize("network", ["cnn 2d", "cnn 1d", "mlp"])
def test_the_host_takes_for_a_block_at_most_a_fifth_more_than_for_pytorchs(network, record_property):
    """Choice, forward and backward of tensors so small that PyTorch's kernels cost nothing.

    The convolution, which both have, gives its input; so does its bias.
    """
    block, x, ours, theirs = blocks(network)

    def take(function, modules: list) -> None:
        y = function(x.requires_grad_(), *modules)
        y.backward(torch.ones_like(y))
        for values in (x, *(values for module in modules for values in module.parameters())):
            values.grad = None

    launched = collections.Counter()
    with (on_gpu("cpu", launched), mock.patch.object(nn.Conv2d, "_conv_forward", lambda self, x, *_: x),
          mock.patch.object(agreement, "ORIGINAL", agreement.pieces())):
        ways = {"ours": (block, ours), "theirs": (block.__wrapped__, theirs)}
        least = dict.fromkeys(ways, float("inf"))
        for _ in range(40):  # in turns, the least of each: other work on the machine counts for none
            for name, way in ways.items():
                start = time.thread_time()
                for _ in range(50):
                    take(*way)
                least[name] = min(least[name], time.thread_time() - start)
    assert launched["columns_forward_kernel" if network == "mlp" else "pool_kernel"] == 2000
    ratio = least["ours"] / least["theirs"]
    record_property(f"host time of a block, {network}", f"{ratio:.2f} of PyTorch's")
    assert ratio <= 1.2


# Waits


class Device(TorchDispatchMode):
    """Notes what makes the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name.startswith("_fused_adam"):  # at a rate in a tensor it has no shape function
            return None
        try:
            result = function(*args, **(kwargs or {}))
        except DataDependentOutputException:  # a number is asked for
            self.waits.append(name)
            return 0.5
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        if name in ("_to_copy", "copy_") and len({tensor.device.type for tensor in tensors}) > 1:
            self.waits.append(name)
        return result


def first(candidates: tuple, definition, x, *modules):
    """The kernels, though a fake tensor is a subclass and watched."""
    return candidates[0].function if candidates[0] in (guard.CNN, guard.MLP) else None


@contextlib.contextmanager
def fake():
    device = Device()
    with (on_gpu("cuda", collections.Counter()), mock.patch.object(agreement, "choose", first),
          mock.patch.object(torch.cuda, "current_device", lambda: 0),
          mock.patch.object(nn.Module, "to", lambda module, *_, **__: module),
          mock.patch("torch._subclasses.fake_tensor.init_gpu_context", lambda *_: None),
          FakeTensorMode(allow_non_fake_inputs=True), device):
        yield device


def trainer(network: str, **more) -> training.Trainer:
    device = torch.device("cuda")
    images = torch.empty(40_000, 32, 32, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    images = images if network == "cnn" else images.flatten(1)
    split = Split(images, torch.empty(40_000, dtype=torch.int64, device=device))
    data = Data(split, split, split, tuple("0123456789"), "synthetic", "")
    with device:
        return training.Trainer(BUILD[network], data, Settings(network, **more), device)


@pytest.mark.parametrize("network", BUILD)
def test_an_epoch_waits_for_the_device_at_its_end_alone(network, monkeypatch):
    with fake() as device:
        run = trainer(network, batch_size=8000)

        def backward(loss):
            for parameter in run.network.parameters():
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        waits = []

        def step(index, step=run.step):
            waits.append(len(device.waits))
            return step(index)

        run.step = step
        device.waits.clear()
        run.run_epoch()
    assert len(waits) == run.steps == 5
    assert waits[0] == 1, f"more than the order of the samples is copied: {device.waits}"
    assert waits[-1] == waits[1], f"a step waits, and not the first alone: {device.waits}"
