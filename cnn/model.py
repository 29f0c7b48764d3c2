"""The convolutional network: two blocks with batch normalization and dropout, then a classifier.

    x (N x 3 x 32 x 32)
    → Conv 3→128, 5x5  → BatchNorm2d → ReLU → dropout → MaxPool 2    (N x 128 x 14 x 14)
    → Conv 128→64, 3x3 → BatchNorm2d → ReLU → dropout → MaxPool 2    (N x 64 x 6 x 6)
    → Linear 2304→classes → logits

../layers/ defines BatchNorm2d, Dropout and Dropout2d, once for both networks. It has their
formulas and derivatives, for training and evaluation.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fast.choice import faster
from layers import BatchNorm2d, Dropout, Dropout2d


class CNN(nn.Module):
    """Maps a batch of images, N x 3 x 32 x 32, to logits, N x `num_classes`.

    `dropout_type` "2d" drops whole feature maps (Dropout2d), "1d" single activations (Dropout).
    """

    def __init__(self, drop_rate: float = 0.2, without_BatchNorm: bool = False,
                 without_dropout: bool = False, dropout_type: str = "2d",
                 num_classes: int = 10, detach_statistics: bool = False):
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
        self.linear = nn.Linear(64 * 6 * 6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_relu_dropout_pool(self.conv1(x), self.norm1)
        x = self.norm_relu_dropout_pool(self.conv2(x), self.norm2)
        return self.linear(x.flatten(1))

    def norm_relu_dropout_pool(self, x: Tensor, norm: nn.Module) -> Tensor:
        """The definition of a block; fast/choice.py has a faster one for unchanged modules."""
        if (function := faster(x, norm, self.dropout)) is not None:
            return function(x, norm, self.dropout)
        return F.max_pool2d(self.dropout(F.relu(norm(x))), 2)


def build(settings, num_classes: int = 10) -> CNN:
    """The CNN that a run's settings describe."""
    return CNN(settings.drop_rate, settings.without_BatchNorm, settings.without_dropout,
               settings.dropout_type, num_classes, settings.detach_statistics)
