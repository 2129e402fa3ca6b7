"""The training loop, on Accelerate: CPU, one GPU or several processes, any mixed precision, exact resume.

    output_dir/recipe.yaml     what was run
    output_dir/metrics.jsonl   one line per `log_every` steps, and one per evaluation
    output_dir/best, last      checkpoints that `from_pretrained` reads
    output_dir/state           what `resume=True` continues from

Folders are written under another name and then renamed: an interruption leaves the old or the new one. Several
processes are started by `python -m torch.distributed.run --nproc_per_node N script.py`.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from combo_hf.data.collate import Augmentation, ComboCollator
from combo_hf.training.arguments import ModelRecipe, TrainingRecipe
from combo_hf.training.evaluation import evaluate_model
from combo_hf.training.optimizer import build_optimizer, build_scheduler, parameter_groups


LOSS_KINDS = ("loss_class", "loss_mask", "loss_dice", "loss_consistency")


@dataclass
class Progress:
    """Where a run stands; saved with the state."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


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


def build_model(recipe: ModelRecipe, seed: int = 0, **config: Any) -> torch.nn.Module:
    """The model of a recipe; the same seed gives the same random weights.

    Args:
        recipe ([`ModelRecipe`]): its `overrides` win over `config`.
        seed (`int`)
        **config: fields of [`ComboConfig`], such as `id2label` and `label2id`.

    Raises:
        ValueError: unknown preset or field.
    """
    from transformers import set_seed

    from combo_hf.configuration_combo import ComboConfig
    from combo_hf.modeling_combo import ComboForAudioVisualSegmentation

    fields = {**config, **recipe.overrides}
    known = ComboConfig().to_dict()
    unknown = sorted(name for name in fields if name not in known)
    if unknown:
        raise ValueError(f"model.overrides: ComboConfig has no field {unknown[0]!r}.")
    set_seed(seed)
    if recipe.pretrained is not None:
        return ComboForAudioVisualSegmentation.from_pretrained(recipe.pretrained, **fields)
    return ComboForAudioVisualSegmentation(ComboConfig.from_preset(recipe.preset, **fields))


def train(
    model: torch.nn.Module,
    train_set: Any,
    recipe: TrainingRecipe,
    output_dir: str | Path,
    validation_set: Any = None,
    processor: Any = None,
    resume: bool = False,
) -> TrainingResult:
    """Train a model and leave its best and last checkpoint in a folder.

    Args:
        model ([`ComboForAudioVisualSegmentation`])
        train_set ([`ClipTensors`]): the recipe's augmentation is applied to it.
        recipe ([`TrainingRecipe`])
        output_dir (`str` or `Path`): see the head of this file.
        validation_set ([`ClipTensors`], *optional*): without it there is no `best`.
        processor ([`ComboProcessor`], *optional*): saved with every checkpoint.
        resume (`bool`): continue from output_dir/state; on a CPU bit for bit as if nothing had happened.

    Returns:
        [`TrainingResult`]

    Raises:
        FileExistsError: the folder holds a run and `resume` is False.
        FileNotFoundError: there is nothing to resume.
        FloatingPointError: the loss or the gradient is not finite; names the clips of the step.
        ImportError: accelerate is not installed.
    """
    output = Path(output_dir)
    _check_output(output, resume)
    run = _Run(model, train_set, recipe, output, validation_set, processor)
    if resume:
        run.resume()
    elif run.accelerator.is_main_process:
        recipe.save(output / "recipe.yaml")
    return run.finish(_steps(run))


def _check_output(output: Path, resume: bool) -> None:
    if resume and not (output / "state").is_dir():
        raise FileNotFoundError(f"nothing to resume: {output / 'state'} does not exist.")
    if not resume and any((output / name).exists() for name in ("state", "metrics.jsonl")):
        raise FileExistsError(f"{output} holds a run; pass resume=True to continue it, or choose another folder.")
    output.mkdir(parents=True, exist_ok=True)


