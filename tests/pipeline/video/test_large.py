"""Long real videos: exact to the last frame, in memory that does not grow. Needs the folder MEMORY_V2V_VIDEOS."""

import resource
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline.video.assemble import assemble
from pipeline.video.decode import decode_span, iter_span
from pipeline.video.encode import encode_chunk
from pipeline.video.probe import inspect
from tests.pipeline.video.test_assemble import payloads
from tests.videos import large_video

MAX_DECODER_MIB = 600
SMALL = (72, 128)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "num_frames"), [("world.mp4", 901), ("bbb.mp4", 14_315)])
def test_a_long_video_is_assembled_exactly(tmp_path: Path, name: str, num_frames: int) -> None:
    path = large_video(name)
    begun = time.monotonic()
    found = inspect(str(path))
    inspect_s = time.monotonic() - begun
    decoder_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    assert found.info.num_frames == num_frames
    assert decoder_mib < MAX_DECODER_MIB
    chunks = []
    for start in range(0, num_frames, 81):
        end = min(start + 81, num_frames)
        chunks.append(tmp_path / f"{start:05d}.mp4")
        frames = iter_span(str(path), found, start, end, size=SMALL)
        encode_chunk(chunks[-1], frames, found.pts[start:end], found.info, size=SMALL, preset="ultrafast")
    begun = time.monotonic()
    result = assemble(chunks, str(path), found, tmp_path / "edited")
    assemble_s = time.monotonic() - begun
    again = inspect(result.path)
    tick_s, tick_again_s = float(Fraction(*found.info.time_base)), float(Fraction(*again.info.time_base))
    assert again.info.num_frames == num_frames
    assert np.abs(again.pts * tick_again_s - found.pts * tick_s).max() < tick_s
    assert payloads(path) == payloads(Path(result.path)), "the sound, bit for bit and tick for tick"
    assert abs(again.info.duration_s - found.info.duration_s) < 1 / found.info.fps
    frame = num_frames - 3
    source = decode_span(str(path), found, frame, frame + 1, size=SMALL)[0].astype(float)
    edited = decode_span(result.path, again, frame, frame + 1)[0].astype(float)
    assert np.abs(source - edited).mean() < 6
    own_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{name}: inspect {inspect_s:.1f} s ({num_frames / inspect_s:.0f} frames/s), decoder {decoder_mib:.0f} MiB, "
        f"assemble {assemble_s:.2f} s, this process {own_mib:.0f} MiB, {len(found.cuts)} cuts"
    )
