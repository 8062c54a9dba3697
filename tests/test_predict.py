"""The prediction job in one process: every file accounted for, every kind of input and output, nothing lost."""

import csv
import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import tarfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_job
from odd_files import HALF_JPEG, half_jpeg, make_odd_files, make_odd_names, make_odd_tree
from PIL import Image
from trees import as_nobody

from flowers.cli import parse
from flowers.config.predict import PredictConfig
from flowers.data.archives import Entry
from flowers.data.choice import Choice
from flowers.data.folders import ClassIndex
from flowers.data.formats import limits
from flowers.data.images import Decoded, decode_image, read_image
from flowers.data.paths import decode_path
from flowers.data.tables import read_rows
from flowers.errors import DataError, FlowersError, OutputError, StoppedError, UsageError
from flowers.models.bundle import load_bundle
from flowers.prediction import finish, parts, table
from flowers.prediction import pipeline as pipeline_module
from flowers.prediction import predict as predict_module
from flowers.prediction.from_table import predict_from_table
from flowers.prediction.inputs import list_inputs
from flowers.prediction.predict import predict
from flowers.prediction.work import Work, key_of
from flowers.prediction.work_folder import WorkFolder
from flowers.stopping import StopRequest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    tiny_job.make_photos(folder, 30)
    return folder


@pytest.fixture(autouse=True)
def _one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")


@pytest.fixture
def run(bundle: Path, photos: Path, tmp_path: Path) -> Callable[..., int]:
    """Run the job on the photos, or as the flags say."""

    def run(**flags: object) -> int:
        defaults = {"checkpoint": bundle, "input": photos, "output": tmp_path / "out.csv", "topk": 3}
        defaults |= {"engine": "torch", "precision": "float32", "batch_size": 4}
        return predict(PredictConfig(**{**defaults, **flags}))

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("out.csv", "out.json", "out.stamps"))


# Rows


