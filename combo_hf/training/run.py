"""From a recipe to a model, its processor and its data, and to a whole run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from combo_hf.configuration_combo import SUBSETS, ComboConfig
from combo_hf.data.clips import AvsbenchClips
from combo_hf.data.loading import load_avsbench
from combo_hf.data.transforms import EvalTransform, TrainTransform, build_transform
from combo_hf.feature_extraction_combo import ComboFeatureExtractor
from combo_hf.image_processing_combo import ComboImageProcessor
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.processing_combo import ComboProcessor
from combo_hf.training.arguments import AvsbenchRecipe, ModelRecipe, SyntheticRecipe, TrainingRecipe
from combo_hf.training.batches import TrainingSet
from combo_hf.training.clips_in_memory import ClipTensors, prepare_synthetic, synthetic_labels
from combo_hf.training.engine import join_processes, only_run_of_all
from combo_hf.training.loop import TrainingResult, check_output, train


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

    fields = {**config, **recipe.overrides}
    known = ComboConfig().to_dict()
    unknown = sorted(name for name in fields if name not in known)
    if unknown:
        raise ValueError(f"model.overrides: ComboConfig has no field {unknown[0]!r}.")
    set_seed(seed)
    if recipe.pretrained is not None:
        try:
            model = ComboForAudioVisualSegmentation.from_pretrained(recipe.pretrained, **fields)
        except RuntimeError as error:  # sizes that differ
            text = f"{recipe.pretrained} has other sizes than wanted here, for example another number of classes"
            raise ValueError(
                f"model.pretrained: {text}; train from its preset instead, or on its kind of data."
            ) from error
    else:
        model = ComboForAudioVisualSegmentation(ComboConfig.from_preset(recipe.preset, **fields))
    _load_starts(model, recipe)
    return model


def _load_starts(model: ComboForAudioVisualSegmentation, recipe: ModelRecipe) -> None:
    if recipe.encoders is None and recipe.backbone is None and recipe.vggish is None:
        return
    from combo_hf.conversion.pretrained import load_encoders, load_pretrained_backbones, load_vggish

    loaders = {"encoders": load_encoders, "backbone": load_pretrained_backbones, "vggish": load_vggish}
    for name, load in loaders.items():
        source = getattr(recipe, name)
        if source is not None:
            try:
                load(model, source)
            except (ValueError, OSError) as error:
                raise type(error)(f"model.{name}: {error}") from error


def label_names(recipe: TrainingRecipe) -> dict[str, Any]:
    """Fields of [`ComboConfig`] that name the classes of the recipe's data."""
    data = recipe.data
    if isinstance(data, SyntheticRecipe):
        names = synthetic_labels(data.labels)
    else:
        names = dict(enumerate(SUBSETS[data.subset]["classes"]))
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


def build_processor(config: ComboConfig) -> ComboProcessor:
    """The [`ComboProcessor`] that belongs to a configuration, saved with its checkpoints."""
    images = ComboImageProcessor(size=config.image_size, num_labels=config.num_labels)
    return ComboProcessor(images, ComboFeatureExtractor(), num_frames=config.num_frames)


def build_data(recipe: TrainingRecipe, config: ComboConfig) -> tuple[TrainingSet, TrainingSet]:
    """Training and validation set of a recipe.

    Args:
        recipe ([`TrainingRecipe`])
        config ([`ComboConfig`]): for the input size and the number of classes.

    Raises:
        ValueError, OSError: the data are not what the recipe says, or not there.
    """
    data = recipe.data
    if isinstance(data, SyntheticRecipe):
        return _synthetic(recipe, data, config, "train"), _synthetic(recipe, data, config, "val")
    return _avsbench(recipe, data, config, True), _avsbench(recipe, data, config, False)


