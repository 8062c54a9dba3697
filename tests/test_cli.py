"""Flags, config files and exit codes; what a wrong word on the command line looks like."""

import errno
import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

from flowers import cli
from flowers.config.benchmark import BenchmarkConfig
from flowers.config.compare import CompareConfig
from flowers.config.demo import DemoConfig
from flowers.config.evaluate import EvaluateConfig
from flowers.config.export import ExportConfig
from flowers.config.info import InfoConfig
from flowers.config.predict import PredictConfig
from flowers.config.train import TrainConfig
from flowers.errors import DataError, StoppedError, UsageError, explain
from flowers.machine import MAX_BATCH_SIZE
from flowers.training.flags import check_flags

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Small:
    """A job's flags in small."""

    folder: Path
    """A folder."""
    epochs: int = 3
    """Epochs."""
    precision: Literal["no", "bf16"] | None = None
    """Precision."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Scale."""
    fast: bool = True
    """Fast."""


def test_in_a_folder_that_is_gone_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda config: 0, Small, ["--folder", "x"])
    assert ended.value.code == 1
    assert "error: the current folder is gone (no such file or directory): change to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "flags", "missing"),
    [
        (TrainConfig, "--data-dir no", "--data-dir no"),
        (TrainConfig, "--data-dir . --continue-from file/no", "--continue-from file/no"),
        (PredictConfig, "--checkpoint no --input .", "--checkpoint no"),
        (PredictConfig, "--checkpoint . --input . no", "--input no"),
        (PredictConfig, "--checkpoint . --input - *.jpg s3://b/c https://h/a.jpg", None),
        (PredictConfig, "--checkpoint . --input no --merge", None),
        (PredictConfig, "--checkpoint best --input .", None),
        (EvaluateConfig, "--checkpoint . --data-dir no", "--data-dir no"),
        (EvaluateConfig, "--predictions p.csv", None),
    ],
)
def test_a_path_that_is_not_there_is_told_before_the_job_is_imported(
    config: type, flags: str, missing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / ".best.old").mkdir()  # as a save that was killed between its two renames leaves it
    started = []
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda config: started.append(config), config, flags.split())
    assert (ended.value.code, len(started)) == ((0, 1) if missing is None else (1, 0))
    said = capsys.readouterr().err
    assert said == ("" if missing is None else f"error: {missing}: no such file or folder\n")


@pytest.mark.parametrize("flags", ["--split valid", "--exclude x", "-b 8", "-j 2", "--mixed-precision no"])
def test_flags_about_images_do_not_go_with_a_table(flags: str) -> None:
    name = {"-b": "--batch-size", "-j": "--workers"}.get(flags.split()[0], flags.split()[0])
    with pytest.raises(UsageError, match=f"--predictions is scored without images, all rows of it: leave out {name}"):
        cli.parse(EvaluateConfig, ["--predictions", "p.csv", *flags.split()])


