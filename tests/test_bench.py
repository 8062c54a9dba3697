"""The measurements themselves: every script has its place and its flags, ratios are of one round, the table is kept."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))

import measuring  # noqa: E402
import run as bench_run  # noqa: E402
from measuring import Row, duration, rate, take_turns, times_faster  # noqa: E402


def test_every_script_is_in_the_list_and_has_the_common_interface() -> None:
    scripts = {path.stem.removeprefix("bench_") for path in BENCH.glob("bench_*.py")}
    assert scripts == set(bench_run.NAMES)
    for name in bench_run.NAMES:
        text = bench_run.script(name).read_text()
        for part in ("def add_flags(parser", "def measure(", "run_alone(measure, add_flags, __doc__)"):
            assert part in text, name
        assert bench_run.first_line(bench_run.script(name)).endswith((".", ":")), name


def test_ways_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    ways = {"plain": lambda: order.append("plain"), "ours": lambda: order.append("ours") or 0.25}
    seconds = take_turns(ways, 2)
    assert order == ["plain", "ours"] * 3
    assert seconds["ours"] == [0.25, 0.25]
    assert len(seconds["plain"]) == 2
    assert len(take_turns(ways, 2, warm_up=False)["ours"]) == 2


def test_figures_come_with_their_spread_and_ratios_are_of_one_round() -> None:
    assert rate(100, [1.0, 2.0, 4.0]) == "50 images/s (25 to 100)"
    assert duration([0.5, 0.25, 1.0]) == "0.50 s (0.25 to 1.00)"
    # The machine was twice as slow in the second round, for both: still three times as fast.
    assert times_faster([3.0, 6.0], [1.0, 2.0]) == "3.0x (3.0 to 3.0)"


def test_a_contestant_measures_itself_in_its_own_process() -> None:
    with measuring.contestants({"half": (functools.partial, float, 0.5)}) as living:  # prepared: partial(float, 0.5)
        assert take_turns(living, 1) == {"half": [0.5]}


def test_the_table_keeps_the_rows_of_others_and_never_mixes_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    table = tmp_path / "table.md"
    table.write_text("# Title\n\nBefore.\n")
    found = {"saving": [Row("a save", "1 s", "2x plain")], "decode": [Row("a photo", "2 ms"), Row("two", "3 ms")]}
    monkeypatch.setattr(bench_run, "measure", found.get)
    monkeypatch.setattr(bench_run, "machine", lambda: "a machine; torch 1; May 2026")
    assert bench_run.main(["saving", "--table", str(table)]) == 0
    monkeypatch.setattr(bench_run, "machine", lambda: "a machine; torch 1; June 2026")
    assert bench_run.main(["decode", "--table", str(table)]) == 0
    text = table.read_text() + "After.\n"
    rows = [line for line in text.splitlines() if line.endswith("_decode.py` |") or line.endswith("_saving.py` |")]
    assert rows == [
        "| a photo | 2 ms |  | `tests/bench/bench_decode.py` |",
        "| two | 3 ms |  | `tests/bench/bench_decode.py` |",
        "| a save | 1 s | 2x plain | `tests/bench/bench_saving.py` |",
    ]
    assert text.startswith("# Title\n\nBefore.\n\n<!-- measurements: begin -->\nMeasured on a machine; torch 1; June")
    table.write_text(text)
    found["saving"] = [Row("a save", "0.5 s", "4x plain")]
    assert bench_run.main(["saving", "--table", str(table)]) == 0
    assert table.read_text().endswith("<!-- measurements: end -->\nAfter.\n")
    assert "0.5 s" in table.read_text()
    assert "1 s" not in table.read_text()
    assert bench_run.main(["saving", "scan"]) == 1
    assert "failed: scan" in capsys.readouterr().err
    monkeypatch.setattr(bench_run, "machine", lambda: "another machine; torch 1; June 2026")
    with pytest.raises(SystemExit, match=r"another machine or other versions \(bench_decode.py\)"):
        bench_run.main(["saving", "--table", str(table)])


def test_a_measurement_runs_and_hands_its_rows_over(tmp_path: Path) -> None:
    found = tmp_path / "rows.json"
    command = [sys.executable, BENCH / "bench_scan.py", "--files", "200", "--rounds", "1", "--json", found]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "200 files in 100 folders" in done.stdout
    assert "torch" in done.stdout.splitlines()[0]
    assert found.exists()


def test_the_empty_job_has_all_of_the_job_but_its_work() -> None:
    command = [sys.executable, BENCH / "bench_predict_overhead.py", "--one", "50"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] == 50
    assert found["cpu_s"] > 0