def _synthetic(recipe: TrainingRecipe, data: SyntheticRecipe, config: ComboConfig, split: str) -> ClipTensors:
    clips, size = data.train_clips if split == "train" else data.val_clips, config.image_size
    examples = []
    for kind in data.kinds:
        name = f"{kind}-{data.labels}-{split}-{data.seed}-{clips}-{size}.npz"
        cache = None if data.cache is None else Path(data.cache) / name
        made = prepare_synthetic(
            kind, data.seed, clips, split, size, data.labels, data.num_processes, cache, progress=recipe.progress
        )
        examples += made.examples
    return ClipTensors(examples, silence_audio=data.silence_audio, blank_maskige=data.blank_maskige)


def _avsbench(recipe: TrainingRecipe, data: AvsbenchRecipe, config: ComboConfig, training: bool) -> AvsbenchClips:
    split = data.train_split if training else data.val_split
    rows = load_avsbench(data.path, split, subset=data.subset, revision=data.revision)
    limit = data.train_clips if training else data.val_clips
    if limit is not None and limit < len(rows):
        rows = rows.select(range(limit))
    return AvsbenchClips(
        rows,
        avsbench_transform(recipe, data, config, training),
        num_labels=config.num_labels,
        seed=recipe.seed,
        use_maskige=config.use_maskige,
        proposal_generator=data.proposal_generator,
        silence_audio=data.silence_audio,
    )


def avsbench_transform(
    recipe: TrainingRecipe, data: AvsbenchRecipe, config: ComboConfig, training: bool
) -> TrainTransform | EvalTransform:
    """What a clip of AVSBench goes through before it is batched, see [`build_transform`]."""
    return build_transform(
        data.subset,
        training,
        image_size=config.image_size,
        official_jitter=data.official_jitter,
        official_maskige_resize=data.official_maskige_resize,
        jitter=recipe.jitter > 0,
        flip=recipe.flip,
    )


def run_recipe(recipe: TrainingRecipe, output: str | Path, resume: bool = False, cpu: bool = False) -> TrainingResult:
    """Everything: build, train, and push if asked.

    Args:
        recipe ([`TrainingRecipe`])
        output (`str` or `Path`), resume (`bool`), cpu (`bool`): see [`train`].

    Raises:
        As [`train`], [`build_model`] and [`build_data`]; of a push, as [`check_access`] before the training and
        [`push_checkpoint`] after it.
    """
    output = Path(output)
    check_output(output, resume)  # before clips are made
    processes = join_processes(cpu)
    with only_run_of_all(processes, output, lambda: check_output(output, resume)):
        if recipe.push_to_hub is not None and processes.is_main_process:
            from combo_hf.publishing import check_access

            check_access(recipe.push_to_hub, private=recipe.push_private)  # not after days of training
        model = build_model(recipe.model, recipe.seed, **label_names(recipe))
        # One process makes the clips and fills the cache, from which the others read them.
        with processes.local_main_process_first():
            train_set, validation_set = build_data(recipe, model.config)
        if recipe.frozen_pattern is not None:
            freeze(model, recipe.frozen_pattern)
        result = train(model, train_set, recipe, output, validation_set, build_processor(model.config), resume, cpu)
        if recipe.push_to_hub is not None and result.stopped_by == "max_steps" and processes.is_main_process:
            push_checkpoint(output / "best", recipe.push_to_hub, recipe.push_private)
        return result


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


def push_checkpoint(folder: str | Path, repository: str, private: bool = True) -> str:
    """Publish a checkpoint on the Hub: what `combo-hf push` publishes and nothing else of the folder, as one commit.

    Args:
        folder (`str` or `Path`): with config.json, processor and weights.
        repository (`str`): owner/name; made if it does not exist.
        private (`bool`): nobody else may see it; an existing repository that is public is then an error.

    Returns:
        Address of the repository.

    Raises:
        FileNotFoundError: no checkpoint there.
        OSError: the Hub refuses, or cannot be reached; the training's files are kept.
    """
    from combo_hf.publishing import plan_publication, publish, resolve_repo_id

    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no checkpoint to push.")
    try:
        return publish(plan_publication(folder, resolve_repo_id(repository)), private=private).url
    except (ValueError, OSError) as error:
        again = f"combo-hf push {folder} {repository}{' --private' if private else ''}"
        raise OSError(f"push failed: {error} The checkpoint is kept; to go on: {again}") from error
