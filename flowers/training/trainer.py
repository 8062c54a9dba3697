"""The training loop of one stage, and everything that changes while it trains.

It is the same for one process or many, images or cached features, and any precision. What happens at the end of a
step (read the loss, validate, save, stop) happens on all ranks at the same step.
"""

import contextlib
import math
import time

import torch
from torch import Tensor, nn

from flowers import console
from flowers.config.train import TrainConfig
from flowers.data.loaders import Batch
from flowers.data.paths import readable
from flowers.distributed import from_main, rows_of_ranks, sums_of_ranks
from flowers.errors import PeerError, StoppedError, TrainingError, UsageError
from flowers.models.bundle import save_bundle
from flowers.models.heads import synchronize_batch_norm
from flowers.reports.metrics import Metrics
from flowers.training.batches import Batches, Stopwatch, to_device
from flowers.training.checkpoint import Progress, save_checkpoint
from flowers.training.evaluation import AnswerTables, evaluate
from flowers.training.flags import parse_save_every
from flowers.training.head_search import fit_head
from flowers.training.history import History
from flowers.training.losses import ADVICE, MicroStep, find_breakdown, last_good, mix, weighted_loss
from flowers.training.model import compile_network
from flowers.training.optimizer import WeightAverage, build_optimizer, parameter_groups
from flowers.training.schedule import build_schedule, mixes, step_seed
from flowers.training.stage import Stage

SAY_EVERY_S = 3.0
AGREE_EVERY = 10  # steps between the ranks' votes on stopping; each waits for the device, as reading the losses does
HEAR_WITHIN_S = 30.0  # a request to stop: with slow steps the ranks vote more often, but no more than once a step


