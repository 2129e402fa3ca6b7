"""Recipes: typed values, strict reading, overrides, and that every field of the examples is known."""

from pathlib import Path

import pytest

from combo_hf.training.arguments import TrainingRecipe, parse_yaml
from combo_hf.training.optimizer import BACKBONE_PATTERN, POLY_POWER


RECIPES = sorted((Path(__file__).resolve().parents[2] / "examples" / "recipes").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_examples_are_read(path: Path):
    recipe = TrainingRecipe.from_yaml(path)
    assert recipe.data.train_clips > 0 and recipe != TrainingRecipe()


def test_there_is_a_recipe():
    assert RECIPES


def test_defaults_are_those_of_the_optimizer():
    recipe = TrainingRecipe()
    assert (recipe.backbone_pattern, recipe.poly_power) == (BACKBONE_PATTERN, POLY_POWER)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.backbone_scale) == (1e-4, 0.05, 0.1)


def test_types_nesting_and_overrides(tmp_path: Path):
    text = "learning_rate: 1e-3\nmodel: {preset: r50-ms3, overrides: {num_queries: 7}}\ndata:\nmax_grad_norm: 1\n"
    overrides = ["max_steps=12", "data.silence_audio=true", "model.overrides.fusion=false", "time_limit_s=null"]
    recipe = TrainingRecipe.from_yaml(write(tmp_path, text), overrides)
    assert recipe.learning_rate == 1e-3  # which YAML takes for text
    assert recipe.max_grad_norm == 1.0 and isinstance(recipe.max_grad_norm, float)
    assert recipe.model.preset == "r50-ms3" and recipe.model.overrides == {"num_queries": 7, "fusion": False}
    assert (recipe.max_steps, recipe.data.silence_audio, recipe.time_limit_s) == (12, True, None)


def test_saved_recipe_is_the_same(tmp_path: Path):
    recipe = TrainingRecipe.from_dict({"seed": 3, "data": {"kind": "avss"}, "time_limit_s": 10})
    recipe.save(tmp_path / "saved.yaml")
    assert TrainingRecipe.from_yaml(tmp_path / "saved.yaml") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["saved.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_step: 5", "unknown key max_step; known here: .*max_steps"),
        ("data: {clips: 5}", "unknown key data.clips"),
        ("max_steps: 5.5", "max_steps: wanted int, got 5.5"),
        ("max_steps: true", "max_steps: wanted int, got True"),
        ("learning_rate: fast", "learning_rate: wanted float, got 'fast'"),
        ("progress: 1", "progress: wanted bool"),
        ("seed: null", "seed: wanted int, got None"),
        ("data: [1]", "data: wanted keys and values"),
        ("model: {overrides: 3}", "model.overrides: wanted dict"),
        ("- 1", "wanted 'key: value' lines"),
        ("max_steps: 0", "max_steps: wanted at least 1"),
        ("learning_rate: .nan", "learning_rate: wanted more than 0"),
        ("mixed_precision: fp8", "mixed_precision: wanted one of"),
        ("best_metric: accuracy", "best_metric: wanted one of"),
        ("time_limit_s: 0", "time_limit_s: wanted more than 0"),
        ("seed: 1\nseed: 2", "repeated key 'seed'"),
        ("seed: [", "not plain YAML"),
        ("seed: !!python/object/apply:os.getpid []", "not plain YAML"),
    ],
)
def test_impossible_recipes(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        TrainingRecipe.from_yaml(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps", "wanted key=value"),
        ("=3", "wanted key=value"),
        ("max_steps.x=3", "max_steps has no parts"),
        ("data.kind.x=3", "kind has no parts"),
        ("data.colour=3", "unknown key data.colour"),
    ],
)
def test_impossible_overrides(tmp_path: Path, override: str, message: str):
    with pytest.raises(ValueError, match=message):
        TrainingRecipe.from_yaml(write(tmp_path, "max_steps: 3\ndata: {kind: ms3}"), [override])


def test_yaml_is_data_only():
    assert parse_yaml("a: 1\nb: {c: [1e-4, x]}") == {"a": 1, "b": {"c": ["1e-4", "x"]}}
