"""JPEGs decoded by a GPU: which are taken, that views are the CPU's, and that no other file suffers.

On a CPU, where TorchCodec's libjpeg takes the place of nvJPEG; tests/gpu has a GPU.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_job
import torch
from color_profiles import P3_PRIMARIES, rgb_profile
from odd_files import FINE, encode, half_jpeg, odd_files
from pictures import differences, photo
from PIL import Image

from flowers.config.predict import PredictConfig
from flowers.data.formats import limits
from flowers.data.gpu_decoder import GpuDecoder
from flowers.data.images import read_image
from flowers.data.preprocessing import Preprocessing
from flowers.errors import OutputError, UsageError
from flowers.prediction import shard_loop
from flowers.prediction.predict import predict

torchcodec = pytest.importorskip("torchcodec")
CPU = torch.device("cpu")
VIEW = Preprocessing(64, 56, to_srgb=True)


@pytest.fixture(scope="module")
def decoder() -> GpuDecoder:
    return GpuDecoder(VIEW, CPU)


def refused() -> bytes:
    """A JPEG with 12 bits a sample, which its header alone makes look plain."""
    data = bytearray(encode(photo(80, 100), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


def plain_and_others() -> tuple[list, list]:
    jpegs = [(odd.name, data) for odd, data in odd_files() if data.startswith(b"\xff\xd8\xff")]
    plain = ("turned", "grey", "pair", "UPPER", "really")
    return [j for j in jpegs if j[0].startswith(plain)], [j for j in jpegs if not j[0].startswith(plain)]


PLAIN, OTHERS = plain_and_others()


@pytest.mark.parametrize(("name", "data"), PLAIN, ids=[name for name, _ in PLAIN])
def test_a_plain_jpeg_is_seen_as_the_cpu_sees_it(decoder: GpuDecoder, name: str, data: bytes) -> None:
    view = decoder.views([decoder.prepare(data)])[0]
    assert differences(view, VIEW.view(read_image(data))).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(480, 640), (641, 480), (100, 1000), (40, 40)])
def test_any_size_is_seen_as_the_cpu_sees_it(size: tuple[int, int], interpolation: str) -> None:
    view = Preprocessing(64, 56, interpolation=interpolation)
    decoder = GpuDecoder(view, CPU)
    datas = [encode(photo(*size, seed=seed), "JPEG") for seed in range(3)]
    for data, seen in zip(datas, decoder.views([decoder.prepare(data) for data in datas]), strict=True):
        difference = differences(seen, view.view(read_image(data)))
        assert difference.max() <= (1 if interpolation == "bilinear" else 6)
        assert difference.mean() < 0.3


@pytest.mark.parametrize(("name", "data"), OTHERS, ids=[name for name, _ in OTHERS])
def test_what_is_not_plain_is_left_to_the_cpu(decoder: GpuDecoder, name: str, data: bytes) -> None:
    assert decoder.prepare(data) is None


def test_a_profile_and_a_picture_too_large_are_left_to_the_cpu(
    decoder: GpuDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(photo(80, 100))
    profiled = encode(image, "JPEG", **FINE, icc_profile=rgb_profile(P3_PRIMARIES))
    assert decoder.prepare(profiled) is None
    assert GpuDecoder(Preprocessing(64, 56), CPU).prepare(profiled) is not None  # a model that looks at no profile
    assert decoder.prepare(encode(image, "PNG")) is None
    monkeypatch.setattr(limits, "_allowed_pixels", 80 * 100 - 1)
    assert decoder.prepare(encode(image, "JPEG")) is None


def test_what_the_gpu_refuses_is_none_and_its_neighbours_are_decoded(decoder: GpuDecoder) -> None:
    sound = [encode(photo(80, 100, seed=seed), "JPEG") for seed in range(4)]
    files = [decoder.prepare(data) for data in (*sound[:2], refused(), *sound[2:])]
    views = decoder.views(files)
    assert views.pop(2) is None
    for view, expected in zip(views, decoder.views([decoder.prepare(data) for data in sound]), strict=True):
        assert np.array_equal(view, expected)


def test_large_pictures_are_decoded_in_several_calls(decoder: GpuDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    decode = decoder._decode_jpeg
    monkeypatch.setattr("flowers.data.gpu_decoder._TOGETHER_PIXELS", 2 * 80 * 100)
    monkeypatch.setattr(
        decoder, "_decode_jpeg", lambda datas, **options: calls.append(len(datas)) or decode(datas, **options)
    )
    datas = [encode(photo(80, 100, seed=seed), "JPEG") for seed in range(5)]
    assert len(decoder.views([decoder.prepare(data) for data in datas])) == 5
    assert calls == [2, 2, 1]


# The job


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, str]]]:
    """Run the job on photos, some of which are not for the GPU, and read its rows."""
    tiny_job.make_bundle(tmp_path / "bundle")
    photos = tmp_path / "photos"
    tiny_job.make_photos(photos, 20)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (photos / "cut.jpg").write_bytes(encode(photo(80, 100), "JPEG")[:-200])
    (photos / "refused.jpg").write_bytes(refused())
    (photos / "half.jpg").write_bytes(half_jpeg())
    (photos / "progressive.jpg").write_bytes(encode(photo(80, 100), "JPEG", progressive=True))
    (photos / "z.png").write_bytes(encode(photo(80, 100), "PNG"))

    def run(name: str, **flags: object) -> list[dict[str, str]]:
        flags = {"engine": "torch", "precision": "float32", "batch_size": 4, "workers": 3, **flags}
        config = PredictConfig(checkpoint=tmp_path / "bundle", input=photos, output=tmp_path / name, **flags)
        assert predict(config) == 0
        with open(tmp_path / name, newline="") as file:
            return list(csv.DictReader(file))

    return run


def test_a_jobs_rows_are_those_of_the_cpu(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("cpu.csv")
    decoded: list[int] = []

    class Counted(GpuDecoder):
        def views(self, files: list) -> list:
            decoded.append(len(files))
            return super().views(files)

    monkeypatch.setattr(shard_loop, "_gpu_decoder", lambda job: Counted(job.model.preprocessing, CPU))
    rows = run("gpu.csv", decode="gpu")
    assert sum(decoded) == 22  # the photos, the one that it refuses, and the half
    for row, other in zip(rows, expected, strict=True):
        same = ("path", "label", "error") if other["status"] != "damaged" else ("path",)  # which only libjpeg tells
        assert [row[name] for name in same] == [other[name] for name in same]
        if other["status"] == "ok":
            assert float(row["prob"]) == pytest.approx(float(other["prob"]), abs=0.02)
    again = run("again.csv", decode="gpu", workers=1)
    assert again == rows


def test_rows_of_the_other_decoder_are_not_taken_for_its_own(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    run("out.csv")
    monkeypatch.setattr(shard_loop, "_gpu_decoder", lambda job: GpuDecoder(job.model.preprocessing, CPU))
    with pytest.raises(OutputError, match="decode: None then, gpu now"):
        run("out.csv", decode="gpu")


def test_no_gpu_and_no_torchcodec_are_told_in_one_line(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"^--decode gpu: torch sees no GPU here; leave it out$"):
            run("out.csv", decode="gpu")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UsageError, match=r"^--decode gpu needs the extra gpu: pip install flowers\[gpu\]$"):
        GpuDecoder(VIEW, CPU)
