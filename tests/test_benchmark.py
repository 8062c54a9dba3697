"""The benchmark of prediction: every way that runs here is measured, and the flags it names are of the fastest."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_job
import torch

from flowers import cli
from flowers.config.benchmark import BenchmarkConfig
from flowers.config.predict import PredictConfig
from flowers.engines.engine import Engine, build_engine
from flowers.errors import DataError, FlowersError, UsageError
from flowers.models.bundle import load_bundle
from flowers.prediction.benchmark import KnownAnswers, Sample, benchmark, pipeline_rate


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture
def run(bundle: Path, tmp_path: Path) -> Callable[..., int]:
    """Run the job on ten photos, quickly."""
    tiny_job.make_photos(tmp_path / "photos", 10)

    def run(**flags: object) -> int:
        quick = {"checkpoint": bundle, "input": tmp_path / "photos", "seconds": 0.03, "workers": (1, 2)}
        quick |= {"engines": ("torch",), "precisions": ("float32",), "batch_sizes": (4,)}
        return benchmark(BenchmarkConfig(**{**quick, **flags}))

    return run


def test_an_output_that_cannot_be_written_is_told_before_the_work(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FlowersError, match="cannot write"):
        run(output=tmp_path / "file" / "speeds.json")
    assert not capsys.readouterr().out


def test_the_flags_it_names_are_those_of_the_fastest_way(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    assert run(batch_sizes=(2, 8), precisions=("float32", "fp16"), output=tmp_path / "speeds.json") == 0
    shown = capsys.readouterr()
    assert "left out 1 file that gives no picture" in shown.err
    assert "not tried: torch fp16: --precision fp16 needs a GPU" in shown.out
    figures = json.loads((tmp_path / "speeds.json").read_text())
    assert f"flags:   {figures['flags']}" in shown.out
    assert figures["photos"]["count"] == 10
    assert {(way["engine"], way["precision"], way["batch_size"]) for way in figures["engines"]} == {
        ("torch", "float32", 2),
        ("torch", "float32", 8),
    }
    whole = figures["pipelines"]
    assert sorted(way["workers"] for way in whole) == [1, 2]
    assert {way["batch_size"] for way in whole} == {figures["engines"][0]["batch_size"]}
    for ways in (figures["engines"], whole):
        rates = [way["images_per_s"] for way in ways]
        assert rates == sorted(rates, reverse=True)
        assert min(rates) > 0
    for way in whole:
        both = 1 / (1 / way["decode_per_s"] + 1 / way["infer_per_s"])
        assert way["ceiling_per_s"] == pytest.approx(both)
    advised = cli.parse(PredictConfig, ["--checkpoint", "C", "--input", "D", *figures["flags"].split()])
    fastest = (advised.engine, advised.precision, advised.batch_size, advised.workers)
    assert fastest == tuple(whole[0][name] for name in ("engine", "precision", "batch_size", "workers"))


def test_a_batch_too_large_for_the_device_is_passed_over(
    run: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def build(*args: object, batch_size: int, **options: object) -> Engine:
        if batch_size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build_engine(*args, batch_size=batch_size, **options)

    monkeypatch.setattr("flowers.prediction.benchmark.build_engine", build)
    assert run(batch_sizes=(4, 8)) == 0
    assert "not tried: torch float32, batch 8: the device's memory is full" in capsys.readouterr().out


def test_the_sample_is_what_the_network_would_see(run: Callable, bundle: Path, tmp_path: Path) -> None:
    view = load_bundle(bundle).preprocessing
    sample = Sample(BenchmarkConfig(bundle, tmp_path / "photos", images=3), view)
    assert sample.images.shape == (3, view.crop, view.crop, 3)
    assert sample.read_bytes == sum(path.stat().st_size for path in sorted((tmp_path / "photos").iterdir())[:3])
    batches = sample.batches(4)
    np.testing.assert_array_equal(next(batches), sample.images[[0, 1, 2, 0]])
    np.testing.assert_array_equal(next(batches), sample.images[[1, 2, 0, 1]])


def test_decoding_alone_goes_through_the_pipeline(run: Callable, bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    sample = Sample(BenchmarkConfig(bundle, tmp_path / "photos"), loaded.preprocessing)
    known = KnownAnswers(len(loaded.classes.folders), batch_size=4)
    assert 0 < pipeline_rate(known, loaded, sample, 2, 0.03) < float("inf")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"engines": ("torch", "tensorrt")}, "--engines: got 'tensorrt', expected some of torch, "),
        ({"precisions": ("auto",)}, "--precisions: got 'auto', expected some of float32, bf16, fp16"),
        ({"precisions": ("fp16",)}, "no engine could run here: torch fp16: --precision fp16 needs a GPU"),
        ({"batch_sizes": (0,)}, "--batch-sizes: got 0, expected at least 1"),
        ({"seconds": 0.0}, "--seconds: got 0.0"),
    ],
)
def test_what_cannot_be_is_told(run: Callable, flags: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(**flags)


def test_nothing_to_measure_with(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FlowersError, match="missing"):
        run(checkpoint=tmp_path / "missing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="none of its first 1 files gives a picture"):
        run(input=tmp_path / "other")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="measures one process"):
        run()
