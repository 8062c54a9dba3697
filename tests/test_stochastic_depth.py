"""Stochastic depth on timm's and torchvision's networks."""

import pytest
import torch
from torchvision.ops import StochasticDepth

from flowers.errors import ModelError
from flowers.models.backbones import build_backbone
from flowers.models.stochastic_depth import set_stochastic_depth


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "timm/vit_tiny_patch16_224", "efficientnet_b0", "convnext_tiny"]
)
def test_rates_grow_with_depth(name: str) -> None:
    network = build_backbone(name, "none").network
    names = list(network.state_dict())
    set_stochastic_depth(network, 0.3)
    rates = [module.p for module in network.modules() if isinstance(module, StochasticDepth)]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.3)
    assert rates == sorted(rates)
    assert list(network.state_dict()) == names


def test_branches_are_left_out_in_training_alone() -> None:
    torch.manual_seed(0)
    network = build_backbone("efficientnet_lite0", "none").network.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = network(images)
        set_stochastic_depth(network, 0.9)
        assert torch.equal(network(images), plain)
        for module in network.modules():
            if isinstance(module, StochasticDepth):
                module.train()
        torch.manual_seed(1)
        assert not torch.allclose(network(images), plain)


def test_a_network_without_residual_branches_is_refused() -> None:
    with pytest.raises(ModelError, match=r"--drop-path 0.1: VGG has no residual branches"):
        set_stochastic_depth(build_backbone("vgg11", "none").network, 0.1)
