"""What README.md and MODEL_CARD.md show is run; CI runs the README's own commands."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from combo_hf.cli import build_parser


ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "MODEL_CARD.md"]
SHOWN = [*PAGES, "docs/speed.md"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


PYTHON = [(page, code) for page in SHOWN for code in blocks(page, "python")]
COMMANDS = [
    line for page in SHOWN for code in blocks(page, "bash") for line in re.findall(r"(?:^|/)combo-hf .*$", code, re.M)
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


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "row, key",
    [
        ("with sound", "with sound"),
        ("the same weights, silence in place of the sound", "same weights, silence at test"),
        ("the first stage alone", "first stage/with sound"),
        ("the first stage trained and tested without sound", "first stage/trained and tested without sound"),
    ],
)
def test_scores_shown_are_the_measured_ones(page, row, key):
    text = (ROOT / page).read_text(encoding="utf-8")
    facts = json.loads((ROOT / "combo_hf" / "assets" / "demo" / "demo.json").read_text(encoding="utf-8"))
    for part in key.split("/"):
        facts = facts[part]
    shown = [float(cell) for cell in re.search(rf"^\| {re.escape(row)} \| (.+) \| (.+) \|$", text, re.M).groups()]
    assert shown == pytest.approx([facts["M_J"], facts["M_F"]], abs=0.051)


@pytest.mark.slow
def test_the_block_for_those_without_the_package_runs_without_it(tmp_path):
    import combo_hf

    (block,) = blocks("MODEL_CARD.md", "py")
    combo_hf.load_pipeline(device="cpu").save_pretrained(tmp_path / "checkpoint")
    code = f"import sys; sys.modules['combo_hf'] = None\n{block}\nprint(type(pipe).__module__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("transformers_modules."), done.stderr


def test_the_card_s_facts():
    """Metadata that the Hub understands, and what it says of the network and its making."""
    from huggingface_hub import ModelCard

    import combo_hf

    card = ModelCard.load(ROOT / "MODEL_CARD.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-segmentation"  # the nearest of the Hub's tasks, as `push` writes it
    model = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(combo_hf.BUNDLED_MODEL)
    assert f"{model.num_parameters() / 1e6:.1f} million parameters" in card.text
    for label in list(model.config.id2label.values())[1:]:
        assert label in card.text
    facts = json.loads((combo_hf.BUNDLED_MODEL / "demo.json").read_text(encoding="utf-8"))
    for stage in (facts, facts["first stage"]):
        for value in (stage["training clips"], stage["cost with sound"]["steps"], stage["cost with sound"]["minutes"]):
            assert str(value) in card.text


def test_a_published_card_has_the_sections_of_this_one():
    from combo_hf import BUNDLED_MODEL, ComboConfig
    from combo_hf.publishing import build_card, find_origin

    made = build_card(ComboConfig.from_pretrained(BUNDLED_MODEL), "me/demo", find_origin(BUNDLED_MODEL))
    sections, here = (
        re.findall(r"^## (.*)$", text, re.M) for text in (made, (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8"))
    )
    assert set(sections) - {"Scores"} <= set(here) and "Protocol and scores" in here


def test_the_table_of_bad_input_names_tests_that_exist():
    rows = re.findall(r"^\|(.*)\|$", (ROOT / "tests" / "README.md").read_text(encoding="utf-8"), re.M)
    tests = [cells[3] for cells in (row.split(" | ") for row in rows) if len(cells) == 4 and ".py" in cells[3]]
    named = [name.strip() for cell in tests for name in cell.split(",")]
    assert len(tests) > 30 and [name for name in named if not (ROOT / "tests" / name).is_file()] == []
