"""Weights of a saved model: complete, of the right shapes and finite, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from combo_hf.files.wording import first_line, some


Model = TypeVar("Model", bound=PreTrainedModel)


def load_complete(kind: type[Model], source: str | Path, *, surplus: bool = False, **options: Any) -> Model:
    """`kind.from_pretrained(source)`, refusing weights that leave a tensor of the network as it was drawn.

    Args:
        kind: class of the model.
        source: folder or Hub id.
        surplus: whether weights without a place in this network are fine.
        **options: of `from_pretrained`.

    Raises:
        ValueError: weights missing, without a place, of another shape, damaged or not finite.
        OSError: no such folder or repository, or files missing.
    """
    try:
        loaded: Any = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{source}: these weights cannot be loaded ({first_line(error)}).") from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(f"{source}: the weight file is damaged ({first_line(error)}).") from error
        raise
    model: Model
    model, report = loaded
    kinds = {
        "missing": report["missing_keys"],
        "of another shape": [entry[0] for entry in report["mismatched_keys"]],
        "without a place in this network": [] if surplus else report["unexpected_keys"],
    }
    wrong = [f"{len(names)} {what}: {some(sorted(names))}" for what, names in kinds.items() if names]
    if wrong:
        raise ValueError(f"{source}: the weights do not fit the configuration ({'; '.join(wrong)}).")
    state = model.state_dict()
    broken = [name for name, tensor in state.items() if not tensor.is_meta and not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(f"{source}: the weights are damaged, {some(broken)} hold values that are not finite.")
    return model.eval()
