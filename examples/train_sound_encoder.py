"""A small VGGish for a set of sounds, taught by their classes and by the embeddings of a stronger network.

    python examples/train_sound_encoder.py --parts real-parts --image-encoder efficientnet-lite0.pth --output encoders

`--parts` is a folder with sounds/CLASS/ID.ogg, parts.csv (id, class, kind, split) and teacher.npz (sound, second,
embedding, scores); a class that begins with "_" is none of them. What it writes is a COMBO checkpoint of the preset
`mini` whose encoders and class gate are trained and whose decoders are not: `model.encoders` of a training recipe.
Batch norms help the training and are folded into the convolutions at the end. `--resume` goes on with a run that was
stopped.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from combo_hf.cli import Parser, run_script
from combo_hf.configuration_combo import ComboConfig
from combo_hf.conversion.pretrained import load_pretrained_backbones
from combo_hf.data.compose_sounds import SAMPLING_RATE, Microphone, excerpt, read_recording
from combo_hf.feature_extraction_combo import ComboFeatureExtractor, samples_for
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


NONE, SILENCE = "other", "silence"
SAMPLES = samples_for(1)
SHIFT_S = 0.35  # an excerpt begins up to so far from the second that the teacher has heard
MIXED, SILENT = 0.25, 0.05  # shares of the training excerpts
HEARD = 0.35  # level of a softer sound, relative to the louder one, from which on it counts as heard
MEAN_DECAY = 0.995  # of the running mean of the weights, which is what is kept: single steps differ by some percent
NONE_CHANCE = 2.5  # of a sound of no class, relative to each class: there are more kinds of them


class SoundTeacher(nn.Module):
    """The convolutions and layers of [`ComboVGGish`] with batch norms, the class gate, and heads for the teacher."""

    def __init__(self, sizes: dict[str, Any], num_classes: int, embedding: int, scores: int) -> None:
        super().__init__()
        blocks, width = [], 1
        for block in sizes["channels"]:
            for channels in block:
                blocks += [nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                width = channels
            blocks.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*blocks)
        dense, width = [], width * 6 * 4
        for size in [*sizes["hidden_sizes"], sizes["embedding_size"]]:
            dense += [nn.Linear(width, size), nn.BatchNorm1d(size), nn.ReLU()]
            width = size
        self.embeddings = nn.Sequential(*dense)
        self.dropout = nn.Dropout(0.3)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in (num_classes, embedding, scores))
        self.class_gate = nn.Linear(width, num_classes - 2)  # neither "other" nor "silence"

    def forward(self, log_mel: torch.Tensor) -> list[torch.Tensor]:
        """Args: log_mel (F, 1, 96, 64). Returns: logits of classes, teacher's embedding, its scores and class gate."""
        flat = self.dropout(self.features(log_mel).permute(0, 2, 3, 1).flatten(1))
        embedding = self.embeddings(flat)
        return [head(embedding) for head in (*self.heads, self.class_gate)]

    def folded(self) -> dict[str, torch.Tensor]:
        """State of a [`ComboVGGish`] that computes the same embedding."""
        state = {}
        for name, part in (("features", self.features), ("embeddings", self.embeddings)):
            number = 0  # of the layer in ComboVGGish, which has no norms
            layers = list(part)
            for layer, norm in zip(layers, [*layers[1:], None], strict=True):
                if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
                    state[f"{name}.{number}.weight"] = layer.weight * factor.view(-1, *[1] * (layer.weight.ndim - 1))
                    state[f"{name}.{number}.bias"] = (layer.bias - norm.running_mean) * factor + norm.bias
                number += not isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))
        return {key: value.detach().clone() for key, value in state.items()}


