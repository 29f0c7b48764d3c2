"""The processor that computes: its vector instructions decide how sums are rounded."""

import contextlib
import platform

import torch


def processor() -> str:
    """The processor's name and its vector instructions."""
    names = [platform.processor() or platform.machine()]
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:  # Linux: the full name
        names = [line.split(":")[1].strip() for line in file
                 if line.startswith("model name")] or names
    return f"{names[0]}, {torch.backends.cpu.get_cpu_capability()}"
