"""The multilayer perceptron: one hidden layer, with batch normalization and dropout.

    x (N x 3072) → Linear → BatchNorm1d → ReLU → Dropout → Linear → logits (N x classes)

`../layers.py` holds the mathematics of the layers and their switch between training and evaluation.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fast.linear import Linear
from layers import BatchNorm, Dropout


class BatchNorm1d(BatchNorm):
    """Batch normalization of (N, C), or of (N, C, L) over N and L: normalizes each of C features.

    A drop-in replacement for torch.nn.BatchNorm1d; see layers.BatchNorm for formulas and arguments.
    """

    def check_dimensions(self, x: Tensor) -> None:
        if x.dim() not in (2, 3):
            raise ValueError(f"expected 2D or 3D input (got {x.dim()}D input)")


class MLP(nn.Module):
    """Maps a batch of flat images, N x 3072, to logits, N x `num_classes`."""

    def __init__(self, hidden_size: int = 100, drop_rate: float = 0.2, without_BatchNorm: bool = False,
                 without_dropout: bool = False, num_classes: int = 10):
        super().__init__()
        self.linear1 = Linear(3 * 32 * 32, hidden_size)
        self.norm = nn.Identity() if without_BatchNorm else BatchNorm1d(hidden_size)
        self.dropout = nn.Identity() if without_dropout else Dropout(drop_rate)
        self.linear2 = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_linear1(self.linear1(x))

    def after_linear1(self, x: Tensor) -> Tensor:
        """The rest of the network, for N x `hidden_size`. Apart, since side_by_side.py computes linear1 of several
        networks at once."""
        x = self.dropout(F.relu(self.norm(x)))
        return self.linear2(x)
