"""NAME+2: the features of a network and of its last two stages, from the name alone to every engine."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_job import CLASSES, draw_photo

from flowers.cli import parse
from flowers.config.train import TrainConfig
from flowers.data.preprocessing import Preprocessing
from flowers.engines.engine import build_engine
from flowers.errors import ModelError
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, load_bundle, save_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head
from flowers.models.stages import split_name
from jobs.train import main

MODEL = "timm/test_resnet"


def test_the_network_s_own_features_come_first() -> None:
    torch.manual_seed(0)
    plain, both = build_backbone(MODEL, "none", 64), build_backbone(f"{MODEL}+2", "none", 64)
    both.network.network.load_state_dict(plain.network.state_dict())
    images = torch.randn(3, 3, 64, 64)
    maps = []
    for stage in (plain.network.layer3, plain.network.layer4):
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        expected = torch.cat([plain.network.eval()(images), *(stage.mean((2, 3)) for stage in maps)], 1)
        found = both.network.eval()(images)
    assert found.shape == (3, both.num_features)
    torch.testing.assert_close(found, expected)
    assert both.preprocessing == plain.preprocessing


@pytest.mark.parametrize("name", ["efficientnet_lite0+2", "timm/test_vit+3", "timm/test_convnext+1"])
def test_widths(name: str) -> None:
    backbone = build_backbone(name, "none")
    crop = backbone.preprocessing.crop
    with torch.inference_mode():
        assert backbone.network.eval()(torch.zeros(2, 3, crop, crop)).shape == (2, backbone.num_features)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("densenet121+2", "no features of 2 stages from this network"),
        (f"{MODEL}+9", "no features of 9 stages"),
        ("efficientnet_lite0+0", "unknown model"),
        ("efficientnet_lite0+", "unknown model"),
        ("efficientnet_lite0+x", "unknown model"),
        ("+2", "unknown model"),
    ],
)
def test_refusals(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        build_backbone(name, "none", 64)


def test_names() -> None:
    assert split_name("efficientnet_lite0+2") == ("efficientnet_lite0", 2)
    assert split_name("timm/vit_base_patch16_plus_240") == ("timm/vit_base_patch16_plus_240", 0)


def test_a_network_that_was_trained_as_a_whole_shows_its_stages(tmp_path: Path) -> None:
    """So that a head can be fitted to what it has learned: ``--model NAME+2 --weights RUN``."""
    backbone = build_backbone(MODEL, "none", 64)
    spec = HeadSpec(len(CLASSES), backbone.num_features)
    state = Classifier(backbone.network, build_head(spec)).state_dict()
    save_bundle(Bundle(MODEL, spec, CLASSES, Preprocessing(resize=72, crop=64), {}, {}, state), tmp_path / "best")
    both = build_backbone(f"{MODEL}+2", str(tmp_path), 64)
    for name, tensor in both.network.network.state_dict().items():
        assert torch.equal(tensor, state[f"backbone.{name}"]), name
    assert both.num_features > backbone.num_features


def test_every_engine_gives_the_same(tmp_path: Path) -> None:
    torch.manual_seed(1)
    backbone = build_backbone(f"{MODEL}+2", "none", 64)
    spec = HeadSpec(len(CLASSES), backbone.num_features)
    classifier = Classifier(backbone.network, build_head(spec))
    preprocessing = Preprocessing(resize=72, crop=64)
    save_bundle(Bundle(f"{MODEL}+2", spec, CLASSES, preprocessing, {}, {}, classifier.state_dict()), tmp_path / "m")
    bundle = load_bundle(tmp_path / "m")
    rng = np.random.default_rng(0)
    views = np.stack([preprocessing.view(draw_photo(rng)) for _ in range(3)])
    with torch.no_grad():
        expected = bundle.build()(preprocessing.normalize(torch.from_numpy(views))).softmax(1).numpy()
    for name in ("torch", "openvino"):
        if name == "openvino":
            pytest.importorskip("openvino")
        engine = build_engine(bundle, engine=name, precision="float32", batch_size=4)
        np.testing.assert_allclose(engine.submit(views).result().probs, expected, atol=1e-4)
        engine.close()


def test_a_head_on_several_stages_trains_and_its_weights_fit_the_plain_network(
    sample_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--data-dir", sample_set, "--weights", "none", "--image-size", 64, "--epochs", 2, "-j", 0]
    flags += ["--mixed-precision", "no"]
    first = [*flags, "--model", f"{MODEL}+2", "--output-dir", tmp_path / "first"]
    assert main(parse(TrainConfig, list(map(str, first)))) == 0
    bundle = load_bundle(tmp_path / "first")
    assert bundle.head.in_features == build_backbone(f"{MODEL}+2", "none").num_features
    again = build_backbone(MODEL, str(tmp_path / "first"), 64)
    state = bundle.state_dict
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(tensor, state[f"backbone.network.{name}"]), name
    staged = [*flags, "--model", f"{MODEL}+1", "--finetune", "staged", "--output-dir", tmp_path / "staged"]
    assert main(parse(TrainConfig, list(map(str, staged)))) == 0
    assert "best model" in capsys.readouterr().out
