"""One step of the optimizer, over one batch or several, in one process or several."""

from __future__ import annotations

import math
from typing import Any

import torch

from combo_hf.training.memory import memory_advice
from combo_hf.training.normalization import COUNTS, batch_counts, rescale, term_scales


LOSS_KINDS = tuple(name for name in ("loss_class", "loss_mask", "loss_dice", "loss_consistency") if name in COUNTS)


def optimizer_step(run: Any, batches: list[dict[str, Any]]) -> dict[str, float]:
    """Move the weights once.

    Args:
        run: has `accelerator`, `model`, `optimizer`, `scheduler`, `recipe`, `config` and `progress`.
        batches: of [`ComboCollator`], on the device.

    Returns:
        The loss of all clips of all processes, its terms by kind, the norm of the gradient before clipping, and the
        learning rate of the step.

    Raises:
        FloatingPointError: loss or gradient is not finite; names the clips of this process.
        torch.OutOfMemoryError: names what to change.
    """
    recipe, accelerator = run.recipe, run.accelerator
    names = [name for batch in batches for name in batch["video_ids"]]
    scales = term_scales([batch_counts(batch, run.config) for batch in batches], accelerator)
    terms = torch.zeros(len(LOSS_KINDS), device=accelerator.device)
    with memory_advice(recipe):
        for batch, factors in zip(batches, scales, strict=True):
            with accelerator.accumulate(run.model):
                inputs = {name: value for name, value in batch.items() if name != "video_ids"}
                kinds = rescale(run.model(**inputs).loss_dict, factors)
                loss = torch.stack(list(kinds.values())).sum()
                zero = loss.new_zeros(())
                found = torch.stack([kinds.get(kind, zero).detach() for kind in LOSS_KINDS])
                total, *values = torch.cat([loss.detach()[None], found]).tolist()  # waits for the device once
                check_finite("loss", total, run.progress.step, batch["video_ids"], values)
                terms += found / len(batches)
                accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(run.model.parameters(), recipe.max_grad_norm)
        norm = 0.0 if norm is None else float(norm)  # an engine that clips on its own need not tell
        if accelerator.scaler is None:  # which meets infinite gradients while it looks for its scale
            check_finite("gradient", norm, run.progress.step, names, terms.tolist())
        rate = run.scheduler.get_last_lr()[0]
        run.optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        run.scheduler.step()
        if run.average is not None:
            run.average.update(run.plain_model)
    run.optimizer.zero_grad()
    values = mean_over_processes(terms, accelerator)
    return {
        "loss": math.fsum(values),
        **dict(zip(LOSS_KINDS, values, strict=True)),
        "gradient_norm": norm,
        "learning_rate": rate,
    }


def mean_over_processes(values: torch.Tensor, accelerator: Any) -> list[float]:
    """Plain numbers, the same in all processes."""
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, "mean")
    return values.tolist()


def check_finite(what: str, value: float, step: int, names: list[str], terms: list[float]) -> None:
    """Raise `FloatingPointError` with the clips' names and the loss terms if `value` is not finite."""
    if not math.isfinite(value):
        shown = ", ".join(f"{name} {term:.4g}" for name, term in zip(LOSS_KINDS, terms, strict=True))
        raise FloatingPointError(f"the {what} of step {step} is {value} ({shown}); clips: {', '.join(names)}")
