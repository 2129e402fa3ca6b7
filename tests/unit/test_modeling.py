"""The network: every preset, packed batches, layouts, losses, save and load."""

import itertools

import pytest
import torch

from combo_hf.configuration_combo import OWN_PRESETS, ComboConfig, preset_names
from combo_hf.loss_combo import LOSS_KINDS, frame_distances, neighbours, pixel_sum
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.modeling_combo_decoder import spread_audio, visible_tokens
from combo_hf.modeling_combo_pixel_decoder import sine_position_embedding


FULL_PRESETS = [name for name in preset_names() if name not in OWN_PRESETS]
# MS3 has the configuration of S4, field by field (see below): what S4's computes, MS3's does.
DISTINCT_PRESETS = [name for name in FULL_PRESETS if not name.endswith("-ms3")]


def make_inputs(config, num_frames, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = sum(num_frames)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "pixel_values": normal(frames, 3, side, side),
        "maskige_values": normal(frames, 3, side, side) if config.use_maskige else None,
        "input_features": normal(frames, 1, 96, 64),
        "num_frames": torch.tensor(num_frames),
    }


def make_labels(config, frames, side, annotated=None, seed=1):
    """Background and one class in every annotated frame."""
    generator = torch.Generator().manual_seed(seed)
    flags = torch.ones(frames, dtype=torch.bool) if annotated is None else torch.tensor(annotated)
    masks = [(torch.rand(1, side, side, generator=generator) > 0.5).float() for _ in range(int(flags.sum()))]
    return {
        "mask_labels": [torch.cat([1 - mask, mask]) for mask in masks],
        "class_labels": [torch.tensor([0, config.num_labels - 1]) for _ in masks],
        "label_frames": flags,
    }


def tiny(**overrides):
    torch.manual_seed(0)
    return ComboForAudioVisualSegmentation(ComboConfig.from_preset("tiny", **overrides)).eval()


def forward(model, inputs):
    with torch.no_grad():
        out = model(**inputs)
    return out.class_queries_logits, out.masks_queries_logits


def clip_alone(inputs, index):
    lengths = inputs["num_frames"].tolist()
    start = sum(lengths[:index])
    piece = slice(start, start + lengths[index])
    alone = {k: v[piece] for k, v in inputs.items() if v is not None and k != "num_frames"}
    return {**alone, "num_frames": torch.tensor(lengths[index : index + 1])}, piece


def assert_alone_equals_batch(model, inputs):
    """In float64: in float32 another batch size rounds differently, and where a mask logit lies within rounding of the
    attention threshold, a token becomes visible to its query or not (seen: a class logit moved by 2e-3)."""
    model = model.double()
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    for layout in ("per_frame", "official"):
        model.config.audio_query_layout = layout
        together = forward(model, inputs)
        for index in range(len(inputs["num_frames"])):
            alone, piece = clip_alone(inputs, index)
            for one, many in zip(forward(model, alone), together, strict=True):
                many = many[piece]
                assert (one - many).abs().max() <= 1e-5 * max(1.0, float(many.abs().max())), layout


def test_presets_are_the_distinct_ones():
    assert len(DISTINCT_PRESETS) == 4
    fields = {name: ComboConfig.from_preset(name).to_dict() for name in FULL_PRESETS}
    for name in set(FULL_PRESETS) - set(DISTINCT_PRESETS):
        assert fields[name] == fields[name.replace("-ms3", "-s4")]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["r50-s4", "pvtv2-b5-avss"])  # the parity suite computes with the other two
def test_preset_trains_saves_and_ignores_its_neighbours(preset, tmp_path):
    torch.manual_seed(0)
    config = ComboConfig.from_preset(preset)
    model = ComboForAudioVisualSegmentation(config)
    inputs = make_inputs(config, [2, 1], side=64)
    out = model.train()(**inputs, **make_labels(config, 3, 64))
    assert torch.isfinite(out.loss)
    out.loss.backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert dead == []
    model.zero_grad()
    model.eval()
    expected = forward(model, inputs)
    model.save_pretrained(tmp_path)
    del model
    again = ComboForAudioVisualSegmentation.from_pretrained(tmp_path)
    for one, other in zip(forward(again, inputs), expected, strict=True):
        assert torch.equal(one, other)
    assert_alone_equals_batch(again, inputs)


