"""Reads that fail once: waited for in prediction and training, and bounded where the disk is gone for good."""

import contextlib
import errno
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_job

from flowers import retries as retries_module
from flowers.config.predict import PredictConfig
from flowers.data.archives import members
from flowers.data.choice import Choice
from flowers.data.file_bytes import read_bytes
from flowers.data.folders import load_image_folders, load_split
from flowers.data.scan import file_stamps, scan_images
from flowers.data.splits import ValidationDraw
from flowers.data.tables import read_rows
from flowers.errors import TRANSIENT, DataError, ImageError
from flowers.prediction import finish, parts
from flowers.prediction.predict import predict
from flowers.prediction.table import finished_facts
from flowers.retries import Retries, retries


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    found: list[float] = []
    monkeypatch.setattr(retries_module.time, "sleep", found.append)
    return found


def failing(call: Callable, number: int, times: int) -> Callable:
    """The call, which fails so many times before it works."""
    left = [times]

    def fail(*args: object, **options: object) -> object:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return call(*args, **options)

    return fail


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "EAGAIN", "EINTR"])
@pytest.mark.parametrize("call", ["open", "readv"])
def test_a_read_that_fails_once_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, name: str, waited: list[float]
) -> None:
    (tmp_path / "x").write_bytes(b"bytes")
    assert getattr(errno, name) in TRANSIENT
    monkeypatch.setattr(os, call, failing(getattr(os, call), getattr(errno, name), 2))
    before = retries.recovered
    assert read_bytes(tmp_path / "x") == b"bytes"
    assert retries.recovered == before + 1
    assert waited == list(retries_module.WAITS_S[:2])


@pytest.mark.parametrize("name", ["ENOENT", "EACCES", "ELOOP", "EISDIR"])
def test_what_no_time_mends_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, waited: list[float]
) -> None:
    monkeypatch.setattr(os, "open", failing(os.open, getattr(errno, name), 1))
    with pytest.raises(ImageError):
        read_bytes(tmp_path / "x")
    assert waited == []


def test_a_disk_that_is_gone_costs_a_minute_at_most_and_a_recovery_brings_patience_back(waited: list[float]) -> None:
    own = Retries()

    def fail() -> None:
        raise OSError(errno.EIO, "gone")

    for _ in range(1000):
        with pytest.raises(OSError, match="gone"):
            own.read(fail)
    assert 55 < sum(waited) <= 60
    assert own.recovered == 0
    own = Retries()
    for _ in range(1000):
        assert own.read(failing(lambda: 1, errno.EIO, 1)) == 1
    assert own.recovered == 1000


