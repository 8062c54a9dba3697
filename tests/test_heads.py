"""Heads as described; a frozen backbone that nothing moves."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from flowers.errors import ModelError
from flowers.models.backbones import build_backbone
from flowers.models.heads import (
    Classifier,
    HeadSpec,
    build_head,
    freeze_backbone,
    freeze_batch_norm,
    synchronize_batch_norm,
)


def test_linear_head() -> None:
    head = build_head(HeadSpec(num_classes=5, in_features=8))
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "output.weight": (5, 8),
        "output.bias": (5,),
    }


def test_head_of_the_2018_blog() -> None:
    head = build_head(HeadSpec(num_classes=102, in_features=1024, hidden=400, dropout=0.5))
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (head.hidden.in_features, head.hidden.out_features, head.output.out_features) == (1024, 400, 102)
    assert head.dropout.p == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_blocks_of_features_have_length_1(dtype: torch.dtype) -> None:
    head = build_head(HeadSpec(num_classes=5, in_features=8, unit_blocks=(6, 2)))
    assert list(head.state_dict()) == ["output.weight", "output.bias"]
    features = torch.randn(3, 8) * torch.tensor([1e-3] * 6 + [6e4 / 3] * 2)
    features[2] = 0
    lengths = [block.norm(dim=1) for block in head.unit_blocks(features.to(dtype)).float().split([6, 2], 1)]
    torch.testing.assert_close(torch.stack(lengths), torch.tensor([[1.0, 1.0, 0.0]] * 2), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"in_features": 2.5}, r"in_features is 2\.5"),
        ({"in_features": True}, "in_features is True"),
        ({"hidden": -1}, "hidden is -1"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"dropout": "much"}, "dropout is 'much'"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"colour": 1}, "expected exactly the fields"),
        ({"unit_blocks": [3, 4]}, r"\[3, 4\], expected widths of together 8"),
        ({"unit_blocks": [9, -1]}, r"\[9, -1\], expected widths"),
        ({"unit_blocks": 8}, "unit_blocks is 8"),
        ({"unit_blocks": [4.0, 4]}, "expected whole numbers"),
    ],
)
def test_a_spec_that_cannot_be(values: dict, message: str) -> None:
    good = HeadSpec(num_classes=5, in_features=8).to_dict()
    with pytest.raises(ModelError, match=message):
        HeadSpec.from_dict({**good, **values})


def test_a_spec_goes_through_json_values() -> None:
    spec = HeadSpec(num_classes=5, in_features=8, hidden=3, dropout=0.25)
    assert HeadSpec.from_dict(spec.to_dict()) == spec
    assert "unit_blocks" not in spec.to_dict(), "earlier versions read it"
    spec = HeadSpec(num_classes=5, in_features=8, unit_blocks=(6, 2))
    assert HeadSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(ModelError, match="got list"):
        HeadSpec.from_dict([5, 8])


def test_parameter_names() -> None:
    backbone = build_backbone("timm/test_resnet", "none")
    classifier = Classifier(backbone.network, build_head(HeadSpec(5, backbone.num_features)))
    assert {name.split(".")[0] for name in classifier.state_dict()} == {"backbone", "head"}


def make_classifier() -> Classifier:
    """Batch norm, dropout and stochastic depth, all of which act differently in training."""
    torch.manual_seed(0)
    network = build_backbone("timm/test_efficientnet", "none").network
    from timm.layers import DropPath

    for module in network.modules():
        if hasattr(module, "drop_path"):
            module.drop_path = DropPath(0.5)
    backbone = nn.Sequential(network, nn.Dropout(0.5))
    return Classifier(backbone, build_head(HeadSpec(4, network.num_features, hidden=8, dropout=0.5)))


def train_steps(classifier: Classifier, steps: int = 3) -> None:
    """Steps as a training loop makes them, weight decay included."""
    parameters = [value for value in classifier.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        classifier.train()
        images, targets = torch.randn(6, 3, 64, 64), torch.randint(0, 4, (6,))
        nn.functional.cross_entropy(classifier(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()


def changed(before: dict[str, Tensor], classifier: Classifier) -> set[str]:
    return {name for name, value in classifier.state_dict().items() if not torch.equal(value, before[name])}


def test_no_tensor_of_a_frozen_backbone_moves() -> None:
    classifier = make_classifier()
    freeze_backbone(classifier)
    before = copy.deepcopy(classifier.state_dict())
    assert any("running_mean" in name for name in before)
    train_steps(classifier)
    assert changed(before, classifier) == {name for name in before if name.startswith("head.")}


def test_frozen_features_are_those_of_evaluation_whatever_train_says() -> None:
    classifier = make_classifier()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.eval().backbone(images)
    freeze_backbone(classifier)
    nn.Sequential(classifier).train()  # as a wrapper does it
    assert classifier.training
    assert not any(module.training for module in classifier.backbone.modules())
    assert torch.equal(classifier.features(images), expected)
    before = copy.deepcopy(classifier.state_dict())
    classifier.backbone.train()  # even so
    assert torch.equal(classifier.features(images), expected)
    assert changed(before, classifier) == set()
    assert not classifier.features(images).requires_grad


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm/test_efficientnet", "resnet18"])
def test_synchronized_batch_norm_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    network = build_backbone(name, "none", 64)
    classifier = Classifier(network.network, build_head(HeadSpec(4, network.num_features))).eval()
    before, names = classifier(images := torch.randn(2, 3, 64, 64)), list(classifier.state_dict())
    classifier = synchronize_batch_norm(classifier)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in classifier.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in classifier.modules())
    assert torch.equal(classifier(images), before)
    assert list(classifier.state_dict()) == names


def test_batch_norm_held_still_is_so_after_its_modules_were_replaced() -> None:
    classifier = make_classifier()
    freeze_batch_norm(classifier)
    classifier = synchronize_batch_norm(classifier)
    for mode in (True, False, True):
        classifier.train(mode)
        assert not any(module.training for module in classifier.modules() if isinstance(module, nn.SyncBatchNorm))
    assert classifier.training


def test_a_backbone_that_does_not_pool_is_refused() -> None:
    classifier = Classifier(nn.Conv2d(3, 4, 1), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"gives \[2, 4, 8, 8\]"):
        classifier(torch.zeros(2, 3, 8, 8))
