"""``--group``: photos that belong together are held out together."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from trees import load, touch

from flowers.data.grouping import group_images, groups, warn_of_groups
from flowers.data.paths import encode_path
from flowers.errors import DataError, FlowersError, UsageError

PLANTS = [
    f"{name}/plant{plant}_{shot}.jpg"
    for name, plants, shots in (("daisy", range(8), 5), ("rose", range(8, 13), 4), ("tulip", range(13, 15), 10))
    for plant in plants for shot in range(shots)
]  # fmt: skip
PATTERN = r"plant(\d+)_"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return touch(tmp_path / "tree", *PLANTS)


def of_plants(paths: list[str]) -> set[str]:
    return {path.partition("_")[0] for path in paths}


def test_the_drawn_split_cuts_no_group_and_keeps_the_shares(tree: Path) -> None:
    seen = set()
    for seed in range(5):
        found = load(tree, group=(PATTERN,), seed=seed)
        assert not of_plants(found.valid.paths) & of_plants(found.train.paths)
        counts = Counter(path.partition("/")[0] for path in found.valid.paths)
        # A fifth of 40 is 8, nearest in fives: 10. Of 20 in fours: 4. Of 20 in tens: none, so the smaller group.
        assert counts == {"daisy": 10, "rose": 4, "tulip": 10}
        assert load(tree, group=(PATTERN,), seed=seed).valid.paths == found.valid.paths
        seen.add(tuple(found.valid.paths))
    assert len(seen) > 1, "the seed decides"


def test_a_group_may_span_classes(tmp_path: Path) -> None:
    tree = touch(tmp_path / "tree", *(f"{name}/burst{n}.jpg" for name in ("bud", "bloom") for n in range(10)))
    found = load(tree, group=(r"burst\d+",))
    assert len(found.valid) == 4
    assert len({path.partition("/")[2] for path in found.valid.paths}) == 2
    tree = touch(tmp_path / "one", *(f"{name}/night.jpg" for name in ("bud", "bloom")))
    with pytest.raises(DataError, match="one group of images a class"):
        load(tree, group=("night",))


def test_tables_and_the_findings_of_the_check(tree: Path, tmp_path: Path) -> None:
    odd = "rose/caf\udce9.jpg"
    paths = [*PLANTS, odd]
    table, findings = tmp_path / "groups.csv", tmp_path / "check.json"
    rows = [("./" + paths[0], "x"), (paths[7], "x"), (encode_path(odd), "x"), ("rose/gone.jpg", "y")]
    table.write_text("path,group,note\n" + "".join(f"{path},{group},\n" for path, group in rows))
    findings.write_text(json.dumps({"duplicates": [[paths[1], paths[2]]], "near_duplicates": [[paths[7], paths[2]]]}))
    groups = group_images(paths, [str(table)])
    assert {index for index in range(len(paths)) if groups[index] == 0} == {0, 7, len(paths) - 1}
    joined = group_images(paths, [str(table), str(findings)])
    assert joined[7] == joined[0]
    assert joined[2] == joined[0]
    assert joined[1] == 1, "near-duplicates are listed with their exact duplicates"
    assert np.array_equal(group_images(paths, []), np.arange(len(paths)))


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("plant(", UsageError, "no regular expression"),
        ("camera", UsageError, "fits none of 80 images, such as daisy/plant0_0.jpg"),
        ("no.csv", DataError, "cannot be read"),
        ("columns.csv", DataError, "got the columns path,plant, expected path,group"),
        ("no.CSV", DataError, "no.CSV: the header lacks a column named path: got name;group, expected path,group"),
        ("two.csv", DataError, "two.csv, line 3: daisy/plant0_0.jpg stands in another group, too; keep one row"),
        ("cut.csv", DataError, "cut.csv, line 3: got 1 cells, expected 2 as in the header"),
        ("check.json", DataError, "cannot be read as the findings of prepare.py check"),
    ],
)
def test_what_is_no_group(
    tree: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: type[FlowersError], words: str
) -> None:
    monkeypatch.chdir(tree)
    Path("columns.csv").write_text("path,plant\na.jpg,b\n")
    Path("no.CSV").write_text("name;group\n")
    Path("two.csv").write_text("path,group\ndaisy/plant0_0.jpg,a\n./daisy/plant0_0.jpg,b\n")
    Path("cut.csv").write_text("path,group\ndaisy/plant0_0.jpg,a\ndaisy/plan")
    Path("check.json").write_text("[" * 100_000)
    with pytest.raises(error, match=words):
        load(tree, group=(source,))


def test_the_split_is_that_of_its_groups(tree: Path, tmp_path: Path) -> None:
    split_file = tmp_path / "split.json"
    found = load(tree, split_file=split_file, group=(PATTERN,))
    assert load(tree, split_file=split_file, group=(PATTERN,)).valid.paths == found.valid.paths
    with pytest.raises(DataError, match=r"drawn with .*--group \['plant.*got --val-fraction 0.2 --seed 0: resume"):
        load(tree, split_file=split_file)
    split = json.loads(split_file.read_text())
    del split["group"]  # as earlier versions wrote it
    split_file.write_text(json.dumps(split))
    assert load(tree, split_file=split_file).valid.paths == found.valid.paths


def test_groups_that_the_folders_cut_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["train/a/p1_1.jpg", "train/b/p2_1.jpg", "valid/a/p1_2.jpg", "valid/b/p3_1.jpg", "test/a/p1_3.jpg"]
    found = load(touch(tmp_path / "tree", *names))
    warn_of_groups({name: samples.paths for name, samples in found.splits.items()}, (r"p\d+_",))
    told = capsys.readouterr()
    assert "2 images outside train belong to groups that are in train" in told.out + told.err
    assert "valid/a/p1_2.jpg" in told.out + told.err


def test_groups_join_chains():
    assert groups(7, [(1, 4), (4, 6), (0, 2)]) == [[0, 2], [1, 4, 6]]
    assert groups(3, []) == []
