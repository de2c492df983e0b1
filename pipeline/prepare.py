"""Prepare on Ray Data: probe every video, cut it into shots and segments, embed every segment.

    jobs -> probe (tasks) -> rows of parts -> embed (actors) -> driver: one segments.parquet per video

Rows carry URIs and spans, never frames. A part is a run of consecutive segments of one video, so that one long film
keeps all workers busy. There is no groupby (a full barrier in Ray Data): the driver collects rows as they come and
writes a video's table the moment it is complete. In a prepared folder (docs/data.md):

    video.json, frames.parquet   what the probe found
    spans.parquet                segments without embeddings; written after the two, removed at the end: a rerun goes on from it
    segments.parquet             the result, written last

A failure is data. Named errors travel as rows. A worker that dies takes its row along, and Ray Data says nothing of it
(`max_errored_blocks`): whatever did not come back is done again alone, and reported as WorkerDied if that dies too.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.util.annotations import RayDeprecationWarning

from model.geometry import Geometry
from pipeline.prepared import PreparedVideo, load_prepared
from pipeline.video.info import VideoInfo
from pipeline.video.split import split_shots
from retrieval.schema import Segment, segments_from_table, segments_to_table
from retrieval.store import Store

MAX_PART_SEGMENTS = 32
MIN_PART_SEGMENTS = 4
CPUS_PER_WORKER = 0.5
"""Probes and embedders run side by side: with a whole core each, a full pool of actors would leave no room for a probe."""

Stage = Literal["probe", "embed"]
Row = dict[str, Any]

ROW_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)
"""What may go wrong with one video: storage, the named video errors (ValueError), torch, memory."""


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """`prepared_url` is the folder `videos/<id>/prepared/<prepare_id>`."""

    video: str
    uri: str
    prepared_url: str
    geometry: Geometry


@dataclass(frozen=True, kw_only=True)
class PrepareFailure:
    """Why a video could not be prepared; the span is in frames, None where it is the whole video."""

    video: str
    stage: Stage
    start_frame: int | None = None
    end_frame: int | None = None
    error_type: str
    message: str


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    prepared: dict[str, PreparedVideo]
    failures: tuple[PrepareFailure, ...]


def prepare_videos(
    jobs: Sequence[PrepareJob],
    *,
    embedder: str | Callable[[], Any] = "bundled",
    num_workers: int | None = None,
    probe_timeout_s: float | None = None,
    on_event: Callable[[str], None] = lambda text: None,
    verbose: bool = False,
) -> PrepareResult:
    """Prepare what is not prepared yet. Ray must be running if there is such a video.

    Args:
        embedder: a name for `retrieval.embed.load_embedder`, or a function that makes an embedder.
        num_workers: embedding actors, and probes at a time; the cluster's cores are the most, and the default.
        probe_timeout_s: limit of one video's probe; None for the probe's own, which grows with the file.
        on_event: called with a line of text for every part that is embedded and every video that is prepared or failed.
        verbose: let Ray Data show its own progress and log.
    """
    prepared = {job.video: video for job in jobs if (video := load_prepared(Store(job.prepared_url)))}
    todo = [job for job in jobs if job.video not in prepared]
    if not todo:
        return PrepareResult(prepared=prepared, failures=())
    num_cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    num_workers = min(num_workers or num_cores, num_cores)
    rows = {job.video: job_row(job, num_workers=num_workers, probe_timeout_s=probe_timeout_s) for job in todo}
    collection = Collection(todo, on_event=on_event)
    with quiet_ray_data(verbose=verbose):
        dataset = (
            ray.data.from_items(list(rows.values()), override_num_blocks=len(todo))
            .flat_map(
                probe,
                compute=ray.data.TaskPoolStrategy(size=min(num_workers, len(todo))),
                num_cpus=CPUS_PER_WORKER,
                max_retries=1,
            )
            .map(
                EmbedPart,  # type: ignore[arg-type]
                fn_constructor_args=(embedder,),
                compute=ray.data.ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1),
                num_cpus=CPUS_PER_WORKER,
                max_restarts=-1,
                max_task_retries=1,
            )
        )
        for row in dataset.iter_rows():
            collection.add(row)
    for job in collection.missing():
        for row in prepare_alone(rows[job.video], collection.embedded(job.video), embedder=embedder):
            collection.add(row)
    prepared.update({job.video: PreparedVideo(prepared_url=job.prepared_url) for job in collection.complete})
    return PrepareResult(prepared=prepared, failures=collection.failures())


def job_row(job: PrepareJob, *, num_workers: int, probe_timeout_s: float | None) -> Row:
    settings = {"geometry": asdict(job.geometry), "num_workers": num_workers, "probe_timeout_s": probe_timeout_s}
    return {"video": job.video, "uri": job.uri, "prepared_url": job.prepared_url, "settings": json.dumps(settings)}


def probe(row: Row) -> list[Row]:
    """The parts of a video; what is found out goes into its prepared folder."""
    from pipeline.video.io import inspect

    store = Store(row["prepared_url"])
    settings = json.loads(row["settings"])
    try:
        if not store.exists("spans.parquet"):
            inspection = inspect(row["uri"], timeout_s=settings["probe_timeout_s"])
            sizes = tuple((height, width) for height, width in settings["geometry"]["sizes"])
            geometry = Geometry(**{**settings["geometry"], "sizes": sizes})
            segments = split_shots(inspection.info.num_frames, inspection.cuts, geometry)
            store.write_json("video.json", inspection.info.to_json())
            store.write_table("frames.parquet", pa.table({"pts": pa.array(inspection.pts, pa.int64())}))
            store.write_table("spans.parquet", segments_to_table(segments))
        segments = segments_from_table(store.read_table("spans.parquet"))
    except ROW_ERRORS as error:
        return [result_row(row["video"], failure=failure_of(row["video"], "probe", error))]
    return [
        {
            "video": row["video"],
            "uri": row["uri"],
            "prepared_url": row["prepared_url"],
            "num_segments": len(segments),
            "segments": segments_to_text(part),
            "failure": "",
        }
        for part in parts_of(segments, num_workers=settings["num_workers"])
    ]


def parts_of(segments: Sequence[Segment], *, num_workers: int) -> list[Sequence[Segment]]:
    """Runs of consecutive segments: long enough that seeking costs little, short enough to keep all workers busy."""
    length = min(MAX_PART_SEGMENTS, max(MIN_PART_SEGMENTS, -(-len(segments) // num_workers)))
    return [segments[start : start + length] for start in range(0, len(segments), length)]


class EmbedPart:
    """Embeds the segments of one part after the other, holding the frames of one segment at a time."""

    def __init__(self, embedder: str | Callable[[], Any]) -> None:
        self.embedder: Any = None
        self.refusal: Exception | None = None
        try:
            self.embedder = one_thread_embedder(embedder) if isinstance(embedder, str) else embedder()
        except ROW_ERRORS as error:
            # Raised here, it would end the whole pipeline in Ray Data's words.
            self.refusal = error

    def __call__(self, row: Row) -> Row:
        from pipeline.video.io import Inspection, iter_span

        if row["failure"]:
            return row
        if self.refusal:
            return result_row(row["video"], failure=failure_of(row["video"], "embed", self.refusal))
        segments = segments_from_text(row["segments"])
        store = Store(row["prepared_url"])
        embedded: list[Segment] = []
        try:
            inspection = Inspection(
                info=VideoInfo.from_json(store.read_json("video.json")),
                pts=store.read_table("frames.parquet", columns=["pts"])["pts"].to_numpy(),
            )
            frames = iter_span(
                row["uri"],
                inspection,
                segments[0].start_frame,
                segments[-1].end_frame,
                size=self.embedder.input_size,
            )
            for segment in segments:
                embedding = self.embedder.embed_frames(np.stack(list(islice(frames, segment.num_frames))))
                embedded.append(replace(segment, embedding=tuple(embedding.tolist())))
        except ROW_ERRORS as error:
            failure = failure_of(row["video"], "embed", error, span=segments[len(embedded)])
            return result_row(row["video"], failure=failure)
        return result_row(row["video"], num_segments=row["num_segments"], segments=embedded)


class Collection:
    """What has come back, per video; writes a video's table when it is complete and forgets its rows."""

    def __init__(self, jobs: Sequence[PrepareJob], *, on_event: Callable[[str], None]) -> None:
        self._jobs = {job.video: job for job in jobs}
        self._segments: dict[str, dict[int, Segment]] = {}
        self._failures: dict[str, list[PrepareFailure]] = {}
        self._on_event = on_event
        self.complete: list[PrepareJob] = []

    def add(self, row: Row) -> None:
        video = row["video"]
        if row["failure"]:
            failure = PrepareFailure(**json.loads(row["failure"]))
            self._failures.setdefault(video, []).append(failure)
            self._on_event(f"{video}: {failure.stage} failed: {failure.error_type}: {failure.message}")
            return
        segments = self._segments.setdefault(video, {})
        segments.update({segment.segment: segment for segment in segments_from_text(row["segments"])})
        if len(segments) < row["num_segments"]:
            self._on_event(f"{video}: {len(segments)} of {row['num_segments']} segments embedded")
        else:
            job = self._jobs.pop(video)
            store = Store(job.prepared_url)
            store.write_table("segments.parquet", segments_to_table(segments[index] for index in sorted(segments)))
            store.delete("spans.parquet")
            del self._segments[video]
            self.complete.append(job)
            self._on_event(f"{video}: prepared, {len(segments)} segments")

    def missing(self) -> list[PrepareJob]:
        """Videos that neither are complete nor failed: a worker died with a part of them."""
        return [job for video, job in self._jobs.items() if video not in self._failures]

    def embedded(self, video: str) -> set[int]:
        return set(self._segments.get(video, ()))

    def failures(self) -> tuple[PrepareFailure, ...]:
        """One per failed video: of several, the earliest in the video."""
        return tuple(
            min(failures, key=lambda failure: failure.start_frame or 0) for failures in self._failures.values()
        )


