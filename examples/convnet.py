"""A small convolutional network with seeded random weights: `tapml carve examples/convnet.py:model -o run`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Images float32 [1, 3, 32, 32] to logits float32 [1, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.nn.functional.gelu(self.pointwise(self.depthwise(x)))
        return self.head(self.pool(x).mean(dim=(2, 3)))


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return ConvNet().eval(), (torch.randn(1, 3, 32, 32),)
