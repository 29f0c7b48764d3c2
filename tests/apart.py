"""A process for tests of kernels: triton interprets in it, or compiles.

That has to be chosen before triton is loaded, and other tests may have loaded it here.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no triton here")


def apart(interpret: bool):
    """Run a test in a process in which triton interprets, or compiles."""
    def decorate(test):
        @needs_triton
        @pytest.mark.skipif(interpret and too_old(), reason="this triton cannot interpret with this numpy")
        @functools.wraps(test)
        def run(**arguments):
            process(interpret).submit(call, test.__module__, test.__name__, arguments).result()
        return run
    return decorate


def too_old() -> bool:
    """Triton's interpreter is numpy underneath; up to 3.6 it fails with numpy 2.4."""
    def version(name: str) -> tuple[int, ...]:
        return tuple(map(int, importlib.metadata.version(name).split(".")[:2]))

    try:
        return version("triton") < (3, 7) and version("numpy") >= (2, 4)
    except importlib.metadata.PackageNotFoundError:
        return False


@functools.cache
def process(interpret: bool) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), set_up, (interpret,))


def set_up(interpret: bool) -> None:
    from fast.gpu import guard

    os.environ["TRITON_INTERPRET"] = str(int(interpret))
    guard.DEVICE = DEVICE
    if interpret:
        from fast.gpu import kernels

        kernels.MOST_PROGRAMS = 2  # so that programs take several rounds of small tensors


def call(module: str, name: str, arguments: dict) -> None:
    getattr(importlib.import_module(module), name).__wrapped__(**arguments)


on_kernels = apart(interpret=DEVICE == "cpu")
