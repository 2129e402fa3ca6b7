"""AdamW groups, learning rate and its schedule, as the release has them; and a running mean of the weights.

Backbones (frame and Maskige) learn at a tenth of the rate. Norm layers and embeddings are not decayed; biases and bare
parameters (the pixel decoder's level embedding, the gates of the fusion) are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


BACKBONE_PATTERN = r"encoder\.(maskige_)?backbone\."  # not "audio_encoder", which is frozen or trained at full rate
POLY_POWER = 0.9
UNDECAYED = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,  # batch and instance norms of every dimension
    nn.LocalResponseNorm,
    nn.RMSNorm,
    nn.Embedding,
)


def parameter_groups(
    model: nn.Module,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.05,
    backbone_scale: float = 0.1,
    backbone_pattern: str = BACKBONE_PATTERN,
) -> list[dict[str, Any]]:
    """The trainable parameters in up to four groups, for any torch optimizer.

    Args:
        model (`nn.Module`): frozen parameters are left out; one that is used twice comes once.
        learning_rate (`float`), weight_decay (`float`): of ordinary parameters.
        backbone_scale (`float`): factor on the learning rate of the parameters whose name matches `backbone_pattern`.
        backbone_pattern (`str`): regular expression, searched in the parameter's full name.

    Returns:
        list of `dict`: `params`, `lr`, `weight_decay`, and `name` ("default", "default, no decay", "backbone",
        "backbone, no decay").

    Raises:
        ValueError: nothing is trainable.
    """
    pattern = re.compile(backbone_pattern)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            key = (pattern.search(name) is not None, isinstance(module, UNDECAYED))
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("no parameter of the model is trainable; check requires_grad.")
    return [
        {
            "params": groups[backbone, undecayed],
            "lr": learning_rate * (backbone_scale if backbone else 1.0),
            "weight_decay": 0.0 if undecayed else weight_decay,
            "name": ("backbone" if backbone else "default") + (", no decay" if undecayed else ""),
        }
        for backbone, undecayed in sorted(groups)
    ]


def build_optimizer(groups: Iterable[dict[str, Any]], fused: bool = True) -> torch.optim.AdamW:
    """AdamW with torch's betas and eps, over [`parameter_groups`]; all parameters in one pass where torch can.

    A pass over the weights instead of a dozen: on a CPU a fifth of the time of torch's default. `fused=False` for
    fp16: accelerate does not notice that a fused step was skipped, and would let the learning rate move on.
    """
    groups = list(groups)
    kinds = {p.device.type for group in groups for p in group["params"]}
    return torch.optim.AdamW(groups, fused=True if fused and kinds and kinds <= {"cpu", "cuda"} else None)


def poly_factor(step: int, max_steps: int, power: float = POLY_POWER, warmup_steps: int = 0) -> float:
    """Factor on the learning rate in a step counted from 0: (1 - step / max_steps)^power, rising linearly before.

    The release has no warm-up.
    """
    factor = max(0.0, 1 - step / max_steps) ** power
    return factor * min(1.0, (step + 1) / (warmup_steps + 1))


def build_scheduler(
    optimizer: torch.optim.Optimizer, max_steps: int, power: float = POLY_POWER, warmup_steps: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """[`poly_factor`] on the learning rates of all groups.

    Raises:
        ValueError: `max_steps` below 1, or `warmup_steps` negative.
    """
    if max_steps < 1 or warmup_steps < 0:
        raise ValueError(f"wanted max_steps >= 1 and warmup_steps >= 0, got {max_steps} and {warmup_steps}.")
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: poly_factor(step, max_steps, power, warmup_steps))


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows it as an exponential mean; call `update_parameters(model)` after each step.

    Args:
        model (`nn.Module`): whose present weights are the start.
        decay (`float`): share of the past, in (0, 1). In step t counted from 1 it is at most (1 + t) / (10 + t), so
            that the random start is forgotten.

    Raises:
        ValueError: a share out of range.
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay: wanted more than 0 and less than 1, got {decay}.")

    def follow(averages: Any, values: Any, step: Any) -> None:
        """Tensors of one type each, in place; `step` counts the start as 0."""
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + int(step)) / (10 + int(step))))
        else:  # numbers of batches that a norm has seen
            torch._foreach_copy_(averages, values)

    average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    average.update_parameters(model)  # the first call copies
    return average
