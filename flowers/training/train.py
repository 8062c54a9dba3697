"""The training job, from flags to a run folder with a model in it: what happens, in the order in which it happens."""

import contextlib
import dataclasses

import yaml

from flowers import console, distributed, environment
from flowers.cli import to_plain
from flowers.config.train import TrainConfig
from flowers.data.corrections import CORRECTIONS_FILE
from flowers.data.paths import is_utf8, readable
from flowers.errors import CheckpointError, UsageError
from flowers.files import remove, write_atomically, write_json
from flowers.models.bundle import Bundle, load_bundle
from flowers.parsing import read_json
from flowers.reports.answers import Answers
from flowers.training.bad_images import handle_bad_images
from flowers.training.batches import Batches, ImageBatches, build_augmentation, build_cache, build_order
from flowers.training.checkpoint import Checkpoint
from flowers.training.continued import continued
from flowers.training.evaluation import AnswerTables, calibrate_trained, learn_unfamiliar, show_figures
from flowers.training.features import FeatureBatches, features_of_splits
from flowers.training.final_report import can_gather, can_report, check_labels, or_warn, write_training_report
from flowers.training.fingerprint import check_fingerprint, fingerprint
from flowers.training.flags import check_flags, resolve, with_default_model
from flowers.training.head_search import choose_features, tune_head
from flowers.training.lr_search import search_lr
from flowers.training.model import build_model
from flowers.training.resume import agree_on_checkpoint, is_whole, restore
from flowers.training.run_stages import NETWORK_STAGE, of_first_head, of_network, of_refit_head, write_average
from flowers.training.session import Session, check_images, open_run
from flowers.training.stage import Stage
from flowers.training.trackers import check_trackers, start_trackers
from flowers.training.trainer import Trainer


def train(config: TrainConfig) -> int:
    """Train as the config says, in the run folder it names.

    Returns:
        0; a stop on request is raised, after saving.

    Raises:
        FlowersError: anything that the user can fix, in one line.
    """
    environment.join_step()
    check_flags(config)
    check_trackers(config)
    config = continued(config)
    config = dataclasses.replace(config, output_dir=config.run_dir)
    if not is_utf8(config.output_dir):
        where = readable(config.output_dir)
        raise UsageError(f"--output-dir {where}: not UTF-8, and safetensors cannot read a model there; give another")
    with open_run(config) as session:
        resumed = agree_on_checkpoint(config, session.accelerator)
        if config.refit_head:
            config = train_network(config, session, resumed)
        if train_stages(config, session, resumed):
            if session.accelerator.is_main_process:
                warn_of_better_network(config)
            say_done(config, session.data.test is not None)
    return 0


def train_network(config: TrainConfig, session: Session, resumed: Checkpoint | None) -> TrainConfig:
    """Train the network that ``--refit-head`` fits a head to, in a run folder of its own.

    Args:
        resumed: a checkpoint of that head: then there is a network.

    Returns:
        The flags of the head.

    Raises:
        CheckpointError: the run was begun without ``--refit-head``.
    """
    if resumed is None:
        network = of_network(config)
        train_stages(network, session, agree_on_checkpoint(network, session.accelerator))
        session.accelerator.free_memory()
        distributed.from_main(lambda: write_average(network))
    elif resumed.fingerprint["--finetune"] != "head":
        raise CheckpointError(
            f"{config.output_dir} was begun without --refit-head: leave it out, or give another --output-dir"
        )
    distributed.compute_in_float32(session.accelerator)
    return of_refit_head(config)


def train_stages(config: TrainConfig, session: Session, resumed: Checkpoint | None) -> bool:
    """Train in one run folder: a head or a network, and with ``--finetune staged`` a head before the network.

    Returns:
        False if an earlier start finished it.
    """
    asked, config = config, with_default_model(config, resumed)
    if config.tune_head == "wide" and resumed is None:
        session = check_images(config, session)
        config = choose_features(asked, config, lambda config: trial_features(config, session))
    if config.finetune == "staged" and resumed is None:
        session = check_images(config, session)  # the head itself would not find a broken one of test/
        train_head_stage(config, session)
    return train_stage(config, session, resumed)


def train_head_stage(config: TrainConfig, session: Session) -> None:
    """Train the head of a staged run, with its defaults, on cached features, in a run folder of its own."""
    session = dataclasses.replace(session, data=dataclasses.replace(session.data, test=None))
    config = of_first_head(config)
    train_stage(config, session, agree_on_checkpoint(config, session.accelerator))
    session.accelerator.free_memory()