VARIANTS = [
    {},
    {"share_encoders": True},
    {"use_maskige": False},
    {"fusion": False},
    {"audio_query_layout": "official"},
    {"freeze_batch_norm": True},
    {"freeze_audio_encoder": True},
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda v: "-".join(v) or "default")
def test_variant_round_trip_and_independence(overrides, tmp_path):
    model = tiny(**overrides)
    inputs = make_inputs(model.config, [5, 10, 1], side=64)
    expected = forward(model, inputs)
    model.save_pretrained(tmp_path)
    again = ComboForAudioVisualSegmentation.from_pretrained(tmp_path)
    assert not again.training
    for one, other in zip(forward(again, inputs), expected, strict=True):
        assert torch.equal(one, other)
    trainable = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, again)]
    assert trainable[0] == trainable[1]
    assert_alone_equals_batch(model, inputs)


@pytest.mark.parametrize(
    "field, value",
    [
        ("fusion", False),
        ("use_maskige", False),
        ("share_encoders", True),
        ("num_queries", 7),
        ("audio_query_layout", "official"),
        ("hidden_dim", 32),
        ("decoder_layers", 6),
        ("pixel_decoder_layers", 1),
        ("channel_reduction", 4),
        ("decoder_feedforward_dim", 64),
        ("pixel_decoder_feedforward_dim", 64),
        ("pixel_decoder_points", 2),
        ("audio_hidden_dim", 64),
        ("fusion_heads", 2),
        ("fusion_gate_init", 1.0),
        ("num_attention_heads", 2),
    ],
)
def test_every_architecture_field_changes_the_result(field, value):
    """Either the shapes of the weights change, or, with the same weights, the output does."""
    base, other = tiny(), tiny(**{field: value})
    shapes = [{n: tuple(p.shape) for n, p in m.named_parameters()} for m in (base, other)]
    if shapes[0] == shapes[1]:
        if field != "fusion_gate_init":
            other.load_state_dict(base.state_dict())
        inputs = make_inputs(base.config, [5], side=64)
        assert not torch.equal(forward(base, inputs)[1], forward(other, inputs)[1])


@pytest.mark.parametrize(
    "field, value",
    [
        ("class_weight", 0.0),
        ("mask_weight", 0.0),
        ("dice_weight", 0.0),
        ("consistency_weight", 0.0),
        ("adaptive_consistency", False),
        ("consistency_window", 2),
        ("no_object_weight", 1.0),
        ("pixel_weight", 1.0),
        ("train_num_points", 64),
        ("oversample_ratio", 1.0),
        ("importance_sample_ratio", 0.0),
    ],
)
def test_every_loss_field_changes_the_loss(field, value):
    losses = []
    for overrides in ({}, {field: value}):
        model = tiny(**overrides)
        inputs = make_inputs(model.config, [5], side=64)
        torch.manual_seed(3)
        losses.append(float(model(**inputs, **make_labels(model.config, 5, 64)).loss.detach()))
    assert losses[0] != losses[1]


def test_sound_reaches_the_masks():
    model = tiny()
    inputs = make_inputs(model.config, [5], side=64)
    before = forward(model, inputs)
    inputs["input_features"] = torch.full_like(inputs["input_features"], -4.6)
    for one, other in zip(before, forward(model, inputs), strict=True):
        assert not torch.allclose(one, other)


def test_embedded_sound_takes_the_place_of_its_spectrum():
    model = tiny()
    inputs = make_inputs(model.config, [3], 64)
    with torch.no_grad():
        embedded = model.embed_audio(inputs["input_features"])
    assert embedded.shape == (3, model.config.audio_config["embedding_size"])
    for whole, short in zip(
        forward(model, inputs), forward(model, {**inputs, "input_features": embedded}), strict=True
    ):
        torch.testing.assert_close(short, whole)


def test_loss_is_the_sum_of_its_named_terms_and_lists_every_layer():
    model = tiny().train()
    inputs = make_inputs(model.config, [5, 5], side=64)
    flags = [True, False, False, False, False] * 2
    out = model(**inputs, **make_labels(model.config, 10, 64, flags))
    layers = model.config.decoder_layers
    names = [f"loss_{term}{suffix}" for suffix in ["", *(f"_{i}" for i in range(layers))] for term in
             ("class", "mask", "dice")] + [f"loss_consistency_{i}" for i in range(layers)]  # fmt: skip
    assert sorted(out.loss_dict) == sorted(names)
    assert torch.allclose(out.loss, torch.stack(list(out.loss_dict.values())).sum())


