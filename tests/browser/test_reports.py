"""report.html and predictions.html as their readers use them: sorting, filtering, paging, on a phone, in the dark."""

import time
from pathlib import Path

import numpy as np
import pytest
import tiny_job
from test_pages import column_of, contrast

from flowers.data.augment import Augmentation
from flowers.data.classes import ClassIndex
from flowers.data.folders import Samples, load_split
from flowers.models.bundle import load_bundle
from flowers.reports.answers import Answers
from flowers.reports.model_report import Background, write_model_report
from flowers.reports.photos import training_views
from flowers.reports.predictions_report import write_predictions_report
from flowers.training.history import History

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    names = tuple(sorted(entry.name for entry in (sample_set / "train").iterdir()))
    classes = ClassIndex(names, (EVIL, *names[1:]))
    samples = load_split(sample_set, "test", classes)
    logits = np.random.default_rng(0).normal(size=(len(samples), len(classes))).astype(np.float32)
    logits[np.arange(len(samples)), samples.targets] += 1  # better than chance, or no temperature would be best
    answers = Answers("test", samples, classes, logits)
    for epoch in range(1, 4):
        figures = {"loss": 1 / epoch, "top1": epoch / 4}
        History(folder / "history.jsonl").append("train", step=9 * epoch, epoch=epoch, lr=0.1 / epoch, **figures)
        History(folder / "history.jsonl").append("valid", step=9 * epoch, epoch=epoch, **figures)
        History(folder / "timing.jsonl").append(
            "epoch", epoch=epoch, seconds=1.0, images_per_s=50.0 * epoch, data_wait_share=0.1
        )
    bundle = load_bundle(tiny_job.make_bundle(folder / "model"))
    views = training_views(samples, Augmentation(size=64), 0, range(5))
    findings = [("exact duplicates", 1, f"{EVIL} = b.jpg")]
    background = Background(
        {"test": answers.metrics.to_dict()}, folder, {"test": samples}, findings, views, [("device", "1 x cpu")]
    )
    write_model_report(folder / "report.html", bundle, answers, background, answers)
    return (folder / "report.html").as_uri()


def test_the_report_sorts_filters_and_stays_silent(report: str, open_page) -> None:
    watched = open_page(report)
    page = watched.page
    assert watched.requests == [report]
    assert (watched.errors, watched.exceptions) == ([], [])
    f1 = [float(text.rstrip("%")) for text in column_of(page, "class-table", 6)]
    assert f1 == sorted(f1), "the weakest classes come first"
    page.locator("#class-table th button").nth(4).click()
    recall = [float(text.rstrip("%")) for text in column_of(page, "class-table", 5)]
    assert recall == sorted(recall)
    page.fill("input[data-filters=class-table]", "onerror")
    assert column_of(page, "class-table", 1) == [EVIL]
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("#curves svg[role=img]").count() == 5
    assert page.locator("#calibration svg[role=img]").count() == 3
    broken = "[...document.images].filter(image => !image.complete || image.naturalWidth === 0).length"
    assert page.evaluate(broken) == 0
    page.click("nav a[href='#pairs']")
    assert page.evaluate("window.scrollY") > 0


@pytest.mark.parametrize("dark", [False, True])
def test_the_report_on_a_phone(report: str, dark: bool, open_page) -> None:
    watched = open_page(report, phone=True, dark=dark)
    assert watched.overflow() <= 0
    for selector in ("h1", ".figures small", "#class-table td.name", "figcaption", ".legend span", "svg text"):
        assert contrast(watched.page, selector) >= 4.5, selector


def prediction(path: str, answer: int, prob: float) -> dict[str, str]:
    second = {"label_2": "other", "class_2": "o", "prob_2": "0.1"}
    status = "unsure" if prob < 0.3 else "ok"
    return {"path": path, "status": status, "label": f"flower {answer}", "class": str(answer), "prob": f"{prob:.6f}",
            **second, "error": ""}  # fmt: skip


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photo")
    return folder / tiny_job.make_photos(folder, 1)[0]


