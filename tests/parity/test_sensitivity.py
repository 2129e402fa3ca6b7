"""The parity tests can fail: small mistakes, made on purpose, are caught in spite of tolerances and settled ties."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_forward
import torch
from goldens import Goldens, forward_inputs
from test_losses import compare_losses

import combo_hf.modeling_combo_decoder as decoder_module


@contextmanager
def scaled(weight: torch.Tensor, factor: float) -> Iterator[None]:
    """A weight, wrong by a factor."""
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(factor)
    yield
    with torch.no_grad():
        weight.copy_(kept)


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, kept)


def late_threshold(logits: torch.Tensor) -> torch.Tensor:
    """Attention masks from logit 0.001 on instead of 0."""
    visible = logits.flatten(2) >= 1e-3
    return visible | ~visible.any(dim=-1, keepdim=True)


DECODER_MISTAKES: dict[str, Callable] = {
    "a cross-attention weight": lambda model: scaled(model.model.decoder.layers[4].cross_attn.q_proj.weight, 1.001),
    "a norm": lambda model: scaled(model.model.decoder.layer_norm.weight, 1.0002),
    "the mask threshold": lambda model: replaced(decoder_module, "visible_tokens", late_threshold),
    "one query hears another frame": lambda model: replaced(
        test_forward,
        "spread_audio",
        lambda sound, clips, queries, layout: decoder_module.spread_audio(sound, clips, queries, layout).index_copy(
            1, torch.tensor([50]), decoder_module.spread_audio(sound, clips, queries, layout)[:, [70]]
        ),
    ),
}
ENCODER_MISTAKES: dict[str, Callable] = {
    "a backbone weight": lambda model: scaled(
        model.model.encoder.maskige_backbone.encoder.stages[1].layers[0].shortcut.convolution.weight, 1.001
    ),
    "an offset of the deformable attention": lambda model: scaled(
        model.model.pixel_decoder.layers[0].self_attn.sampling_offsets.bias, 1.001
    ),
    "the fusion's positions": lambda model: scaled(model.model.fusion.audio_position.weight, 1.01),
}


@pytest.mark.slow
def test_mistakes_are_caught(goldens: Goldens, monkeypatch: pytest.MonkeyPatch):
    golden = goldens.arrays("combo/forward_s4_r50_b1.npz")
    golden = {name: value for name, value in golden.items() if "/fixed/" not in name}
    inputs, model = forward_inputs(golden), goldens.model("s4_r50")
    caught = {}
    states, received = test_forward.observe(model, inputs)
    with monkeypatch.context() as patch:  # the check of what the network gave its decoder is not the subject
        patch.setattr(model.config, "audio_query_layout", "per_frame")
        for name, mistake in DECODER_MISTAKES.items():
            with mistake(model):
                caught[name] = test_forward.compare_layouts(model, states, received, golden, inputs["num_frames"])
    for name, mistake in ENCODER_MISTAKES.items():
        stages = test_forward.Stages()
        with mistake(model):
            test_forward.compare_encoders(stages, test_forward.observe(model, inputs)[0], golden)
        caught[name] = stages.wrong()
    assert all(caught.values()), {name: len(errors) for name, errors in caught.items()}
    for name, value in {"no_object_weight": 0.1001, "consistency_weight": 10.001, "train_num_points": 12544}.items():
        with monkeypatch.context() as patch:
            patch.setattr(model.config, name, value)
            wrong = compare_losses(goldens, patch, "s4_r50_b1", "s4_r50", "fixed")
        assert bool(wrong) is (name != "train_num_points"), (name, wrong)  # the last one changes nothing
    assert not test_forward.compare_layouts(model, states, received, golden, inputs["num_frames"])


@pytest.mark.parametrize("seed", [0, 7, 20261123])
def test_filler_is_that_of_the_goldens(shared: Path, goldens: Goldens, seed: int):
    """Every name, shapes made small: the same bytes for any seed."""
    spec = importlib.util.spec_from_file_location("fill_weights", shared / "goldens" / "fill_weights.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    for config in ("s4_r50", "s4_pvt", "avss_r50"):
        manifest = goldens.manifest(config)
        entries = [[name, [min(size, 9) for size in shape], dtype] for name, shape, dtype in manifest["entries"]]
        shift = {} if config.startswith("avss") else {"class_bias_shift": {"7": [1.5, -1.5, 0.0]}}
        wanted = theirs.fill_state_dict({"entries": entries, **shift}, seed)
        ours = sys.modules["filler"].fill_state_dict({"entries": entries, **shift}, seed)
        assert wanted.keys() == ours.keys()
        assert all(value.tobytes() == ours[name].tobytes() for name, value in wanted.items())
