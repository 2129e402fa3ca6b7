"""Intermediate states of the network by forward hooks, under the names that the goldens have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def _layers(states: dict[str, torch.Tensor], name: str, layers: torch.nn.ModuleList) -> list[Any]:
    def keep(index: int) -> Any:
        return lambda _, args, output: states.update({f"{name}/{index}": output})

    return [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]


@contextmanager
def watch_decoder(decoder: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """The first queries and those of every layer; filled while the decoder runs."""
    states: dict[str, torch.Tensor] = {}
    hooks = _layers(states, "decoder_layer", decoder.layers)
    hooks.append(decoder.layers[0].register_forward_pre_hook(lambda _, args: states.update(query_init=args[0])))
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        yield states


@contextmanager
def watch_model(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """The states of a [`ComboModel`] up to its decoder; filled while it runs."""
    states: dict[str, torch.Tensor] = {}

    def maps(name: str, first: int, levels: Any) -> None:
        states.update({f"{name}{first + index}": level for index, level in enumerate(levels)})

    def pixels(_: Any, args: Any, output: Any) -> None:
        states["mask_features"] = output[0]
        maps("multi_scale/", 0, output[1])

    def fusion(_: Any, args: Any, output: Any) -> None:
        states.update(bfm_visual=output[0], bfm_audio=output[1])

    hooks = [
        *_layers(states, "pixel_encoder_layer", model.pixel_decoder.layers),
        model.encoder.register_forward_hook(lambda _, args, output: maps("fused/res", 2, output)),
        model.audio_encoder.register_forward_hook(lambda _, args, output: states.update(vggish=output)),
        model.pixel_decoder.register_forward_hook(pixels),
        model.fusion.register_forward_hook(fusion),
        model.audio_projection.register_forward_hook(lambda _, args, out: states.update(audio_transformed=out)),
    ]
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        yield states
