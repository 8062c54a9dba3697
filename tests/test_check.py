"""The dataset check: each fault is planted once, and found as what it is."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from odd_files import HALF_JPEG, half_jpeg
from PIL import Image

from flowers.datasets import near_duplicates
from flowers.datasets.check import Report, check_dataset
from flowers.datasets.check_report import save_report, show_report
from flowers.datasets.drawn import draw_photo
from flowers.datasets.near_duplicates import Fingerprint, fingerprint, near_pairs
from flowers.errors import DataError, FlowersError, UsageError


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """Pictures that are all different."""
    names = ("daisy", "poppy", "tulip", "lily")
    return [draw_photo(names[index % 4], np.random.default_rng(index), 160) for index in range(12)]


@pytest.fixture
def data(tmp_path: Path, photos: list[bytes]) -> Path:
    """Sound: two classes with three images in train and two in valid."""
    spare = iter(photos)
    for split, count in (("train", 3), ("valid", 2)):
        for folder in ("a", "b"):
            (tmp_path / "data" / split / folder).mkdir(parents=True)
            for index in range(count):
                (tmp_path / "data" / split / folder / f"{index}.jpg").write_bytes(next(spare))
    return tmp_path / "data"


def paths(images: list) -> list[str]:
    return [image.path for image in images]


def saved_as(photo: bytes, path: Path, change=lambda image: image, **options) -> None:
    change(Image.open(io.BytesIO(photo))).save(path, **options)


def test_what_is_left_out_and_classes_that_are_one_are_findings(data, photos, capsys):
    for place in ("train/A/9.jpg", "train/a/x.psd", "train/a/y.PSD", "train/@eaDir/a/0.jpg"):
        (data / place).parent.mkdir(parents=True, exist_ok=True)
        (data / place).write_bytes(photos[-1])
    report = check_dataset(data)
    assert report.left_out == {".psd": 2, "in @eaDir": 1}
    assert report.alike == [["A", "a"]]
    show_report(report)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "files left out 3 2 .psd, 1 in @eaDir" in said
    assert "classes that differ only in spelling 1 'A' and 'a'" in said
    assert check_dataset(data, exclude=("A",)).alike == []


def test_a_sound_set_has_no_findings(data, capsys):
    report = check_dataset(data)
    assert report.trainable
    assert report.counts == {"train": {"a": 3, "b": 3}, "valid": {"a": 2, "b": 2}}
    findings = (
        report.unreadable,
        report.duplicates,
        report.near_duplicates,
        report.tiny,
        report.huge,
        report.odd_modes,
    )
    assert not any(findings)
    assert report.missing("valid") == []
    assert report.imbalance == 1
    show_report(report)
    shown = capsys.readouterr().out
    assert "Nothing unusual found." in shown
    assert "Training would start." in shown


def test_drawn_pictures_are_not_taken_for_duplicates(sample_set):
    report = check_dataset(sample_set)
    assert report.duplicates == []
    assert report.near_duplicates == []


def test_on_real_photos_only_true_duplicates_are_found(flowers102):
    """Looked at: one photo of valid is in train, too; two others were saved twice."""
    report = check_dataset(flowers102)
    assert [paths(group) for group in report.duplicates] == [["train/31/image_08077.jpg", "valid/31/image_08067.jpg"]]
    assert [paths(group) for group in report.near_duplicates] == [
        ["train/39/image_07015.jpg", "train/39/image_07040.jpg"],
        ["train/39/image_07029.jpg", "train/39/image_08080.jpg"],
    ]
    assert paths(report.leaked("valid")) == ["valid/31/image_08067.jpg"]
    assert report.trainable


def test_files_that_cannot_be_read_are_named_and_stop_training(data, photos, capsys):
    (data / "train/a/cut.jpg").write_bytes(photos[0][: len(photos[0]) // 2])
    (data / "train/b/empty.png").write_bytes(b"")
    (data / "valid/b/text.jpg").write_text("not a picture")
    report = check_dataset(data)
    assert [(image.path, image.reason) for image in report.unreadable] == [
        ("train/a/cut.jpg", "truncated JPEG"),
        ("train/b/empty.png", "zero bytes"),
        ("valid/b/text.jpg", "not an image"),
    ]
    assert report.refusal is None
    assert not report.trainable
    show_report(report)
    shown = capsys.readouterr().out
    assert "train/a/cut.jpg: truncated JPEG; train/b/empty.png: zero bytes" in shown
    assert "Training would fail: 3 images cannot be read" in shown


def test_damaged_images_are_listed_and_trained_on(data, capsys, tmp_path):
    (data / "train/a/half.jpg").write_bytes(half_jpeg())
    report = check_dataset(data)
    assert report.trainable
    assert [(image.path, image.damage) for image in report.damaged] == [("train/a/half.jpg", HALF_JPEG)]
    show_report(report)
    assert f"train/a/half.jpg: {HALF_JPEG}" in capsys.readouterr().out
    save_report(report, tmp_path / "check.json")
    assert json.loads((tmp_path / "check.json").read_text())["damaged"] == [
        {"path": "train/a/half.jpg", "damage": HALF_JPEG}
    ]


def test_exact_duplicates_within_and_across_splits_and_classes(data):
    shutil.copy(data / "train/a/0.jpg", data / "train/a/copy.jpg")
    shutil.copy(data / "train/b/1.jpg", data / "valid/b/leaked.jpg")
    shutil.copy(data / "valid/a/0.jpg", data / "valid/b/other_class.jpg")
    report = check_dataset(data)
    assert [paths(group) for group in report.duplicates] == [
        ["train/a/0.jpg", "train/a/copy.jpg"],
        ["train/b/1.jpg", "valid/b/leaked.jpg"],
        ["valid/a/0.jpg", "valid/b/other_class.jpg"],
    ]
    assert paths(report.leaked("valid")) == ["valid/b/leaked.jpg"]
    assert [paths(group) for group in report.contradictions] == [["valid/a/0.jpg", "valid/b/other_class.jpg"]]
    assert report.near_duplicates == []
    assert report.trainable


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda image: image, {"format": "JPEG", "quality": 35}),
        (lambda image: image.resize((90, 90)), {"format": "JPEG", "quality": 80}),
        (lambda image: image.resize((320, 240)), {"format": "PNG"}),
        (lambda image: image.point(lambda value: min(255, int(value * 1.15))), {"format": "PNG"}),
        (lambda image: image.crop((2, 2, 158, 158)), {"format": "PNG"}),
    ],
    ids=["saved again", "smaller", "stretched", "brighter", "cropped"],
)
def test_near_duplicates_survive_what_people_do_to_photos(data, photos, change, options):
    saved_as(photos[0], data / "valid/b/again.jpg", change, **options)
    report = check_dataset(data)
    assert [paths(group) for group in report.near_duplicates] == [["train/a/0.jpg", "valid/b/again.jpg"]]
    assert report.duplicates == []
    assert paths(report.leaked("valid")) == ["valid/b/again.jpg"]
    assert len(report.contradictions) == 1


def test_a_near_duplicates_copies_belong_to_its_group(data, photos):
    saved_as(photos[0], data / "train/a/again.jpg", format="JPEG", quality=40)
    shutil.copy(data / "train/a/again.jpg", data / "train/a/copy.jpg")
    report = check_dataset(data)
    group = ["train/a/0.jpg", "train/a/again.jpg", "train/a/copy.jpg"]
    assert [paths(group) for group in report.near_duplicates] == [group]
    assert [paths(group) for group in report.duplicates] == [group[1:]]


def test_tiny_huge_and_odd_modes(data, photos):
    saved_as(photos[0], data / "train/a/tiny.png", lambda image: image.resize((200, 40)))
    saved_as(photos[1], data / "train/a/wide.png", lambda image: image.resize((600, 300)))
    saved_as(photos[2], data / "train/a/palette.gif", lambda image: image.rotate(90).quantize(64))
    saved_as(photos[3], data / "train/a/cmyk.jpg", lambda image: image.rotate(90).convert("CMYK"))
    frames = [Image.open(io.BytesIO(photo)).rotate(180).quantize(64) for photo in photos[4:6]]
    frames[0].save(data / "train/b/moving.gif", save_all=True, append_images=frames[1:])
    report = check_dataset(data, tiny=50, huge=150_000, near=0)
    assert [(image.path, image.size) for image in report.tiny] == [("train/a/tiny.png", (200, 40))]
    assert [(image.path, image.size) for image in report.huge] == [("train/a/wide.png", (600, 300))]
    assert {mode: paths(images) for mode, images in report.odd_modes.items()} == {
        "CMYK": ["train/a/cmyk.jpg"],
        "P": ["train/a/palette.gif"],
        "P animated": ["train/b/moving.gif"],
    }
    assert report.trainable


def test_a_class_missing_in_valid_is_told_and_one_missing_in_train_stops(data, photos, capsys):
    shutil.rmtree(data / "valid/b")
    report = check_dataset(data)
    assert report.missing("valid") == ["b"]
    assert report.trainable
    (data / "valid/c").mkdir()
    (data / "valid/c/0.jpg").write_bytes(photos[10])
    report = check_dataset(data)
    assert report.missing("train") == ["c"]
    assert report.refusal == f"{data}/valid: c not among the 2 classes trained on (a, b)"
    assert not report.trainable
    show_report(report)
    assert "Training would fail: " in capsys.readouterr().out


def test_an_empty_class_stops_training_yet_all_else_is_checked(data):
    (data / "train/c").mkdir()
    (data / "train/a/bad.jpg").write_bytes(b"bad")
    report = check_dataset(data)
    assert report.missing("train") == ["c"]
    assert "no images in c" in report.refusal
    assert paths(report.unreadable) == ["train/a/bad.jpg"]


def test_a_tree_without_splits_is_all_train(data):
    report = check_dataset(data / "train")
    assert report.counts == {"train": {"a": 3, "b": 3}}
    assert report.trainable


def test_one_image_a_class_leaves_none_to_hold_out(data):
    for folder in ("a", "b"):
        for index in (1, 2):
            (data / f"train/{folder}/{index}.jpg").unlink()
    assert check_dataset(data).trainable, "valid/ is there"
    report = check_dataset(data / "train")
    assert report.refusal == f"{data}/train: one image a class, none to hold out; add more, or valid/"
    assert not report.trainable


def test_a_list_is_checked_like_a_tree(data, capsys):
    rows = [(path.relative_to(data), path.parent.name, path.parts[-3]) for path in sorted(data.rglob("*.jpg"))]
    (data / "all.csv").write_text("path,label,split\n" + "".join(f"{path},{label},{s}\n" for path, label, s in rows))
    report = check_dataset(data / "all.csv")
    assert report.trainable
    assert report.counts == check_dataset(data).counts


def test_a_broken_list_of_further_pictures_is_no_reason_to_stop(data, photos):
    """Phones put several pictures into a JPEG; it is trained on by its first, so it is checked by that one too."""
    picture, file = Image.open(io.BytesIO(photos[10])), io.BytesIO()
    picture.save(file, "MPO", save_all=True, append_images=[picture])
    broken = bytearray(file.getvalue())
    start = broken.index(b"MPF\0") + 4
    broken[start + 30] ^= 0xFF  # how many pictures there are
    (data / "train/a/phone.jpg").write_bytes(broken)
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(broken))
    report = check_dataset(data)
    assert report.trainable
    assert next(image for image in report.images if image.path.endswith("phone.jpg")).size == (160, 160)


def test_a_damaged_animation_that_pillow_cannot_open_is_no_end_of_the_check(data, photos):
    picture, file = Image.open(io.BytesIO(photos[10])), io.BytesIO()
    picture.save(file, "PNG", save_all=True, append_images=[picture.rotate(90)])
    broken = bytearray(file.getvalue())
    broken[broken.index(b"acTL") + 4] ^= 1  # how many pictures there are
    (data / "train/a/turning.png").write_bytes(broken)
    (damaged,) = check_dataset(data).damaged
    assert (damaged.size, damaged.mode, damaged.damage) == ((160, 160), "RGB", "a wrong checksum in its acTL chunk")


def test_imbalance(data, photos, capsys):
    for index in range(16):
        saved_as(
            photos[11], data / f"train/a/more{index}.png", lambda image, i=index: image.crop((i * 5, 0, i * 5 + 70, 70))
        )
    report = check_dataset(data, near=0)
    assert report.imbalance == 19 / 3
    show_report(report)
    assert "a: 19, b: 3; see --balance classes" in capsys.readouterr().out


def test_nothing_to_check_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        check_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        check_dataset(tmp_path / "empty")


def test_flags_out_of_range_are_refused(data):
    with pytest.raises(UsageError, match="--near: got 8, expected 0 to 7 bits"):
        check_dataset(data, near=8)
    with pytest.raises(UsageError, match="--workers: got 0"):
        check_dataset(data, workers=0)


def test_the_report_does_not_depend_on_the_workers(data, photos):
    saved_as(photos[0], data / "valid/a/again.jpg", quality=40)
    (data / "train/a/bad.jpg").write_bytes(b"bad")
    assert check_dataset(data, workers=1) == check_dataset(data, workers=5)


def test_odd_names_survive_into_the_json(tmp_path, data, photos):
    name = os.fsdecode(b'caf\xe9 "x", \\n \n.jpg')
    (data / "train/a" / name).write_bytes(photos[0][:100])
    report = check_dataset(data)
    save_report(report, tmp_path / "out" / "check.json")
    content = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert content["unreadable"] == [{"path": 'train/a/caf\\xe9 "x", \\\\n \n.jpg', "reason": "truncated JPEG"}]
    assert content["trainable"] is False
    show_report(report)
    (data / "train/a").rename(data / "train" / os.fsdecode(b"\xe9"))
    save_report(check_dataset(data), tmp_path / "check.json")
    assert json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))["classes"]["\\xe9"] == "\\xe9"


def test_the_json_holds_all_findings(tmp_path, data, photos):
    (data / "cat_to_name.json").write_text('{"a": "daisy", "b": "poppy"}')
    shutil.copy(data / "train/b/1.jpg", data / "valid/b/leaked.jpg")
    saved_as(photos[0], data / "valid/b/again.png", lambda image: image.resize((60, 60)).convert("L"))
    save_report(check_dataset(data), tmp_path / "check.json")
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["counts"] == {"train": {"a": 3, "b": 3}, "valid": {"a": 2, "b": 4}}
    assert content["classes"] == {"a": "daisy", "b": "poppy"}
    assert content["duplicates"] == [["train/b/1.jpg", "valid/b/leaked.jpg"]]
    assert content["near_duplicates"] == [["train/a/0.jpg", "valid/b/again.png"]]
    assert content["also_in_train"] == {"valid": ["valid/b/again.png", "valid/b/leaked.jpg"]}
    assert content["same_picture_in_two_classes"] == [["train/a/0.jpg", "valid/b/again.png"]]
    assert content["tiny"] == [{"path": "valid/b/again.png", "width": 60, "height": 60}]


def test_a_report_that_cannot_be_written_is_one_line(tmp_path, data):
    report = Report(data, None, {}, {}, [], [], [], [], [])
    (tmp_path / "file").write_text("")
    with pytest.raises(FlowersError, match="cannot write"):
        save_report(report, tmp_path / "file" / "check.json")


@pytest.mark.parametrize("max_bits", [0, 1, 3, 4, 7])
def test_near_pairs_finds_what_comparing_each_with_each_finds(max_bits, monkeypatch):
    monkeypatch.setattr(near_duplicates, "_CANDIDATES_AT_ONCE", 50)
    rng = np.random.default_rng(max_bits)
    hashes = rng.integers(0, 1 << 63, 12).tolist()
    for _ in range(150):  # relatives of earlier ones, 0 to 9 bits away
        flips = rng.choice(64, rng.integers(0, 10), replace=False).tolist()
        hashes.append(hashes[rng.integers(len(hashes))] ^ sum(1 << flip for flip in flips))
    thumbnail = bytes(range(256))
    expected = [
        [i, j]
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= max_bits
    ]
    pairs = near_pairs([Fingerprint(value, thumbnail) for value in hashes], max_bits)
    assert len(expected) > 10
    assert pairs.tolist() == expected


def test_the_thumbnails_must_agree():
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, 256, dtype=np.uint8).tobytes() for _ in range(2))
    brighter = (np.frombuffer(one, np.uint8) // 2 + 90).astype(np.uint8).tobytes()
    items = [Fingerprint(5, one), Fingerprint(5, other), Fingerprint(5, brighter)]
    assert near_pairs(items, 0).tolist() == [[0, 2]]
    assert near_pairs([], 3).shape == (0, 2)


def test_a_plain_surface_looks_like_nothing():
    assert fingerprint(np.full((40, 60, 3), 200, np.uint8)) is None
    ramp = np.repeat(np.linspace(0, 255, 90, dtype=np.uint8)[None, :, None], 40, axis=0).repeat(3, axis=2)
    assert fingerprint(ramp).bits == (1 << 64) - 1
    assert fingerprint(np.ascontiguousarray(ramp[:, ::-1])).bits == 0
