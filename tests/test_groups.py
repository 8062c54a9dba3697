"""The optimizer's groups: what decays, and how fast each block learns."""

import pytest
import torch
from torch import nn

from flowers.models.backbones import build_backbone
from flowers.models.heads import Classifier, HeadSpec, build_head, freeze_backbone
from flowers.training.optimizer import blocks, parameter_groups


def classifier(name: str) -> Classifier:
    backbone = build_backbone(name, "none")
    return Classifier(backbone.network, build_head(HeadSpec(5, backbone.num_features)))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("efficientnet_lite0", 19),
        ("resnet18", 10),
        ("vgg13", 11),
        ("densenet121", 9),
        ("timm/vit_tiny_patch16_224", 15),
        ("timm/coat_tiny", 29),
    ],
)
def test_blocks_hold_every_parameter_once_from_the_images_to_the_head(name: str, count: int) -> None:
    model = classifier(name)
    found = blocks(model)
    assert len(found) == count
    assert sorted(id(parameter) for block in found for parameter in block) == sorted(map(id, model.parameters()))
    assert found[-1] == list(model.head.parameters())
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    place = [any(parameter is first.weight for parameter in block) for block in found].index(True)
    assert place <= 1, "class tokens and position embeddings may stand before it"


def test_what_blocks_share_is_trained_once() -> None:
    """An optimizer refuses a parameter that comes twice."""
    model = classifier("timm/coat_tiny")
    torch.optim.SGD(parameter_groups(model, 0.1, layer_decay=0.5), lr=0.1)


def test_rates_fall_from_the_head_to_the_images() -> None:
    model = classifier("resnet18")
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    scale_of = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale_of[id(model.head.output.bias)] == 1
    assert scale_of[id(model.backbone.layer4[1].conv1.weight)] == 0.5
    assert scale_of[id(model.backbone.layer4[0].conv1.weight)] == 0.25
    assert scale_of[id(model.backbone.conv1.weight)] == scale_of[id(model.backbone.bn1.weight)] == 0.5**9
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_only_matrices_decay_whatever_the_rates() -> None:
    for groups in (parameter_groups(classifier("resnet18"), 0.1, decay) for decay in (1.0, 0.9)):
        for group in groups:
            assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}
    assert len(parameter_groups(classifier("resnet18"), 0.1)) == 2


def test_a_head_alone_and_a_frozen_backbone() -> None:
    model = classifier("resnet18")
    freeze_backbone(model)
    for trained in (model, model.head):
        groups = parameter_groups(trained, 0.1, 0.5)
        assert {id(parameter) for group in groups for parameter in group["params"]} == set(
            map(id, model.head.parameters())
        )
        assert {group["lr_scale"] for group in groups} == {1.0}


def test_a_step_moves_each_block_by_its_share() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    groups = parameter_groups(Classifier(model, nn.Linear(2, 2)), 0.0, 0.25)
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0, 0.25, 0.25]
    assert torch.equal(groups[2]["params"][0], model[0].weight)
