"""Inputs of prediction: every file is a row or counted, whatever it lies in and however it is named."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from unittest.mock import Mock

import pytest
from odd_files import encode, quarters

from flowers.config.predict import PredictConfig
from flowers.data.archives import Archive
from flowers.data.choice import Choice
from flowers.data.workbook import write_workbook
from flowers.errors import DataError, FlowersError, ImageError, UsageError
from flowers.prediction.inputs import input_root, list_inputs, look_at, read_input

PHOTO = encode(quarters(), "JPEG")


def found(*inputs: Path, choice: Choice | None = None) -> dict[str, bytes | str]:
    """All rows' paths, with the file's bytes or the reason why there are none."""
    root = os.fsencode(input_root(inputs))
    rows = {}
    for entry in sorted(list_inputs(inputs, choice or Choice()), key=itemgetter(0)):
        try:
            rows[os.fsdecode(entry.path)] = bytes(read_input(root, entry))
        except ImageError as error:
            rows[os.fsdecode(entry.path)] = str(error)
        assert entry.place.startswith(b"!") or look_at(root, entry) or isinstance(rows[os.fsdecode(entry.path)], str)
    return rows


def fill(folder: Path, *names: str) -> Path:
    """Files whose bytes are a photo and their own name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PHOTO + name.encode())
    return folder


