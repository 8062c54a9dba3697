"""The measurements themselves: every script has its place and its flags, ratios are of one round, the table is kept."""

import functools
import importlib
import json
import multiprocessing
import re
import shutil
import sys
from pathlib import Path

import pytest
import tiny_job
from forked_python import fork_python
from jobs_in_processes import Job, server

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))

import measuring  # noqa: E402
import run as bench_run  # noqa: E402
from measuring import Row, duration, rate, take_turns, times_faster  # noqa: E402

from flowers.datasets.drawn import draw_garden  # noqa: E402


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


def test_a_contestant_measures_itself_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "start_method", lambda: server)
    with measuring.contestants({"half": (functools.partial, float, 0.5)}) as living:  # prepared: partial(float, 0.5)
        assert take_turns(living, 1) == {"half": [0.5]}


def test_the_table_keeps_the_rows_of_others_and_never_mixes_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    table = tmp_path / "table.md"
    table.write_text("# Title\n\nBefore.\n")
    found = {"saving": [Row("a save", "1 s", "2x plain")], "decode": [Row("a photo", "2 ms"), Row("two", "3 ms")]}
    monkeypatch.setattr(bench_run, "measure", lambda name, flags: found.get(name))
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


@pytest.fixture(scope="module")
def photos(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn set in the shape of the real one: train/, valid/ and photos/."""
    folder = tmp_path_factory.mktemp("photos")
    for split, name in (("train", "train"), ("valid", "valid"), ("test", "photos")):
        shutil.copytree(sample_set / split, folder / name)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle", model="timm/test_resnet")


AS_A_COMMAND = "scan"
"""The measurement that starts as a user starts it; the others' processes, and what they start, have torch already."""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", bench_run.NAMES)
def test_every_measurement_runs_and_says_against_what(
    name: str, photos: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    if name == "exports":
        for package in ("onnx", "onnxruntime", "onnxscript", "nncf"):
            pytest.importorskip(package, reason="pip install -e .[export]")
    if name == "labels":
        pytest.importorskip("cleanlab", reason="pip install cleanlab")
    monkeypatch.setenv("FLOWERS102", str(photos))
    flags = bench_run.QUICK[name].split()
    if "--checkpoint" in bench_run.script(name).read_text():  # a network that takes no time
        flags += ["--checkpoint", str(bundle)]
    if name == "unfamiliar":  # which needs a hundred known photos, four fifths of those of three classes
        draw_garden(tmp_path, species=4, train=8, valid=45, test=1, image_size=64, seed=0)
        flags += ["--data-dir", str(tmp_path)]
    if name == AS_A_COMMAND:
        rows = bench_run.measure(name, flags)
        output = capfd.readouterr().out
    else:
        words = [f"bench_{name}", *flags, "--json", "rows.json"]
        job = Job("test_bench:run_script", words, folder=tmp_path, before=fork_python)
        assert job.wait(360) == [0], job.output
        rows = [Row(*row) for row in json.loads((tmp_path / "rows.json").read_text())]
        output = job.output
    assert rows, output
    assert "torch" in output.splitlines()[0]
    for row in rows:
        assert re.search(r"\d", row.figure), row
        assert row.figure in output
        assert row.against, row


def run_script() -> None:
    """In a job, which has imported torch: do what the script of that name does as a command."""
    measuring.start_method = functools.partial(multiprocessing.get_context, "fork")
    del sys.argv[0]
    script = importlib.import_module(sys.argv[0])
    measuring.run_alone(script.measure, script.add_flags, script.__doc__)


def test_quick_figures_go_into_no_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        bench_run.main(["scan", "--quick", "--table", str(tmp_path / "table.md")])
    assert "--quick gives figures that mean nothing" in capsys.readouterr().err
    assert bench_run.QUICK.keys() == set(bench_run.NAMES)


def test_what_is_written_beside_the_table_while_it_is_measured_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.md"
    table.write_text("Before.\n")

    def measure(name: str, flags: list[str]) -> list[Row]:
        table.write_text(table.read_text() + f"Edited during {name}.\n")
        return [Row(name, "1 s")]

    monkeypatch.setattr(bench_run, "measure", measure)
    assert bench_run.main(["scan", "saving", "--table", str(table)]) == 0
    text = table.read_text()
    assert all(part in text for part in ("Before.", "Edited during scan.", "Edited during saving."))
    assert text.count(bench_run.BEGIN) == 1


def test_no_row_of_the_tables_is_without_its_script() -> None:
    text = (measuring.ROOT / "tests" / "bench" / "README.md").read_text(encoding="utf-8")
    scripts = {f"tests/bench/{bench_run.script(name).name}" for name in bench_run.NAMES}
    tables = re.findall(r"^\|.*\| script \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, flags=re.MULTILINE)
    assert tables
    for row in "".join(tables).splitlines():
        cell = row.strip("|").split("|")[-1].strip()
        assert cell.strip("`").split()[0] in scripts, row
