"""Cases of the network: evaluation of clips, one training step, matching and loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from combo_hf.benchmarking.cases import Case, Settings, label_maps, make_inputs, make_model
from combo_hf.benchmarking.reference_loss import match_layer, plain_loss
from combo_hf.benchmarking.reference_network import PlainCombo
from combo_hf.benchmarking.ties import ties_remark
from combo_hf.benchmarking.timing import Variant
from combo_hf.modeling_combo_encoders import run_backbone


BACKBONES = ("r50", "pvtv2-b5")
CLIPS = {"5 frames": [5], "10 frames": [10], "batch of 4": [5, 5, 5, 5]}
LEARNING_RATE = 1e-5


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
    return cases


def evaluation_variants(settings: Settings, backbone: str, clips: Sequence[int]) -> list[Variant]:
    """Baseline, the default, and the options, of packed clips."""
    model = make_model(backbone, settings)
    inputs = make_inputs(model.config, clips, device=settings.device).network
    plain = PlainCombo(model)
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
    reshaped = copy.deepcopy(model).to(memory_format=torch.channels_last)
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
    plain = PlainCombo(model)
    return [
        Variant("plain", _evaluate(lambda: plain(**inputs)[-1])),
        Variant("default", _evaluate(lambda: _last(model(**inputs)))),
    ]


def _evaluate(run: Callable[[], Any]) -> Callable[[], Any]:
    def inference() -> Any:
        with torch.no_grad():  # what the counter of operations needs; inference mode takes the same time
            return run()

    return inference


def _last(out: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return out.class_queries_logits, out.masks_queries_logits


def _channels_last(inputs: dict[str, Any]) -> dict[str, Any]:
    pictures = {"pixel_values", "maskige_values"}
    return {
        name: value.to(memory_format=torch.channels_last) if name in pictures else value
        for name, value in inputs.items()
    }


def _in_bfloat16(model: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    """All weights and inputs in bf16, as `from_pretrained(..., dtype=torch.bfloat16)` gives them."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    values = {name: v.bfloat16() if v.is_floating_point() else v for name, v in inputs.items()}
    return lambda: _last(half(**values))


def cached_maskiges(model: Any, inputs: dict[str, Any]) -> Any:
    """The model with the Maskiges' features computed once: for films that are asked about again and again."""

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


def agreement(wanted: Any, got: Any) -> str:
    """Share of pixels with the same class, and the largest relative difference of the mask logits."""
    equal = (label_maps(*wanted) == label_maps(*got)).float().mean().item()
    difference = (wanted[1] - got[1].float()).abs().max() / wanted[1].abs().max()
    return f"labels {100 * equal:.2f} %, masks {difference:.0e}"


def step_variants(settings: Settings, backbone: str, clips: Sequence[int]) -> list[Variant]:
    """One step of AdamW on clips of annotated frames."""
    from combo_hf.training.optimizer import build_optimizer

    model = make_model(backbone, settings).train()
    inputs = make_inputs(model.config, clips, device=settings.device)
    plain = PlainCombo(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch_default = torch.optim.AdamW(trained, LEARNING_RATE)
    optimizer = build_optimizer([{"params": trained, "lr": LEARNING_RATE}])
    frames = torch.ones(sum(clips), dtype=torch.bool, device=settings.device)
    held = _bytes(model.parameters()) + 2 * _bytes(trained)

    def plain_forward() -> torch.Tensor:
        predictions = plain(**inputs.network)
        labels = inputs.labels
        return plain_loss(
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
    options = {"memory": True, "held": held}
    return [
        Variant("plain", plain_step, **options),
        Variant("default", partial(step, ours), **options),
        Variant("gradient checkpointing", checkpointed_step, **options),
        Variant("bf16", partial(step, mixed), dtype="bfloat16", **options),
    ]


def _bytes(parameters: Any) -> int:
    return sum(values.numel() * values.element_size() for values in parameters)


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Gradient checkpointing as recipes switch it on, and off again."""
    from combo_hf.training.memory import enable_gradient_checkpointing

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
        predictions = PlainCombo(model)(**inputs.network)
    predictions = [tuple(logits.requires_grad_(not matching) for logits in layer) for layer in predictions]
    frames = torch.ones(5, dtype=torch.bool, device=settings.device)
    masks, classes = labels["mask_labels"], labels["class_labels"]
    if matching:

        def plain() -> Any:
            return [match_layer(criterion.config, *layer, masks, classes) for layer in predictions]

        logits, maps = zip(*predictions, strict=True)
        return [Variant("plain", plain), Variant("default", lambda: criterion.match(logits, maps, masks, classes))]

    def with_gradients(compute: Callable[[], torch.Tensor]) -> Callable[[], float]:
        def run() -> float:
            torch.manual_seed(settings.seed)
            loss = compute()
            torch.autograd.grad(loss, [logits for layer in predictions for logits in layer], allow_unused=True)
            return float(loss.detach())

        return run

    return [
        Variant("plain", with_gradients(lambda: plain_loss(criterion, predictions, masks, classes, frames, [5]))),
        Variant("default", with_gradients(lambda: sum(criterion(predictions, masks, classes, frames, [5]).values()))),
    ]


def loss_change(wanted: Any, got: Any) -> str:
    """Two losses differ by their sampled points, and by the steps taken in between."""
    return f"loss {float(wanted):.3f}, {float(got):.3f}"
