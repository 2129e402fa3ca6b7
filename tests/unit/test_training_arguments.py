"""Recipes: typed values, strict reading, overrides, and what a resumed run may change."""

from pathlib import Path

import pytest

from combo_hf.files.typed_yaml import dump_yaml, parse_yaml
from combo_hf.training.arguments import AvsbenchRecipe, SyntheticRecipe, TrainingRecipe
from combo_hf.training.optimizer import BACKBONE_PATTERN, POLY_POWER


BILLION = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcde", "bcdef", strict=True)
)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


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
        ("ema_decay: 1", "ema_decay: wanted more than 0 and less than 1"),
        ("accumulation_steps: 0", "accumulation_steps: wanted at least 1"),
        ("save_every: 0", "save_every: wanted at least 1"),
        ("trackers: tensorboard", "trackers: wanted list, got 'tensorboard'"),
        ("trackers: [3]", r"trackers\[0\]: wanted str, got 3"),
        ("trackers: [paper]", "trackers: wanted some of"),
        ("push_to_hub: combo", "push_to_hub: wanted owner/name"),
        ("data: {source: tape}", r"data.source: wanted one of \['synthetic', 'avsbench', 'mixed'\], got 'tape'"),
        ("data: {source: avsbench, kind: s4}", "unknown key data.kind; known here: source, path, subset"),
        ("data: {subset: s4}", "unknown key data.subset"),  # of the synthetic source, the default
        ("data: {source: avsbench, subset: s5}", "subset: wanted one of"),
        ("data: {source: avsbench, train_clips: 0}", "train_clips: wanted at least 1"),
        ("data: {source: avsbench, path: ''}", "path: wanted a name"),
        ("data: {kind: s5}", "kind: wanted one of"),
        ("data: {kind: ms3+s5}", "kind: wanted one of .* or several joined by '\\+', got 'ms3\\+s5'"),
        ("data: {kind: ms3+ms3}", "kind: wanted one of"),
        ("data: {kind: ''}", "kind: wanted one of"),
        ("data: {train_clips: 0}", "train_clips: wanted at least 1"),
        ("seed: 1\nseed: 2", "repeated key 'seed'"),
        ("seed: [", "not plain YAML"),
        ("seed: !!python/object/apply:os.getpid []", "not plain YAML"),
        (BILLION, r"not plain YAML: aliases \(\*name\) are not read"),
        ("seed: " + "[" * 5000, "not plain YAML"),
        ("seed: 2026-99-99", "not plain YAML: month"),
        ("seed: !!map x", "not plain YAML"),
        ("{[1]: 2}", "not plain YAML: a key is no word"),
        ("seed: 1\n" * 200_000, "has 1600000 characters"),
        ("seed: " + "9" * 5000, "not plain YAML"),
        ("\0", "not plain YAML"),
    ],
)
def test_impossible_recipes(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        TrainingRecipe.from_yaml(write(tmp_path, text))


def test_a_list_that_occurs_twice_is_written_twice():
    twice = ["tensorboard"]
    assert parse_yaml(dump_yaml({"a": twice, "b": twice})) == {"a": twice, "b": twice}


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


def test_source_decides_the_kind_of_data(tmp_path: Path):
    text = "data: {source: avsbench, path: somewhere, subset: ms3}"
    recipe = TrainingRecipe.from_yaml(write(tmp_path, text), ["data.official_jitter=true"])
    assert recipe.data == AvsbenchRecipe(path="somewhere", subset="ms3", official_jitter=True)
    assert TrainingRecipe.from_dict(recipe.to_dict()) == recipe
    assert TrainingRecipe.from_dict({"data": {"source": "synthetic"}}).data == SyntheticRecipe()


@pytest.mark.parametrize(
    ("values", "differences"),
    [
        ({}, []),
        ({"progress": False, "num_workers": 3, "time_limit_s": 5.0, "trackers": ["tensorboard"]}, []),
        ({"data": {"cache": "elsewhere", "num_processes": 2}}, []),
        ({"max_steps": 5}, ["max_steps: 1000, 5"]),
        ({"model": {"overrides": {"num_queries": 3}}}, ["model.overrides.num_queries: 'absent', 3"]),
        ({"data": {"kind": "s4"}, "ema_decay": 0.9}, ["data.kind: 'ms3', 's4'", "ema_decay: None, 0.9"]),
    ],
)
def test_what_moves_no_weight(values: dict, differences: list[str]):
    assert TrainingRecipe().differences(TrainingRecipe.from_dict(values)) == differences


def test_recipe_that_is_no_text(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        TrainingRecipe.from_yaml(tmp_path / "recipe.yaml")


def test_yaml_is_data_only():
    assert parse_yaml("a: 1\nb: {c: [1e-4, x]}") == {"a": 1, "b": {"c": ["1e-4", "x"]}}
