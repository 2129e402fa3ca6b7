"""Cases of the network: evaluation of clips, one training step, matching and loss, and batches that grow."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from combo_hf.benchmarking.cases import Case, Settings, label_maps, make_inputs, make_model
from combo_hf.benchmarking.machine import Machine
from combo_hf.benchmarking.reference_loss import match_layer, reference_loss
from combo_hf.benchmarking.reference_network import ReferenceCombo
from combo_hf.benchmarking.report import Result
from combo_hf.benchmarking.ties import Prediction, ties_remark
from combo_hf.benchmarking.timing import Variant, peak_bytes, timed
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation, ComboForAudioVisualSegmentationOutput
from combo_hf.modeling_combo_encoders import run_backbone


BACKBONES = ("r50", "pvtv2-b5")
CLIPS = {"5 frames": [5], "10 frames": [10], "batch of 4": [5, 5, 5, 5]}
LEARNING_RATE = 1e-5
BATCHES = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 16, 32)}
BATCH_ROUNDS = 3
TRAINING_CLIPS, TRAINING_FRAMES = 8, 10  # the official batch of AVSS


def network_cases() -> list[Case]:
    """All cases of this file, in the order of the table."""
    cases = []
    for backbone in BACKBONES:
        for name, clips in CLIPS.items():
            build = partial(evaluation_variants, backbone=backbone, clips=clips)
            cases.append(Case(f"eval/{backbone}/{name}", build, agree=agreement, gpu=True))
        build = partial(shared_variants, backbone=backbone)
        cases.append(Case(f"eval/{backbone}/shared encoders", build, agree=agreement, gpu=True))
    for backbone in BACKBONES:
        build = partial(step_variants, backbone=backbone, clips=[5])
        cases.append(Case(f"training step/{backbone}/1 clip of 5", build, agree=loss_change, gpu=True))
    cases.append(Case("loss/matching", partial(loss_variants, matching=True), gpu=True))
    cases.append(Case("loss/all, with gradients", partial(loss_variants, matching=False), agree=loss_change, gpu=True))
    for backbone in BACKBONES:
        cases.append(Case(f"batches/{backbone}", measure=partial(batches, backbone=backbone), gpu=True))
    for backbone in BACKBONES:
        name = f"training step/{backbone}/{TRAINING_CLIPS} clips of {TRAINING_FRAMES} (GPU only)"
        cases.append(Case(name, measure=partial(large_step, backbone=backbone), gpu=True))
    return cases


def evaluation_variants(settings: Settings, backbone: str, clips: Sequence[int]) -> list[Variant]:
    """Baseline, the default, and the options, of packed clips."""
    model = make_model(backbone, settings)
    inputs = make_inputs(model.config, clips, device=settings.device).network
    plain = ReferenceCombo(model)
    half = copy.deepcopy(model).set_backbone_dtype(torch.bfloat16)

    def ours(name: str, run: Callable[[], Any]) -> Variant:
        run = _evaluate(run)
        return Variant(name, run, remark=lambda: ties_remark(_evaluate(lambda: plain(**inputs)), run))

    variants = [
        Variant("plain", _evaluate(lambda: plain(**inputs)[-1])),
        ours("default", lambda: _last(model(**inputs))),
        Variant("bf16 backbones", _evaluate(lambda: _last(half(**inputs))), dtype="bfloat16"),
    ]
    if len(clips) > 1:
        return variants
    reshaped = nn.Module.to(copy.deepcopy(model), memory_format=torch.channels_last)
    variants.append(ours("channels_last", lambda: _last(reshaped(**_channels_last(inputs)))))
    variants.append(Variant("whole in bf16", _evaluate(_in_bfloat16(model, inputs)), dtype="bfloat16"))
    cached = cached_maskiges(model, inputs)
    variants.append(ours("cached Maskiges", lambda: _last(cached(**inputs))))
    if settings.compile:
        compiled = torch.compile(model)
        variants.append(Variant("torch.compile", _evaluate(lambda: _last(compiled(**inputs)))))
    return variants


def shared_variants(settings: Settings, backbone: str) -> list[Variant]:
    """One encoder for frames and Maskiges: two calls (plain), or one of twice the pictures."""
    model = make_model(backbone, settings, share_encoders=True)
    inputs = make_inputs(model.config, [5], device=settings.device).network
    plain = ReferenceCombo(model)
    return [
        Variant("plain", _evaluate(lambda: plain(**inputs)[-1])),
        Variant("default", _evaluate(lambda: _last(model(**inputs)))),
    ]


def _evaluate(run: Callable[[], Any]) -> Callable[[], Any]:
    def inference() -> Any:
        with torch.no_grad():  # what the counter of operations needs; inference mode takes the same time
            return run()

    return inference


def _last(out: ComboForAudioVisualSegmentationOutput) -> Prediction:
    assert out.class_queries_logits is not None and out.masks_queries_logits is not None
    return out.class_queries_logits, out.masks_queries_logits


def _channels_last(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pictures = {"pixel_values", "maskige_values"}
    return {
        name: value.to(memory_format=torch.channels_last) if name in pictures else value
        for name, value in inputs.items()
    }


def _in_bfloat16(model: ComboForAudioVisualSegmentation, inputs: dict[str, torch.Tensor]) -> Callable[[], Any]:
    """All weights and inputs in bf16, as `from_pretrained(..., dtype=torch.bfloat16)` gives them."""
    half = copy.deepcopy(model).bfloat16()
    values = {name: v.bfloat16() if v.is_floating_point() else v for name, v in inputs.items()}
    return lambda: _last(half(**values))


def cached_maskiges(
    model: ComboForAudioVisualSegmentation, inputs: dict[str, torch.Tensor]
) -> ComboForAudioVisualSegmentation:
    """The model with the Maskiges' features computed once: for videos that are asked about again and again."""

    class Cached(nn.Module):
        def __init__(self, output: Any) -> None:
            super().__init__()
            self.output = output

        def forward(self, _: torch.Tensor) -> Any:
            return self.output

    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.model = _shallow(model.model)
    other.model.encoder = _shallow(model.model.encoder)
    with torch.no_grad():
        maps = run_backbone(model.model.encoder.maskige_backbone, inputs["maskige_values"])
    other.model.encoder.maskige_backbone = Cached(SimpleNamespace(feature_maps=maps))
    return other


