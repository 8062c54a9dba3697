"""Compare training runs: a table on the terminal, and a self-contained page with their curves.

python jobs/compare.py runs/head runs/full
python jobs/compare.py runs/* --output compare.html
"""

from flowers.cli import run
from flowers.config.compare import CompareConfig


def main(config: CompareConfig) -> int:
    """Compare as the flags say; 0 when all of them are runs."""
    from flowers.reports.comparison import compare

    return compare(config)


def cli() -> None:
    """The console command ``flowers-compare``."""
    run(main, CompareConfig, interactive=True)


if __name__ == "__main__":
    cli()
