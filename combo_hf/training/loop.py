"""The training loop, on Accelerate: CPU, one GPU or several processes, any mixed precision, exact resume.

Several processes are started by `python -m torch.distributed.run --nproc_per_node N examples/train.py ...`. What a run
leaves in its folder: see `run_folder.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from combo_hf.data.collate import Augmentation
from combo_hf.evaluation.calibration import calibrate_background
from combo_hf.evaluation.scores import evaluate_model
from combo_hf.files.progress import Progress
from combo_hf.training.arguments import TrainingRecipe
from combo_hf.training.batches import Batches, TrainingSet
from combo_hf.training.clips_in_memory import ClipTensors
from combo_hf.training.engine import (
    build_accelerator,
    enable_gradient_checkpointing,
    from_main,
    is_sharded,
    memory_advice,
    only_run_of_all,
)
from combo_hf.training.optimizer import average_weights, build_optimizer, build_scheduler, parameter_groups
from combo_hf.training.reporting import Reporter
from combo_hf.training.run_folder import RunFolder, Standing, check_output
from combo_hf.training.step import Learner, optimizer_step


if TYPE_CHECKING:
    from accelerate import Accelerator

    from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
    from combo_hf.processing_combo import ComboProcessor

SEMANTIC_METRICS = ("miou", "fscore")


@dataclass
class TrainingResult:
    """What [`train`] returns.

    Attributes:
        step: optimizer steps done, over all resumed runs.
        best: value of `recipe.best_metric` of output_dir/best; `None` without a validation set.
        validation: the scores of the last evaluation.
        stopped_by: "max_steps" or "time_limit".
    """

    step: int
    best: float | None
    validation: dict[str, Any] = field(default_factory=dict)
    stopped_by: str = "max_steps"


def train(
    model: ComboForAudioVisualSegmentation,
    train_set: TrainingSet,
    recipe: TrainingRecipe,
    output_dir: str | Path,
    validation_set: TrainingSet | None = None,
    processor: ComboProcessor | None = None,
    resume: bool = False,
    cpu: bool = False,
) -> TrainingResult:
    """Train a model and leave its best and last checkpoint in a folder.

    Args:
        model ([`ComboForAudioVisualSegmentation`])
        train_set ([`ClipTensors`] or [`AvsbenchClips`]): the recipe's augmentation is applied to the former; the
            latter brings its own.
        recipe ([`TrainingRecipe`])
        output_dir (`str` or `Path`): see `run_folder.py`.
        validation_set (as `train_set`, *optional*): without augmentation. Without it there is no `best`.
        processor ([`ComboProcessor`], *optional*): saved with every checkpoint.
        resume (`bool`): continue from the newest whole state, or from the start where a run ended before its first;
            on a CPU bit for bit as if nothing had happened.
        cpu (`bool`): do not use an accelerator that is there.

    Returns:
        [`TrainingResult`]

    Raises:
        FileExistsError: the folder holds a run with a checkpoint and `resume` is False; another run is at work there.
        FileNotFoundError: there is nothing to resume.
        ValueError: what is to be resumed was another run, and has a checkpoint; a precision or metric that cannot be
            used here.
        FloatingPointError: the loss or the gradient is not finite; names the clips of the step.
        torch.OutOfMemoryError: names what to change in the recipe.
        ImportError: accelerate is not installed.
    """
    started, output = time.monotonic(), Path(output_dir)
    check_output(output, resume)
    config = model.config
    if recipe.best_metric in SEMANTIC_METRICS and validation_set is not None and config.num_labels == 2:
        raise ValueError(f"best_metric {recipe.best_metric!r} is not measured for two classes; use M_J or M_F.")
    # without fusion its position table is left over
    accelerator = build_accelerator(recipe, output, cpu, unused=not config.fusion)
    if isinstance(train_set, ClipTensors):
        train_set = train_set.variant(augmentation=Augmentation(recipe.flip, recipe.jitter), seed=recipe.seed)
    batches = Batches(train_set, recipe, config.use_maskige, accelerator)
    learner = build_learner(model, batches, recipe, accelerator)
    reporter = Reporter(accelerator, output, recipe.trackers)
    folder = RunFolder(output, learner, reporter, processor)
    new = Standing(len(train_set), batches.rows_at_once * recipe.accumulation_steps)
    # looked at again: a run that has just ended may have left a checkpoint
    with only_run_of_all(accelerator, output, lambda: check_output(output, resume)):
        progress = folder.begin(recipe, new, resume)
        run = _Run(recipe, learner, folder, reporter, validation_set, progress)
        deadline = None if recipe.time_limit_s is None else started + recipe.time_limit_s
        run.steps(batches, deadline)
        accelerator.end_training()
    stopped_by = "max_steps" if progress.step == recipe.max_steps else "time_limit"
    return TrainingResult(progress.step, progress.best, progress.validation, stopped_by)


def build_learner(
    model: ComboForAudioVisualSegmentation, batches: Batches, recipe: TrainingRecipe, accelerator: Accelerator
) -> Learner:
    """A model with optimizer, schedule and running mean, on its device, and the batches brought there, too."""
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    groups = parameter_groups(
        model, recipe.learning_rate, recipe.weight_decay, recipe.backbone_scale, recipe.backbone_pattern
    )
    optimizer = build_optimizer(groups, fused=recipe.mixed_precision != "fp16")
    scheduler = build_scheduler(optimizer, recipe.max_steps, recipe.poly_power, recipe.warmup_steps)
    # in one call, as DeepSpeed wants it
    prepared, stepper, batches.loader = accelerator.prepare(model, optimizer, batches.loader)
    learner = Learner(accelerator, prepared, stepper, scheduler)
    if recipe.ema_decay is not None and accelerator.is_main_process:
        learner.average = average_weights(learner.network, recipe.ema_decay)
    return learner


@dataclass
class _Run:
    """A run on its way."""

    recipe: TrainingRecipe
    learner: Learner
    folder: RunFolder
    reporter: Reporter
    validation_set: TrainingSet | None
    progress: Standing

    def steps(self, batches: Batches, deadline: float | None) -> None:
        """The loop itself, until `max_steps` or until the clock of the main process shows the deadline."""
        recipe, progress, reporter, accelerator = self.recipe, self.progress, self.reporter, self.learner.accelerator
        shown = recipe.progress and accelerator.is_main_process
        coming = batches.from_row(progress.epoch, progress.rows)
        self.learner.model.train()
        reporter.restart_clock()
        with Progress("training", "step", recipe.max_steps, progress.step, shown) as bar:
            while progress.step < recipe.max_steps:
                parts = []
                for _ in range(recipe.accumulation_steps):
                    progress.epoch, progress.rows, batch = next(coming)
                    parts.append(batch)
                with memory_advice(recipe):
                    reporter.add(optimizer_step(self.learner, parts, recipe.max_grad_norm, progress.step))
                progress.step += 1
                bar.advance(note=reporter.note)
                if progress.step % recipe.log_every == 0 or progress.step == recipe.max_steps:
                    reporter.flush(progress.step, progress.epoch)
                if deadline is not None and from_main(accelerator, time.monotonic() > deadline):
                    break  # all processes in the same step
                if progress.step % recipe.eval_every == 0:
                    self.evaluate_and_save()
                elif recipe.save_every is not None and progress.step % recipe.save_every == 0:
                    self.folder.save_state(progress)
                    reporter.restart_clock()
        if progress.evaluated != progress.step:
            self.evaluate_and_save()

    def evaluate_and_save(self) -> None:
        """Scores on the validation set, then `last`, `best` if it is, and the state."""
        accelerator, progress, best = self.learner.accelerator, self.progress, False
        model = whole_model(self.learner)
        if model is not None and accelerator.is_main_process:
            if self.validation_set is not None:
                size, shown = self.recipe.eval_clips_per_batch, self.recipe.progress
                if self.recipe.calibrate_background:
                    weight, _ = calibrate_background(model, self.validation_set, size, shown)
                    model.config.background_weight = weight
                progress.validation = evaluate_model(model, self.validation_set, size, progress=shown)
                best = progress.best is None or progress.validation[self.recipe.best_metric] > progress.best
                self.reporter.log({"step": progress.step, "validation": progress.validation})
            self.folder.save_checkpoints(model, ("last", "best") if best else ("last",))
        progress.validation, best = from_main(accelerator, (progress.validation, best))
        if best:
            progress.best = progress.validation[self.recipe.best_metric]
        progress.evaluated = progress.step
        self.folder.save_state(progress)
        self.reporter.restart_clock()


def whole_model(learner: Learner) -> ComboForAudioVisualSegmentation | None:
    """The model that is evaluated and saved: the running mean, if there is one, else the model itself.

    Where processes hold only a part of the weights each, a second model with all of them (main process only).
    """
    if learner.average is not None:
        return cast("ComboForAudioVisualSegmentation", learner.average.module)
    if not is_sharded(learner.accelerator):
        return learner.network
    weights = learner.accelerator.get_state_dict(learner.model)  # all processes take part
    if not learner.accelerator.is_main_process:
        return None
    with torch.random.fork_rng():  # its random weights are not wanted
        whole = type(learner.network)(learner.network.config)
    whole.load_state_dict(weights)
    return whole.to(learner.accelerator.device).eval()
