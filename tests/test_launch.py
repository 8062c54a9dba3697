"""The launcher with real processes: who is in the group, who gets signals, whose exit code it is."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jobs_in_processes import Job

from flowers import distributed
from flowers.distributed import take_place
from flowers.environment import check_world_size
from flowers.errors import ProcessError, UsageError
from flowers.launch import LaunchPlan, free_port, main, parse, plan
from flowers.machine import local_world_size

ROOT = Path(__file__).parents[1]
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")

WORKER = """
import json, os, signal, sys, time
rank = os.environ.get("RANK", "0")
{body}
"""
WAITS = """
def stop(number, _):
    os.write(1, f"{{rank}} got {{number}}\\n".encode())
    time.sleep({save_s})
    sys.exit(75)
for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), stop)
open("ready-" + rank, "w").close()
time.sleep(60)
"""


class Launch:
    """A launcher at work, in a folder of its own."""

    def __init__(self, folder: Path, body: str, *flags: str, environment: dict | None = None):
        (folder / "worker.py").write_text(WORKER.format(body=body))
        clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flowers.launch", *flags, "worker.py"],
            cwd=folder,
            env=clean | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)} | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A suite that a shell started in the background ignores it, and so would the launcher.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def ready(self, workers: int) -> None:
        """Wait until so many workers handle signals."""
        wait_for(lambda: len(list(self.folder.glob("ready-*"))) == workers)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


def wait_for(condition: Callable[[], object]) -> None:
    until_s = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    """Starts launchers; what is left of them at the end is killed."""
    started = []

    def start(body: str, *flags: str, **options: object) -> Launch:
        started.append(Launch(tmp_path, body, *flags, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def workers_of(launcher: Launch) -> list[int]:
    children = Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def test_workers_form_one_group(launch, tmp_path: Path) -> None:
    say = f"json.dump({{name: os.environ.get(name) for name in {VARIABLES}}}, open('seen-' + rank, 'w'))"
    environment = {"SLURM_CPUS_ON_NODE": "2", "RANK": "7", "WORLD_SIZE": "9"}  # left over from something around us
    code, _, err = launch(say, "--num-processes", "2", environment=environment).end()
    assert (code, err) == (0, "")
    first, second = (json.loads((tmp_path / f"seen-{rank}").read_text()) for rank in (0, 1))
    assert [first["RANK"], first["LOCAL_RANK"], second["RANK"], second["LOCAL_RANK"]] == ["0", "0", "1", "1"]
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        assert first[name] == second[name] == value
    assert first["MASTER_PORT"] == second["MASTER_PORT"] != "0"
    assert first["OMP_NUM_THREADS"] == "1"


def test_one_process_is_in_no_group(launch) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    code, out, _ = launch("print('RANK' in os.environ, 'MASTER_PORT' in os.environ)", "--num-processes", "1").end()
    assert (code, out) == (0, "False False\n")
    code, out, _ = launch("print('RANK' in os.environ)", "--num-processes", "1", environment=environment).end()
    assert (code, out) == (0, "False\n")


def test_ranks_on_the_second_of_two_machines() -> None:
    group = LaunchPlan(num_processes=6, num_machines=2, machine_rank=1, address="first", port=1234)
    values = group.environment(local_rank=2)
    assert [values[name] for name in VARIABLES[:6]] == ["5", "2", "6", "3", "first", "1234"]


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((75, 75), 75), ((0, 3), 3), ((3, 75), 75), ((0, 2), 2)])
def test_exit_code(launch, codes: tuple[int, int], expected: int) -> None:
    code, _, err = launch(f"sys.exit({codes}[int(rank)])", "--num-processes", "2").end()
    assert (code, err) == (expected, "")


def test_failure_ends_the_others_and_is_the_exit_code(launch) -> None:
    body = "if rank == '1': print('why', file=sys.stderr); sys.exit(2)\ntime.sleep(600)"
    code, _, err = launch(body, "--num-processes", "3").end()
    assert (code, err) == (2, "why\n")


def test_stop_of_one_waits_for_the_others(launch) -> None:
    body = "if rank == '1': sys.exit(75)\ntime.sleep(1)\nprint('saved')\nsys.exit(75)"
    code, out, _ = launch(body, "--num-processes", "2").end()
    assert (code, out) == (75, "saved\n")


def test_killed_worker_is_named(launch) -> None:
    body = "if rank == '1': os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)"
    code, _, err = launch(body, "--num-processes", "2").end()
    assert code == 137
    assert err.startswith("error: rank 1 was ended by SIGKILL; often the machine ran out of memory")


def test_killed_worker_is_named_though_it_pulled_another_down(launch) -> None:
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == "0":
    while not os.path.exists("ready-1"):
        time.sleep(0.01)
    sys.exit(1)
open("ready-1", "w")
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGSEGV)
"""
    code, _, err = launch(body, "--num-processes", "2").end()
    assert (code, err) == (139, "error: rank 1 was ended by SIGSEGV\n")


