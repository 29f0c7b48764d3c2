"""The convolutional network: two blocks, each with batch normalization and dropout, and a linear classifier.

    x (N x 3 x 32 x 32)
    → Conv 3→128, 5x5  → BatchNorm2d → ReLU → dropout → MaxPool 2    (N x 128 x 14 x 14)
    → Conv 128→64, 3x3 → BatchNorm2d → ReLU → dropout → MaxPool 2    (N x 64 x 6 x 6)
    → Linear 2304→classes → logits

`../layers.py` holds the mathematics of the layers and their switch between training and evaluation.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fast import blocks as fused
from layers import BatchNorm, Dropout, Dropout2d


class BatchNorm2d(BatchNorm):
    """Batch normalization of (N, C, H, W) over N, H and W: normalizes each of C feature maps.

    A drop-in replacement for torch.nn.BatchNorm2d; see layers.BatchNorm for formulas and arguments.
    """

    def check_dimensions(self, x: Tensor) -> None:
        if x.dim() != 4:
            raise ValueError(f"expected 4D input (got {x.dim()}D input)")


class CNN(nn.Module):
    """Maps a batch of images, N x 3 x 32 x 32, to logits, N x `num_classes`.

    `dropout_type` "2d" drops whole feature maps (Dropout2d), "1d" single activations (Dropout).
    """

    def __init__(self, drop_rate: float = 0.2, without_BatchNorm: bool = False, without_dropout: bool = False,
                 dropout_type: str = "2d", num_classes: int = 10):
        super().__init__()
        if dropout_type not in ("1d", "2d"):
            raise ValueError(f"dropout_type has to be '1d' or '2d', but got {dropout_type!r}")
        self.conv1 = nn.Conv2d(3, 128, kernel_size=5)
        self.norm1 = nn.Identity() if without_BatchNorm else BatchNorm2d(128)
        self.conv2 = nn.Conv2d(128, 64, kernel_size=3)
        self.norm2 = nn.Identity() if without_BatchNorm else BatchNorm2d(64)
        self.dropout = None
        if not without_dropout:
            self.dropout = Dropout2d(drop_rate) if dropout_type == "2d" else Dropout(drop_rate)
        self.linear = nn.Linear(64 * 6 * 6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_relu_dropout_pool(self.conv1(x), self.norm1)
        x = self.norm_relu_dropout_pool(self.conv2(x), self.norm2)
        return self.linear(x.flatten(1))

    def norm_relu_dropout_pool(self, x: Tensor, norm: nn.Module) -> Tensor:
        """MaxPool(dropout(ReLU(norm(x)))), in the order that touches the fewest values.

        ReLU keeps order, so MaxPool may come before it and leaves it a quarter of the work. A mask over whole
        maps is one factor per pooling window, so MaxPool may come before that too; a mask over single values not.
        """
        if fused.applies(x, norm, self.dropout):
            return fused.norm_relu_dropout_pool(x, norm, self.dropout)
        x = norm(x)
        if self.dropout is None:
            return F.relu(F.max_pool2d(x, 2))
        if isinstance(self.dropout, Dropout2d):
            return self.dropout(F.relu(F.max_pool2d(x, 2)))
        return F.relu(F.max_pool2d(self.dropout(x), 2))