def tar_of(**members: bytes) -> bytes:
    """A tar, members named by the keys."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Archives


def test_joined_tars_are_read_to_their_end(tmp_path: Path) -> None:
    parts = [tar_of(**{f"{index}.jpg": b"%d" % index}) for index in range(3)]
    for padding in (b"", bytes(512), bytes(20480)):
        (tmp_path / "a.tar").write_bytes(padding.join(parts))
        assert found(tmp_path / "a.tar") == {f"a.tar/{index}.jpg": b"%d" % index for index in range(3)}
    (tmp_path / "a.tar").write_bytes(parts[0] + b"rubbish " * 64)
    rows = found(tmp_path / "a.tar")
    assert rows.pop("a.tar/0.jpg") == b"0"
    assert rows.popitem() == ("a.tar", f"broken archive: no header at byte {len(parts[0])}")
    assert not rows


OUT, ABSENT, CIRCLE = (
    "a path that leads out of the archive", "a link to what is not in the archive", "links that lead in a circle"
)  # fmt: skip
LINKED = [  # in this order: name, then bytes, or what a symbolic (->) or hard (=>) link leads to
    ("a.jpg", b"first", b"last"),
    ("early.jpg", "-> d/late.jpg", b"late"),
    ("d/late.jpg", b"late", b"late"),
    ("d/up.jpg", "-> ../a.jpg", b"last"),
    ("a.jpg", b"last", b"last"),
    ("folder", "-> d", None),
    ("through.jpg", "-> folder/late.jpg", b"late"),
    ("chain.jpg", "-> through.jpg", b"late"),
    ("b.jpg", "-> a.jpg", b"own"),
    ("b.jpg", b"own", b"own"),
    ("c.jpg", b"mine", b"last"),
    ("c.jpg", "-> a.jpg", b"last"),
    ("to_c.jpg", "-> c.jpg", b"last"),
    ("gone.jpg", "-> nothing.jpg", ABSENT),
    ("!odd.jpg", "-> !what.jpg", ABSENT),
    ("out.jpg", "-> ../etc/passwd", OUT),
    ("absolute.jpg", "-> /etc/passwd", OUT),
    ("self.jpg", "-> self.jpg", CIRCLE),
    ("one.jpg", "-> two.jpg", CIRCLE),
    ("two.jpg", "-> one.jpg", CIRCLE),
    ("of_folder.jpg", "-> d", ABSENT),
]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_links_lead_to_the_last_member_of_a_name_inside_the_archive(
    kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    archive = tmp_path / f"x.{kind}"
    with tarfile.open(archive, "w") if kind == "tar" else zipfile.ZipFile(archive, "w") as packed:
        for name, content, _ in LINKED:
            target = content.removeprefix("-> ") if isinstance(content, str) else None
            if kind == "zip":
                member = zipfile.ZipInfo(name)
                member.external_attr = (stat.S_IFLNK if target else stat.S_IFREG) << 16
                packed.writestr(member, target or content)
            else:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = (tarfile.SYMTYPE, target) if target else (tarfile.REGTYPE, "")
                member.size = 0 if target else len(content)
                packed.addfile(member, None if target else io.BytesIO(content))
        if kind == "tar":
            member = tarfile.TarInfo("d/hard.jpg")
            member.type, member.linkname = tarfile.LNKTYPE, "a.jpg"
            packed.addfile(member)
    wanted = {f"x.{kind}/{name}": data for name, _, data in LINKED if data} | {"x.tar/d/hard.jpg": b"last"}
    assert found(archive) == {name: data for name, data in wanted.items() if name.startswith(f"x.{kind}")}
    looked_up = Archive(tmp_path)
    for name, data in found(archive).items():
        assert looked_up.find(name) == isinstance(data, bytes)
        assert isinstance(data, str) or looked_up.read(name) == data


def test_a_member_of_a_name_of_half_a_megabyte(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(**{"a/" * 250_000 + "b.jpg": b"", "c.jpg": b"c"}))
    rows = found(tmp_path / "a.tar")
    assert sorted(map(len, rows)) == [11, 500_011]
    assert rows["a.tar/c.jpg"] == b"c"


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_have_one_name_each_and_none_leads_out(kind: str, tmp_path: Path) -> None:
    names = ["././y.jpg", "a/./z.jpg", "a//w.jpg", "/abs/v.jpg", "b/../u.jpg", "../x.jpg", "c/../../t.jpg"]
    names += ["__MACOSX/y.jpg", ".hidden/s.jpg", "notes.txt"]
    archive = tmp_path / f"a.{kind}"
    if kind == "tar":
        archive.write_bytes(tar_of(**{name: name.encode() for name in names}))
    else:
        with zipfile.ZipFile(archive, "w") as file:
            for name in names:
                file.writestr(name, name)
    choice = Choice()
    out = "a path that leads out of the archive"
    where = f"a.{kind}/"
    assert found(archive, choice=choice) == {
        f"{where}y.jpg": b"././y.jpg",
        f"{where}a/z.jpg": b"a/./z.jpg",
        f"{where}a/w.jpg": b"a//w.jpg",
        f"{where}abs/v.jpg": b"/abs/v.jpg",
        f"{where}u.jpg": b"b/../u.jpg",
        f"{where}../x.jpg": out,
        f"{where}../t.jpg": out,
    }
    assert choice.left_out == {"in __MACOSX": 1, "hidden": 1, ".txt": 1}
    inside = Archive(tmp_path)
    assert inside.read(f"{where}a/z.jpg") == b"a/./z.jpg", "copies and pages find what rows are of"
    assert not inside.find(f"{where}../x.jpg")


def test_members_of_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("stored.jpg", PHOTO)
        archive.writestr("small.jpg", PHOTO, zipfile.ZIP_DEFLATED)
        archive.writestr("nothing.jpg", b"", zipfile.ZIP_DEFLATED)
        archive.writestr("lzma.jpg", PHOTO, zipfile.ZIP_LZMA)
        archive.writestr("windows\\a.jpg", b"w")
        archive.writestr("bomb.jpg", bytes(1 << 20), zipfile.ZIP_DEFLATED)
        archive.mkdir("folder.jpg")
        with archive.open("streamed.jpg", "w") as member:
            member.write(PHOTO)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    rows = found(tmp_path / "a.zip")
    assert rows == {
        "a.zip/stored.jpg": PHOTO,
        "a.zip/small.jpg": PHOTO,
        "a.zip/streamed.jpg": PHOTO,
        "a.zip/nothing.jpg": b"",
        "a.zip/bomb.jpg": bytes(1 << 20),
        "a.zip/windows/a.jpg": b"w",
        "a.zip/lzma.jpg": "compressed otherwise than by deflate in a zip: not supported",
    }
    data[data.index(PHOTO) + 9] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert found(tmp_path / "a.zip")["a.zip/stored.jpg"] == "broken archive: wrong checksum"
    (tmp_path / "a.zip").write_bytes(data[:-30])
    assert found(tmp_path / "a.zip") == {"a.zip": "broken archive: File is not a zip file"}


@pytest.mark.parametrize(
    ("ending", "packed"),
    [(".tgz", gzip.compress), (".tar.gz", gzip.compress), (".tar.bz2", bz2.compress), (".tar.xz", lzma.compress)],
)
def test_compressed_tars(ending: str, packed: Callable[[bytes], bytes], tmp_path: Path) -> None:
    data = packed(tar_of(**{"a.jpg": os.urandom(30_000), "b.jpg": PHOTO}))
    (tmp_path / f"x{ending}").write_bytes(data)
    assert found(tmp_path / f"x{ending}")[f"x{ending}/b.jpg"] == PHOTO
    (tmp_path / f"x{ending}").write_bytes(data[:20_000])
    cut = found(tmp_path / f"x{ending}")
    assert "broken archive: " in cut[f"x{ending}"]
    (tmp_path / f"x{ending}").write_bytes(b"no archive")
    assert list(found(tmp_path / f"x{ending}")) == [f"x{ending}"]


def test_no_room_to_unpack_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of an error in the place of a million photos would be a table that calls itself complete."""
    (tmp_path / "x.tgz").write_bytes(gzip.compress(tar_of(**{"a.jpg": PHOTO})))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "r+b"))  # noqa: SIM115
    with pytest.raises(FlowersError, match=r"has no room to unpack .*x\.tgz: free some, or set TMPDIR"):
        found(tmp_path / "x.tgz")


