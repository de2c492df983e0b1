"""The finished file: the source's frames, times, sound and subtitles, whatever the source is."""

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest

from pipeline.video.assemble import AssembledVideo, assemble
from pipeline.video.decode import decode_span, iter_span
from pipeline.video.encode import encode_chunk
from pipeline.video.errors import AssemblyError
from pipeline.video.info import Inspection
from tests.videos import inspection_of, read_number, real_video, remux, write_source

Payload = list[tuple[str, float]]


def payloads(path: Path) -> dict[tuple[str, int], Payload]:
    """(digest, time) of every audio and subtitle packet; MP4's empty cues, which only fill time, left out."""
    with av.open(str(path)) as container:
        streams = [*container.streams.audio, *container.streams.subtitles]
        order = {stream.index: (stream.type, number) for number, stream in enumerate(streams)}
        found: dict[tuple[str, int], Payload] = {key: [] for key in order.values()}
        if streams:
            for packet in container.demux(streams):
                if packet.size and bytes(packet) != b"\0\0":
                    time_s = float(packet.pts * packet.time_base)
                    found[order[packet.stream_index]].append((hashlib.sha256(bytes(packet)).hexdigest(), time_s))
        return found


def chunks_of(
    path: Path, found: Inspection, folder: Path, *, frames: int = 7, size: tuple[int, int] | None = None
) -> list[Path]:
    chunks = []
    for start in range(0, found.info.num_frames, frames):
        end = min(start + frames, found.info.num_frames)
        chunks.append(folder / f"{start:05d}.mp4")
        pictures = iter_span(str(path), found, start, end, size=size)
        encode_chunk(chunks[-1], pictures, found.pts[start:end], found.info, size=size, preset="ultrafast")
    return chunks


def edited(path: Path, folder: Path) -> tuple[Inspection, AssembledVideo]:
    found = inspection_of(path)
    return found, assemble(chunks_of(path, found, folder), str(path), found, folder / "edited")


def check_exact(path: Path, found: Inspection, result: AssembledVideo, *, is_same_sound: bool = True) -> Inspection:
    again = inspection_of(Path(result.path))
    tick_s, tick_again_s = float(Fraction(*found.info.time_base)), float(Fraction(*again.info.time_base))
    assert again.info.num_frames == found.info.num_frames == result.num_frames
    assert np.abs(again.pts * tick_again_s - found.pts * tick_s).max() < tick_s
    assert abs(again.info.duration_s - found.info.duration_s) < 1 / found.info.fps
    before, after = payloads(path), payloads(Path(result.path))
    assert list(before) == list(after)
    for key, packets in before.items():
        if is_same_sound:
            assert [digest for digest, _ in packets] == [digest for digest, _ in after[key]], key
        # Containers that count in ms (Matroska, AVI) state sound to the ms; nothing may move further than that.
        moved = np.abs(np.array([time for _, time in packets]) - [time for _, time in after[key]])
        assert moved.max() <= 0.001
    return again


SOURCES = {
    "plain": ("v.mp4", {}),
    "b-frames and sound": ("v.mp4", {"b_frames": 3, "audio": ["aac"]}),
    "two sounds and text": ("v.mp4", {"audio": ["aac", "libmp3lame"], "subtitles": ["mov_text"]}),
    "variable rate": ("v.mp4", {"pts": [0, 1, 700, 1600, 5000, 5001, 9000, 20000], "audio": ["aac"]}),
    "late start": ("v.mp4", {"pts": [6403 + 512 * index for index in range(20)], "audio": ["aac"]}),
    "late sound": ("v.mp4", {"audio": ["aac"], "audio_start_s": 0.35}),
    "one frame": ("v.mp4", {"num_frames": 1}),
    "turned": ("v.mp4", {"rotation_deg": 90, "sample_aspect": Fraction(4, 3)}),
    "ten bits": ("v.mp4", {"pixel_format": "yuv420p10le"}),
    "30000/1001": ("v.mp4", {"time_base": Fraction(1, 30000), "step": 1001, "audio": ["aac"]}),
    "uncompressed sound": ("v.mov", {"audio": ["pcm_s16le"]}),
    "webm": ("v.webm", {"codec": "libvpx-vp9", "codec_options": {"cpu-used": "8"}, "audio": ["libopus"]}),
    "program stream": (
        "v.mpg",
        {
            "codec": "mpeg2video",
            "container": "mpeg",
            "time_base": Fraction(1, 25),
            "step": 1,
            "b_frames": 2,
            "audio": ["mp2"],
        },
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_mp4_carries_it_exactly(tmp_path: Path, kind: str) -> None:
    name, options = SOURCES[kind]
    path = write_source(tmp_path / name, **options)
    found, result = edited(path, tmp_path)
    assert (result.container, result.why, Path(result.path).name) == ("mp4", "", "edited.mp4")
    again = check_exact(path, found, result)
    assert again.info.rotation_deg == 0
    assert again.info.sample_aspect == found.info.sample_aspect
    frames = decode_span(result.path, again, 0, again.info.num_frames)
    assert [read_number(f) for f in frames] == [read_number(f) for f in iter_span(str(path), found, 0, len(frames))]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".tmp")]


