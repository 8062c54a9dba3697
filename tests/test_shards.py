"""Training from tar shards: the same photos in the same order as in folders, indexed once, read where they are."""

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_files import encode
from safetensors.torch import load_file
from trees import load

from flowers.audit.apply import apply
from flowers.cli import parse
from flowers.config.audit import ApplyConfig
from flowers.config.train import TrainConfig
from flowers.data import shards
from flowers.data.choice import Choice
from flowers.data.folders import load_split
from flowers.data.images import read_image
from flowers.data.scan import file_stamps
from flowers.datasets.check import check_dataset
from flowers.errors import DataError, ImageError
from jobs.train import main

PHOTO = encode(np.zeros((4, 4, 3), np.uint8), "PNG")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and a process that has read no index yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    shards._index.cache_clear()
    return tmp_path / "caches" / "flowers" / "shards"


def tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def sharded(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample set as shards: two of train/, its photos dealt out in turn, one of each other split."""
    folder = tmp_path_factory.mktemp("sharded") / "garden"
    for split, count in (("train", 2), ("valid", 1), ("test", 1)):
        photos = sorted((sample_set / split).rglob("*.jpg"))
        for shard in range(count):
            names = [(str(photo.relative_to(sample_set / split)), photo) for photo in photos[shard::count]]
            tar(folder / split / f"photos-{shard:03}.tar", [(name, photo.read_bytes()) for name, photo in names])
    (folder / "cat_to_name.json").write_bytes((sample_set / "cat_to_name.json").read_bytes())
    return folder


def test_shards_train_the_head_that_folders_train(sample_set: Path, sharded: Path, tmp_path: Path) -> None:
    heads = []
    for name, data in (("folders", sample_set), ("shards", sharded)):
        words = ["--data-dir", data, "--output-dir", tmp_path / name, "--model", "timm/test_resnet",
                 "--weights", "none", "--image-size", 32, "--epochs", 2, "--views", 2, "-b", 8, "-j", 0,
                 "--no-report"]  # fmt: skip
        assert main(parse(TrainConfig, [str(word) for word in words])) == 0
        heads.append(load_file(tmp_path / name / "last" / "model.safetensors"))
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(tensor, heads[1][name]) for name, tensor in heads[0].items())


def test_photos_come_in_the_order_of_folders_and_the_same_are_held_out(sample_set: Path, sharded: Path) -> None:
    plain, packed = load(sample_set), load(sharded)
    for name, samples in plain.splits.items():
        other = packed.splits[name]
        assert [shards.without_shards(path) for path in other.paths] == list(samples.paths)
        assert np.array_equal(other.targets, samples.targets)
        sizes = [file_stamps(of.full_path, len(of))[:, 0] for of in (samples, other)]
        assert np.array_equal(*sizes)
    assert np.array_equal(read_image(packed.train.full_path(3)), read_image(plain.train.full_path(3)))
    assert packed.classes == plain.classes
    assert np.array_equal(load_split(sharded, "test", plain.classes).targets, plain.test.targets)
    drawn = [load(sample_set / "train").valid, load(sharded / "train").valid]
    assert [shards.without_shards(path) for path in drawn[1].paths] == list(drawn[0].paths)


def test_the_data_check_reads_shards(sharded: Path) -> None:
    report = check_dataset(sharded)
    assert report.refusal is None
    assert [sum(report.counts[split].values()) for split in ("train", "valid", "test")] == [32, 16, 16]
    assert all(image.reason is None for image in report.images)


def test_an_index_is_made_once_and_again_where_it_is_damaged(
    tmp_path: Path, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tar(tmp_path / "a.tar", [(f"{folder}/{number}.png", PHOTO) for folder in "xy" for number in range(3)])
    made = []
    make = shards._make
    monkeypatch.setattr(shards, "_make", lambda path: made.append(path) or make(path))

    def index() -> shards.Index:
        shards._index.cache_clear()
        return shards.index_of(shard)

    first = index()
    (kept,) = caches.glob("*.npz")
    assert (
        list(index().names) == list(first.names) == [f"{folder}/{number}.png" for folder in "xy" for number in range(3)]
    )
    assert made == [shard]
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert np.array_equal(index().places, first.places)
    assert len(made) == 2
    tar(shard, [("x/0.png", PHOTO)])
    assert list(index().names) == ["x/0.png"], "another file of that name has an index of its own"


def test_a_cache_folder_that_cannot_be_made_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert list(shards.index_of(tar(tmp_path / "a.tar", [("x/0.png", PHOTO)])).names) == ["x/0.png"]


def test_classes_are_those_that_files_beside_the_photos_name(tmp_path: Path) -> None:
    members = [
        ("0001.png", PHOTO), ("0001.cls", b"7\n"), ("0002.png", PHOTO), ("0002.txt", "r\u00f6te".encode()),
        ("below/0003.big.png", PHOTO), ("below/0003.json", b'{"label": 7}'), ("below/0003.txt", b"a caption"),
        ("0004.png", PHOTO), ("0004.json", b"[]"), ("0005.png", PHOTO), ("0005.cls", b"a/b"), (".hidden.png", PHOTO),
    ]  # fmt: skip
    tar(tmp_path / "set-train-0.tar", members)
    tar(tmp_path / "set-val-0.tar", [("0009.png", PHOTO), ("0009.cls", b"7")])
    choice = Choice()
    data = load(tmp_path, choice=choice)
    assert data.classes.folders == ("7", "r\u00f6te")
    found = dict(zip(data.train.paths, data.train.targets.tolist(), strict=True))
    assert found == {
        "set-train-0.tar/0001.png": 0, "set-train-0.tar/0002.png": 1, "set-train-0.tar/below/0003.big.png": 0
    }  # fmt: skip
    assert list(data.valid.paths) == ["set-val-0.tar/0009.png"]
    assert choice.left_out == {"without a class": 2, "hidden": 1}


def test_one_tar_of_a_whole_data_set(tmp_path: Path) -> None:
    folders = [f"garden/{split}/{folder}" for split in ("train", "valid") for folder in "ab"]
    names = [f"{folder}/{number}.png" for folder in folders for number in (1, 2)]
    data = load(tar(tmp_path / "garden.tar", [(name, PHOTO) for name in names]), choice=Choice(exclude=("2.png",)))
    assert data.classes.folders == ("a", "b")
    assert list(data.valid.paths) == ["garden.tar/garden/valid/a/1.png", "garden.tar/garden/valid/b/1.png"]
    assert len(data.train) == 2


def test_what_cannot_be_trained_on_is_one_line(tmp_path: Path) -> None:
    cut = tar(tmp_path / "cut" / "a.tar", [("x/0.png", PHOTO), ("y/0.png", PHOTO * 999)])
    os.truncate(cut, cut.stat().st_size // 2)
    (tmp_path / "packed" / "train").mkdir(parents=True)
    (tmp_path / "packed" / "train" / "a.tar.gz").touch()
    (tmp_path / "a.tgz").touch()
    for data, words in (
        ("cut", "a.tar: broken archive"),
        ("packed", "a.tar.gz: a compressed tar"),
        ("a.tgz", "plain .tar"),
    ):
        with pytest.raises(DataError, match=words) as error:
            load(tmp_path / data)
        assert "\n" not in str(error.value)


def test_a_photo_that_a_shard_lacks_has_a_reason(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("x/0.png", PHOTO)])
    (tmp_path / "photo.png").write_bytes(PHOTO)
    for path, reason in (("a.tar/x/1.png", "not in the archive"), ("photo.png/x", "file not found")):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / path)


def test_photos_in_shards_are_not_moved(tmp_path: Path) -> None:
    tar(tmp_path / "data" / "a.tar", [(name, PHOTO) for name in ("x/0.png", "x/1.png", "y/0.png")])
    (tmp_path / "c.csv").write_text("path,class\na.tar/x/0.png,y\n")
    with pytest.raises(DataError, match="photos in tar shards cannot be moved"):
        apply(ApplyConfig(tmp_path / "data", tmp_path / "c.csv", move=True))
