"""Find the fastest way to predict on this machine: engine, precision, batch size, workers.

python jobs/benchmark.py --checkpoint runs/train/best --input photos
python jobs/benchmark.py --checkpoint runs/train/best --input photos --engines torch compile --output speeds.json
python jobs/benchmark.py --checkpoint runs/train --input photos --batch-sizes 8 64 --workers 4 8
"""

from flowers.cli import run
from flowers.config.benchmark import BenchmarkConfig


def main(config: BenchmarkConfig) -> int:
    """Measure as the flags say; 0 when done."""
    from flowers.prediction.benchmark import benchmark

    return benchmark(config)


def cli() -> None:
    """The console command ``flowers-benchmark``."""
    run(main, BenchmarkConfig)


if __name__ == "__main__":
    cli()
