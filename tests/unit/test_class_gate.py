"""The gate that lets a class through as far as it is heard: arithmetic, where it acts, how it is kept and filled."""

import pytest
import torch
from fixtures_training import PLAIN, small_model

from combo_hf import ComboConfig, ComboForAudioVisualSegmentation
from combo_hf.conversion.pretrained import load_encoders
from combo_hf.label_maps_combo import gate_classes
from combo_hf.training.arguments import ModelRecipe
from combo_hf.training.start import build_model, replace_class_head


NAMES = {0: "background", 1: "cat", 2: "dog"}
GATED = {**PLAIN, "id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}, "class_gate": True}


def inputs(sound: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    pixels = {name: torch.randn(2, 3, 64, 64, generator=draw) for name in ("pixel_values", "maskige_values")}
    return {**pixels, "input_features": torch.randn(2, 1, 96, 64, generator=draw.manual_seed(sound))}


@pytest.mark.parametrize(
    "heard, expected",
    [  # of P = (0.1 background, 0.6 cat, 0.2 dog, 0.1 no object)
        ((1.0, 1.0), (0.1, 0.6, 0.2, 0.1)),
        ((0.0, 0.0), (0.9, 0.0, 0.0, 0.1)),
        ((1.0, 0.0), (0.3, 0.6, 0.0, 0.1)),
        ((0.5, 0.25), (0.55, 0.3, 0.05, 0.1)),
    ],
)
def test_what_is_silent_belongs_to_the_background(heard, expected):
    logits = torch.tensor([0.1, 0.6, 0.2, 0.1]).log().expand(1, 5, 4)
    gated = gate_classes(logits, torch.logit(torch.tensor([heard]), eps=1e-7))
    torch.testing.assert_close(gated.exp(), torch.tensor(expected).expand(1, 5, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(gated.softmax(-1), gated.exp())


def test_certain_gates_stay_finite():
    gated = gate_classes(80 * torch.eye(4).expand(2, 4, 4), torch.tensor([[90.0, -90.0], [-90.0, 90.0]]))
    assert gated.isfinite().all() and torch.allclose(gated.exp().sum(-1), torch.ones(2, 4))


def test_a_closed_gate_leaves_the_background_alone_in_all_layers():
    model = small_model(GATED).eval()
    with torch.no_grad():
        model.class_gate.weight.zero_()
        model.class_gate.bias.copy_(torch.tensor([-40.0, 40.0]))
        output = model(**inputs(), output_auxiliary_logits=True)
    for classes, _ in [*output.auxiliary_logits, (output.class_queries_logits, None)]:
        probabilities = classes.softmax(-1)
        assert probabilities[..., 1].max() < 1e-6 < probabilities[..., 2].min()


def test_only_the_gate_hears_where_all_audio_is_dropped():
    model = small_model({**GATED, "audio_dropout": 1.0}).eval()
    with torch.no_grad():
        one, other = (model(**inputs(sound)) for sound in (1, 2))
    assert torch.equal(one.masks_queries_logits, other.masks_queries_logits)
    assert not torch.allclose(one.class_queries_logits, other.class_queries_logits)


def test_audio_is_dropped_in_training_only():
    model = small_model({**GATED, "audio_dropout": 0.5})
    audio = torch.ones(400, 8)
    kept = model.train().model._dropped(audio)
    assert set(kept.mean(1).tolist()) == {0.0, 1.0} and 120 < kept[:, 0].sum() < 280
    assert model.eval().model._dropped(audio) is audio


def test_the_gate_learns():
    model = small_model(GATED).train()
    labels = {"mask_labels": [torch.ones(1, 64, 64)] * 2, "class_labels": [torch.ones(1, dtype=torch.long)] * 2}
    model(**inputs(), **labels).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.class_gate.parameters())


def test_saved_filled_and_given_other_classes(tmp_path):
    model = small_model(GATED)
    model.save_pretrained(tmp_path, carry_code=False)
    torch.testing.assert_close(
        ComboForAudioVisualSegmentation.from_pretrained(tmp_path).class_gate.weight, model.class_gate.weight
    )
    same, others = small_model(GATED), small_model({**GATED, "id2label": {**NAMES, 2: "hen"}})
    load_encoders(same, tmp_path)
    before = others.class_gate.weight.clone()
    load_encoders(others, tmp_path)
    assert torch.equal(same.class_gate.weight, model.class_gate.weight)
    assert torch.equal(others.class_gate.weight, before)
    assert replace_class_head(same, ["background", "dog", "horse"]) == ["horse"]
    assert torch.equal(same.class_gate.weight[0], model.class_gate.weight[1])
    assert same(**inputs()).class_queries_logits.shape[-1] == 4


@pytest.mark.parametrize("before, after", [(True, False), (False, True), (True, True)])
def test_a_recipe_gives_a_checkpoint_a_gate_or_takes_it_away(tmp_path, before, after):
    small_model({**GATED, "class_gate": before}).save_pretrained(tmp_path, carry_code=False)
    model = build_model(ModelRecipe(preset="tiny", pretrained=str(tmp_path), overrides={"class_gate": after}), seed=0)
    assert model.config.class_gate is after and (model.class_gate is not None) is after
    assert model(**inputs()).class_queries_logits.isfinite().all()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"class_gate": 1}, "class_gate is 1; wanted true or false"),
        ({"audio_dropout": 1.5}, "audio_dropout is 1.5; wanted a number from 0 to 1"),
        ({"audio_dropout": True}, "audio_dropout is True"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(ValueError, match=message):
        ComboConfig.from_preset("tiny", **values)
