"""Lock files: one holder at a time, released however the holder ends."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flowers import files
from flowers.errors import InUseError
from flowers.locks import refuse_others, share, take_turns

HOLD = """
import multiprocessing, sys, time
from pathlib import Path
from flowers.locks import refuse_others

def outlive(ready):
    ready.set()
    time.sleep(60)

with refuse_others(Path(sys.argv[1]), Path("run"), "wait"):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    loader = context.Process(target=outlive, args=(ready,))
    loader.start()
    ready.wait()
    print(loader.pid, flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    """A process that the killed one forked lives on, as loader processes do, and does not keep the lock."""
    path = tmp_path / "folder" / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    loader = int(holder.stdout.readline())
    try:
        message = f"^run is in use by process {holder.pid} on .*: wait for it$"
        with pytest.raises(InUseError, match=message), refuse_others(path, Path("run"), "wait for it"):
            pass
        holder.kill()
        holder.wait()
        os.kill(loader, 0)
        with refuse_others(path, Path("run"), "wait for it"):
            pass
    finally:
        holder.kill()
        os.kill(loader, signal.SIGKILL)


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    """Whoever plants it would have the holder write into any file."""
    (tmp_path / "precious").write_text("keep me")
    (tmp_path / "lock").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"), share(tmp_path / "lock"):
        pass
    assert (tmp_path / "precious").read_text() == "keep me"


def test_it_is_free_again_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            refuse_others(tmp_path / "lock", tmp_path, "wait"),
            pytest.raises(InUseError, match="in use"),
            refuse_others(tmp_path / "lock", tmp_path, "wait"),
        ):
            pass


def test_the_holder_may_remove_the_file(tmp_path: Path) -> None:
    with refuse_others(tmp_path / "lock", tmp_path, "wait"):
        (tmp_path / "lock").unlink()
    with refuse_others(tmp_path / "lock", tmp_path, "wait"):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_disk_that_does_not_tell_once_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is locked then: an error that left it so would keep its own process waiting for ever."""
    stat, asked = os.stat, []

    def stale(path: object, **options: object) -> os.stat_result:
        if path == tmp_path / "turn":
            asked.append(path)
            if len(asked) == 2:  # the first time before there is a lock
                raise OSError(errno.EACCES, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(files.os, "stat", stale)
    with take_turns(tmp_path / "turn"):
        assert len(asked) == 4


def test_on_a_full_disk_it_holds_and_costs_the_job_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with refuse_others(tmp_path / "lock", Path("run"), "wait"):
            assert (tmp_path / "lock").read_bytes() == b""
            with pytest.raises(InUseError, match="another process"), refuse_others(tmp_path / "lock", Path("run"), ""):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_others_wait_their_turn(tmp_path: Path) -> None:
    """Also one that waits at a file that is removed before its turn comes."""
    path, order = tmp_path / "lock", []

    def second() -> None:
        with take_turns(path):
            order.append("second")

    with take_turns(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
        path.unlink()
    thread.join(10)
    assert order == ["first", "second"]
    assert path.exists()


def test_without_locks_a_warning_says_what_to_mind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with refuse_others(tmp_path / "lock", tmp_path, "wait"), take_turns(tmp_path / "other"):
        pass
    assert "this file system has no locks; start only one job on it at a time" in capsys.readouterr().err
