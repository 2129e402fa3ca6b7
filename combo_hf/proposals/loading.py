"""Which weights and which precision a proposal model is asked for with."""

from __future__ import annotations

import re
from pathlib import Path

import torch


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
