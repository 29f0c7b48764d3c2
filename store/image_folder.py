"""An image folder, train/<class>/... and test/<class>/..., as torchvision's ImageFolder reads it.

ImageFolder itself enters linked folders before anyone can refuse them, and passes over unreadable
ones in silence. Here both are errors, hidden files are left out, and what is left out is counted.
"""

import os
import stat
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from store.files import UserError, one_line
from store.pictures import read_picture

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MAX_FILE = 2**20  # bytes: far more than 32x32 pixels need; bounds what a hostile file unpacks to
JUNK = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
        "__pycache__")  # folders that systems put anywhere


def find_pictures(folder: Path) -> tuple[dict[str, dict[str, list]], list[str]]:
    """For "train" and "test" the stamps of each class's files; and the paths that are left out."""
    files, left_out, root = {}, [], os.path.realpath(folder) + os.sep
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise UserError(f"{folder} has no folder {split}/; "
                            "an image folder has both train/ and test/")
        refuse_link(folder / split)
        classes = {}
        for place, folders, names in os.walk(folder / split, onerror=_raise):
            parts = Path(place).relative_to(folder).parts
            hidden = [name for name in folders if _is_hidden(name)]
            folders[:] = [name for name in folders if not _is_hidden(name)]  # os.walk enters these
            for name in folders:
                refuse_link(Path(place, name))
                classes |= {name: []} if len(parts) == 1 else {}
            pictures = [name for name in names if name.lower().endswith(EXTENSIONS)
                        and not _is_hidden(name) and len(parts) > 1]
            left_out += ["/".join((*parts, name)) for name in {*hidden, *names} - {*pictures}]
            for name in pictures:
                status = _check_file(os.path.join(place, name), root)
                classes[parts[1]].append(stamp("/".join((*parts, name)), status))
        files[split] = {name: sorted(classes[name]) for name in sorted(classes)}
    return files, left_out


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


def tell_unused(folder: Path) -> None:
    """Name the user's own validation set, which nothing here reads."""
    for name in sorted(os.listdir(folder)):
        if "val" in name.lower() and not name.startswith(".") and (folder / name).is_dir():
            print(one_line(f"{folder / name} is not used: a fifth of train/ validates"),
                  file=sys.stderr)


def tell_left_out(folder: Path, files: dict, left_out: list[str]) -> None:
    """Count what is not read, and name the classes that lose at least half by it."""
    if not left_out:
        return
    lost = Counter(tuple(path.split("/")[:2]) for path in left_out if not _is_hidden(path))
    halved = [f"{split}/{name}" for split, classes in files.items() for name in classes
              if lost[split, name] >= max(1, len(classes[name]))]
    print(one_line(f"skipping what is hidden, the system's or not {' '.join(EXTENSIONS)}: "
                   f"{len(left_out)}, such as {folder / min(left_out)}"
                   + (f"; at least half of {', '.join(halved[:5])}" if halved else "")),
          file=sys.stderr)


def _is_hidden(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(".") or name in JUNK


def _raise(error: OSError) -> None:
    raise error


def _check_file(path: str, root: str) -> os.stat_result:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        if not os.path.realpath(path).startswith(root):
            refuse_link(Path(path))
        status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:  # a pipe would never end
        raise UserError(f"{path} is not a file of at most {MAX_FILE} bytes; remove it")
    return status


def _check_classes(folder: Path, files: dict) -> list[str]:
    """The class names, which both splits must have, with pictures."""
    if not files["train"]:
        raise UserError(f"{folder / 'train'} has no class folders; "
                        "put the pictures in train/<class>/")
    odd = sorted(set(files["train"]) ^ set(files["test"]))
    if odd:  # in ascii(), as names can differ by a blank or by how an accent is encoded
        raise UserError(f"train/ and test/ of {folder} need the same class folders; in only one "
                        f"of them: {', '.join(map(ascii, odd[:4]))}")
    for split, classes in files.items():
        for name in classes:
            if not classes[name]:
                raise UserError(f"{folder / split / name} has no pictures "
                                f"({' '.join(EXTENSIONS)}); add some")
    return list(files["train"])


def _decode(folder: Path, paths: tuple[str, ...]) -> np.ndarray:
    print(one_line(f"decoding {len(paths)} pictures of {folder}, once"), file=sys.stderr)
    images = np.empty((len(paths), 3, 32, 32), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on odd files; an unreadable one is an error
        for i, path in enumerate(paths):
            images[i] = read_picture(folder / path, exact=True)
    return images
