import json
import shutil

import numpy as np
import pytest
import torch
from fixtures_proposals import (
    DECODER,
    PROMPTS,
    SIDE,
    picture,
    random_weights,
    save_proposal_model,
    tiny_mobile_sam_config,
    tiny_sam_config,
)
from packaging import version
from PIL import Image
from safetensors.torch import load_file, save_file

from combo_hf.conversion.sam import convert_mobile_sam, convert_sam
from combo_hf.conversion.saving import save_converted_proposal_model
from combo_hf.proposals import PROPOSAL_GENERATORS, load_proposal_generator
from combo_hf.proposals.modeling_mobile_sam import MobileSamModel, MobileSamVisionConfig
from combo_hf.proposals.modeling_tiny_vit import TinyVitAttentionBlock
from combo_hf.proposals.sam import MobileSamProposals, SamAdapter, SamProposals


ALL = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.3, "box_nms_thresh": 1.0}


@pytest.fixture(scope="module")
def mobile_folder(tmp_path_factory):
    return save_proposal_model(random_weights(MobileSamModel(tiny_mobile_sam_config())), tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    from transformers import SamModel

    return save_proposal_model(random_weights(SamModel(tiny_sam_config())), tmp_path_factory.mktemp("s"))


@pytest.fixture
def copy_of(tmp_path):
    def copy(folder):
        return shutil.copytree(folder, tmp_path / "copy")

    return copy


@pytest.mark.parametrize("name", ["sam", "mobile_sam"])
def test_by_name_and_back(name, sam_folder, mobile_folder):
    folder = sam_folder if name == "sam" else mobile_folder
    generator = load_proposal_generator(name, folder, device="cpu", **ALL)
    masks = generator([picture(), picture(40, 50, seed=1)])
    assert [found.shape[1:] for found in masks] == [(60, 80), (50, 40)] and len(masks[0]) > 2
    saved = json.loads(json.dumps(generator.to_dict()))
    again = PROPOSAL_GENERATORS[saved.pop("name")](device="cpu", **saved)([picture()])[0]
    np.testing.assert_array_equal(again, masks[0])


def test_a_saved_model_is_the_same_model(tmp_path):
    model = random_weights(MobileSamModel(tiny_mobile_sam_config()))
    model.save_pretrained(tmp_path)
    again = MobileSamModel.from_pretrained(tmp_path)
    assert again.config.to_dict().keys() == model.config.to_dict().keys()
    assert again.config.vision_config.window_sizes == [3, 3, 5, 3]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_fresh_weights_are_finite():
    """What is not in a file is filled, also after a build on the meta device."""
    model = MobileSamModel(tiny_mobile_sam_config())
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert not any(block.attention.attention_biases.any() for block in model.modules()
                   if isinstance(block, TinyVitAttentionBlock))  # fmt: skip


def test_padded_positions_are_attended():
    """Zeros are added before the layer norm: what lies in a window's padding acts through the norm's bias."""
    block = random_weights(TinyVitAttentionBlock(4, 2, 3, 2.0))
    exact, padded = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 2)
    before = [block._attend(features) for features in (exact, padded)]
    with torch.no_grad():
        block.attention.norm.weight.zero_()  # every position now carries the bias alone
    after = [block._attend(features) for features in (exact, padded)]
    assert not torch.allclose(before[1], after[1])
    torch.testing.assert_close(after[0][..., :2], after[1][..., :, :])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (300, 5), (64, 64)])
def test_odd_frames(mobile_folder, size):
    generator = MobileSamProposals.from_pretrained(mobile_folder, device="cpu", **ALL)
    assert generator([picture(*size)])[0].shape[1:] == size[::-1]


def test_too_narrow_a_frame_is_refused(mobile_folder):
    generator = MobileSamProposals.from_pretrained(mobile_folder, device="cpu", **ALL)
    with pytest.raises(ValueError, match="300 x 1 is too narrow"):
        generator([Image.new("RGB", (300, 1))])


def test_an_8k_frame_is_reduced(mobile_folder):
    generator = MobileSamProposals.from_pretrained(mobile_folder, device="cpu", max_side=512, **ALL)
    assert generator([Image.new("RGB", (7680, 4320), "gray")])[0].shape[1:] == (288, 512)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sam", "mobile_sam"])
