"""Attention masks are a threshold: a mask logit within rounding of zero falls on either side.

Two float32 programs cannot agree on such ties. So a tie is settled as the golden settled it, and only then are the
stages compared. Nothing else is excused: a bit counts as a tie only where |logit| <= LIMIT, it is looked for only in
the frame and layer that differ, and the number of ties is bounded by the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import combo_hf.modeling_combo_decoder as decoder_module


LIMIT = 3e-5  # mask logits reach 17; float32 noise of the official code's own mask logits: 1.7e-5
SUSPICIOUS = 1.5e-5  # of the layer's largest class logit; without ties layers agree to 3e-6


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
    def settle(self, decoder: torch.nn.Module, inputs: tuple, wanted: torch.Tensor, stride: int, most: int) -> None:
        """Find the ties on which `decoder(*inputs)` and the golden disagree.

        Args: wanted: (layers, T, Q, classes / stride) class logits after each layer: they show every query, the
            recorded layer outputs only every tenth. most: give up after so many.
        """

        def logits_of(queries: torch.Tensor) -> torch.Tensor:
            return decoder.class_head(decoder.layer_norm(queries))[..., ::stride]  # (F, Q, classes / stride)

        hopeless: set[tuple[int, int]] = set()  # handed down from an earlier layer, or an error that the stages show
        settled = False
        while not settled and self.count < most:
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

                bit = self._best_bit(self.logits[layer][frame], error)
                if bit is None:
                    hopeless.add((layer, frame))
                else:
                    self.flips.setdefault(layer, []).append((frame, *bit))
                    hopeless = {pair for pair in hopeless if pair[0] < layer or pair[1] != frame}
                    settled = False
                    break

    def _run(self, decoder: torch.nn.Module, inputs: tuple) -> tuple[list[torch.Tensor], list[tuple]]:
        """Outputs and arguments of every layer."""
        received: list[tuple] = []
        hooks = [layer.register_forward_pre_hook(lambda _, args: received.append(args)) for layer in decoder.layers]
        tap: dict[str, torch.Tensor] = {}
        self.logits.clear()
        decoder(*inputs, tap=tap)
        for hook in hooks:
            hook.remove()
        return [tap[f"decoder_layer/{index}"] for index in range(len(hooks))], received

    @staticmethod
    def _best_bit(logits: torch.Tensor, error: Callable[[torch.Tensor], float]) -> tuple[int, ...] | None:
        """Of the ties in `logits` (Q, h_l, w_l) the one whose other side brings the layer closest to the golden."""
        best, smallest = None, 0.7 * error(logits)
        for tie in (logits.abs() <= LIMIT).nonzero().tolist():
            flipped = logits.clone()
            flipped[tuple(tie)] = -1e-9 if flipped[tuple(tie)] >= 0 else 0.0
            if (distance := error(flipped)) < smallest:
                best, smallest = tuple(tie), distance
        return best


def crop_queries(states: torch.Tensor) -> torch.Tensor:
    """(F, Q, d) -> (Q / 10, F, d / 16), as the goldens are cut."""
    return states.transpose(0, 1)[::10, :, ::16]
