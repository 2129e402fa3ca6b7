"""What a run computes with: how Accelerate is set up for a recipe, how processes share a value, memory."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from combo_hf.files.environment import resolve_device
from combo_hf.files.folder_lock import only_run
from combo_hf.training.arguments import TrainingRecipe


if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    from combo_hf.modeling_combo import ComboForAudioVisualSegmentation

Value = TypeVar("Value")
# The others wait while the main process makes clips or evaluates.
TIMEOUT = datetime.timedelta(hours=6)
# transformers checkpoints PVTv2 by whole stages (40 blocks in one) and ResNet not at all; blocks save more.
BACKBONE_BLOCKS = ("PvtV2BlockLayer", "ComboResidualLayer")
BACKBONE_STAGES = ("PvtV2EncoderLayer",)


def build_accelerator(recipe: TrainingRecipe, output: Path, cpu: bool = False, unused: bool = False) -> Accelerator:
    """An `accelerate.Accelerator` for a recipe, seeded.

    Args:
        recipe ([`TrainingRecipe`])
        output (`Path`): folder of the run, where trackers write.
        cpu (`bool`): do not use an accelerator that is there.
        unused (`bool`): some trainable parameters take no part in the loss; several processes have to know.

    Raises:
        ImportError: accelerate, or a tracker, is not installed.
        ValueError: the precision needs a GPU, or the options of the recipe do not go with the engine.
    """
    accelerate = import_accelerate()
    cpu = cpu or resolve_device().type == "cpu"  # unless told, several CPU processes do not join each other
    if cpu and recipe.mixed_precision == "fp16":
        raise ValueError("mixed_precision: fp16 needs a GPU; use bf16 or no on a CPU.")
    _check_trackers(recipe.trackers)
    state = accelerate.state.AcceleratorState
    if state._shared_state and (state().mixed_precision != recipe.mixed_precision or state()._cpu != cpu):
        # else an earlier run in this process would decide; there is no public way
        state._reset_state(reset_partial_state=state()._cpu != cpu)
    accelerator = accelerate.Accelerator(
        mixed_precision=recipe.mixed_precision,
        cpu=cpu,
        gradient_accumulation_plugin=accelerate.utils.GradientAccumulationPlugin(
            num_steps=recipe.accumulation_steps, sync_with_dataloader=False
        ),
        log_with=recipe.trackers or None,
        project_dir=str(output),
        kwargs_handlers=[
            accelerate.InitProcessGroupKwargs(timeout=TIMEOUT),
            accelerate.DistributedDataParallelKwargs(find_unused_parameters=unused),
        ],
    )
    if is_sharded(accelerator) and recipe.ema_decay is not None:
        raise ValueError("ema_decay: not with sharded weights (FSDP, DeepSpeed stage 3); use null there.")
    accelerate.utils.set_seed(recipe.seed, device_specific=True)
    return accelerator


def join_processes(cpu: bool = False) -> PartialState:
    """`accelerate.PartialState`, before there is an `Accelerator`: for work that the main process does first."""
    return import_accelerate().PartialState(cpu=cpu or resolve_device().type == "cpu", timeout=TIMEOUT)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether a process may hold only a part of the weights."""
    return accelerator.distributed_type.value in ("FSDP", "DEEPSPEED")


def from_main(state: Accelerator | PartialState, value: Value) -> Value:
    """The main process' value, in all processes."""
    if state.num_processes == 1:
        return value
    return import_accelerate().utils.broadcast_object_list([value])[0]


@contextlib.contextmanager
def only_run_of_all(state: Accelerator | PartialState, output: Path, check: Callable[[], None]) -> Iterator[None]:
    """Keep other runs out of a folder: the main process holds it, and all of them raise where it cannot.

    Args:
        state: `Accelerator` or `PartialState`.
        output (`Path`)
        check: called by the main process when it holds the folder; may raise `OSError`.

    Raises:
        OSError: another run is at work there, or what `check` raises.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        if state.is_main_process:
            try:
                stack.enter_context(only_run(output))
                check()
            except OSError as error:
                refusal = error
        refusal = from_main(state, refusal)
        if refusal is not None:
            raise refusal
        yield


def enable_gradient_checkpointing(model: ComboForAudioVisualSegmentation) -> int:
    """Keep only the inputs of layers, and compute the layers again in the backward pass; gradients stay the same.

    Args:
        model ([`ComboForAudioVisualSegmentation`]): changed in place. Backbone blocks whose batch norms are trained
            are left alone: computing them again would count a batch twice in their statistics.

    Returns:
        Number of layers that are computed again.
    """
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    count = 0
    module: Any
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


@contextlib.contextmanager
def memory_advice(recipe: TrainingRecipe) -> Iterator[None]:
    """Turn "out of memory" into a message that names what to change in the recipe, whose present values are shown.

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


def import_accelerate() -> Any:
    """Accelerate with what is used of it.

    Raises:
        ImportError: not installed; the message has the command.
    """
    try:
        import accelerate
        import accelerate.state
        import accelerate.utils
    except ImportError as error:
        raise ImportError("training needs accelerate: pip install 'combo-hf[train]'") from error
    return accelerate


def _recomputed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(module).forward
    if not (module.training and torch.is_grad_enabled()):
        return forward(module, *args, **kwargs)
    return checkpoint(forward, module, *args, use_reentrant=False, **kwargs)


def _has_trained_batch_norm(module: nn.Module) -> bool:
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    return any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def _check_trackers(names: list[str]) -> None:
    from accelerate.tracking import get_available_trackers

    available = [name.value for name in get_available_trackers()]
    absent = [name for name in names if name not in available]
    if absent:
        raise ImportError(f"trackers: {absent[0]} is not installed; pip install {absent[0]}")
