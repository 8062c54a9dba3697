"""Tables in Excel's format: what stands in the cells, the same bytes, pictures, and tables as people save them."""

import gc
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
import tiny_job

from flowers.config.predict import PredictConfig
from flowers.data import workbook
from flowers.data.lists import read_labelled, read_paths
from flowers.data.paths import decode_path
from flowers.data.tables import read_rows
from flowers.data.workbook import read_workbook, write_workbook
from flowers.errors import DataError, OutputError, UsageError
from flowers.prediction.predict import predict
from flowers.prediction.score import score_predictions

openpyxl = pytest.importorskip("openpyxl")
pytest.importorskip("xlsxwriter")

NAMES = ["path", "status", "class", "prob", "error"]
ODD = [
    "=1+1", '=HYPERLINK("http://x.y")', "+1", "-1", "@a", "12", "1e3", "TRUE", "http://x.y/z", "<r><t>a</t></r>",
    "<r>a/</r>", "a\rb\nc", "\x01\x1f", "_x0041_", "_x005F_", " first", "last ", "&<>\"'", "\u00e9\u6f22\U0001f600",
    "\x7f\x85\u2028", r"a\\b\xff",
]  # fmt: skip


def table(paths: list[str]) -> Iterator[tuple[dict, None]]:
    for place, path in enumerate(paths):
        yield {"path": path, "status": "ok", "class": "7", "prob": round(place / 7, 6), "error": None}, None


def test_text_stays_text_and_numbers_are_numbers(tmp_path: Path) -> None:
    write_workbook(tmp_path / "t.xlsx", table(ODD), NAMES)
    (_, header), *rows = read_workbook(tmp_path / "t.xlsx")
    assert header == NAMES
    assert [cells for _, cells in rows] == [[path, "ok", "7", round(n / 7, 6), None] for n, path in enumerate(ODD)]
    sheet = openpyxl.load_workbook(tmp_path / "t.xlsx").active
    assert (sheet.freeze_panes, sheet.auto_filter.ref) == ("A2", f"A1:E{len(ODD) + 1}")
    for row in sheet.iter_rows(min_row=2):
        assert [cell.data_type for cell in row] == ["s", "s", "s", "n", "n"]
        assert row[3].number_format == "0.0%"
        assert row[0].quotePrefix == (row[0].value[0] in "=+-@"), "it stays text when somebody edits the cell"


def test_what_no_xml_holds_is_the_same_path_in_other_letters(tmp_path: Path) -> None:
    write_workbook(tmp_path / "t.xlsx", table(["a\ufffe.jpg", "\uffff"]), NAMES)
    assert list(read_paths(tmp_path / "t.xlsx")) == ["a\ufffe.jpg", "\uffff"]


def test_the_same_rows_are_the_same_bytes_at_another_time_and_place(tmp_path: Path, monkeypatch) -> None:
    def digest(name: str) -> str:
        write_workbook(tmp_path / name, ((row, tiny_jpeg()) for row, _ in table(ODD)), NAMES, pictures=True)
        return hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    first, then = digest("1.xlsx"), time.time()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    umask = os.umask(0o077)
    monkeypatch.setattr(time, "time", lambda: then + 1e6)
    try:
        assert digest("2.xlsx") == first
    finally:
        os.umask(umask)
        monkeypatch.undo()
        time.tzset()
    assert sorted(os.listdir(tmp_path)) == ["1.xlsx", "2.xlsx"]


def tiny_jpeg() -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_table_that_excel_saved_is_a_list_of_labels(tmp_path: Path) -> None:
    """With its shared strings, whole numbers where the class was typed, empty rows and columns of notes."""
    book = openpyxl.Workbook()
    for row in (["Path", "Class", None, "notes"], ["a/1.jpg", 1, "x", 0.5], [], ["b\\\\2.jpg", "rose"]):
        book.active.append(row)
    book.save(tmp_path / "l.xlsx")
    assert read_labelled(tmp_path / "l.xlsx") == [("a/1.jpg", "1", None), ("b\\2.jpg", "rose", None)]
    (tmp_path / "p.csv").write_text("path,class\na/1.jpg,1\nb\\\\2.jpg,1\nc.jpg,rose\n")
    assert score_predictions(tmp_path / "p.csv", tmp_path / "l.xlsx").top1 == 0.5


