"""Memory of training: layers that are computed again, and what to turn when it does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


# transformers checkpoints PVTv2 by whole stages (40 blocks in one) and ResNet not at all; blocks save more.
BACKBONE_BLOCKS = ("PvtV2BlockLayer", "ResNetBottleNeckLayer", "ResNetBasicLayer")
BACKBONE_STAGES = ("PvtV2EncoderLayer",)


def enable_gradient_checkpointing(model: Any) -> int:
    """Keep only the inputs of layers, and compute the layers again in the backward pass; gradients stay the same.

    Args:
        model ([`ComboForAudioVisualSegmentation`]): changed in place. Backbone blocks whose batch norms are trained
            are left alone: computing them again would count a batch twice in their statistics.

    Returns:
        Number of layers that are computed again.
    """
    options = {"use_reentrant": False}
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)
    count = 0
    for module in model.modules():
        name = type(module).__name__
        if name in BACKBONE_STAGES:
            module.gradient_checkpointing = False
        elif name in BACKBONE_BLOCKS and not _has_trained_batch_norm(module):
            module.forward = partial(_recomputed, module)
            count += 1
        elif isinstance(module, GradientCheckpointingLayer):
            count += 1
    return count


def _recomputed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(module).forward
    if not (module.training and torch.is_grad_enabled()):
        return forward(module, *args, **kwargs)
    return checkpoint(forward, module, *args, use_reentrant=False, **kwargs)


def _has_trained_batch_norm(module: nn.Module) -> bool:
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    return any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


@contextmanager
def memory_advice(recipe: Any) -> Iterator[None]:
    """Turn "out of memory" into a message that names what to change in the recipe.

    Args:
        recipe ([`TrainingRecipe`]): its present values are shown.

    Raises:
        torch.OutOfMemoryError: instead of what the device raised, on a CPU as well.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # a GPU's is a RuntimeError too
        text = str(error)
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text
        if not known:
            raise
        first = text.partition("\n")[0]
        clips, batches = recipe.clips_per_batch, recipe.accumulation_steps
        smaller = max(1, clips // 2)
        raise torch.OutOfMemoryError(
            f"out of memory in a training step ({first}). What helps, first the free one: "
            f"clips_per_batch={smaller} with accumulation_steps={batches * clips // smaller} (now {clips} and "
            f"{batches}; the loss stays the same); mixed_precision=bf16 (now {recipe.mixed_precision}); "
            f"gradient_checkpointing=true (now {str(recipe.gradient_checkpointing).lower()}); "
            "model.overrides.train_num_points or num_queries smaller (another model)."
        ) from error
