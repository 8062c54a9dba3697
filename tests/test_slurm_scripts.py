"""What the Slurm scripts do that needs no Slurm: checks before a job, staging, lint."""

import argparse
import importlib.util
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flowers.errors import DataError, FlowersError, ModelError, ProcessError, UsageError

ROOT = Path(__file__).parents[1]
USER = os.getuid()


@pytest.fixture(scope="module")
def preflight() -> ModuleType:
    """slurm/preflight.py; it is a script, not a part of the package."""
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "slurm" / "preflight.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script takes the name of the job whose flags it reads."""
    monkeypatch.setattr(sys, "argv", ["preflight.py"])


def test_scripts_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [path for pattern in ("*.sh", "*.sbatch", "*.example") for path in (ROOT / "slurm").glob(pattern)]
    assert len(scripts) > 8
    subprocess.run(["shellcheck", *scripts, *(ROOT / "tests" / "slurm").glob("*.sh")], cwd=ROOT, check=True)


def test_flags_become_what_the_scripts_go_by(preflight, sample_set: Path, tmp_path: Path, capsys) -> None:
    run_dir = tmp_path / "my runs" / "a"
    assert preflight.main(["flags", "train", "--data-dir", str(sample_set), "--output-dir", str(run_dir)]) == 0
    found = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: shlex.split(value)[0] for name, value in found.items()} == {
        "data": str(sample_set),
        "data_flag": "--data-dir",
        "run_dir": str(run_dir),
        "log_dir": str(run_dir / "slurm"),
    }


def test_flag_of_the_screen_is_the_jobs_own(preflight, sample_set: Path, capsys) -> None:
    assert preflight.main(["flags", "train", "--data-dir", str(sample_set), "--log", "json"]) == 0
    assert preflight.main(["flags", "train", "--data-dir", "nowhere", "--log=json"]) == 1
    assert "error: --data-dir nowhere: no such file" in capsys.readouterr().err


def test_help_is_nothing_to_go_on_with(preflight, capsys) -> None:
    assert preflight.main(["flags", "train", "--help"]) == 2
    said = capsys.readouterr()
    assert "usage: python jobs/train.py --data-dir" in said.err
    assert said.out == ""  # which the scripts would run
    assert "--data-dir" in said.err


def test_logs_of_predictions_lie_beside_the_output(preflight, sample_set: Path, tmp_path: Path) -> None:
    files = ["--input", str(sample_set / "test"), "--output", str(tmp_path / "out.csv.gz")]
    found = preflight.check_flags("predict", ["--checkpoint", str(tmp_path), *files], later=False)
    assert (found["run_dir"], found["log_dir"]) == (tmp_path, tmp_path / "out-slurm")
    found = preflight.check_flags("predict", ["--checkpoint", "not/yet", *files], later=True)
    assert found["data_flag"] == "--input"
    assert found["data"] == sample_set / "test"
    several = ["--checkpoint", str(tmp_path), "--input", str(sample_set / "test"), str(tmp_path / "*.jpg")]
    assert preflight.check_flags("predict", several, later=False)["data"] == Path("/dev/null")
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        preflight.check_flags("predict", [*several, "nowhere"], later=False)
    with pytest.raises(UsageError, match="a batch job has no standard input"):
        preflight.check_flags("predict", ["--checkpoint", str(tmp_path), "--input", "-"], later=False)


