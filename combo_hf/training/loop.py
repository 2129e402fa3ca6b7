"""The training loop, on Accelerate: CPU, one GPU or several processes, any mixed precision, exact resume.

    output_dir/recipe.yaml     what was run
    output_dir/metrics.jsonl   one line per `log_every` steps, and one per evaluation
    output_dir/best, last      checkpoints that `from_pretrained` reads
    output_dir/state           what `resume=True` continues from
    output_dir/logs            what TensorBoard reads, if it was asked for

Folders are written under another name and then renamed: an interruption leaves the old or the new one. Several
processes are started by `python -m torch.distributed.run --nproc_per_node N examples/train.py ...`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from combo_hf.data.collate import Augmentation, ComboCollator
from combo_hf.evaluation.calibration import calibrate_background
from combo_hf.evaluation.scores import evaluate_model
from combo_hf.files.atomic import recover_folder, removed_on_failure, replacing_folder
from combo_hf.files.environment import useful_workers
from combo_hf.training.arguments import TrainingRecipe
from combo_hf.training.clips_in_memory import ClipTensors
from combo_hf.training.ema import WeightAverage
from combo_hf.training.engine import build_accelerator, from_main, is_sharded, only_run_of_all
from combo_hf.training.memory import enable_gradient_checkpointing
from combo_hf.training.optimizer import build_optimizer, build_scheduler, parameter_groups
from combo_hf.training.reporting import Reporter
from combo_hf.training.state import (
    commit_state,
    has_checkpoint,
    newest_state,
    write_json,
)
from combo_hf.training.step import optimizer_step


SEMANTIC_METRICS = ("miou", "fscore")


@dataclass
class Progress:
    """Where a run stands; saved with the state."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    evaluated: int = 0
    processes: int = 1
    clips: int = 0


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
    model: torch.nn.Module,
    train_set: Any,
    recipe: TrainingRecipe,
    output_dir: str | Path,
    validation_set: Any = None,
    processor: Any = None,
    resume: bool = False,
    cpu: bool = False,
) -> TrainingResult:
    """Train a model and leave its best and last checkpoint in a folder.

    Args:
        model ([`ComboForAudioVisualSegmentation`])
        train_set ([`ClipTensors`] or [`AvsbenchClips`]): the recipe's augmentation is applied to the former; the
            latter brings its own.
        recipe ([`TrainingRecipe`])
        output_dir (`str` or `Path`): see the head of this file.
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
        ValueError: what is to be resumed was another run, and has a checkpoint; a precision or metric that is not to
            be had here.
        FloatingPointError: the loss or the gradient is not finite; names the clips of the step.
        torch.OutOfMemoryError: names what to change in the recipe.
        ImportError: accelerate is not installed.
    """
    output = Path(output_dir)
    check_output(output, resume)
    if recipe.best_metric in SEMANTIC_METRICS and validation_set is not None and model.config.num_labels == 2:
        raise ValueError(f"best_metric {recipe.best_metric!r} is not measured for two classes; use M_J or M_F.")
    run = _Run(model, train_set, recipe, output, validation_set, processor, cpu)
    # looked at again: a run that has just ended may have left a checkpoint
    with only_run_of_all(run.accelerator, output, lambda: check_output(output, resume)):
        run.begin(resume)
        stopped_by = _steps(run)
        return run.finish(stopped_by)


