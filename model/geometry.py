"""Which segment lengths and frame sizes an editor accepts. Pure arithmetic; imports nothing heavy, because the driver plans with it.

The remainder rule: a segment whose length is not legal is padded at its end by repeating its last frame up to the next
legal length; the padded frames are cut from the result. No output frame is dropped or duplicated.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Legal geometry of an editor.

    Attributes:
        segment_frames: most frames that one generation sees.
        min_frames: fewest frames; equal to `segment_frames` where only one length is legal.
        frame_multiple: legal lengths are `frame_multiple * n + 1` (4n+1 for Wan VAEs).
        sizes: legal (height_px, width_px), any aspect ratio a video may have is mapped to the nearest.
    """

    segment_frames: int
    min_frames: int
    frame_multiple: int
    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for name, frames in (("segment_frames", self.segment_frames), ("min_frames", self.min_frames)):
            if frames < 1 or (frames - 1) % self.frame_multiple:
                raise ValueError(f"{name} is {frames}; needs {self.frame_multiple}n+1")
        if not self.sizes:
            raise ValueError("sizes is empty; needs at least one (height_px, width_px)")

    def padded_frames(self, num_frames: int) -> int:
        """The next legal length for `num_frames`.

        Raises:
            ValueError: if `num_frames` is below 1 or above `segment_frames`.
        """
        if not 1 <= num_frames <= self.segment_frames:
            raise ValueError(f"segment has {num_frames} frames; needs 1 to {self.segment_frames}")
        legal = -(-(num_frames - 1) // self.frame_multiple) * self.frame_multiple + 1
        return max(legal, self.min_frames)

    def size_for(self, display_width: float, display_height: float) -> tuple[int, int]:
        """The legal (height_px, width_px) whose aspect ratio is nearest (in log) to the displayed one."""
        aspect = display_width / display_height
        return min(self.sizes, key=lambda size: (abs_log_ratio(size[1] / size[0], aspect), size))


def abs_log_ratio(a: float, b: float) -> float:
    """|log(a/b)| without the logarithm's import: monotone in it, 0 when equal."""
    return max(a / b, b / a) - 1.0
