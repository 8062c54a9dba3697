"""export.py --format timm and torchvision: loaded by these libraries themselves, with the same logits."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import tiny_job
import torch
import torchvision
import yaml
from packaging.version import parse

from flowers.config.export import ExportConfig
from flowers.data.images import read_image
from flowers.errors import ModelError, OutputError, UsageError
from flowers.exports import model_card
from flowers.exports.export import export
from flowers.exports.layouts import LOADS_FOLDERS, timm_layout, torchvision_layout
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, load_bundle, save_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head
from flowers.models.temperature import store, with_temperature


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    tiny_job.make_photos(folder, 6)
    return folder


def make_export(folder: Path, photos: Path, output: str, **flags: object) -> tuple[Bundle, Path]:
    config = ExportConfig(output=folder / output, checkpoint=folder / "best", check_images=photos, **flags)
    assert export(config) == 0
    return load_bundle(folder / "best"), folder / output


def untrained(name: str, size: int | None = None, head: HeadSpec | None = None) -> Bundle:
    """A model whose batch norms and head are not those of a fresh network."""
    torch.manual_seed(0)
    backbone = build_backbone(name, "none", size)
    spec = head or HeadSpec(4, backbone.num_features)
    classifier = Classifier(backbone.network, build_head(spec))
    for tensor_name, value in classifier.state_dict().items():
        if "running_var" in tensor_name:
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(torch.randn_like(value) * 0.05)
    classes = tiny_job.CLASSES
    return Bundle(name, spec, classes, backbone.preprocessing, {}, {}, classifier.state_dict())


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit"])
def test_timm_gives_the_same_logits(name: str, photos: Path, tmp_path: Path) -> None:
    tiny_job.make_bundle(tmp_path / "best", model=name)
    if parse(timm.__version__) < parse(LOADS_FOLDERS):
        with pytest.raises(ModelError, match="cannot load a folder: pip install 'timm>="):
            make_export(tmp_path, photos, "hub", format="timm")
        return
    store(with_temperature(load_bundle(tmp_path / "best"), 1.5))
    bundle, folder = make_export(tmp_path, photos, "hub", format="timm", model_card=True)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    view = bundle.preprocessing
    paths = sorted(photos.rglob("*.jpg"))
    images = torch.from_numpy(np.stack([view.view(read_image(path)) for path in paths]))
    with torch.no_grad():
        ours, theirs = bundle.build()(view.normalize(images)), network(view.normalize(images))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    data = timm.data.resolve_model_data_config(network)
    found = [tuple(data[name]) for name in ("input_size", "mean", "std")]
    assert found == [(3, view.crop, view.crop), view.mean, view.std]
    resize = timm.data.create_transform(**data, is_training=False).transforms[0]
    assert resize.size == view.resize
    assert network.pretrained_cfg["label_names"] == list(bundle.classes.folders)
    _, head, card = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "timm"
    assert "temperature of 1.5" in card
    checked = json.loads((folder / "flowers.json").read_text())
    assert checked["agreement"]["same_top1"] == 1.0
    assert checked["model_hash"] == bundle.hash
    make_export(tmp_path, photos, "hub", format="timm")  # an earlier export is replaced
    assert not (folder / "README.md").exists()


def test_torchvision_gives_the_same_logits(photos: Path, tmp_path: Path) -> None:
    tiny_job.make_bundle(tmp_path / "best", model="shufflenet_v2_x0_5")
    bundle, file = make_export(tmp_path, photos, "model.pth", format="torchvision")
    network = torchvision.models.get_model(bundle.model, weights=None, num_classes=bundle.head.num_classes)
    network.load_state_dict(torch.load(file, weights_only=True))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), bundle.build()(images), rtol=1e-4, atol=1e-4)
    facts = json.loads((tmp_path / "model.pth.json").read_text())
    assert facts["network"] == bundle.model
    assert facts["classes"] == list(bundle.classes.folders)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_lite0"])
def test_a_twin_in_timm_gives_the_same_logits(name: str) -> None:
    bundle = untrained(name, 64)
    layout = timm_layout(bundle)
    fresh = timm.create_model(layout.name, num_classes=4)
    fresh.load_state_dict(layout.tensors)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(images), bundle.build()(images), rtol=1e-3, atol=1e-3)


def test_what_a_library_does_not_have_is_refused_by_name(photos: Path, tmp_path: Path) -> None:
    features = build_backbone("timm/test_resnet", "none", 64).num_features
    hidden = untrained("timm/test_resnet", 64, HeadSpec(4, features, hidden=8))
    with pytest.raises(ModelError, match="timm/test_resnet: timm has no head with a hidden layer"):
        timm_layout(hidden)
    with pytest.raises(ModelError, match=r"test_resnet\+2: timm has no head on several stages \(\+2\)"):
        timm_layout(untrained("timm/test_resnet+2", 64))
    with pytest.raises(ModelError, match="shufflenet_v2_x0_5: timm has no network of the same shape"):
        timm_layout(untrained("shufflenet_v2_x0_5", 64))
    with pytest.raises(ModelError, match="timm/test_resnet: torchvision has no such network"):
        torchvision_layout(untrained("timm/test_resnet", 64))
    with pytest.raises(ModelError, match="squeezenet1_1: torchvision's head is another"):
        torchvision_layout(untrained("squeezenet1_1", 64))
    save_bundle(hidden, tmp_path / "best")
    with pytest.raises(ModelError):
        make_export(tmp_path, photos, "hub", format="timm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]


def test_flags_and_places_that_cannot_be(photos: Path, tmp_path: Path) -> None:
    tiny_job.make_bundle(tmp_path / "best", model="timm/test_resnet")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="holds something else than an earlier --format timm"):
        make_export(tmp_path, photos, "mine", format="timm")
    (tmp_path / "hub" / ".git").mkdir(parents=True)
    (tmp_path / "hub" / "flowers.json").touch()
    with pytest.raises(OutputError, match=r"holds other files than an export's \(\.git\)"):
        make_export(tmp_path, photos, "hub", format="timm")
    assert (tmp_path / "hub" / ".git").is_dir()
    for flags, message in (
        ({"format": "torchvision", "output": Path("a.onnx")}, "expected a name ending in .pth"),
        ({"format": "timm", "output": Path("a.pth")}, "expected a folder's name"),
        ({"format": "timm", "output": Path("a"), "precision": "fp16"}, "--precision: not with --format timm"),
        ({"format": "onnx", "output": Path("a.onnx"), "model_card": True}, "--model-card: only with --format timm"),
    ):
        with pytest.raises(UsageError, match=message):
            ExportConfig(checkpoint=tmp_path, **flags)


def test_a_card_shows_no_figure_that_is_none() -> None:
    bundle = SimpleNamespace(folder=Path("nowhere/best"), metrics={"valid_top1": "high"})
    assert "not measured" in model_card._figures(bundle)
    bundle.metrics = {"valid_top1": 0.5, "valid_images": "many", "valid_ece": None}
    assert "| valid | not known | 50.00% | not known | not known |" in model_card._figures(bundle)
