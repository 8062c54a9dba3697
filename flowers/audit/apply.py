"""Move or copy photos to the folders of their corrected classes; what was moved is in a journal and can be undone."""

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
from pathlib import Path

from flowers import console
from flowers.config.audit import ApplyConfig
from flowers.data.choice import Choice, refuse_unreadable_folders
from flowers.data.corrections import Corrections, read_corrections
from flowers.data.folders import load_image_folders
from flowers.data.paths import readable
from flowers.data.shards import lies_in_shard
from flowers.errors import DataError, FlowersError, OutputError, system_reason
from flowers.files import explain_os_error, remove, replace_folder, write_atomically
from flowers.parsing import read_json
from flowers.retries import is_there, retries

REMOVED = ".removed"
"""Hidden folder in the data folder, for photos that are left out; listings skip hidden folders."""
JOURNAL = ".corrections-{:04d}.json"
_JOURNAL = re.compile(r"\.corrections-[0-9]{4}\.json")


def apply(config: ApplyConfig) -> int:
    """Move, copy, or undo the last move.

    Returns:
        0.

    Raises:
        DataError: corrections that do not fit the data, or data that are no class folders.
        OutputError: there is nothing to undo, or the place for the copy is taken.
    """
    if not config.data_dir.is_dir():
        raise DataError(f"{readable(config.data_dir)}: no folder; a list is corrected with --corrections in training")
    if config.undo:
        return undo(config.data_dir)
    corrections = read_corrections(config.corrections)
    if config.move and (newest := _newest(config.data_dir)):
        journal, record = newest
        is_same = record["corrections"] == corrections.digest
        if not (record["finished"] or is_same):
            raise OutputError(
                f"{readable(config.data_dir)}: a --move with other corrections was interrupted; start it again to "
                "finish it, or move back with --undo"
            )
        if is_same and (not record["finished"] or _are_moved(config.data_dir, record["moves"])):
            return _carry_out(config.data_dir, journal, record)
    before, after = _classes(config.data_dir, corrections)
    if any(map(lies_in_shard, (str(config.data_dir / path) for path in before))):
        raise DataError(f"{readable(config.data_dir)}: photos in tar shards cannot be moved; train with --corrections")
    outside = next((path for path in corrections.classes if not _class_place(path, before[path])), None)
    if outside is not None:
        raise DataError(f"{readable(outside)}: lies in no class folder of {readable(config.data_dir)}, cannot be moved")
    if config.copy_to is not None:
        return copy(config.data_dir, before, after, config.copy_to)
    moves = []
    taken: set[str] = set()
    one_tree = _is_one_tree(before)
    for path in sorted(corrections.classes):
        target = _in_class(path, before[path], after[path], one_tree) if path in after else f"{REMOVED}/{path}"
        if target != path:
            moves.append((path, _free(config.data_dir, target, taken)))
    return move(config.data_dir, moves, corrections.digest)


def move(data_dir: Path, moves: list[tuple[str, str]], corrections: str) -> int:
    """Move photos, after the journal of all moves is on disk; a start that was killed can be finished or undone.

    Args:
        corrections: digest of the corrections that ask for it.
    """
    if not moves:
        console.say("nothing to move: the photos lie where the corrections want them")
        return 0
    journals = _journals(data_dir)
    number = 1 + (int(journals[-1].stem.rpartition("-")[2]) if journals else 0)
    record = {"format_version": 1, "corrections": corrections, "finished": False, "moves": moves}
    journal = data_dir / JOURNAL.format(number)
    _write_journal(journal, record)
    return _carry_out(data_dir, journal, record)


def undo(data_dir: Path) -> int:
    """Move back what the newest journal says was moved.

    Raises:
        OutputError: there is none, or it is damaged.
    """
    journals = _journals(data_dir)
    if not journals:
        raise OutputError(f"{readable(data_dir)}: no journal, so nothing to undo")
    moves = _read_journal(journals[-1])["moves"]
    done = [(target, path) for path, target in reversed(moves) if is_there(data_dir / target)]
    _rename_all(data_dir, done)
    for _, target in moves:  # all of them: a start that was killed may have moved some back
        _remove_empty_parents(data_dir, target)
    remove(journals[-1])
    console.say(f"{console.counted(len(done), 'photo')} moved back")
    return 0


def copy(data_dir: Path, before: dict[str, str], after: dict[str, str], target: Path) -> int:
    """Copy all photos that are not left out to the folders of their classes in a new folder, whole or not at all.

    Raises:
        OutputError: the folder is there already, or lies in the data folder, where it would be a class.
        DataError: a photo cannot be read.
    """
    if target.exists():
        raise OutputError(f"--copy-to {readable(target)}: is there already; give a new folder")
    if target.resolve().is_relative_to(data_dir.resolve()):
        raise OutputError(f"--copy-to {readable(target)}: lies in {readable(data_dir)}; give a folder outside of it")
    taken: set[str] = set()
    one_tree = _is_one_tree(before)
    with replace_folder(target) as folder:
        for path in after:
            place = folder / _free(folder, _in_class(path, before[path], after[path], one_tree), taken)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy2(data_dir / path, place)
            except OSError as error:
                if error.filename != str(data_dir / path):
                    raise
                raise DataError(f"{readable(data_dir / path)}: cannot be read: {system_reason(error)}") from None
        if (data_dir / "cat_to_name.json").exists():
            shutil.copy2(data_dir / "cat_to_name.json", folder)
    copied = console.counted(len(after), "photo")
    console.say(f"{copied} copied, {len(before) - len(after)} left out: {console.plain(readable(target))}")
    return 0


