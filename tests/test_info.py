"""flowers-info: what is said of a bundle, a checkpoint, a run, and of what is none of them."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from jobs_in_processes import Job
from tiny_job import make_bundle

from flowers.cli import run
from flowers.config.info import InfoConfig
from flowers.errors import ModelError
from flowers.exports.info import describe, rows
from flowers.models.bundle import load_bundle, save_bundle
from flowers.models.temperature import with_temperature
from jobs.info import main

MADE = {
    "date": "2026-11-24T12:00:00+00:00",
    "versions": {"flowers": "0.1.0", "torch": "2.14.1"},
    "git_commit": "abc",
    "config": {"data_dir": "data", "finetune": "head", "epochs": 3, "lr": 0.01},
}
METRICS = {"valid_top1": 0.925, "valid_loss": 0.3, "valid_images": 40}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_bundle(tmp_path_factory.mktemp("info") / "model")
    save_bundle(dataclasses.replace(load_bundle(folder), metrics=METRICS, made=MADE), folder)
    return folder


@pytest.fixture
def a_run(model: Path, tmp_path: Path) -> Path:
    """A run folder as training leaves one."""
    folder = tmp_path / "run"
    for name in ("best", "last", "checkpoints/step-00000009", "checkpoints/step-00000012"):
        shutil.copytree(model, folder / name)
    for step in (9, 12):
        state = {"progress": {"step": step, "epoch": step // 3, "finished": step == 12, "best_top1": 0.9}}
        (folder / f"checkpoints/step-{step:08d}" / "state.json").write_text(json.dumps(state))
    (folder / "history.jsonl").write_text("{}\n")
    (folder / "metrics.json").write_text(json.dumps({"best_step": 9, "test": {"top1": 0.875, "images": 16}}))
    return folder


def test_a_bundle(model: Path) -> None:
    facts = describe(model)
    assert (facts["kind"], facts["model"], len(facts["classes"])) == ("bundle", "timm/test_resnet", 4)
    assert facts["parameters"] == sum(parameter.numel() for parameter in load_bundle(model).build().parameters())
    assert facts["hash"] == load_bundle(model).hash
    assert facts["bytes"] == sum(path.stat().st_size for path in model.iterdir())
    assert "state" not in facts
    said = dict(rows(facts))
    assert said["classes"] == '4: daisy, rose, "red", tulip, été'
    assert said["accuracy"] == "valid top1 92.50% of 40"
    assert said["made"] == "2026-11-24T12:00:00+00:00, --data-dir data --finetune head --epochs 3 --lr 0.01"
    assert said["with"] == "flowers 0.1.0, torch 2.14.1, commit abc"


def test_a_calibrated_model_says_so(model: Path, tmp_path: Path) -> None:
    bundle = with_temperature(load_bundle(model), 1.25)
    save_bundle(bundle, tmp_path / "calm")
    said = dict(rows(describe(tmp_path / "calm")))
    assert said["calibrated"] == "logits divided by a temperature of 1.25"
    assert "calibrated" not in dict(rows(describe(model)))
    for nonsense in ("2", 0, float("nan"), [1.0]):
        with pytest.raises(ModelError, match="temperature: got .*, expected a positive number"):
            with_temperature(dataclasses.replace(bundle, made={"temperature": nonsense}), 1.25)


def test_a_run_is_its_best_model_and_how_far_it_came(a_run: Path) -> None:
    facts = describe(a_run)
    assert (facts["kind"], facts["folder"]) == ("run", str(a_run / "best"))
    assert facts["state"] == {"step": 12, "epoch": 4, "finished": True}
    assert facts["checkpoints"] == ["step-00000009", "step-00000012"]
    said = dict(rows(facts))
    assert said["accuracy"] == "valid top1 92.50% of 40; test top1 87.50% of 16"
    assert said["training"] == "12 steps, 4 epochs; finished"


def test_a_run_that_has_not_measured_yet_is_its_newest_checkpoint(a_run: Path) -> None:
    for name in ("best", "last"):
        shutil.rmtree(a_run / name)
    assert describe(a_run)["folder"] == str(a_run / "checkpoints/step-00000012")


def test_a_checkpoint(a_run: Path) -> None:
    facts = describe(a_run / "checkpoints/step-00000009")
    assert facts["kind"] == "checkpoint"
    assert dict(rows(facts))["training"] == "9 steps, 3 epochs; not finished"


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"versions": [1], "config": "x", "git_commit": {"a": 1}},
        {"versions": {"a": None}, "config": {"lr": [1, {}]}, "date": 7, "temperature": 10**400},
    ],
)
@pytest.mark.parametrize("metrics", [{}, {"valid_top1": "x", "top1": 10**400, "": [1], "test_top1": {"a": 1}}])
def test_odd_claims_are_told_or_left_out(made: dict, metrics: dict, model: Path) -> None:
    facts = {**describe(model), "made": made, "metrics": metrics}
    assert all(isinstance(value, str) for _, value in rows(facts))
    assert dict(rows(facts))["accuracy"] == "not known"


def test_broken_files_beside_a_model_do_not_hide_it(a_run: Path) -> None:
    (a_run / "metrics.json").write_bytes(b"\xff")
    (a_run / "checkpoints/step-00000012/state.json").write_text("[" * 100_000)
    facts = describe(a_run)
    assert "state" not in facts
    assert facts["final_metrics"] == {}


def test_what_does_not_load_is_not_described(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such bundle"):
        describe(tmp_path / "nothing")
    bundle = load_bundle(model)
    tensors = {name: value for name, value in bundle.state_dict.items() if "conv1" not in name}
    save_bundle(dataclasses.replace(bundle, state_dict=tensors), tmp_path / "odd")
    with pytest.raises(ModelError, match="missing: backbone.conv1"):
        describe(tmp_path / "odd")


def test_the_job(a_run: Path, capsys: pytest.CaptureFixture) -> None:
    job = Job("info", [a_run], folder=a_run.parent)
    assert job.wait() == [0]
    assert job.output.startswith(f"run: {a_run}\n  folder")
    assert load_bundle(a_run).hash in job.output

    job = Job("info", [a_run, "--json", "--log", "quiet"], folder=a_run.parent)
    assert job.wait() == [0]
    facts = json.loads(job.output)
    assert facts == json.loads(json.dumps(describe(a_run)))

    with pytest.raises(SystemExit) as caught:
        run(main, InfoConfig, [str(a_run.parent)])
    assert caught.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_is_changed(a_run: Path) -> None:
    def contents() -> dict:
        files = sorted(path for path in a_run.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = contents()
    describe(a_run)
    assert contents() == before