class Sounds:
    """Recordings by class and split, with what the teacher heard in their full seconds."""

    def __init__(self, parts: Path) -> None:
        with open(parts / "parts.csv", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["kind"] == "sound"]
        self.classes = sorted({row["class"] for row in rows if not row["class"].startswith("_")})
        self.names = [*self.classes, NONE, SILENCE]
        teacher = np.load(parts / "teacher.npz", allow_pickle=False)
        heard = zip(teacher["sound"], teacher["second"], strict=True)
        self.row_of = {(str(sound), int(second)): row for row, (sound, second) in enumerate(heard)}
        values = torch.from_numpy(teacher["embedding"]).float()
        self.embedding = (values - values.mean(0)) / values.std(0).clamp(min=1e-3)
        self.scores = torch.from_numpy(teacher["scores"]).float()
        self.by_split: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {}
        for row in rows:
            path = next((parts / "sounds" / row["class"]).glob(f"{row['id']}.*"))
            name = row["class"] if row["class"] in self.classes else NONE
            of_class = self.by_split.setdefault(row["split"], {}).setdefault(name, [])
            of_class.append((f"{row['class']}/{row['id']}", read_recording(path)))

    def draw(self, rng: np.random.Generator, name: str, speed: float) -> tuple[np.ndarray, int]:
        """An excerpt of one class, up to exp(`speed`) times as fast or slow; its row of the teacher (-1: none)."""
        recordings = self.by_split["train"][name]
        lengths = np.sqrt([len(recording) for _, recording in recordings])
        sound, recording = recordings[rng.choice(len(recordings), p=lengths / lengths.sum())]
        seconds = len(recording) // SAMPLING_RATE
        if seconds == 0:
            return excerpt(recording, SAMPLES, rng), -1
        second = int(rng.integers(seconds))
        start = int(np.clip((second + rng.uniform(-SHIFT_S, SHIFT_S)) * SAMPLING_RATE, 0, len(recording) - SAMPLES))
        wave = recording[start : start + SAMPLES]
        if speed:
            longer = recording[start : start + round(SAMPLES * float(np.exp(rng.uniform(-speed, speed))))]
            if len(longer) > 0.8 * SAMPLES:
                places = np.linspace(0, len(longer) - 1, SAMPLES)
                wave = np.interp(places, np.arange(len(longer)), longer).astype(np.float32)
        return wave, self.row_of.get((sound, second), -1)


def training_batch(sounds: Sounds, step: int, arguments: argparse.Namespace) -> tuple[torch.Tensor, ...]:
    """Log-mel (F, 1, 96, 64), class shares (F, names), teacher rows (F,), which classes are heard (F, classes)."""
    size, most = arguments.batch, arguments.masked
    rng, extractor, microphone = np.random.default_rng([arguments.seed, step]), ComboFeatureExtractor(), Microphone()
    mels, shares, rows = [], torch.zeros(size, len(sounds.names)), torch.full((size,), -1)
    loudness = torch.zeros(size, len(sounds.classes))
    audible = sounds.names[:-1]
    chances = np.array([NONE_CHANCE if name == NONE else 1.0 for name in audible])
    chances /= chances.sum()
    for index in range(size):
        count = 0 if rng.random() < SILENT else 2 if rng.random() < MIXED else 1
        waves: list[np.ndarray] = []
        for name in rng.choice(len(audible), count, replace=False, p=chances):
            wave, row = sounds.draw(rng, audible[name], arguments.speed)
            share = 10 ** (float(rng.uniform(-18, 0)) / 20) if waves else 1.0  # the second one is softer
            waves.append(wave * np.float32(share / max(float(np.sqrt(np.mean(wave**2))), 1e-4)))
            shares[index, name] = share
            rows[index] = row if count == 1 else -1
        if not count:
            shares[index, -1] = 1
        if count == 2 and shares[index, audible.index(NONE)]:
            shares[index, audible.index(NONE)] *= 0.2  # a class over something else is that class
        loudness[index] = shares[index, : len(sounds.classes)]
        mels.append(extractor.log_mel(torch.from_numpy(microphone.record(waves, SAMPLES, rng)).double(), 1))
    batch = torch.cat(mels)
    for index in range(size):
        if rng.random() < 0.5:
            band, width = int(rng.integers(64)), int(rng.integers(1, most[0]))
            frame, length = int(rng.integers(96)), int(rng.integers(1, most[1]))
            batch[index, :, :, band : band + width] = batch[index].mean()
            batch[index, :, frame : frame + length] = batch[index].mean()
    return batch, shares / shares.sum(1, keepdim=True), rows, (loudness / HEARD).clamp(max=1)


