"""Predictions against labels: counted by hand."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flowers.cli import parse
from flowers.config.evaluate import EvaluateConfig
from flowers.errors import DataError, UsageError
from flowers.prediction.against import compare, compare_predictions, mcnemar
from flowers.prediction.score import score, score_predictions

HEADER = "path,status,label,class,prob,label_2,class_2,prob_2,error\r\n"
ROWS = [
    "a/1.jpg,ok,daisy,1,0.9,rose,2,0.1,",  # right
    "a/2.jpg,ok,rose,2,0.8,daisy,1,0.2,",  # second guess
    "b/3.jpg,unsure,rose,2,0.4,tulip,3,0.3,",  # right
    '"b/4, x.jpg",ok,tulip,3,0.7,daisy,1,0.2,',  # wrong
    "b/5.jpg,error,,,,,,,zero bytes",
    "6.jpg,ok,daisy,1,0.9,rose,2,0.1,",  # no label
]
LABELS = "path,class\na/1.jpg,1\na/2.jpg,1\nb/3.jpg,2\n" + '"b/4, x.jpg",2\nb/5.jpg,3\nb/nowhere.jpg,3\n'


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.csv"
    path.write_text(HEADER + "\r\n".join(ROWS) + "\r\n", newline="")
    return path


@pytest.mark.parametrize("names", [{"1": "1", "2": "2", "3": "3"}, {"1": "daisy", "2": "rose", "3": "tulip"}])
def test_a_score_by_hand_with_folder_or_display_names(predictions: Path, tmp_path: Path, names: dict) -> None:
    lines = [line.rpartition(",") for line in LABELS.splitlines()]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(f"{path},{names.get(name, name)}" for path, _, name in lines))
    score = score_predictions(predictions, labels)
    assert (score.images, score.k) == (5, 2)
    assert score.top1 == 2 / 5
    assert score.topk == 3 / 5
    assert (score.errors, score.unsure, score.unlabelled, score.missing) == (1, 1, 1, 1)
    assert score.sure_top1 == 1 / 3
    assert score.classes == {
        names["1"]: {"images": 2, "top1": 0.5},
        names["2"]: {"images": 2, "top1": 0.5},
        names["3"]: {"images": 1, "top1": 0.0},
    }
    assert score.confusions == [(names["1"], names["2"], 1), (names["2"], names["3"], 1)]


def spreadsheet(tmp_path: Path, spell) -> tuple[Path, Path]:
    """Twelve right rows of the classes 01 to 12, and labels as something else has spelled them."""
    names = [f"{number:02}" for number in range(1, 13)]
    (tmp_path / "p.csv").write_text("path,class\n" + "".join(f"./{name}.jpg,{name}\n" for name in names))
    (tmp_path / "labels.csv").write_text("path,class\n" + "".join(f"{name}.jpg,{spell(name)}\n" for name in names))
    return tmp_path / "p.csv", tmp_path / "labels.csv"


def test_labels_without_their_zeros_are_named_and_counted_apart(tmp_path: Path, capsys) -> None:
    predictions, labels = spreadsheet(tmp_path, lambda name: str(int(name)))
    found = score_predictions(predictions, labels)
    assert (found.images, found.top1, found.known_top1, found.missing) == (12, 3 / 12, 1.0, 0)
    assert found.unknown == {str(number): 1 for number in range(1, 10)}
    assert found.spelled == {str(number): f"0{number}" for number in range(1, 10)}
    matched = score_predictions(predictions, labels, match_labels=True)
    assert (matched.images, matched.top1, matched.unknown, matched.spelled) == (12, 1.0, {}, {})
    score(EvaluateConfig(predictions=predictions, labels=labels))
    said = capsys.readouterr()
    assert "1 is 01, 2 is 02, 3 is 03, 4 is 04, 5 is 05 and 4 more" in " ".join(said.err.split())
    assert "9, of labels 1, 2, 3, 4, 5 and 4 more, counted as wrong; top1 of the others 100.00%" in said.out


@pytest.mark.parametrize("spell", [lambda name: f"{int(name)}.0", lambda name: f"{name} ", lambda name: f"00{name}"])
def test_labels_of_which_none_fits_are_refused_with_a_way_out(spell, tmp_path: Path) -> None:
    predictions, labels = spreadsheet(tmp_path, spell)
    with pytest.raises(DataError, match="--match-labels takes .* for 01, "):
        score_predictions(predictions, labels)
    assert score_predictions(predictions, labels, match_labels=True).top1 == 1.0


def test_a_class_that_is_never_guessed_is_told_apart_from_a_misspelt_one(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("path,class\na.jpg,rose\nb.jpg,rose\n")
    (tmp_path / "labels.csv").write_text("path,class\n./a.jpg,rose\nx/../b.jpg,tulip\n")
    found = score_predictions(tmp_path / "p.csv", tmp_path / "labels.csv")
    assert (found.top1, found.unknown, found.spelled) == (0.5, {"tulip": 1}, {})


def test_labels_from_folder_names(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("path,class\nx/daisy/1.jpg,daisy\ndaisy/2.jpg,rose\nrose/3.jpg,rose\n4.jpg,rose\n")
    score = score_predictions(path, None)
    assert (score.images, score.top1, score.unlabelled, score.sure_top1) == (3, 2 / 3, 1, 2 / 3)


def test_jsonl_scores_the_same(predictions: Path, tmp_path: Path) -> None:
    from flowers.data.tables import read_rows

    (tmp_path / "labels.csv").write_text(LABELS)
    lines = [json.dumps({name: value or None for name, value in row.items()}) for row in read_rows(predictions)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n")
    labels = tmp_path / "labels.csv"
    assert score_predictions(tmp_path / "p.jsonl", labels) == score_predictions(predictions, labels)


@pytest.mark.parametrize(
    ("rows", "labels", "said"),
    [
        (ROWS[:1], "path,class\na/1.jpg,sunflower\n", r"no true class \(sunflower\) is among the guesses \(1, 2\)"),
        (ROWS[:1], "path,class\nother.jpg,1\n", "none of its 1 paths is in"),
        (ROWS[:1] * 2, "path,class\na/1.jpg,1\n", "two rows for a/1.jpg"),
        (["a/1.jpg,ok"], "path,class\na/1.jpg,1\n", "line 2: got 2 cells, expected [0-9]+ as in the header"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, rows: list[str], labels: str, said: str) -> None:
    (tmp_path / "p.csv").write_text(HEADER + "\r\n".join(rows) + "\r\n")
    (tmp_path / "labels.csv").write_text(labels)
    with pytest.raises(DataError, match=said):
        score_predictions(tmp_path / "p.csv", tmp_path / "labels.csv")


def test_something_else_than_predictions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("name,value\nx,1\n")
    with pytest.raises(
        DataError, match="lacks a column named path: got name,value, expected what jobs/predict.py writes"
    ):
        score_predictions(tmp_path / "p.csv", None)
    with pytest.raises(DataError, match="cannot be read"):
        score_predictions(tmp_path / "nowhere.csv", None)
    (tmp_path / "p.csv").write_text("path,class\nx,1\n")
    with pytest.raises(DataError, match="is a folder, expected a CSV of path,class; without --labels"):
        score_predictions(tmp_path / "p.csv", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", b'{"name": "x"}\n', "the header lacks a column named path: got name"),
        ("p.jsonl", b"[1, 2]\n", "the header lacks a column named path: got nothing"),
        ("p.jsonl", b"not json\n", "cannot be read"),
        ("p.csv.gz", gzip.compress(b"path,class\n" * 99, mtime=0)[:-9], "cannot be read"),
        ("p.csv.gz", gzip.compress(b"path,class\n", mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
    ],
)
def test_damaged_predictions_are_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {said}"):
        score_predictions(tmp_path / name, None)


def test_scores_of_names_with_dots_do_not_share_a_file(tmp_path: Path) -> None:

    for name in ("run.v1.csv", "run.v2.csv", "other.csv.gz"):
        open_ = gzip.open if name.endswith(".gz") else open
        with open_(tmp_path / name, "wt") as file:
            file.write("path,class\ndaisy/1.jpg,daisy\n")
        assert score(parse(EvaluateConfig, ["--predictions", str(tmp_path / name)])) == 0
    found = {path.name for path in tmp_path.glob("*-score.json")}
    assert found == {"run.v1-score.json", "run.v2-score.json", "other-score.json"}


@pytest.mark.parametrize("column", ["class", "label"])
def test_a_table_of_chosen_columns_is_scored(tmp_path: Path, column: str) -> None:
    """Without a status, a row without a guess is a file that failed."""
    (tmp_path / "p.csv").write_text(f"{column},path\nrose,rose/1.jpg\n,rose/2.jpg\nrose,daisy/3.jpg\n")
    found = score_predictions(tmp_path / "p.csv", None)
    assert (found.images, found.top1, found.errors, found.sure_top1) == (3, 1 / 3, 1, 1 / 2)
    assert found.confusions == [("daisy", "rose", 1)]
    (tmp_path / "p.csv").write_text("path,prob\nrose/1.jpg,0.5\n")
    with pytest.raises(DataError, match="no column 'class' or 'label'"):
        score_predictions(tmp_path / "p.csv", None)


def test_scoring_needs_no_torch() -> None:
    code = "import sys, flowers.prediction.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_job_tells_and_keeps_the_score(predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:

    (tmp_path / "labels.csv").write_text(LABELS)
    flags = ["--predictions", str(predictions), "--labels", str(tmp_path / "labels.csv")]
    assert score(parse(EvaluateConfig, flags)) == 0
    assert "40.00% of 5 images" in capsys.readouterr().out
    assert json.loads((tmp_path / "predictions-score.json").read_text())["top1"] == 0.4
    for wrong in ([], ["--checkpoint", "c"], [*flags, "--data-dir", "d"], ["--labels", "l"]):
        with pytest.raises(UsageError):
            parse(EvaluateConfig, wrong)


def against(tmp_path: Path, new: dict[str, str], old: dict[str, str]) -> tuple[Path, Path]:
    """Two tables of one guess a row, as path to class; an empty class is a file that failed."""
    for name, rows in (("new.csv", new), ("old.csv", old)):
        lines = [f"{path},{'ok' if guess else 'error'},{guess}" for path, guess in rows.items()]
        (tmp_path / name).write_text("\n".join(["path,status,class", *lines, ""]))
    return tmp_path / "new.csv", tmp_path / "old.csv"


def test_two_tables_are_compared_by_path(tmp_path: Path) -> None:
    new = {"photos/1.jpg": "rose", "photos/2.jpg": "rose", "photos/3.jpg": "", "photos/5.jpg": "tulip"}
    old = {"./photos/3.jpg": "rose", "photos/2.jpg": "daisy", "photos/1.jpg": "rose", "4.jpg": "", "6.jpg": "rose"}
    found = compare_predictions(*against(tmp_path, new, old))
    assert (found.rows, found.changed, found.failed_in_one, found.only_first, found.only_second) == (3, 1, 1, 1, 2)
    assert found.first_changed == [{"path": "photos/2.jpg", "class": "rose", "against": "daisy"}]
    assert found.test is None, "photos/ is no class"


@pytest.mark.parametrize("by_folder", [True, False])
def test_two_tables_with_true_classes_have_a_paired_test(tmp_path: Path, by_folder: bool) -> None:
    """20 roses: both have 6 right, only the new one 10, only the old one 2, and it fails on one of the others."""
    right = [(1, 1)] * 6 + [(1, 0)] * 10 + [(0, 1)] * 2 + [(0, 0)] * 2
    guesses = {f"{'rose' if by_folder else 'x'}/{number:02}.jpg": hit for number, hit in enumerate(right)}
    new, old = ({path: "rose" if hit[table] else "daisy" for path, hit in guesses.items()} for table in (0, 1))
    old[list(old)[-1]] = ""
    tables = against(tmp_path, new, old)
    (tmp_path / "labels.csv").write_text("path,class\n" + "".join(f"{path},rose\n" for path in guesses))
    flags = ["--predictions", str(tables[0]), "--against", str(tables[1])]
    flags += [] if by_folder else ["--labels", str(tmp_path / "labels.csv")]
    assert compare(parse(EvaluateConfig, flags)) == 0
    kept = json.loads((tmp_path / "new-against-old.json").read_text())
    assert (kept["rows"], kept["changed"], kept["failed_in_one"], len(kept["first_changed"])) == (20, 12, 1, 10)
    assert {name: kept["test"][name] for name in ("images", "top1", "against_top1", "only_first", "only_second")} == {
        "images": 20, "top1": 0.8, "against_top1": 0.4, "only_first": 10, "only_second": 2,
    }  # fmt: skip
    assert kept["test"]["p_value"] == pytest.approx(2 * (1 + 12 + 66) / 2**12)


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (5, 5), (3, 9), (40, 12), (3000, 2800), (0, 5000)])
def test_mcnemar_is_the_exact_binomial_test(counts: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, rel=1e-8)


def test_tables_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    tables = against(tmp_path, {"1.jpg": "rose"}, {"2.jpg": "rose"})
    with pytest.raises(DataError, match="no path is in both"):
        compare_predictions(*tables)
    tables[1].write_text("path,class\n1.jpg,rose\n./1.jpg,rose\n")
    with pytest.raises(DataError, match="two rows for 1.jpg"):
        compare_predictions(*tables)
    with pytest.raises(UsageError, match="--predictions"):
        parse(EvaluateConfig, ["--checkpoint", "c", "--data-dir", "d", "--against", str(tables[1])])
