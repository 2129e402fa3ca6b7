"""The weight of the background: what it does to scores, where it acts, how it is found and kept."""

import json

import pytest
import torch
from fixtures_training import PLAIN, clips, recipe, small_model

from combo_hf import ComboConfig, ComboForAudioVisualSegmentation
from combo_hf.evaluation.calibration import BACKGROUND_WEIGHTS, calibrate_background
from combo_hf.evaluation.scores import evaluate_model, iter_class_maps, predict_class_maps
from combo_hf.label_maps_combo import class_scores, weigh_background
from combo_hf.training import train


@pytest.mark.parametrize("weight", [1.0, 0.7, 0.2, 0.001])
@pytest.mark.parametrize("labels", [2, 9])
def test_only_the_background_scores_less(weight, labels):
    logits = 5 * torch.randn(20, labels + 1, generator=torch.Generator().manual_seed(0))
    masks = torch.randn(20, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = class_scores(logits, masks, (16, 16))
    wanted[0] *= weight
    weighed = weigh_background(logits, weight)
    torch.testing.assert_close(class_scores(weighed, masks, (16, 16)), wanted)
    assert (weighed is logits) == (weight == 1)


def test_certain_queries_stay_finite():
    logits = torch.tensor([[80.0, -80.0, -80.0], [-80.0, 80.0, -80.0], [-80.0, -80.0, 80.0]])
    probabilities = weigh_background(logits, 0.25).softmax(-1)
    torch.testing.assert_close(probabilities, torch.tensor([[0.25, 0, 0.75], [0, 1, 0], [0, 0, 1.0]]))


def test_the_network_weighs_in_evaluation_mode_only():
    example = [clips(1)[0]]
    model = small_model(PLAIN).eval()  # whose batch norms keep no statistics of what was seen in between
    (plain,) = predict_class_maps(model, example)
    inputs = {
        "pixel_values": torch.randn(2, 3, 64, 64),
        "maskige_values": torch.randn(2, 3, 64, 64),
        "input_features": torch.randn(2, 1, 96, 64),
        "mask_labels": [torch.ones(1, 64, 64)] * 2,
        "class_labels": [torch.ones(1, dtype=torch.long)] * 2,
    }
    losses, logits = [], []
    for weight in (1.0, 0.25):
        model.config.background_weight = weight
        for mode in (True, False):
            torch.manual_seed(0)
            output = model.train(mode)(**inputs)
            losses.append(float(output.loss.detach()))
            logits.append(output.class_queries_logits.detach())
    assert losses[:2] == losses[2:], "the loss knows no weight"
    assert torch.equal(logits[0], logits[2]) and not torch.equal(logits[1], logits[3])
    (weighed,) = predict_class_maps(model, example)
    torch.testing.assert_close(weighed[:, 0], 0.25 * plain[:, 0])
    torch.testing.assert_close(weighed[:, 1:], plain[:, 1:])


@pytest.mark.parametrize("weight", [0, 1.5, -0.1, "0.5", None, float("nan"), True])
def test_impossible_weights(weight):
    with pytest.raises(ValueError, match="background_weight is"):
        ComboConfig.from_preset("tiny", background_weight=weight)


def dim(model: torch.nn.Module) -> torch.nn.Module:
    """Let the objects be found by the masks, but outvoted by the background everywhere."""
    with torch.no_grad():
        model.model.decoder.class_head.weight.zero_()
        model.model.decoder.class_head.bias.copy_(torch.tensor([1.2, 0.0, -9.0]))
    return model


@pytest.mark.parametrize("start", [1.0, 0.3])
def test_the_weight_found_has_the_best_overlap_whatever_the_model_had(start):
    model, data = dim(small_model()), clips(6)
    model.config.background_weight = start
    weight, overlaps = calibrate_background(model, data, batch_size=4)
    assert model.config.background_weight == start and set(overlaps) == set(BACKGROUND_WEIGHTS)
    measured = {}
    for candidate in BACKGROUND_WEIGHTS:
        model.config.background_weight = candidate
        measured[candidate] = evaluate_model(model, data)["M_J"]
    assert overlaps == pytest.approx(measured, abs=1e-3)
    assert weight < 1 and overlaps[weight] == max(overlaps.values())


def test_of_equal_weights_the_one_nearest_to_the_release():
    model = small_model()
    with torch.no_grad():
        model.model.decoder.class_head.bias[1] = 99.0  # objects everywhere, at any weight
    assert calibrate_background(model, clips(2))[0] == 1.0


def test_calibration_wants_annotated_frames():
    with pytest.raises(ValueError, match="no frame"):
        calibrate_background(small_model(), clips(2, masks=False))


@pytest.mark.parametrize("calibrate", [True, False])
def test_training_keeps_the_weight_in_the_checkpoint(tmp_path, calibrate):
    model = dim(small_model())
    plan = recipe(calibrate_background=calibrate, learning_rate=1e-9)
    train(model, clips(4), plan, tmp_path, clips(3))
    saved = ComboForAudioVisualSegmentation.from_pretrained(tmp_path / "best")
    assert (saved.config.background_weight < 1) == calibrate
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["validation"]["M_J"] for line in lines if "validation" in line]
    assert max(scores) == pytest.approx(evaluate_model(saved, clips(3))["M_J"], abs=1e-6)
    assert len(list(iter_class_maps(saved, clips(3)))) == 3
