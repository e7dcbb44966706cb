"""The frames of a video at regular times, decoded by FFmpeg through PyAV.

Times count from the first frame of the video. Frame k is the one on the screen at k / R seconds for
R frames per second: the last one whose time is not later, as a player shows it. It ends when the
last frame has been on the screen for its duration.
"""

import itertools
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from absl import logging

import files
from utils import InputError

# FFmpeg's own assumption for streams without times and rate.
_DEFAULT_RATE = 25


class VideoError(Exception):
    """A video that cannot be decoded, or not from some point on."""


def check_decoder() -> None:
    """Checks that PyAV is installed.

    Raises:
        InputError: if it is not.
    """
    _import_av()


def read_frames(
    path: str, image_size: int, frames_per_second: float = 1.0, num_threads: int = 1
) -> Iterator[np.ndarray]:
    """Yields the frames of a video at regular times.

    Each frame is resized to a square as a whole, without cropping, and rotated upright if the file
    says how.

    Args:
        path: file that FFmpeg can read.
        image_size: height and width of the images in pixels.
        frames_per_second: images per second of video.
        num_threads: threads that decode.

    Yields:
        uint8 RGB `[image_size, image_size, 3]`.

    Raises:
        VideoError: if the file has no video or cannot be decoded, perhaps after some frames.
    """
    av = _import_av()
    try:
        with _open(av, path) as container:
            stream = _video_stream(container)
            stream.codec_context.thread_type = "AUTO"
            stream.codec_context.thread_count = num_threads
            timed = timed_frames(container.decode(stream), stream.guessed_rate or _DEFAULT_RATE)
            num_images = 0
            for frame in frames_on_screen(timed, frames_per_second):
                yield _image(frame, image_size)
                num_images += 1
            _check_end(stream, num_images / frames_per_second)
    # Some corrupt files lead to errors inside PyAV, such as a stream that it does not know.
    except (av.FFmpegError, OSError, ValueError, LookupError, *files.REMOTE_ERRORS) as error:
        raise VideoError(getattr(error, "strerror", None) or str(error)) from error


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"reading videos needs PyAV: {error}. Run: pip install '.[video]'"
        ) from error
    return av


def _open(av, path):
    """Opens a file, from which FFmpeg then follows no address to another machine."""
    # With "file:", a colon in the path names no protocol.
    source = files.open_binary(path) if files.is_remote(path) else f"file:{path}"
    # From version 19 on, PyAV always accepts titles that are not UTF-8.
    is_older = int(av.__version__.partition(".")[0]) < 19
    tolerance = {"metadata_errors": "ignore"} if is_older else {}
    return av.open(source, options={"protocol_whitelist": "file"}, **tolerance)


def _video_stream(container):
    """Returns the first video stream that is not the picture of an audio file."""
    for stream in container.streams.video:
        if not stream.disposition & stream.disposition.attached_pic:
            if stream.codec_context is None:
                raise VideoError("FFmpeg has no decoder for it")
            return stream
    raise VideoError("no video stream")


def _check_end(stream, seconds):
    """Finds files that were cut off, which FFmpeg reads without an error."""
    expected = float((stream.duration or 0) * stream.time_base)
    if seconds < expected - 1:
        raise VideoError(f"it ends after {seconds:.0f} of {expected:.0f} s")


def timed_frames(
    frames: Iterable[Any], rate: Fraction | int
) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """Yields time, duration and frame for decoded frames, in their order.

    A frame without a time, or with one that is not later than the previous frame's, follows the
    previous frame without a gap. Such times are missing in raw streams, wrong in AVI files with
    B-frames, and go back where recordings were joined.

    Args:
        frames: PyAV's frames in the order in which a player shows them.
        rate: frames per second, for frames without a duration.
    """
    start = None
    time = duration = Fraction(0)
    for frame in frames:
        stamp = None if frame.pts is None else frame.pts * frame.time_base
        if start is None:
            start = stamp or Fraction(0)
        elif stamp is not None and stamp - start > time:
            time = stamp - start
        else:
            time += duration
        duration = frame.duration * frame.time_base if frame.duration else 1 / Fraction(rate)
        yield time, duration, frame


def frames_on_screen(
    timed: Iterable[tuple[Fraction, Fraction, Any]], frames_per_second: float
) -> Iterator[Any]:
    """Yields the frame on the screen at the times k / frames_per_second, k = 0, 1, ...

    Args:
        timed: time, duration and frame, by increasing time from 0 on.
        frames_per_second: any positive number.
    """
    interval = 1 / Fraction(str(frames_per_second))
    due = Fraction(0)
    shown, end = None, Fraction(0)
    for time, duration, frame in timed:
        while due < time:
            yield shown
            due += interval
        shown, end = frame, time + duration
    while due < end:
        yield shown
        due += interval


def _image(frame, image_size):
    """Returns a frame as an array, upright."""
    image = frame.to_ndarray(width=image_size, height=image_size, format="rgb24")
    return np.rot90(image, round(frame.rotation / 90))


# --- Several videos -------------------------------------------------------------------------------


class VideoDecoder:
    """Decodes several videos at the same time, in threads.

    Iterating yields pairs of the number of a video in `paths` and an image, uint8 `[H, W, 3]`. The
    images of a video come in order, mixed with those of other videos, and None follows its last.

    A video that cannot be decoded has no image, and one that cannot be decoded any further ends
    there. Both are logged. Memory does not grow with the number of videos or their length.

    Args:
        paths: files to decode.
        image_size: height and width of the images in pixels.
        frames_per_second: images per second of video.
        max_frames: images per video; later ones are left out.
        buffer_size: number of images that wait to be read.

    Attributes:
        skipped: why a video has no image, by path.
        damaged: why a video ends early, by path.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        image_size: int,
        frames_per_second: float,
        max_frames: int,
        buffer_size: int,
    ):
        self.paths = paths
        self.skipped: dict[str, str] = {}
        self.damaged: dict[str, str] = {}
        self._image_size = image_size
        self._frames_per_second = frames_per_second
        self._max_frames = max_frames
        self._decoded: queue.Queue = queue.Queue(buffer_size)
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray | None]]:
        num_cpus = len(os.sched_getaffinity(0))
        num_running = min(len(self.paths), num_cpus)
        videos = iter(enumerate(self.paths))
        for _ in range(num_running):
            arguments = (videos, num_cpus // num_running)
            threading.Thread(target=self._decode, args=arguments, daemon=True).start()
        try:
            while num_running:
                found = self._decoded.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    num_running -= 1
                else:
                    yield found
        finally:
            # Threads may wait for space in the queue.
            self._stopped.set()
            while num_running:
                num_running -= self._decoded.get() is None

    def _decode(self, videos, num_threads):
        """Decodes one video after another; runs in several threads."""
        try:
            for number, path in videos:
                for image in self._images(path, num_threads):
                    self._decoded.put((number, image))
                    if self._stopped.is_set():
                        return
                self._decoded.put((number, None))
        except BaseException as error:
            self._decoded.put(error)
        finally:
            self._decoded.put(None)

    def _images(self, path, num_threads):
        """Yields the images of a video up to the first error."""
        images = read_frames(path, self._image_size, self._frames_per_second, num_threads)
        num_images = 0
        try:
            for image in itertools.islice(images, self._max_frames):
                yield image
                num_images += 1
        except VideoError as error:
            (self.damaged if num_images else self.skipped)[path] = str(error)
            logging.warning("%s: decoding stops after %d images: %s", path, num_images, error)
