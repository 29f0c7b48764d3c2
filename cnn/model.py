"""The convolutional network: two blocks with batch normalization and dropout, then a classifier.

    x (N x 3 x 32 x 32)
    → Conv 3→128, 5x5  → BatchNorm2d → ReLU → dropout → MaxPool 2    (N x 128 x 14 x 14)
    → Conv 128→64, 3x3 → BatchNorm2d → ReLU → dropout → MaxPool 2    (N x 64 x 6 x 6)
    → Linear 2304→classes → logits

../layers/ defines BatchNorm2d, Dropout and Dropout2d, once for both networks: formulas for
training and evaluation.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fast.agreement import sooner
from fast.choice import CNN_BLOCK
from layers import BatchNorm2d, Dropout, Dropout2d


@sooner(*CNN_BLOCK)  # what can give the same sooner; see fast/agreement.py
def block(x: Tensor, conv: nn.Module, norm: nn.Module, dropout: nn.Module) -> Tensor:
    return F.max_pool2d(dropout(F.relu(norm(conv(x)))), 2)


class CNN(nn.Module):
    """Maps a batch of images, N x 3 x 32 x 32, to logits, N x `num_classes`.

    `dropout_type` "2d" drops whole feature maps (Dropout2d), "1d" single activations (Dropout).
    With `pool_first` dropout follows MaxPool.
    """

    def __init__(self, drop_rate: float = 0.2, without_BatchNorm: bool = False,
                 without_dropout: bool = False, dropout_type: str = "2d",
                 num_classes: int = 10, detach_statistics: bool = False,
                 pool_first: bool = False):
        super().__init__()
        if dropout_type not in ("1d", "2d"):
            raise ValueError(f"dropout_type has to be '1d' or '2d', but got {dropout_type!r}")
        norm = (nn.Identity if without_BatchNorm
                else partial(BatchNorm2d, detach_statistics=detach_statistics))
        self.conv1 = nn.Conv2d(3, 128, kernel_size=5)
        self.norm1 = norm(128)
        self.conv2 = nn.Conv2d(128, 64, kernel_size=3)
        self.norm2 = norm(64)
        dropout = {"1d": Dropout, "2d": Dropout2d}[dropout_type]
        self.dropout = nn.Identity() if without_dropout else dropout(drop_rate)
        self.pool_first, self.no_dropout = pool_first, nn.Identity()
        self.linear = nn.Linear(64 * 6 * 6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x, self.conv1, self.norm1)
        x = self.block(x, self.conv2, self.norm2)
        return self.linear(x.flatten(1))

    def block(self, x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
        if self.pool_first:
            return self.dropout(block(x, conv, norm, self.no_dropout))
        return block(x, conv, norm, self.dropout)


def build(settings, num_classes: int = 10) -> CNN:
    """The CNN that a run's settings describe."""
    return CNN(settings.drop_rate, settings.without_BatchNorm, settings.without_dropout,
               settings.dropout_type, num_classes, settings.detach_statistics,
               settings.pool_first)
