"""The data set as tensors: 40 000 images to train, 10 000 to validate, 10 000 to test.

    data = load_cifar_4d()                        # CIFAR-10, downloaded to data/ the first time
    data = load_cifar_4d("my_pictures")           # train/<class>/..., test/<class>/...: 32x32 pictures
    data = load_cifar_4d(synthetic=True)          # generated, for a first look without network
    x = normalize(data.train.images[:128])        # 128 x 3 x 32 x 32, float32

Images stay bytes, a quarter of their size as float32, so that a whole data set fits on the device;
`normalize` converts each batch there. What was read from many files is kept beside them as one file,
`.decoded.bin`, which is used as long as no file's name, size or time of change differs.
"""

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import sys
import tarfile
import threading
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from store.files import UserError, lock, make_folder, write_file
from store.synthetic import SHAPES, generate

DATA_DIR = Path(__file__).resolve().parent / "data"
BATCHES = "cifar-10-batches-py"
CACHE, LOCK, STAGING = ".decoded.bin", ".lock", ".download"
STALL_LIMIT = 30.0  # seconds without a byte
DOWNLOAD_LIMIT = 3600.0  # seconds for the 170 MB as a whole

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # no others: Pillow would start Ghostscript for EPS
MAX_FILE = 2**20  # bytes: far more than 32x32 pixels need, and it bounds what a hostile file unpacks to
CHUNK = 1000  # pictures a thread decodes at a time


class Split(NamedTuple):
    images: Tensor  # uint8, N x 3 x 32 x 32 or N x 3072
    labels: Tensor  # int64, N


class Data(NamedTuple):
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    source: str  # "official", "image folder" or "synthetic"
    fingerprint: str  # start of the SHA-256 of pixels, labels, class names and source


def load_cifar_4d(data_dir: Path | str | None = None, synthetic: bool = False) -> Data:
    """Load images of shape N x 3 x 32 x 32.

    `data_dir` is an image folder (train/<class>/..., test/<class>/...) or where the official files are or
    will be downloaded to; by default data/ beside this file. `synthetic` takes the generated set instead.
    Raises UserError for data that cannot be had, read or trusted.
    """
    if synthetic:
        return _data(*generate(), 50_000, SHAPES, "synthetic")
    folder = DATA_DIR if data_dir is None else Path(data_dir)
    try:
        return _load(folder)
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise UserError(f"cannot load the data, {reason}; mend that or choose another --data_dir") from error


def load_cifar_2d(data_dir: Path | str | None = None, synthetic: bool = False) -> Data:
    """Load the same images as vectors, N x 3072; see load_cifar_4d."""
    data = load_cifar_4d(data_dir, synthetic)
    train, val, test = (Split(split.images.flatten(1), split.labels) for split in data[:3])
    return data._replace(train=train, val=val, test=test)


def normalize(images: Tensor) -> Tensor:
    """(x - 128) / 255 as float32, on the device of `images` (uint8, any shape)."""
    # On a GPU PyTorch multiplies by 1/255 instead of dividing by a number; by a tensor it divides.
    divisor = torch.full((), 255.0, device=images.device)
    return images.to(torch.float32, copy=True).sub_(128).div_(divisor)


def _load(folder: Path) -> Data:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --data_dir names a folder with the data, or one to fill")
    for name in (CACHE, f".{CACHE}.tmp", LOCK, STAGING):
        _refuse_link(folder / name)  # or we would write where it leads
    sources = _sources(folder)
    data = _read_cache(folder, sources)
    if data is not None:
        return data
    if sources.kind == "official" and not os.path.lexists(folder / BATCHES):
        _refuse_to_fill(folder)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(UserError):  # a read-only folder: nothing in it can be made twice
            stack.enter_context(lock(folder / LOCK))
        if sources.kind == "official" and not os.path.lexists(folder / BATCHES):
            _fetch_official(folder)
        sources = _sources(folder)
        data = _read_cache(folder, sources)  # another process may have made it meanwhile
        if data is None:
            read = _read_official if sources.kind == "official" else _read_pictures
            data = read(folder, sources)
            _write_cache(folder, sources, data)
    return data


