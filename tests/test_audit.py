"""The audit: wrong labels come first and right ones are left alone; folds, neighbours and the count of wrong labels."""

import csv
import errno
import functools
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from jobs_in_processes import Job, die
from traps import nothing

from flowers.audit import audit as audit_job
from flowers.audit import held_out
from flowers.audit.held_out import FeatureRows, assign_folds, held_out_probs
from flowers.audit.neighbours import find_neighbours
from flowers.cli import parse
from flowers.config.audit import ApplyConfig, AuditConfig
from flowers.config.train import TrainConfig
from flowers.data import image_cache
from flowers.data.classes import ClassIndex
from flowers.data.folders import Samples
from flowers.errors import DataError, FlowersError, OutputError, UsageError
from flowers.reports.label_errors import LabelCheck, judge
from flowers.stopping import LOOK_EVERY_S
from flowers.training import features
from flowers.training.final_report import check_labels
from flowers.training.linear_head import HeadProblem
from jobs.audit import main as audit
from jobs.train import main as train


def run(data: Path, output: Path, *more: object) -> int:
    model = () if "--checkpoint" in more else ("--model", "efficientnet_lite0")
    words = ["--data-dir", data, "--output-dir", output, "-j", 0, *model, *more]
    return audit(parse(AuditConfig, [str(word) for word in words]))


