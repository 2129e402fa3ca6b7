import argparse
import runpy
import sys
from pathlib import Path

import pytest
from fixtures_proposals import picture, random_weights, save_proposal_model, tiny_mobile_sam_config
from PIL import Image

from combo_hf.commands import common, proposals, segment
from combo_hf.commands.common import InputError, Parser, generator_option
from combo_hf.proposals import load_proposal_generator
from combo_hf.proposals.modeling_mobile_sam import MobileSamModel


@pytest.fixture
def run():
    parser = Parser(prog="combo-hf")
    proposals.register(parser.add_subparsers(required=True, parser_class=Parser))

    def call(*arguments):
        parsed = parser.parse_args([str(argument) for argument in arguments])
        return parsed.run(parsed) or 0

    return call


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        picture(seed=number).save(folder / f"{number}.png")
    return folder


def test_maskiges_of_a_folder(run, frames, tmp_path, capsys):
    assert run("maskige", frames, "--output", tmp_path / "out", "--option", "scale=90.0", "--size", 64) == 0
    assert "3 made, 0 kept, 0 failed" in capsys.readouterr().out
    assert (
        run("maskige", frames, "--output", tmp_path / "out", "--option", "scale=90.0", "--size", 64, "--resume") == 0
    )
    assert "0 made, 3 kept" in capsys.readouterr().out


def test_shards(run, frames, tmp_path, capsys):
    for index, made in ((0, 2), (1, 1)):
        run("maskige", frames, "--output", tmp_path / "out", "--num-shards", 2, "--shard-index", index)
        assert f"{made} made, 0 kept" in capsys.readouterr().out


def test_a_model_and_a_cache(run, frames, tmp_path, capsys):
    model = save_proposal_model(random_weights(MobileSamModel(tiny_mobile_sam_config())), tmp_path / "model")
    options = ["--generator", "mobile_sam", "--model", model, "--device", "cpu", "--dtype", "bfloat16"]
    options += ["--option", "points_per_side=2", "--cache", tmp_path / "cache", "--stable-colors"]
    assert run("maskige", frames, "--output", tmp_path / "out", *options) == 0
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 3
    assert "3 made" in capsys.readouterr().out


def test_damage_is_told_and_counts(run, frames, tmp_path, capsys):
    (frames / "1.png").write_bytes(b"no picture")
    assert run("maskige", frames, "--output", tmp_path / "out") == 2
    output = capsys.readouterr()
    assert "2 made, 0 kept, 1 failed" in output.out and "1.png" in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--generator", "nonsense"], "nonsense: proposal_generator"),
        (["--generator", "mobile_sam"], "mobile_sam: which weights"),
        (["--generator", "mobile_sam", "--model", "./nothing/here"], "here: no such folder"),
        (["--option", "what=1"], "'superpixels' has no option .what"),
        (["--option", "scale=-1.0"], "scale > 0"),
        (["--shard-index", "4"], "shard_index"),
    ],
)
def test_bad_arguments(run, frames, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run("maskige", frames, "--output", tmp_path / "out", *arguments)


@pytest.mark.parametrize("arguments", [["--option", "scale"], ["--size", "0"], ["--dtype", "int8"], ["--model"]])
def test_usage_errors(run, tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run("maskige", tmp_path, "--output", tmp_path / "out", *arguments)
    assert stop.value.code == 2 and "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("proposals", "message"),
    [
        ("superpixels=folder", "--proposals: proposal_generator: 'superpixels' has no option 'model'"),
        ("sam", "--proposals: sam: which weights"),
        ("sam=./nothing/here", "nothing/here: no such folder"),
        ("nonsense", "'nonsense' is not known"),
    ],
)
def test_proposals_that_predict_cannot_use(proposals, message):
    with pytest.raises(InputError, match=message):
        segment._generator(common.proposals(proposals), None, {})


def test_options_of_predict():
    generator = segment._generator({"name": "superpixels"}, None, {"scale": 70})["proposal_generator"]
    assert generator.scale == 70 and segment._generator(None, None, {}) == {}
    with pytest.raises(InputError, match="--proposals: .*'superpixels' has no option 'points'"):
        segment._generator({"name": "superpixels"}, None, {"points": 1})
    with pytest.raises(InputError, match="name it with --proposals"):
        segment._generator(None, None, {"scale": 70})


@pytest.mark.parametrize("model", ["no-such-folder", "./no/folder", "/no/folder", "tests/no-such-folder", "a/b/c"])
def test_a_missing_folder_is_said_without_asking_the_hub(monkeypatch, tmp_path, model):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", None)
    with pytest.raises(ValueError, match="no such folder; give a folder"):
        load_proposal_generator("mobile_sam", model=model)


def test_values_of_options():
    assert generator_option("level=[1, 2]") == ("level", [1, 2])
    assert generator_option("max_side=None") == ("max_side", None)
    assert generator_option("folder=some where") == ("folder", "some where")
    with pytest.raises(argparse.ArgumentTypeError):
        generator_option("=3")


def test_what_cannot_be_converted(run, tmp_path):
    file = tmp_path / "mobile_sam.pt"
    file.write_bytes(b"no weights")
    for name in ("sam", "mobile_sam"):
        with pytest.raises(InputError, match="mobile_sam.pt"):
            run("proposals", "convert", file, "--model", name, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_both_figures(tmp_path, monkeypatch):
    script = Path(__file__).resolve().parents[2] / "examples" / "figures_maskige.py"
    monkeypatch.chdir(tmp_path)
    picture(50, 40).save(tmp_path / "frame.png")
    for arguments in (["palette"], ["compare", "frame.png"]):
        monkeypatch.setattr(sys, "argv", [str(script), *arguments, "--output", f"{arguments[0]}.png"])
        with pytest.raises(SystemExit, match="^0$"):
            runpy.run_path(str(script), run_name="__main__")
    with Image.open(tmp_path / "palette.png") as palette, Image.open(tmp_path / "compare.png") as compare:
        assert palette.getpixel((10, 10)) == (120, 120, 120)
        assert compare.width > 2 * 224 and len(compare.convert("RGB").getcolors(2**20)) > 10
