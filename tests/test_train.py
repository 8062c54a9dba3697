"""Training as a user starts it: the main path on the drawn set, the launchers, and every wrong start in one line."""

import csv
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs_in_processes import Job, without
from odd_files import half_jpeg

from flowers.config.train import TrainConfig
from flowers.errors import UsageError
from flowers.models.bundle import load_bundle
from flowers.training.trackers import check_trackers

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
TINY = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "-j", 0, "-b", 8]


def train(folder: Path, *flags: object, processes: int = 1) -> Job:
    job = Job("train", [*flags, "--output-dir", "run"], folder=folder, processes=processes)
    job.codes = job.wait()
    return job


def test_a_head_on_cached_features(sample_set: Path, tmp_path: Path) -> None:
    job = train(tmp_path, *TINY, "--data-dir", sample_set, "--epochs", 20, "--views", 3)
    assert job.codes == [0], job.output
    run = tmp_path / "run"
    assert np.load(run / "features" / "train.npy").shape[:2] == (32, 3)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["event"] for line in history] == ["valid", "train"] * 20
    assert history[-1]["loss"] < history[1]["loss"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["valid"]["top1"] == max(line["top1"] for line in history if line["event"] == "valid")
    assert metrics["test"]["images"] == 16
    best = load_bundle(run)
    assert best.classes.folders == ("1", "2", "3", "4")
    assert best.metrics["valid_top1"] == metrics["valid"]["top1"]
    assert best.made["config"]["epochs"] == 20
    assert (best.made["arithmetic"]["device"], best.made["arithmetic"]["precision"]) == ("cpu", "no")
    line = "device cpu, precision no, processes 1, threads 1, float32_matmul highest"
    assert (run / "config.yaml").read_text().startswith(f"# Computed with: {line}")
    assert f"arithmetic: {line}" in " ".join((run / "log.txt").read_text().split())
    again = Job("evaluate", ["--checkpoint", "run", "--data-dir", sample_set, "-j", 0], folder=tmp_path)
    assert again.wait() == [0], again.output
    alone = json.loads((run / "metrics-test.json").read_text())
    assert alone["top1"] == metrics["test"]["top1"]
    assert alone["loss"] == pytest.approx(metrics["test"]["loss"], abs=0.02)


def test_features_and_the_classic_loop_agree(sample_set: Path, tmp_path: Path) -> None:
    """With the plain view and no augmentation both train the same head on the same images in the same order."""
    plain = ["--rotation", 0, "--scale", 1, 1, "--hflip", 0, "--resize", 64, "--mixed-precision", "no", "--epochs", 3]
    square = tmp_path / "square"
    shutil.copytree(sample_set, square)
    losses = []
    for name, flags in (("features", []), ("loop", ["--no-feature-cache"])):
        folder = tmp_path / name
        folder.mkdir()
        job = train(folder, *TINY, "--data-dir", square, *plain, "--lr", 0.003, *flags)
        assert job.codes == [0], job.output
        losses.append(json.loads((folder / "run" / "metrics.json").read_text())["test"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_two_processes_share_the_backbone_work(sample_set: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    flags = ["--data-dir", sample_set, "--epochs", 4, "--views", 2]
    assert train(one, *TINY[:-1], 8, *flags).codes == [0]
    job = train(two, *TINY[:-1], 4, *flags, processes=2)
    assert job.codes == [0, 0], job.output
    features = [np.load(folder / "run" / "features" / "train.npy") for folder in (one, two)]
    assert np.isfinite(features[1]).all()
    assert features[1].shape[1] == 2
    assert (features[1][:, 0] != features[1][:, 1]).any(1).all(), "the second view is another one"
    np.testing.assert_allclose(features[0], features[1], rtol=0.02, atol=0.02)
    top1 = [json.loads((folder / "run" / "metrics.json").read_text())["valid"]["top1"] for folder in (one, two)]
    assert abs(top1[0] - top1[1]) <= 1 / 16


def test_a_set_without_valid_is_split_once(sample_set: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample_set / "train", data / "train")
    job = train(tmp_path, *TINY, "--data-dir", data, "--epochs", 1, "--val-fraction", 0.25)
    assert job.codes == [0], job.output
    assert "24 train, 8 valid images" in job.output
    assert (tmp_path / "run" / "split.json").exists()
    trained = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for checkpoint in ("run", "run/best", next((tmp_path / "run" / "checkpoints").iterdir())):
        flags = ["--checkpoint", checkpoint, "--data-dir", data, "--split", "valid", "--output", "m.json", "-j", 0]
        evaluated = Job("evaluate", [*flags, "--no-report"], folder=tmp_path)
        assert evaluated.wait() == [0], evaluated.output
        metrics = json.loads((tmp_path / "m.json").read_text())
        assert (metrics["images"], metrics["top1"]) == (8, trained["valid"]["top1"])


def test_a_broken_image_can_be_removed_after_a_start_that_it_stopped(sample_set: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample_set / "train", data)
    victim = min(data.rglob("*.jpg"))
    victim.write_bytes(b"")
    failed = train(tmp_path, *TINY, "--data-dir", data, "--epochs", 1)
    assert failed.codes == [1], failed.output
    victim.unlink()
    max(data.rglob("*.jpg")).write_bytes(half_jpeg())
    job = train(tmp_path, *TINY, "--data-dir", data, "--epochs", 1)
    assert job.codes == [0], job.output
    assert "warning: 1 image is damaged" in job.output
    another = min(data.rglob("*.jpg"))
    another.unlink()
    refused = train(tmp_path, *TINY, "--data-dir", data, "--epochs", 2)
    assert refused.codes == [1]
    assert "the images changed since this split was drawn, 0 new and 1 gone" in refused.output


@pytest.mark.parametrize(
    "how", [[], ["--no-feature-cache"], ["--no-feature-cache", "--cache", "ram"], ["--finetune", "staged"]]
)
def test_bad_images_are_listed_or_left_out_by_choice(sample_set: Path, tmp_path: Path, how: list[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample_set, data)
    victims = [*sorted((data / "train").rglob("*.jpg"))[:2], min((data / "test").rglob("*.jpg"))]
    victims[0].write_bytes(b"")
    victims[1].write_bytes(victims[1].read_bytes()[:900])
    victims[2].write_bytes(b"no picture")
    max((data / "train").rglob("*.jpg")).write_bytes(half_jpeg())
    failed = train(tmp_path, *TINY, *how, "--data-dir", data, "--epochs", 1)
    assert failed.codes == [1], failed.output
    line = failed.output.splitlines()[-1]
    assert "3 images cannot be read" in line
    assert all(str(victim.relative_to(data)) in line for victim in victims), line
    assert "--on-bad-image skip" in line
    assert not list((tmp_path / "run").rglob("history.jsonl")), "before the first step"
    skipped = train(tmp_path, *TINY, *how, "--data-dir", data, "--epochs", 1, "--on-bad-image", "skip")
    assert skipped.codes == [0], skipped.output
    assert skipped.output.count("leaving out 3 images") == 1, "once a run, whatever its stages"
    assert "warning: 1 image is damaged" in skipped.output
    assert "30 train, 16 valid, 15 test" in skipped.output


@pytest.mark.parametrize(("where", "said"), [("train/2", "train/ of class 2"), ("valid", "valid/"), ("test", "test/")])
def test_leaving_out_must_leave_something(sample_set: Path, tmp_path: Path, where: str, said: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample_set, data)
    for path in (data / where).rglob("*.jpg"):
        path.write_bytes(b"")
    job = train(tmp_path, *TINY, "--data-dir", data, "--epochs", 1, "--on-bad-image", "skip")
    assert job.codes == [1]
    assert f"error: no image that can be read is left in {said};" in job.output


def test_features_are_those_of_the_images_that_are_there(sample_set: Path, tmp_path: Path) -> None:
    """A run that goes on with another test/ measures that one."""
    data = tmp_path / "data"
    shutil.copytree(sample_set, data)
    assert train(tmp_path, *TINY, "--data-dir", data, "--epochs", 1).codes == [0]
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been killed before its last line
    min((data / "test").rglob("*.jpg")).unlink()
    job = train(tmp_path, *TINY, "--data-dir", data, "--epochs", 1)
    assert job.codes == [0], job.output
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["images"] == 15
    assert len(np.load(tmp_path / "run" / "features" / "test.npy")) == 15


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """TensorBoard's curves as it shows them: values by step, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert all(len({point.step for point in points}) == len(points) for points in found.values()), "a point twice"
    return {name: {point.step: point.value for point in points} for name, points in found.items()}


def test_a_tracker_gets_the_figures(sample_set: Path, tmp_path: Path) -> None:
    """A point each --log-interval steps, the validation of each epoch; none of the trials'; goes on after a resume."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    flags = ["--data-dir", sample_set, "--epochs", 3, "--optimizer", "adamw", "--lr", "auto", "--log-interval", 3]
    flags += ["--log-with", "tensorboard,tensorboard", "--project", "roses", "--run-name", "first", "--no-report"]
    job = train(tmp_path, *TINY, *flags)
    assert job.codes == [0], job.output
    run, folder = tmp_path / "run", tmp_path / "run" / "flowers" / "roses" / "first"
    assert len(list(run.rglob("events.out.tfevents.*"))) == 2, "figures and flags"
    whole = curves(folder)
    assert not any("images" in name and name != "train/images_per_s" for name in whole)
    assert list(whole["train/loss"]) == list(whole["lr"]) == list(whole["train/images_per_s"]) == [3, 6, 9, 12]
    assert list(whole["valid/top1"]) == list(whole["epoch/loss"]) == [4, 8, 12]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    of_epochs = [line["loss"] for line in history if line["event"] == "train"]
    assert np.mean(list(whole["train/loss"].values())) == pytest.approx(np.mean(of_epochs), rel=1e-5)
    assert min(whole["train/images_per_s"].values()) > 0

    shutil.rmtree(max((run / "checkpoints").iterdir()))  # as if killed before the last was written
    again = train(tmp_path, *TINY, *flags)
    assert again.codes == [0], again.output
    resumed = curves(folder)
    assert resumed["valid/loss"] == whole["valid/loss"]
    assert list(resumed["train/loss"]) == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"log_with": ("tensorboard", "ink")}, "--log-with: got 'ink', expected one or more of"),
        ({"log_with": "ink"}, "--log-with: got 'ink'"),
        ({"log_with": ("tensorboard,aim",)}, "--log-with aim: its package is not installed here"),
        ({"project": "a/b"}, "--project: got 'a/b', expected a name without slashes"),
        ({"run_name": ".."}, "--run-name: got '..'"),
    ],
)
def test_trackers_that_would_log_nothing_are_refused(
    flags: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(UsageError, match=re.escape(message)):
        check_trackers(TrainConfig(data_dir=Path("data"), **flags))


def test_names_of_trackers_may_be_separated_by_commas() -> None:
    for words in (("tensorboard,wandb",), ("tensorboard", "wandb"), "tensorboard, wandb", ("wandb,", "tensorboard")):
        assert set(TrainConfig(data_dir=Path("data"), log_with=words).trackers) == {"tensorboard", "wandb"}
    assert TrainConfig(data_dir=Path("data")).trackers == ()


def test_a_head_fitted_at_once_is_one_point(sample_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    job = train(tmp_path, *TINY, "--data-dir", sample_set, "--log-with", "tensorboard", "--no-report")
    assert job.codes == [0], job.output
    found = curves(tmp_path / "run" / "flowers")
    assert list(found["train/loss"]) == list(found["valid/top1"]) == [1]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_trains_and_saves_plain_names(sample_set: Path, tmp_path: Path, backend: str) -> None:
    if backend == "inductor" and shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    growing = ["--train-size", 64, "--first-train-size", 32, "--epochs", 2]
    flags = [*without(TINY, "--model"), "--model", "timm/test_byobnet", "--finetune", "full", "--data-dir", sample_set,
             *growing, "--output-dir", "run"]  # fmt: skip
    compiled = Job("train", [*flags, "--compile"], folder=tmp_path, before=compile_with, arguments=(backend,))
    assert compiled.wait(360) == [0], compiled.output  # a quarter of a minute of compiling for each size, when quiet
    assert "recompile_limit" not in compiled.output, "torch runs the rest uncompiled"
    assert "unfamiliar photos will not be marked: 16 validation images" in " ".join(compiled.output.split())
    plain = tmp_path / "plain"
    plain.mkdir()
    eager = Job("train", flags, folder=plain, before=small_network)
    assert eager.wait() == [0], eager.output
    for run in (tmp_path / "run", plain / "run"):
        assert all("_orig_mod" not in name for name in load_bundle(run).state_dict)
    losses = [json.loads((folder / "run" / "metrics.json").read_text())["test"]["loss"] for folder in (tmp_path, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def compile_with(backend: str) -> None:
    """In a job: the backend that torch.compile takes, of which eager compiles nothing and needs no compiler."""
    if backend == "eager":
        os.environ["CXX"] = sys.executable  # is looked for, and not used
    torch.compile = functools.partial(torch.compile, backend=backend)
    small_network()


def small_network() -> None:
    """In a job: timm/test_byobnet becomes two blocks, which compile in half the time of timm's smallest network."""
    from timm.models.byobnet import ByoBlockCfg, ByoModelCfg, model_cfgs

    blocks = tuple(ByoBlockCfg(type="basic", d=1, c=channels, s=2) for channels in (16, 24))
    model_cfgs["test_byobnet"] = ByoModelCfg(blocks=blocks, stem_chs=8, stem_pool="")


def wrong_starts(data: Path, folder: Path) -> dict[str, tuple[list, int, str]]:
    empty_class, extra_class, no_classes = folder / "empty", folder / "extra", folder / "none"
    shutil.copytree(data, empty_class)
    (empty_class / "train" / "9").mkdir()
    shutil.copytree(data, extra_class)
    shutil.copytree(data / "valid" / "1", extra_class / "valid" / "77")
    (no_classes / "train").mkdir(parents=True)
    (folder / "occupied").write_text("a file")
    weights = folder / "weights.pth"
    weights.write_bytes(b"not a checkpoint")
    return {
        "no such folder": (["--data-dir", folder / "missing"], 1, "missing"),
        "no classes": (["--data-dir", no_classes], 1, "class"),
        "empty class": (["--data-dir", empty_class], 1, "9"),
        "class that train lacks": (["--data-dir", extra_class], 1, "77"),
        "unknown model": (["--data-dir", data, "--model", "resnet81"], 1, "resnet18"),
        "weights that are none": (["--data-dir", data, "--weights", weights], 1, "weights.pth"),
        "output that is a file": (["--data-dir", data, "--output-dir", folder / "occupied"], 1, "a file stands where"),
        "output among classes": (
            ["--data-dir", empty_class, "--output-dir", empty_class / "train"],
            2,
            "class folders",
        ),
        "output that is not UTF-8": (["--data-dir", data, "--output-dir", os.fsdecode(b"\xff")], 2, "not UTF-8"),
        "bad value": (["--data-dir", data, "--epochs", 0], 2, "--epochs: got 0, expected at least 1"),
        "seed too large": (["--data-dir", data, "--seed", 2**64], 2, "--seed"),
        "bad word": (["--data-dir", data, "--epochs", "ten"], 2, "--epochs"),
        "unknown flag": (["--data-dir", data, "--learning-rate", 1], 2, "--learning-rate"),
        "features cannot be mixed": (["--data-dir", data, "--mixup-alpha", 0.2], 2, "--no-feature-cache"),
        "fp16 on a CPU": (["--data-dir", data, "--mixed-precision", "fp16"], 2, "bf16"),
        "unknown tracker": (["--data-dir", data, "--log-with", "tensorboard,paper"], 2, "--log-with: got 'paper'"),
        "silly saving": (["--data-dir", data, "--save-every", "often"], 2, "often"),
    }


def test_every_wrong_start_is_one_line(sample_set: Path, tmp_path: Path) -> None:
    for name, (flags, code, words) in wrong_starts(sample_set, tmp_path).items():
        job = Job("train", [*without([*TINY, "--output-dir", "run"], *flags), *flags], folder=tmp_path)
        assert job.wait() == [code], f"{name}: {job.output}"
        lines = [line for line in job.output.splitlines() if line]
        assert len([line for line in lines if line.startswith("error: ")]) == 1, f"{name}: {job.output}"
        assert "Traceback" not in job.output, name
        assert words in lines[-1], f"{name}: {lines[-1]}"


def test_odd_names_survive_training_prediction_and_reading_back(sample_set: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample_set, data)
    odd = os.fsdecode(b'a "b", c\n\xff \xf0\x9f\x8c\xbc')  # quotes, comma, newline, a byte that is not UTF-8, emoji
    for split in ("train", "valid", "test"):
        (data / split / "1").rename(data / split / odd)
    victim = next((data / "test" / odd).iterdir())
    victim = victim.rename(victim.with_name(os.fsdecode(b"\xe9t\xe9, 1\\2.JPG")))
    job = train(tmp_path, *TINY, "--data-dir", data, "--epochs", 1)
    assert job.codes == [0], job.output
    assert load_bundle(tmp_path / "run").classes.folders[-1] == odd
    predict = ["--checkpoint", "run", "--input", data / "test", "--output", "p.csv", "--engine", "torch"]
    predicted = Job("predict", predict, folder=tmp_path)
    assert predicted.wait() == [0], predicted.output
    from flowers.data.paths import decode_path

    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        paths = {decode_path(row["path"]) for row in csv.DictReader(file)}
    assert paths == {path.relative_to(data / "test").as_posix() for path in (data / "test").rglob("*.[jJ]*")}
    assert victim.relative_to(data / "test").as_posix() in paths
    evaluated = Job("evaluate", ["--checkpoint", "run", "--data-dir", data, "-j", 0], folder=tmp_path)
    assert evaluated.wait() == [0], evaluated.output


def test_a_list_file_serves_training_and_evaluation(sample_set: Path, tmp_path: Path) -> None:
    rows = [
        (path, path.parent.name, split)
        for split in ("train", "valid", "test")
        for path in sorted((sample_set / split).rglob("*.jpg"))
    ]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "split"])
        writer.writerows(rows)
    job = train(tmp_path, *TINY, "--data-dir", "list.csv", "--epochs", 1, "--max-train-images", 24)
    assert job.codes == [0], job.output
    assert "24 train, 16 valid, 16 test images, 4 classes" in job.output
    few = ["--max-images", 8]
    evaluated = Job("evaluate", ["--checkpoint", "run", "--data-dir", "list.csv", "-j", 0, *few], folder=tmp_path)
    assert evaluated.wait() == [0], evaluated.output
    assert json.loads((tmp_path / "run" / "metrics-test-8-images.json").read_text())["images"] == 8


def test_accelerate_launch_really_runs_two_processes(sample_set: Path, tmp_path: Path) -> None:
    flags = [*TINY[:-1], 4, "--data-dir", sample_set, "--epochs", 1, "--output-dir", "run"]
    accelerate = ["--config_file", ROOT / "launch" / "cpu_multi.yaml", "--num_processes", 2]

    def launch(name: str, *flags: object) -> str:
        words = [*accelerate, ROOT / "jobs" / f"{name}.py", *flags]
        job = Job("accelerate.commands.launch:main", words, folder=tmp_path, before=choose_no_device)
        assert job.wait() == [0], job.output
        return job.output

    assert "4 x 2 processes x 1 micro-step = 8 images a step" in launch("train", *flags)
    predict = ["--checkpoint", "run", "--input", sample_set / "test", "--engine", "torch", "-b", 4]
    launch("predict", *predict, "--output", "two.csv")
    alone = Job("predict", [*predict, "--output", "one.csv"], folder=tmp_path)
    assert alone.wait() == [0], alone.output
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    with open(tmp_path / "one.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 16


def choose_no_device() -> None:
    os.environ.pop("ACCELERATE_USE_CPU", None)


@pytest.mark.alone
def test_the_quickstart(tmp_path: Path) -> None:
    """The command that README starts with, in the environment that runs these tests."""
    env = {**os.environ, "FLOWERS_VENV": sys.prefix, "WORK_DIR": str(tmp_path)}
    env.pop("OMP_NUM_THREADS")
    script = ROOT / "launch" / "quickstart.sh"
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "quickstart"
    assert json.loads((run / "metrics.json").read_text())["test"]["top1"] > 0.95
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 240
    right = sum(row["path"].split("/")[0] == row["class"] for row in rows)
    assert right / 240 > 0.95


def next_command(job: Job, name: str) -> list[str]:
    """The words of a command that a job printed under ``next:``, behind the script's name."""
    line = next(line for line in job.output.splitlines() if f"{name}.py" in line or f"flowers-{name}" in line)
    words = shlex.split(line)
    return words[next(place for place, word in enumerate(words) if name in word) + 1 :]


def test_the_printed_evaluate_leaves_out_what_training_left_out(sample_set: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample_set, data)
    for split in ("valid", "test"):
        min((data / split).rglob("*.jpg")).write_bytes(b"no photo")
    victim = min((data / "test").rglob("*.jpg")).relative_to(data)
    damaged = max((data / "test").rglob("*.jpg"))
    damaged.write_bytes(half_jpeg())
    job = train(tmp_path, *TINY, "--data-dir", data, "--epochs", 1, "--on-bad-image", "skip", "--no-report")
    assert job.codes == [0], job.output
    words = next_command(job, "evaluate")
    again = Job("evaluate", [*words, "-j", 0], folder=tmp_path)
    assert again.wait() == [0], again.output
    figures = json.loads((tmp_path / "run" / "best" / "metrics-test.json").read_text())
    assert figures["left_out"] == [str(victim)]
    assert figures["damaged"] == [str(damaged.relative_to(data))]
    assert "warning: 1 image is damaged" in again.output
    assert figures["top1"] == json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["top1"]
    page = (tmp_path / "run" / "best" / "report-test.html").read_text()
    assert victim.name in page
    assert "left out" in page
    refused = Job("evaluate", [*words, "-j", 0, "--on-bad-image", "fail", "--output", "m.json"], folder=tmp_path)
    assert refused.wait() == [1]
    assert "1 image cannot be read" in refused.output
    assert "--on-bad-image skip" in refused.output


def test_evaluate_names_its_files_by_data_and_split(sample_set: Path, tmp_path: Path) -> None:
    """Without test/ it takes valid/ as the run drew it; other data gets files of its own, never another's."""
    trees = {}
    for name in ("plants", "garden", "elsewhere/garden"):
        trees[name] = tmp_path / name
        shutil.copytree(sample_set / "train", trees[name] / "train")
    job = train(tmp_path, *TINY, "--data-dir", trees["plants"], "--epochs", 1, "--no-report")
    assert job.codes == [0], job.output
    run, flags = tmp_path / "run", ["--checkpoint", "run", "-j", 0, "--no-report", "--data-dir"]

    def evaluate(*words: object) -> Job:
        job = Job("evaluate", [*flags, *words], folder=tmp_path)
        job.codes = job.wait()
        return job

    own = evaluate(trees["plants"])
    assert own.codes == [0], own.output
    assert "there is no test split; measured on valid, as the run drew it from train" in " ".join(own.output.split())
    figures = json.loads((run / "metrics-valid.json").read_text())
    in_training = json.loads((run / "metrics.json").read_text())["valid"]
    assert (figures["images"], figures["top1"]) == (in_training["images"], in_training["top1"])
    assert figures["loss"] == pytest.approx(in_training["loss"], abs=1e-4), "the same engine and precision"
    assert f"measured by {figures['computed_by']}" in " ".join(own.output.split())
    before = (run / "metrics-valid.json").read_bytes()
    assert evaluate(trees["garden"], "--split", "train").codes == [0]
    assert (run / "metrics-garden-train.json").exists()
    assert (run / "metrics-valid.json").read_bytes() == before
    other = evaluate(trees["elsewhere/garden"], "--split", "train")
    assert other.codes == [1]
    assert "metrics-garden-train.json holds the figures of" in " ".join(other.output.split())
    assert evaluate(trees["elsewhere/garden"], "--split", "train", "--overwrite").codes == [0]
    (tmp_path / "notes.txt").write_text("mine")
    assert evaluate(trees["garden"], "--split", "train", "--output", "notes.txt").codes == [1]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    missing = evaluate(trees["plants"], "--split", "test")
    assert missing.codes == [1]
    assert "no split 'test'" in missing.output


@pytest.mark.parametrize("how", [[], ["--no-feature-cache"]])
def test_all_faults_of_the_data_in_one_start_that_leaves_nothing(
    sample_set: Path, tmp_path: Path, how: list[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample_set, data)
    (data / "train" / "empty").mkdir()
    (data / "valid" / "1").rename(data / "valid" / "unknown")
    victims = [min((data / split).rglob("*.jpg")) for split in ("train", "test")]
    for victim in victims:
        victim.write_bytes(b"no picture")
    job = train(tmp_path, *TINY, *how, "--data-dir", data, "--epochs", 1)
    assert job.codes == [1]
    line = job.output.splitlines()[-1]
    for said in ("no images in empty", "unknown not among", "2 images cannot be read", "prepare", "check --data-dir"):
        assert said in line, line
    assert all(str(victim.relative_to(data)) in line for victim in victims), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--model", "nonesuch"], ["--lr", 1e30, "--no-feature-cache"]])
def test_a_start_that_fails_leaves_no_run_folder(sample_set: Path, tmp_path: Path, flags: list) -> None:
    job = train(tmp_path, *TINY, "--data-dir", sample_set, "--epochs", 2, *flags)
    assert job.codes != [0], job.output
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert train(tmp_path, *TINY, "--data-dir", sample_set, "--epochs", 2, *flags).codes != [0]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("how", [[], ["--no-feature-cache"]])
def test_photos_replaced_under_their_names_are_refused_on_resume(
    sample_set: Path, tmp_path: Path, how: list[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample_set, data)
    flags = [*TINY, *how, "--data-dir", data, "--epochs", 1, "--no-report"]
    assert train(tmp_path, *flags).codes == [0]
    made = json.loads((tmp_path / "run" / "best" / "model.json").read_text())["made"]
    assert made["data"]["train images"].startswith("32 (")
    first, second = sorted((data / "train").rglob("*.jpg"))[:2]
    shutil.copyfile(second, first)
    refused = train(tmp_path, *flags)
    assert refused.codes == [1], refused.output
    assert "sizes in bytes of train images was" in refused.output
    assert "photos were replaced since, under the same names" in refused.output
    for state_file in (tmp_path / "run" / "checkpoints").rglob("state.json"):  # as an earlier version wrote it
        state = json.loads(state_file.read_text())
        state["fingerprint"] = {name: v for name, v in state["fingerprint"].items() if not name.startswith("sizes")}
        del state["sha256"]
        state_file.write_text(json.dumps(state))
    assert train(tmp_path, *flags).codes == [0]
