"""What a stage needs to know of one edit: its frozen spec and plan, its source video, its folders. Read once, then kept.

Knows where things lie in an edit's folder (docs/data.md); does nothing with them.
"""

from dataclasses import dataclass

from pipeline.spec import EditSpec
from pipeline.video.info import Inspection, VideoInfo
from retrieval.latents import LatentLRU, LatentStore
from retrieval.schema import PlannedSegment, plan_from_table
from retrieval.store import Store


@dataclass(frozen=True, kw_only=True)
class EditContext:
    """`preset` is the name or folder the editor is loaded from; `inspection` holds the source's frames and timestamps."""

    store: Store
    spec: EditSpec
    preset: str
    source_uri: str
    inspection: Inspection
    plan: tuple[PlannedSegment, ...]
    latents: LatentStore

    @property
    def info(self) -> VideoInfo:
        return self.inspection.info

    @property
    def size(self) -> tuple[int, int]:
        """(height_px, width_px) at which the editor works on this video."""
        return self.spec.geometry.height_px, self.spec.geometry.width_px

    @property
    def instruction(self) -> str:
        return self.spec.turns[-1].instruction


def load_context(edit_url: str, *, lru: LatentLRU) -> EditContext:
    store = Store(edit_url)
    edit = store.read_json("spec.json")
    video = Store(edit_url.rsplit("/edits/", 1)[0])
    prepared = video / "prepared" / edit["prepared"]
    return EditContext(
        store=store,
        spec=EditSpec.from_json(edit["spec"]),
        preset=edit["preset"],
        source_uri=video.read_json("source.json")["uri"],
        inspection=Inspection(
            info=VideoInfo.from_json(prepared.read_json("video.json")),
            pts=prepared.read_table("frames.parquet", columns=["pts"])["pts"].to_numpy(),
        ),
        plan=tuple(plan_from_table(store.read_table("plan.parquet"))),
        latents=LatentStore(store / "latents", lru=lru),
    )


def chunk_name(segment: int, size: str) -> str:
    """The rendered chunk of a segment; `size` is "source" or "model", so that a change of --size renders anew."""
    return f"segment-{segment:05d}.{size}.mp4"


def thumbnail_name(segment: int) -> str:
    return f"segment-{segment:05d}.jpg"


def preview_name(segment: int) -> str:
    return f"segment-{segment:05d}.preview.parquet"