def test_workers_that_could_not_save_yet_are_named(launch) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_DFL)\nopen('ready-' + rank, 'w')\ntime.sleep(60)"
    launcher = launch(body, "--num-processes", "2")
    launcher.ready(2)
    launcher.process.send_signal(signal.SIGTERM)
    code, _, err = launcher.end()
    assert (code, err) == (143, "error: rank 0 was ended by SIGTERM before it could save\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_reach_every_worker_once(launch, name: str, processes: int) -> None:
    if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup")
    launcher = launch(WAITS.format(save_s=0.2), "--num-processes", str(processes))
    launcher.ready(processes)
    launcher.process.send_signal(getattr(signal, name))
    code, out, err = launcher.end()
    assert sorted(out.splitlines()) == [f"{rank} got {int(getattr(signal, name))}" for rank in range(processes)]
    assert (code, err) == (75, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "no script is given"), (["--num-processes", "two", "x.py"], "got 'two', expected a whole number")],
)
def test_a_wrong_word_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["flowers-launch"])
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert error.endswith("; see flowers-launch --help\n")


def test_a_launcher_that_cannot_start_a_process_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "job.py").touch()
    assert main(["--num-processes", "2", str(tmp_path / "job.py")]) == 1
    assert capsys.readouterr().err == "error: cannot launch: [Errno 11] Resource temporarily unavailable\n"