class _Run:
    """The objects of one run, and what is done with them now and then."""

    def __init__(
        self, model: Any, train_set: Any, recipe: TrainingRecipe, output: Path, validation_set: Any, processor: Any
    ) -> None:
        accelerate = _accelerate()
        self.recipe, self.output, self.processor = recipe, output, processor
        self.validation_set = validation_set
        self.train_set = train_set.variant(augmentation=Augmentation(recipe.flip, recipe.jitter), seed=recipe.seed)
        self.progress = Progress()
        self.validation: dict[str, Any] = {}
        self.started = time.monotonic()
        state = accelerate.state.AcceleratorState
        if state._shared_state and state().mixed_precision != recipe.mixed_precision:
            state._reset_state()  # else an earlier run in this process would decide; there is no public way
        self.accelerator = accelerate.Accelerator(
            mixed_precision=recipe.mixed_precision,
            cpu=not torch.accelerator.is_available(),  # unless told, several CPU processes do not join each other
            # The order of an epoch follows from (seed, epoch): what an exact resume needs.
            dataloader_config=accelerate.DataLoaderConfiguration(use_seedable_sampler=True),
        )
        accelerate.utils.set_seed(recipe.seed, device_specific=True)
        groups = parameter_groups(
            model, recipe.learning_rate, recipe.weight_decay, recipe.backbone_scale, recipe.backbone_pattern
        )
        optimizer = build_optimizer(groups)
        self.scheduler = build_scheduler(optimizer, recipe.max_steps, recipe.poly_power, recipe.warmup_steps)
        loader = torch.utils.data.DataLoader(
            self.train_set,
            batch_size=recipe.clips_per_batch,
            shuffle=True,
            drop_last=len(train_set) >= recipe.clips_per_batch * self.accelerator.num_processes,
            num_workers=recipe.num_workers,
            collate_fn=ComboCollator(model.config.use_maskige),
            # Its own generator: drawing the workers' seed from the global one would shift dropout after a resume.
            generator=torch.Generator().manual_seed(recipe.seed),
            pin_memory=self.accelerator.device.type == "cuda",
        )
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.accelerator.register_for_checkpointing(self.progress, self.scheduler)

    @property
    def plain_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

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
        """Scores on the validation set, then `last`, `best` if it is, and `state`."""
        accelerator, metric = self.accelerator, self.recipe.best_metric
        best = False
        if self.validation_set is not None:
            if accelerator.is_main_process:
                bar = self.recipe.progress
                size = self.recipe.eval_clips_per_batch
                self.validation = evaluate_model(self.plain_model, self.validation_set, size, progress=bar)
                if metric not in self.validation:
                    known = [key for key, value in self.validation.items() if isinstance(value, float)]
                    raise ValueError(f"best_metric {metric!r} is not measured here; use one of {known}.")
                best = self.validation[metric] > self.progress.best
                self.log({"step": self.progress.step, "validation": self.validation})
            self.validation, best = _from_main(accelerator, (self.validation, best))
            self.progress.best = max(self.progress.best, self.validation[metric])
        if accelerator.is_main_process:
            for name in ("last", "best") if best else ("last",):
                _write_folder(self.output / name, self._save_checkpoint)
        self._save_state()

    def _save_checkpoint(self, folder: Path) -> None:
        self.plain_model.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)

    def _save_state(self) -> None:
        """All processes write into one folder, which the main one then moves to its place."""
        temporary = self.output / ".partial-state"
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            _replace_folder(temporary, self.output / "state")
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Back to the saved state; lines logged after it are removed."""
        self.accelerator.load_state(str(self.output / "state"))
        log = self.output / "metrics.jsonl"
        if self.accelerator.is_main_process and log.is_file():
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= self.progress.step]
            temporary = log.with_name(f".partial-{log.name}")
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(temporary, log)

    def log(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with open(self.output / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def out_of_time(self) -> bool:
        """Decided by the main process, so that all of them stop in the same step."""
        limit = self.recipe.time_limit_s
        return limit is not None and _from_main(self.accelerator, time.monotonic() - self.started > limit)

    def finish(self, stopped_by: str) -> TrainingResult:
        self.accelerator.end_training()
        best = None if self.validation_set is None else self.progress.best
        return TrainingResult(self.progress.step, best, self.validation, stopped_by)


def _steps(run: _Run) -> str:
    """The loop itself; returns why it ended."""
    from tqdm import tqdm

    recipe, progress = run.recipe, run.progress
    shown = recipe.progress and run.accelerator.is_main_process
    window = _Window()
    stopped_by, saved = "max_steps", progress.step
    run.model.train()
    batches = run.batches()
    with tqdm(total=recipe.max_steps, initial=progress.step, unit="step", disable=not shown) as bar:
        while progress.step < recipe.max_steps:
            window.add(_step(run, next(batches)))
            progress.step += 1
            bar.update()
            if progress.step % recipe.log_every == 0 or progress.step == recipe.max_steps:
                record = window.flush()
                bar.set_postfix({name.removeprefix("loss_"): f"{record[name]:.3f}" for name in LOSS_KINDS})
                run.log({"step": progress.step, "epoch": progress.epoch, **record})
            if run.out_of_time():
                stopped_by = "time_limit"
                break
            if progress.step % recipe.eval_every == 0:
                run.evaluate_and_save()
                saved = progress.step
                window.restart()
    if saved != progress.step:
        run.evaluate_and_save()
    return stopped_by


def _step(run: _Run, batch: dict[str, Any]) -> dict[str, float]:
    """One optimizer step; the loss terms by kind, their sum and the norm of the gradient before clipping."""
    names = batch.pop("video_ids")
    output = run.model(**batch)
    terms = torch.stack([output.loss.detach().float(), *(term.detach().float() for term in output.loss_dict.values())])
    total, *values = terms.tolist()
    losses = dict.fromkeys(LOSS_KINDS, 0.0)
    for name, value in zip(output.loss_dict, values, strict=True):
        losses[next(kind for kind in LOSS_KINDS if name.startswith(kind))] += value
    _check_finite("loss", total, run.progress.step, names, losses)
    run.accelerator.backward(output.loss)
    norm = float(run.accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.max_grad_norm))
    if run.recipe.mixed_precision != "fp16":  # there the scaler meets infinite gradients while it looks for its scale
        _check_finite("gradient", norm, run.progress.step, names, losses)
    rate = run.scheduler.get_last_lr()[0]
    run.optimizer.step()
    if not run.accelerator.optimizer_step_was_skipped:
        run.scheduler.step()
    run.optimizer.zero_grad()
    return {"loss": total, **losses, "gradient_norm": norm, "learning_rate": rate}


def _check_finite(what: str, value: float, step: int, names: list[str], losses: dict[str, float]) -> None:
    if not math.isfinite(value):
        terms = ", ".join(f"{name} {term:.4g}" for name, term in losses.items())
        raise FloatingPointError(f"the {what} of step {step} is {value} ({terms}); clips: {', '.join(names)}")


class _Window:
    """Means over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Also after an evaluation, whose time belongs to no step."""
        self.rows: list[dict[str, float]] = []
        self.begin = time.monotonic()

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def flush(self) -> dict[str, float]:
        rows, seconds = self.rows, time.monotonic() - self.begin
        record = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        self.restart()
        return record | {"seconds_per_step": seconds / len(rows)}


def _write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """`write(folder)` into a temporary folder, which then takes the target's place."""
    temporary = target.with_name(f".partial-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    _replace_folder(temporary, target)


def _replace_folder(source: Path, target: Path) -> None:
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(source, target)
    shutil.rmtree(old, ignore_errors=True)


def _from_main(accelerator: Any, value: Any) -> Any:
    """The main process' value, in all processes."""
    if accelerator.num_processes == 1:
        return value
    return _accelerate().utils.broadcast_object_list([value])[0]


def _accelerate() -> Any:
    try:
        import accelerate
        import accelerate.state
        import accelerate.utils
    except ImportError as error:
        raise ImportError("training needs accelerate: pip install 'combo-hf[train]'") from error
    return accelerate
