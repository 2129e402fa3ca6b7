"""Weights of proposal models, from a folder or the Hub: of the right kind, complete and finite, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from combo_hf.files.wording import first_line


def load_complete(network: Any, model: str) -> nn.Module:
    """`network.from_pretrained(model)` in float32, refusing weights that leave a tensor of the network unset.

    Raises:
        ValueError: tensors missing or of another shape, or values that are not finite.
        OSError: no such folder or repository, or damaged files.
    """
    try:
        loaded, report = network.from_pretrained(
            model, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{model}: these weights cannot be loaded ({first_line(error)}).") from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(f"{model}: the weight file is damaged ({first_line(error)}).") from error
        raise
    wrong = sorted([*report["missing_keys"], *(str(entry) for entry in report["mismatched_keys"])])
    if wrong:
        raise ValueError(f"{model}: {len(wrong)} tensors are missing or of another size: {wrong[0]}, ...")
    broken = [name for name, tensor in loaded.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(f"{model}: the weights are damaged, {broken[0]} holds values that are not finite.")
    return loaded.eval()


def check_model_type(name: str, model: str, *wanted: str) -> None:
    """Raise `ValueError` unless the configuration of a folder or repository is of a wanted type."""
    from transformers import PretrainedConfig

    if not Path(model).is_dir() and (model.startswith((".", "~", "/")) or "\\" in model or model.count("/") > 1):
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
