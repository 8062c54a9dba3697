"""From other trainers: state dicts of torchvision and timm become bundles that answer as the network did."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from flowers.cli import parse
from flowers.config.export import ExportConfig
from flowers.errors import FlowersError
from flowers.models.bundle import load_bundle, save_bundle
from flowers.models.state_dicts import bundle_from_state_dict, import_state_dict, read_class_list
from flowers.models.trained_view import TrainedView

NAMES = ["rose", "tulip", "lily"]


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


def same_answers(network: nn.Module, file: Path, model: str, names: Path, size: int) -> None:
    """The bundle, through its files, against the network that the state dict is of."""
    folder = file.parent / "bundle"
    save_bundle(bundle_from_state_dict(file, model, names, TrainedView(size), {"a": 1}), folder)
    bundle = load_bundle(folder)
    assert bundle.classes.folders == tuple(NAMES)
    assert bundle.made["config"] == {"a": 1}
    assert bundle.made["from"] == f"state dict {file.name}"
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(bundle.build()(images), network.eval()(images), rtol=1e-5, atol=1e-5)


def stirred(network: nn.Module) -> nn.Module:
    """The network with other statistics and biases than those that every fresh one has."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_var", "running_mean", "bias")):
                value += torch.rand(value.shape, generator=generator) / 2
    return network


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small"])
def test_torchvision(model: str, names: Path, tmp_path: Path) -> None:
    network = stirred(get_model(model, num_classes=3))
    torch.save(network.state_dict(), tmp_path / "model.pth")
    same_answers(network, tmp_path / "model.pth", model, names, 64)


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_mambaout"])
def test_timm(model: str, names: Path, tmp_path: Path) -> None:
    import timm

    network = stirred(timm.create_model(model, num_classes=3))
    torch.save({"state_dict": network.state_dict(), "epoch": 3, "arch": model}, tmp_path / "model.pth.tar")
    same_answers(network, tmp_path / "model.pth.tar", f"timm/{model}", names, 160)


WRAPPED: dict[str, Callable[[dict], object]] = {
    "plain": lambda state: state,
    "parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled within": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "under model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 1},
    "with the trainer's flags": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, model="resnet18")},
    "averaged only": lambda state: {"state_dict_ema": state},
    "averaged by torch": lambda state: {
        "n_averaged": torch.tensor(7),
        **{f"module.{name}": value for name, value in state.items()},
    },
    "half": lambda state: {name: v.half() if v.is_floating_point() else v for name, v in state.items()},
    "of ours": lambda state: {
        f"head.output.{name.removeprefix('fc.')}" if name.startswith("fc.") else f"backbone.{name}": value
        for name, value in state.items()
    },
}


@pytest.fixture
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return stirred(get_model("shufflenet_v2_x0_5", num_classes=3))


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wrappers_and_containers(how: str, suffix: str, tiny: nn.Module, names: Path, tmp_path: Path) -> None:
    content = WRAPPED[how](tiny.state_dict())
    file = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(content, file)
    elif all(isinstance(value, Tensor) for value in content.values()):
        save_file(content, file)
    else:
        pytest.skip("safetensors holds tensors only")
    if how == "half":
        tiny.half().float()
    same_answers(tiny, file, "shufflenet_v2_x0_5", names, 32)