def held_out(sounds: Sounds, seed: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """All full seconds of the validation recordings, and their classes; with a seed as microphones hear them."""
    extractor, mels, labels = ComboFeatureExtractor(), [], []
    for number, name in enumerate(sounds.names[:-1]):
        for sound, recording in sounds.by_split["val"].get(name, []):
            for second in range(max(1, len(recording) // SAMPLING_RATE)):
                if (sound, second) not in sounds.row_of:
                    continue
                wave = recording[second * SAMPLING_RATE : second * SAMPLING_RATE + SAMPLES]
                rng = np.random.default_rng([seed or 0, len(labels)])
                wave = Microphone(0.0 if seed is None else 1.0).record([wave], len(wave), rng)
                mels.append(extractor.log_mel(torch.from_numpy(wave).double(), 1))
                labels.append(number)
    return torch.cat(mels), torch.tensor(labels)


@torch.no_grad()
def accuracy(model: SoundTeacher, batch: tuple[torch.Tensor, torch.Tensor], names: list[str]) -> dict[str, float]:
    """Share of seconds named right, balanced and per class; what the class gate lets in, rightly and wrongly."""
    model.eval()
    mels, labels = batch
    logits, gates = (torch.cat(parts) for parts in zip(*(model(part)[::3] for part in mels.split(128)), strict=True))
    found = logits.argmax(1)
    found = found.where(found < len(names) - 1, len(names) - 2)  # silence is no class: nothing of these is heard
    right = {
        name: (found[labels == number] == number).float().mean().item()
        for number, name in enumerate(names[:-1])
        if (labels == number).any()
    }
    gate = gates > 0  # (F, classes)
    of_class = nnf.one_hot(labels, len(names) - 1)[:, :-1].bool()  # the last name is "other"
    doors = {"let in": gate[of_class].float().mean().item(), "wrongly": gate[~of_class].float().mean().item()}
    return {"balanced": float(np.mean(list(right.values()))), **doors, **right}


def step_loss(model: SoundTeacher, sounds: Sounds, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Cross entropy of the class shares, and how far the teacher's embedding and scores are missed."""
    mels, shares, rows, heard = batch
    logits, embedding, scores, gate = model(mels)
    loss = nnf.cross_entropy(logits, shares, label_smoothing=0.05)
    loss = loss + nnf.binary_cross_entropy_with_logits(gate, heard) * len(sounds.classes) / 2
    known = rows >= 0
    if known.any():
        wanted = sounds.embedding[rows[known]]
        loss = loss + 1.0 * (1 - nnf.cosine_similarity(embedding[known], wanted)).mean()
        loss = loss + 2.0 * nnf.binary_cross_entropy_with_logits(scores[known], sounds.scores[rows[known]])
    return loss


def train(arguments: argparse.Namespace, sounds: Sounds, config: ComboConfig) -> SoundTeacher:
    """The training itself; a state every `save_every` steps."""
    torch.manual_seed(arguments.seed)
    sizes = (len(sounds.names), sounds.embedding.shape[1], sounds.scores.shape[1])
    model = SoundTeacher(config.audio_config, *sizes).to(memory_format=torch.channels_last)  # twice as fast on a CPU
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.02)
    clean, recorded = held_out(sounds), held_out(sounds, seed=arguments.seed + 1)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(MEAN_DECAY), use_buffers=True)
    state, first, spent = arguments.output / "sound-state.pt", 0, 0.0
    if arguments.resume and state.is_file():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        mean.load_state_dict(saved["mean"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent = saved["step"], saved["spent"]
    began = time.process_time()
    for step in range(first, arguments.steps):
        model.train()
        optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(arguments.seed * 1_000_003 + step)  # of the dropout, so that a resumed run is the same
        loss = step_loss(model, sounds, training_batch(sounds, step, arguments))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for group in optimizer.param_groups:
            group["lr"] = (
                arguments.learning_rate * min(1.0, 10 * (step + 1) / arguments.steps) * (1 - step / arguments.steps)
            )
        optimizer.step()
        mean.update_parameters(model)
        done = step + 1
        if done % arguments.save_every == 0 or done == arguments.steps:
            heard = {"clean": clean, "mic": recorded}
            scores = {kind: accuracy(mean.module, batch, sounds.names) for kind, batch in heard.items()}
            seconds = spent + time.process_time() - began
            text = {kind: {name: round(value, 3) for name, value in of.items()} for kind, of in scores.items()}
            print(
                json.dumps({"step": done, "loss": round(loss.item(), 3), "cpu_s": round(seconds), **text}), flush=True
            )
            weights = {
                name: part.state_dict() for name, part in (("model", model), ("mean", mean), ("optimizer", optimizer))
            }
            torch.save({**weights, "step": done, "spent": seconds}, state)
    return mean.module.eval()


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--image-encoder", type=Path, help="weights of EfficientNet-Lite0; without: random ones")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument(
        "--speed", type=float, default=0.0, help="logarithm of how much faster or slower sounds become"
    )
    parser.add_argument("--masked", type=int, nargs=2, default=(12, 24), help="most bands and frames that are hidden")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sounds = Sounds(arguments.parts)
    names = dict(enumerate(["background", *sounds.classes]))
    config = ComboConfig.from_preset("mini", id2label=names, class_gate=True)
    model = ComboForAudioVisualSegmentation(config)
    teacher = train(arguments, sounds, config)
    model.model.audio_encoder.load_state_dict(teacher.folded())
    model.class_gate.load_state_dict(teacher.class_gate.state_dict())
    if arguments.image_encoder is not None:
        load_pretrained_backbones(model, arguments.image_encoder)
    model.save_pretrained(arguments.output, carry_code=False)


if __name__ == "__main__":
    sys.exit(run_script(main))
