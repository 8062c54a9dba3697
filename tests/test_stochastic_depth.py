"""Stochastic depth on timm's and torchvision's networks."""

from pathlib import Path

import pytest
import torch
from torchvision.ops import StochasticDepth

from flowers.config.train import TrainConfig
from flowers.data.folders import ClassIndex
from flowers.errors import ModelError
from flowers.models.backbones import build_backbone
from flowers.training.model import build_model, set_stochastic_depth


@pytest.mark.parametrize(
    "name",
    ["efficientnet_lite0", "timm/vit_tiny_patch16_224", "timm/resnet18", "efficientnet_b0", "maxvit_t"],
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


def test_nothing_is_left_out_unless_asked_for() -> None:
    """torchvision's networks come with a rate of their own."""
    classes = ClassIndex(("a", "b"), ("a", "b"))
    for rate in (0.0, 0.3):
        config = TrainConfig(
            Path("x"), model="efficientnet_b0", weights="none", image_size=32, finetune="full", drop_path=rate
        )
        classifier = build_model(config, classes, None).classifier
        rates = [module.p for module in classifier.modules() if isinstance(module, StochasticDepth)]
        assert max(rates) == pytest.approx(rate)
    set_stochastic_depth(build_backbone("vgg11", "none").network, 0.0)


def test_no_branch_keeps_a_rate_of_its_own() -> None:
    network = build_backbone("maxvit_t", "none").network
    set_stochastic_depth(network, 0.0)
    assert not any(module.p for module in network.modules() if isinstance(module, StochasticDepth))


def test_timms_resnet_leaves_branches_out() -> None:
    """It has None in their places until they are asked for."""
    torch.manual_seed(0)
    network = build_backbone("timm/resnet18", "none").network
    set_stochastic_depth(network, 0.9)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for name, scale in network.named_parameters():
            if name.endswith("bn2.weight"):
                scale.fill_(1)  # else every branch begins as zero
        assert not torch.equal(network.train()(images), network(images))
        assert torch.equal(network.eval()(images), network(images))


def test_a_block_without_a_shortcut_is_never_left_out() -> None:
    network = build_backbone("timm/ese_vovnet19b_dw", "none").network
    with pytest.raises(ModelError, match="VovNet has no residual branches"):
        set_stochastic_depth(network, 0.5)


def test_a_network_without_residual_branches_is_refused() -> None:
    with pytest.raises(ModelError, match=r"--drop-path 0.1: VGG has no residual branches"):
        set_stochastic_depth(build_backbone("vgg11", "none").network, 0.1)
