"""The rows of a predictions file: columns, quoting, statuses, names that are not UTF-8, guesses in order."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from flowers.data.paths import decode_path
from flowers.data.tables import read_rows
from flowers.prediction.rows import RowFormat, best_classes, columns, header

LABELS, FOLDERS = ("daisy", 'rose, "red"', "tulip"), ("1", "10", "a b")


def test_columns_are_the_contract() -> None:
    assert ",".join(columns(1)) == "path,status,label,class,prob,error"
    assert ",".join(columns(3)) == ("path,status,label,class,prob,label_2,class_2,prob_2,label_3,class_3,prob_3,error")
    assert header(columns(1), "csv") == b"path,status,label,class,prob,error\r\n"
    assert header(columns(1), "jsonl") == b""


def test_a_csv_row_is_quoted_as_rfc_4180_says() -> None:
    rows = RowFormat(LABELS, FOLDERS, 2, 0.0, "csv")
    status, line = rows.guessed("a/b, c.jpg", [1, 0], [0.75, 0.2500004])
    assert status == "ok"
    assert line == b'"a/b, c.jpg",ok,"rose, ""red""",10,0.750000,daisy,1,0.250000,\r\n'


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("name", [b"x.jpg", b"a\nb\r.jpg", b'"q".jpg', b" lead.jpg", b"\xe9\\t.jpg", "ü🌻".encode()])
def test_any_name_reads_back(name: bytes, kind: str) -> None:
    path = name.decode("utf-8", "surrogateescape")
    rows = RowFormat(LABELS, FOLDERS, 3, 0.0, kind)
    for line in (rows.guessed(path, [2, 1, 0], [0.5, 0.3, 0.2])[1], rows.failed(path, "truncated JPEG")):
        if kind == "csv":
            cells = next(csv.reader(io.StringIO(line.decode("utf-8"), newline="")))
            row = dict(zip(columns(3), cells, strict=True))
        else:
            assert line.endswith(b"\n")
            assert line.count(b"\n") == 1
            row = json.loads(line)
            assert list(row) == columns(3)
        assert decode_path(row["path"]) == path
        assert row["status"] in ("ok", "error")


def test_classes_that_are_not_utf8_can_be_written() -> None:
    rows = RowFormat(("caf\udce9",), ("caf\udce9",), 1, 0.0, "csv")
    assert rows.guessed("x.jpg", [0], [1.0])[1] == b"x.jpg,ok,caf\\xe9,caf\\xe9,1.000000,\r\n"


def test_a_damaged_file_has_its_guesses_and_what_is_wrong() -> None:
    status, line = RowFormat(LABELS, FOLDERS, 1, 0.9, "csv").guessed("x.jpg", [0], [0.5], "cut, at\nthe end")
    assert (status, line) == ("damaged", b'x.jpg,damaged,daisy,1,0.500000,"cut, at the end"\r\n')
    _, line = RowFormat(LABELS, FOLDERS, 1, 0.9, "jsonl").guessed("x.jpg", [0], [0.5], "cut")
    assert [json.loads(line)[name] for name in ("status", "class", "error")] == ["damaged", "1", "cut"]


def test_a_failed_file_has_its_reason_and_nothing_else() -> None:
    line = RowFormat(LABELS, FOLDERS, 2, 0.0, "csv").failed("x.jpg", "bad\nthing, \0 that")
    assert line == b'x.jpg,error,,,,,,,"bad thing, that"\r\n'
    row = json.loads(RowFormat(LABELS, FOLDERS, 1, 0.0, "jsonl").failed("x.jpg", "zero bytes"))
    assert row == {
        "path": "x.jpg",
        "status": "error",
        "label": None,
        "class": None,
        "prob": None,
        "error": "zero bytes",
    }


def test_unsure_is_below_min_prob() -> None:
    rows = RowFormat(LABELS, FOLDERS, 1, 0.5, "csv")
    assert rows.guessed("x", [0], [0.499999])[0] == "unsure"
    assert rows.guessed("x", [0], [0.4999996])[1] == b"x,ok,daisy,1,0.500000,\r\n", "the number that is written decides"
    assert rows.guessed("x", [0], [0.5])[0] == "ok"


def test_jsonl_has_numbers_with_six_decimals() -> None:
    row = json.loads(RowFormat(LABELS, FOLDERS, 1, 0.0, "jsonl").guessed("x", [0], [0.123456789])[1])
    assert row["prob"] == 0.123457
    assert row["error"] is None


@pytest.mark.parametrize("num_classes", [3, 50])
def test_best_classes_come_in_order_and_ties_by_index(num_classes: int) -> None:
    probs = np.zeros((2, num_classes), np.float32)
    probs[0, [2, 0, 1]] = [0.5, 0.3, 0.2]
    probs[1, [1, 2]] = 0.5
    assert best_classes(probs, 2).tolist() == [[2, 0], [1, 2]]
    rng = np.random.default_rng(0)
    probs = rng.permuted(np.tile(np.arange(num_classes, dtype=np.float32), (20, 1)), axis=1)
    assert (best_classes(probs, 3) == np.argsort(-probs, axis=1)[:, :3]).all()
    probs = rng.integers(0, 5, (200, num_classes)).astype(np.float32)
    assert (best_classes(probs, 3) == np.argsort(-probs, axis=1, kind="stable")[:, :3]).all()


def test_a_label_of_three_megabytes_reads_back(tmp_path: Path) -> None:
    label = "rose, " * 500_000
    line = RowFormat((label.strip(),), ("1",), 1, 0.0, "csv").guessed("x.jpg", [0], [1.0])[1]
    (tmp_path / "p.csv").write_bytes(header(columns(1), "csv") + line)
    [row] = read_rows(tmp_path / "p.csv")
    assert (row["path"], row["label"]) == ("x.jpg", label.strip())
