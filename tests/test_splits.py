"""The drawn validation split: stratified, fixed by the seed, drawn once."""

import json
from collections import Counter
from pathlib import Path

import pytest
from odd_files import make_odd_names
from trees import images, load, touch

from flowers.data.folders import ImageFolders, load_split
from flowers.data.splits import choose_some
from flowers.errors import DataError, UsageError


class TestDrawnSplit:
    COUNTS = (("a", 1), ("b", 2), ("c", 3), ("d", 10), ("e", 101))

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        return touch(tmp_path / "tree", *images(*self.COUNTS))

    def held_out(self, found: ImageFolders) -> Counter:
        return Counter(found.classes.folders[target] for target in found.valid.targets)

    def test_stratified(self, tree: Path):
        found = load(tree)
        assert self.held_out(found) == {"b": 1, "c": 1, "d": 2, "e": 20}
        assert sorted([*found.train.paths, *found.valid.paths]) == sorted(images(*self.COUNTS))
        assert len(set(found.train.targets)) == len(self.COUNTS), "every class keeps one to train on"
        assert self.held_out(load(tree, val_fraction=0.9)) == {"b": 1, "c": 2, "d": 9, "e": 91}
        assert load(tree, val_fraction=0).valid is None

    def test_same_images_in_train_folder_or_list(self, tree: Path, tmp_path: Path):
        touch(tmp_path / "D", *images(*((f"train/{name}", count) for name, count in self.COUNTS)))
        assert self.held_out(load(tmp_path / "D")) == self.held_out(load(tree))

    def test_depends_on_the_seed_and_on_nothing_else(self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        found = load(tree)
        assert load(tree).valid.paths == found.valid.paths
        assert load(tree, seed=1).valid.paths != found.valid.paths
        moved = tmp_path / "moved"
        touch(moved, *reversed(images(*self.COUNTS)))  # other inodes, another order in the folder
        assert load(moved).valid.paths == found.valid.paths
        # Drawn once and typed in: no new version of a library may draw another one.
        small = [path for path in found.valid.paths if path[0] in "bcd"]
        assert small == ["b/000.jpg", "c/001.jpg", "d/006.jpg", "d/007.jpg"]

    def test_images_of_other_classes_do_not_matter(self, tree: Path):
        before = [path for path in load(tree).valid.paths if path.startswith("d/")]
        touch(tree, *images(("f", 20)))
        assert [path for path in load(tree).valid.paths if path.startswith("d/")] == before

    def test_saved_and_used_again(self, tmp_path: Path):
        tree = tmp_path / "tree"
        make_odd_names(tree / "a")
        make_odd_names(tree / "b")
        split_file = tmp_path / "run/split.json"
        found = load(tree, split_file=split_file)
        saved = json.loads(split_file.read_text(encoding="utf-8"))
        assert saved["valid"] == list(found.valid.paths)
        one, other = saved["valid"][0], saved["train"][0]
        saved["valid"][0], saved["train"][0] = other, one
        split_file.write_text(json.dumps(saved), encoding="utf-8")
        again = load(tree, split_file=split_file)
        assert sorted(again.valid.paths) == sorted(saved["valid"]), "what the file says holds, whatever would be drawn"
        assert sorted(again.train.paths) == sorted(saved["train"])

    def test_other_ranks_do_not_write(self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        main = load(tree)
        monkeypatch.setenv("RANK", "1")
        other = load(tree, split_file=tmp_path / "split.json")
        assert other.valid.paths == main.valid.paths
        assert not (tmp_path / "split.json").exists()

    def test_refuses_other_data_and_other_flags(self, tree: Path, tmp_path: Path):
        split_file = tmp_path / "split.json"
        load(tree, split_file=split_file)
        with pytest.raises(
            DataError, match=r"drawn with --val-fraction 0\.2 --seed 0, got --val-fraction 0\.2 --seed 1"
        ):
            load(tree, split_file=split_file, seed=1)
        touch(tree, "a/new.jpg")
        with pytest.raises(DataError, match=r"1 new and 0 gone \(such as a/new\.jpg\)"):
            load(tree, split_file=split_file)
        (tree / "a/new.jpg").unlink()
        (tree / "e/000.jpg").unlink()
        with pytest.raises(DataError, match=r"0 new and 1 gone \(such as e/000\.jpg\)"):
            load(tree, split_file=split_file)

    def test_a_split_that_nobody_trained_on_is_drawn_anew(self, tree: Path, tmp_path: Path):
        split_file = tmp_path / "split.json"
        gone = load(tree, split_file=split_file).train.paths[-1]
        (tree / gone).unlink()
        found = load(tree, split_file=split_file, anew=True)
        saved = json.loads(split_file.read_text(encoding="utf-8"))
        assert (saved["train"], saved["valid"]) == (list(found.train.paths), list(found.valid.paths))
        assert gone not in saved["train"]

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": 1, "train": 5}', '{"format_version": 9}'])
    def test_broken_split_file(self, content: str, tree: Path, tmp_path: Path):
        (tmp_path / "split.json").write_text(content)
        with pytest.raises(DataError, match=r"split\.json: (not a split file|format 9, this version reads 1)"):
            load(tree, split_file=tmp_path / "split.json")

    @pytest.mark.parametrize("val_fraction", [-0.1, 1, 20])
    def test_val_fraction_is_a_share(self, val_fraction: float, tree: Path):
        with pytest.raises(UsageError, match="--val-fraction: got"):
            load(tree, val_fraction=val_fraction)

    def test_evaluation_finds_the_drawn_split(self, tree: Path, tmp_path: Path):
        split_file = tmp_path / "split.json"
        found = load(tree, split_file=split_file)
        assert load_split(tree, "val", found.classes, split_file).paths == found.valid.paths
        assert load_split(tree, "train", found.classes, split_file).paths == found.train.paths
        assert len(load_split(tree, "train", found.classes)) == sum(count for _, count in self.COUNTS)
        other = touch(tmp_path / "other", "a/x.jpg", "b/y.jpg")
        assert len(load_split(other, "train", found.classes, split_file)) == 2, "the split is of other data"
        with pytest.raises(DataError, match="lacks 24 images of the split"):
            load_split(other, "valid", found.classes, split_file)
        (tree / found.valid.paths[0]).unlink()
        with pytest.raises(DataError, match="lacks 1 image of the split"):
            load_split(tree, "valid", found.classes, split_file)


class TestTrialRun:
    COUNTS = (("a", 1), ("b", 10), ("c", 30))

    def test_each_class_has_its_share_and_one_at_least(self, tmp_path: Path):
        found = load(touch(tmp_path, *images(*self.COUNTS)), val_fraction=0)
        for most, expected in ((3, [1, 1, 1]), (5, [1, 1, 3]), (21, [1, 5, 15]), (41, [1, 10, 30]), (99, [1, 10, 30])):
            chosen = found.at_most(most, None, seed=0).train
            assert [list(chosen.targets).count(label) for label in range(3)] == expected
            assert list(chosen.paths) == sorted(chosen.paths)
            assert (
                chosen.paths == found.at_most(None, most, seed=0).train.paths == found.at_most(99, most, 0).train.paths
            )

    def test_depends_on_the_seed_and_a_larger_one_holds_the_smaller(self, tmp_path: Path):
        train = load(touch(tmp_path, *images(*self.COUNTS)), val_fraction=0).train
        small, large, other = (
            {train.paths[index] for index in choose_some(train.paths, train.targets, most, seed)}
            for most, seed in ((8, 0), (20, 0), (8, 1))
        )
        assert small < large
        assert small != other
        backwards = choose_some(list(train.paths)[::-1], train.targets[::-1], 8, 0)
        assert {train.paths[len(train) - 1 - index] for index in backwards} == small

    def test_the_drawn_split_is_the_same_and_the_other_splits_stay(self, tmp_path: Path):
        found = load(touch(tmp_path, *images(("a", 10), ("b", 10))))
        chosen = found.at_most(None, 6, seed=0)
        assert (len(chosen.train), chosen.valid.paths) == (6, found.valid.paths)
        assert not set(chosen.train.paths) & set(found.valid.paths)
        chosen = found.at_most(2, 6, seed=0)
        assert (len(chosen.train), len(chosen.valid)) == (2, 2)

    def test_fewer_than_the_classes_are_refused(self, tmp_path: Path):
        found = load(touch(tmp_path, *images(*self.COUNTS)), val_fraction=0)
        with pytest.raises(UsageError, match="--max-train-images: got 2, expected at least 3, one image of each class"):
            found.at_most(None, 2, seed=0)
