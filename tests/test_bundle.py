"""A trained model as a folder: whole, exact, and believed only as far as it can be checked."""

import dataclasses
import errno
import io
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

import flowers
import flowers.made
from flowers.data.folders import ClassIndex
from flowers.errors import FlowersError, ModelError
from flowers.made import how_made
from flowers.models import bundle as bundles
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, load_bundle, save_bundle, write_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head

MODEL = "timm/test_resnet"
ODD = b"ros\xe9".decode("utf-8", "surrogateescape")  # a folder name that is not UTF-8


@pytest.fixture
def bundle() -> Bundle:
    torch.manual_seed(0)
    backbone = build_backbone(MODEL, "none")
    head = HeadSpec(3, backbone.num_features, hidden=5, dropout=0.5)
    classifier = Classifier(backbone.network, build_head(head))
    classes = ClassIndex(folders=("1", "10", ODD), labels=("lily", 'a "rose", red', "née"))
    made = how_made({"epochs": 3, "data_dir": Path("data")})
    metrics = {"valid_top1": 0.5}
    return Bundle(MODEL, head, classes, backbone.preprocessing, metrics, made, classifier.state_dict())


def write_format_1(folder: Path) -> None:
    """A bundle of format version 1, written by hand: it must load for ever."""
    folder.mkdir()
    description = {
        "format_version": 1,
        "model": "timm/test_resnet",
        "head": {"num_classes": 2, "in_features": 96, "hidden": None, "dropout": 0.0},
        "classes": ["rose", "tulip"],
        "labels": ["Rose", "Tulip"],
        "preprocessing": {
            "resize": 168,
            "crop": 160,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
        },
        "metrics": {"valid_top1": 0.9},
        "made": {"date": "2026-11-23T20:00:00+00:00", "versions": {"flowers": "0.1.0"}, "git_commit": None},
    }
    (folder / "model.json").write_text(json.dumps(description))
    torch.manual_seed(1)
    tensors = build_backbone("timm/test_resnet", "none").network.state_dict()
    tensors = {f"backbone.{name}": value for name, value in tensors.items()}
    tensors |= {"head.output.weight": torch.randn(2, 96), "head.output.bias": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors")


def test_what_is_saved_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "best")
    loaded = load_bundle(tmp_path / "best")
    for name in ("model", "head", "classes", "preprocessing", "metrics", "hash"):
        assert getattr(loaded, name) == getattr(bundle, name), name
    assert loaded.made["config"] == {"epochs": 3, "data_dir": "data"}
    assert loaded.folder == tmp_path / "best"
    assert loaded.state_dict.keys() == bundle.state_dict.keys()
    assert all(torch.equal(value, bundle.state_dict[name]) for name, value in loaded.state_dict.items())
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_disk_that_does_not_tell_once_is_asked_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """To a run that resumes, a model that cannot be read is lost, and the next best is the best from then on."""
    save_bundle(bundle, tmp_path / "best")
    opened, errors = io.open, [OSError(errno.ESTALE, "Stale file handle")]

    def failing(file: object, *args: object, **options: object) -> object:
        if errors and str(file).endswith(name):
            raise errors.pop()
        return opened(file, *args, **options)

    monkeypatch.setattr("io.open", failing)
    monkeypatch.setattr("builtins.open", failing)
    assert load_bundle(tmp_path / "best").hash == bundle.hash
    assert not errors


