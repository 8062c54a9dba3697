"""Tables that follow their folder: --update, --retry-errors and --watch give what a fresh run would give."""

import csv
import errno
import gzip
import json
import os
import random
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_job

from flowers import retries as retries_module
from flowers.config.predict import PredictConfig
from flowers.data.archives import Entry
from flowers.data.tables import read_rows
from flowers.data.workbook import read_workbook
from flowers.errors import DataError, OutputError, StoppedError, UsageError
from flowers.models.bundle import load_bundle
from flowers.prediction import kept, table
from flowers.prediction import predict as predict_module
from flowers.prediction.kept import StampingReader, stamp_of
from flowers.prediction.predict import predict
from flowers.prediction.table import finished_facts
from flowers.stopping import StopRequest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_job.make_photos(tmp_path / "in", 14)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"broken")
    (tmp_path / "in" / 'odd "name",\r\n.jpg').write_bytes((tmp_path / "in" / "0001.jpg").read_bytes())
    return tmp_path / "in"


@pytest.fixture
def run(bundle: Path, folder: Path, tmp_path: Path) -> Callable[..., int]:
    def run(**flags: object) -> int:
        usual = {"checkpoint": bundle, "input": folder, "output": tmp_path / "out.csv", "batch_size": 4, "topk": 2}
        usual |= {"engine": "torch", "precision": "float32", "workers": 1, "shard_size": 4}
        return predict(PredictConfig(**{**usual, **flags}))

    return run


