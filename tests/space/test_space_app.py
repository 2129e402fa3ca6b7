"""The page without a browser: settings, refusals, results, many users at once."""

from __future__ import annotations

import asyncio
import gc
import http.server
import importlib.util
import io
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from fixtures_media import noise
from PIL import Image
from processes import BARE

import combo_hf
from combo_hf.media_combo import probe_media
from combo_hf.results.video import write_video


ROOT = Path(__file__).resolve().parents[2]


def silent(*_, **__):
    """A progress bar that nobody looks at."""


def make_film(path, width=64, seconds=1, sound=True, level=90):
    frames = [np.full((48, width, 3), level, np.uint8)] * (4 * seconds)
    return write_video(path, frames, 4, noise(seconds) if sound else None)


@pytest.fixture(scope="module")
def connect(serve, tiny_folder):
    """`connect(COMBO_MAX_SECONDS="2")` -> client of a page with these settings."""
    gradio_client = pytest.importorskip("gradio_client")
    clients = {}

    def client(**settings):
        address = serve(COMBO_MODEL=tiny_folder, **settings)
        if address not in clients:
            clients[address] = gradio_client.Client(address, verbose=False)
        return clients[address]

    return client


def size_of(picture):
    with Image.open(picture) as image:
        return image.size


def segment(client, film, **options):
    from gradio_client import handle_file

    inputs = {"proposals": "superpixels", "fps": 1, "classes": [], **options}
    return client.predict(handle_file(film), **inputs, api_name="/segment")


@pytest.mark.parametrize(
    ("environment", "expected", "error"),
    [
        ({}, (60, 50, 64), None),
        ({"COMBO_MAX_SECONDS": "7", "COMBO_MAX_QUEUE": "3"}, (7, 50, 3), None),
        ({"COMBO_MAX_MEGABYTES": "0"}, None, "COMBO_MAX_MEGABYTES.*above 0"),
        ({"COMBO_MAX_SECONDS": "many"}, None, "COMBO_MAX_SECONDS.*'many'"),
    ],
)
def test_limits(app, environment, expected, error):
    if error:
        with pytest.raises(ValueError, match=error):
            app.Limits.from_environment(environment)
        return
    limits = app.Limits.from_environment(environment)
    assert (limits.seconds, limits.megabytes, limits.queue) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" sam = org/sam , edgetam=folder", {"sam": "org/sam", "edgetam": "folder"}),
        ("sam", None),
        ("=a", None),
        ("x=folder", None),
        ("cached=folder", None),
    ],
)
def test_proposal_sources(app, text, expected):
    if expected is None:
        with pytest.raises(ValueError, match="COMBO_PROPOSALS"):
            app.proposal_sources(text)
    else:
        assert app.proposal_sources(text) == expected


def test_result(connect, tmp_path):
    film = make_film(tmp_path / "zwei drei.mp4", width=80, seconds=3)
    overlay, summary, timeline, gallery, files = segment(connect(), str(film), fps=2)
    assert (probe_media(overlay).width, probe_media(overlay).has_audio) == (80, True)
    assert summary.startswith("**") and size_of(timeline)[0] == 720
    assert len(gallery) == 4 * 6 and gallery[1]["caption"] == "0.5 s Maskige"
    video, archive, report = (Path(file) for file in files)
    assert [file.name for file in (video, archive, report)] == [
        f"zwei drei{end}" for end in ("_overlay.mp4", "_masks.zip", ".json")
    ]
    with zipfile.ZipFile(archive) as content:
        names = [f"{index:06d}_{(index + 15 / 16) / 2:.3f}s.png" for index in range(6)]
        assert content.namelist() == names
        assert size_of(io.BytesIO(content.read(names[3]))) == (80, 48)
    assert len(json.loads(report.read_text())["frames"]) == 6
    outputs = connect().view_api(return_format="dict")["named_endpoints"]["/segment"]
    assert [part["parameter_name"] for part in outputs["parameters"]][:2] == ["video", "proposals"]
    assert [part["label"] for part in outputs["returns"]][:3] == ["Overlay", "Summary", "Timeline"]


