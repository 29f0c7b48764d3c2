"""bench/gpu.py: rehearsed on a CPU; a step that fails or hangs does not keep the others from running."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from report.results import collect


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("gpu")


def rehearse(folder: Path, data_dir: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "bench" / "gpu.py", "--device", "cpu", "--folder", folder,
               "--data_dir", data_dir, "--seconds", "900"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent)


@pytest.mark.slow
def test_rehearsal_runs_through_and_tells_what_did_not_run(image_folder, tmp_path):
    folder = tmp_path / "gpu"
    found = rehearse(folder, image_folder)
    table = (folder / "table.md").read_text()
    assert found.returncode == 0, found.stdout + found.stderr
    assert table in found.stdout and "not done" not in table
    for what in ("tests/test_gpu_graph.py", "| a run resumed after an epoch, bit for bit | yes |",
                 "| step as a CUDA graph, bit for bit | not recorded: ", "CNN step, bf16, 1d",
                 "MLP epoch, batch 32", "8 MLPs side by side", "CNN, 2 epochs, bf16", "| 3, in",
                 "| the CNN's block in GPU kernels | not tried: no CUDA device"):
        assert what in table, what
    assert not list(folder.rglob("*.pt")), "weights make the folder large"
    assert sum(path.stat().st_size for path in folder.rglob("*.*")) < 2 ** 20
    assert len(collect(folder, tmp_path / "results")) == 3


def test_a_step_that_fails_is_noted_and_one_without_time_comes_again(gpu, tmp_path, monkeypatch, capsys):
    taken, reasons = [], {"kernels": "exit code 1: no | kernel", "graph": "stopped after 60 s"}

    def within(seconds, command, log, environment) -> str:
        taken.append(command[-1])
        return reasons.get(command[-1], "" if seconds == 60 else "stopped after 9 s")

    monkeypatch.setattr(gpu, "within", within)
    monkeypatch.setattr(gpu, "STEPS", {
        step: 100 if step in (gpu.steps, gpu.kernels) else 20 for step in gpu.STEPS})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--folder", str(tmp_path), "--seconds", "90"])
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "tests.json").write_text('[["tests", "done before", "", ""]]')
    assert gpu.main() == 1
    table, first = (tmp_path / "table.md").read_text(), taken.copy()
    for row in ("| tests | done before |", "| step kernels | not done | exit code 1: no / kernel |",
                "| step graph | not done | stopped after 60 s |", "| step steps | not done | stopped after 9 s"):
        assert row in table
    taken.clear()
    gpu.main()
    assert {"kernels", "graph"} <= {*first} and not {"kernels", "graph", "tests"} & {*taken}
    assert "steps" in taken, "time cut it short"


def test_a_step_that_hangs_is_ended_with_all_that_it_started(gpu, tmp_path):
    length = f"{os.getpid()}.5"  # of a sleep that no one else takes
    command = ["bash", "-c", f"sleep {length} & sleep {length}; sleep {length}"]
    assert gpu.within(1, command, tmp_path / "log", os.environ) == "stopped after 1 s"
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep {length}" not in listed