@pytest.mark.parametrize(
    ("job", "flags", "error", "reason"),
    [
        ("train", ["--data-dir", "nowhere"], DataError, "--data-dir nowhere: no such file or folder on "),
        ("train", ["--data-dir", ".", "--epochs", "x"], UsageError, "--epochs"),
        ("train", ["--data-dir", ".", "--weights", "no.pth"], ModelError, "--weights no.pth: no such file on "),
        ("train", ["--data-dir", ".", "--output-dir", "file/run"], FlowersError, "file/run cannot be written on "),
        ("evaluate", ["--data-dir", ".", "--checkpoint", "no"], ModelError, "--checkpoint no: no such folder; train"),
        ("evaluate", ["--predictions", "predictions.csv"], UsageError, "--predictions is scored without a model"),
    ],
)
def test_what_would_fail_is_refused(
    job: str, flags: list[str], error: type, reason: str, preflight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(error, match=reason):
        preflight.check_flags(job, flags, later=False)


def test_little_disk_is_refused(preflight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: argparse.Namespace(free=200 << 20))
    with pytest.raises(FlowersError, match="200 MiB free on its disk, expected at least 1024"):
        preflight.check_writable(tmp_path / "run")


def test_pre_trained_weights_that_are_not_there_are_found_out(preflight, tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    flags = ["--data-dir", str(tmp_path), "--model", "shufflenet_v2_x0_5", "--weights"]
    preflight.check_weights([*flags, "none"])
    with pytest.raises(ModelError, match=r"empty\.pth"):
        preflight.check_weights([*flags, str(tmp_path / "empty.pth")])


@pytest.mark.parametrize("limit", ["10", "9:60", "00:10:00", "0-0:10", "0-00:10:00", "1-0", "0", "UNLIMITED", ""])
def test_time_limits_that_leave_time(limit: str, preflight) -> None:
    preflight.check_times(limit, "300")


def test_lead_that_is_no_number_is_left_to_sbatch(preflight) -> None:
    assert preflight.main(["times", "10", "soon"]) == 0


@pytest.mark.parametrize("limit", ["9", "9:59", "00:09:59", "0-0:09", "0-00:09:59"])
def test_time_limits_that_do_not(limit: str, preflight) -> None:
    with pytest.raises(UsageError, match=f"--time={limit}: the warning comes 300 s before the end"):
        preflight.check_times(limit, "300")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """A node of two, the first one, on which all is well."""
    for name in ("SLURM_GPUS_ON_NODE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NODEID", "0")
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    addresses = {"first": "10.0.0.1", "second": "10.0.0.2", "loop": "127.0.1.1"}

    def look_up(name: str, port: int | None, _family: int) -> list:
        if name not in addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return [(None, None, None, None, (addresses[name], port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "gethostname", lambda: "first")
    return argparse.Namespace(nodes=2, processes=1, head="first", port=port, data=tmp_path, run_dir=tmp_path)


def test_node_that_is_fit(preflight, node: argparse.Namespace) -> None:
    preflight.check_node(node)


def test_node_without_the_data(preflight, node: argparse.Namespace) -> None:
    node.data = Path("/nowhere")
    with pytest.raises(DataError, match="/nowhere is not visible on first: put it on a file system that all nodes"):
        preflight.check_node(node)


def test_node_that_does_not_know_the_first(preflight, node: argparse.Namespace, monkeypatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "second")
    monkeypatch.setenv("SLURM_NODEID", "1")
    preflight.check_node(node)
    node.head = "unknown"
    with pytest.raises(ProcessError, match="second: the first node, unknown, has no address here"):
        preflight.check_node(node)
    node.head = "loop"
    with pytest.raises(ProcessError, match=r"loop, has the address 127\.0\.1\.1 here, which is this node itself"):
        preflight.check_node(node)


def test_node_that_believes_to_be_the_loopback(preflight, node: argparse.Namespace, monkeypatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "loop")
    with pytest.raises(ProcessError, match="GLOO_SOCKET_IFNAME=eth0"):
        preflight.check_node(node)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    preflight.check_node(node)


def test_port_that_is_taken(preflight, node: argparse.Namespace) -> None:
    with socket.socket() as other:
        other.bind(("", node.port))
        other.listen()
        with pytest.raises(ProcessError, match=f"port {node.port} is taken: set FLOWERS_PORT"):
            preflight.check_node(node)


def test_small_shared_memory_is_warned_of(preflight, node: argparse.Namespace, monkeypatch, capsys) -> None:
    free = {"/dev/shm": 64 << 20}
    monkeypatch.setattr(
        preflight.shutil, "disk_usage", lambda path: argparse.Namespace(free=free.get(str(path), 1 << 40))
    )
    preflight.check_node(node)
    assert "64 MiB free in /dev/shm" in capsys.readouterr().err


def test_missing_job_number_is_told() -> None:
    done = subprocess.run(["bash", ROOT / "slurm" / "submit.sh", "--after"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (2, "--after: got '', expected a job number\n")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["trian", "--", "--data-dir", "x"], "got 'trian', expected train, train_multinode, evaluate or predict"),
        (["train", "--gpus-per-node=1", "--data-dir", "x"], "expected -- between sbatch's flags and the job's own"),
        (["--dry-run"], "expected train, train_multinode, evaluate or predict"),
    ],
)
def test_wrong_word_is_told_below_the_usage(words: list[str], reason: str) -> None:
    done = subprocess.run(["bash", ROOT / "slurm" / "submit.sh", *words], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"flowers: error: {reason}")


def test_log_lies_in_a_folder_whose_name_has_what_slurm_would_replace(tmp_path: Path, sample_set: Path) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    flags = ["--data-dir", sample_set, "--output-dir", tmp_path / "50%j", "--weights", "none"]
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "submit.sh", "--dry-run", "train", "--", *flags],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FLOWERS_VENV": sys.prefix},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"--output={tmp_path}/50%%j/slurm/train-%j.log " in done.stderr, done.stderr


def common(lines: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run lines of a batch script that has read slurm/common.sh; ``folder`` holds what stands in for Slurm."""
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **environment}
    script = f"root={shlex.quote(str(ROOT))}; source slurm/common.sh; {lines}"
    return subprocess.run(["bash", "-c", script], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)


def test_site_file_may_read_variables_that_are_not_set(tmp_path: Path) -> None:
    site = tmp_path / "site.sh"
    site.write_text(f"[ -z $CONDA_BACKUP_CC ]\nFLOWERS_VENV={shlex.quote(sys.prefix)}\n")  # as conda's own scripts do
    done = common('find_python; echo "$python"; echo $unset', tmp_path, FLOWERS_SITE=str(site))
    assert done.stdout == f"{sys.prefix}/bin/python\n", done.stderr
    assert "unset: unbound variable" in done.stderr  # ours are strict


@pytest.mark.parametrize("name", ["FLOWERS_MAX_REQUEUES", "FLOWERS_STOP_TIMEOUT", "FLOWERS_PORT", "FLOWERS_SHARDS"])
def test_number_that_is_none_is_told_at_once(name: str, tmp_path: Path) -> None:
    done = common("find_python; echo found", tmp_path, **{name: "x1", "FLOWERS_VENV": sys.prefix})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"flowers: error: {name}: got 'x1', expected a number\n"


@pytest.mark.parametrize(("job", "is_replaced"), [("train", False), ("evaluate", False), ("predict", True)])
def test_a_run_remembers_the_users_path_of_staged_data(job: str, is_replaced: bool, tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "disk" / f"flowers-{os.getuid()}-7" / "data"
    data.mkdir()
    flag = "--input" if job == "predict" else "--data-dir"
    lines = f"""job={job} data={data} data_flag={flag} flags=({flag} {data} --topk 2)
        on_every_node() {{ :; }}
        stage_data > /dev/null
        echo "${{flags[@]}}"; echo "${{FLOWERS_STAGED:-}} ${{FLOWERS_STAGED_COPY:-}}" """
    done = common(lines, tmp_path, FLOWERS_LOCAL=str(tmp_path / "disk"))
    flags = f"--topk 2 {flag} {copy}" if is_replaced else f"{flag} {data} --topk 2"
    assert done.stdout.splitlines() == [flags, " " if is_replaced else f"{data} {copy}"], done.stderr


@pytest.mark.parametrize(("owner", "left"), [("7", []), ("8", ["stop"])])
def test_own_stop_file_does_not_outlive_the_job(owner: str, left: list[str], tmp_path: Path) -> None:
    programs, run_dir = tmp_path / "bin", tmp_path / "run"
    programs.mkdir()
    run_dir.mkdir()
    (programs / "srun").write_text("#!/bin/sh\nexit 4\n")
    (programs / "srun").chmod(0o755)
    (run_dir / "stop").write_text(f"Slurm job {owner}\n")
    settled = "job=train nodes=1 processes=1 python=python wrap=() flags=() asked_s='' stopped_mark=mark"
    done = common(f"{settled} run_dir={shlex.quote(str(run_dir))}; run_job", programs)
    assert done.returncode == 4, done.stderr
    assert [path.name for path in run_dir.iterdir()] == left


class Node:
    """A node's own disk, and slurm/stage.sh on it."""

    def __init__(self, folder: Path):
        self.disk = folder / "disk"
        programs = folder / "bin"
        programs.mkdir()
        (programs / "squeue").write_text('#!/bin/sh\necho "${ALIVE:-}" | tr " " "\\n"\n')
        (programs / "squeue").chmod(0o755)
        self.path = f"{programs}:{os.environ['PATH']}"

    def stage(self, action: str, job: int, *arguments: Path, alive: str = "") -> subprocess.CompletedProcess:
        """Run the script as a job would."""
        environment = {"PATH": self.path, "SLURM_JOB_ID": str(job), "ALIVE": alive}
        command = ["bash", ROOT / "slurm" / "stage.sh", action, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)

    def target(self, name: str, job: int = 7) -> Path:
        """Where a job's data goes."""
        return self.disk / f"flowers-{USER}-{job}" / name


@pytest.fixture
def disk(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a file, a link to a file, and a name with a space."""
    folder = tmp_path / "my photos"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a b.jpg").write_text("photo")
    (folder / "link.jpg").symlink_to("train/a b.jpg")
    return folder


def test_staged_folder_is_shared_and_goes_with_its_last_user(disk: Node, photos: Path) -> None:
    target = disk.target("my photos")
    assert disk.stage("copy", 7, photos, target).returncode == 0
    assert (target / "train" / "a b.jpg").read_text() == (target / "link.jpg").read_text() == "photo"
    assert not (target / "link.jpg").is_symlink()
    (target / "mark").touch()
    assert disk.stage("copy", 8, photos, target).returncode == 0
    assert (target / "mark").exists(), "it was copied again"
    assert disk.stage("remove", 7, target).returncode == 0
    assert target.exists()
    assert disk.stage("remove", 8, target).returncode == 0
    assert not target.parent.exists()


@pytest.mark.parametrize(("inside", "compression"), [("my photos", ""), (".", "z")])
def test_tar_becomes_the_folder_in_it(disk: Node, photos: Path, inside: str, compression: str, tmp_path: Path) -> None:
    archive = tmp_path / f"data.tar{'.gz' if compression else ''}"
    folder = tmp_path if inside == "my photos" else photos
    subprocess.run(["tar", "-C", folder, f"-c{compression}f", archive, inside], check=True)
    target = disk.target(archive.name)
    done = disk.stage("unpack", 7, archive, target)
    assert done.returncode == 0, done.stderr
    assert (disk.target("data") / "train" / "a b.jpg").read_text() == "photo"


def test_broken_tar_leaves_nothing(disk: Node, tmp_path: Path) -> None:
    (tmp_path / "data.tar").write_text("no tar")
    done = disk.stage("unpack", 7, tmp_path / "data.tar", disk.target("data.tar"))
    assert done.returncode == 1
    assert "data.tar could not be brought to" in done.stderr
    assert not disk.target("data").parent.exists()


def test_copy_cut_off_by_a_kill_is_done_anew(disk: Node, photos: Path) -> None:
    half = disk.target("my photos").parent / "incomplete"
    half.mkdir(parents=True)
    (half / "half.jpg").touch()
    assert disk.stage("copy", 7, photos, disk.target("my photos")).returncode == 0
    assert sorted(path.name for path in disk.target("my photos").iterdir()) == ["link.jpg", "train"]


def test_folders_of_jobs_that_are_gone_are_removed(disk: Node, photos: Path) -> None:
    for job in (3, 4):
        disk.target("old", job).mkdir(parents=True)
    assert disk.stage("copy", 7, photos, disk.target("my photos"), alive="4 7").returncode == 0
    assert sorted(path.name for path in disk.disk.glob("*/")) == [f"flowers-{USER}-4", f"flowers-{USER}-7"]