def test_the_average_is_taken_of_several_is_taken_is_said(
    tiny: nn.Module, names: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = tiny.state_dict()
    content = {"state_dict": {name: value * 0 for name, value in state.items()}, "state_dict_ema": state}
    torch.save(content, tmp_path / "model.pth.tar")
    same_answers(tiny, tmp_path / "model.pth.tar", "shufflenet_v2_x0_5", names, 32)
    assert "holds state_dict_ema, state_dict; state_dict_ema is taken" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("layers", [("fc1", "fc2"), ("0", "3"), ("z", "a")])
def test_a_hidden_layer(
    layers: tuple[str, str], tiny: nn.Module, names: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, second = layers
    tiny.fc = nn.Sequential()
    tiny.fc.add_module(first, nn.Linear(1024, 7))
    tiny.fc.add_module("relu", nn.ReLU())
    tiny.fc.add_module(second, nn.Linear(7, 3))
    torch.save(tiny.state_dict(), tmp_path / "model.pth")
    same_answers(tiny, tmp_path / "model.pth", "shufflenet_v2_x0_5", names, 32)
    assert "ReLU is taken in between" in capsys.readouterr().err


def test_a_head_without_bias(tiny: nn.Module, names: Path, tmp_path: Path) -> None:
    tiny.fc = nn.Linear(1024, 3, bias=False)
    torch.save(tiny.state_dict(), tmp_path / "model.pth")
    same_answers(tiny, tmp_path / "model.pth", "shufflenet_v2_x0_5", names, 32)


def put(**tensors: Tensor) -> Callable[[dict], dict]:
    return lambda state: {**state, **tensors}


def without(*names: str) -> Callable[[dict], dict]:
    return lambda state: {name: value for name, value in state.items() if not name.startswith(names)}


class Runs:
    """What a pickle must not be able to do here."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("was-here"),)


REFUSED: dict[str, tuple[Callable[[dict], object], str]] = {
    "a tensor missing": (without("conv1.0."), "1 missing: conv1.0.weight"),
    "a tensor too many": (put(extra=torch.zeros(1)), r"head is of another kind: got .*extra \[1\]"),
    "another shape": (put(**{"conv1.0.weight": torch.zeros(1)}), r"1 of another shape: conv1.0.weight \[1\] instead"),
    "another model": (lambda _: get_model("squeezenet1_1").state_dict(), "missing: .*unexpected: "),
    "no head": (
        without("fc."),
        r"has no head, so only training takes it \(--weights\); expected a last layer from 1024 features",
    ),
    "a head of convolutions": (put(**{"fc.weight": torch.zeros(3, 1024, 1, 1)}), r"got fc.weight \[3, 1024, 1, 1\]"),
    "a head for other features": (put(**{"fc.weight": torch.zeros(3, 9)}), "from the 1024 features"),
    "three layers": (put(**{f"fc.{i}.weight": torch.zeros(1024, 1024) for i in "12"}), "head is of another kind"),
    "another number of classes": (
        put(**{"fc.weight": torch.zeros(5, 1024), "fc.bias": torch.zeros(5)}),
        "its head gives 5 classes, .*classes.txt names 3",
    ),
    "not a number": (put(**{"fc.bias": torch.full((3,), float("nan"))}), "not finite, in fc.bias"),
    "infinite": (put(**{"conv1.1.bias": torch.full((24,), float("inf"))}), r"not finite, in conv1.1.bias$"),
    "a whole network": (lambda _: nn.Linear(1, 1), "is not a plain file of tensors"),
    "code": (lambda _: Runs(), "is not a plain file of tensors"),
    "something else": (lambda _: {"epoch": 3}, "holds no tensors by name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(
    case: str, tiny: nn.Module, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    torch.save(change(tiny.state_dict()), tmp_path / "model.pth")
    with pytest.raises(FlowersError, match=message) as caught:
        bundle_from_state_dict(tmp_path / "model.pth", "shufflenet_v2_x0_5", names, TrainedView(32))
    assert "\n" not in str(caught.value)
    assert not Path("was-here").exists()


def test_no_such_file_and_no_such_model(names: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match="no such file"):
        bundle_from_state_dict(tmp_path / "model.pth", "shufflenet_v2_x0_5", names)
    with pytest.raises(FlowersError, match="unknown model 'resnet81'"):
        bundle_from_state_dict(tmp_path / "model.pth", "resnet81", names)


def test_the_job_writes_a_bundle_and_nothing_over_other_files(
    tiny: nn.Module, names: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(tiny.state_dict(), tmp_path / "model.pth")
    flags = ["--from-state-dict", tmp_path / "model.pth", "--model", "shufflenet_v2_x0_5", "--classes", names]
    config = parse(ExportConfig, [*map(str, flags), "--output", str(tmp_path / "bundle")])
    for _ in range(2):  # the second time over a bundle
        assert import_state_dict(config) == 0
    out = capsys.readouterr().out
    assert "3: rose, tulip, lily" in out
    assert f"--checkpoint {tmp_path / 'bundle'}" in out
    hash_ = load_bundle(tmp_path / "bundle").hash
    (tmp_path / "bundle" / "photo.jpg").touch()
    with pytest.raises(FlowersError, match="holds other files than a bundle's"):
        import_state_dict(config)
    assert load_bundle(tmp_path / "bundle").hash == hash_


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("c.txt", "b\na\n", [("b", "b"), ("a", "a")]),
        ("c.txt", "\ufeff1\tpink rose\r\n\r\n10\t\r\n", [("1", "pink rose"), ("10", "10")]),
        ("c.json", '["b", "a"]', [("b", "b"), ("a", "a")]),
        ("c.json", '{"b": 1, "a": 0, "c": 2}', [("a", "a"), ("b", "b"), ("c", "c")]),
        ("c.json", '{"2": "two", "10": "ten"}', [("10", "ten"), ("2", "two")]),
        ("c.json", '{"0": "zero", "1": "one"}', [("zero", "zero"), ("one", "one")]),
        ("c.json", json.dumps({"id2label": {str(i): f"n{i}" for i in range(11)}}), [(f"n{i}",) * 2 for i in range(11)]),
        ("c.json", '{"architecture": "resnet18", "label_names": ["b", "a"]}', [("b", "b"), ("a", "a")]),
    ],
)
def test_class_lists(name: str, text: str, expected: list, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    index = read_class_list(tmp_path / name)
    assert list(zip(index.folders, index.labels, strict=True)) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "a\nb\na\n", "a stands there twice"),
        ("c.txt", "\n\n", "names no class"),
        ("c.txt", "a\n../b\n", "class '../b' cannot be the name of a folder"),
        ("c.json", "{", "Expecting property name"),
        ("c.json", "[" * 100_000, "nested deeper"),
        ("c.json", "[1, 2]", "expected a list of names"),
        ("c.json", '{"a": true, "b": 0}', "expected a list of names"),
        ("c.json", '{"a": 0, "b": 2}', "the indices are not 0 to 1"),
        ("c.json", '{"id2label": {"0": "a", "2": "b"}}', "the keys of id2label are not 0 to 1"),
        ("c.json", "[]", "names no class"),
        ("c.json", json.dumps({str(index): f"n{index}" for index in range(11)}), "are 0 to 10 indices, or folders"),
        ("none.txt", None, "cannot be read: no such file"),
    ],
)
def test_odd_class_lists(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(FlowersError, match=message) as caught:
        read_class_list(tmp_path / name)
    assert "\n" not in str(caught.value)
