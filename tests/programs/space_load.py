"""Many users of the web page at once, and a slow model: answers for all, memory, what becomes of who leaves.

    python tests/programs/space_load.py --users 50 --requests 200 [--delay 0.2] [--keep 60] [--json]

Starts the page (space/app.py) on this machine, with a tiny network of random weights that waits `--delay` seconds for
every window, and visits it at 127.0.0.1 by the protocol that browsers use. Phases:

1. users: each sends its share of the requests one after the other, a film of its own width each time, and looks
   whether the video it gets back has that width. While they wait: the longest silence of the page towards a visitor,
   and how long the page itself takes to load (asked once a second).
2. leavers: visitors close the connection, the first while its long film is being segmented. How long the next visitor
   waits for the answer, and which files of theirs remain.
3. full queue: visitors beyond the limit; what they are told.

Memory is the resident set of the page's process, and files are those of visitors on the disk, both evenly over the
requests; a visitor's files go after `--keep` seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package of this clone

API = "/gradio_api"
QUEUE = 64  # the page's limit
SECONDS = 2  # of a film
MEASUREMENTS = 24  # of the memory, evenly over the requests: 600 requests give one every 25
LONG = 55  # of one that takes long: 55 windows


def serve(delay: float) -> None:
    """The page, with a model that waits."""
    sys.path.insert(0, str(ROOT / "space"))
    spec = importlib.util.spec_from_file_location("combo_space_app", ROOT / "space" / "app.py")
    app = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    import torch

    import combo_hf

    torch.set_num_threads(1)
    pipe = combo_hf.load_pipeline(os.environ["COMBO_MODEL"], device="cpu")
    forward = pipe.forward

    def slow(*inputs: Any, **options: Any) -> Any:
        time.sleep(delay)
        return forward(*inputs, **options)

    pipe.forward = slow
    app.launch(app.build_demo(pipe), server_name="127.0.0.1")


def write_model(folder: Path) -> None:
    """A tiny network with random weights."""
    import torch

    import combo_hf

    torch.manual_seed(0)
    model = combo_hf.ComboForAudioVisualSegmentation(combo_hf.ComboConfig.from_preset("tiny"))
    model.save_pretrained(folder)
    size = {"height": 128, "width": 128}
    combo_hf.ComboProcessor(combo_hf.ComboImageProcessor(size=size)).save_pretrained(folder)


def film(folder: Path, width: int, seconds: int = SECONDS) -> Path:
    """A film of noise whose width says whose it is."""
    from combo_hf.results.video import write_video

    path = folder / f"{width}-{seconds}.mp4"
    if not path.exists():
        chance = np.random.default_rng(width)
        frames = [chance.integers(0, 256, (48, width, 3), dtype=np.uint8) for _ in range(4 * seconds)]
        write_video(path, frames, 4, chance.standard_normal(16000 * seconds).astype(np.float32) * 0.1)
    return path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Page:
    """The page as a process, and its files."""

    def __init__(self, folder: Path, delay: float, queue: int, keep: int) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        (folder / "tmp").mkdir()
        write_model(folder / "model")
        environment = {**os.environ, "COMBO_MODEL": str(folder / "model"), "TMPDIR": str(folder / "tmp")}
        environment |= {
            "COMBO_MAX_QUEUE": str(queue),
            "COMBO_KEEP_SECONDS": str(keep),
            "GRADIO_TEMP_DIR": str(folder / "files"),
        }
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"GRADIO_SERVER_PORT": str(free_port())}  # gradio leaves a socket open for each it finds taken
        command = [sys.executable, __file__, "--serve", str(delay)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        self.address = self._address()
        with httpx.Client() as client:
            config = client.get(f"{self.address}/config").json()
        self.function = next(part["id"] for part in config["dependencies"] if part["api_name"] == "segment")

    def _address(self) -> str:
        for _ in range(1200):
            found = re.search(r"http://127[\d.]+:\d+", self.log.read_text())
            if found:
                return found.group()
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"the page did not start:\n{self.log.read_text()[-3000:]}")

    def memory(self) -> float:
        """Resident set in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024

    def files(self) -> int:
        """Uploads, results and pictures on the disk."""
        return sum(len(names) for place in ("tmp", "files") for _, _, names in os.walk(self.folder / place))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class Visitor:
    """One visitor with a session of their own."""

    def __init__(self, page: Page) -> None:
        self.page, self.session, self.silence = page, secrets.token_hex(6), 0.0
        self.client = httpx.Client(base_url=page.address + API, timeout=httpx.Timeout(30, read=120))

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.client.close()

    def join(self, path: Path, fps: int = 1) -> httpx.Response:
        """Upload a film and queue for it."""
        with path.open("rb") as file:
            answer = self.client.post("/upload", files={"files": (path.name, file, "video/mp4")})
        stored = {"path": answer.raise_for_status().json()[0], "meta": {"_type": "gradio.FileData"}}
        body = {
            "data": [stored, "superpixels", fps, [], 0.0, True],
            "fn_index": self.page.function,
            "session_hash": self.session,
        }
        return self.client.post("/queue/join", json=body)

    def messages(self) -> Any:
        """What the page says, message by message; `silence` is the longest pause."""
        with self.client.stream("GET", "/queue/data", params={"session_hash": self.session}) as stream:
            last = time.monotonic()
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    self.silence, last = max(self.silence, time.monotonic() - last), time.monotonic()
                    yield json.loads(line[5:])

    def segment(self, path: Path) -> dict[str, Any]:
        """The last message of a request.

        Raises:
            RuntimeError: refused, or no answer.
        """
        self.join(path).raise_for_status()
        for message in self.messages():
            if message["msg"] == "process_completed":
                return message
        raise RuntimeError("the page closed the connection without an answer")


