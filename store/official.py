"""The official CIFAR-10 files: their download, and their content."""

import hashlib
import http.client
import os
import pickle
import shutil
import socket
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np

from store.files import ROOT, UserError, make_folder, one_line, read_file
from store.image_folder import stamp

DATA_DIR = ROOT / "data"  # the only folder that need not be there, or empty, to be filled
BATCHES = "cifar-10-batches-py"
STAGING = ".download"
STALL_LIMIT = 30.0  # seconds without a byte


def find_batches(folder: Path) -> list[tuple]:
    """The stamps of the files, sorted by name; none if they are not there."""
    if not os.path.lexists(folder / BATCHES):
        return []
    with os.scandir(folder / BATCHES) as entries:
        return sorted(stamp(entry.name, entry.stat()) for entry in entries)


def read_batches(folder: Path) -> tuple[np.ndarray, np.ndarray, int, list[str]]:
    """Images, labels, the number of those to train, and class names."""
    from torchvision.datasets import CIFAR10

    train, test = ([_unpickle(folder / BATCHES / name, md5) for name, md5 in listed]
                   for listed in (CIFAR10.train_list, CIFAR10.test_list))
    meta = _unpickle(folder / BATCHES / CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    images = np.concatenate([batch["data"] for batch in train + test]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch["labels"] for batch in train + test])
    count = sum(len(batch["labels"]) for batch in train)
    return images, labels.astype(np.int64), count, meta[CIFAR10.meta["key"]]


def _unpickle(path: Path, md5: str) -> dict:
    """The content of an official file. A pickle can run code: the very bytes are checked first."""
    try:
        content = read_file(path)
    except (FileNotFoundError, ValueError):
        content = b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise UserError(f"{path} is missing or not the official file (its MD5 sum differs), so "
                        f"nothing is read; remove {path.parent} to get it again")
    return pickle.loads(content, encoding="latin1")


def refuse_to_fill(folder: Path) -> None:
    """CIFAR-10 is put into data/ or an empty folder; any other was named by mistake."""
    if folder == DATA_DIR:
        return
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; name one that holds train/ and test/, "
                        "or CIFAR-10, or make an empty one to download CIFAR-10 to")
    if any(not name.startswith((".", "cifar-10")) for name in os.listdir(folder)):
        raise UserError(f"{folder} holds neither train/ and test/ nor CIFAR-10; name a folder "
                        "that does, or an empty one to download CIFAR-10 to")


def fetch(folder: Path) -> None:
    """Put the files in their place from the archive, which is downloaded if it is not there."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    archive, staging = folder / CIFAR10.filename, folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # of a download that was killed
    try:
        make_folder(staging)
        if not os.path.lexists(archive):
            _download(CIFAR10, staging, archive)
        elif not check_integrity(archive, CIFAR10.tgz_md5):
            raise UserError(f"{archive} is not the official archive (its MD5 sum differs), so it "
                            "is not opened; remove it to download it again")
        _extract(archive, staging)
        os.replace(staging / BATCHES, folder / BATCHES)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _download(CIFAR10: type, staging: Path, archive: Path) -> None:
    from torchvision.datasets.utils import download_url

    print(one_line(f"downloading {CIFAR10.url} to {archive}"), file=sys.stderr)
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(STALL_LIMIT)
        download_url(CIFAR10.url, staging, CIFAR10.filename, CIFAR10.tgz_md5)
        os.replace(staging / CIFAR10.filename, archive)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {CIFAR10.url} ({str(error).rstrip('.')}); either put "
                        f"the archive at {archive}, or point --data_dir at an image folder, "
                        "or take --synthetic pictures") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _extract(archive: Path, staging: Path) -> None:
    """Take out the files that are read, by name: nothing can land elsewhere, or be a link."""
    from torchvision.datasets import CIFAR10

    names = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
    wanted = {f"{BATCHES}/{name}" for name in [*names, CIFAR10.meta["filename"]]}
    make_folder(staging / BATCHES)
    try:
        with tarfile.open(archive) as file:
            for member in file:
                if member.isfile() and member.name in wanted:
                    (staging / member.name).write_bytes(file.extractfile(member).read())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); "
                        "remove it to download it again") from error
