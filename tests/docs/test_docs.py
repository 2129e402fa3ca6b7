"""What README.md and MODEL_CARD.md show is run; CI runs the README's own commands."""

import json
import re
import shlex
from pathlib import Path

import pytest

from combo_hf.cli import build_parser


ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "MODEL_CARD.md"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


PYTHON = [(page, code) for page in PAGES for code in blocks(page, "python")]
COMMANDS = [
    line for page in PAGES for code in blocks(page, "bash") for line in re.findall(r"(?:^|/)combo-hf .*$", code, re.M)
]


@pytest.mark.parametrize("page, code", PYTHON, ids=lambda value: value.partition("\n")[0][:40])
def test_python_block_runs(page, code, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(code, page, "exec"), {"__name__": "__docs__"})


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line):
    words = shlex.split(line.lstrip("/"), comments=True)[1:]
    assert build_parser().parse_args(words).run


def test_something_was_found_to_run():
    assert len(PYTHON) >= 2 and len(COMMANDS) >= 4


@pytest.mark.parametrize("name", ["demo", "test"])
def test_ci_runs_the_block_of_the_readme(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(rf"^<!-- ci:{name} -->\n```bash\n\S", readme, re.M)
    assert re.search(rf"for name in .*\b{name}\b", script)


@pytest.mark.parametrize(
    "row, key",
    [
        ("with sound", "with sound"),
        ("the same weights, silence in place of the sound", "same weights, silence at test"),
        ("the same network trained and tested without sound", "trained and tested without sound"),
    ],
)
def test_scores_in_the_readme_are_the_measured_ones(row, key):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    facts = json.loads((ROOT / "combo_hf" / "assets" / "demo" / "demo.json").read_text(encoding="utf-8"))[key]
    shown = [float(cell) for cell in re.search(rf"^\| {re.escape(row)} \| (.+) \| (.+) \|$", readme, re.M).groups()]
    assert shown == pytest.approx([facts["M_J"], facts["M_F"]], abs=0.051)
