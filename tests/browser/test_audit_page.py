"""The page of an audit with keys alone: judge, reload, undo, search, save; training takes what it saves."""

import csv
import shutil
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
from jobs.train import main as train

FACTS = {
    "labels_to_check": 12, "photos": 32, "classes": [], "overlapping_classes": [], "outliers": [],
    "near_duplicates": {"listed": []},
}  # fmt: skip


@pytest.fixture
def page_of(sample_set: Path, tmp_path: Path) -> tuple[str, Path, list[Suspicion], Audited]:
    """A page with twelve labels to check; the first name holds a comma, a quote and what looks like a tag."""
    data = Path(shutil.copytree(sample_set, tmp_path / "data"))
    first = sorted((data / "train").rglob("*.jpg"))[0]
    first.rename(first.with_name('00 a, "b" <img src=x onerror=alert(1)>.jpg'))
    found = load_image_folders(data)
    targets = found.train.targets
    audited = Audited(
        data, found.classes, found.train.paths, ("train",), np.zeros(32), targets, np.zeros((32, 1)), None
    )
    probs = np.full((32, 4), 0.1, np.float32)
    probs[np.arange(32), targets] = 0.7
    suspicions = [Suspicion(i, int(targets[i]), int(targets[i] + 1) % 4, 0.9, "like another") for i in range(12)]
    write_audit_page(tmp_path / "audit.html", audited, judge(probs, targets), suspicions, FACTS, "0" * 64)
    return (tmp_path / "audit.html").as_uri(), data, suspicions, audited


def test_ten_are_judged_with_keys_and_training_takes_them(page_of, tmp_path: Path, open_page) -> None:
    url, data, suspicions, audited = page_of
    watched = open_page(url)
    page, press = watched.page, watched.page.keyboard.press
    for key in "1222412":  # keep, take, take, take, remove, keep, take
        press(key)
    press("u")
    page.reload()
    assert page.inner_text("#state") == "Photo 7 of 12, not judged; 6 judged"
    press("2")
    folders, labels = audited.classes.folders, audited.classes.labels
    wanted = (suspicions[7].given + 2) % 4
    press("3")
    page.keyboard.type(labels[wanted])
    press("Enter")
    press("4")
    press("ArrowLeft")
    press("2")
    press("2")
    press("ArrowRight")
    assert page.inner_text("#state").endswith("10 judged")
    with page.expect_download() as download:
        press("s")
    saved = tmp_path / "corrections.csv"
    download.value.save_as(saved)
    assert download.value.suggested_filename == "corrections.csv"

    paths = [audited.paths[item.index] for item in suspicions]
    taken = {place: folders[suspicions[place].suggested] for place in (1, 2, 3, 6, 8, 9)}
    expected = {paths[place]: name for place, name in taken.items()}
    expected |= {paths[4]: None, paths[7]: folders[wanted]}
    assert read_corrections(saved).classes == expected
    with open(saved, newline="") as file:
        assert next(csv.reader(file)) == ["path", "class"]
    flags = ["--model", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", 32, "-j", 0, "--epochs", 1]
    flags += ["--no-report", "--data-dir", data, "--output-dir", tmp_path / "run", "--corrections", saved]
    assert train(parse(TrainConfig, [str(flag) for flag in flags])) == 0
    assert read_corrections(tmp_path / "run" / "corrections.csv").classes == expected
    assert watched.errors == watched.exceptions == []
    assert {address.partition(":")[0] for address in watched.requests} <= {"file", "data", "blob"}


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_judges_with_fingers(page_of, dark: bool, open_page) -> None:
    url, *_ = page_of
    watched = open_page(url, phone=True, dark=dark)
    assert watched.overflow() <= 0
    watched.page.click("[data-act=take]")
    assert watched.page.inner_text("#state").startswith("Photo 2 of 12, not judged; 1 judged")
    watched.page.click("#undo")
    watched.page.click("[data-act=other]")
    watched.page.click("#choices li:nth-child(2) button")
    assert watched.page.inner_text("#state").endswith("1 judged")
    assert "<img src=x" not in watched.page.inner_html("#path")
