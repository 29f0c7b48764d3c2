"""fast/gpu/guard.py: the kernels are tried before use, wrong ones are found and left alone."""

import contextlib
import inspect
import io
import subprocess
import sys
from unittest import mock

import pytest
import torch
from apart import DEVICE, on_kernels
from comparison import normal
from conftest import ROOT
from fast.batch import batch
from torch import nn

from cnn.model import CNN
from fast import choice
from fast.gpu import guard
from layers import BatchNorm1d, BatchNorm2d, Dropout, Dropout2d
from load_data import Split
from mlp.model import MLP
from store.images import take

DTYPES = [torch.float32, torch.bfloat16]


def test_philox_gives_the_published_numbers():
    """Random123's known answer for a counter and a key of zeros."""
    numbers = [each.item() for each in guard.philox(0, torch.tensor(0))]
    assert numbers == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_masks_of_the_kernel_keep_the_rate():
    mask = guard.kept_by_value(torch.tensor([5]), 0.3, (8, 16, 32, 32)).double()
    n = mask.numel()
    assert abs(mask.mean() - 0.7) < 5 * (0.21 / n) ** 0.5
    flat = (mask - mask.mean()).flatten()
    assert abs((flat[1:] * flat[:-1]).mean()) < 5 * 0.21 / n ** 0.5


@pytest.mark.parametrize("kind", ["pool", "pool by value", "columns", "batch"])
@on_kernels
def test_guard_finds_the_kernels_right_and_draws_no_random_number(kind):
    state = torch.get_rng_state()
    for dtype in DTYPES:
        with torch.no_grad():
            assert guard.works(kind, dtype, torch.device(DEVICE))
    assert torch.equal(torch.get_rng_state(), state)


OUTPUTS = [("pool", "pool_kernel", "pooled"), ("pool", "pool_kernel", "code"),
           ("pool by value", "pool_kernel", "parts"), ("pool", "statistics_kernel", "stats"),
           ("pool", "forward_kernel", "y"), ("pool", "sums_kernel", "parts"),
           ("pool", "add_kernel", "sums"), ("pool", "backward_kernel", "dx"),
           ("pool", "evaluation_kernel", "y"), ("columns", "columns_forward_kernel", "y"),
           ("columns", "columns_forward_kernel", "stats"),
           ("columns", "columns_backward_kernel", "sums"),
           ("columns", "columns_backward_kernel", "dx"), ("batch", "batch_kernel", "x")]


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


@pytest.mark.parametrize("kind, kernel, output", OUTPUTS)
@on_kernels
def test_guard_finds_each_wrong_result_and_says_so_once(kind, kernel, output):
    from fast.gpu import kernels

    broken, said = Broken(getattr(kernels, kernel), output), io.StringIO()
    guard.works.cache_clear()
    with mock.patch.object(kernels, kernel, broken), contextlib.redirect_stderr(said):
        for _ in range(2):
            assert not guard.works(kind, torch.float32, torch.device(DEVICE))
    guard.works.cache_clear()
    assert len(said.getvalue().splitlines()) == 1 and f"'{kind}'" in said.getvalue()


@on_kernels
def test_guard_survives_kernels_that_do_not_build():
    from fast.gpu import kernels

    said = io.StringIO()
    guard.works.cache_clear()
    with mock.patch.object(kernels, "pool_kernel", None), contextlib.redirect_stderr(said):
        x, norm = normal((2, 4, 4, 4), device=DEVICE), BatchNorm2d(4).to(DEVICE)
        assert guard.cnn_block(x, norm, nn.Identity()) is None
    guard.works.cache_clear()
    assert len(said.getvalue().splitlines()) == 1 and "TypeError" in said.getvalue()


@pytest.mark.parametrize("broken", [False, True])
@on_kernels
def test_networks_train_on_kernels_that_are_right_and_else_on_their_layers(broken):
    """Whole maps are dropped alike, so the two ways give the same block."""
    from fast.gpu import blocks, kernels

    cnn, mlp, said = CNN(0.3).to(DEVICE), MLP(drop_rate=0.3).to(DEVICE), io.StringIO()
    x = normal((2, 128, 4, 4), device=DEVICE).contiguous(memory_format=torch.channels_last)
    hidden = normal((20, 100), device=DEVICE)
    kernel = Broken(kernels.pool_kernel, "pooled") if broken else kernels.pool_kernel
    columns = Broken(kernels.columns_forward_kernel, "y") if broken else kernels.columns_forward_kernel
    guard.works.cache_clear()
    with (mock.patch.object(choice, "fuses", lambda *_: False), contextlib.redirect_stderr(said),
          mock.patch.object(kernels, "pool_kernel", kernel),
          mock.patch.object(kernels, "columns_forward_kernel", columns)):
        functions = [choice.faster(x, cnn.norm1, cnn.dropout),
                     choice.faster_hidden(hidden, mlp.norm, mlp.dropout)]
        torch.manual_seed(0)
        found = cnn.norm_relu_dropout_pool(x, cnn.norm1)
        mlp.after_linear1(hidden)
    guard.works.cache_clear()
    assert len(said.getvalue().splitlines()) == 2 * broken
    assert functions == ([choice.pool_early, None] if broken else
                         [blocks.norm_relu_dropout_pool, blocks.norm_relu_dropout])
    torch.manual_seed(0)
    torch.testing.assert_close(found, choice.pool_early(x, cnn.norm1, cnn.dropout))