def _shallow(module: nn.Module) -> nn.Module:
    other = copy.copy(module)
    other._modules = dict(module._modules)
    return other


def agreement(wanted: Prediction, got: Prediction) -> str:
    """Share of pixels with the same class, and the largest relative difference of the mask logits."""
    equal = (label_maps(*wanted) == label_maps(*got)).float().mean().item()
    difference = (wanted[1] - got[1].float()).abs().max() / wanted[1].abs().max()
    return f"labels {100 * equal:.2f} %, masks {difference:.0e}"


def step_variants(settings: Settings, backbone: str, clips: Sequence[int]) -> list[Variant]:
    """One step of AdamW on clips of annotated frames."""
    from combo_hf.training.optimizer import build_optimizer

    model = make_model(backbone, settings).train()
    inputs = make_inputs(model.config, clips, device=settings.device)
    plain = ReferenceCombo(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch_default = torch.optim.AdamW(trained, LEARNING_RATE)
    optimizer = build_optimizer([{"params": trained, "lr": LEARNING_RATE}])
    frames = torch.ones(sum(clips), dtype=torch.bool, device=settings.device)
    held = _bytes(model.parameters()) + 2 * _bytes(trained)

    def plain_forward() -> torch.Tensor:
        predictions = plain(**inputs.network)
        labels = inputs.labels
        return reference_loss(
            model.criterion, predictions, labels["mask_labels"], labels["class_labels"], frames, list(clips)
        )

    def step(forward: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer = optimizer) -> float:
        torch.manual_seed(settings.seed)
        loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    def ours() -> torch.Tensor:
        return model(**inputs.network, **inputs.labels).loss

    def mixed() -> torch.Tensor:
        with torch.autocast(torch.device(settings.device).type, dtype=torch.bfloat16):
            return ours()

    def checkpointed_step() -> float:
        with checkpointed(model):
            return step(ours)

    plain_step = partial(step, plain_forward, torch_default)
    plain_step(), step(ours)  # Adam's states exist from here on
    measured = partial(Variant, memory=True, held=held)
    return [
        measured("plain", plain_step),
        measured("default", partial(step, ours)),
        measured("gradient checkpointing", checkpointed_step),
        measured("bf16", partial(step, mixed), dtype="bfloat16"),
    ]


def _bytes(parameters: Iterable[torch.Tensor]) -> int:
    return sum(values.numel() * values.element_size() for values in parameters)


@contextmanager
def checkpointed(model: ComboForAudioVisualSegmentation) -> Iterator[None]:
    """Gradient checkpointing as recipes switch it on, and off again."""
    from combo_hf.training.engine import enable_gradient_checkpointing

    enable_gradient_checkpointing(model)
    try:
        yield
    finally:
        disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
        disable()
        for module in model.modules():
            if isinstance(vars(module).get("forward"), partial):
                del module.forward


def loss_variants(settings: Settings, matching: bool) -> list[Variant]:
    """Loss (or its matching alone) of ten predictions of five frames with three classes each."""
    model = make_model("r50", settings)
    inputs = make_inputs(model.config, [5], device=settings.device)
    criterion, labels = model.criterion, inputs.labels
    with torch.no_grad():
        predictions = ReferenceCombo(model)(**inputs.network)
    for logits in (logits for layer in predictions for logits in layer):
        logits.requires_grad_(not matching)
    frames = torch.ones(5, dtype=torch.bool, device=settings.device)
    masks, classes = labels["mask_labels"], labels["class_labels"]
    if matching:

        def plain() -> Any:
            return [match_layer(criterion.config, *layer, masks, classes) for layer in predictions]

        scores, maps = [layer[0] for layer in predictions], [layer[1] for layer in predictions]
        return [Variant("plain", plain), Variant("default", lambda: criterion.match(scores, maps, masks, classes))]

    def with_gradients(compute: Callable[[], torch.Tensor]) -> Callable[[], float]:
        def run() -> float:
            torch.manual_seed(settings.seed)
            loss = compute()
            torch.autograd.grad(loss, [logits for layer in predictions for logits in layer], allow_unused=True)
            return float(loss.detach())

        return run

    return [
        Variant("plain", with_gradients(lambda: reference_loss(criterion, predictions, masks, classes, frames, [5]))),
        Variant("default", with_gradients(lambda: sum(criterion(predictions, masks, classes, frames, [5]).values()))),
    ]


def loss_change(wanted: float, got: float) -> str:
    """Two losses differ by their sampled points, and by the steps taken in between."""
    return f"loss {wanted:.3f}, {got:.3f}"


def batches(settings: Settings, machine: Machine, case: str, backbone: str) -> list[Result]:
    """Evaluation of more and more clips of five frames; times are per clip, so that the knee is where x stays."""
    model = make_model(backbone, settings)
    sizes = (1, 2) if settings.quick else BATCHES[torch.device(settings.device).type]
    results: list[Result] = []
    for dtype in (torch.float32, torch.bfloat16):
        first = None
        for size in sizes:
            inputs = make_inputs(model.config, [5] * size, device=settings.device).network

            def run(inputs: dict[str, torch.Tensor] = inputs, dtype: torch.dtype = dtype) -> Any:
                enabled = dtype == torch.bfloat16
                with torch.no_grad(), torch.autocast(torch.device(settings.device).type, dtype, enabled=enabled):
                    return model(**inputs).masks_queries_logits

            run()
            spent = [timed(run, settings.device) for _ in range(1 if settings.quick else BATCH_ROUNDS)]
            wall, cpu = (statistics.median(values) / size for values in zip(*spent, strict=True))
            first = first or (wall, cpu)
            results.append(
                Result(case, f"{size} clips, {str(dtype)[6:]}", wall, cpu, first[0] / wall, first[1] / cpu,
                       peak=peak_bytes(run, settings.device), note=f"per clip; {1 / wall:.3g} clips a second")
            )  # fmt: skip
    return results


def large_step(settings: Settings, machine: Machine, case: str, backbone: str) -> list[Result]:
    """A training step of eight clips of ten frames: time and memory. Too large for most processors' memory."""
    if torch.device(settings.device).type == "cpu" and not settings.quick:
        return []
    clips = [2] if settings.quick else [TRAINING_FRAMES] * TRAINING_CLIPS
    results: list[Result] = []
    for variant in step_variants(settings, backbone, clips):
        variant.run()
        wall, cpu = timed(variant.run, settings.device)
        first = results[0] if results else Result(case, "", wall, cpu, 1, 1)
        peak = peak_bytes(variant.run, settings.device)
        results.append(
            Result(case, variant.name, wall, cpu, first.wall / wall, first.cpu / cpu,
                   peak=None if peak is None else peak + variant.held)
        )  # fmt: skip
    return results