MATROSKA_SOURCES = {
    "text": ("v.mkv", {"audio": ["aac"], "subtitles": ["subrip", "ass"]}, "subtitle stream 2"),
    "opus, whose delay Matroska states": ("v.mkv", {"audio": ["libopus", "flac"], "subtitles": ["subrip"]}, "srt"),
    "sound of unknown layout": (
        "v.avi",
        {"audio": ["pcm_s16le"], "time_base": Fraction(1, 25), "step": 1},
        "channel layout",
    ),
}


@pytest.mark.parametrize("kind", MATROSKA_SOURCES)
def test_matroska_carries_what_mp4_cannot_and_says_why(tmp_path: Path, kind: str) -> None:
    name, options, reason = MATROSKA_SOURCES[kind]
    path = write_source(tmp_path / name, num_frames=60, **options)
    found, result = edited(path, tmp_path)
    assert (result.container, Path(result.path).name) == ("mkv", "edited.mkv")
    assert reason in result.why
    check_exact(path, found, result)
    assert [file.name for file in tmp_path.glob("edited*")] == ["edited.mkv"]


@pytest.mark.parametrize(
    ("time_base", "step"), [(Fraction(1, 90000), 3003), (Fraction(1, 60000), 1001), (Fraction(1, 25), 1)]
)
def test_matroska_is_finer_than_milliseconds(tmp_path: Path, time_base: Fraction, step: int) -> None:
    """FFmpeg's muxer alone would round every frame to the ms: 45 ticks of a 90 kHz clock."""
    source = write_source(
        tmp_path / "v.mp4", num_frames=300, time_base=time_base, step=step, audio=["aac"], gop_frames=50
    )
    text = write_source(tmp_path / "text.mkv", num_frames=300, time_base=Fraction(1, 1000), subtitles=["subrip"])
    found = inspection_of(source)
    # Chunks and times of the one, sound and text of the other.
    info = type(found.info)(**{**found.info.__dict__, "stream_index": inspection_of(text).info.stream_index})
    swapped = Inspection(info=info, pts=found.pts)
    result = assemble(chunks_of(source, found, tmp_path, frames=100), str(text), swapped, tmp_path / "edited")
    assert result.container == "mkv"
    again = inspection_of(Path(result.path))
    off = np.abs(again.pts * float(Fraction(*again.info.time_base)) - found.pts * float(time_base))
    assert off.max() <= 5.1e-6
    assert again.info.duration_s == pytest.approx(found.info.duration_s, abs=0.01)
    with av.open(result.path) as written:
        assert written.duration / 1e6 == pytest.approx(found.info.duration_s, abs=0.3)
        stated = written.streams.video[0].metadata["DURATION"]
        assert float(stated.split(":")[-1]) == pytest.approx(found.info.duration_s % 60, abs=0.1)
        # Seeking through the cues finds the frame that was asked for.
        stream = written.streams.video[0]
        written.seek(int(again.pts[250]), stream=stream)
        assert next(written.decode(stream)).pts == again.pts[200]


def test_a_real_films_sound_is_bit_identical(tmp_path: Path) -> None:
    path = real_video("bigbuckbunny.mp4")
    found = inspection_of(path)
    chunks = chunks_of(path, found, tmp_path, frames=33, size=(36, 64))
    result = assemble(chunks, str(path), found, tmp_path / "edited")
    check_exact(path, found, result)
    for source, written in zip(_samples(path), _samples(Path(result.path)), strict=True):
        assert np.array_equal(source, written)


def _samples(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(audio=0)]


