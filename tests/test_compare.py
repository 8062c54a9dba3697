"""jobs/compare.py: tables and page from run folders, finished or not; folders that are no runs in one line."""

import json
from pathlib import Path

import pytest
import yaml

from flowers.cli import parse
from flowers.config.compare import CompareConfig
from flowers.errors import UsageError
from flowers.reports.calibration import wilson_interval
from flowers.reports.comparison import differences, duration, read_runs
from jobs.compare import main as compare

FLAGS = {"data_dir": "photos", "output_dir": "x", "lr": 0.1, "dropout": 0.0, "report": True, "freeze_bn": False,
         "epochs": 3, "scale": [0.5, 1.0]}  # fmt: skip


def make_run(folder: Path, top1: list[float], **flags: object) -> Path:
    """A run folder with so many epochs done: of 200 validation images, 10 s and 50 images/s an epoch."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**FLAGS, "output_dir": str(folder), **flags}, sort_keys=False))
    history = [
        {"event": event, "step": 10 * epoch, "epoch": epoch, "loss": 1 / epoch, "top1": share, "images": 200}
        for epoch, share in enumerate(top1, 1)
        for event in ("valid", "train")
    ]
    timing = [
        {"event": "epoch", "epoch": epoch, "seconds": 10.0, "images_per_s": 50.0, "data_wait_share": 0.0}
        for epoch in range(1, len(top1) + 1)
    ]
    for name, lines in (("history", history), ("timing", timing)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_table_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [
        make_run(tmp_path / "head", [0.5, 0.9, 0.8]),
        make_run(tmp_path / "<b>full", [0.6, 0.7], lr=0.01, dropout=0.5, freeze_bn=True),
    ]
    output = tmp_path / "c.html"
    config = parse(CompareConfig, [str(runs[0]), "--output", str(output), str(runs[1])])
    assert config.runs == tuple(runs)
    assert compare(config) == 0
    said = capsys.readouterr().out
    low, high = wilson_interval(180, 200)
    rows = [[cell.strip() for cell in line.split("│")] for line in said.splitlines() if "│" in line]
    first = ["head", "90.00%", f"{low:.1%} to {high:.1%}", "0.5000", "2", "3", "30.0 s", "50.0"]
    assert rows[0] == first
    assert rows[1][:1] + rows[1][4:] == ["<b>full", "2", "2 of 3", "20.0 s", "50.0"]
    assert rows[2:] == [["--lr", "0.1", "0.01"], ["--dropout", "0.0", "0.5"], ["--freeze-bn", "off", "on"]]
    page = output.read_text()
    assert "<b>full" not in page
    assert page.count("&lt;b&gt;full") > 5
    assert page.count('<svg viewBox="0 0 420') == 4, "top1, two losses, speed; the histories have no rate"
    for cell in first:
        assert f">{cell}</td>" in page


def test_runs_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / place / "run", [0.5]) for place in ("a", "b")]
    runs = read_runs(folders)
    assert [run.name for run in runs] == [str(folder) for folder in folders]
    assert differences(runs) == []


def test_folders_that_are_no_runs_are_named_in_one_line(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", [0.5])
    (tmp_path / "empty").mkdir()
    fresh = make_run(tmp_path / "fresh", [])
    damaged = make_run(tmp_path / "damaged", [0.5])
    (damaged / "config.yaml").write_text("a: [")
    odd = make_run(tmp_path / "odd", [0.5])
    (odd / "history.jsonl").write_text('{"event": "valid", "step": 1}\n')
    lines = {"none": {"images": 0}, "share": {"top1": 7}, "text": {"lr": "x"}, "huge": {"step": 10**400}}
    for name, wrong in lines.items():
        history = make_run(tmp_path / name, [0.5]) / "history.jsonl"
        line = {"event": "valid", "step": 1, "epoch": 1, "loss": 1.0, "top1": 0.5, "images": 9, "lr": 0.1}
        history.write_text("".join(json.dumps(line | {"event": event} | wrong) + "\n" for event in ("train", "valid")))
    (make_run(tmp_path / "timed", [0.5]) / "timing.jsonl").write_text(
        '{"event": "epoch", "seconds": 1, "images_per_s": 1}'
    )
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError) as caught:
        read_runs([good, *(tmp_path / name for name in ("gone", "empty", *lines, "timed")), fresh, damaged, odd, file])
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        "gone: no such folder",
        "empty: no config.yaml in it",
        "fresh: no validation in history.jsonl yet",
        "damaged: while parsing",
        *(f"{name}: a line of its history is damaged" for name in ("odd", *lines, "timed")),
        "file: not a directory",
    ):
        assert part in line, line
    assert "good" not in line


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 1 run folder, expected two or more"):
        CompareConfig((tmp_path,))
    with pytest.raises(UsageError, match="is given twice"):
        CompareConfig((tmp_path, tmp_path / "x" / ".."))


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.25, "4.2 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (3 * 3600 + 60, "3 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
