"""Inception-v3 as FID and the Inception score use it: the network of TensorFlow's 2015 graph, whose weights it takes.

It differs from torchvision's in its pooling: averages leave the padding out, and the last block takes a maximum instead of
an average. It has 1,008 classes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.models import inception as parts

from ..outside import numbers_of

SIZE = 299


def _average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(parts.InceptionA):
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        deep = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), wide, deep, self.branch_pool(_average(x))]


class _C(parts.InceptionC):
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return [self.branch1x1(x), once, twice, self.branch_pool(_average(x))]


class _E(parts.InceptionE):
    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        return _average(x)

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        once, deep = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        wide = [self.branch3x3_2a(once), self.branch3x3_2b(once)]
        deeper = [self.branch3x3dbl_3a(deep), self.branch3x3dbl_3b(deep)]
        return [self.branch1x1(x), torch.cat(wide, 1), torch.cat(deeper, 1), self.branch_pool(self._pool(x))]


class _Last(_E):
    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)


def network() -> parts.Inception3:
    """The network with weights still to be loaded: (b, 3, 299, 299) in [-1, 1] -> logits (b, 1008)."""
    model = parts.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    model.Mixed_5b, model.Mixed_5c, model.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
    for name, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        setattr(model, f"Mixed_6{name}", _C(768, width))
    model.Mixed_7b, model.Mixed_7c = _E(1280), _Last(2048)
    return model


def load(weights: Path, device: torch.device) -> tuple[torch.nn.Module, torch.Tensor]:
    """The network that ends with its 2,048 pooled features, and the classifier's weights (1008, 2048) without their bias.

    The Inception score has been computed without the bias since its first code.
    """
    model = network()
    model.load_state_dict(numbers_of(weights))
    classes = model.fc.weight.detach().to(device)
    model.fc = torch.nn.Identity()
    return model.eval().requires_grad_(False).to(device), classes
