"""fast/gpu/guard.py: the kernels are tried before use; wrong ones are found and left alone."""

import contextlib
import functools
import inspect
import io
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import torch
from apart import DEVICE, on_kernels
from comparison import normal
from conftest import ROOT
from torch import nn

import cnn.model
import mlp.model
from fast import agreement
from fast.gpu import guard
from layers import BatchNorm1d, BatchNorm2d, Dropout, Dropout2d

CNN, MLP = cnn.model.block.__wrapped__, mlp.model.block.__wrapped__
EVALUATION = nn.Identity, False, False, False


def here(*variant) -> tuple:
    return *variant, torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device(DEVICE)


def said(work) -> tuple:
    """What some work returns, and the lines that it says of slower ways."""
    agreement.tried.cache_clear()
    agreement.OUTCOMES.clear()
    with contextlib.redirect_stderr(io.StringIO()) as lines:
        found = work()
    agreement.tried.cache_clear()
    return found, lines.getvalue().splitlines()


VARIANTS = [*((guard.CNN, CNN, (kind, half, True, True)) for half in (False, True)
              for kind in (nn.Identity, Dropout, Dropout2d)),
            (guard.CNN, CNN, (nn.Identity, False, True, False)),  # without running statistics
            (guard.CNN, CNN, EVALUATION), (guard.CNN, CNN, (nn.Identity, True, False, False)),
            *((guard.MLP, MLP, (kind, dtype, True)) for kind in (nn.Identity, Dropout)
              for dtype in (torch.float32, torch.bfloat16)),
            (guard.MLP, MLP, (Dropout, torch.float32, False))]


@on_kernels
def test_the_kernels_agree_with_the_modules_and_draw_no_random_number():
    state = torch.get_rng_state()
    for candidate, definition, variant in VARIANTS:
        with torch.no_grad():
            trial = functools.partial(agreement.agrees, candidate, definition, here(*variant))
            assert said(trial) == (True, []), variant
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", ["inference_mode", "default dtype", "default device", "autocast"])
@on_kernels
def test_the_kernels_agree_whatever_mode_asks(mode):
    variant = here(Dropout2d, False, True, True)
    modes = {"inference_mode": torch.inference_mode(), "autocast": torch.autocast(DEVICE, torch.bfloat16),
             "default device": torch.device("meta"), "default dtype": contextlib.nullcontext()}
    if mode == "default dtype":
        torch.set_default_dtype(torch.float64)
    try:
        with modes[mode]:
            assert said(lambda: agreement.agrees(guard.CNN, CNN, variant)) == (True, [])
    finally:
        torch.set_default_dtype(torch.float32)


TRAINING = Dropout2d, False, True, True
OUTPUTS = [(TRAINING, "pool_kernel", "pooled"), (TRAINING, "pool_kernel", "code"),
           ((Dropout, False, True, True), "pool_kernel", "stats"), (TRAINING, "statistics_kernel", "stats"),
           (TRAINING, "statistics_kernel", "mean"), (TRAINING, "statistics_kernel", "variance"),
           (TRAINING, "statistics_kernel", "count"), (TRAINING, "forward_kernel", "y"),
           (TRAINING, "sums_kernel", "sums"), (TRAINING, "add_kernel", "sums"),
           (TRAINING, "backward_kernel", "dx"), (EVALUATION, "evaluation_kernel", "y"),
           *(((Dropout, torch.float32, True), f"columns_{name}_kernel", output)
             for name, outputs in (("forward", ("y", "stats", "mean", "count")), ("backward", ("sums", "dx")))
             for output in outputs)]


class Broken:
    """A kernel whose result is a thousandth too large; whole numbers are doubled."""

    def __init__(self, kernel, output: str):
        self.kernel = kernel
        self.place = list(inspect.signature(kernel.fn).parameters).index(f"{output}_ptr")

    def __getitem__(self, grid):
        def run(*arguments, **constants):
            self.kernel[grid](*arguments, **constants)
            output = arguments[self.place]
            output.mul_(1.001 if output.is_floating_point() else 2)
        return run


