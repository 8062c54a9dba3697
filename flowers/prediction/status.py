"""The progress of a bulk prediction, read from its files alone: nothing is written, removed or waited for.

The JSON object::

    {"output": ..., "state": "not started", "listing", "running", "stopped", "finished", "damaged" or "foreign",
     "files": n, "files_done": n, "shards": n, "shards_done": n, "counts": {status: n},
     "files_per_s": x, "left_s": x, "engine": {...}, "why": of the states not started, damaged and foreign}

Numbers that are not known (yet) are null. A table that is finished and being updated has the state of the update, and
``"table": "finished"``.
"""

import collections
import contextlib
import json
from pathlib import Path

from flowers import console
from flowers.config.status import StatusConfig
from flowers.data.paths import readable
from flowers.data.tables import sidecar_path
from flowers.locks import is_held
from flowers.prediction import parts
from flowers.prediction.table import finished_facts
from flowers.prediction.work import DAMAGE, Work, lock_of
from flowers.prediction.work_folder import job_folders, work_folder_of

_MINUTE_S = 60.0
_HOUR_S = 3600.0


def status(config: StatusConfig) -> int:
    """The job: tell.

    Returns:
        0.
    """
    found = describe(config.output)
    if config.json:
        print(json.dumps(found, indent=1, default=str))
        return 0
    counts = ", ".join(f"{count} {name}" for name, count in found["counts"].items())
    rate, left_s = found["files_per_s"], found["left_s"]
    told = [
        ("state", found["state"]),
        ("why", found["why"]),
        ("table", found["table"]),
        ("files", found["files"] and f"{found['files_done']} of {found['files']}"),
        ("shards", found["shards"] and f"{found['shards_done']} of {found['shards']}"),
        ("rows", counts),
        ("speed", rate and f"{rate:,.0f} files/s"),
        ("time left", left_s is not None and _duration(left_s)),
        ("engine", found["engine"] and " ".join(map(str, found["engine"].values()))),
    ]
    console.facts(str(readable(config.output)), [(name, value) for name, value in told if value])
    return 0


def describe(output: Path) -> dict:
    """Describe the state of an output; see the head of this module."""
    found = dict.fromkeys(("files", "files_done", "shards", "shards_done", "files_per_s", "left_s", "engine", "why"))
    found = {"output": str(output), "state": "not started", "table": None, **found, "counts": {}}
    facts = finished_facts(output, None)
    folder = work_folder_of(output)
    jobs = job_folders(folder)
    if jobs:
        try:
            work = Work(max(jobs, key=lambda job: job.stat().st_mtime))
        except (OSError, *DAMAGE):
            if job_folders(folder) != jobs:  # one has ended meanwhile
                return describe(output)
            why = f"{readable(jobs[0])} is damaged; the command that began it mends it"
            return found | {"state": "damaged", "why": why}
        return found | {"table": facts and "finished"} | _of_work(work)
    if facts:
        return found | {
            "state": "finished",
            "files": facts["files"],
            "files_done": facts["files"],
            "counts": facts["counts"],
            "engine": facts.get("engine"),
        }
    if any(folder.glob("new-*")):
        return found | {"state": "listing"}
    if sidecar_path(output).exists() and output.exists():
        why = f"{readable(output)} is not as {readable(sidecar_path(output).name)} beside it says"
        return found | {"state": "damaged", "why": why}
    if output.exists():
        return found | {"state": "foreign", "why": "the table has no JSON beside it: it was not made by predict.py"}
    return found | {"why": "neither the table nor the folder of a job that makes it is there"}


def _of_work(work: Work) -> dict:
    lock, began_s = lock_of(work.folder), 0.0
    with contextlib.suppress(FileNotFoundError):
        began_s = lock.stat().st_mtime  # each start signs it
    done: dict[int, float] = {}
    counts: collections.Counter = collections.Counter()
    with contextlib.suppress(FileNotFoundError):  # the job ends meanwhile
        for index in sorted(parts.finished(work.parts)):
            facts = parts.peek(work.parts, index)
            if facts is not None and index < work.files.num_shards:
                done[index] = (work.parts / parts.part_name(index)).stat().st_mtime
                counts.update(facts["counts"])
    files_done = sum(map(work.size, done))
    by_time = sorted((time_s, index) for index, time_s in done.items() if time_s >= began_s)
    rate = None
    if len(by_time) > 1 and by_time[-1][0] > by_time[0][0]:
        rate = sum(work.size(index) for _, index in by_time[1:]) / (by_time[-1][0] - by_time[0][0])
    elif by_time and by_time[0][0] > began_s > 0:
        rate = sum(work.size(index) for _, index in by_time) / (by_time[-1][0] - began_s)
    return {
        "state": "running" if is_held(lock) else "stopped",
        "files": work.num_files,
        "files_done": files_done,
        "shards": work.files.num_shards,
        "shards_done": len(done),
        "counts": dict(counts),
        "files_per_s": rate,
        "left_s": (work.num_files - files_done) / rate if rate else None,
        "engine": work.peek_engine(),
    }


def _duration(seconds: float) -> str:
    if seconds >= _HOUR_S:
        return f"{seconds / _HOUR_S:.1f} h"
    return f"{seconds / _MINUTE_S:.1f} min" if seconds >= _MINUTE_S else f"{seconds:.0f} s"
