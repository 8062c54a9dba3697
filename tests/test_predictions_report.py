"""predictions.html: counts are those of the rows, names are only text, large tables stay usable."""

import csv
import json
import re
import tarfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny_job

from flowers.cli import parse
from flowers.config.predict import PredictConfig
from flowers.data.tables import read_rows
from flowers.reports import predictions_report
from flowers.reports.predictions_report import choose, write_predictions_report
from jobs.predict import main as predict

EVIL = "<img src=x onerror=alert(1)> </script><script>alert(2)//.jpg"


class Page(HTMLParser):
    """The data in the page, the text of its table cells, and all tags' attributes."""

    def __init__(self, path: Path):
        super().__init__()
        self._tag = ""
        self.data, self.cells, self.attributes = "", [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(self.data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = "data" if ("id", "data") in attrs else tag
        self.attributes += attrs

    def handle_data(self, text: str) -> None:
        if self._tag == "data":
            self.data += text
        elif text.strip():
            self.cells.append(text.strip())

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""


def row(path: str, answer: int, prob: float, status: str = "ok") -> dict[str, str]:
    second = {"label_2": "other", "class_2": "o", "prob_2": f"{(1 - prob) / 2:.6f}"}
    first = {"label": f"flower {answer}", "class": str(answer), "prob": f"{prob:.6f}"}
    return {"path": path, "status": status, **first, **second, "error": ""}


def failed(path: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(row("", 0, 1), "") | {"path": path, "status": "error", "error": reason}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


def run(*words: object) -> int:
    return predict(parse(PredictConfig, [*map(str, words), "--engine", "torch", "--precision", "float32"]))


def test_the_page_of_a_job_is_its_rows(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out.csv"
    tiny_job.make_photos(photos, 12)
    (photos / EVIL.replace("/", "_")).write_bytes((photos / "0001.jpg").read_bytes())
    (photos / "cut.jpg").write_bytes((photos / "0001.jpg").read_bytes()[:300])
    flags = ("--checkpoint", bundle, "--input", photos, "--output", output, "--min-prob", 0.5, "--report")
    assert run(*flags) == 0
    assert "out.html" in capsys.readouterr().out
    rows = list(read_rows(output))
    page = Page(tmp_path / "out.html")
    good = sorted((row for row in rows if row["status"] != "error"), key=lambda row: float(row["prob"]))
    labels = [own["label"] for own in page.data["classes"]]
    assert sorted(own["folder"] for own in page.data["classes"]) == sorted(tiny_job.CLASSES.folders), "all of the model"
    assert page.data["paths"] == [row["path"] for row in good]
    assert [labels[answer] for answer in page.data["answers"]] == [row["label"] for row in good]
    assert [labels[second] for second in page.data["seconds"]] == [row["label_2"] for row in good]
    assert page.data["probs"] == [round(float(row["prob"]), 4) for row in good]
    assert page.data["unsure"] == [place for place, row in enumerate(good) if row["status"] == "unsure"]
    assert len(page.data["pictures"]) == len(good)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.data["pictures"].values())
    assert page.data["base"] == "photos/"
    first = [row["path"] for status in (True, False) for row in good if (row["status"] == "unsure") == status]
    assert [photo["path"] for photo in page.data["photos"]] == first, "to check"
    for label, count in Counter(row["label"] for row in good).items():
        assert any(page.cells[i : i + 3 : 2] == [label, str(count)] for i in range(len(page.cells))), label
    assert "truncated JPEG" in " ".join(page.cells)
    assert not [name for name, _ in page.attributes if name.startswith("on") and name != "on"]
    # the finished output again, with the photos gone: the page is made anew, without pictures
    (tmp_path / "out.html").unlink()
    for photo in photos.rglob("*.jpg"):
        photo.unlink()
    assert run(*flags, "--merge") == 0
    page = Page(tmp_path / "out.html")
    assert set(page.data["pictures"].values()) == {None}
    assert page.data["photos"] == []


def test_photos_in_archives_have_pictures_and_no_links(bundle: Path, tmp_path: Path) -> None:
    tiny_job.make_photos(tmp_path / "photos", 4)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "photos", "inside")
    assert run("--checkpoint", bundle, "--input", tmp_path / "a.tar", "--output", tmp_path / "o.jsonl", "--report") == 0
    page = Page(tmp_path / "o.html")
    assert len(page.data["paths"]) == 4
    assert all(path.startswith("a.tar/inside/") for path in page.data["paths"])
    assert all(page.data["pictures"].values())


def test_of_too_many_rows_the_least_certain_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions_report, "MAX_ROWS", 10)
    monkeypatch.setattr(predictions_report, "MAX_FAILED", 3)
    rows = [row(f"{index:03}.jpg", index % 7, (index * 37 % 100 + 0.5) / 100) for index in range(100)]
    rows[0] |= {"status": "damaged", "error": "the end is missing"}
    rows[54] |= {"status": "unfamiliar"}  # 98.5%
    rows[50:50] = [failed(f"bad{index}.jpg", "empty file") for index in range(5)]
    write_predictions_report(tmp_path / "p.html", rows, lambda path: None, facts=[])
    page = Page(tmp_path / "p.html")
    assert page.data["probs"] == [(2 * place + 1) / 200 for place in range(9)] + [0.985]
    text = " ".join(page.cells)
    assert "Of 100 photos the 10 least certain ones are here." in text
    assert "The first 3 of 5." in text
    assert "empty file 5" in text
    assert "1 damaged, answered all the same" in text
    assert "000.jpg the end is missing" in text
    assert page.data["damaged"] == [page.data["paths"].index("000.jpg")]


def test_pictures_go_to_photos_to_check_and_to_every_class() -> None:
    def shown(count: int, classes: int) -> list[predictions_report._Photo]:
        photo, status = predictions_report._Photo, ["ok"] * count
        status[-2:] = "unfamiliar", "unsure"
        return [photo(f"{i}.jpg", str(i * i % classes), i / count, "", 0.0, status[i]) for i in range(count)]

    assert choose(shown(5, 2), 9) == [0, 1, 2, 3, 4]
    many = shown(5_000, 13)
    chosen = choose(many, 90)
    assert len(chosen) <= 90
    assert chosen[:28] == list(range(28))
    assert {4_998, 4_999} < set(chosen), "unfamiliar, and unsure"
    assert {many[place].folder for place in chosen} == {photo.folder for photo in many}
    assert max(chosen) > 4_000
    assert len(choose(shown(5_000, 4_001), 90)) <= 90, "more classes than thumbnails"


def test_examples_are_photos_that_the_model_is_sure_of(tmp_path: Path) -> None:
    rows = [row(f"{index}.jpg", index % 2, 0.8 + index / 100) for index in range(20)]
    rows[19]["status"] = "damaged"
    rows[10]["class"] = "-"
    photo = tmp_path / tiny_job.make_photos(tmp_path, 1)[0]
    names = {"-": "none", "3": "flower 3"}
    write_predictions_report(tmp_path / "p.html", rows, lambda path: photo, facts=[], classes=names, key="f" * 64)
    data = Page(tmp_path / "p.html").data
    of = {own["folder"]: place for place, own in enumerate(data["classes"])}
    assert of.keys() == {"0", "1", r"\x2d", "3", "o"}, "a class named - does not read as left out"
    assert {of["0"]: [18, 16, 14], of["1"]: [17, 15, 13], of[r"\x2d"]: [10]} == {
        int(own): places for own, places in data["examples"].items()
    }
    assert data["photos"][0]["why"] == "flower 0 80.0%, other 10.0%"
    assert data["key"] == f"flowers-predictions-{'f' * 16}"


def test_a_hundred_thousand_rows_make_a_page_of_megabytes(tmp_path: Path) -> None:
    rows = (row(f"folder {index % 50}/photo-{index:06}.jpg", index % 102, index / 100_001) for index in range(100_000))
    write_predictions_report(tmp_path / "p.html", rows, lambda path: None, facts=[])
    assert (tmp_path / "p.html").stat().st_size < 12_000_000


def test_nothing_was_classified(tmp_path: Path) -> None:
    write_predictions_report(tmp_path / "p.html", [failed("a.jpg", "empty file")], lambda path: None, facts=[])
    assert Page(tmp_path / "p.html").data["paths"] == []


def test_no_surrogates_in_the_page(bundle: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    tiny_job.make_photos(photos, 1)
    (photos / "below" / "0000.jpg").rename(photos / "caf\udce9 \\ 1.jpg")
    assert run("--checkpoint", bundle, "--input", photos, "--output", tmp_path / "o.csv", "--report") == 0
    page = Page(tmp_path / "o.html")
    with open(tmp_path / "o.csv", encoding="utf-8", newline="") as file:
        assert page.data["paths"] == [next(csv.DictReader(file))["path"]]
    assert re.fullmatch(r"caf\\xe9 \\\\ 1\.jpg", page.data["paths"][0])
    assert all(page.data["pictures"].values())