def test_what_is_no_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04 no more")
    write_workbook(tmp_path / "whole.xlsx", table(ODD), NAMES)
    (tmp_path / "half.xlsx").write_bytes((tmp_path / "whole.xlsx").read_bytes()[:2000])
    for name in ("t.xlsx", "half.xlsx"):
        for read in (read_paths, read_labelled, read_rows):
            with pytest.raises(DataError, match=f"{name}: cannot be read.*: no workbook of Excel, or damaged"):
                list(read(tmp_path / name))
    write_workbook(tmp_path / "x.xlsx", [({"file": "a"}, None)], ["file"])
    with pytest.raises(DataError, match="lacks a column named path"):
        read_labelled(tmp_path / "x.xlsx")
    with pytest.raises(DataError, match="lacks a column named path: got file"):
        list(read_rows(tmp_path / "x.xlsx"))
    book = openpyxl.Workbook()
    for row in (["path", "label", "Label"], ["a.jpg", "rose", "tulip"]):
        book.active.append(row)
    book.save(tmp_path / "twice.xlsx")
    with pytest.raises(DataError, match="several columns are named label; rename all but one"):
        read_labelled(tmp_path / "twice.xlsx")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk_is_one_error_and_no_second_one_of_the_archive(tmp_path: Path, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    (tmp_path / "t.xlsx").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_workbook(tmp_path / "t.xlsx", table(ODD), NAMES)
    gc.collect()
    assert not told


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture
def run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    tiny_job.make_photos(tmp_path / "in", 5)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"broken")
    os.rename(tmp_path / "in" / "0001.jpg", os.fsencode(tmp_path / "in") + b"/=\xff\r.jpg")

    def run(**flags: object) -> int:
        usual = {"checkpoint": bundle, "input": tmp_path / "in", "output": tmp_path / "x.xlsx", "topk": 2}
        usual |= {"engine": "torch", "precision": "float32", "shard_size": 2, "batch_size": 2}
        return predict(PredictConfig(**{**usual, **flags}))

    return run


def test_pictures_stand_in_their_rows_and_follow_an_update(run: Callable, tmp_path: Path) -> None:
    run(thumbnails=True)
    rows = list(read_rows(tmp_path / "x.xlsx"))
    assert list(rows[0])[:2] == ["path", "status"], "pictures are no column of the table"
    photos = {str(path.relative_to(tmp_path / "in")) for path in (tmp_path / "in").rglob("*.jpg")}
    assert {decode_path(row["path"]) for row in rows} == photos
    sheet = openpyxl.load_workbook(tmp_path / "x.xlsx").active
    assert [sheet["A1"].value, sheet["B1"].value, sheet.auto_filter.ref[:2]] == ["photo", "path", "B1"]
    placed = {picture.anchor._from.row - 1: picture for picture in sheet._images}
    assert sorted(placed) == [place for place, row in enumerate(rows) if row["status"] != "error"]
    assert {(picture.width, picture.height) for picture in placed.values()} == {(workbook.SIDE, workbook.SIDE)}
    with pytest.raises(OutputError, match="thumbnails: True then, None now"):
        run()
    (tmp_path / "in" / "broken.jpg").unlink()
    run(thumbnails=True, update=True, copy_to=tmp_path / "sorted")
    run(thumbnails=True, output=tmp_path / "fresh.xlsx", workers=2)
    assert (tmp_path / "x.xlsx").read_bytes() == (tmp_path / "fresh.xlsx").read_bytes()
    assert sum(path.is_file() for path in (tmp_path / "sorted").rglob("*")) == 5


def test_more_files_than_a_sheet_has_rows_are_refused_before_the_work(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowers.prediction.predict.classify", None)
    monkeypatch.setattr(workbook, "MAX_ROWS", 5)
    with pytest.raises(
        UsageError, match="x.xlsx: 6 files, but a sheet of Excel has 5 rows below its header; choose .csv"
    ):
        run()
    monkeypatch.setattr(workbook, "MAX_ROWS", 6)
    monkeypatch.setattr(workbook, "MAX_PICTURES", 5)
    with pytest.raises(UsageError, match="6 files, but --thumbnails takes at most 5"):
        run(thumbnails=True)
    assert os.listdir(tmp_path) == ["in"]
    with pytest.raises(UsageError, match="more than 5 rows"):
        write_workbook(tmp_path / "t.xlsx", ((row, None) for row, _ in table(ODD)), NAMES, pictures=True)
    with pytest.raises(UsageError, match="--thumbnails: got --output x.csv, expected a name ending in .xlsx"):
        run(thumbnails=True, output=tmp_path / "x.csv")


def test_without_the_library_a_line_names_the_extra(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    with pytest.raises(UsageError, match=r".xlsx needs xlsxwriter: pip install 'flowers\[excel\]', or choose .csv"):
        run()
