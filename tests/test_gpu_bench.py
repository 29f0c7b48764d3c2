"""bench/gpu.py: rehearsed on a CPU; a step that fails or hangs does not keep the others from running."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from report.results import collect

SCRIPT = ROOT / "bench" / "gpu.py"


def rehearse(folder: Path, data_dir: Path, seconds: int = 550) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, "--device", "cpu", "--folder", folder, "--data_dir", data_dir,
               "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent)


@pytest.mark.slow
def test_rehearsal_runs_through_and_a_second_call_has_nothing_left_to_do(image_folder, tmp_path):
    folder = tmp_path / "gpu"
    found = rehearse(folder, image_folder)
    table = (folder / "table.md").read_text()
    assert found.returncode == 0, found.stdout + found.stderr
    assert table in found.stdout and "not done" not in table
    for what in ("tests: ", "| kill -9 and resume, bit for bit | yes |", "CUDA graph, bit for bit | yes |",
                 "CNN step, batch 32, bf16, 1d", "MLP epoch, batch 64",
                 "side by side, batch 32, bit for bit | yes |", "CNN, 2 epochs, bf16", "| 3, in"):
        assert what in table
    assert not list(folder.rglob("*.pt")), "weights make the folder large"
    assert sum(path.stat().st_size for path in folder.rglob("*.*")) < 2 ** 20
    assert len(collect(folder, tmp_path / "results")) == 3

    noted = {path: path.stat().st_mtime_ns for path in folder.glob("steps/*")}
    assert rehearse(folder, image_folder, seconds=20).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("steps/*")} == noted


def test_steps_that_fail_or_have_no_time_are_named_in_the_table(tmp_path):
    (tmp_path / "gpu" / "steps").mkdir(parents=True)
    (tmp_path / "gpu" / "steps" / "tests.json").write_text('[["tests", "done before", "", ""]]')
    found = rehearse(tmp_path / "gpu", tmp_path / "nowhere", seconds=40)
    table = (tmp_path / "gpu" / "table.md").read_text()
    assert found.returncode == 1 and "| tests | done before |" in table
    for step in ("resume", "graph", "steps", "epochs", "company", "run", "grid"):
        row = next(line for line in table.splitlines() if line.startswith(f"| step {step} |"))
        assert "exit code" in row or "no time left" in row or "stopped after" in row
    assert "| step resume | not done | exit code 1" in table


@pytest.mark.parametrize("obstinate", ["", "trap '' TERM; "])
def test_a_step_that_hangs_is_ended_with_all_that_it_started(obstinate, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu

    length = f"{os.getpid()}.5"  # of a sleep that no one else takes
    command = ["bash", "-c", f"{obstinate}sleep {length} & sleep {length}; sleep {length}"]
    assert gpu.within(1, command, tmp_path / "log", os.environ) == "stopped after 1 s"
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep {length}" not in listed


def test_workers_of_a_grid_end_with_it(image_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu

    runs = tmp_path / "runs"
    command = [ROOT / "run_grid.sh", "cnn", "--data_dir", image_folder, "--runs_dir", runs, "--device", "cpu",
               "--batch_size", "64", "--num_epochs", "1000"]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    assert gpu.within(15, list(map(str, command)), tmp_path / "log", environment) == "stopped after 15 s"
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(runs) not in listed and list(runs.glob("cnn/*/config.json")), "a worker had begun"
