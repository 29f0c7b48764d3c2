"""The images as a run sees them: on its device, in batches, fewer or changed if it asks so."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from store.dataset import Data, Split, normalize
from store.settings import Settings

EVALUATION_BATCH = 250  # pictures on a CPU: the CNN's activations take 100 MB; on a GPU ten times
FLAT_EVALUATION_BATCH = 2000  # the MLP's activations are small


def prepared(data: Data, settings: Settings, device: torch.device) -> Data:
    """The data as a run sees it, on its device: fewer training images, shuffled patches."""
    splits = []
    for images, labels in data[:3]:
        if settings.shuffled_patches:
            images = shuffled(images, settings.shuffled_patches)
        if images.dim() == 4:  # in channels_last order convolutions are fast on all hardware
            images = images.contiguous(memory_format=torch.channels_last)
        splits.append((images, labels))
    count = settings.train_images
    splits[0] = tuple(tensor[:count] for tensor in splits[0])
    moved = (Split(images.to(device), labels.to(device)) for images, labels in splits)
    return Data(*moved, *data[3:])


def shuffled(images: Tensor, size: int) -> Tensor:
    """Pictures whose patches of size x size pixels change places, in all pictures alike."""
    n, side = len(images), 32 // size
    order = torch.from_numpy(np.random.RandomState(0).permutation(side * side))
    patches = images.reshape(n, 3, side, size, side, size).transpose(3, 4).flatten(2, 3)
    patches = patches[:, :, order].unflatten(2, (side, side)).transpose(3, 4)
    return patches.reshape(images.shape)


def bootstrap_sample(seed: int, n: int) -> Tensor:
    """n of n images, drawn with replacement: those that a run of this seed learns from."""
    draws, = np.random.SeedSequence((seed, 0, 1)).generate_state(1, np.uint64)
    return torch.randint(n, (n,), generator=torch.Generator().manual_seed(int(draws)))


def take(split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
    """Images at `index`, normalized, pictures in channels_last order; and their labels."""
    images, labels = split
    if images.dim() == 4:
        images = images.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    else:
        images = images.index_select(0, index)
    return normalize(images), labels.index_select(0, index)


def evaluation_batches(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of a split, normalized, and their labels, in batches that fill the device."""
    size = EVALUATION_BATCH if split.images.dim() == 4 else FLAT_EVALUATION_BATCH
    size *= 1 if split.images.device.type == "cpu" else 10
    for images, y in zip(split.images.split(size), split.labels.split(size), strict=True):
        yield normalize(images), y


def augmented(x: Tensor) -> Tensor:
    """Move each picture by up to 4 pixels both ways, fill up with grey, flip every other one.

    Random crop with padding 4 and random horizontal flip, in one gather. Takes flat images too.
    """
    pictures = x.view(-1, 3, 32, 32)
    n, device = len(x), x.device
    padded = F.pad(pictures, (4, 4, 4, 4))  # zero is the middle of the value range
    shift = torch.randint(0, 9, (2, n, 1), device=device)
    line = torch.arange(32, device=device)
    columns = torch.where(torch.rand(n, 1, device=device) < 0.5, line, 31 - line) + shift[0]
    rows = line + shift[1]
    sample = torch.arange(n, device=device)[:, None, None]
    crop = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    return crop.permute(0, 3, 1, 2).reshape(x.shape) if x.dim() == 2 else crop.permute(0, 3, 1, 2)
