"""Values in JSON and YAML that are allowed there and of no use to anybody."""

import errno
import json
from pathlib import Path

import pytest

from flowers.cli import parse
from flowers.config.train import TrainConfig
from flowers.data.classes import display_names
from flowers.data.grouping import group_images
from flowers.data.lists import read_paths
from flowers.data.splits import read_split
from flowers.data.tables import read_rows
from flowers.errors import CheckpointError, DataError, ModelError, UsageError
from flowers.models.state_dicts import read_class_list
from flowers.models.weight_files import read_states
from flowers.parsing import MOST_DEPTH, parse_json, read_mapping, read_yaml
from flowers.prediction.status import describe
from flowers.training.checkpoint import load_checkpoint

ODD = {
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep mapping": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "not a number": '{"a": NaN}',
    "infinite": "[-Infinity]",
    "too large": "[1e400]",
    "more digits than Python reads": "[" + "1" * 5000 + "]",
    "half a character": '{"1": "\\ud800"}',
    "half of a name": '{"\\uDFFF": 1}',
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_json_is_one_line_wherever_it_is_read(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="."):
        parse_json(text)
    file = tmp_path / "config.json"
    for name in (file, tmp_path / "list.jsonl", tmp_path / "model.safetensors.index.json", tmp_path / "state.json"):
        name.write_text(text + "\n")
    for error, read in (
        (DataError, lambda: display_names(("1",), tmp_path, file)),
        (DataError, lambda: read_class_list(file)),
        (DataError, lambda: read_split(file)),
        (DataError, lambda: group_images(["a.jpg"], (str(file),))),
        (DataError, lambda: list(read_paths(tmp_path / "list.jsonl"))),
        (DataError, lambda: list(read_rows(tmp_path / "list.jsonl"))),
        (ModelError, lambda: read_states(tmp_path / "model.safetensors.index.json")),
        (CheckpointError, lambda: load_checkpoint(tmp_path)),
    ):
        with pytest.raises(error) as caught:
            read()
        assert len(str(caught.value).splitlines()[0]) == len(str(caught.value)) < 500


def test_a_class_that_is_named_twice(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"1": "rose", "2": "tulip", "1": "daisy"}')
    with pytest.raises(DataError, match=r"names\.json: not JSON: '1' stands there twice"):
        display_names(("1", "2"), tmp_path, tmp_path / "names.json")


def test_names_that_are_not_utf8_and_plain_values_are_kept() -> None:
    values = {"a": [1, 2.5, None, True, "\udcff.jpg", "\U0001f33c"], "b": {}}
    assert parse_json(json.dumps(values)) == values
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]
    assert parse_json("[" * MOST_DEPTH + "]" * MOST_DEPTH)


@pytest.mark.parametrize(("text", "found"), [('{"a": 1}', {"a": 1}), ("[1]", {}), ('{"a": ', {}), (None, {})])
def test_what_an_earlier_start_left_counts_if_it_is_a_mapping(text: str | None, found: dict, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "left.json").write_text(text)
    assert read_mapping(tmp_path / "left.json") == found


def test_what_a_disk_does_not_tell_is_not_taken_for_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read, unlike an open, fails without the name of the file."""
    (tmp_path / "left.json").write_text('{"a": 1}')
    errors = [OSError(errno.EIO, "I/O error")]
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        if errors:
            raise errors.pop()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert read_mapping(tmp_path / "left.json") == {"a": 1}
    errors.append(OSError(errno.EPERM, "Operation not permitted"))
    with pytest.raises(OSError, match="left.json"):
        read_mapping(tmp_path / "left.json")


def test_yaml_of_few_letters_that_stand_for_billions_of_values(tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)))
    with pytest.raises(UsageError, match="too many values"):
        parse(TrainConfig, ["--data-dir", "x", "--config", str(file)])
    for text, message in (("a: &a [*a]", "deeper"), ("lr: .nan", "finite"), ('a: "\\ud800"', "half a character")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_yaml(file)
    file.write_text("a: &a [1, 2]\nb: *a\n")
    assert read_yaml(file) == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("known", ['{"settings": {}}', '{"settings": {}, "output": {"bytes": 5}, "files": "1"}'])
def test_sidecar_without_what_it_needs_is_none(known: str, tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("path\n")
    (tmp_path / "o.json").write_text(known)
    assert describe(tmp_path / "o.csv")["state"] == "damaged"