def prepare_alone(job: Row, embedded: set[int], *, embedder: str | Callable[[], Any]) -> Iterator[Row]:
    """Rows of what is missing of a video, done one thing at a time, so that a worker's death has one cause."""
    options = {"num_cpus": CPUS_PER_WORKER, "max_retries": 0}
    video = job["video"]
    try:
        rows = ray.get(ray.remote(probe).options(**options).remote(job))
    except ray.exceptions.RayError as error:
        yield result_row(video, failure=death_of(video, "probe", error))
        return
    for row in rows:
        segments = segments_from_text(row["segments"])
        if row["failure"]:
            yield row
            continue
        if embedded.issuperset(segment.segment for segment in segments):
            continue
        try:
            yield ray.get(ray.remote(embed_once).options(**options).remote(embedder, row))
        except ray.exceptions.RayError as error:
            span = replace(segments[0], end_frame=segments[-1].end_frame)
            yield result_row(video, failure=death_of(video, "embed", error, span=span))
            return


def one_thread_embedder(name: str) -> Any:
    import torch

    from retrieval.embed import load_embedder

    # Embeddings choose the memories: the same bits on every machine size.
    torch.set_num_threads(1)
    return load_embedder(name)


def embed_once(embedder: str | Callable[[], Any], row: Row) -> Row:
    return EmbedPart(embedder)(row)


