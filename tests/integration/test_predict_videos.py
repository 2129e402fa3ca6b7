"""`combo-hf predict` on real files, sound ones and nasty ones. Needs the sample data; skipped without it."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from combo_hf import ASSETS, cli, media_combo


# name in nasty/ -> (seconds, size as shown, sound)
GOOD = {
    "ok_5s_320x240_25fps.mp4": (5, (320, 240), True),
    "no_audio_track.mp4": (5, (320, 240), False),
    "one_frame.mp4": (1, None, True),
    "truncated_faststart.mp4": (None, (320, 240), True),
    "variable_frame_rate.mp4": (5, None, None),
    "odd_size_321x187.mp4": (2, (321, 187), None),
    "portrait_240x426.mp4": (2, (240, 426), None),
    "rotated_90_metadata.mp4": (5, (240, 320), None),
    "eight_channels_48k.mp4": (2, None, True),
    "hi_fps_60.mp4": (2, None, None),
    "low_fps_1.mp4": (5, None, True),
    "sound_shorter_than_film.mp4": (5, None, True),
    "sound_longer_than_film.mp4": (2, None, True),
    "vp9_opus.webm": (2, None, True),
    "mjpeg_mp3.mkv": (1, None, True),
    "name with spaces, ümläut and 音.mp4": (5, (320, 240), False),
    "animated.gif": (None, None, False),
}
BAD = {
    "audio_only.mp4": "",
    "zero_bytes.mp4": "",
    "truncated_moov_lost.mp4": "",
    "text_named.mp4": "",
    "silence_5s.wav": "",
}


def predict(capsys, source, output, model, *options):
    code = cli.main(["predict", str(source), "--output", str(output), "--model", model, *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def check(output, source, seconds, size, sound):
    report = json.loads((output / f"{source.stem}.json").read_text(encoding="utf-8"))
    if seconds is not None:
        assert len(report["frames"]) == seconds
    if size is not None:
        assert tuple(report["size"]) == size
    if sound is not None:
        assert report["has_audio"] is sound
    assert [int(frame["timestamp"]) for frame in report["frames"]] == list(range(len(report["frames"])))
    masks = sorted((output / f"{source.stem}_masks").iterdir())
    assert len(masks) == len(report["frames"]) > 0
    with Image.open(masks[0]) as mask:
        assert mask.size == tuple(report["size"])
    width, height = report["size"]
    overlay = media_combo.probe_media(output / f"{source.stem}_overlay.mp4")
    assert abs(overlay.width - width) <= 1 and abs(overlay.height - height) <= 1
    assert overlay.has_audio is report["has_audio"]
    with Image.open(output / f"{source.stem}_sheet.png") as sheet:
        assert np.asarray(sheet).std() > 1


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("s4_O_s-zCN_Y_4", 5), ("s4_jctHxwLwbWr", 5), ("ms3_-UA6jxqSMl6_1", 5), ("avss_WzT0ZxxkXz_", 10)],
)
def test_sample_films(capsys, shared, tiny_folder, tmp_path, name, seconds):
    source = shared / "data" / "avs-sample" / "videos" / f"{name}.mp4"
    code, _, err = predict(capsys, source, tmp_path, tiny_folder, "--masks", "--json", "--sheet", "--batch-size", "2")
    assert (code, err) == (0, "")
    check(tmp_path, source, seconds, None, True)


@pytest.mark.parametrize("name", GOOD)
def test_unusual_films(capsys, shared, tiny_folder, tmp_path, name):
    source = shared / "data" / "avs-sample" / "nasty" / name
    code, _, err = predict(capsys, source, tmp_path, tiny_folder, "--masks", "--json", "--sheet")
    assert (code, err) == (0, "")
    check(tmp_path, source, *GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_film(capsys, shared, tiny_folder, tmp_path, name):
    source = shared / "data" / "avs-sample" / "nasty" / name
    code, out, err = predict(capsys, source, tmp_path / "out", tiny_folder, "--masks", "--json", "--sheet")
    assert (code, out) == (2, "")
    assert err.startswith(f"combo-hf: error: {name}: ") and err.count("\n") == 1 and len(err) < 200
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_long_film(capsys, shared, tiny_folder, tmp_path):
    source = shared / "data" / "avs-sample" / "nasty" / "long_60s_160x120_10fps.mp4"
    code, _, err = predict(capsys, source, tmp_path, tiny_folder, "--masks", "--json", "--sheet", "--batch-size", "4")
    assert (code, err) == (0, "")
    check(tmp_path, source, 60, (160, 120), None)


def test_more_frames_per_second(capsys, shared, tiny_folder, tmp_path):
    source = shared / "data" / "avs-sample" / "nasty" / "odd_size_321x187.mp4"
    code, _, err = predict(capsys, source, tmp_path, tiny_folder, "--json", "--fps", "4")
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / f"{source.stem}.json").read_text())
    assert [frame["timestamp"] for frame in report["frames"]] == [(k + 15 / 16) / 4 for k in range(8)]


def test_in_a_process_of_its_own(shared, tiny_folder, tmp_path):
    source = shared / "data" / "avs-sample" / "videos" / "s4_O_s-zCN_Y_4.mp4"
    command = [sys.executable, "-m", "combo_hf", "predict", str(source), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, "--model", tiny_folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path / "out" / "s4_O_s-zCN_Y_4_overlay.mp4") in done.stdout
    done = subprocess.run([*command, "--model", str(tmp_path / "nosuch")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def start_predict(video, output, model, *options):
    """`predict` as a process that has just written its first mask."""
    command = [sys.executable, "-m", "combo_hf", "predict", str(video), "--output", str(output), "--masks", *options]
    # A shell's background job, as CI may be, hands down an ignored SIGINT; the child must start with the usual one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([*command, "--model", model], stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    while process.poll() is None and not list(output.glob(".combo-*/masks/*")):
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle(shared, tiny_folder, tmp_path, number):
    source = shared / "data" / "avs-sample" / "nasty" / "long_60s_160x120_10fps.mp4"
    with start_predict(source, tmp_path / "out", tiny_folder) as process:
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 130
    assert err == "combo-hf: interrupted, nothing partial was left\n"
    assert not (tmp_path / "out").exists()


def test_a_second_signal_is_not_heard(tiny_folder, tmp_path):
    """Ctrl-C twice, and again and again until the process has ended, so that one comes at every moment of its end."""
    with start_predict(ASSETS / "demo_clip.mp4", tmp_path / "out", tiny_folder, "--fps", "25") as process:
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(process.pid, number)  # not collected yet, so the number is still its own
        _, err = process.communicate()
    assert process.returncode == 130
    assert err == "combo-hf: interrupted, nothing partial was left\n"
    assert not (tmp_path / "out").exists()
