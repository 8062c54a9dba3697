"""One stage of training: set up from the flags and the data, started afresh or gone on with, finished and saved."""

import dataclasses
import json
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator

from flowers import console, distributed
from flowers.cli import to_plain
from flowers.config.train import TrainConfig
from flowers.data.folders import ImageFolders
from flowers.engines.torch_engine import check_compiler
from flowers.errors import StoppedError
from flowers.files import write_atomically
from flowers.models.bundle import Bundle, how_made, load_bundle, save_bundle
from flowers.models.heads import synchronize_batch_norm
from flowers.reports.metrics import LogitTable, Metrics
from flowers.stopping import StopRequest
from flowers.training import checkpoint as checkpoints
from flowers.training.batches import Source, build_augmentation, build_order, feature_source, image_source
from flowers.training.flags import (
    build_plan,
    fingerprint,
    parse_save_every,
    uses_features,
    with_default_lr,
    with_defaults,
)
from flowers.training.groups import parameter_groups
from flowers.training.head_search import tune_head
from flowers.training.history import History
from flowers.training.loop import evaluate, fit
from flowers.training.lr_search import SPAN, STEPS, LrCurve, range_test, write_curve
from flowers.training.optimizer import WeightAverage, build_optimizer
from flowers.training.reporting import can_report, report_training
from flowers.training.resume import agree_on_checkpoint, as_begun, restore
from flowers.training.screen import say_done, say_plan
from flowers.training.setup import (
    build_cache,
    build_model,
    listing_bad_images,
    new_head,
    settle_bad_images,
    with_train_sizes,
)
from flowers.training.state import Run