def _classes(data_dir: Path, corrections: Corrections) -> tuple[dict[str, str], dict[str, str]]:
    """Class folders by path, of all splits: as the photos lie, and as they are corrected, without those left out.

    Raises:
        DataError: the corrections do not fit the data, or not all of it can be seen.
    """
    choice = Choice()
    data = load_image_folders(data_dir, choice=choice, corrections=corrections)
    refuse_unreadable_folders(choice)
    after = {
        path: data.classes.folders[target]
        for samples in data.splits.values()
        for path, target in zip(samples.paths, samples.targets, strict=True)
    }
    return {**after, **corrections.found}, after


def _class_place(path: str, folder: str) -> bool:
    """True if the class is a folder on the path, at the top or in a split."""
    return folder in path.split("/")[:-1][:2]


def _is_one_tree(classes: dict[str, str]) -> bool:
    """True if each path begins with its class, without the folder of a split."""
    return all(path.startswith(f"{folder}/") for path, folder in classes.items())


def _in_class(path: str, old: str, new: str, one_tree: bool) -> str:
    """The path in another class; of rose/rose/1.jpg the class is the first folder only in one tree."""
    parts = path.split("/")
    if old in parts[:2]:
        parts[1 if not one_tree and len(parts) > 2 and parts[1] == old else 0] = new
    return "/".join(parts)


def _free(root: Path, target: str, taken: set[str]) -> str:
    """The name, with a number if there is a file of that name."""
    stem, dot, suffix = target.rpartition(".")
    number, found = 1, target
    while found in taken or is_there(root / found):
        number += 1
        found = f"{stem}-{number}{dot}{suffix}"
    taken.add(found)
    return found


def _journals(data_dir: Path) -> list[Path]:
    names = retries.read(lambda: os.listdir(data_dir))  # a glob takes a folder that cannot be listed for an empty one
    return sorted(data_dir / name for name in names if _JOURNAL.fullmatch(name))


def _write_journal(journal: Path, record: dict) -> None:
    with write_atomically(journal) as file:
        json.dump(record, file, indent=0)


def _read_journal(journal: Path) -> dict:
    """What ``move`` wrote.

    Raises:
        OutputError: it is damaged, or names files that are not in the data folder.
    """
    try:
        record = read_json(journal)
        record["moves"] = [(str(one), str(other)) for one, other in record["moves"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{readable(journal)}: cannot be read ({type(error).__name__})") from None
    for name in itertools.chain(*record["moves"]):
        if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
            raise OutputError(f"{readable(journal)}: names {readable(name)!r}, expected paths below {journal.parent}")
    return record


def _newest(data_dir: Path) -> tuple[Path, dict] | None:
    """The newest journal; None where an earlier version wrote it, which does not tell whose it is and how far it is."""
    journals = _journals(data_dir)
    with contextlib.suppress(OutputError):  # ``undo`` says what is wrong with it
        if journals and {"finished", "corrections"} <= (record := _read_journal(journals[-1])).keys():
            return journals[-1], record
    return None


def _are_moved(data_dir: Path, moves: list[tuple[str, str]]) -> bool:
    """True if the photos lie where a finished start has moved them."""
    return all(is_there(data_dir / target) and not is_there(data_dir / path) for path, target in moves)


def _carry_out(data_dir: Path, journal: Path, record: dict) -> int:
    """Move what the journal names and still lies where it was."""
    _rename_all(data_dir, [(path, target) for path, target in record["moves"] if is_there(data_dir / path)])
    _write_journal(journal, {**record, "finished": True})
    moved = console.counted(len(record["moves"]), "photo")
    console.say(f"{moved} moved; undo with --undo (journal: {console.plain(readable(journal))})")
    return 0


def _remove_empty_parents(data_dir: Path, path: str) -> None:
    """Remove the folders that a move made and its undoing emptied: an empty folder would be a class without photos."""
    with contextlib.suppress(OSError):  # the first one that is not empty
        for parent in list(Path(path).parents)[:-1]:
            with contextlib.suppress(FileNotFoundError):  # it went with another photo
                retries.read(functools.partial(os.rmdir, data_dir / parent))


def _rename_all(data_dir: Path, moves: list[tuple[str, str]]) -> None:
    for path, target in moves:
        try:
            if is_there(data_dir / target):  # never over another photo
                raise FlowersError(f"{readable(target)}: is there already; move it away and start again")
            (data_dir / target).parent.mkdir(parents=True, exist_ok=True)
            os.rename(data_dir / path, data_dir / target)
        except OSError as error:
            raise explain_os_error(error, data_dir / target) from error
