"""Corrected labels: one small file for training, evaluation and the check, kept with the run; photos stay."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from trees import load, touch

from flowers.cli import parse
from flowers.config.evaluate import EvaluateConfig
from flowers.config.prepare import PrepareConfig
from flowers.config.train import TrainConfig
from flowers.data.corrections import read_corrections
from flowers.data.folders import load_split
from flowers.errors import CheckpointError, DataError, UsageError
from jobs.evaluate import main as evaluate
from jobs.prepare import main as prepare
from jobs.train import main as train

TINY = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 32, "-j", 0, "--epochs", 1, "--no-report"]


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["path,class", *rows, ""]), encoding="utf-8")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    touch(folder, *(f"train/{name}/{index}.jpg" for name in ("rose", "tulip") for index in range(4)))
    touch(folder, "valid/rose/a.jpg", "valid/tulip/b.jpg", "valid/tulip/c.jpg", "test/rose/d.jpg", "test/rose/e.jpg")
    return folder


class TestListing:
    def test_classes_change_and_images_go_in_every_split(self, tree: Path, tmp_path: Path, capsys) -> None:
        rows = ("train/rose/0.jpg,tulip", "train/tulip/1.jpg,-", "valid/tulip/c.jpg,rose", "test/rose/d.jpg,-")
        found = load(tree, corrections=read_corrections(write(tmp_path / "c.csv", *rows)))
        assert found.train.paths == [f"train/rose/{i}.jpg" for i in range(4)] + [
            f"train/tulip/{i}.jpg" for i in (0, 2, 3)
        ]
        assert found.train.targets.tolist() == [1, 0, 0, 0, 1, 1, 1]
        assert found.valid.targets.tolist() == [0, 1, 0]
        assert found.test.paths == ["test/rose/e.jpg"]
        assert "2 labels changed, 2 images left out" in capsys.readouterr().out
        assert (tree / "train/tulip/1.jpg").exists()

    def test_a_list_file_and_one_split_of_it(self, tree: Path, tmp_path: Path) -> None:
        listed = tree / "all.csv"
        rows = ["train/rose/0.jpg,rose,train", "train/tulip/0.jpg,tulip,train", "valid/rose/a.jpg,rose,valid"]
        listed.write_text("\n".join(["path,class,split", *rows]))
        corrections = read_corrections(write(tmp_path / "c.csv", "valid/rose/a.jpg,tulip", "train/rose/0.jpg,tulip"))
        classes = load(tree).classes
        assert load_split(listed, "valid", classes, corrections=corrections).targets.tolist() == [1]

    def test_a_drawn_split_holds_images_that_are_left_out_later(self, tree: Path, tmp_path: Path) -> None:
        shutil.rmtree(tree / "valid")
        drawn = load(tree, split_file=tmp_path / "split.json")
        file = write(tmp_path / "c.csv", f"{drawn.valid.paths[0]},-")
        found = load_split(tree, "valid", drawn.classes, tmp_path / "split.json", read_corrections(file))
        assert found.paths == drawn.valid.paths[1:]

    def test_odd_names_come_back(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/a b/x,1.jpg", "train/-/2.jpg", "train/-/3.jpg", "train/c\\d/ü.jpg", "train/c\\d/4.jpg")
        rows = (r'"train/a b/x,1.jpg",\x2d', r"train/c\\d/ü.jpg,a b", "train/-/2.jpg,-")
        corrections = read_corrections(write(tmp_path / "c.csv", *rows))
        corrections.save(tmp_path / "again.csv")
        again = read_corrections(tmp_path / "again.csv")
        assert again.classes == corrections.classes
        assert again.digest == corrections.digest
        found = load(tmp_path, val_fraction=0, corrections=again)
        named = {
            path: found.classes.folders[target]
            for path, target in zip(found.train.paths, found.train.targets, strict=True)
        }
        assert named == {
            "train/a b/x,1.jpg": "-", "train/-/3.jpg": "-", "train/c\\d/4.jpg": "c\\d", "train/c\\d/ü.jpg": "a b",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (
                ["train/rose/9.jpg,tulip"],
                r"c\.csv: train/rose/9\.jpg not among the images of .*data; remove these",
            ),
            (["train/rose/0.jpg,lily"], r"c\.csv: lily not among the 2 classes of .*train; for a new class, make its"),
            (["train/rose/0.jpg,tulip", "train/rose/0.jpg,-"], r"line 3: train/rose/0\.jpg is corrected twice"),
            (["train/rose/0.jpg,"], r"line 2: got class '', expected a class, or - to leave the image out"),
            (["train/rose/0.jpg"], "got 1 cells, expected 2"),
            ([f"train/rose/{index}.jpg,-" for index in range(4)], "no images in rose; add some, or remove the folder"),
        ],
    )
    def test_what_does_not_fit_is_named(self, rows: list[str], message: str, tree: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=message):
            load(tree, corrections=read_corrections(write(tmp_path / "c.csv", *rows)))

    def test_other_columns(self, tmp_path: Path) -> None:
        (tmp_path / "c.csv").write_text("given,class,path\nrose,tulip,train/rose/0.jpg\n")
        assert read_corrections(tmp_path / "c.csv").classes == {"train/rose/0.jpg": "tulip"}
        (tmp_path / "c.csv").write_text("path,label\ntrain/rose/0.jpg,tulip\n")
        with pytest.raises(DataError, match="columns are path,label, expected path,class"):
            read_corrections(tmp_path / "c.csv")


@pytest.fixture
def data(sample_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_set, tmp_path / "data"))


def parsed(kind: type, *words: object) -> object:
    return parse(kind, [str(word) for word in words])


class TestJobs:
    @pytest.fixture
    def rows(self, data: Path) -> Callable[[], list[str]]:
        one, two, *_ = sorted((data / "train").rglob("*.jpg"))
        three, four, *_ = sorted((data / "test").rglob("*.jpg"))
        other = sorted(folder.name for folder in (data / "train").iterdir())[-1]
        names = [path.relative_to(data).as_posix() for path in (one, two, three, four)]
        return [f"{names[0]},{other}", f"{names[1]},-", f"{names[2]},{other}", f"{names[3]},-"]

    def test_a_run_keeps_them_and_resumes_and_is_measured_with_them(
        self, data: Path, rows: list[str], tmp_path: Path
    ) -> None:
        file, run = write(tmp_path / "c.csv", *rows), tmp_path / "run"
        flags = [*TINY, "--data-dir", data, "--output-dir", run]
        assert train(parsed(TrainConfig, *flags, "--corrections", file)) == 0
        assert read_corrections(run / "corrections.csv").classes == read_corrections(file).classes
        own = json.loads((run / "metrics.json").read_text())["test"]
        assert own["images"] == 15

        with pytest.raises(CheckpointError, match=r"--corrections was 4 \(\w+\), is now None; give --corr"):
            train(parsed(TrainConfig, *flags))
        other = write(tmp_path / "other.csv", *rows[:3])
        with pytest.raises(CheckpointError, match=r"--corrections was 4 \(\w+\), is now 3 \(\w+\); give --corrections"):
            train(parsed(TrainConfig, *flags, "--corrections", other))
        again = write(tmp_path / "moved.csv", *reversed(rows))
        assert train(parsed(TrainConfig, *flags, "--corrections", again)) == 0

        def measured(*more: object) -> dict:
            output = tmp_path / "m.json"
            words = ["--checkpoint", run, "--data-dir", data, "--no-report", "-j", 0, "--output", output, *more]
            assert evaluate(parsed(EvaluateConfig, *words)) == 0
            return json.loads(output.read_text())

        shutil.copy(again, run.parent / "corrections.csv")  # beside the run folder, not of the run
        assert measured()["loss"] == pytest.approx(own["loss"], abs=1e-4)
        assert measured()["images"] == 15
        assert measured("--corrections", other)["images"] == 16
        assert measured("--corrections", write(tmp_path / "none.csv"))["images"] == 16
        (run / "corrections.csv").unlink()  # as of a run that was trained without
        assert measured()["images"] == 16
        shutil.copy(again, run / "corrections.csv")
        (data / "test").rename(tmp_path / "test")
        shutil.copytree(tmp_path / "test", tmp_path / "elsewhere" / "test")
        words = ["--checkpoint", run, "--data-dir", tmp_path / "elsewhere", "--no-report", "-j", 0]
        assert evaluate(parsed(EvaluateConfig, *words)) == 0, "the run's own need not all be there"

    def test_the_check_takes_them(self, data: Path, rows: list[str], tmp_path: Path, capsys) -> None:
        file, output = write(tmp_path / "c.csv", *rows), tmp_path / "check.json"
        assert (
            prepare(parsed(PrepareConfig, "check", "--data-dir", data, "--corrections", file, "--output", output)) == 0
        )
        counts = json.loads(output.read_text())["counts"]["train"]
        assert sorted(counts.values()) == [6, 8, 8, 9]
        with pytest.raises(DataError, match="none/x.jpg not among the images"):
            bad = write(tmp_path / "bad.csv", "none/x.jpg,-")
            prepare(parsed(PrepareConfig, "check", "--data-dir", data, "--corrections", bad))

    def test_a_table_is_scored_with_labels_instead(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="with --predictions, give --labels"):
            parsed(EvaluateConfig, "--predictions", "p.csv", "--corrections", "c.csv")
