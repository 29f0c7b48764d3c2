"""A training step on tensors without a device: how many kernels it starts, and that it waits for none.

FakeTensorMode runs shapes, not numbers. The engine of autograd needs a real device, so kernels are
counted on fake tensors of the CPU that take a GPU's way; waits and copies show on fake CUDA tensors,
with gradients made up. What one operator of PyTorch starts counts as one kernel.
"""

import collections
import contextlib
import importlib.util
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cnn.model
import mlp.model
import training
from fast import choice, linear
from fast.gpu import guard
from lab.side_by_side import SideBySide
from load_data import Data, Split
from store.settings import Settings

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no triton here")
BUILD = {"cnn": cnn.model.build, "mlp": mlp.model.build}
NO_KERNELS = ("device", "empty", "new_empty", "_unsafe_view")


class Device(TorchDispatchMode):
    """Notes the kernels that run on a device, and what makes the host wait for it."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.kernels, self.waits = collections.Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name.startswith("_fused_adam"):  # at a rate in a tensor it has no shape function
            self.kernels[name] += 1
            return None
        try:
            result = function(*args, **(kwargs or {}))
        except DataDependentOutputException:  # a number is asked for
            self.waits.append(name)
            return 0.5
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if name in ("_to_copy", "copy_") and len(devices) > 1:
            self.waits.append(name)
        if self.device.type in devices and not function.is_view and not name.startswith(NO_KERNELS):
            self.kernels[name] += 1
        return result


class Launched:
    """Stands in for a kernel of triton's and counts its calls."""

    def __init__(self, name: str, device: Device):
        self.name, self.device = name, device

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.device.kernels.update([self.name])


@contextlib.contextmanager
def fake(kind: str):
    """Tensors without a device of this kind, that take a GPU's way through the code."""
    from fast.gpu import blocks, kernels

    device = Device(torch.device(kind))
    launched = {name: Launched(name, device) for name in vars(kernels) if name.endswith("_kernel")}
    with contextlib.ExitStack() as stack:
        for patch in (
                mock.patch.object(guard, "DEVICE", kind), mock.patch.object(guard, "works", lambda *_: True),
                mock.patch.object(torch.cuda, "current_device", lambda: 0),
                mock.patch.object(choice, "fuses", lambda *_: False),  # these three are a CPU's
                mock.patch.object(linear, "applies", lambda *_: False),
                mock.patch("layers.functional.eager", lambda: False),
                mock.patch.object(choice, "ours", lambda *_: True),  # a fake tensor is a subclass
                mock.patch.object(nn.Module, "to", lambda module, *_, **__: module),
                mock.patch("torch._subclasses.fake_tensor.init_gpu_context", lambda *_: None),
                mock.patch.multiple(kernels, **launched), FakeTensorMode(allow_non_fake_inputs=True), device):
            stack.enter_context(patch)
        blocks.constants.cache_clear()
        yield device
    blocks.constants.cache_clear()


def trainer(network: str, device: torch.device, **more) -> training.Trainer:
    images = torch.empty(40_000, 32, 32, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    images = images if network == "cnn" else images.flatten(1)
    split = Split(images, torch.empty(40_000, dtype=torch.int64, device=device))
    data = Data(split, split, split, tuple("0123456789"), "synthetic", "")
    settings = Settings(network, **more)
    with device:
        return training.Trainer(BUILD[network], data, settings, device)


# May only fall. With PyTorch's layers these are 48, 63 and 33.
MOST = {("cnn", "fp32", "2d"): 44, ("cnn", "bf16", "2d"): 59, ("cnn", "fp32", "1d"): 44,
        ("mlp", "fp32", None): 25}
MOST_SIDE_BY_SIDE = 101  # eight MLPs, on a batch that is there


@pytest.mark.parametrize("network, precision, kind", MOST, ids=str)
def test_kernels_of_a_step(network, precision, kind):
    with fake("cpu") as device:
        run = trainer(network, device.device, precision=precision, dropout_type=kind)
        run.network.train()
        index = torch.empty(128, dtype=torch.int64)
        run.step(index)
        device.kernels.clear()
        run.step(index)
    count = sum(device.kernels.values())
    assert count == MOST[network, precision, kind], f"note it here if it fell: {count}, {device.kernels}"


def test_kernels_of_a_step_of_eight_mlps_side_by_side():
    with fake("cpu") as device:
        runs = [trainer("mlp", device.device, drop_rate=i / 10) for i in range(8)]
        team, x, y = SideBySide(runs), torch.empty(128, 3072), torch.empty(128, dtype=torch.int64)
        team.start()
        team.step(0, x, y)
        device.kernels.clear()
        team.step(0, x, y)
    assert not any(isinstance(outcome, Exception) for outcome in team.outcomes.values())
    count = sum(device.kernels.values())
    assert count == MOST_SIDE_BY_SIDE, f"note it here if it fell: {count}, {device.kernels}"


@pytest.mark.parametrize("network", BUILD)
def test_an_epoch_waits_for_the_device_at_its_end_alone(network, monkeypatch):
    with fake("cuda") as device:
        run = trainer(network, device.device, batch_size=8000)

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
