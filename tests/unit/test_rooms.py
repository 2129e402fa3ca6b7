"""The package is a tree of rooms: the table says which room may import which, and nothing else is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import combo_hf


PACKAGE = Path(combo_hf.__file__).parent
CORE = "core"
# Room -> rooms that it may import, anywhere in a file. A room that is not here does not exist.
ARROWS = {
    CORE: [],
    "files": [],
    "metrics": ["metrics.avs_segmentation"],
    "metrics.avs_segmentation": [],  # a folder that `evaluate` copies and loads alone
    "results": [CORE, "files"],
    "data": [CORE, "files", "results"],
    "data.synthetic": [CORE, "files", "results", "data"],
    "proposals": [CORE, "files", "data"],
    "publishing": [CORE, "files", "results"],
    "conversion": [CORE, "files", "proposals", "publishing"],
    "evaluation": [CORE, "files", "results", "data", "metrics", "metrics.avs_segmentation"],
    "training": [CORE, "files", "data", "data.synthetic", "evaluation", "conversion", "publishing"],
    "benchmarking": [
        *(CORE, "files", "results", "data", "data.synthetic", "proposals", "publishing", "conversion", "evaluation"),
        *("training", "metrics", "metrics.avs_segmentation"),
    ],
}
ARROWS["commands"] = list(ARROWS)
# These open the doors: they may import everything. All other files at the root are the core.
FACE = {"__init__.py", "__main__.py", "cli.py"}
ROOT_FILES = 25  # 24, and media_combo_shown: what a player does to pictures (colours, orientation, fields)
# What is loaded by others as a folder of its own, by transformers and by `evaluate`: imports there are relative.
CARRIED = (CORE, "metrics.avs_segmentation")
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
# What the core reaches without an import statement, with the reason.
BY_NAME = {("proposals_combo.py", "proposals")}  # models of the paper, only where a processor asks for one by name
# Arrows against the table that are still being taken away.
NOT_YET: set[tuple[str, str]] = set()


def room_of(path: Path) -> str:
    """The folder of a file, with dots; the root is the core."""
    return ".".join(path.relative_to(PACKAGE).parts[:-1]) or CORE


def room_of_module(name: str) -> str:
    """The room of `combo_hf.room.file`, `combo_hf.room`, or a public name of `combo_hf` itself."""
    parts = name.split(".")[1:]
    if len(parts) == 1 and parts[0] in combo_hf._PUBLIC:
        parts = combo_hf._PUBLIC[parts[0]].split(".")
    rooms = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((room for room in rooms if room in ARROWS), CORE)


def imports(tree: ast.AST, room: str) -> Iterator[tuple[int, str]]:
    """(line, module of this package) for every import, in functions too, and by `importlib` with a fixed beginning."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "combo_hf")
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, ".".join(["combo_hf", *([room] if room != CORE else []), str(node.module)])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "combo_hf":
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and str(node.value).startswith("combo_hf."):
            yield node.lineno, str(node.value).rstrip(".")


def broken_arrows(path: Path, room: str) -> list[str]:
    """`file:line: ...` of every import that the table does not allow, or that is written the other way."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name
    tree = ast.parse(text)
    problems = []
    for line, module in imports(tree, room):
        target = room_of_module(module)
        if target not in (room, *ARROWS[room]) and (name, target) not in BY_NAME | NOT_YET:
            problems.append(f"{name}:{line}: {room} may not import {target} ({module})")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and bool(node.level) != (room in CARRIED):
            if node.level or (node.module or "").split(".")[0] == "combo_hf":
                way = "relative" if node.level else "absolute"
                problems.append(f"{name}:{node.lineno}: an {way} import in {room}")
    return problems


def test_only_the_arrows_of_the_table_exist():
    broken = [
        problem
        for path in FILES
        if not (path.parent == PACKAGE and path.name in FACE)
        for problem in broken_arrows(path, room_of(path))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "room, code, line",
    [
        (CORE, "from .media_combo import Clip", 0),
        (CORE, "def f():\n    from combo_hf.files.atomic import replacing", 2),
        (CORE, "import combo_hf.data.clips", 1),
        ("files", "import os\nfrom combo_hf.media_combo import Clip", 2),
        ("files", "from combo_hf.files.atomic import replacing", 0),
        ("files", "from .atomic import replacing", 1),
        ("data", "from combo_hf.data.synthetic.clip import make", 1),
        ("data", "from combo_hf.data import synthetic", 1),
        ("data", "from combo_hf import load_pipeline, ComboConfig", 0),
        ("proposals", "def f():\n    from combo_hf import convert_official_checkpoint", 2),
        ("training", "from combo_hf import load_avsbench", 0),
        ("evaluation", "import importlib\nimportlib.import_module(f'combo_hf.training.{name}')", 2),
    ],
)
def test_a_broken_arrow_is_found_with_its_line(tmp_path, room, code, line):
    file = tmp_path / "some_file.py"
    file.write_text(code)
    assert sorted({problem.split(": ")[0] for problem in broken_arrows(file, room)}) == (
        [f"some_file.py:{line}"] if line else []
    )


def test_the_rooms_form_a_tree():
    """No circle in the table; every folder with code stands in it, and nothing else does."""
    list(TopologicalSorter(ARROWS).static_order())
    assert {room_of(path) for path in FILES} == set(ARROWS)


def test_the_landing_holds_the_core_alone():
    """What lies at the root goes to the Hub with every checkpoint."""
    names = {path.name for path in PACKAGE.glob("*.py")}
    assert len(names) <= ROOT_FILES
    assert {name for name in names - FACE if not name.endswith("_combo.py") and "_combo_" not in name} == set()


def _documented() -> dict[str, set[str]]:
    """Room -> rooms that docs/architecture.md says it may import; sub-folders count as the room they are in."""
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [[cell.strip().strip("`") for cell in row.split("|")[1:-1]] for row in text.splitlines() if row[:2] == "| "]
    rooms = {
        name.replace(" (root files)", "").rstrip("/").replace("/", "."): arrows
        for name, _, arrows in (row for row in rows if len(row) == 3 and row[0] != "room")
    }
    every = set(rooms)
    special = {
        "core only": set(),
        "nothing": set(),
        "all": every,
        "all of the above": every - {"commands", "benchmarking"},
    }
    return {
        name: special.get(arrows, {part.strip().replace("/", ".") for part in arrows.split(",")}) - {name}
        for name, arrows in rooms.items()
    }


def test_the_architecture_page_has_this_table() -> None:
    def outer(room: str) -> str:
        return "metrics" if room == "metrics.avs_segmentation" else room

    wanted = {room: {outer(to) for to in arrows} - {room} for room, arrows in ARROWS.items() if outer(room) == room}
    assert _documented() == wanted


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_named_in_the_pages_exist(page: str) -> None:
    text = (PACKAGE.parent / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_0-9]+\.py|(?:[a-z_]+/)+)`", text))
    places = (PACKAGE, PACKAGE.parent)
    assert len(named) > 10 and [name for name in sorted(named) if not any((at / name).exists() for at in places)] == []