def _data(images: np.ndarray, labels: np.ndarray, train: int, classes: Sequence[str], source: str) -> Data:
    """Of the first `train` images the last fifth validates; the rest are the test set."""
    digest = hashlib.sha256(json.dumps([train, classes, source]).encode())
    digest.update(labels.astype("<i8"))
    digest.update(images)
    sizes = [train - train // 5, train // 5, len(images) - train]
    splits = zip(torch.from_numpy(images).split(sizes), torch.from_numpy(labels).split(sizes), strict=True)
    return Data(*(Split(*split) for split in splits), tuple(classes), source, digest.hexdigest()[:16])


# Source files and the cache


class Sources(NamedTuple):
    kind: str
    files: dict  # {"train": {class: files}, "test": ...} or {BATCHES: files}; a file: (path, bytes, changed)

    def key(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


def _sources(folder: Path) -> Sources:
    """All files that the data is read from; only looked up, not opened."""
    if os.path.lexists(folder / "train") or os.path.lexists(folder / "test"):
        return Sources("image folder", {split: _pictures(folder, split) for split in ("train", "test")})
    files = []
    if os.path.lexists(folder / BATCHES):
        with os.scandir(folder / BATCHES) as entries:
            files = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)
    return Sources("official", {BATCHES: files})


def _pictures(folder: Path, split: str) -> dict[str, list]:
    """The pictures of each class, by its name; what counts as one is as in torchvision's ImageFolder."""
    if not (folder / split).is_dir():
        raise UserError(f"{folder} has no folder {split}/; an image folder has both train/ and test/")
    _refuse_link(folder / split)
    with os.scandir(folder / split) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    return {name: _walk(folder, f"{split}/{name}") for name in classes}


def _walk(folder: Path, place: str) -> list[tuple[str, int, int]]:
    """Path below `folder`, size and time of change of all pictures below `place`."""
    root = os.path.realpath(folder)
    found, places = [], [place]
    while places:
        place = places.pop()
        _refuse_link(folder / place)
        with os.scandir(folder / place) as entries:
            for entry in entries:
                if entry.is_dir():
                    places.append(f"{place}/{entry.name}")
                elif entry.name.lower().endswith(EXTENSIONS):
                    if entry.is_symlink() and not os.path.realpath(entry.path).startswith(root + os.sep):
                        _refuse_link(Path(entry.path))
                    status = entry.stat()
                    if not entry.is_file() or status.st_size > MAX_FILE:  # a pipe, say, would never end
                        raise UserError(f"{entry.path} is not a file of at most {MAX_FILE} bytes; remove it")
                    found.append((f"{place}/{entry.name}", status.st_size, status.st_mtime_ns))
    return sorted(found)


def _refuse_to_fill(folder: Path) -> None:
    """CIFAR-10 is put into data/, or into an empty folder; a folder of any other kind was named by mistake."""
    if folder == DATA_DIR:
        return
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; name one that holds train/ and test/, or CIFAR-10, or make an "
                        "empty one to download CIFAR-10 to")
    others = [name for name in os.listdir(folder) if not name.startswith((".", "cifar-10"))]
    if others:
        raise UserError(f"{folder} holds neither train/ and test/ nor CIFAR-10; name a folder that does, or an empty "
                        "one to download CIFAR-10 to")


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(f"{path} is a link, which may lead out of the data folder; put a copy in its place")


def _read_cache(folder: Path, sources: Sources) -> Data | None:
    """What was decoded from these very files; None if there is no such cache or it is damaged.

    It is a line of JSON, then the labels, then the images: quick to read, never larger than on the disk.
    """
    try:
        if not (folder / CACHE).is_file():  # a pipe would never end
            return None
        with open(folder / CACHE, "rb") as file:
            note = json.loads(file.readline(MAX_FILE))
            if note["key"] != sources.key():
                return None
            labels = np.fromfile(file, np.int64, note["count"])
            images = np.fromfile(file, np.uint8).reshape(-1, 3, 32, 32)
        data = _data(images, labels, note["train"], note["classes"], sources.kind)
        sound = labels.min() >= 0 and labels.max() < len(data.classes)
        return data if sound and data.fingerprint == note["fingerprint"] else None
    except Exception:  # bytes can be damaged in many ways
        return None


def _write_cache(folder: Path, sources: Sources, data: Data) -> None:
    labels, images = ([split[i].numpy() for split in data[:3]] for i in (1, 0))
    note = {"key": sources.key(), "count": sum(map(len, labels)), "train": sum(map(len, labels[:2])),
            "classes": data.classes, "fingerprint": data.fingerprint}
    try:
        write_file(folder / CACHE, b"".join([json.dumps(note).encode(), b"\n", *labels, *images]))
    except UserError as error:
        print(f"the decoded images are not kept, so each start decodes them anew: {error}", file=sys.stderr)


# An image folder


def _read_pictures(folder: Path, sources: Sources) -> Data:
    classes = _check_classes(folder, sources.files)
    train, test = ([(path, label) for label, name in enumerate(classes) for path, _, _ in files[name]]
                   for files in sources.files.values())
    if len(train) < 5:
        raise UserError(f"{folder / 'train'} has fewer than 5 pictures; a fifth validates, so 5 are needed")
    # The order on disk is by class. RandomState, because its numbers are the same in every numpy.
    order = np.random.RandomState(0).permutation(len(train))
    paths, labels = zip(*(train[i] for i in order), *test, strict=True)
    return _data(_decode_all(folder, paths), np.array(labels, np.int64), len(train), classes, sources.kind)


