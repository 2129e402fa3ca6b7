"""The command line: sub-commands, one line for bad input, nothing partial left behind."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from combo_hf import cli, media_combo
from combo_hf.commands.common import reason
from combo_hf.results import folder as prediction
from combo_hf.results import video


WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Seven seconds of moving picture with sound."""
    path = tmp_path_factory.mktemp("film") / "street scene.mp4"
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    frames = (picture.rotate(3 * index) for index in range(70))
    video.write_video(path, frames, 10, rng.normal(0, 0.1, 7 * 16000).astype(np.float32), 16000)
    return path


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_one_error_line(outcome, *words):
    code, _, err = outcome
    assert code == 2
    assert err.startswith("combo-hf: error: ") and err.endswith("\n") and err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_predict_writes_what_was_asked_for(capsys, film, tiny_folder, tmp_path):
    out = tmp_path / "new" / "out"
    code, stdout, stderr = run(capsys, "predict", film, "--output", out, "--model", tiny_folder, "--masks", "--json",
                               "--sheet", "--fps", 2, "--batch-size", 2)  # fmt: skip
    assert (code, stderr) == (0, "")
    assert {path.name for path in out.iterdir()} == {
        "street scene_overlay.mp4", "street scene_masks", "street scene.json", "street scene_sheet.png"}  # fmt: skip
    for path in out.iterdir():
        assert str(path) in stdout
    masks = sorted((out / "street scene_masks").iterdir())
    assert len(masks) == 14
    with Image.open(masks[0]) as mask:
        assert mask.mode == "P" and mask.size == (WIDTH, HEIGHT)
    report = json.loads((out / "street scene.json").read_text())
    assert report["size"] == [WIDTH, HEIGHT] and report["fps"] == 2 and report["has_audio"] is True
    np.testing.assert_allclose([frame["timestamp"] for frame in report["frames"]], (np.arange(14) + 15 / 16) / 2)
    info = media_combo.probe_media(out / "street scene_overlay.mp4")
    assert (info.width, info.height, info.seconds, info.has_audio) == (WIDTH, HEIGHT, 7, True)
    with Image.open(out / "street scene_sheet.png") as sheet:
        assert sheet.width > 10 * 150
    assert "bundled" not in stdout


@pytest.mark.parametrize("option", [["--classes", "bird, dog"], ["--matte"], ["--fps", "auto"], ["--timeline", "srt"]])
def test_no_option_of_predict_takes_the_file(option):
    arguments = cli.build_parser().parse_args(["predict", "--output", "out", *option, "street.mp4"])
    assert arguments.source == ["street.mp4"]
    assert arguments.classes == (["bird", "dog"] if option[0] == "--classes" else None)


@pytest.mark.parametrize(
    ("line", "name", "words"),
    [
        ("train --recipe r a=1 --output o b=2", "override", ["a=1", "b=2"]),
        ("train a=1 --recipe r b=2 c=3 --output o --resume d=4", "override", ["a=1", "b=2", "c=3", "d=4"]),
        ("train --recipe r --output o", "override", []),
        ("predict a.mp4 --output o b.mp4 --json -", "source", ["a.mp4", "b.mp4", "-"]),
        ("predict --output o -- -a.mp4", "source", ["-a.mp4"]),
        ("train --recipe r a=1 --output o --nosuch b=2", "override", None),
        ("evaluate m d --split val e", "data", None),
        ("predict --output o --json", "source", None),
    ],
)
def test_words_may_stand_between_the_options(capsys, line, name, words):
    if words is None:
        assert_one_error_line(run(capsys, *line.split()), "arguments")
    else:
        assert getattr(cli.build_parser().parse_args(line.split()), name) == words


def test_predict_replaces_older_results(capsys, film, tiny_folder, tmp_path):
    (tmp_path / "street scene_masks").mkdir()
    (tmp_path / "street scene_masks" / "old.png").touch()
    arguments = ("predict", film, "--output", tmp_path, "--model", tiny_folder, "--masks")
    assert run(capsys, *arguments)[0] == run(capsys, *arguments)[0] == 0
    assert len(list((tmp_path / "street scene_masks").iterdir())) == 7
    assert len(list(tmp_path.iterdir())) == 2


