"""Exports on real photos: each kind of file keeps the classes that its bundle gives, over all classes of valid/."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flowers.config.export import MIN_AGREEMENT, ExportConfig
from flowers.engines.engine import build_engine
from flowers.exports import compare, graph
from flowers.exports.export import export

for package in ("onnx", "onnxruntime", "onnxscript", "openvino", "nncf"):
    pytest.importorskip(package, reason="pip install -e .[export]")

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from models import convert_once, quick_bundle  # noqa: E402

PHOTOS = 102
WAYS = {
    "float.onnx": ("onnx", "float32"),
    "half.onnx": ("onnx", "fp16"),
    "eighth.onnx": ("onnx", "int8"),
    "float.xml": ("openvino", "float32"),
    "half.xml": ("openvino", "fp16"),
    "eighth.xml": ("openvino", "int8"),
    "float.pt2": ("torch-export", "float32"),
}


@pytest.fixture(scope="module")
def bundle(flowers102: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with a head trained on all of train/: about 92% of valid/ right."""
    return quick_bundle(tmp_path_factory.mktemp("photos") / "bundle", flowers102 / "train", per_class=20)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """The conversion to ONNX, done once for all files that start from the same one."""
    return convert_once(tmp_path_factory.mktemp("converted"))


@pytest.fixture(scope="module")
def answers() -> dict[str, SimpleNamespace]:
    """What the bundle says of each batch: asked once, not once for each kind of file."""
    return {}


def remembering(answers: dict[str, SimpleNamespace]) -> Callable[..., SimpleNamespace]:
    """``build_engine``, but for batches that were asked before."""

    def build(*args: object, **options: object) -> SimpleNamespace:
        engine = build_engine(*args, **options)

        def submit(views: np.ndarray) -> SimpleNamespace:
            key = hashlib.sha256(views).hexdigest()
            if key not in answers:
                outputs = engine.submit(views).result()
                answers[key] = SimpleNamespace(result=lambda: outputs)
            return answers[key]

        return SimpleNamespace(submit=submit, close=engine.close)

    return build


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_an_export_keeps_the_classes_of_real_photos(
    name: str, bundle: Path, answers: dict, converted: Callable, flowers102: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(compare, "build_engine", remembering(answers))
    monkeypatch.setattr(graph, "write_onnx", converted)
    format, precision = WAYS[name]
    train = flowers102 / "train" if precision == "int8" else None
    config = ExportConfig(
        tmp_path / name,
        bundle,
        format,
        precision=precision,
        check_images=flowers102 / "valid",
        check_count=PHOTOS,
        calibration_images=train,
        calibration_count=PHOTOS,
    )
    assert export(config) == 0
    agreement = json.loads((tmp_path / f"{name}.json").read_text())["agreement"]
    assert agreement["images"] == agreement["labelled"] == PHOTOS
    assert agreement["same_top1"] >= MIN_AGREEMENT[precision]
    assert agreement["bundle_top1"] > 0.88
    said = " ".join(capsys.readouterr().out.split())
    assert f"top1 {agreement['export_top1']:.2%} of {agreement['labelled']} photos in class folders" in said
    assert f"the bundle {agreement['bundle_top1']:.2%}" in said