def test_the_sound_of_a_transport_stream_is_the_same_sound(tmp_path: Path) -> None:
    """MP4 holds AAC without the ADTS headers that a transport stream repeats; what they carry is the same."""
    path = remux(write_source(tmp_path / "v.mp4", audio=["aac"]), tmp_path / "v.ts")
    found, result = edited(path, tmp_path)
    assert result.container == "mp4"
    check_exact(path, found, result, is_same_sound=False)
    for source, written in zip(_samples(path), _samples(Path(result.path)), strict=True):
        assert np.array_equal(source, written)


def test_metadata_and_chapters_are_kept(tmp_path: Path) -> None:
    chapters = [
        {"id": 1, "start": 0, "end": 300, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}},
        {"id": 2, "start": 300, "end": 800, "time_base": Fraction(1, 1000), "metadata": {"title": "two"}},
    ]
    path = write_source(
        tmp_path / "v.mp4", audio=["aac"], metadata={"title": "A film", "artist": "us"}, chapters=chapters
    )
    _, result = edited(path, tmp_path)
    with av.open(result.path) as written:
        assert written.metadata["title"] == "A film"
        assert written.metadata["artist"] == "us"
        starts = [
            (chapter["metadata"]["title"], chapter["start"] * chapter["time_base"]) for chapter in written.chapters()
        ]
    assert starts == [("one", 0), ("two", Fraction(3, 10))]


def test_languages_and_dispositions_are_kept(tmp_path: Path) -> None:
    plain = write_source(tmp_path / "plain.mkv", audio=["aac", "aac"], subtitles=["subrip"])
    path = tmp_path / "v.mkv"
    forced = av.stream.Disposition.forced
    with av.open(str(plain)) as inp, av.open(str(path), "w") as out:
        copies = [out.add_stream_from_template(stream, opaque=True) for stream in inp.streams]
        for copy, language in zip(copies[1:], ("eng", "fre", "ger"), strict=True):
            copy.metadata["language"] = language
        copies[3].disposition = forced
        for packet in inp.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream_index]
                out.mux_one(packet)
    _, result = edited(path, tmp_path)
    with av.open(result.path) as written:
        assert [stream.metadata.get("language") for stream in written.streams][1:] == ["eng", "fre", "ger"]
        assert written.streams.subtitles[0].disposition & forced


def test_what_is_not_kept_is_said(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    plain = write_source(tmp_path / "plain.mp4", num_frames=5)
    with av.open(str(plain)) as inp, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(inp.streams.video[0], opaque=True)
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in inp.demux(inp.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                out.mux_one(packet)
        out.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        out.mux(cover.encode())
    found, result = edited(path, tmp_path)
    assert found.info.num_frames == 5
    assert result.notes == ("video stream 1 (mjpeg) of the source is not kept",)


def test_the_source_may_be_remote(tmp_path: Path) -> None:
    path = write_source(tmp_path / "v.mp4", audio=["aac"])
    with fsspec.open("memory://assemble/v.mp4", "wb") as file:
        file.write(path.read_bytes())
    found = inspection_of(path)
    result = assemble(chunks_of(path, found, tmp_path), "memory://assemble/v.mp4", found, tmp_path / "edited")
    check_exact(path, found, result)


def test_chunks_that_do_not_fit_publish_nothing(tmp_path: Path) -> None:
    path = write_source(tmp_path / "v.mp4", num_frames=21, audio=["aac"])
    found = inspection_of(path)
    chunks = chunks_of(path, found, tmp_path)
    other = tmp_path / "other.mp4"
    frames = decode_span(str(path), found, 14, 21, size=(32, 32))
    encode_chunk(other, frames, found.pts[14:21], found.info, size=(32, 32))
    late = tmp_path / "late.mp4"
    encode_chunk(late, iter_span(str(path), found, 14, 21), found.pts[14:21] * 2, found.info, preset="ultrafast")
    for wrong, message in [
        (chunks[:2], "hold 14 frames; needs 21"),
        ([*chunks, chunks[0]], "beyond the source's 21 frames"),
        ([*chunks[:2], other], "other settings"),
        ([*chunks[:2], late], "other timestamps"),
    ]:
        with pytest.raises(AssemblyError, match=message):
            assemble(wrong, str(path), found, tmp_path / "edited")
        assert not list(tmp_path.glob("*edited*"))
