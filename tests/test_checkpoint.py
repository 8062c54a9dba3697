"""Checkpoints as files: whole or not there, damage noticed, code refused, one job at a time."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowers.data.folders import ClassIndex
from flowers.errors import CheckpointError, FlowersError, InUseError
from flowers.files import file_digest
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, save_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head
from flowers.training import checkpoint as checkpoints
from flowers.training.checkpoint import Progress, lock_run, save_checkpoint
from flowers.training.fingerprint import check_fingerprint
from flowers.training.history import History, read_history
from flowers.training.resume import take_history


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    backbone = build_backbone("timm/test_resnet", "none")
    head = HeadSpec(2, backbone.num_features)
    classifier = Classifier(backbone.network, build_head(head))
    return Bundle("timm/test_resnet", head, ClassIndex(("a", "b"), ("A", "B")), backbone.preprocessing, {}, {},
                  classifier.state_dict())  # fmt: skip


def save(run_dir: Path, bundle: Bundle, step: int, tensors: dict | None = None, keep: int = 2) -> Path:
    progress = Progress(step=step, epoch=1, step_in_epoch=step % 10, best_top1=0.1 + 0.2, rank_sums=[[0.1, 2.0, 3.0]])
    return checkpoints.save_checkpoint(
        run_dir,
        bundle=bundle,
        tensors=tensors or {"optimizer": {"step": torch.tensor(step)}},
        progress=progress,
        fingerprint={"global_batch_size": 8},
        keep=keep,
    )


def test_what_is_saved_comes_back(tmp_path: Path, bundle: Bundle) -> None:
    save(tmp_path, bundle, 12)
    found = checkpoints.newest_checkpoint(tmp_path)
    assert found.path.name == "step-00000012"
    assert found.progress == Progress(12, 1, 2, None, 0.1 + 0.2, None, 0, [[0.1, 2.0, 3.0]])
    assert found.tensors["optimizer"]["step"] == 12
    assert all(torch.equal(found.bundle.state_dict[name], value) for name, value in bundle.state_dict.items())


def test_the_oldest_go_only_after_the_new_one_is_there(tmp_path: Path, bundle: Bundle) -> None:
    for step in (1, 2, 3):
        save(tmp_path, bundle, step)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["step-00000003", "step-00000002"]


def test_a_checkpoint_that_is_only_half_removed_bears_no_final_name(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowers.training.checkpoint.shutil.rmtree", lambda *path, **options: None)
    for step in (1, 2, 3):
        save(tmp_path, bundle, step)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["step-00000003", "step-00000002"]
    monkeypatch.undo()
    checkpoints.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000002", "step-00000003"]


def test_a_disk_that_does_not_tell_once_is_no_damage(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The work since the checkpoint before would be done again, and the newest one lie there as damaged for ever."""
    for step in (1, 2):
        save(tmp_path, bundle, step)
    errors = [OSError(errno.ESTALE, "Stale file handle")]
    load = torch.load

    def failing(*args: object, **options: object) -> object:
        if errors:
            raise errors.pop()
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", failing)
    assert checkpoints.newest_checkpoint(tmp_path).progress.step == 2
    assert not errors
    assert capsys.readouterr().err == ""


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a ticket has run out: the run would begin anew, in the folder of its own results."""
    save(tmp_path, bundle, 1)

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="checkpoints"):
        checkpoints.newest_checkpoint(tmp_path)


def test_a_model_that_stepped_aside_and_could_not_be_removed_goes_with_the_next_start(
    tmp_path: Path, bundle: Bundle
) -> None:
    for name in ("best", ".best.old", ".last.old"):
        save_bundle(bundle, tmp_path / name)
    checkpoints.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["best", "last"]


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "model.json", "state.json"])
def test_a_file_cut_short_is_passed_over(
    tmp_path: Path, bundle: Bundle, name: str, capsys: pytest.CaptureFixture
) -> None:
    save(tmp_path, bundle, 1)
    newest = save(tmp_path, bundle, 2)
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: len(content) // 2])
    assert checkpoints.newest_checkpoint(tmp_path).progress.step == 1
    assert "step-00000002" in capsys.readouterr().err


def test_a_flipped_bit_is_noticed(tmp_path: Path, bundle: Bundle) -> None:
    path = save(tmp_path, bundle, 1) / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load_checkpoint(path.parent)


DAMAGE = {
    "a changed number": lambda text: text.replace('"step": 2', '"step": 3'),
    "another fingerprint": lambda text: text.replace('"global_batch_size": 8', '"global_batch_size": 4'),
    "finished": lambda text: text.replace('"finished": false', '"finished": true'),
    "beyond float64": lambda text: text.replace('"step": 2', '"step": 1e400'),
    "not a number": lambda text: text.replace('"step": 2', '"step": NaN'),
    "nested": lambda text: "[" * 100_000 + "]" * 100_000,
    "a list": lambda text: "[1]",
    "not UTF-8": lambda text: "\udcff" + text,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_leads_to_the_checkpoint_before(
    damage: Callable[[str], str], tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture
) -> None:
    save(tmp_path, bundle, 1)
    file = save(tmp_path, bundle, 2) / "state.json"
    text = file.read_text()
    assert damage(text) != text
    file.write_bytes(damage(text).encode(errors="surrogateescape"))
    assert checkpoints.newest_checkpoint(tmp_path).progress.step == 1
    said = capsys.readouterr().err
    assert "step-00000002" in said
    assert "trying the one before" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("step", "2"), ("step", -1), ("step", True), ("step", 2.0), ("best_loss", "1.5"), ("finished", 1),
     ("rank_sums", [1.0]), ("rank_sums", [["1"]]), ("validated", None), ("unknown", 1)],
)  # fmt: skip
def test_a_state_without_sha256_holds_values_of_their_types(
    name: str, value: object, tmp_path: Path, bundle: Bundle
) -> None:
    """As earlier versions wrote it; it loads, unless a value cannot be."""
    file = save(tmp_path, bundle, 2) / "state.json"
    state = json.loads(file.read_text())
    del state["sha256"]
    file.write_text(json.dumps(state))
    assert checkpoints.load_checkpoint(file.parent).progress.step == 2
    state["progress"][name] = value
    file.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=rf"step-00000002: cannot be read .*{name}"):
        checkpoints.load_checkpoint(file.parent)


def test_a_state_names_files_of_its_own_folder_only(tmp_path: Path, bundle: Bundle) -> None:
    file = save(tmp_path, bundle, 2) / "state.json"
    state = json.loads(file.read_text())
    state["files"]["../../secret"] = state["files"]["model.json"]
    del state["sha256"]
    file.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"names '../../secret', expected a file of the checkpoint itself"):
        checkpoints.load_checkpoint(file.parent)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_history_comes_back_from_the_checkpoint(
    damage: str, tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture
) -> None:
    history = History(tmp_path / "history.jsonl")
    for step in (1, 2):
        history.append("valid", step=step)
    whole, size_bytes = history.path.read_bytes(), history.size_bytes
    progress = Progress(step=2, history_bytes=size_bytes)
    save_checkpoint(tmp_path, bundle=bundle, tensors={}, progress=progress, fingerprint={}, keep=2)
    history.append("valid", step=3)
    found = checkpoints.newest_checkpoint(tmp_path)
    take_history(history, found)
    assert history.path.read_bytes() == whole
    assert not capsys.readouterr().err
    if damage == "gone":
        history.path.unlink()
    else:
        history.path.write_bytes(whole[:9] if damage == "cut" else whole.replace(b"1", b"7"))
    take_history(history, found)
    assert history.path.read_bytes() == whole
    assert "history.jsonl was damaged or gone: taken from the checkpoint" in capsys.readouterr().err
    history.path.write_bytes(whole[:9])
    take_history(history, dataclasses.replace(found, history=None))  # of an earlier version
    assert "the lines before step 2 are lost" in capsys.readouterr().err


def test_no_sound_checkpoint_is_an_error_not_a_fresh_start(tmp_path: Path, bundle: Bundle) -> None:
    (save(tmp_path, bundle, 1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints"):
        checkpoints.newest_checkpoint(tmp_path)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, bundle, 1)
    torch.save({"optimizer": Attack()}, path / "optimizer.pt")
    state = json.loads((path / "state.json").read_text())
    state["files"]["optimizer.pt"] = file_digest(path / "optimizer.pt")  # the attacker knows the format
    del state["sha256"]  # as earlier versions wrote it
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="more than plain tensors; refused"):
        checkpoints.load_checkpoint(path)
    assert not (tmp_path / "attacked").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, bundle, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FlowersError, match="disk is full"):
        save(tmp_path, bundle, 2)
    monkeypatch.undo()
    assert checkpoints.newest_checkpoint(tmp_path).progress.step == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001"]


def test_a_history_that_cannot_be_looked_at_once_is_no_end_of_a_run(tmp_path: Path, monkeypatch) -> None:
    history = History(tmp_path / "history.jsonl", with_table=True)
    history.append("valid", step=1)
    for name in ("lstat", "stat"):
        look, errors = getattr(os, name), [OSError(errno.ESTALE, "Stale file handle")]

        def failing(path: object, *args: object, look=look, errors=errors, **options: object) -> os.stat_result:
            if errors and str(path).endswith("history.jsonl"):
                raise errors.pop()
            return look(path, *args, **options)

        monkeypatch.setattr(os, name, failing)
    history.append("valid", step=2)
    assert [line["step"] for line in read_history(history.path)] == [1, 2]
    assert len(history.table.read_text().splitlines()) == 3


def test_a_full_disk_leaves_no_half_line_in_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path / "history.jsonl")
    history.append("valid", step=1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FlowersError, match=r"history.jsonl: the disk is full"):
        history.append("valid", step=2)
    assert read_history(history.path) == [{"event": "valid", "step": 1}]


def test_another_run_is_refused_by_name(tmp_path: Path, bundle: Bundle) -> None:
    save(tmp_path, bundle, 1)
    found = checkpoints.newest_checkpoint(tmp_path)
    check_fingerprint(found, {"global_batch_size": 8}, "")
    arithmetic = "4 x 2 processes x 2 micro-steps"
    with pytest.raises(CheckpointError, match=rf"global_batch_size was 8, is now 16 \({arithmetic}\); choose -b"):
        check_fingerprint(found, {"global_batch_size": 16}, arithmetic)
    other = dataclasses.replace(found, fingerprint={"--lr": 0.1})
    with pytest.raises(CheckpointError, match="--lr was 0.1, is now 0.2"):
        check_fingerprint(other, {"--lr": 0.2}, "")


def test_a_run_of_a_version_without_a_flag_resumes_with_its_default(tmp_path: Path, bundle: Bundle) -> None:
    save(tmp_path, bundle, 1)
    old = checkpoints.newest_checkpoint(tmp_path)
    check_fingerprint(old, {"--vflip": 0.0, "--mean": None, "--min-lr": 0.0}, "")
    with pytest.raises(CheckpointError, match="--vflip was 0.0, is now 0.5; resume with the old value"):
        check_fingerprint(old, {"--vflip": 0.5}, "")


def test_a_second_job_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flowers.training.checkpoint import lock_run\n"
        "with lock_run(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match=f"in use by process {holder.pid}"), lock_run(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with lock_run(tmp_path):
        pass
