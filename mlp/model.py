"""The multilayer perceptron: hidden layers with batch normalization and dropout, then a classifier.

    x (N x 3072) → Linear → BatchNorm1d → ReLU → Dropout → Linear → logits (N x classes)

../layers/ defines BatchNorm1d and Dropout, once for both networks: formulas for training and
evaluation.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fast.agreement import sooner
from fast.choice import HIDDEN, PRODUCT
from layers import BatchNorm1d, Dropout, GaussianDropout


@sooner(*PRODUCT)  # what can give the same sooner; see fast/agreement.py
def product(x: Tensor, linear: nn.Module) -> Tensor:
    """The first layer, nearly all of the work."""
    return linear(x)


@sooner(*HIDDEN)
def block(x: Tensor, norm: nn.Module, dropout: nn.Module) -> Tensor:
    """What follows each hidden layer."""
    return dropout(F.relu(norm(x)))


class MLP(nn.Module):
    """Maps a batch of flat images, N x 3072, to logits, N x `num_classes`.

    `hidden_layers` more than 1 repeat Linear, BatchNorm1d, ReLU and Dropout.
    """

    def __init__(self, hidden_size: int = 100, drop_rate: float = 0.2,
                 without_BatchNorm: bool = False, without_dropout: bool = False,
                 num_classes: int = 10, detach_statistics: bool = False, hidden_layers: int = 1,
                 gaussian_dropout: bool = False):
        super().__init__()
        norm = (nn.Identity if without_BatchNorm
                else partial(BatchNorm1d, hidden_size, detach_statistics=detach_statistics))
        dropout = GaussianDropout if gaussian_dropout else Dropout
        self.linear1 = nn.Linear(3 * 32 * 32, hidden_size)
        self.norm = norm()
        self.dropout = nn.Identity() if without_dropout else dropout(drop_rate)
        self.deeper = nn.ModuleList(
            nn.ModuleList([nn.Linear(hidden_size, hidden_size), norm()])
            for _ in range(hidden_layers - 1))
        self.linear2 = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_linear1(product(x, self.linear1))

    def after_linear1(self, x: Tensor) -> Tensor:
        """All behind linear1, which lab/side_by_side.py computes for several MLPs at once."""
        x = block(x, self.norm, self.dropout)
        for linear, norm in self.deeper:
            x = block(linear(x), norm, self.dropout)
        return self.linear2(x)


def build(settings, num_classes: int = 10) -> MLP:
    """The MLP that a run's settings describe."""
    return MLP(settings.hidden_size, settings.drop_rate, settings.without_BatchNorm,
               settings.without_dropout, num_classes, settings.detach_statistics,
               settings.hidden_layers, settings.gaussian_dropout)
