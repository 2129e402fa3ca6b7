"""Layers that are computed in another way than transformers and torch do it: the same numbers, names, copies."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf
from transformers import AutoBackbone, PvtV2Config, ResNetConfig

from combo_hf import modeling_combo_kernels
from combo_hf.configuration_combo import ComboConfig
from combo_hf.label_maps_combo import contenders, highest_class
from combo_hf.loss_combo import ComboLoss, blocked_sums, point_sums, sample_points
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.modeling_combo_encoders import FASTER_LAYERS, build_backbone
from combo_hf.modeling_combo_kernels import deformable_sampling, gathered_sampling
from combo_hf.modeling_combo_pixel_decoder import cell_centres, sine_position_embedding


STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET = ResNetConfig(
    embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 2, 1, 1], layer_type="bottleneck", out_features=STAGES
)
PVT = PvtV2Config(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 2, 1], num_attention_heads=[1, 2, 2, 4],
                  out_features=STAGES)  # fmt: skip
PVT_LINEAR = PvtV2Config(**{**PVT.to_dict(), "linear_attention": True})


def backbones(config, freeze_batch_norm=True):
    """Ours, and transformers' own with the same weights, statistics and constants."""
    torch.manual_seed(0)
    ours = build_backbone(SimpleNamespace(backbone_config=config, freeze_batch_norm=freeze_batch_norm))
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias)
    plain = AutoBackbone.from_config(config)
    plain.load_state_dict(ours.state_dict())  # all names are those of transformers
    for name, module in plain.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = ours.get_submodule(name).eps
    return ours.eval(), plain.eval()


def pictures():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def assert_same(ours, plain, atol=1e-5):
    with torch.no_grad():
        for one, other in zip(ours(pictures()).feature_maps, plain(pictures()).feature_maps, strict=True):
            torch.testing.assert_close(one, other, atol=atol * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("config", [RESNET, PVT, PVT_LINEAR], ids=["resnet", "pvt", "pvt-linear"])
def test_maps_and_gradients_are_those_of_transformers(config):
    ours, plain = backbones(config)
    assert {type(module) for module in ours.modules()} & set(FASTER_LAYERS.values())
    assert_same(ours, plain)
    gradients = []
    for backbone in (ours, plain):
        sum(maps.square().mean() for maps in backbone(pictures()).feature_maps).backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters()})
    for name, wanted in gradients[1].items():
        if ours.get_parameter(name).requires_grad:
            got = gradients[0][name]
            torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()) + 1e-6, rtol=0, msg=name)


def test_folded_weights_follow_the_weights():
    ours, plain = backbones(RESNET)
    assert_same(ours, plain)
    for backbone in (ours, plain):
        for index, tensor in enumerate([*backbone.parameters(), *backbone.buffers()]):
            if tensor.is_floating_point():
                tensor.data.mul_(1 + 0.1 * (index % 3))
    assert_same(ours, plain)


def test_packed_weights_are_made_once_and_let_go(monkeypatch):
    ours, plain = backbones(RESNET)
    assert_same(ours, plain)
    layers = [module for module in ours.modules() if type(module) is FASTER_LAYERS["ResNetConvLayer"]]
    assert all(layer._packed is not None for layer in layers)
    held = [layer._packed for layer in layers]
    again = pickle.loads(pickle.dumps(ours))
    assert_same(ours, plain)
    assert all(layer._packed is one for layer, one in zip(layers, held, strict=True))
    assert_same(again, ours, atol=0)
    damaged = pictures()
    damaged[0, 0, 5, 5] = torch.nan
    with torch.no_grad():
        assert all(maps[0].isnan().any() for maps in ours(damaged).feature_maps)  # a ReLU must not hide it
    ours.train()
    assert all(layer._packed is None for layer in layers)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert_same(ours.eval(), plain)
    assert all(layer._packed is None for layer in layers)


@pytest.fixture
def onednn(monkeypatch):
    """As on a processor where oneDNN is the faster library."""
    monkeypatch.setattr(modeling_combo_kernels, "onednn_is_faster", lambda: True)


