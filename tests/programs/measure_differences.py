"""What each difference from the official code does to the result, as a Markdown table (a program, not a test).

    python tests/programs/measure_differences.py [--goldens FOLDER] [--clips 40] [--output FILE]

The networks are the released configurations with the deterministic synthetic weights of the parity tests (no official
checkpoint was at hand), on the recorded inputs; every pair of numbers comes from one set of weights with one thing
changed. With synthetic weights nothing has learned to rely on a layout: shares of changed pixels say that a thing
matters, not how many points of a trained model it costs. That is measured where it can be, on the bundled demo
checkpoint and unseen synthetic clips. Rows whose recorded inputs are not in FOLDER are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]

import goldens as recorded  # noqa: E402

from combo_hf.evaluation.scores import class_maps_of  # noqa: E402
from combo_hf.loss_combo import frame_distances, neighbours  # noqa: E402
from combo_hf.maskige_combo import PALETTE, maskige_index  # noqa: E402
from combo_hf.modeling_combo_decoder import spread_audio  # noqa: E402
from combo_hf.modeling_combo_kernels import deformable_sampling  # noqa: E402
from combo_hf.modeling_combo_pixel_decoder import cell_centres  # noqa: E402


Row = tuple[str, str]  # what was changed, and what that did
SILENCE = float(np.log(np.float32(0.01)))


def percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share >= 1e-4 or share == 0 else f"{100 * share:.1g} %"


class Bench:
    """Models and inputs of the recorded cases, and the label maps that they give."""

    def __init__(self, folder: recorded.Goldens) -> None:
        self.goldens = folder

    def has(self, config: str, case: str) -> bool:
        return self.goldens.has(f"combo/forward_{config}_{case}.npz")

    def case(self, config: str, case: str) -> tuple[torch.nn.Module, dict, dict[str, np.ndarray]]:
        """Model, inputs, recorded numbers."""
        golden = self.goldens.arrays(f"combo/forward_{config}_{case}.npz")
        return self.goldens.model(config), recorded.forward_inputs(golden), golden


@torch.no_grad()
def states_of(model: torch.nn.Module, inputs: dict) -> SimpleNamespace:
    """Mask features, scales, projected sound of one pass, so that the decoder can be run again with other sound."""
    received = []
    hooks = [
        model.model.decoder.register_forward_pre_hook(lambda _, args: received.append(args[:2])),
        model.model.audio_projection.register_forward_hook(lambda _, args, output: received.append(output)),
    ]
    model.model(**inputs)
    for hook in hooks:
        hook.remove()
    sound, (features, scales) = received
    return SimpleNamespace(features=features, scales=scales, sound=sound)


@torch.no_grad()
def decode(model: torch.nn.Module, states: SimpleNamespace, query_audio: torch.Tensor, all_layers: bool = False):
    """(class logits, label maps (F, H, W)) of the decoder."""
    classes, masks = model.model.decoder(states.features, states.scales, query_audio, all_layers)[-1]
    return classes, label_maps(classes, masks)


def label_maps(classes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return class_maps_of(classes, masks).argmax(1)


def changed(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    return percent(float((ours != theirs).float().mean()))


def query_layout(bench: Bench, config: str) -> Iterator[Row]:
    case = {"avss_r50_mhab": "v2"}.get(config, "b1")
    if not bench.has(config, case):
        return
    model, inputs, _ = bench.case(config, case)
    states = states_of(model, inputs)
    clips, queries = inputs["num_frames"], model.config.num_queries
    slots = torch.arange(queries) * clips[0]
    heard = torch.stack([(slots + frame) // queries == frame for frame in range(clips[0])]).float().mean()
    maps = [
        decode(model, states, spread_audio(states.sound, clips, queries, layout))[1]
        for layout in ("official", "per_frame")
    ]
    yield (
        "query layout",
        f"{NAMES[config]}, {clips[0]} frames: {percent(1 - float(heard))} of the queries hear another second; "
        f"label of {changed(*maps)} of the pixels changes",
    )


def batch_mixing(bench: Bench, config: str) -> Iterator[Row]:
    if not bench.has(config, "b2"):
        return
    model, inputs, golden = bench.case(config, "b2")
    states = states_of(model, inputs)
    clips, queries = inputs["num_frames"], model.config.num_queries
    mixed, apart = (spread_audio(states.sound, frames, queries, "official") for frames in ([sum(clips)], clips))
    classes, mixed_maps = decode(model, states, mixed)
    wanted = golden["out/official/pred_logits"]
    agreement = float((classes - torch.from_numpy(wanted)).abs().max()) / float(np.abs(wanted).max())
    maps = decode(model, states, apart)[1]
    alone = {name: value if name == "num_frames" else value[: clips[0]] for name, value in inputs.items()}
    alone["num_frames"] = clips[:1]
    with torch.no_grad():
        first = model.model(**alone).class_queries_logits
    ours = decode(model, states, apart)[0][: clips[0]]
    yield (
        "clips of a batch",
        f"{NAMES[config]}, two clips: label of {changed(maps, mixed_maps)} of the pixels changes beside another clip "
        f"in the release (our copy of its mixing gives its recorded class logits to {agreement:.0e} of the largest); "
        f"here a clip's logits move by {float((ours - first).abs().max() / first.abs().max()):.0e}",
    )


def consistency(bench: Bench, config: str) -> Iterator[Row]:
    if not bench.has(config, "v2"):
        return
    model, inputs, _ = bench.case(config, "v2")
    with torch.no_grad():
        out = model.model(**inputs, output_auxiliary_logits=True)
    halves, whole = (
        sum(float(frame_distances(masks, neighbours([10], window), True).mean()) for _, masks in out.auxiliary_logits)
        for window in (5, None)
    )
    yield (
        "consistency of 10 frames",
        f"{NAMES[config]}: L_ada over 9 layers (before its weight) {halves:.4f} in two halves, {whole:.4f} over the "
        f"clip ({100 * (whole / halves - 1):+.1f} %)",
    )


def short_sound(bench: Bench, config: str) -> Iterator[Row]:
    case = {"avss_r50_mhab": "v1"}.get(config, "b1")
    if not bench.has(config, case):
        return
    model, inputs, _ = bench.case(config, case)
    maps, embeddings = [], []
    for filling in (0.0, SILENCE):
        sound = inputs["input_features"].clone()
        sound[-1] = filling
        with torch.no_grad():
            out = model.model(**{**inputs, "input_features": sound})
        maps.append(label_maps(out.class_queries_logits, out.masks_queries_logits))
        embeddings.append(out.audio_embeddings[-1])
    distance = float((embeddings[0] - embeddings[1]).norm() / embeddings[1].norm())
    yield (
        "sound too short",
        f"{NAMES[config]}, the fifth second missing: its VGGish embedding moves by "
        f"{percent(distance)} of its length, label of {changed(*maps)} of the clip's pixels changes",
    )


def no_fusion(bench: Bench, config: str) -> Iterator[Row]:
    if not bench.has(config, "v1"):
        return
    model, inputs, _ = bench.case(config, "v1")
    maps, attention = [], model.model.fusion.attention
    for fusion in (attention, None):
        model.model.fusion.attention = fusion
        with torch.no_grad():
            out = model.model(**inputs)
        maps.append(label_maps(out.class_queries_logits, out.masks_queries_logits))
    model.model.fusion.attention = attention
    yield (
        "fusion off at test",
        f"{NAMES[config]}, weights trained with it: label of {changed(*maps)} of the pixels changes",
    )


def plain_sampling(value, shapes, reference, offsets, weights) -> torch.Tensor:
    """Deformable attention read by read, from its definition: bilinear, pixel centres at i + 0.5, zero outside."""
    frames, tokens, dim = value.shape
    heads, points = offsets.shape[2], offsets.shape[4]
    value = value.view(frames, tokens, heads, dim // heads)
    total, start = torch.zeros(frames, tokens, heads, dim // heads, dtype=value.dtype), 0
    batch, head = torch.arange(frames)[:, None, None], torch.arange(heads)[None, None]
    for level, (height, width) in enumerate(shapes):
        for point in range(points):
            x = reference[:, 0][None, :, None] * width + offsets[..., level, point, 0] - 0.5  # (F, S, M)
            y = reference[:, 1][None, :, None] * height + offsets[..., level, point, 1] - 0.5
            for dy in (0, 1):
                for dx in (0, 1):
                    column, row = x.floor() + dx, y.floor() + dy
                    share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                    place = start + row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
                    read = value[batch, place, head]  # (F, S, M, d / M)
                    total += read * (share * inside * weights[..., level, point])[..., None]
        start += height * width
    return total.flatten(2)


def deformable_attention(bench: Bench) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    shapes, heads, points, dim = [(7, 7), (14, 14), (28, 28)], 8, 4, 256
    tokens = sum(height * width for height, width in shapes)
    reference = torch.cat([cell_centres(height, width, torch.device("cpu")) for height, width in shapes])
    value = torch.randn(1, tokens, dim, generator=generator)
    offsets = torch.randn(1, tokens, heads, 3, points, 2, generator=generator) * 3
    weights = torch.rand(1, tokens, heads, 3, points, generator=generator)
    ours = deformable_sampling(value, shapes, reference, offsets, weights)
    exact = plain_sampling(value.double(), shapes, reference.double(), offsets.double(), weights.double())
    yield (
        "deformable attention",
        f"random inputs of the real size: float32 here against a read-by-read float64 reference, "
        f"{float((ours - exact).abs().max() / exact.abs().max()):.0e} of the largest",
    )


def order_of_operations(bench: Bench, config: str) -> Iterator[Row]:
    if not bench.has(config, "b1"):
        return
    model, inputs, golden = bench.case(config, "b1")
    states = states_of(model, inputs)
    sound = spread_audio(states.sound, inputs["num_frames"], model.config.num_queries, "official")
    wanted = torch.from_numpy(golden["out/official/pred_logits"])
    official_maps = torch.from_numpy(golden["out/official/argmax"]).long()
    results = [decode(model, states, sound, all_layers) for all_layers in (True, False)]
    distances = [float((classes - wanted).abs().max() / wanted.abs().max()) for classes, _ in results]
    yield (
        "order of operations",
        f"{NAMES[config]} against the recorded run, no tie settled: class logits {distances[0]:.0e} of the largest "
        f"with the masks in the release's order, {distances[1]:.0e} with resized mask features; "
        f"{changed(results[0][1], official_maps)} and {changed(results[1][1], official_maps)} of the labels differ",
    )


def many_masks(bench: Bench) -> Iterator[Row]:
    random = np.random.default_rng(0)
    for count in (200, 256, 300):
        masks = np.zeros((count, 360, 640), bool)
        for mask in masks:
            top, left = random.integers(0, 320), random.integers(0, 600)
            mask[top : top + random.integers(8, 120), left : left + random.integers(8, 160)] = True
        areas = np.count_nonzero(masks, axis=(1, 2))
        index = np.zeros((360, 640), int)
        for rank, mask in reversed(list(enumerate(np.argsort(areas, kind="stable"), start=1))):
            index[masks[mask]] = rank
        wrapped, ours = PALETTE[index % 256], PALETTE[maskige_index(masks)]
        share = float((wrapped != ours).any(-1).mean())
        yield "more than 255 masks", f"{count} random boxes: {percent(share)} of the pixels have another colour"


def resampling(bench: Bench) -> Iterator[Row]:
    if not bench.goldens.has("combo/logmel.npz"):
        return
    from combo_hf.feature_extraction_combo import ComboFeatureExtractor

    arrays = bench.goldens.arrays("combo/logmel.npz")
    wanted = arrays["stereo44k_5s/examples"]
    ours = ComboFeatureExtractor()(arrays["stereo44k_5s/pcm16"], 44100, num_frames=len(wanted))["input_features"]
    distance = np.abs(ours.numpy() - wanted)
    yield (
        "resampling",
        f"5 s of 44.1 kHz stereo: log-mel differs by {distance.max():.0e} at most, {distance.mean():.0e} on average "
        f"(its values span {wanted.min():.1f} to {wanted.max():.1f}); sound of 16 kHz: not at all",
    )


def metrics_of_batches(bench: Bench) -> Iterator[Row]:
    if not bench.goldens.has("combo/metrics.json"):
        return
    values = bench.goldens.values("combo/metrics.json")
    alone = np.mean([values[f"s4/{video}"]["f_measure"] for video in ("v0", "v1")])
    together = values["s4/batch_of_v0_v1"]["f_measure"]
    semantic = values["ss/unrounded"]
    yield (
        "metrics and batches",
        f"two recorded videos: M_F {100 * together:.2f} as one batch of the release, {100 * alone:.2f} here and with "
        "its batch of one",
    )
    from combo_hf.metrics import SemanticScores

    arrays, scores = bench.goldens.arrays("combo/metrics.npz"), SemanticScores(71)
    for video in ("v0", "v1", "v2"):
        scores.update(arrays[f"ss/{video}/pred_argmax"], arrays[f"ss/{video}/gt"])
    result = scores.compute()
    yield (
        "mean without background",
        f"three recorded AVSS videos: {100 * result['miou_nobg']:.2f} without class 0, "
        f"{100 * semantic['mIoU_noBg_as_coded']:.2f} as the release drops the last class",
    )


def demo_layout(clips: int) -> Iterator[Row]:
    """The trained demo network, per_frame, asked to hear like the release; and with feature rows of zeros."""
    import dataclasses

    from combo_hf import ComboForAudioVisualSegmentation
    from combo_hf.evaluation.scores import evaluate_model
    from combo_hf.training.clips_in_memory import ClipTensors, prepare_synthetic

    model = ComboForAudioVisualSegmentation.from_pretrained(ROOT / "combo_hf" / "assets" / "demo").eval()
    test = prepare_synthetic("ms3", 1, clips, "test", 96, labels="semantic")
    scores = {}
    for layout in ("per_frame", "official"):
        model.config.audio_query_layout = layout
        scores[layout] = evaluate_model(model, test)["M_J"]
    model.config.audio_query_layout = "per_frame"
    for name, filling in (("zeros", 0.0), ("silence", SILENCE)):
        cut = []
        for example in test.examples:
            sound = example.input_features.clone()
            sound[-1] = filling
            cut.append(dataclasses.replace(example, input_features=sound))
        scores[name] = evaluate_model(model, ClipTensors(cut))["M_J"]
    trained, other, zeros, silence = (
        f"{100 * scores[name]:.1f}" for name in ("per_frame", "official", "zeros", "silence")
    )
    who = f"demo checkpoint, {clips} unseen synthetic clips"
    yield "query layout", f"{who}: M_J {trained} as trained (per_frame), {other} with the official layout"
    yield "sound too short", f"{who}, last second missing: M_J {silence} with silence, {zeros} with rows of zeros"


NAMES = {"s4_r50": "S4 R50", "ms3_r50": "MS3 R50", "s4_pvt": "S4 PVTv2", "avss_r50_mhab": "AVSS R50"}
# one model at a time
OF_MODELS: dict[str, list[Callable[[Bench, str], Iterator[Row]]]] = {
    "s4_r50": [query_layout, batch_mixing, order_of_operations],
    "ms3_r50": [query_layout, order_of_operations],
    "s4_pvt": [query_layout, order_of_operations],
    "avss_r50_mhab": [query_layout, consistency, short_sound, no_fusion],
}
OTHERS: list[Callable[[Bench], Iterator[Row]]] = [deformable_attention, many_masks, resampling, metrics_of_batches]


def measure(bench: Bench, clips: int) -> Iterator[Row]:
    """All rows, as they are ready."""
    for config, measures in OF_MODELS.items():
        for of_model in measures:
            yield from of_model(bench, config)
    for other in OTHERS:
        yield from other(bench)
    if clips:
        yield from demo_layout(clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--goldens", type=Path, help="default: as for the parity tests")
    parser.add_argument("--seed", type=int, default=0, help="of the recorded numbers")
    parser.add_argument("--clips", type=int, default=40, help="synthetic clips for the demo checkpoint; 0: none")
    parser.add_argument("--output", type=Path, help="also write the table here")
    options = parser.parse_args()
    folder = recorded.Goldens.find(ROOT.parent / "shared")
    bench = Bench(recorded.Goldens(options.goldens, options.seed) if options.goldens else folder)
    rows: dict[str, list[str]] = {}
    for what, effect in measure(bench, options.clips):
        print(f"{what}: {effect}", file=sys.stderr, flush=True)
        rows.setdefault(what, []).append(effect)
    lines = ["| difference | measured |", "|---|---|"]
    lines += [f"| {what} | {effect} |" for what, effects in rows.items() for effect in effects]
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
