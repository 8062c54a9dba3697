"""A finished table used again without the network: the same bytes as a job with those flags would have written."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import tiny_job
from odd_files import half_jpeg

from flowers.api import predict_folder
from flowers.cli import parse
from flowers.config.predict import PredictConfig
from flowers.data.tables import read_rows, read_sidecar
from flowers.errors import DataError, FlowersError, OutputError, UsageError
from flowers.prediction.predict import predict
from jobs.predict import main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")
    facts = json.loads((folder / "model.json").read_text())
    facts["made"]["min_prob"] = 0.55
    (folder / "model.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def made(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, some of them faulty, and a table of them."""
    folder = tmp_path_factory.mktemp("made")
    tiny_job.make_photos(folder / "in", 20)
    (folder / "in" / "broken.jpg").write_bytes(b"broken")
    (folder / "in" / 'cut, "x".jpg').write_bytes(half_jpeg())
    job(bundle, folder, min_prob=0.7)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which the tests stand in."""
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def job(bundle: Path, folder: Path, output: str = "out.csv", **flags: object) -> Path:
    usual = {"checkpoint": bundle, "input": folder / "in", "output": folder / output, "topk": 3, "batch_size": 8}
    usual |= {"engine": "torch", "precision": "float32", "workers": 1}
    assert predict(PredictConfig(**{**usual, **flags})) == 0
    return folder / output


def again(*words: object) -> int:
    return main(parse(PredictConfig, ["--from", "out.csv", *map(str, words)]))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("min_prob", ["0.6", "auto", "0"])
def test_the_new_table_and_folders_are_those_of_a_job_with_this_threshold(
    bundle: Path, place: Path, min_prob: str
) -> None:
    assert again("--min-prob", min_prob, "--output", "new.csv", "--copy-to", "sorted") == 0
    wanted = "auto" if min_prob == "auto" else float(min_prob)
    fresh = job(bundle, place, "fresh.csv", min_prob=wanted, copy_to=place / "fresh")
    assert Path("new.csv").read_bytes() == fresh.read_bytes()
    assert tree(place / "sorted") == tree(place / "fresh")
    new, then = (json.loads(Path(name).read_text()) for name in ("new.json", "fresh.json"))
    for name in ("settings", "contents", "counts", "files", "stamps", "model", "engine", "input_root", "classes"):
        assert new[name] == then[name], name
    statuses = {row["status"] for row in read_rows(fresh)}
    assert statuses == {"ok", "error", "damaged", *(["unsure"] if min_prob != "0" else [])}


def test_a_table_that_could_not_be_written_is_written_by_the_same_command(place: Path, monkeypatch) -> None:
    before, words = tree(place), ("--min-prob", "0.6", "--output", "new.csv", "--copy-to", "sorted")
    with monkeypatch.context() as patch:
        patch.setattr("flowers.prediction.from_table.write_sidecar", Mock(side_effect=OSError(errno.ENOSPC, "full")))
        with pytest.raises(FlowersError, match="the disk is full"):
            again(*words)
    assert tree(place) == before
    assert again(*words) == 0
    whole = tree(place)
    photo = next(path for path in (place / "sorted").rglob("*") if path.is_file())
    for path in (place / "new.csv", photo):
        path.unlink()
        path.with_name(f".{path.name}.flowers_.tmp").write_text("half, by a killed one")
    assert again(*words) == 0
    assert tree(place).keys() == whole.keys()


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("new.jsonl", {}),
        ("new.csv.gz", {}),
        ("new.parquet", {}),
        ("new.xlsx", {}),
        ("new.xlsx", {"thumbnails": True, "columns": ("path,status,label",)}),
        ("new.csv", {"excel": True, "columns": ("path,status,label,class",)}),
        ("new.csv", {"class_names": Path("names.json")}),
    ],
)
def test_of_any_kind_with_any_columns_and_back(bundle: Path, place: Path, name: str, flags: dict) -> None:
    if name.endswith(".xlsx"):
        pytest.importorskip("openpyxl")
    names = {"1": "eins", "10": "zehn", "2": "zwei", "a b": "A, B"}
    Path("names.json").write_text(json.dumps(names))
    config = PredictConfig(from_table=Path("out.csv"), min_prob=0.6, output=Path(name), **flags)
    assert main(config) == 0
    assert Path(name).read_bytes() == job(bundle, place, f"fresh-{name}", min_prob=0.6, **flags).read_bytes()
    new, fresh = (read_sidecar(Path(path)) for path in (name, f"fresh-{name}"))
    assert [new[fact] for fact in ("settings", "classes")] == [fresh[fact] for fact in ("settings", "classes")]
    if not flags:
        back = PredictConfig(from_table=Path(name), min_prob=0.7, output=Path("back.csv"))
        assert main(back) == 0
        assert Path("back.csv").read_bytes() == Path("out.csv").read_bytes()


def test_the_new_table_is_finished_and_can_be_updated(bundle: Path, place: Path, capsys) -> None:
    again("--min-prob", 0.6, "--output", "new.csv")
    job(bundle, place, "new.csv", min_prob=0.6)
    assert "new.csv is complete" in capsys.readouterr().out
    tiny_job.make_photos(place / "in" / "more", 3, seed=1)
    job(bundle, place, "new.csv", min_prob=0.6, update=True)
    assert "3 images in" in capsys.readouterr().out
    assert len(list(read_rows(Path("new.csv")))) == 25


def test_without_torch(place: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['PIL'] = None\n"
        "from jobs.predict import cli\n"
        "sys.argv = ['predict.py', *'--from out.csv --min-prob 0.9 --link-to links --output a.csv'.split()]\n"
        "cli()"
    )
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    rows = [row for row in read_rows(Path("a.csv")) if row["status"] != "error"]
    assert len([path for path in Path("links").rglob("*") if path.is_symlink()]) == len(rows)


def test_photos_that_moved_are_looked_for_beside_the_table_and_where_input_says(
    made: Path, place: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.rename(made.with_name("away"))  # the job read them there; its table has moved along with a copy
    try:
        assert again("--copy-to", "sorted") == 0
        assert "1 left out" in capsys.readouterr().out
        (place / "in").rename(place / "elsewhere")
        with pytest.raises(DataError, match=r"the photos of out\.csv, such as 0001\.jpg, are not in in; give --input"):
            again("--copy-to", "again")
        assert not Path("again").exists()
        assert again("--copy-to", "again", "--input", "elsewhere", "--report") == 0
        assert tree(place / "sorted") == tree(place / "again")
        assert "data:image/jpeg" in Path("out.html").read_text()
        with pytest.raises(UsageError, match="lies in the input folder"):
            again("--copy-to", "elsewhere/x", "--input", "elsewhere")
    finally:
        made.with_name("away").rename(made)


def test_a_table_that_a_person_changed_is_taken_as_it_is_and_gets_no_papers(place: Path, capsys) -> None:
    text = Path("out.csv").read_text().replace(",unsure,", ",ok,")
    Path("out.csv").write_text(text)
    assert again("--copy-to", "sorted", "--output", "new.csv") == 0
    assert "changed since" in capsys.readouterr().err
    assert not Path("sorted/_unsure").exists()
    assert not Path("new.json").exists()
    Path("out.json").unlink()
    with pytest.raises(UsageError, match=r"--min-prob auto: out\.json names no threshold"):
        again("--min-prob", "auto", "--copy-to", "x")
    with pytest.raises(DataError, match=r"the photos of out\.csv, .* are not in \.; give --input"):
        again("--copy-to", "x")
    assert again("--copy-to", "x", "--input", "in") == 0
    Path("out.csv").write_text(text.replace(",0.", ",0;", 1))
    with pytest.raises(DataError, match=r"out\.csv: prob of .* is '0;\d+', expected a number"):
        again("--min-prob", "0.5", "--copy-to", "y", "--input", "in")


@pytest.mark.parametrize(
    ("words", "prob"),
    [("--output x.jsonl", "0;5"), ("--output x.csv", "nan"), ("--report --input in", "prob"),
     ("--report --input in", "inf"), ("--report --input in", "-1"), ("--copy-to x --input in", "50%")],
)  # fmt: skip
def test_a_probability_that_is_none_is_named_whatever_is_written(place: Path, words: str, prob: str) -> None:
    rows = list(read_rows(Path("out.csv")))
    changed = next(row for row in rows if row["status"] == "ok")
    path, changed["prob"] = changed["path"], prob
    with open("out.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(changed))
        table.writeheader()
        table.writerows(rows)
    with pytest.raises(DataError, match=rf"out\.csv: prob of {path} is '{prob}', expected a number from 0 to 1"):
        again(*words.split())


def test_lines_of_json_may_leave_out_what_is_empty(place: Path) -> None:
    rows = [{"path": "a", "status": "ok", "label": "x", "class": "y", "prob": 0.5}, {"path": "b", "class": "y"}]
    Path("some.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(parse(PredictConfig, ["--from", "some.jsonl", "--output", "some.csv", "--min-prob", "0.6"])) == 0
    wanted = ["path,status,label,class,prob", "a,unsure,x,y,0.500000", "b,,,y,"]
    assert Path("some.csv").read_text().split() == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "nothing to write; add --output, --copy-to, --link-to or --report"),
        ("--output out.csv", "is the table that --from reads"),
        ("--output a.csv --tta flip --embeddings a.npy", "without the network: leave out --tta, --embeddings"),
        ("--output a.csv --checkpoint x", "leave out --checkpoint"),
        ("--update --output a.csv", "leave out --update"),
        ("--output a.csv --input in", "--input: --from looks at photos for --copy-to"),
        ("--columns path --copy-to x", "--columns: about the new table; add --output"),
        ("--output a.csv --columns path,blue", "--columns: got blue, expected some of path,status"),
        ("--output in.csv", "in.csv was there before, and is not known"),
        ("--output thin.csv --columns path,status,class", ""),
    ],
)
def test_what_does_not_fit_is_one_line(place: Path, words: str, message: str) -> None:
    Path("in.csv").write_text("mine")
    if message:
        with pytest.raises(FlowersError, match=message):
            again(*words.split())
        assert Path("in.csv").read_text() == "mine"
        return
    assert again(*words.split()) == 0
    with pytest.raises(DataError, match=r"--min-prob: thin\.csv has no column prob"):
        main(parse(PredictConfig, ["--from", "thin.csv", "--min-prob", "0.5", "--output", "x.csv"]))
    with pytest.raises(OutputError, match=r"min_prob: 0\.7 then, 0\.5 now"):
        again("--min-prob", "0.5", *words.split())
    assert again("--min-prob", "0.5", *words.split(), "--overwrite") == 0
    assert again("--min-prob", "0.5", *words.split()) == 0, "once more: the same"
    Path("out.html").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.html was there before, and is not known to be this job's"):
        again("--report")
    assert again("--report", "--overwrite") == 0
    assert again("--report") == 0, "it is ours now"
    with pytest.raises(UsageError, match="from_table: predict_folder runs a model"):
        predict_folder(PredictConfig(from_table=Path("out.csv"), output=Path("a.csv")))


def test_a_start_that_was_killed_halfway_leaves_the_way_free(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("flowers.prediction.from_table.put_in_place", die)
        again("--min-prob", "0.5", "--output", "new.csv")
    assert again("--min-prob", "0.5", "--output", "new.csv") == 0
    assert not list(place.glob(".*"))
