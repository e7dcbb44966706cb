"""Frames come from the documented times, whatever the timestamps of the file."""

import contextlib
import itertools
import socket
import sys
import threading
import types
from fractions import Fraction

import numpy as np
import pytest

from own_data.video_frames import (
    VideoDecoder,
    VideoError,
    check_decoder,
    frames_on_screen,
    read_frames,
    timed_frames,
)
from sample_videos import (
    cut_off,
    damage,
    turn_clockwise,
    write_frames,
    write_hd_color,
    write_levels,
    write_sound,
)
from utils import InputError

LEVELS = [4 * k for k in range(60)]


def levels(path, frames_per_second=1.0, **options):
    """Returns the mean gray level of each frame that is read."""
    return [image.mean() for image in read_frames(str(path), 16, frames_per_second, **options)]


def frame(pts, duration=1, time_base=Fraction(1, 10)):
    return types.SimpleNamespace(pts=pts, duration=duration, time_base=time_base)


def times_of(frames, rate=25):
    return [float(time) for time, _, _ in timed_frames(frames, rate)]


@pytest.mark.parametrize(
    ("frames", "frames_per_second", "expected"),
    [
        # Time and duration of frames a, b, ... in seconds.
        ([(0, 1), (1, 1), (2, 1)], 1, "abc"),
        ([(0, 0.5), (0.5, 0.5), (1, 0.5), (1.5, 0.5)], 1, "ac"),
        # At 1 s, b is still on the screen.
        ([(0, 0.6), (0.6, 0.6), (1.2, 0.6)], 1, "ab"),
        # A frame that stays is several seconds' frame, also at the end.
        ([(0, 3), (3, 1)], 1, "aaab"),
        ([(0, 1), (1, 2.5)], 1, "abbb"),
        # Shorter than a second; a single frame.
        ([(0, 0.1), (0.1, 0.1)], 1, "a"),
        ([(0, 0.5), (0.5, 0.5), (1, 0.5), (1.5, 0.5)], 2, "abcd"),
        ([(0, 4), (4, 4), (8, 4)], 0.1, "ac"),
        ([], 1, ""),
    ],
)
def test_the_frame_of_a_time_is_the_one_on_the_screen(frames, frames_per_second, expected):
    timed = [
        (Fraction(time), Fraction(duration), name)
        for (time, duration), name in zip(frames, "abcdefgh", strict=False)
    ]
    assert "".join(frames_on_screen(timed, frames_per_second)) == expected


def test_times_in_tenths_are_exact():
    # In floating point, 0.1 + 0.1 + 0.1 is above 0.3.
    timed = [(Fraction(k, 10), Fraction(1, 10), k) for k in range(100)]
    assert list(frames_on_screen(timed, 10)) == list(range(100))
    assert list(frames_on_screen(timed, 0.3)) == [0, 33, 66]


def test_times_count_from_the_first_frame():
    assert times_of([frame(14), frame(15), frame(19)]) == [0, 0.1, 0.5]


def test_frames_without_times_follow_each_other_by_duration_or_rate():
    assert times_of([frame(None, 2), frame(None, 5), frame(None, 1)]) == [0, 0.2, 0.7]
    assert times_of([frame(None, 0), frame(None, 0), frame(None, 0)], rate=4) == [0, 0.25, 0.5]


def test_times_never_go_back():
    assert times_of([frame(0), frame(1), frame(1), frame(0), frame(7)]) == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.7]
    )


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "v.h264"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_video_of_constant_rate_gives_the_frames_of_the_seconds(tmp_path, name, num_threads):
    write_levels(tmp_path / name, LEVELS)
    found = levels(tmp_path / name, num_threads=num_threads)
    np.testing.assert_allclose(found, [LEVELS[0], LEVELS[25], LEVELS[50]], atol=4)
    found = levels(tmp_path / name, frames_per_second=5, num_threads=num_threads)
    np.testing.assert_allclose(found, LEVELS[::5], atol=4)


def test_a_video_of_variable_rate_gives_the_frames_on_the_screen(tmp_path):
    # A colon in a path is not a protocol.
    path = tmp_path / "a:b.mkv"
    write_levels(path, [0, 50, 100, 150, 200], [0, 0.9, 1.001, 3.5, 4])
    np.testing.assert_allclose(levels(path), [0, 50, 100, 100, 200], atol=4)


def test_a_video_shorter_than_a_second_has_one_frame(tmp_path):
    write_levels(tmp_path / "v.mp4", [80, 10, 10])
    np.testing.assert_allclose(levels(tmp_path / "v.mp4"), [80], atol=4)


def test_a_title_need_not_be_utf8(tmp_path):
    path = tmp_path / "v.mkv"
    write_levels(path, [80], title="TITLE")
    content = path.read_bytes()
    assert b"TITLE" in content
    path.write_bytes(content.replace(b"TITLE", "Käse!".encode("latin-1")))
    np.testing.assert_allclose(levels(path), [80], atol=4)


