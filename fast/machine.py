"""The machine made ready: threads that sleep, memory that is kept, a device.

Imported before torch.
"""

import contextlib
import ctypes
import os
import platform

# Read when torch is loaded. OpenMP threads spin while they wait; if another program wants a core,
# training slows tenfold. Sleeping costs a tenth.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # of PyTorch's OpenMP on Linux: under a millisecond
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # cards are counted as nvidia-smi does
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products that repeat bit for bit

import torch

from fast.gpu.graph import wants_graph
from store.files import UserError


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes a GPU if there is one."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(),
                 "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        usable = ", ".join(kind for kind in available if available[kind])
        raise UserError(f"argument --device: {name} is not available here; choose auto or one of: "
                        f"{usable}")
    if name == "cuda":  # bit for bit the same when run again; TF32 for speed
        torch.backends.cudnn.deterministic = True
        torch.set_float32_matmul_precision("high")
    return torch.device(name)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory. By default it gives every large tensor back to the system,
    and fetching the pages again takes most of a CNN's training step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        no_mmap, trim_threshold = (-4, 0), (-1, 2 ** 31 - 1)
        libc = ctypes.CDLL(None)
        for parameter in (no_mmap, trim_threshold):
            libc.mallopt(*parameter)


def versions(device: torch.device) -> dict:
    """The versions that the numbers depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
                  "driver": driver(), "tf32": torch.backends.cudnn.allow_tf32,
                  "cuda_graph": wants_graph(device)}
    return found


def driver() -> str:
    """The version of NVIDIA's driver, as the system tells it."""
    with contextlib.suppress(OSError), open("/sys/module/nvidia/version") as file:
        return file.read().strip()
    return "unknown"
