"""Exported files: they answer as their bundle does, say what they are, and need nothing of ours."""

import contextlib
import csv
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_job
import torch
from color_profiles import P3_PRIMARIES, rgb_profile, with_profile
from odd_files import encode
from PIL import Image

from flowers.cli import parse
from flowers.config.export import ExportConfig
from flowers.config.predict import PredictConfig
from flowers.data.images import read_image
from flowers.engines import exported as exported_files
from flowers.engines.engine import build_engine
from flowers.engines.exported import KEY, as_input, files_of, load_exported, open_model
from flowers.engines.exported_engine import build_exported_engine
from flowers.errors import DataError, FlowersError, ModelError, UsageError
from flowers.exports import graph, info
from flowers.exports.export import _publish as publish
from flowers.exports.export import export
from flowers.exports.photos import photos_in, photos_of_run
from flowers.models.bundle import load_bundle
from flowers.models.temperature import store, with_temperature
from flowers.prediction.predict import predict

onnx = pytest.importorskip("onnx", reason="pip install -e .[export]")
for package in ("onnxruntime", "onnxscript", "openvino", "nncf"):
    pytest.importorskip(package, reason="pip install -e .[export]")

MODEL = "timm/test_resnet"  # a graph of few nodes: exported in two seconds
WAYS = {
    "a.onnx": {"format": "onnx"},
    "half.onnx": {"format": "onnx", "precision": "fp16", "input_type": "float32", "layout": "NCHW"},
    "eighth.onnx": {"format": "onnx", "precision": "int8", "layout": "NCHW"},
    "a.xml": {"format": "openvino", "input_type": "float32", "layout": "NCHW"},
    "half.xml": {"format": "openvino", "precision": "fp16"},
    "eighth.xml": {"format": "openvino", "precision": "int8"},
    "a.pt2": {"format": "torch-export", "layout": "NCHW"},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a tiny model, whose config names data with 24 photos to train on and 12 to validate."""
    folder = tmp_path_factory.mktemp("exports")
    rng = np.random.default_rng(1)
    for split, count in (("train", 6), ("valid", 3)):
        for name in tiny_job.CLASSES.folders:
            (folder / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                photo = encode(tiny_job.draw_photo(rng), "JPEG")
                (folder / "data" / split / name / f"{index}.jpg").write_bytes(photo)
    tiny_job.make_bundle(folder / "run" / "best", model=MODEL)
    (folder / "run" / "config.yaml").write_text(f"data_dir: {folder / 'data'}\nmodel: {MODEL}\n")
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run_dir: Path) -> Callable[[str], Path]:
    """One of ``WAYS``, made when it is first asked for."""

    def get(name: str) -> Path:
        path = run_dir.parent / "out" / name
        if not path.exists():
            # random weights and twelve photos: rounding may turn close calls, here one in four
            low = {"min_agreement": 0.7} if "precision" in WAYS[name] else {}
            assert export(ExportConfig(path, run_dir, **low, **WAYS[name])) == 0
        return path

    return get


@pytest.fixture(scope="module")
def truth(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Five views of photos, and what the bundle says of them in plain float32."""
    bundle = load_bundle(run_dir)
    paths = sorted((run_dir.parent / "data" / "valid").rglob("*.jpg"))[:5]
    views = np.stack([bundle.preprocessing.view(read_image(path)) for path in paths])
    with torch.no_grad():
        logits = bundle.build()(bundle.preprocessing.normalize(torch.from_numpy(views)))
    return views, logits.softmax(1).numpy()


def native(path: Path, images: np.ndarray) -> np.ndarray:
    """Run a file with its own runtime, nothing of ours between."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(["probs"], {"images": images})[0]
    if path.suffix == ".xml":
        from flowers.engines.openvino_engine import _core  # one Core a process, see there

        compiled = _core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return compiled({"images": images})["probs"]
    (probs,) = torch.export.load(path).module()(torch.from_numpy(images))
    return probs.detach().numpy()


@pytest.mark.parametrize("name", WAYS)
def test_a_file_answers_as_its_bundle_for_any_number_of_images(
    name: str, exported: Callable, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    way = WAYS[name]
    views, probs = truth
    images = as_input(views, way.get("input_type", "uint8"), way.get("layout", "NHWC"))
    tolerance = {"float32": 1e-4, "fp16": 0.03, "int8": 0.5}[way.get("precision", "float32")]
    for count in (5, 1):
        found = native(exported(name), images[:count])
        assert found.shape == (count, 4)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-3)
        np.testing.assert_allclose(found, probs[:count], atol=tolerance)


@pytest.mark.parametrize("name", WAYS)
def test_how_it_was_checked_stands_beside_it(name: str, exported: Callable, run_dir: Path) -> None:
    path = exported(name)
    report = json.loads(path.with_name(path.name + ".json").read_text())
    agreement = report["agreement"]
    assert agreement["images"] == agreement["labelled"] == 12
    assert agreement["photos"] == f"valid of {run_dir.parent / 'data'}"
    assert report["min_agreement"] <= agreement["same_top1"] <= 1
    assert 0 < agreement["max_prob_difference"] < 0.5
    assert abs(agreement["bundle_top1"] - agreement["export_top1"]) <= 1 - agreement["same_top1"]
    assert report["model_hash"] == load_bundle(run_dir).hash
    assert (report["calibrated_on"] is not None) == (WAYS[name].get("precision") == "int8")
    assert not [entry for entry in os.listdir(path.parent) if entry.startswith(".")]


@pytest.mark.parametrize("name", ["a.onnx", "a.xml", "eighth.xml", "eighth.onnx"])
def test_classes_and_preprocessing_travel_inside(name: str, exported: Callable, run_dir: Path) -> None:
    found, bundle = load_exported(exported(name)), load_bundle(run_dir)
    assert (found.classes, found.preprocessing) == (bundle.classes, bundle.preprocessing)
    assert (found.precision, found.layout) == (
        WAYS[name].get("precision", "float32"),
        WAYS[name].get("layout", "NHWC"),
    )


def test_info_tells_what_an_exported_file_is(exported: Callable, run_dir: Path) -> None:
    path = exported("half.xml")
    facts = info.describe(path)
    assert (facts["kind"], facts["precision"]) == ("openvino", "fp16")
    assert [entry["label"] for entry in facts["classes"]] == list(tiny_job.CLASSES.labels)
    assert facts["bytes"] == path.stat().st_size + path.with_suffix(".bin").stat().st_size
    assert ("model", f"{MODEL}, fp16, takes uint8 NHWC") in info.rows(facts)


def test_a_calibrated_model_is_exported_as_it_is(
    run_dir: Path, truth: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    store(with_temperature(load_bundle(tmp_path / "run"), 4.0))
    assert export(ExportConfig(tmp_path / "calm.onnx", tmp_path / "run", "onnx")) == 0
    views, probs = truth
    calm = probs**0.25 / (probs**0.25).sum(1, keepdims=True)
    np.testing.assert_allclose(native(tmp_path / "calm.onnx", views), calm, atol=1e-4)
    said = dict(info.rows(info.describe(tmp_path / "calm.onnx")))
    assert said["calibrated"] == "logits divided by a temperature of 4"


def test_they_travel_in_a_torch_export_file_too(exported: Callable) -> None:
    inside = {f"{KEY}.json": ""}
    torch.export.load(exported("a.pt2"), extra_files=inside)
    about = json.loads(inside[f"{KEY}.json"])
    assert tuple(about["labels"]) == tiny_job.CLASSES.labels
    assert about["input"] == {"type": "uint8", "layout": "NCHW"}


@pytest.mark.parametrize("name", ["a.onnx", "half.onnx"])
def test_the_example_needs_nothing_of_ours(name: str, exported: Callable, run_dir: Path, tmp_path: Path) -> None:
    path = exported(name)
    example = path.with_name(path.name + ".example.py")
    lines = [line for line in example.read_text().splitlines() if line and not line.startswith(("#", "import", "from"))]
    assert len(lines) <= 29
    with Image.open(run_dir.parent / "data" / "valid" / "10" / "1.jpg") as picture:
        photo = tmp_path / "display p3.png"
        photo.write_bytes(with_profile(picture, "PNG", rgb_profile(P3_PRIMARIES)))
    alone = "import runpy, sys; sys.modules |= {'torch': None, 'flowers': None}; sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-c", alone + "runpy.run_path(sys.argv[0])", example, path, photo]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    bundle = load_bundle(run_dir)
    engine = build_engine(bundle, engine="torch", precision="float32")
    probs = engine.submit(bundle.preprocessing.view(read_image(photo, to_srgb=True))[None]).result().probs[0]
    engine.close()
    prob, folder, label = done.stdout.splitlines()[0].split("  ")
    best = int(probs.argmax())
    assert (folder, label) == (bundle.classes.folders[best], bundle.classes.labels[best])
    assert float(prob) == pytest.approx(probs[best], abs=0.03)  # Pillow scales a little differently


def test_the_example_tells_its_usage_and_takes_a_folder(exported: Callable, run_dir: Path, tmp_path: Path) -> None:
    path = exported("a.onnx")
    example = path.with_name(path.name + ".example.py")
    for words in ([], ["--help"], [path], [path, tmp_path / "missing.jpg"]):
        done = subprocess.run([sys.executable, example, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert done.stderr == f"usage: python {example} MODEL.onnx PHOTO_OR_FOLDER, of files that exist\n"
    folder = shutil.copytree(run_dir.parent / "data" / "valid", tmp_path / "photos")
    (folder / "notes.txt").write_text("no picture")
    done = subprocess.run([sys.executable, example, path, folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    photos = sorted(str(photo) for photo in folder.rglob("*.jpg"))
    assert [line for line in done.stdout.splitlines() if line.endswith(".jpg")] == photos
    assert "notes.txt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch-export"])
def test_too_little_agreement_writes_nothing(
    format: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = graph.ProbsNetwork.forward
    monkeypatch.setattr(graph.ProbsNetwork, "forward", lambda self, images: (right(self, images)[0].flip(1),))
    output = tmp_path / f"wrong{'.onnx' if format == 'onnx' else '.xml' if format == 'openvino' else '.pt2'}"
    output.write_text("an earlier file")
    with pytest.raises(ModelError, match=r"agrees with the bundle on [0-9.]+% of the photos, expected 99.50%"):
        export(ExportConfig(output, run_dir, format))
    assert os.listdir(tmp_path) == [output.name]
    assert output.read_text() == "an earlier file"


class Killed(BaseException):
    """Ends a step as a kill would: nothing that was meant to follow it happens, but for what undoes itself."""


def killing(left: Iterator[int], step: Callable[..., None], *args, **kwargs) -> None:
    """Take a step, or die before it once none is left to take."""
    if next(left, None) is None:
        raise Killed
    step(*args, **kwargs)


def copied(exported: Path, folder: Path, stem: str = "model") -> Path:
    """An export with its report, under another name."""
    for file in (exported, exported.with_suffix(".bin"), exported.with_name(f"{exported.name}.json")):
        if file.exists():
            shutil.copy(file, folder / file.name.replace(exported.stem, stem, 1))
    return folder / f"{stem}{exported.suffix}"


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_kill_between_two_renames_leaves_a_whole_export_or_none(
    suffix: str, exported: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = exported(f"a{suffix}"), exported(f"half{suffix}")
    report = json.loads(later.with_name(f"{later.name}.json").read_text())
    found = []
    for steps in range(6):
        (tmp_path / f"{steps}" / "new").mkdir(parents=True)
        path, output = copied(later, tmp_path / f"{steps}" / "new"), copied(earlier, tmp_path / f"{steps}")

        left = iter(range(steps))
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "replace", functools.partial(killing, left, os.replace))
            patch.setattr(Path, "unlink", functools.partialmethod(functools.partial(killing, left, Path.unlink)))
            publish(path, output, report)
        model = open_model(output) if output.exists() else None
        found.append(model and (model.precision, model.is_verified))
    gone = [None, None] if suffix == ".xml" else []
    states = [("float32", True), ("float32", False), *gone, ("fp16", False), ("fp16", True)]
    assert found[: len(states)] == states


def test_probs_that_are_no_numbers_write_nothing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = graph.ProbsNetwork.forward

    monkeypatch.setattr(graph.ProbsNetwork, "forward", lambda self, images: (right(self, images)[0] * torch.nan,))
    with pytest.raises(ModelError, match="gives probabilities that are no numbers: nothing was written"):
        export(ExportConfig(tmp_path / "a.onnx", run_dir, "onnx", min_agreement=0.0))
    assert not os.listdir(tmp_path)


def test_an_output_that_cannot_be_is_told_before_the_work(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "ProbsNetwork", None)
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(FlowersError, match=r"a.onnx: this is a folder, a file name was expected"):
        export(ExportConfig(tmp_path / "a.onnx", run_dir, "onnx"))


def test_a_failed_export_is_one_line(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(self: graph.ProbsNetwork, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.zeros(4) if float(images.float().mean()) > 0 else images,)

    monkeypatch.setattr(graph.ProbsNetwork, "forward", odd)
    with pytest.raises(ModelError, match="torch.export cannot express this network"):
        export(ExportConfig(tmp_path / "a.onnx", run_dir, "onnx"))
    assert not os.listdir(tmp_path)


def rows(path: Path) -> list[tuple[str, str, float]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["path"], row["class"], float(row["prob"])) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("name", "engine"), [("a.onnx", "onnxruntime"), ("a.onnx", "openvino"), ("a.xml", "auto")])
def test_a_folder_is_classified_with_an_exported_file(
    name: str, engine: str, exported: Callable, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def run(checkpoint: Path, output: str, **flags: object) -> list[tuple[str, str, float]]:
        photos = run_dir.parent / "data" / "valid"
        words = ["--checkpoint", checkpoint, "--input", photos, "--output", tmp_path / output, "--workers", 1]
        words += [word for name, value in flags.items() for word in (f"--{name}", value)]
        assert predict(parse(PredictConfig, [str(word) for word in words])) == 0
        return rows(tmp_path / output)

    expected = run(run_dir, "bundle.csv", engine="torch", precision="float32")
    path = exported(name)
    found = run(path, "export.csv", engine=engine)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], atol=0.03)
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["model"] == load_exported(path).hash
    assert facts["engine"]["engine"] == ("openvino" if "openvino" in (engine, WAYS[name]["format"]) else "onnxruntime")
    capsys.readouterr()
    assert run(path, "export.csv", engine=engine) == found
    assert "is complete: nothing to do" in capsys.readouterr().out
    with pytest.raises(Exception, match="was made otherwise"):
        run(exported("half.onnx"), "export.csv", engine=engine)


def test_an_int8_onnx_file_is_for_onnx_runtime_only(exported: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_exported(exported("eighth.onnx"))
    with pytest.raises(UsageError, match="openvino does not run an exported int8 onnx file; expected auto or onnxrun"):
        build_exported_engine(model, engine="openvino")
    with pytest.raises(UsageError, match="--precision float32: this file is int8"):
        build_exported_engine(model, precision="float32")
    with contextlib.closing(build_exported_engine(model, threads=1)) as engine:
        assert (engine.name, engine.precision) == ("onnxruntime", "int8")


def test_without_onnx_runtime_openvino_reads_onnx(exported: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowers.engines import exported as module

    whole, quantized = exported("a.onnx"), exported("eighth.onnx")  # now: exports need what is hidden next
    there = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else there(name))
    found = load_exported(whole)
    assert found.classes == tiny_job.CLASSES
    with contextlib.closing(build_exported_engine(found, threads=1)) as engine:
        assert engine.name == "openvino"
    with pytest.raises(UsageError, match="int8 onnx file needs onnxruntime: pip install onnxruntime"):
        build_exported_engine(load_exported(quantized))


def without_classes(about: dict) -> None:
    del about["classes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(classes=["1", "10", "2"], labels=["a", "b", "c"]), "3 classes for a head of 4"),
        (lambda about: about.update(classes=["../x", "10", "2", "3"]), "class '../x' is a path"),
        (
            lambda about: about["preprocessing"].update(crop=64, resize=64),
            r"input is uint8 \[32, 32, 3\], expected .*64",
        ),
        (lambda about: about["input"].update(layout="NCHW"), "its input is"),
        (lambda about: about["input"].update(type="int4"), "input type is 'int4'"),
        (lambda about: about.update(precision="int3"), "precision is 'int3'"),
        (lambda about: about.update(format_version=2), "format version 2"),
        (without_classes, "is broken"),
        (lambda about: about.clear(), "is broken"),
    ],
)
def test_what_a_file_says_of_itself_is_not_believed(
    change: Callable[[dict], None], message: str, exported: Callable, tmp_path: Path
) -> None:
    model = onnx.load(exported("a.onnx"))
    about = json.loads(model.metadata_props[0].value)
    change(about)
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=message):
        open_model(tmp_path / "odd.onnx")


def test_files_that_are_none(exported: Callable, tmp_path: Path) -> None:
    for name, message in (("a.onnx", "ONNX Runtime cannot read it"), ("a.xml", "OpenVINO cannot read it")):
        (tmp_path / name).write_bytes(exported(name).read_bytes()[:300])
        shutil.copy(exported("a.xml").with_suffix(".bin"), tmp_path)
        with pytest.raises(ModelError, match=message):
            open_model(tmp_path / name)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ModelError, match="a.bin is not there"):
        open_model(tmp_path / "a.xml")
    with pytest.raises(ModelError, match="no such exported model: .*b.onnx is not there"):
        open_model(tmp_path / "b.onnx")
    with pytest.raises(ModelError, match="a torch.export file does not run here"):
        open_model(exported("a.pt2"))
    with pytest.raises(ModelError, match="a torch.export file does not run here"):
        info.describe(exported("a.pt2"))
    model = onnx.load(exported("a.onnx"))
    onnx.helper.set_model_props(model, {})
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(ModelError, match="has no description of classes"):
        open_model(tmp_path / "plain.onnx")


@pytest.mark.parametrize("name", ["a.onnx", "a.xml"])
def test_a_flipped_bit_of_an_export_is_noticed(name: str, exported: Callable, tmp_path: Path) -> None:
    for file in exported(name).parent.glob("a.*"):
        shutil.copy(file, tmp_path)
    path = tmp_path / name
    assert open_model(path).is_verified
    weights = path if name == "a.onnx" else path.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{weights.name}: damaged or changed since it was exported"):
        open_model(path)
    (tmp_path / f"{name}.json").unlink()
    facts = info.describe(path)
    assert facts["hash"] != info.describe(exported(name))["hash"]
    assert "would not be noticed" in dict(info.rows(facts))["damage"]
    assert "damage" not in dict(info.rows(info.describe(exported(name))))


def test_tensors_beside_an_onnx_file_are_part_of_its_hash(exported: Callable, tmp_path: Path) -> None:
    path, name = tmp_path / "a.onnx", "d" * 200 + ".data"
    onnx.save(onnx.load(exported("a.onnx")), path, save_as_external_data=True, location=name, size_threshold=100)
    before = open_model(path).hash
    with open(tmp_path / name, "r+b") as file:
        file.write(b"\0" * 8)
    assert open_model(path).hash != before
    (tmp_path / "b.onnx").write_bytes(path.read_bytes().replace(name.encode(), b"../" + b"d" * 197 + b".data"))
    assert files_of(tmp_path / "b.onnx") == [tmp_path / "b.onnx"]


def test_a_graph_that_asks_for_160_gb_is_one_line(exported: Callable, tmp_path: Path) -> None:
    model = onnx.load(exported("a.onnx"))
    for node in model.graph.node:
        node.output[:] = ["answers" if output == "probs" else output for output in node.output]
    shape = onnx.numpy_helper.from_array(np.array([200_000, 200_000]), "shape")
    model.graph.initializer.append(shape)
    for kind, inputs, output in (("ConstantOfShape", ["shape"], "large"), ("ReduceMax", ["large"], "zero"),
                                 ("Add", ["answers", "zero"], "probs")):  # fmt: skip
        more = {"keepdims": 0} if kind == "ReduceMax" else {}
        model.graph.node.append(onnx.helper.make_node(kind, inputs, [output], **more))
    onnx.save(model, tmp_path / "large.onnx")
    pixels = np.zeros((1, tiny_job.SIDE, tiny_job.SIDE, 3), np.uint8)
    with pytest.raises(ModelError, match="ONNX Runtime cannot run it"):  # when it is built, or at the first image
        build_exported_engine(load_exported(tmp_path / "large.onnx"), threads=1).submit(pixels).result()


@pytest.mark.parametrize("read", [exported_files._read_onnx, exported_files._read_openvino])
def test_an_onnx_file_of_one_number_is_none_of_ours(read: Callable, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pixels = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3])
    number = onnx.helper.make_tensor_value_info("probs", onnx.TensorProto.FLOAT, [])
    node = onnx.helper.make_node("ReduceSum", ["images"], ["probs"], keepdims=0)
    graph = onnx.helper.make_graph([node], "sum", [pixels], [number])
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "sum.onnx")
    assert read(tmp_path / "sum.onnx") == (None, "float32", (3,), None)


def test_photos_come_from_the_run_or_from_a_folder(run_dir: Path, tmp_path: Path) -> None:
    bundle = load_bundle(run_dir)
    photos = photos_of_run(bundle, "valid", "--check-images")
    assert list(photos.targets) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    few = photos.take(4)
    assert [int(target) for target in few.targets] == [0, 1, 2, 3]
    assert few.said.endswith("(4 of 12)")
    (tmp_path / "2").mkdir()
    shutil.copy(photos.paths[0], tmp_path / "2")
    shutil.copy(photos.paths[0], tmp_path / "b.jpg")
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    mixed = photos_in(tmp_path, bundle.classes, "--check-images")
    assert sorted(mixed.targets) == [-1, -1, 2]
    ((views, targets),) = mixed.views(bundle.preprocessing)
    assert views.shape == (2, 32, 32, 3)
    assert sorted(targets) == [-1, 2]
    shutil.copytree(run_dir / "best", tmp_path / "alone" / "best")
    with pytest.raises(UsageError, match="--check-images is missing: no config.yaml beside"):
        photos_of_run(load_bundle(tmp_path / "alone"), "valid", "--check-images")
    (tmp_path / "alone" / "config.yaml").write_text("data_dir: /nowhere/at/all")
    with pytest.raises(UsageError, match="valid photos cannot be loaded: /nowhere/at/all: no such folder"):
        photos_of_run(load_bundle(tmp_path / "alone"), "valid", "--check-images")
    with pytest.raises(DataError, match="no such folder"):
        photos_in(tmp_path / "nix", bundle.classes, "--check-images")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"output": Path("a.pb")}, "--output: got a.pb, expected a name ending in .onnx"),
        ({"min_agreement": 1.5}, "--min-agreement: got 1.5"),
        ({"check_count": 0}, "--check-count: got 0"),
        ({"format": "torch-export", "output": Path("a.pt2"), "precision": "int8"}, "int8: not for torch-export"),
        ({"calibration_images": Path("D")}, "--calibration-images: only with --precision int8"),
        (
            {"from_state_dict": Path("W"), "checkpoint": None, "format": None, "average": (Path("A"), Path("B"))},
            "--average: not with --from-state-dict",
        ),
        (
            {
                "from_state_dict": Path("W"),
                "model": "m",
                "classes": Path("C"),
                "checkpoint": None,
                "format": None,
                "precision": "int8",
            },
            "--precision: for an export; import with --from-state-dict first",
        ),
    ],
)
def test_flags_that_cannot_be(flags: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportConfig(**{"checkpoint": Path("C"), "format": "onnx", "output": Path("a.onnx"), **flags})


def test_what_is_not_installed_is_said(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match="--format openvino --precision int8: pip install onnx onnxscript openvino nncf"
    ):
        export(ExportConfig(tmp_path / "a.xml", run_dir, "openvino", precision="int8"))


def test_an_exported_file_gives_no_embeddings(exported: Callable, run_dir: Path, tmp_path: Path) -> None:
    config = PredictConfig(
        exported("a.onnx"), run_dir.parent / "data", tmp_path / "a.csv", embeddings=tmp_path / "a.npy"
    )
    with pytest.raises(UsageError, match="--embeddings: an exported file gives probabilities only"):
        predict(config)
