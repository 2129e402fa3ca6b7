"""What `fuzz.py` begins with: small good files of every kind that is read, and how they are damaged."""

from __future__ import annotations

import functools
import io
import json
import pickle
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


EXTREMES = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\1", b"\1\0\0\0"]


def films() -> list[bytes]:
    """A film in some containers and codecs, each of some kB."""
    import av

    made = []
    kinds = [("mp4", "libx264", "aac"), ("matroska", "mjpeg", "mp3"), ("webm", "libvpx", "libopus"),
             ("avi", "mpeg4", "pcm_s16le"), ("mpegts", "mpeg2video", "mp2"), ("gif", "gif", None),
             ("mov", "mjpeg", "pcm_s16le"), ("flv", "flv1", "pcm_s16le")]  # fmt: skip
    for form, video, audio in kinds:
        target = io.BytesIO()
        try:
            with av.open(target, "w", format=form) as film:
                _write_film(film, video, audio)
            made.append(target.getvalue())
        except (av.error.FFmpegError, ValueError, OSError):  # a build without this codec
            continue
    return made


def _write_film(film: Any, video: str, audio: str | None) -> None:
    import av

    pictures = film.add_stream(video, rate=5)
    pictures.width, pictures.height = 32, 24
    pictures.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(video, "yuv420p")
    voice = film.add_stream(audio, rate=48000 if audio == "libopus" else 44100) if audio else None
    for index in range(8):
        picture = np.full((24, 32, 3), 20 * index, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pictures.pix_fmt)
        film.mux(pictures.encode(frame))
    film.mux(pictures.encode(None))
    if voice is None:
        return
    layout = voice.codec_context.layout.name if voice.codec_context.layout else "stereo"
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), format="s16", layout="mono")
    sound.sample_rate = 44100
    resampler = av.AudioResampler(voice.codec_context.format, layout, voice.codec_context.sample_rate,
                                  frame_size=voice.codec_context.frame_size or None)  # fmt: skip
    for part in [*resampler.resample(sound), *resampler.resample(None)]:
        film.mux(voice.encode(part))
    film.mux(voice.encode(None))


def sounds() -> list[bytes]:
    """A second of noise in the formats that soundfile writes."""
    import soundfile

    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    made = []
    for form, subtype in (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None)):
        buffer = io.BytesIO()
        try:
            soundfile.write(buffer, samples, 16000, format=form, subtype=subtype)
        except (RuntimeError, ValueError):
            continue
        made.append(buffer.getvalue())
    return made


def pictures() -> list[bytes]:
    """A picture in every format that Pillow writes, also as a palette and with grey levels of 16 bits."""
    from PIL import Image

    Image.init()
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    variants = [(Image.fromarray(values), sorted(Image.SAVE))]
    variants += [(Image.fromarray(values[..., 0] % 60).convert("P"), ["PNG"])]
    variants += [(Image.fromarray(values[..., 0].astype(np.uint16)), ["PNG"])]
    made = []
    for picture, forms in variants:
        for form in forms:
            buffer = io.BytesIO()
            try:
                picture.save(buffer, form)
            except (OSError, KeyError, ValueError):  # a codec or a colour space that it has not
                continue
            made.append(buffer.getvalue())
    return made