@pytest.mark.parametrize("exact", [False, True])
@on_kernels
def test_a_batch_is_taken_by_the_kernel_where_no_bit_differs(exact):
    """A product with 1 / 255 instead of the division is off by a bit in some values."""
    from fast.gpu import blocks, kernels

    class Product:
        def __getitem__(self, grid):
            return lambda images, index, x, *_, **__: x.copy_((images[index].float() - 128) * (1 / 255))

    split, index, said = split_of(3, (3, 4, 5)), torch.tensor([2, 0], device=DEVICE), io.StringIO()
    guard.works.cache_clear()
    with (mock.patch.object(kernels, "batch_kernel", kernels.batch_kernel if exact else Product()),
          contextlib.redirect_stderr(said)):
        function = guard.batch(split.images, index)
        found = batch(split, index)
    guard.works.cache_clear()
    assert function is (blocks.batch if exact else None)
    assert all(map(torch.equal, found, take(split, index)))
    assert len(said.getvalue().splitlines()) == (not exact)


def split_of(n: int, shape: tuple[int, ...]) -> Split:
    """n images of random bytes in a run's memory order."""
    random = torch.Generator().manual_seed(n)
    images = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=random)
    return Split(images.contiguous(memory_format=guard.memory_order(images)).to(DEVICE),
                 torch.arange(n, device=DEVICE))


def test_without_a_gpu_triton_is_not_loaded():
    """It takes seconds, and is not there on every system."""
    check = "import sys, training, cnn.model, mlp.model; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_a_batch_is_left_to_pytorch_where_the_kernel_does_not_apply(monkeypatch):
    monkeypatch.setattr(guard, "works", lambda *_: True)
    monkeypatch.setattr(guard, "blocks", mock.MagicMock)
    images, index = split_of(4, (3, 4, 5)).images.cpu(), torch.tensor([3, 0])
    assert guard.batch(images, index) is None, "not on a GPU"
    monkeypatch.setattr(guard, "DEVICE", "cpu")
    assert guard.batch(images, index) and guard.batch(images.flatten(1), index)
    for other in (images.contiguous(), images.float(), images.flatten(1)[:, ::2]):
        assert guard.batch(other, index) is None
    for other in (index.int(), torch.arange(4)[::2]):
        assert guard.batch(images, other) is None


def test_kernels_are_left_alone_where_they_do_not_apply(monkeypatch):
    """Without a card this asks no kernel: `works` says yes to all that would be tried."""
    monkeypatch.setattr(guard, "works", lambda *_: True)
    monkeypatch.setattr(guard, "blocks", mock.MagicMock)
    x, norm, dropout = normal((2, 4, 4, 4)), BatchNorm2d(4), Dropout(0.3)
    assert guard.cnn_block(x, norm, dropout) is None, "not on a GPU"
    monkeypatch.setattr(guard, "DEVICE", "cpu")
    assert guard.cnn_block(x, norm, dropout)
    for other in (x.double(), x.half(), x[:0], x[:, :, :1], x[0], x.flatten(1)):
        assert guard.cnn_block(other, norm, dropout) is None
    detached, half = BatchNorm2d(4, detach_statistics=True), BatchNorm2d(4, dtype=torch.bfloat16)
    for other in (nn.Identity(), detached, half):
        assert guard.cnn_block(x, other, dropout) is None
    norm.eval()
    assert guard.cnn_block(x, norm, nn.Identity()) is None, "the weight wants a gradient"
    with torch.no_grad():
        assert guard.cnn_block(x, norm, Dropout(0.0)) and guard.cnn_block(x, norm, dropout.eval())
        assert guard.cnn_block(x, norm, Dropout2d(0.3)) is None, "drops in evaluation"
    x, norm = x.flatten(1), BatchNorm1d(16)
    for p, applies in ((0.0, True), (1e-7, False), (0.3, True), (1 - 1e-7, False), (1.0, True)):
        assert bool(guard.mlp_block(x, norm, Dropout(p))) == applies
    assert guard.mlp_block(x, norm, Dropout2d(0.3)) is None
    assert guard.mlp_block(x, norm.eval(), Dropout(0.3)) is None
