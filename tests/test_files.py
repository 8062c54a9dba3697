"""Files and folders that are whole or not there."""

import errno
import functools
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from jobs_in_processes import die

from flowers import files
from flowers.config.predict import PredictConfig
from flowers.errors import FlowersError, UsageError
from flowers.files import file_beside, lock, make_folder, replace_folder, restore_folder, write_atomically, write_json


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    with write_atomically(path) as file:
        file.write("first\r\n")
        assert not path.exists()
    assert path.read_bytes() == b"first\r\n"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), write_atomically(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match="disk is full"), write_atomically(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "best"
    for content in ("one", "two"):
        with replace_folder(path) as folder:
            (folder / "model").write_text(content)
        assert (path / "model").read_text() == content
    with pytest.raises(FlowersError, match="disk is full"), replace_folder(path) as folder:
        (folder / "model").write_text("three")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (path / "model").read_text() == "two"
    assert os.listdir(tmp_path) == ["best"]


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=write_and_die, args=(tmp_path,))
    killed.start()
    killed.join()
    left = sorted(os.listdir(tmp_path))
    assert [name[:7] for name in left] == [".a.csv.", ".b.tmp-"]
    with write_atomically(tmp_path / "c.csv"), replace_folder(tmp_path / "d"):
        assert set(left) < set(os.listdir(tmp_path)), "those of other names stay"
    with write_atomically(tmp_path / "a.csv") as file:
        file.write("mine")
        file.flush()
        assert (tmp_path / left[0]).read_text() == "mine"
        with replace_folder(tmp_path / "b") as folder:
            (folder / "model").write_text("mine")
            with write_atomically(tmp_path / "a.csv") as other:
                other.write("another's, which is replaced then")
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "b", "c.csv", "d"]
    assert ((tmp_path / "a.csv").read_text(), (tmp_path / "b" / "model").read_text()) == ("mine", "mine")


def test_where_there_are_no_locks_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("flowers.files.fcntl.flock", no_locks)
    with write_atomically(tmp_path / "a.csv") as first:
        first.write("first")
        with write_atomically(tmp_path / "a.csv") as second:
            second.write("second")
        assert (tmp_path / "a.csv").read_text() == "second"
    assert (tmp_path / "a.csv").read_text() == "first"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_folder_that_another_process_has_just_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies between the creation of a folder and its lock that the other one looks."""
    lock, removed = files.lock, []

    def late(handle: int, **kind: bool) -> bool:
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].rmdir()
        return lock(handle, **kind)

    monkeypatch.setattr(files, "lock", late)
    with replace_folder(tmp_path / "b") as folder:
        (folder / "model").write_text("mine")
    assert len(removed) == 1
    assert (tmp_path / "b" / "model").read_text() == "mine"


def test_a_file_that_another_process_has_just_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies between the creation of a file and its lock that the other one looks."""

    def lock_late(handle: int, **options: object) -> bool:
        (tmp_path / ".a.csv.flowers_.tmp").unlink(missing_ok=True)
        return lock(handle, **options)

    monkeypatch.setattr("flowers.files.lock", lock_late)
    with write_atomically(tmp_path / "a.csv") as file:
        file.write("whole")
    assert (tmp_path / "a.csv").read_text() == "whole"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_what_another_process_begins_under_the_same_name_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with file_beside(path) as temporary:
        temporary.rename(path)
        other = file_beside(path)
        assert other.__enter__() == temporary
    assert temporary.exists()
    other.__exit__(None, None, None)
    assert os.listdir(tmp_path) == ["a.csv"]


def write_and_die(folder: Path) -> None:
    with write_atomically(folder / "a.csv") as file, replace_folder(folder / "b") as half:
        (half / "model").write_text("half")
        file.write("half")
        die()


