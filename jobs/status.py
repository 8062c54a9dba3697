"""Tell how far a bulk prediction has come, from any machine that sees its output: shards, speed, time left, errors.

python jobs/status.py predictions.csv
python jobs/status.py predictions.csv --json
"""

from flowers.cli import run
from flowers.config.status import StatusConfig


def main(config: StatusConfig) -> int:
    """Tell as the flags say."""
    from flowers.prediction.status import status

    return status(config)


def cli() -> None:
    """The console command ``flowers-status``."""
    run(main, StatusConfig, interactive=True)


if __name__ == "__main__":
    cli()