@pytest.fixture(scope="module")
def predictions(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("predictions") / "predictions.html"
    rows = [prediction(f"{index:03}.jpg", index % 3, (index + 0.5) / 200) for index in range(200)]
    rows[0] = rows[0] | {"path": f"caf\\xe9 \\\\ {EVIL}.jpg", "label": EVIL, "class": "evil"}
    empty = dict.fromkeys(rows[0], "")
    rows += [empty | {"path": f"bad {EVIL}", "status": "error", "error": "empty file"}]
    write_predictions_report(path, rows, lambda name: photo, facts=[("input", "photos")], photo_base="../my%20photos/")
    return path.as_uri()


def shown(page: object) -> list[str]:
    """Paths in the gallery."""
    return page.locator("#photos .path").all_inner_texts()


def test_the_gallery_shows_the_least_certain_first_and_more_on_request(predictions: str, open_page) -> None:
    watched = open_page(predictions)
    page = watched.page
    assert watched.requests == [predictions]
    assert (watched.errors, watched.exceptions) == ([], [])
    assert page.inner_text("#shown") == "60 of 200"
    assert shown(page)[:3] == [f"caf\\xe9 \\\\ {EVIL}.jpg", "001.jpg", "002.jpg"]
    first = page.locator("#photos figure").first
    assert "unsure: " in first.locator("figcaption").evaluate("f => getComputedStyle(f, '::before').content")
    assert f"{EVIL} 0.3%" in first.inner_text()
    href = first.locator("a").get_attribute("href")
    assert href == "../my%20photos/caf%e9%20%5C%20%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E.jpg"
    assert page.evaluate("['a.tar/1.jpg', 'a.ZIP/1.jpg'].map(address)") == [None, None], "nothing opens what is in them"
    for count in (120, 180, 200):
        page.click("#more")
        assert len(shown(page)) == count
    assert page.locator("#more").is_hidden()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("#photos img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_the_gallery_filters_and_orders(predictions: str, open_page) -> None:
    page = open_page(predictions).page
    page.select_option("select[name=order]", "high")
    assert shown(page)[0] == "199.jpg"
    page.select_option("select[name=class]", label="flower 1 (67)")
    assert shown(page)[:2] == ["199.jpg", "196.jpg"]
    page.fill("input[name=low]", "40")
    page.fill("input[name=high]", "41.5")
    assert shown(page) == ["082.jpg"]
    page.fill("input[name=path]", "no such")
    assert shown(page) == []
    assert page.inner_text("#shown") == "No photo is like that."
    page.click("#filters button[type=reset]")
    page.locator("#shown", has_text="60 of 200").wait_for()
    page.select_option("select[name=status]", "ok")
    assert shown(page)[0] == "060.jpg"
    page.locator("#class-table button[data-show]", has_text="flower 2").click()
    page.locator("#shown", has_text="60 of 66").wait_for()
    assert shown(page)[0] == "002.jpg"
    page.fill("input[data-filters=failed-table]", "onerror")
    assert column_of(page, "failed-table", 1) == [f"bad {EVIL}"]


@pytest.mark.parametrize("dark", [False, True])
def test_the_gallery_on_a_phone(predictions: str, dark: bool, open_page) -> None:
    watched = open_page(predictions, phone=True, dark=dark)
    assert watched.overflow() <= 0
    for selector in ("h1", ".figures small", "#class-table button", "#photos figcaption", "#photos .note", "#more"):
        assert contrast(watched.page, selector) >= 4.5, selector


def test_a_hundred_thousand_photos_answer_at_once(tmp_path: Path, photo: Path, open_page) -> None:
    rows = (prediction(f"{index % 50}/{index:06}.jpg", index % 102, index / 100_001) for index in range(100_000))
    write_predictions_report(tmp_path / "p.html", rows, lambda name: photo, facts=[])
    page = open_page((tmp_path / "p.html").as_uri()).page
    assert page.inner_text("#shown") == "60 of 100,000"
    assert page.locator("#photos figure").count() == 60
    start_s = time.monotonic()
    page.fill("input[name=path]", "099999")
    assert shown(page) == ["49/099999.jpg"]
    assert "no picture" in page.inner_text("#photos") or page.locator("#photos img").count() == 1
    assert time.monotonic() - start_s < 30, "a hang, not a matter of a slow machine"


def test_samples_that_cannot_be_read_any_more(tmp_path: Path, sample_set: Path, open_page) -> None:
    classes = ClassIndex(("a", "b"), ("a", "b"))
    samples = Samples(tmp_path, ["gone.jpg", "gone too.jpg"], np.array([0, 1]))
    answers = Answers("test", samples, classes, np.array([[0, 1], [0, 1]], np.float32))
    bundle = load_bundle(tiny_job.make_bundle(tmp_path / "model"))
    write_model_report(tmp_path / "r.html", bundle, answers, Background({"test": answers.metrics.to_dict()}))
    page = open_page((tmp_path / "r.html").as_uri()).page
    assert "cannot be read any more:\n\n73% b, but it is a\ngone.jpg" in page.inner_text("#mistakes")


def test_a_cell_of_the_confusion_matrix_shows_its_mistakes(report: str, open_page) -> None:
    page = open_page(report).page
    mistakes, cell = page.locator("#mistakes figure:visible"), page.locator("#matrix button").first
    shown_first, count = mistakes.count(), int(cell.inner_text())
    wrong, _, answer = cell.get_attribute("title").partition(" taken for ")
    cell.click()
    assert mistakes.count() == count
    assert all(
        f"{answer}, but it is {wrong}" in text
        for text in page.locator("#mistakes figcaption:visible").all_inner_texts()
    )
    assert cell.get_attribute("aria-pressed") == "true"
    assert page.inner_text("#mistakes-shown") == f"{wrong} taken for {answer}: {count} of {count}"
    path = page.locator("#mistakes figcaption:visible .path").first
    assert path.inner_text().endswith(".jpg")
    if page.locator("#mistakes-all").is_visible():
        page.click("#mistakes-all")
    assert mistakes.count() == page.locator("#mistakes figure").count() >= shown_first


def test_columns_beyond_the_edge_of_a_phone_are_hinted_at(report: str, open_page) -> None:
    page = open_page(report, phone=True).page
    hint = page.locator("#classes .hint")
    assert hint.is_visible()
    page.locator("#classes .scroll").evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    page.locator("#classes .scroll:not(.more)").wait_for()
    assert not open_page(report).page.locator("#classes .hint").is_visible()
