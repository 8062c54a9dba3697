"""Prediction on the device: the same rows for any number of processes, and float32's labels."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import results
import tiny_job
import torch
from jobs_in_processes import Job
from test_training import prepare

from flowers.data.gpu_decoder import GpuDecoder
from flowers.data.images import read_image
from flowers.engines.engine import build_engine
from flowers.errors import ModelError
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, load_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head

PHOTOS = 300 if results.DEVICE == "cuda" else 100  # CPUs may emulate bf16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and photos, one of which is broken."""
    folder = tmp_path_factory.mktemp("predict")
    tiny_job.make_bundle(folder / "bundle")
    first, *_ = tiny_job.make_photos(folder / "photos", PHOTOS)
    (folder / "photos" / first).write_bytes(b"\xff\xd8\xff broken")
    return folder


@pytest.fixture(scope="module")
def model(place: Path, device: str) -> Bundle:
    """The tiny model; on a GPU EfficientNet-Lite0 with a random head, if its weights are there."""
    if device == "cuda":
        with contextlib.suppress(ModelError):
            backbone = build_backbone("efficientnet_lite0")
            torch.manual_seed(0)
            head = HeadSpec(len(tiny_job.CLASSES.folders), backbone.num_features)
            weights = Classifier(backbone.network, build_head(head)).state_dict()
            return Bundle("efficientnet_lite0", head, tiny_job.CLASSES, backbone.preprocessing, {}, {}, weights)
    return load_bundle(place / "bundle")


@pytest.fixture(scope="module")
def views(place: Path, model: Bundle) -> np.ndarray:
    """What the network sees of all sound photos: uint8 [N, S, S, 3]."""
    view = model.preprocessing
    paths = sorted((place / "photos").rglob("*.jpg"))[1:]
    return np.stack([view.view(read_image(path, min_short_side=view.min_short_side)) for path in paths])


def answers(model: Bundle, views: np.ndarray, device: str, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and probs."""
    engine = build_engine(model, engine="torch", precision=precision, device=device, batch_size=50, features=True)
    handles = [engine.submit(views[start : start + 50]) for start in range(0, len(views), 50)]
    found = [handle.result() for handle in handles]
    engine.close()
    return tuple(np.concatenate(column) for column in zip(*((out.features, out.probs) for out in found), strict=True))


@pytest.fixture(scope="module")
def on_cpu(model: Bundle, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and probs of the CPU in float32."""
    return answers(model, views, "cpu", "float32")


@pytest.mark.parametrize(("precision", "noise"), [("float32", 1e-3), ("bf16", 0.03), ("fp16", 0.005)])
def test_features_and_labels_are_those_of_the_cpu(
    precision: str, noise: float, device: str, model: Bundle, views: np.ndarray, on_cpu: tuple[np.ndarray, np.ndarray]
) -> None:
    if device == "cpu" and precision == "fp16":
        pytest.skip("fp16 needs a GPU")
    features, probs = answers(model, views, device, precision)
    expected, expected_probs = on_cpu
    error = np.linalg.norm(features - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.median(error) < noise
    assert np.array_equal(probs.argmax(1), expected_probs.argmax(1))


def test_photos_decoded_on_the_gpu_look_the_same_to_the_network(
    device: str, place: Path, model: Bundle, views: np.ndarray, on_cpu: tuple[np.ndarray, np.ndarray]
) -> None:
    pytest.importorskip("torchcodec")
    decoder = GpuDecoder(model.preprocessing, torch.device(device))
    paths = sorted((place / "photos").rglob("*.jpg"))[1:]
    seen = decoder.views([decoder.prepare(path.read_bytes()) for path in paths])
    assert all(view is not None for view in seen)
    assert np.abs(np.stack(seen).astype(int) - views).mean(axis=(1, 2, 3)).max() < 3
    _, probs = answers(model, np.stack(seen), device, "float32")
    assert (probs.argmax(1) == on_cpu[1].argmax(1)).mean() >= 0.99


def test_a_job_that_decodes_on_the_gpu_writes_the_same_table_again(device: str, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchcodec")
    tables = []
    for name, processes in (("one", 1), ("two", 2), ("again", 1)):
        flags = ["--checkpoint", place / "bundle", "--input", place / "photos", "--output", f"{name}.csv"]
        flags += ["-b", 16, "--shard-size", 32, "--decode", "gpu"]
        job = Job("predict", flags, folder=tmp_path, processes=processes, before=decode_there, arguments=(device,))
        assert job.wait() == [0] * processes, job.output
        tables.append((tmp_path / f"{name}.csv").read_bytes())
    assert tables[0].count(b",ok,") == PHOTOS - 1
    assert tables[0].count(b",error,") == 1
    assert tables[1:] == tables[:1] * 2


def decode_there(device: str) -> None:
    """On a CPU, which the job refuses to decode on in place of a GPU, let it."""
    prepare(device)
    if device == "cpu":
        from flowers.prediction import shard_loop

        shard_loop._gpu_decoder = lambda job: GpuDecoder(job.model.preprocessing, torch.device("cpu"))


def test_one_and_two_processes_and_another_run_give_the_same_bytes(device: str, place: Path, tmp_path: Path) -> None:
    tables = []
    for name, processes in (("one", 1), ("two", 2), ("again", 1)):
        flags = ["--checkpoint", place / "bundle", "--input", place / "photos", "--output", f"{name}.csv"]
        flags += ["-b", 16, "--shard-size", 32]
        job = Job("predict", flags, folder=tmp_path, processes=processes, before=prepare, arguments=(device,))
        assert job.wait() == [0] * processes, job.output
        assert f" on {device}" in job.output or device == "cpu"
        tables.append((tmp_path / f"{name}.csv").read_bytes())
    assert tables[0].count(b"\n") == PHOTOS + 1
    assert tables[0].count(b",error,") == 1
    assert tables[1:] == tables[:1] * 2


def test_a_model_is_exported(device: str, on_gpu: None, place: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    flags = ["--checkpoint", place / "bundle", "--format", "onnx", "--output", "model.onnx"]
    flags += ["--check-images", place / "photos"]
    job = Job("export", flags, folder=tmp_path, before=prepare, arguments=(device,))
    assert job.wait() == [0], job.output
    assert (tmp_path / "model.onnx").stat().st_size > 0
