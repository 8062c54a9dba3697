"""Training ends calibrated: a temperature and the threshold of ``--min-prob auto``, where they are reliable."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_job
import torch
from jobs_in_processes import Job

from flowers.data.folders import Samples
from flowers.engines.exported import open_model
from flowers.errors import ModelError, UsageError
from flowers.models.bundle import Bundle, load_bundle
from flowers.models.temperature import store, with_temperature, without_temperature
from flowers.prediction.job import stored_min_prob
from flowers.reports.answers import Answers
from flowers.reports.calibration import calibration_error, out_of_fold, softmax, sure_above
from flowers.training.evaluation import calibrate_trained

CLASSES = len(tiny_job.CLASSES)


def answers_of(truth: float, images: int, seed: int = 0) -> Answers:
    """Answers whose probabilities are right once the logits are divided by ``truth``."""
    rng = np.random.default_rng(seed)
    calm = rng.normal(0, 2, (images, CLASSES))
    targets = np.array([rng.choice(CLASSES, p=probs) for probs in softmax(calm)])
    samples = Samples(Path(), [f"{index}.jpg" for index in range(images)], targets)
    return Answers("valid", samples, tiny_job.CLASSES, (calm * truth).astype(np.float32))


@pytest.fixture
def best(tmp_path: Path) -> Bundle:
    return load_bundle(tiny_job.make_bundle(tmp_path / "best"))


def test_the_model_is_stored_calibrated_with_what_that_is_worth_on_unseen_images(best: Bundle) -> None:
    answers = answers_of(3.0, 2000)
    calibrated, after = calibrate_trained(best, answers)
    stored = load_bundle(best.folder)
    assert stored.made["temperature"] == pytest.approx(3.0, rel=0.1)
    torch.testing.assert_close(stored.state_dict["head.output.bias"] * stored.made["temperature"],
                               best.state_dict["head.output.bias"])  # fmt: skip
    assert stored.hash == calibrated.hash
    assert stored.metrics["valid_ece_out_of_fold"] < 0.04 < stored.metrics["valid_ece_uncalibrated"]
    kept = after.confidences >= stored_min_prob(stored)
    assert 0.98 < after.hits[kept].mean() <= 1
    fresh = answers_of(3.0 / stored.made["temperature"], 2000, seed=1)
    assert calibration_error(fresh.confidences, fresh.hits) < 0.04
    again, same = calibrate_trained(stored, after)  # a start that was killed between this and the figures
    assert again is stored
    assert same is after


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (answers_of(3.0, 60), "60 validation images are too few"),
        (answers_of(0.01, 2000), "no temperature fits best"),
        (answers_of(1.0, 400), "would not lower the loss"),
    ],
)
def test_nothing_is_stored_where_it_is_not_reliable(
    best: Bundle, answers: Answers, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    unchanged, same = calibrate_trained(best, answers)
    assert unchanged is best
    assert same is answers
    assert load_bundle(best.folder).hash == best.hash
    assert words in capsys.readouterr().out
    with pytest.raises(UsageError, match="--min-prob auto: the model stores no threshold"):
        stored_min_prob(best)


def test_every_answer_right_is_not_certainty(best: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    answers = answers_of(1.0, 300)
    right = dataclasses.replace(answers, samples=dataclasses.replace(answers.samples, targets=answers.predicted))
    assert calibrate_trained(best, right)[0] is best
    assert "0 of 300 answers are wrong" in capsys.readouterr().out


def test_training_goes_on_from_logits_as_they_were_trained(best: Bundle) -> None:
    calibrated, _ = calibrate_trained(best, answers_of(3.0, 2000))
    trained = without_temperature(calibrated)
    assert "temperature" not in trained.made
    for name, value in best.state_dict.items():
        torch.testing.assert_close(trained.state_dict[name], value)
    assert without_temperature(best) is best
    with pytest.raises(ModelError, match="temperature: got 'hot'"):
        without_temperature(dataclasses.replace(best, made={"temperature": "hot"}))


def test_a_model_whose_save_was_killed_between_two_renames_is_stored_under_its_own_name(tmp_path: Path) -> None:
    tiny_job.make_bundle(tmp_path / ".best.old")
    bundle = load_bundle(tmp_path)
    for temperature in (2.0, 1.5):  # training stores what it has loaded twice
        store(with_temperature(bundle, temperature))
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert load_bundle(tmp_path).made["temperature"] == 1.5


def test_an_image_never_fits_its_own_temperature() -> None:
    answers = answers_of(3.0, 500)
    targets = answers.targets.copy()
    targets[0] = answers.logits[0].argmin()
    before, after = (out_of_fold(answers.logits, wanted)[0] for wanted in (answers.targets, targets))
    assert np.array_equal(before, after)


def test_the_threshold_leaves_out_no_more_than_it_must() -> None:
    confidences = np.linspace(1, 0, 200, endpoint=False)
    hits = np.ones(200, bool)
    hits[[100, 120]] = False  # 99 of 100 right up to the 199th, but for those between the two
    assert sure_above(confidences, hits, 0.99) == 0
    hits[150] = False
    threshold = sure_above(confidences, hits, 0.99)
    assert threshold == pytest.approx(confidences[119:121].mean())
    assert hits[confidences >= threshold].mean() >= 0.99
    assert sure_above(confidences[:40], hits[:40], 0.99) is None, "too few to say"
    assert sure_above(confidences, np.zeros(200, bool), 0.99) is None


@pytest.mark.processes
def test_min_prob_auto_is_the_stored_threshold(best: Bundle, tmp_path: Path) -> None:
    calibrate_trained(best, answers_of(3.0, 2000))
    tiny_job.make_photos(tmp_path / "photos", 6)
    flags = ["--checkpoint", best.folder, "--input", tmp_path / "photos", "--engine", "torch", "-j", 1]
    stored = open_model(best.folder).made["min_prob"]
    for name, value in (("auto", "auto"), ("number", stored)):
        job = Job("predict", [*flags, "--min-prob", value, "--output", f"{name}.csv"], folder=tmp_path)
        assert job.wait() == [0], job.output
    assert (tmp_path / "auto.csv").read_bytes() == (tmp_path / "number.csv").read_bytes()