def test_products_by_onednn_are_the_products(onednn):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 8, bias=False))
    states = torch.randn(3, 7, 24).transpose(0, 1).requires_grad_()
    direction = torch.randn(7, 3, 8)
    inputs = [states, *layers.parameters()]
    wanted, got = layers(states), modeling_combo_kernels.linear(layers, states)
    assert "OneDnnProduct" in type(got.grad_fn.next_functions[0][0]).__name__
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(got, inputs, direction), torch.autograd.grad(wanted, inputs, direction),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, atol=5e-6, rtol=1e-5)
    layers.requires_grad_(False)
    assert torch.autograd.grad(modeling_combo_kernels.linear(layers, states), states, direction)[0].abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(modeling_combo_kernels.linear(layers, states), wanted, atol=2e-6, rtol=1e-5)


def test_whole_network_by_onednn(monkeypatch):
    torch.manual_seed(0)
    model = ComboForAudioVisualSegmentation(ComboConfig.from_preset("tiny")).eval()
    inputs = (torch.randn(2, 3, 96, 96), torch.randn(2, 3, 96, 96), torch.randn(2, 1, 96, 64))
    with torch.no_grad():
        wanted = model(*inputs)
        calls = []
        monkeypatch.setattr(modeling_combo_kernels, "onednn_is_faster", lambda: calls.append(1) or True)
        got = model(*inputs)
    assert len(calls) > 50
    for name in ("class_queries_logits", "masks_queries_logits"):
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(got[name], wanted[name], atol=5e-6 * scale, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_the_whole_network_by_onednn(monkeypatch, training):
    """Also of those products that are changed in place afterwards."""
    torch.manual_seed(0)
    model = ComboForAudioVisualSegmentation(ComboConfig.from_preset("tiny", fusion_dropout=0.0)).train(training)
    inputs = (torch.randn(2, 3, 96, 96), torch.randn(2, 3, 96, 96), torch.randn(2, 1, 96, 64))
    gradients = []
    for faster in (False, True):
        monkeypatch.setattr(modeling_combo_kernels, "onednn_is_faster", lambda faster=faster: faster)
        model.zero_grad()
        model(*inputs).masks_queries_logits.square().mean().backward()
        gradients.append(torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None]))
    torch.testing.assert_close(*gradients, atol=2e-4 * float(gradients[0].abs().max()), rtol=0)


class Doubled(nn.Linear):
    def forward(self, states):
        return 2 * super().forward(states)


@pytest.mark.parametrize("case", ["another class", "hook", "autocast", "precision", "switched off", "no operator"])
def test_layers_that_onednn_must_not_take_are_called(onednn, monkeypatch, case):
    layer, states = (Doubled if case == "another class" else nn.Linear)(4, 4), torch.randn(2, 4)
    if case == "hook":
        layer.register_forward_hook(lambda module, inputs, output: 3 * output)
    if case == "precision":
        layer, states = layer.double(), states.double()
    if case == "no operator":
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    monkeypatch.setattr(modeling_combo_kernels, "onednn_product", lambda *_: pytest.fail("taken"))
    if case == "switched off":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(modeling_combo_kernels.linear(layer, states), layer(states))


@pytest.mark.parametrize(
    ("processor", "mkl", "faster"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", True, True),
        ("AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", True, True),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", False, False),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", True, False),
        ("arm", False, False),
        ("", True, False),
    ],
)
def test_the_library_of_products_hangs_on_the_processor_alone(monkeypatch, processor, mkl, faster):
    """On no measurement: a busy minute would choose otherwise, and a resumed training would have other bits."""
    monkeypatch.setattr(modeling_combo_kernels, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert modeling_combo_kernels.onednn_is_faster.__wrapped__() is faster


def test_positions_are_kept_and_serve_training_too():
    like = torch.zeros(1)
    with torch.inference_mode():
        first = sine_position_embedding(6, 10, 12, like)
    assert sine_position_embedding(6, 10, 12, like) is first
    weight = torch.ones_like(first, requires_grad=True)
    (weight * first).sum().backward()
    assert torch.equal(weight.grad, first)
    assert sine_position_embedding(6, 10, 12, like.double()).dtype == torch.float64
    exported = torch.export.export(SineModule(), (like,)).module()
    assert torch.equal(exported(like), first)


class SineModule(nn.Module):
    def forward(self, like):
        return sine_position_embedding(6, 10, 12, like)


def test_batch_norms_that_learn_do_so():
    ours, plain = backbones(RESNET, freeze_batch_norm=False)
    ours.train(), plain.train()
    assert_same(ours, plain)
    for name, wanted in plain.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), wanted, atol=1e-5, rtol=1e-5, msg=name)
    assert_same(ours.eval(), plain.eval())


