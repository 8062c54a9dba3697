"""What an installation holds: all of our packages, nothing beside them, and a command for each job."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))


@pytest.fixture(scope="module")
def described() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_all_packages_are_installed_and_lie_in_ours(described: configparser.ConfigParser) -> None:
    found = {".".join(path.relative_to(ROOT).parent.parts) for path in (ROOT / "flowers").rglob("__init__.py")}
    assert set(described["options"]["packages"].split()) == found | {"flowers.jobs"}
    assert described["options"]["package_dir"].split() == ["flowers.jobs", "=", "jobs"]


def test_every_job_is_a_command(described: configparser.ConfigParser) -> None:
    commands = dict(line.split(" = ") for line in described["options.entry_points"]["console_scripts"].split("\n")[1:])
    expected = {f"flowers-{job.replace('_', '-')}": f"flowers.jobs.{job}:cli" for job in JOBS}
    assert commands == {**expected, "flowers-launch": "flowers.launch:cli"}


def test_a_command_needs_no_checkout(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("flowers-status")
    if not command.exists():
        pytest.skip("the project is not installed: pip install -e .")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: flowers-status")
