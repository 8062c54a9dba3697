"""Every value of model.json replaced by every kind of nonsense: refused in one line, or harmless; nothing is run."""

import builtins
import copy
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flowers.data.folders import ClassIndex
from flowers.errors import ModelError
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, load_bundle, save_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head
from flowers.training.evaluate import precision_in_training

MODEL = "timm/test_resnet"
NONSENSE = {
    "null": None,
    "true": True,
    "zero": 0,
    "negative": -1,
    "one": 1,
    "huge": 10**30,
    "beyond 64 bits": 2**63,
    "a fraction": 0.5,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "no text": "",
    "text": "x",
    "a path up": "../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a file": "file:///etc/passwd",
    "a hub": "hf-hub:someone/model",
    "code": "__import__('os').system('touch was-here')",
    "a zero byte": "a\0b",
    "half a character": "\ud800",
    "an escape": "\x1b[2J",
    "long text": "x" * 10**6,
    "no list": [],
    "a list": [1],
    "nulls": [None] * 3,
    "numbers": [1, 2, 3],
    "deep": [[[[[[[[]]]]]]]],
    "no mapping": {},
    "a mapping": {"x": 1},
    "a pickle": {"__reduce__": ["os.system", ["touch was-here"]]},
}
FIELDS = [
    ("format_version",), ("model",), ("head",), ("classes",), ("labels",), ("preprocessing",), ("metrics",), ("made",),
    ("head", "num_classes"), ("head", "in_features"), ("head", "hidden"), ("head", "dropout"),
    ("classes", 0), ("labels", 0),
    ("preprocessing", "resize"), ("preprocessing", "crop"), ("preprocessing", "interpolation"),
    ("preprocessing", "mean"), ("preprocessing", "std"), ("preprocessing", "mean", 0), ("preprocessing", "std", 0),
    ("metrics", "valid_top1"), ("made", "config"),
]  # fmt: skip
NEVER = {"not a number", "infinite", "half a character"}
HARMLESS = {  # what may well stand there; nothing else may load
    ("format_version",): {"one"},
    ("labels", 0): {
        "text", "a path up", "an absolute path", "a file", "a hub", "code", "a zero byte", "an escape", "long text",
    },
    ("classes", 0): {"text", "code", "an escape", "long text"},
    ("metrics",): {"no mapping", "a mapping", "a pickle"},
    ("made",): {"no mapping", "a mapping", "a pickle"},
    ("metrics", "valid_top1"): set(NONSENSE) - NEVER,
    ("made", "config"): {"no mapping", "a mapping", "a pickle"},
    ("head", "hidden"): {"null"},
    ("head", "dropout"): {"zero", "a fraction"},
    ("preprocessing", "crop"): {"one"},
    ("preprocessing", "mean", 0): {"zero", "negative", "one", "a fraction"},
    ("preprocessing", "std", 0): {"one", "a fraction"},
    ("preprocessing", "mean"): {"numbers"},
    ("preprocessing", "std"): {"numbers"},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone(MODEL, "none")
    head = HeadSpec(3, backbone.num_features, dropout=0.25)
    classes = ClassIndex(("1", "10", "2"), ("lily", "rose", "tulip"))
    state = Classifier(backbone.network, build_head(head)).state_dict()
    folder = tmp_path_factory.mktemp("tampering") / "model"
    save_bundle(
        Bundle(MODEL, head, classes, backbone.preprocessing, {"valid_top1": 0.5}, {"config": {}}, state), folder
    )
    return folder


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is run while a bundle is looked at, and no file elsewhere is opened for writing."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"something was run: {args[:1]}")

    monkeypatch.chdir(tmp_path)
    for place, name in ((os, "system"), (subprocess, "Popen"), (builtins, "eval"), (torch, "load")):
        monkeypatch.setattr(place, name, never)
    yield
    assert not (tmp_path / "was-here").exists()


def replaced(description: dict, field: tuple, value: object) -> dict:
    description = copy.deepcopy(description)
    part = description
    for name in field[:-1]:
        part = part[name]
    part[field[-1]] = value
    return description


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: ".".join(map(str, field)))
def test_each_value_of_the_description(field: tuple, whole: Path, watched: None) -> None:
    folder = Path("model")
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(whole / "model.safetensors")
    description = json.loads((whole / "model.json").read_text())
    del description["made"]["hash"]  # as earlier versions wrote it, and whoever tampers would
    loaded, refusals = set(), {}
    for name, value in NONSENSE.items():
        (folder / "model.json").write_text(json.dumps(replaced(description, field, value)))
        try:
            bundle = load_bundle(folder)
        except ModelError as error:
            refusals[name] = str(error)
        else:
            loaded.add(name)
            assert len(bundle.hash) == 64
    for name, message in refusals.items():
        assert message.isprintable(), f"{field} {name}: {message!r}"
        assert len(message) < 1000, f"{field} {name}: {len(message)} characters"
    assert loaded == HARMLESS.get(field, set())


def test_what_loads_is_what_was_said(whole: Path) -> None:
    assert load_bundle(whole).build()(torch.zeros(1, 3, 160, 160)).shape == (1, 3)


@pytest.mark.parametrize("flags", [{"mixed_precision": []}, {"mixed_precision": {}}, {"mixed_precision": "half"}])
def test_what_is_no_precision_is_not_computed_in(flags: dict) -> None:
    assert precision_in_training(flags) == "no"