def test_pixel_loss_is_the_cross_entropy_of_every_labelled_pixel():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 2, 8, 8)
    masks[0, 0, :, :4], masks[0, 1, :, 4:], masks[1, 0, 2:4] = 1, 1, 1  # the second frame is labelled in two rows only
    classes = [torch.tensor([0, 2]), torch.tensor([1, 2])]
    large = torch.nn.functional.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False)
    log_probabilities = large.log_softmax(1)
    first = -(log_probabilities[0, 0, :, :4].sum() + log_probabilities[0, 2, :, 4:].sum()) / 64
    second = -log_probabilities[1, 1, 2:4].mean()
    torch.testing.assert_close(pixel_sum(logits, list(masks), classes), first + second)
    assert pixel_sum(logits[:1], [masks[0, :0]], [classes[0][:0]]) == 0
    assert pixel_sum(logits[:0], [], []) == 0


def test_pixel_head_is_there_only_with_its_weight_and_learns():
    model = tiny(pixel_weight=1.0)
    names = {name for name in model.state_dict() if name.startswith("pixel_head")}
    assert names == {"pixel_head.weight", "pixel_head.bias"}
    assert not any(name.startswith("pixel_head") for name in tiny().state_dict())
    inputs = make_inputs(model.config, [3], side=64)
    output = model(**inputs, **make_labels(model.config, 3, 64, [True, False, False]))
    output.loss_dict["loss_pixel"].backward()
    assert model.pixel_head.weight.grad.abs().sum() > 0 and model.model.fusion.attention.visual_gate.grad is not None
    assert "fused_features" not in output


def test_losses_of_two_batches_have_the_mean_of_one():
    """With the mean counts of all batches as divisors: clips of 2, 5 and 3 frames, dealt out to batches of 2 and 1."""
    model = tiny(pixel_weight=2.0).train()
    model.criterion.draw_points = lambda kind, masks, count, device: torch.rand(
        1, count, 2, generator=torch.Generator().manual_seed(count)
    ).expand(masks, -1, -1)
    inputs = make_inputs(model.config, [2, 5, 3], side=64)
    labels = make_labels(model.config, 10, 64)
    whole = model.eval()(**inputs, **labels).loss_dict
    parts = [
        {name: values[7 * index : 7 + 3 * index] for name, values in {**inputs, **labels}.items()}
        | {"num_frames": [[2, 5], [3]][index]}
        for index in range(2)
    ]
    counts = [model.criterion.counts(part["class_labels"], part["num_frames"]) for part in parts]
    divisors = {kind: sum(count[kind] for count in counts) / 2 for kind in LOSS_KINDS}
    terms = [model(**part, loss_divisors=divisors).loss_dict for part in parts]
    for name, term in whole.items():
        torch.testing.assert_close((terms[0][name] + terms[1][name]) / 2, term, rtol=1e-4, atol=1e-6)


def test_frame_without_any_target_is_legal():
    model = tiny()
    inputs = make_inputs(model.config, [2], side=64)
    none = {"mask_labels": [torch.zeros(0, 64, 64)] * 2, "class_labels": [torch.zeros(0, dtype=torch.long)] * 2}
    out = model(**inputs, **none)
    assert torch.isfinite(out.loss) and out.loss_dict["loss_mask"].item() == 0


