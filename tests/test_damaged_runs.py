"""Every file that a run leaves, damaged in every way: the next start ends with the same model, or in one line."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowers.cli import parse
from flowers.config.train import TrainConfig
from flowers.engines import openvino_engine
from flowers.errors import CheckpointError, FlowersError, StoppedError
from flowers.models.bundle import load_bundle
from flowers.training.trainer import Trainer
from jobs.train import main as train

# Two epochs and two checkpoints: one of them holds the best model, whichever epoch that is on this machine.
HEAD = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 32, "-j", 0, "-b", 8, "--epochs", 2,
        "--lr", 0.01, "--save-every", 4, "--no-report"]  # fmt: skip


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) * 2 // 3] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("else")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip, "cut": cut, "emptied": empty, "removed": Path.unlink, "a folder": become_a_folder
}  # fmt: skip


def damages(number: int) -> list[str]:
    """What is done to a file: one thing in turn; with FLOWERS_SLOW_TESTS one of the first three and another one."""
    if os.environ.get("FLOWERS_SLOW_TESTS"):
        return [list(DAMAGE)[number % 3], list(DAMAGE)[3 + number % 2]]
    return [list(DAMAGE)[number % len(DAMAGE)]]


class Run:
    """A run in a folder of its own, as one start left it."""

    def __init__(self, data: Path, folder: Path, flags: list[object]):
        self.flags, self.folder = [*flags, "--data-dir", data], folder

    def start(self, *more: object, folder: Path | None = None) -> None:
        words = [*self.flags, "--output-dir", folder or self.folder, *more]
        assert train(parse(TrainConfig, [str(word) for word in words])) == 0


def models(folder: Path) -> list[str]:
    return [load_bundle(folder / name).hash for name in ("best", "last")]


def walk(run: Run, whole: Path, folder: Path, capsys: pytest.CaptureFixture, pattern: str = "*") -> dict[str, str]:
    """Damage one file after the other and start again, see ``damages``.

    Returns:
        By file and damage: the line in which the start ended, or "" if it ended with the models of ``whole``.
    """
    ends = {}
    files = sorted(path.relative_to(run.folder) for path in run.folder.rglob(pattern) if path.is_file())
    assert files
    for number, file in enumerate(files):
        for how in damages(number):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(run.folder, folder)
            DAMAGE[how](folder / file)
            capsys.readouterr()
            case = f"{file} {how}"
            try:
                run.start(folder=folder)
            except FlowersError as error:
                ends[case] = str(error)
                continue
            said = capsys.readouterr().err
            if "the best from here on will be kept" not in said:
                assert models(folder) == models(whole), f"{case}: {said}"
                if run.folder != whole:  # nothing reads a finished one's, except for a report
                    history = "history.jsonl"
                    assert (folder / history).read_bytes() == (whole / history).read_bytes(), f"{case}: {said}"
            ends[case] = ""
    assert not [case for case, line in ends.items() if "\n" in line]
    return ends


@pytest.fixture(scope="module", autouse=True)
def no_conversion() -> Iterator[None]:
    """The backbone runs in PyTorch: converting it for OpenVINO would be half the time of many of these starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_engine, "why_not", lambda: "is left out")
        yield


@pytest.fixture(scope="module")
def whole(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(sample_set, tmp_path_factory.mktemp("whole") / "run", HEAD)
    run.start()
    return run


def test_a_finished_run(whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ends = walk(whole, whole.folder, tmp_path / "run", capsys)
    assert not {case: line for case, line in ends.items() if line and not case.endswith("a folder")}


def test_a_finished_run_without_its_checkpoints_keeps_its_model(whole: Run, tmp_path: Path) -> None:
    """They are the largest files, and removed first; the same command must not train over the model then."""
    run = Run(Path(whole.flags[-1]), shutil.copytree(whole.folder, tmp_path / "run"), HEAD)
    shutil.rmtree(run.folder / "checkpoints")
    before = models(run.folder)
    for more in ([], ["--seed", 1], ["--resume", whole.folder]):
        with pytest.raises(CheckpointError, match="holds the results of a finished run, and no checkpoint of it"):
            run.start(*more)
    assert models(run.folder) == before == models(whole.folder)


def test_a_run_stopped_after_a_checkpoint(
    whole: Run, sample_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Run(sample_set, tmp_path / "stopped", HEAD)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Trainer, "vote", lambda trainer: (trainer.progress.step == 6, False))
        stopped.start()
    ends = walk(stopped, whole.folder, tmp_path / "run", capsys)
    assert not {case: line for case, line in ends.items() if line and not case.endswith("a folder")}


def test_features_of_a_stopped_run(whole: Run, sample_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    stopped = Run(sample_set, tmp_path / "stopped", HEAD)
    with pytest.raises(StoppedError, match="finished parts are kept"):
        stopped.start("--max-hours", 1e-9)
    ends = walk(stopped, whole.folder, tmp_path / "run", capsys, "features/*/*")
    assert not any(ends.values())