def test_predict_of_several_films(capsys, film, tiny_folder, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    outcome = run(capsys, "predict", film, broken, film, "--output", tmp_path / "out", "--model", tiny_folder)
    assert_one_error_line(outcome, "broken.mp4: ")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"street scene_overlay.mp4", "street scene-2_overlay.mp4"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nosuch.mp4", None, ["nosuch.mp4: no such file"]),
        ("empty.mp4", b"", ["empty.mp4: "]),
        ("text.mp4", b"some text\n" * 50, ["text.mp4: "]),
    ],
)
def test_bad_films(capsys, tiny_folder, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "out" / "deep"
    assert_one_error_line(run(capsys, "predict", tmp_path / name, "--output", out, "--model", tiny_folder), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["nosuch"], ["nosuch"]),
        (["predict"], ["source", "--output"]),
        (["predict", "FILM", "--output", "OUT", "--fps", "0"], ["--fps", "'0'"]),
        (["predict", "FILM", "--output", "OUT", "--fps", "often"], ["--fps", "'often' is not auto, a whole number"]),
        (["predict", "FILM", "--output", "OUT", "--fps", "1.5"], ["--fps", "'1.5'"]),
        (["predict", "FILM", "--output", "OUT", "--matte-format", "avi"], ["--matte-format", "avi"]),
        (["predict", "FILM", "--output", "OUT", "--batch-size", "x"], ["--batch-size"]),
        (["predict", "FILM", "--output", "OUT", "--device", "nosuch"], ["--device", "nosuch"]),
        (["predict", "FILM", "--output", "OUT", "--model", "nosuch"], ["nosuch: no such folder"]),
        (["predict", "FILM", "--output", "FILM", "--model", "TINY"], ["street scene.mp4"]),
        (["predict", "FOLDER", "--output", "OUT", "--model", "TINY"], ["no videos in this folder"]),
        (["info", "nosuch"], ["nosuch"]),
        (["data"], ["COMMAND"]),
        (["data", "synthesize", "--output", "OUT", "--kind", "nosuch"], ["nosuch"]),
    ],
)
def test_bad_arguments(capsys, film, tiny_folder, tmp_path, arguments, words):
    places = {"FILM": film, "OUT": tmp_path / "out", "TINY": tiny_folder, "FOLDER": tmp_path}
    outcome = run(capsys, *[places.get(argument, argument) for argument in arguments])
    assert_one_error_line(outcome, *words)
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_exception(tmp_path, tiny_folder):
    with pytest.raises(ValueError, match="nosuch"):
        cli.main(["predict", "nosuch.mp4", "--output", str(tmp_path), "--model", tiny_folder, "--debug"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("no more")])
def test_nothing_partial_is_left(capsys, film, tiny_folder, tmp_path, monkeypatch, error):
    """Interrupted or failed in the middle, the folder is as it was."""
    (tmp_path / "street scene_overlay.mp4").write_text("older")
    note = prediction._Collector._note

    def stop_later(self, frame):
        note(self, frame)
        if len(self.facts) == 6:
            raise error

    monkeypatch.setattr(prediction._Collector, "_note", stop_later)
    arguments = ("predict", film, "--output", tmp_path, "--model", tiny_folder, "--masks", "--json", "--sheet")
    code, _, err = run(capsys, *arguments)
    assert code == (130 if error is KeyboardInterrupt else 2) and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["street scene_overlay.mp4"]
    assert (tmp_path / "street scene_overlay.mp4").read_text() == "older"