@pytest.mark.parametrize("config", [RESNET, PVT], ids=["resnet", "pvt"])
def test_copies_and_precisions(config):
    ours, _ = backbones(config)
    again = copy.deepcopy(ours)
    assert [type(module) for module in again.modules()] == [type(module) for module in ours.modules()]
    assert_same(again, ours, atol=0)
    wanted = ours(pictures()).feature_maps
    for dtype, largest in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        got = copy.deepcopy(ours).to(dtype)(pictures().to(dtype)).feature_maps
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == dtype
            assert (one.float() - other).abs().max() <= largest * other.abs().max()


def test_attention_on_request():
    ours, plain = backbones(PVT)
    hidden = torch.randn(2, 48, 16)
    found = 0
    for name, module in ours.named_modules():
        if type(module) is FASTER_LAYERS["PvtV2SelfAttention"] and module.hidden_size == hidden.shape[-1]:
            found += 1
            with torch.no_grad():
                wanted = plain.get_submodule(name)(hidden, 6, 8, output_attentions=True)
                for one, other in zip(module(hidden, 6, 8, output_attentions=True), wanted, strict=True):
                    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert found == 3


def reads_of_points(reach, dtype=torch.float32):
    """Arguments of the two ways to sample: value, shapes, reference, offsets, weights."""
    generator = torch.Generator().manual_seed(2)
    frames, heads, points, dim, shapes = 2, 4, 3, 32, [(2, 3), (4, 6), (8, 12)]
    tokens = sum(h * w for h, w in shapes)
    value = torch.randn(frames, tokens, dim, generator=generator, dtype=dtype)
    reference = torch.cat([cell_centres(h, w, torch.device("cpu")) for h, w in shapes]).to(dtype)
    offsets = reach * torch.randn(frames, tokens, heads, 3, points, 2, generator=generator, dtype=dtype)
    return (
        value,
        shapes,
        reference,
        offsets,
        torch.rand(frames, tokens, heads, 3, points, generator=generator).to(dtype),
    )


@pytest.mark.parametrize("block", [1, 5 * 126, 1 << 18])  # rows at a time: one, some (the last part is shorter), all
@pytest.mark.parametrize("reach", [0.5, 3.0, 100.0])
def test_gradients_of_gathered_reads(reach, block, monkeypatch):
    monkeypatch.setattr(modeling_combo_kernels, "DENSE_BLOCK", block)
    value, shapes, reference, offsets, weights = reads_of_points(reach, torch.float64)
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    inputs = [part.requires_grad_() for part in (value, offsets, weights)]
    sums = [sample(value, shapes, reference, offsets, weights) for sample in (deformable_sampling, gathered_sampling)]
    wanted, got = (torch.autograd.grad(out, inputs, direction) for out in sums)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
        assert other.abs().max() > 0.1


@pytest.mark.parametrize("training", [True, False])
def test_offsets_without_a_number_show_in_the_result(training):
    value, shapes, reference, offsets, weights = reads_of_points(1.0)
    offsets[0, 0, 0, 0, 0, 0], offsets[1, 3, 2, 1, 1, 1] = float("nan"), float("nan")
    with torch.set_grad_enabled(training):
        got = gathered_sampling(value, shapes, reference, offsets, weights)
    assert not got[0, 0, :8].isfinite().any() and not got[1, 3, 16:24].isfinite().any()
    assert got.isfinite().sum() == got.numel() - 16


