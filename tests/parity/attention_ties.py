"""Attention masks are a threshold: a mask logit within rounding of zero falls on either side.

Two float32 programs cannot agree on such ties. So a tie is settled as the golden settled it, and only then are the
stages compared. Nothing else is excused: a bit counts as a tie only where |logit| <= LIMIT * (largest mask logit of
the layer), it is looked for only in a frame and layer that differ from the golden, it is taken only where it brings
that frame back, and a run in which more than `most(frames)` bits were flipped fails. Nothing here knows a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from states import watch_decoder

import combo_hf.modeling_combo_decoder as decoder_module


# Of the layer's largest mask logit: the float32 noise of the official code's own mask logits against its float64 run
# (noise_floor.json: 1.8e-6 for s4_r50, 1.2e-6 for s4_pvt). Flipped bits were at 1e-7 to 5e-7.
LIMIT = 2e-6
SUSPICIOUS = 1.5e-5  # of the layer's largest class logit; without ties layers agree to 3e-6


def most(frames: int) -> int:
    """Flips that a run of so many frames may need. A frame has 0.3 million mask bits in 9 layers; logits with a
    spread of 0.15 of the largest, which two programs compute 2e-7 of it apart, put one in five frames on both sides
    of zero. This allows what a Poisson law of that mean exceeds once in 200 runs."""
    return 2 + 2 * frames // 5


class AttentionTies:
    """Replaces `visible_tokens` of the decoder: flips chosen bits and remembers logits."""

    def __init__(self) -> None:
        self.flips: dict[int, dict[tuple[int, ...], float]] = {}  # layer -> (frame, query, y, x) -> |logit| / largest
        self.logits: list[torch.Tensor] = []
        self.frames = 0
        self.original = decoder_module.visible_tokens

    def __enter__(self) -> AttentionTies:
        decoder_module.visible_tokens = self
        return self

    def __exit__(self, *error: Any) -> None:
        decoder_module.visible_tokens = self.original

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        self.frames = len(logits)
        flipped = logits.clone()
        for bit in self.flips.get(len(self.logits), []):
            flipped[bit] = other_side(logits[bit])
        self.logits.append(logits)
        return self.original(flipped)

    @property
    def count(self) -> int:
        return sum(len(bits) for bits in self.flips.values())

    def wrong(self) -> dict[str, str]:
        """Non-empty where more was flipped than rounding explains."""
        allowed = most(self.frames)
        return {"attention ties": f"{self.count}, allowed {allowed}: {self.flips}"} if self.count > allowed else {}

    @torch.no_grad()
    def settle(self, decoder: torch.nn.Module, inputs: tuple, wanted: torch.Tensor, stride: int) -> None:
        """Find the ties on which `decoder(*inputs)` and the golden disagree.

        Args: wanted: (layers, T, Q, classes / stride) class logits after each layer: they show every query, the
            recorded layer outputs only every tenth.
        """

        def logits_of(queries: torch.Tensor) -> torch.Tensor:
            return decoder.class_head(decoder.layer_norm(queries))[..., ::stride]  # (F, Q, classes / stride)

        self.flips.clear()
        hopeless: set[tuple[int, int]] = set()  # handed down from an earlier layer, or an error that the stages show
        settled = False
        while not settled and self.count <= most(len(inputs[0])):
            outputs, received = self._run(decoder, inputs)
            ours = torch.stack([logits_of(queries)[: wanted.shape[1]] for queries in outputs])
            errors = (ours - wanted).abs().amax(dim=(2, 3)) / wanted.abs().amax(dim=(1, 2, 3))[:, None]  # (layers, T)
            settled = True
            for layer, frame in (errors > SUSPICIOUS).nonzero().tolist():
                if (layer, frame) in hopeless:
                    continue
                arguments = [part[frame : frame + 1] for part in received[layer]][:4]

                def error(masks: torch.Tensor, layer=layer, frame=frame, arguments=arguments) -> float:
                    queries = decoder.layers[layer](*arguments, self.original(masks[None]))
                    return float((logits_of(queries)[0] - wanted[layer, frame]).abs().max())

                largest = float(self.logits[layer].abs().max())
                taken = {bit[1:] for bit in self.flips.get(layer, {}) if bit[0] == frame}
                bit = best_bit(self.logits[layer][frame], taken, LIMIT * largest, error)
                if bit is None:
                    hopeless.add((layer, frame))
                else:
                    size = float(self.logits[layer][frame][bit].abs()) / largest
                    self.flips.setdefault(layer, {})[(frame, *bit)] = size
                    hopeless = {pair for pair in hopeless if pair[0] < layer or pair[1] != frame}
                    settled = False
                    break
        self.logits.clear()

    def _run(self, decoder: torch.nn.Module, inputs: tuple) -> tuple[list[torch.Tensor], list[tuple]]:
        """Outputs and arguments of every layer."""
        received: list[tuple] = []
        hooks = [layer.register_forward_pre_hook(lambda _, args: received.append(args)) for layer in decoder.layers]
        self.logits.clear()
        with watch_decoder(decoder) as states:
            decoder(*inputs)
        for hook in hooks:
            hook.remove()
        return [states[f"decoder_layer/{index}"] for index in range(len(hooks))], received


def best_bit(
    logits: torch.Tensor, taken: set[tuple[int, ...]], limit: float, error: Callable[[torch.Tensor], float]
) -> tuple[int, ...] | None:
    """Of the ties in `logits` (Q, h_l, w_l) the one whose other side brings the layer closest to the golden; `taken`
    are already on their other side."""
    start = logits.clone()
    for tie in taken:
        start[tie] = other_side(logits[tie])
    best, smallest = None, 0.7 * error(start)
    for tie in map(tuple, (logits.abs() <= limit).nonzero().tolist()):
        if tie in taken:
            continue
        flipped = start.clone()
        flipped[tie] = other_side(logits[tie])
        if (distance := error(flipped)) < smallest:
            best, smallest = tie, distance
    return best


def other_side(logit: torch.Tensor) -> float:
    return -1e-9 if float(logit) >= 0 else 0.0


def crop_queries(states: torch.Tensor) -> torch.Tensor:
    """(F, Q, d) -> (Q / 10, F, d / 16), as the goldens are cut."""
    return states.transpose(0, 1)[::10, :, ::16]