class OneRound:
    """A kernel whose programs stop after their first round, as if there were a program for each."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def run(x, *arguments, **constants):
            few = x[:grid[0] * 16 // ((x.size(2) // 2) * (x.size(3) // 2))]  # its windows
            self.kernel[grid](few, *arguments[:5], len(few), *arguments[6:], **constants)
        return run


def outcome(candidate, variant: tuple, name: str, kernel) -> tuple:
    from fast.gpu import kernels

    definition = CNN if candidate is guard.CNN else MLP
    with mock.patch.object(kernels, name, kernel):
        return said(lambda: [agreement.agrees(candidate, definition, here(*variant)) for _ in range(2)])


@pytest.mark.parametrize("variant, kernel, output", OUTPUTS)
@on_kernels
def test_each_wrong_result_is_found_and_said_once(variant, kernel, output):
    from fast.gpu import kernels

    candidate = guard.MLP if kernel.startswith("columns") else guard.CNN
    found, lines = outcome(candidate, variant, kernel, Broken(getattr(kernels, kernel), output))
    assert found == [False, False] and len(lines) == 1 and lines[0].startswith(candidate.what)
    assert agreement.OUTCOMES[candidate.what].startswith("not used: ")


@on_kernels
def test_programs_that_stop_after_their_first_round_are_found():
    from fast.gpu import kernels

    found, lines = outcome(guard.CNN, TRAINING, "pool_kernel", OneRound(kernels.pool_kernel))
    assert found == [False, False] and len(lines) == 1


@on_kernels
def test_kernels_that_do_not_build_are_left_alone_with_what_is_missing(monkeypatch):
    found, lines = outcome(guard.CNN, TRAINING, "pool_kernel", None)
    assert found == [False, False] and len(lines) == 1 and "TypeError" in lines[0]
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(guard.sysconfig, "get_path", lambda name: "/nowhere")
    _, (line,) = outcome(guard.CNN, TRAINING, "pool_kernel", None)
    assert "may need a C compiler and Python.h" in line


@on_kernels
def test_want_of_memory_is_not_remembered():
    def full(*arguments, **constants):
        raise torch.OutOfMemoryError("CUDA out of memory")

    class Full:
        __getitem__ = staticmethod(lambda grid: full)

    from fast.gpu import kernels

    def twice():
        with mock.patch.object(kernels, "pool_kernel", Full()):
            first = agreement.agrees(guard.CNN, CNN, here(*TRAINING))
        return first, agreement.agrees(guard.CNN, CNN, here(*TRAINING))

    assert said(twice) == ((False, True), [])


@on_kernels
def test_an_edited_layer_trains_on_a_gpu_too():
    """What a reader changes in layers/ before the import is what trains: the kernels then differ."""
    def forward(self, x):
        return x * 0 + 7

    with mock.patch.object(BatchNorm2d, "forward", forward):
        found, lines = said(lambda: agreement.agrees(guard.CNN, CNN, here(*TRAINING)))
    assert not found and len(lines) == 1


@pytest.mark.parametrize("broken", [False, True])
@on_kernels
def test_networks_train_on_kernels_that_are_right_and_else_on_their_layers(broken):
    from fast.gpu import blocks, kernels

    network, x = cnn.model.CNN(0.3).to(DEVICE), normal((2, 3, 8, 8), device=DEVICE)
    x = x.contiguous(memory_format=torch.channels_last)
    kernel = Broken(kernels.pool_kernel, "pooled") if broken else kernels.pool_kernel
    used = []

    def block(*arguments, original=blocks.norm_relu_dropout_pool):
        used.append(len(arguments[0]))
        return original(*arguments)

    with (mock.patch.object(kernels, "pool_kernel", kernel),
          mock.patch.object(blocks, "norm_relu_dropout_pool", block)):
        def work():
            torch.manual_seed(0)
            return network.block(x, network.conv1, network.norm1)

        found, lines = said(work)
    assert used.count(2) == (not broken) and len(lines) == broken
    torch.manual_seed(0)
    with mock.patch.object(agreement, "choose", lambda *_: None):
        expected = network.block(x, network.conv1, network.norm1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_without_a_gpu_triton_is_not_loaded():
    """It takes seconds, and is not there on every system."""
    check = "import sys, training, cnn.model, mlp.model; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_a_home_that_cannot_be_written_leaves_the_cache_under_the_runs(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "home"))
    guard.cache_in(tmp_path)
    assert "TRITON_CACHE_DIR" not in guard.os.environ
    monkeypatch.setattr(guard.os, "access", lambda place, mode: place != tmp_path)
    guard.cache_in(tmp_path / "runs")
    assert guard.os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "runs" / ".triton")
    monkeypatch.delenv("TRITON_CACHE_DIR")


def test_kernels_are_left_alone_where_they_do_not_apply(monkeypatch):
    x, conv, norm, dropout = normal((2, 3, 6, 6)), nn.Conv2d(3, 4, 3), BatchNorm2d(4), Dropout(0.3)
    assert guard.cnn_variant(x, conv, norm, dropout) is None, "not on a GPU"
    monkeypatch.setattr(guard, "DEVICE", "cpu")
    assert guard.cnn_variant(x, conv, norm, dropout) == (Dropout, False, True, True, x.device)
    for other in (x.double(), x.half(), x[:0], x[:, :, :3], x[0], x[:, :2], x.flatten(1)):
        assert guard.cnn_variant(other, conv, norm, dropout) is None
    for other in (nn.Identity(), BatchNorm2d(4, detach_statistics=True), BatchNorm2d(4, momentum=None),
                  BatchNorm2d(4, dtype=torch.bfloat16), BatchNorm2d(5), nn.BatchNorm2d(4)):
        assert guard.cnn_variant(x, conv, other, dropout) is None
    assert guard.cnn_variant(x, nn.Conv2d(3, 4, 3, stride=2), norm, dropout) is None
    assert guard.cnn_variant(x, conv, norm, Dropout(0.3, inplace=True)) is None
    with torch.autocast("cpu", torch.float16):
        assert guard.cnn_variant(x, conv, norm, dropout) is None
    norm.eval()
    assert guard.cnn_variant(x, conv, norm, nn.Identity()) is None, "the weight wants a gradient"
    with torch.no_grad():
        assert guard.cnn_variant(x, conv, norm, dropout.eval()) == (*EVALUATION, x.device)
        assert guard.cnn_variant(x, conv, norm, Dropout2d(0.3)) is None, "drops in evaluation"
    x, norm = x.flatten(1), BatchNorm1d(108)
    assert guard.mlp_variant(x, norm, Dropout(0.3)) and not guard.mlp_variant(x, norm, Dropout2d(0.3))
    assert guard.mlp_variant(x[:1], norm, Dropout(0.3)) is None
    assert guard.mlp_variant(x, norm.eval(), Dropout(0.3)) is None
