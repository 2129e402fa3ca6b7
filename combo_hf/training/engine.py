"""What is particular to Accelerate: how it is set up for a recipe, and how processes share a value."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from combo_hf.files.folder_lock import only_run


# The others wait while the main process makes clips or evaluates.
TIMEOUT = datetime.timedelta(hours=6)


def build_accelerator(recipe: Any, output: Path, cpu: bool = False, unused: bool = False) -> Any:
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
    cpu = cpu or not torch.accelerator.is_available()  # unless told, several CPU processes do not join each other
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
        # The order of an epoch follows from (seed, epoch): what an exact resume needs. Without `data_seed` every
        # process would take its own seed, and their shares of an epoch would overlap.
        dataloader_config=accelerate.DataLoaderConfiguration(use_seedable_sampler=True, data_seed=recipe.seed),
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


def join_processes(cpu: bool = False) -> Any:
    """`accelerate.PartialState`, before there is an `Accelerator`: for work that the main process does first."""
    accelerate = import_accelerate()
    return accelerate.PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=TIMEOUT)


def is_sharded(accelerator: Any) -> bool:
    """Whether a process may hold only a part of the weights."""
    return accelerator.distributed_type.value in ("FSDP", "DEEPSPEED")


def from_main(accelerator: Any, value: Any) -> Any:
    """The main process' value, in all processes."""
    if accelerator.num_processes == 1:
        return value
    return import_accelerate().utils.broadcast_object_list([value])[0]


@contextlib.contextmanager
def only_run_of_all(state: Any, output: Path, check: Callable[[], None]) -> Iterator[None]:
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


def _check_trackers(names: list[str]) -> None:
    from accelerate.tracking import get_available_trackers

    available = [name.value for name in get_available_trackers()]
    absent = [name for name in names if name not in available]
    if absent:
        raise ImportError(f"trackers: {absent[0]} is not installed; pip install {absent[0]}")