def _check_classes(folder: Path, files: dict[str, dict[str, list]]) -> list[str]:
    """The class names, which both splits must have, with pictures."""
    odd = sorted(set(files["train"]) ^ set(files["test"]))
    if odd:
        raise UserError(f"the class {odd[0]} is in only one of train/ and test/ of {folder}; both need it")
    if not files["train"]:
        raise UserError(f"{folder / 'train'} has no class folders; put the pictures in train/<class>/")
    for split, classes in files.items():
        for name in classes:
            if not classes[name]:
                raise UserError(f"{folder / split / name} has no pictures ({' '.join(EXTENSIONS)}); add some")
    return list(files["train"])


def _decode_all(folder: Path, paths: tuple[str, ...]) -> np.ndarray:
    print(f"decoding {len(paths)} pictures of {folder}, once", file=sys.stderr)
    images = np.empty((len(paths), 3, 32, 32), np.uint8)

    def decode_chunk(start: int) -> None:
        for i in range(start, min(start + CHUNK, len(paths))):
            images[i] = _decode(folder / paths[i])

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, on odd files; what it cannot read is an error below
        list(pool.map(decode_chunk, range(0, len(paths), CHUNK)))  # raises the first error
    return images


def _decode(path: Path) -> np.ndarray:
    """The pixels of a picture, 3 x 32 x 32; any other size is refused by its header, before decoding."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.size == (32, 32):
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged bytes; each one means unreadable
        raise UserError(f"{path} cannot be read as a 32x32 picture ({error}); mend or remove it") from error
    raise UserError(f"{path} has {image.width}x{image.height} pixels; only 32x32 is taken, so resize it")


# The official files


def _read_official(folder: Path, sources: Sources) -> Data:
    """Unpickle the official files, which torchvision does only if their MD5 sums match."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    meta = CIFAR10.meta["filename"], CIFAR10.meta["md5"]
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
        if not check_integrity(folder / BATCHES / name, md5):
            raise UserError(f"{folder / BATCHES / name} is missing or not the official file (its MD5 sum "
                            f"differs), so nothing is read; remove {folder / BATCHES} to get it anew")
    train, test = CIFAR10(folder, train=True), CIFAR10(folder, train=False)
    images = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)
    labels = np.array(train.targets + test.targets, np.int64)
    return _data(np.ascontiguousarray(images), labels, len(train.data), train.classes, sources.kind)


def _fetch_official(folder: Path) -> None:
    """Put the official files in their place from the archive, which is downloaded if it is not there."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    archive, staging = folder / CIFAR10.filename, folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # of a download that was killed
    try:
        make_folder(staging)
        if not os.path.lexists(archive):
            _download(CIFAR10, staging, archive)
        elif not check_integrity(archive, CIFAR10.tgz_md5):
            raise UserError(f"{archive} is not the official archive (its MD5 sum differs), so it is not "
                            "opened; remove it to download it anew")
        _extract(archive, staging)
        os.replace(staging / BATCHES, folder / BATCHES)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _download(CIFAR10: type, staging: Path, archive: Path) -> None:
    from torchvision.datasets.utils import download_url

    print(f"downloading {CIFAR10.url} to {archive}", file=sys.stderr)
    try:
        with _time_limits():
            download_url(CIFAR10.url, staging, CIFAR10.filename, CIFAR10.tgz_md5)
        os.replace(staging / CIFAR10.filename, archive)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"cannot download {CIFAR10.url} ({reason}); either put the archive at {archive}, or "
                        "point --data_dir at an image folder, or take --synthetic pictures") from error


@contextlib.contextmanager
def _time_limits():
    """End a connection that stalls, and a download that goes on for ever."""

    def give_up(*_):  # not an OSError, upon which torchvision would try again
        raise RuntimeError(f"not finished after {DOWNLOAD_LIMIT:g} s")

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_LIMIT)
    main = threading.current_thread() is threading.main_thread()  # signals come to this thread only
    handler = signal.signal(signal.SIGALRM, give_up) if main else None
    try:
        if main:
            signal.setitimer(signal.ITIMER_REAL, DOWNLOAD_LIMIT)
        yield
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        socket.setdefaulttimeout(timeout)


def _extract(archive: Path, staging: Path) -> None:
    """Take out the files that are read, by their names alone: so nothing can land elsewhere, or be a link."""
    from torchvision.datasets import CIFAR10

    names = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]] + [CIFAR10.meta["filename"]]
    wanted = {f"{BATCHES}/{name}" for name in names}
    make_folder(staging / BATCHES)
    try:
        with tarfile.open(archive) as file:
            for member in file:
                if member.isfile() and member.name in wanted:
                    (staging / member.name).write_bytes(file.extractfile(member).read())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); remove it to download it anew") from error
