"""The demo as its users meet it: the job in a process of its own, and a browser."""

import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_job

from flowers.config.predict import PredictConfig
from flowers.prediction.predict import predict

ROOT = Path(__file__).parents[2]
UPLOAD = "#photo input[type=file]"
ENGINE = {"engine": "torch", "precision": "float32"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    tiny_job.make_photos(folder, 4)
    (folder / "cut.jpg").write_bytes((folder / "0001.jpg").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def demo(browser: object, bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a demo that runs; at the end it must stop cleanly and leave no upload behind."""
    temporary = tmp_path_factory.mktemp("temporary")
    log = temporary / "log.txt"
    flags = ["--checkpoint", bundle, "--examples", photos, "--port", "0", "--max-upload", "0.5"]
    flags += [word for name, value in ENGINE.items() for word in (f"--{name}", value)]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, ROOT / "jobs" / "demo.py", *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "http_proxy": "http://127.0.0.1:9"},
        )
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail(f"the demo did not start: {log.read_text()}")
        yield found[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert "cut.jpg: truncated JPEG; not shown" in log.read_text()
        assert [path.name for path in temporary.iterdir()] == ["log.txt"]
    finally:
        process.kill()
        process.wait()


def guesses(page: object) -> list[tuple[str, str]]:
    """(class, probability) as the page shows them, once there is an answer."""
    page.wait_for_selector(".guesses li")
    return [
        (li.get_attribute("data-class"), li.get_attribute("data-prob")) for li in page.query_selector_all(".guesses li")
    ]


def test_the_page_answers_as_prediction_does(demo: str, bundle: Path, photos: Path, tmp_path: Path, open_page) -> None:
    out = tmp_path / "out.csv"
    predict(PredictConfig(checkpoint=bundle, input=photos, output=out, topk=4, **ENGINE))
    with open(out, encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["path"] == "0002.jpg")
    wanted = [(row[f"class{rank}"], row[f"prob{rank}"]) for rank in ("", "_2", "_3", "_4")]

    watched = open_page(demo)
    watched.page.set_input_files(UPLOAD, photos / "0002.jpg")
    assert guesses(watched.page) == wanted
    assert row["label"] in watched.page.inner_text(".guesses li:first-child .name")
    assert "0002.jpg, 48 × 40 pixels" in watched.page.inner_text(".answer")
    for kind in ("view", "heat"):
        image = watched.page.locator(f"figure.{kind} img")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == tiny_job.SIDE
    view, heat = (watched.page.locator(f"figure.{kind} img").get_attribute("src") for kind in ("view", "heat"))
    assert view != heat
    assert all(url.startswith((demo, "data:", "blob:")) for url in watched.requests), watched.requests
    assert watched.exceptions == []  # errors may be: gradio's, when an upload ends before its progress is asked for


def test_a_file_that_is_no_photo_is_told_and_the_next_one_answered(demo: str, photos: Path, open_page) -> None:
    page = open_page(demo).page
    page.set_input_files(UPLOAD, photos / "cut.jpg")
    assert page.inner_text(".failed").startswith("No answer for cut.jpg\n\ntruncated JPEG")
    page.set_input_files(UPLOAD, photos / "0001.jpg")
    assert len(guesses(page)) == 4
    assert page.locator(".failed").count() == 0


def test_a_name_is_only_text(demo: str, tmp_path: Path, open_page) -> None:
    bad = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    bad.write_bytes(b"no photo")
    watched = open_page(demo)
    watched.page.set_input_files(UPLOAD, bad)
    assert "not an image" in watched.page.inner_text(".failed")
    assert watched.page.locator(".failed img").count() == 0


def test_too_large_a_file_is_refused_before_it_is_sent(demo: str, tmp_path: Path, open_page) -> None:
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(600_000))
    page = open_page(demo).page
    page.set_input_files(UPLOAD, large)
    page.wait_for_selector("text=exceed the maximum allowed size")
    assert page.locator(".guesses").count() == 0


def test_an_example_is_answered_on_a_dark_phone(demo: str, open_page) -> None:
    watched = open_page(demo, phone=True, dark=True)
    watched.page.locator("#examples button.thumbnail-item, #examples .thumbnail-lg").first.click()
    assert len(guesses(watched.page)) == 4
    assert watched.overflow() <= 0
    light = watched.page.evaluate("getComputedStyle(document.querySelector('.answer')).color")
    assert sum(map(int, re.findall(r"\d+", light)[:3])) > 500, "dark letters on a dark page"


def test_several_users_at_once_get_their_own_answers(demo: str, photos: Path, open_page) -> None:
    pages = [open_page(demo).page for _ in range(3)]
    for page, name in zip(pages, ("0001.jpg", "0002.jpg", "cut.jpg"), strict=True):
        page.set_input_files(UPLOAD, photos / name)
    assert "truncated JPEG" in pages[2].inner_text(".failed")
    first, second = map(guesses, pages[:2])
    assert first != second
    assert "0001.jpg" in pages[0].inner_text(".answer")
    assert "0002.jpg" in pages[1].inner_text(".answer")
