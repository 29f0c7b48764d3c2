"""An image folder, train/<class>/... and test/<class>/..., read as torchvision's ImageFolder does.

Unlike there, hidden files and folders are skipped, and links that lead out of it are refused.
"""

import os
import sys
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from store.files import UserError, one_line
from store.pictures import read_picture

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MAX_FILE = 2**20  # bytes: far more than 32x32 pixels need; bounds what a hostile file unpacks to
JUNK = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
        "__pycache__")  # folders that systems put anywhere
CHUNK = 1000  # pictures a thread decodes at a time


def find_pictures(folder: Path) -> tuple[dict[str, dict[str, list]], list[str]]:
    """For "train" and "test" the stamps of each class's files; and the paths that are skipped."""
    skipped = []
    return {split: _classes(folder, split, skipped) for split in ("train", "test")}, skipped


def stamp(path: str, status: os.stat_result) -> tuple:
    """What changes with a file's content. No copy keeps the last, the inode's change time."""
    return path, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_pictures(folder: Path, files: dict) -> tuple[np.ndarray, np.ndarray, int, list[str]]:
    """Images, labels, the number of those to train, and class names."""
    classes = _check_classes(folder, files)
    train, test = ([(path, label) for label, name in enumerate(classes) for path, *_ in split[name]]
                   for split in files.values())
    if len(train) < 5:
        raise UserError(f"{folder / 'train'} has fewer than 5 pictures; a fifth validates, "
                        "so 5 are needed")
    # The order on disk is by class. RandomState, because its numbers are the same in every numpy.
    order = np.random.RandomState(0).permutation(len(train))
    paths, labels = zip(*(train[i] for i in order), *test, strict=True)
    return _decode(folder, paths), np.array(labels, np.int64), len(train), classes


def refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(f"{path} is a link, which may lead out of the data folder; "
                        "put a copy in its place")


def _classes(folder: Path, split: str, skipped: list[str]) -> dict[str, list]:
    if not (folder / split).is_dir():
        raise UserError(f"{folder} has no folder {split}/; "
                        "an image folder has both train/ and test/")
    names = [entry.name for entry in _entries(folder / split, skipped) if entry.is_dir()]
    return {name: _walk(folder, f"{split}/{name}", skipped) for name in sorted(names)}


def _entries(place: Path, skipped: list[str]):
    """The folders and pictures in a folder, without those that nobody put there on purpose."""
    refuse_link(place)
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.is_dir() or entry.name.lower().endswith(EXTENSIONS):
                if entry.name.startswith(".") or entry.name in JUNK:
                    skipped.append(entry.path)
                else:
                    yield entry


def _walk(folder: Path, place: str, skipped: list[str]) -> list[tuple]:
    """The stamps of all pictures below `place`, with paths below `folder`, sorted by them."""
    root = os.path.realpath(folder) + os.sep
    found, places = [], [place]
    for place in places:  # which grows meanwhile
        for entry in _entries(folder / place, skipped):
            if entry.is_dir():
                places.append(f"{place}/{entry.name}")
                continue
            if entry.is_symlink() and not os.path.realpath(entry.path).startswith(root):
                refuse_link(Path(entry.path))
            status = entry.stat()
            if not entry.is_file() or status.st_size > MAX_FILE:  # a pipe would never end
                raise UserError(f"{entry.path} is not a file of at most {MAX_FILE} bytes; "
                                "remove it")
            found.append(stamp(f"{place}/{entry.name}", status))
    return sorted(found)


def _check_classes(folder: Path, files: dict) -> list[str]:
    """The class names, which both splits must have, with pictures."""
    odd = sorted(set(files["train"]) ^ set(files["test"]))
    if odd:
        twin = next((f"; it has {ascii(name)} instead of {ascii(odd[0])}" for name in odd[1:]
                     if _sound(name) == _sound(odd[0])), "")
        raise UserError(f"the class {odd[0]} is in only one of train/ and test/ of {folder}; "
                        f"the other needs it too{twin}")
    if not files["train"]:
        raise UserError(f"{folder / 'train'} has no class folders; "
                        "put the pictures in train/<class>/")
    for split, classes in files.items():
        for name in classes:
            if not classes[name]:
                raise UserError(f"{folder / split / name} has no pictures "
                                f"({' '.join(EXTENSIONS)}); add some")
    return list(files["train"])


def _sound(name: str) -> str:
    """The same for names that only capitals, blanks or Unicode's composition tell apart."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _decode(folder: Path, paths: tuple[str, ...]) -> np.ndarray:
    print(one_line(f"decoding {len(paths)} pictures of {folder}, once"), file=sys.stderr)
    images = np.empty((len(paths), 3, 32, 32), np.uint8)

    def decode_chunk(start: int) -> None:
        for i in range(start, min(start + CHUNK, len(paths))):
            images[i] = read_picture(folder / paths[i], exact=True)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, on odd files; an unreadable one is an error
        try:
            list(pool.map(decode_chunk, range(0, len(paths), CHUNK)))  # raises the first error
        except RuntimeError as error:  # no memory for another thread
            raise MemoryError from error
    return images
