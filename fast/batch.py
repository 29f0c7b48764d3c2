"""A training batch sooner: on a GPU one kernel gathers and normalizes it, instead of five."""

from torch import Tensor

from fast.gpu import guard
from load_data import Split
from store.images import take


def batch(split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
    """store/images.take, by the kernel where it applies."""
    if kernel := guard.batch(split.images, index):
        return kernel(split.images, index), split.labels.index_select(0, index)
    return take(split, index)
