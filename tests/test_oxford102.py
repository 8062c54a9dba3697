"""The Oxford 102 set, made from small files in the formats of the originals."""

import csv
import hashlib
import http.server
import io
import json
import re
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flowers.datasets import oxford102
from flowers.datasets.oxford102 import LABELS, ORIGINALS, PHOTOS, SPLIT, prepare_oxford102, read_split
from flowers.errors import DataError

# Photo number 1, 2, ... to its label; photos 1 and 2 train, 3 and 4 validate, the rest test, in the originals' order.
LABEL_OF = [5, 77, 5, 77, 77, 5, 102]
OFFICIAL = [
    "test/102/image_00007.jpg", "test/5/image_00006.jpg", "test/77/image_00005.jpg",
    "train/5/image_00001.jpg", "train/77/image_00002.jpg", "valid/5/image_00003.jpg", "valid/77/image_00004.jpg",
]  # fmt: skip


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        folder = tarfile.TarInfo("jpg/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def accept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the files in this folder for the originals."""
    for name in (PHOTOS, LABELS, SPLIT):
        monkeypatch.setitem(ORIGINALS, name, hashlib.md5((folder / name).read_bytes()).hexdigest())


@pytest.fixture
def originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    savemat = pytest.importorskip("scipy.io").savemat
    folder = tmp_path / "originals"
    folder.mkdir()
    write_archive(folder / PHOTOS, {f"jpg/image_{n:05d}.jpg": b"photo %d" % n for n in range(1, 8)})
    savemat(folder / LABELS, {"labels": np.array([LABEL_OF], dtype=np.uint8)})
    ids = {"trnid": [[1, 2]], "valid": [[4, 3]], "tstid": [[7, 5, 6]]}
    savemat(folder / SPLIT, {key: np.array(row, dtype=np.uint16) for key, row in ids.items()})
    accept(folder, monkeypatch)
    return folder


def photos_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))


def test_the_official_split_becomes_an_image_folder_tree(tmp_path, originals):
    counts = prepare_oxford102(tmp_path / "set", source_dir=originals)
    assert counts == {"train": 2, "valid": 2, "test": 3}
    assert list(counts) == ["train", "valid", "test"]
    assert photos_of(tmp_path / "set") == OFFICIAL
    for path in (tmp_path / "set").rglob("*.jpg"):
        assert path.read_bytes() == b"photo %d" % int(path.stem[-5:])
    names = json.loads((tmp_path / "set" / "cat_to_name.json").read_text())
    assert list(names) == [str(label) for label in range(1, 103)]
    assert (names["1"], names["77"], names["102"]) == ("pink primrose", "passion flower", "blackberry lily")


def test_names_and_checksums_are_torchvisions():
    flowers102 = pytest.importorskip("torchvision.datasets").Flowers102
    table = dict(flowers102._file_dict.values())
    assert table == ORIGINALS
    assert flowers102._download_url_prefix == oxford102.URL
    assert oxford102.class_names() == tuple(name.rstrip("?") for name in flowers102.classes)


def test_display_names_are_those_of_the_course_copy(flowers102):
    names = json.loads((flowers102 / "cat_to_name.json").read_text())
    ours = {str(label): name for label, name in enumerate(oxford102.class_names(), 1)}
    assert {label for label, name in ours.items() if names[label] != name} == {"78"}  # there it is "lotus lotus"


def test_any_split_comes_from_a_list(tmp_path, originals):
    listed = tmp_path / "split.csv"
    listed.write_text(
        "label,split,path\nignored,train,somewhere/train/5/image_00006.jpg\n5,val,image_00001.jpg\n"
        "x,test,C:\\photos\\image_00007.jpg\n"
    )
    counts = prepare_oxford102(tmp_path / "set", source_dir=originals, split_file=listed)
    assert counts == {"train": 1, "valid": 1, "test": 1}
    assert photos_of(tmp_path / "set") == [
        "test/102/image_00007.jpg", "train/5/image_00006.jpg", "valid/5/image_00001.jpg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.jpg,1\n", "no column 'split'"),
        ("path,split\nrose.jpg,train\n", "line 2: 'rose.jpg' is not a name such as image_00001.jpg"),
        ("path,split\nimage_00001.jpg,training\n", "line 2: split 'training', expected train, valid or test"),
        ("path,split\nimage_00001.jpg\n", "line 2: got 1 cells, expected 2"),
        ("path,split\nimage_00001.jpg,train\na/image_00001.jpg,test\n", "line 3: image_00001.jpg is listed twice"),
        ("path,split\n", "lists no photo"),
    ],
)
def test_a_senseless_list_is_refused(tmp_path, text, message):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_split(tmp_path / "split.csv")


def test_a_missing_or_binary_list_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"split\.csv: cannot be read"):
        read_split(tmp_path / "split.csv")
    (tmp_path / "split.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is in UTF-16, expected UTF-8"):
        read_split(tmp_path / "split.csv")


def test_a_listed_photo_must_exist(tmp_path, originals):
    with open(tmp_path / "split.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "split"], ["image_00008.jpg", "train"]])
    with pytest.raises(DataError, match=r"image_00008\.jpg is not among the 7 photos"):
        prepare_oxford102(tmp_path / "set", source_dir=originals, split_file=tmp_path / "split.csv")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", [PHOTOS, LABELS, SPLIT])
def test_missing_and_foreign_originals_are_named(tmp_path, originals, name):
    content = (originals / name).read_bytes()
    (originals / name).write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{name} is not the original: md5 \w+ of {len(content) - 1} bytes, expected"):
        prepare_oxford102(tmp_path / "set", source_dir=originals)
    (originals / name).unlink()
    with pytest.raises(DataError, match=f"no {name} in "):
        prepare_oxford102(tmp_path / "set", source_dir=originals)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", [PHOTOS, LABELS, SPLIT])
def test_broken_content_is_one_line(tmp_path, originals, monkeypatch, name):
    """Even where the checksum would be right."""
    (originals / name).write_bytes((originals / name).read_bytes()[:60])
    accept(originals, monkeypatch)
    with pytest.raises(DataError, match=name) as raised:
        prepare_oxford102(tmp_path / "set", source_dir=originals)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "set").exists()


