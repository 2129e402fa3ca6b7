"""`check_dataset`: what it says about trees that are broken in one way each."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures_avsbench import CASES, CONSEQUENCES, Tree
from PIL import Image

from combo_hf.data.avsbench import (
    Finding,
    check_dataset,
    find_home,
    find_subsets,
    format_findings,
    read_entries,
    read_rows,
    subset_rule,
)
from combo_hf.data.avsbench_check_clips import ClipTask, check_clip, palette_order
from combo_hf.data.synthetic.official_folders import write_official
from combo_hf.maskige_combo import PALETTE


CLIPS = {"s4": {"train": 2, "test": 1}, "ms3": {"train": 1, "val": 1}, "avss": {"train": 2, "test": 1}}


@pytest.fixture(scope="module")
def good_trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small whole trees of the three subsets, with Maskiges of flat colours; not to be changed."""
    root = tmp_path_factory.mktemp("avsbench")
    for subset, counts in CLIPS.items():
        home = write_official(root, subset, counts, seed=3)
        rule = subset_rule(subset)
        for entry in read_entries(home, subset):
            for frame, path in zip(
                entry.paths(home, rule, rule.frame), entry.paths(home, rule, rule.maskiges[0]), strict=True
            ):
                with Image.open(frame) as image:
                    size = image.size
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((*size[::-1], 3), PALETTE[1])).save(path)
    return root


@pytest.fixture
def tree(good_trees: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Tree:
    subset = request.param
    home = tmp_path / "tree"
    shutil.copytree(find_home(good_trees, subset), home)
    return Tree(home, subset)


@pytest.mark.parametrize("tree", sorted(CLIPS), indirect=True)
def test_good_tree(tree: Tree) -> None:
    """A whole tree gives nothing but counts that are not the official ones."""
    findings = check_dataset(tree.home)
    assert {finding.code for finding in findings} == {"count"}
    assert not any(finding.serious for finding in findings)


@pytest.mark.parametrize(
    ("tree", "name"), [(case[0], name) for name, case in CASES.items()], indirect=["tree"], ids=list(CASES)
)
def test_broken_tree(tree: Tree, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every fault is named, alone, and stops the reader if it says so."""
    monkeypatch.chdir(tmp_path)
    _, damage, code, message, stops = CASES[name]
    damage(tree)
    findings = [finding for finding in check_dataset(tree.home, tree.subset) if finding.code != "count"]
    hits = [finding for finding in findings if finding.code == code and message in finding.message]
    assert hits, format_findings(findings, True)
    assert {finding.code for finding in findings} - CONSEQUENCES.get(code, set()) == {code}
    try:
        for split in CLIPS[tree.subset]:
            list(read_rows(tree.home, tree.subset, split))
        stopped = False
    except ValueError:
        stopped = True
    assert stopped == stops
    assert hits[0].serious or not stops, "what stops the reader must be called serious"
    assert not (tmp_path / "owned").exists()


def test_at_least_25_cases() -> None:
    """Kinds and messages that differ."""
    assert len({(case[2], case[3]) for case in CASES.values()}) >= 25


@pytest.mark.parametrize("tree", ["ms3"], indirect=True)
def test_split_leak(tree: Tree) -> None:
    """Two clips of one video in train and val."""
    other = next(entry for entry in read_entries(tree.home, "ms3") if entry.split == "val")
    film = tree.clip.youtube_id
    tree.edit(other.name, f"{film}_7")
    finding = next(f for f in check_dataset(tree.home, decode=False) if f.code == "split-leak")
    assert finding.where == film
    assert finding.message == f"clips of one video in train, val: {film}_0, {film}_7."


@pytest.mark.parametrize("tree", ["s4"], indirect=True)
def test_unicode_forms(tree: Tree) -> None:
    """The csv file has é as one character, the disk as two."""
    name = tree.clip.name
    for path in tree.home.rglob(f"{name}*"):
        if path.exists() and path.is_dir():
            for file in path.iterdir():
                file.rename(file.with_name(file.name.replace(name, "caf\u00e9")))
    for path in sorted(tree.home.rglob(f"{name}*"), reverse=True):
        path.rename(path.with_name(path.name.replace(name, "caf\u00e9")))
    tree.edit(name, "caf\u00e9")
    assert {finding.code for finding in check_dataset(tree.home)} == {"count"}
    assert any(row["video_id"] == "caf\u00e9" for row in read_rows(tree.home, "s4", "train"))
    folder = next(path for path in tree.home.rglob("caf\u00e9") if "visual_frames" in path.parts)
    folder.rename(folder.with_name("cafe\u0301"))
    finding = next(f for f in check_dataset(tree.home) if f.code == "clip-missing")
    assert finding.message.endswith("(it is there with its accents written in another Unicode form).")


def test_subsets_share_films(good_trees: Path, tmp_path: Path) -> None:
    """What S4 trains on and AVSS tests on is told once."""
    root = tmp_path / "both"
    shutil.copytree(good_trees, root)
    train = read_entries(root, "s4", ("train",))[0]
    test = read_entries(root, "avss", ("test",))[0]
    meta = find_home(root, "avss") / "metadata.csv"
    meta.write_text(meta.read_text().replace(f"{test.youtube_id}", train.youtube_id, 1))
    leaks = [finding for finding in check_dataset(root, decode=False) if finding.code == "subset-leak"]
    assert [(finding.subset, finding.where) for finding in leaks] == [("s4", train.youtube_id)]


@pytest.mark.parametrize(("order", "expected"), [((0, 1, 2), "right"), ((2, 1, 0), "swapped"), ((1, 0, 2), "other")])
def test_palette_order(order: tuple[int, ...], expected: str) -> None:
    """Told from colours that are not in the palette the other way round."""
    picture = np.broadcast_to(PALETTE[[1, 5]], (8, 2, 3))[..., list(order)]
    assert palette_order(picture) == expected


@pytest.mark.parametrize(
    ("kind", "fine"),
    [
        ("frame", {"mask_rgb.png", "palette.png", "palette_transparent.png", "rgb_16bit.png", "semantic_palette.png"}),
        ("mask", {"one_bit.png"}),
    ],
)
def test_awkward_pictures(avs_sample: Path, good_trees: Path, tmp_path: Path, kind: str, fine: set[str]) -> None:
    """Awkward pictures in place of a frame or a mask give findings, never exceptions; but for those that are fine."""
    home = tmp_path / "tree"
    shutil.copytree(find_home(good_trees, "s4"), home)
    tree = Tree(home, "s4")
    task = ClipTask(tree.clip, home, processed=False, decode=True)
    quiet = set()
    for path in [*(avs_sample / "nasty").glob("*.png"), *(avs_sample / "nasty").glob("*.jpg")]:
        shutil.copyfile(path, tree.file(kind))
        if not check_clip(task).findings:
            quiet.add(path.name)
    assert quiet == fine


def test_table() -> None:
    """One line per kind with examples; all on request; nothing at all for no finding but the head."""
    findings = [Finding(False, "count", "s4", split, split, "few.") for split in ("train", "val", "test")]
    short, long = format_findings(findings), format_findings(findings, show_all=True)
    assert "... and 1 more" in short
    assert short.splitlines()[1].split() == ["note", "s4", "count", "3", "train:", "few."]
    assert len(long.splitlines()) == 4


@pytest.mark.parametrize(("make", "message"), [(False, "no such folder"), (True, "no subset of AVSBench here")])
def test_no_avsbench(tmp_path: Path, make: bool, message: str) -> None:
    """A wrong folder is an error, not a table."""
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(ValueError, match=message):
        find_subsets(folder)
