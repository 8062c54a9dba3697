"""What can be known before a job runs: called by slurm/submit.sh where it is submitted, by slurm/common.sh in the job.

    preflight.py flags [--later] JOB FLAG...        flags and files; prints shell variables
    preflight.py weights train FLAG...              the pre-trained weights of training, fetched if they can be
    preflight.py times LIMIT LEAD                   a time limit that leaves time to save
    preflight.py node --nodes N --processes P ...   this node: GPUs, memory, network, folders

Ends with one line that says what to change, or silently.
"""

import argparse
import contextlib
import glob
import os
import re
import shlex
import shutil
import socket
import sys
from pathlib import Path

from flowers import cli
from flowers.config.evaluate import EvaluateConfig
from flowers.config.predict import PredictConfig
from flowers.config.train import TrainConfig
from flowers.console import error, show_as, warn
from flowers.data.remote import address_of
from flowers.errors import EXIT_USAGE, DataError, FlowersError, ModelError, ProcessError, UsageError

CONFIGS = {"train": TrainConfig, "evaluate": EvaluateConfig, "predict": PredictConfig}
LEAST_DISK_BYTES = 1 << 30
LEAST_SHARED_BYTES = 1 << 30  # loader processes hand their batches over in /dev/shm


def check_flags(job: str, arguments: list[str], later: bool) -> dict[str, object]:
    """Parse a job's flags and look at the files that they name.

    Args:
        later: an earlier job of a chain makes the checkpoint.

    Returns:
        What the batch script goes by: data, data_flag, run_dir, log_dir.

    Raises:
        FlowersError: a flag or file is wrong.
    """
    config = parse(job, arguments)
    if job == "evaluate" and config.predictions is not None:
        raise UsageError("--predictions is scored without a model, in seconds: run jobs/evaluate.py here, no Slurm")
    data, data_flag = (input_of(config), "--input") if job == "predict" else (config.data_dir, "--data-dir")
    if not data.exists():
        raise DataError(f"{data_flag} {data}: no such file or folder on {socket.gethostname()}")
    if job == "train":
        run_dir, log_dir = config.run_dir, config.run_dir / "slurm"
        names_file = "/" in config.weights or Path(config.weights).suffix
        if names_file and not Path(config.weights).exists():
            raise ModelError(f"--weights {config.weights}: no such file on {socket.gethostname()}")
    else:
        checkpoint = config.checkpoint
        if not checkpoint.exists() and not later:
            raise ModelError(f"--checkpoint {checkpoint}: no such folder; train first, or chain with --after")
        run_dir = checkpoint.parent if checkpoint.name in ("best", "last") else checkpoint
        log_dir = run_dir / "slurm"
        if job == "predict":
            run_dir = config.output.parent
            log_dir = run_dir / f"{config.output.name.split('.')[0]}-slurm"
    check_writable(run_dir)
    paths = {"data": data, "run_dir": run_dir, "log_dir": log_dir}
    return {"data_flag": data_flag, **{name: path.absolute() for name, path in paths.items()}}


def input_of(config: PredictConfig) -> Path:
    """The one input of a prediction; of several, the first that is not there, else what every node has.

    Raises:
        UsageError: standard input, which a batch job does not have.
    """
    given = [config.input] if isinstance(config.input, Path) else list(config.input)
    if Path("-") in given:
        raise UsageError("--input -: a batch job has no standard input; write the names into a list file and give that")
    here = [path for path in given if address_of(path) is None]
    missing = [path for path in here if not path.exists() and not glob.has_magic(str(path))]
    if missing or (len(given) == 1 and given[0].exists()):
        return (missing or given)[0]
    return Path(os.devnull)  # is no folder: --stage refuses it


def parse(job: str, arguments: list[str]) -> TrainConfig | EvaluateConfig | PredictConfig:
    """The config of a job, as the job itself would read it.

    ``--log`` is the job's own: what is said here goes to stderr as text, since stdout is for the scripts.

    Raises:
        FlowersError: a flag is wrong.
        SystemExit: after ``--help``.
    """
    arguments = cli.choose_log(arguments)
    show_as("auto")
    sys.argv[0] = f"{job}.py"  # whose --help a message names
    with contextlib.redirect_stdout(sys.stderr):
        return cli.parse(CONFIGS[job], arguments)


def check_weights(arguments: list[str]) -> None:
    """Read the weights that training would start from, which fetches them where there is a network.

    Raises:
        ModelError: they are not there, or do not fit.
    """
    config = parse("train", arguments)
    if config.weights != "none" and config.continue_from is None:
        from flowers.models.backbones import build_backbone
        from flowers.training.flags import with_default_model

        build_backbone(with_default_model(config, None).model, config.weights)


