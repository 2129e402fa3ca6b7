"""Train with `transformers.Trainer` in place of `combo-hf train`: rows and collator are ours, all else is its own.

python examples/transformers_trainer.py --data avsbench --subset s4 --output runs/trainer --steps 1000

What `combo-hf train` does beyond it: one loss however clips are dealt out to batches and processes (Trainer averages
the losses of its batches), AdamW groups and schedule of the release, M_J and M_F of the validation clips (Trainer
gets their loss), exact resume.
"""

import argparse
import sys
from pathlib import Path

from combo_hf import (
    AvsbenchClips,
    ComboCollator,
    ComboConfig,
    ComboForAudioVisualSegmentation,
    build_transform,
    load_avsbench,
)
from combo_hf.cli import Parser, run_script
from combo_hf.data.subsets import subset_rule
from combo_hf.files.environment import resolve_device


def clips(arguments: argparse.Namespace, split: str, config: ComboConfig) -> AvsbenchClips:
    """Rows of a split, augmented where they are trained on."""
    rows = load_avsbench(arguments.data, split, subset=arguments.subset)
    transform = build_transform(arguments.subset, train=split == "train", image_size=config.image_size)
    # Maskiges that the rows lack are made while loading
    return AvsbenchClips(rows, transform, num_labels=config.num_labels, proposal_generator="superpixels")


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder or Hub id of rows, see `combo-hf data build`")
    parser.add_argument("--subset", default="s4", help="s4, ms3 or avss")
    parser.add_argument("--preset", default="tiny", help="of ComboConfig.from_preset")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--clips-per-batch", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    arguments = parser.parse_args()

    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(0)
    names = dict(enumerate(subset_rule(arguments.subset).classes))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    config = ComboConfig.from_preset(arguments.preset, image_size=arguments.image_size, **labels)
    model = ComboForAudioVisualSegmentation(config)
    options = TrainingArguments(
        output_dir=str(arguments.output),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.clips_per_batch,
        per_device_eval_batch_size=arguments.clips_per_batch,
        learning_rate=1e-4,
        weight_decay=0.05,
        max_grad_norm=0.01,
        lr_scheduler_type="polynomial",
        remove_unused_columns=False,  # a clip has no columns
        label_names=["mask_labels", "class_labels", "label_frames"],
        prediction_loss_only=True,  # outputs of clips of other lengths cannot be stacked
        eval_strategy="steps",
        eval_steps=arguments.steps,
        save_steps=arguments.steps,
        logging_steps=10,
        dataloader_pin_memory=resolve_device().type == "cuda",
        report_to=[],
    )
    trainer = Trainer(
        model,
        options,
        data_collator=ComboCollator(names=False),  # Trainer hands all that a batch holds to the model
        train_dataset=clips(arguments, "train", config),
        eval_dataset=clips(arguments, "val", config),
    )
    trainer.train()
    model.save_pretrained(arguments.output / "final")


if __name__ == "__main__":
    sys.exit(run_script(main))
