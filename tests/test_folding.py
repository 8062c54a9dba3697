"""Folded batch norms: gone where they can be, and the outputs stay."""

import pytest
import torch
from torch import nn

from flowers.engines.torch_engine import fold_batch_norms
from flowers.models.backbones import build_backbone


def shaken(network: nn.Module) -> nn.Module:
    """Statistics and weights of batch norms as training leaves them, not those of a fresh network."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("resnet18", 20, 0),
        ("mobilenet_v3_small", 34, 0),
        ("densenet121", 121, 62),  # most stand before a convolution, over a concatenation
        ("timm/test_efficientnet", 13, 0),
        ("timm/test_vit", 0, 0),
    ],
)
@torch.no_grad()
def test_outputs_stay(name: str, before: int, after: int) -> None:
    backbone = build_backbone(name, "none", 64 if not name.endswith("vit") else None)
    network = shaken(backbone.network)
    images = torch.randn(2, 3, backbone.preprocessing.crop, backbone.preprocessing.crop)
    folded = fold_batch_norms(network, images[:1])
    assert (norms(network), norms(folded)) == (before, after)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-4)


class Branch(nn.Module):
    """Also adds what its convolution gave before the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raw = self.conv(images)
        return self.norm(raw) + raw


class Twice(Branch):
    """Uses its convolution twice."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images)) + self.conv(images.flip(3))


class Standardized(nn.Conv2d):
    """Changes its weights at each call."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(images, self.weight / self.weight.norm(), self.bias)


@pytest.mark.parametrize(
    "network", [Branch(), Twice(), nn.Sequential(Standardized(3, 4, 3), nn.BatchNorm2d(4))], ids=lambda it: repr(it)[:6]
)
@torch.no_grad()
def test_what_cannot_be_folded_is_left_as_it_is(network: nn.Module) -> None:
    shaken(network)
    images = torch.randn(2, 3, 16, 16)
    before = network(images)
    folded = fold_batch_norms(network, images)
    assert norms(folded) == 1
    assert torch.equal(folded(images), before)
    assert torch.equal(network(images), before)
