"""Typed values from YAML: safe, strict about keys, types and repetitions, with `key=value` overrides."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from combo_hf.files.typed_yaml import dump_yaml, parse_yaml


__all__ = ["apply_override", "build", "dump_yaml", "parse_yaml"]


def apply_override(values: dict[str, Any], entry: str) -> None:
    """Set one value of nested ones in place.

    Args:
        values: nested plain values.
        entry: such as `"data.silence_audio=true"`; the right side is read as YAML.

    Raises:
        ValueError: no `key=value`, or a part of the key that has no parts.
    """
    path, equals, text = entry.partition("=")
    if not equals or not path.strip():
        raise ValueError(f"override: wanted key=value, for example max_steps=100, got {entry!r}.")
    *parents, last = path.strip().split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ValueError(f"override {entry!r}: {parent} has no parts.")
    values[last] = parse_yaml(text, f"override {entry!r}")


def build(cls: type, values: Any, prefix: str = "") -> Any:
    """A dataclass from a mapping, checked against its annotations.

    A field that may be one of several dataclasses is built as the one whose default of the field `source` is the
    `source` of the mapping, the first one without it.

    Raises:
        ValueError: unknown key, wrong type, or what the class itself refuses; names the key.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'recipe'}: wanted keys and values, got {values!r}.")
    kinds = typing.get_type_hints(cls)
    unknown = [str(key) for key in values if key not in kinds]
    if unknown:
        raise ValueError(f"unknown key {prefix}{unknown[0]}; known here: {', '.join(kinds)}.")
    return cls(**{key: _convert(kinds[key], value, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, name: str) -> Any:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if all(dataclasses.is_dataclass(option) for option in options):
        value = {} if value is None else value
        return build(_choose(options, value, name), value, f"{name}.")
    if value is None and types.NoneType in options:
        return None
    wanted = next(option for option in options if option is not types.NoneType)
    inside = typing.get_args(wanted)
    wanted = typing.get_origin(wanted) or wanted
    if wanted is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4, without a point, as text
        except ValueError:
            pass
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(f"{name}: wanted {wanted.__name__}, got {value!r}.")
    if wanted is list and inside:
        return [_convert(inside[0], entry, f"{name}[{index}]") for index, entry in enumerate(value)]
    return value


def _choose(options: tuple[type, ...], values: Any, name: str) -> type:
    if len(options) == 1 or not isinstance(values, Mapping) or "source" not in values:
        return options[0]
    known = {
        field.default: option for option in options for field in dataclasses.fields(option) if field.name == "source"
    }
    if values["source"] not in known:
        raise ValueError(f"{name}.source: wanted one of {list(known)}, got {values['source']!r}.")
    return known[values["source"]]
