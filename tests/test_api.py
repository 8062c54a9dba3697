"""The Python API: the same answers as the predictions table, for whatever holds a picture."""

import csv
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_job
from odd_files import make_odd_files
from PIL import Image

import flowers
from flowers.errors import FlowersError, ImageError, ModelError, UsageError
from flowers.machine import cpu_has_bf16

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def model(bundle: Path):
    with flowers.load(str(bundle)) as model:
        yield model


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(path)
    return path


def test_answers_are_those_of_the_table(bundle: Path, model, tmp_path: Path) -> None:
    make_odd_files(tmp_path / "photos")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (70, 50 + index, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"z{index}.png")
    photos, output = str(tmp_path / "photos"), str(tmp_path / "out.csv")
    config = flowers.PredictConfig(checkpoint=str(bundle), input=photos, output=output, topk=3)
    result = flowers.predict_folder(config)
    with open(result.output, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    answers = model.predict([tmp_path / "photos" / row["path"] for row in rows], topk=3)
    assert len(answers) == len(rows) == sum(result.counts.values())
    assert result.counts["ok"] > 3
    assert result.counts["error"] > 3
    assert result.counts["damaged"] >= 1
    for row, answer in zip(rows, answers, strict=True):
        if row["status"] == "error":
            assert answer.error == row["error"]
            assert answer.topk == ()
            assert answer.label is answer.prob is answer.class_name is None
        else:
            cells = [cell for guess in answer.topk for cell in (guess.label, guess.class_name, f"{guess.prob:.6f}")]
            assert cells == list(row.values())[2:-1]
            assert (answer.error, answer.damage or "") == (None, row["error"])


def test_one_picture_in_every_form_gives_the_same_answer(model, photo: Path) -> None:
    expected = model.predict(photo)
    pixels = np.array(Image.open(photo))
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    forms = [
        str(photo), photo.read_bytes(), bytearray(photo.read_bytes()), memoryview(photo.read_bytes()),
        io.BytesIO(photo.read_bytes()), Image.open(photo), pixels, opaque, pixels.astype(np.uint16) * 257,
        (pixels.astype(np.uint16) * 257).astype(">u2"), pixels.astype(np.float32) / 255, pixels[:, ::1],
    ]  # fmt: skip
    for form in forms:
        assert model.predict(form) == expected, type(form)
    with open(photo, "rb") as file:
        assert model.predict(file) == expected
    grey = pixels[:, :, 0]
    assert model.predict(grey) == model.predict(grey[:, :, None]) == model.predict(np.dstack([grey] * 3))


def test_an_array_of_pictures_a_list_and_an_iterator(model, photo: Path) -> None:
    pixels = np.array(Image.open(photo))
    one = model.predict(pixels, topk=2)
    assert model.predict(np.stack([pixels, pixels]), topk=2) == [one, one]
    assert model.predict([], topk=2) == []
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield photo

    answers = model.predict(endless(), topk=2)
    assert [next(answers) for _ in range(5)] == [one] * 5
    assert len(taken) < 200, "an iterator is read as its answers are taken"


def test_exif_orientation_of_a_pillow_image_counts(model, photo: Path, tmp_path: Path) -> None:
    picture = Image.open(photo)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    assert model.predict(Image.open(tmp_path / "turned.png")) == model.predict(tmp_path / "turned.png")
    assert model.predict(tmp_path / "turned.png") != model.predict(photo)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.zeros((3, 20, 30), np.uint8), "move the channels last"),
        (np.zeros((20, 30, 3), np.int64), "expected .* of uint8, uint16 or float"),
        (np.full((20, 30, 3), 200.0), "use uint8 for 0 to 255"),
        (np.full((20, 30, 3), np.nan), "NaN"),
        (np.zeros((0, 30, 3), np.uint8), "no pixels"),
        (np.zeros(5), "expected"),
        (b"nonsense", "not an image"),
        (io.StringIO("text"), "binary mode"),
        ("nowhere.jpg", "file not found"),
    ],
)
def test_what_is_no_picture_is_one_line(model, bad: object, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        model.predict(bad)
    assert "\n" not in str(caught.value)
    [answer] = model.predict([bad])
    assert re.search(said, answer.error)


def test_things_of_other_types_are_named(model) -> None:
    [answer] = model.predict([3])
    assert "got int, expected a path" in answer.error
    with pytest.raises(UsageError, match="topk: got 0"):
        model.predict(b"", topk=0)
    with pytest.raises(UsageError, match="topk: got '3', expected a whole number"):
        model.predict(b"", topk="3")


@pytest.mark.parametrize("size", [0, -1, "8", 2.5, None])
def test_a_batch_holds_pictures(bundle: Path, size: object) -> None:
    with pytest.raises(UsageError, match="batch_size: got .*, expected a whole number of at least 1"):
        flowers.load(bundle, batch_size=size)


def test_a_file_that_fails_costs_the_others_nothing(model, photo: Path) -> None:
    with open(photo, "rb") as file:
        pass
    bad, good = model.predict([file, photo])
    assert "closed file" in bad.error
    assert good == model.predict(photo)
    with pytest.raises(ImageError, match="closed file"):
        model.predict(file)


def test_a_closed_model_says_so(bundle: Path, photo: Path) -> None:
    with flowers.load(bundle, engine="torch") as model:
        assert model.embed([]).shape == (0, model.embed(photo).shape[0])
    for call in (model.predict, model.embed):
        with pytest.raises(UsageError, match="this model is closed"):
            call(photo)


def test_a_fork_of_the_process_says_so_and_does_not_wait(bundle: Path, photo: Path) -> None:
    with flowers.load(bundle, engine="torch", precision="float32") as model:
        model.predict([photo] * 2)
        heard, said = os.pipe()
        if not (child := os.fork()):
            try:
                with model:
                    model.predict(photo)
            except UsageError as error:
                os.write(said, str(error).encode())
            finally:
                os._exit(0)
        os.close(said)
        try:
            with open(heard, "rb") as pipe:
                assert select.select([pipe], [], [], 60)[0], "the fork waits for threads that it does not have"
                assert b"load it in each process" in pipe.read()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert model.predict(photo).label


def test_a_folder_is_classified_on_any_thread_and_in_parts(bundle: Path, model, photo: Path, tmp_path: Path) -> None:
    flags = {"checkpoint": bundle, "input": photo, "output": tmp_path / "out.csv", "engine": "torch"}

    def predict(**more: object) -> dict[str, int]:
        return flowers.predict_folder(flowers.PredictConfig(**flags, **more)).counts

    assert predict(list_only=True) == predict(shard="1/2") == {}
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(predict).result() == {"ok": 1}
    assert predict(max_pixels=1, overwrite=True) == {"error": 1}
    assert model.predict(photo).label, "the limit was that job's"


def test_embeddings_are_those_of_the_job(bundle: Path, model, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(photo.read_bytes())
    (tmp_path / "photos" / "b.png").write_bytes(b"broken")
    flowers.predict_folder(
        flowers.PredictConfig(
            checkpoint=bundle, input=tmp_path / "photos", output=tmp_path / "out.csv", embeddings=tmp_path / "out.npy"
        )
    )
    found = model.embed([tmp_path / "photos" / "a.png", tmp_path / "photos" / "b.png"])
    assert np.array_equal(found, np.load(tmp_path / "out.npy"), equal_nan=True)
    assert np.array_equal(model.embed(photo), found[0])


def test_several_threads_may_ask_at_once(model, photo: Path) -> None:
    expected = model.predict(photo)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(model.predict, [photo] * 64)) == [expected] * 64


def test_what_a_model_says_of_itself(model, bundle: Path) -> None:
    description = json.loads((bundle / "model.json").read_text())
    assert list(model.classes) == description["classes"]
    assert list(model.labels) == description["labels"]
    assert model.preprocessing.crop == description["preprocessing"]["crop"]
    assert str(len(model.classes)) in repr(model)
    with pytest.raises(ModelError, match="no such"):
        flowers.load("nowhere")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"finetune": "ful"}, "--finetune: got 'ful', expected head, full or staged"),
        ({"epochs": 2.5}, "--epochs: got 2.5, expected a whole number"),
        ({"calibrate": "maybe"}, "--calibrate: got 'maybe', expected true or false"),
        ({"mean": (0.5, None, 0.5)}, "--mean: got None, expected a number"),
        ({"exclude": None}, "--exclude: got None"),
    ],
)
def test_a_config_takes_what_its_flags_take(values: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        flowers.TrainConfig(data_dir="d", **values)


def test_values_of_a_config_are_those_of_its_flags() -> None:
    config = flowers.TrainConfig(
        "d", epochs=np.int64(3), mean=np.array([0.5, 0.25, 1]), exclude="*_small.jpg", lr="0.1"
    )
    assert (config.data_dir, config.epochs, config.lr) == (Path("d"), 3, 0.1)
    assert (config.mean, config.exclude) == ((0.5, 0.25, 1.0), ("*_small.jpg",))
    config = flowers.PredictConfig("m", input=(f"{name}.jpg" for name in "ab"), ext="png", watch=5)
    assert (config.input, config.ext, config.watch) == ((Path("a.jpg"), Path("b.jpg")), ("png",), (5.0,))
    with pytest.raises(UsageError, match="--tta: got 'filp', expected none or flip"):
        flowers.PredictConfig("m", "x", tta="filp")


def test_training_from_python_twice(sample_set: Path, tmp_path: Path) -> None:
    for precision in ("no", "bf16") if cpu_has_bf16() else ("no",):
        config = flowers.TrainConfig(
            data_dir=sample_set, output_dir=tmp_path / precision, model="timm/test_vit", weights="none", epochs=1,
            mixed_precision=precision, report=False,
        )  # fmt: skip
        result = flowers.train(config)
        assert result.run_dir == tmp_path / precision
        assert 0 <= result.metrics["valid"]["top1"] <= 1
    with flowers.load(result.run_dir) as model:
        assert model.predict(next((sample_set / "test").rglob("*.*g"))).label in model.labels


def test_the_block_in_readme_runs(sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DATA").symlink_to(sample_set)
    (tmp_path / "photo.jpg").write_bytes(next((sample_set / "test").rglob("*.*g")).read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    found: dict = {}
    exec(block, found)
    assert found["result"].metrics["valid"]["top1"] > 0.5
    assert found["features"].shape == (1, 1712)
    said = capsys.readouterr().out
    assert "Guess(label=" in said
    assert "not an image" in said


def test_import_is_light_and_shows_the_api_only() -> None:
    code = "import sys, flowers; print('torch' in sys.modules, [name for name in dir(flowers) if name[0] != '_'])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    names = ["FlowersError", "Model", "PredictConfig", "Prediction", "TrainConfig", "load", "predict_folder", "train"]
    assert out == f"False {names}\n"
    assert all(hasattr(flowers, name) for name in names)
    assert issubclass(ImageError, FlowersError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flowers.nothing


def test_a_web_service_answers_eight_at_once(model, bundle: Path, photo: Path) -> None:
    pytest.importorskip("fastapi")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", "launch", "serve_fastapi:app", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "MODEL": str(bundle)}, stderr=subprocess.PIPE)

    def ask(data: bytes) -> list[dict]:
        body = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="p"\r\n\r\n' + data + b"\r\n--x--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    try:
        until_s = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.1)
        expected = [guess._asdict() for guess in model.predict(photo).topk]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, [photo.read_bytes()] * 32)) == [expected] * 32
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(b"no picture")
        assert json.load(caught.value) == {"detail": "not an image"}
    finally:
        server.terminate()
        server.communicate(timeout=30)
