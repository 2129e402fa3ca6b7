"""Checkpoints that do not fit or come from a stranger: nothing is drawn at random, no file of theirs is run."""

from __future__ import annotations

import json
import os
import pty
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import combo_hf
from combo_hf import cli, modeling_combo_inputs


WEIGHTS = "model.safetensors"
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture
def checkpoint(tiny_folder: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


def rewrite(folder: Path, change: Change) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def change_json(folder: Path, file: str, change: dict[str, Any]) -> None:
    values = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**values, **change}))


def without(part: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


MISFITS: list[tuple[Change, str]] = [
    (lambda tensors: {}, "missing"),
    (without("decoder"), "missing (model."),
    (without("class_head.bias"), "1 missing (model.decoder.class_head.bias)"),
    (lambda tensors: {**tensors, "model.extra": torch.zeros(3)}, "1 without a place (model.extra)"),
    (lambda tensors: {**tensors, "model.decoder.class_head.bias": torch.zeros(7)}, "class_head.bias (7,) in place of"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_weights_that_do_not_fit_are_refused(checkpoint: Path, change: Change, message: str) -> None:
    rewrite(checkpoint, change)
    for load in (combo_hf.load_pipeline, combo_hf.ComboForAudioVisualSegmentation.from_pretrained):
        with pytest.raises(ValueError) as caught:
            load(checkpoint)
        text = str(caught.value)
        assert message in text and "do not fit the configuration" in text and len(text) < 600 and "\n" not in text


def test_pickled_weights_are_not_read(checkpoint: Path) -> None:
    torch.save(load_file(checkpoint / WEIGHTS), checkpoint / "pytorch_model.bin")
    combo_hf.ComboForAudioVisualSegmentation.from_pretrained(checkpoint)
    (checkpoint / WEIGHTS).unlink()
    for load in (combo_hf.load_pipeline, combo_hf.ComboForAudioVisualSegmentation.from_pretrained):
        with pytest.raises(OSError, match="model.safetensors"):
            load(checkpoint)


def with_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def share_bytes(header: dict[str, Any]) -> None:
    for tensor in header.values():
        tensor["data_offsets"] = [0, 4] if "data_offsets" in tensor else None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:1000],
        lambda data: b"",
        lambda data: (10**12).to_bytes(8, "little") + data[8:],
        lambda data: with_header(data, share_bytes),
        lambda data: with_header(data, lambda header: header.update(a={"dtype": "F32", "shape": [10**15]})),
        lambda data: with_header(data, lambda header: header["model.class_gate.bias"].update(shape=[2**62, 4])),
    ],
)
def test_a_damaged_weight_file_is_a_value_error(checkpoint: Path, damage: Callable[[bytes], bytes]) -> None:
    rewrite(checkpoint, lambda tensors: {**tensors, "model.class_gate.bias": torch.zeros(3)})
    (checkpoint / WEIGHTS).write_bytes(damage((checkpoint / WEIGHTS).read_bytes()))
    with pytest.raises(ValueError, match="the weight file is damaged"):
        combo_hf.load_pipeline(checkpoint)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"embedding_size": -1}, "backbone_config: no resnet can be built of it"),
        ({"hidden_sizes": [10**6] * 4}, "the weights do not fit the configuration"),  # 36 TB
        ({"depths": [10**5, 1, 1, 1]}, "wanted at most 512 layers"),
        ({"hidden_sizes": [48, 96, 128]}, "backbone_config: no resnet can be built of it"),
    ],
)
def test_networks_that_cannot_be_made(checkpoint: Path, sizes: dict[str, Any], message: str) -> None:
    backbone = json.loads((checkpoint / "config.json").read_text())["backbone_config"]
    change_json(checkpoint, "config.json", {"backbone_config": {**backbone, **sizes}})
    with pytest.raises(ValueError, match=message):
        combo_hf.load_pipeline(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_dim": 4096}, "of another shape"),  # 3.7 GB
        ({"hidden_dim": 999_936, "decoder_feedforward_dim": 10**6}, "of another shape"),  # 4 TB in each tensor
        ({"audio_config": {"channels": [[4096] * 9] * 4}}, "missing"),  # 20 GB
        ({"audio_config": {"channels": [[16] * 10**5, [16], [16], [16]]}}, "audio_config: wanted 4 blocks"),
    ],
)
def test_large_numbers_beside_small_weights_cost_nothing(
    checkpoint: Path, change: dict[str, Any], message: str
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    audio = {"audio_config": {**config["audio_config"], **change.get("audio_config", {})}}
    change_json(checkpoint, "config.json", change | audio)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=message):
        combo_hf.load_pipeline(checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert time.process_time() - began < 5


def test_no_network_of_too_many_parts_is_built(checkpoint: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(modeling_combo_inputs, "MAX_PARTS", 400)  # the tiny network has some 900, filled
    with pytest.raises(ValueError, match="more than 400 parts"):
        combo_hf.load_pipeline(checkpoint)
    torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(200)))  # of our own: not counted


