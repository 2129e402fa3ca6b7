"""Training without our loop: `transformers.Trainer`, and accelerate over streamed rows on two processes."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import datasets_cache

from combo_hf import ComboForAudioVisualSegmentation
from combo_hf.data.synthetic.dataset import write_dataset


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Seven training clips and a validation clip of S4's kind, with Maskiges."""
    folder = tmp_path_factory.mktemp("rows")
    with datasets_cache(folder):
        write_dataset("s4", folder / "s4", {"train": 7, "val": 1}, 3, ("rows",), 64, num_frames=2,
                      maskiges="superpixels", progress=False)  # fmt: skip
        yield folder / "s4"


def test_transformers_trainer(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = f"--data {rows} --subset s4 --image-size 64 --steps 2 --clips-per-batch 2 --output {tmp_path}"
    monkeypatch.setattr("sys.argv", ["transformers_trainer.py", *words.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / "transformers_trainer.py"), run_name="__main__")
    assert ended.value.code == 0
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert state["global_step"] == 2 and len(losses) == 1 and losses[0] > 0
    model = ComboForAudioVisualSegmentation.from_pretrained(tmp_path / "final")
    assert model.config.id2label == {0: "background", 1: "sounding object"}


STREAM = """
import json, sys
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from combo_hf import ComboCollator, build_transform, load_avsbench
from combo_hf.data.clips import ComboTransform

rows = load_avsbench(sys.argv[1], "train", subset="s4", streaming=True)
clips = rows.map(ComboTransform(build_transform("s4", True, image_size=64)), batched=True, batch_size=2,
                 remove_columns=list(rows.features))
for name, switch in [("off", False), ("default", None)]:
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=switch))
    loader = accelerator.prepare(torch.utils.data.DataLoader(clips, batch_size=2, collate_fn=ComboCollator()))
    seen = []
    try:
        for batch in loader:
            assert len(batch["mask_labels"]) == int(batch["label_frames"].sum())
            assert len(batch["pixel_values"]) == int(batch["num_frames"].sum())
            seen += batch["video_ids"]
    except Exception as error:
        seen = f"{type(error).__name__}: {error}"
    print(json.dumps([name, accelerator.process_index, seen]), flush=True)
"""


@pytest.mark.slow
def test_streamed_rows_on_two_processes(rows: Path, tmp_path: Path):
    """By default accelerate puts batches together and cuts them by frames: refused, with what to tell it."""
    (tmp_path / "stream.py").write_text(STREAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, str(tmp_path / "stream.py"), str(rows)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    answers = {(name, process): seen for name, process, seen in said}
    assert "DataLoaderConfiguration(dispatch_batches=False)" in answers["default", 0], done.stderr[-2000:]
    first, second = answers["off", 0], answers["off", 1]
    assert len(first) == len(second) == 4, done.stderr[-2000:]  # seven rows, and one again to fill up
    assert len({*first, *second}) == 7
