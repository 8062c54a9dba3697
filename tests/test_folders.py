"""Classes and splits: the same index everywhere, mapped by name; what is no data set is refused in one line."""

import dataclasses
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from odd_files import ODD_NAMES
from trees import as_nobody, images, load, touch

from flowers import console
from flowers.config.train import TrainConfig
from flowers.data.choice import Choice
from flowers.data.folders import ClassIndex, Samples, load_split
from flowers.data.layout import find_splits, holds_classes
from flowers.data.paths import PathList
from flowers.data.scan import scan_images
from flowers.errors import DataError
from flowers.training import session


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(console, "warn", told.append)
    return told


class TestClasses:
    def test_index_is_that_of_the_folder_names_as_strings(self, tmp_path: Path):
        touch(tmp_path, *(f"train/{number}/a.jpg" for number in (1, 2, 10, 100, 11)), "valid/2/b.jpg", "test/11/c.jpg")
        found = load(tmp_path)
        assert found.classes.folders == ("1", "10", "100", "11", "2")
        assert found.valid.targets.tolist() == [4], "valid/ lacks classes; what it has is mapped by name"
        assert found.test.targets.tolist() == [3]
        assert found.test.full_path(0) == str(tmp_path / "test/11/c.jpg")
        assert found.train.targets.dtype == np.int64

    def test_every_image_has_the_class_of_its_folder(self, sample_set: Path):
        found = load(sample_set)
        for samples in (found.train, found.valid, found.test):
            assert len(samples) > 0
            for index, path in enumerate(samples.paths):
                assert path.split("/")[1] == found.classes.folders[samples.targets[index]]
                assert os.path.isfile(samples.full_path(index))
            assert list(samples.paths) == sorted(samples.paths, key=os.fsencode)

    def test_real_set(self, flowers102: Path):
        found = load(flowers102)
        assert (len(found.train), len(found.valid), found.test) == (2040, 818, None)
        assert len(found.classes) == 102
        assert found.classes.class_to_idx["100"] == 2
        assert found.classes.labels[2] == "blanket flower"

    def test_images_below_class_folders_count_and_hidden_ones_do_not(self, tmp_path: Path, warnings: list[str]):
        touch(tmp_path, "train/a/1.jpg", "train/a/deep/2.jpg", "train/b/3.jpg", "train/b/.4.jpg")
        touch(tmp_path, "train/.ipynb_checkpoints/5.jpg", "train/stray.jpg", "train/b/notes.txt")
        found = load(tmp_path, val_fraction=0)
        assert list(found.train.paths) == ["train/a/1.jpg", "train/a/deep/2.jpg", "train/b/3.jpg"]
        assert found.train.targets.tolist() == [0, 0, 1]
        assert warnings == [f"{tmp_path}/train: 1 image lies in no class folder, left out"]

    def test_a_train_folder_that_can_be_listed_no_more_is_one_line(self, tmp_path: Path, monkeypatch):
        touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "valid/a/3.jpg")

        def fail(root: Path, *rest: object, **options: object) -> Iterator[str]:
            if root.name == "train":
                raise DataError("train: no permission to list this folder")
            yield from scan_images(root, *rest, **options)

        monkeypatch.setattr("flowers.data.layout.scan_images", fail)
        with pytest.raises(DataError, match="train: no permission to list this folder$"):
            load(tmp_path)

    def test_odd_class_names(self, tmp_path: Path):
        names = sorted(os.fsdecode(name) for name in ODD_NAMES)
        touch(tmp_path, *(f"{split}/{name}/a b.jpg" for split in ("train", "val") for name in names))
        found = load(tmp_path)
        assert found.classes.folders == tuple(names)
        assert sorted(found.valid.targets.tolist()) == list(range(len(names)))

    def test_val_means_valid(self, tmp_path: Path):
        touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg")
        assert list(load(tmp_path).valid.paths) == ["val/b/3.jpg"]

    @pytest.mark.parametrize("name", ["val", "validation", "eval", "dev"])
    def test_usual_names_of_the_validation_split(self, name: str, tmp_path: Path):
        touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", f"{name}/a/3.jpg", f"{name}/b/4.jpg", "testing/b/5.jpg")
        found = load(tmp_path)
        assert list(found.valid.paths) == [f"{name}/a/3.jpg", f"{name}/b/4.jpg"]
        assert list(found.test.paths) == ["testing/b/5.jpg"]
        assert list(load_split(tmp_path, "valid", found.classes).paths) == list(found.valid.paths)

    def test_a_class_of_one_tree_may_be_called_like_a_split(self, tmp_path: Path):
        touch(tmp_path, *(f"{name}/{index}.jpg" for name in ("dev", "rose") for index in range(5)))
        assert load(tmp_path).classes.folders == ("dev", "rose")

    def test_what_is_not_used_is_named(self, tmp_path: Path, warnings: list[str]):
        touch(
            tmp_path,
            "train/a/1.jpg",
            "train/b/2.jpg",
            "valid/a/1.jpg",
            "valid/b/1.jpg",
            "holdout/a/1.jpg",
            "docs/x.jpg",
        )
        load(tmp_path)
        assert warnings == [f"{tmp_path}: not used, no name of a split: holdout"]

    def test_classes_without_images_in_a_split_are_named(self, tmp_path: Path, warnings: list[str]):
        touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "valid/a/1.jpg", "test/b/1.jpg")
        load(tmp_path)
        assert warnings == [
            f"{tmp_path}/valid: no images of 1 of 2 classes: b",
            f"{tmp_path}/test: no images of 1 of 2 classes: a",
        ]

    def test_a_drawn_split_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        load(touch(tmp_path, *(f"train/{name}/{index}.jpg" for name in "ab" for index in range(5))), seed=3)
        said = " ".join(capsys.readouterr().out.split())
        assert "2 images drawn from train (--val-fraction 0.2, --seed 3)" in said

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            ([], "no train/ folder"),
            (["photo.jpg"], "no train/ folder"),
            (["valid/a/1.jpg"], r"no train/ folder \(found: valid\)"),
            (["set/train/a/1.jpg", "set/train/b/1.jpg"], "no train/ folder"),
            (["train/photo.jpg"], "train: no classes"),
            (["train/a/1.jpg"], r"train: only one class \(a\)"),
            (["train/a/1.jpg", "train/b/1.jpg", "train/c/no.txt", "train/d/no.txt"], "no images in c, d"),
            (["train/a/1.jpg", "train/b/1.jpg", "valid/c/1.jpg"], "valid: c not among the 2 classes"),
            (["train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg"], "test: c not among the 2 classes"),
            (["train/a/1.jpg", "train/b/1.jpg", "valid/a/no.txt"], "valid: no images"),
            (["train/a/1.jpg", "train/b/1.jpg", "valid/a/1.jpg", "val/a/1.jpg"], "there is .*valid, too; keep one"),
            (["train/a/1.jpg", "train/b/1.jpg", "train.csv"], r"there is .*train\.csv, too"),
            (["train/a/1.jpg", "train/b/1.jpg"], "one image a class, none to hold out"),
        ],
    )
    def test_what_is_no_data_set(self, names: list[str], expected: str, tmp_path: Path):
        touch(tmp_path, *names)
        with pytest.raises(DataError, match=expected) as error:
            load(tmp_path)
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)

    def test_a_staged_copy_is_read_in_the_place_of_the_given_path(self, tmp_path: Path, monkeypatch):
        names = [f"train/{name}/{index}.jpg" for name in "ab" for index in range(5)]
        given, copy = touch(tmp_path / "given", "other/a/1.jpg"), touch(tmp_path / "copy", *names)
        monkeypatch.setenv("FLOWERS_STAGED", str(given))
        monkeypatch.setenv("FLOWERS_STAGED_COPY", str(copy))
        monkeypatch.chdir(tmp_path)
        data = load(Path("given"))
        assert (data.train.root, len(data.train), len(data.valid)) == (copy, 8, 2)
        assert len(load_split(Path("given"), "train", data.classes)) == 10
        with pytest.raises(DataError, match="no such folder or list file"):
            load(tmp_path / "none")

    def test_no_such_folder(self, tmp_path: Path):
        with pytest.raises(DataError, match="no such folder or list file"):
            load(tmp_path / "none")

    def test_unreadable_class_folder(self, warnings: list[str]):
        with as_nobody() as folder:
            root = touch(folder, "train/a/1.jpg", "train/b/1.jpg")
            (root / "train/b").chmod(0)
            try:
                with pytest.raises(DataError, match="no images in b"):
                    load(root)
                assert warnings == [f"{root}/train/b: no permission to list this folder; its images are left out"]
            finally:
                (root / "train/b").chmod(0o755)

    def test_an_unreadable_folder_is_one_of_unreadable_images(self, capsys: pytest.CaptureFixture):
        """Figures over the rest would look as those over all."""
        with as_nobody() as folder:
            root = touch(folder, *(f"{split}/{name}/1.jpg" for split in ("train", "valid") for name in "ab"))
            (root / "valid/b").chmod(0)
            config = TrainConfig(data_dir=root, output_dir=folder / "run", workers=0)
            try:
                with pytest.raises(DataError, match="some folders cannot be read"):
                    session._list_images(config)
                found = session._list_images(dataclasses.replace(config, on_bad_image="skip"))
                assert len(found.valid) == 1
            finally:
                (root / "valid/b").chmod(0o755)
        assert "1 unreadable folder" in capsys.readouterr().out


