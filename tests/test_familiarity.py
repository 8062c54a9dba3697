"""Unfamiliar photos: the score, its threshold, where it is stored, and what a job and the API make of it."""

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_job
import torch

import flowers
from flowers.config.predict import PredictConfig
from flowers.data.folders import Samples
from flowers.data.loaders import Batch
from flowers.demo.answer import Oracle
from flowers.demo.page import ask
from flowers.errors import ModelError, OutputError
from flowers.models.bundle import Bundle, load_bundle, save_bundle
from flowers.models.familiarity import Familiarity, fit_familiarity
from flowers.models.temperature import with_temperature, without_temperature
from flowers.prediction.predict import predict
from flowers.prediction.rows import RowFormat
from flowers.reports.calibration import softmax
from flowers.training.evaluation import AnswerTables, learn_unfamiliar

CLASSES, WIDTH = 20, 64
PLAIN = {"engine": "torch", "precision": "float32", "workers": 1}


def photos_of(known: bool, count: int, seed: int, size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probs and features of a linear head whose classes are directions, of photos along one of them or of others."""
    means = np.random.default_rng(99).normal(0, 1, (2 * CLASSES, WIDTH))
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, count) + (0 if known else CLASSES)
    features = (size * means[classes] + rng.normal(0, 0.5, (count, WIDTH))).astype(np.float32)
    return softmax(0.25 * features @ means[:CLASSES].T.astype(np.float32)), features


@pytest.fixture(scope="module")
def fitted() -> Familiarity:
    return fit_familiarity(*photos_of(True, 800, seed=0))


def test_the_threshold_keeps_the_share_of_known_photos_that_it_says(fitted: Familiarity) -> None:
    marked = fitted.unfamiliar(*photos_of(True, 5000, seed=1)).mean()
    assert (fitted.share, fitted.images) == (0.98, 800)
    assert 0.01 < marked < 0.03
    assert fitted.unfamiliar(*photos_of(False, 1000, seed=2)).mean() > 0.8, "other directions: near"
    assert fitted.unfamiliar(*photos_of(True, 1000, seed=3, size=20.0)).mean() > 0.99, "as sure as can be, but far"


def test_a_score_is_that_of_one_photo_in_any_batch_at_any_temperature(fitted: Familiarity) -> None:
    probs, features = photos_of(True, 33, seed=4)
    scores = fitted.scores(probs, features)
    for start, end in ((7, 8), (20, 33)):
        assert np.array_equal(fitted.scores(probs[start:end], features[start:end]), scores[start:end])
    warm = softmax(np.log(probs) / 1.7)
    np.testing.assert_allclose(fitted.scaled(1.7).scores(warm, features), scores, rtol=1e-6)
    probs[3], features[4] = np.nan, np.nan
    assert np.isnan(fitted.scores(probs, features)[3:5]).all()
    assert not fitted.unfamiliar(probs, features)[3:5].any(), "such a photo is an error, not unfamiliar"


def test_nothing_is_fitted_where_it_would_mean_nothing() -> None:
    probs, features = photos_of(True, 99, seed=0)
    assert fit_familiarity(probs, features) is None
    assert fit_familiarity(np.ones((200, 1)), np.ones((200, 5), np.float32)) is None
    assert fit_familiarity(np.full((200, 4), 0.25), np.ones((200, 5), np.float32)) is None


def test_an_image_does_not_pull_the_center_towards_itself() -> None:
    probs, features = photos_of(True, 200, seed=5)
    features[0] += 500.0
    found, without = fit_familiarity(probs, features), fit_familiarity(probs[1:], features[1:])
    far = np.linalg.norm(features[0] - found.center) * 200 / 199
    assert far == pytest.approx(np.linalg.norm(features[0] - without.center), rel=1e-4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "plain")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    tiny_job.make_photos(folder, 20)
    return folder


@pytest.fixture(scope="module")
def bundle(plain: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model to which about half of the photos are unfamiliar."""
    with flowers.load(plain, engine="torch", precision="float32") as model:
        paths = sorted(photos.rglob("*.jpg"))
        features = model.embed(paths)
        guesses = [sorted(answer.topk, key=lambda guess: model.classes.index(guess.class_name))
                   for answer in model.predict(paths)]  # fmt: skip
    probs = np.array([[guess.prob for guess in of_photo] for of_photo in guesses])
    found = fit_familiarity(*(np.repeat(values, 10, axis=0) for values in (probs, features)))
    found = dataclasses.replace(found, threshold=float(np.median(found.scores(probs, features))))
    folder = tmp_path_factory.mktemp("model") / "bundle"
    save_bundle(dataclasses.replace(load_bundle(plain), familiarity=found), folder)
    return load_bundle(folder)


def test_a_bundle_keeps_it_and_one_without_is_as_it_ever_was(bundle: Bundle, plain: Path, tmp_path: Path) -> None:
    description = json.loads((bundle.folder / "model.json").read_text())
    assert description["format_version"] == 2
    without = load_bundle(plain)
    assert (without.familiarity, json.loads((plain / "model.json").read_text())["format_version"]) == (None, 1)
    assert bundle.hash != without.hash
    assert dataclasses.replace(bundle, familiarity=None).hash == without.hash
    again = Familiarity.from_dict(bundle.familiarity.to_dict(), bundle.head.in_features)
    assert again.to_dict() == bundle.familiarity.to_dict()
    warmer = with_temperature(bundle, 2.0)
    assert warmer.familiarity.spread == bundle.familiarity.spread / 2
    assert without_temperature(warmer).familiarity.spread == bundle.familiarity.spread


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"center": "AAAA"}, r"center holds no \d+ finite numbers"),
        ({"center": None}, "center holds no"),
        ({"threshold": float("nan")}, "threshold is nan, expected a positive number"),
        ({"share": True}, "share is True"),
        ({"more": 1}, r"got \['center', .*expected exactly the fields"),
    ],
)
def test_what_cannot_be_is_refused(bundle: Bundle, change: dict, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Familiarity.from_dict({**bundle.familiarity.to_dict(), **change}, bundle.head.in_features)


def test_damaged_comes_before_unfamiliar_and_that_before_unsure() -> None:
    rows = RowFormat(("daisy",), ("1",), 1, 0.9, "csv")
    assert rows.guessed("x", [0], [0.5], "cut", True)[0] == "damaged"
    assert rows.guessed("x", [0], [0.5], None, True) == ("unfamiliar", b"x,unfamiliar,daisy,1,0.500000,\r\n")
    assert rows.guessed("x", [0], [0.5], None, False)[0] == "unsure"


def test_a_job_the_api_and_the_demo_mark_the_same(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    def rows(name: str, **flags: object) -> list[dict]:
        output = tmp_path / f"{name}.csv"
        config = PredictConfig(checkpoint=bundle.folder, input=photos, output=output, **{**PLAIN, **flags})
        assert predict(config) == 0
        with open(output, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    marked = rows("marked", min_prob=1.0, copy_to=tmp_path / "sorted", report=True)
    kept = rows("kept", unfamiliar="keep", batch_size=3)
    assert {row["status"] for row in marked} == {"unfamiliar", "unsure"}
    assert [{**row, "status": "ok"} for row in marked] == kept
    unfamiliar = [row["path"] for row in marked if row["status"] == "unfamiliar"]
    assert len(unfamiliar) == 10
    assert json.loads((tmp_path / "marked.json").read_text())["counts"] == {"unfamiliar": 10, "unsure": 10}
    assert len(list((tmp_path / "sorted" / "_unfamiliar").iterdir())) == 10
    assert "unfamiliar (like no class)" in (tmp_path / "marked.html").read_text()
    with flowers.load(bundle.folder, engine="torch", precision="float32", batch_size=4) as model:
        answers = model.predict([photos / row["path"] for row in marked])
        assert [row["path"] for row, answer in zip(marked, answers, strict=True) if answer.unfamiliar] == unfamiliar
    oracle = Oracle(bundle.folder, engine="torch", precision="float32")  # of the demo page
    for row in (marked[0], next(row for row in marked if row["status"] != marked[0]["status"])):
        page = ask(oracle, photos / row["path"])
        assert ("like none of the classes" in page) == (row["status"] == "unfamiliar")
        assert f'data-prob="{row["prob"]}"' in page
    oracle.close()
    with pytest.raises(OutputError, match="unfamiliar: mark then, keep now"):
        rows("marked", min_prob=1.0, unfamiliar="keep")


ALONE = SimpleNamespace(reduce=lambda rows: rows, device=torch.device("cpu"))
"""As much of an accelerator as a single rank needs."""


def batch_of(indices: range) -> Batch:
    nothing = torch.zeros(len(indices))
    return Batch(nothing, nothing, torch.ones(len(indices)), torch.tensor(indices))


def test_training_fits_it_to_what_the_head_sees(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_bundle(load_bundle(plain), tmp_path / "best")
    best, rng = load_bundle(tmp_path / "best"), np.random.default_rng(0)
    classifier, count = best.build(), 150
    features = rng.normal(0, 1, (count, best.head.in_features)).astype(np.float32)
    samples = Samples(Path(), [f"{index}.jpg" for index in range(count)], rng.integers(0, 4, count))
    tables = AnswerTables("valid", samples, best, classifier.head)
    with tables.watching(), torch.inference_mode():
        logits = classifier.head(torch.from_numpy(features))
        tables.update(batch_of(range(count)), logits)
    assert not classifier.head._forward_pre_hooks
    answers = tables.answers(ALONE)
    np.testing.assert_array_equal(answers.features, features)
    np.testing.assert_array_equal(answers.logits, logits.numpy())
    learnt = learn_unfamiliar(best, answers)
    stored = load_bundle(best.folder)
    assert stored.hash == learnt.hash != best.hash
    np.testing.assert_allclose(stored.familiarity.center, features.mean(0), atol=1e-5)
    assert stored.familiarity.unfamiliar(answers.probs, features).mean() <= 0.02
    few = dataclasses.replace(answers, samples=None, logits=answers.logits[:50], features=features[:50])
    assert learn_unfamiliar(best, few) is best
    assert "50 validation images of 4 classes are too few" in " ".join(capsys.readouterr().out.split())


def test_of_a_large_split_every_few_images_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowers.training.evaluation.step_of", lambda count: 3)
    head, values = torch.nn.Identity(), torch.arange(14.0).reshape(7, 2)
    model = SimpleNamespace(classes=("a", "b"), head=SimpleNamespace(in_features=2))
    tables = AnswerTables("valid", range(7), model, head)
    with tables.watching():
        for indices in (range(4), range(4, 7)):
            tables.update(batch_of(indices), head(values[indices]))
    assert tables.answers(ALONE).features.tolist() == values[::3].tolist()
