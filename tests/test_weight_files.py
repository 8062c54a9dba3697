"""Weights in other projects' shapes: --weights and --from-state-dict read the same files, exactly or not at all."""

import argparse
import json
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from flowers.errors import ModelError
from flowers.exports.layouts import timm_layout
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle
from flowers.models.state_dicts import bundle_from_state_dict
from flowers.models.trained_view import TrainedView, read_view
from flowers.models.weight_files import read_states

SMALL = "shufflenet_v2_x0_5"
State = dict[str, torch.Tensor]


def fresh(model: str, seed: int, **options: object) -> nn.Module:
    """A network with statistics and biases of its own, in evaluation mode."""
    torch.manual_seed(seed)
    make = get_model if model == SMALL else timm.create_model
    network = make(model, num_classes=3, **options)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_var", "running_mean", "bias")):
                value += torch.rand(value.shape) / 2
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return fresh(SMALL, 0)


@pytest.fixture(scope="module")
def other() -> State:
    return fresh(SMALL, 1).state_dict()


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("rose\ntulip\nlily\n")
    return path


def pre(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def body(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def head(state: State, prefix: str) -> State:
    return {prefix + name[3:]: value for name, value in state.items() if name.startswith("fc.")}


def numbered(network: nn.Module) -> State:
    return nn.Sequential(*list(network.children())[:-1]).state_dict()


WHOLE: dict[str, Callable[[State, State], object]] = {
    "torchvision's references": lambda own, other: {
        "model": other, "model_ema": {"n_averaged": torch.tensor(7), **pre("module.", own)},
        "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
    },
    "timm's train.py": lambda own, other: {"state_dict": other, "state_dict_ema": own, "arch": "x", "amp_scaler": {}},
    "Lightning": lambda own, _: {"state_dict": pre("model.", own), "loops": {"fit_loop": {"state_dict": {}}}},
    "Lightning with a loss": lambda own, _: {"state_dict": {**pre("model.", own), "criterion.weight": torch.ones(5)}},
    "Lightning in two parts": lambda own, _: {
        "state_dict": {**pre("backbone.", body(own)), **head(own, "classifier.")}
    },
    "an average in one mapping": lambda own, other: {**pre("net.", other), **pre("ema.module.", own)},
    "net": lambda own, _: {"net": own, "acc": 91.0},
    "DeepSpeed": lambda own, _: {"module": own, "ds_version": "0.14"},
    "weights": lambda own, _: {"weights": own, "classes": list("abc")},
    "an epoch beside the tensors": lambda own, _: {**own, "epoch": 3},
    "DistributedDataParallel and torch.compile": lambda own, _: pre("_orig_mod.module.", own),
    "MMPretrain": lambda own, _: {"state_dict": {**pre("backbone.", body(own)), **head(own, "head.fc.")}},
    "MoCo": lambda own, other: {
        "state_dict": {
            **pre("module.encoder_q.", own), **pre("module.encoder_k.", other), "module.queue": torch.ones(9),
        }
    },
    "Hugging Face's wrapper of timm": lambda own, _: pre("timm_model.", own),
    "a dropout before the head": lambda own, _: {**body(own), **head(own, "fc.1.")},
    "a numpy scalar beside": lambda own, _: {"state_dict": own, "metric": np.float64(81.2)},
    "a path in the flags": lambda own, _: {"model": own, "args": argparse.Namespace(output_dir=Path("x"))},
}  # fmt: skip


def same_answers(bundle: Bundle, network: nn.Module, size: int = 32) -> None:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(bundle.build()(images), network(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", WHOLE)
def test_both_readers_load_it(shape: str, network: nn.Module, other: State, names: Path, tmp_path: Path) -> None:
    own = network.state_dict()
    file = tmp_path / "weights.pth"
    torch.save(WHOLE[shape](own, other), file)
    loaded = build_backbone(SMALL, str(file)).network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.items())
    same_answers(bundle_from_state_dict(file, SMALL, names, TrainedView(32)), network)


BACKBONES: dict[str, Callable[[State, State], object]] = {
    "DINO": lambda own, other: {
        "student": pre("module.backbone.", body(other)), "teacher": pre("backbone.", body(own)), "epoch": 1,
    },
    "DINO with its projection": lambda own, _: {
        "teacher": {**pre("backbone.", body(own)), "head.mlp.0.weight": torch.ones(4, 1024)}
    },
    "MAE": lambda own, _: {"model": {**body(own), "mask_token": torch.ones(1), "decoder_embed.weight": torch.ones(2)}},
    "fastai": lambda own, _: {
        "model": {**pre("0.", numbered(fresh(SMALL, 0))), "1.2.weight": torch.ones(2048)}, "opt": {},
    },
    "another head": lambda own, _: {**body(own), "fc.weight": torch.ones(100, 1024), "fc.bias": torch.ones(100)},
}  # fmt: skip


@pytest.mark.parametrize("shape", BACKBONES)
def test_a_backbone_alone(shape: str, network: nn.Module, other: State, names: Path, tmp_path: Path) -> None:
    own = network.state_dict()
    file = tmp_path / "weights.pth"
    torch.save(BACKBONES[shape](own, other), file)
    loaded = build_backbone(SMALL, str(file)).network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.items())
    with pytest.raises(
        ModelError, match="has no head, so only training|head is of another kind|its head gives"
    ) as caught:
        bundle_from_state_dict(file, SMALL, names, TrainedView(32))
    assert "\n" not in str(caught.value)


def test_weights_of_a_training_that_broke_down(network: nn.Module, tmp_path: Path) -> None:
    """In a head on their features they would end in an error of torch's, in a whole network in advice about --lr."""
    torch.save({**network.state_dict(), "conv1.1.bias": torch.full((24,), math.nan)}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"weights.pth for .*: holds numbers that are not finite, in conv1.1.bias$"):
        build_backbone(SMALL, str(tmp_path / "weights.pth"))


def test_which_prefix_was_taken_off_is_said(
    network: nn.Module, other: State, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "w.pth"
    torch.save(WHOLE["Lightning"](network.state_dict(), other), file)
    build_backbone(SMALL, str(file))
    assert "takes the tensors state_dict.model.*" in " ".join(capsys.readouterr().out.split())
    torch.save(BACKBONES["DINO"](network.state_dict(), other), file)
    build_backbone(SMALL, str(file))
    said = " ".join(capsys.readouterr().err.split())
    assert "holds teacher.backbone.*, student.backbone.*; teacher.backbone.* is taken" in said
    torch.save(WHOLE["a numpy scalar beside"](network.state_dict(), other), file)
    build_backbone(SMALL, str(file))
    assert re.search(r"left out: metric \(numpy.*scalar\)", " ".join(capsys.readouterr().out.split()))


def test_a_misfit_counts_what_fitted_and_shows_both_sides(network: nn.Module, tmp_path: Path, names: Path) -> None:
    state = {name.replace("conv5", "conv6"): value for name, value in network.state_dict().items()}
    torch.save({"state_dict": pre("model.", state)}, tmp_path / "w.pth")
    total = len(body(state))
    for read in (
        lambda: build_backbone(SMALL, str(tmp_path / "w.pth")),
        lambda: bundle_from_state_dict(tmp_path / "w.pth", SMALL, names),
    ):
        with pytest.raises(ModelError) as caught:
            read()
        assert (
            f"{total - 6} of {total} tensors fit (state_dict.model.*); 5 missing: conv5.0.weight, conv5.1.weight, "
            in (str(caught.value))
        )
        assert "unexpected: conv6.0.weight, conv6.1.weight, conv6.1.bias, ..." in str(caught.value)


def test_a_network_that_averages_its_patches(names: Path, tmp_path: Path) -> None:
    """MAE's fine-tuned ViT: an import sees it by fc_norm, training is told the name, timm gets it back."""
    network = fresh("test_vit", 0, global_pool="avg", img_size=96)
    torch.save({"model": pre("module.", network.state_dict())}, tmp_path / "w.pth")
    bundle = bundle_from_state_dict(tmp_path / "w.pth", "timm/test_vit", names, TrainedView(96))
    assert bundle.model == "timm/test_vit+avg"
    same_answers(bundle, network, 96)
    with pytest.raises(ModelError, match=r"whose fc_norm follows the mean of all patches \(--model NAME\+avg\)"):
        build_backbone("timm/test_vit", str(tmp_path / "w.pth"), 96)
    loaded = build_backbone("timm/test_vit+avg", str(tmp_path / "w.pth"), 96).network.state_dict()
    assert torch.equal(loaded["fc_norm.bias"], network.fc_norm.bias)
    assert timm_layout(bundle).arguments == {"global_pool": "avg", "img_size": 96}


def test_the_two_heads_of_a_distilled_network(names: Path, tmp_path: Path) -> None:
    model = "deit_tiny_distilled_patch16_224"
    network = fresh(model, 0)
    torch.save({"model": network.state_dict()}, tmp_path / "w.pth")
    build_backbone(f"timm/{model}", str(tmp_path / "w.pth"))
    bundle = bundle_from_state_dict(tmp_path / "w.pth", f"timm/{model}", names)
    assert bundle.model == f"timm/{model}+dist"
    same_answers(bundle, network, 224)


def test_variants_of_networks_that_have_none(names: Path) -> None:
    for name in ("timm/test_vit+dist", "timm/test_vit+max", "resnet18+avg", "timm/test_vit+avg+avg"):
        with pytest.raises(ModelError, match=r"has no second head \(head_dist\)|unknown model"):
            build_backbone(name, "none")


def test_telling_keys_come_first(tmp_path: Path) -> None:
    torch.save({**{f"a{number}": number for number in range(9)}, "state_dict": {}, "teacher": None}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="got 11 keys, teacher, state_dict, a0, a1, a2 and 6 more, expected"):
        read_states(tmp_path / "w.pth")


def test_a_larger_network_of_the_same_family_does_not_pass(tmp_path: Path) -> None:
    torch.save(get_model("resnet34").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"unexpected: layer1\.2\.conv1\.weight"):
        build_backbone("resnet18", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("model", ["test_convnext", "test_vit"])
def test_authors_names_and_positions(model: str, names: Path, tmp_path: Path) -> None:
    network = fresh(model, 0)
    state = network.state_dict()
    if model == "test_convnext":
        state = {
            name.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
            .replace(".blocks.", ".").replace("head.norm", "norm").replace("head.fc", "head"): value
            for name, value in state.items()
        }  # fmt: skip
    torch.save({"model": state}, tmp_path / "w.pth")
    same_answers(bundle_from_state_dict(tmp_path / "w.pth", f"timm/{model}", names, TrainedView(160)), network, 160)


def test_positions_of_another_size_are_resampled_for_training_and_named_for_an_import(
    names: Path, tmp_path: Path
) -> None:
    network = fresh("test_vit", 0, img_size=256)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    build_backbone("timm/test_vit", str(tmp_path / "w.pth"))
    with pytest.raises(ModelError, match=r"pos_embed is for images of another size than 160 .*: give --image-size 256"):
        bundle_from_state_dict(tmp_path / "w.pth", "timm/test_vit", names)
    same_answers(bundle_from_state_dict(tmp_path / "w.pth", "timm/test_vit", names, TrainedView(256)), network, 256)


def test_a_batch_norm_of_the_head_is_folded(network: nn.Module, names: Path, tmp_path: Path) -> None:
    network = fresh(SMALL, 0)
    network.fc = nn.Sequential(nn.Linear(1024, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
    norm = network.fc[1]
    with torch.no_grad():
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            value.uniform_(0.5, 2)
    network.eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    same_answers(bundle_from_state_dict(tmp_path / "w.pth", SMALL, names, TrainedView(32)), network)


def test_layers_that_no_tensor_describes_are_not_guessed(names: Path, tmp_path: Path) -> None:
    """The original ViT has a tanh behind pre_logits."""
    state = fresh("test_vit", 0).state_dict()
    width = state["head.weight"].shape[1]
    more = {"pre_logits.fc.weight": torch.eye(width), "pre_logits.fc.bias": torch.zeros(width)}
    torch.save({**state, **more}, tmp_path / "w.pth")
    build_backbone("timm/test_vit", str(tmp_path / "w.pth"))
    with pytest.raises(ModelError, match="head is of another kind: got .*pre_logits"):
        bundle_from_state_dict(tmp_path / "w.pth", "timm/test_vit", names)


# folders, shards, configs


def sharded(folder: Path, state: State) -> dict[str, str]:
    keys = list(state)
    files = {key: f"model-0000{1 + (place > 60)}-of-00002.safetensors" for place, key in enumerate(keys)}
    for file in set(files.values()):
        save_file({key: state[key].contiguous() for key in keys if files[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return files


@pytest.mark.parametrize("given", ["", "model.safetensors.index.json"])
def test_a_sharded_file(given: str, network: nn.Module, names: Path, tmp_path: Path) -> None:
    sharded(tmp_path, network.state_dict())
    build_backbone(SMALL, str(tmp_path / given))
    same_answers(bundle_from_state_dict(tmp_path / given, SMALL, names, TrainedView(32)), network)


def test_an_index_names_files_beside_it_only(network: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    files = sharded(folder, network.state_dict())
    first = next(iter(files.values()))
    index = folder / "model.safetensors.index.json"
    (tmp_path / first).write_bytes((folder / first).read_bytes())
    index.write_text(json.dumps({"weight_map": dict.fromkeys(files, f"../{first}")}))
    with pytest.raises(ModelError, match="which is no file beside it"):
        read_states(folder)
    index.write_text(json.dumps({"weight_map": {**files, "more.weight": first}}))
    with pytest.raises(ModelError, match=r"its files lack 1 of \d+ tensors: more.weight"):
        read_states(folder)
    index.write_text("[1]")
    with pytest.raises(ModelError, match="no index of a sharded file"):
        read_states(folder)


def test_a_folder_of_timm_says_how_it_was_trained(network: nn.Module, names: Path, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 96, 96], "crop_pct": 0.75}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "x", "pretrained_cfg": {**config, "interpolation": "bicubic"}})
    )
    view = bundle_from_state_dict(tmp_path, SMALL, names).preprocessing
    assert (view.crop, view.resize, view.interpolation) == (96, 128, "bicubic")
    assert (view.mean, view.std) == ((0.5,) * 3, (0.25,) * 3)
    flags = TrainedView(64, (0.1,) * 3, (0.2,) * 3, 70, None, "bilinear")
    view = bundle_from_state_dict(tmp_path / "model.safetensors", SMALL, names, flags).preprocessing
    assert (view.crop, view.resize, view.interpolation, view.mean) == (64, 70, "bilinear", (0.1,) * 3)


def test_the_configs_of_hugging_face(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"image_size": 224, "id2label": {"0": "a"}}')
    values = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": {"shortest_edge": 256}}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**values, "do_center_crop": True, "crop_size": {"height": 240, "width": 240}}))
    assert read_view(tmp_path) == TrainedView(240, (0.5,) * 3, (0.5,) * 3, 256, None, "bicubic")
    path.write_text(json.dumps({**values, "size": {"height": 224, "width": 224}, "resample": 2}))
    assert read_view(tmp_path / "model.safetensors") == TrainedView(224, (0.5,) * 3, (0.5,) * 3, 224, None, "bilinear")
    for text in (
        '{"image_mean": [0.5]}',
        '{"size": 1000000000}',
        '{"crop_pct": NaN}',
        '{"image_std": [1e400, "a", 0]}',
        "{",
    ):
        path.write_text(text)
        with pytest.raises(ModelError, match=r"preprocessor_config.json: cannot be read as a model's config") as caught:
            read_view(tmp_path)
        assert "\n" not in str(caught.value)


def test_odd_tensors_and_mappings_inside_themselves(network: nn.Module, tmp_path: Path) -> None:
    """Sparse, complex and meta tensors are no weights; a mapping is looked into once, wherever it is named."""
    loop: dict = {}
    loop.update({f"key{place}": loop for place in range(200)})
    odd = {
        "a": torch.eye(3).to_sparse(),
        "b": torch.zeros(3, dtype=torch.complex64),
        "c": torch.zeros(3, device="meta"),
    }
    torch.save({"state_dict": {**network.state_dict(), **odd}, "loop": loop}, tmp_path / "w.pth")
    assert set(read_states(tmp_path / "w.pth")["state_dict"]) == set(network.state_dict())


def test_a_network_with_its_last_stages(names: Path, tmp_path: Path) -> None:
    """NAME+2 of a bundle: both readers find the network inside."""
    from safetensors.torch import load_file

    from flowers.models.heads import HeadSpec, build_head

    model = "timm/test_efficientnet+2"
    backbone = build_backbone(model, "none")
    head = build_head(HeadSpec(3, backbone.num_features))
    state = {**pre("backbone.", backbone.network.state_dict()), **pre("head.", head.state_dict())}
    save_file(state, tmp_path / "model.safetensors")
    bundle = bundle_from_state_dict(tmp_path, model, names)
    assert all(torch.equal(value, state[name]) for name, value in bundle.state_dict.items())
    loaded = build_backbone(model, str(tmp_path)).network.state_dict()
    assert all(
        torch.equal(value, load_file(tmp_path / "model.safetensors")[f"backbone.{n}"]) for n, value in loaded.items()
    )


# small files that claim much, and files that ask for code


def test_a_stride_of_zero_claims_no_terabytes(tmp_path: Path) -> None:
    torch.save({"conv1.0.weight": torch.zeros(1).expand(2**40)}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 2_000
    with pytest.raises(ModelError, match=r"bytes but claims 4,398,046,511,104 in conv1.0.weight"):
        read_states(tmp_path / "w.pth")


def test_a_zip_file_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2**22)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    with pytest.raises(ModelError, match=r"bytes but claims 16,"):
        read_states(tmp_path / "w.pth")


def test_an_old_file_that_claims_terabytes(tmp_path: Path) -> None:
    """The format before zip: sizes of storages come before their bytes."""
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    claimed = re.sub(rb"(cpuq.)K\x03", lambda found: found[1] + b"\x8a\x06" + struct.pack("<Q", 2**40)[:6], content)
    assert claimed != content
    (tmp_path / "w.pth").write_bytes(claimed)
    with pytest.raises(ModelError, match=r"cannot be read|claims"):
        read_states(tmp_path / "w.pth")


class Runs:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("was-here"),)


@pytest.mark.parametrize("place", ["metric", "state_dict", "whole"])
def test_code_beside_the_tensors_is_not_run(
    place: str, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {
        "whole": Runs(),
        "metric": {"model": network.state_dict(), "metric": Runs()},
        "state_dict": {"state_dict": Runs()},
    }
    torch.save(content[place], tmp_path / "w.pth")
    with pytest.raises(ModelError, match="is not a plain file of tensors") as caught:
        read_states(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"a": Runs()}))
    with pytest.raises(ModelError, match="not a plain file of tensors|cannot be read"):
        read_states(tmp_path / "raw.pth")
    assert not Path("was-here").exists()


def test_a_whole_network_is_named(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=r"the whole file \(torchvision.models.shufflenetv2.ShuffleNetV2\).*state_dict\(\)"
    ):
        read_states(tmp_path / "w.pth")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected one weights file in it, model.safetensors say; it has none"):
        read_states(tmp_path)
