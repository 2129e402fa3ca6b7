"""`train`, `evaluate`, `export` where the disk fills up: one line, exit code 2, nothing partial, older work untouched.

The limit is that of the process on the size of a file, which fails a write in the middle as a full disk does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import datasets_cache, limited

from combo_hf import BUNDLED_MODEL, cli
from combo_hf.conversion import exporting
from combo_hf.data.synthetic.dataset import write_dataset
from combo_hf.training.state import newest_state


RECIPE = """
model: {preset: tiny, overrides: {image_size: 64, num_queries: 6, train_num_points: 64}}
data: {source: synthetic, kind: ms3, labels: binary, train_clips: 2, val_clips: 1, cache: CACHE}
max_steps: 2
eval_every: 1
clips_per_batch: 2
log_every: 1
ema_decay: 0.9
"""


def fails(capsys: pytest.CaptureFixture, call: list[str], size: int) -> None:
    capsys.readouterr()
    with limited(size):
        code = cli.main(call)
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("combo-hf: error: ")]  # others say how far it is
    assert code == 2 and len(lines) == 1 and err.endswith(f"{lines[0]}\n"), err
    assert "unexpected" not in err and "Traceback" not in err, err


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command without its output; its clips are made."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "recipe.yaml").write_text(RECIPE.replace("CACHE", str(folder / "cache")))
    call = ["train", "--recipe", str(folder / "recipe.yaml"), "--device", "cpu", "--output"]
    assert cli.main([*call, str(folder / "whole")]) == 0
    return call


# Where it fails: the recipe, the weights of a checkpoint (5.8 MB), the optimizer (11 MB).
@pytest.mark.parametrize("size", [100, 2_500_000, 11_000_000])
def test_a_new_training(capsys: pytest.CaptureFixture, tmp_path: Path, train: list[str], size: int) -> None:
    output = tmp_path / "run"
    fails(capsys, [*train, str(output)], size)
    left = sorted(path.name for path in output.rglob("*")) if output.exists() else []
    assert not [name for name in left if name.startswith(".")], left
    again = ["--resume"] if (output / "recipe.yaml").is_file() else []
    assert cli.main([*train, str(output), *again]) == 0


@pytest.mark.parametrize("size", [3000, 5_900_000])
def test_a_resumed_training_keeps_its_checkpoints(
    capsys: pytest.CaptureFixture, tmp_path: Path, train: list[str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from combo_hf.training import loop

    output = tmp_path / "run"
    with monkeypatch.context() as patch:  # an interruption after the first evaluation
        done = []

        def optimizer_step(*arguments: object, step: object = loop.optimizer_step) -> object:
            done.append(1)
            if len(done) == 2:
                raise KeyboardInterrupt
            return step(*arguments)

        patch.setattr(loop, "optimizer_step", optimizer_step)
        assert cli.main([*train, str(output)]) == 130
    before = {name: value for name, value in files(output).items() if name.split("/")[0] in ("best", "last", "state")}
    assert newest_state(output / "state") is not None and "last/model.safetensors" in before
    fails(capsys, [*train, str(output), "--resume"], size)
    after = files(output)
    if size < 5_000_000:  # no weights could be written
        assert {name: after.get(name) for name in before} == before
    assert newest_state(output / "state").name == "step-00000001"
    assert not [name for name in after if name.startswith(".")]
    for name in ("last", "best"):
        assert cli.main(["info", str(output / name)]) == 0
    assert cli.main([*train, str(output), "--resume"]) == 0
    assert newest_state(output / "state").name == "step-00000002"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("rows")
    with datasets_cache(folder):
        write_dataset("ms3", folder / "ms3", {"test": 2}, 3, ("rows",), 96, num_frames=2, maskiges="superpixels",
                      progress=False)  # fmt: skip
        call = ["evaluate", str(BUNDLED_MODEL), str(folder / "ms3"), "--device", "cpu"]
        assert cli.main([*call, "--output", str(folder / "whole")]) == 0
        yield folder


@pytest.mark.parametrize("size", [100, 900])  # settings, sheet
def test_evaluation(capsys: pytest.CaptureFixture, tmp_path: Path, rows: Path, size: int) -> None:
    call = ["evaluate", str(BUNDLED_MODEL), str(rows / "ms3"), "--device", "cpu", "--output", str(tmp_path / "out")]
    fails(capsys, call, size)
    left = files(tmp_path)
    assert "out/results.json" not in left and not [name for name in left if "partial" in name or "running" in name]
    assert cli.main(call) == 0
    assert files(tmp_path / "out") == files(rows / "whole")


def test_program(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = torch.export.export(torch.nn.Linear(99, 99), (torch.zeros(1, 99),))
    monkeypatch.setattr(exporting, "export_program", lambda *_: small)
    (tmp_path / "model.pt2").write_bytes(b"older")
    fails(capsys, ["export", str(BUNDLED_MODEL), "--output", str(tmp_path / "model.pt2")], 5000)
    assert files(tmp_path) == {"model.pt2": b"older"} and len(list(tmp_path.iterdir())) == 1


class _Small(torch.nn.Module):
    """As many inputs and outputs as the network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(199, 199)

    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(a) + b, a + c


def test_onnx(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra 'export' (onnx, onnxscript, onnxruntime)")
    small = torch.export.export(_Small(), (torch.zeros(1, 199),) * 3)
    monkeypatch.setattr(exporting, "export_program", lambda *_: small)
    (tmp_path / "model.onnx").write_bytes(b"older")
    call = ["export", str(BUNDLED_MODEL), "--output", str(tmp_path / "model.onnx"), "--frames", "1"]
    fails(capsys, call, 100_000)
    assert files(tmp_path) == {"model.onnx": b"older"} and len(list(tmp_path.iterdir())) == 1
