"""Train a small COMBO on synthetic clips; prints the scores of the best checkpoint.

python examples/train_synthetic.py --recipe examples/recipes/synthetic-demo.yaml --output runs/demo
"""

import argparse
from pathlib import Path

from combo_hf import ComboFeatureExtractor, ComboForAudioVisualSegmentation, ComboImageProcessor, ComboProcessor
from combo_hf.training import (
    ClipTensors,
    SyntheticRecipe,
    TrainingRecipe,
    build_model,
    evaluate_model,
    prepare_synthetic,
    synthetic_labels,
    train,
)


def prepare(data: SyntheticRecipe, split: str, clips: int, image_size: int, progress: bool) -> ClipTensors:
    """The clips of one split, from the cache where there is one."""
    name = f"{data.kind}-{data.labels}-{split}-{data.seed}-{clips}-{image_size}.npz"
    cache = None if data.cache is None else Path(data.cache) / name
    made = prepare_synthetic(
        data.kind, data.seed, clips, split, image_size, data.labels, data.num_processes, cache, progress=progress
    )
    return made.variant(silence_audio=data.silence_audio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file, see examples/recipes")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and log")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    arguments = parser.parse_args()

    recipe = TrainingRecipe.from_yaml(arguments.recipe, arguments.override)
    names = synthetic_labels(recipe.data.labels)
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model = build_model(recipe.model, recipe.seed, **labels)
    size = model.config.image_size
    processor = ComboProcessor(
        ComboImageProcessor(size=size, num_labels=len(names)),
        ComboFeatureExtractor(),
        num_frames=model.config.num_frames,
    )
    train_set = prepare(recipe.data, "train", recipe.data.train_clips, size, recipe.progress)
    val_set = prepare(recipe.data, "val", recipe.data.val_clips, size, recipe.progress)
    result = train(model, train_set, recipe, arguments.output, val_set, processor, arguments.resume)

    best = ComboForAudioVisualSegmentation.from_pretrained(arguments.output / "best")
    scores = evaluate_model(best, val_set, recipe.eval_clips_per_batch)
    silent = evaluate_model(best, val_set.variant(silence_audio=True), recipe.eval_clips_per_batch)
    print(f"{result.step} steps, stopped by {result.stopped_by}")
    for name, values in (("validation", scores), ("the same without sound", silent)):
        print(f"{name}: M_J {values['M_J']:.4f}, M_F {values['M_F']:.4f} ({values['num_clips']} clips)")


if __name__ == "__main__":
    main()
