"""The examples in docstrings are run, as a reader would run them beside a video `clip.mp4`."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import combo_hf


PACKAGE = Path(combo_hf.__file__).parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> list[doctest.DocTest]:
    """One for every text with `>>>`: docstrings, and texts that libraries show in their place."""
    parser, found = doctest.DocTestParser(), []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and ">>> " in str(node.value):
                text = inspect.cleandoc(node.value)
                found.append(parser.get_doctest(text, {}, f"{module}:{node.lineno}", str(path), node.lineno - 1))
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_gives_what_it_shows(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "clip.mp4").write_bytes((PACKAGE / "assets" / "demo_real.mp4").read_bytes())
    (tmp_path / "combo_hf").symlink_to(PACKAGE)
    module = importlib.import_module(example.name.partition(":")[0])
    example.globs = {**vars(module), "combo_hf": combo_hf}
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=told.append)
    assert result.attempted and not result.failed, "".join(told)


def test_none_is_skipped():
    assert len(EXAMPLES) >= 5
    assert [example.name for example in EXAMPLES if "+SKIP" in example.docstring] == []


@pytest.mark.parametrize(
    "name",
    [
        "ComboConfig",
        "ComboForAudioVisualSegmentation",
        "ComboProcessor",
        "ComboImageProcessor",
        "ComboFeatureExtractor",
        "AudioVisualSegmentationPipeline",
        "load_pipeline",
        "paint_maskige",
    ],
)
def test_the_most_used_names_have_an_example(name):
    assert ">>> " in getattr(combo_hf, name).__doc__
