"""A data folder as tensors, decoded once and kept beside the files as `.decoded.bin`.

The cache counts while no file's name, size or times differ, nor the code that decodes pictures or
Pillow's version, and if its owner is trusted.
"""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import PIL

from store import image_folder, pictures
from store.dataset import Data, divide
from store.files import UserError, lock, no_link, write_file
from store.official import fetch, find_official, read_official, refuse_to_fill

CACHE, LOCK = ".decoded.bin", ".lock"
MAX_NOTE = 2**24  # bytes of the cache's first line
OFFICIAL_IMAGES = 60_000
BYTES_PER_IMAGE = 8 + 3 * 32 * 32  # its label and its pixels
DECODER = [PIL.__version__, *(  # when loaded, as an update can change the files at any time
    hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    for module in (image_folder, pictures))]


def load_folder(folder: Path) -> Data:
    """Read an image folder or the official files, which are downloaded first if need be."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --data_dir names a folder with the data, "
                        "or one to fill")
    source, files, _ = _find(folder)
    if source == "image folder":
        image_folder.tell_unused(folder)
    data = _read_cache(folder, source, files)
    if data is not None:
        return data
    if not files:
        refuse_to_fill(folder)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(UserError):  # a read-only folder: nothing in it is made twice
            stack.enter_context(lock(folder / LOCK))
        if not _find(folder)[1]:
            fetch(folder)
        source, files, left_out = _find(folder)
        data = _read_cache(folder, source, files)  # another process may have made it meanwhile
        if data is None:
            image_folder.tell_left_out(folder, files, left_out)
            read = read_official if source == "official" else image_folder.read_pictures
            images, labels, train, classes = read(folder, files)
            data = divide(images, labels, train, classes, source)
            note = {"key": _key(files), "count": len(labels), "train": train, "classes": classes,
                    "fingerprint": data.fingerprint}
            _write_cache(folder / CACHE, [json.dumps(note).encode(), b"\n", labels, images])
    return data


def _find(folder: Path) -> tuple[str, dict | list, list[str]]:
    """The folder's kind, the stamps of the files to read, and what is left out; opens none."""
    if any(os.path.lexists(folder / split) for split in ("train", "test")):
        return "image folder", *image_folder.find_pictures(folder)
    return "official", find_official(folder), []


def _key(files: dict | list) -> str:
    return hashlib.sha256(repr([DECODER, files]).encode()).hexdigest()


def _read_cache(folder: Path, source: str, files: dict | list) -> Data | None:
    """What was decoded from these very files; None if there is no such cache or it is damaged.

    It is a line of JSON, then the labels, then the images: quick to read, no larger than on disk.
    """
    try:
        count = OFFICIAL_IMAGES if source == "official" else sum(
            len(stamps) for classes in files.values() for stamps in classes.values())
        with open(folder / CACHE, "rb", opener=no_link) as file:
            status = os.fstat(file.fileno())
            if (status.st_uid not in (os.geteuid(), folder.stat().st_uid)  # could make up data
                    or status.st_size > MAX_NOTE + count * BYTES_PER_IMAGE):  # fills the memory
                return None
            note = json.loads(file.readline())
            if note["key"] != _key(files):
                return None
            labels = np.fromfile(file, np.int64, note["count"])
            images = np.fromfile(file, np.uint8).reshape(-1, 3, 32, 32)
        data = divide(images, labels, note["train"], note["classes"], source)
        return data if data.fingerprint == note["fingerprint"] else None
    except Exception:  # bytes can be damaged in many ways
        return None


def _write_cache(path: Path, content: list) -> None:
    try:
        write_file(path, b"".join(content))
    except (UserError, MemoryError) as error:
        print("the decoded images are not kept, so each start decodes them again: "
              f"{str(error) or 'no memory'}", file=sys.stderr)
