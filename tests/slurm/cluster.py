"""A Slurm cluster of several nodes on this machine, for tests: submit, wait, freeze, power off, read logs."""

import os
import random
import re
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

SCRIPT = Path(__file__).with_name("local_slurm.sh")
ROOT = Path(__file__).parents[2]
SUBMIT = ROOT / "slurm" / "submit.sh"
TRAIN = ROOT / "slurm" / "train.sbatch"
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "nsenter", "unshare")
NODES = 5
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "a cluster of one's own needs root"
    path = f"/usr/sbin:/sbin:{os.environ.get('PATH', '')}"
    absent = [name for name in DAEMONS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurmctld slurmd slurm-client munge iproute2 util-linux"
    return None


class Cluster:
    """One cluster, from ``start`` to ``stop``. Files of its own and of its jobs lie under ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.prefix = "".join(random.choices(string.ascii_lowercase, k=5))  # two clusters need two sets of names
        second = os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0"  # and two sets of ports
        self.environment = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "FLOWERS"))
            },
            "SLURM_CONF": str(folder / "slurm.conf"),
            "FLOWERS_VENV": sys.prefix,
            "FLOWERS_LOCAL": str(folder / "local"),
            "TMPDIR": str(folder),
            "LS_PREFIX": self.prefix,
            "LS_PORT": str(20_000 + 40 * random.randrange(200) + 20 * second),
            "LS_GPUS": "8",  # device files like /dev/null: Slurm hands them out, torch does not see them
            "LS_CPUS": "64",
            "LS_CRED": "5",
            "LS_TIMEOUT": "10",
            "LS_KILLWAIT": "15",
        }

    def node(self, number: int) -> str:
        """Name of a node, from 1."""
        return f"{self.prefix}{number}"

    def manage(self, action: str, *arguments: str) -> None:
        """Run ``local_slurm.sh``: start, stop, kill-node, boot-node."""
        subprocess.run(["bash", SCRIPT, action, self.folder, *arguments], env=self.environment, check=True, timeout=120)

    def run(self, *command: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        """Run a command as a user on the login node would, in the checkout."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # srun breaks long lines, also within a character
            timeout=120,
        )
        assert not check or done.returncode == 0, (
            f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def sbatch(self, *arguments: object, **environment: str) -> "ClusterJob":
        """Submit a batch script; its log goes into the cluster's folder."""
        log = ("--parsable", f"--output={self.folder}/%j.out")
        return self.job(self.run("sbatch", *log, *arguments, **environment).stdout)

    def job(self, number: str) -> "ClusterJob":
        """A job by its number, 12 or, of an array, 12_3."""
        return ClusterJob(self, number.strip())

    def boot(self, node: str) -> None:
        """Power a node on again, and let Slurm use it whatever it had made of the loss."""
        self.manage("boot-node", node)
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)


class ClusterJob:
    """A job that was submitted."""

    def __init__(self, cluster: Cluster, number: str):
        self.cluster, self.number = cluster, number

    def facts(self) -> dict[str, str]:
        """What ``scontrol show job`` knows."""
        shown = self.cluster.run("scontrol", "-o", "show", "job", self.number).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    @property
    def state(self) -> str:
        """RUNNING, PENDING, COMPLETED, ..."""
        return self.facts()["JobState"]

    @property
    def log(self) -> str:
        """All that it has printed so far."""
        path = Path(self.facts()["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, timeout_s: float = 150) -> dict[str, str]:
        """Wait for its end, through all requeues."""
        self.wait_for(lambda: self.state in ENDED, "end", timeout_s)
        return self.facts()

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
        """Wait for a condition, or fail with the log."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until_s:
                raise AssertionError(f"job {self.number} did not {what} in {timeout_s} s: {self.facts()}\n{self.log}")
            time.sleep(0.1)

    def workers(self) -> list[int]:
        """Process numbers of the workers that its launchers started, by rank."""
        found, configuration = {}, self.cluster.environment["SLURM_CONF"]
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = dict(word.split("=", 1) for word in (folder / "environ").read_text().split("\0") if "=" in word)
                parent = int(re.search(r"PPid:\s*(\d+)", (folder / "status").read_text())[1])
                launched = Path(f"/proc/{parent}/cmdline").read_text().split("\0")[1:3] == ["-m", "flowers.launch"]
            except (OSError, UnicodeDecodeError, TypeError, ValueError):
                continue
            names = (words.get("SLURM_JOB_ID"), f"{words.get('SLURM_ARRAY_JOB_ID')}_{words.get('SLURM_ARRAY_TASK_ID')}")
            if launched and words.get("SLURM_CONF") == configuration and self.number in names:
                found[int(words.get("RANK", 0))] = int(folder.name)
        return [found[rank] for rank in sorted(found)]

    def freeze_when(self, condition: Callable[[], object], what: str) -> list[int]:
        """Stop the workers' clocks once a condition holds: whatever the machine's speed, they are then mid-run."""
        self.wait_for(condition, what)
        workers = self.workers()
        send(workers, signal.SIGSTOP)
        assert self.state == "RUNNING", self.log
        return workers


def send(processes: Iterable[int], number: int) -> None:
    """Signal some processes."""
    for process in processes:
        os.kill(process, number)


def has_step(run_dir: Path) -> Callable[[], bool]:
    """A condition: this run has saved a checkpoint."""
    return lambda: any((run_dir / "checkpoints").glob("step-*"))


def submit(cluster: Cluster, *arguments: object, **environment: str) -> ClusterJob:
    """Submit through slurm/submit.sh."""
    return cluster.job(cluster.run("bash", SUBMIT, *arguments, **environment).stdout)


def rest(cluster: Cluster) -> str:
    """sbatch's flag for the nodes that the stories leave to the other tests."""
    return f"--exclude={','.join(cluster.node(number) for number in (1, 2, 3))}"


def assert_same_run(run_dir: Path, reference: Path) -> None:
    """Weights, history and metrics are the reference's, bit for bit."""
    for name in ("last/model.safetensors", "best/model.safetensors", "history.jsonl", "metrics.json"):
        assert (run_dir / name).read_bytes() == (reference / name).read_bytes(), name