@pytest.fixture
def classified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read to be classified."""
    found: list[str] = []
    original = StampingReader.__call__

    def read(self: StampingReader, entry: Entry) -> object:
        found.append(os.fsdecode(entry.path))
        return original(self, entry)

    monkeypatch.setattr(StampingReader, "__call__", read)
    return found


def change(folder: Path, rng: random.Random) -> None:
    """Some photos come, some go, some are replaced, of the same size or another, at the same time or another."""
    paths = sorted(path for path in folder.rglob("*.jpg"))
    gone, replaced, touched = rng.sample(paths, 3)
    gone.unlink()
    photo = tiny_job.encode(tiny_job.draw_photo(np.random.default_rng(rng.randrange(1000))), "JPEG")
    status = replaced.stat()
    replaced.write_bytes(photo.ljust(status.st_size, b"\0"))
    if rng.random() < 0.5:
        os.utime(replaced, ns=(status.st_atime_ns, status.st_mtime_ns))
    touched.touch()
    (folder / rng.choice(["", "below"]) / f"{rng.randrange(10**6):06d}.jpg").write_bytes(photo)


def outputs(folder: Path, name: str) -> list[bytes]:
    return [(folder / f"{name}.csv").read_bytes(), (folder / f"{name}.npy").read_bytes()]


@pytest.mark.parametrize("seed", range(2))
def test_an_update_gives_what_a_fresh_run_gives_also_when_stopped(
    run: Callable, folder: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    run(embeddings=tmp_path / "out.npy")
    for turn in range(3):
        change(folder, rng)
        update = {"embeddings": tmp_path / "out.npy", "update": True}
        if turn:
            with monkeypatch.context() as patch, pytest.raises(StoppedError):
                stop_after(turn, patch)
                run(**update)
            if turn == 2:
                change(folder, rng)  # meanwhile the folder changes again
        assert run(**update) == 0
        run(output=tmp_path / "fresh.csv", embeddings=tmp_path / "fresh.npy", overwrite=True)
        assert outputs(tmp_path, "out") == outputs(tmp_path, "fresh")
        assert (tmp_path / "out.stamps").read_bytes() == (tmp_path / "fresh.stamps").read_bytes()
        assert run(embeddings=tmp_path / "out.npy") == 0, "and it is complete for those who update nothing"
    assert not (tmp_path / "out.csv.parts").exists()


def stop_after(batches: int, patch: pytest.MonkeyPatch) -> None:
    seen = []

    def check(self: StopRequest) -> None:
        seen.append(1)
        if len(seen) > batches:
            raise StoppedError("stopped by SIGTERM")

    patch.setattr(StopRequest, "check", check)


def test_only_what_is_new_or_changed_is_read_again(
    run: Callable, folder: Path, tmp_path: Path, classified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    classified.clear()
    assert run(update=True) == 0
    assert classified == []
    shutil.copy(folder / "0001.jpg", folder / "0000.jpg")
    (folder / "0002.jpg").write_bytes((folder / "0004.jpg").read_bytes())
    assert run(update=True) == 0
    assert sorted(classified) == ["0000.jpg", "0002.jpg"]
    (folder / "0004.jpg").unlink()
    monkeypatch.setattr("flowers.prediction.shard_loop.open_engine", lambda *args, **options: pytest.fail("built"))
    assert run(update=True) == 0, "photos that go need no network"
    assert "0004.jpg" not in {row["path"] for row in read_rows(tmp_path / "out.csv")}


@pytest.mark.parametrize("call", ["put_in_place", "write_sidecar"])
def test_an_update_that_dies_while_it_replaces_the_table_is_finished_by_the_next(
    run: Callable, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run(embeddings=tmp_path / "out.npy")
    change(folder, random.Random(5))
    module = table if call == "put_in_place" else predict_module
    original, calls = getattr(module, call), []

    def die(*args: object) -> None:
        calls.append(1)
        if call == "write_sidecar" or len(calls) == 2:  # the table is there, the stamps are not
            raise KeyboardInterrupt
        original(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, call, die)
        run(embeddings=tmp_path / "out.npy", update=True)
    change(folder, random.Random(6))
    assert run(embeddings=tmp_path / "out.npy", update=True) == 0
    run(output=tmp_path / "fresh.csv", embeddings=tmp_path / "fresh.npy")
    assert outputs(tmp_path, "out") == outputs(tmp_path, "fresh")


def need_library(name: str) -> None:
    for ending, library in ((".parquet", "pyarrow"), (".xlsx", "openpyxl")):
        if name.endswith(ending):
            pytest.importorskip(library)


@pytest.mark.parametrize("name", ["out.csv.gz", "out.jsonl", "out.parquet", "out.xlsx"])
def test_every_kind_of_table_is_updated(run: Callable, folder: Path, tmp_path: Path, name: str) -> None:
    need_library(name)
    with tarfile.open(folder / "t.tar", "w") as tar:
        tar.add(folder / "0001.jpg", "m.jpg")
    run(output=tmp_path / name)
    change(folder, random.Random(1))
    with tarfile.open(folder / "t.tar", "a") as tar:
        tar.add(folder / 'odd "name",\r\n.jpg', "n.jpg")
    run(output=tmp_path / name, update=True)
    run(output=tmp_path / f"fresh-{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"fresh-{name}").read_bytes()


@pytest.mark.parametrize("name", ["c.csv.gz", "c.jsonl", "c.parquet", "c.xlsx"])
def test_a_table_of_chosen_columns_is_updated(run: Callable, folder: Path, tmp_path: Path, name: str) -> None:
    """Also with a path of two lines, an error row, and columns in an order of their own."""
    need_library(name)
    names = ["prob", "path", "label_2", "status"]
    chosen = {"columns": (",".join(names[:3]), names[3]), "output": tmp_path / name}
    run(output=tmp_path / f"all-{name}")
    run(**chosen)
    expected = [{key: row[key] for key in names} for row in read_rows_of_any(tmp_path / f"all-{name}")]
    found = list(read_rows_of_any(tmp_path / name))
    assert found == expected
    assert list(found[0]) == names
    assert sum(row["status"] == "error" for row in found) == 1
    assert finished_facts(tmp_path / name, None)["settings"]["columns"] == names
    change(folder, random.Random(3))
    run(**chosen, update=True)
    run(**{**chosen, "output": tmp_path / f"fresh-{name}"})
    assert (tmp_path / name).read_bytes() == (tmp_path / f"fresh-{name}").read_bytes()
    assert run(**chosen) == 0, "complete"
    with pytest.raises(OutputError, match="columns: prob,path,label_2,status then, None now"):
        run(output=tmp_path / name, update=True)
    with pytest.raises(OutputError, match="columns: prob,path,label_2,status then, path now"):
        run(output=tmp_path / name, columns=("path",))


def read_rows_of_any(path: Path) -> Iterator[dict]:
    """Rows as they stand there: a table without classes is none that ``read_rows`` takes."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(path).to_pylist()
    elif path.suffix == ".xlsx":
        (_, names), *rows = read_workbook(path)
        yield from (dict(zip(names, cells, strict=True)) for _, cells in rows)
    elif path.suffix == ".jsonl":
        yield from map(json.loads, path.read_text().splitlines())
    else:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
            yield from csv.DictReader(file)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"columns": ("path,propability",)}, "got propability, expected some of path,status,label,class,prob,label_2"),
        ({"columns": ("path,prob_3",)}, "got prob_3"),
        ({"columns": ("label",)}, "expected path among them"),
        ({"columns": ("path", "prob,path")}, "got path twice"),
        ({"columns": ("path",), "update": True}, "--update reads the finished table: add status to --columns"),
        ({"columns": ("path,status",), "copy_to": Path("x")}, "--copy-to .*: add label,class to --columns"),
        ({"columns": ("path,status,label,class",), "report": True}, "--report .*: add prob,error to --columns"),
    ],
)
def test_columns_that_cannot_be_are_refused_in_a_line(run: Callable, flags: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(**flags)


def test_class_names_change_what_is_shown_and_nothing_else(
    run: Callable, bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"1": "Gänseblümchen, klein", "10": "Rose", "2": "Tulpe", "other": "Veilchen"}))
    run()
    run(output=tmp_path / "named.csv", class_names=names)
    assert "names.json: no name for a b; the folder's name is shown" in " ".join(capsys.readouterr().err.split())
    shown = {"1": "Gänseblümchen, klein", "10": "Rose", "2": "Tulpe", "a b": "a b", "": ""}
    for row, plain in zip(read_rows(tmp_path / "named.csv"), read_rows(tmp_path / "out.csv"), strict=True):
        assert row == plain | {"label": shown[plain["class"]], "label_2": shown[plain["class_2"]]}
    made, plainly = (finished_facts(tmp_path / name, None)["settings"] for name in ("named.csv", "out.csv"))
    assert made["model"] == plainly["model"] == load_bundle(bundle).hash
    change(folder, random.Random(5))
    assert run(output=tmp_path / "named.csv", class_names=names, update=True) == 0
    assert {row["label"] for row in read_rows(tmp_path / "named.csv")} <= set(shown.values())
    with pytest.raises(OutputError, match="class_names: .* then, None now"):
        run(output=tmp_path / "named.csv", update=True)
    names.write_text('{"other": "x"}')
    with pytest.raises(DataError, match="names none of the classes"):
        run(output=tmp_path / "named.csv", class_names=names)