class TestClassNames:
    @pytest.fixture
    def data_dir(self, tmp_path: Path) -> Path:
        return touch(tmp_path, "train/1/a.jpg", "train/2/a.jpg", "valid/1/a.jpg", "valid/2/a.jpg")

    def test_default_file(self, data_dir: Path):
        assert load(data_dir).classes.labels == ("1", "2")
        (data_dir / "cat_to_name.json").write_text('{"2": "tulip", "1": "rose", "3": "not here"}')
        assert load(data_dir).classes.labels == ("rose", "tulip")
        assert load(data_dir).classes.folders == ("1", "2")

    def test_given_file(self, data_dir: Path, tmp_path: Path):
        (tmp_path / "names.json").write_text(
            json.dumps({"1": "r\N{LATIN SMALL LETTER O WITH DIAERESIS}slein, wild", "2": "x"})
        )
        found = load(data_dir, class_names=tmp_path / "names.json")
        assert found.classes.labels[0] == "r\N{LATIN SMALL LETTER O WITH DIAERESIS}slein, wild"

    def test_missing_names_are_told(self, data_dir: Path, warnings: list[str]):
        (data_dir / "cat_to_name.json").write_text('{"1": "rose"}')
        assert load(data_dir).classes.labels == ("rose", "2")
        assert warnings == [f"{data_dir}/cat_to_name.json: no name for 2; the folder's name is shown"]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [("{", "not JSON"), ("[1]", "expected"), ('{"1": 5}', "expected"), ('{"7": "x"}', "names none of the classes")],
    )
    def test_broken_file(self, content: str, expected: str, data_dir: Path, tmp_path: Path):
        (tmp_path / "names.json").write_text(content)
        with pytest.raises(DataError, match=rf"names\.json: .*{expected}"):
            load(data_dir, class_names=tmp_path / "names.json")

    def test_missing_file(self, data_dir: Path):
        with pytest.raises(DataError, match="cannot be read: no such file"):
            load(data_dir, class_names=data_dir / "none.json")