def test_a_folder_for_temporary_files_that_fails_says_nothing_of_the_archive(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "x.tgz").write_bytes(gzip.compress(tar_of(**{"a.jpg": PHOTO})))
    monkeypatch.setattr("tempfile.TemporaryFile", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(FlowersError, match=r"cannot unpack .*x\.tgz there: input/output error; set TMPDIR"):
        found(tmp_path / "x.tgz")


# Several inputs, patterns, the standard input


def test_of_several_inputs_paths_start_from_the_current_folder(here: Path) -> None:
    fill(here, "a/1.jpg", "b/1.jpg", "b/c/2.jpg", "3.jpg")
    (here / "b/t.tar").write_bytes(tar_of(**{"4.jpg": b"4"}))
    (here / "lists").mkdir()
    (here / "lists/some.txt").write_text(f"../a/1.jpg\n{here}/3.jpg\n")
    assert list(found(Path("a"), Path("b/"))) == ["a/1.jpg", "b/1.jpg", "b/c/2.jpg", "b/t.tar/4.jpg"]
    assert list(found(here / "a", Path("3.jpg"))) == [f"{here}/a/1.jpg", "3.jpg"]
    assert list(found(Path("lists/some.txt"), Path("b/t.tar"))) == [
        f"{here}/3.jpg",
        "b/t.tar/4.jpg",
        "lists/../a/1.jpg",
    ]
    assert list(found(Path("b"))) == ["1.jpg", "c/2.jpg", "t.tar/4.jpg"], "one input: as ever"
    with pytest.raises(DataError, match="--input nowhere: no such file or folder"):
        found(Path("a"), Path("nowhere"))


def test_patterns_in_quotes(here: Path) -> None:
    fill(here, "p/1.jpg", "p/2.png", "p/deep/3.jpg", "p/[4].jpg")
    assert list(found(Path("p/*.jpg"))) == ["p/1.jpg", "p/[4].jpg"]
    assert list(found(Path("p/**/*.jpg"))) == ["p/1.jpg", "p/[4].jpg", "p/deep/3.jpg"]
    assert list(found(Path("p/?.png"), Path("p/deep"))) == ["p/2.png", "p/deep/3.jpg"]
    assert list(found(Path("p/[4].jpg"))) == ["[4].jpg"], "a file of that very name"
    with pytest.raises(DataError, match=r"p/\*.gif: no file or folder fits this pattern"):
        found(Path("p/*.gif"))


def test_a_pattern_ends_where_links_lead_in_a_circle(here: Path) -> None:
    """Two such links make 2^40 paths."""
    fill(here, "p/1.jpg", "p/deep/2.jpg", "p/.hidden/3.jpg", "far/4.jpg")
    for place, target in (("p/self", "."), ("p/deep/up", ".."), ("p/link", "../far"), ("p/twice", "../far")):
        (here / place).symlink_to(target)
    rows = list(found(Path("p/**/*.jpg")))
    assert [row for row in rows if "4" not in row] == ["p/1.jpg", "p/deep/2.jpg"]
    assert len(rows) == 3, "the folder that links lead to, once"
    assert "p/deep/2.jpg" in found(Path("**/deep/**"))
    assert list(found(here / "**" / "2.*")) == [f"{here}/p/deep/2.jpg"]


def test_a_pipe_is_a_list_to_its_first_byte(here: Path) -> None:
    """As of ``--input <(find photos)``: a look at its beginning would lose that, and the files named there."""
    names = fill(here, *(f"a/{number:04}.jpg" for number in range(200))).glob("a/*")
    text = "".join(f"{path.relative_to(here)}\n" for path in sorted(names))
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        file.write(text)
    try:
        assert list(found(Path(f"/dev/fd/{read}"))) == text.split()
    finally:
        os.close(read)


def test_a_standard_input_that_is_closed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="--input -: the standard input is closed"):
        found(Path("-"))


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_the_standard_input_is_a_list(end: bytes, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(here, "a/1.jpg", "a/2.jpg")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(end.join([b"./a/1.jpg", b"a/2.jpg", b""]))))
    assert list(found(Path("-"))) == ["./a/1.jpg", "a/2.jpg"]