def test_tensors_that_cannot_be_mapped_are_one_line(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors checks the header, torch then maps the file, with errors of its own."""
    save_bundle(bundle, tmp_path / "best")
    reason = "unable to mmap 99 bytes from file <model.safetensors>: Cannot allocate memory (12)"
    monkeypatch.setattr(bundles, "safe_open", Mock(side_effect=RuntimeError(reason)))
    with pytest.raises(ModelError, match="best: model.safetensors cannot be read: unable to mmap"):
        load_bundle(tmp_path / "best")


def test_a_group_can_read_what_its_member_saved(bundle: Bundle, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_bundle(bundle, tmp_path / "model")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "model").iterdir()} == {0o640}


def test_built_network_is_the_same_and_ready(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "best")
    backbone = build_backbone(MODEL, "none").network
    original = Classifier(backbone, build_head(bundle.head)).eval()
    original.load_state_dict(bundle.state_dict)
    built = load_bundle(tmp_path / "best").build()
    assert not built.training
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(built(images), original(images))


def test_low_precision_tensors_become_float32(bundle: Bundle, tmp_path: Path) -> None:
    state = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in bundle.state_dict.items()
    }
    save_bundle(dataclasses.replace(bundle, state_dict=state), tmp_path / "best")
    built = load_bundle(tmp_path / "best").build()
    assert {value.dtype for value in built.parameters()} == {torch.float32}
    assert torch.equal(built.head.output.weight, bundle.state_dict["head.output.weight"].bfloat16().float())


def test_wrapper_prefixes_are_not_saved(bundle: Bundle, tmp_path: Path) -> None:
    state = {f"module._orig_mod.{name}": value for name, value in bundle.state_dict.items()}
    save_bundle(dataclasses.replace(bundle, state_dict=state), tmp_path / "best")
    assert load_file(tmp_path / "best" / "model.safetensors").keys() == bundle.state_dict.keys()


def test_two_names_of_one_tensor(bundle: Bundle, tmp_path: Path) -> None:
    state = dict(bundle.state_dict)
    first, second = [name for name in state if name.endswith("bn1.weight")][:2]
    state[second] = state[first]
    save_bundle(dataclasses.replace(bundle, state_dict=state), tmp_path / "best")
    assert torch.equal(load_bundle(tmp_path / "best").state_dict[second], state[first])


def test_hash_follows_the_meaning(bundle: Bundle) -> None:
    def changed(**values: object) -> str:
        return dataclasses.replace(bundle, **values).hash

    assert changed(metrics={"valid_top1": 0.9}, made={}) == bundle.hash
    assert changed(classes=ClassIndex(bundle.classes.folders[::-1], bundle.classes.labels)) != bundle.hash
    assert changed(preprocessing=dataclasses.replace(bundle.preprocessing, resize=200)) != bundle.hash
    state = dict(bundle.state_dict)
    state["head.output.bias"] = state["head.output.bias"] + 1e-6
    assert changed(state_dict=state) != bundle.hash
    assert changed(state_dict={f"module.{name}": value for name, value in bundle.state_dict.items()}) == bundle.hash
    assert len(bundle.hash) == 64


@pytest.mark.parametrize("folder", ["best", "last", "checkpoints/step-00000012", "."])
def test_where_a_model_is_found(folder: str, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    write_bundle(bundle, tmp_path / folder)
    path = tmp_path / folder if folder.startswith("checkpoints") else tmp_path
    assert load_bundle(path).hash == bundle.hash
    assert load_bundle(tmp_path / folder / "model.safetensors").hash == bundle.hash


def test_best_comes_before_last(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "last")
    save_bundle(dataclasses.replace(bundle, metrics={"which": "best"}), tmp_path / "best")
    assert load_bundle(tmp_path).metrics == {"which": "best"}


def test_a_save_that_was_killed_between_two_renames(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "best")
    (tmp_path / "best").rename(tmp_path / ".best.old")
    assert load_bundle(tmp_path / "best").hash == bundle.hash
    assert load_bundle(tmp_path).hash == bundle.hash
    assert not (tmp_path / "best").exists()  # to put it back is for the run that saves, which may be in the midst of it


def test_a_better_one_is_saved_while_it_is_read(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    better = dataclasses.replace(
        bundle,
        metrics={"valid_top1": 0.75},
        state_dict={**bundle.state_dict, "head.output.bias": torch.ones(3)},
    )
    save_bundle(bundle, tmp_path / "best")
    read_tensors = bundles._read_tensors

    def meanwhile(*args: object) -> dict:
        monkeypatch.undo()
        save_bundle(better, tmp_path / "best")
        return read_tensors(*args)

    monkeypatch.setattr(bundles, "_read_tensors", meanwhile)
    loaded = load_bundle(tmp_path / "best")
    assert loaded.metrics == better.metrics
    assert loaded.hash == better.hash


def test_format_version_1(tmp_path: Path) -> None:
    write_format_1(tmp_path / "old")
    loaded = load_bundle(tmp_path / "old")
    assert loaded.classes.labels == ("Rose", "Tulip")
    assert loaded.build()(torch.zeros(1, 3, 160, 160)).shape == (1, 2)


# tampering


def change(**values: object) -> Callable[[Path], None]:
    """Replace values of model.json."""

    def apply(folder: Path) -> None:
        description = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**description, **values}))

    return apply


def change_in(part: str, **values: object) -> Callable[[Path], None]:
    """Replace values of one mapping within model.json."""

    def apply(folder: Path) -> None:
        description = json.loads((folder / "model.json").read_text())
        change(**{part: {**description[part], **values}})(folder)

    return apply


def drop(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        description = json.loads((folder / "model.json").read_text())
        del description[name]
        (folder / "model.json").write_text(json.dumps(description))

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def loop(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return apply


def change_tensors(**tensors: torch.Tensor) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        save_file({**state, **tensors}, folder / "model.safetensors")

    return apply


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer format": (change(format_version=3), "format version 3.*reads up to 2: install the newer"),
    "no format": (drop("format_version"), "format_version is None"),
    "odd format": (change(format_version=True), "format_version is True"),
    "unknown model": (change(model="resnet81"), "unknown model 'resnet81'; nearest names: "),
    "another model": (change(model="timm/test_vit"), "takes 96 features, timm/test_vit gives 64"),
    "model of the same width": (change(model="timm/test_mambaout"), "do not fit the model|features"),
    "model is a path": (change(model="timm/../../x"), "unknown model"),
    "model is an address": (change(model="timm/hf-hub:someone/model"), "unknown model"),
    "model is a list": (change(model=["resnet18"]), "unknown model"),
    "class twice": (change(classes=["1", "10", "1"]), "class '1' stands there twice"),
    "too few classes": (change(classes=["1", "10"]), "2 classes for a head of 3"),
    "too few labels": (change(labels=["1", "10"]), "2 labels for a head of 3"),
    "class climbs out": (change(classes=["1", "10", ".."]), r"class '\.\.' is a path"),
    "class is a path": (change(classes=["1", "10", "../../etc"]), "class '../../etc' is a path"),
    "class is absolute": (change(classes=["1", "10", "/etc"]), "class '/etc' is a path"),
    "class with a zero byte": (change(classes=["1", "10", "a\0b"]), "is a path"),
    "class without a name": (change(classes=["1", "10", ""]), "classes must be a list of names"),
    "class is a number": (change(classes=["1", "10", 7]), "classes must be a list of names"),
    "classes are a mapping": (change(classes={"1": 0}), "classes must be a list"),
    "head too wide": (change_in("head", hidden=10**6), "the head's tensors are"),
    "head for more classes": (change_in("head", num_classes=4), "3 classes for a head of 4"),
    "head of another kind": (change_in("head", hidden=None), "the head's tensors are"),
    "head with a negative size": (change_in("head", in_features=-1), "in_features is -1"),
    "head with a surprise": (change_in("head", activation="os.system"), "expected exactly the fields"),
    "no head": (change(head=None), "head: got NoneType"),
    "preprocessing of no size": (change_in("preprocessing", crop=0), "preprocessing: got resize"),
    "preprocessing with a surprise": (change_in("preprocessing", code="x"), "preprocessing: got"),
    "metrics are a list": (change(metrics=[]), "metrics is a list"),
    "a field too many": (change(weights="/etc/passwd"), r"has unknown \[\"'weights'\"\]"),
    "a field missing": (drop("labels"), r"lacks \['labels'\]"),
    "not JSON": (write("model.json", b"{'a': 1}"), r"model\.json is not JSON"),
    "binary": (write("model.json", b"\xff\xfe\x00"), r"model\.json is not JSON"),
    "deep JSON": (write("model.json", b"[" * 10**5), r"model\.json is not JSON"),
    "JSON of another kind": (write("model.json", b"[1, 2]"), "holds a list, expected a mapping"),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "tensors that cannot be opened": (
        loop("model.safetensors"),
        r"model\.safetensors cannot be read: .*symbolic links",
    ),
    "tensors cut short": (write("model.safetensors", b"\x08\0\0\0\0\0\0\0{}"), r"model\.safetensors cannot be read"),
    "tensor of another shape": (
        change_tensors(**{"backbone.conv1.0.weight": torch.zeros(1, 2)}),
        r"backbone\.conv1\.0\.weight \[1, 2\] instead of",
    ),
    "tensor too many": (change_tensors(extra=torch.zeros(1)), "1 unexpected: extra"),
    "head's tensor of another shape": (
        change_tensors(**{"head.output.bias": torch.zeros(4)}),
        "the head's tensors are",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_bundles_are_refused_with_the_reason(case: str, bundle: Bundle, tmp_path: Path) -> None:
    tamper, message = TAMPERED[case]
    save_bundle(bundle, tmp_path / "best")
    change(made={})(tmp_path / "best")  # without the hash: as earlier versions wrote it, and whoever tampers would
    tamper(tmp_path / "best")
    with pytest.raises(ModelError, match=message) as caught:
        load_bundle(tmp_path / "best").build()
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such bundle, checkpoint or run folder"):
        load_bundle(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no model in .*expected model\.json"):
        load_bundle(tmp_path)
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ModelError, match=r"a\.onnx is a file, expected the folder of a model"):
        load_bundle(tmp_path / "a.onnx")
    (tmp_path / "w.pth").touch()
    with pytest.raises(ModelError, match=r"w\.pth is a weights file .*--from-state-dict.*train\.py --weights"):
        load_bundle(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": ClassIndex(("a", "b"), ("a", "b"))}, "2 classes for a head of 3"),
        ({"model": "resnet81"}, "unknown model"),
        ({"state_dict": {}}, "the head's tensors are {}"),
        ({"metrics": {"loss": float("nan")}}, "metrics"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(values: dict, message: str, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match=message):
        save_bundle(dataclasses.replace(bundle, **values), tmp_path / "best")
    assert list(tmp_path.iterdir()) == []


# how it was made


def test_made_names_versions_and_commit() -> None:
    made = how_made({"seed": 1})
    assert made["versions"]["torch"] == torch.__version__.split("+")[0]
    assert made["config"] == {"seed": 1}
    root = Path(flowers.__file__).parents[1]
    if (root / ".git").exists() and shutil.which("git"):
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert made["git_commit"].removesuffix("-dirty") == head.stdout.strip()


def test_made_outside_git_or_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(flowers.made, "_git_commit", flowers.made._git_commit.__wrapped__)  # asked anew
    assert how_made()["git_commit"] is None
    monkeypatch.setattr(flowers, "__file__", str(tmp_path / "flowers" / "__init__.py"))
    assert how_made()["git_commit"] is None


def flip_a_weight(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[len(content) * 2 // 3] ^= 0x10
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip_a_weight, change(labels=["1", "10", "3"]), change_in("preprocessing", mean=[0.5, 0.5, 0.4])]
)
def test_damage_that_would_change_answers_is_noticed(
    damage: Callable[[Path], None], bundle: Bundle, tmp_path: Path
) -> None:
    save_bundle(bundle, tmp_path / "best")
    assert load_bundle(tmp_path / "best").made.keys() == bundle.made.keys()
    damage(tmp_path / "best")
    with pytest.raises(ModelError, match=r"best: damaged, its hash is not the one that model\.json says"):
        load_bundle(tmp_path / "best")
    change(made={})(tmp_path / "best")  # an earlier version's: nothing to compare with
    load_bundle(tmp_path / "best")