class TestLoadSplit:
    def test_maps_by_name_through_the_model(self, tmp_path: Path):
        touch(tmp_path, "test/10/a.jpg", "test/2/b.jpg")
        classes = ClassIndex(("1", "10", "2"), ("one", "ten", "two"))
        samples = load_split(tmp_path, "test", classes)
        assert samples.targets.tolist() == [1, 2]
        assert list(samples.paths) == ["test/10/a.jpg", "test/2/b.jpg"]

    def test_says_what_is_wrong(self, tmp_path: Path):
        touch(tmp_path, "test/rose/a.jpg", "valid/tulip/a.txt")
        classes = ClassIndex(("tulip", "x"), ("tulip", "x"))
        with pytest.raises(DataError, match="test: rose not among the 2 classes"):
            load_split(tmp_path, "test", classes)
        with pytest.raises(DataError, match=r"no split 'train' \(found: test, valid\)"):
            load_split(tmp_path, "train", classes)
        with pytest.raises(DataError, match=r"no split 'holdout' \(found"):
            load_split(tmp_path, "holdout", classes)
        with pytest.raises(DataError, match="valid: no images"):
            load_split(tmp_path, "val", classes)
        with pytest.raises(DataError, match="no such folder"):
            load_split(tmp_path / "none", "test", classes)

    def test_take_keeps_paths_and_targets_together(self):
        samples = Samples(Path("/d"), PathList(["a", "b", "c"]), np.array([5, 6, 7]))
        taken = samples.take([2, 0])
        assert (list(taken.paths), taken.targets.tolist(), len(taken)) == (["c", "a"], [7, 5], 2)


