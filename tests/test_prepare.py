"""jobs/prepare.py: subcommands, exit codes, one line for a mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowers import cli
from flowers.config.prepare import CheckConfig, PrepareConfig, SampleConfig
from jobs.prepare import main

ROOT = Path(__file__).parents[1]


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, PrepareConfig, [str(word) for word in argv])
    return stopped.value.code


def test_a_subcommand_chooses_its_config():
    assert cli.parse(PrepareConfig, ["sample", "--species", "3"]) == SampleConfig(species=3)
    assert cli.parse(PrepareConfig, ["check", "--data", "d", "-j", "2"]) == CheckConfig(Path("d"), workers=2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "sample, oxford102 or check"),
        (["draw"], "draw"),
        (["sample", "--seeds", "1"], "--seed"),
        (["sample", "--train", "many"], "--train"),
        (["check"], "--data-dir"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(argv, message, capsys):
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_sample_then_check(tmp_path, capsys):
    sizes = ["--species", 2, "--train", 2, "--valid", 1, "--test", 0, "--image-size", 64]
    assert run("sample", "--output-dir", tmp_path / "set", *sizes) == 0
    assert "6 drawn photos of 2 species" in capsys.readouterr().out
    assert run("check", "--data-dir", tmp_path / "set", "--output", tmp_path / "check.json") == 0
    assert "Training would start." in capsys.readouterr().out
    assert json.loads((tmp_path / "check.json").read_text())["images"] == 6
    assert run("check", "--data-dir", tmp_path / "set", "--output", tmp_path) == 1
    said = capsys.readouterr()
    assert "this is a folder, a file name was expected" in said.err
    assert "Images" not in said.out, "it is told before the photos are read"
    shutil.rmtree(tmp_path / "set/train/2")
    assert run("check", "--data-dir", tmp_path / "set") == 1
    assert "Training would fail" in capsys.readouterr().out
    assert run("check", "--data-dir", tmp_path / "nowhere") == 1
    assert "no such folder" in capsys.readouterr().err


def test_oxford102_without_its_files_is_one_line(tmp_path, capsys):
    assert run("oxford102", "--output-dir", tmp_path / "set", "--source-dir", tmp_path) == 1
    error = capsys.readouterr().err
    assert "no 102flowers.tgz in" in error
    assert error.count("\n") == 1


def test_help_answers_at_once_and_loads_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['prepare.py', 'check', '--help']\n"
        "from jobs.prepare import cli\n"
        "try: cli()\nexcept SystemExit as stopped: assert not stopped.code\n"
        "heavy = {'torch', 'torchvision', 'PIL', 'scipy', 'numpy', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