class Job:
    """A run while it is set up and finished; the loop in between knows only its ``Run``."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, data: ImageFolders, stop: StopRequest):
        self.accelerator, self.run_dir, self.stop = accelerator, config.output_dir, stop
        config = with_defaults(config)
        if config.compile and accelerator.device.type == "cpu":
            check_compiler("--compile", "leave it out")
        self.resumed = agree_on_checkpoint(config, accelerator)
        self.classifier, self.head, self.preprocessing = build_model(config, data.classes, self.resumed)
        config = with_train_sizes(config, self.classifier.backbone, self.preprocessing.crop)
        self.augmentation = build_augmentation(config, self.preprocessing)
        self.cache = build_cache(config, data, self.augmentation.cache_short_side)
        self.data = settle_bad_images(config, accelerator, data, self.cache)
        self.order = build_order(config, self.data, accelerator.num_processes)
        if self.resumed is not None:
            config = as_begun(config, self.resumed)
        self.searches_lr = config.lr == "auto"
        self.config = with_default_lr(config, self.order.global_batch_size)
        self.fingerprint = self.fingerprint_of(self.config)
        if self.resumed is not None:
            checkpoints.check_fingerprint(self.resumed, self.fingerprint, self.order.batch_arithmetic)
        self.plan = build_plan(self.config, self.order, len(data.classes.folders))

    def train(self, last_stage: bool = True) -> None:
        """Set up, fit, write the last model and the final figures; after the last stage say what to do with them."""
        if self.is_finished():
            console.say(f"{console.plain(self.run_dir)} is finished already; its model is in best/")
            return
        self.describe()
        try:
            source = self.build_source()
            if self.config.tune_head and uses_features(self.config) and self.resumed is None:
                source = self.tune_head(source)
            run = self.build_run(source)
            if self.resumed is not None:
                restore(run, self.resumed)
            elif self.accelerator.is_main_process:
                run.history.cut(0)  # lines of an earlier start, killed before its first checkpoint
            if self.searches_lr:
                self.settle_lr(run)
            self.start_tracker()
            fit(run)
        except StoppedError:
            if self.accelerator.is_main_process:
                self.stop.clear()
            raise
        self.finish(run, source)
        if last_stage:
            say_done(self.config, self.data.test is not None)

    def is_finished(self) -> bool:
        """Whether an earlier start came to the end, and wrote the final figures and the report that there can be."""
        done = self.resumed is not None and self.resumed.progress.finished
        has_figures, has_report = distributed.from_main(
            lambda: [(self.run_dir / name).exists() for name in ("metrics.json", "report.html")]
        )
        if not (done and has_figures):
            return False
        wants_report = self.config.report and not has_report  # as when it was killed while it wrote one
        return not (wants_report and self.can_report())

    def can_report(self) -> bool:
        """Whether the page that is asked for can be made; all ranks call this."""
        images = max(len(split) for split in (self.data.valid, self.data.test) if split is not None)
        return self.config.report and can_report(images, len(self.data.classes))

    def fingerprint_of(self, config: TrainConfig) -> dict:
        """All that must be the same for this run to be gone on with."""
        return fingerprint(config, self.data, self.order.global_batch_size, self.accelerator.mixed_precision)

    def describe(self) -> None:
        """Say what will be done, and keep the resolved config."""
        self.save_config()
        parts = (self.config, self.data, self.classifier, self.preprocessing.crop, self.order, self.plan)
        say_plan(*parts, self.accelerator, self.searches_lr)

    def save_config(self) -> None:
        """Keep the resolved config in the run folder."""
        if self.accelerator.is_main_process:
            with write_atomically(self.run_dir / "config.yaml") as file:
                yaml.safe_dump(to_plain(self.config), file, sort_keys=False, allow_unicode=True)

    def start_tracker(self) -> None:
        """Begin with ``--log-with``, once a run, not once a trial."""
        if self.config.log_with is not None:
            plain = {
                name: value if isinstance(value, (int, float)) else str(value)
                for name, value in vars(self.config).items()
            }
            self.accelerator.init_trackers("flowers", config=plain)

    def tune_head(self, source: Source) -> Source:
        """``--tune-head``: search, and go on as if the settings that were best had been given."""

        def set_up(config: TrainConfig) -> Source:
            self.config = config
            self.fingerprint = self.fingerprint_of(config)
            self.plan = build_plan(config, self.order, self.plan.num_classes)
            self.head, self.classifier.head = new_head(config, self.plan.num_classes, self.head.in_features)
            return dataclasses.replace(source, module=self.classifier.head)

        output = self.run_dir / "tuning.json"
        best = tune_head(self.config, self.head.in_features, lambda config: self.build_run(set_up(config)), output)
        source = set_up(best)
        self.save_config()
        return source

    def settle_lr(self, run: Run) -> None:
        """``--lr auto``: search, and go on as if the rate that was found had been given."""
        curve = self.search_lr(run)
        lr = curve.suggestion or self.config.lr
        self.config = dataclasses.replace(self.config, lr=lr)
        self.fingerprint["--lr"] = lr
        run.plan = self.plan = dataclasses.replace(self.plan, peak_lr=lr)
        self.save_config()

    def search_lr(
        self,
        run: Run,
        low: float | None = None,
        high: float | None = None,
        steps: int = STEPS,
        output: Path | None = None,
    ) -> LrCurve:
        """Draw the loss over the learning rate, about the default one; show, write and return what was found."""
        default = self.config.lr
        curve = range_test(run, low or default / SPAN, high or default * SPAN, steps)
        output = output or self.run_dir / "lr_finder.png"
        config, images = self.config, self.order.global_batch_size
        what = f"{config.model}, --finetune {config.finetune}, {config.optimizer}, {images} images a step"
        distributed.from_main(lambda: write_curve(curve, output, what, default))
        return curve

    def build_source(self) -> Source:
        """Images, or cached features where the backbone does not change."""
        parts = (self.config, self.accelerator, self.data, self.order, self.classifier, self.preprocessing)
        if not uses_features(self.config):
            return image_source(*parts, augmentation=self.augmentation, cache=self.cache)
        with listing_bad_images(self.config, self.data):
            folder = self.run_dir / "features"
            source = feature_source(*parts, augmentation=self.augmentation, folder=folder, stop=self.stop)
            for name, split in (("valid", self.data.valid), ("test", self.data.test)):
                if split is not None:
                    source.evaluation(name, split)  # all images are read now, not one of test/ after hours
        return source

    def build_run(self, source: Source) -> Run:
        """Optimizer, precision and wrappers around the network, and the places where things are written."""
        config, accelerator = self.config, self.accelerator
        module = source.module.to(accelerator.device)
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
            if accelerator.num_processes > 1 and config.finetune != "head" and not config.freeze_bn:
                module = synchronize_batch_norm(module)
        module = module.to(memory_format=torch.channels_last)
        groups = parameter_groups(module, config.weight_decay, config.layer_decay)
        optimizer = build_optimizer(config.optimizer, groups, accelerator.device)
        average = WeightAverage(module, config.model_ema_decay) if config.model_ema_decay else None
        if accelerator.scaler is not None:  # of the stage or the trial before; a start after it would not have it
            accelerator.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())
        network, optimizer = accelerator.prepare(torch.compile(module) if config.compile else module, optimizer)
        save_steps, save_s = parse_save_every(config.save_every, self.plan.steps_per_epoch)
        run = Run(
            accelerator=accelerator,
            network=network,
            optimizer=optimizer,
            inputs=source.inputs,
            order=self.order,
            train=source.train,
            train_paths=self.data.train.paths,
            valid=source.evaluation("valid", self.data.valid),
            valid_images=len(self.data.valid),
            plan=self.plan,
            history=History(self.run_dir / "history.jsonl"),
            timing=History(self.run_dir / "timing.jsonl"),
            stop=self.stop,
            save_checkpoint=lambda: self.save_checkpoint(run),
            save_best=lambda metrics: self.save_bundle("best", metrics),
            save_every_steps=save_steps,
            save_every_s=save_s,
            average=average,
        )
        return run

    def finish(self, run: Run, source: Source) -> None:
        """Write the last model, measure the best one on the test split, sum up."""
        if run.last_metrics is None:  # an earlier start was killed between its last step and here
            with run.averaged():
                run.last_metrics = evaluate(self.accelerator, run.network, run.inputs, run.valid, len(self.data.valid))
        with run.averaged():
            self.save_bundle("last", run.last_metrics)
        best = load_bundle(self.run_dir / "best")
        self.classifier.load_state_dict(best.state_dict)
        results = {"valid": {name.removeprefix("valid_"): value for name, value in best.metrics.items()}}
        reports, test, test_logits = self.can_report(), self.data.test, None
        if test is not None:
            test_logits = LogitTable(len(test), self.plan.num_classes) if reports else None
            batches = source.evaluation("test", test)
            metrics = evaluate(self.accelerator, run.network, run.inputs, batches, len(test), logits=test_logits)
            results["test"] = metrics.to_dict()
        if self.accelerator.is_main_process:
            with write_atomically(self.run_dir / "metrics.json") as file:
                json.dump({"best_step": run.progress.best_step, **results}, file, indent=1)
        rows = [
            (split, values["images"], f"{values['loss']:.4f}", f"{values['top1']:.4f}", f"{values['top5']:.4f}")
            for split, values in results.items()
        ]
        console.table("best model", ("split", "images", "loss", "top1", "top5"), rows)
        if reports:
            drawn = range(1, self.config.views) if uses_features(self.config) else range(self.plan.epochs)
            report_training(run, self.data, best, results, self.augmentation, drawn, test_logits)

    def bundle(self, metrics: dict) -> Bundle:
        """The model as it is now."""
        state = {name: tensor.detach().cpu() for name, tensor in self.classifier.state_dict().items()}
        made = how_made(to_plain(self.config))
        return Bundle(self.config.model, self.head, self.data.classes, self.preprocessing, metrics, made, state)

    def save_bundle(self, name: str, metrics: Metrics) -> None:
        """Write the model into the run folder, on rank 0."""
        values = {f"valid_{key}": value for key, value in metrics.to_dict().items()}
        distributed.from_main(lambda: save_bundle(self.bundle(values), self.run_dir / name))

    def save_checkpoint(self, run: Run) -> None:
        """Write all that a resume needs, on rank 0."""
        run.progress.history_bytes = run.history.size_bytes
        run.progress.rank_sums = distributed.rows_of_ranks(self.accelerator, run.sums)
        tensors = {"optimizer": run.optimizer.state_dict()}
        if self.accelerator.scaler is not None:
            tensors["scaler"] = self.accelerator.scaler.state_dict()
        if run.average is not None:
            tensors["average"] = run.average.state_dict()
        distributed.from_main(
            lambda: checkpoints.save_checkpoint(
                self.run_dir,
                bundle=self.bundle({}),
                tensors=tensors,
                progress=run.progress,
                fingerprint=self.fingerprint,
                keep=self.config.keep,
            ),
        )
