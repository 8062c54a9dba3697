"""What users read: each mode of --log, through the functions and through real jobs."""

import contextlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from jobs_in_processes import Job
from tiny_job import make_bundle, make_photos

from flowers import cli, console
from flowers.config.prepare import CheckConfig
from flowers.errors import UsageError

ODD = "a[bold]\x1b[2J\n.jpg"  # a file name that would clear the screen
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    console.log_to(None)
    console.show_as("auto")


def events(text: str) -> list[dict]:
    """Each line as the JSON object that it must be."""
    found = [json.loads(line) for line in text.splitlines()]
    for event in found:
        assert datetime.fromisoformat(event["time"]).utcoffset().total_seconds() == 0
    return found


def say_all() -> None:
    """One of each."""
    console.say(f"[bold]hello[/] {console.plain(ODD)}")
    console.warn(f"left out {ODD}")
    console.error(f"no model in {ODD}")
    console.facts("what", [("folder", ODD), ("images", 3)])
    console.table("all", ["class", "loss"], [[ODD, 0.5], ["b", float("nan")]])
    with console.progress(ODD, 4) as meter:
        meter.advance(3, lr=0.001, wait=0.25, loss=float("inf"))
        meter.advance(1, top1=0.5)
    words = ["python", "jobs/predict.py", "--checkpoint", "a b"]
    console.done("trained", [("model", Path("runs") / ODD), ("figures", "m.json")], [words])


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture) -> None:
    console.show_as("json")
    say_all()
    out, err = capsys.readouterr()
    assert err == ""
    said = events(out)
    assert [event["event"] for event in said] == [
        "message", "warning", "error", "facts", "table", "progress", "done",
    ]  # fmt: skip
    message, warning, error, facts, table, progress, done = [
        {name: value for name, value in event.items() if name not in ("time", "event")} for event in said
    ]
    assert message == {"text": "hello a[bold]\\x1b[2J\\x0a.jpg"}
    assert warning == {"text": f"left out {ODD}"}
    assert error == {"text": f"no model in {ODD}", "rank": 0}
    assert facts == {"title": "what", "values": {"folder": ODD, "images": 3}}
    assert table == {"title": "all", "columns": ["class", "loss"], "rows": [[ODD, 0.5], ["b", None]]}
    assert {name: progress[name] for name in ("task", "done", "total", "unit", "left_s")} == {
        "task": ODD, "done": 4, "total": 4, "unit": "images", "left_s": 0,
    }  # fmt: skip
    assert progress["per_s"] > 0
    assert progress["figures"] == {"lr": 0.001, "wait": 0.25, "loss": None, "top1": 0.5}
    assert done == {
        "title": "trained",
        "written": {"model": f"runs/{ODD}", "figures": "m.json"},
        "next": ["python jobs/predict.py --checkpoint 'a b'"],
    }