def test_every_file_has_its_row_with_the_models_own_answer(
    run: Callable, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    assert run(workers=3) == 0
    rows = rows_of(tmp_path / "out.csv")
    assert [row["path"] for row in rows] == tiny_job.make_photos(tmp_path / "again", 30)
    model = load_bundle(bundle)
    network, preprocessing = model.build(), model.preprocessing
    import torch

    for row in rows:
        image = preprocessing.view(read_image(photos / row["path"], min_short_side=preprocessing.min_short_side))
        with torch.no_grad():
            probs = network(preprocessing.normalize(torch.from_numpy(image[None]))).softmax(1)[0]
        best = probs.argsort(descending=True)
        assert row["status"] == "ok"
        assert row["error"] == ""
        for rank, suffix in enumerate(("", "_2", "_3")):
            assert row[f"class{suffix}"] == tiny_job.CLASSES.folders[best[rank]]
            assert row[f"label{suffix}"] == tiny_job.CLASSES.labels[best[rank]]
            assert float(row[f"prob{suffix}"]) == pytest.approx(probs[best[rank]].item(), abs=2e-5)
    assert len({row["class"] for row in rows}) > 2, "a model that always says the same would hide mistakes"
    assert left_over(tmp_path) == ["again"]


def test_the_answers_to_a_few_photos_are_on_the_screen_too(
    run: Callable, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    run(input=(photos / "0001.jpg", tmp_path / "broken.jpg"))
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    found, broken = rows_of(tmp_path / "out.csv")
    assert [found["path"], "│", "ok", "│", *found["label"].split(), "│", found["prob"]] in said
    assert [broken["path"], "│", "error", "│", *broken["error"].split(), "│"] in said
    run(output=tmp_path / "all.csv")
    assert "0001.jpg" not in capsys.readouterr().out, "not of many"
    assert run(output=tmp_path / "thin.csv", input=photos / "0001.jpg", columns=("path,class",)) == 0


def test_the_sidecar_tells_what_was_done(run: Callable, bundle: Path, tmp_path: Path) -> None:
    run()
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["model"] == load_bundle(bundle).hash
    assert facts["counts"] == {"ok": 30}
    assert facts["files"] == 30
    assert facts["engine"] == {"engine": "torch", "precision": "float32"}
    written = (tmp_path / "out.csv").read_bytes()
    digest = hashlib.sha256(written).hexdigest()
    assert facts["output"] == {"name": "out.csv", "bytes": len(written), "sha256": digest}
    assert set(facts["seconds"]) == {"read", "decode", "infer", "write", "join"}
    assert all(facts["seconds"][stage] > 0 for stage in ("read", "decode", "infer", "write"))
    assert facts["made"]["config"]["topk"] == 3


def test_the_answers_do_not_depend_on_threads_or_shards(run: Callable, tmp_path: Path) -> None:
    run(output=tmp_path / "a.csv", workers=1)
    run(output=tmp_path / "b.csv", workers=5)
    run(output=tmp_path / "c.csv", shard_size=8)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes() == (tmp_path / "c.csv").read_bytes()


def test_an_engines_answers_do_not_depend_on_its_threads(bundle: Path) -> None:
    import torch

    from flowers.engines.engine import build_engine

    before = torch.get_num_threads()
    images = np.random.default_rng(0).integers(0, 256, (48, tiny_job.SIDE, tiny_job.SIDE, 3), np.uint8)
    found = []
    try:
        torch.set_num_threads(2)  # as a job finds it; each thread of the engine must leave it
        for threads in (1, 2, 3, 2):
            options = {"engine": "torch", "precision": "float32", "batch_size": 48, "threads": threads}
            engine = build_engine(load_bundle(bundle), **options)
            found.append(engine.submit(images).result().probs)
            engine.close()
    finally:
        torch.set_num_threads(before)
    for probs in found[1:]:
        assert np.array_equal(probs, found[0])


def test_more_guesses_than_classes_gives_all(run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(topk=9)
    assert list(rows_of(tmp_path / "out.csv")[0])[-1:-3:-1] == ["error", "prob_4"]
    assert "knows 4 classes" in capsys.readouterr().err


def test_unsure_rows_keep_their_guesses(run: Callable, tmp_path: Path) -> None:
    run(min_prob=0.6)
    rows = rows_of(tmp_path / "out.csv")
    assert {row["status"] for row in rows} == {"ok", "unsure"}
    for row in rows:
        assert row["class"]
        assert (row["status"] == "unsure") == (float(row["prob"]) < 0.6)


def test_flip_is_the_mean_of_both_views(run: Callable, bundle: Path, photos: Path, tmp_path: Path) -> None:
    from flowers.engines.engine import build_engine

    run(tta="flip")
    row = rows_of(tmp_path / "out.csv")[0]
    model = load_bundle(bundle)
    view = model.preprocessing.view(read_image(photos / row["path"], min_short_side=model.preprocessing.min_short_side))
    engine = build_engine(model, engine="torch", precision="float32", batch_size=2)
    probs = engine.submit(np.stack([view, view[:, ::-1]])).result().probs
    assert np.abs(probs[0] - probs[1]).max() > 1e-3
    assert float(row["prob"]) == pytest.approx(probs.mean(0).max(), abs=2e-5)


# Bad files


def test_sixty_odd_files_among_good_ones(
    run: Callable, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(output=tmp_path / "good.csv", batch_size=8)
    good = {row["path"]: row for row in rows_of(tmp_path / "good.csv")}
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in good:
        (mixed / path).parent.mkdir(exist_ok=True)
        os.link(photos / path, mixed / path)
    odd = {f"odd/{file.name}": file for file in make_odd_files(mixed / "odd")}
    names = {f"names/{name}" for name in make_odd_names(mixed / "names")}
    tree = {f"tree/{name}" for name in make_odd_tree(mixed / "tree")}
    bad = [path for path, file in odd.items() if file.pixels is None]
    assert len(odd) + len(names) + len(tree) > 60
    assert len(bad) > 10
    assert run(input=mixed, batch_size=8) == 0
    rows = {decode_path(row["path"]): row for row in rows_of(tmp_path / "out.csv")}
    assert set(rows) == set(good) | set(odd) | names | tree
    assert list(rows) == sorted(rows, key=os.fsencode)
    for path, row in good.items():
        assert {**rows[path], "path": row["path"]} == row, "a good file's row does not depend on its neighbours"
    for path, file in odd.items():
        if path == "odd/bomb.jpg":
            assert rows[path]["status"] == "damaged", "an eighth of its size is enough for the view"
        elif file.pixels is None:
            assert rows[path]["status"] == "error"
            assert rows[path]["error"] == file.reason
            assert not any(rows[path][name] for name in ("label", "class", "prob", "class_3"))
        else:
            assert rows[path]["status"] == "ok", rows[path]
    assert len({rows[path]["class"] for path in names}) == 1
    assert rows["tree/dangling.jpg"]["error"] == "file not found"
    assert run(input=mixed, batch_size=8, strict=True) == 3, "the finished file is looked at, not made again"


def test_a_damaged_photo_is_marked_taken_or_refused(run: Callable, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    tiny_job.make_photos(folder, 3)
    (folder / "half.jpg").write_bytes(half_jpeg())
    found = {}
    for way in ("mark", "ok", "error"):
        assert run(input=folder, output=tmp_path / f"{way}.csv", on_damaged=way, report=True) == 0
        found[way] = {row["path"]: row for row in rows_of(tmp_path / f"{way}.csv")}
        counts = json.loads((tmp_path / f"{way}.json").read_text())["counts"]
        status = {"mark": "damaged", "ok": "ok", "error": "error"}[way]
        assert counts == ({"ok": 4} if way == "ok" else {"ok": 3, status: 1})
        assert found[way]["half.jpg"]["status"] == status
        assert found[way]["half.jpg"]["error"] == ("" if way == "ok" else HALF_JPEG)
        assert (HALF_JPEG in (tmp_path / f"{way}.html").read_text()) == (way != "ok")
    assert found["error"]["half.jpg"]["class"] == ""
    sound = {**found["mark"]["half.jpg"], "status": "ok", "error": ""}
    assert sound == found["ok"]["half.jpg"], "the guesses are the same"
    assert run(input=folder, output=tmp_path / "mark.csv", strict=True) == 0, "damaged is not failed"
    with pytest.raises(OutputError, match="on_damaged: None then, error now"):
        run(input=folder, output=tmp_path / "mark.csv", on_damaged="error")


def test_more_pixels_are_decoded_on_request(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_allowed_pixels", limits.MAX_PIXELS)
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("1", (100_001, 1000)).save(folder / "large.png")
    run(input=folder)
    assert rows_of(tmp_path / "out.csv")[0]["error"] == "too many pixels (100001 x 1000)"
    run(input=folder, max_pixels=100_001_000, overwrite=True)
    assert rows_of(tmp_path / "out.csv")[0]["status"] == "ok"
    with pytest.raises(UsageError, match="--max-pixels: got 0, expected at least 1"):
        run(max_pixels=0)


def test_a_file_removed_while_running_is_an_error_row(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    paths = tiny_job.make_photos(folder, 8)

    def list_then_remove(*args: object) -> Iterator[Entry]:
        yield from list_inputs(*args)
        (folder / paths[3]).unlink()

    monkeypatch.setattr("flowers.prediction.predict.list_inputs", list_then_remove)
    run(input=folder)
    rows = rows_of(tmp_path / "out.csv")
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["error"] + ["ok"] * 4
    assert rows[3]["error"] == "file not found"


def test_whatever_a_decoder_raises_is_the_files_row(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def explode(data: bytes, **options: object) -> Decoded:
        calls.append(1)
        if len(calls) == 5:
            raise ZeroDivisionError("odd\nheader")
        return decode_image(data, **options)

    monkeypatch.setattr(pipeline_module, "decode_image", explode)
    run(workers=1)
    errors = [row["error"] for row in rows_of(tmp_path / "out.csv") if row["status"] == "error"]
    assert errors == ["ZeroDivisionError: odd header"]


def test_probabilities_that_are_no_numbers_are_an_error(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowers.engines.engine import Outputs

    class Broken:
        name, precision, description, batch_size, on_cpu = "torch", "float32", "broken", 4, True

        def submit(self, images: np.ndarray, *, lent: bool) -> types.SimpleNamespace:
            probs = np.full((len(images), 4), 0.25, np.float32)
            probs[0] = np.nan
            return types.SimpleNamespace(result=lambda: Outputs(probs, None))

        def close(self) -> None: ...

    monkeypatch.setattr("flowers.prediction.shard_loop.open_engine", lambda *args, **options: Broken())
    run()
    rows = rows_of(tmp_path / "out.csv")
    assert [row["status"] for row in rows[:8]] == ["error", "ok", "ok", "ok"] * 2
    assert rows[0]["error"] == "the model gave no finite probabilities"


# Inputs


def test_extensions_choose_the_files(run: Callable, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    tiny_job.make_photos(folder, 2)
    (folder / "0001.jpg").rename(folder / "0001.Photo")
    run(input=folder, ext=("photo",))
    assert [row["path"] for row in rows_of(tmp_path / "out.csv")] == ["0001.Photo"]
    run(input=folder, ext=("",), overwrite=True)
    assert len(rows_of(tmp_path / "out.csv")) == 2


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_a_list_names_files_relative_to_itself(
    run: Callable, photos: Path, tmp_path: Path, end: str, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "pictures").symlink_to(photos)
    wanted = ["pictures/0001.jpg", "pictures/nowhere.jpg", str(photos / "0002.jpg")]
    (folder / "list.txt").write_text(end.join([*wanted, wanted[0], ""]), newline="")
    run(input=folder / "list.txt")
    assert "1 file is listed more than once" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out.csv")
    assert [row["path"] for row in rows] == sorted(wanted)
    assert [row["error"] for row in rows] == ["", "", "file not found"]


def test_one_image_is_an_input_of_one_file(run: Callable, photos: Path, tmp_path: Path) -> None:
    run(output=tmp_path / "all.csv")
    run(input=photos / "0001.jpg")
    (row,) = rows_of(tmp_path / "out.csv")
    (wanted,) = [row for row in rows_of(tmp_path / "all.csv") if row["path"] == "0001.jpg"]
    assert row == wanted


def test_what_is_left_out_is_counted_by_kind(run: Callable, photos: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "in"
    for name in ("a.jpg", "b.psd", "c.PSD", "noending", "d.jpg_large", ".h.jpg", "@eaDir/a.jpg/t.jpg", "old/e.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(photos / "0001.jpg", folder / name)
    (folder / "notes.txt").write_text("BMW")
    make_tar(folder / "t.tar", photos, ["0001.jpg"])
    run(input=folder, exclude=("old",))
    expected = {".psd": 2, "without an ending": 1, ".jpg_large": 1, "hidden": 1, "in @eaDir": 1, "excluded": 1}
    assert json.loads((tmp_path / "out.json").read_text())["left_out"] == {**expected, ".txt": 1, ".cls": 1}
    said = " ".join(capsys.readouterr().out.split())
    assert "2 rows (2 ok); 9 files left out (2 .psd, 1 .cls, 1 .jpg_large, 1 .txt, 1 excluded, 1 hidden," in said
    run(input=folder, output=tmp_path / "more.csv", by_content=True)
    found = [row["path"] for row in rows_of(tmp_path / "more.csv")]
    assert found == ["a.jpg", "b.psd", "c.PSD", "d.jpg_large", "noending", "old/e.jpg", "t.tar/0001.jpg"]


def make_tar(path: Path, photos: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(photos / name, name)
            text = tarfile.TarInfo(f"{name}.cls")
            text.size = 1
            tar.addfile(text, io.BytesIO(b"1"))
    return path


def test_tars_are_read_where_they_are(run: Callable, photos: Path, tmp_path: Path) -> None:
    run(output=tmp_path / "plain.csv")
    plain = {row["path"]: row for row in rows_of(tmp_path / "plain.csv")}
    names = list(plain)
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    make_tar(folder / "sub" / "a.tar", photos, names[:20])
    make_tar(folder / "b.TAR", photos, names[20:])
    os.link(photos / names[0], folder / "loose.jpg")
    run(input=folder, output=tmp_path / "tars.csv")
    rows = {row["path"]: row for row in rows_of(tmp_path / "tars.csv")}
    wanted = {f"sub/a.tar/{name}": name for name in names[:20]} | {f"b.TAR/{name}": name for name in names[20:]}
    wanted["loose.jpg"] = names[0]
    assert set(rows) == set(wanted)
    assert list(rows) == sorted(rows)
    for path, name in wanted.items():
        close = float(rows[path]["prob"]), float(plain[name]["prob"])
        assert (rows[path]["status"], rows[path]["class"]) == ("ok", plain[name]["class"])
        assert close[0] == pytest.approx(close[1], abs=2e-5)
    run(input=folder / "sub" / "a.tar", output=tmp_path / "one.csv")
    assert [row["path"] for row in rows_of(tmp_path / "one.csv")] == [f"a.tar/{name}" for name in names[:20]]


def test_broken_tars_say_so_and_give_what_they_have(run: Callable, photos: Path, tmp_path: Path) -> None:
    names = ["0001.jpg", "0002.jpg", "0004.jpg"]
    folder = tmp_path / "in"
    folder.mkdir()
    data = make_tar(folder / "cut.tar", photos, names).read_bytes()
    with tarfile.open(folder / "cut.tar") as tar:
        third = tar.getmember(names[2])
    (folder / "cut.tar").write_bytes(data[: third.offset_data + 100])
    (folder / "scrambled.tar").write_bytes(data[: third.offset] + b"rubbish " * 200)
    (folder / "text.tar").write_text("not a tar at all, " * 100)
    (folder / "empty.tar").touch()
    assert run(input=folder) == 0
    errors = {row["path"]: row["error"] for row in rows_of(tmp_path / "out.csv")}
    assert errors.pop("cut.tar") == "broken archive: unexpected end of data"
    assert errors.pop("cut.tar/0004.jpg") == "truncated archive"
    assert errors.pop("scrambled.tar").startswith("broken archive: no header at byte")
    assert errors.pop("text.tar").startswith("broken archive: ")
    assert errors.pop("empty.tar") == "broken archive: empty file"
    assert errors == dict.fromkeys([f"{tar}/{name}" for tar in ("cut.tar", "scrambled.tar") for name in names[:2]], "")


def test_tars_that_lead_in_a_circle_or_to_much_memory(run: Callable, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    sound = make_tar(folder / "x.tar", photos, ["0001.jpg", "0002.jpg"]).read_bytes()
    with tarfile.open(folder / "x.tar") as tar:
        second = tar.getmember("0002.jpg")
    (folder / "x.tar").unlink()
    for name, start in (("circle.tar", second.offset_data - 512), ("extended.tar", second.offset)):
        data = bytearray(sound)
        data[start + 124 : start + 136] = b"\xff" + (-512).to_bytes(11, "big", signed=True)
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        (folder / name).write_bytes(data)
    large = tarfile.TarInfo("x.jpg")
    large.size = 3 << 30
    with open(folder / "large.tar", "wb") as file:
        file.write(large.tobuf())
        file.truncate(512 + large.size + 1024)
    assert run(input=folder, copy_to=tmp_path / "sorted") == 0
    errors = {row["path"]: row["error"] for row in rows_of(tmp_path / "out.csv")}
    for name in ("circle.tar", "extended.tar"):
        assert errors.pop(name).startswith("broken archive: ")
        assert errors.pop(f"{name}/0001.jpg") == ""
    assert errors == {"large.tar/x.jpg": "too large a file (3.0 GiB)"}


def test_of_a_tar_one_member_is_meant_in_rows_copies_embeddings_and_pages(
    run: Callable, photos: Path, tmp_path: Path
) -> None:
    """The last of two of one name, which is a link's target, too."""
    first, last = ((photos / name).read_bytes() for name in ("0001.jpg", "0002.jpg"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("x.jpg", first), ("soft.jpg", "x.jpg"), ("x.jpg", last), ("gone.jpg", "y.jpg")):
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    flags = {"copy_to": tmp_path / "sorted", "embeddings": tmp_path / "e.npy", "report": True}
    assert run(input=tmp_path / "a.tar", **flags) == 0
    rows = {row["path"]: row for row in rows_of(tmp_path / "out.csv")}
    assert rows["a.tar/gone.jpg"]["error"] == "a link to what is not in the archive"
    assert {path for path, row in rows.items() if not row["error"]} == {"a.tar/soft.jpg", "a.tar/x.jpg"}
    assert all(path.read_bytes() == last for path in (tmp_path / "sorted").rglob("*.jpg"))
    features = np.load(tmp_path / "e.npy")
    run(input=photos / "0002.jpg", output=tmp_path / "alone.csv", embeddings=tmp_path / "alone.npy")
    (alone,) = rows_of(tmp_path / "alone.csv")
    assert {row["prob"] for row in rows.values()} == {"", alone["prob"]}
    assert np.isnan(features[0]).all()
    assert np.allclose(features[1:], np.load(tmp_path / "alone.npy"), atol=1e-5)


def test_one_photo_is_told_in_the_singular(
    run: Callable, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(input=photos / "0002.jpg", copy_to=tmp_path / "sorted", report=True)
    told = capsys.readouterr().out
    for words in ("1 file in 1 shard\n", "1 image in ", "1 photo in class folders", "1 row ("):
        assert words in told
    assert "<title>1 photo classified</title>" in (tmp_path / "out.html").read_text()


def test_an_input_nobody_may_look_at_is_no_fault_of_the_output() -> None:
    with as_nobody() as folder:
        (folder / "top" / "photos").mkdir(parents=True)
        (folder / "top").chmod(0)
        try:
            with pytest.raises(DataError, match="--input .*top/photos: permission denied"):
                next(list_inputs(folder / "top" / "photos", Choice()))
        finally:
            (folder / "top").chmod(0o755)


def test_a_stop_is_heard_while_files_are_listed(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_text("\n".join(f"{index}.jpg" for index in range(1500)))
    assert run_until(0, run, monkeypatch, input=tmp_path / "list.txt") == 75
    assert left_over(tmp_path) == ["list.txt"], "there is no list of the files yet"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "no such file or folder"),
        ("x.tar.zst", "cannot be read; make a .tar or .zip of it"),
        ("empty", "no images"),
    ],
)
def test_an_input_that_gives_nothing_is_one_line(run: Callable, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "x.tar.zst").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=said):
        run(input=tmp_path / name)
    with pytest.raises(DataError, match=f"--input {tmp_path}/{name}: "):
        run(input=tmp_path / name)
    assert left_over(tmp_path) == ["empty", "x.tar.zst"]


# Outputs


def test_every_kind_of_output_says_the_same(run: Callable, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("openpyxl")
    kinds = ["a.csv", "a.csv.gz", "a.jsonl", "a.parquet", "a.xlsx"]
    for kind in kinds:
        run(output=tmp_path / kind, min_prob=0.5)
    found = [list(read_rows(tmp_path / kind)) for kind in kinds]
    for rows in found:
        assert [list(row) for row in rows] == [list(row) for row in found[0]]
        for row, wanted in zip(rows, found[0], strict=True):
            for name, value in wanted.items():
                assert (float(row[name]) == float(value)) if name.startswith("prob") else row[name] == value
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()) == (tmp_path / "a.csv").read_bytes()


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl", "a.xlsx"])
def test_the_same_job_gives_the_same_bytes(run: Callable, tmp_path: Path, name: str) -> None:
    run(output=tmp_path / "1" / name)
    run(output=tmp_path / "2" / name, workers=4)
    assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_embeddings_stand_in_the_rows_order(run: Callable, bundle: Path, photos: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "in"
    paths = tiny_job.make_photos(folder, 11)
    (folder / paths[6]).write_bytes(b"")
    run(input=folder, embeddings=tmp_path / "features.npy", shard_size=4)
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    model = load_bundle(bundle)
    network, preprocessing = model.build(), model.preprocessing
    assert features.shape == (11, model.head.in_features)
    assert features.dtype == np.float32
    for index, path in enumerate(paths):
        if index == 6:
            assert np.isnan(features[index]).all()
        else:
            image = preprocessing.view(read_image(folder / path, min_short_side=preprocessing.min_short_side))
            with torch.no_grad():
                wanted = network.features(preprocessing.normalize(torch.from_numpy(image[None])))[0]
            np.testing.assert_allclose(features[index], wanted, rtol=1e-3, atol=1e-4)
    assert left_over(tmp_path) == ["features.npy", "in"]
    (tmp_path / "features.npy").unlink()
    with pytest.raises(OutputError, match="features.npy: gone or damaged since"):
        run(input=folder, embeddings=tmp_path / "features.npy", shard_size=4)
    assert run(input=folder, embeddings=tmp_path / "features.npy", shard_size=4, overwrite=True) == 0
    assert np.array_equal(np.load(tmp_path / "features.npy"), features, equal_nan=True)


def test_a_part_found_damaged_in_the_end_is_done_again_with_its_embeddings(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = {"embeddings": tmp_path / "features.npy", "shard_size": 8}
    run(**flags, output=tmp_path / "whole.csv")
    whole = (tmp_path / "features.npy").read_bytes()
    (tmp_path / "features.npy").unlink()
    run(**flags, shard="0/2")
    (part, *_) = (tmp_path / "out.csv.parts").glob("????????????/parts/*")
    part.write_bytes(part.read_bytes().replace(b"ok", b"no", 1))
    assert run(**flags, shard="1/2") == 0
    assert "was damaged, and is removed" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists(), "the damaged shard is of the other task"
    assert run(**flags, shard="0/2") == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "features.npy").read_bytes() == whole


def test_a_damaged_part_that_cannot_be_removed_ends_the_job(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as done, so that nobody would do it again, for ever."""

    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    run(shard_size=8, shard="0/2")
    (part, *_) = (tmp_path / "out.csv.parts").glob("????????????/parts/*")
    part.write_bytes(b"damage")
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="cannot be removed .*remove it, then"):
        patch.setattr(Path, "unlink", refuse)
        run(shard_size=8, shard="1/2")
    assert run(shard_size=8) == 0


def test_two_that_join_at_once_with_one_process_number_do_not_meet(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In containers most processes are number 1."""
    run(output=tmp_path / "whole.csv", shard_size=8)
    work: list[Work] = []

    def keep(this: Work, *args: object) -> dict:
        work.append(this)
        raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr("flowers.prediction.predict.join_parts", keep)
        run(shard_size=8)
    joined = []

    def other_joins() -> None:
        """Once, when the first rows are written."""
        joined.append(len(joined))
        if len(joined) == 2:
            table.join_parts(work[0], tmp_path / "out.csv", lambda: None)

    table.join_parts(work[0], tmp_path / "out.csv", other_joins)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_processes_with_different_embeddings_files_do_not_share_one_job(run: Callable, tmp_path: Path) -> None:
    run(embeddings=tmp_path / "0.npy", shard_size=8, shard="0/2")
    with pytest.raises(OutputError, match="embeddings: 0.npy then, 1.npy now"):
        run(embeddings=tmp_path / "1.npy", shard_size=8, shard="1/2")


def test_photos_are_sorted_into_class_folders(run: Callable, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    tiny_job.make_photos(folder, 12)
    (folder / "twin").mkdir()
    (folder / "twin" / "0001.jpg").write_bytes((folder / "0001.jpg").read_bytes() + b"\0")
    (folder / "0002.jpg").write_bytes(b"broken")
    tiny_job.make_photos(tmp_path / "others", 12, seed=1)
    make_tar(folder / "t.tar", tmp_path / "others", ["0004.jpg"])
    run(input=folder, min_prob=0.5, copy_to=tmp_path / "sorted")
    rows = rows_of(tmp_path / "out.csv")
    made = sorted(path.relative_to(tmp_path / "sorted").as_posix() for path in (tmp_path / "sorted").rglob("*.jpg"))
    assert len(made) == sum(row["status"] != "error" for row in rows)
    for row in rows:
        if row["status"] == "error":
            continue
        wanted = "_unsure" if row["status"] == "unsure" else finish.folder_name(row["label"])
        assert any(name.startswith(f"{wanted}/{Path(row['path']).stem}") for name in made)
    assert sum("/0001" in name for name in made) == 2
    assert sum("/0004" in name for name in made) == 2
    assert run(input=folder, min_prob=0.5, copy_to=tmp_path / "sorted") == 0, "again: nothing changes"
    assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == len(made)
    with pytest.raises(UsageError, match="lies in an archive"):
        run(input=folder, min_prob=0.5, link_to=tmp_path / "links")


def test_photos_that_cannot_be_read_any_more_do_not_keep_the_others_from_being_sorted(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = tiny_job.make_photos(tmp_path / "in", 9)
    make_tar(tmp_path / "in" / "a.tar", tmp_path / "in", [paths[0]])
    run(input=tmp_path / "in")
    (tmp_path / "in" / "a.tar").write_bytes(b"broken")
    (tmp_path / "in" / paths[1]).unlink()
    (tmp_path / "in" / paths[2]).unlink()
    (tmp_path / "in" / paths[2]).mkdir()
    assert predict_from_table(PredictConfig(from_table=tmp_path / "out.csv", copy_to=tmp_path / "sorted")) == 0
    assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == 7
    said = capsys.readouterr()
    assert f"{paths[2]}: a folder, not a file; not sorted" in said.err
    assert "7 photos in class folders, 3 left out" in said.out
    copy = next((tmp_path / "sorted").rglob(Path(paths[3]).name))
    assert copy.stat().st_mtime == (tmp_path / "in" / paths[3]).stat().st_mtime


def test_links_lead_to_the_photos(run: Callable, photos: Path, tmp_path: Path) -> None:
    run(link_to=tmp_path / "links")
    links = list((tmp_path / "links").rglob("*.jpg"))
    assert len(links) == 30
    assert all(link.is_symlink() and link.resolve().is_relative_to(photos.resolve()) for link in links)


def test_long_names_that_collide_are_told_apart(run: Callable, photos: Path, tmp_path: Path) -> None:
    name = "n" * 251 + ".jpg"
    for index, folder in enumerate("ab"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / name).write_bytes((photos / "0001.jpg").read_bytes() + b"\0" * index)
    run(input=tmp_path / "in", copy_to=tmp_path / "sorted")
    run(input=tmp_path / "in", link_to=tmp_path / "links")
    for folder in ("sorted", "links"):
        first, second = sorted(path.name for path in (tmp_path / folder).glob("*/*"))
        assert second == name
        assert len(first) == 64 + len(".jpg")


def test_a_stop_is_heard_while_rows_are_joined_and_photos_sorted(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped_in(module: types.ModuleType, name: str, **flags: object) -> None:
        original = getattr(module, name)

        def asked(*args: object) -> object:
            os.kill(os.getpid(), signal.SIGUSR1)
            return original(*args)

        with monkeypatch.context() as patch, pytest.raises(StoppedError):
            patch.setattr(module, name, asked)
            run(**flags)

    stopped_in(parts, "read_rows")
    assert not (tmp_path / "out.csv").exists()
    stopped_in(finish, "_keep", copy_to=tmp_path / "sorted")
    assert len(rows_of(tmp_path / "out.csv")) == 30
    assert len(list((tmp_path / "sorted").glob("*/*"))) == 1
    assert run(copy_to=tmp_path / "sorted") == 0
    assert len(list((tmp_path / "sorted").glob("*/*"))) == 30


def test_a_class_called_unsure_is_not_taken_for_the_unsure(run: Callable, tmp_path: Path) -> None:
    classes = ClassIndex(("1", "2"), ("_unsure", "daisy"))
    run(checkpoint=tiny_job.make_bundle(tmp_path / "model", classes), min_prob=0.8, copy_to=tmp_path / "sorted")
    made = {path.name: len(list(path.iterdir())) for path in (tmp_path / "sorted").iterdir()}
    rows = rows_of(tmp_path / "out.csv")
    assert made["_unsure"] == sum(row["status"] == "unsure" for row in rows)
    assert made["_unsure (1)"] == sum(row["status"] == "ok" and row["class"] == "1" for row in rows)


def test_photos_are_not_sorted_into_the_input(run: Callable, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would be input next time"):
        run(copy_to=photos / "sorted")


@pytest.mark.parametrize(
    ("label", "name"), [("a/b", "a_b"), ("..", "_"), ("", "_"), (" x. ", "x"), ("a\nb", "a_b"), ("é" * 300, "é" * 100)]
)
def test_labels_become_safe_folder_names(label: str, name: str) -> None:
    assert finish.folder_name(label) == name


# Going on, and refusing to


def test_a_finished_job_is_not_done_again(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run()
    before = (tmp_path / "out.csv").stat()
    monkeypatch.setattr("flowers.prediction.shard_loop.open_engine", lambda *args, **options: pytest.fail("built"))
    assert run() == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out.csv").stat() == before


@pytest.mark.parametrize("change", [{"topk": 2}, {"min_prob": 0.9}, {"tta": "flip"}, {"batch_size": 5}])
def test_a_change_of_what_decides_the_rows_is_refused(run: Callable, tmp_path: Path, change: dict) -> None:
    run()
    before = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(OutputError, match=next(iter(change))):
        run(**change)
    assert (tmp_path / "out.csv").read_bytes() == before
    assert run(**change, overwrite=True) == 0
    assert (tmp_path / "out.csv").read_bytes() != before or "batch_size" in change
    assert left_over(tmp_path) == []


def test_another_model_or_file_is_noticed(run: Callable, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    tiny_job.make_photos(folder, 5)
    run(input=folder)
    with pytest.raises(OutputError, match=r"model: \w{12} then, \w{12} now"):
        run(input=folder, checkpoint=tiny_job.make_bundle(tmp_path / "other", seed=1))
    os.link(photos / "0001.jpg", folder / "new.jpg")
    with pytest.raises(OutputError, match="number of files: 5 then, 6 now"):
        run(input=folder)
    assert run(input=folder, overwrite=True) == 0
    assert len(rows_of(tmp_path / "out.csv")) == 6


@pytest.mark.parametrize("kind", ["folder", "image", "tar"])
def test_other_photos_of_the_same_names_are_noticed(run: Callable, photos: Path, tmp_path: Path, kind: str) -> None:
    folders = tmp_path / "one", tmp_path / "moved", tmp_path / "other"
    for folder, photo in zip(folders, ("0001.jpg", "0001.jpg", "0002.jpg"), strict=True):
        folder.mkdir()
        data = (photos / photo).read_bytes().ljust(20_000, b"\0")  # of the same size, as bitmaps are
        (folder / "x.jpg").write_bytes(data)
        if kind == "tar":
            make_tar(folder / "x.tar", folder, ["x.jpg"])
    one, moved, other = (
        folder if kind == "folder" else folder / {"image": "x.jpg", "tar": "x.tar"}[kind] for folder in folders
    )
    run(input=one)
    assert run(input=moved) == 0
    with pytest.raises(OutputError, match="contents of the files"):
        run(input=other)
    assert run(input=other, overwrite=True) == 0


def test_files_of_others_beside_the_output_are_not_replaced_unasked(run: Callable, tmp_path: Path) -> None:
    features = tmp_path / "features.npy"
    (tmp_path / "out.json").write_text('{"mine": 1}')
    with pytest.raises(
        OutputError, match=r"out.json was there before, .* choose another --output, or pass --overwrite"
    ):
        run()
    (tmp_path / "out.json").write_text("[1]")
    with pytest.raises(OutputError, match="out.json was there before"):
        run()
    (tmp_path / "out.json").unlink()
    run(output=tmp_path / "other.csv", embeddings=features)
    before = features.read_bytes()
    with pytest.raises(OutputError, match=r"features.npy was there before, .* choose another --embeddings"):
        run(embeddings=features)
    assert features.read_bytes() == before
    (tmp_path / "other.html").write_text("mine")
    with pytest.raises(OutputError, match=r"other.html was there before, .* move it away, or pass --overwrite"):
        run(output=tmp_path / "other.csv", report=True)
    assert (tmp_path / "other.html").read_text() == "mine"
    (tmp_path / "other.csv").unlink()
    assert run(output=tmp_path / "other.csv", embeddings=features) == 0, "all of it is this job's own"
    assert run(embeddings=features, overwrite=True) == 0


def run_until(batches: int, run: Callable, monkeypatch: pytest.MonkeyPatch, **flags: object) -> int:
    """Run the job with a signal that comes after so many batches; returns the exit code."""
    seen = []

    def check(self: StopRequest) -> None:
        seen.append(1)
        if len(seen) > batches:
            raise StoppedError("stopped by SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "check", check)
        try:
            return run(**flags)
        except StoppedError as error:
            return error.exit_code


def test_a_stopped_job_goes_on_with_what_is_missing(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(output=tmp_path / "whole.csv")
    assert run_until(4, run, monkeypatch) == 75
    assert not (tmp_path / "out.csv").exists()
    work = next((tmp_path / "out.csv.parts").glob("?" * 12))
    done = parts.finished(work / "parts")
    assert 0 < len(done) < 8
    stamps = {index: (work / "parts" / parts.part_name(index)).stat().st_mtime_ns for index in done}
    assert run_until(2, run, monkeypatch) == 75
    assert parts.finished(work / "parts") > done
    assert all((work / "parts" / parts.part_name(i)).stat().st_mtime_ns == stamp for i, stamp in stamps.items())
    assert run() == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "out.csv.parts").exists()


def test_a_work_in_progress_holds_on_to_its_engine(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_until(4, run, monkeypatch, engine="auto", precision="auto") == 75
    work = next((tmp_path / "out.csv.parts").glob("?" * 12))
    assert Work(work).engine()["precision"] in ("float32", "bf16", "fp16")
    for part in (work / "parts").iterdir():
        part.unlink()
    (work / "engine.json").unlink()
    Work(work).settle_engine({"engine": "torch", "precision": "float32"})
    assert run(engine="auto", precision="auto") == 0
    assert json.loads((tmp_path / "out.json").read_text())["engine"] == {"engine": "torch", "precision": "float32"}


def test_an_equal_job_that_finishes_meanwhile_is_no_error(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = WorkFolder.begin

    def begin_and_lose(*args: object, **options: object) -> object:
        work = begin(*args, **options)
        monkeypatch.setattr(WorkFolder, "begin", begin)
        assert run() == 0  # the other one, which is faster
        return work

    monkeypatch.setattr(WorkFolder, "begin", begin_and_lose)
    assert run() == 0
    assert len(rows_of(tmp_path / "out.csv")) == 30
    assert left_over(tmp_path) == []


def test_replaced_work_takes_its_unfinished_embeddings_along(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_until(4, run, monkeypatch, embeddings=tmp_path / "features.npy") == 75
    assert len(list(tmp_path.glob("out.csv.parts/*/embeddings.npy"))) == 1
    assert run(topk=2, overwrite=True) == 0
    assert left_over(tmp_path) == []


def test_jobs_of_two_outputs_do_not_replace_one_anothers_embeddings(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = tmp_path / "features.npy"
    refusal = r"features.npy was there before, .*; move it away and start the same command again, or pass --overwrite"
    assert run_until(4, run, monkeypatch, embeddings=features) == 75
    run(output=tmp_path / "other.csv", embeddings=features, tta="flip")
    others = features.read_bytes()
    with pytest.raises(OutputError, match=refusal):
        run(embeddings=features)
    features.rename(tmp_path / "aside.npy")
    join = predict_module._join

    def join_later(*args: object) -> dict | None:
        (tmp_path / "aside.npy").rename(features)
        return join(*args)

    with monkeypatch.context() as patch, pytest.raises(OutputError, match=refusal):
        patch.setattr(predict_module, "_join", join_later)
        run(embeddings=features)
    assert features.read_bytes() == others
    assert not (tmp_path / "out.csv").exists()
    features.unlink()
    monkeypatch.setattr(predict_module, "classify", lambda job, work: None)  # all of it is done
    assert run(embeddings=features) == 0
    assert features.read_bytes() != others


def test_an_array_does_its_shards_and_the_last_task_joins(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(output=tmp_path / "whole.csv")
    assert run(shard="2/3") == 0
    with pytest.raises(OutputError, match="of 8 shards are missing"):
        run(merge=True)
    assert run(shard="0/3") == 0
    assert "--shard 0/3 is done; 3 of 8 shards are left to other tasks" in capsys.readouterr().out
    assert not (tmp_path / "out.csv").exists()
    assert run(shard="1/3") == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert run(merge=True) == 0, "the merge job that follows finds all done"
    assert run(shard="1/3") == 0, "and so does a task that is queued again"


def test_strict_of_an_array_task_counts_its_own_files(run: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    paths = tiny_job.make_photos(folder, 8)
    (folder / paths[0]).write_bytes(b"")
    assert run(input=folder, shard="1/3", strict=True, shard_size=2) == 0
    assert run(input=folder, shard="0/3", strict=True, shard_size=2) == 3
    assert run(input=folder, shard="2/3", strict=True, shard_size=2) == 3, "it joins, and sees all"


# Damage to the work of a stopped job


def flip(path: Path) -> None:
    """Change one bit in the last third."""
    data = bytearray(path.read_bytes() or b"x")
    data[len(data) * 2 // 3] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_folder_of(path: Path) -> None:
    path.unlink()
    (path / "x").mkdir(parents=True)


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.write_bytes(b""), Path.unlink, make_folder_of])
def test_no_damage_to_any_file_of_the_work_changes_the_table(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    """Every file that a stopped job leaves, so that a new kind of file cannot be forgotten."""
    flags = {"embeddings": tmp_path / "features.npy", "shard_size": 4}
    run(**flags, output=tmp_path / "whole.csv")
    features = (tmp_path / "features.npy").read_bytes()
    (tmp_path / "features.npy").unlink()
    assert run_until(5, run, monkeypatch, **flags) == 75
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "out.csv.parts", kept)
    names = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    assert {name.name for name in names} >= {"job.json", "list.bin", "offsets.bin", "engine.json", "00000000"}
    for name in names:
        shutil.rmtree(tmp_path / "out.csv.parts", ignore_errors=True)
        shutil.copytree(kept, tmp_path / "out.csv.parts")
        target = tmp_path / "out.csv.parts" / name
        damage(target)
        if damage is make_folder_of and target.suffix == ".lock":
            with pytest.raises(FlowersError, match="cannot write"):
                run(**flags)
            continue
        assert run(**flags) == 0
        assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes(), name
        assert (tmp_path / "features.npy").read_bytes() == features, name
        assert not (tmp_path / "out.csv.parts").exists(), name
        for path in (tmp_path / "out.csv", tmp_path / "out.json", tmp_path / "features.npy"):
            path.unlink()


def test_a_complete_output_is_complete_where_nothing_can_be_written(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    before = sorted(tmp_path.iterdir())
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode))
    capsys.readouterr()
    assert run() == 0
    assert "is complete: nothing to do" in capsys.readouterr().out
    with pytest.raises(OutputError, match="topk: 3 then, 2 now"):
        run(topk=2)
    assert sorted(tmp_path.iterdir()) == before


def test_a_planted_work_folder_removes_nothing_outside_it(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    settings = {"embeddings": str(tmp_path / "precious.txt")}
    for name in ("abcdefabcdef", key_of(settings)):
        planted = tmp_path / "out.csv.parts" / name
        (planted / "parts").mkdir(parents=True)
        (planted / "unfinished").write_bytes(os.fsencode(tmp_path / "precious.txt"))
        (planted / "job.json").write_text(json.dumps({"settings": settings, "listed_by": None}))
    (tmp_path / "out.csv.parts" / "gone-x").symlink_to(tmp_path)
    assert run() == 0
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_planted_folders_and_links_end_no_job(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"embeddings": tmp_path / "features.npy"}
    assert run_until(2, run, monkeypatch, **flags) == 75
    (tmp_path / "precious.txt").write_text("keep me")
    (partial,) = tmp_path.glob("out.csv.parts/*/embeddings.npy")
    partial.unlink()
    partial.symlink_to(tmp_path / "precious.txt")
    for name in ("x.lock", "new-x", "new-x.lock"):
        (tmp_path / "out.csv.parts" / name).mkdir()
    assert run(**flags) == 0
    assert (tmp_path / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize("flags", [{}, {"shard": "0/2"}, {"update": True}])
def test_a_file_in_the_place_of_the_work_is_one_line(run: Callable, tmp_path: Path, flags: dict) -> None:
    (tmp_path / "out.csv.parts").touch()
    with pytest.raises(FlowersError, match=r"out\.csv\.parts: a file stands where a folder has to be"):
        run(**flags)
    with pytest.raises(OutputError, match="nothing to join"):
        run(merge=True)


def test_a_changed_table_is_not_called_complete(run: Callable, tmp_path: Path) -> None:
    run()
    flip(tmp_path / "out.csv")
    with pytest.raises(OutputError, match="not known to be this job's; .*--overwrite"):
        run()
    assert run(overwrite=True) == 0
    flags = {"embeddings": tmp_path / "features.npy", "overwrite": True}
    run(**flags)
    flip(tmp_path / "features.npy")
    with pytest.raises(OutputError, match="features.npy: gone or damaged since"):
        run(embeddings=tmp_path / "features.npy")


def test_files_that_cannot_be_removed_are_a_warning(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As on a network disk that is unwell."""

    def refuse(path: object, *args: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        patch.setattr(os, "rmdir", refuse)
        patch.setattr(Path, "unlink", refuse)
        assert run() == 0
    assert len(rows_of(tmp_path / "out.csv")) == 30
    assert "cannot be removed" in capsys.readouterr().err


def test_files_are_listed_once_ahead_of_an_array(run: Callable, photos: Path, tmp_path: Path) -> None:
    run(output=tmp_path / "whole.csv")
    assert run(list_only=True) == 0
    assert not (tmp_path / "out.csv").exists()
    extra = photos / "zz-late.jpg"
    shutil.copy(next(photos.rglob("*.jpg")), extra)  # it arrives after the list was made
    try:
        assert [run(shard=f"{task}/2") for task in range(2)] == [0, 0]
    finally:
        extra.unlink()
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    with pytest.raises(UsageError, match="--list-only only lists the files"):
        run(list_only=True, shard="0/2")


# A full disk


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which needs root")
@pytest.mark.parametrize("kib", [24, 48, 72])
def test_a_full_disk_is_one_line_and_the_job_goes_on_once_there_is_room(
    run: Callable, tmp_path: Path, kib: int, mount: Callable
) -> None:
    run(output=tmp_path / "whole.csv", batch_size=2)
    small = mount(kib)
    with pytest.raises(FlowersError, match=r"cannot write .*: the disk is full: free some space"):
        run(output=small / "out.csv", batch_size=2)
    assert not (small / "out.csv").exists()
    assert not (small / "out.json").exists()
    mount.grow(4096)
    assert run(output=small / "out.csv", batch_size=2) == 0
    assert (small / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in small.iterdir()) == ["out.csv", "out.json", "out.stamps"]


@pytest.fixture
def mount(tmp_path: Path):
    """Mount a tmpfs of so many KiB; ``grow`` makes it larger."""
    import subprocess

    folder = tmp_path / "small"

    def mount(kib: int) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("cannot mount here")
        return folder

    mount.grow = lambda kib: subprocess.run(["mount", "-o", f"remount,size={kib}k", str(folder)], check=True)
    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


# Flags


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--shard 3/3", "--shard: got 3/3, expected I/N with I from 0 to N - 1"),
        ("--shard 0/0", "--shard: got 0/0, expected I/N with I from 0 to N - 1"),
        ("--shard 1", "--shard: got '1', expected I/N"),
        ("--topk 0", "--topk: got 0"),
        ("--min-prob 1.5", "--min-prob: got 1.5"),
        ("--output out.txt", "--output: got out.txt, expected a name ending in .csv"),
        ("--embeddings x.bin", "ending in .npy"),
        ("--copy-to a --link-to b", "choose one"),
        ("--merge --shard 0/2", "leave --shard out"),
        ("-j 0", "--workers: got 0"),
    ],
)
def test_wrong_flags_are_one_line(flags: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(PredictConfig, ["--checkpoint", "c", "--input", "i", *flags.split()])
    assert said in str(caught.value)


def test_outputs_that_would_fail_in_the_end_are_refused_first(run: Callable, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(UsageError, match="--output .*: this is a folder"):
        run(output=tmp_path / "folder.csv", overwrite=True)
    with pytest.raises(UsageError, match="--embeddings .*: this is a folder"):
        run(embeddings=tmp_path / "folder.npy")
    with pytest.raises(UsageError, match="lies in the input folder, and --ext makes it input"):
        run(output=photos / "out.csv", ext=("",))
    assert not list(photos.glob("out*"))
    (tmp_path / "file").touch()
    with pytest.raises(FlowersError, match="a file stands where a folder has to be"):
        run(embeddings=tmp_path / "file" / "x.npy", shard="0/9")
    assert not list(tmp_path.glob("out.csv.parts/*/parts/*"))
    (tmp_path / "loop").symlink_to("loop")
    for flags in ({"output": tmp_path / "loop" / "out.csv"}, {"embeddings": tmp_path / "loop" / "x.npy"}):
        with pytest.raises(FlowersError, match="cannot write .*loop"):
            run(**flags)


def test_a_device_without_memory_is_one_line(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fail(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("flowers.prediction.shard_loop.open_engine", fail)
    with pytest.raises(FlowersError, match="memory is full: pass a smaller --batch-size than 4"):
        run()


def test_an_output_that_cannot_be_written_is_one_line(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FlowersError, match="a part of this path is a file"):
        run(output=tmp_path / "file" / "out.csv")