def test_a_worker_whose_launcher_is_gone_before_it_could_tie_itself_ends() -> None:
    code = (
        "import os; from flowers.launch import die_with; die_with(os.getppid()); die_with(1); print('on', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_a_closed_terminal_does_not_end_the_workers(launch) -> None:
    launcher = launch(WAITS.format(save_s=0.2), "--num-processes", "2")
    launcher.ready(2)
    launcher.process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert launcher.process.poll() is None
    launcher.process.send_signal(signal.SIGTERM)
    code, out, _ = launcher.end()
    assert (code, sorted(out.splitlines())) == (75, [f"{rank} got {int(signal.SIGTERM)}" for rank in range(2)])


def test_worker_that_does_not_end_in_time_is_killed(launch) -> None:
    launcher = launch(WAITS.format(save_s=60), "--num-processes", "2", "--stop-timeout", "0.5")
    launcher.ready(2)
    launcher.process.send_signal(signal.SIGTERM)
    code, _, err = launcher.end()
    assert code == 1
    assert "rank 0, 1 had not ended 0.5 s after SIGTERM" in err


def test_third_interrupt_ends_at_once(launch) -> None:
    launcher = launch(
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nopen('ready-0', 'w')\ntime.sleep(60)", "--num-processes", "1"
    )
    launcher.ready(1)
    for _ in range(3):
        launcher.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert launcher.end()[0] == 1


def test_workers_do_not_outlive_a_killed_launcher(launch) -> None:
    launcher = launch(WAITS.format(save_s=0), "--num-processes", "2")
    launcher.ready(2)
    workers = workers_of(launcher)
    assert len(workers) == 2
    launcher.process.kill()
    wait_for(lambda: not any(is_running(pid) for pid in workers))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stop_leaves_a_mark_for_srun(launch, tmp_path: Path) -> None:
    assert launch("sys.exit(75)", "--num-processes", "1", "--stopped-mark", "mark").end()[0] == 0
    assert (tmp_path / "mark").exists()
    (tmp_path / "mark").unlink()
    assert launch("sys.exit(1)", "--num-processes", "1", "--stopped-mark", "mark").end()[0] == 1
    assert not (tmp_path / "mark").exists()


def test_what_all_find_wrong_is_said_once(launch) -> None:
    body = (
        "from flowers.console import error\nerror('no such folder')\nerror('rank ' + rank)\ntime.sleep(1)\nsys.exit(1)"
    )
    code, _, err = launch(body, "--num-processes", "3").end()
    lines = [line.rpartition(": ")[2] for line in err.splitlines()]
    assert code == 1
    assert sorted(lines) == ["no such folder", "rank 0", "rank 1", "rank 2"]


def test_what_all_find_wrong_is_said_before_the_first_one_ends(launch) -> None:
    body = (
        "from flowers import console\n"
        "if rank == '1':\n"
        "    console._err.print = lambda line: (time.sleep(1), print(line, file=sys.stderr, flush=True))\n"
        "else:\n"
        "    time.sleep(0.5)\n"
        "console.error('no such folder')\n"
        "sys.exit(1)"
    )
    code, _, err = launch(body, "--num-processes", "3").end()
    assert (code, err.count("no such folder")) == (1, 1)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["nowhere.py"], "nowhere.py: no such file"),
        (["flowers-no.py"], "flowers-no.py: no such file; expected a job such as jobs/train.py, or flowers-train"),
        (["--num-processes", "3", "--num-machines", "2", "--machine-rank", "0", *("--main-process-ip", "a")], "port"),
        (["--num-processes", "2", "--num-machines", "2"], "--machine-rank: got -1, expected 0 to 1"),
        (["--num-processes", "2", "--machine-rank", "1"], "--machine-rank: got 1, expected 0 to 0, another on each of"),
        (["--num-processes", "2", "--main-process-port", "70000"], "--main-process-port: got 70000, expected a number"),
        (["--num-processes", "2", "--stop-timeout", "nan"], "--stop-timeout: got nan, expected seconds, more than 0"),
        (["--num-processes", "1000000"], "--num-processes 1000000: expected at most"),
        (["--num-processes", "0"], "--num-processes 0 on --num-machines 1: expected the same number, at least one"),
    ],
)
def test_refusals(flags: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    script = [] if flags[-1].endswith(".py") else [str(ROOT / "jobs" / "train.py")]
    with pytest.raises(UsageError) as refused:
        plan(parse([*flags, *script])[0])
    assert reason in str(refused.value)


def test_a_job_is_its_file_or_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "flowers-train"
    command.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    _, job = parse(["--num-processes", "2", "flowers-train", "--epochs", "3"])
    assert job == [str(command), "--epochs", "3"]


def test_machine_rank_comes_from_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NODEID", "1")
    meeting = ["--main-process-ip", "first", "--main-process-port", "1234"]
    flags = ["--num-processes", "4", "--num-machines", "2", *meeting, str(ROOT / "jobs" / "train.py"), "--epochs", "3"]
    config, job = parse(flags)
    assert plan(config) == LaunchPlan(4, 2, 1, "first", 1234)
    assert job[1:] == ["--epochs", "3"]


def test_a_launcher_that_started_less_than_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "FLOWERS_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    check_world_size(1)
    monkeypatch.setenv("FLOWERS_WORLD_SIZE", "2")
    check_world_size(2)
    with pytest.raises(ProcessError, match="2 processes were asked for but 1 found each other"):
        check_world_size(1)


def test_the_trap_of_accelerate_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu --num_processes 2` sets these, and starts one process."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    for name in (*VARIABLES, "FLOWERS_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    args = launch_command_parser().parse_args(["--cpu", "--num_processes", "2", "job.py"])
    _, environment = prepare_simple_launcher_cmd_env(_validate_launch_command(args)[0])
    for name in environment.keys() - os.environ.keys():
        monkeypatch.setenv(name, environment[name])
    with pytest.raises(ProcessError, match="starts one process whatever its --num_processes says"):
        check_world_size(1)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict]]:
    """As on a machine with GPUs: gives what Accelerate would be started with."""
    for name in (*VARIABLES, "FLOWERS_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
        monkeypatch.setenv(name, "")  # to be taken away again at the end, whoever sets it
        monkeypatch.delenv(name)
    asked: dict = {}

    def accelerator(**options: object) -> SimpleNamespace:
        asked.update(options)
        return SimpleNamespace(num_processes=local_world_size())

    def begin(count: int, **environment: str) -> dict:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        for name, value in {"ACCELERATE_USE_CPU": "False", **environment}.items():
            monkeypatch.setenv(name, value)
        distributed.start()
        return asked

    monkeypatch.setattr("accelerate.Accelerator", accelerator)
    monkeypatch.setattr(distributed, "keep_freed_memory", lambda: None)
    threads = torch.get_num_threads()
    yield begin
    torch.set_num_threads(threads)


@pytest.mark.parametrize("launcher", ["FLOWERS_WORLD_SIZE", "TORCHELASTIC_RUN_ID"])
def test_two_processes_on_a_gpu_are_refused(launcher: str, gpus: Callable) -> None:
    several = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(ProcessError, match="2 processes on this machine, and torch sees 1 GPUs"):
        gpus(1, **several, **{launcher: "4"})


def test_a_gpu_that_is_all_that_each_process_sees_is_enough(gpus: Callable) -> None:
    """As under srun --gpus-per-task=1: another one for each."""
    gpus(1, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")


def test_gpus_that_cannot_talk_directly_are_told_not_to(gpus: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.utils.check_cuda_p2p_ib_support", lambda: True)
    gpus(2)
    assert "NCCL_P2P_DISABLE" not in os.environ
    monkeypatch.setattr("accelerate.utils.check_cuda_p2p_ib_support", lambda: False)
    gpus(2)
    assert os.environ["NCCL_P2P_DISABLE"] == os.environ["NCCL_IB_DISABLE"] == "1"


def test_what_would_split_a_network_is_refused(gpus: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    command = ["--num_processes", "2", "--num_machines", "1", "--use_fsdp", "--mixed_precision", "no"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*command, "job.py"]))
    environment = {name: value for name, value in prepare_multi_gpu_env(args).items() if name.endswith("USE_FSDP")}
    with pytest.raises(UsageError, match="asks for FSDP, which splits a network"):
        gpus(2, **environment)


def test_a_gpu_is_left_alone_on_request(gpus: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "cpu_has_bf16", lambda: False)
    asked = gpus(1)
    assert (asked["cpu"], asked["mixed_precision"]) == (False, "bf16")
    asked = gpus(1, ACCELERATE_USE_CPU="true")  # what launch/cpu.yaml comes to
    assert (asked["cpu"], asked["mixed_precision"]) == (True, "no")
    assert take_place(60).device == "cpu"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    assert take_place(60).device is None


GROUP = """
from flowers.distributed import start
accelerator = start()
seen = accelerator.gather(__import__("torch").tensor([accelerator.process_index])).tolist()
if accelerator.is_main_process:
    print(seen, flush=True)  # os._exit flushes nothing
accelerator.end_training()
os._exit(0)
"""


@pytest.mark.processes
def test_processes_find_each_other(launch) -> None:
    if torch.cuda.is_available():
        pytest.skip("two processes on the CPU are meant; this machine has a GPU")
    code, out, err = launch(GROUP, "--num-processes", "2").end()
    assert (code, out) == (0, "[0, 1]\n"), err


@pytest.mark.processes
@pytest.mark.parametrize(
    ("config", "flags", "seen"),
    [
        ("cpu.yaml", [], ["None/None"]),
        ("one_gpu.yaml", [], ["None/None"]),
        ("multi_gpu.yaml", ["--num_processes", "2"], ["0/2", "1/2"]),
        ("cpu_multi.yaml", ["--num_processes", "2"], ["0/2", "1/2"]),
    ],
)
def test_accelerate_configs(config: str, flags: list[str], seen: list[str], tmp_path: Path) -> None:
    body = "os.write(1, (os.environ.get('RANK', 'None') + '/' + os.environ.get('WORLD_SIZE', 'None') + '\\n').encode())"
    (output,) = accelerate_launch(tmp_path, body, config, flags)
    assert sorted(re.findall(r"^\w+/\w+$", output, re.MULTILINE)) == seen


@pytest.mark.processes
def test_accelerate_config_of_several_machines(tmp_path: Path) -> None:
    meeting = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    ranks = ["--machine_rank", "0"], ["--machine_rank", "1"]
    outputs = accelerate_launch(tmp_path, GROUP, "multi_node.yaml", meeting, *ranks)
    assert [output.splitlines().count("[0, 1]") for output in outputs] == [1, 0]


def accelerate_launch(folder: Path, body: str, config: str, flags: list[str], *machines: list[str]) -> list[str]:
    """What each machine's `accelerate launch` with one of our config files printed."""
    (folder / "worker.py").write_text(WORKER.format(body=body))
    launchers = []
    for number, machine in enumerate(machines or [[]]):
        (folder / str(number)).mkdir()
        command = ["--config_file", ROOT / "launch" / config, *flags, *machine, folder / "worker.py"]
        launchers.append(Job("accelerate.commands.launch:main", command, folder=folder / str(number), before=forget))
    assert [launcher.wait() for launcher in launchers] == [[0]] * len(launchers), [one.output for one in launchers]
    return [launcher.output for launcher in launchers]


def forget() -> None:
    """In a launcher's process: what the tests and Job say of processes is for others."""
    for name in (*VARIABLES, "ACCELERATE_USE_CPU"):
        os.environ.pop(name, None)


def test_flags_of_a_job_under_torchrun() -> None:
    """As --help and launch/README.md say; without the "--", torchrun finds --log ambiguous."""
    from torch.distributed.run import get_args_parser

    flags = get_args_parser().parse_args(["--nproc-per-node", "4", "--", "jobs/train.py", "--log", "plain"])
    assert (flags.training_script, flags.training_script_args) == ("jobs/train.py", ["--log", "plain"])


def test_what_is_piped_in_reaches_the_first_process_only(tmp_path: Path) -> None:
    body = r"os.write(1, f'{rank} {sys.stdin.read()!r}\n'.encode())"  # one write: the two never mix within a line
    (tmp_path / "worker.py").write_text(WORKER.format(body=body))
    done = subprocess.run(
        [sys.executable, "-m", "flowers.launch", "--num-processes", "2", "worker.py"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in VARIABLES} | {"PYTHONPATH": str(ROOT)},
        input="a.jpg\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert sorted(done.stdout.splitlines()) == ["0 'a.jpg\\n'", "1 ''"]


def test_a_check_shows_every_process_and_computes_together(tmp_path: Path) -> None:
    job = Job("flowers.launch_check:check", [], folder=tmp_path, processes=2)
    assert job.wait() == [0, 0], job.output
    assert "2 processes, connected after" in job.output
    assert job.output.count("cpu") == 2
    assert re.search(r"all-reduce of 16 MB: [\d.]+ ms; one step: [\d.]+ ms", job.output)


@pytest.mark.parametrize("words", [["--check", "--num-processes", "3"], ["--num-processes", "3", "--check"]])
def test_a_check_is_a_script_of_the_launcher(words: list[str]) -> None:
    config, job = parse(words)
    assert config.num_processes == 3
    assert Path(job[0]).name == "launch_check.py"
    with pytest.raises(UsageError, match=r"--check stands in the place of a script, got .*train\.py too"):
        parse(["--num-processes", "3", "--check", str(ROOT / "jobs" / "train.py")])
    _, job = parse(["--num_processes=1", str(ROOT / "jobs" / "train.py"), "--check"])
    assert job[1:] == ["--check"]  # the job's own flag, to be refused by it


def test_help_says_where_the_job_stands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "[flags] JOB [flags of the job]" in capsys.readouterr().out