def test_values_of_the_flag() -> None:
    def config(**flags: object) -> PredictConfig:
        return PredictConfig(checkpoint=Path("c"), **flags)

    assert config(input="a").input == config(input=Path("a")).input == config(input=["a"]).input == (Path("a"),)
    assert config(input=("a", "b")).input == (Path("a"), Path("b"))
    with pytest.raises(UsageError, match="--input is missing, expected --checkpoint MODEL --input"):
        config(input=())
    for ext in (("jpg,png",), ("*.jpg", ".PNG"), ("jpg, png",)):
        assert config(input="a", ext=ext).extensions() == {".jpg", ".png"}
    assert config(input="a", ext=("",)).extensions() == {""}


# Lists


def test_a_predictions_file_is_a_list(tmp_path: Path) -> None:
    fill(tmp_path, "a\\b.jpg", "c.jpg")
    (tmp_path / "t.tar").write_bytes(tar_of(**{"m.jpg": b"m", "n.jpg": b"n"}))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("o.jpg", b"o")
    paths = ["a\\\\b.jpg", "c.jpg", "t.tar/n.jpg", "z.zip/o.jpg", "t.tar/gone.jpg"]
    table = "path,status,class\r\n" + "".join(f"{path},ok,1\r\n" for path in paths)
    (tmp_path / "p.csv").write_text(table)
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"path": path, "class": "1"}) + "\n" for path in paths))
    names = ["p.csv", "p.csv.gz", "p.jsonl"]
    if pytest.importorskip("pyarrow"):
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"path": paths}), tmp_path / "p.parquet")
        names.append("p.parquet")
    if pytest.importorskip("openpyxl"):
        write_workbook(tmp_path / "p.xlsx", (({"path": path}, None) for path in paths), ["path"])
        names.append("p.xlsx")
    for name in names:
        rows = found(tmp_path / name)
        assert list(rows) == ["a\\b.jpg", "c.jpg", "t.tar/gone.jpg", "t.tar/n.jpg", "z.zip/o.jpg"]
        assert (rows["t.tar/n.jpg"], rows["z.zip/o.jpg"]) == (b"n", b"o")
        assert rows["t.tar/gone.jpg"] == "not in the archive"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nowhere/2.jpg", "relative paths start from {folder}"),
        ("base/1.jpg", "are there from {root}; move the list"),
        ("wrong/1.jpg", "take wrong/ off their start"),
        ("sub\\1.jpg", "backslashes"),
        ("1.jpg\trose", "tabs"),
        ('"1.jpg"', "quotes or blanks"),
        ("1.jpg ", "quotes or blanks"),
        ("1.jpg,rose", "name it .csv, with the header path,class"),
        ("file:///photos/1.jpg", "addresses"),
    ],
)
def test_a_list_of_which_nothing_is_there_says_why(line: str, said: str, here: Path) -> None:
    fill(here, "base/1.jpg")
    (here / "base/list.txt").write_text(f"{line}\n{line}2\n")
    with pytest.raises(DataError) as raised:
        found(here / "base/list.txt")
    assert "none of the 2 files is there" in str(raised.value)
    assert said.format(folder=here / "base", root=here) in str(raised.value)
    (here / "base/list.txt").write_text(f"{line}\n1.jpg\n")
    assert len(found(here / "base/list.txt")) == 2, "one that is there makes the others error rows"


