"""The data set as tensors: 40 000 images to train, 10 000 to validate, 10 000 to test.

    data = load_cifar_4d()                 # CIFAR-10, downloaded to data/ the first time
    data = load_cifar_4d("my_pictures")    # train/<class>/..., test/<class>/...: 32x32 pictures
    data = load_cifar_4d(synthetic=True)   # generated, for a first look without network
    x = normalize(data.train.images[:128])  # 128 x 3 x 32 x 32, float32

Images stay bytes, a quarter of their size as float32, so a whole data set fits on the device.
store/images.py makes batches of it; store/cache.py finds, checks and decodes the files.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from store.cache import Arrays, load_folder
from store.files import UserError
from store.official import DATA_DIR
from store.synthetic import SHAPES, generate


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

    `data_dir` is an image folder (train/<class>/..., test/<class>/...), or has the official files;
    an empty one gets them downloaded. The default is data/ beside this file.
    `synthetic` takes the generated set instead.
    Raises UserError for data that cannot be had, read or trusted.
    """
    folder = DATA_DIR if data_dir is None else Path(data_dir)
    try:
        if synthetic:
            return _split(Arrays(*generate(), 50_000, SHAPES, "synthetic"))
        return _split(load_folder(folder))
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise UserError(f"cannot load the data, {reason}; mend that or name another") from error
    except MemoryError as error:
        raise UserError("there is not enough memory to load the data; free some") from error


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


def _split(arrays: Arrays) -> Data:
    """The last fifth of the images to train validates; an image folder was shuffled when read."""
    val, test = arrays.train // 5, len(arrays.images) - arrays.train
    images, labels = (torch.from_numpy(array).split([arrays.train - val, val, test])
                      for array in (arrays.images, arrays.labels))
    splits = map(Split, images, labels)
    return Data(*splits, tuple(arrays.classes), arrays.source, arrays.fingerprint)
