"""Every command that README.md and CONTRIBUTING.md show is run as written, in a copy of the repository.

In the copy the data set is small, and an epoch has one step and a run two epochs, so that minutes become seconds. Three
commands are not what they seem: `sbatch` only lists the runs (test_slurm.py has the real one), `tensorboard` reads the
curves instead of serving them, and `make test` does not start these tests again.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_image_folder

SHIMS = {
    "sbatch": 'while [[ $1 == -* ]]; do shift; done\nexec bash "$@" --dry-run',
    "tensorboard": f'exec {sys.executable} -m tensorboard.main --inspect "$@"',
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    from PIL import Image

    repo = tmp_path_factory.mktemp("docs") / "repo"
    files = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.split()
    for name in files:
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repo / name)
    replace(repo / "training.py", "return len(self.data.train.labels) // self.settings.batch_size", "return 1")
    replace(repo / "store/settings.py", '{"mlp": 20, "cnn": 50}', '{"mlp": 2, "cnn": 2}')
    write_image_folder(repo / "data", train_per_class=130)  # 1040 train: enough for the MLP's batch of 1024
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (90, 70, 3)).astype(np.uint8)).save(repo / "my_cat.png")
    # The environment that runs these tests stands in for the one that make would build.
    (repo / ".venv").symlink_to(sys.prefix)
    shims = repo.parent / "shims"
    shims.mkdir()
    for name, body in SHIMS.items():
        (shims / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (shims / name).chmod(0o755)
    return repo


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is not in {path.name} once"
    path.write_text(text.replace(old, new))


def blocks(language: str) -> list[str]:
    return [block for name in ("README.md", "CONTRIBUTING.md")
            for block in re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)]


def run(command: str, repo: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "--collect-only -q", "WANDB_MODE": "offline",
                   "PATH": f"{repo.parent / 'shims'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", command], cwd=repo, env=environment, capture_output=True, text=True)


def test_commands(copy):
    stamps = [Path(sys.prefix) / name for name in ("installed", "installed-tests")]
    made = [stamp for stamp in stamps if not stamp.exists()]
    for stamp in stamps:
        stamp.touch()
    try:
        lines = [line for block in blocks("bash") for line in block.splitlines()]
        commands = [line for line in lines if line and not line.startswith(("#", "git clone"))]
        assert len(commands) >= 10
        for command in commands:
            done = run(command, copy)
            assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    finally:
        for stamp in made:
            stamp.unlink()
    for code in blocks("python"):
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert done.stdout.strip()


def anchors(page: Path) -> set[str]:
    """Those that a site gives to the headings of a Markdown page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "REPORT.md",
             *(page for folder in ("bench", "docs", "findings", "pics", "tests") for page in (ROOT / folder).glob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            name, _, anchor = target.partition("#")
            place = page.parent / name if name else page
            if not target.startswith("https://"):
                assert place.exists(), f"{page.name} points to {target}"
                assert not anchor or place.suffix == ".py" or anchor in anchors(place), f"{page.name}: no {target}"


def test_a_new_study_is_one_entry(copy):
    """As CONTRIBUTING.md says."""
    entry = '    study("width", "mlp", "MLP, width", {"{hidden_size}": {"hidden_size": (50, 200)}}),\n'
    replace(copy / "studies.py", "STUDIES = (\n", f"STUDIES = (\n{entry}")
    done = run("./run_grid.sh width --dry-run", copy)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert "hidden200" in done.stdout
    assert "width             MLP, width: 2 runs" in run("./run_grid.sh --help", copy).stdout