def rows(output: Path) -> list[dict[str, str]]:
    with open(output / "labels.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_planted_labels_come_first_and_corrections_settle_them(sample_set: Path, tmp_path: Path, capsys) -> None:
    data, output = Path(shutil.copytree(sample_set, tmp_path / "data")), tmp_path / "audit"
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    for photo in sorted((data / "valid").rglob("*.jpg")):  # without valid/, which an audit does not need
        photo.rename(data / "train" / photo.parent.name / f"valid-{photo.name}")
    shutil.rmtree(data / "valid")
    planted = {}
    for split, one, other in (("train", 0, 1), ("test", 2, 3)):
        photo = sorted((data / split / classes[one]).iterdir())[0]
        target = data / split / classes[other] / f"moved & <b>{photo.name}"
        os.rename(photo, target)
        planted[target.relative_to(data).as_posix()] = (classes[other], classes[one])
    (data / "cat_to_name.json").write_text(json.dumps({classes[0]: "\udce9"}))  # as of a folder that is not UTF-8
    twin = sorted((data / "train" / classes[0]).iterdir())[0]
    shutil.copy(twin, data / "test" / classes[0] / "twin.jpg")

    assert run(data, output) == 0
    found = rows(output)
    assert {row["path"]: (row["given"], row["suggested"]) for row in found}.items() >= planted.items()
    assert found[0]["path"] in planted
    assert len(found) <= 6, "of 65, when a class has 16"
    assert [float(row["score"]) for row in found] == sorted((float(row["score"]) for row in found), reverse=True)
    facts = json.loads((output / "audit.json").read_text())
    assert facts["photos"] == 65
    assert 1 <= facts["estimated_wrong"] <= 6, "two, from a dozen photos a class"
    assert facts["near_duplicates"]["across_splits"] >= 1
    assert any("twin.jpg" in path for group in facts["near_duplicates"]["listed"] for path in group["paths"])
    page = (output / "audit.html").read_text()
    assert "<b>" + "moved" not in page
    assert "http://" not in page
    assert "https://" not in page

    capsys.readouterr()
    (output / "folds").mkdir()  # which could not be removed at the end
    assert run(data, output) == 0
    assert "is finished already" in capsys.readouterr().out
    assert not (output / "folds").exists()

    corrections = tmp_path / "corrections.csv"
    (first, (_, right)), (second, _) = planted.items()
    corrections.write_text(f'path,class\n"{first}",{right}\n"{second}",-\n')
    before = (output / "features" / "train.npy").stat().st_mtime_ns
    assert run(data, output, "--corrections", corrections) == 0
    assert not planted.keys() & {row["path"] for row in rows(output)}
    assert (output / "features" / "train.npy").stat().st_mtime_ns == before, "no second pass of the backbone"
    assert json.loads((output / "audit.json").read_text())["photos"] == 64
    corrections.write_text("path,class\nnone.jpg,-\n")
    with pytest.raises(DataError, match="none.jpg not among the images"):
        run(data, output, "--corrections", corrections)


def test_a_report_names_labels_to_check_and_an_audit_takes_the_features_of_the_run(
    sample_set: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The audit leaves out what is excluded, and judges a group by heads that saw none of it."""
    data, folds_made = Path(shutil.copytree(sample_set, tmp_path / "data")), []

    def keep(targets: np.ndarray, same: list[list[int]], folds: int, seed: int) -> np.ndarray:
        folds_made.append(assign_folds(targets, same, folds, seed))
        return folds_made[-1]

    monkeypatch.setattr("flowers.audit.audit.assign_folds", keep)
    other, *_, one = sorted((data / "train").iterdir())
    planted = other / "moved & <b>.jpg"
    os.rename(sorted(one.iterdir())[1], planted)
    photos = sorted(path.relative_to(data).as_posix() for path in (data / "train").rglob("*.jpg"))
    excluded = Path(photos.pop()).name
    number = len([path for path in data.rglob("*.jpg") if path.name != excluded])
    (tmp_path / "groups.csv").write_text("path,group\n" + "".join(f"{path},plant\n" for path in photos[::8]))
    flags = ["--exclude", excluded, "--group", tmp_path / "groups.csv"]
    words = ["--data-dir", data, "--output-dir", tmp_path / "run", "-j", 0, "--model", "efficientnet_lite0", *flags]
    assert train(parse(TrainConfig, [str(word) for word in words])) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    section = page[page.index('<section id="labels">') : page.index('<section id="pairs">')]
    assert "train/" + planted.relative_to(data / "train").as_posix().replace("& <b>", "&amp; &lt;b&gt;") in section
    assert section.count("<figure>") <= 4, "of 31, when a class has 8"
    assert f"--output-dir AUDIT --checkpoint {tmp_path / 'run'}" in section

    capsys.readouterr()
    assert run(data, tmp_path / "audit", *flags, "--checkpoint", tmp_path / "run") == 0
    assert capsys.readouterr().out.count("features of") == 3, "none is computed"
    (folds,) = folds_made
    assert len(folds) == number
    assert len(set(folds[: len(photos) : 8])) == 1, "train comes first"
    assert len(set(folds)) == 5


class TestLabelsOfTheTrainingImages:
    """Judged by features alone: 3 classes, 20 images each, two views of each; and one image of a class of its own."""

    @staticmethod
    def judged(targets: np.ndarray, **settings: object) -> LabelCheck:
        rng = np.random.default_rng(0)
        right = np.append(np.arange(60) % 3, 3)
        features = np.repeat(np.eye(4, 8)[right] * 8 + rng.normal(size=(61, 8)), 2, axis=0).astype(np.float32)
        features[1::2] = 1e3  # another view: not asked about
        problem = HeadProblem(features, np.repeat(targets, 2), 4, (6, 2), views=2, unit_blocks=True)
        config = TrainConfig(data_dir=Path(), **{"optimizer": "lbfgs", **settings})
        train_set = Samples(Path(), [f"{index}.jpg" for index in range(61)], targets)
        data = SimpleNamespace(train=train_set, classes=ClassIndex(tuple("abcd"), ("ant", "bee", "cat", "dog")))
        stop, accelerator = SimpleNamespace(reason=lambda: None), SimpleNamespace(device="cpu")
        stage = SimpleNamespace(config=config, data=data, stop=stop, accelerator=accelerator)
        return check_labels(stage, SimpleNamespace(problem=lambda: problem))

    def test_none_is_wrong(self) -> None:
        assert self.judged(np.append(np.arange(60) % 3, 3)) == LabelCheck(61, 0.0, [])

    def test_two_are(self) -> None:
        targets = np.append(np.arange(60) % 3, 3)
        targets[[7, 30]] = 2, 1
        found = self.judged(targets)
        assert {(item.index, item.given, item.suggested) for item in found.suspicions} == {(7, 2, 1), (30, 1, 0)}
        assert found.suspicions[0].why.startswith("like ")
        assert found.estimated_wrong == pytest.approx(2, abs=0.5)

    def test_too_many_are_left_out(self, monkeypatch) -> None:
        monkeypatch.setattr("flowers.training.final_report.MOST_JUDGED", 61 * 8 * 4 - 1)
        assert self.judged(np.append(np.arange(60) % 3, 3)).left_out == "61 images of 4 classes are too many"
        assert "fit a linear head at once" in self.judged(np.zeros(61, int), optimizer="sgd").left_out


def test_an_audit_that_was_killed_and_stopped_ends_the_same_on_two_processes(sample_set: Path, tmp_path: Path) -> None:
    def start(output: Path, processes: int = 1, trap: Callable | None = None) -> list[int]:
        flags = ["--data-dir", sample_set, "--output-dir", output, "-j", 0, "--model", "timm/test_resnet"]
        flags += ["--weights", "none", "--image-size", 32, "-b", 4]
        job = Job("audit", flags, folder=tmp_path, processes=processes, before=trap, arguments=(str(output),))
        codes = job.wait()
        print(job.output)
        return codes

    whole, output = tmp_path / "whole", tmp_path / "audit"
    assert start(whole, trap=nothing) == [0]
    assert start(output, trap=die_after_a_fold) == [-9]
    kept = {path.name: path.stat().st_mtime_ns for path in (output / "folds").iterdir()}
    assert kept.keys() == {"0.npz"}
    assert start(output, trap=stop_in_a_fold) == [75]
    assert {path.name: path.stat().st_mtime_ns for path in (output / "folds").iterdir()} == kept, "the first is kept"
    assert start(output, processes=2, trap=nothing) == [0, 0]
    assert not (output / "stop").exists()
    for name in ("labels.csv", "audit.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


def die_after_a_fold(output: str) -> None:
    """In a job: SIGKILL before the second fold."""
    judge_fold = audit_job._judge_fold

    def judge_one(path: Path, *arguments: object) -> None:
        judge_fold(path, *arguments)
        die()

    audit_job._judge_fold = judge_one


def stop_in_a_fold(output: str) -> None:
    """In a job: a stop file appears when the next head is being fitted."""
    fit = held_out.fit_linear_head

    def fit_after_request(*arguments: object, **flags: object) -> object:
        (Path(output) / "stop").touch()
        time.sleep(2 * LOOK_EVERY_S)
        return fit(*arguments, **flags)

    held_out.fit_linear_head = fit_after_request


def test_wrong_flags() -> None:
    with pytest.raises(UsageError, match="--folds: got 1, expected at least 2"):
        parse(AuditConfig, ["--data-dir", "d", "--output-dir", "o", "--folds", "1"])
    for flag, value in (("--weights", "w.pth"), ("--model", "resnet18"), ("--image-size", "64")):
        with pytest.raises(UsageError, match=f"{flag}: the network is that of --checkpoint; leave it out"):
            parse(AuditConfig, ["--data-dir", "d", "--output-dir", "o", "--checkpoint", "run", flag, value])


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_are_even_in_every_class_and_groups_stay_whole(seed: int) -> None:
    targets = np.repeat(np.arange(6), 20)
    groups = [[0, 5, 25], [40, 41], [100, 119, 60, 61]]
    folds = assign_folds(targets, groups, 5, seed)
    assert all(len(set(folds[group])) == 1 for group in groups)
    for index in range(6):
        assert np.bincount(folds[targets == index], minlength=5).min() >= 2
    assert np.array_equal(folds, assign_folds(targets, groups, 5, seed))
    with pytest.raises(DataError, match="all 120 photos belong together, by --group or as near-duplicates"):
        assign_folds(targets, [list(range(120))], 5, seed)


def test_a_head_that_never_saw_a_photo_judges_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks as at once: the answer for separable classes, whatever the block."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 90)
    features = (np.eye(3)[targets] * 4 + rng.normal(size=(90, 3))).astype(np.float32)
    features = FeatureRows([features[:20], features[20:]], np.arange(90), (3,))
    held_out = np.arange(90) % 3 == 0
    whole = held_out_probs(features, targets, held_out, 3, "cpu")
    assert (whole.argmax(1) == targets[held_out]).mean() > 0.9
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-5)
    monkeypatch.setattr("flowers.audit.held_out.BLOCK", 5)
    monkeypatch.setattr("flowers.training.linear_head.ROWS", 7)
    monkeypatch.setattr("flowers.training.linear_head.KEPT_BYTES", 0)  # read again at each step
    np.testing.assert_allclose(held_out_probs(features, targets, held_out, 3, "cpu"), whole, atol=1e-3)


def test_the_confident_joint_by_hand() -> None:
    """Thresholds: 0.75 = mean(0.9, 0.6) for class 0, 0.5 = mean(0.8, 0.7, 0.0) for class 1."""
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [1.0, 0.0]], np.float32)
    found = judge(probs, np.array([0, 0, 1, 1, 1]))
    assert found.wrong.tolist() == [False, False, False, False, True]
    np.testing.assert_allclose(found.joint, [[2, 0], [1, 2]], atol=1e-6)
    assert found.best.tolist() == [1, 1, 0, 0, 0]
    np.testing.assert_allclose(found.own, [0.9, 0.6, 0.8, 0.7, 0.0], atol=1e-6)


@pytest.mark.parametrize("plain_up_to", [20_000, 10])
def test_pairs_that_show_the_same(plain_up_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all features, and through few dimensions first."""
    monkeypatch.setattr("flowers.audit.neighbours.PLAIN_UP_TO", plain_up_to)
    monkeypatch.setattr("flowers.audit.neighbours.BLOCK", 64)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 600)).astype(np.float32)
    features[77] = features[3] + 0.05 * rng.normal(size=600)
    features[118] = features[117]
    assert find_neighbours(features, "cpu").pairs.tolist() == [[3, 77], [117, 118]]


