"""The work folder: one list of files, cut into shards; one part file a shard; nothing done twice, nothing lost.

``OUTPUT.parts/`` holds one folder a job, named by what decides the job's rows (model, list of files, flags), so
that different jobs never mix and equal ones work together::

    predictions.csv.parts/
      workers/TOKEN.json      signs of life            claims/listing    who makes the list
      6f2a91c03b7d/           one job
        job.json              its settings             list.bin, offsets.bin    its files, see filelist.py
        parts/00000012        finished shards          claims/00000013          shards at work
        unfinished            where its embeddings are, if it writes any

A job's folder appears whole, by one rename, and goes in the same way after its output is in place. All of it works
on a network file system and between machines: see workers.py and claims.py for what that takes.
"""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowers.errors import OutputError
from flowers.files import explain_os_error, sync_file
from flowers.prediction import parts
from flowers.prediction.claims import Claims
from flowers.prediction.file_list import Entry, FileList
from flowers.prediction.workers import Worker

POLL_S = 0.2
_MAX_SHARD_BATCHES = 64
_SHARDS_WANTED = 64
_UNFINISHED = "unfinished"


def parent_folder(output: Path) -> Path:
    """Where the work of all jobs on an output is kept: beside it, so that renames work."""
    return output.with_name(f"{output.name}.parts")


def default_shard_size(files: int, batch_size: int) -> int:
    """Files a shard: whole batches, about 64 shards, at most 64 batches each; the number of processes plays no part."""
    batches = -(-files // (batch_size * _SHARDS_WANTED))
    return batch_size * min(max(batches, 1), _MAX_SHARD_BATCHES)


def remove_unfinished(folder: Path) -> None:
    """Remove what the job of a folder that goes left elsewhere, which can be as large as its output."""
    with contextlib.suppress(OSError, ValueError):
        os.unlink((folder / _UNFINISHED).read_bytes())


class Work:
    """One job's folder.

    Attributes:
        settings: all that decides its rows, as plain values.
        listed_by: the Slurm array whose task made the list, if one did.

    Raises:
        FileNotFoundError: the folder is gone: another process has finished the whole job.
        OutputError: it is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.key = folder.name
        try:
            job = json.loads((folder / "job.json").read_text())
            self.files = FileList(folder)
        except ValueError:
            raise OutputError(f"{folder} is damaged: remove it, then start the same command again") from None
        self.settings: dict = job["settings"]
        self.listed_by: str | None = job["listed_by"]
        self.parts = folder / "parts"

    @property
    def num_files(self) -> int:
        """Files in all."""
        return self.settings["files"]

    def size(self, index: int) -> int:
        """Files of one shard."""
        start = index * self.settings["shard_size"]
        return min(self.settings["shard_size"], self.num_files - start)

    def claimed(self, claims: Claims, order: Sequence[int]) -> Iterator[tuple[int, list[Entry]]]:
        """Take shards one by one, in this order, leaving out what is finished or in other hands."""
        done = parts.finished(self.parts)
        for index in order:
            name = parts.part_name(index)
            if index in done or not claims.take(name):
                continue
            if (self.parts / name).exists():
                claims.give_back(name)
                done = parts.finished(self.parts)  # others have come further: one look saves many claims
            else:
                yield index, self.files.shard(index)

    def engine(self) -> dict | None:
        """What the first process to begin runs the network with: all others must do the same."""
        try:
            return json.loads((self.folder / "engine.json").read_text())
        except FileNotFoundError:
            return None

    def settle_engine(self, chosen: dict, worker: Worker) -> dict:
        """Propose what to run the network with; returns what was proposed first.

        Raises:
            FileNotFoundError: the folder is gone: another process has finished the whole job.
            FlowersError: the disk is full.
        """
        proposal = self.folder / f"engine-{worker.token}"
        try:
            proposal.write_text(json.dumps(chosen))
            sync_file(proposal)
            try:
                os.link(proposal, self.folder / "engine.json")
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):  # no hard links on this file system
                    raise
                if self.engine() is None:
                    os.rename(proposal, self.folder / "engine.json")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain_os_error(error, proposal) from error
        proposal.unlink(missing_ok=True)
        return self.engine() or chosen

    def note_unfinished(self, path: Path) -> None:
        """Remember a file outside the folder that is of no use without it: see ``remove_unfinished``.

        Raises:
            FileNotFoundError: the folder is gone: another process has finished the whole job.
            FlowersError: the disk is full.
        """
        try:
            (self.folder / _UNFINISHED).write_bytes(os.fsencode(os.path.abspath(path)))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain_os_error(error, self.folder) from error

    def remove(self) -> None:
        """Take the folder away, at once for all who look."""
        gone = self.folder.with_name(f"gone-{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            os.rename(self.folder, gone)
            shutil.rmtree(gone, ignore_errors=True)
