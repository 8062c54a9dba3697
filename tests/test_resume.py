"""A run that is killed, stopped or moved resumes as if nothing had happened. Every test starts real processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs_in_processes import Job, without
from safetensors.torch import load_file
from traps import (
    choose_precision,
    die_at_the_end,
    die_in_save,
    die_in_step,
    record_and_stop,
    record_rank,
    record_rank_and_stop,
    record_waits,
    recorded,
    save_first_weights,
    slow_steps,
    spoil_a_loss,
    spoil_an_update,
)

from flowers.training.history import History, read_history
from flowers.training.trainer import AGREE_EVERY

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
# A small network without dropout or batch norm in the way, trained in full on 32 images: 8 steps an epoch.
COMMON = ["--model", "timm/test_vit", "--weights", "none", "--finetune", "full", "--image-size", 96,
          "-j", 0, "--log-interval", 2, "--eval-every", 3]  # fmt: skip
CONVNET = ["--model", "timm/test_resnet", "--weights", "none", "--finetune", "full", "--image-size", 32,
           "-j", 0, "--log-interval", 2, "--eval-every", 3]  # fmt: skip


def result(run_dir: Path) -> tuple:
    """All that must be equal between two runs that did the same."""
    weights = {name: (run_dir / name / "model.safetensors").read_bytes() for name in ("best", "last")}
    files = ("metrics.json", "history.jsonl", "history.csv")
    return weights, [(run_dir / name).read_bytes() for name in files]


@pytest.mark.parametrize(("precision", "kills", "epochs"), [("no", 10, 12), ("bf16", 4, 8)])
def test_killed_again_and_again_and_bit_for_bit_the_same(
    sample_set: Path, tmp_path: Path, precision: str, kills: int, epochs: int
) -> None:
    flags = [*CONVNET, "--data-dir", sample_set, "--epochs", epochs, "-b", 4, "--grad-accum-steps", 2, "--dropout", 0.3,
             "--hidden", 8, "--model-ema-decay", 0.9, "--mixup-alpha", 0.2, "--save-every", 2,
             "--mixed-precision", precision, "--max-grad-norm", 1.0]  # fmt: skip
    whole = Job("train", [*flags, "--output-dir", "whole"], folder=tmp_path)
    assert whole.wait() == [0], whole.output
    traps = [(die_in_save, call) for call in ("write weights", "write optimizer", "rename", "remove old")]
    traps = traps[-kills // 2 :]
    points = random.Random(precision).sample(range(2, 14), kills - len(traps))
    traps += [(die_in_step, point) for point in points]
    random.Random(precision).shuffle(traps)
    for trap, argument in traps:
        job = Job("train", [*flags, "--output-dir", "killed"], folder=tmp_path, before=trap, arguments=(argument,))
        assert job.wait() == [-signal.SIGKILL], job.output
    last = Job("train", [*flags, "--output-dir", "killed"], folder=tmp_path)
    assert last.wait() == [0], last.output
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*tmp*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_after_the_last_step_and_the_same_at_the_end(sample_set: Path, tmp_path: Path, processes: int) -> None:
    flags = [*CONVNET, "--data-dir", sample_set, "--epochs", 2, "-b", 8 // processes, "--model-ema-decay", 0.9]
    whole = Job("train", [*flags, "--output-dir", "whole"], folder=tmp_path, processes=processes)
    assert whole.wait() == [0] * processes, whole.output
    for where in ("last", "metrics.json", "report.html"):
        killed = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, processes=processes,
                     before=die_at_the_end, arguments=(where,))  # fmt: skip
        assert killed.wait()[0] == -signal.SIGKILL, killed.output
        assert not (tmp_path / "run" / where).exists()
    again = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, processes=processes)
    assert again.wait() == [0] * processes, again.output
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert (tmp_path / "run" / "report.html").exists()
    assert not list((tmp_path / "run").rglob("*tmp*"))


def test_a_head_on_features_is_resumed_bit_for_bit_too(sample_set: Path, tmp_path: Path) -> None:
    flags = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "-j", 0, "-b", 8, "--epochs", 6]
    flags += ["--data-dir", sample_set, "--views", 2, "--hidden", 16, "--dropout", 0.5, "--save-every", 3]
    whole = Job("train", [*flags, "--output-dir", "whole"], folder=tmp_path)
    assert whole.wait() == [0], whole.output
    for step in (5, 2, 9):
        killed = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, before=die_in_step, arguments=(step,))
        assert killed.wait() == [-signal.SIGKILL], killed.output
    last = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path)
    assert last.wait() == [0], last.output
    assert "features of train" not in last.output, "the backbone does not run again"
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_a_staged_run_is_resumed_in_either_stage(sample_set: Path, tmp_path: Path) -> None:
    flags = ["--finetune", "staged", "--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "-j", 0]
    flags += ["--data-dir", sample_set, "--train-size", 48, "-b", 16, "--epochs", 3, "--save-every", 2]
    flags += ["--first-train-size", 32]
    whole = Job("train", [*flags, "--output-dir", "whole"], folder=tmp_path)
    assert whole.wait() == [0], whole.output
    assert "head on cached features" in whole.output
    for step in (10, 95):  # the head takes 100 steps, all of the network 6: once in each stage
        killed = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, before=die_in_step, arguments=(step,))
        assert killed.wait() == [-signal.SIGKILL], killed.output
    last = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path)
    assert last.wait() == [0], last.output
    assert "head on cached features" not in last.output
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    head, end = (load_file(tmp_path / "run" / name / "last" / "model.safetensors") for name in ("head", "."))
    assert any((end[name] != tensor).any() for name, tensor in head.items() if name.startswith("backbone."))


def train_recorded(folder: Path, name: str, flags: list, processes: int = 1) -> dict[int, tuple]:
    """Train with every step written down, each rank to a file of its own."""
    job = Job("train", [*flags, "--output-dir", name], folder=folder, processes=processes,
              before=record_rank, arguments=(str(folder / name),))  # fmt: skip
    assert job.wait() == [0] * processes, job.output
    return recorded(*folder.glob(f"{name}-rank*.jsonl"))


def assert_close(one: Path, other: Path) -> None:
    """Final weights equal within what another order of adding up may change."""
    left, right = load_file(one / "last" / "model.safetensors"), load_file(other / "last" / "model.safetensors")
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor - right[name]).abs().max() < 2e-4, name


def test_one_and_two_processes_and_accumulation_do_the_same(sample_set: Path, tmp_path: Path) -> None:
    flags = [*COMMON, "--data-dir", sample_set, "--epochs", 2, "--lr", 0.001, "--mixed-precision", "no"]
    one = train_recorded(tmp_path, "one", [*flags, "-b", 12])
    two = train_recorded(tmp_path, "two", [*flags, "-b", 6], processes=2)
    accumulated = train_recorded(tmp_path, "accumulated", [*flags, "-b", 6, "--grad-accum-steps", 2])
    assert len(one) == 6  # 32 images in steps of 12, twice
    assert [len(images) for _, images in one.values()] == [12, 12, 8] * 2
    assert one == two == accumulated
    assert_close(tmp_path / "one", tmp_path / "two")
    assert_close(tmp_path / "one", tmp_path / "accumulated")
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two", "accumulated")]
    for split in ("valid", "test"):
        assert len({(m[split]["images"], m[split]["top1"], m[split]["top5"]) for m in metrics}) == 1
        assert metrics[0][split]["loss"] == pytest.approx(metrics[1][split]["loss"], abs=1e-4)


def test_ranks_wait_for_one_another_where_the_losses_are_read(sample_set: Path, tmp_path: Path) -> None:
    """By default the votes on stopping fall on the same steps: the loop waits for the device once in each interval."""
    flags = ["--data-dir", sample_set, *COMMON[:8], "-b", 1, "--epochs", 2]
    job = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, processes=2,
              before=record_waits, arguments=(str(tmp_path / "waits"),))  # fmt: skip
    assert job.wait() == [0, 0], job.output
    for rank in range(2):
        steps = {int(line) for line in (tmp_path / f"waits-rank{rank}.txt").read_text().splitlines()}
        assert steps == {1, 10, 16, 20, 30, 32}, "after the first step, each ten steps, at the ends of two epochs"


def test_ranks_vote_at_each_step_where_steps_are_slow(sample_set: Path, tmp_path: Path) -> None:
    """A request to stop is heard within half a minute, however long a step takes."""
    flags = ["--data-dir", sample_set, *COMMON[:8], "-b", 1, "--epochs", 1]
    job = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, processes=2,
              before=slow_steps, arguments=(str(tmp_path / "waits"), 20.0))  # fmt: skip
    assert job.wait() == [0, 0], job.output
    for rank in range(2):
        steps = {int(line) for line in (tmp_path / f"waits-rank{rank}.txt").read_text().splitlines()}
        assert steps == set(range(1, 17))


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_stopped_and_resumed_on_another_number_of_processes(
    sample_set: Path, tmp_path: Path, first: int, then: int
) -> None:
    flags = [*COMMON, "--data-dir", sample_set, "--epochs", 2, "--output-dir", "run"]
    stopped = Job("train", [*flags, "-b", 2 // first], folder=tmp_path, processes=first,
                  before=record_rank_and_stop, arguments=(str(tmp_path / "first"), 5))  # fmt: skip
    assert stopped.wait() == [75] * first, stopped.output
    assert "run the same command to resume" in stopped.output
    assert not (tmp_path / "run" / "stop").exists()
    refused = Job("train", [*flags, "-b", 5], folder=tmp_path, processes=then)
    assert 1 in refused.wait()
    processes = "1 process" if then == 1 else f"{then} processes"
    assert f"global_batch_size was 2, is now {5 * then} (5 x {processes} x 1 micro-step)" in refused.output
    resumed = Job("train", [*flags, "-b", 2 // then], folder=tmp_path, processes=then,
                  before=record_rank, arguments=(str(tmp_path / "then"),))  # fmt: skip
    assert resumed.wait() == [0] * then, resumed.output
    before, after = recorded(*tmp_path.glob("first-*.jsonl")), recorded(*tmp_path.glob("then-*.jsonl"))
    assert not before.keys() & after.keys()
    steps = before | after
    assert sorted(steps) == list(range(32))
    for epoch in (0, 1):
        seen = [index for step in range(16 * epoch, 16 * epoch + 16) for index, _ in steps[step][1]]
        assert sorted(seen) == list(range(32))
    assert steps == train_recorded(tmp_path, "whole", [*flags[:-2], "-b", 2])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_saves_and_exits_75(sample_set: Path, tmp_path: Path, name: str) -> None:
    processes = 2 if name == "SIGTERM" else 1
    flags = [*without(COMMON, "-j"), "--data-dir", sample_set, "--epochs", 500, "-b", 8, "-j", 1, "--save-every", "60m"]
    job = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, processes=processes)
    wait_for(tmp_path / "run" / "history.jsonl", job)
    job.signal(getattr(signal, name))
    assert job.wait() == [75] * processes, job.output
    state = json.loads(next((tmp_path / "run" / "checkpoints").glob("step-*/state.json")).read_text())
    assert 0 < state["progress"]["step"] < 1000


def test_sigterm_to_the_launcher_of_two_processes(sample_set: Path, tmp_path: Path) -> None:
    flags = [*without(COMMON, "--eval-every"), "--eval-every", 1, "--data-dir", sample_set, "--epochs", 500, "-b", 4]
    flags += ["--save-every", "60m"]
    command = [sys.executable, "-m", "flowers.launch", "--num-processes", 2, ROOT / "jobs" / "train.py", *flags]
    run = tmp_path / "run"
    history = History(run / "history.jsonl")
    with subprocess.Popen(
        [str(word) for word in [*command, "--output-dir", run]],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launcher:
        until_s = time.monotonic() + 120
        while not history.size_bytes and launcher.poll() is None and time.monotonic() < until_s:
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        asked_at = max((line["step"] for line in read_history(history.path)), default=0)
        output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, output
    assert "(SIGTERM) with all state saved" in output
    state = json.loads(next((run / "checkpoints").glob("step-*/state.json")).read_text())
    assert asked_at <= state["progress"]["step"] <= asked_at + 3 * AGREE_EVERY


def wait_for(path: Path, job: Job) -> None:
    """Wait until a run has written a file; a job that ends before fails the test with what it said."""
    for _ in range(1200):
        if path.exists() and path.stat().st_size:
            return
        if job.processes[0].exitcode is not None:
            break
        time.sleep(0.05)
    pytest.fail(f"{path} did not appear:\n{job.output}")


def test_time_runs_out(sample_set: Path, tmp_path: Path) -> None:
    flags = [*COMMON, "--data-dir", sample_set, "--epochs", 500, "-b", 8, "--output-dir", "run"]
    job = Job("train", [*flags, "--max-hours", 0.0005], folder=tmp_path)
    assert job.wait() == [75], job.output


def test_a_finished_run_is_not_done_again(sample_set: Path, tmp_path: Path) -> None:
    flags = [*COMMON, "--data-dir", sample_set, "--epochs", 1, "-b", 8, "--output-dir", "run"]
    assert Job("train", flags, folder=tmp_path).wait() == [0]
    before = result(tmp_path / "run")
    again = Job("train", flags, folder=tmp_path)
    assert again.wait() == [0]
    assert "finished already" in again.output
    assert result(tmp_path / "run") == before
    never = Job("train", [*flags, "--resume", "never"], folder=tmp_path)
    assert never.wait() == [1]
    assert "holds a run and --resume is never" in never.output
    other = Job("train", [*flags, "--lr", 0.5], folder=tmp_path)
    assert other.wait() == [1]
    assert "--lr was" in other.output


def test_a_run_is_resumed_in_another_folder(sample_set: Path, tmp_path: Path) -> None:
    """--resume PATH: the same end, though the best model was made before; the same command starts it again."""
    flags = [*COMMON, "--data-dir", sample_set, "--epochs", 3, "-b", 8, "--save-every", 2]
    flags += ["--lr", "1e-30"]  # the first model stays the best
    whole = Job("train", [*flags, "--output-dir", "whole"], folder=tmp_path)
    assert whole.wait() == [0], whole.output
    first = Job("train", [*flags, "--output-dir", "first"], folder=tmp_path, before=die_in_step, arguments=(8,))
    assert first.wait() == [-signal.SIGKILL], first.output
    then = [*flags, "--output-dir", "then", "--resume", "first"]
    killed = Job("train", then, folder=tmp_path, before=die_in_step, arguments=(4,))
    assert killed.wait() == [-signal.SIGKILL], killed.output
    assert "resumed from step-00000006" in killed.output
    last = Job("train", then, folder=tmp_path)
    assert last.wait() == [0], last.output
    assert "resuming from step-00000008, not from --resume first" in last.output
    assert result(tmp_path / "then") == result(tmp_path / "whole")


def test_a_damaged_checkpoint_is_not_counted_among_those_kept(sample_set: Path, tmp_path: Path) -> None:
    flags = [*COMMON, "--data-dir", sample_set, "--epochs", 500, "-b", 8, "--save-every", 2, "--output-dir", "run"]
    killed = Job("train", flags, folder=tmp_path, before=die_in_step, arguments=(6,))
    assert killed.wait() == [-signal.SIGKILL], killed.output
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = checkpoints / "step-00000004" / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:-9])
    stopped = Job("train", flags, folder=tmp_path, before=record_and_stop, arguments=(str(tmp_path / "log"), 3))
    assert stopped.wait() == [75], stopped.output
    assert "optimizer.pt is damaged" in stopped.output
    assert "resumed from step-00000002" in stopped.output
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["step-00000002", "step-00000003", "step-00000004.damaged"]


def test_another_precision_is_refused_whoever_chose_it(sample_set: Path, tmp_path: Path) -> None:
    flags = [*COMMON, "--data-dir", sample_set, "--epochs", 1, "-b", 8, "--output-dir", "run"]
    assert Job("train", [*flags, "--mixed-precision", "no"], folder=tmp_path).wait() == [0]
    other = Job("train", flags, folder=tmp_path, before=choose_precision, arguments=("bf16",))
    assert other.wait() == [1]
    assert "--mixed-precision was no, is now bf16" in other.output
    assert Job("train", flags, folder=tmp_path, before=choose_precision, arguments=("no",)).wait() == [0]


def test_a_loss_that_is_not_finite_names_step_images_and_way_back(sample_set: Path, tmp_path: Path) -> None:
    flags = [*COMMON, "--data-dir", sample_set, "--epochs", 50, "-b", 8, "--lr", 1e30, "--warmup-epochs", 0]
    job = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path)
    assert job.wait() == [1], job.output
    assert "the loss is not finite at step" in job.output
    assert ".jpg" in job.output
    assert "Traceback" not in job.output


@pytest.mark.parametrize(("save_every", "good"), [(2, "step-00000004"), (100, "")])
def test_weights_that_are_not_finite_are_never_saved(
    sample_set: Path, tmp_path: Path, save_every: int, good: str
) -> None:
    flags = [*without(COMMON, "--log-interval", "--eval-every"), "--data-dir", sample_set, "--epochs", 50, "-b", 8]
    flags += ["--log-interval", 100, "--eval-every", 6, "--save-every", save_every, "--output-dir", "run"]
    job = Job("train", flags, folder=tmp_path, before=spoil_an_update, arguments=(6,))
    assert job.wait() == [1], job.output
    (line,) = [line for line in job.output.splitlines() if line.startswith("error: ")]
    assert "the weights are not finite after step 6 on " in line
    assert line.count(".jpg") == 3
    assert " and 5 more; try a lower --lr" in line
    assert (f"the last good checkpoint is run/checkpoints/{good}" if good else "no checkpoint was saved yet") in line
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved == ([good.replace("4", "2"), good] if good else [])


def test_of_two_processes_the_one_whose_loss_broke_first_says_so(sample_set: Path, tmp_path: Path) -> None:
    flags = [*without(COMMON, "--log-interval", "--eval-every"), "--data-dir", sample_set, "--epochs", 50, "-b", 4]
    flags += ["--log-interval", 4, "--eval-every", 100, "--save-every", 100, "--output-dir", "run"]
    job = Job("train", flags, folder=tmp_path, processes=2, before=spoil_a_loss, arguments=("1", 6))
    assert job.wait() == [1, 1], job.output
    (line,) = [line for line in job.output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rank 1: the loss is not finite at step 6 on ")
    assert line.count(".jpg") == 3


def test_two_jobs_on_one_run_folder(sample_set: Path, tmp_path: Path) -> None:
    flags = [*COMMON, "--data-dir", sample_set, "--epochs", 500, "-b", 8, "--output-dir", "run"]
    first = Job("train", flags, folder=tmp_path)
    wait_for(tmp_path / "run" / "history.jsonl", first)
    (tmp_path / "second").mkdir()
    second = Job("train", [*flags[:-1], tmp_path / "run"], folder=tmp_path / "second")
    assert second.wait() == [1]
    assert f"in use by process {first.processes[0].pid}" in second.output
    first.kill()


def test_loader_processes_of_a_killed_job_do_not_hold_the_run_folder(sample_set: Path, tmp_path: Path) -> None:
    flags = [*without(COMMON, "-j"), "--data-dir", sample_set, "--epochs", 500, "-b", 8, "--output-dir", "run", "-j", 2]
    first = Job("train", flags, folder=tmp_path)
    wait_for(tmp_path / "run" / "history.jsonl", first)
    first.kill()
    again = Job("train", [*flags, "--max-hours", 0.0001], folder=tmp_path)
    assert again.wait() == [75], again.output


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 24 MiB, where one may be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=24m tmpfs '{folder}' 2> /dev/null") != 0:
        pytest.skip("needs root, to mount a small file system")
    yield folder
    os.system(f"umount '{folder}'")


def test_a_full_disk_ends_in_one_line_with_the_old_checkpoint_whole(
    sample_set: Path, tmp_path: Path, small_disk: Path
) -> None:
    flags = [*without(COMMON, "--eval-every"), "--data-dir", sample_set, "--epochs", 4, "-b", 8, "--save-every", 1]
    flags += ["--output-dir", small_disk / "run", "--eval-every", 1000]
    filler = small_disk / "filler"
    whole = Job("train", [*flags[:-4], "--output-dir", "whole", "--eval-every", 1000], folder=tmp_path)
    assert whole.wait() == [0], whole.output
    size = sum(file.stat().st_size for file in (tmp_path / "whole" / "checkpoints").glob("step-00000016/*"))
    filler.write_bytes(bytes(24 * 2**20 - int(3.0 * size)))  # room for best/ and two and a half checkpoints
    full = Job("train", flags, folder=tmp_path)
    assert full.wait() == [1], full.output
    assert "the disk is full" in full.output
    assert "Traceback" not in full.output
    filler.unlink()
    resumed = Job("train", flags, folder=tmp_path)
    assert resumed.wait() == [0], resumed.output
    assert "resumed from step-" in resumed.output


def test_head_training_leaves_every_tensor_of_the_backbone_alone(sample_set: Path, tmp_path: Path) -> None:
    flags = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "--data-dir", sample_set]
    flags += ["--epochs", 2, "-b", 8, "-j", 0, "--no-feature-cache", "--output-dir", "run"]
    job = Job("train", flags, folder=tmp_path, before=save_first_weights, arguments=(str(tmp_path / "first"),))
    assert job.wait() == [0], job.output
    first, last = load_file(tmp_path / "first"), load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert any("running_mean" in name for name in first)
    for name, tensor in first.items():
        assert (tensor == last[name]).all() == name.startswith("backbone."), name


def test_a_model_of_two_processes_in_bf16_is_measured_by_one_in_float32(sample_set: Path, tmp_path: Path) -> None:
    flags = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "--data-dir", sample_set]
    flags += ["--epochs", 3, "-b", 4, "-j", 0, "--finetune", "full", "--mixed-precision", "bf16"]
    job = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, processes=2)
    assert job.wait() == [0, 0], job.output
    alone = Job("evaluate", ["--checkpoint", "run", "--data-dir", sample_set, "-j", 0], folder=tmp_path)
    assert alone.wait() == [0], alone.output
    figures = json.loads((tmp_path / "run" / "metrics-test.json").read_text())
    assert figures["images"] == 16
    trained = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert figures["loss"] == pytest.approx(trained["loss"], abs=0.05)
    together = ["--checkpoint", "run", "--data-dir", sample_set, "-j", 0, "--output", "two.json"]
    pair = Job("evaluate", together, folder=tmp_path, processes=2)
    assert pair.wait() == [0, 0], pair.output
    assert json.loads((tmp_path / "two.json").read_text()) == figures
