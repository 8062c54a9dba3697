"""Signs of life: how processes on one machine or many, that share nothing but a folder, know of one another.

A process rewrites a file of its own every few seconds. Whether it is dead is looked up directly on the same machine; on
another one it is after a minute without a sign. No file locks: network file systems differ in what these mean.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from pathlib import Path

from flowers.files import explain_os_error

BEAT_S = 5.0
STALE_S = 60.0
_WIDTH = 1024
_ATTEMPTS = 5


class Worker:
    """This process's sign of life: ``FOLDER/workers/TOKEN.json``, from ``start`` until ``stop``.

    Attributes:
        token: names this process: machine, process number, when it started, and chance.
        launch: names the processes that were launched together.
        job: which work in the folder this process is at; None while it looks.
        done: images this process is done with; others read it to show the progress of all.
        errors: how many of them failed.
    """

    def __init__(self, folder: Path):
        self.token = f"{_machine()}-{os.getpid()}-{_started(os.getpid())}-{uuid.uuid4().hex[:8]}"
        self.launch = self.token
        self.job: str | None = None
        self.done = self.errors = 0
        self.folder = Path(folder)
        self._ended = threading.Event()
        self._beats = 0
        self._file: int | None = None
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        self._watched: dict[str, tuple[bytes, float]] = {}
        self._strangers: set[str] = set()

    @property
    def path(self) -> Path:
        """This process's file."""
        return self.folder / "workers" / f"{self.token}.json"

    def start(self) -> "Worker":
        """Show up.

        Raises:
            FlowersError: the folder cannot be written.
        """
        temporary = self.path.with_suffix(".tmp")
        for attempt in range(_ATTEMPTS):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
                self._beat()
                os.rename(temporary, self.path)
                break
            except OSError as error:
                # The last one of others may just have taken the folders along.
                if not isinstance(error, FileNotFoundError) or attempt == _ATTEMPTS - 1:
                    raise explain_os_error(error, self.folder) from error
        self._thread.start()
        return self

    def stop(self) -> None:
        """Leave; the folders go with the last one."""
        self.sweep()
        self._ended.set()
        self._thread.join()
        os.close(self._file)
        self.path.unlink(missing_ok=True)
        try:
            (self.folder / "workers").rmdir()
        except OSError:  # somebody is there still, or everything is gone already
            return
        for folder in (self.folder / "claims", self.folder):
            with contextlib.suppress(OSError):  # never made, or there is unfinished work
                folder.rmdir()

    def __enter__(self) -> "Worker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def is_alive(self, token: str) -> bool:
        """Whether another process still lives, as far as this one can tell."""
        machine, _, process = token.partition("-")
        if machine == _machine():
            pid, _, started = process.partition("-")
            return pid.isdigit() and _runs(int(pid), started.partition("-")[0])
        path = self.folder / "workers" / f"{token}.json"
        try:
            return self.unchanged_s(str(path), path.read_bytes()) < STALE_S
        except FileNotFoundError:
            return False

    def is_here(self, token: str) -> bool:
        """Whether another process belongs to this machine, so that ``is_alive`` is sure about it."""
        return token.partition("-")[0] == _machine()

    def unchanged_s(self, name: str, content: bytes) -> float:
        """For how long this process has seen something unchanged, by its own clock; clocks of machines differ."""
        before = self._watched.get(name)
        if before is None or before[0] != content:
            self._watched[name] = before = (content, time.monotonic())
        return time.monotonic() - before[1]

    def others(self) -> list[dict]:
        """What the other processes at this folder last wrote: token, launch, job, pid, machine, done, errors."""
        return [info for token in self._tokens() if (info := self._read(token))]

    def peers(self) -> list[dict]:
        """Of ``others`` those of the same launch; strangers are looked at only once."""
        found = []
        for token in self._tokens() - self._strangers:
            info = self._read(token)
            if info.get("launch") == self.launch:
                found.append(info)
            elif info.get("job"):
                self._strangers.add(token)
        return found

    def describe(self, token: str | None) -> str:
        """Where another process runs, for a message."""
        info = self._read(token) if token else {}
        return f"process {info['pid']} on {info['machine']}" if info else "a process that is gone"

    def sweep(self, job: str | None = None) -> None:
        """Remove what dead processes left in the folder, and the signs of all that were at a job that is finished."""
        with contextlib.suppress(OSError):
            for entry in [*os.scandir(self.folder), *os.scandir(self.folder / "workers")]:
                name = entry.name
                abandoned = name.startswith("new-") and not self.is_alive(name.removeprefix("new-"))
                if abandoned or name.startswith("gone-"):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif name.endswith((".json", ".tmp")) and name != self.path.name:
                    token = name.rpartition(".")[0]
                    if not self.is_alive(token) or (job is not None and self._read(token).get("job") == job):
                        Path(entry.path).unlink(missing_ok=True)
            for entry in os.scandir(self.folder / "claims"):
                if not self.is_alive(parse_sign(Path(entry.path).read_bytes()).get("token", "")):
                    Path(entry.path).unlink(missing_ok=True)

    def join(self, job: str, launch: str) -> None:
        """Say which work this process is at, and with whom it was launched."""
        self.job, self.launch = job, launch
        with contextlib.suppress(OSError):
            self._beat()

    def sign(self) -> bytes:
        """What this process's file says now."""
        info = {"token": self.token, "launch": self.launch, "job": self.job, "done": self.done, "errors": self.errors}
        info |= {"pid": os.getpid(), "machine": socket.gethostname(), "beat": self._beats}
        return json.dumps(info).ljust(_WIDTH).encode()

    def _tokens(self) -> set[str]:
        try:
            names = {entry.name for entry in os.scandir(self.folder / "workers")}
        except FileNotFoundError:
            return set()
        return {name.removesuffix(".json") for name in names - {self.path.name} if name.endswith(".json")}

    def _read(self, token: str) -> dict:
        with contextlib.suppress(OSError):
            return parse_sign((self.folder / "workers" / f"{token}.json").read_bytes())
        return {}

    def _beat(self) -> None:
        self._beats += 1
        os.pwrite(self._file, self.sign(), 0)
        os.fsync(self._file)  # other machines see it only after that

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a full disk ends the job elsewhere, with a reason
                self._beat()


def parse_sign(sign: bytes) -> dict:
    try:
        info = json.loads(sign)
    except ValueError:  # read while it was being written
        return {}
    return info if isinstance(info, dict) else {}


@functools.cache
def _machine() -> str:
    """This machine since its last start, and this container's process numbers: where a pid means something."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def _started(pid: int) -> str:
    """When a process started, in ticks since boot: a pid that was given out anew has another one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _runs(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    stat = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):
        if stat.read_text().rpartition(")")[2].split()[0] in "ZX":  # dead, only not yet waited for
            return False
    return not started or _started(pid) in ("", started)
