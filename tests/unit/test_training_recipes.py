"""Every recipe of the examples: its head, its network (without memory), its data settings, Table I's values."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

import combo_hf
from combo_hf import BUNDLED_MODEL, ComboForAudioVisualSegmentation
from combo_hf.commands.training import add_arguments
from combo_hf.data.transforms import EvalTransform, TrainTransform
from combo_hf.files.typed_yaml import find_yaml
from combo_hf.training import (
    AvsbenchRecipe,
    SyntheticRecipe,
    TrainingRecipe,
    build_model,
    build_processor,
    label_names,
    parameter_groups,
)
from combo_hf.training.sources import avsbench_transform


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = {path.stem: path for path in sorted(combo_hf.RECIPES.glob("*.yaml"))}
OWN = ["own-data", "s4-small", "real-animals"]
OFFICIAL = [name for name in RECIPES if not name.startswith("synthetic") and name not in OWN]
# Appendix, Table I; steps between evaluations as in the release
TABLE_I = {"s4": (90_000, 10.0, 5000), "ms3": (20_000, 10.0, 400), "avss": (90_000, 5.0, 5000)}


def test_all_recipes_are_there():
    full = {f"{backbone}-{subset}" for backbone in ("r50", "pvtv2-b5") for subset in ("s4", "ms3", "avss")}
    variants = {"pvtv2-b5-avss-24gb", "r50-avss-24gb", "pvtv2-b5-ms3-from-s4"}
    assert set(OFFICIAL) == full | variants
    kinds = {
        "synthetic-s4",
        "synthetic-ms3",
        "synthetic-avss",
        "synthetic-quick",
        "synthetic-demo",
    }
    assert set(RECIPES) - set(OFFICIAL) == {*kinds, *OWN}


@pytest.mark.parametrize("name", ["synthetic-quick", "synthetic-quick.yaml", "examples/recipes/synthetic-quick.yaml"])
def test_recipes_are_found_by_name_anywhere(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    assert find_yaml(name, combo_hf.RECIPES) == RECIPES["synthetic-quick"]
    own = tmp_path / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("max_steps: 3")  # a file of one's own comes first
    assert TrainingRecipe.from_yaml(name).max_steps == 3


@pytest.mark.parametrize("name", ["synthetic-quik", "runs/synthetic-quick.yaml", "../synthetic-quick"])
def test_unknown_recipes_are_told_which_there_are(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file, and no recipe of the package: .*, synthetic-quick,"):
        TrainingRecipe.from_yaml(name)


@pytest.mark.parametrize("name", RECIPES)
def test_head_states_hardware_cost_and_whose_number(name: str):
    head = "".join(line for line in RECIPES[name].read_text(encoding="utf-8").splitlines(True) if line[0] == "#")
    assert f"--recipe {name} " in head
    for word in ("Hardware:", "Cost:", "Number:", "ours"):
        assert word in head, word
    if name in OFFICIAL:
        assert "the paper" in head and "not measured" in head


@pytest.mark.parametrize("name", RECIPES)
def test_command_in_the_head_is_understood(name: str):
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    command = next(line.lstrip("# ") for line in lines if line.startswith("#   combo-hf train "))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(shlex.split(command)[2:])
    assert arguments.recipe == name
    assert TrainingRecipe.from_yaml(arguments.recipe, arguments.override)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_its_network_and_names_its_data(name: str):
    recipe = TrainingRecipe.from_yaml(RECIPES[name])
    assert recipe != TrainingRecipe()
    starts = (recipe.model.pretrained, recipe.model.backbone, recipe.model.vggish)
    recipe.model.pretrained = recipe.model.encoders = recipe.model.backbone = recipe.model.vggish = None
    if starts[0] is not None:
        recipe.model.preset = name.partition("-from")[0] if name in OFFICIAL else "tiny"
    with torch.device("meta"):
        names = {} if name in OWN else label_names(recipe)  # the data set has them
        model = build_model(recipe.model, recipe.seed, **names).train()
    groups = parameter_groups(model, recipe.learning_rate, recipe.weight_decay, recipe.backbone_scale)
    assert sum(len(group["params"]) for group in groups) > 50
    assert build_processor(model.config).num_frames == model.config.num_frames
    if name in OFFICIAL:
        assert isinstance(recipe.data, AvsbenchRecipe) and any(starts)
        assert model.config.num_labels == (71 if recipe.data.subset == "avss" else 2)
        train, evaluate = (avsbench_transform(recipe, recipe.data, model.config, flag) for flag in (True, False))
        assert isinstance(train, TrainTransform) and isinstance(evaluate, EvalTransform)
        assert train.flip == 0.5 and train.jitter and not train.official_jitter
    elif name in OWN:
        assert isinstance(recipe.data, AvsbenchRecipe)
        assert recipe.frozen_pattern is None or any(
            re.search(recipe.frozen_pattern, parameter) for parameter, _ in model.named_parameters()
        )
    else:
        assert isinstance(recipe.data, SyntheticRecipe) and recipe.data.train_clips >= 100
        assert model.config.num_labels == len(label_names(recipe)["id2label"])


@pytest.mark.parametrize("kind", ["s4", "ms3", "avss"])
def test_recipes_of_the_kinds_start_from_the_bundled_encoders(kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not in a clone
    recipe = TrainingRecipe.from_yaml(RECIPES[f"synthetic-{kind}"])
    assert recipe.data.kinds == [kind]
    model = build_model(recipe.model, recipe.seed)
    bundled = ComboForAudioVisualSegmentation.from_pretrained(BUNDLED_MODEL).model.audio_encoder.state_dict()
    assert all(value.equal(bundled[name]) for name, value in model.model.audio_encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.model.audio_encoder.parameters())


@pytest.mark.parametrize("name", OFFICIAL)
def test_values_of_table_one(name: str):
    recipe = TrainingRecipe.from_yaml(RECIPES[name])
    steps, consistency, evaluate = TABLE_I[recipe.data.subset]
    assert recipe.data.subset in name
    assert (recipe.max_steps, recipe.eval_every) == (steps, evaluate)
    assert recipe.model.overrides == {"freeze_audio_encoder": True, "consistency_weight": consistency}
    assert recipe.clips_per_batch * recipe.accumulation_steps == 8
    assert (recipe.learning_rate, recipe.weight_decay, recipe.backbone_scale) == (1e-4, 0.05, 0.1)
    assert (recipe.poly_power, recipe.warmup_steps, recipe.max_grad_norm) == (0.9, 0, 0.01)
    assert recipe.mixed_precision == ("bf16" if recipe.data.subset == "avss" else "no")
    assert recipe.gradient_checkpointing == name.endswith("24gb")


@pytest.mark.parametrize("path", sorted((EXAMPLES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_accelerate_are_read_by_it(path: Path):
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    config = config_args.load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.distributed_type.value == values["distributed_type"]
    assert config.num_processes == values["num_processes"]


def test_engines_have_a_configuration():
    names = {path.stem for path in (EXAMPLES / "accelerate").glob("*.yaml")}
    assert names == {"cpu", "multi-gpu", "multi-node", "fsdp", "deepspeed"}
    fsdp = yaml.safe_load((EXAMPLES / "accelerate" / "fsdp.yaml").read_text())["fsdp_config"]
    with torch.device("meta"):
        model = build_model(TrainingRecipe().model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert set(fsdp["fsdp_transformer_layer_cls_to_wrap"].split(",")) <= kinds
