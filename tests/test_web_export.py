"""The static site: what is in its folder, and what stops it from being written. tests/browser/ opens it."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_job

from flowers.config.export import ExportConfig
from flowers.data.folders import ClassIndex
from flowers.errors import DataError, ModelError, OutputError, UsageError
from flowers.exports.export import export
from flowers.exports.web import runtime, site
from flowers.models.bundle import load_bundle

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="pip install -e .[export]")

MODEL = "timm/test_resnet"
CLASSES = ClassIndex(("1", "10", "2", "a b"), ("daisy", "</script><b>rose</b>", "tulip", 'é "t"'))
HASHES = [file.sha256 for files in runtime.FILES.values() for file in files]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle", CLASSES, model=MODEL)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with photos; the last class has none."""
    folder = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(CLASSES.folders[:3]):
        tiny_job.make_photos(folder / name, 4, seed=index)
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the npm package, whose hashes are the pinned ones for this test."""
    folder = tmp_path / "node_modules" / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{"version": "1.2.3"}')
    pinned = {}
    for backend, files in runtime.FILES.items():
        for file in files:
            (folder / "dist" / file.source).write_bytes(file.source.encode())
        pinned[backend] = tuple(
            runtime.RuntimeFile(file.source, file.target, hashlib.sha256(file.source.encode()).hexdigest())
            for file in files
        )
    monkeypatch.setattr(runtime, "FILES", pinned)
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without npm and node_modules."""
    monkeypatch.setattr(runtime, "_module_folders", lambda: iter((tmp_path / "none",)))
    return tmp_path


def config(output: Path, bundle: Path, photos: Path, **more: object) -> ExportConfig:
    return ExportConfig(output, bundle, "web", check_images=photos, **more)


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "facts.json").read_text())


def test_the_folder_holds_all_that_a_browser_needs(bundle: Path, photos: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    assert export(config(out, bundle, photos, runtime=package, class_examples=photos, title="A & B")) == 0
    names = set(site._names(out))
    assert names == {
        *site.SHELL, "model.onnx", "service_worker.js", "examples/0.jpg", "examples/1.jpg", "examples/2.jpg",
        *(f"runtime/ort-{backend}.{ending}" for backend in ("wasm", "webgpu") for ending in ("js", "wasm")),
    }  # fmt: skip
    facts, made = facts_of(out), load_bundle(bundle)
    assert facts["labels"] == list(CLASSES.labels)
    assert facts["folders"] == list(CLASSES.folders)
    assert facts["preprocessing"] == made.preprocessing.to_dict()
    assert facts["examples"] == ["examples/0.jpg", "examples/1.jpg", "examples/2.jpg", None]
    assert facts["agreement"]["images"] == 12
    assert facts["model_bytes"] == (out / "model.onnx").stat().st_size
    assert sum(facts["check_probs"]) == pytest.approx(1, abs=1e-4)
    assert str(photos) not in (out / "facts.json").read_text(), "paths of this machine are nobody's business"
    assert not list(tmp_path.glob(".site*"))


def test_the_service_worker_lists_every_other_file_with_its_hash(
    bundle: Path, photos: Path, package: Path, tmp_path: Path
) -> None:
    out = tmp_path / "site"
    export(config(out, bundle, photos, runtime=package))
    script = (out / "service_worker.js").read_text()
    assert "__" not in script
    files = json.loads(re.search(r"const FILES = (\{.*?\});", script)[1])
    assert set(files) == set(site._names(out)) - {"service_worker.js"}
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest().startswith(value) for name, value in files.items())