class Trainer:
    """Network, optimizer, batches and progress of a stage.

    Attributes:
        network: as Accelerate prepared it; its weights are those of the stage's model.
        schedule: learning rate of each step.
        average: of the weights, None without ``--model-ema-decay``.
        unread: micro-steps whose losses are still on the device.
        sums: of this rank in the epoch so far: loss, hits, images.
        since_point: the same since the last point in a tracker's curves.
        last_metrics: of the last validation.
    """

    def __init__(self, stage: Stage, batches: Batches):
        config, accelerator = stage.config, stage.accelerator
        module = stage.trained.to(accelerator.device)
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = not config.deterministic  # it takes whatever is fastest at the moment
            if accelerator.num_processes > 1 and config.finetune != "head" and not config.freeze_bn:
                module = synchronize_batch_norm(module)
        module = module.to(memory_format=torch.channels_last)
        groups = parameter_groups(module, config.weight_decay, config.layer_decay)
        optimizer = build_optimizer(config.optimizer, groups, accelerator.device)
        if accelerator.scaler is not None:  # of the stage or the trial before; a resumed one would not have it
            accelerator.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())
        self.stage, self.accelerator, self.batches = stage, accelerator, batches
        self.network, self.optimizer = accelerator.prepare(
            compile_network(module, config) if config.compile else module, optimizer
        )
        self.network.train()
        # After prepare, which may move the weights in memory: the average keeps hold of them.
        self.average = WeightAverage(module, config.model_ema_decay) if config.model_ema_decay else None
        self.schedule = build_schedule(config, stage.order.steps_per_epoch)
        self.progress = Progress()
        self.unread: list[MicroStep] = []
        self.sums = [0.0, 0.0, 0.0]
        self.since_point = [0.0, 0.0, 0.0]
        self.last_metrics: Metrics | None = None
        self.history = History(stage.run_dir / "history.jsonl", with_table=True)
        self.timing = History(stage.run_dir / "timing.jsonl")
        self._evaluation: dict[str, object] = {}
        self._save_steps, self._save_s = parse_save_every(config.save_every, stage.order.steps_per_epoch)
        self._saved_s = self._said_s = self._went_on_s = time.monotonic()
        self._point_s = 0.0
        self._agree_every = 1  # steps; the first vote tells the ranks how long a step takes
        self._voted_at = (0, time.monotonic())

    @property
    def config(self) -> TrainConfig:
        """The stage's flags."""
        return self.stage.config

    def take_lr(self, lr: float) -> None:
        """Train with a learning rate that was found, as if it had been given."""
        self.stage = self.stage.with_settings(lr=lr)
        self.schedule = build_schedule(self.config, self.stage.order.steps_per_epoch)

    def averaged(self) -> contextlib.AbstractContextManager:
        """Give the network its averaged weights inside the block, if an average is kept."""
        return self.average.applied() if self.average is not None else contextlib.nullcontext()

    def fit(self) -> None:
        """Train to the last epoch, or until ``--patience`` runs out.

        Raises:
            StoppedError: on request, after saving.
            TrainingError: a loss or the weights are not finite.
        """
        progress = self.progress
        order = self.stage.order  # an epoch's last step may hold fewer images
        images = (self.config.epochs - progress.epoch) * order.num_samples
        self._went_on_s = time.monotonic()
        self._voted_at = (progress.step, self._went_on_s)
        done = min(progress.step_in_epoch * order.global_batch_size, order.num_samples)
        with console.progress("train", images - done) as meter:
            if self.config.fits_at_once and not progress.finished:
                self.fit_at_once(meter)
            while not progress.finished:
                meter.describe(f"epoch {progress.epoch + 1}/{self.config.epochs}")
                self.train_epoch(meter)

    def fit_at_once(self, meter: console.Meter) -> None:
        """Fit a linear head to all features: one step, which is also the only epoch.

        Raises:
            StoppedError: on request; the same command fits again.
        """
        started_s, count = time.monotonic(), len(self.stage.data.train)
        meter.describe("fit the head")
        found = fit_head(self.stage, self.batches)
        if self.accelerator.is_main_process:
            self.sums = [found.loss * count, found.top1 * count, float(count)]
            self.since_point = self.sums
        self._record_speed(0, started_s, count, 0.0)
        meter.advance(count)
        self.end_step(meter)

    def train_epoch(self, meter: console.Meter) -> None:
        """Train from the current step to the end of the epoch."""
        progress, order = self.progress, self.stage.order
        epoch, started_s, images = progress.epoch, time.monotonic(), 0
        waiting = Stopwatch()
        batches = waiting.time(self.batches.epoch(epoch, progress.step_in_epoch))
        batches = to_device(batches, self.accelerator.device)
        while progress.epoch == epoch:
            micro_batches = [next(batches) for _ in range(self.config.grad_accum_steps)]
            real = order.real_in_step(progress.step_in_epoch)
            self.step(micro_batches, real)
            images += real
            meter.advance(real, wait=waiting.seconds / max(time.monotonic() - started_s, 1e-9))
            self.end_step(meter)
        self._record_speed(epoch, started_s, images, waiting.seconds)

    def _record_speed(self, epoch: int, started_s: float, images: int, waited_s: float) -> None:
        seconds = max(time.monotonic() - started_s, 1e-3)
        if self.accelerator.is_main_process:
            self.timing.append(
                "epoch",
                epoch=epoch + 1,
                seconds=round(seconds, 3),
                images_per_s=round(images / seconds, 1),
                data_wait_share=round(waited_s / seconds, 4),
            )

    def step(self, micro_batches: list[Batch], real_images: int) -> None:
        """Update the weights once.

        Args:
            micro_batches: of this rank.
            real_images: in the step, over all ranks.
        """
        config, accelerator, step = self.config, self.accelerator, self.progress.step
        if not self.network.training:  # after a validation
            self.network.train()
        lr = self.schedule.lr(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        for micro_step, batch in enumerate(micro_batches):
            # Dropout depends on the step alone, so no generator's state needs saving.
            seed_dropout(step_seed(config.seed, step, micro_step, accelerator.process_index), accelerator.device)
            is_last = micro_step == len(micro_batches) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.network):
                images, targets = self.batches.inputs(batch), batch.targets
                if mixes(config, self.progress.epoch):
                    key, alphas = (config.seed, step, micro_step), (config.mixup_alpha, config.cutmix_alpha)
                    images, targets = mix(images, targets, len(self.stage.data.classes), *alphas, key=key)
                logits = forward(self.network, images)
                loss = weighted_loss(logits, targets, batch.weights, config.label_smoothing)
                # Gradients are averaged over ranks; the loss is a mean over all images of the step.
                accelerator.backward(loss * (accelerator.num_processes / real_images))
            hits = ((logits.argmax(1) == batch.targets) * batch.weights).sum()
            sums = torch.stack([loss.detach(), hits, batch.weights.sum()])
            self.unread.append(MicroStep(step, sums, batch.indices))
        if config.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
        # Accelerate's wrapper serves the loss scale of fp16; at each call it also searches sys.path for a package.
        (self.optimizer if accelerator.scaler is not None else self.optimizer.optimizer).step()
        self.optimizer.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step + 1)

    def end_step(self, meter: console.Meter) -> None:
        """Do what is due after an update, in this order: read the loss, validate, save, stop."""
        progress, config = self.progress, self.config
        progress.step += 1
        progress.step_in_epoch += 1
        ends_epoch = progress.step_in_epoch == self.stage.order.steps_per_epoch
        validates = ends_epoch or (config.eval_every is not None and progress.step % config.eval_every == 0)
        votes = ends_epoch or self.accelerator.num_processes == 1 or progress.step % self._agree_every == 0
        stops, saves = self.vote() if votes else (False, False)
        saves = saves or stops or (self._save_steps and progress.step % self._save_steps == 0)
        if validates or saves or progress.step % config.log_interval == 0:
            loss = self.read_losses(check_weights=bool(validates or saves))
            top1, lr = self.sums[1] / max(self.sums[2], 1.0), self.schedule.lr(progress.step - 1)
            meter.advance(0, loss=loss, top1=top1, lr=lr, best=progress.best_top1 or 0.0)
        self._point_s += time.monotonic() - self._went_on_s
        if progress.step % config.log_interval == 0 or progress.step == self.stage.total_steps:
            self.log_point()
        if validates:
            self.validate()
        if ends_epoch:
            self.end_epoch()
            progress.finished = progress.step == self.stage.total_steps or self.is_out_of_patience()
        if saves or progress.finished:
            self.save_checkpoint()
        if stops and not progress.finished:
            reason = self.stage.stop.reason() or "another process was asked"
            raise StoppedError(
                f"stopped early at step {progress.step} ({reason}) with all state saved; run the same command to resume"
            )
        self._went_on_s = time.monotonic()

    def log_point(self) -> None:
        """Give trackers the training loss, the learning rate and the speed since the last point, over all ranks.

        The time that validation and checkpoints take does not count.
        """
        if not self.accelerator.trackers:  # none, or a trial
            return
        loss, _, images = sums_of_ranks(self.accelerator, self.since_point)
        values = {"train/loss": loss / max(images, 1.0), "lr": self.schedule.lr(self.progress.step - 1)}
        values["train/images_per_s"] = images / max(self._point_s, 1e-9)
        self.accelerator.log(values, step=self.progress.step)
        self.since_point, self._point_s = [0.0, 0.0, 0.0], 0.0

    def is_out_of_patience(self) -> bool:
        """True if ``--patience`` epochs in a row brought no better model; all ranks measured the same and agree."""
        progress, patience = self.progress, self.config.patience
        waited = (progress.step - progress.best_step) // self.stage.order.steps_per_epoch
        if patience is None or waited < patience:
            return False
        console.say(
            f"no better model in {console.counted(waited, 'epoch')} (--patience): stopping after epoch {progress.epoch}"
        )
        return True

    def vote(self) -> tuple[bool, bool]:
        """Agree over all ranks: was any asked to stop; is a checkpoint due by rank 0's clock; when to vote again."""
        step, now_s = self.progress.step, time.monotonic()
        wants_stop = self.stage.stop.reason() is not None
        wants_save = self._save_s is not None and now_s - self._saved_s > self._save_s
        voted_step, voted_s = self._voted_at
        self._voted_at = (step, now_s)
        step_s = (now_s - voted_s) / max(step - voted_step, 1)
        rows = rows_of_ranks(self.accelerator, [float(wants_stop), float(wants_save), step_s])
        slowest_s = max(row[2] for row in rows)
        # A divisor, so that votes still fall on the steps where the losses are read.
        fitting = (steps for steps in (AGREE_EVERY, 5, 2) if steps * slowest_s <= HEAR_WITHIN_S)
        self._agree_every = next(fitting, 1)
        return any(row[0] for row in rows), rows[0][1] > 0

    def read_losses(self, check_weights: bool = False) -> float:
        """Fetch the unread losses; only here does a step wait for the device.

        Args:
            check_weights: also check the weights, as they are about to be evaluated or saved.

        Returns:
            Mean training loss of this rank's images in the epoch so far.

        Raises:
            TrainingError: a loss or the weights are not finite, on the rank where that happened first.
            PeerError: on the other ranks then.
        """
        rows = torch.stack([sums for _, sums, _ in self.unread]).cpu().double().tolist() if self.unread else []
        network = self.network if check_weights else None
        found = find_breakdown(self.unread, [row[0] for row in rows], network, self.progress.step - 1)
        (first,) = min(rows_of_ranks(self.accelerator, [found.step]))
        if math.isfinite(first):
            if found.step > first:
                raise PeerError
            paths = [self.stage.data.train.paths[index] for batch in found.images for index in batch.tolist()]
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            images = f" on {', '.join(map(readable, paths[:3]))}{more}" if paths else ""
            raise TrainingError(f"{found.what}{images}; {ADVICE}; {last_good(self.stage.run_dir)}")
        for row in rows:
            self.sums = [total + value for total, value in zip(self.sums, row, strict=True)]
            self.since_point = [total + value for total, value in zip(self.since_point, row, strict=True)]
        self.unread.clear()
        return self.sums[0] / max(self.sums[2], 1.0)

    def evaluate(self, split: str, tables: AnswerTables | None = None) -> Metrics:
        """Measure the network as it is now on a split.

        Args:
            tables: filled with what this rank's images give.
        """
        if split not in self._evaluation:
            self._evaluation[split] = self.batches.evaluation(split)
        batches, num_images = self._evaluation[split], len(self.stage.data.splits[split])
        stance = contextlib.nullcontext()
        if self.config.compile and tables is not None and tables.head is not None:
            stance = torch.compiler.set_stance("force_eager")  # compiled code does not call the hook that sees features
        with stance:
            return evaluate(self.accelerator, self.network, self.batches.inputs, batches, num_images, tables=tables)

    def validate(self) -> None:
        """Evaluate on the validation split, record the result, keep the best model by top1, then by loss.

        Raises:
            TrainingError: the loss is not finite.
        """
        progress = self.progress
        with self.averaged():
            metrics = self.evaluate("valid")
            if not math.isfinite(metrics.loss):
                what = f"the validation loss is not finite after step {progress.step}"
                raise TrainingError(f"{what}; {ADVICE}; {last_good(self.stage.run_dir)}")
            if progress.best_step is None or (metrics.top1, -metrics.loss) > (progress.best_top1, -progress.best_loss):
                progress.best_step, progress.best_top1, progress.best_loss = progress.step, metrics.top1, metrics.loss
                self.save_bundle("best", metrics)
        loss, _, images = sums_of_ranks(self.accelerator, self.sums)
        loss_before, images_before = progress.validated
        progress.validated = [loss, images]
        train_loss = (loss - loss_before) / max(images - images_before, 1.0)
        values = {**metrics.to_dict(), "train_loss": train_loss}
        if self.accelerator.is_main_process:
            self.history.append("valid", step=progress.step, epoch=progress.epoch + 1, **values)
        self.log_curves("valid", values)
        self.last_metrics = metrics
        if progress.step_in_epoch < self.stage.order.steps_per_epoch:
            self._say(f", step {progress.step}: train loss {train_loss:.4f}")

    def log_curves(self, group: str, values: dict[str, float]) -> None:
        """Give trackers figures that were recorded, but for the number of images, which is always the same."""
        curves = {f"{group}/{name}": value for name, value in values.items() if name != "images"}
        self.accelerator.log(curves, step=self.progress.step)

    def end_epoch(self) -> None:
        """Record the epoch's training figures over all ranks and move to the next epoch."""
        progress = self.progress
        loss, hits, images = sums_of_ranks(self.accelerator, self.sums)
        values = {"loss": loss / images, "top1": hits / images, "images": int(images)}
        lr = self.schedule.lr(progress.step - 1)
        if self.accelerator.is_main_process:
            self.history.append("train", step=progress.step, epoch=progress.epoch + 1, lr=lr, **values)
        self.log_curves("epoch", values)
        is_last = progress.step == self.stage.total_steps
        if is_last or time.monotonic() - self._said_s >= SAY_EVERY_S:  # not each epoch of a head: they fly by
            self._said_s = time.monotonic()
            self._say(f": train loss {values['loss']:.4f} top1 {values['top1']:.4f}")
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.validated = [0.0, 0.0]
        self.sums = [0.0, 0.0, 0.0]

    def _say(self, figures: str) -> None:
        progress, valid = self.progress, self.last_metrics
        when, best = f"epoch {progress.epoch + 1}/{self.config.epochs}", ""
        if self.config.fits_at_once:
            when = "fitted"
        elif progress.best_step == progress.step:
            best = ", the best so far"
        console.say(f"{when}{figures}; valid loss {valid.loss:.4f} top1 {valid.top1:.4f} top5 {valid.top5:.4f}{best}")

    def save_bundle(self, name: str, metrics: Metrics) -> None:
        """Write the model into the run folder, on rank 0."""
        values = {f"valid_{key}": value for key, value in metrics.to_dict().items()}
        from_main(lambda: save_bundle(self.stage.bundle(values), self.stage.run_dir / name))

    def save_checkpoint(self) -> None:
        """Write everything that a resume needs, on rank 0."""
        progress, scaler = self.progress, self.accelerator.scaler
        progress.history_bytes = self.history.size_bytes
        progress.rank_sums = rows_of_ranks(self.accelerator, self.sums)
        tensors = {"optimizer": self.optimizer.state_dict()}
        if scaler is not None:
            tensors["scaler"] = scaler.state_dict()
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        from_main(
            lambda: save_checkpoint(
                self.stage.run_dir,
                bundle=self.stage.bundle({}),
                tensors=tensors,
                progress=progress,
                fingerprint=self.stage.fingerprint,
                keep=self.config.keep,
            )
        )
        self._saved_s = time.monotonic()


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators that a network on this device draws from, as ``torch.manual_seed`` does.

    For each kind of device that is not in use, that one writes down its callers, which takes longer than the rest.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def forward(network: nn.Module, images: Tensor) -> Tensor:
    """Run the network in training mode.

    Raises:
        UsageError: batch norm gets a single value per channel.
    """
    try:
        return network(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
    few = f"--batch-size {len(images)}: batch norm in this network needs two images or more"
    raise UsageError(f"{few}; with --freeze-bn it does without")
