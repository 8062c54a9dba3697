"""What `--cache ram` takes of a machine's memory: eight processes that train share one copy.

    python tests/bench/bench_cache_memory.py                        # a cache of 200 MB; needs Linux
    python tests/bench/bench_cache_memory.py --processes 2 --megabytes 50

Real processes form a group, open the cache as training does, and read every picture. Then each one looks at what the
kernel says of its memory (smaps_rollup): pages that it alone has (private), and its share of all, pages that several
processes map divided by their number (PSS). What it had before the cache is subtracted.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from measuring import Row, run_alone, short

sys.path.insert(0, str(Path(__file__).parents[1]))  # of the tests

from cache_memory import PICTURE_BYTES, draw, grown


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=200, help="of the cache")


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    count = max(1, round(options.megabytes * 1e6 / PICTURE_BYTES))
    with tempfile.TemporaryDirectory() as temporary:
        found = grown(draw(Path(temporary), count), options.processes)
    cache_mb = found[0]["cache"] / 1e6
    total_mb = sum(values["pss"] for values in found) / 1e6
    private_mb = [values["private"] / 1e6 for values in found]
    return [
        Row(
            f"memory that --cache ram of {cache_mb:.0f} MB takes in {options.processes} processes on one machine",
            f"{total_mb:.0f} MB, private {short(min(private_mb))} to {short(max(private_mb))} MB a process",
            f"a cache for each would take {options.processes * cache_mb:.0f} MB",
        )
    ]


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
