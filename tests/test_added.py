"""Photos of predictions tables as further training images: which, with which class, never twice and never held out."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_job
from trees import load, touch

from flowers.cli import parse
from flowers.config.predict import PredictConfig
from flowers.config.train import TrainConfig
from flowers.data.added import add_to_train, read_added
from flowers.data.choice import Choice
from flowers.data.corrections import read_all_corrections, read_corrections
from flowers.data.folders import ImageFolders, load_split
from flowers.data.tables import read_rows
from flowers.errors import CheckpointError, DataError
from flowers.training.session import _list_images
from jobs.predict import main as predict
from jobs.train import main as train

ROWS = ("a.jpg,ok,rose", "below/b.jpg,ok,tulip", "c.jpg,unsure,rose", "d.jpg,unfamiliar,rose", "e.jpg,error,")


def write(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set, and a folder of photos with a table that an earlier version made beside it."""
    splits = (f"data/train/{name}/{index}.jpg" for name in ("rose", "tulip") for index in range(5))
    touch(tmp_path, *splits, "data/test/rose/t.jpg", *(f"in/{row.split(',')[0]}" for row in ROWS))
    facts = {"settings": {}, "output": {}, "counts": {}, "files": 5, "made": {"config": {"input": ["in"]}}}
    (tmp_path / "p.json").write_text(json.dumps(facts))
    write(tmp_path / "p.csv", "path,status,class", *ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def added(*tables: str, corrections: tuple[str, ...] = (), **options: object) -> ImageFolders:
    decided = read_all_corrections([Path(name) for name in corrections])
    read = [read_added(Path(table), Choice(exclude=("*.tmp.jpg",)), decided) for table in tables or ("p.csv",)]
    return add_to_train(load(Path("data"), corrections=decided, **options), read)


def of(data: ImageFolders) -> dict[str, str]:
    """Path and class of the images of train that lie outside the data folder."""
    pairs = zip(data.train.paths, data.train.targets, strict=True)
    return {path: data.classes.folders[target] for path, target in pairs if path.startswith("..")}


def test_photos_of_status_ok_go_to_train_alone(place: Path, capsys: pytest.CaptureFixture) -> None:
    data = added(val_fraction=0.4)
    assert of(data) == {"../in/a.jpg": "rose", "../in/below/b.jpg": "tulip"}
    assert len(data.valid) == 4
    assert not any(path.startswith("..") for path in data.valid.paths)
    assert os.path.samefile(data.train.full_path(len(data.train) - 1), "in/below/b.jpg")
    assert "train: 2 photos added to 6 images" in capsys.readouterr().out
    Path("link").symlink_to("data", target_is_directory=True)
    Path("else/where").mkdir(parents=True)
    shutil.move("data", "else/where/data")
    Path("link").unlink()
    Path("data").symlink_to("else/where/data", target_is_directory=True)
    data = added()
    assert os.path.samefile(data.train.full_path(len(data.train) - 1), "in/below/b.jpg"), "behind a link to the data"


def test_corrections_decide_over_the_table_and_over_the_data(place: Path, capsys: pytest.CaptureFixture) -> None:
    write(place / "page.csv", "path,class", "below/b.jpg,-", "c.jpg,tulip", "d.jpg,rose")
    write(place / "audit.csv", "path,class", "train/rose/0.jpg,-", "train/rose/1.jpg,tulip")
    data = added(corrections=("audit.csv", "page.csv"), val_fraction=0)
    assert of(data) == {"../in/a.jpg": "rose", "../in/c.jpg": "tulip", "../in/d.jpg": "rose"}
    assert len(data.train) == 9 + 3
    assert "2 labels changed, 2 images left out" in capsys.readouterr().out
    rows = [line for name in ("page.csv", "audit.csv") for line in Path(name).read_text().splitlines()[1:]]
    both = write(place / "both.csv", "path,class", *rows)
    assert of(added(corrections=(both.name,), val_fraction=0)) == of(data)


def test_photos_that_the_data_holds_are_not_added(place: Path, capsys: pytest.CaptureFixture) -> None:
    for name, target in (("in/a.jpg", "data/test/rose/t.jpg"), ("in/below/b.jpg", "data/train/rose/0.jpg")):
        Path(name).unlink()
        Path(name).symlink_to(place / target)
    write(place / "more.csv", "path,status,class", "in/c.jpg,ok,rose", "in/./c.jpg,ok,rose")
    data = added("p.csv", "more.csv")
    assert of(data) == {"../in/c.jpg": "rose"}
    assert "1 photo added to 8 images; 2 are in the data set already" in capsys.readouterr().out
    write(place / "c.csv", "path,class", "train/rose/0.jpg,-")
    assert of(added(corrections=("c.csv",))) == {}, "what was left out of the data does not come back"
    write(place / "c.csv", "path,class", "below/b.jpg,-")
    with pytest.raises(DataError, match=r"below/b\.jpg of --add p\.csv is train/rose/0\.jpg of the data set; correct"):
        added(corrections=("c.csv",))


def test_what_is_wrong_with_groups_is_said_once_with_the_added_photos(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    config = TrainConfig(Path("data"), Path("run"), add=(Path("p.csv"),), group=(r"(?:t|b|[01])\.jpg",))
    data = _list_images(config)
    assert set(data.splits) == {"train", "valid", "test"}
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("images are in no group") == 1
    assert "7 of 13 images are in no group" in told
    write(place / "g.csv", "path,group", "train/rose/0.jpg,day", "test/rose/t.jpg,night", "../in/a.jpg,night")
    _list_images(dataclasses.replace(config, group=("g.csv",)))
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("groups that are in train, too") == told.count("images are in no group") == 1


@pytest.mark.parametrize(
    ("rows", "corrected", "message"),
    [
        (
            ["a.jpg,ok,lily", "c.jpg,ok,iris"],
            "",
            r"p\.csv: iris, lily not among the 2 classes of the data set; for",
        ),
        (["a.jpg,ok,rose", "gone.jpg,ok,rose"], "", r"p\.csv: gone\.jpg not there, or in an archive; renew the table"),
        (["gone.jpg,ok,rose"], "", r"p\.csv: the photos, such as gone\.jpg, are not in in; move them back"),
        (["https://h/a.jpg,ok,rose"], "", r"https://h/a\.jpg is an address; download"),
        (["c.jpg,unsure,rose"], "", "no row has status ok or a corrected class"),
        (["a.jpg,ok,rose"], "a.jpg,lily", r"c\.csv: lily not among the 2 classes"),
        (["a.jpg,ok,rose"], "x.jpg,rose", r"c\.csv: x\.jpg not among the images"),
        (["train/rose/0.jpg,ok,rose"], "train/rose/0.jpg,tulip", r"train/rose/0\.jpg means several photos"),
    ],
)
def test_what_does_not_fit_is_named(place: Path, rows: list[str], corrected: str, message: str) -> None:
    touch(place, "in/train/rose/0.jpg")
    write(place / "p.csv", "path,status,class", *rows)
    write(place / "c.csv", "path,class", *filter(None, [corrected]))
    with pytest.raises(DataError, match=message):
        added(corrections=("c.csv",))


def test_two_tables_must_agree(place: Path) -> None:
    write(place / "q.csv", "path,status,class", "in/a.jpg,ok,tulip")
    with pytest.raises(DataError, match=r"add q\.csv: in/a\.jpg is of class tulip, and rose in --add p\.csv; decide"):
        added("p.csv", "q.csv")
    write(place / "c.csv", "path,class", "in/a.jpg,rose")
    assert of(added("p.csv", "q.csv", corrections=("c.csv",)))["../in/a.jpg"] == "rose"
    write(place / "d.csv", "path,class", "in/a.jpg,tulip")
    with pytest.raises(DataError, match=r"d\.csv: in/a\.jpg has the class tulip, and rose in an earlier file"):
        added("p.csv", "q.csv", corrections=("c.csv", "d.csv"))
    touch(place, "a.jpg")
    write(place / "q.csv", "path,status,class", "a.jpg,ok,tulip")
    write(place / "c.csv", "path,class", "a.jpg,rose")
    with pytest.raises(DataError, match=r"a\.jpg means several photos"):
        added("p.csv", "q.csv", corrections=("c.csv",))


def test_a_table_of_a_job_becomes_training_images_of_a_run_that_resumes(sample_set: Path, tmp_path: Path) -> None:
    data, photos, every, table = (tmp_path / name for name in ("data", "photos", "every.csv", "p.csv"))
    shutil.copytree(sample_set, data)
    shutil.move(data / "valid", photos)
    drawn = load(data)
    bundle = tiny_job.make_bundle(tmp_path / "model", drawn.classes)
    predict(PredictConfig(checkpoint=bundle, input=photos, output=every, engine="torch", workers=1))
    median = sorted(float(row["prob"]) for row in read_rows(every))[8]
    predict(PredictConfig(from_table=every, min_prob=median, output=table))
    ok, unsure = ([row for row in read_rows(table) if row["status"] == status] for status in ("ok", "unsure"))
    assert len(ok) == len(unsure) == 8
    changed = f"{ok[0]['path']},-", f"{unsure[0]['path']},{ok[0]['class']}"
    corrections = write(tmp_path / "c.csv", "path,class", *changed)

    run = tmp_path / "run"
    tiny = "--model timm/test_resnet --weights none --image-size 32 -j 0 -b 8 --no-report"
    words = [*tiny.split(), "--data-dir", data, "--output-dir", run, "--corrections", corrections]
    assert train(parse(TrainConfig, [*map(str, words), "--add", str(table)])) == 0
    split = json.loads((run / "split.json").read_text())
    assert (split["train"], split["valid"]) == (list(drawn.train.paths), list(drawn.valid.paths))
    kept = parse(TrainConfig, ["--config", str(run / "config.yaml")])
    assert (kept.add, kept.corrections) == ((table,), (corrections,))
    with pytest.raises(CheckpointError, match=r"train images was 32 .*, is now 39 .* the data or --add changed since"):
        train(parse(TrainConfig, [*map(str, words), "--add", str(every)]))
    own = read_corrections(run / "corrections.csv", of_other_data=True)
    measured = load_split(data, "train", drawn.classes, run / "split.json", own)
    assert measured.paths == drawn.train.paths, "evaluation knows the run's corrections, and nothing of the added ones"


def test_no_photo_of_the_run_is_named_by_a_path_of_this_machine(place: Path) -> None:
    """Data and photos that move together stay the same data, so that a run resumes."""
    before = added()
    os.chdir(place.parent)
    shutil.move(place, place.with_name("moved"))
    os.chdir(place.with_name("moved"))
    assert added().train.paths == before.train.paths