def test_a_picture_of_any_name_is_a_picture(tmp_path: Path) -> None:
    for name in ("photo.jpg_large", "noending", "x.txt"):
        (tmp_path / name).write_bytes(PHOTO)
        assert found(tmp_path / name) == {name: PHOTO}
    fill(tmp_path, "BM/1.jpg", "P5 1.jpg")
    (tmp_path / "list").write_text("BM/1.jpg\n")
    assert list(found(tmp_path / "list")) == ["BM/1.jpg"]
    (tmp_path / "list").write_text("P5 1.jpg\n")
    assert list(found(tmp_path / "list")) == ["P5 1.jpg"]


def test_what_was_looked_for_is_said(tmp_path: Path) -> None:
    fill(tmp_path, "a.raw", "b.jxl", "c.jxl")
    with pytest.raises(
        DataError, match=r"end in .jpg .png \(see --ext\), or in .tar .zip; 3 files left out \(2 .jxl, 1"
    ):
        found(tmp_path, choice=Choice(frozenset({".jpg", ".png"})))


# Rows plus left out equals files


def test_every_file_of_a_folder_of_everything_is_a_row_or_counted(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "in",
        *("a.jpg", "b.PNG", "c.jxl", "d.dng", "e.cr3", "f.psd", "g.tga", "h.jpg_large", "noending", "notes.txt"),
        *(".hidden.jpg", ".thumbs/1.jpg", "@eaDir/a.jpg/S.jpg", "lost+found/x", "deep/#recycle/2.jpg", "deep/i.webp"),
        *("old/j.jpg", "old/k.txt", "deep/l.tgz", "odd\nname.jpg", "cafe\u0301.jpg", "x.", "y. z"),
    )
    (folder / "t.tar").write_bytes(tar_of(**{"m.jpg": PHOTO, "n.txt": b"", "../o.jpg": PHOTO, "./.p.jpg": b""}))
    (folder / "two.tar").write_bytes(tar_of(**{"q.jpg": PHOTO}) + tar_of(**{"r.jpg": PHOTO, "s.cls": b""}))
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        for name in ("t.jpg", "__MACOSX/t.jpg", "u.json"):
            archive.writestr(name, PHOTO)
    (folder / "broken.tar").write_bytes(b"no tar" * 200)
    os.mkfifo(folder / "fifo")
    files = sum(len(names) for _, _, names in os.walk(folder))
    members = 4 + 3 + 3 - 3  # of three sound archives, which stand for themselves no more
    for choice in (Choice(), Choice(exclude=("old", "*.webp")), Choice(by_content=True), Choice(("",))):
        rows = found(folder, choice=choice)
        assert len(rows) + choice.left_out.total() == files + members, (rows, choice.left_out)
    assert {"c.jxl", "h.jpg_large", "noending"} <= set(found(folder, choice=Choice(by_content=True)))


# The whole job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    import tiny_job

    from flowers.data.tables import read_rows
    from flowers.prediction.predict import predict

    folder = tmp_path_factory.mktemp("model")
    bundle = tiny_job.make_bundle(folder / "bundle")

    def run(*inputs: str | Path, **flags: object) -> list[str]:
        options = {"engine": "torch", "precision": "float32", "batch_size": 2, "workers": 1}
        config = PredictConfig(checkpoint=bundle, input=inputs, **{**options, **flags})
        assert predict(config) == 0
        return [row["path"] for row in read_rows(config.output) if row["status"] == "ok"]

    return run


def test_a_job_over_several_inputs(job: Callable, here: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a/1.jpg", "b/4.jpg"):
        (here / name).parent.mkdir()
        (here / name).write_bytes(PHOTO)
    (here / "t.tgz").write_bytes(gzip.compress(tar_of(**{"2.jpg": PHOTO})))
    with zipfile.ZipFile(here / "z.zip", "w") as archive:
        archive.writestr("3.jpg", PHOTO, zipfile.ZIP_DEFLATED)
    given = ("a", "b/*.jpg", "t.tgz", "z.zip")
    paths = ["a/1.jpg", "b/4.jpg", "t.tgz/2.jpg", "z.zip/3.jpg"]
    assert job(*given, output=here / "o.csv", copy_to=here / "sorted", report=True) == paths
    assert sum(len(names) for _, _, names in os.walk(here / "sorted")) == 4
    capsys.readouterr()
    assert job(*given, output=here / "o.csv") == paths
    assert "complete: nothing to do" in capsys.readouterr().out
    assert job("o.csv", output=here / "again.csv") == paths, "a finished table is a list"
