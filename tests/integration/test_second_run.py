"""A second command over an output where one is at work is refused in one line; killed ones hold nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import BARE, datasets_cache

from combo_hf import BUNDLED_MODEL, cli
from combo_hf.data.synthetic.dataset import write_dataset
from combo_hf.files.folder_lock import MARKER, only_run


ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
model: {preset: tiny, overrides: {image_size: 64, num_queries: 6, train_num_points: 64}}
data: {source: synthetic, kind: ms3, labels: binary, train_clips: 2, val_clips: 1}
max_steps: 2
clips_per_batch: 2
log_every: 1
"""
COMMAND = "import sys; from combo_hf import cli; sys.exit(cli.main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe, rows, and a folder as AVSBench has it."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "recipe.yaml").write_text(RECIPE)
    with datasets_cache(root):
        write_dataset("ms3", root / "rows", {"test": 1}, 3, ("rows",), 96, num_frames=2, maskiges="superpixels",
                      progress=False)  # fmt: skip
        call = f"data synthesize --kind s4 --clips 1 --layout official --split train --output {root / 'official'}"
        assert cli.main(call.split()) == 0
        yield root


COMMANDS: dict[str, Callable[[Path], list]] = {
    "train": lambda inputs: ["train", "--recipe", inputs / "recipe.yaml", "--device", "cpu"],
    "evaluate": lambda inputs: ["evaluate", BUNDLED_MODEL, inputs / "rows", "--device", "cpu"],
    "build": lambda inputs: ["data", "build", "--root", inputs / "official", "--subset", "s4", "--splits", "train"],
}


def words(name: str, inputs: Path, output: Path, *more: str) -> list[str]:
    return [*map(str, COMMANDS[name](inputs)), "--output", str(output), *more]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(code: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def refused(capsys: pytest.CaptureFixture, call: list[str], process: subprocess.Popen) -> None:
    capsys.readouterr()
    assert cli.main(call) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"in use by another run (process {process.pid} on " in err, err


@pytest.mark.parametrize("name", COMMANDS)
def test_refused_while_another_process_holds_the_folder(
    capsys: pytest.CaptureFixture, inputs: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "out"
    holder = start(
        f"{BARE}import time; from pathlib import Path; from combo_hf.files.folder_lock import only_run\n"
        "with only_run(Path(sys.argv[1])): time.sleep(300)",
        str(output),
    )
    try:
        wait_for(lambda: (output / MARKER).is_file() and (output / MARKER).read_bytes() != b"", holder)
        refused(capsys, words(name, inputs, output), holder)
        assert list(files(output)) == [MARKER]
    finally:
        holder.kill()
        holder.wait()
    assert cli.main(words(name, inputs, output)) == 0
    assert len(files(output)) > 2 and not (output / MARKER).exists()


@pytest.mark.slow
def test_two_trainings_in_one_new_folder(capsys: pytest.CaptureFixture, inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    call = words("train", inputs, output)
    first = start(COMMAND, *call, "max_steps=100000", "eval_every=100000")
    try:
        log = output / "metrics.jsonl"
        wait_for(lambda: log.is_file() and log.stat().st_size > 0, first)
        before = (output / "recipe.yaml").read_bytes()
        refused(capsys, call, first)
        refused(capsys, [*call, "--resume"], first)
        assert (output / "recipe.yaml").read_bytes() == before and not (output / "last").exists()
        lines = log.read_bytes().count(b"\n")
        wait_for(lambda: log.read_bytes().count(b"\n") > lines, first)
    finally:
        first.kill()
        first.wait()
    assert cli.main(call) == 0  # before its first checkpoint a killed run is in nobody's way
    assert log.read_bytes().count(b"\n") == 3 and (output / "last").is_dir() and not (output / MARKER).exists()
    assert cli.main(call) == 2 and "holds a run" in capsys.readouterr().err


def test_a_run_that_ended_meanwhile_is_not_written_over(inputs: Path, tmp_path: Path) -> None:
    """It was still at work when the folder was first looked at."""
    from fixtures_training import clips, recipe, small_model

    from combo_hf.training import loop
    from combo_hf.training.state import has_checkpoint

    seen = []

    def look(output: Path, resume: bool) -> None:
        seen.append(has_checkpoint(output))
        (output / "last").mkdir(parents=True, exist_ok=True)
        if seen[-1]:
            raise FileExistsError("holds a run")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "check_output", look)
        with pytest.raises(FileExistsError, match="holds a run"):
            loop.train(small_model(), clips(2), recipe(), tmp_path / "run", cpu=True)
    assert seen == [False, True]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last"]
    with only_run(tmp_path / "run"):
        pass