def test_programs_are_shown_a_sample_that_works(connect):
    """Gradio's own is an address, and addresses are refused here."""
    httpx = pytest.importorskip("httpx")
    facts = httpx.get(f"{connect().src}gradio_api/info?serialize=False").json()
    snippets = facts["named_endpoints"]["/segment"]["code_snippets"]
    assert "video=handle_file('my.mp4')" in snippets["python"]
    assert "/upload -F 'files=@" in snippets["bash"] and "world.mp4" not in str(snippets)


def test_files_of_earlier_visitors_are_not_written_again(connect, tmp_path, tmp_path_factory):
    """Equal results share a file, which somebody may just be downloading."""
    film = str(make_film(tmp_path / "a.mp4", width=72, seconds=2))
    segment(connect(), film)
    kept = [path for path in tmp_path_factory.getbasetemp().glob("page*/files/.page-*/*/*") if path.suffix == ".png"]
    assert len(kept) >= 1 + 4 * 2
    for path in kept:
        path.write_bytes(b"as it was")
    segment(connect(), film)
    assert {path.read_bytes() for path in kept} == {b"as it was"}


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: make_film(path, seconds=3), {}, "The video has 3 seconds; at most 2 are taken here"),
        (lambda path: path.write_bytes(b"no film" * 50), {}, "The video: cannot be read"),
        (lambda path: path.write_bytes(os.urandom(2_100_000)), {}, "exceeds|larger than|maximum"),
        (make_film, {"fps": 9}, "not in the list of choices"),
        (make_film, {"classes": ["cow"]}, "'cow'"),
        (make_film, {"proposals": "sam"}, "sam"),
    ],
)
def test_refusals(connect, tmp_path, make, options, message):
    film = tmp_path / "secret_name.mp4"
    make(film)
    with pytest.raises(Exception, match=message) as caught:
        segment(connect(COMBO_MAX_SECONDS="2", COMBO_MAX_MEGABYTES="2"), str(film), **options)
    if "exceeds" not in str(caught.value):  # said by the client, of its own file
        assert "secret_name" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def live_webm(path):
    """As a browser's MediaRecorder streams it: VP8 and Opus, no duration, no index, parts of unknown length."""
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as film:
        pictures = film.add_stream("libvpx", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 80, 48, "yuv420p"
        sound = film.add_stream("libopus", rate=48000, layout="mono")
        for index in range(20):
            picture = np.full((48, 80, 3), 10 * index, np.uint8)
            film.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            samples = (noise(0.3, index)[:4800] * 3e4).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = 48000
            film.mux(sound.encode(frame))
        film.mux(pictures.encode(None))
        film.mux(sound.encode(None))
    return path


def test_webcam_film_without_duration(connect, tmp_path):
    film = live_webm(tmp_path / "blob.webm")
    with av.open(str(film)) as container:
        assert container.duration is None
    overlay, summary, _, _, files = segment(connect(COMBO_MAX_SECONDS="2", COMBO_MAX_MEGABYTES="2"), str(film))
    shown = probe_media(overlay)
    assert (shown.width, shown.seconds, shown.has_audio) == (80, 2, True) and "damaged" not in summary
    assert len(json.loads(Path(files[2]).read_text())["frames"]) == 2


def test_no_sound_track_is_said(connect, tmp_path):
    summary = segment(connect(), str(make_film(tmp_path / "still.mp4", sound=False)))[1]
    assert "no sound track" in summary


def test_video_is_asked_for(app, tiny_pipe):
    segmenter = app.Segmenter(tiny_pipe, {}, app.Limits())
    with pytest.raises(app.gr.Error, match="Choose or record"):
        segmenter.check(None, "superpixels", 1, [])
    with pytest.raises(app.gr.Error, match="no proposal model 'x'"):
        segmenter.check("film.mp4", "x", 1, [])


def test_an_upload_does_not_go_while_it_is_worked_on(app, tiny_pipe, tmp_path):
    """Who has waited long has an old file."""
    film = make_film(tmp_path / "film.mp4")
    os.utime(film, (0, 0))
    app.Segmenter(tiny_pipe, {}, app.Limits()).check(str(film), "superpixels", 1, [])
    assert time.time() - film.stat().st_mtime < 60


def test_what_went_wrong_stays_on_the_page(app, tiny_pipe, tmp_path):
    """In the place of the summary, once; older results go."""
    (tmp_path / "bad<b>.mp4").write_bytes(b"no video" * 50)
    told = app.Segmenter(tiny_pipe, {}, app.Limits()).run(str(tmp_path / "bad<b>.mp4"), "superpixels", 1, [])
    video, summary, *others = next(told)
    assert summary.startswith("**Not segmented.** The video: cannot be read") and [video, *others] == [None] * 4
    with pytest.raises(app.gr.Error, match="cannot be read"):
        next(told)


@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning:asyncio.base_events")  # of gradio
def test_a_session_keeps_one_component_each(app, tiny_pipe):
    """However often it is updated; gradio adds new ones under new numbers."""
    demo = app.build_demo(tiny_pipe)
    session = app.gr.blocks.SessionState(demo)
    work = next(function for function in demo.fns.values() if function.api_name == "segment")
    before = set(session.blocks_config.blocks), set(session.config_values)
    with ThreadPoolExecutor(1) as pool:  # whose event loop is its own
        for outputs in [(app.gr.skip(),) * app.OUTPUTS, (None, "words", None, None, None)] * 3:
            pool.submit(asyncio.run, demo.postprocess_data(work, list(outputs), session)).result()
    gc.collect()
    assert (set(session.blocks_config.blocks), set(session.config_values)) == before


def test_freed_memory_goes_back_after_each_request(app, tiny_pipe, tmp_path, monkeypatch):
    status = Path("/proc/self/status")
    if not status.exists() or "glibc" not in platform.libc_ver():
        pytest.skip("of glibc")
    resident = lambda: int(re.search(r"VmRSS:\s+(\d+)", status.read_text()).group(1)) // 1024  # noqa: E731
    pieces = [bytes(100_000) for _ in range(2000)]
    kept, pieces = pieces[::50], None
    before = resident()
    app.give_back_memory()
    assert resident() < before - 100 and len(kept) == 40
    calls = []
    monkeypatch.setattr(app, "give_back_memory", lambda: calls.append(1))
    list(app.Segmenter(tiny_pipe, {}, app.Limits()).run(str(make_film(tmp_path / "a.mp4")), "superpixels", 1, []))
    assert calls == [1]


@pytest.mark.parametrize(
    ("done", "total", "shown", "words"),
    [
        (0, 4, 0.05, "window 1 of 4"),
        (3, 4, 0.725, "window 4 of 4"),
        (4, 4, 0.97, "Writing"),
        (2, None, 0.5, "window 3"),
    ],
)
def test_the_bar_is_not_full_before_the_end(app, done, total, shown, words):
    calls = []
    app.layout.show_stage(lambda share, desc: calls.append((share, desc)), done, total)
    assert calls[0][0] == pytest.approx(shown) and words in calls[0][1]


def test_long_videos_have_a_table_and_names_are_plain(app):
    frames = [
        {"timestamp": k + 0.9, "segments": [{"label": label}] if label else []}
        for k, label in enumerate(["dog", "", "cat", "", "dog", "", "cow", "", "dog", "", "cat", "", "dog"])
    ]
    found = SimpleNamespace(result={"frames": frames, "fps": 1}, summary="many", has_audio=True, warnings=[])
    text = app.layout.summary_text(found, Path("a.mp4"))
    assert text.startswith("**dog, cat, cow: 7 stretches of sound**") and "| cow | 6 s | 7 s |" in text
    found.result["frames"] = frames[:3]
    assert app.layout.summary_text(found, Path("a.mp4")) == "**many**"
    assert [app.layout.result_name(Path(name)) for name in ("my <b> ö.mp4", "...", "x" * 99 + ".mp4")] == [
        "my _b_ ö",
        "video",
        "x" * 60,
    ]


def test_who_leaves_frees_the_network(app, tiny_pipe, tmp_path, monkeypatch):
    film = make_film(tmp_path / "long.mp4", seconds=20)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    windows = []
    monkeypatch.setattr(tiny_pipe, "forward", lambda *a, f=tiny_pipe.forward, **k: windows.append(1) or f(*a, **k))
    run = app.Segmenter(tiny_pipe, {}, app.Limits()).run(str(film), "superpixels", 1, [], progress=silent)
    while not windows:  # on a busy machine a second may pass before there is one
        next(run)
    run.close()
    deadline = time.monotonic() + 60
    while any(thread.name == app.WORKER for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 1 <= len(windows) < 4
    assert not list(tmp_path.glob(".page-*"))


def test_the_bar_is_shown_again_after_everything_that_is_yielded(app, tiny_pipe, tmp_path, monkeypatch):
    """A browser hides it at what a function yields, and this one yields every second."""
    monkeypatch.setattr(app, "LOOK_S", 0.01)
    events = []
    run = app.Segmenter(tiny_pipe, {}, app.Limits()).run(
        str(make_film(tmp_path / "film.mp4", seconds=6)), "superpixels", 1, [],
        progress=lambda share, desc: events.append((share, desc)))  # fmt: skip
    for _ in run:
        events.append("yielded")
    assert events[0] == (0, "Reading the video") and events[-1] == "yielded" and events.count("yielded") > 2
    assert all(events[index + 1] != "yielded" for index, event in enumerate(events[:-1]) if event == "yielded")
    shares = [event[0] for event in events if event != "yielded"]
    assert shares == sorted(shares) and shares[-1] == 0.97  # it is full at the end, and not before


@pytest.mark.parametrize("zero", [False, True])
def test_zero_gpu(app, tiny_pipe, tmp_path, monkeypatch, zero):
    """`spaces` is there on every Space, and wraps functions on ZeroGPU only."""
    film, wrapped = make_film(tmp_path / "film.mp4"), []

    def gpu(work):
        def wrapper(*arguments):
            wrapped.append(arguments[1:])
            return work(*arguments, lambda *_, **__: None)

        return wrapper if zero else work

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    module = sys.modules["zero_gpu"]
    monkeypatch.setattr(module, "spaces", SimpleNamespace(GPU=gpu))
    segmenter = app.Segmenter(tiny_pipe, {}, app.Limits())
    work, example = module.page_functions(segmenter)
    if not zero:
        assert (work, example) == (segmenter.run, segmenter.example)
        return
    assert work is example
    video, *_, files = work(str(film), "superpixels", 1, [], 0.5, False)
    assert wrapped == [("superpixels", 1, [], 0.5, False)] and probe_media(video).width == 64
    assert all(Path(name).is_file() and tmp_path in Path(name).parents for name in files)
    with pytest.raises(app.gr.Error, match="no proposal model 'x'"):
        work(str(film), "x", 1, [], 0.0, True)


def test_without_the_package_of_zero_gpu(app, tiny_pipe, monkeypatch):
    monkeypatch.setattr(sys.modules["zero_gpu"], "spaces", None)
    segmenter = app.Segmenter(tiny_pipe, {}, app.Limits())
    assert sys.modules["zero_gpu"].page_functions(segmenter) == (segmenter.run, segmenter.example)


def results(segmenter, film, proposals="superpixels"):
    return list(segmenter.run(str(film), proposals, 1, [], progress=silent))[-1]


def test_who_leaves_a_slow_proposal_model_is_noticed_at_the_next_frame(app, tiny_pipe, tmp_path, monkeypatch):
    film = make_film(tmp_path / "long.mp4", seconds=20)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(app, "LOOK_S", 0.01)
    frames, go_on = [], threading.Event()

    def slow(pictures):
        frames.append(1)
        go_on.wait(30)
        return [np.ones((1, picture.height, picture.width), bool) for picture in pictures]

    slow.name = app.layout.SUPERPIXELS
    monkeypatch.setattr(tiny_pipe.processor, "_generator", slow)
    run = app.Segmenter(tiny_pipe, {}, app.Limits()).run(str(film), "superpixels", 1, [], progress=silent)
    while not frames:
        next(run)
    run.close()
    go_on.set()
    deadline = time.monotonic() + 60
    while any(thread.name == app.WORKER for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(frames) == 1
    assert not list(tmp_path.glob(".page-*"))


def test_masks_of_a_proposal_model_are_kept(app, tiny_pipe, tmp_path, monkeypatch):
    loaded, seen = [], []

    class Squares:
        name = "squares"

        def __init__(self, model):
            loaded.append(model)

        def to_dict(self):
            return {"name": self.name, "model": loaded[0]}

        def __call__(self, frames):
            seen.extend(frames)
            return [np.ones((1, frame.height, frame.width), bool) for frame in frames]

    from combo_hf import proposals

    monkeypatch.setitem(proposals.PROPOSAL_GENERATORS, "squares", Squares)
    film = make_film(tmp_path / "a.mp4", seconds=2)
    segmenter = app.Segmenter(tiny_pipe, {"squares": "folder"}, app.Limits(), str(tmp_path / "kept"))
    first, second = (results(segmenter, film, "squares") for _ in range(2))
    assert loaded == ["folder"] and 1 <= len(seen) <= 2 and first[1] == second[1]
    assert len(list((tmp_path / "kept").rglob("*.npz"))) == len(seen)
    results(segmenter, film)
    assert len(seen) <= 2, "superpixels are another generator"


@pytest.mark.parametrize("error", [RuntimeError, ImportError, OSError, ValueError, MemoryError])
def test_nothing_of_this_machine_is_told(app, tiny_pipe, tmp_path, monkeypatch, caplog, error):
    film = make_film(tmp_path / "a.mp4")

    def broken(frames):
        raise error("/secret/place/weights.bin is broken")

    broken.name = app.layout.SUPERPIXELS
    segmenter = app.Segmenter(tiny_pipe, {"sam": "/secret/place"}, app.Limits())
    with pytest.raises(app.gr.Error, match="'sam' cannot be used here") as caught:
        results(segmenter, film, "sam")
    assert "secret" not in str(caught.value) and "/secret/place" in caplog.text
    caplog.clear()
    monkeypatch.setattr(tiny_pipe.processor, "_generator", broken)
    with pytest.raises(app.gr.Error, match="has been noted") as caught:
        results(segmenter, film)
    assert "secret" not in str(caught.value) and "is broken" in caplog.text


@pytest.mark.slow
def test_twenty_users_at_once(connect, tmp_path):
    """Films of different widths: nobody gets somebody else's."""
    shared = connect()
    films = {64 + 4 * index: make_film(tmp_path / f"{index}.mp4", 64 + 4 * index) for index in range(20)}

    def use(width):
        overlay, summary, *_ = segment(shared, str(films[width]))
        return width, probe_media(overlay).width, bool(summary)

    with ThreadPoolExecutor(20) as users:
        assert list(users.map(use, films)) == [(width, width, True) for width in films]


def load_program():
    """tests/programs/space_load.py as a module."""
    spec = importlib.util.spec_from_file_location("space_load", ROOT / "tests" / "programs" / "space_load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    return load


def test_the_example(serve, tmp_path):
    """What the bundled weights know: pressed twice, the second time it comes from gradio's cache."""
    httpx = pytest.importorskip("httpx")
    load = load_program()
    address = serve()
    config = httpx.get(f"{address}/config").json()
    dataset = next(part["id"] for part in config["components"] if part["type"] == "dataset")
    pressed = next(part["id"] for part in config["dependencies"] if [dataset, "click"] in part["targets"])
    function = next(part["id"] for part in config["dependencies"] if part["trigger_after"] == pressed)
    for _ in range(2):
        with load.Visitor(SimpleNamespace(address=address)) as visitor:
            body = {"data": [0], "fn_index": function, "session_hash": visitor.session}
            visitor.client.post("/queue/join", json=body).raise_for_status()
            last = next(message for message in visitor.messages() if message["msg"] == "process_completed")
            assert last["success"], last
            films = [part for part in last["output"]["data"] if "demo_real_overlay.mp4" in str(part)]
            url = load.find_path(films[0])
            (tmp_path / "film.mp4").write_bytes(visitor.client.get(url).raise_for_status().content)
        assert (probe_media(tmp_path / "film.mp4").has_audio, "dog" in str(last)) == (True, True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_load_leavers_and_a_full_queue():
    program = ROOT / "tests" / "programs" / "space_load.py"
    options = "--users 4 --requests 8 --leavers 3 --queue 4 --delay 0.1 --json".split()
    # Loops that gradio makes at its start, for locks, and leaves to the collector; asyncio closes them only if it may
    # warn first. Any other warning is an error, which the page would write as a traceback.
    not_ours = "ignore:unclosed event loop:ResourceWarning:asyncio.base_events"
    settings = {**os.environ, "PYTHONWARNINGS": f"{os.environ['PYTHONWARNINGS']},{not_ours}"}
    assert settings["PYTHONWARNINGS"].startswith("error,")
    done = subprocess.run(
        [sys.executable, str(program), *options], capture_output=True, text=True, timeout=500, env=settings
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert (found["requests"], found["wrong"], found["tracebacks"]) == (8, [], 0)
    assert found["longest_silence_s"] < 20  # a word every 15 s
    leavers, full = found["leavers"], found["full"]
    assert leavers["was_busy"] and leavers["served"] and leavers["left"] == []
    assert leavers["next_visitor_s"] < 20  # their work would have taken longer
    assert full["joined"] == 5 and full["refused"] == 2 and full["served_afterwards"]
    assert full["status"] == [503] and "Queue is full. Max size is 4" in full["told"][0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"COMBO_MODEL": "nosuch/folder/x"}, "no such folder"),
        ({"COMBO_MAX_SECONDS": "-1"}, "COMBO_MAX_SECONDS: wanted a whole number above 0, got '-1'."),
    ],
)
def test_wrong_settings_are_one_line(app, monkeypatch, capsys, settings, message):
    for name, value in {**settings, "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "space" / "app.py")])
    monkeypatch.setattr(app.signal, "signal", lambda *arguments: None)
    assert app.run_script(app.main) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("app.py: error: ") and said.count("\n") == 1


def test_files_of_the_space_fit_the_package():
    requirement = (ROOT / "space" / "requirements.txt").read_text()
    assert f"combo_hf-{combo_hf.__version__}-" in requirement
    front = (ROOT / "space" / "README.md").read_text().split("---")[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    gradio = next(entry for entry in project["optional-dependencies"]["space"] if entry.startswith("gradio"))
    major = gradio.split(">=")[1].split(".")[0]
    assert f"sdk_version: {major}." in front and "app_file: app.py" in front


PLACES = {
    "http://127.0.0.1:1/video.mp4": "Addresses are not fetched here",
    "https://host.example/video.mp4": "Addresses are not fetched here",
    "http://[::1]:1/video.mp4": "Addresses are not fetched here",
    "file:///etc/hostname": ".",
    "ftp://127.0.0.1/video.mp4": ".",
    "/etc/hostname": ".",
    "../../../../../etc/hostname": ".",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["video", "proposals", "fps", "classes"])
def test_places_that_are_not_the_visitors(connect, name, place):
    """What a client that does not upload may name in place of a file, in any input."""
    client = connect(COMBO_MAX_SECONDS="2", COMBO_MAX_MEGABYTES="2")
    for data in ({"path": place}, {"path": place, "url": place}):
        file = {**data, "meta": {"_type": "gradio.FileData"}}
        values = {"video": None, "proposals": "superpixels", "fps": 1, "classes": []}
        values[name] = {"video": file, "subtitles": None} if name == "video" else file
        with pytest.raises(Exception, match=PLACES[place]) as caught:
            client.predict(**values, api_name="/segment")
        assert "root:" not in str(caught.value)


def test_no_input_is_fetched(serve, tiny_folder):
    """Also not by the hidden function behind the example, and not after the page's components were updated."""
    httpx = pytest.importorskip("httpx")
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_address[1]}/video.mp4"
        address = serve()
        load = load_program()
        file = {"path": place, "url": place, "meta": {"_type": "gradio.FileData"}}
        ends = {"process_completed", "unexpected_error", "close_stream"}
        functions = [part for part in httpx.get(f"{address}/config").json()["dependencies"] if part["backend_fn"]]
        for part in functions:
            with load.Visitor(SimpleNamespace(address=address)) as visitor:
                body = {"data": [file] * len(part["inputs"]), "fn_index": part["id"], "session_hash": visitor.session}
                if visitor.client.post("/queue/join", json=body).is_success:
                    next(message for message in visitor.messages() if message["msg"] in ends)
        server.shutdown()
    assert len(functions) >= 3 and asked == []


FORM = {"files": {"video": ("a.mp4", b"#EXTM3U", "video/mp4")}}
CLOSED = {  # what gradio would do with it -> the request, and how it is answered
    "starts ffmpeg": ("POST", "/gradio_api/process_recording", FORM, 404),
    "keeps what is cut off elsewhere": ("POST", "/gradio_api/component_server", FORM, 404),
    "fetches": ("GET", "/gradio_api/file=https://host.example/a.mp4", {}, 404),
    "fetches at a proxy": ("GET", "/gradio_api/proxy=https://a.hf.space/x", {}, 404),
    "asks the Hub": ("GET", "/gradio_api/run-history/buckets", {"headers": {"authorization": "Bearer hf_x"}}, 404),
    "tells of itself": ("GET", "/monitoring", {}, 404),
    "takes it into memory": ("POST", "/gradio_api/queue/join", {"content": b"[" * 1_500_000}, 413),
    "takes it into memory by and by": ("POST", "/gradio_api/queue/join", {"content": [b"[" * 600_000] * 4}, None),
    "takes many videos at once": ("POST", "/gradio_api/upload", {"files": [("files", bytes(1_500_000))] * 3}, 413),
}


@pytest.mark.parametrize("name", CLOSED)
def test_requests_that_the_page_does_not_need(serve, tiny_folder, name):
    httpx = pytest.importorskip("httpx")
    address = serve(COMBO_MODEL=tiny_folder, COMBO_MAX_SECONDS="2", COMBO_MAX_MEGABYTES="2")
    method, place, request, status = CLOSED[name]
    answer = httpx.request(method, address + place, **request)
    assert answer.status_code == status if status else answer.is_error
    small = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.mp4", b"x")})
    assert small.is_success and httpx.get(f"{address}/gradio_api/file={small.json()[0]}").content == b"x"


def test_no_upload_is_taken_where_the_disk_is_full(app, tmp_path, monkeypatch):
    limits = sys.modules["limits"]
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9 - 1))
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"x"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/gradio_api/upload", "headers": [(b"content-length", b"1")]}
    with pytest.raises(StopIteration):  # its end; a loop of asyncio would drop the one that gradio has made
        limits.Gate(None, 1, tmp_path)(scope, receive, send).send(None)
    assert sent[0]["status"] == 503 and b"no room" in sent[1]["body"]


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and "examples" not in path.parts)


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def cut_upload(address):
    """A connection that ends in the middle of an upload."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: page\r\nContent-Length: 9000000\r\n"
        head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        head += b'Content-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        connection.sendall(head + b"x" * 3_000_000)


def test_nothing_of_a_visitor_stays(serve, tmp_path, tiny_folder, tmp_path_factory):
    """Uploads, cut uploads, results and pictures go with their time, also after other updates of the same session."""
    gradio_client = pytest.importorskip("gradio_client")
    address = serve(COMBO_MODEL=str(tiny_folder), COMBO_KEEP_SECONDS="4")
    folder = serve.folders[address]
    client = gradio_client.Client(address, verbose=False, download_files=str(tmp_path / "mine"))
    segment(client, str(make_film(tmp_path / "one.mp4", width=64)))
    segment(client, str(make_film(tmp_path / "two.mp4", width=72)))
    cut_upload(address)
    assert len(files_below(folder)) > 10
    assert until(lambda: [path for path in files_below(folder) if path.name != "log.txt"] == []), files_below(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process")
def test_a_start_removes_what_a_killed_page_left(app, tmp_path):
    """Folders of processes that run stay."""
    program = (
        f"{BARE}import time; sys.path.insert(0, sys.argv[1]); from housekeeping import Storage, temporary_folder;"
        "s = Storage(3600, sys.argv[2]); (s.folder / 'a.mp4').write_bytes(b'x'); (temporary_folder() / 'b').touch();"
        "print('ready', flush=True); time.sleep(600)"
    )
    places = [str(ROOT / "space"), str(tmp_path / "files")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pages = [
        subprocess.Popen([sys.executable, "-c", program, *places], stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(2)
    ]
    try:
        assert [page.stdout.readline() for page in pages] == ["ready\n"] * 2
        assert len(files_below(tmp_path)) == 4
        pages[0].kill()
        pages[0].wait()
        pages.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *places], stdout=subprocess.PIPE, env=environment, text=True
            )
        )
        assert pages[-1].stdout.readline() == "ready\n"
        left = {path.relative_to(tmp_path).parts[-2].split("-")[2] for path in files_below(tmp_path)}
        assert left == {str(pages[1].pid), str(pages[2].pid)}
    finally:
        for page in pages:
            page.kill()
            page.wait()
            page.stdout.close()