def test_a_flag_that_is_left_out_of_an_update_is_named(run: Callable) -> None:
    run(on_damaged="ok")
    with pytest.raises(OutputError, match="on_damaged: ok then, None now"):
        run(update=True)
    with pytest.raises(OutputError, match="on_damaged: ok then, None now"):
        run()


def test_a_csv_for_excel_begins_with_a_mark_and_is_updated(run: Callable, folder: Path, tmp_path: Path) -> None:
    run()
    plain = (tmp_path / "out.csv").read_bytes()
    run(excel=True, output=tmp_path / "excel.csv")
    assert (tmp_path / "excel.csv").read_bytes() == b"\xef\xbb\xbf" + plain
    assert [row["path"] for row in read_rows(tmp_path / "excel.csv")] == [
        row["path"] for row in read_rows(tmp_path / "out.csv")
    ]
    (folder / "broken.jpg").unlink()
    assert run(excel=True, output=tmp_path / "excel.csv", update=True) == 0
    assert run(update=True) == 0
    assert (tmp_path / "excel.csv").read_bytes() == b"\xef\xbb\xbf" + (tmp_path / "out.csv").read_bytes()
    with pytest.raises(UsageError, match="--excel"):
        run(excel=True, output=tmp_path / "x.parquet")


def test_error_rows_are_done_again_and_the_others_stay(
    run: Callable, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classified: list[str]
) -> None:
    run(output=tmp_path / "whole.csv")
    monkeypatch.setattr(retries_module, "WAITS_S", ())
    real, failed = os.readv, []

    def readv(*args: object) -> int:
        if len(failed) < 3:
            failed.append(1)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args)

    monkeypatch.setattr(os, "readv", readv)
    run()
    errors = {row["path"] for row in read_rows(tmp_path / "out.csv") if row["status"] == "error"}
    assert len(errors) == 4
    classified.clear()
    assert run() == 0
    assert classified == [], "a finished table is left alone unasked"
    assert run(retry_errors=True) == 0
    assert set(classified) == errors
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    (folder / "new.jpg").write_bytes(b"")
    with pytest.raises(OutputError, match="number of files: 16 then, 17 now.*--update"):
        run(retry_errors=True)


