"""Whatever runs a network, the answers are those of plain float32 PyTorch, and the same bits every time."""

import contextlib
import copy
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pretend_gpu import PretendGpu
from torch import nn

from flowers import machine
from flowers.data.folders import ClassIndex
from flowers.data.images import read_image
from flowers.data.preprocessing import Preprocessing
from flowers.engines import engine as engine_module
from flowers.engines import openvino_engine
from flowers.engines.engine import Engine, KeyedNetwork, build_engine
from flowers.errors import FlowersError, ModelError, UsageError
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, load_bundle, save_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head

try:
    import openvino  # noqa: F401
except ImportError:
    HAS_OPENVINO = HAS_BF16 = False
else:
    HAS_OPENVINO, HAS_BF16 = True, openvino_engine.has_bf16()

needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="OpenVINO does not compute bf16 on this CPU")
ENGINES = [
    pytest.param("torch", "float32"),
    pytest.param("torch", "bf16", marks=() if machine.cpu_has_bf16() else pytest.mark.slow),  # emulated: a minute
    pytest.param("openvino", "float32", marks=needs_openvino),
    pytest.param("openvino", "bf16", marks=needs_bf16),
]


def run(engine: Engine, images: np.ndarray, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray | None]:
    """Probs and features of any number of images, all batches in flight at once."""
    handles = [engine.submit(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    outputs = [handle.result() for handle in handles]
    features = [output.features for output in outputs]
    return np.concatenate([output.probs for output in outputs]), None if features[0] is None else np.concatenate(
        features
    )


def plain(classifier: nn.Module, preprocessing: Preprocessing, images: np.ndarray) -> np.ndarray:
    """The reference: eager float32, as anyone would write it."""
    with torch.inference_mode():
        batches = torch.from_numpy(images).split(4)  # small ones are faster
        return torch.cat([classifier(preprocessing.normalize(batch)).softmax(1) for batch in batches]).numpy()


def make_bundle(model: str, weights: str, num_classes: int) -> Bundle:
    """A bundle whose head, though random, is sure of itself."""
    torch.manual_seed(0)
    backbone = build_backbone(model, weights)
    spec = HeadSpec(num_classes, backbone.num_features)
    head = build_head(spec)
    nn.init.normal_(head.output.weight)
    names = tuple(f"class {index:03}" for index in range(num_classes))
    state = Classifier(backbone.network, head).state_dict()
    return Bundle(model, spec, ClassIndex(names, names), backbone.preprocessing, {}, {}, state)


@pytest.fixture(scope="module")
def lite0() -> Bundle:
    return make_bundle("efficientnet_lite0", "default", 102)


@pytest.fixture
def tiny() -> Bundle:
    return make_bundle("timm/test_vit", "none", 5)


def noise(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


# the same answers


@pytest.fixture(scope="module")
def trained(flowers102: Path) -> tuple[Bundle, np.ndarray, np.ndarray]:
    """Lite0 with a head trained on 3 real photos a class; 150 other photos; what plain float32 says of those."""
    backbone = build_backbone("efficientnet_lite0")
    view, spec = backbone.preprocessing, HeadSpec(102, backbone.num_features)

    def read(paths: list[Path]) -> np.ndarray:
        return np.stack([view.view(read_image(path, min_short_side=view.min_short_side)) for path in paths])

    folders = sorted((flowers102 / "train").iterdir())
    images = read([path for folder in folders for path in sorted(folder.iterdir())[:3]])
    engine = build_engine(backbone.network, view)
    features = torch.from_numpy(
        np.concatenate([engine.submit(images[i : i + 32]).result().features for i in range(0, 306, 32)])
    )
    engine.close()
    targets = torch.arange(102).repeat_interleave(3)
    torch.manual_seed(0)
    head = build_head(spec)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), targets).backward()
        optimizer.step()
    classifier = Classifier(backbone.network, head).eval()
    names = tuple(folder.name for folder in folders)
    bundle = Bundle("efficientnet_lite0", spec, ClassIndex(names, names), view, {}, {}, classifier.state_dict())
    photos = read(sorted((flowers102 / "photos").iterdir())[:150])
    return bundle, photos, plain(classifier, view, photos)


MAX_PROB_DIFFERENCE = {"float32": 1e-4, "bf16": 0.2}


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_labels_of_real_photos_are_those_of_plain_float32(
    engine: str, precision: str, trained: tuple[Bundle, np.ndarray, np.ndarray]
) -> None:
    bundle, photos, expected = trained
    if precision == "bf16" and not machine.cpu_has_bf16():  # emulated: half a second a photo
        photos, expected = photos[:60], expected[:60]
    built = build_engine(bundle, engine=engine, precision=precision)
    probs, _ = run(built, photos)
    built.close()
    assert probs.dtype == np.float32
    assert (probs.argmax(1) == expected.argmax(1)).mean() >= 0.995
    assert np.abs(probs - expected).max() <= MAX_PROB_DIFFERENCE[precision]
    assert np.abs(probs.sum(1) - 1).max() < 1e-5
    assert built.settled < len(photos) / 4
    assert (built.settled > 0) == (precision == "bf16")


@pytest.fixture(scope="module")
def compiled() -> Iterator[tuple[Engine, Classifier, Preprocessing]]:
    """A network that compiles in seconds, as compiling Lite0 takes minutes; its head tells colours apart."""
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    classifier, view = Classifier(nn.Sequential(*layers), nn.Linear(16, 4)), Preprocessing(resize=16, crop=16)
    nn.init.normal_(classifier.head.weight)
    engine = build_engine(classifier, view, engine="compile", precision="bf16", threads=2, features=True)
    yield engine, classifier.eval(), view
    engine.close()


def test_compiled_is_as_eager(compiled: tuple[Engine, Classifier, Preprocessing]) -> None:
    engine, classifier, view = compiled
    images = noise(20, 16)
    probs, features = run(engine, images, 20)
    again = run(engine, images[::-1], 7)
    assert np.array_equal(again[0], probs[::-1])
    assert np.array_equal(again[1], features[::-1])
    expected = plain(classifier, view, images)
    assert (probs.argmax(1) == expected.argmax(1)).all()
    assert np.abs(probs - expected).max() < 0.01


def test_compiled_labels_of_real_photos_are_those_of_plain_float32(
    compiled: tuple[Engine, Classifier, Preprocessing], flowers102: Path
) -> None:
    engine, classifier, view = compiled
    paths = sorted((flowers102 / "photos").iterdir())[:200]
    photos = np.stack([view.view(read_image(path, min_short_side=view.min_short_side)) for path in paths])
    probs, _ = run(engine, photos)
    expected = plain(classifier, view, photos)
    assert len(set(expected.argmax(1))) > 2
    assert (probs.argmax(1) == expected.argmax(1)).mean() >= 0.995
    assert np.abs(probs - expected).max() <= MAX_PROB_DIFFERENCE["bf16"]


def test_compilation_without_a_compiler(tiny: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler and found none \(g\+\+ or clang\+\+\)"):
        build_engine(tiny, engine="compile")


def test_compilation_that_fails_is_one_line(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fail(*args: object) -> None:
        raise TorchDynamoException("InvalidCxxCompiler:\n  No working C++ compiler found")

    monkeypatch.setattr(engine_module, "Pool", fail)
    monkeypatch.setattr(engine_module, "torch_worker", lambda *args: None)
    with pytest.raises(ModelError, match=r"does not work here \(InvalidCxxCompiler: No working C\+\+ compiler found\)"):
        build_engine(tiny, engine="compile", precision="float32")


def test_a_thread_of_a_gpu(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on a pretended one: the thread stays with its GPU, and float32 is float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    network = engine_module.PixelNetwork(tiny.build(), tiny.preprocessing, fold=True)
    images = noise(2, 32)
    with PretendGpu(monkeypatch) as gpu:
        features, probs = engine_module.torch_worker(network, torch.device("cuda", 1), compiled=False)()(images)
    assert gpu.device == torch.device("cuda", 1)
    assert gpu.log == [("wait", "host", "device"), ("copy", "side")]  # weights, then images in a stream of its own
    assert not torch.backends.cudnn.allow_tf32
    expected = network(torch.from_numpy(images))
    assert np.allclose(features, expected[0], atol=1e-5)
    assert np.allclose(probs, expected[1], atol=1e-5)


# the same bits


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_bits_depend_on_the_image_alone(engine: str, precision: str, lite0: Bundle) -> None:
    emulated = precision == "bf16" and not machine.cpu_has_bf16()  # Lite0 takes half a second an image
    bundle = make_bundle("timm/test_efficientnet", "none", 102) if emulated else lite0
    count, images = 6, noise(6, bundle.preprocessing.crop)
    built = build_engine(bundle, engine=engine, precision=precision, threads=2, batch_size=count + 1, features=True)
    probs, features = run(built, images, count)
    order = np.random.default_rng(1).permutation(count)
    for batch_size, chosen in ((count, order), (count - 1, np.arange(count)), (count + 1, np.repeat(order[:2], 2))):
        again = run(built, images[chosen], batch_size)
        assert np.array_equal(again[0], probs[chosen])
        assert np.array_equal(again[1], features[chosen])
    built.close()
    single = build_engine(bundle, engine=engine, precision=precision, threads=1, batch_size=4, features=True)
    again = run(single, images, 4)
    single.close()
    assert np.array_equal(again[0], probs)
    assert np.array_equal(again[1], features)


@needs_openvino
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_is_pinned_to_a_cpu(tiny: Bundle) -> None:
    """OpenVINO's own choice is to pin: several processes on a machine then shared the first CPUs, at half the speed."""
    engine = build_engine(tiny, engine="openvino", threads=1)
    handles = [engine.submit(noise(32, 160)) for _ in range(8)]
    seen = set()
    for handle in handles:
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # ended meanwhile
                seen |= set(re.findall(r"Cpus_allowed_list:\s*(\S+)", (thread / "status").read_text()))
        handle.result()
    engine.close()
    own = re.search(r"Cpus_allowed_list:\s*(\S+)", Path("/proc/self/status").read_text())[1]
    assert seen == {own}


def test_too_few_threads_are_an_error_not_a_wait(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_two(thread: threading.Thread) -> None:
        if thread.name.startswith("engine_2"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        build_engine(tiny, engine="torch", precision="float32", threads=4)


def test_a_batch_may_be_overwritten_once_it_is_submitted(tiny: Bundle) -> None:
    images = noise(8, 160)
    engine = build_engine(tiny, engine="torch", batch_size=8)
    expected = engine.submit(images).result().probs
    mine = images.copy()
    handles = []
    for _ in range(5):
        mine[:] = images
        handles.append(engine.submit(mine))
        mine[:] = 0
    assert all(np.array_equal(handle.result().probs, expected) for handle in handles)
    assert np.array_equal(handles[0].result().probs, expected)  # a result can be asked for again
    lent = [engine.submit(images[:count], lent=True) for count in (8, 7)]  # the last chunk of seven is filled up
    assert all(np.array_equal(h.result().probs, expected[:count]) for h, count in zip(lent, (8, 7), strict=True))
    engine.close()


# what goes in and comes out


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_a_backbone_alone_gives_features(engine: str) -> None:
    backbone = build_backbone("timm/test_vit", "none")
    network, images = backbone.network.train(), noise(5, 160)
    before = copy.deepcopy(network.state_dict())
    built = build_engine(network, backbone.preprocessing, engine=engine, batch_size=8)
    outputs = built.submit(images).result()
    built.close()
    assert outputs.probs is None
    assert outputs.features.shape == (5, backbone.num_features)
    assert outputs.features.dtype == np.float32
    assert network.training  # not changed
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.inference_mode():
        expected = network.eval()(backbone.preprocessing.normalize(torch.from_numpy(images))).numpy()
    assert np.abs(outputs.features - expected).max() < 0.05 * np.abs(expected).max()


def test_features_come_when_asked_for(tiny: Bundle) -> None:
    for wanted in (False, True):
        engine = build_engine(tiny, engine="torch", features=wanted)
        outputs = engine.submit(noise(1, 160)).result()
        engine.close()
        assert outputs.probs.shape == (1, 5)
        assert (outputs.features is not None) == wanted


def test_a_classifier_as_it_is_in_training(tiny: Bundle) -> None:
    classifier = tiny.build().train()
    engine = build_engine(classifier, tiny.preprocessing, engine="torch", precision="float32")
    images = noise(3, 160)
    assert np.allclose(run(engine, images)[0], plain(classifier.eval(), tiny.preprocessing, images), atol=1e-5)
    engine.close()


@pytest.mark.parametrize("count", [0, 5])
def test_a_batch_of_another_size_is_our_bug(count: int, tiny: Bundle) -> None:
    engine = build_engine(tiny, engine="torch", batch_size=4)
    with pytest.raises(ValueError, match=f"got {count} images, expected 1 to 4"):
        engine.submit(noise(count, 160))
    engine.close()


# doubts


def test_doubtful_labels_are_float32s(tiny: Bundle) -> None:
    images = noise(40, 160)
    exact = build_engine(tiny, engine="torch", precision="float32", batch_size=40, features=True)
    quick = build_engine(tiny, engine="torch", precision="bf16", batch_size=40, features=True)
    assert quick.doubt > 0
    quick.doubt = 0.0
    rough = quick.submit(images).result()
    assert quick.settled == 0
    margins = np.diff(np.sort(np.log(rough.probs), axis=1)[:, -2:])[:, 0]
    quick.doubt = float(np.median(margins))
    settled, expected = quick.submit(images).result(), exact.submit(images).result()
    doubtful = margins < quick.doubt
    assert quick.settled == doubtful.sum() == 20
    assert np.abs(settled.probs - expected.probs)[doubtful].max() < 1e-5
    assert np.abs(settled.features - expected.features)[doubtful].max() < 1e-4
    assert np.array_equal(settled.probs[~doubtful], rough.probs[~doubtful])
    for engine in (exact, quick):
        engine.close()


def test_no_doubt_about_a_single_class() -> None:
    engine = build_engine(make_bundle("timm/test_vit", "none", 1), engine="torch", precision="bf16")
    assert engine.doubt == 0.0
    assert engine.submit(noise(2, 160)).result().probs.tolist() == [[1.0], [1.0]]
    engine.close()


class Overflowing(nn.Module):
    """Features that bf16 or fp16 cannot hold for bright pictures; for others they can."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images.mean((2, 3))
        if images.dtype != torch.float32:
            features = torch.where(features.amax(1, keepdim=True) > 0.9, torch.nan, features)
        return features


def test_what_overflows_is_settled_too() -> None:
    classifier = Classifier(Overflowing(), nn.Linear(3, 4))
    nn.init.constant_(classifier.head.bias, 0.0)
    view = Preprocessing(resize=8, crop=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    engine = build_engine(classifier, view, engine="torch", precision="bf16")
    engine.doubt = 0.0
    probs, _ = run(engine, np.stack([np.full((8, 8, 3), value, np.uint8) for value in (255, 10)]))
    engine.close()
    assert np.isfinite(probs).all()
    assert engine.settled == 1


# choices


def test_auto_says_what_it_took_and_why(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(openvino_engine.importlib.util, "find_spec", lambda name: None)
    engine = build_engine(tiny, threads=1)
    engine.close()
    assert (engine.name, engine.precision) == ("torch", "float32")
    assert engine.description == "torch float32 on 1 CPU threads (OpenVINO is not installed)"
    with pytest.raises(UsageError, match="--engine openvino: it is not installed: pip install openvino"):
        build_engine(tiny, engine="openvino")
    monkeypatch.setattr(engine_module, "cpu_has_bf16", lambda: True)
    engine = build_engine(tiny, threads=1)
    engine.close()
    assert (engine.name, engine.precision) == ("torch", "bf16")
    assert "settled in float32" in engine.description


def test_auto_does_without_an_openvino_that_does_not_load(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.setattr(openvino_engine, "_core", openvino_engine._core.__wrapped__)
    engine = build_engine(tiny, threads=1, precision="float32")
    engine.close()
    assert engine.name == "torch"
    assert "OpenVINO cannot be loaded (libtbb.so.12: cannot open" in engine.description
    with pytest.raises(UsageError, match="--engine openvino: it cannot be loaded"):
        build_engine(tiny, engine="openvino")


@needs_openvino
def test_auto_takes_openvino_and_what_it_can(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "has_bf16", lambda: False)
    engine = build_engine(tiny, threads=1)
    engine.close()
    assert (engine.name, engine.precision) == ("openvino", "float32")
    with pytest.raises(UsageError, match="OpenVINO does not compute it on this CPU"):
        build_engine(tiny, engine="openvino", precision="bf16")


@needs_openvino
def test_what_openvino_cannot_convert_runs_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(images.mean((2, 3))[:, :, None] * torch.eye(3)).real

    view = Preprocessing(resize=8, crop=8)
    engine = build_engine(Odd(), view, precision="float32")
    assert engine.name == "torch"
    assert "OpenVINO cannot run this network" in engine.description
    assert engine.submit(noise(2, 8)).result().features.shape == (2, 3)
    engine.close()
    with pytest.raises(ModelError, match="OpenVINO cannot run this network"):
        build_engine(Odd(), view, engine="openvino", precision="float32")


@needs_openvino
def test_a_conversion_with_other_numbers_is_refused() -> None:
    class Unsteady(nn.Module):
        """As traced it is another function than when it is called again."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) * (1 if torch.jit.is_tracing() else 2)

    with pytest.raises(ModelError, match="its numbers differ from PyTorch's by"):
        build_engine(Unsteady(), Preprocessing(resize=8, crop=8), engine="openvino", precision="float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorrt"}, "expected one of auto, torch, compile, openvino"),
        ({"precision": "int3"}, "expected one of auto"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 needs a GPU"),
        pytest.param(
            {"engine": "openvino", "device": "cuda"}, "computes on the CPU, not on cuda", marks=needs_openvino
        ),
    ],
)
def test_what_cannot_be_had(options: dict, message: str, tiny: Bundle) -> None:
    with pytest.raises(UsageError, match=message):
        build_engine(tiny, **options)


def test_native_bf16_is_read_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (("fpu avx512_bf16 sse", True), ("fpu amx_bf16", True), ("fpu avx512f", False)):
        content = f"processor\t: 0\nflags\t\t: {flags}\n"
        monkeypatch.setattr("builtins.open", lambda *args, text=content, **kwargs: __import__("io").StringIO(text))
        assert machine.cpu_has_bf16() == expected
        monkeypatch.undo()


# the cache of converted models


@pytest.fixture
def saved(tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle on disk, a home of its own for the user, and no home in the home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_bundle(tiny, tmp_path / "best")
    return tmp_path / "best"


def openvino_probs(folder: Path) -> np.ndarray:
    engine = build_engine(load_bundle(folder), engine="openvino", precision="float32", threads=1)
    probs, _ = run(engine, noise(3, 160))
    engine.close()
    return probs


CONVERTED = ["model.bin", "model.xml"]


def converted(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.suffix in (".xml", ".bin"))


@needs_openvino
def test_a_model_is_converted_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = openvino_probs(saved)
    assert converted(saved / "converted") == CONVERTED
    load_bundle(saved)  # is a bundle still
    monkeypatch.setattr(openvino_engine, "convert", lambda *args: pytest.fail("converted again"))
    monkeypatch.setattr(Bundle, "build", lambda self: pytest.fail("built again"))
    assert np.array_equal(openvino_probs(saved), expected)


@needs_openvino
def test_what_a_killed_conversion_left_goes_with_the_next_one(saved: Path) -> None:
    openvino_probs(saved)
    (done,) = (saved / "converted").iterdir()
    done.rename(done.with_name(f".{done.name}.tmp-0"))
    openvino_probs(saved)
    assert list((saved / "converted").iterdir()) == [done]


@needs_openvino
def test_another_model_has_another_key(saved: Path, tiny: Bundle) -> None:
    first = openvino_probs(saved)
    tiny.state_dict["head.output.bias"] += 1 + torch.arange(5)
    shutil.copytree(saved / "converted", saved.parent / "kept")
    save_bundle(tiny, saved)
    shutil.copytree(saved.parent / "kept", saved / "converted")
    assert not np.allclose(openvino_probs(saved), first, atol=1e-3)
    assert len(list((saved / "converted").iterdir())) == 2


@needs_openvino
def test_where_nothing_can_be_written_beside(saved: Path, tmp_path: Path) -> None:
    (saved / "converted").write_text("a file where the folder would be")  # root may write into any folder
    expected = openvino_probs(saved)
    assert converted(tmp_path / "cache" / "flowers") == CONVERTED
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("here too")
    assert np.array_equal(openvino_probs(saved), expected)  # in memory


@needs_openvino
def test_who_has_no_home_needs_none(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # in a container, under a number that it has no name for
    openvino_probs(saved)
    assert len(list((saved / "converted").iterdir())) == 1


@needs_openvino
def test_a_network_with_a_key_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """So a second training run, or its evaluation, starts without converting the backbone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backbone = build_backbone("timm/test_resnet", "none")
    images = noise(3, backbone.preprocessing.crop)

    def features(network: nn.Module) -> np.ndarray:
        keyed = KeyedNetwork("timm/test_resnet", network)
        engine = build_engine(keyed, backbone.preprocessing, engine="openvino", precision="float32", threads=1)
        outputs = engine.submit(images).result()
        engine.close()
        assert outputs.probs is None
        return outputs.features

    first = features(backbone.network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_engine, "convert", lambda *args: pytest.fail("converted again"))
        assert np.array_equal(features(backbone.network), first)
    with torch.no_grad():
        next(backbone.network.parameters()).mul_(1.5)
    assert not np.allclose(features(backbone.network), first)
    assert len(list((tmp_path / "flowers").iterdir())) == 2


@needs_openvino
def test_models_that_were_not_used_for_longest_go_first(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved / "converted"
    for age, name in enumerate(("openvino-new", "openvino-old", "openvino-oldest")):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.bin").write_bytes(bytes(1000))
        os.utime(folder / name, (10**9 - age, 10**9 - age))
    expected = openvino_probs(saved)
    assert len(list(folder.iterdir())) == 4
    (own,) = {path.name for path in folder.iterdir()} - {"openvino-new", "openvino-old", "openvino-oldest"}
    size = sum(path.stat().st_size for path in (folder / own).iterdir())
    shutil.rmtree(folder / own)
    monkeypatch.setattr(openvino_engine, "KEPT_BYTES", size + 1500)
    assert np.array_equal(openvino_probs(saved), expected)
    assert {path.name for path in folder.iterdir()} == {own, "openvino-new"}


@needs_openvino
@pytest.mark.parametrize("name", CONVERTED)
def test_a_damaged_conversion_is_made_again(name: str, saved: Path, capsys: pytest.CaptureFixture) -> None:
    expected = openvino_probs(saved)
    (path,) = (saved / "converted").rglob(name)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0x10
    path.write_bytes(whole)
    assert np.array_equal(openvino_probs(saved), expected)
    assert "is damaged, and is made anew" in capsys.readouterr().err
    assert converted(saved / "converted") == CONVERTED


@needs_openvino
def test_a_damaged_conversion_that_cannot_be_removed_keeps_nobody_from_work(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of somebody else's, or where another process removes it, too."""

    def refuse(path: Path) -> None:
        raise FlowersError(f"cannot write {path}")

    expected = openvino_probs(saved)
    (path,) = (saved / "converted").rglob("digests.json")
    path.write_text("{}")
    monkeypatch.setattr(openvino_engine, "remove", refuse)
    assert np.array_equal(openvino_probs(saved), expected)


@needs_openvino
def test_two_that_convert_at_once(saved: Path) -> None:
    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(openvino_probs(saved))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 2
    assert all(np.array_equal(probs, got[0]) for probs in got)
    assert converted(saved / "converted") == CONVERTED
    assert [path for path in (saved / "converted").iterdir() if path.name.startswith(".")] == []
