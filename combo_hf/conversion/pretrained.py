"""Starting points for training: VGGish from torchvggish's file, both visual encoders from ImageNet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .files import read_state_dict
from .official import BACKBONE_RULES, cut, rename


WEIGHT_FILES = (".pth", ".pt", ".bin", ".pkl", ".safetensors")


def load_vggish(model: Any, source: str | Path | dict) -> list[str]:
    """Fill the audio encoder from torchvggish's `vggish-10086976.pth` (names `features.N.*`, `embeddings.N.*`).

    Args:
        model: a COMBO model whose `audio_config` is VGGish's.
        source: the file, or its state dict.

    Returns:
        Names in the file that are not part of the network (the PCA of its post-processing).

    Raises:
        ValueError: not a weight file, or not VGGish of the model's size; the model is then unchanged.
    """
    encoder = _network(model).audio_encoder
    tensors = read_state_dict(source)
    used = {name: value for name, value in tensors.items() if re.match(r"(features|embeddings)\.\d+\.", name)}
    _load(encoder, used, "VGGish")
    return [name for name in tensors if name not in used]


def load_pretrained_backbones(model: Any, source: str | Path | dict) -> list[str]:
    """Fill the visual and the Maskige encoder with the same ImageNet weights.

    Args:
        model: a COMBO model.
        source: a Hub id or folder of a transformers checkpoint, or a weight file of the release:
            detectron2's `R-50.pkl`, or `pvt_v2_b5.pth` of PVTv2's authors; or such a state dict.

    Returns:
        Names in a weight file that are not part of a backbone (its ImageNet classifier).

    Raises:
        ValueError: another architecture or size, or not a weight file; the model is then unchanged.
        OSError: no such folder or Hub id.
    """
    encoder = _network(model).encoder
    if isinstance(source, dict) or Path(source).suffix in WEIGHT_FILES:
        converted, unused = _rename_backbone(read_state_dict(source))
    else:
        converted, unused = _read_transformers(encoder.backbone, source), []
    backbones = [encoder.backbone] + ([encoder.maskige_backbone] if encoder.maskige_backbone is not None else [])
    for backbone in backbones:
        _load(backbone, converted, str(source) if not isinstance(source, dict) else "the given state dict")
    return unused


def _read_transformers(backbone: Any, source: str | Path) -> dict[str, torch.Tensor]:
    """Weights of a transformers checkpoint of the same kind (usually an image classifier), under our names."""
    found, wanted = AutoConfig.from_pretrained(source).model_type, backbone.config.model_type
    if found != wanted:
        raise ValueError(f"{source} is a {found}; this model has a {wanted}.")
    # not AutoBackbone.from_pretrained: it takes a folder for the name of a repository
    pretrained, loading = type(backbone).from_pretrained(
        source, out_features=list(backbone.config.out_features), output_loading_info=True
    )
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(f"{source} lacks {len(missing)} entries of a {wanted} backbone: {missing[:3]}.")
    return pretrained.state_dict()


def _rename_backbone(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    converted: dict[str, torch.Tensor] = {}
    unused = []
    for name, tensor in tensors.items():
        target = rename(name, BACKBONE_RULES)
        if target is None:
            unused.append(name)
        else:
            converted.update(cut(target, tensor))
    return converted, unused


def _load(module: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copy tensors into a module; all names and shapes must fit (counters of batch norms may be absent)."""
    own = module.state_dict()
    absent = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    if absent or not tensors:
        raise ValueError(f"{source} does not fit: {len(absent)} of {len(own)} entries are missing: {absent[:3]}.")
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            wanted = tuple(own[name].shape) if name in own else "no such entry"
            raise ValueError(f"{source} does not fit: {name} has shape {tuple(tensor.shape)}, wanted {wanted}.")
    module.load_state_dict(tensors, strict=False)


def _network(model: Any) -> Any:
    """`ComboModel` of a `ComboForAudioVisualSegmentation`, or the model itself."""
    return getattr(model, "model", model)