def trial_features(config: TrainConfig, session: Session) -> tuple[Stage, FeatureBatches]:
    """The features of the training images alone, under flags that may become those of the run."""
    session = dataclasses.replace(session, data=dataclasses.replace(session.data, valid=None, test=None))
    stage = prepare_stage(config, session, None)
    return stage, build_batches(stage)


def train_stage(config: TrainConfig, session: Session, resumed: Checkpoint | None) -> bool:
    """Train one stage: the only one, or one of several.

    Returns:
        False if an earlier start finished it.

    Raises:
        StoppedError: on request, after saving.
    """
    stage = prepare_stage(config, session, resumed)
    if is_finished(stage, resumed):
        console.say(f"{console.plain(stage.run_dir)} is finished already; its model is in best/")
        return False
    searches_lr = config.lr == "auto" and resumed is None
    save_config(stage)
    stage.describe(searches_lr)
    batches = build_batches(stage)
    if config.tune_head and config.uses_features and resumed is None:
        stage = tune_head(stage, batches)
    trainer = Trainer(stage, batches)
    save_config(stage)  # now the arithmetic is as the trainer has set it
    console.verbose(console.plain(f"arithmetic: {said_arithmetic(stage)}"))
    if resumed is not None:
        restore(trainer, resumed)
    elif session.accelerator.is_main_process:
        trainer.history.cut(0)  # lines of an earlier start, killed before its first checkpoint
    if searches_lr:
        trainer.take_lr(search_lr(trainer).suggestion or stage.config.lr)
        save_config(trainer.stage)
    start_trackers(trainer.stage, trainer.progress.step)
    trainer.fit()
    finish(trainer)
    return True


def prepare_stage(config: TrainConfig, session: Session, resumed: Checkpoint | None) -> Stage:
    """Build or load the model, resolve the flags, decode the cache, check the images.

    Raises:
        FlowersError: flags, model, images or checkpoint do not fit.
    """
    if config.cache == "none":  # else its decoding finds those that cannot be read
        session = check_images(config, session)
    accelerator, data = session.accelerator, session.data
    model = build_model(config, data.classes, resumed)
    config = resolve(config, model, accelerator.num_processes, resumed)
    augmentation = build_augmentation(config, model.preprocessing)
    cache = build_cache(config, data, augmentation)
    if config.cache != "none":
        data = handle_bad_images(config, accelerator, data, cache)
    order = build_order(config, data, accelerator.num_processes)
    found = fingerprint(config, data, order.global_batch_size, distributed.precision_of(accelerator))
    if resumed is not None:
        check_fingerprint(resumed, found, order.batch_arithmetic)
    return Stage(config, accelerator, session.stop, data, model, order, augmentation, cache, found)


def build_batches(stage: Stage) -> Batches:
    """Loaders of images; or features, computed now if an earlier start did not."""
    return FeatureBatches(stage, features_of_splits(stage)) if stage.config.uses_features else ImageBatches(stage)


def is_finished(stage: Stage, resumed: Checkpoint | None) -> bool:
    """True if an earlier start came to the end and left its models, the figures and the report, if one can be made.

    Raises:
        CheckpointError: the best model is lost.
    """
    if resumed is None or not resumed.progress.finished:
        return False
    return distributed.from_main(lambda: is_whole(stage.run_dir, resumed, wants_report(stage)))


def wants_report(stage: Stage) -> bool:
    """True if a report is asked for and can be made."""
    images = max(len(samples) for name, samples in stage.data.splits.items() if name != "train")
    return stage.config.report and can_report(images, len(stage.data.classes))


def save_config(stage: Stage) -> None:
    """Write the resolved flags into the run folder, with the corrections of labels if there are any."""
    if stage.accelerator.is_main_process:
        corrections = stage.data.corrections
        if corrections is not None:
            corrections.save(stage.run_dir / CORRECTIONS_FILE)
        else:  # of an earlier start, that failed before its first checkpoint
            remove(stage.run_dir / CORRECTIONS_FILE)
        with write_atomically(stage.run_dir / "config.yaml") as file:
            file.write(f"# Computed with: {said_arithmetic(stage)}\n")  # no flag, so that the file works as --config
            yaml.safe_dump(to_plain(stage.config), file, sort_keys=False, allow_unicode=True)


