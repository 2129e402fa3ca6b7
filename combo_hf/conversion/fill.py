"""Foreign weights -> a network of ours: renamed by a table, every name accounted for, nothing that does not fit.

A table is an ordered list of (pattern, target); the first pattern that matches a whole name wins. A target such as
`{q,k,v}_proj.weight` cuts the tensor along its first axis into equal parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from combo_hf.files.wording import some


Rules = Sequence[tuple[str, str]]
Tensors = dict[str, torch.Tensor]

COUNTER = "counter of a frozen batch norm, never read; zero"
SECOND_NAME = "second name of a shared tensor, equal to the first"


@dataclass
class ConversionReport:
    """What became of every name.

    Args:
        preset: what was converted: a preset, or a part of the network.
        consumed: name in the file -> our names (several where one tensor was cut or fills two encoders).
        dropped: name in the file -> why it is not needed.
        missing: our name -> why it is fine that the file does not have it.
    """

    preset: str
    consumed: dict[str, list[str]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        numbers = f"{len(self.consumed)} entries consumed, {len(self.dropped)} dropped, {len(self.missing)} missing"
        lines = [f"{self.preset}: {numbers}"]
        for title, names in (("dropped", self.dropped), ("missing", self.missing)):
            for reason in sorted(set(names.values())):
                listed = [name for name, why in names.items() if why == reason]
                lines.append(f"  {title}: {some(listed, 3)}: {reason}")
        return "\n".join(lines)


def rename(name: str, rules: Rules) -> str | None:
    """Target of the first rule whose pattern matches the whole name, or `None`."""
    for pattern, target in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(target)
    return None


def cut(target: str, tensor: torch.Tensor) -> Tensors:
    """`"a.{q,k}.w"` -> `{"a.q.w": first half, "a.k.w": second half}`; a target without braces takes all of it."""
    braces = re.search(r"\{(.+)\}", target)
    if braces is None:
        return {target: tensor}
    names = braces.group(1).split(",")
    if tensor.ndim == 0 or len(tensor) % len(names):
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} cannot be cut into {names} for {target}.")
    return {
        target[: braces.start()] + name + target[braces.end() :]: part
        for name, part in zip(names, tensor.chunk(len(names)), strict=True)
    }


def rename_all(
    tensors: Mapping[str, torch.Tensor],
    rules: Rules,
    dropped: Rules,
    report: ConversionReport,
    aliases: Rules = (),
    rest: str | None = None,
) -> Tensors:
    """Tensors under our names; what became of every name goes to the report.

    Args:
        tensors: of the file.
        rules: name in the file -> our name.
        dropped: name in the file -> why it is not needed; looked at first.
        report: gets `consumed` and `dropped`.
        aliases: second name of a shared tensor in the file -> its first name.
        rest: why what no table knows is not needed; `None`: it is an error.

    Raises:
        ValueError: names that no table knows, or second names of shared tensors that differ.
    """
    converted: Tensors = {}
    unknown = []
    for name, tensor in tensors.items():
        first, reason, target = rename(name, aliases), rename(name, dropped), rename(name, rules)
        if first is not None and first in tensors:
            if tensor.shape != tensors[first].shape or not torch.equal(tensor, tensors[first]):
                raise ValueError(f"{name} differs from {first}, which it should share; this is another network.")
            report.dropped[name] = SECOND_NAME
        elif reason is not None:
            report.dropped[name] = reason
        elif target is not None:
            parts = cut(target, tensor)
            report.consumed[name] = list(parts)
            converted.update(parts)
        elif rest is not None:
            report.dropped[name] = rest
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} entries are not of {report.preset}: {some(unknown)}.")
    return converted


def check_fit(network: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Compare names, shapes and values with a network's; counters of batch norms, which nobody reads, may be missing.

    Args:
        network: may be on the "meta" device.
        tensors: by the network's names.
        source: what the messages call them.

    Raises:
        ValueError: tensors missing, without a place, of another shape, or not finite.
    """
    own = network.state_dict()
    absent = [name for name in own if name not in tensors and not _is_counter(name)]
    if absent:
        raise ValueError(f"{source} does not fit: {len(absent)} of {len(own)} entries are missing: {some(absent)}.")
    surplus = [name for name in tensors if name not in own]
    if surplus:
        raise ValueError(f"{source} does not fit: {len(surplus)} entries have no place here: {some(surplus)}.")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            shapes = f"shape {tuple(tensor.shape)}, wanted {tuple(own[name].shape)}"
            raise ValueError(f"{source} does not fit: {name} has {shapes}.")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{source} is damaged: {name} holds values that are not finite.")


def fill(network: nn.Module, tensors: Mapping[str, torch.Tensor], report: ConversionReport, prefix: str = "") -> None:
    """Give a network copies of tensors that were found to fit ([`check_fit`]); a missing counter becomes zero.

    Args:
        network: of real tensors, which keep their device, or on the "meta" device, whose place they take.
        tensors: by the network's names.
        report: gets `missing`, with `prefix` before the names.
        prefix: of this network in a larger one.
    """
    own = network.state_dict()
    on_meta = any(place.is_meta for place in own.values())
    filled = {
        name: torch.zeros((), dtype=place.dtype)
        if name not in tensors
        else tensors[name].to(place.dtype, copy=on_meta).contiguous()  # a mapped file must not stay under a model
        for name, place in own.items()
    }
    report.missing.update({f"{prefix}{name}": COUNTER for name in own if name not in tensors})
    network.load_state_dict(filled, assign=on_meta)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
