"""What follows a finished table: photos sorted by class, the page, and the lines that end the job.

Photos go into one folder a class; doing it again changes nothing. A photo keeps its name; where another photo of the
class has that name already, a few letters that come from its path are added (two with the same bytes share one copy).
Unsure photos go to ``_unsure``, unfamiliar ones to ``_unfamiliar``; failed ones stay out. Nothing that is there is ever
overwritten.
"""

import contextlib
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from flowers import console
from flowers.config.predict import PredictConfig
from flowers.data.archives import Archive
from flowers.data.choice import said_left_out
from flowers.data.file_bytes import read_bytes
from flowers.data.paths import decode_path, readable
from flowers.data.remote import address_of
from flowers.data.tables import sidecar_path
from flowers.errors import DataError, ImageError, UsageError
from flowers.files import MAX_NAME_BYTES, explain_os_error, file_beside, make_parents
from flowers.prediction.inputs import input_root, lies_in_input
from flowers.prediction.rows import STATUSES
from flowers.prediction.table import page_path
from flowers.retries import is_there

SHOWN_ON_SCREEN = 10
"""Rows: whoever asks about a few photos need not open the table."""
OF_STATUS = {"unsure": "_unsure", "unfamiliar": "_unfamiliar"}
"""Folders of photos that go to no class."""
_NAME_BYTES = 200


def finish(
    config: PredictConfig,
    rows: Callable[[], Iterator[dict[str, str]]],
    facts: dict,
    check_stop: Callable[[], None],
    *,
    wrote_table: bool = True,
) -> None:
    """Sort photos and write the report as the flags ask, then say what was done.

    Args:
        rows: gives the rows of the table, as ``read_rows`` does.
        facts: what the JSON beside the table says.
        check_stop: raises when the process was asked to stop.
        wrote_table: the table is new too, and is named.

    Raises:
        FlowersError: the disk is full, a place cannot be written, ...
    """
    counts = {status: facts["counts"].get(status, 0) for status in STATUSES}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "ok")
    if config.copy_to or config.link_to:
        sort_photos(config, rows(), check_stop)
    if config.report:
        from flowers.prediction.report import write_report  # decodes photos, which takes torch

        write_report(config, rows(), facts)
    if wrote_table and facts["files"] <= SHOWN_ON_SCREEN:
        console.table("answers", ("photo", "status", "answer", "prob"), [_answer(row) for row in rows()])
    places = {
        "predictions": config.output if wrote_table else None,
        "to look at": page_path(config.output) if config.report else None,
        "how they were made": sidecar_path(config.output) if wrote_table else None,
        "embeddings": config.embeddings,
        "photos by class": config.copy_to or config.link_to,
    }
    written = [(what, readable(place)) for what, place in places.items() if place is not None]
    if recovered := facts.get("recovered_reads"):
        console.say(f"{console.counted(recovered, 'read')} failed at first and worked when tried again")
    score = console.job_command("evaluate", "--predictions", config.output, "--labels", "TRUE_CLASSES.csv")
    left_out = said_left_out(facts.get("left_out") or {})
    console.done(
        f"{console.counted(facts['files'], 'row')} ({said})" + (f"; {left_out}" if left_out else ""), written, [score]
    )


def _answer(row: Mapping[str, str]) -> tuple[str, ...]:
    """A row in short; a table of chosen columns may lack any."""
    said = row.get("label") or row.get("class") or row.get("error") or ""
    return row["path"], row.get("status", ""), said, row.get("prob", "")


def check_target(config: PredictConfig) -> None:
    """Refuse to sort photos to where the next run would find them again.

    Raises:
        UsageError: --copy-to or --link-to lies in the input folder.
    """
    target = config.copy_to or config.link_to
    if target is not None and any(map(address_of, config.input)):
        raise UsageError("--copy-to, --link-to: photos at addresses are not sorted into folders; download them first")
    if target is not None and lies_in_input(config.input, target):
        raise UsageError(f"{readable(target)} lies in the input folder, and would be input next time")