def test_gradient_checkpointing_and_attention_kernels_agree():
    model = tiny()
    inputs = make_inputs(model.config, [5], side=64)
    expected = forward(model, inputs)
    model.set_attn_implementation("eager")
    for one, other in zip(forward(model, inputs), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    grads = []
    for checkpointing in (False, True):
        model = tiny(fusion_dropout=0.0).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        torch.manual_seed(5)
        model(**inputs, **make_labels(model.config, 5, 64)).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_training_and_evaluation_paths_agree():
    """Evaluation takes attention masks from resized mask features, training from resized masks."""
    model = tiny()
    inputs = make_inputs(model.config, [3], side=96)
    with torch.no_grad():
        fast, full = model(**inputs), model(**inputs, output_auxiliary_logits=True)
    assert torch.allclose(fast.masks_queries_logits, full.masks_queries_logits, atol=1e-3)
    assert fast.auxiliary_logits is None and len(full.auxiliary_logits) == model.config.decoder_layers


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pixel_values": torch.zeros(5, 3, 65, 64)}, "multiples of 32"),
        ({"pixel_values": torch.zeros(5, 64, 64)}, "multiples of 32"),
        ({"maskige_values": None}, "maskige_values is missing"),
        ({"maskige_values": torch.zeros(4, 3, 64, 64)}, "must have pixel_values' shape"),
        ({"input_features": None}, "input_features is missing"),
        ({"input_features": torch.zeros(4, 1, 96, 64)}, r"must be \(5, 1, 96, 64\)"),
        ({"num_frames": [4]}, "sum to the 5 frames"),
        ({"num_frames": [5, 0]}, "must be positive"),
        ({"class_labels": None}, "one entry per annotated frame"),
        ({"label_frames": torch.ones(5)}, "label_frames must be bool"),
        ({"class_labels": [torch.tensor([0, 9])] * 5}, "classes must be in 0..1"),
        ({"mask_labels": [torch.zeros(3, 64, 64)] * 5}, "differ"),
        ({"mask_labels": [torch.zeros(2, 64, 64)] * 4 + [torch.zeros(2, 32, 64)]}, "frame 4: .* of another size"),
    ],
)
def test_wrong_inputs_are_refused(change, message):
    model = tiny()
    inputs = {**make_inputs(model.config, [5], 64), **make_labels(model.config, 5, 64), **change}
    with pytest.raises(ValueError, match=message):
        model(**inputs)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"audio_query_layout": "clip"}, "audio_query_layout"),
        ({"decoder_layers": 4}, "3 scales"),
        ({"hidden_dim": 66}, "multiple"),
        ({"image_size": 100}, "multiple of 32"),
        ({"consistency_window": 1}, "at least 2"),
        ({"num_labels": 1}, "background"),
        ({"audio_config": {"channels": [[8]]}}, "4 blocks"),
        ({"backbone_config": {"model_type": "nosuch"}}, "model_type"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; wanted a whole number"),
        ({"num_queries": 10**12}, "from 1 to 2000"),
        ({"decoder_layers": 999999}, "decoder_layers is 999999; wanted a whole number from 1 to 512"),
        ({"pixel_decoder_layers": 1000000}, "pixel_decoder_layers is 1000000"),
        ({"backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 10**9]}}, "depths is .* at most 512 layers"),
        (
            {"backbone_config": {"model_type": "swin", "num_hidden_layers": 10**12}},
            "num_hidden_layers is 1000000000000",
        ),
        ({"hidden_dim": 64.0}, "hidden_dim is 64.0"),
        ({"num_frames": True}, "num_frames is True"),
        ({"mask_weight": float("nan")}, "mask_weight is nan; wanted a number"),
        ({"fusion_dropout": -0.5}, "from 0 to 1"),
        ({"oversample_ratio": "x"}, "oversample_ratio is 'x'"),
        ({"use_maskige": "no"}, "use_maskige is 'no'; wanted true or false"),
        ({"audio_config": {"hidden_sizes": [0]}}, "audio_config"),
        ({"audio_config": {"channels": [1, 2, 3, 4]}}, "audio_config"),
    ],
)
def test_wrong_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        ComboConfig.from_preset("tiny", **overrides)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="pvtv2-b5-avss"):
        ComboConfig.from_preset("r101-s4")


@pytest.mark.parametrize("layout", ["per_frame", "official"])
def test_audio_layout_against_a_literal_loop(layout):
    """Expected value from the definition: slot (q, t) of a clip of T frames hears frame (q * T + t) // Q."""
    clips, queries = [5, 10, 3], 20
    audio = torch.arange(18.0)[:, None]
    spread = spread_audio(audio, clips, queries, layout)[..., 0]
    start = 0
    for length in clips:
        for t, q in itertools.product(range(length), range(queries)):
            heard = t if layout == "per_frame" else (q * length + t) // queries
            assert spread[start + t, q] == start + heard
        start += length


@pytest.mark.parametrize(
    "window, adaptive, pairs",
    [(None, False, [0, 1, 2, 4]), (2, False, [0, 2, 4]), (None, True, [0, 1, 2, 4])],
)
def test_consistency_against_a_literal_loop(window, adaptive, pairs):
    masks = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    flat = masks.flatten(1).double()
    expected = []
    for t in pairs:
        d = 1 - flat[t] @ flat[t + 1] / (flat[t].norm() * flat[t + 1].norm())
        expected.append(d * torch.exp(-d) if adaptive else d)
    value = frame_distances(masks, neighbours([4, 2], window), adaptive).mean()
    assert float(value) == pytest.approx(float(sum(expected) / len(expected)), rel=1e-5)


def test_clip_of_one_frame_has_no_consistency():
    assert float(frame_distances(torch.randn(2, 3, 2, 2), neighbours([1, 1], None), True).mean()) == 0


def test_empty_mask_looks_everywhere():
    logits = torch.full((1, 2, 2, 2), -1.0)
    logits[0, 1, 0, 0] = 1.0
    assert visible_tokens(logits).tolist() == [[[True] * 4, [True, False, False, False]]]


def test_sine_positions_are_distinct_and_bounded():
    table = sine_position_embedding(7, 5, 16, torch.zeros(1))
    assert table.shape == (1, 16, 7, 5) and float(table.abs().max()) <= 1
    assert len({tuple(v) for v in table[0].flatten(1).T.tolist()}) == 35