def result_row(
    video: str,
    *,
    num_segments: int = 0,
    segments: Sequence[Segment] = (),
    failure: PrepareFailure | None = None,
) -> Row:
    return {
        "video": video,
        "uri": "",
        "prepared_url": "",
        "num_segments": num_segments,
        "segments": segments_to_text(segments),
        "failure": json.dumps(asdict(failure)) if failure else "",
    }


def failure_of(video: str, stage: Stage, error: BaseException, *, span: Segment | None = None) -> PrepareFailure:
    return PrepareFailure(
        video=video,
        stage=stage,
        start_frame=span.start_frame if span else None,
        end_frame=span.end_frame if span else None,
        error_type=type(error).__name__,
        message=str(error) or type(error).__name__,
    )


def death_of(
    video: str, stage: Stage, error: ray.exceptions.RayError, *, span: Segment | None = None
) -> PrepareFailure:
    """The failure of what did not come back from a worker of its own: an error nobody named, or the worker's death."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return failure_of(video, stage, error.cause, span=span)
    message = f"the worker died during {stage}, also with nothing else to do: {str(error).strip().split('. ')[0]}"
    return replace(failure_of(video, stage, error, span=span), error_type="WorkerDied", message=message)


def segments_to_text(segments: Sequence[Segment]) -> str:
    """As JSON, because Arrow would infer another schema for every row without an embedding."""
    return json.dumps([asdict(segment) for segment in segments])


def segments_from_text(text: str) -> list[Segment]:
    return [Segment(**{**row, "embedding": tuple(row["embedding"])}) for row in json.loads(text)]


@contextmanager
def quiet_ray_data(*, verbose: bool) -> Iterator[None]:
    """Ray Data's settings for this pipeline, and its log silenced, for the datasets made inside."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_no_progress_timeout_s = -1
    # One block per row: parts of one film must go to different actors, and arrive when they are done.
    context.target_max_block_size = 1
    context.max_errored_blocks = -1
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    logger = logging.getLogger("ray.data")
    level = logger.level
    if not verbose:
        logger.setLevel(logging.CRITICAL)
    try:
        with ray.data.DataContext.current(context), warnings.catch_warnings():
            # max_retries, max_restarts and max_task_retries have no other way in (Ray 2.58 to 2.61).
            warnings.simplefilter("ignore", RayDeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
