"""Make or check a data set.

python jobs/prepare.py sample --output-dir data/sample
python jobs/prepare.py oxford102 --output-dir data/flowers102
python jobs/prepare.py oxford102 --output-dir data/flowers102 --source-dir ~/Downloads
python jobs/prepare.py check --data-dir data/flowers102 --output check.json
"""

from flowers import cli as command_line
from flowers.config.prepare import CheckConfig, Oxford102Config, PrepareConfig, SampleConfig
from flowers.errors import EXIT_FAILED


def main(config: PrepareConfig) -> int:
    """Run one subcommand.

    Returns:
        the exit code.
    """
    jobs = {SampleConfig: sample, Oxford102Config: oxford102, CheckConfig: check}
    return jobs[type(config)](config)


def sample(config: SampleConfig) -> int:
    """Draw the sample set."""
    from flowers import console
    from flowers.datasets.drawn import draw_garden
    from flowers.machine import cpus_per_process

    draw_garden(
        config.output_dir,
        species=config.species,
        train=config.train,
        valid=config.valid,
        test=config.test,
        image_size=config.image_size,
        seed=config.seed,
        processes=cpus_per_process(),
    )
    images = config.species * (config.train + config.valid + config.test)
    console.say(f"{images} drawn photos of {config.species} species: {console.plain(config.output_dir)}")
    return 0


def oxford102(config: Oxford102Config) -> int:
    """Make the Oxford 102 set."""
    from flowers import console
    from flowers.datasets.oxford102 import prepare_oxford102

    counts = prepare_oxford102(
        config.output_dir,
        source_dir=config.source_dir,
        download_dir=config.download_dir,
        split_file=config.split_file,
    )
    splits = ", ".join(f"{count} {split}" for split, count in counts.items())
    console.say(f"Oxford 102 flowers, {splits}: {console.plain(config.output_dir)}")
    return 0


def check(config: CheckConfig) -> int:
    """Check a data set."""
    from flowers.data.corrections import read_corrections
    from flowers.data.formats import limits
    from flowers.datasets.check import check_dataset
    from flowers.datasets.check_report import save_report, show_report
    from flowers.files import claim

    limits.allow_pixels(config.max_pixels)
    if config.output is not None:
        claim(config.output)
    report = check_dataset(
        config.data_dir,
        corrections=read_corrections(config.corrections) if config.corrections else None,
        near=config.near,
        tiny=config.tiny,
        huge=config.huge,
        workers=config.workers,
        exclude=config.exclude,
    )
    show_report(report)
    if config.output is not None:
        save_report(report, config.output)
    return 0 if report.trainable else EXIT_FAILED


def cli() -> None:
    """Entry point of ``flowers-prepare``."""
    command_line.run(main, PrepareConfig)


if __name__ == "__main__":
    cli()