def find_path(value: Any) -> str | None:
    """The first file that an output names."""
    if isinstance(value, dict):
        return value.get("url") or next(filter(None, map(find_path, value.values())), None)
    return None


def width_of_answer(visitor: Visitor, message: dict[str, Any], folder: Path) -> int:
    """Width of the video in a result; 0 if there is none."""
    from combo_hf.media_combo import probe_media

    url = find_path(message["output"]["data"][0]) if message["success"] else None
    if url is None:
        return 0
    path = folder / f"{secrets.token_hex(6)}.mp4"
    path.write_bytes(visitor.client.get(url).raise_for_status().content)
    width = probe_media(path).width
    path.unlink()
    return width


def load(page: Page, films: Path, users: int, requests: int) -> dict[str, Any]:
    """Phase 1."""
    done, wrong, silences, pages, memory, files, lock = 0, [], [], [], [], [], threading.Lock()
    stop = threading.Event()

    def use(number: int) -> None:
        nonlocal done
        with Visitor(page) as visitor:
            for turn in range(number, requests, users):
                width = 64 + 2 * (turn % 60)
                with lock:  # made once
                    path = film(films, width)
                try:
                    found = width_of_answer(visitor, visitor.segment(path), films)
                except Exception as error:  # counted, whatever it is
                    found = repr(error)
                with lock:
                    done += 1
                    wrong.extend([] if found == width else [f"request {turn}: wanted {width}, got {found}"])
                    if done % max(1, requests // MEASUREMENTS) == 0:
                        memory.append(page.memory())
                        files.append(page.files())
            silences.append(visitor.silence)

    def look() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.wait(1):
                started = time.monotonic()
                client.get(page.address).raise_for_status()
                pages.append(time.monotonic() - started)

    watcher = threading.Thread(target=look)
    watcher.start()
    started = time.monotonic()
    with ThreadPoolExecutor(users) as pool:
        list(pool.map(use, range(users)))
    stop.set()
    watcher.join()
    return {
        "requests": done,
        "wrong": wrong,
        "seconds": round(time.monotonic() - started, 1),
        "longest_silence_s": round(max(silences), 1),
        "page_median_s": round(float(np.median(pages)), 3) if pages else None,
        "page_slowest_s": round(max(pages), 3) if pages else None,
        "memory_mb": [round(value, 1) for value in memory],
        "files": files,
    }


def leave(page: Page, films: Path, leavers: int) -> dict[str, Any]:
    """Phase 2."""
    visitors = [Visitor(page) for _ in range(leavers)]
    streams = []
    for visitor in visitors:
        visitor.join(film(films, 64, LONG), fps=5).raise_for_status()
        streams.append(visitor.messages())
    busy = any(message["msg"] == "process_generating" for message in streams[0])
    for stream in streams[1:]:
        next(stream)
    for visitor, stream in zip(visitors, streams, strict=True):
        stream.close()
        visitor.client.close()
    started = time.monotonic()
    with Visitor(page) as last:
        message = last.segment(film(films, 66))
    waited = time.monotonic() - started
    for _ in range(50):  # the page is just removing the last one's
        folders = [path.name for path in (page.folder / "tmp").glob(".page-*")]
        time.sleep(0.1 if folders else 0)
    return {"leavers": leavers, "was_busy": busy, "next_visitor_s": round(waited, 1), "served": message["success"],
            "left": folders}  # fmt: skip


def overfill(page: Page, films: Path, queue: int) -> dict[str, Any]:
    """Phase 3: one more than the page works on and lets wait, then all leave."""
    visitors, answers = [Visitor(page) for _ in range(queue + 3)], []
    path = film(films, 64, LONG)
    streams = []
    for visitor in visitors:
        answers.append(visitor.join(path, fps=5))
        if answers[-1].status_code == 200:
            streams.append(visitor.messages())
            next(streams[-1])
    refused = [answer for answer in answers if answer.status_code != 200]
    for stream in streams:
        stream.close()
    for visitor in visitors:
        visitor.client.close()
    with Visitor(page) as last:
        served = last.segment(film(films, 66))["success"]
    return {
        "joined": len(answers) - len(refused),
        "refused": len(refused),
        "status": sorted({answer.status_code for answer in refused}),
        "told": sorted({answer.json()["detail"] for answer in refused}),
        "served_afterwards": served,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--leavers", type=int, default=10)
    parser.add_argument("--queue", type=int, default=QUEUE, help=f"the page's limit, default {QUEUE}")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds the model waits for each window")
    parser.add_argument("--keep", type=int, default=60, help="seconds that files of visitors stay, default 60")
    parser.add_argument("--json", action="store_true", help="one line for programs")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        return serve(arguments.serve)
    work = Path(tempfile.mkdtemp(prefix="combo-load-"))
    (work / "films").mkdir()
    page = Page(work, arguments.delay, arguments.queue, arguments.keep)
    try:
        found = {"memory_at_start_mb": round(page.memory(), 1)}
        found |= load(page, work / "films", arguments.users, arguments.requests)
        found["leavers"] = leave(page, work / "films", arguments.leavers)
        found["full"] = overfill(page, work / "films", arguments.queue)
        found["memory_at_end_mb"] = round(page.memory(), 1)
        found["tracebacks"] = page.log.read_text().count("Traceback")
    finally:
        page.close()
        log = page.log.read_text()
        shutil.rmtree(work, ignore_errors=True)
    if found["tracebacks"]:
        print(log[-3000:], file=sys.stderr)
    print(json.dumps(found, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