@pytest.mark.parametrize(
    ("value", "is_valid"),
    [
        ("", True),
        ("expandable_segments:True", True),
        ("max_split_size_mb:128,roundup_power2_divisions:[256:1,512:2,>:8], backend:native", True),
        ("foo", False),
        ("max_split_size_mb=128", False),
    ],
)
def test_settings_of_the_allocator_that_would_abort_torch(
    value: str, is_valid: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", value)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda config: 0, Small, ["--folder", "x"])
    assert ended.value.code == (0 if is_valid else 2)
    assert ("PYTORCH_CUDA_ALLOC_CONF: got" in capsys.readouterr().err) is not is_valid


def test_a_library_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "__init__.py").write_text("raise ValueError('Unknown level: FOO\\nfor more see')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "accelerate"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "foo")
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda config: importlib.import_module("accelerate"), Small, ["--folder", "x"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "accelerate cannot be imported (ValueError: Unknown level: FOO); the environment has" in said
    assert "ACCELERATE_LOG_LEVEL=foo" in said


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("epochs: 7\nfast: false\nscale: [0.1, 0.2]\nprecision: null\nfolder: -odd name\n")
    assert cli.parse(Small, ["--config", str(file), "--epochs", "9"]) == Small(
        Path("-odd name"), 9, None, (0.1, 0.2), False
    )


def test_a_bare_no_in_a_file_is_a_word_where_one_is_expected(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("precision: no\nfast: no\n")
    assert cli.parse(Small, ["--config", str(file), "--folder", "x"]) == Small(Path("x"), precision="no", fast=False)
    file.write_text("epochs: no\n")
    with pytest.raises(UsageError, match="--epochs"):
        cli.parse(Small, ["--config", str(file), "--folder", "x"])


def test_a_saved_config_reads_back_equal(tmp_path: Path) -> None:
    import yaml

    config = cli.parse(TrainConfig, ["--data-dir", "a b", "--lr", "3e-05", "--scale", "0.3", "1", "--no-feature-cache"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(cli.to_plain(config)))
    again = cli.parse(TrainConfig, ["--config", str(file)])
    assert cli.to_plain(again) == cli.to_plain(config)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--folder", "x", "--epoch", "3"], ["--epoch", "--epochs"]),
        (["--folder", "x", "--epochs", "many"], ["--epochs", "many"]),
        (["--folder", "x", "--precision", "fp8"], ["--precision", "fp8", "bf16"]),
        ([], ["--folder", "missing", "a path"]),
        (["--folder", "x", "--config", "missing.yaml"], ["missing.yaml", "No such file"]),
    ],
)
def test_a_wrong_word_is_told_in_one_line(flags: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        cli.parse(Small, flags)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("words", [["--exclude"], ["--exclude", "a", "--exclude"], ["--exclude", "--topk", "3"]])
def test_a_flag_of_several_values_needs_one(words: list[str]) -> None:
    """An empty variable of a script, say, would silently leave nothing out."""
    with pytest.raises(UsageError, match="--exclude: got no value, expected one or more values"):
        cli.parse(PredictConfig, ["--checkpoint", "m", "--input", "p", *words])
    assert cli.parse(PredictConfig, ["--checkpoint", "m", "--input", "p", "--watch", "--topk", "3"]).watch == ()


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("-b8", "batch_size", 8),
        ("-b=8", "batch_size", 8),
        ("--batch_size=8", "batch_size", 8),
        ("--lr -1e-3", "lr", -0.001),
        ("--mean -1 2 3", "mean", (-1.0, 2.0, 3.0)),
        ("--exclude=a_b --exclude c d", "exclude", ("a_b", "c", "d")),
        ("--run-name=--a", "run_name", "--a"),
    ],
)
def test_ways_to_give_a_value(words: str, field: str, value: object) -> None:
    assert getattr(cli.parse(TrainConfig, ["--data", "x", *words.split()]), field) == value


def test_values_without_a_flag_may_stand_anywhere() -> None:
    words = ["a", "--output", "o.html", "b", "--", "--c_d"]
    assert cli.parse(CompareConfig, words) == CompareConfig((Path("a"), Path("b"), Path("--c_d")), Path("o.html"))
    with pytest.raises(UsageError, match="--json takes no value, got 'yes'"):
        cli.parse(InfoConfig, ["--json=yes"])
    with pytest.raises(UsageError, match="-x: no such flag"):
        cli.parse(InfoConfig, ["a", "-x"])


def test_a_switch_may_take_a_word(tmp_path: Path) -> None:
    def value(*words: str) -> object:
        return cli.parse(TrainConfig, ["--data-dir", "x", *words]).tune_head

    assert (value(), value("--tune-head"), value("--no-tune-head")) == (False, True, False)
    assert value("--tune-head", "wide", "-b", "8") == value("--tune-head=wide") == "wide"
    assert (value("--tune-head", "true"), value("--tune-head=false")) == (True, False)
    (file := tmp_path / "config.yaml").write_text("tune_head: wide\n")
    assert value("--config", str(file)) == "wide"
    with pytest.raises(UsageError, match="--tune-head: got 'narrow', expected true, false or wide"):
        value("--tune-head", "narrow")
    with pytest.raises(UsageError, match="--no-tune-head takes no value, got 'wide'"):
        value("--no-tune-head", "wide")


def test_an_unknown_setting_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("epoch: 7\n")
    with pytest.raises(UsageError, match=r"--epoch: no such flag; did you mean --epochs\?"):
        cli.parse(Small, ["--folder", "x", "--config", str(file)])
    file.write_text("learning_rate: 0.1\n")
    with pytest.raises(UsageError, match="--learning-rate: no such flag; here it is --lr"):
        cli.parse(TrainConfig, ["--data-dir", "x", "--config", str(file)])
    file.write_text("- a\n- b\n")
    with pytest.raises(UsageError, match="expected a mapping"):
        cli.parse(Small, ["--folder", "x", "--config", str(file)])


@pytest.mark.parametrize(
    "text", ["lr: 0.1\nepochs: 3\nlr: 0.2\n", "batch_size: 3\nbatch-size: 4\n", "model: resnet18\narch: resnet50\n"]
)
def test_of_two_values_in_a_file_none_is_taken(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match="twice"):
        cli.parse(TrainConfig, ["--data-dir", "x", "--config", str(tmp_path / "c.yaml")])


def test_values_in_a_file_are_what_is_written(tmp_path: Path) -> None:
    """YAML 1.1 makes 20240102 of the first, 8 of the second and True of the third."""
    (tmp_path / "c.yaml").write_text("data: 2024_01_02\nrun_name: 010\noutput_dir: yes\nreport: Off\nlr: 1e-3\n")
    config = cli.parse(TrainConfig, ["--config", str(tmp_path / "c.yaml")])
    assert (config.data_dir, config.run_name, config.output_dir) == (Path("2024_01_02"), "010", Path("yes"))
    assert (config.report, config.lr) == (False, 0.001)
    (tmp_path / "c.yaml").write_text("b: 7\n")
    assert cli.parse(TrainConfig, ["--data-dir", "x", "--config", str(tmp_path / "c.yaml")]).batch_size == 7
    (tmp_path / "c.yaml").write_text("config: other.yaml\n")
    with pytest.raises(UsageError, match=r"c\.yaml: names another file as its config; put all into one file"):
        cli.parse(TrainConfig, ["--data-dir", "x", "--config", str(tmp_path / "c.yaml")])
    (tmp_path / "c.yaml").write_text("mean: [0.5, null, 0.5]\n")
    with pytest.raises(UsageError, match="--mean: got None, expected a number"):
        cli.parse(TrainConfig, ["--data-dir", "x", "--config", str(tmp_path / "c.yaml")])
    (tmp_path / "c.yaml").write_text("max_hours: 1:30\n")  # 90 in YAML 1.1
    with pytest.raises(UsageError, match="--max-hours: got '1:30', expected a number"):
        cli.parse(TrainConfig, ["--data-dir", "x", "--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    ("outcome", "code"), [(None, 0), (DataError("no photos"), 1), (UsageError("bad"), 2), (StoppedError("saved"), 75)]
)
def test_outcomes_become_exit_codes_and_one_line(
    outcome: Exception | None, code: int, capsys: pytest.CaptureFixture
) -> None:
    def main(config: Small) -> None:
        if outcome is not None:
            raise outcome

    with pytest.raises(SystemExit) as caught:
        cli.run(main, Small, ["--folder", "x"])
    assert caught.value.code == code
    assert capsys.readouterr().err.count("\n") == (outcome is not None)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee"), "a smaller --batch-size"),
        (
            RuntimeError("pool_cuda does not have a deterministic implementation, but you set '...'.\nYou"),
            "pool_cuda has",
        ),
        (InterruptedError(errno.EINTR, "Interrupted system call", "run"), "run: interrupted system call"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected", "in"), "in: transport endpoint is not"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: ."),
            "the machine's memory is full",
        ),
    ],
)
def test_errors_of_a_gpu_and_of_limits_are_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture) -> None:
    def main(config: Small) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run(main, Small, ["--folder", "x"])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert line in said


