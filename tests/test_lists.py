"""List files: images named one by one."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from odd_files import ODD_NAMES, encode
from trees import load, touch

from flowers.data.lists import read_labelled, read_paths
from flowers.data.paths import encode_path
from flowers.errors import DataError


class TestLists:
    def write(self, file: Path, rows: list[list[str]]) -> Path:
        with open(file, "w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows(rows)
        return file

    def test_list_with_splits(self, tmp_path: Path):
        rows = [["path", "label", "split"], ["b/2.jpg", "tulip", "train"], ["a/1.jpg", "rose", ""]]
        rows += [["c.jpg", "rose", "val"], ["/else/where.jpg", "tulip", "Test"]]
        found = load(self.write(tmp_path / "data.csv", rows))
        assert found.classes.folders == ("rose", "tulip")
        assert list(found.train.paths) == ["a/1.jpg", "b/2.jpg"]
        assert found.train.targets.tolist() == [0, 1]
        assert found.train.full_path(0) == str(tmp_path / "a/1.jpg")
        assert list(found.valid.paths) == ["c.jpg"]
        assert found.test.full_path(0) == "/else/where.jpg"

    def test_list_without_splits_is_split(self, tmp_path: Path):
        rows = [["path", "label"], *([f"{index}.jpg", "ab"[index % 2]] for index in range(20))]
        found = load(self.write(tmp_path / "data.csv", rows), split_file=tmp_path / "split.json")
        assert (len(found.train), len(found.valid)) == (16, 4)
        assert load(tmp_path / "data.csv", split_file=tmp_path / "split.json").valid.paths == found.valid.paths

    def test_lists_in_place_of_split_folders(self, tmp_path: Path):
        touch(tmp_path, "valid/rose/v.jpg")
        self.write(tmp_path / "train.csv", [["path", "label"], ["all/1.jpg", "rose"], ["all/2.jpg", "tulip"]])
        found = load(tmp_path)
        assert found.train.full_path(1) == str(tmp_path / "all/2.jpg")
        assert list(found.valid.paths) == ["valid/rose/v.jpg"]

    def test_predictions_are_a_list(self, tmp_path: Path):
        """The class is the folder's name there, the label the name that is shown."""
        rows = [["path", "status", "label", "class", "prob", "error"], ["a.jpg", "ok", "pink primrose", "1", "0.9", ""]]
        assert read_labelled(self.write(tmp_path / "p.csv", rows)) == [("a.jpg", "1", None)]
        assert list(read_paths(tmp_path / "p.csv")) == ["a.jpg"]

    def test_tables_of_any_kind_are_lists(self, tmp_path: Path):
        pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
        rows = [{"path": "b\\\\1.jpg", "class": "1", "prob": 1.0}, {"path": "a.jpg", "class": "rose", "prob": 0.5}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
        (tmp_path / "p.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
        for name in ("p.parquet", "p.jsonl"):
            assert list(read_paths(tmp_path / name)) == ["b\\1.jpg", "a.jpg"]
            assert read_labelled(tmp_path / name) == [("a.jpg", "rose", None), ("b\\1.jpg", "1", None)]
        parquet.write_table(pyarrow.table({"file": ["a.jpg"]}), tmp_path / "p.parquet")
        (tmp_path / "p.jsonl").write_text('{"file": "a.jpg"}')
        for name in ("p.parquet", "p.jsonl"):
            with pytest.raises(DataError, match=f"{name}: the header lacks a column named path: got file, expected"):
                list(read_paths(tmp_path / name))

    def test_odd_names_survive(self, tmp_path: Path):
        names = [os.fsdecode(name) for name in ODD_NAMES]
        self.write(tmp_path / "data.csv", [["path", "label"], *([encode_path(name), 'a, "b"\n'] for name in names)])
        found = read_labelled(tmp_path / "data.csv")
        assert [image.path for image in found] == sorted(names, key=os.fsencode)
        assert {image.folder for image in found} == {'a, "b"\n'}
        self.write(tmp_path / "classes.csv", [["path", "class"], *([encode_path(name)] * 2 for name in names)])
        assert {image.folder for image in read_labelled(tmp_path / "classes.csv")} == set(names), "as predictions say"
        assert list(read_paths(tmp_path / "data.csv")) == names
        (tmp_path / "null.txt").write_bytes(b"\0".join(ODD_NAMES) + b"\0")
        assert list(read_paths(tmp_path / "null.txt")) == names
        lines = [name for name in ODD_NAMES if b"\n" not in name]
        (tmp_path / "lines.txt").write_bytes(b"\n".join(lines))
        assert list(read_paths(tmp_path / "lines.txt")) == [os.fsdecode(name) for name in lines]

    def test_files_as_windows_writes_them(self, tmp_path: Path):
        (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\r\nb c.jpg\r\n")
        assert list(read_paths(tmp_path / "list.txt")) == ["a.jpg", "b c.jpg"]
        (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbfPath,Label\r\na.jpg,x\r\n\r\n")
        assert read_labelled(tmp_path / "list.csv") == [("a.jpg", "x", None)]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("a.jpg\r\nb.jpg\r\n".encode("utf-16"), "is in UTF-16, expected UTF-8"),
            (encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG"), "is no text"),
            (encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "PNG"), "is no text"),
        ],
    )
    def test_what_is_no_list_is_one_line(self, content: bytes, said: str, tmp_path: Path):
        (tmp_path / "list.jxl").write_bytes(content)
        with pytest.raises(DataError, match=said):
            next(read_paths(tmp_path / "list.jxl"))

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("", "the header lacks a column named path: got nothing, expected path,class"),
            ("path;class\na.jpg;rose\n", "got path;class, expected path,class; commas stand between cells, not ';'"),
            ("path\tclass\n", r"expected path,class; commas stand between cells, not '\\t'"),
            ("[" * 9999, r": got \[{100}, expected path,class"),
            (
                "\ufeffpath,class\n".encode("utf-16-le").decode("utf-8", "surrogateescape"),
                "is in UTF-16, expected UTF-8",
            ),
            ("a.jpg,rose\nb.jpg,tulip\n", "the header lacks a column named path"),
            ("path\na.jpg\n", "columns are path, expected path,class or path,label"),
            ("path,label\na.jpg,rose\na,b.jpg,rose\n", "line 3: got 3 cells, expected 2"),
            ("path,label\na.jpg\n", "line 2: got 1 cells, expected 2"),
            ("path,label\na.jpg,\n", "line 2: got class ''"),
            ("path,label\na.jpg,x/y\n", "line 2: got class 'x/y'"),
            ("path,label\na.jpg,..\nb.jpg,rose\n", r"got \.\. for a class, expected the name of one folder"),
            ("path,label\na.jpg,a\0b\nb.jpg,rose\n", r"got 'a\\x00b' for a class"),
            ("path,label\n,rose\n", "line 2: got '' as a path"),
            ("path,label,split\na.jpg,rose,trian\n", "line 2: got split 'trian', expected train, valid or test"),
            ("path,label\na.jpg,rose\na.jpg,rose\n", r"a\.jpg is listed twice"),
            ("path,label,Label\na.jpg,rose,tulip\n", "as CSV: several columns are named label; rename all but one"),
            ('path,label\n"a.jpg,rose\n', "cannot be read as CSV"),
            ("path,label\na.jpg,rose\n", "only one class"),
            ("path,label,split\na.jpg,rose,test\n", "no train"),
        ],
    )
    def test_broken_list(self, content: str, expected: str, tmp_path: Path):
        (tmp_path / "data.csv").write_text(content, errors="surrogateescape")
        with pytest.raises(DataError, match=rf"data\.csv.*{expected}"):
            load(tmp_path / "data.csv")

    @pytest.mark.parametrize("path", ["a.jpg", "train/a.jpg"])
    def test_plain_list_without_class_folders(self, path: str, tmp_path: Path):
        (tmp_path / "data.txt").write_text(f"b/a.jpg\n{path}\n")
        with pytest.raises(DataError, match=rf"{path} lies in no class folder; expected CLASS/IMAGE"):
            load(tmp_path / "data.txt")

    def test_plain_list_takes_classes_and_splits_from_folders(self, tmp_path: Path, capsys):
        names = ["val/rose/1.jpg", "/far/away/train/tulip/2.jpg", "train/a/tulip/4.jpg", "./train/rose/../rose/5.jpg"]
        (tmp_path / "data.txt").write_text(
            "\n".join([*names, "photos/testing/rose/6.jpg", f"{tmp_path}/val/rose/7.jpg"])
        )
        data = load(tmp_path / "data.txt")
        assert data.classes.folders == ("rose", "tulip")
        assert list(data.train.paths) == ["./train/rose/../rose/5.jpg", names[1], names[2]], "as they are written"
        assert data.train.targets.tolist() == [0, 1, 1]
        assert list(data.valid.paths) == [f"{tmp_path}/val/rose/7.jpg", "val/rose/1.jpg"]
        assert list(data.test.paths) == ["photos/testing/rose/6.jpg"]
        assert "data.txt: images of train 3, valid 2, test 1; of 2 classes: rose 4, tulip 2" in capsys.readouterr().out

    @pytest.mark.parametrize("prefix", ["", "./", "{root}/", "D/", "../{name}/", "D/./x/../"])
    @pytest.mark.parametrize("ending", ["txt", "csv"])
    def test_held_out_images_never_become_training_images(self, prefix: str, ending: str, tmp_path: Path):
        prefix = prefix.format(root=tmp_path, name=tmp_path.name)
        names = [
            f"{prefix}{split}/{folder}/{index}.jpg"
            for split, count in (("train", 6), ("valid", 2), ("test", 2))
            for folder in ("rose", "tulip")
            for index in range(count)
        ]
        rows = names if ending == "txt" else ["path,class", *(f"{name},{name.split('/')[-2]}" for name in names)]
        (tmp_path / f"data.{ending}").write_text("\n".join(rows))
        data = load(tmp_path / f"data.{ending}")
        assert (len(data.train), len(data.valid), len(data.test)) == (12, 4, 4)
        assert data.classes.folders == ("rose", "tulip")

    @pytest.mark.parametrize("rows", ["train/rose/1.jpg\nvalid/rose/2.jpg\nall/tulip/3.jpg\n"])
    def test_list_whose_splits_cannot_be_told_is_refused(self, rows: str, tmp_path: Path):
        (tmp_path / "data.txt").write_text(rows)
        with pytest.raises(DataError, match=r"no split can be told of 1 of 3 images \(such as all/tulip/3.jpg\)"):
            load(tmp_path / "data.txt")

    def test_one_file_under_two_names_is_listed_twice(self, tmp_path: Path):
        (tmp_path / "data.csv").write_text("path,class\na.jpg,rose\n./a.jpg,tulip\n")
        with pytest.raises(DataError, match=r"a.jpg is listed twice \(also as ./a.jpg\)"):
            load(tmp_path / "data.csv")