def commands_of(parser, words=()):
    """The words of every command that runs something, and its parser."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for group in groups:
        for name, inner in group.choices.items():
            yield from commands_of(inner, (*words, name))


COMMANDS = dict(commands_of(cli.build_parser()))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_ends_with_an_example_to_copy(capsys, monkeypatch, command):
    """On one line, however narrow the terminal, and understood as it stands."""
    monkeypatch.setenv("COLUMNS", "40")
    code, stdout, _ = run(capsys, *command, "--help")
    *_, title, example = stdout.splitlines()
    assert (code, title) == (0, "example:") and example.startswith(f"  combo-hf {' '.join(command)} ")
    assert cli.build_parser().parse_args(shlex.split(example)[1:]).run


def test_version(capsys):
    assert run(capsys, "--version") == (0, "combo-hf 0.1.0\n", "")


@pytest.mark.parametrize(
    "arguments, loaded",
    [(["--help"], set()), (["--version"], set()), (["predict", "--help"], set()), (["train"], set()),
     (["info"], {"torch"})],
)  # fmt: skip
def test_what_needs_no_network_does_not_wait_for_one(arguments, loaded):
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "combo_hf", *arguments], capture_output=True)
    modules = {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()}
    assert modules & {"torch", "transformers", "scipy", "av", "datasets"} == loaded and "combo_hf.cli" in modules


def test_superpixels_do_not_wait_for_the_network(film, tmp_path):
    words = ["-X", "importtime", "-m", "combo_hf", "maskige", str(film), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "made" in done.stdout
    assert "combo_hf.proposals.pregenerate" in done.stderr
    assert "transformers.modeling_utils" not in done.stderr and "combo_hf.modeling_combo" not in done.stderr


def test_help_takes_little_time():
    resource = pytest.importorskip("resource", reason="needs POSIX")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "combo_hf", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # 0.2 CPU s


def test_quiet(capsys, film, tiny_folder, tmp_path):
    arguments = ("predict", film, "--output", tmp_path, "--model", tiny_folder, "--quiet")
    assert run(capsys, *arguments) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["street scene_overlay.mp4"]
    assert_one_error_line(run(capsys, "predict", "nosuch.mp4", *arguments[2:]), "nosuch.mp4")


def test_info(capsys, tiny_folder):
    code, stdout, stderr = run(capsys, "info")
    assert (code, stderr) == (0, "") and "transformers" in stdout and "bundled weights" in stdout
    code, stdout, stderr = run(capsys, "info", tiny_folder)
    assert (code, stderr) == (0, "")
    counts = [int(line.split()[1].replace(",", "")) for line in stdout.splitlines()]
    assert sum(counts[:-1]) == counts[-1] > 1000


def test_demo_with_these_weights(capsys, film, tiny_folder, tmp_path, monkeypatch):
    """The bundled clip and weights are replaced: what is tested is what is written and said."""
    import combo_hf

    monkeypatch.setattr(combo_hf, "ASSETS", tmp_path)
    monkeypatch.setattr(combo_hf, "DEFAULT_MODEL", tiny_folder)
    assert_one_error_line(run(capsys, "demo", "--output", tmp_path / "demo"), "demo_real.mp4")
    (tmp_path / "demo_real.mp4").write_bytes(film.read_bytes())
    code, stdout, stderr = run(capsys, "demo", "--output", tmp_path / "demo")
    assert (code, stderr) == (0, "")
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"demo_overlay.mp4", "demo_sheet.png"}
    assert "What sounds when: " in stdout and "know seven animals" in stdout


def test_synthesize(capsys, tmp_path):
    code, stdout, stderr = run(capsys, "data", "synthesize", "--output", tmp_path, "--clips", 1, "--kind", "s4")
    assert (code, stderr) == (0, "") and str(tmp_path) in stdout
    (video,) = tmp_path.rglob("*.mp4")
    assert media_combo.probe_media(video).seconds == 5
    assert json.loads((tmp_path / "clips.jsonl").read_text())["sounding"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/b c.mp4", "b c"),
        ("https://host.example/x/clip%20one.mp4?key=1", "clip one"),
        ("https://host.example/", "video"),
        ("archive.tar.gz", "archive.tar"),
    ],
)
def test_source_names(source, name):
    assert prediction.source_name(source) == name


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "combo_hf", "predict"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("combo-hf: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "content, preset, message",
    [
        (None, "r50-s4", "official.pth"),
        (b"", "r50-s4", "official.pth"),
        (b"text", "r50-s4", "official.pth"),
        (b"text", "r101-s4", "known"),
    ],
    ids=["missing", "empty", "foreign", "unknown preset"],
)
def test_convert_refuses_what_is_no_official_checkpoint(tmp_path, capsys, content, preset, message):
    source = tmp_path / "official.pth"
    if content is not None:
        source.write_bytes(content)
    assert cli.main(["convert", str(source), "--preset", preset, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


class _Damaged(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise ValueError(f"clip {index}: no Maskiges: make them.\nMore.")


def test_error_of_a_loaders_worker_is_shown_and_not_its_traceback():
    with pytest.raises(ValueError) as caught:
        next(iter(torch.utils.data.DataLoader(_Damaged(), num_workers=1)))
    assert reason(caught.value) == "clip 0: no Maskiges: make them."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict nowhere.mp4 --output out", "nowhere.mp4: no such file."),
        ("predict a.mp4 --output out --model nowhere", "nowhere: no such folder; "),
        ("train --recipe nowhere --output out", "nowhere: no such file, and no recipe of the package: own-data, "),
        ("evaluate nowhere rows", "nowhere: no such folder; "),
        ("evaluate org/name nowhere", "nowhere is no folder; "),
        ("export nowhere --output net.onnx", "nowhere: no such folder; "),
        ("export org/name --output net.txt", "net.txt: the file must end in .onnx (ONNX) or .pt2 (torch.export)"),
        ("convert nowhere.pth --preset r50-s4 --output out", "nowhere.pth: no such file or folder."),
        ("proposals convert nowhere.pt --kind sam --output out", "nowhere.pt: no such file or folder."),
        ("maskige nowhere --output out", "nowhere: no such file or folder."),
        ("push nowhere me/x --dry-run", "nowhere: no such file or folder."),
        ("info nowhere", "nowhere: no such folder; "),
    ],
)
def test_what_is_missing_is_said_before_torch_is_loaded(capsys, tmp_path, monkeypatch, line, message):
    def load():
        raise AssertionError("transformers was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "load_transformers", load)
    outcome = run(capsys, *line.split())
    assert_one_error_line(outcome, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("maskige x --output y --proposals sam=folder", "proposals", {"name": "sam", "model": "folder"}),
        ("maskige x --output y --generator sam --model folder", "model", "folder"),
        ("proposals convert f.pt --kind sam --output y", "kind", "sam"),
        ("proposals convert f.pt --model sam --output y", "kind", "sam"),
        ("benchmark --output speed.json", "output", Path("speed.json")),
        ("benchmark --json speed.json", "output", Path("speed.json")),
        ("evaluate m d --sheet-videos 2", "sheet", 2),
        ("evaluate m d --sheet 2", "sheet", 2),
        ("data build --subset s4 --root r --output o --split val test", "splits", ["val", "test"]),
        ("data build --subset s4 --root r --output o --splits val", "splits", ["val"]),
        ("data synthesize --output o --proposals superpixels", "maskiges", "superpixels"),
        ("data synthesize --output o --maskiges superpixels", "maskiges", "superpixels"),
        ("predict v.mp4 --output o --device auto", "device", None),
        ("train --recipe r --output o --device auto", "device", "auto"),
    ],
)
def test_one_meaning_per_flag_and_the_older_names(line, name, value):
    assert getattr(cli.build_parser().parse_args(line.split()), name) == value


@pytest.mark.parametrize(("typed", "offered"), [("pre", "predict"), ("predict a.mp4 --thr", "--threshold")])
def test_shells_are_told_what_may_follow(tmp_path, typed, offered):
    pytest.importorskip("argcomplete")
    line, answer = f"combo-hf {typed}", tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(answer)
    command = [sys.executable, "-c", "from combo_hf.cli import main; main()"]
    subprocess.run(command, env={**os.environ, **asked}, check=False, capture_output=True)
    assert offered in answer.read_text()