@pytest.mark.parametrize("job", sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")))
def test_help_comes_without_torch(job: str) -> None:
    code = (
        f"import sys; sys.argv = ['{job}.py', '--help']; from jobs.{job} import cli\n"
        "try: cli()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'accelerate', 'PIL', 'openvino', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_an_empty_path_is_not_the_current_folder() -> None:
    """As of --input "$PHOTOS" where that is not set."""
    with pytest.raises(UsageError, match="--input: got '', expected folders"):
        cli.parse(PredictConfig, ["--checkpoint", "C", "--input", ""])


def test_no_more_threads_is_one_line() -> None:
    assert "pass fewer --workers" in explain(RuntimeError("can't start new thread"))


@pytest.mark.parametrize(
    ("config_type", "words"),
    [
        (TrainConfig, ["--data-dir", "D"]),
        (EvaluateConfig, ["--data-dir", "D"]),
        (PredictConfig, ["--input", "D"]),
        (BenchmarkConfig, ["--input", "D"]),
        (ExportConfig, ["--format", "onnx", "--output", "a.onnx", "--checkpoint", "C"]),
        (DemoConfig, ["--checkpoint", "C"]),
    ],
)
def test_every_job_with_many_flags_takes_them_from_a_file(config_type: type, words: list[str], tmp_path: Path) -> None:
    setting = {ExportConfig: "layout: NCHW", DemoConfig: "port: 7"}.get(config_type, "batch_size: 7")
    setting = "images: 7" if config_type is BenchmarkConfig else setting
    (tmp_path / "a.yaml").write_text(f"{setting}\n" + "checkpoint: C\n" * ("checkpoint" in config_type.__annotations__))
    name, _, value = setting.partition(": ")
    assert str(getattr(cli.parse(config_type, ["--config", str(tmp_path / "a.yaml"), *words]), name)) == value


def test_of_two_numbers_the_last_one_counts_and_a_line_says_so(capsys: pytest.CaptureFixture) -> None:
    """A script adds to a common command; which of two folders is meant nobody can know."""
    assert cli.parse(TrainConfig, ["--data-dir", "x", "--lr", "0.1", "--epochs", "1", "--lr", "0.025"]).lr == 0.025
    assert capsys.readouterr().err == "warning: --lr is given twice (0.1, then 0.025): 0.025 counts\n"
    with pytest.raises(UsageError, match="--data-dir is given twice"):
        cli.parse(TrainConfig, ["--data-dir", "x", "--data-dir", "y"])


@pytest.mark.parametrize(
    "make",
    [
        lambda size: PredictConfig(checkpoint=Path("a"), input=Path("b"), batch_size=size),
        lambda size: EvaluateConfig(checkpoint=Path("a"), data_dir=Path("b"), batch_size=size),
        lambda size: check_flags(TrainConfig(data_dir=Path("a"), batch_size=size)),
        lambda size: BenchmarkConfig(checkpoint=Path("a"), input=Path("b"), batch_sizes=(8, size)),
    ],
    ids=["predict", "evaluate", "train", "benchmark"],
)
def test_a_batch_that_no_machine_holds_is_refused_at_once(make) -> None:
    make(MAX_BATCH_SIZE)
    with pytest.raises(UsageError, match="--batch-sizes?: got 1000000000, expected at most 65536"):
        make(10**9)


@pytest.mark.parametrize(
    ("flag", "value"), [("epochs", 10**26), ("grad_accum_steps", 10**9), ("views", 10**26), ("warmup_epochs", 1e308)]
)
def test_a_count_that_would_fill_the_memory_is_refused_at_once(flag: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{flag.replace('_', '-')}: got .*, expected at most 1000000"):
        check_flags(TrainConfig(data_dir=Path("a"), **{flag: value}))


@pytest.mark.parametrize(("flag", "value", "most"), [("rotation", 720.0, 180), ("color_jitter", 2.0, 1)])
def test_a_view_that_cannot_be_names_its_flag(flag: str, value: float, most: int) -> None:
    with pytest.raises(UsageError, match=f"^--{flag.replace('_', '-')}: got {value}, expected at most {most}$"):
        check_flags(TrainConfig(data_dir=Path("a"), **{flag: value}))


def test_loader_processes_that_would_stop_the_machine_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match="--workers: got 3000, expected at most .* on this machine"):
        check_flags(TrainConfig(data_dir=Path("a"), workers=3000))
    with pytest.raises(UsageError, match="--workers: got 3000, expected at most .* on this machine"):
        EvaluateConfig(checkpoint=Path("a"), data_dir=Path("b"), workers=3000)