SYSTEM = ["@eaDir/a.jpg/SYNOPHOTO.jpg", "#recycle/1.jpg", "lost+found/2.jpg", "__MACOSX/3.jpg", "$RECYCLE.BIN/4.jpg"]


@pytest.mark.parametrize("where", ["train/", ""])
def test_folders_of_disks_and_archives_are_no_classes(where: str, tmp_path: Path, capsys) -> None:
    names = images(("rose", 3), ("tulip", 3))
    touch(tmp_path, *(where + name for name in [*names, *SYSTEM, "System Volume Information/5.jpg"]))
    touch(tmp_path, f"{where}rose/@eaDir/1.jpg", f"{where}rose/.ipynb_checkpoints/1.jpg", f"{where}rose/a.psd")
    data = load(tmp_path, val_fraction=0)
    assert data.classes.folders == ("rose", "tulip")
    assert len(data.train) == 6
    said = " ".join(capsys.readouterr().out.split())
    for kind in ("2 in @eaDir", "1 in #recycle", "1 in lost+found", "1 hidden", "1 .psd"):
        assert kind in said
    assert "9 files left out" in said


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("Rose", "rose", "'Rose' and 'rose'"),
        ("rose", "rose ", "'rose' and 'rose '"),
        ("1", "01", "'01' and '1'"),
        ("caf\u00e9", "cafe\u0301", "'cafe\u0301' (U+0301) and 'caf\u00e9' (U+00E9)"),
    ],
)
def test_class_folders_that_are_one_are_named(one: str, other: str, said: str, tmp_path: Path, warnings) -> None:
    touch(tmp_path, *images((f"train/{one}", 2), (f"train/{other}", 2), ("train/tulip", 2)))
    assert len(load(tmp_path, val_fraction=0).classes) == 3, "they stay classes, since they may be meant"
    assert [said in text for text in warnings] == [True]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (("*_small.jpg",), ["train/rose/1.jpg", "train/rose/old/2.jpg", "train/tulip/3.jpg"]),
        (("old", "tulip"), ["train/rose/1.jpg", "train/rose/1_small.jpg"]),
        (("train/rose/old/*",), ["train/rose/1.jpg", "train/rose/1_small.jpg", "train/tulip/3.jpg"]),
    ],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_excluded_files_and_folders(exclude: tuple[str, ...], left: list[str], as_list: bool, tmp_path: Path) -> None:
    names = ["train/rose/1.jpg", "train/rose/1_small.jpg", "train/rose/old/2.jpg", "train/tulip/3.jpg"]
    touch(tmp_path, *names)
    (tmp_path / "list.csv").write_text("path,class\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))
    choice = Choice(exclude=exclude)
    _, splits = find_splits(tmp_path / "list.csv" if as_list else tmp_path, choice)
    assert [path for path, _ in splits["train"].images] == left
    assert choice.left_out == {"excluded": 4 - len(left)}


@pytest.mark.parametrize("times", [1, 9])
def test_a_split_whose_disk_does_not_answer_is_not_left_out(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without valid/ a share of train/ would be held out, and nobody would notice."""
    touch(tmp_path, "train/rose/1.jpg", "valid/rose/2.jpg")
    stat, asked = os.stat, []

    def stale(path: object, **options: object) -> os.stat_result:
        if path == tmp_path / "valid" and len(asked) < times:
            asked.append(path)
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", stale)
    monkeypatch.setattr("flowers.retries.WAITS_S", (0.001, 0.001))
    if times == 1:
        assert set(find_splits(tmp_path, Choice())[1]) == {"train", "valid"}
    else:
        with pytest.raises(DataError, match="valid: cannot be read: stale file handle"):
            find_splits(tmp_path, Choice())


@pytest.mark.parametrize(
    ("folder", "holds"),
    [("D/train", True), ("D/eval/../train", True), ("flat", True), ("D", False), ("D/valid", False), ("flat/a", False)],
)
def test_where_a_folder_would_become_a_class(folder: str, holds: bool, tmp_path: Path) -> None:
    touch(tmp_path, "D/train/a/1.jpg", "D/eval/a/1.jpg", "D/valid/x.tar", "flat/a/1.jpg")
    data = tmp_path / folder.partition("/")[0]
    assert holds_classes(tmp_path / folder, data) is holds
    assert not holds_classes(tmp_path / "not there", data)
