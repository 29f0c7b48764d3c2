"""When GPU kernels compute a network's block, and what they are tried on before they do.

Nobody can try every card, driver and version of triton. So fast/agreement.py tries each variant at
its first use in a process, against the modules. Where it fails or differs, one line says so, and
the modules run. The trials take as many programs as training does, and several rounds of each, so
that the compiled kernels are those that train.
"""

import functools
import importlib
import os
import shutil
import sysconfig
from collections.abc import Callable, Hashable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from fast.agreement import OUTCOMES, Faster
from fast.conditions import block_trial, convolves, drop_rate, drops, normalizes, there
from fast.gpu.graph import GraphedStep
from layers import BatchNorm1d, BatchNorm2d, Dropout2d

DEVICE = "cuda"  # tests put "cpu" here, for triton's interpreter


def on_gpu(x: Tensor) -> bool:
    """Whether x lies on the GPU of this process."""
    return (x.device.type == DEVICE
            and (DEVICE == "cpu" or x.get_device() == torch.cuda.current_device()))


# The CNN's block


def cnn_variant(x: Tensor, conv: nn.Module, norm: nn.Module, dropout: nn.Module) -> Hashable | None:
    """Kind of dropout, whether in bf16, whether by the batch's statistics, device."""
    if not (on_gpu(x) and x.dtype == torch.float32 and type(conv) is nn.Conv2d
            and type(norm) is BatchNorm2d and drops(dropout) and convolves(conv, x)
            and 0 < x.numel() // x.size(1) * conv.out_channels < 2 ** 31
            and norm.momentum is not None
            and normalizes(norm, conv.out_channels, x.device, torch.float32)
            and there(x.device, torch.float32, *conv._parameters.values())):
        return None
    p, half, trains = drop_rate(dropout), in_half(), norm.uses_batch_statistics()
    if half is None or not trains and (p or wants_gradient(x, conv, norm)):
        return None
    return type(dropout) if p else nn.Identity, half, trains, norm.training, x.device


def in_half() -> bool | None:
    """Whether convolutions compute in bf16; None: in another half precision."""
    if not torch.is_autocast_enabled(DEVICE):
        return False
    return True if torch.get_autocast_dtype(DEVICE) == torch.bfloat16 else None


def wants_gradient(x: Tensor, *modules: nn.Module) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(
        each.requires_grad for module in modules for each in module.parameters()))


def cnn_trial(variant: tuple) -> tuple[Tensor, list[nn.Module], dict]:
    """Every other program has a second round of windows, and the last channels do not exist."""
    kind, half, trains, training, device = variant
    kernels = blocks().kernels
    n = kernels.MOST_PROGRAMS * kernels.WINDOWS * 3 // (2 * 16)  # of 16 windows each
    x, modules = block_trial((n, 3, 9, 10), 48, kind, trains, training, device)
    for module in modules:
        module.requires_grad_(trains)  # or without derivatives
    return x, modules, {"half": half}


# The MLP's block


def mlp_variant(x: Tensor, norm: nn.Module, dropout: nn.Module) -> Hashable | None:
    """Kind of dropout, precision, device; in training."""
    if (on_gpu(x) and x.dtype in (torch.float32, torch.bfloat16) and x.dim() == 2
            and x.size(0) > 1 and x.numel() < 2 ** 31 and type(norm) is BatchNorm1d
            and norm.uses_batch_statistics() and norm.momentum is not None
            and drops(dropout) and type(dropout) is not Dropout2d
            and normalizes(norm, x.size(1), x.device, torch.float32)):
        kind = type(dropout) if drop_rate(dropout) else nn.Identity
        return kind, x.dtype, norm.training, x.device
    return None


def mlp_trial(variant: tuple) -> tuple[Tensor, list[nn.Module], dict]:
    """More rows than a program takes at once, columns that are no multiple of 4."""
    kind, dtype, training, device = variant
    norm = BatchNorm1d(6, track_running_stats=training)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    modules = [norm, nn.Identity() if kind is nn.Identity else kind(0.4)]
    for module in modules:
        module.to(device).train(training)
    return (torch.randn(600, 6) + 3).to(device, dtype), modules, {}


# Triton


def launched(name: str) -> Callable:
    """A function of blocks.py, whose errors tell what triton lacks."""
    def block(x: Tensor, *modules: nn.Module) -> Tensor:
        try:
            return getattr(blocks(), name)(x, *modules)
        except Exception as error:
            raise explained(error) from error
    return block


@functools.cache
def blocks() -> ModuleType:
    """fast/gpu/blocks.py, which needs triton; loaded when it is asked for."""
    return importlib.import_module("fast.gpu.blocks")


def cache_in(folder: Path) -> None:
    """Have triton keep what it compiles in a folder, if it cannot do so in the home."""
    place = Path(os.environ.get("TRITON_HOME", "~"), ".triton", "cache").expanduser()
    while not place.exists() and place != place.parent:
        place = place.parent
    if "TRITON_CACHE_DIR" not in os.environ and not os.access(place, os.W_OK):
        os.environ["TRITON_CACHE_DIR"] = str(folder / ".triton")


def explained(error: Exception) -> Exception:
    """The error, and what triton lacks to compile, which its own words do not tell."""
    lacks = []
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        lacks.append("a C compiler")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacks.append("Python.h (python3-dev)")
    if not lacks or isinstance(error, torch.OutOfMemoryError):
        return error
    return RuntimeError(f"triton may need {' and '.join(lacks)}: {type(error).__name__}: {error}")


CNN = Faster("the CNN's block in GPU kernels", launched("norm_relu_dropout_pool"),
             cnn_variant, cnn_trial)
MLP = Faster("the MLP's block in GPU kernels", launched("norm_relu_dropout"),
             mlp_variant, mlp_trial)


def way_of(network: str, graph: GraphedStep | None) -> dict[str, str]:
    """For config.json: whether kernels and graph were used as they were asked for, or why not."""
    candidate = CNN if network == "cnn" else MLP
    return {"kernels": OUTCOMES.get(candidate.what, "do not apply"),
            "cuda_graph": graph.outcome if graph else "off"}
