"""What a data set is here, and the numbers that a network sees of it."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


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


def normalize(images: Tensor) -> Tensor:
    """(x - 128) / 255 as float32, on the device of `images` (uint8, any shape)."""
    # On a GPU PyTorch multiplies by 1/255 instead of dividing by a number; by a tensor it divides.
    divisor = torch.full((), 255.0, device=images.device)
    return images.to(torch.float32, copy=True).sub_(128).div_(divisor)


def divide(images: np.ndarray, labels: np.ndarray, train: int, classes: Sequence[str],
           source: str) -> Data:
    """The first `train` images train, but for their last fifth, which validates; the rest tests."""
    digest = hashlib.sha256(json.dumps([train, classes, source]).encode())
    digest.update(labels.astype("<i8"))
    digest.update(images)
    sizes = [train - train // 5, train // 5, len(images) - train]
    splits = zip(*(torch.from_numpy(array).split(sizes) for array in (images, labels)), strict=True)
    return Data(*map(Split._make, splits), tuple(classes), source, digest.hexdigest()[:16])
