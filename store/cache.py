"""A data folder as arrays, decoded once and kept beside the files as `.decoded.bin`.

The cache counts while no file's name, size or times differ, and if its owner is trusted.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from store.files import UserError, lock, no_link, one_line, write_file
from store.image_folder import find_pictures, read_pictures, refuse_link
from store.official import STAGING, fetch, find_batches, read_batches, refuse_to_fill

CACHE, LOCK = ".decoded.bin", ".lock"


@dataclass
class Arrays:
    images: np.ndarray  # uint8, N x 3 x 32 x 32
    labels: np.ndarray  # int64, N
    train: int  # so many of them are to train, the others to test
    classes: Sequence[str]
    source: str  # "official", "image folder" or "synthetic"

    @cached_property
    def fingerprint(self) -> str:
        """The start of the SHA-256 of all of it."""
        digest = hashlib.sha256(json.dumps([self.train, self.classes, self.source]).encode())
        digest.update(self.labels.astype("<i8"))
        digest.update(self.images)
        return digest.hexdigest()[:16]


def load_folder(folder: Path) -> Arrays:
    """Read an image folder or the official files, which are downloaded first if need be."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --data_dir names a folder with the data, "
                        "or one to fill")
    for name in (CACHE, f".{CACHE}.tmp", LOCK, STAGING):
        refuse_link(folder / name)  # or we would write where it leads
    source, files, _ = _find(folder)
    arrays = _read_cache(folder, source, files)
    if arrays is not None:
        return arrays
    if not files:
        refuse_to_fill(folder)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(UserError):  # a read-only folder: nothing in it is made twice
            stack.enter_context(lock(folder / LOCK))
        if not _find(folder)[1]:
            fetch(folder)
        source, files, skipped = _find(folder)
        arrays = _read_cache(folder, source, files)  # another process may have made it meanwhile
        if arrays is None:
            if skipped:
                print(one_line(f"skipping {len(skipped)} hidden or system files and folders, "
                               f"such as {min(skipped)}"), file=sys.stderr)
            read = read_batches(folder) if source == "official" else read_pictures(folder, files)
            arrays = Arrays(*read, source)
            _write_cache(folder, files, arrays)
    return arrays


def _find(folder: Path) -> tuple[str, dict | list, list[str]]:
    """The folder's kind, the stamps of the files to read, and the paths to skip; opens none."""
    if any(os.path.lexists(folder / split) for split in ("train", "test")):
        return "image folder", *find_pictures(folder)
    return "official", find_batches(folder), []


def _key(files: dict | list) -> str:
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _read_cache(folder: Path, source: str, files: dict | list) -> Arrays | None:
    """What was decoded from these very files; None if there is no such cache or it is damaged.

    It is a line of JSON, then the labels, then the images: quick to read, no larger than on disk.
    """
    try:
        with open(folder / CACHE, "rb", opener=no_link) as file:
            trusted = os.geteuid(), folder.stat().st_uid  # anyone else could make up data
            if os.fstat(file.fileno()).st_uid not in trusted:
                return None
            note = json.loads(file.readline())
            if note["key"] != _key(files):
                return None
            labels = np.fromfile(file, np.int64, note["count"])
            images = np.fromfile(file, np.uint8).reshape(-1, 3, 32, 32)
        arrays = Arrays(images, labels, note["train"], note["classes"], source)
        sound = labels.min() >= 0 and labels.max() < len(arrays.classes)
        return arrays if sound and arrays.fingerprint == note["fingerprint"] else None
    except Exception:  # bytes can be damaged in many ways
        return None


def _write_cache(folder: Path, files: dict | list, arrays: Arrays) -> None:
    note = {"key": _key(files), "count": len(arrays.labels), "train": arrays.train,
            "classes": arrays.classes, "fingerprint": arrays.fingerprint}
    content = [json.dumps(note).encode(), b"\n", arrays.labels, arrays.images]
    try:
        write_file(folder / CACHE, b"".join(content))
    except (UserError, MemoryError) as error:
        print("the decoded images are not kept, so each start decodes them again: "
              f"{str(error) or 'no memory'}", file=sys.stderr)