def check_output(output: Path, resume: bool) -> None:
    """Raise `FileExistsError` or `FileNotFoundError` where a folder does not fit what is to be done with it."""
    if resume and not (output / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{output} holds no run: nothing to resume.")
    if not resume and has_checkpoint(output):
        raise FileExistsError(f"{output} holds a run; continue it (resume) or choose another folder.")


class _Run:
    """A model, its optimizer and data on their devices, and the files of the run."""

    def __init__(
        self,
        model: torch.nn.Module,
        train_set: Any,
        recipe: TrainingRecipe,
        output: Path,
        validation_set: Any,
        processor: Any,
        cpu: bool,
    ) -> None:
        self.recipe, self.output, self.processor, self.config = recipe, output, processor, model.config
        self.train_set, self.validation_set = train_set, validation_set
        if isinstance(train_set, ClipTensors):
            self.train_set = train_set.variant(augmentation=Augmentation(recipe.flip, recipe.jitter), seed=recipe.seed)
        self.validation: dict[str, Any] = {}
        self.started = time.monotonic()
        # without fusion its position table is left over
        self.accelerator = build_accelerator(recipe, output, cpu, unused=not model.config.fusion)
        self.reporter = Reporter(self.accelerator, output, recipe)
        processes = self.accelerator.num_processes
        self.progress = Progress(processes=processes, clips=len(train_set))
        if recipe.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        groups = parameter_groups(
            model, recipe.learning_rate, recipe.weight_decay, recipe.backbone_scale, recipe.backbone_pattern
        )
        optimizer = build_optimizer(groups, fused=recipe.mixed_precision != "fp16")
        self.scheduler = build_scheduler(optimizer, recipe.max_steps, recipe.poly_power, recipe.warmup_steps)
        loader = torch.utils.data.DataLoader(
            self.train_set,
            batch_size=recipe.clips_per_batch,
            shuffle=True,
            drop_last=len(train_set) >= recipe.clips_per_batch * processes,
            num_workers=useful_workers(recipe.num_workers),
            collate_fn=ComboCollator(model.config.use_maskige),
            # Its own generator: drawing the workers' seed from the global one would shift dropout after a resume.
            generator=torch.Generator().manual_seed(recipe.seed),
            pin_memory=self.accelerator.device.type == "cuda",
        )
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.average = None
        if recipe.ema_decay is not None and self.accelerator.is_main_process:
            self.average = WeightAverage(self.plain_model, recipe.ema_decay)

    @property
    def plain_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def begin(self, resume: bool) -> None:
        """The files of a new run, or back to the newest state of an old one."""
        main = self.accelerator.is_main_process
        if resume:
            differences = TrainingRecipe.from_yaml(self.output / "recipe.yaml").differences(self.recipe)
            if differences and has_checkpoint(self.output):
                raise ValueError(f"{self.output} was begun with another recipe: {'; '.join(differences)} (old, new).")
            if main:
                for name in ("best", "last"):
                    recover_folder(self.output / name)
            state = from_main(self.accelerator, newest_state(self.output / "state") if main else None)
            if state is not None:
                self._load_state(state)
        if main:
            self.output.mkdir(parents=True, exist_ok=True)
            if not has_checkpoint(self.output):  # one that failed in its first steps may go on with another recipe
                self.recipe.save(self.output / "recipe.yaml")
            shutil.rmtree(self.output / ".partial-state", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.reporter.start(self.progress.step)

    def batches(self) -> Iterator[dict[str, Any]]:
        """Batches without end, from where the run stands; keeps `progress.epoch` and `progress.batch`."""
        for epoch in itertools.count(self.progress.epoch):
            self.progress.epoch = epoch
            self.loader.set_epoch(epoch)
            self.train_set.set_epoch(epoch)  # Accelerate's loader leaves this out when it skips batches
            loader = self.loader
            if self.progress.batch:
                loader = self.accelerator.skip_first_batches(self.loader, self.progress.batch)
            for batch in loader:
                self.progress.batch += 1
                yield batch
            self.progress.batch = 0

    def evaluate_and_save(self) -> None:
        """Scores on the validation set, then `last`, `best` if it is, and the state."""
        accelerator, metric, best = self.accelerator, self.recipe.best_metric, False
        model = self._whole_model()
        if accelerator.is_main_process:
            with self._mean_weights(model):
                if self.validation_set is not None:
                    size, shown = self.recipe.eval_clips_per_batch, self.recipe.progress and sys.stderr.isatty()
                    if self.recipe.calibrate_background:
                        weight, _ = calibrate_background(model, self.validation_set, size, progress=shown)
                        model.config.background_weight = weight
                    self.validation = evaluate_model(model, self.validation_set, size, progress=shown)
                    best = self.progress.best is None or self.validation[metric] > self.progress.best
                    self.reporter.log({"step": self.progress.step, "validation": self.validation})
                for name in ("last", "best") if best else ("last",):
                    with replacing_folder(self.output / name) as folder:
                        self._save_checkpoint(model, folder)
        self.validation, best = from_main(accelerator, (self.validation, best))
        if best:
            self.progress.best = self.validation[metric]
        self.progress.evaluated = self.progress.step
        self.save_state()

    def _mean_weights(self, model: Any) -> Any:
        return contextlib.nullcontext() if self.average is None else self.average.applied(model)

    def _whole_model(self) -> Any:
        """The model itself, or where processes hold only a part of the weights a second one with all (main only)."""
        if not is_sharded(self.accelerator):
            return self.plain_model
        weights = self.accelerator.get_state_dict(self.model)  # all processes take part
        if not self.accelerator.is_main_process:
            return None
        with torch.random.fork_rng():  # its random weights are not wanted
            whole = type(self.plain_model)(self.config)
        whole.load_state_dict(weights)
        return whole.to(self.accelerator.device).eval()

    def _save_checkpoint(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)

    def save_state(self) -> None:
        """All processes write into one folder, which the main one then seals and moves to its place."""
        accelerator, temporary = self.accelerator, self.output / ".partial-state"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            (self.output / "state").mkdir(exist_ok=True)
        with removed_on_failure(temporary, f"the state in {self.output}"):
            accelerator.wait_for_everyone()
            accelerator.save_state(str(temporary))
            if accelerator.is_main_process:
                others = {
                    "scheduler": self.scheduler.state_dict(),
                    "rows": self.reporter.rows,
                    "validation": self.validation,
                }
                write_json(temporary / "progress.json", {**vars(self.progress), **others})
                if self.average is not None:
                    save_file(self.average.state_dict(), temporary / "mean_weights.safetensors")
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                commit_state(temporary, self.output / "state", self.progress.step)
        accelerator.wait_for_everyone()

    def _load_state(self, state: Path) -> None:
        values = json.loads((state / "progress.json").read_text(encoding="utf-8"))
        self.scheduler.load_state_dict(values.pop("scheduler"))
        self.reporter.rows, self.validation = values.pop("rows"), values.pop("validation")
        saved = Progress(**values)
        for name, text in (("processes", "processes"), ("clips", "training clips")):
            old, new = getattr(saved, name), getattr(self.progress, name)
            if old != new:
                raise ValueError(f"{self.output} was begun with {old} {text}, now there are {new}.")
        self.progress = saved
        self.accelerator.load_state(str(state))
        if self.average is not None:
            self.average.load_state_dict(load_file(state / "mean_weights.safetensors"))

    def out_of_time(self) -> bool:
        """Decided by the main process, so that all of them stop in the same step."""
        limit = self.recipe.time_limit_s
        return limit is not None and from_main(self.accelerator, time.monotonic() - self.started > limit)

    def finish(self, stopped_by: str) -> TrainingResult:
        self.accelerator.end_training()
        return TrainingResult(self.progress.step, self.progress.best, self.validation, stopped_by)


def _steps(run: _Run) -> str:
    """The loop itself; returns why it ended."""
    from tqdm import tqdm

    recipe, progress, reporter = run.recipe, run.progress, run.reporter
    hidden = None if recipe.progress and run.accelerator.is_main_process else True  # None: hidden off a terminal
    run.model.train()
    reporter.restart_clock()
    batches = run.batches()
    with tqdm(total=recipe.max_steps, initial=progress.step, unit="step", disable=hidden) as bar:
        while progress.step < recipe.max_steps:
            reporter.add(optimizer_step(run, [next(batches) for _ in range(recipe.accumulation_steps)]))
            progress.step += 1
            bar.update()
            if progress.step % recipe.log_every == 0 or progress.step == recipe.max_steps:
                bar.set_postfix(reporter.postfix(reporter.flush(progress.step, progress.epoch)))
            if run.out_of_time():
                break
            if progress.step % recipe.eval_every == 0:
                run.evaluate_and_save()
                reporter.restart_clock()
            elif recipe.save_every is not None and progress.step % recipe.save_every == 0:
                run.save_state()
                reporter.restart_clock()
    if progress.evaluated != progress.step:
        run.evaluate_and_save()
    return "max_steps" if progress.step == recipe.max_steps else "time_limit"
