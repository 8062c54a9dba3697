"""tests/gpu/run.sh on the CPU: whenever a GPU is at hand, nothing may be left to mend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "gpu" / "run.sh"


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(900)
def test_everything_that_runs_on_a_gpu_runs_on_one_that_is_pretended(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", RUN, "--pretend"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert {test["outcome"] for test in found["tests"]} == {"passed", "skipped"}
    assert all(test["reason"] for test in found["tests"] if test["outcome"] == "skipped")
    assert len(found["measurements"]) > 3
    table = (tmp_path / "results.md").read_text()
    assert all(row["figure"] in table for row in found["measurements"])