def test_plain_has_no_control_character_even_where_colour_is_forced(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console.show_as("plain")
    say_all()
    out, err = capsys.readouterr()
    assert not CONTROL.search(out + err)
    assert err.splitlines() == [
        "warning: left out a[bold]\\x1b[2J\\x0a.jpg",
        "error: no model in a[bold]\\x1b[2J\\x0a.jpg",
    ]
    assert out.splitlines()[-5:] == [
        "trained",
        "  model    runs/a[bold]\\x1b[2J\\x0a.jpg",
        "  figures  m.json",
        "next:",
        "  python jobs/predict.py --checkpoint 'a b'",
    ]


@pytest.mark.parametrize(
    ("env", "draws"),
    [({}, True), ({"SLURM_STEP_ID": "0"}, False), ({"SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "40301"}, True)],
)
def test_the_terminal_that_srun_unbuffered_gives_to_each_task_is_a_log(
    env: dict, draws: bool, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_STEP_ID", "SLURM_PTY_PORT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    console.show_as("auto")
    say_all()
    assert bool(CONTROL.search(capsys.readouterr().out)) == draws


def test_a_line_now_and_then(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    console.show_as("plain")
    with console.progress("epoch 1/2", 200) as meter:
        for now_s in (10.0, 20.0, 31.0, 40.0):  # noqa: B007
            meter.advance(20, lr=0.001, loss=0.25, wait=0.125, top1=0.75)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2: 60/200  2 images/s  72 s left  loss 0.2500  top1 0.7500  wait 12%  lr 0.001"
    ]


def test_one_of_a_kind_is_counted_in_the_singular() -> None:
    said = [console.counted(number, "process", "processes") for number in (0, 1, 2345)]
    assert said == ["0 processes", "1 process", "2,345 processes"]
    assert [console.counted(number, "file") for number in (1, 2)] == ["1 file", "2 files"]


def test_a_log_file_on_a_full_disk_silences_nothing(capsys: pytest.CaptureFixture) -> None:
    console.log_to(Path("/dev/full"))
    console.error("the disk is full")
    assert capsys.readouterr().err == "error: the disk is full\n"


def test_colons_in_a_name_are_no_picture(capsys: pytest.CaptureFixture) -> None:
    console.show_as("plain")
    console.error("a:b: no such folder")
    console.say(f"written: {console.plain('x:cat:')}")
    captured = capsys.readouterr()
    assert (captured.err, captured.out) == ("error: a:b: no such folder\n", "written: x:cat:\n")


def test_quiet_leaves_warnings_and_errors_and_the_log_file(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    console.show_as("quiet")
    console.log_to(tmp_path / "log.txt")
    say_all()
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    log = (tmp_path / "log.txt").read_text()
    for words in ("hello a[bold]", "warning: left out", "error: no model", "folder", "0.5"):
        assert words in log


def test_only_the_main_process_speaks(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    for mode in ("plain", "json", "rich"):
        console.show_as(mode)
        say_all()
        out, err = capsys.readouterr()
        if mode == "json":
            assert [(event["event"], event["rank"]) for event in events(out)] == [("error", 1)]
        else:
            assert out == ""
            assert len(err.splitlines()) == 1
            assert "rank 1: no model" in err


@pytest.mark.parametrize(
    ("started_as", "words"),
    [
        ("jobs/train.py", ["python", "jobs/find_lr.py", "--lr", "0.1"]),
        ("/opt/bin/flowers-train", ["flowers-find-lr", "--lr", "0.1"]),
    ],
)
def test_the_next_command_is_started_like_this_one(
    started_as: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started_as])
    assert console.job_command("find_lr", "--lr", 0.1) == words


# --log, on a command line


@pytest.mark.parametrize("flags", [["--log", "plain"], ["--log=plain"]])
def test_the_flag_stands_anywhere(flags: list[str]) -> None:
    assert cli.choose_log(["check", *flags, "--data-dir", "d"]) == ["check", "--data-dir", "d"]
    assert console._mode == "plain"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--log", "loud"], "--log: got loud, expected auto, rich, plain, json, quiet"),
        (["--log"], "--log: got nothing, expected auto"),
        (["--log", "plain", "--log=json"], "--log is given twice"),
    ],
)
def test_an_unknown_mode_is_a_wrong_flag(flags: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UsageError, match=message):
        cli.choose_log(flags)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda config: 0, CheckConfig, flags)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_the_modes(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda config: 0, CheckConfig, ["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(mode in out[out.index("--log MODE") :] for mode in console.LOG_MODES)


def test_wrong_flags_are_json_too(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda config: 0, CheckConfig, ["--log", "json", "--data", "x", "--tinny", "3"])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert err == ""
    (event,) = events(out)
    assert event["event"] == "error"
    assert "--tinny" in event["text"]


# real jobs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and photos to predict."""
    folder = tmp_path_factory.mktemp("console")
    make_bundle(folder / "model")
    make_photos(folder / "photos", 5)
    (folder / "photos" / "broken.jpg").write_bytes(b"no picture")
    return folder


def predict(place: Path, tmp_path: Path, *flags: str, processes: int = 1) -> Job:
    own = ("--checkpoint", place / "model", "--input", place / "photos", "--output", "predictions.csv")
    return Job("predict", [*own, "--engine", "torch", "--topk", "1", *flags], folder=tmp_path, processes=processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_predict_as_json(place: Path, tmp_path: Path, processes: int) -> None:
    job = predict(place, tmp_path, "--log", "json", "--strict", processes=processes)
    assert job.wait()[0] == 3
    said = events((tmp_path / "out-0.txt").read_text())
    progress = [event for event in said if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 6
    assert progress[-1]["figures"] == {"errors": 1}
    assert said[-1]["event"] == "done"
    assert said[-1]["written"] == {"predictions": "predictions.csv", "how they were made": "predictions.json"}
    if processes == 2:
        assert (tmp_path / "out-1.txt").read_text() == ""


def test_predict_quietly(place: Path, tmp_path: Path) -> None:
    job = predict(place, tmp_path, "--log", "quiet")
    assert job.wait() == [0]
    assert job.output == ""
    assert (tmp_path / "predictions.csv").exists()


@pytest.mark.parametrize("flags", [["--log", "plain"], []])
def test_predict_in_a_pipe(place: Path, tmp_path: Path, flags: list[str]) -> None:
    job = predict(place, tmp_path, *flags)
    assert job.wait() == [0]
    assert not CONTROL.search(job.output)
    assert "6 rows (5 ok, 1 error)" in job.output


def test_training_as_json_and_the_commands_it_ends_with(sample_set: Path, tmp_path: Path) -> None:
    model = ["--model", "timm/test_resnet", "--weights", "none", "--finetune", "full", "--train-size", 32]
    job = Job(
        "train",
        ["--data-dir", sample_set, *model, "--epochs", 2, "-b", 8, "-j", 1, "--log", "json", "--log-interval", 1],
        folder=tmp_path,
    )
    assert job.wait() == [0], job.output
    said = events((tmp_path / "out-0.txt").read_text())
    train = [event for event in said if event["event"] == "progress" and event["task"].startswith("epoch")][-1]
    assert train["task"] == "epoch 2/2"
    assert train["done"] == train["total"] == 64
    assert {"loss", "top1", "wait", "lr"} <= set(train["figures"])
    assert 0 <= train["figures"]["wait"] <= 1
    assert train["figures"]["loss"] > 0
    done = said[-1]
    assert done["event"] == "done"
    assert {"best model", "figures", "all of the run"} <= set(done["written"])
    assert all((tmp_path / path).exists() for path in done["written"].values())
    evaluate, predict = (shlex.split(command) for command in done["next"])
    assert (evaluate[:2], predict[:2]) == (["python", "evaluate.py"], ["python", "predict.py"])
    job = Job("evaluate", [*evaluate[2:], "--log", "json", "-j", 0], folder=tmp_path)
    assert job.wait() == [0], job.output
    done = events((tmp_path / "out-0.txt").read_text())[-1]
    assert (tmp_path / done["written"]["figures"]).exists()
    assert done["next"][0].startswith("python predict.py --checkpoint ")
    photos = [str(sample_set / "test") if word == "PHOTOS" else word for word in predict[2:]]
    job = Job("predict", [*photos, "--engine", "torch", "--log", "quiet"], folder=tmp_path)
    assert job.wait() == [0], job.output
    assert (tmp_path / "predictions.csv").exists()


def in_terminal(command: list[str], folder: Path, **env: str) -> str:
    """What a job writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")} | env
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the way that a terminal says that everyone has left
        while block := os.read(ours, 4096):
            shown += block
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


DRAW = """\
import sys
from flowers import cli, console
from flowers.config.prepare import CheckConfig

def main(config):
    with console.progress("step", 2) as meter:
        meter.advance(1, loss=0.5)
        console.warn("so so")
        meter.advance(1, loss=0.25)
    console.done("drawn", [("file", "a")], [["next", "b"]])

cli.run(main, CheckConfig, ["--data-dir", "x", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("flags", "env", "bars", "colours"),
    [
        ([], {"TERM": "xterm-256color"}, True, True),
        (["--log", "rich"], {"TERM": "xterm-256color"}, True, True),
        ([], {"TERM": "xterm-256color", "NO_COLOR": "1"}, True, False),
        ([], {"TERM": "dumb"}, False, False),
        (["--log", "plain"], {"TERM": "xterm-256color"}, False, False),
        (["--log", "quiet"], {"TERM": "xterm-256color"}, False, True),
    ],
)
def test_on_a_terminal(flags: list[str], env: dict, bars: bool, colours: bool, tmp_path: Path) -> None:
    shown = in_terminal([sys.executable, "-c", DRAW, *flags], tmp_path, **env)
    assert ("\x1b[2K" in shown) == bars  # a line erased to be drawn again
    assert bool(re.search(r"\x1b\[[\d;]*3[36]m", shown)) == colours
    assert "warning:" in shown
    assert ("next b" in shown) == ("quiet" not in flags)
    if not bars and not colours:
        assert "\x1b" not in shown