@pytest.fixture
def hiccup(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes the first look at a path fail, as on a network disk."""

    def hiccup(place: Path) -> None:
        left = [place]

        def once(look: Callable) -> Callable:
            def looked(path: object, *args: object, **options: object) -> os.stat_result:
                if left and not isinstance(path, int) and os.fsdecode(path) == str(place):
                    left.clear()
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
                return look(path, *args, **options)

            return looked

        for call in ("stat", "lstat"):
            monkeypatch.setattr(os, call, once(getattr(os, call)))

    return hiccup


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture
def run(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., int]]:
    def run(**flags: object) -> int:
        usual = {"checkpoint": bundle, "input": tmp_path / "in", "output": tmp_path / "out.csv", "batch_size": 4}
        return predict(PredictConfig(**{**usual, "engine": "torch", "precision": "float32", "workers": 2, **flags}))

    return run


def test_a_hiccup_changes_no_row_and_is_said(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, hiccup: Callable
) -> None:
    tiny_job.make_photos(tmp_path / "in", 9)
    with tarfile.open(tmp_path / "in" / "t.tar", "w") as tar:
        tar.add(tmp_path / "in" / "0001.jpg", "m.jpg")
    run(output=tmp_path / "whole.csv")
    capsys.readouterr()
    readv, fails = os.readv, failing(os.readv, errno.EIO, 3)
    is_photo = lambda file: os.readlink(f"/proc/self/fd/{file}").endswith(".jpg")  # noqa: E731 - else the tar's list
    monkeypatch.setattr(os, "readv", lambda file, buffers: (fails if is_photo(file) else readv)(file, buffers))
    assert run() == 0
    assert "failed at first and worked when tried again" in capsys.readouterr().out
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert {row["status"] for row in read_rows(tmp_path / "out.csv")} == {"ok"}
    hiccup(tmp_path / "out.json")
    assert run() == 0
    assert "is complete: nothing to do" in capsys.readouterr().out
    hiccup(tmp_path / "out.csv")
    assert finished_facts(tmp_path / "out.csv", None)


def test_a_look_that_fails_once_takes_nothing_for_gone(tmp_path: Path, hiccup: Callable) -> None:
    """The names of the classes, the split that a run drew, a shard, the time of a file, the name of another photo."""
    for name in ("1", "2"):
        (tmp_path / "data/train" / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / f"data/train/{name}/{number}.jpg").touch()
    names = tmp_path / "data" / "cat_to_name.json"
    names.write_text('{"1": "daisy", "2": "rose"}')
    hiccup(names)
    draw = ValidationDraw(0.2, 0, tmp_path / "split.json")
    found = load_image_folders(tmp_path / "data", draw=draw)
    assert found.classes.labels == ("daisy", "rose")

    hiccup(tmp_path / "split.json")
    assert len(load_split(tmp_path / "data", "train", found.classes, tmp_path / "split.json")) == 8
    hiccup(tmp_path / "split.json")
    with pytest.raises(DataError, match="--seed"):
        load_image_folders(tmp_path / "data", draw=ValidationDraw(0.2, 1, tmp_path / "split.json"))

    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(names, "a.jpg")
    hiccup(tmp_path / "t.tar")
    assert read_bytes(tmp_path / "t.tar" / "a.jpg") == names.read_bytes()
    hiccup(names)
    assert file_stamps(lambda _: str(names), 1).tolist() == [[names.stat().st_size, names.stat().st_mtime_ns]]

    (tmp_path / "other.jpg").write_bytes(b"of another class")
    hiccup(tmp_path / "other.jpg")
    assert not finish._keep(b"bytes", None, tmp_path / "other.jpg")
    assert (tmp_path / "other.jpg").read_bytes() == b"of another class"


def test_a_listing_that_broke_off_counts_what_it_leaves_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", ".b.jpg", "c.txt"):
        (tmp_path / name).touch()
    scandir, errors = os.scandir, [OSError(errno.ESTALE, "Stale file handle")]

    @contextlib.contextmanager
    def breaking_off(folder: object) -> Iterator[Iterator[os.DirEntry]]:
        def entries() -> Iterator[os.DirEntry]:
            yield from found
            if errors:
                raise errors.pop()

        with scandir(folder) as found:
            yield entries()

    monkeypatch.setattr(os, "scandir", breaking_off)
    choice = Choice()
    assert list(scan_images(tmp_path, choice)) == ["a.jpg"]
    assert choice.left_out == {"hidden": 1, ".txt": 1}


def test_finished_work_that_cannot_be_listed_once_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two shards of a job of days."""
    for index in range(2):
        parts.write_part(tmp_path, index, b"rows", {"counts": {"ok": 1}})
    monkeypatch.setattr(os, "scandir", failing(os.scandir, errno.ESTALE, 1))
    assert parts.finished(tmp_path) == {0, 1}
    monkeypatch.setattr("builtins.open", failing(open, errno.EIO, 1))
    assert parts.peek(tmp_path, 1)["counts"] == {"ok": 1}


@pytest.mark.parametrize("name", ["in.tar", "in.zip", "in.tgz"])
@pytest.mark.parametrize("number", [1, 2])
def test_an_archive_whose_list_cannot_be_read_once_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """One row that says "broken archive" in the place of all its photos would be a table that calls itself complete."""
    paths = tiny_job.make_photos(tmp_path / "photos", 20)
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in paths:
                archive.write(tmp_path / "photos" / path, path)
    else:
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for path in paths:
                archive.add(tmp_path / "photos" / path, path)
    readv, calls = os.readv, []

    def stale(*args: object) -> int:
        calls.append(args)
        if len(calls) == number:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return readv(*args)

    monkeypatch.setattr(os, "readv", stale)
    found = members(tmp_path, name.encode(), Choice())
    assert [entry.path.decode() for entry in found] == [f"{name}/{path}" for path in paths]
    assert len(calls) > number


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_folder_that_cannot_be_listed_once_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    names = tiny_job.make_photos(tmp_path, 5)
    monkeypatch.setattr(os, call, failing(getattr(os, call), errno.ESTALE, 1))
    assert list(scan_images(tmp_path)) == names