def test_half_precision(name, dtype, sam_folder, mobile_folder):
    folder, kind = (sam_folder, SamProposals) if name == "sam" else (mobile_folder, MobileSamProposals)
    full = kind.from_pretrained(folder, device="cpu").adapter
    half = kind.from_pretrained(folder, device="cpu", dtype=dtype).adapter
    weights = half.model.state_dict()
    assert {tensor.dtype for key, tensor in weights.items() if "neck" in key} == {dtype}
    assert weights["shared_image_embedding.positional_embedding"].dtype == torch.float32
    clicks = np.array([[20.0, 20], [60, 40]])
    results = []
    for adapter in (full, half):
        with torch.no_grad():
            encoded = adapter.encode(picture())
            found = adapter.decode(encoded, clicks)
        assert found.logits.shape == (2, 3, 16, 16)
        results.append(adapter.upscale(encoded, found.logits[0]))
    wanted, got = results
    assert got.dtype == torch.float32 and got.shape == (3, 60, 80)
    assert torch.nn.functional.cosine_similarity(wanted.flatten(), got.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(("name", "kind"), [("sam2", "Sam2"), ("edgetam", "EdgeTam")])
def test_newer_models(name, kind, tmp_path):
    pytest.importorskip("torchvision", exc_type=ImportError)
    import transformers

    folder = tmp_path / name
    model = getattr(transformers, f"{kind}Model")(newer_config(kind)).eval()
    for part in (model.prompt_encoder, model.mask_decoder, model.vision_encoder.neck):
        random_weights(part)
    model.save_pretrained(folder)
    generator = load_proposal_generator(name, folder, device="cpu", **ALL)
    assert generator([picture()])[0].shape[1:] == (60, 80)
    clicks = np.array([[20.0, 20], [60, 40]])
    with torch.no_grad():
        encoded = generator.adapter.encode(picture())
        found = generator.adapter.decode(encoded, clicks)
        enlarged = generator.adapter.upscale(encoded, found.logits.flatten(0, 1))
        processor = transformers.Sam2Processor(generator.adapter.image_processor)
        inputs = processor(picture(), input_points=[[[click] for click in clicks.tolist()]], return_tensors="pt")
        theirs = model(**{name: inputs[name] for name in ("pixel_values", "input_points")})
        masks = processor.post_process_masks(theirs.pred_masks, inputs["original_sizes"], binarize=False)[0]
    assert torch.isfinite(enlarged).all() and enlarged.std() > 0.01
    torch.testing.assert_close(enlarged, masks.flatten(0, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.ious, theirs.iou_scores[0], atol=1e-4, rtol=1e-4)


def newer_config(kind):
    import transformers

    config = getattr(transformers, f"{kind}Config")
    prompts = {**PROMPTS, "hidden_size": 16}
    decoder = {**DECODER, "num_multimask_outputs": 3}
    sizes = [[SIDE // stride] * 2 for stride in (4, 8, 16)]
    vision = {"fpn_hidden_size": 16, "backbone_feature_sizes": sizes}
    if kind == "Sam2":
        vision["backbone_channel_list"] = [64, 32, 16, 8]
        vision["backbone_config"] = {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [SIDE, SIDE],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "blocks_per_stage": [1, 1, 1, 1],
            "global_attention_blocks": [],
            "window_size_per_stage": [4, 4, 4, 2],
            "window_positional_embedding_background_size": [4, 4],
        }
    else:
        pytest.importorskip("timm")
        if version.parse(transformers.__version__) < version.parse("5.20"):
            pytest.skip("below transformers 5.20 EdgeTAM's configuration asks the Hub, even beside local weights")
        vision["backbone_channel_list"] = [384, 192, 96, 48]
        vision["backbone_config"] = transformers.TimmWrapperConfig(
            architecture="repvit_m1.dist_in1k",
            model_args={"features_only": True, "in_chans": 3, "out_indices": [0, 1, 2, 3]},
        )
    return config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


def without_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("mask_decoder.iou_token.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["mask_decoder.iou_token.weight"] = torch.zeros(1, 8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def not_finite(folder):
    weights = load_file(folder / "model.safetensors")
    weights["mask_decoder.iou_token.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_short(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def other_width(folder):
    config = json.loads((folder / "config.json").read_text())
    config["mask_decoder_config"]["mlp_dim"] = 10**9  # more than any machine has memory for
    (folder / "config.json").write_text(json.dumps(config))


def other_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "combo"}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (without_tensor, ValueError, "do not fit the configuration: 1 missing .mask_decoder.iou_token.weight"),
        (other_shape, ValueError, "do not fit the configuration: 1 of another shape .mask_decoder.iou_token.weight"),
        (other_width, ValueError, "do not fit the configuration: 6 of another shape"),
        (not_finite, ValueError, "not finite"),
        (cut_short, ValueError, "damaged"),
        (other_type, ValueError, "wanted weights of model type mobile_sam.*combo"),
        (lambda folder: (folder / "config.json").unlink(), ValueError, "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), OSError, "model.safetensors"),
    ],
)
def test_bad_weights_are_refused(mobile_folder, copy_of, damage, error, message):
    folder = copy_of(mobile_folder)
    damage(folder)
    with pytest.raises(error, match=message):
        MobileSamProposals.from_pretrained(folder, device="cpu")


def test_weights_of_the_other_model_are_refused(sam_folder, mobile_folder):
    with pytest.raises(ValueError, match="model type mobile_sam, .* has sam"):
        MobileSamProposals.from_pretrained(sam_folder)
    with pytest.raises(ValueError, match="model type sam, .* has mobile_sam"):
        SamProposals.from_pretrained(mobile_folder)


def test_mobile_sam_at_another_size(mobile_folder, sam_folder):
    small = MobileSamProposals.from_pretrained(mobile_folder, device="cpu", points_per_side=2, pred_iou_thresh=-1.0)
    large = MobileSamProposals.from_pretrained(
        mobile_folder, device="cpu", points_per_side=2, pred_iou_thresh=-1.0, input_size=2 * SIDE
    )
    sizes = [generator.adapter.encode(picture()).features.shape[-1] for generator in (small, large)]
    assert sizes == [SIDE // 16, SIDE // 8] and large.generate(picture()).masks.shape[1:] == (60, 80)
    assert large.to_dict()["input_size"] == 2 * SIDE and small.identity() != large.identity()
    with pytest.raises(ValueError, match="input_size: wanted a multiple of 64"):
        MobileSamProposals.from_pretrained(mobile_folder, device="cpu", input_size=100)
    with pytest.raises(ValueError, match="this network takes 64 only, got 128"):
        SamProposals.from_pretrained(sam_folder, device="cpu").adapter.resize(128)


def test_convolutions_and_norms_in_one(mobile_folder):
    """What is computed where nothing is trained is what the modules compute one after the other."""
    encoder = MobileSamModel.from_pretrained(mobile_folder).eval().vision_encoder
    pixels = torch.randn(1, 3, SIDE, SIDE)
    apart = encoder(pixels).last_hidden_state
    with torch.no_grad():
        together = encoder(pixels).last_hidden_state
    assert apart.requires_grad and not together.requires_grad
    torch.testing.assert_close(apart.detach(), together, rtol=1e-5, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="4 hidden_sizes"):
        MobileSamVisionConfig(depths=[1, 1])
    with pytest.raises(ValueError, match="5 heads"):
        MobileSamVisionConfig(hidden_sizes=(64, 128, 161, 320))


OFFICIAL = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}
MOBILE = {"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(32, 3, 3, 3)}


@pytest.mark.parametrize(
    ("convert", "weights", "message"),
    [
        (convert_sam, MOBILE, "not a file of SAM.*mobile_sam"),
        (convert_mobile_sam, OFFICIAL, "not a file of MobileSAM.*sam"),
        (convert_sam, {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 100)}, "100 wide; known: .768, 1024, 1280"),
        (convert_mobile_sam, {**MOBILE, "what": torch.zeros(1)}, "1 entries are not of MobileSAM vit_t: what"),
        (convert_mobile_sam, MOBILE, "the file does not fit: .* entries are missing"),
        (convert_sam, {}, "state dict"),
    ],
)
def test_wrong_official_weights_are_refused(convert, weights, message):
    with pytest.raises(ValueError, match=message):
        convert(weights)


def test_nothing_in_a_file_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"model": Trap()}, tmp_path / "mobile_sam.pt")
    with pytest.raises(ValueError, match="mobile_sam.pt"):
        convert_mobile_sam(tmp_path / "mobile_sam.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="empty.pt"):
        convert_mobile_sam(tmp_path / "empty.pt")


def test_damaged_official_weights_are_refused(shared):
    manifest = json.loads((shared / "goldens/manifests/mobile_sam_vit_t.json").read_text())["tensors"]
    weights = {
        name: torch.zeros(info["shape"], dtype=getattr(torch, info["dtype"])) for name, info in manifest.items()
    }
    assert len(convert_mobile_sam(weights)[1].consumed) == 435
    name = "image_encoder.layers.1.blocks.0.attn.attention_biases"
    for change, message in (
        ({name: torch.full((4, 49), torch.nan)}, "not finite"),
        ({name: torch.zeros(4, 50)}, r"shape \(4, 50\), wanted \(4, 49\)"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_mobile_sam({**weights, **change})


def test_a_folder_in_use_is_not_written_to(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        save_converted_proposal_model(None, None, tmp_path)


def test_adapters_make_their_own_image_processor():
    adapter = SamAdapter(random_weights(MobileSamModel(tiny_mobile_sam_config())))
    assert adapter.image_processor.size["longest_edge"] == SIDE
    assert adapter.encode(picture()).input_size == (48, 64)