def label_map() -> dict[str, Any]:
    """A mask of a row."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32).astype(np.uint8) % 3).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def weights() -> list[bytes]:
    """Tensors as torch.save writes them now and wrote them once, and with more beside them."""
    import torch

    tensors = {"a.weight": torch.zeros(4, 3), "b.bias": torch.ones(5, dtype=torch.float16)}
    made = []
    for content, options in ((tensors, {}), (tensors, {"_use_new_zipfile_serialization": False}),
                             ({"model": tensors, "iteration": 3, "best": np.float64(0.5)}, {})):  # fmt: skip
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        made.append(buffer.getvalue())
    return made


def safetensors() -> list[bytes]:
    """Weights as safetensors."""
    import torch
    from safetensors.torch import save

    return [save({"a.weight": torch.zeros(4, 3), "b.bias": torch.ones(5)})]


@functools.cache
def network() -> dict[str, bytes]:
    """The files of a tiny checkpoint."""
    import combo_hf

    processor = combo_hf.ComboProcessor(combo_hf.ComboImageProcessor(size={"height": 64, "width": 64}))
    with tempfile.TemporaryDirectory() as folder:
        combo_hf.ComboForAudioVisualSegmentation(combo_hf.ComboConfig.from_preset("tiny")).save_pretrained(folder)
        processor.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def network_weights() -> list[bytes]:
    """Its weights."""
    return [network()["model.safetensors"]]


def network_config() -> list[bytes]:
    """Its config.json."""
    return [network()["config.json"]]


def pickles() -> list[bytes]:
    """Pickles of arrays, of every protocol, and some that want to run something."""
    content = {"model": {"a": np.zeros((2, 3), np.float32), "b": np.float64(2)}, "__author__": "x"}
    made = [pickle.dumps(content, protocol) for protocol in range(6)]
    calls = (b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy.testing._private.utils\nrunstring\n")
    made += [call + b"(S'touch PWNED'\ntR." for call in calls]
    made += [
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I99999999999\ntS'b'\ntR.",
    ]
    return made


def checkpoints() -> list[bytes]:
    """config.json and processor_config.json of a tiny model, put together as one JSON list."""
    import combo_hf

    config = combo_hf.ComboConfig.from_preset("tiny").to_dict()
    processor = combo_hf.ComboProcessor(combo_hf.ComboImageProcessor(size={"height": 64, "width": 64})).to_dict()
    return [json.dumps([config, processor], default=str).encode()]


def tables() -> list[bytes]:
    """csv files of the subsets of AVSBench."""
    return [
        b"name,category,split\nabc_1,dog,train\n\xc3\xa4 b,cat,test\n",
        b"name,split\nabc_1,train\nabc_2,val\n",
        b"vid,uid,s_min,s_sec,a_start,a_obj,split,label\nabcdefghijk,abcdefghijk_1_2,0,1,2,dog_cat,train,v1m\n",
    ]


def parquets() -> list[bytes]:
    """One row of a built data set."""
    import pyarrow
    import pyarrow.parquet

    picture, sound = next(data for data in pictures() if data.startswith(b"\x89PNG")), sounds()[0]
    entry = {"bytes": picture, "path": None}
    row = {"video_id": "a", "subset": "s4", "frames": [entry], "masks": [label_map()], "label_frames": [True],
           "maskiges": [entry], "audio": {"bytes": sound, "path": "a.wav"}}  # fmt: skip
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), buffer)
    return [buffer.getvalue()]


def recipes() -> list[bytes]:
    """Recipes, the shortest one and one with every key."""
    from combo_hf.files.typed_yaml import dump_yaml
    from combo_hf.training.arguments import TrainingRecipe

    return [b"seed: 3\nmax_steps: 5\ndata:\n  source: synthetic\n", dump_yaml(TrainingRecipe().to_dict()).encode()]


def mask_caches() -> list[bytes]:
    """An entry of the cache of proposals, packed and plain."""
    masks = np.zeros((3, 24, 32), bool)
    return [
        _npz(save, packed=np.packbits(masks), shape=np.array(masks.shape)) for save in (np.savez, np.savez_compressed)
    ]


def clip_caches() -> list[bytes]:
    """Prepared clips of 2 and 1 frames."""
    arrays = {
        "settings": np.array("{}"),
        "video_ids": np.array(["a", "b"]),
        "num_frames": np.array([2, 1]),
        "frames": np.zeros((3, 3, 8, 8), np.uint8),
        "input_features": np.zeros((3, 1, 96, 64), np.float32),
        "masks": np.zeros((2, 8, 8), np.uint8),
        "label_frames": np.array([True, False, True]),
    }
    return [_npz(save, **arrays) for save in (np.savez, np.savez_compressed)]


def _npz(save: Any, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to four changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = min(int(rng.expovariate(4) * len(changed)), max(0, len(changed) - 1))  # headers are at the front
        action = rng.randrange(8)
        if action == 0 and changed:
            changed[place] ^= 1 << rng.randrange(8)
        elif action == 1:
            changed[place : place + 4] = rng.choice(EXTREMES)
        elif action == 2:
            del changed[rng.randrange(len(changed) + 1) :]
        elif action == 3:
            del changed[place : place + rng.randrange(1, 64)]
        elif action == 4:
            changed[place:place] = changed[place : place + rng.randrange(1, 200)]
        elif action == 5:
            changed[place : place + 16] = rng.randbytes(rng.randrange(17))
        elif action == 6:
            other = rng.choice(others)
            changed[place:] = other[rng.randrange(len(other)) :]
        else:
            changed = _number(changed, rng)
    return bytes(changed)


def _number(data: bytearray, rng: random.Random) -> bytearray:
    """In a text: another number or word."""
    words = [
        b"-1",
        b"0",
        b"1e308",
        b"NaN",
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b"99999999999999999999",
        b"true",
        b"../../x",
        b"\0",
        b"&a [*a]",
        b"!!set {}",
        b"2020-99-99",
    ]
    starts = [place for place, byte in enumerate(data[:20000]) if 48 <= byte <= 57 or byte in b'"']
    if starts:
        place = rng.choice(starts)
        data[place : place + 1 + rng.randrange(2)] = rng.choice(words)
    return data


def mutate_tensors(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Fewer tensors, more, and some of another shape, type, name or value."""
    import torch
    from safetensors.torch import load, save

    tensors = load(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(sorted(tensors) or ["none.weight"])
        tensor = tensors.pop(name, torch.zeros(2, 3))
        action = rng.randrange(8)
        if action == 0:  # of a part, or of all
            start = rng.choice((name, name.rpartition(".")[0], name.partition(".")[0], ""))
            tensors = {key: value for key, value in tensors.items() if not key.startswith(start)}
        elif action == 1:
            tensors |= {name: tensor, rng.choice(("new.weight", name + "x", name * 50)): tensor.clone()}
        elif action == 2:
            tensors[rng.choice(("new.weight", name.upper(), name.rpartition(".")[2]))] = tensor
        elif action == 3:
            rows = tensor.reshape(1, -1) if tensor.ndim < 2 else tensor
            shapes = (rows.transpose(0, 1), tensor[None], tensor.flatten(), rows[:1], rows[:0], torch.cat([rows] * 3))
            tensors[name] = rng.choice(shapes).clone(memory_format=torch.contiguous_format)
        elif action in (4, 5):
            kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
            tensors[name] = tensor.to(rng.choice(kinds))
        else:
            value = rng.choice((0, 6e4, -6e4, float("nan"), float("inf")))
            tensors[name] = torch.full_like(tensor, value) if tensor.is_floating_point() else tensor
    return save(tensors)


ADDED: list[tuple[str, Any]] = [
    ("num_labels", 10**9),
    ("_attn_implementation", "owner/kernel"),
    ("quantization_config", {"quant_method": "mxfp4"}),
    ("transformers_weights", "../../x.safetensors"),
    ("id2label", {str(index): "\x1b]0;x\x07" for index in range(3)}),
    ("id2label", {"0": "background", "9": "x" * 10**6}),
    ("backbone", "hf_hub:owner/name"),
]


def mutate_sizes(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Other numbers of layers, widths, heads, points, classes, and lists of them of another length."""
    sizes = (0, 1, 2, 3, 5, 7, 64, 96, 300, 512, 513, 4096, 10**6, 2**31, 10**18, -1)
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        nodes = [tree]
        for node in nodes:
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                nodes += [value] if isinstance(value, (dict, list)) else []
                places += [(node, key)] if type(value) is int or isinstance(value, list) else []
        if rng.random() < 0.2:  # what the file does not have, in itself or in its backbone
            rng.choice((tree, tree["backbone_config"])).update([rng.choice(ADDED)])
            continue
        node, key = rng.choice(places)
        if isinstance(node[key], list):
            node[key] = rng.choice(
                (node[key][1:], node[key] * 2, node[key] * 200, [rng.choice(sizes)] * len(node[key]))
            )
        else:
            node[key] = rng.choice(sizes)
    return json.dumps(tree).encode()


def mutate_json(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Another value somewhere in the tree; sometimes bytes as for the others."""
    if rng.random() < 0.2:
        return mutate(data, others, rng)
    tree = json.loads(data)
    values = [
        -1,
        0,
        1,
        2,
        1e308,
        float("nan"),
        None,
        [],
        {},
        "x",
        True,
        10**12,
        -0.5,
        "../../x",
        [0],
        ["a", 1],
        {"name": "cached"},
    ]
    for _ in range(rng.choice((1, 1, 2))):
        node = tree[rng.randrange(2)]
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            if isinstance(node, dict) and rng.random() < 0.15:
                del node[key]
            else:
                node[key] = rng.choice(values)
            break
    return json.dumps(tree).encode()
