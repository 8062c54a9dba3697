"""``export.py --average``: the mean of weights, batch norm estimated anew, kept only if it is worth it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from jobs_in_processes import Job

from flowers.models.bundle import load_bundle, save_bundle

pytestmark = pytest.mark.processes

TINY = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 32, "-j", 0, "-b", 8, "--no-report"]


def export(folder: Path, *flags: object) -> Job:
    job = Job("export", ["--output", "soup", *flags], folder=folder)
    job.codes = job.wait()
    return job


@pytest.fixture(scope="module")
def run(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a whole network with two checkpoints."""
    folder = tmp_path_factory.mktemp("average")
    flags = [*TINY, "--finetune", "full", "--epochs", 2, "--data-dir", sample_set, "--output-dir", "run"]
    job = Job("train", flags, folder=folder)
    assert job.wait() == [0], job.output
    return folder


def test_checkpoints_of_a_run_are_averaged_and_their_batch_norm_estimated_anew(run: Path) -> None:
    paths = sorted((run / "run" / "checkpoints").iterdir())
    assert len(paths) == 2
    job = export(run, "--average", *paths)
    assert job.codes == [0], job.output
    parts, soup = [load_bundle(path) for path in paths], load_bundle(run / "soup")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in soup.state_dict.items():
        expected = torch.stack([part.state_dict[name].double() for part in parts]).mean(0)
        if not name.endswith(statistics):
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
        elif name.endswith("running_var"):
            assert not torch.equal(value.double(), expected), name
    assert soup.made["config"]["average"] == [str(path) for path in paths]
    evaluate = ["--checkpoint", "soup", "--data-dir", load_bundle(run / "run").made["config"]["data_dir"]]
    again = Job("evaluate", [*evaluate, "--split", "valid", "-j", 0, "--no-report", "--output", "v.json"], folder=run)
    assert again.wait() == [0], again.output
    assert json.loads((run / "v.json").read_text())["top1"] == pytest.approx(soup.metrics["valid_top1"])


def test_models_that_do_not_belong_together_are_refused(run: Path) -> None:
    best = load_bundle(run / "run" / "best")
    swapped = dataclasses.replace(best.classes, folders=tuple(reversed(best.classes.folders)))
    save_bundle(dataclasses.replace(best, classes=swapped), run / "swapped")
    wrong = {
        "its classes is not that of run": (["--average", "run", "swapped"], 1),
        "got one model, expected at least two": (["--average", "run"], 2),
        "--format: not with --average": (["--average", "run", "run/last", "--format", "onnx"], 2),
        "no such bundle": (["--average", "run", "nowhere"], 1),
    }
    for words, (flags, code) in wrong.items():
        job = export(run, *flags)
        assert job.codes == [code], job.output
        assert words in job.output
        assert "Traceback" not in job.output


def test_a_folder_that_holds_more_than_a_model_is_not_replaced(run: Path) -> None:
    (run / "soup").mkdir(exist_ok=True)
    (run / "soup" / "notes.txt").touch()
    job = export(run, "--average", "run/best", "run/last")
    assert job.codes == [1], job.output
    assert "--output soup: holds other files than a bundle's (notes.txt); give a new folder" in job.output
    assert (run / "soup" / "notes.txt").exists()
