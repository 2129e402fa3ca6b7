"""The network that a training starts with: a preset or a checkpoint, other classes, encoders, frozen parameters."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from combo_hf.configuration_combo import ComboConfig
from combo_hf.feature_extraction_combo import ComboFeatureExtractor
from combo_hf.image_processing_combo import ComboImageProcessor
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.processing_combo import ComboProcessor
from combo_hf.training.arguments import ModelRecipe


def build_model(recipe: ModelRecipe, seed: int = 0, **config: Any) -> ComboForAudioVisualSegmentation:
    """The model of a recipe; the same seed gives the same random weights.

    Args:
        recipe ([`ModelRecipe`]): its `overrides` win over `config`.
        seed (`int`)
        **config: fields of [`ComboConfig`], such as `id2label` and `label2id`.

    Raises:
        ValueError: unknown preset or field; weights of another architecture or size.
        OSError: weights that are not there.
    """
    from transformers import set_seed

    from combo_hf import resolve_model

    fields = {**config, **recipe.overrides}
    if "id2label" in recipe.overrides and "label2id" not in recipe.overrides:
        fields["label2id"] = {name: int(index) for index, name in fields["id2label"].items()}
    known = ComboConfig().to_dict()
    unknown = sorted(name for name in fields if name not in known)
    if unknown:
        raise ValueError(f"model.overrides: ComboConfig has no field {unknown[0]!r}.")
    set_seed(seed)
    if recipe.pretrained is not None:
        model = _from_checkpoint(recipe.pretrained, recipe.new_head, fields)
    else:
        if recipe.encoders is not None:  # whose audio encoder may be of another size than the preset's
            with _named("encoders"):
                theirs = ComboConfig.from_pretrained(resolve_model(recipe.encoders))
            fields.setdefault("audio_config", theirs.audio_config)
        model = ComboForAudioVisualSegmentation(ComboConfig.from_preset(recipe.preset, **fields))
    _load_starts(model, recipe)
    return model


def _from_checkpoint(source: str, new_head: bool, fields: dict[str, Any]) -> ComboForAudioVisualSegmentation:
    from combo_hf import resolve_model

    gate = fields.pop("class_gate", None)
    labels = {name: fields.pop(name) for name in ("id2label", "label2id") if name in fields} if new_head else {}
    try:
        model = ComboForAudioVisualSegmentation.from_pretrained(resolve_model(source), **fields)
    except (RuntimeError, ValueError) as error:  # sizes that differ
        raise ValueError(
            f"model.pretrained: {source} does not fit what is wanted here, for example another number of classes "
            f"(model.new_head=true makes the class head anew): {str(error).partition(chr(10))[0]}"
        ) from error
    if gate is not None and gate != model.config.class_gate:  # a checkpoint may have been trained without
        model.config.class_gate = gate
        heard = (model.config.audio_config["embedding_size"], model.config.num_labels - 1)
        model.class_gate = torch.nn.Linear(*heard) if gate else None
    if "id2label" in labels:
        made = replace_class_head(model, [labels["id2label"][index] for index in sorted(labels["id2label"], key=int)])
        if made and os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
            shown = f"{', '.join(made[:4])}{', ...' if len(made) > 4 else ''}"
            print(f"model.pretrained: new in the class head: {shown}; all else is from {source}", file=sys.stderr)
    return model


def replace_class_head(model: ComboForAudioVisualSegmentation, names: Sequence[str]) -> list[str]:
    """Give a model other classes, in place: rows of classes that it knew (and of "no object") stay.

    Args:
        model ([`ComboForAudioVisualSegmentation`])
        names: of the new classes, background first.

    Returns:
        The classes whose rows are new, drawn at random.
    """
    known = {name: index for index, name in (model.config.id2label or {}).items()}
    rows = [(index, known[name]) for index, name in enumerate(names) if name in known]
    if model.class_gate is not None:  # has no row of the background
        heard = [(new - 1, old - 1) for new, old in rows if new and old]
        model.class_gate = _with_rows(model.class_gate, len(names) - 1, heard)
    decoder = model.model.decoder
    no_object = (len(names), decoder.class_head.out_features - 1)
    decoder.class_head = _with_rows(decoder.class_head, len(names) + 1, [*rows, no_object])
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return [name for name in names if name not in known]


def _with_rows(old: torch.nn.Linear, size: int, rows: Sequence[tuple[int, int]]) -> torch.nn.Linear:
    """A layer of `size` outputs, drawn at random but for the rows (new, old) of another one."""
    layer = torch.nn.Linear(old.in_features, size).to(old.weight)
    with torch.no_grad():
        for new, kept in rows:
            layer.weight[new], layer.bias[new] = old.weight[kept], old.bias[kept]
    return layer


def _load_starts(model: ComboForAudioVisualSegmentation, recipe: ModelRecipe) -> None:
    if recipe.encoders is None and recipe.backbone is None and recipe.vggish is None:
        return
    from combo_hf.conversion.pretrained import load_encoders, load_pretrained_backbones, load_vggish

    loaders = {"encoders": load_encoders, "backbone": load_pretrained_backbones, "vggish": load_vggish}
    for name, load in loaders.items():
        source = getattr(recipe, name)
        if source is not None:
            with _named(name):
                load(model, source)


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Errors say which field of the recipe they are about."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise type(error)(f"model.{field}: {error}") from error


def freeze(model: ComboForAudioVisualSegmentation, pattern: str) -> None:
    """Leave parameters out of the training.

    Raises:
        ValueError: no pattern, or none of the parameters has such a name.
    """
    try:
        named = [value for name, value in model.named_parameters() if re.search(pattern, name)]
    except re.error as error:
        raise ValueError(f"frozen_pattern: {pattern!r} is no regular expression ({error}).") from error
    if not named:
        raise ValueError(f"frozen_pattern: no parameter of the model matches {pattern!r}.")
    for parameter in named:
        parameter.requires_grad_(False)


def build_processor(config: ComboConfig) -> ComboProcessor:
    """The [`ComboProcessor`] that belongs to a configuration, saved with its checkpoints."""
    images = ComboImageProcessor(size=config.image_size, num_labels=config.num_labels)
    return ComboProcessor(images, ComboFeatureExtractor(), num_frames=config.num_frames)
