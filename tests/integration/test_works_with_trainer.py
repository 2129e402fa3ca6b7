"""transformers' Trainer with our collator; losses of accumulated batches are averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures_training import PLAIN, clips, fix_points, small_model
from transformers import Trainer, TrainingArguments

from combo_hf import ComboCollator


def test_trainer(tmp_path: Path) -> None:
    data, model = clips(2), fix_points(small_model(PLAIN)).train()
    wanted = sum(model(**ComboCollator()([data[index]])).loss.item() for index in range(2)) / 2
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        logging_steps=1,
        remove_unused_columns=False,  # clips are objects, not rows of columns
        prediction_loss_only=True,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, data_collator=ComboCollator())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(wanted, rel=1e-3)
    assert trainer.evaluate()["eval_loss"] > 0
