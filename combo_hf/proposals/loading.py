"""Weights of proposal models: of the right kind, complete and finite, or refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from combo_hf.files.wording import some
from combo_hf.modeling_combo_inputs import FittingWeights


Model = TypeVar("Model", bound=PreTrainedModel)


def check_model_type(name: str, model: str, *wanted: str) -> None:
    """Raise `ValueError` unless the configuration of a folder or repository is of a wanted type."""
    from transformers import PretrainedConfig

    if not Path(model).is_dir() and not _may_be_repository(model):
        raise ValueError(f"{name}: {model}: no such folder; give a folder with config.json or a Hub id (org/name).")
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise ValueError(f"{name}: {model} holds no config.json; convert an official file with combo-hf first.")
    found = PretrainedConfig.get_config_dict(model)[0].get("model_type")
    if found not in wanted:
        raise ValueError(f"{name}: wanted weights of model type {' or '.join(wanted)}, {model} has {found}.")


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """`None` (float32), a `torch.dtype` or its name -> a float type.

    Raises:
        ValueError: anything else.
    """
    found = dtype
    if dtype is None or isinstance(dtype, str):
        found = getattr(torch, (dtype or "float32").removeprefix("torch."), None)
    if found not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype: wanted float32, float16 or bfloat16, got {dtype!r}.")
    return found


def _may_be_repository(model: str) -> bool:
    """Whether it is worth asking the Hub, which takes long where there is no network."""
    owner, slash, name = model.partition("/")
    return (
        bool(slash and re.fullmatch(r"[\w.-]+", name))
        and re.match(r"\w", model) is not None
        and not Path(owner).exists()
    )


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
    names = {"surplus_weights": surplus, "only_safetensors": None, "__module__": kind.__module__}
    checked: Any = type(kind.__name__, (FittingWeights, kind), names)
    model: Model = checked.from_pretrained(source, **options)
    model.__class__ = kind
    state = model.state_dict()
    broken = [name for name, tensor in state.items() if not tensor.is_meta and not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(f"{source}: the weights are damaged, {some(broken)} hold values that are not finite.")
    return model.eval()