def test_a_full_disk_and_a_fold_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch) -> None:
    """The first as a bus error would end the process; the second was a TypeError."""
    config = SimpleNamespace(output_dir=tmp_path, folds=2)
    audited = SimpleNamespace(classes=("a", "b"))
    write = functools.partial(audit_job._write_results, config, audited, np.array([0, 1]), None, "key")
    (tmp_path / "folds").mkdir()
    with pytest.raises(OutputError, match=r"0\.npz: cannot be read; start the same command again"):
        write()
    monkeypatch.setattr(os, "posix_fallocate", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(FlowersError, match=r"probs\.npy: the disk is full"):
        write()


@pytest.mark.parametrize("call", ["features", "fold", "image cache"])
def test_what_an_earlier_start_left_is_read_again_where_the_disk_does_not_tell_once(
    tmp_path: Path, monkeypatch, call: str
) -> None:
    (tmp_path / "pixels.u8").write_bytes(b"abc")
    values = {"features": np.ones(3), "probs": np.ones(3), "key": "k", "size_bytes": 3, "crc32": zlib.crc32(b"abc")}
    np.savez(tmp_path / "index.npz", **values)
    load, errors = np.load, [OSError(errno.ESTALE, "Stale file handle")]

    def failing(*args: object, **options: object) -> object:
        if errors:
            raise errors.pop()
        return load(*args, **options)

    monkeypatch.setattr(np, "load", failing)
    read = {
        "features": lambda: features._load(tmp_path / "index.npz"),
        "fold": lambda: audit_job._load_fold(tmp_path / "index.npz", "k"),
        "image cache": lambda: image_cache._is_whole(tmp_path),
    }[call]
    assert np.all(read())
    assert not errors


class TestApply:
    ROWS = "path,class\ntrain/rose/1.jpg,tulip\ntrain/tulip/2.jpg,-\nvalid/rose/deep/3.jpg,tulip\n"

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        folder = tmp_path / "data"
        paths = [f"train/{name}/{index}.jpg" for name in ("rose", "tulip") for index in range(4)]
        for path in [*paths, "valid/rose/deep/3.jpg", "valid/tulip/a.jpg"]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(path)
        (tmp_path / "c.csv").write_text(self.ROWS)
        return folder

    @staticmethod
    def apply(tree: Path, *more: object) -> int:
        return audit(parse(ApplyConfig, [str(word) for word in ("--data-dir", tree, *more)]))

    @staticmethod
    def contents(folder: Path) -> dict[str, str]:
        files = (path for path in folder.rglob("*") if path.is_file() and path.suffix == ".jpg")
        return {path.relative_to(folder).as_posix(): path.read_text() for path in files}

    def test_moved_and_undone(self, tree: Path, tmp_path: Path) -> None:
        before = self.contents(tree)
        assert self.apply(tree, "--corrections", tmp_path / "c.csv", "--move") == 0
        after = self.contents(tree)
        assert after["train/tulip/1-2.jpg"] == "train/rose/1.jpg", "a photo of that name is never overwritten"
        assert after["train/tulip/1.jpg"] == "train/tulip/1.jpg"
        assert after[".removed/train/tulip/2.jpg"] == "train/tulip/2.jpg"
        assert after["valid/tulip/deep/3.jpg"] == "valid/rose/deep/3.jpg"
        assert sorted(after.values()) == sorted(before.values())
        assert self.apply(tree, "--undo") == 0
        assert self.contents(tree) == before
        assert not (tree / ".removed").exists(), "nor are there classes without photos"
        with pytest.raises(OutputError, match="no journal, so nothing to undo"):
            self.apply(tree, "--undo")
        for name in ("/etc/a.jpg", "../a.jpg", "a\0.jpg"):
            (tree / ".corrections-0001.json").write_text(json.dumps({"moves": [[name, "train/rose/1.jpg"]]}))
            with pytest.raises(OutputError, match="expected paths below"):
                self.apply(tree, "--undo")

    @pytest.mark.parametrize("again", [False, True])
    def test_killed_in_the_middle_and_undone(self, tree: Path, tmp_path: Path, monkeypatch, again: bool) -> None:
        before, rename, calls = self.contents(tree), os.rename, []

        def once(source: object, target: object) -> None:
            calls.append(source)
            if len(calls) > 1:
                raise KeyboardInterrupt
            rename(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("flowers.audit.apply.os.rename", once)
            self.apply(tree, "--corrections", tmp_path / "c.csv", "--move")
        assert self.contents(tree) != before
        (tmp_path / "other.csv").write_text("path,class\ntrain/rose/2.jpg,tulip\n")
        with pytest.raises(OutputError, match="a --move with other corrections was interrupted"):
            self.apply(tree, "--corrections", tmp_path / "other.csv", "--move")
        if again:
            assert self.apply(tree, "--corrections", tmp_path / "c.csv", "--move") == 0
            after = self.contents(tree)
            assert len(after) == len(before)
            assert after["valid/tulip/deep/3.jpg"] == "valid/rose/deep/3.jpg"
            assert self.apply(tree, "--corrections", tmp_path / "other.csv", "--move") == 0
            assert self.apply(tree, "--undo") == 0
        assert self.apply(tree, "--undo") == 0
        assert self.contents(tree) == before

    def test_a_disk_that_gives_no_answer_is_no_photo_that_is_gone(
        self, tree: Path, tmp_path: Path, monkeypatch
    ) -> None:
        before = self.contents(tree)
        assert self.apply(tree, "--corrections", tmp_path / "c.csv", "--move") == 0
        with monkeypatch.context() as patch, pytest.raises(OSError, match="stale"):
            patch.setattr("flowers.retries.WAITS_S", ())
            patch.setattr("flowers.audit.apply.os.lstat", Mock(side_effect=OSError(errno.ESTALE, "stale")))
            self.apply(tree, "--undo")
        assert self.apply(tree, "--undo") == 0
        assert self.contents(tree) == before

    def test_a_move_that_could_not_be_marked_as_finished_is_not_begun_again(
        self, tree: Path, tmp_path: Path, monkeypatch
    ) -> None:
        flags = ["--corrections", tmp_path / "c.csv", "--move"]

        def full(folder: Path) -> None:
            if folder == tree and '"finished": true' in (tree / ".corrections-0001.json").read_text():
                raise OSError(errno.EIO, "I/O error")

        with monkeypatch.context() as patch, pytest.raises(FlowersError, match="cannot write .*corrections-0001"):
            patch.setattr("flowers.files.sync_folder", full)
            self.apply(tree, *flags)
        after = self.contents(tree)
        assert self.apply(tree, *flags) == 0
        assert self.contents(tree) == after

    def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
        self, tree: Path, tmp_path: Path, monkeypatch
    ) -> None:
        """The photos in it would be missing in a copy, and the journal of an earlier move be written over."""
        scandir, listdir, closed = os.scandir, os.listdir, set()

        def refusing(call: Callable) -> Callable:
            def refuse(path: object) -> object:
                if os.fsdecode(path) in closed:
                    raise PermissionError(errno.EACCES, "Permission denied", path)
                return call(path)

            return refuse

        monkeypatch.setattr(os, "scandir", refusing(scandir))
        monkeypatch.setattr(os, "listdir", refusing(listdir))
        flags = ["--corrections", tmp_path / "c.csv"]
        closed.add(str(tree / "valid" / "rose" / "deep"))
        (tmp_path / "c.csv").write_text("path,class\ntrain/rose/1.jpg,tulip\n")
        with pytest.raises(DataError, match="some folders cannot be read"):
            self.apply(tree, *flags, "--copy-to", tmp_path / "copy")
        closed.clear()
        assert self.apply(tree, *flags, "--move") == 0
        closed.add(str(tree))
        with pytest.raises(PermissionError):
            self.apply(tree, "--undo")

    def test_an_undoing_that_was_killed_leaves_no_folder(self, tree: Path, tmp_path: Path, monkeypatch) -> None:
        before, rmdir, calls = self.contents(tree), os.rmdir, []
        assert self.apply(tree, "--corrections", tmp_path / "c.csv", "--move") == 0

        def stale(path: object) -> None:
            calls.append(path)
            if len(calls) == 1:
                raise OSError(errno.ESTALE, "Stale file handle")
            if len(calls) == 2:
                raise KeyboardInterrupt
            rmdir(path)

        monkeypatch.setattr("flowers.audit.apply.os.rmdir", stale)
        with pytest.raises(KeyboardInterrupt):
            self.apply(tree, "--undo")
        assert self.apply(tree, "--undo") == 0
        assert self.contents(tree) == before
        assert not (tree / ".removed").exists()

    def test_copied(self, tree: Path, tmp_path: Path) -> None:
        before, target = self.contents(tree), tmp_path / "copy"
        assert self.apply(tree, "--corrections", tmp_path / "c.csv", "--copy-to", target) == 0
        assert self.contents(tree) == before
        copied = self.contents(target)
        assert len(copied) == len(before) - 1
        assert {copied["train/tulip/1.jpg"], copied["train/tulip/1-2.jpg"]} == {"train/rose/1.jpg", "train/tulip/1.jpg"}
        for place, message in ((target, "is there already"), (tree / "new", "lies in .*data; give a folder outside")):
            with pytest.raises(OutputError, match=message):
                self.apply(tree, "--corrections", tmp_path / "c.csv", "--copy-to", place)
        (tree / "train/rose/gone.jpg").symlink_to("nowhere")
        with pytest.raises(DataError, match=r"rose/gone.jpg: cannot be read: no such file"):
            self.apply(tree, "--corrections", tmp_path / "c.csv", "--copy-to", tmp_path / "other")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["c.csv", "copy", "data"]

    def test_a_folder_of_its_class_name_within_a_class_folder_is_no_class(self, tree: Path, tmp_path: Path) -> None:
        """Where an archive was unpacked into a folder of its name."""
        tree /= "train"
        (tree / "rose" / "rose").mkdir()
        (tree / "rose" / "1.jpg").rename(tree / "rose" / "rose" / "1.jpg")
        (tmp_path / "c.csv").write_text("path,class\nrose/rose/1.jpg,tulip\n")
        flags = ["--corrections", tmp_path / "c.csv"]
        assert self.apply(tree, *flags, "--copy-to", tmp_path / "copy") == self.apply(tree, *flags, "--move") == 0
        for folder in (tree, tmp_path / "copy"):
            assert self.contents(folder)["tulip/rose/1.jpg"] == "train/rose/1.jpg"

    @pytest.mark.parametrize("flags", [[], ["--move", "--undo"], ["--move"]])
    def test_one_thing_at_a_time(self, tree: Path, flags: list[str]) -> None:
        with pytest.raises(UsageError, match="expected one of --move|--corrections is missing"):
            self.apply(tree, *flags)
