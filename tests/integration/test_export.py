"""Graphs of the network compute what the network computes."""

from __future__ import annotations

import pytest
import torch

import combo_hf
from combo_hf import cli
from combo_hf.conversion import exporting


@pytest.fixture(scope="module")
def demo_model():
    return combo_hf.ComboForAudioVisualSegmentation.from_pretrained(combo_hf.BUNDLED_MODEL).eval()


@pytest.mark.slow
def test_onnx_by_command(capsys, demo_model, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra 'export' (onnx, onnxscript, onnxruntime)")
    path = tmp_path / "new" / "model.onnx"
    assert cli.main(["export", str(combo_hf.BUNDLED_MODEL), "--output", str(path), "--frames", "2"]) == 0
    assert "written to" in capsys.readouterr().out
    differences = exporting.compare_onnx(demo_model, path, 2, seed=7)
    assert set(differences) == set(exporting.OUTPUTS) and max(differences.values()) < 1e-4
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    with pytest.raises(Exception, match="(?i)dimension|shape|invalid"):
        exporting.compare_onnx(demo_model, path, 3)


@pytest.mark.slow
def test_program(demo_model, tmp_path):
    path = tmp_path / "model.pt2"
    assert max(exporting.save_program(demo_model, path, 2).values()) < 1e-6
    inputs = exporting.example_inputs(demo_model.config, 2, seed=9)
    with torch.no_grad():
        wanted = exporting.ClipNetwork(demo_model)(*inputs.values())
        got = torch.export.load(path).module()(*inputs.values())
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


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
    ],
)
def test_refusals(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(["export", *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2 and message in capsys.readouterr().err and list(tmp_path.iterdir()) == []