@pytest.mark.parametrize(
    "line",
    [
        ["predict", str(combo_hf.ASSETS / "demo_clip.mp4"), "--model", "{}", "--output", "out"],
        ["export", "{}", "--output", "out/model.onnx"],
    ],
)
def test_commands_refuse_them_in_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, line: list[str]
) -> None:
    rewrite(checkpoint, without("decoder"))
    monkeypatch.chdir(tmp_path)
    assert cli.main([part.format(checkpoint) for part in line]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and "missing" in error
    assert not (tmp_path / "out").exists()


def test_a_new_class_head_is_made_where_it_is_asked_for(checkpoint: Path) -> None:
    model, info = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(
        checkpoint, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.model.decoder.class_head.out_features == 6
    assert {name for name, *_ in info["mismatched_keys"]} == {
        "model.decoder.class_head.weight",
        "model.decoder.class_head.bias",
    }
    with pytest.raises(ValueError, match="2 of another shape"):
        combo_hf.ComboForAudioVisualSegmentation.from_pretrained(checkpoint, num_labels=5)


EVIL = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\nclass P: pass\n"
MAP = {name: "evil.P" for name in ("AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor")}
STRANGERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "processor class": [("processor_config.json", {"processor_class": "EvilProc", "auto_map": MAP})],
    "nested classes": [
        (
            "processor_config.json",
            {
                "auto_map": MAP,
                "image_processor": {"image_processor_type": "EvilImages", "auto_map": MAP},
                "feature_extractor": {"feature_extractor_type": "EvilSound", "auto_map": MAP},
            },
        )
    ],
    "preprocessor": [("preprocessor_config.json", {"image_processor_type": "EvilImages", "auto_map": MAP})],
    "model type": [
        ("config.json", {"model_type": "combo2", "auto_map": {"AutoConfig": "evil.P", "AutoModel": "evil.P"}})
    ],
    "official names": [("processor_config.json", {"auto_map": MAP}), ("config.json", {"auto_map": MAP})],
}


def make_stranger(folder: Path, kind: str) -> Path:
    """Returns the file that exists once code of the folder has run."""
    mark = folder.parent / "ran"
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    if kind == "preprocessor":
        (folder / "processor_config.json").unlink()
    for file, change in STRANGERS[kind]:
        change_json(folder, file, change)
    return mark


@pytest.mark.parametrize("kind", STRANGERS)
def test_no_file_of_a_checkpoint_is_run(checkpoint: Path, kind: str) -> None:
    mark = make_stranger(checkpoint, kind)
    if kind == "official names":
        combo_hf.load_pipeline(checkpoint)
    else:
        with pytest.raises(ValueError, match=r"wanted (Combo|combo)\w*, got '(Evil|combo2)") as caught:
            combo_hf.load_pipeline(checkpoint)
        assert "\n" not in str(caught.value)
    assert not mark.exists()
    with pytest.raises(ValueError, match="no code of a checkpoint is run;"):
        combo_hf.load_pipeline(checkpoint, trust_remote_code=True)


def test_an_adapter_beside_the_weights_is_not_loaded(checkpoint: Path) -> None:
    """transformers would, unasked, where peft is installed: of any size, its missing weights drawn at random."""
    pytest.importorskip("peft", reason="pip install peft")
    adapter = {"peft_type": "LORA", "r": 10**7, "target_modules": ["class_head"], "base_model_name_or_path": "a/b"}
    change_json(checkpoint, "adapter_config.json", adapter)
    with pytest.raises(ValueError, match="an adapter lies beside the weights"):
        combo_hf.load_pipeline(checkpoint)


def hub_kernel(*_: Any, **__: Any) -> None:
    raise AssertionError("code is fetched from the Hub")


@pytest.mark.parametrize("part", ["", "backbone_config"])
@pytest.mark.parametrize(
    "name", ["attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"]
)
def test_no_checkpoint_chooses_a_kernel_of_the_hub(checkpoint: Path, monkeypatch: Any, part: str, name: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (config[part] if part else config)[name] = "evil/kernel"
    change_json(checkpoint, "config.json", config)
    is_kernel = transformers.modeling_utils.is_kernel
    monkeypatch.setattr(  # where transformers begins to look for it
        transformers.modeling_utils,
        "is_kernel",
        lambda name: hub_kernel() if name == "evil/kernel" else is_kernel(name),
    )
    model = combo_hf.load_pipeline(checkpoint, device="cpu").model
    assert "/" not in str(model.config._attn_implementation) + str(model.config.backbone_config._attn_implementation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config: wanted torchao, got 'mxfp4'"),
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf_hub:a/b"}},
            "a network of timm, got 'hf_",
        ),
        ({"backbone_config": "timm/hf_hub:a/b"}, "wanted the name of a network of timm"),
        (
            {"backbone_config": {"model_type": "mask2former", "backbone": "a/b", "use_pretrained_backbone": True}},
            "wanted the model_type of a backbone, got 'mask2former'",
        ),
        ({"backbone_config": {"model_type": "encoder-decoder"}}, "wanted the model_type of a backbone"),
    ],
)
def test_no_checkpoint_names_what_would_be_fetched(checkpoint: Path, change: dict[str, Any], message: str) -> None:
    change_json(checkpoint, "config.json", change)
    with pytest.raises(ValueError, match=message):
        combo_hf.load_pipeline(checkpoint)


