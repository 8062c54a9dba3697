"""Measure a trained model on one split: loss, top1 and top5 over every image once.

python jobs/evaluate.py --checkpoint runs/a --data-dir data/sample --split test
python jobs/evaluate.py --checkpoint runs/a --data-dir data/sample --split valid --calibrate
python jobs/evaluate.py --predictions predictions.csv --labels labels.csv
python jobs/evaluate.py --predictions new.csv --against old.csv --labels labels.csv
"""

from flowers.cli import run
from flowers.config.evaluate import EvaluateConfig


def main(config: EvaluateConfig) -> int:
    """Evaluate as the flags say."""
    if config.against is not None:
        from flowers.prediction.against import compare

        return compare(config)
    if config.predictions is not None:
        from flowers.prediction.score import score

        return score(config)
    from flowers.training.evaluate import evaluate_bundle

    return evaluate_bundle(config)


def cli() -> None:
    """The console command ``flowers-evaluate``."""
    run(main, EvaluateConfig)


if __name__ == "__main__":
    cli()