def test_an_archive_that_lacks_photos_is_refused(tmp_path, originals, monkeypatch):
    write_archive(originals / PHOTOS, {"jpg/image_00001.jpg": b"photo 1", "jpg/image_00003.jpg": b"photo 3"})
    accept(originals, monkeypatch)
    with pytest.raises(DataError, match=r"lacks 5 of 7 photos, such as image_00002\.jpg"):
        prepare_oxford102(tmp_path / "set", source_dir=originals)
    assert not (tmp_path / "set").exists()


def test_paths_in_the_archive_lead_nowhere(tmp_path, originals, monkeypatch):
    """Names with .. or an absolute path, links and other files write nothing outside the set."""
    members = {f"../../jpg/image_{n:05d}.jpg": b"photo %d" % n for n in range(1, 7)}
    members |= {f"{tmp_path}/evil/image_00007.jpg": b"photo 7", "../evil.sh": b"evil", "jpg/README": b"hello"}
    write_archive(originals / PHOTOS, members)
    with tarfile.open(originals / "links.tgz", "w:gz") as tar:
        for kind, name in ((tarfile.SYMTYPE, "jpg/image_00001.jpg"), (tarfile.LNKTYPE, "jpg/image_00002.jpg")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        with tarfile.open(originals / PHOTOS) as photos:
            for member in photos:
                tar.addfile(member, photos.extractfile(member))
    (originals / "links.tgz").replace(originals / PHOTOS)
    accept(originals, monkeypatch)
    prepare_oxford102(tmp_path / "set", source_dir=originals)
    assert photos_of(tmp_path / "set") == OFFICIAL
    assert (tmp_path / "set/train/5/image_00001.jpg").read_bytes() == b"photo 1"
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["originals", "set"]


def test_a_set_that_is_there_is_kept_and_nothing_else_is_replaced(tmp_path, originals):
    counts = prepare_oxford102(tmp_path / "set", source_dir=originals)
    for name in (PHOTOS, LABELS, SPLIT):
        (originals / name).unlink()
    assert prepare_oxford102(tmp_path / "set", source_dir=originals) == counts
    (tmp_path / "split.csv").write_text("path,split\nimage_00001.jpg,train\n")
    with pytest.raises(DataError, match=r"a set made with other settings \(split official\)"):
        prepare_oxford102(tmp_path / "set", source_dir=originals, split_file=tmp_path / "split.csv")
    (tmp_path / "set" / "valid").rename(tmp_path / "valid")
    with pytest.raises(DataError, match=r"only a part of the set \(no valid/\)"):
        prepare_oxford102(tmp_path / "set", source_dir=originals)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="other files"):
        prepare_oxford102(tmp_path / "mine", source_dir=originals)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["a.jpg"]


def test_without_scipy_it_says_what_to_install(tmp_path, originals, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match="needs SciPy: pip install scipy"):
        prepare_oxford102(tmp_path / "set", source_dir=originals)


@pytest.fixture
def server(originals: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serves the small originals in place of Oxford's; yields the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=originals)) as httpd:
        monkeypatch.setattr(oxford102, "URL", f"http://127.0.0.1:{httpd.server_port}/")
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield asked
        httpd.shutdown()
        thread.join()


def test_downloads_are_checked_and_kept(tmp_path, server):
    pytest.importorskip("torchvision")
    assert prepare_oxford102(tmp_path / "first", download_dir=tmp_path / "downloads") == {
        "train": 2,
        "valid": 2,
        "test": 3,
    }
    assert photos_of(tmp_path / "first") == OFFICIAL
    assert sorted(path.name for path in (tmp_path / "downloads").iterdir()) == sorted(ORIGINALS)
    assert set(server) == {f"/{name}" for name in ORIGINALS}
    server.clear()
    prepare_oxford102(tmp_path / "second", download_dir=tmp_path / "downloads")
    assert photos_of(tmp_path / "second") == OFFICIAL
    assert server == []


def test_a_download_cut_short_is_fetched_again(tmp_path, originals, server):
    pytest.importorskip("torchvision")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / PHOTOS).write_bytes((originals / PHOTOS).read_bytes()[:100])
    prepare_oxford102(tmp_path / "set", download_dir=tmp_path / "downloads")
    assert photos_of(tmp_path / "set") == OFFICIAL


def test_another_file_than_expected_is_refused(tmp_path, server, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setitem(ORIGINALS, LABELS, "0" * 32)
    with pytest.raises(DataError, match=r"cannot download .*imagelabels\.mat .* name it with --source-dir"):
        prepare_oxford102(tmp_path / "set", download_dir=tmp_path / "downloads")
    assert not (tmp_path / "set").exists()


def test_without_internet_it_says_how_to_go_on(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setattr(oxford102, "URL", (tmp_path / "nowhere").as_uri() + "/")
    with pytest.raises(DataError, match=r"cannot download .*102flowers\.tgz .* name it with --source-dir"):
        prepare_oxford102(tmp_path / "set", download_dir=tmp_path / "downloads")