def test_names_and_title_are_only_text(bundle: Path, photos: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    export(config(out, bundle, photos, runtime=package, title="<script>alert('1')</script>"))
    page = (out / "index.html").read_text()
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;") == 2
    assert "rose" not in page, "class names are read from JSON"
    assert json.loads((out / "manifest.webmanifest").read_text())["name"] == "<script>alert('1')</script>"
    site._write_page("caf\udce9", {}, out)  # as of a command line that is not UTF-8
    assert "<title>caf\\udce9</title>" in (out / "index.html").read_text(encoding="utf-8")


def test_int8_leaves_the_gpu_out(bundle: Path, photos: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    low = {"min_agreement": 0.5, "calibration_images": photos}
    export(config(out, bundle, photos, runtime=package, precision="int8", **low))
    assert facts_of(out)["backends"] == ["wasm"]
    assert sorted(path.name for path in (out / "runtime").iterdir()) == ["ort-wasm.js", "ort-wasm.wasm"]
    assert "float.onnx" not in site._names(out)


def test_another_content_is_refused_and_an_earlier_site_stays(
    bundle: Path, photos: Path, package: Path, tmp_path: Path
) -> None:
    out = tmp_path / "site"
    export(config(out, bundle, photos, runtime=package))
    before = facts_of(out)
    (package / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(b"another")
    with pytest.raises(UsageError, match=r"ort-wasm-simd-threaded.wasm: SHA-256 .* expected .*here is 1\.2\.3.*npm"):
        export(config(out, bundle, photos, runtime=package / "dist"))
    assert facts_of(out) == before
    (package / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    with pytest.raises(UsageError, match="no such file"):
        export(config(out, bundle, photos, runtime=package))


def test_without_the_runtime_one_line_says_what_to_do(bundle: Path, photos: Path, nowhere: Path) -> None:
    with pytest.raises(UsageError, match=rf"npm install onnxruntime-web@{re.escape(runtime.VERSION)} here.*--runtime"):
        export(config(nowhere / "site", bundle, photos))
    with pytest.raises(UsageError, match=r"--runtime .*: no ort.wasm.bundle.min.mjs in it"):
        export(config(nowhere / "site", bundle, photos, runtime=nowhere))
    assert not list(nowhere.iterdir())


def test_the_runtime_is_found_from_here_upwards_and_by_node_path(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert runtime.find_runtime(None) == package / "dist"
    other = tmp_path / "other"
    package.parent.rename(other)
    monkeypatch.setenv("NODE_PATH", str(other))
    assert runtime.find_runtime(None) == other / "onnxruntime-web" / "dist"
    assert runtime.find_runtime(other) == runtime.find_runtime(other / "onnxruntime-web")


def test_a_foreign_folder_is_not_replaced(bundle: Path, photos: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty and no earlier site"):
        export(config(out, bundle, photos, runtime=package))
    assert (out / "thesis.tex").exists()
    site_of_mine = config(tmp_path / "site", bundle, photos, runtime=package)
    export(site_of_mine)
    (site_of_mine.output / "CNAME").touch()
    with pytest.raises(OutputError, match=r"holds other files than a site's \(CNAME\)"):
        export(site_of_mine)
    assert (site_of_mine.output / "CNAME").exists()


def test_too_little_agreement_writes_nothing(
    bundle: Path, photos: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_otherwise(*_: object) -> None:
        raise ModelError("the export agrees with the bundle on 3.00% of the photos")

    monkeypatch.setattr(site, "write_checked", answer_otherwise)
    with pytest.raises(ModelError, match="agrees with the bundle"):
        export(config(tmp_path / "site", bundle, photos, runtime=package))
    assert not (tmp_path / "site").exists()
    assert not list(tmp_path.glob(".site*"))


def test_examples_of_no_class_are_refused(bundle: Path, photos: Path, package: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--class-examples .*named as the model's classes"):
        export(config(tmp_path / "site", bundle, photos, runtime=package, class_examples=photos / "1"))
    with pytest.raises(DataError, match="--class-examples .*no such folder"):
        export(config(tmp_path / "site", bundle, photos, runtime=package, class_examples=photos / "none"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"format": "web", "output": Path("a.onnx")}, "expected a folder's name"),
        ({"format": "web", "layout": "NCHW"}, "--layout: the page of --format web gives uint8 and NHWC"),
        ({"format": "onnx", "output": Path("a.onnx"), "title": "T"}, "--title: only with --format web"),
        ({"format": "onnx", "output": Path("a.onnx"), "runtime": Path("r")}, "--runtime: only with --format web"),
    ],
)
def test_flags_that_do_not_go_together(flags: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ExportConfig(**{"output": Path("site"), "checkpoint": Path("run"), **flags})


@pytest.mark.parametrize("name", ["README.md", ".ci/run"])
def test_one_version_everywhere(name: str) -> None:
    text = (Path(__file__).parents[1] / name).read_text()
    assert re.findall(r"onnxruntime-web@([\w.]+)", text) == [runtime.VERSION]


def test_every_pinned_hash_is_a_sha256() -> None:
    assert len(set(HASHES)) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in HASHES)


def test_the_test_pattern_is_answered_by_the_written_file(
    bundle: Path, photos: Path, package: Path, tmp_path: Path
) -> None:
    import onnxruntime

    out = tmp_path / "site"
    export(config(out, bundle, photos, runtime=package))
    side = tiny_job.SIDE
    pattern = np.array([(i * 31 + (i >> 8) * 17) % 256 for i in range(side * side * 3)], np.uint8)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (probs,) = session.run(["probs"], {"images": pattern.reshape(1, side, side, 3)})
    np.testing.assert_allclose(facts_of(out)["check_probs"], probs[0], atol=1e-5)