@pytest.mark.parametrize("name", ["../weights.bin", "weights.bin", "/etc/hostname", "../a.safetensors", 7])
def test_parts_of_the_weights_lie_beside_their_index(checkpoint: Path, name: object) -> None:
    """transformers would unpickle the first and the second (numbers only), and read the others."""
    (checkpoint / WEIGHTS).rename(checkpoint / "a.safetensors")
    torch.save({}, checkpoint.parent / "weights.bin")
    keys = load_file(checkpoint / "a.safetensors")
    for place, error in ((name, "index.json: "), ("a.safetensors", None)):
        index = {"metadata": {}, "weight_map": {**dict.fromkeys(keys, "a.safetensors"), next(iter(keys)): place}}
        (checkpoint / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
        if error is None:
            combo_hf.load_pipeline(checkpoint, device="cpu")
        else:
            with pytest.raises(ValueError, match=error):
                combo_hf.load_pipeline(checkpoint)


def test_a_file_of_a_hundred_thousand_tensors(checkpoint: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    head = json.dumps({f"tensor{number}": entry for number in range(150_000)}).encode()
    (checkpoint / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head)
    began = time.process_time()
    with pytest.raises(ValueError, match="the weight file is damaged .its head has more than 8388608 bytes"):
        combo_hf.load_pipeline(checkpoint)
    assert time.process_time() - began < 2


def test_no_configuration_of_any_length_is_read(checkpoint: Path) -> None:
    text = (checkpoint / "config.json").read_text().rstrip()
    (checkpoint / "config.json").write_text(f'{text[:-1]}, "z": [{"[]," * (1 << 23)}0]}}')
    with pytest.raises(ValueError, match="config.json has more than 16777216 bytes"):
        combo_hf.load_pipeline(checkpoint)


def test_weights_of_timm_are_not_fetched() -> None:
    given = {"model_type": "timm_backbone", "backbone": "resnet18", "use_pretrained_backbone": True}
    for backbone in (given, "timm/resnet18"):
        found = combo_hf.ComboConfig.from_preset("tiny", backbone_config=backbone).backbone_config
        assert (found.backbone, found.use_pretrained_backbone) == ("resnet18", False)


@pytest.mark.parametrize("kind", ["processor class", "model type"])
def test_nothing_is_asked_on_a_terminal(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    mark = make_stranger(checkpoint, kind)
    terminal, end = pty.openpty()
    line = [sys.executable, "-m", "combo_hf", "predict", "none.mp4", "--model", str(checkpoint), "--output", "out"]
    with subprocess.Popen(line, stdin=end, stdout=end, stderr=end, cwd=tmp_path) as process:
        os.close(end)
        os.write(terminal, b"y\n")  # to whatever may be asked
        shown = b""
        try:
            while part := os.read(terminal, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        assert process.wait() == 2
    os.close(terminal)
    assert b"[y/N]" not in shown and b"custom code" not in shown and not mark.exists()
