"""What asks a run to stop, and what does not."""

import errno
import os
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from flowers import stopping
from flowers.errors import StoppedError
from flowers.stopping import StopRequest


@pytest.mark.parametrize("name", stopping.STOP_SIGNALS)
def test_each_signal_is_a_request_and_no_more(tmp_path: Path, name: str) -> None:
    earlier = signal.getsignal(getattr(signal, name))
    with StopRequest(tmp_path / "stop") as stop:
        assert stop.reason() is None
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.reason() == name
    assert signal.getsignal(getattr(signal, name)) is earlier


def test_the_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    with StopRequest(tmp_path / "stop"):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_disk_that_does_not_tell_of_a_stop_file_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked twice a second, for days."""
    monkeypatch.setattr(stopping, "LOOK_EVERY_S", 0.0)
    with StopRequest(tmp_path / "stop") as stop:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "exists", Mock(side_effect=OSError(errno.ESTALE, "Stale file handle")))
            assert stop.reason() is None
        (tmp_path / "stop").touch()
        time.sleep(0.001)
        assert stop.reason() == "stop file"


def test_the_stop_file_is_seen_and_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LOOK_EVERY_S", 0.0)
    with StopRequest(tmp_path / "stop") as stop:
        assert stop.reason() is None
        (tmp_path / "stop").touch()
        time.sleep(0.001)
        assert stop.reason() == "stop file"
        stop.clear()
        stop.clear()
        time.sleep(0.001)
        assert stop.reason() is None


def test_a_folder_of_the_name_asks_to_stop_once_too(tmp_path: Path) -> None:
    (tmp_path / "stop").mkdir()
    with StopRequest(tmp_path / "stop") as stop:
        assert stop.reason() == "stop file"
        stop.clear()
    assert not (tmp_path / "stop").exists()


def test_the_reason_stays_between_two_looks_at_the_file(tmp_path: Path) -> None:
    """A file system is asked twice a second only; who asks for the reason in between, for a message, gets it."""
    with StopRequest(tmp_path / "stop") as stop:
        (tmp_path / "stop").touch()
        assert stop.reason() == stop.reason() == "stop file"
        stop.clear()
        assert stop.reason() is None


def test_hours_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest(tmp_path / "stop", max_hours=2) as stop:
        start_s = time.time()
        monkeypatch.setattr(stopping.time, "time", lambda: start_s + 2 * 3600 - 60)
        assert stop.reason() is None
        monkeypatch.setattr(stopping.time, "time", lambda: start_s + 2 * 3600 + 60)
        assert stop.reason() == "--max-hours"


def test_a_process_alone_stops_at_a_check() -> None:
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(StoppedError, match="stopped by SIGUSR1: finished work is kept, the same command resumes"):
            stop.check()
        stop.clear()


def test_a_signal_after_openvino_was_used_and_let_go(tmp_path: Path) -> None:
    """Its CPU plugin gives the main thread a signal stack; once that crashed the process when a thread freed it."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    import gc
    import threading

    import numpy as np
    import torch

    from flowers.data.preprocessing import Preprocessing
    from flowers.engines.engine import build_engine

    engine = build_engine(torch.nn.Flatten(), Preprocessing(8, 8), engine="openvino", batch_size=2)
    engine.submit(np.zeros((2, 8, 8, 3), np.uint8)).result()
    held = [engine]
    del engine

    def let_go() -> None:
        held.pop().close()
        gc.collect()

    thread = threading.Thread(target=let_go)
    thread.start()
    thread.join()
    with StopRequest(tmp_path / "stop") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason() == "SIGTERM"