def said_arithmetic(stage: Stage) -> str:
    """The device and arithmetic of a stage in one line: "device cpu, precision no, ..."."""
    found = {**distributed.arithmetic(stage.accelerator), "micro_steps": stage.config.grad_accum_steps}
    return ", ".join(f"{name} {' '.join(str(value).split())}" for name, value in found.items())


def finish(trainer: Trainer) -> None:
    """Write the last model, measure the best one on the test split, write the final figures and the report."""
    stage, run_dir = trainer.stage, trainer.stage.run_dir
    with trainer.averaged():
        if trainer.last_metrics is None:  # an earlier start was killed between its last step and here
            trainer.last_metrics = trainer.evaluate("valid")
        trainer.save_bundle("last", trainer.last_metrics)
    best = load_bundle(run_dir / "best")
    stage.model.classifier.load_state_dict(best.state_dict)
    best, results, answers = measure_best(trainer, best)
    epoch = trainer.progress.best_step / stage.order.steps_per_epoch
    if stage.accelerator.is_main_process:
        found = {"best_step": trainer.progress.best_step, "best_epoch": int(epoch) if epoch == int(epoch) else epoch}
        write_json(run_dir / "metrics.json", {**found, **results})
    when = "" if stage.config.fits_at_once else f", after epoch {epoch:.4g} of {stage.config.epochs}"
    show_figures(f"best model{when}", results)
    if wants_report(stage) and stage.accelerator.is_main_process:
        with or_warn():
            labels = check_labels(stage, trainer.batches)
            write_training_report(stage, best, results, list(answers.values())[-1], answers["valid"], labels)


def measure_best(trainer: Trainer, best: Bundle) -> tuple[Bundle, dict[str, dict], dict[str, Answers]]:
    """Measure the best model, which is in the network, on valid; calibrate it there; then measure it on test.

    Returns:
        The model; by split, the figures for metrics.json, and the answers where the logits are not too many to be
        gathered.
    """
    stage = trainer.stage
    results, answers = {"valid": {}}, {}
    for split, samples in stage.data.splits.items():
        gathers = can_gather(len(samples), len(best.classes))
        if split == "train" or (split == "valid" and not gathers):
            continue
        learns = split == "valid" and stage.config.calibrate and best.familiarity is None
        head = stage.model.classifier.head if learns else None
        tables = AnswerTables(split, samples, best, head) if gathers else None
        results[split] = trainer.evaluate(split, tables).to_dict()
        if tables is not None:
            answers[split] = tables.answers(trainer.accelerator)
        if split == "valid" and stage.config.calibrate:
            best, answers[split] = calibrate_trained(best, answers[split])
            if learns:
                best = learn_unfamiliar(best, answers[split])
            stage.model.classifier.load_state_dict(best.state_dict)
        if split in answers:
            results[split] |= answers[split].details()
    chosen_by = {name.removeprefix("valid_"): value for name, value in best.metrics.items()}
    results["valid"] |= chosen_by  # as training saw them when it chose this model
    return best, results, answers


def warn_of_better_network(config: TrainConfig) -> None:
    """Say so if a head that was fitted to a trained network has fewer right answers than that network's own."""
    network = config.output_dir / NETWORK_STAGE
    with contextlib.suppress(FileNotFoundError):
        fitted, own = (read_json(run / "metrics.json")["valid"]["top1"] for run in (config.output_dir, network))
        if fitted < own:
            console.warn(
                f"the fitted head has valid top1 {fitted:.4f}, the head that was trained with the network {own:.4f}: "
                f"that model is {readable(network / 'best')}"
            )


def say_done(config: TrainConfig, has_test: bool) -> None:
    """Print where the results are and what to do next."""
    run_dir = config.output_dir
    best, page = run_dir / "best", run_dir / "report.html"
    written = [("best model", best), ("figures", run_dir / "metrics.json")]
    if config.report and page.exists():
        written.append(("to look at", page))
    split = ("--split", "test" if has_test else "valid")
    console.done(
        "trained",
        [*written, ("all of the run", run_dir)],
        [
            console.job_command("evaluate", "--checkpoint", best, "--data-dir", config.data_dir, *split),
            console.job_command("predict", "--checkpoint", best, "--input", "PHOTOS", "--output", "predictions.csv"),
        ],
    )
