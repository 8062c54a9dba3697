"""The screen, as people meet it: errors, help, progress and tables on a terminal, and jobs whose screen is gone."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import get_args

import pytest
from jobs_in_processes import Job
from tiny_job import make_bundle, make_photos

from flowers import cli, console, usage
from flowers.config.audit import ApplyConfig, AuditConfig
from flowers.config.benchmark import BenchmarkConfig
from flowers.config.compare import CompareConfig
from flowers.config.demo import DemoConfig
from flowers.config.evaluate import EvaluateConfig
from flowers.config.export import ExportConfig
from flowers.config.find_lr import FindLrConfig
from flowers.config.info import InfoConfig
from flowers.config.predict import PredictConfig
from flowers.config.prepare import PrepareConfig
from flowers.config.status import StatusConfig
from flowers.config.train import TrainConfig
from flowers.data.folders import ClassIndex
from flowers.errors import UsageError
from flowers.flags import options
from flowers.help_page import field_texts, job_page
from flowers.launch import LaunchConfig

ROOT = Path(__file__).parents[1]
JOBS = {
    "audit": AuditConfig, "benchmark": BenchmarkConfig, "compare": CompareConfig, "demo": DemoConfig,
    "evaluate": EvaluateConfig, "export": ExportConfig, "find_lr": FindLrConfig, "info": InfoConfig,
    "predict": PredictConfig, "prepare": PrepareConfig, "status": StatusConfig, "train": TrainConfig,
}  # fmt: skip
CONFIGS = [one for config in JOBS.values() for one in (get_args(config) if isinstance(config, UnionType) else [config])]
CONFIGS += [ApplyConfig, LaunchConfig]
ANSI = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)")
TERMINALS = [
    (80, {"TERM": "xterm-256color"}),
    (120, {"TERM": "xterm"}),
    (80, {"TERM": "xterm-256color", "NO_COLOR": "1"}),
    (120, {"TERM": "dumb"}),
]


class Terminal:
    """A terminal of so many columns, on which one job runs."""

    def __init__(self, job: str, flags: list, folder: Path, columns: int, env: dict[str, str]):
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._blocks: list[bytes] = []
        self.written = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        arguments = (os.ttyname(self._theirs), env)
        self.job = Job(job, flags, folder=folder, before=sit_at_terminal, arguments=arguments)

    def close(self) -> None:
        """As when somebody closes the window: every process of it gets SIGHUP, what they write fails."""
        os.close(self._theirs)
        os.close(self._ours)

    def finish(self) -> tuple[int, str]:
        """The exit code, and all that was shown."""
        (code,) = self.job.wait()
        os.close(self._theirs)
        self._reader.join(10)
        os.close(self._ours)
        return code, b"".join(self._blocks).decode()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the way that a terminal says that everyone has left
            while block := os.read(self._ours, 4096):
                self._blocks.append(block)
                self.written.set()


def sit_at_terminal(name: str, env: dict[str, str]) -> None:
    for variable in ("COLUMNS", "NO_COLOR"):
        os.environ.pop(variable, None)
    os.environ.update(env)
    os.setsid()
    terminal = os.open(name, os.O_RDWR)  # the first that a session opens is the one that hangs it up
    for descriptor in (0, 1, 2):
        os.dup2(terminal, descriptor)
    os.close(terminal)


def show(job: str, flags: list, folder: Path, columns: int = 80, **env: str) -> tuple[int, str]:
    """Run a job on a terminal; its exit code and what was shown, checked for what no terminal should show."""
    code, shown = Terminal(job, flags, folder, columns, {"TERM": "xterm-256color", **env}).finish()
    assert "\\x1b" not in shown, "an escape sequence as text"
    assert "NoneType" not in shown
    if "NO_COLOR" in env or env.get("TERM") == "dumb":
        assert not re.search(r"\x1b\[[\d;]*m", re.sub(r"\x1b\[(\d(;\d)*)?m", "", shown)), "colour"  # bold is none
    bare = ANSI.sub("", shown)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", bare)
    return code, bare.replace("\r\n", "\n")


@pytest.mark.parametrize(("columns", "env"), TERMINALS)
def test_a_usage_error_is_one_line_on_every_terminal(columns: int, env: dict, tmp_path: Path) -> None:
    code, shown = show("train", ["--data", "x", "--lr", "abc"], tmp_path, columns, **env)
    assert (code, shown) == (2, "error: --lr: got 'abc', expected a number or auto; see train.py --help\n")


@pytest.mark.parametrize("job", JOBS)
def test_every_job_tells_an_unknown_flag_in_one_line(job: str, tmp_path: Path) -> None:
    command = ["check"] if job == "prepare" else []
    code, shown = show(job, [*command, "--outptu", "a"], tmp_path)
    assert code == 2
    assert shown.count("\n") == 1
    assert shown.startswith("error: --outptu: no such flag; ")
    code, shown = show(job, command, tmp_path)
    assert code == 2
    assert re.fullmatch(r"error: .* (is|are) missing.*\n", shown)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(("columns", "env"), [TERMINALS[0], TERMINALS[3]])
def test_help_fits_every_terminal(job: str, columns: int, env: dict, tmp_path: Path) -> None:
    code, shown = show(job, ["--help"], tmp_path, columns, **env)
    assert code == 0
    assert "None" not in shown
    examples = re.findall(rf"^  (?:python jobs/{job}\.py|flowers-launch|accelerate launch) .*", shown, re.M)
    assert len(examples) >= 2
    for line in set(shown.splitlines()) - set(examples):
        assert len(line) <= columns, line


def test_help_is_in_groups_and_says_every_default() -> None:
    titles = [title for title, _ in job_page(TrainConfig, "python jobs/train.py", ["x"], 100)]
    assert titles == ["", "", "examples", *TrainConfig.GROUPS.values(), "every job"]
    assert len(TrainConfig.GROUPS) == 7
    for config in CONFIGS:
        texts = field_texts(config)
        for option in options(config):
            assert texts[option.name].endswith("."), (config, option.name)
        page = "\n".join(text for _, text in job_page(config, "job", [], 100))
        for option in options(config):
            assert option.spelled in page
    page = " ".join(" ".join(text.split()) for _, text in job_page(TrainConfig, "job", [], 100))
    assert "--epochs INT Passes over the training images. Default: 50 for a head on cached features" in page
    assert "-b, --batch-size INT" in page
    assert "--lr NUMBER|auto" in page


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        (TrainConfig, ["--data-dri", "x"], "--data-dri: no such flag; did you mean --data-dir?"),
        (TrainConfig, ["-data-dir", "x"], "-data-dir: no such flag; did you mean --data-dir?"),
        (TrainConfig, ["--data", "x", "--EPOCHS", "3"], "--EPOCHS: no such flag; did you mean --epochs?"),
        (TrainConfig, ["--opt", "sgd", "--wd=1"], "here it is --optimizer; --wd: no such flag; here it is --wei"),
        (TrainConfig, ["--data", "x", "--data-dir", "y"], "--data-dir is given twice"),
        (TrainConfig, ["--data", "x", "--report", "--no-report"], "--report is given twice"),
        (TrainConfig, ["--data", "x", "--report", "no"], "--report takes no value, got 'no'; on is --report, off"),
        (TrainConfig, ["--data", "x", "--report=no"], "--report takes no value"),
        (TrainConfig, ["--data", "x", "--scale", "0.3"], "--scale: got 0.3, expected 2 numbers"),
        (TrainConfig, ["--data", "x", "--epochs", "1.5"], "--epochs: got '1.5', expected a whole number"),
        (TrainConfig, ["--data", "x", "--lr"], "--lr: got no value, expected a number or auto"),
        (TrainConfig, ["--data", "x", "stray"], "--data-dir: got 2 values ('x', 'stray'), expected one: a folder or"),
        (PredictConfig, ["--checkpoint", "c", "d", "--input", "a"], "--checkpoint: got 2 values ('c', 'd'), expected"),
        (PredictConfig, ["--checkpoint", "c", "--input", "a", "--checkpoint", "b"], "--checkpoint is given twice"),
        (PredictConfig, ["--model", "c"], "--model: no such flag; here it is --checkpoint"),
        (InfoConfig, ["a", "b"], "got 'b', which belongs to no flag"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_explained(config: type, flags: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        cli.parse(config, flags)
    assert message in str(caught.value)
    assert str(caught.value).endswith(" --help")


def test_several_values_of_a_flag_may_come_one_by_one() -> None:
    words = ["--checkpoint", "c", "--input", "d", "--ext", "jpg", "--ext", "png", "gif", "--batch_size=7"]
    config = cli.parse(PredictConfig, words)
    assert (config.ext, config.batch_size) == (("jpg", "png", "gif"), 7)


@pytest.mark.parametrize(("here", "others"), usage.OTHER_NAMES.items())
def test_the_counterpart_of_another_tools_flag_exists(here: str, others: str) -> None:
    known = [{spelled for option in options(config) for spelled in option.names} for config in CONFIGS]
    for name in others.split():
        assert any(here in flags and name not in flags for flags in known), name


def test_tools_that_users_come_from_are_understood() -> None:
    """Flags of timm's, torchvision's and transformers' commands that mean the same as one of training."""
    words = ["--learning-rate", "--opt", "--sched", "--clip-grad", "--aa", "--smoothing", "--mixup", "--cutmix", "--wd"]
    words += ["--img-size", "--drop", "--reprob", "--model_name_or_path", "--train_dir", "--data-path", "--amp"]
    with pytest.raises(UsageError) as caught:
        cli.parse(TrainConfig, words)
    assert str(caught.value).count("here it is --") == len(words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and photos to predict, some with names that would turn the screen around."""
    folder = tmp_path_factory.mktemp("terminal")
    make_bundle(folder / "model")
    classes = ClassIndex(("1", "2", "3", "4"), ("daisy", "rose", "tulip", "été"))
    make_bundle(folder / "of-sample", classes, model="shufflenet_v2_x0_5")  # which torchvision has
    make_photos(folder / "photos", 6)
    (folder / "photos" / "a\u202egpj.exe.jpg").write_bytes(b"no picture")
    (folder / "photos" / "b\x1b[2J\u2066.jpg").write_bytes(b"no picture")
    return folder


def words_of(place: Path) -> list:
    return ["--checkpoint", place / "model", "--input", place / "photos", "--engine", "torch", "--precision", "float32"]


@pytest.mark.processes
@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize(("columns", "env"), TERMINALS)
def test_predict_on_a_terminal(columns: int, env: dict, verbose: bool, place: Path, tmp_path: Path) -> None:
    words = [*words_of(place), *(["--verbose"] if verbose else [])]
    code, shown = Terminal("predict", words, tmp_path, columns, env).finish()
    assert code == 0, shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", shown)
    assert ("\x1b" in shown) == (env["TERM"] != "dumb")
    assert "predictions.csv" in shown
    assert ("of the ceiling of" in shown, "time: read " in shown) == (verbose, verbose)


TINY = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "-b", 8, "-j", 0]
CHECKPOINT, PHOTOS = ["--checkpoint", "PLACE/of-sample"], ["--check-images", "SAMPLE/test"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("job", "flags", "said"),
    [
        ("evaluate", [*CHECKPOINT, "--data-dir", "SAMPLE", "-j", 0, "--output", "m.json"], "top1"),
        ("prepare", ["check", "--data-dir", "SAMPLE"], "Training would start."),
        ("find_lr", ["--data-dir", "SAMPLE", *TINY, "--steps", 10, "--output-dir", "run"], "next:"),
        ("info", ["PLACE/model"], "été"),
        ("export", [*CHECKPOINT, "--format", "torchvision", *PHOTOS, "--output", "model.pth"], "model.pth"),
        ("status", ["nowhere.csv"], "not started"),
    ],
)
def test_what_other_jobs_show_on_a_terminal(
    job: str, flags: list, said: str, place: Path, sample_set: Path, tmp_path: Path
) -> None:
    """Tables, figures and progress; ``show`` looks for what no terminal without colour should get."""
    places = {"PLACE": str(place), "SAMPLE": str(sample_set)}
    words = [re.sub("PLACE|SAMPLE", lambda found: places[found[0]], str(word)) for word in flags]
    code, shown = show(job, words, tmp_path, 80, NO_COLOR="1")
    assert code == 0, shown
    assert said in shown


def close_stdout() -> None:
    os.close(1)
    sys.stdout = sys.__stdout__ = None  # as Python itself does when it starts so


def close_stderr() -> None:
    os.close(2)
    sys.stderr = sys.__stderr__ = None


def fill_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def break_pipes() -> None:
    """As `2>&1 | true`: the reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


@pytest.mark.processes
@pytest.mark.parametrize("before", [close_stdout, close_stderr, fill_stdout, break_pipes])
@pytest.mark.parametrize("log", ["plain", "json"])
def test_a_job_outlives_its_screen(before, log: str, place: Path, tmp_path: Path) -> None:
    job = Job("predict", [*words_of(place), "--log", log], folder=tmp_path, before=before)
    assert job.wait() == [0], job.output
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 9
    assert "Traceback" not in job.output


@pytest.mark.processes
@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_started_with_closed_streams_still_ends_well(closed: str) -> None:
    program = f"'{sys.executable}' '{ROOT}/jobs/train.py' --help {closed}"
    done = subprocess.run(program, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("usage:" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.processes
@pytest.mark.parametrize("before", [fill_stdout, break_pipes])
def test_help_and_info_end_without_a_traceback(before, place: Path, tmp_path: Path) -> None:
    codes = {fill_stdout: 1, break_pipes: 0}
    job = Job("info", [place / "model"], folder=tmp_path, before=before)
    assert job.wait() == [codes[before]], job.output
    assert ("cannot write to stdout: no space left" in job.output) == (before is fill_stdout)
    assert "Traceback" not in job.output
    job = Job("train", ["--help"], folder=tmp_path, before=before)
    assert job.wait() == [0], job.output
    assert job.output == ""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("more", "batch"), [([], "8 images a step"), (["--verbose"], "8 x 1 process x 1 micro-step = 8")]
)
def test_training_on_a_terminal(more: list, batch: str, sample_set: Path, tmp_path: Path) -> None:
    flags = ["--data-dir", sample_set, "--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "-j", 0]
    code, shown = show("train", [*flags, "--epochs", 2, "-b", 8, "--output-dir", "run", *more], tmp_path)
    assert code == 0, shown
    assert re.search(rf"batch +{batch}", shown)
    assert "next:" in shown


@pytest.mark.processes
def test_a_closed_terminal_does_not_end_the_job(sample_set: Path, tmp_path: Path) -> None:
    flags = ["--data-dir", sample_set, "--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "-j", 0]
    flags += ["--no-feature-cache", "--epochs", 3, "-b", 4, "--output-dir", "run"]
    terminal = Terminal("train", flags, tmp_path, 80, {"TERM": "xterm-256color"})
    assert terminal.written.wait(60)
    terminal.close()
    assert terminal.job.wait() == [0]
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rosé 花.jpg", "rosé 花.jpg"),
        ("a\u202egpj.exe", "a\\u202egpj.exe"),
        ("a\u200d\u2028\u2066", "a\\u200d\\u2028\\u2066"),
        ("a\x9b\ud800", "a\\x9b\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_characters_that_hide_or_turn_others_are_spelled_out(name: str, shown: str) -> None:
    assert console.plain(name) == shown


@pytest.fixture
def quiet_after() -> Iterator[None]:
    yield
    console.log_to(None)
    console.show_as("auto")


@pytest.mark.usefixtures("quiet_after")
def test_details_are_shown_with_verbose_and_always_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    console.log_to(tmp_path / "log.txt")
    for flags, expected in ([], ""), (["--verbose"], "a detail\n"), (["--log", "json"], "a detail"):
        assert cli.choose_log([*flags, "--topk", "3"]) == ["--topk", "3"]
        console.verbose("a [bold]detail[/]")
        assert expected in capsys.readouterr().out
    assert (tmp_path / "log.txt").read_text().count("a detail") == 3
