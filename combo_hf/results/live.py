"""Pictures and sound as they come, from a camera or a pipe: what sounds where, a second later, at constant memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from combo_hf.feature_extraction_combo import to_mono
from combo_hf.image_processing_combo import to_rgb
from combo_hf.media_combo import SAMPLING_RATE, Clip
from combo_hf.media_combo_shown import FRAME_OFFSET, check_fps


if TYPE_CHECKING:
    from PIL import Image

    from combo_hf.pipeline_combo import AudioVisualSegmentationPipeline


AHEAD = 10  # s by which pictures may be ahead of the sound, or the sound ahead of the pictures


class LiveSegmenter:
    """Segments what is pushed into it; gives what the pipeline gives for the same video.

    A frame is segmented when the sound of its second is there and a later picture has come; pushing does the work. As
    in a file, seconds are counted in windows of `config.num_frames`: it keeps the sound of the current one.

    Args:
        pipe: [`AudioVisualSegmentationPipeline`].
        fps: frames per second to segment, a whole number; picture j of second k is the one at k + (j + 15/16) / fps.
        sampling_rate: of the sound, in Hz. At 16000 results are the pipeline's; other rates are resampled second by
            second.
        has_audio: False: no sound will come, silence is used.
        **options: of the pipeline: `classes`, `threshold`, `min_area`, `return_maps`.

    Attributes:
        delay: longest time in s between a picture that is segmented and its result, without the time of computing: a
            second, or, where the network mixes the sound of a clip (`audio_query_layout="official"`), a clip.

    Raises:
        ValueError: an impossible rate.

    Example:
        >>> live = combo_hf.LiveSegmenter(combo_hf.load_pipeline())
        >>> frames = []
        >>> for k in range(50):  # 25 pictures a second, and their sound
        ...     frames += live.push_sound(np.zeros(640, np.float32))
        ...     frames += live.push_picture(k / 25, np.zeros((48, 64, 3), np.uint8))
        >>> [frame["timestamp"] for frame in frames + live.close()]
        [0.9375, 1.9375]
    """

    def __init__(
        self,
        pipe: AudioVisualSegmentationPipeline,
        fps: int = 1,
        sampling_rate: int = SAMPLING_RATE,
        has_audio: bool = True,
        **options: Any,
    ) -> None:
        if not isinstance(check_fps(fps), int) or not sampling_rate > 0:
            raise ValueError(
                f"wanted a whole number of frames per second and a rate, got {fps!r} and {sampling_rate}."
            )
        config = pipe.model.config
        self.delay = 1 if config.audio_query_layout == "per_frame" else config.num_frames
        self._pipe, self._fps, self._options = pipe, int(fps), options
        self._rate, self._has_audio = int(sampling_rate), has_audio
        self._length = config.num_frames
        self._second = 0  # the next one
        self._taken: list[Image.Image] = []  # pictures of it, and of later ones
        self._sound = np.zeros(0, np.float32)  # from the beginning of its window on
        self._shown: Image.Image | None = None
        self._last, self._step = -math.inf, 0.0  # time of the last picture, and how long the one before was shown

    def push_picture(self, time: float, picture: Any) -> list[dict[str, Any]]:
        """Take the next picture.

        Args:
            time: in s from the first picture on.
            picture: PIL image, or RGB `(H, W, 3)` uint8.

        Returns:
            The frames that are finished with it, as in the pipeline's result.

        Raises:
            ValueError: a time that is not later than the last one, no picture, or no sound for ten seconds.
        """
        if not self._last < time < math.inf:
            raise ValueError(f"time: wanted one later than {self._last} s, got {time}.")
        shown = to_rgb(picture, "picture")
        if self._shown is not None:
            self._step = time - self._last
            self._take_until(time)
        self._last, self._shown = float(time), shown
        frames = self._finished()
        if len(self._taken) > (AHEAD + self.delay) * self._fps:
            raise ValueError(f"the pictures are {AHEAD} s ahead of the sound; push it, or say has_audio=False.")
        return frames

    def push_sound(self, samples: Any) -> list[dict[str, Any]]:
        """Take the next samples; the first one belongs to the time 0.

        Args:
            samples: `(N,)` or with channels, as the pipeline takes them.

        Returns:
            The frames that are finished with them.

        Raises:
            ValueError: samples that are none, or no picture for ten seconds.
        """
        self._sound = np.concatenate([self._sound, to_mono(samples).numpy().astype(np.float32)])
        frames = self._finished()
        if len(self._sound) > (AHEAD + self._length) * self._rate:
            raise ValueError(f"the sound is {AHEAD} s ahead of the pictures; push them.")
        return frames

    def close(self, end: float | None = None) -> list[dict[str, Any]]:
        """The frames that are left; a last second counts if more than half of it is there, missing sound is silence.

        Args:
            end: of the last picture in s; default: it is shown for as long as the one before.
        """
        if self._shown is None:
            return []
        end = self._last + self._step if end is None else end
        seconds = max(1, math.ceil(end - 0.5)) - self._second
        self._taken = self._taken[: seconds * self._fps]
        self._taken += [self._shown] * (seconds * self._fps - len(self._taken))
        samples = (self._second % self._length + seconds) * self._rate
        self._sound = np.pad(self._sound, (0, max(0, samples - len(self._sound))))
        frames = self._finished()
        left = len(self._taken) // self._fps
        return frames + (self._segment(left) if left else [])

    def _take_until(self, time: float) -> None:
        """The picture on the screen stands for every moment before `time` that has none yet."""
        assert self._shown is not None
        while True:
            second, place = divmod(len(self._taken), self._fps)
            if time <= self._second + second + (place + FRAME_OFFSET) / self._fps:
                return
            self._taken.append(self._shown)

    def _finished(self) -> list[dict[str, Any]]:
        frames: list[dict[str, Any]] = []
        while len(self._taken) >= self.delay * self._fps:
            if self._has_audio and len(self._sound) < (self._second % self._length + self.delay) * self._rate:
                break
            frames += self._segment(self.delay)
        return frames

    def _segment(self, seconds: int) -> list[dict[str, Any]]:
        """The next so many seconds, which end before the window does or with it."""
        count, before = seconds * self._fps, self._second % self._length
        samples = (before + seconds) * self._rate
        clip = Clip(
            frames=self._taken[:count],
            waveform=np.pad(self._sound[:samples], (0, max(0, samples - len(self._sound)))),
            sampling_rate=self._rate,
            times=self._second + (np.arange(count) + FRAME_OFFSET) / self._fps,
            start=float(self._second - before),
            index=0,
            is_last=True,
            has_audio=self._has_audio,
        )
        self._taken, self._second = self._taken[count:], self._second + seconds
        if not self._second % self._length:
            self._sound = self._sound[samples:]
        found: list[dict[str, Any]] = self._pipe(clip, fps=self._fps, **self._options)["frames"]
        return found
