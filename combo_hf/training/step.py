"""One step of the optimizer: one loss for all of its clips, however they are spread over batches and processes.

Every term of the loss is a sum divided by a count, see [`ComboLoss`]. A mean of such quotients would depend on how the
clips were dealt out; so the counts of all batches and processes are added up first, and every batch divides by their
mean. The number of target masks is averaged over processes in the release, too; the other counts, and batches that are
accumulated, are this package's choice. One process without accumulation is the release's loss as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from combo_hf.loss_combo import LOSS_KINDS, ComboLoss
from combo_hf.modeling_combo_kernels import on_cpu


if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim.swa_utils import AveragedModel

    from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


@dataclass
class Learner:
    """A network and what moves its weights, as Accelerate has prepared them.

    Attributes:
        model: a [`ComboForAudioVisualSegmentation`] and what several processes or sharding wrap around it.
        average: running mean of the weights; only the main process keeps one.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    average: AveragedModel | None = None

    @property
    def network(self) -> ComboForAudioVisualSegmentation:
        """The [`ComboForAudioVisualSegmentation`] itself."""
        return self.accelerator.unwrap_model(self.model)


def optimizer_step(
    learner: Learner, batches: Sequence[Mapping[str, Any]], max_grad_norm: float, step: int
) -> dict[str, float]:
    """Move the weights once.

    Args:
        learner ([`Learner`]): changed in place.
        batches: of [`ComboCollator`], on the device.
        max_grad_norm (`float`): L2 norm of all gradients together is clipped to it.
        step (`int`): for messages.

    Returns:
        The loss of all clips of all processes, its terms by kind, the norm of the gradient before clipping, and the
        learning rate of the step.

    Raises:
        FloatingPointError: loss or gradient is not finite; names the clips of this process.
    """
    accelerator, model, optimizer = learner.accelerator, learner.model, learner.optimizer
    batches = facts_on_cpu(batches)
    divisors = shared_divisors(learner.network.criterion, batches, accelerator)
    found = []  # of every batch: loss, and terms by kind
    for batch in batches:
        with accelerator.accumulate(model):
            inputs = {name: value for name, value in batch.items() if name != "video_ids"}
            output = model(**inputs, loss_divisors=divisors)
            found.append(torch.cat([output.loss.detach()[None], sum_by_kind(output.loss_dict)]))
            accelerator.backward(output.loss)
    clipped = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    if type(clipped) is not torch.Tensor:  # an engine that clips on its own need not tell
        clipped = torch.tensor(0.0 if clipped is None else float(clipped))
    shared = accelerator.reduce(torch.stack(found).mean(0), "mean")
    rows = torch.stack([*found, shared, clipped.detach().to(shared).expand_as(shared)])
    *own, (_, *means), (norm, *_) = rows.tolist()  # the device is waited for once
    for (total, *terms), batch in zip(own, batches, strict=True):
        check_finite("loss", total, step, batch["video_ids"], terms)
    if accelerator.scaler is None:  # which meets infinite gradients while it looks for its scale
        names = [name for batch in batches for name in batch["video_ids"]]
        check_finite("gradient", norm, step, names, means)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        learner.scheduler.step()
        if learner.average is not None:
            learner.average.update_parameters(learner.network)
    optimizer.zero_grad()
    named = dict(zip(LOSS_KINDS, means, strict=True))
    return {"loss": math.fsum(means), **named, "gradient_norm": norm, "learning_rate": float(rate)}


def facts_on_cpu(batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The batches with the small tensors that decide what is done on the CPU, brought there in one transfer."""
    facts = [(batch["num_frames"], batch["label_frames"], *batch["class_labels"]) for batch in batches]
    values = iter(on_cpu([tensor for parts in facts for tensor in parts]))
    return [
        {**batch, "num_frames": next(values), "label_frames": next(values),
         "class_labels": [next(values) for _ in batch["class_labels"]]}
        for batch in batches
    ]  # fmt: skip


def shared_divisors(
    criterion: ComboLoss, batches: Sequence[Mapping[str, Any]], accelerator: Accelerator
) -> dict[str, float]:
    """What every batch of a step divides its terms by: the mean count of all batches of all processes, by kind."""
    counts = [criterion.counts(batch["class_labels"], batch["num_frames"].tolist()) for batch in batches]
    own = torch.tensor([[count[kind] for kind in LOSS_KINDS] for count in counts], dtype=torch.float64).sum(0)
    if accelerator.num_processes > 1:
        own = accelerator.reduce(own.to(accelerator.device), "sum")
    means = (own / (len(batches) * accelerator.num_processes)).tolist()
    return {kind: mean or 1.0 for kind, mean in zip(LOSS_KINDS, means, strict=True)}


def sum_by_kind(loss_dict: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The terms of all layers added up, in the order of `LOSS_KINDS`: (kinds,), without gradient."""
    sums = torch.zeros(len(LOSS_KINDS), device=next(iter(loss_dict.values())).device)
    for name, term in loss_dict.items():
        sums[next(index for index, kind in enumerate(LOSS_KINDS) if name.startswith(kind))] += term.detach()
    return sums


def check_finite(what: str, value: float, step: int, names: Sequence[str], terms: Sequence[float]) -> None:
    """Raise `FloatingPointError` with the clips' names and the loss terms if `value` is not finite."""
    if not math.isfinite(value):
        shown = ", ".join(f"{name} {term:.4g}" for name, term in zip(LOSS_KINDS, terms, strict=True))
        raise FloatingPointError(f"the {what} of step {step} is {value} ({shown}); clips: {', '.join(names)}")