def test_frames_are_whole_rgb_and_upright(tmp_path):
    image = np.zeros((48, 96, 3), np.uint8)
    image[:, :48] = 255, 0, 0  # Red on the left.
    image[:, 48:] = 0, 0, 255
    path = tmp_path / "v.mp4"
    write_frames(path, [image], [0])
    (found,) = read_frames(str(path), 32)
    assert found.shape == (32, 32, 3)
    np.testing.assert_allclose(found[:, :12], np.tile([255, 0, 0], (32, 12, 1)), atol=8)
    np.testing.assert_allclose(found[:, 20:], np.tile([0, 0, 255], (32, 12, 1)), atol=8)
    turn_clockwise(path)
    (turned,) = read_frames(str(path), 32)
    np.testing.assert_array_equal(turned, np.rot90(found, -1))
    assert turned[0, 16, 0] > 200  # Red at the top.


def test_colors_of_hd_video_are_right(tmp_path):
    write_hd_color(tmp_path / "v.mp4", (200, 60, 30))
    (image,) = read_frames(str(tmp_path / "v.mp4"), 16)
    np.testing.assert_allclose(image, np.broadcast_to([200, 60, 30], (16, 16, 3)), atol=4)


def test_files_without_a_readable_video_are_reported(tmp_path):
    write_sound(tmp_path / "sound.m4a")
    (tmp_path / "text.mp4").write_text("no video")
    for name, reason in (
        ("sound.m4a", "no video stream"),
        ("text.mp4", "Invalid data"),
        ("missing.mp4", "No such file"),
    ):
        with pytest.raises(VideoError, match=reason):
            levels(tmp_path / name)


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_playlist_in_the_place_of_a_video_contacts_nobody(tmp_path, monkeypatch, is_remote):
    # FFmpeg itself forbids it for local files only.
    monkeypatch.setattr("files.is_remote", lambda path: is_remote)
    contacts = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                server.accept()[0].close()
                contacts.append(path)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        path = tmp_path / "playlist.m3u8"
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path.write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n"
        )
        with pytest.raises(VideoError, match="Invalid data"):
            levels(path)
        server.shutdown(socket.SHUT_RDWR)
    assert not contacts


def test_a_damaged_video_gives_the_frames_before_the_damage(tmp_path):
    path = tmp_path / "v.mp4"
    write_levels(path, LEVELS)
    damage(path, 30)
    found = []
    with pytest.raises(VideoError, match="Invalid data"):
        found.extend(image.mean() for image in read_frames(str(path), 16, 5))
    assert 3 <= len(found) <= 6
    np.testing.assert_allclose(found, LEVELS[::5][: len(found)], atol=4)


def test_a_video_that_was_cut_off_is_reported(tmp_path):
    path = tmp_path / "v.mp4"
    write_levels(path, [k % 256 for k in range(100)], movflags="faststart")
    cut_off(path, 50)
    found = []
    with pytest.raises(VideoError, match="ends after 2 of 4 s"):
        found.extend(image.mean() for image in read_frames(str(path), 16))
    np.testing.assert_allclose(found, [0, 25], atol=4)


def decoder(paths, **options):
    defaults = {"image_size": 16, "frames_per_second": 5, "max_frames": 300, "buffer_size": 4}
    return VideoDecoder([str(path) for path in paths], **{**defaults, **options})


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Paths of six videos; the number n in the list has 25 + 5 * n frames, from level 20 * n on."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"v{n}.mp4" for n in range(6)]
    for n, path in enumerate(paths):
        write_levels(path, [20 * n + k for k in range(25 + 5 * n)])
    return paths


def test_a_decoder_yields_every_frame_of_every_video_in_order_and_its_end(videos):
    found = {n: [] for n in range(6)}
    for number, image in decoder(videos):
        found[number].append(None if image is None else image.mean())
    for n, values in found.items():
        assert values.pop() is None
        expected = [20 * n + k for k in range(0, 25 + 5 * n, 5)]
        np.testing.assert_allclose(values, expected, atol=4)


def test_a_decoder_stops_at_max_frames(videos):
    found = [number for number, image in decoder(videos, max_frames=2) if image is not None]
    assert sorted(found) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_decoder_names_skipped_and_damaged_videos_and_decodes_the_others(videos, tmp_path):
    broken, damaged = tmp_path / "broken.mp4", tmp_path / "damaged.mp4"
    broken.write_bytes(b"x")
    write_levels(damaged, LEVELS)
    damage(damaged, 30)
    reader = decoder([broken, damaged, videos[0]])
    numbers = [number for number, image in reader if image is not None]
    assert set(numbers) == {1, 2}
    assert numbers.count(2) == 5
    assert list(reader.skipped) == [str(broken)]
    assert list(reader.damaged) == [str(damaged)]


def test_a_decoder_that_is_left_early_ends_its_threads(videos):
    reader = iter(decoder(videos))
    list(itertools.islice(reader, 3))
    reader.close()  # Hangs if a thread waits for the queue.


def test_an_error_in_a_thread_is_raised(videos, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("own_data.video_frames.read_frames", fail)
    with pytest.raises(ZeroDivisionError):
        list(decoder(videos))


def test_missing_pyav_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"PyAV: .*pip install '\.\[video\]'"):
        check_decoder()