def check_writable(folder: Path) -> None:
    """Make sure that a folder can be made and written, with some space to write to.

    Raises:
        FlowersError: it cannot, or there is hardly any.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise FlowersError(f"{folder} cannot be written on {socket.gethostname()}: choose another place")
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < LEAST_DISK_BYTES:
        raise FlowersError(f"{folder}: {free_bytes >> 20} MiB free on its disk, expected at least 1024: make space")


def check_times(limit: str, lead: str) -> None:
    """Refuse a warning that comes too early to leave time to work, or too late to save.

    Args:
        limit: as sbatch takes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.
        lead: seconds before it at which Slurm's warning comes.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if match is None or not lead.isdecimal():
        return  # UNLIMITED, or something for sbatch to judge
    days, *parts = [None if part is None else int(part) for part in match.groups()]
    parts = [part for part in parts if part is not None]
    if days is None and len(parts) < 3:
        parts.insert(0, 0)
    limit_s = (days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if 0 < limit_s < 2 * int(lead):  # 0 is no limit
        raise UsageError(
            f"--time={limit}: the warning comes {lead} s before the end, so most of it would be lost; give more time, "
            f"or say less with --signal=B:USR1@{max(1, limit_s // 4)}"
        )


def check_node(flags: argparse.Namespace) -> None:
    """Look at this node with the eyes of the job that is about to start on it.

    Raises:
        FlowersError: the job would fail here, hang here or silently run on the CPU.
    """
    host = socket.gethostname()
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if gpus:
        import torch

        seen = torch.cuda.device_count()
        if seen < flags.processes:
            raise ProcessError(
                f"{host}: Slurm gave {gpus} GPUs, torch sees {seen}, for {flags.processes} processes: compare "
                "`nvidia-smi` with the CUDA version of torch; in a container, pass the GPUs on (--nv)"
            )
    if not flags.data.exists():
        raise DataError(f"{flags.data} is not visible on {host}: put it on a file system that all nodes share")
    check_writable(flags.run_dir)
    shared_bytes = shutil.disk_usage("/dev/shm").free
    if shared_bytes < LEAST_SHARED_BYTES:
        warn(f"{host}: {shared_bytes >> 20} MiB free in /dev/shm; if loader processes die of SIGBUS, give -j 0")
    if flags.nodes > 1:
        check_network(host, flags.head, flags.port, uses_gloo=gpus == 0)


def check_network(host: str, head: str, port: int, *, uses_gloo: bool) -> None:
    """Make sure that the nodes can meet.

    Raises:
        ProcessError: the head has no address that is good on this node, or its port is taken.
    """
    is_head = os.environ.get("SLURM_NODEID") == "0"
    try:
        address = socket.getaddrinfo(head, port, socket.AF_INET)[0][4][0]
    except OSError as reason:
        raise ProcessError(f"{host}: the first node, {head}, has no address here ({reason})") from None
    if not is_head and address.startswith("127."):
        raise ProcessError(f"{host}: the first node, {head}, has the address {address} here, which is this node itself")
    if uses_gloo and "GLOO_SOCKET_IFNAME" not in os.environ:
        own = socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]
        if own.startswith("127."):
            raise ProcessError(
                f"{host} has the address {own} for itself, which other nodes cannot reach: put `export "
                "GLOO_SOCKET_IFNAME=eth0`, or what the interface is called, into slurm/site.sh"
            )
    if is_head:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", port))
            except OSError:
                raise ProcessError(f"{host}: port {port} is taken: set FLOWERS_PORT to another one") from None


def main(arguments: list[str]) -> int:
    """Run one of the checks; 0, or the exit code of what is wrong."""
    parser = argparse.ArgumentParser("preflight.py", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    flags = commands.add_parser("flags")
    flags.add_argument("--later", action="store_true")
    flags.add_argument("job", choices=CONFIGS)
    flags.add_argument("arguments", nargs=argparse.REMAINDER)
    weights = commands.add_parser("weights")
    weights.add_argument("job", choices=["train"])
    weights.add_argument("arguments", nargs=argparse.REMAINDER)
    times = commands.add_parser("times")
    times.add_argument("limit")
    times.add_argument("lead")
    node = commands.add_parser("node")
    for name in ("--nodes", "--processes", "--port"):
        node.add_argument(name, type=int, required=True)
    node.add_argument("--head", required=True)
    node.add_argument("--data", type=Path, required=True)
    node.add_argument("--run-dir", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        if given.command == "flags":
            found = check_flags(given.job, given.arguments, given.later)
            print("\n".join(f"{name}={shlex.quote(str(value))}" for name, value in found.items()))
        elif given.command == "weights":
            check_weights(given.arguments)
        elif given.command == "times":
            check_times(given.limit, given.lead)
        else:
            check_node(given)
    except FlowersError as reason:
        error(str(reason))
        return reason.exit_code
    except SystemExit:  # after --help, which starts no job
        return EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
