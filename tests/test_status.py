"""jobs/status.py: how far a bulk prediction has come, by its files alone."""

import json
import os
import shutil
from pathlib import Path

import pytest

from flowers.config.status import StatusConfig
from flowers.data.archives import Entry
from flowers.files import file_digest
from flowers.locks import share
from flowers.prediction import parts
from flowers.prediction.status import describe, status
from flowers.prediction.work import Work, lock_of
from flowers.prediction.work_folder import Listing, WorkFolder


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Seven files in four shards, two of them done ten seconds apart, with three rows and an error."""
    names = [Entry(b"%d.jpg" % number) for number in range(7)]
    folder = WorkFolder(tmp_path / "out.csv", {"model": "a" * 64}, lambda: None)
    work = folder.begin(Listing(names, os.fsencode(tmp_path), shard_size=2), lambda: None)
    for index, counts in enumerate(({"ok": 2}, {"ok": 1, "error": 1})):
        parts.write_part(work.parts, index, b"", {"counts": counts})
        os.utime(work.parts / parts.part_name(index), (10**9 + 10 * index,) * 2)
    return work


def test_of_work_under_way(work: Work, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert describe(tmp_path / "out.csv")["state"] == "stopped"
    with share(lock_of(work.folder)):
        os.utime(lock_of(work.folder), (10**9 - 1,) * 2)
        before = sorted(tmp_path.rglob("*"))
        found = describe(tmp_path / "out.csv")
        assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
        assert status(StatusConfig(tmp_path / "out.csv", json=True)) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert found["state"] == "running"
    assert (found["files"], found["files_done"], found["shards"], found["shards_done"]) == (7, 4, 4, 2)
    assert found["counts"] == {"ok": 3, "error": 1}
    assert found["files_per_s"] == pytest.approx(0.2)
    assert found["left_s"] == pytest.approx(15)


def test_damaged_parts_are_not_counted_and_stay(work: Work, tmp_path: Path) -> None:
    (work.parts / parts.part_name(1)).write_bytes(b"damage")
    assert describe(tmp_path / "out.csv")["shards_done"] == 1
    assert (work.parts / parts.part_name(1)).read_bytes() == b"damage"
    (work.folder / "job.json").write_bytes(b"damage")
    assert describe(tmp_path / "out.csv")["state"] == "damaged"


def test_a_job_that_ends_while_it_is_looked_at_is_not_damaged(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(folder: Path) -> Work:
        shutil.rmtree(folder)
        return Work(folder)

    monkeypatch.setattr("flowers.prediction.status.Work", ends)
    assert describe(tmp_path / "out.csv")["state"] == "not started"


def test_a_file_in_the_place_of_the_work(tmp_path: Path) -> None:
    (tmp_path / "out.csv.parts").touch()
    assert describe(tmp_path / "out.csv")["state"] == "not started"


def test_of_an_output_without_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "out.csv"
    assert describe(output)["state"] == "not started"
    assert status(StatusConfig(output)) == 0  # a job may wait in a queue
    assert "neither the table nor the folder of a job" in capsys.readouterr().out  # or the name is mistyped
    output.write_text("path,class\r\na,b\r\n")
    assert describe(output)["state"] == "foreign"
    assert describe(output / "out.csv")["state"] == "not started"  # below a file
    facts = {"output": file_digest(output), "files": 1, "counts": {"ok": 1}, "settings": {}, "engine": None}
    (tmp_path / "out.json").write_text(json.dumps(facts))
    assert describe(output)["state"] == "finished"
    assert status(StatusConfig(output)) == 0
    assert "1 of 1" in capsys.readouterr().out
    output.write_text("path,class\r\na,c,\r\n")
    assert describe(output)["state"] == "damaged"
