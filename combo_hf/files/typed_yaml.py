"""YAML of recipes, which may come from a stranger: plain values only, each written out once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


MAX_TEXT = 1_000_000


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