def test_infinite_offsets():
    """In training they show; without gradients they are points outside, as far away as they may be."""
    value, shapes, reference, offsets, weights = reads_of_points(1.0)
    offsets[0, 0, 0, 0, 0, 0], offsets[1, 3, 2, 1, 1, 1] = float("inf"), -float("inf")
    got = gathered_sampling(value, shapes, reference, offsets, weights)
    assert not got[0, 0, :8].isfinite().any() and not got[1, 3, 16:24].isfinite().any()
    assert got.isfinite().sum() == got.numel() - 16
    with torch.no_grad():
        far = gathered_sampling(value, shapes, reference, offsets, weights)
        offsets[0, 0, 0, 0, 0, 0], offsets[1, 3, 2, 1, 1, 1] = 1e9, -1e9
        assert torch.equal(far, gathered_sampling(value, shapes, reference, offsets, weights))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reach", [0.5, 3.0, 100.0])
def test_gathered_reads_are_the_reads_of_grid_sample(reach, training):
    value, shapes, reference, offsets, weights = reads_of_points(reach)
    wanted = deformable_sampling(value, shapes, reference, offsets, weights)
    with torch.set_grad_enabled(training):
        got = gathered_sampling(value, shapes, reference, offsets, weights)
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-5)


def test_costs_are_cross_entropy_and_dice_of_every_pair():
    config = ComboConfig.from_preset("tiny")
    criterion, generator = ComboLoss(config), torch.Generator().manual_seed(3)
    points = torch.rand(2, 50, 2, generator=generator)
    criterion.draw_points = lambda kind, masks, count, device: points
    classes = torch.randn(2, 4, config.num_labels + 1, generator=generator)
    masks = 30 * torch.randn(2, 4, 8, 8, generator=generator)  # sure of themselves: softplus is linear there
    targets = (torch.rand(2, 3, 16, 16, generator=generator) > 0.5).float()
    labels = torch.tensor([[0, 1, 1], [1, 0, 0]])
    got = criterion._costs(classes, masks, targets, labels)
    values, truth = sample_points(masks, points), sample_points(targets, points)
    for frame in range(2):
        for query in range(4):
            for target in range(3):
                x, y = values[frame, query], truth[frame, target]
                bce = nnf.binary_cross_entropy_with_logits(x, y)
                dice = 1 - (2 * (x.sigmoid() * y).sum() + 1) / (x.sigmoid().sum() + y.sum() + 1)
                share = classes[frame, query].softmax(-1)[labels[frame, target]]
                wanted = config.mask_weight * bce + config.dice_weight * dice - config.class_weight * share
                torch.testing.assert_close(got[frame, query, target], wanted, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "points", "classes"), [((2, 7, 5, 9), 4100, 3), ((1, 1, 1, 1), 30, 1), ((3, 4, 8, 8), 2048, 2)]
)
def test_sums_by_blocks_are_the_sums(shape, points, classes):
    generator = torch.Generator().manual_seed(5)
    maps = 5 * torch.randn(shape, generator=generator)
    places = torch.rand(shape[0], points, 2, generator=generator)
    places[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.5]])  # half of a read is outside
    wanted = torch.rand(shape[0], points, classes, generator=generator)
    for one, other in zip(blocked_sums(maps, places, wanted), point_sums(maps, places, wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-5)  # of sums of thousands
        assert one.shape == other.shape
    maps[-1, 0, 0, 0] = torch.nan
    broken = [
        sums.isnan().flatten(2).any(-1) if sums.ndim == 3 else sums.isnan()
        for sums in blocked_sums(maps, places, wanted)
    ]
    assert all(part[-1, 0] and part.sum() == 1 for part in broken)


@pytest.mark.parametrize("size", [(8, 8), (37, 51), (5, 3)], ids=["same", "larger", "smaller"])
@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0], ids=["few contenders", "some", "all"])
def test_the_highest_class_of_enlarged_scores(scale, size):
    generator = torch.Generator().manual_seed(4)
    scores = torch.linspace(0.2, 0.9, 40)[torch.randperm(40, generator=generator), None, None]
    scores = scores + scale * torch.rand(40, 8, 8, generator=generator)
    scores[7] = scores[3]  # of equal classes the first wins
    wanted = nnf.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    labels, best = highest_class(scores, size)
    torch.testing.assert_close(best, wanted.amax(0), atol=1e-6, rtol=0)
    assert torch.equal(labels, wanted.argmax(0))
    kept = len(contenders(scores))
    assert kept == 40 if scale == 1 else kept < 30
