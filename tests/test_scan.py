"""Scans: every image, in order, whatever lies in the way; and lists of very many paths."""

import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
from odd_files import ODD_NAMES, make_odd_names, make_odd_tree, quarters
from trees import as_nobody, touch

from flowers import console
from flowers.data import scan
from flowers.data.choice import Choice
from flowers.data.images import read_image
from flowers.data.paths import PathList, decode_path, encode_path, readable
from flowers.data.scan import scan_images
from flowers.errors import DataError


class TestScan:
    def test_odd_tree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        expected = make_odd_tree(tmp_path)
        told: list[str] = []
        monkeypatch.setattr(console, "warn", told.append)
        assert list(scan_images(tmp_path)) == expected
        left_out = sorted(text.removeprefix(f"{tmp_path}/") for text in told)
        assert left_out == [
            "a/up: a link back to a folder it lies in, not followed",
            "fifo.jpg: neither a file nor a folder, left out",
            "self: a link back to a folder it lies in, not followed",
            "socket.jpg: neither a file nor a folder, left out",
        ]

    def test_folders_full_of_links_to_each_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Without a limit these 12 folders have a billion paths."""
        folders = [f"{index:02}" for index in range(12)]
        touch(tmp_path, *(f"{folder}/photo.jpg" for folder in folders))
        for folder in folders:
            for other in folders:
                (tmp_path / folder / f"to-{other}").symlink_to(f"../{other}")
        told: list[str] = []
        monkeypatch.setattr(console, "warn", told.append)
        found = list(scan_images(tmp_path))
        assert {f"{folder}/photo.jpg" for folder in folders} <= set(found)
        assert len(found) <= 24, "each folder by its own name, and by one link"
        assert all("not followed" in text for text in told)

    def test_odd_names_survive(self, tmp_path: Path):
        expected = make_odd_names(tmp_path)
        found = list(scan_images(tmp_path))
        assert found == expected
        for path in found:
            assert read_image(os.path.join(tmp_path, path)).shape == quarters().shape

    def test_sorted_by_bytes_over_the_whole_tree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        names = [
            "b.jpg",
            "b/x.jpg",
            "b-c/x.jpg",
            "b0/x.jpg",
            "b!.jpg",
            "B.jpg",
            "a/z/1.jpg",
            "a/z.jpg",
            "é.jpg",
            "b/a/a.jpg",
        ]
        touch(tmp_path, *names, *(f"many/{index}.jpg" for index in range(50)))
        expected = sorted([*names, *(f"many/{index}.jpg" for index in range(50))], key=os.fsencode)
        assert list(scan_images(tmp_path)) == expected
        monkeypatch.setattr(scan, "_CHUNK", 3)
        assert list(scan_images(tmp_path)) == expected

    def test_extensions(self, tmp_path: Path):
        touch(tmp_path, "a.JPG", "b.raw", "c", "d.jpg.part", ".e.jpg", "f.RAW")
        assert list(scan_images(tmp_path)) == ["a.JPG"]
        assert list(scan_images(tmp_path, Choice([".raw"]))) == ["b.raw", "f.RAW"]
        assert list(scan_images(tmp_path, Choice([""]))) == ["a.JPG", "b.raw", "c", "d.jpg.part", "f.RAW"]

    def test_folders_are_listed_when_their_turn_comes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        touch(tmp_path, *(f"{index:02}/a.jpg" for index in range(50)))
        listed = []
        scandir = os.scandir
        monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
        found = scan_images(tmp_path)
        next(found)
        assert len(listed) == 2
        assert len(list(found)) == 49

    def test_memory_is_some_bytes_a_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(scan, "_CHUNK", 500)
        touch(tmp_path, *(f"flat/image_{index:08}.jpg" for index in range(5000)))
        next(scan_images(tmp_path))  # what is imported or cached at first does not count
        tracemalloc.start()
        found = scan_images(tmp_path)
        next(found)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 35 * 5000

    @pytest.mark.parametrize("where", ["top", "top/inner"])
    def test_unreadable_folder(self, where: str, monkeypatch: pytest.MonkeyPatch):
        with as_nobody() as folder:
            top = touch(folder / "top", "a.jpg", "inner/b.jpg", "z.jpg")
            (top.parent / where).chmod(0)
            told: list[str] = []
            monkeypatch.setattr(console, "warn", told.append)
            try:
                if where == "top":
                    with pytest.raises(DataError, match="top: no permission to list this folder"):
                        list(scan_images(top))
                else:
                    assert list(scan_images(top)) == ["a.jpg", "z.jpg"]
                    assert told == [f"{top}/inner: no permission to list this folder; its images are left out"]
            finally:
                (top.parent / where).chmod(0o755)

    def test_root_must_be_a_folder(self, tmp_path: Path):
        with pytest.raises(DataError, match="no such folder"):
            list(scan_images(tmp_path / "none"))
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="not a folder"):
            list(scan_images(tmp_path / "file"))

    def test_folder_that_vanishes(self, tmp_path: Path):
        touch(tmp_path, "a.jpg", "b/c.jpg", "d.jpg")
        found = scan_images(tmp_path)
        assert next(found) == "a.jpg"
        (tmp_path / "b/c.jpg").unlink()
        (tmp_path / "b").rmdir()
        assert list(found) == ["d.jpg"]


class TestPathList:
    def test_is_the_list_it_was_made_of(self):
        names = [os.fsdecode(name) for name in ODD_NAMES]
        paths = PathList(names)
        assert list(paths) == names
        assert len(paths) == len(names)
        assert paths[3] == names[3]
        assert paths[-1] == names[-1]
        assert list(paths[2:5]) == names[2:5]
        assert list(paths[::-1]) == names[::-1]
        assert paths == PathList(iter(names))
        assert paths == names
        assert paths != names[1:]
        assert pickle.loads(pickle.dumps(paths)) == paths
        with pytest.raises(IndexError, match="path 99"):
            paths[99]

    def test_is_small(self):
        tracemalloc.start()
        paths = PathList(f"class/image_{index:08}.jpg" for index in range(10_000))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(paths) == 10_000
        assert held < 45 * len(paths)  # 24 letters, 8 bytes of place, and what growing arrays have in reserve

    def test_encoded_names_are_utf8_and_one_to_one(self):
        names = [os.fsdecode(name) for name in ODD_NAMES]
        encoded = [encode_path(name) for name in names]
        assert [decode_path(text.encode("utf-8").decode("utf-8")) for text in encoded] == names
        assert len(set(encoded)) == len(names)
        assert encode_path(os.fsdecode(b"a\\b\xff.jpg")) == r"a\\b\xff.jpg"
        assert encode_path("plain, \N{SUNFLOWER}\n.jpg") == "plain, \N{SUNFLOWER}\n.jpg"

    def test_readable_names_are_one_printable_line(self):
        for name in ODD_NAMES:
            shown = readable(os.fsdecode(name))
            assert shown.isprintable()
            shown.encode("utf-8")


def test_file_stamps(tmp_path):
    paths = [tmp_path / str(size) for size in range(40)]
    for size, path in enumerate(paths[:-1]):
        path.write_bytes(bytes(size))
        os.utime(path, ns=(0, 10**18 + size))
    stamps = scan.file_stamps(lambda index: str(paths[index]), 40)
    assert stamps[:, 0].tolist() == [*range(39), -1]
    assert stamps[:, 1].tolist() == [*range(10**18, 10**18 + 39), -1]
    assert scan.file_stamps(lambda index: str(paths[index]), 0).tolist() == []
