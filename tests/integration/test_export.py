"""Graphs of the network compute what the network computes."""

from __future__ import annotations

import contextlib
import io
import re
import shutil

import pytest
import torch

import combo_hf
from combo_hf import cli
from combo_hf.conversion import exporting, quantizing


@pytest.fixture(scope="module")
def demo_model():
    return combo_hf.ComboForAudioVisualSegmentation.from_pretrained(combo_hf.BUNDLED_MODEL).eval()


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """Written once, since it takes 20 s: of clips of two frames, and what the command said."""
    pytest.importorskip("onnxruntime", reason="needs the extra 'export' (onnx, onnxscript, onnxruntime)")
    path = tmp_path_factory.mktemp("onnx") / "new" / "model.onnx"
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert cli.main(["export", str(combo_hf.BUNDLED_MODEL), "--output", str(path), "--frames", "2"]) == 0
    return path, told.getvalue()


@pytest.mark.slow
def test_onnx_by_command(demo_model, onnx_file):
    path, told = onnx_file
    assert "written to" in told
    differences = exporting.compare_onnx(demo_model, path, 2, seed=7)
    assert set(differences) == set(exporting.OUTPUTS) and max(differences.values()) < 1e-4
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    with pytest.raises(Exception, match="(?i)dimension|shape|invalid"):
        exporting.compare_onnx(demo_model, path, 3)


@pytest.mark.slow
def test_program_for_any_number_of_frames(demo_model, tmp_path):
    path = tmp_path / "model.pt2"
    assert max(exporting.save_program(demo_model, path, 2, any_frames=True).values()) < 5e-6
    program = torch.export.load(path).module()
    for frames in (1, 4):
        inputs = exporting.example_inputs(demo_model.config, frames, seed=9)
        with torch.no_grad():
            wanted = exporting.ClipNetwork(demo_model)(*inputs.values())
            got = program(*inputs.values())
        for mine, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_int8_by_command(capsys, demo_model, onnx_file, tmp_path, monkeypatch):
    """Eight bits cost some accuracy; what the command tells of it is what the file does."""
    monkeypatch.setattr(quantizing, "export_onnx", lambda _, path, frames: shutil.copy(onnx_file[0], path))
    path = tmp_path / "int8.onnx"
    arguments = ["export", str(combo_hf.BUNDLED_MODEL), "--output", str(path), "--frames", "2", "--int8"]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    equal, difference, seconds, size = (
        float(re.search(pattern, told)[1].replace(",", ""))
        for pattern in (
            r"([\d.]+) % of the pixels",
            r"differ by (\S+) of",
            r"one thread: (\S+) s",
            r"size: (\S+) bytes",
        )
    )
    assert 80 < equal <= 100 and 1e-4 < difference < 0.5 and seconds > 0
    assert size == path.stat().st_size < 0.6 * sum(p.numel() * 4 for p in demo_model.parameters())
    found = exporting.compare_onnx(demo_model, path, 2)
    assert set(found) == set(exporting.OUTPUTS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["int8.onnx"]


def test_another_result_is_not_written(demo_model, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "export_program", lambda *_: None)
    monkeypatch.setattr(torch.export, "save", lambda _, content: content.write(b"x"))
    wrong = type("Program", (), {"module": lambda _: lambda *_: (torch.zeros(1), torch.zeros(1))})()
    monkeypatch.setattr(torch.export, "load", lambda _: wrong)
    with pytest.raises(RuntimeError, match="nothing written"):
        exporting.save_program(demo_model, tmp_path / "model.pt2", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--output", "x.onnx"], "no such folder"),
        ([str(combo_hf.BUNDLED_MODEL), "--output", "x.bin"], "must end in .onnx"),
        ([str(combo_hf.BUNDLED_MODEL), "--output", "x.onnx", "--frames", "0"], "at least 1"),
        ([str(combo_hf.BUNDLED_MODEL), "--output", "x.pt2", "--int8"], "--int8 writes ONNX files"),
        ([str(combo_hf.BUNDLED_MODEL), "--output", "x.onnx", "--int8", "--any-frames"], "--int8 writes ONNX files"),
        ([str(combo_hf.BUNDLED_MODEL), "--output", "x.onnx", "--calibrate", "x.mp4"], "only together with --int8"),
    ],
)
def test_refusals(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(["export", *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2 and message in capsys.readouterr().err and list(tmp_path.iterdir()) == []
