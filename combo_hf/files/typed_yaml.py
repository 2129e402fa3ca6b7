"""Typed values from YAML that may come from a stranger: plain values only, each written out once, every key known."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar


MAX_TEXT = 1_000_000
Built = TypeVar("Built")


def find_yaml(name: str | Path, folder: Path) -> Path:
    """A file, or else one of those in `folder` by name: `synthetic-quick`, or the path that recipes had in a clone,
    `examples/recipes/synthetic-quick.yaml`.

    Raises:
        FileNotFoundError: neither; the message names those of the folder.
    """
    path = Path(name)
    if path.exists():
        return path
    known = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    stem = path.name.removesuffix(".yaml")
    if stem in known and path.parent in (Path(), Path("examples", "recipes")):
        return known[stem]
    raise FileNotFoundError(f"{name}: no such file, and no recipe of the package: {', '.join(known)}.")


def parse_yaml(text: str, name: str = "text") -> Any:
    """Plain values of a YAML text; tags that build objects, repeated keys and aliases are refused.

    Raises:
        ValueError: not YAML, a forbidden tag, a repeated key, an alias, too long or too deeply nested.
        ImportError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("recipes need PyYAML: pip install 'combo-hf[train]'") from error

    class Loader(yaml.SafeLoader):
        """The safe loader, which would let the last of two equal keys win and nine lines of aliases stand for 10^9."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.composer.ComposerError(
                    None, None, "aliases (*name) are not read", self.peek_event().start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key, _ in node.value:
                value = key.value if isinstance(key, yaml.ScalarNode) else None
                if value is None:
                    raise yaml.constructor.ConstructorError(None, None, "a key is no word", node.start_mark)
                if value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"repeated key {value!r}", node.start_mark)
                seen.add(value)
            return super().construct_mapping(node, deep)

    if len(text) > MAX_TEXT:
        raise ValueError(f"{name} has {len(text)} characters; a recipe has at most {MAX_TEXT}.")
    try:
        return yaml.load(text, Loader)  # noqa: S506 (derived from SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:  # an impossible date, say
        raise ValueError(f"{name} is not plain YAML: {str(error)[:300]}") from error


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML that [`parse_yaml`] reads, keys in the order given."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes a list that occurs twice twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)


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


def build_typed(cls: type[Built], values: Any, prefix: str = "") -> Built:
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
        return build_typed(_choose(options, value, name), value, f"{name}.")
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
