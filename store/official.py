"""The official CIFAR-10 files: found, downloaded by torchvision, and read.

torchvision's CIFAR10 opens a file again after its check, and unpacks an archive to disk. Here the
bytes that are unpickled are those that were checked, and the archive is read where it lies.
"""

import hashlib
import http.client
import io
import os
import pickle
import socket
import sys
import tarfile
from pathlib import Path

import numpy as np

from store.files import ROOT, UserError, one_line, read_file
from store.image_folder import stamp

DATA_DIR = ROOT / "data"  # the only folder that need not be there, or empty, to be filled
BATCHES, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
PART = f".{ARCHIVE}.part"  # what is being downloaded
MAX_ARCHIVE = 2**28  # bytes; it has 170 498 071
STALL_LIMIT = 30.0  # seconds without a byte
OTHER_DATA = {  # what shows it, in the folder or one further down
    "cifar-100*": "CIFAR-100", "cifar-10*-bin*": "CIFAR-10 in binary form",
    "cifar-10*-mat*": "CIFAR-10 for MATLAB", "train.7z": "CIFAR-10 as Kaggle packs it",
    "trainLabels.csv": "CIFAR-10 as Kaggle packs it", "*.parquet": "Hugging Face's parquet files",
    "data_batch_1.bin": "CIFAR-10 in binary form", "data_batch_1.mat": "CIFAR-10 for MATLAB",
}


def find_official(folder: Path) -> list[tuple]:
    """The stamps of the unpacked files, sorted by name, or of the archive; or none."""
    found = []
    if os.path.lexists(folder / BATCHES):
        with os.scandir(folder / BATCHES) as entries:
            found = sorted(stamp(entry.name, entry.stat()) for entry in entries)
    if not found and (folder / ARCHIVE).exists():
        found = [stamp(ARCHIVE, (folder / ARCHIVE).stat())]
    return found


def read_official(folder: Path, files: list) -> tuple[np.ndarray, np.ndarray, int, list[str]]:
    """Images, labels, the number of those to train, and class names."""
    from torchvision.datasets import CIFAR10

    sums = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    sums[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    if files[0][0] == ARCHIVE:
        contents = _unpack(_checked(folder / ARCHIVE, CIFAR10.tgz_md5))
    else:
        contents = {name: _checked(folder / BATCHES / name, md5) for name, md5 in sums.items()}
    *batches, meta = (pickle.loads(contents[name], encoding="latin1") for name in sums)
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch["labels"] for batch in batches]).astype(np.int64)
    train = sum(len(batch["labels"]) for batch in batches[:len(CIFAR10.train_list)])
    return images, labels, train, meta[CIFAR10.meta["key"]]


def _checked(path: Path, md5: str) -> bytes:
    """The content of an official file. A pickle can run code: the very bytes are checked first."""
    try:
        content = read_file(path, MAX_ARCHIVE)
    except (FileNotFoundError, ValueError):
        content = b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        remove = path if path.name == ARCHIVE else path.parent
        raise UserError(f"{path} is missing or not the official file (its MD5 sum differs), so "
                        f"nothing is read; remove {remove} to get it again")
    return content


def _unpack(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        return {Path(member.name).name: members.extractfile(member).read()
                for member in members if member.isfile()}


def refuse_to_fill(folder: Path) -> None:
    """CIFAR-10 is put into data/ or an empty folder; any other was named by mistake."""
    if folder == DATA_DIR:
        return
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; name one that holds train/ and test/, "
                        "or CIFAR-10, or make an empty one to download CIFAR-10 to")
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if not names:
        return
    for place in ("", "*/", "*/*/"):
        for file in folder.resolve().glob(f"{place}data_batch_1"):
            inner = file.parent
            raise UserError(f"{inner} has the files of CIFAR-10; " + (
                f"name {inner.parent} instead" if inner.name == BATCHES else
                f"put them into {inner / BATCHES} and name {inner}"))
    known = [what for shows, what in OTHER_DATA.items() for place in ("", "*/")
             if any(folder.glob(place + shows))]
    found = known[0] if known else ", ".join(names[:4]) + ", ..." * (len(names) > 4)
    raise UserError(f"{folder} holds neither train/ and test/ nor CIFAR-10 for Python, but "
                    f"{found}; name a folder with train/<class>/ and test/<class>/, or with "
                    f"{ARCHIVE}, or an empty one to download that to")


def fetch(folder: Path) -> None:
    """Download the archive to `folder`, where it appears whole."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    archive, part = folder / ARCHIVE, folder / PART
    part.unlink(missing_ok=True)  # of a download that was killed, or a link
    print(one_line(f"downloading {CIFAR10.url} to {archive}"), file=sys.stderr)
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(STALL_LIMIT)
        download_url(CIFAR10.url, folder.resolve(), PART, CIFAR10.tgz_md5)
        os.replace(part, archive)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {CIFAR10.url} ({str(error).rstrip('.')}); either put "
                        f"the archive at {archive}, or point --data_dir at an image folder, "
                        "or take --synthetic pictures") from error
    finally:
        socket.setdefaulttimeout(timeout)
        part.unlink(missing_ok=True)
