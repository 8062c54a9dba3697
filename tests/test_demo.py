"""What the demo's page is made of; tests/browser opens the page itself."""

import asyncio
import csv
import html
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_job
from odd_files import make_odd_files

from flowers.config.demo import DemoConfig
from flowers.config.predict import PredictConfig
from flowers.data.classes import ClassIndex
from flowers.demo.answer import STEPS, Oracle, occlusion_map
from flowers.demo.page import WAITING, answer_html, ask, build_page, error_html, heat
from flowers.demo.serve import demo, find_examples, find_port
from flowers.demo.uploads import UploadLimit
from flowers.errors import DataError, ModelError, UsageError
from flowers.prediction.predict import predict

PLAIN = {"engine": "torch", "precision": "float32"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


def test_every_odd_file_has_the_answer_of_bulk_prediction(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    make_odd_files(folder)
    out = tmp_path / "out.csv"
    predict(PredictConfig(checkpoint=bundle, input=folder, output=out, ext=("",), topk=4, **PLAIN))
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    oracle = Oracle(bundle, **PLAIN)
    for row in rows:
        page = ask(oracle, folder / row["path"])
        if row["status"] == "error":
            assert 'class="failed"' in page
            assert row["error"] in page, row
        else:
            assert f'data-prob="{row["prob"]}"' in page, row
            assert ('class="damaged"' in page) == (row["status"] == "damaged")
            assert html.escape(row["error"]) in page
            assert page.index(f'data-prob="{row["prob"]}"') <= page.index(f'data-prob="{row["prob_4"]}"')
    assert {row["status"] for row in rows} == {"ok", "damaged", "error"}
    assert len(rows) > 30
    oracle.close()


class EyeOnOneCorner:
    """Stands in for an engine: class 1 is the more probable the brighter the upper right corner."""

    batch_size = 7

    def submit(self, images: np.ndarray) -> SimpleNamespace:
        assert images.dtype == np.uint8
        assert 1 <= len(images) <= self.batch_size
        corner = images[:, :8, -8:].mean((1, 2, 3)) / 256
        probs = np.stack([1 - corner, corner], axis=1).astype(np.float32)
        return SimpleNamespace(result=lambda: SimpleNamespace(probs=probs))


@pytest.mark.parametrize(("target", "sign"), [(1, 1), (0, -1)])
def test_occlusion_finds_what_the_answer_stands_on(target: int, sign: int) -> None:
    view = np.full((64, 64, 3), 200, np.uint8)
    before = view.copy()
    prob = (0.78125, 0.21875)[target == 0]
    evidence = occlusion_map(EyeOnOneCorner(), view, target, prob, (100, 100, 100))
    assert evidence.shape == (STEPS, STEPS)
    assert sign * evidence[0, -1] == np.abs(evidence).max() > 0.5
    assert np.abs(evidence[2:]).max() < 1e-5
    assert np.abs(evidence[:, : STEPS - 2]).max() < 1e-5
    assert (view == before).all()


def test_occlusion_of_a_certain_answer_is_finite() -> None:
    view = np.full((10, 10, 3), 255, np.uint8)  # smaller covers than whole steps
    evidence = occlusion_map(EyeOnOneCorner(), view, 1, 1.0, (0, 0, 0))
    assert np.isfinite(evidence).all()
    assert evidence.max() > 1


def test_heat_is_orange_for_blue_against_and_pale_where_nothing_matters() -> None:
    view = np.full((64, 64, 3), 128, np.uint8)
    evidence = np.zeros((8, 8), np.float32)
    evidence[:, :2], evidence[:, -2:] = 3, -3
    picture = heat(view, evidence).astype(int)
    red, blue = picture[..., 0], picture[..., 2]
    assert (red[:, :8] - blue[:, :8] > 60).all()
    assert (blue[:, -8:] - red[:, -8:] > 60).all()
    assert (abs(picture[:, 30:34] - 128) < 8).all()
    assert (abs(heat(view, np.full((8, 8), 0.01, np.float32)).astype(int) - 128) < 8).all(), "noise is not blown up"


@pytest.mark.parametrize("model", ["efficientnet_lite0", "timm/vit_tiny_patch16_224"])
def test_any_network_has_its_map(model: str, tmp_path: Path) -> None:
    """The built-in network, and a transformer, whose features have no places."""
    folder = tiny_job.make_bundle(tmp_path / "model", model=model)
    tiny_job.make_photos(tmp_path, 2)
    oracle = Oracle(folder, **PLAIN)
    answer = oracle.ask(tmp_path / "0001.jpg")
    assert answer.evidence.shape == (STEPS, STEPS)
    assert np.isfinite(answer.evidence).all()
    assert answer.evidence.std() > 0
    assert sum(guess.prob for guess in answer.guesses) == pytest.approx(1, abs=1e-5)
    oracle.close()


def test_names_are_only_text(tmp_path: Path) -> None:
    """Markup, and bytes that are no UTF-8."""
    odd = ClassIndex(("<b>", "b\udcff", "c", "d"), ("<script>alert(1)</script>", "é\udcff", "c", "d"))
    oracle = Oracle(tiny_job.make_bundle(tmp_path / "model", odd), **PLAIN)
    tiny_job.make_photos(tmp_path, 2)
    page = answer_html('"><img onerror=x>.jpg', oracle.ask(tmp_path / "0001.jpg"))
    assert "<script" not in page
    assert "<b>" not in page
    assert "<img onerror" not in page
    page.encode()
    assert "&lt;i&gt;" in error_html("<i>.jpg", "not an image")
    oracle.close()


def test_class_names_replace_those_of_the_model(bundle: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"1": "one", "10": "ten", "2": "two", "a b": "letters"}))
    oracle = Oracle(bundle, names, **PLAIN)
    assert oracle.labels == ("one", "ten", "two", "letters")
    oracle.close()
    names.write_text("{}")
    with pytest.raises(DataError, match="names none of the classes"):
        Oracle(bundle, names, **PLAIN)


