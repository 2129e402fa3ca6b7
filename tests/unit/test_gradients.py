"""Gradients that are computed in another way than autograd would: the same numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from combo_hf import modeling_combo_decoder, modeling_combo_kernels
from combo_hf.configuration_combo import ComboConfig
from combo_hf.loss_combo import FrameProducts, frame_distances, neighbours
from combo_hf.modeling_combo_decoder import ComboDecoder
from combo_hf.modeling_combo_kernels import convolve, is_pixelwise, linear, rectify


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_products_of_neighbouring_frames(frames):
    rows = torch.randn(frames, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FrameProducts.apply, rows, raise_exception=True)


@pytest.mark.parametrize("clips", [[4], [2, 1, 3], [1]], ids=str)
def test_distances_of_frames(clips):
    masks = torch.randn(sum(clips), 3, 4, 5, dtype=torch.float32, requires_grad=True)
    first = neighbours(clips, None)
    got = frame_distances(masks, first, adaptive=True)
    flat = masks.flatten(1)
    distance = 1 - nnf.cosine_similarity(flat[first], flat[[frame + 1 for frame in first]], dim=1)
    wanted = distance * (-distance).exp() if first else flat.sum()[None] * 0
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
    one, other = (torch.autograd.grad(values.sum(), masks)[0] for values in (got, wanted))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "frozen features"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_masks_of_all_layers_have_one_gradient(monkeypatch, dtype, frozen):
    torch.manual_seed(0)
    monkeypatch.setattr(modeling_combo_decoder, "MASKS_AT_ONCE", 1)  # frame by frame
    config = ComboConfig.from_preset("tiny")
    config._attn_implementation = "sdpa"
    decoder = ComboDecoder(config).to(dtype)
    for weights in decoder.parameters():
        nn.init.normal_(weights, std=0.1)
    features = torch.randn(2, config.hidden_dim, 12, 8, dtype=dtype, requires_grad=not frozen)
    scales = [torch.randn(2, config.hidden_dim, 3 * size, 2 * size, dtype=dtype) for size in (1, 2, 4)]
    sound = torch.randn(2, config.num_queries, config.hidden_dim, dtype=dtype)
    inputs = [*decoder.parameters(), *([] if frozen else [features])]
    results = []
    for jointly in (True, False):
        monkeypatch.setattr(modeling_combo_decoder, "is_eager", lambda _, jointly=jointly: jointly)
        masks = [layer for _, layer in decoder(features, scales, sound, all_layers=True)]
        assert ("LayerMasks" in type(masks[0].grad_fn).__name__) is jointly
        loss = sum((index + 1) * layer.square().mean() for index, layer in enumerate(masks[:-1]))  # the last: unused
        results.append((masks, torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)))
    (masks, gradients), (plain_masks, wanted) = results
    assert all(torch.equal(one, other) for one, other in zip(masks, plain_masks, strict=True))
    tolerance = 1e-12 if dtype == torch.float64 else 0.05
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, atol=tolerance * float(other.abs().max()), rtol=0)


def test_relu_changes_no_view_that_has_a_gradient():
    """Autograd would copy the gradient of the whole tensor three times (its `CopySlices`)."""
    layer, states = nn.Linear(3, 4), torch.randn(2, 5, 3)
    result = linear(layer, states)
    wanted = result.relu()
    got = rectify(result)
    assert torch.equal(got, wanted) and type(got.grad_fn).__name__ == "ReluBackward0"
    with torch.no_grad():
        result = linear(layer, states)
        assert rectify(result).data_ptr() == result.data_ptr()
    result = nnf.conv2d(torch.randn(1, 3, 4, 4), torch.randn(2, 3, 1, 1, requires_grad=True))
    assert rectify(result).data_ptr() == result.data_ptr()  # no view: in place saves memory


CONVOLUTIONS = [
    ({"kernel_size": 1}, True),
    ({"kernel_size": 1, "bias": False}, True),
    ({"kernel_size": 1, "padding": "valid"}, True),
    ({"kernel_size": 1, "stride": 2}, False),
    ({"kernel_size": 1, "padding": 1}, False),
    ({"kernel_size": 1, "groups": 2}, False),
    ({"kernel_size": 3}, False),
]


@pytest.mark.parametrize(("options", "single"), CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("onednn", [False, True])
def test_convolutions_of_single_pixels(monkeypatch, one_thread, onednn, options, single):
    torch.manual_seed(0)
    monkeypatch.setattr(modeling_combo_kernels, "onednn_is_faster", lambda: onednn)
    layer = nn.Conv2d(6, 4, **options)
    maps = torch.randn(3, 6, 5, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert is_pixelwise(layer, maps) is single
    results = []
    for output in (convolve(layer, maps), layer(maps)):
        direction = torch.linspace(-1, 1, output.numel()).view(output.shape)
        results.append([output, *torch.autograd.grad(output, [maps, *layer.parameters()], direction)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def test_more_threads_are_left_to_torch(one_thread):
    layer, maps = nn.Conv2d(6, 4, 1), torch.randn(3, 6, 5, 7)
    torch.set_num_threads(2)
    assert not is_pixelwise(layer, maps)
