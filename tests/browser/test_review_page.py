"""The reviewer of audit.html and predictions.html with keys alone: judge, reload, undo, search, save."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from flowers.audit.findings import Audited
from flowers.audit.page import write_audit_page
from flowers.cli import parse
from flowers.config.train import TrainConfig
from flowers.data.corrections import read_corrections
from flowers.data.folders import load_image_folders
from flowers.reports.label_errors import Suspicion, judge
from flowers.reports.predictions_report import write_predictions_report
from jobs.train import main as train

FACTS = {
    "labels_to_check": 12, "photos": 32, "classes": [], "overlapping_classes": [], "outliers": [],
    "near_duplicates": {"listed": []},
}  # fmt: skip
EVIL = '00 a, "b" <img src=x onerror=alert(1)>.jpg'


@dataclass
class Reviewed:
    """A page with twelve photos to judge.

    Attributes:
        url: of the page.
        data: its photos.
        paths: of the photos, as a reader of corrections gives them.
        given: class folder of each.
        suggested: another one.
        folders: of all classes; display names are theirs after "flower ".
    """

    url: str
    data: Path
    paths: list[str]
    given: list[str]
    suggested: list[str]
    folders: tuple[str, ...]


@pytest.fixture
def photos(sample_set: Path, tmp_path: Path) -> Path:
    """The sample set; the name of its first photo holds a comma, a quote and what looks like a tag."""
    data = Path(shutil.copytree(sample_set, tmp_path / "data"))
    first = sorted((data / "train").rglob("*.jpg"))[0]
    first.rename(first.with_name(EVIL))
    names = {folder.name: f"flower {folder.name}" for folder in (data / "train").iterdir()}
    (data / "cat_to_name.json").write_text(json.dumps(names))
    return data


@pytest.fixture
def audit_page(photos: Path, tmp_path: Path) -> Reviewed:
    """Twelve labels to check."""
    found = load_image_folders(photos)
    targets, folders = found.train.targets, found.classes.folders
    audited = Audited(
        photos, found.classes, found.train.paths, ("train",), np.zeros(32), targets, np.zeros((32, 1)), None
    )
    probs = np.full((32, 4), 0.1, np.float32)
    probs[np.arange(32), targets] = 0.7
    suspicions = [Suspicion(i, int(targets[i]), int(targets[i] + 1) % 4, 0.9, "like another") for i in range(12)]
    write_audit_page(tmp_path / "audit.html", audited, judge(probs, targets), suspicions, FACTS, "0" * 64)
    given, suggested = ([folders[item[column]] for item in suspicions] for column in (1, 2))
    paths = list(found.train.paths[:12])
    return Reviewed((tmp_path / "audit.html").as_uri(), photos, paths, given, suggested, folders)


@pytest.fixture
def predictions_page(photos: Path, tmp_path: Path) -> Reviewed:
    """Twelve answers, two of them unsure; of the four classes of the model two are never answered."""
    paths = sorted(path.relative_to(photos / "train").as_posix() for path in (photos / "train").rglob("*.jpg"))[:12]
    folders = tuple(sorted(entry.name for entry in (photos / "train").iterdir()))
    rows = []
    for place, path in enumerate(paths):  # least certain first, but for two, which are unsure
        answer, status = folders[place % 2], "unsure" if place in (5, 9) else "ok"
        guesses = {"label": f"flower {answer}", "class": answer, "prob": f"{0.6 + place / 100:.6f}"}
        second = folders[1 - place % 2]
        guesses |= {"label_2": f"flower {second}", "class_2": second, "prob_2": "0.100000"}
        rows.append({"path": path, "status": status, **guesses, "error": ""})
    names = {folder: f"flower {folder}" for folder in folders}
    write_predictions_report(
        tmp_path / "p.html", rows, lambda path: str(photos / "train" / path), facts=[], classes=names, key="0" * 64
    )
    order = [5, 9, 0, 1, 2, 3, 4, 6, 7, 8, 10, 11]
    shown = [rows[place] for place in order]
    columns = ([row[name] for row in shown] for name in ("path", "class", "class_2"))
    return Reviewed((tmp_path / "p.html").as_uri() + "#check", photos, *columns, folders)


@pytest.fixture
def reviewed(request: pytest.FixtureRequest) -> Reviewed:
    """The page that the test names."""
    return request.getfixturevalue(f"{request.param}_page")


@pytest.mark.parametrize("reviewed", ["audit", "predictions"], indirect=True)
def test_ten_are_judged_with_keys_and_saved(reviewed: Reviewed, tmp_path: Path, open_page: Callable) -> None:
    watched = open_page(reviewed.url)
    page, press = watched.page, watched.page.keyboard.press
    for key in "1222412":  # keep, take, take, take, leave out, keep, take
        press(key)
    press("u")
    page.reload()
    assert page.inner_text("#state") == "Photo 7 of 12, not judged; 6 judged"
    press("2")
    wanted = next(name for name in reviewed.folders if name not in (reviewed.given[7], reviewed.suggested[7]))
    press("3")
    page.keyboard.type(f"flower {wanted}")
    press("Enter")
    press("4")
    press("ArrowLeft")
    press("2")
    press("2")
    press("ArrowRight")
    assert page.inner_text("#state").endswith("10 judged")
    page.focus("#find-class-table")
    press("2")  # is typed there
    assert page.inner_text("#state").endswith("10 judged")
    page.keyboard.press("Tab")
    with page.expect_download() as download:
        press("s")
    saved = tmp_path / "corrections.csv"
    download.value.save_as(saved)
    assert download.value.suggested_filename == "corrections.csv"

    expected = {reviewed.paths[place]: reviewed.suggested[place] for place in (1, 2, 3, 6, 8, 9)}
    expected |= {reviewed.paths[4]: None, reviewed.paths[7]: wanted}
    if "#check" in reviewed.url:  # an answer that a person has seen is a label, one that was not judged is none
        expected |= {reviewed.paths[place]: reviewed.given[place] for place in (0, 5)}
    assert read_corrections(saved).classes == expected
    with open(saved, newline="") as file:
        assert next(csv.reader(file)) == ["path", "class"]
    assert watched.errors == watched.exceptions == []
    assert {address.partition(":")[0] for address in watched.requests} <= {"file", "data", "blob"}
    if "#check" not in reviewed.url:
        flags = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 32, "-j", 0, "--epochs", 1]
        flags += ["--no-report", "--data-dir", reviewed.data, "--output-dir", tmp_path / "run", "--corrections", saved]
        assert train(parse(TrainConfig, [str(flag) for flag in flags])) == 0
        assert read_corrections(tmp_path / "run" / "corrections.csv").classes == expected


@pytest.mark.parametrize(("reviewed", "dark"), [("audit", False), ("predictions", True)], indirect=["reviewed"])
def test_a_phone_judges_with_fingers(reviewed: Reviewed, dark: bool, open_page: Callable) -> None:
    watched = open_page(reviewed.url, phone=True, dark=dark)
    assert watched.overflow() <= 0
    watched.page.click("[data-act=take]")
    assert watched.page.inner_text("#state").startswith("Photo 2 of 12, not judged; 1 judged")
    watched.page.click("#undo")
    watched.page.click("[data-act=other]")
    watched.page.click("#choices li:nth-child(2) button")
    assert watched.page.inner_text("#state").endswith("1 judged")
    assert "<img src=x" not in watched.page.inner_html("#path")


def test_one_guess_and_no_second(tmp_path: Path, photos: Path, open_page: Callable) -> None:
    row = {"path": "a.jpg", "status": "unfamiliar", "label": "rose", "class": "1", "prob": "0.9", "error": ""}
    photo = str(next(photos.rglob("*.jpg")))
    write_predictions_report(tmp_path / "p.html", [row], lambda path: photo, facts=[])
    page = open_page((tmp_path / "p.html").as_uri() + "#check").page
    page.keyboard.press("2")
    assert page.inner_text("#state") == "Photo 1 of 1, not judged; 0 judged"
    assert page.is_disabled("[data-act=take]")
    assert page.inner_text(".side") == "unfamiliar: rose 90.0%\n\nAnswer: rose (1)"
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.set_viewport_size({"width": 1200, "height": 200})
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.keyboard.press("1")
    assert page.inner_text("#state").endswith("0 judged"), "nobody sees the photo"