def test_a_taken_port_is_one_line_and_the_default_looks_further() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {taken} on 127.0.0.1: address already in use; choose another"):
            find_port("127.0.0.1", taken)
        assert find_port("127.0.0.1", None) != taken
    assert find_port("127.0.0.1", 0) > 0
    with pytest.raises(UsageError, match="--host no such host: no such address"):
        find_port("no such host", 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"port": 70000}, "--port"), ({"max_upload": 0.0}, "--max-upload"), ({"max_waiting": 0}, "--max-waiting")],
)
def test_flags_that_cannot_be(flags: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DemoConfig(checkpoint=Path("x"), **flags)


def test_what_is_missing_is_told_before_anything_listens(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such bundle"):
        demo(DemoConfig(checkpoint=tmp_path / "nowhere", port=0))
    with pytest.raises(DataError, match="no photos there"):
        find_examples(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        demo(DemoConfig(checkpoint=bundle, examples=tmp_path / "nowhere", port=0))


def test_only_the_visitors_own_photo_is_removed(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    tiny_job.make_photos(tmp_path / "photos", 2)
    os.rename(tmp_path / "photos/below/0000.jpg", tmp_path / "photos/below" / os.fsdecode(b"\xe9.jpg"))
    oracle = Oracle(bundle, **PLAIN)
    page = build_page(oracle, find_examples(tmp_path / "photos"), 20, 8)
    json.dumps(page.get_config_file(), ensure_ascii=False, default=str).encode()  # what the page is made of is UTF-8
    answer, example = (page.fns[number].fn for number in sorted(page.fns))
    thumbnails = [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]
    assert len(thumbnails) == 2
    upload = tmp_path / "uploads/of a visitor/a.jpg"
    upload.parent.mkdir()
    upload.write_bytes((tmp_path / "photos/0001.jpg").read_bytes())
    for path in (upload, *thumbnails):
        sent = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        asked = asyncio.run(page.preprocess_data(page.fns[min(page.fns)], [sent], None))
        assert "data-prob" in answer(*asked)[0]
    assert sorted(path for path in (tmp_path / "uploads").rglob("*") if path.is_file()) == sorted(thumbnails)
    assert not upload.parent.exists()
    assert all(path.exists() for path in thumbnails)
    assert "data-prob" in example(gradio.EventData(None, {"index": 1}))
    for data in (None, {}, {"index": 2}, {"index": -1}, {"index": "0"}, {"index": [0]}):
        assert example(gradio.EventData(None, data)) == WAITING
    address = {"path": "https://example.org/large.jpg", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(ValueError, match="addresses are not fetched"):
        asyncio.run(page.preprocess_data(page.fns[min(page.fns)], [address], None))
    oracle.close()


def test_what_visitors_leave_on_the_disk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio")
    from gradio.routes import App
    from starlette.middleware import Middleware
    from starlette.testclient import TestClient

    uploads = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    limit = Middleware(UploadLimit, folder=uploads, max_bytes=2**20, most=4, keep_s=600)
    with gradio.Blocks(analytics_enabled=False) as page:
        gradio.File()
    page.max_file_size = 2**20  # as launch() sets it
    client = TestClient(App.create_app(page, app_kwargs={"middleware": [limit]}))

    def lying() -> list[str]:
        return sorted(path.name for path in uploads.rglob("*") if path.is_file())

    def upload(*names: str, place: str = "upload", size: int = 100) -> tuple[int, str]:
        files = [("files", (name, name.encode() * size)) for name in names]
        answer = client.post(f"/gradio_api/{place}", files=files)
        return answer.status_code, answer.text

    assert [upload(name)[0] for name in "abcd"] == [200] * 4
    busy = (503, "the page is busy, too many photos wait for their answers: try again in a few minutes")
    assert upload("e") == busy
    kind = {"content-type": "Multipart/Form-Data; boundary=x"}
    assert client.post("/gradio_api/upload", content=b"--x", headers=kind).status_code == 503
    assert lying() == ["a", "b", "c", "d"]
    assert client.get("/config").status_code == 200
    next(uploads.rglob("a")).unlink()  # as an answer does
    assert upload("large", size=10**6) == (413, "this is too large: photos of up to 1 MB are accepted")
    assert upload("f", place="component_server") == (404, "no files are accepted here")
    assert client.post("/gradio_api/upload", content=iter([b"--x"]), headers=kind).status_code == 411
    assert lying() == ["b", "c", "d"]

    half_sent, young = uploads / "tmp1", uploads / "tmp2"
    for path in (half_sent, young):
        path.write_bytes(b"half")
    for path in (half_sent, *uploads.glob("*/")):
        os.utime(path, (0, 0))
    assert upload("g") == busy
    assert lying() == ["b", "c", "d", "tmp2"]
    assert all(any(folder.iterdir()) for folder in uploads.glob("*/"))
