"""Attention masks are a threshold: a mask logit within rounding of zero falls on either side.

Two float32 programs cannot agree on such ties. So a tie is settled as the golden settled it, and only then are the
stages compared. Nothing else is excused: a bit counts as a tie only where |logit| <= LIMIT, it is looked for only in
the frame and layer that differ, and the number of ties is bounded by the tests.
"""

from __future__ import annotations

from typing import Any

import torch

import combo_hf.modeling_combo_decoder as decoder_module


LIMIT = 3e-5  # mask logits reach 17; float32 noise of the official code's own mask logits: 1.7e-5
SUSPICIOUS = 6e-6  # of the layer's largest magnitude; without ties layers agree to 3e-6


class AttentionTies:
    """Replaces `visible_tokens` of the decoder: flips chosen bits and remembers logits and layer inputs."""

    def __init__(self, monkeypatch: Any) -> None:
        self.flips: dict[int, list[tuple[int, ...]]] = {}
        self.logits: list[torch.Tensor] = []
        self.original = decoder_module.visible_tokens
        monkeypatch.setattr(decoder_module, "visible_tokens", self)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        for bit in self.flips.get(len(self.logits), []):
            logits[bit] = -1e-9 if logits[bit] >= 0 else 0.0
        self.logits.append(logits)
        return self.original(logits)

    @property
    def count(self) -> int:
        return sum(len(bits) for bits in self.flips.values())

    @torch.no_grad()
    def settle(self, decoder: torch.nn.Module, inputs: tuple, wanted: torch.Tensor, most: int) -> None:
        """Find the ties on which `decoder(*inputs)` and the golden layers disagree.

        Args: wanted: (layers, Q / 10, T, d / 16) crops of the golden. most: give up after so many.
        """
        settled = False
        while not settled and self.count < most:
            layers, received = self._run(decoder, inputs, wanted.shape[2])
            errors = (layers - wanted).abs().amax(dim=(1, 3)) / wanted.abs().amax(dim=(1, 2, 3))[
                :, None
            ]  # (layers, T)
            settled = True
            for layer, frame in (errors > SUSPICIOUS).nonzero().tolist():
                bit = self._best_bit(decoder.layers[layer], received[layer], layer, frame, wanted[layer, :, frame])
                if (
                    bit is not None
                ):  # otherwise handed down from an earlier layer, or an error that the stages will show
                    self.flips.setdefault(layer, []).append(bit)
                    settled = False
                    break

    def _run(self, decoder: torch.nn.Module, inputs: tuple, frames: int) -> tuple[torch.Tensor, list[tuple]]:
        received: list[tuple] = []
        hooks = [layer.register_forward_pre_hook(lambda _, args: received.append(args)) for layer in decoder.layers]
        tap: dict[str, torch.Tensor] = {}
        self.logits.clear()
        decoder(*inputs, tap=tap)
        for hook in hooks:
            hook.remove()
        return torch.stack([crop_queries(tap[f"decoder_layer/{i}"])[:, :frames] for i in range(len(hooks))]), received

    def _best_bit(
        self, layer: torch.nn.Module, received: tuple, index: int, frame: int, wanted: torch.Tensor
    ) -> tuple[int, ...] | None:
        queries, position, keys, values, _ = (part[frame : frame + 1] for part in received)
        logits = self.logits[index][frame]
        ties = (logits.abs() <= LIMIT).nonzero()
        ties = ties[logits[tuple(ties.T)].abs().argsort()]

        def error(bits: torch.Tensor) -> float:
            out = layer(queries, position, keys, values, self.original(bits[None]))
            return float((crop_queries(out)[:, 0] - wanted).abs().max())

        best, smallest = None, 0.7 * error(logits)
        for tie in ties.tolist():
            flipped = logits.clone()
            flipped[tuple(tie)] = -1e-9 if flipped[tuple(tie)] >= 0 else 0.0
            if (distance := error(flipped)) < smallest:
                best, smallest = (frame, *tie), distance
        return best


def crop_queries(states: torch.Tensor) -> torch.Tensor:
    """(F, Q, d) -> (Q / 10, F, d / 16), as the goldens are cut."""
    return states.transpose(0, 1)[::10, :, ::16]
