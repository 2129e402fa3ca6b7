"""What README.md, MODEL_CARD.md and docs/ show is run, page by page; CI runs the README's own commands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from combo_hf.cli import build_parser, main


ROOT = Path(__file__).resolve().parents[2]
# In the order in which a reader meets them. Blocks of `bash` and `python` are run, those of `sh` and `py` need what we
# do not have (official weights, the Hub, a cluster, hours): of them the commands are only parsed.
PAGES = [
    "README.md",
    "MODEL_CARD.md",
    *(f"docs/{name}" for name in re.findall(r": (\S+\.md)", (ROOT / "mkdocs.yml").read_text())),
]
SLOW = {"README.md", "docs/index.md", "docs/training.md", "docs/own-data.md", "docs/evaluate.md", "docs/publish.md"}
FENCE = re.compile(r"^(<!-- ci:\w+ -->\n)?```(\w+)\n(.*?)^```", re.M | re.S)


def fences(page):
    """(language, code) in order; blocks with a mark are what `.ci/run` runs."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [("ci" if mark else language, code) for mark, language, code in FENCE.findall(text)]


def blocks(page, language):
    return [code for found, code in fences(page) if found == language]


def commands(code):
    """The lines of a block as words, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


RUN = [page for page in PAGES if blocks(page, "bash") or blocks(page, "python")]
COMMANDS = [
    line
    for page in PAGES
    for language in ("bash", "sh", "ci")
    for code in blocks(page, language)
    for line in re.findall(r"(?:^|[/ ])(combo-hf .*)$", code, re.M)
]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder in which a reader sits: the package, a video and videos with masks, and no network."""
    from fixtures_own import make_folder

    (tmp_path / "combo_hf").symlink_to(ROOT / "combo_hf")
    shutil.copy(ROOT / "combo_hf" / "assets" / "demo_real.mp4", tmp_path / "my.mp4")
    make_folder(tmp_path / "my-videos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path


# pycocotools 2.0.11 and numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in RUN])
def test_page_runs_from_top_to_bottom(desk, page):
    names = {"__name__": "__docs__"}
    for language, code in fences(page):
        if language == "python":
            try:
                exec(compile(code, page, "exec"), names)
            except ModuleNotFoundError as error:
                if error.name != "pycocotools":  # what a page takes from elsewhere, and says so
                    raise
        elif language == "bash":
            for program, *words in commands(code):
                assert program == "combo-hf", f"{program}: mark what is not run as `sh`"
                assert main(words) == 0, words


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line):
    words = shlex.split(line.partition("&&")[0].partition("$(")[0], comments=True)[1:]
    assert build_parser().parse_args(words).run


def test_something_was_found_to_run():
    assert len(RUN) >= 8 and len(COMMANDS) >= 30


@pytest.mark.parametrize("name", ["demo", "test"])
def test_ci_runs_the_block_of_the_readme(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(rf"^<!-- ci:{name} -->\n```bash\n\S", readme, re.M)
    assert re.search(rf"^run_block {name}$", script, re.M)


@pytest.mark.parametrize("page", ["docs/numbers.md", "MODEL_CARD.md"])
@pytest.mark.parametrize(
    "row, key",
    [
        ("with sound", "with sound"),
        ("the same weights, silence in place of the sound", "same weights, silence at test"),
        ("trained and tested without sound", "trained and tested without sound"),
    ],
)
def test_scores_shown_are_the_measured_ones(page, row, key):
    text = (ROOT / page).read_text(encoding="utf-8")
    facts = json.loads((ROOT / "combo_hf" / "assets" / "demo" / "demo.json").read_text(encoding="utf-8"))
    shown = [float(cell) for cell in re.search(rf"^\| {re.escape(row)} \| (.+) \| (.+) \|$", text, re.M).groups()]
    assert shown == pytest.approx([facts[key]["M_J"], facts[key]["M_F"]], abs=0.051)


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
    for value in (facts["training clips"], facts["cost with sound"]["steps"], facts["cost with sound"]["minutes"]):
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


def test_the_site_is_built_without_a_warning(tmp_path):
    """Links, anchors, the list of pages, and every name of the API page."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")]
    assert len(pages) >= len(PAGES) - 2
    loaded = {
        address
        for page in pages
        for address in re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:[^"]+)', page)
    }
    assert loaded == set()


def test_the_readme_is_short_and_begins_with_a_picture():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    (number, path), *_ = [
        (k, found.group(1)) for k, line in enumerate(lines) if (found := re.match(r"!\[.+\]\((.+)\)$", line))
    ]
    assert number < 15 and (ROOT / path).stat().st_size < 300_000


@pytest.mark.parametrize("page", ["README.md", "MODEL_CARD.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_citation_is_yaml_and_names_the_version():
    yaml = pytest.importorskip("yaml")
    import combo_hf

    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert facts["version"] == combo_hf.__version__ and len(facts["preferred-citation"]["authors"]) == 8