def test_an_earlier_folder_that_cannot_be_removed_is_not_in_the_way(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "best"
    for content in ("one", "two", "three"):
        with monkeypatch.context() as patch:
            patch.setattr("flowers.files.shutil.rmtree", lambda *path, **options: None)
            with replace_folder(path) as folder:
                (folder / "model").write_text(content)
        assert (path / "model").read_text() == content
    with replace_folder(path):
        pass
    assert os.listdir(tmp_path) == ["best"]


@pytest.mark.parametrize("call", ["fstat", "stat"])
def test_a_disk_that_does_not_tell_once_leaves_nothing_behind(tmp_path: Path, monkeypatch, call: str) -> None:
    original, failed = getattr(os, call), []

    def stale(path: object, **options: object) -> os.stat_result:
        if not failed and (call == "fstat" or str(path).endswith(".tmp")):
            failed.append(path)
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(path, **options)

    monkeypatch.setattr(os, call, stale)
    with write_atomically(tmp_path / "table.csv") as file:
        file.write("rows")
    assert failed
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_full_disk_under_torch_is_told_in_one_line(tmp_path: Path) -> None:
    """Where the last bytes, which torch holds back, do not fit."""
    with pytest.raises(FlowersError) as caught, replace_folder(tmp_path / "best"):
        raise RuntimeError("basic_ios::clear: iostream error\nframe #0: c10::Error")
    reason = "a write failed, look at the disk, its quota and permissions (basic_ios::clear: iostream error frame #0:"
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'best'}: {reason}")


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_text("weights")
    with (
        pytest.raises(FlowersError, match="a file stands where a folder has to be"),
        replace_folder(tmp_path / "model.pth"),
    ):
        pass
    assert (tmp_path / "model.pth").read_text() == "weights"
    assert os.listdir(tmp_path) == ["model.pth"]


def test_the_folder_behind_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "model").symlink_to("run/best")
    for content in ("one", "two"):
        with replace_folder(tmp_path / "model") as folder:
            (folder / "model").write_text(content)
        assert (tmp_path / "run" / "best" / "model").read_text() == content
    (tmp_path / "run" / "best").rename(tmp_path / "run" / ".best.old")
    restore_folder(tmp_path / "model")
    assert (tmp_path / "model" / "model").read_text() == "two"
    assert sorted(os.listdir(tmp_path)) == ["model", "run"]
    assert os.listdir(tmp_path / "run") == ["best"]


def test_a_kill_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "best"
    with replace_folder(path) as folder:
        (folder / "model").write_text("one")
    path.rename(tmp_path / ".best.old")
    restore_folder(path)
    assert (path / "model").read_text() == "one"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlowersError, match=r"cannot write .*file/run"):
        make_folder(tmp_path / "file" / "run")


def test_a_place_below_thousands_of_folders_is_one_line(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(functools.partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(1000)  # Python's own; torch's compiler has raised it if it was at work before
    with pytest.raises(FlowersError, match="cannot write .*/a/x.json: File name too long"):
        write_json(tmp_path.joinpath(*["a"] * 1500, "x.json"), {})
    assert not list(tmp_path.iterdir())


def test_the_longest_names_are_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "\U0001f33c" * 63):
        with write_atomically(tmp_path / name) as file:
            file.write("x")
        with replace_folder(tmp_path / "folders" / name) as folder:
            (folder / "x").write_text("1")
        with replace_folder(tmp_path / "folders" / name) as folder:
            (folder / "x").write_text("2")
        assert (tmp_path / "folders" / name / "x").read_text() == "2"
    assert len(list(tmp_path.iterdir())) == 3
    assert len(list((tmp_path / "folders").iterdir())) == 2


def test_an_output_whose_work_folder_would_have_too_long_a_name() -> None:
    PredictConfig(Path("model"), (Path("photos"),), output=Path("n" * 244 + ".csv"))
    with pytest.raises(UsageError, match="249 bytes, expected at most 248"):
        PredictConfig(Path("model"), (Path("photos"),), output=Path("n" * 245 + ".csv"))
