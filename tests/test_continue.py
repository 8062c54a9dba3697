"""``--continue-from``: a new run from the network and head of an earlier one, with other photos and classes."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from jobs_in_processes import Job

from flowers.models.bundle import load_bundle

pytestmark = pytest.mark.processes

TINY = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "--resize", 70, "-j", 0, "-b", 8]
ON = ["--epochs", 1, "--no-report", "-j", 0]


@pytest.fixture(scope="module")
def first(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose head has a hidden layer, beside a copy of the data with class 5 in place of class 2."""
    folder = tmp_path_factory.mktemp("first")
    job = Job("train", [*TINY, "--hidden", 6, "--data-dir", sample_set, *ON, "--output-dir", "run"], folder=folder)
    assert job.wait() == [0], job.output
    shutil.copytree(sample_set, folder / "data")
    for split in ("train", "valid", "test"):
        (folder / "data" / split / "2").rename(folder / "data" / split / "5")
    return folder


def test_classes_that_stay_keep_their_rows_and_new_ones_are_added(first: Path) -> None:
    flags = ["--continue-from", "run", "--data-dir", "data", *ON, "--lr", 1e-12, "--output-dir", "next"]
    job = Job("train", flags, folder=first)
    assert job.wait() == [0], job.output
    assert "1 of 4 classes are new to the model: '5'" in job.output
    assert "1 of the model's 4 classes are not in the data and are dropped: '2'" in job.output
    before, after = load_bundle(first / "run"), load_bundle(first / "next")
    assert (after.model, after.head.hidden, after.preprocessing) == (before.model, 6, before.preprocessing)
    assert after.classes.folders == ("1", "3", "4", "5")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        old, new = before.build()(images), after.build()(images)
    torch.testing.assert_close(new[:, :3], old[:, [0, 2, 3]], atol=1e-4, rtol=1e-4)
    again = Job("train", flags, folder=first)
    assert again.wait() == [0], again.output
    assert "finished already" in again.output


def test_the_whole_network_goes_on_from_a_head(first: Path, sample_set: Path) -> None:
    flags = ["--continue-from", "run", "--data-dir", sample_set, *ON, "--finetune", "full", "-b", 8]
    job = Job("train", [*flags, "--image-size", 32, "--lr", 1e-12, "--output-dir", "whole"], folder=first)
    assert job.wait() == [0], job.output
    before, after = load_bundle(first / "run"), load_bundle(first / "whole")
    assert (after.preprocessing.crop, after.preprocessing.resize) == (32, 35)
    assert torch.equal(after.state_dict["head.output.bias"], before.state_dict["head.output.bias"])


def test_a_rate_is_looked_for_with_the_network_that_goes_on(first: Path, sample_set: Path) -> None:
    flags = ["--continue-from", "run", "--data-dir", sample_set, "--no-report", "-j", 0, "--steps", 10]
    job = Job("find_lr", [*flags, "--output-dir", "rate"], folder=first)
    assert job.wait() == [0], job.output
    config = yaml.safe_load((first / "rate" / "config.yaml").read_text())
    assert (config["model"], config["hidden"]) == ("timm/test_resnet", 6)


def test_what_cannot_go_on_is_one_line(first: Path, sample_set: Path) -> None:
    shutil.copytree(sample_set / "train" / "1", first / "other" / "train" / "9")
    shutil.copytree(sample_set / "train" / "2", first / "other" / "train" / "8")
    wrong = {
        "--model: got resnet18": (["--model", "resnet18"], sample_set, 2),
        "--hidden: got 7": (["--hidden", 7], sample_set, 2),
        "--tune-head": (["--tune-head"], sample_set, 2),
        "that is the run in --output-dir, run, itself": (["--output-dir", "run"], sample_set, 2),
        "none of its 4 classes ('1', '2', '3', '4') is a class of the data ('8', '9')": ([], "other", 2),
    }
    for words, (flags, data, code) in wrong.items():
        job = Job("train", ["--continue-from", "run", "--data-dir", data, *ON, *flags], folder=first)
        assert job.wait() == [code], job.output
        assert words in job.output
        assert "Traceback" not in job.output
    more = Job("train", [*TINY, "--hidden", 6, "--data-dir", sample_set, *ON, "--output-dir", "run"], folder=first)
    assert more.wait() == [0], more.output  # finished already
    flags = [*TINY, "--hidden", 6, "--data-dir", sample_set, "--epochs", 2, "--no-report", "--output-dir", "run"]
    more = Job("train", flags, folder=first)
    assert more.wait() == [1]
    assert "--epochs was 1, is now 2" in more.output
    assert "--continue-from run" in more.output