def sort_photos(config: PredictConfig, rows: Iterable[Mapping[str, str]], check_stop: Callable[[], None]) -> None:
    """Copy or link every classified photo as ``--copy-to`` or ``--link-to`` says.

    Args:
        rows: of the finished table, as ``read_rows`` gives them.
        check_stop: raises when the process was asked to stop.

    Raises:
        UsageError: a tar's member cannot be linked to.
        FlowersError: the disk is full or the place cannot be written.
    """
    target = config.copy_to or config.link_to
    root = input_root(config.input)
    folders: dict[tuple[str, str], Path] = {}
    taken = dict.fromkeys(OF_STATUS.values(), "")  # no class's, also where one has that label
    sorted_, failed = 0, 0
    archive = Archive(root)
    with console.progress("sort", None, "photos") as meter:
        for row in rows:
            check_stop()
            if row["status"] == "error":
                failed += 1
                continue
            folder = _folder(target, row, folders, taken)
            try:
                _place(root, decode_path(row["path"]), folder, config.link_to is not None, archive)
            except ImageError as error:
                console.warn(f"{row['path']}: {error}; not sorted")
                failed += 1
                continue
            except OSError as error:
                raise explain_os_error(error, folder) from error
            sorted_ += 1
            meter.advance(1)
    left = f", {failed} left out" if failed else ""
    console.say(f"{console.counted(sorted_, 'photo')} in class folders{left}: {console.plain(readable(target))}")


def folder_name(label: str) -> str:
    """A label as the name of one folder: no slashes, no control characters, not hidden, not too long."""
    name = "".join("_" if char in '/\\:*?"<>|' or not char.isprintable() else char for char in label).strip(" .")
    while len(name.encode()) > _NAME_BYTES:
        name = name[:-1]
    return name or "_"


def _folder(target: Path, row: Mapping[str, str], folders: dict[tuple[str, str], Path], taken: dict[str, str]) -> Path:
    """The folder of a row's class, made if needed; classes whose labels would share one get their own."""
    if row["status"] in OF_STATUS:
        name = OF_STATUS[row["status"]]
        key = ("", name)
    else:
        key = (row["label"], row["class"])
        name = folder_name(row["label"])
        if taken.setdefault(name.lower(), row["class"]) != row["class"]:
            name = folder_name(f"{row['label']} ({row['class']})")
    if key not in folders:
        try:
            make_parents(target / name)
        except OSError as error:
            raise explain_os_error(error, target) from error
        folders[key] = target / name
    return folders[key]


def _place(root: Path, path: str, folder: Path, link: bool, archive: Archive) -> None:
    source = os.path.join(root, path)
    in_archive = not is_there(source)
    if in_archive and not archive.find(path):
        raise ImageError("file not found")
    if in_archive and link:
        raise UsageError(f"--link-to: {readable(path)} lies in an archive; use --copy-to")
    if link:
        put = functools.partial(_link, os.path.abspath(source))
    elif in_archive:
        put = functools.partial(_keep, archive.read(path), None)
    else:
        put = functools.partial(_keep, read_bytes(source), source)
    if any(put(folder / name) for name in _names(path)):
        return
    raise DataError(f"{readable(path)}: all names for it are taken in {readable(folder)}")


def _names(path: str) -> Iterator[str]:
    """Names for a photo in its class folder, the plain one first; none that is longer than file systems take."""
    stem, ending = os.path.splitext(os.path.basename(path))
    letters = hashlib.sha256(os.fsencode(path)).hexdigest()
    for name in (f"{stem}{ending}", f"{stem}-{letters[:8]}{ending}", f"{letters}{ending}"):
        if len(os.fsencode(name)) <= MAX_NAME_BYTES:
            yield name


def _link(source: str, final: Path) -> bool:
    """Make ``final`` a link to ``source``; False if the name is taken."""
    try:
        os.symlink(source, final)
    except FileExistsError:
        return final.is_symlink() and os.readlink(final) == source
    return True


def _keep(data: bytes | bytearray, source: str | None, final: Path) -> bool:
    """Write a photo's bytes to ``final``, with the times and rights of its file; False if the name is taken."""
    if is_there(final):
        return final.is_file() and final.read_bytes() == data
    with file_beside(final) as temporary:  # of no other process's name: tasks of an array may sort at a time
        temporary.write_bytes(data)
        if source is not None:
            with contextlib.suppress(FileNotFoundError):
                shutil.copystat(source, temporary)
        os.rename(temporary, final)
    return True
