"""Every command that slurm/README.md and the scripts' own headers show: run, or tried with --test-only or --dry-run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import ROOT, Cluster

pytestmark = pytest.mark.slurm

README = (ROOT / "slurm" / "README.md").read_text()
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)]
SBATCH = re.compile(r"(?<!\.)\bsbatch ")
HEADERS = {
    script.name: re.findall(r"^#   (sbatch .*(?:\\\n#.*)?)", script.read_text(), re.MULTILINE)
    for script in (ROOT / "slurm").glob("*.sbatch")
}


@pytest.fixture(scope="module")
def finished(cluster: Cluster) -> str:
    """The number of a job that has ended well."""
    output = f"--output={cluster.folder}/%j.out"
    job = cluster.job(cluster.run("sbatch", "--parsable", output, "--wrap", "true").stdout)
    job.wait()
    return job.number


@pytest.fixture
def login(cluster: Cluster, checkout: Path, reference: Path, finished: str):
    """Runs lines of shell in a folder like a user's checkout, with a trained model in it."""
    shutil.copytree(reference, checkout / "runs" / "g")

    def login(lines: str) -> subprocess.CompletedProcess:
        environment = cluster.environment | {"PATH": f"{sys.prefix}/bin:{cluster.environment['PATH']}"}
        lines = lines.replace("ARRAY_JOB", finished)
        return subprocess.run(
            ["bash", "-euc", lines], cwd=checkout, env=environment, capture_output=True, text=True, timeout=150
        )

    return login


def tried(line: str) -> str:
    """The line with which a command only tries what it would do."""
    return SBATCH.sub("sbatch --test-only ", line.replace("slurm/submit.sh ", "slurm/submit.sh --dry-run "))


def test_first_job_as_the_readme_says(login, checkout: Path, cluster: Cluster) -> None:
    shutil.rmtree(checkout / "data" / "sample")
    block = BLOCKS[0]
    assert "prepare.py sample" in block
    assert "tail -f" in block
    block = block.replace("prepare.py sample", "prepare.py sample --species 3 --train 4 --valid 2 --test 2")
    block = re.sub(r"^(tail -f.*)", r"sleep 1; timeout 2 \1 || [[ $? == 124 ]]", block, flags=re.MULTILINE)
    shown = login(block)
    assert shown.returncode == 0, shown.stderr
    dry, *_ = (line for line in shown.stderr.splitlines() if line.startswith("sbatch "))
    assert "--gpus-per-node=1" in shlex.split(dry)
    assert f"{checkout}/slurm/train.sbatch" in shlex.split(dry)
    assert re.search(r"train is job (\d+); log: .*/runs/a/slurm/train-\1.log", shown.stderr)
    assert (checkout / "data" / "sample" / "train").is_dir()
    assert "start 1: train on" in shown.stdout  # from tail -f


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_blocks_of_the_readme(block: str, login) -> None:
    done = login(tried(block))
    assert done.returncode == 0, done.stderr
    commands = len(SBATCH.findall(block)) + block.count("slurm/submit.sh ")
    assert commands > 0
    started = len(re.findall(r"sbatch: Job \d+ to start at", done.stderr))
    printed = len(re.findall(r"^sbatch --parsable .*slurm/\w+\.sbatch", done.stderr, re.MULTILINE))
    assert started + printed >= commands


@pytest.mark.parametrize("script", sorted(HEADERS))
def test_headers_of_the_scripts(script: str, login) -> None:
    assert HEADERS[script], "the script does not say how it is submitted"
    for command in HEADERS[script]:
        line = re.sub(r"\\\n#", " ", command)
        line = line.replace("runs/a", "runs/g").replace("data/flowers102", "data/sample").replace("--array=3,7 ...", "")
        done = login(tried(line))
        assert done.returncode == 0, (line, done.stderr)
        assert "to start at" in done.stderr


def test_what_slurm_would_not_take_is_refused_before_it_queues(login) -> None:
    flags = "--data-dir data/sample --weights none --output-dir runs/x"
    for sbatch_flags, reason in [
        ("--partition=nowhere", "Slurm would not take this job: invalid partition specified: nowhere"),
        ("--gpus-per-node=99", "Slurm would not take this job"),
        ("--time=5", "--time=5: the warning comes 300 s before the end"),
        ("-t 5", "--time=5: the warning comes 300 s before the end"),
        ("--after 12x", "--after: got '12x', expected a job number"),
    ]:
        before = sbatch_flags if sbatch_flags.startswith("--after") else ""
        done = login(f"slurm/submit.sh {before} train {sbatch_flags if not before else ''} -- {flags}")
        assert done.returncode != 0
        assert reason in done.stderr
        assert done.stdout == ""


def test_array_that_would_leave_photos_out_is_refused(login) -> None:
    done = login("slurm/submit.sh predict --array=1-8 -- --checkpoint runs/g --input photos --output out/p.csv")
    assert done.returncode == 1
    assert "--array: got 1-8, expected 0-N for N + 1 tasks" in done.stderr
    assert done.stdout == ""


def test_last_job_of_an_array_goes_where_the_array_goes(login) -> None:
    flags = "--checkpoint runs/g --input photos --output out/p.csv --strict"
    done = login(f"slurm/submit.sh --dry-run predict -p main --account=mine --gpus-per-node=1 -a 0-2 -- {flags}")
    assert (done.returncode, done.stdout) == (0, "MERGE_JOB\n"), done.stderr
    array, merge = (shlex.split(line) for line in done.stderr.splitlines() if line.startswith("sbatch "))
    assert {"main", "--account=mine", "-a", "--gpus-per-node=1"} <= set(array)
    assert {"main", "--account=mine", "-a", "--gpus-per-node=1"} & set(merge) == {"main", "--account=mine"}
    assert "--dependency=afterok:PREDICT_JOB" in merge
    assert (array[-1], merge[-1]) == ("--no-strict", "--strict")  # else one bad photo would cancel the last job
