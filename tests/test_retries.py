"""Reads that fail once: waited for in prediction and training, and bounded where the disk is gone for good."""

import errno
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_job

from flowers.config.predict import PredictConfig
from flowers.data import retries as retries_module
from flowers.data.file_bytes import read_bytes
from flowers.data.retries import TRANSIENT, Retries, retries
from flowers.data.scan import scan_images
from flowers.data.tables import read_rows
from flowers.errors import ImageError
from flowers.prediction.predict import predict


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
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tiny_job.make_photos(tmp_path / "in", 9)
    with tarfile.open(tmp_path / "in" / "t.tar", "w") as tar:
        tar.add(tmp_path / "in" / "0001.jpg", "m.jpg")
    run(output=tmp_path / "whole.csv")
    capsys.readouterr()
    monkeypatch.setattr(os, "readv", failing(os.readv, errno.EIO, 3))
    assert run() == 0
    assert "failed at first and worked when tried again" in capsys.readouterr().out
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert {row["status"] for row in read_rows(tmp_path / "out.csv")} == {"ok"}


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_folder_that_cannot_be_listed_once_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    names = tiny_job.make_photos(tmp_path, 5)
    monkeypatch.setattr(os, call, failing(getattr(os, call), errno.ESTALE, 1))
    assert list(scan_images(tmp_path)) == names