def test_a_changed_folder_names_the_way_out(run: Callable, folder: Path) -> None:
    run()
    shutil.copy(folder / "0001.jpg", folder / "new.jpg")
    with pytest.raises(OutputError) as refused:
        run()
    said = str(refused.value)
    assert "number of files: 16 then, 17 now" in said
    assert "pass --update to classify only what is new or changed" in said
    with pytest.raises(OutputError, match="min_prob: 0.0 then, 0.5 now"):
        run(update=True, min_prob=0.5)


def test_without_its_stamps_a_table_is_made_anew(
    run: Callable, tmp_path: Path, classified: list[str], capsys: pytest.CaptureFixture
) -> None:
    run()
    whole = (tmp_path / "out.csv").read_bytes()
    (tmp_path / "out.stamps").write_bytes(b"\0" * (tmp_path / "out.stamps").stat().st_size)
    classified.clear()
    assert run(update=True) == 0
    assert len(classified) == 16
    assert "no file is known to be unchanged" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_bytes() == whole


@pytest.mark.parametrize("damage", [{"left_out": 5}, {"contents": 5}, {"settings": {}}, {"settings": {"topk": "x"}}])
def test_a_damaged_json_beside_the_table_is_one_line(run: Callable, tmp_path: Path, damage: dict) -> None:
    run()
    table = (tmp_path / "out.csv").read_bytes()
    facts = json.loads((tmp_path / "out.json").read_text())
    (tmp_path / "out.json").write_text(json.dumps(facts | damage))
    with pytest.raises(OutputError, match="--overwrite"):
        run(update=True)
    assert (tmp_path / "out.csv").read_bytes() == table


def test_a_stamp_is_that_of_what_was_read(folder: Path) -> None:
    reader = StampingReader(os.fsencode(folder))
    entry = Entry(b"0001.jpg")
    reader(entry)
    before = tuple(reader.take([entry])[0].tolist())
    assert before == stamp_of(os.fsencode(folder), entry)
    status = (folder / "0001.jpg").stat()
    data = bytearray((folder / "0001.jpg").read_bytes())
    data[300] ^= 1
    (folder / "0001.jpg").write_bytes(data)
    os.utime(folder / "0001.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert stamp_of(os.fsencode(folder), entry) != before


def test_watching_takes_what_is_whole_and_ends_with_0(
    run: Callable, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_settled = kept.is_settled  # rounds follow one another; files rest for longer
    monkeypatch.setattr(kept, "is_settled", lambda root, entry, seconds, now_s: is_settled(root, entry, 50.0, now_s))
    old = time.time() - 100
    for path in folder.rglob("*.jpg"):
        os.utime(path, (old, old))
    seen: list[set[str]] = []

    def paths() -> set[str]:
        try:
            return {row["path"] for row in read_rows(tmp_path / "out.csv")}
        except Exception:
            return set()

    def act() -> None:
        until_s = time.monotonic() + 60
        while len(paths()) != 16 and time.monotonic() < until_s:
            time.sleep(0.05)
        shutil.copyfile(folder / "0001.jpg", folder / "whole.jpg")
        os.utime(folder / "whole.jpg", (old, old))
        (folder / "half.jpg").write_bytes(b"half")
        (folder / "0002.jpg").write_bytes(b"hal")  # a photo of the table that is written over
        while "whole.jpg" not in paths() and time.monotonic() < until_s:
            time.sleep(0.05)
        seen.append(paths())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        assert run(watch=(0.05,)) == 0
    finally:
        thread.join()
    assert seen
    assert "half.jpg" not in seen[0]
    rows = {row["path"]: row for row in read_rows(tmp_path / "out.csv")}
    assert rows["0002.jpg"]["status"] == "ok", "its row stays until the file is at rest"


@pytest.mark.parametrize(
    "flags",
    [
        {"update": True, "overwrite": True},
        {"watch": (), "shard": "0/2"},
        {"watch": (0.0,)},
        {"watch": (1, 2)},
        {"watch": (), "input": "-"},
    ],
)
def test_flags_that_contradict_are_refused(run: Callable, flags: dict) -> None:
    with pytest.raises(UsageError):
        run(**flags)
