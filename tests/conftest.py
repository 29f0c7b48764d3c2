"""What the tests share: the repository on sys.path, tiny data sets, the real images, and a way to run main.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded: the tests run side by side

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHARED = ROOT.parent / "shared" / "cifar10"


def write_image_folder(folder: Path, train_per_class: int = 30, test_per_class: int = 6, classes: int = 10,
                       seed: int = 0) -> Path:
    """An image folder of coloured noise whose mean colour tells the class, so that a network can learn it."""
    from PIL import Image

    random = np.random.RandomState(seed)
    for split, count in (("train", train_per_class), ("test", test_per_class)):
        for label in range(classes):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for i in range(count):
                noise = random.randint(0, 120, (32, 32, 3)) + np.array([label * 13, 130 - label * 13, label * 7 % 90])
                Image.fromarray(noise.astype(np.uint8)).save(place / f"{i:04}.png")
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """300 + 60 pictures of ten classes: 240 to train, 60 to validate, 60 to test."""
    return write_image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """100 + 20 pictures, decoded already, so that every run does the same."""
    from load_data import load_cifar_2d

    folder = write_image_folder(tmp_path_factory.mktemp("data") / "images", 10, 2)
    load_cifar_2d(folder)
    return folder


def unpacked(tmp_path_factory, kind: str) -> Path:
    if not (SHARED / "prepare.py").exists():
        pytest.skip("the real images are not here (../shared/cifar10)")
    folder = tmp_path_factory.mktemp(kind)
    subprocess.run([sys.executable, SHARED / "prepare.py", folder, f"--{kind}"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def real_images(tmp_path_factory) -> Path:
    """CIFAR-10, JPEG re-encoded, as an image folder."""
    return unpacked(tmp_path_factory, "images") / "images"


@pytest.fixture(scope="session")
def real_batches(tmp_path_factory) -> Path:
    """A folder with cifar-10-batches-py: the same images in the official layout, with other MD5 sums."""
    return unpacked(tmp_path_factory, "batches")


def run_main(network: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Run `python <network>/main.py ARGUMENTS` and wait for it; its output is text in .stdout and .stderr."""
    command = [sys.executable, str(ROOT / network / "main.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def pytest_terminal_summary(terminalreporter):
    """What the tests counted with record_property."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            terminalreporter.write_line(f"{name}: {text}")
