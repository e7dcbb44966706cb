"""Writes small videos whose frames have known gray levels at known times."""

import struct
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs requirements/video.txt")

RATE = 25


def write_frames(path, images, times, title="", **options):
    """Writes uint8 images `[T, H, W, 3]`, shown from the given times on, in seconds.

    Other arguments are options of FFmpeg for the kind of file.
    """
    with av.open(str(path), "w", options=options) as container:
        container.metadata["title"] = title
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_levels(path, levels, times=None, **options):
    """Writes a gray frame per level, 0 to 255; by default, 25 frames per second."""
    images = [np.full((48, 64, 3), level, np.uint8) for level in levels]
    write_frames(path, images, times or [k / RATE for k in range(len(images))], **options)


def write_hd_color(path, color):
    """Writes a frame of one RGB color, stored with the color matrix of HD video, BT.709."""
    image = np.full((64, 64, 3), color, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace = 1
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_sound(path):
    """Writes a file with sound and without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def turn_clockwise(path):
    """Marks an MP4 file as recorded with a camera that was turned, as telephones do."""
    # The rows a b u, c d v, x y w of the track header's matrix.
    upright = struct.pack(">9i", 2**16, 0, 0, 0, 2**16, 0, 0, 0, 2**30)
    turned = struct.pack(">9i", 0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30)
    head, mark, rest = path.read_bytes().partition(b"tkhd")
    assert upright in rest
    path.write_bytes(head + mark + rest.replace(upright, turned, 1))


def damage(path, first_packet):
    """Overwrites the packet with this number and all later ones."""
    content = bytearray(path.read_bytes())
    for start, end in _packets(path)[first_packet:]:
        content[start:end] = b"\xff" * (end - start)
    path.write_bytes(content)


def cut_off(path, first_packet):
    """Removes the packet with this number and all that follows."""
    start, _ = _packets(path)[first_packet]
    path.write_bytes(path.read_bytes()[:start])


def _packets(path):
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return [(packet.pos, packet.pos + packet.size) for packet in packets]
