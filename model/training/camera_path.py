"""Where the camera is and where it looks, frame by frame. Pure arithmetic on numbers; knows nothing of what stands in the scene.

World axes: x right, y up, z forward at yaw 0; metres; the floor is y = 0. A path is a list of stays: the camera eases from
one stay to the next, or cuts to it. A slow drift lies over everything, so that no two visits show the same frames.
"""

import math
from dataclasses import dataclass

Point = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Stay:
    """From `frame` on the camera moves (over `ease_frames`, 0 is a hard cut) to `position` and looks at `look_at`."""

    frame: int
    position: Point
    look_at: Point
    ease_frames: int
    sees_target: bool


@dataclass(frozen=True, kw_only=True)
class Pose:
    position: Point
    yaw: float
    pitch: float


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Stays in order of frame; the first starts at frame 0.

    Attributes:
        fov_deg: field of view over the square root of the image area, so that it means the same in any aspect ratio.
        drift_m: how far the position wanders about each stay.
        drift_frames: periods of the wandering along x, y and z.
        drift_phase: phases of the wandering, radians.
    """

    stays: tuple[Stay, ...]
    fov_deg: float
    drift_m: float
    drift_frames: tuple[float, float, float]
    drift_phase: tuple[float, float, float]

    def __post_init__(self) -> None:
        frames = [stay.frame for stay in self.stays]
        if not frames or frames[0] != 0 or frames != sorted(set(frames)):
            raise ValueError(f"stays start at frames {frames}; needs strictly rising frames from 0")

    @property
    def cuts(self) -> list[int]:
        """First frame of every shot after the first."""
        return [stay.frame for stay in self.stays[1:] if stay.ease_frames == 0]

    def pose(self, frame: int) -> Pose:
        index = max(i for i, stay in enumerate(self.stays) if stay.frame <= frame)
        x, y, z, yaw, pitch = self._staying(index, frame)
        stay = self.stays[index]
        if index and stay.ease_frames and frame < stay.frame + stay.ease_frames:
            progress = (frame - stay.frame + 1) / (stay.ease_frames + 1)
            eased = progress * progress * (3 - 2 * progress)
            from_x, from_y, from_z, from_yaw, from_pitch = self._staying(index - 1, frame)
            turn = (yaw - from_yaw + math.pi) % (2 * math.pi) - math.pi
            x, y, z = (a + (b - a) * eased for a, b in ((from_x, x), (from_y, y), (from_z, z)))
            yaw, pitch = from_yaw + turn * eased, from_pitch + (pitch - from_pitch) * eased
        return Pose(position=(x, y, z), yaw=yaw, pitch=pitch)

    def _staying(self, index: int, frame: int) -> tuple[float, float, float, float, float]:
        stay = self.stays[index]
        drift = [
            self.drift_m * share * math.sin(2 * math.pi * frame / period + phase)
            for share, period, phase in zip((1.0, 0.25, 0.8), self.drift_frames, self.drift_phase, strict=True)
        ]
        x, y, z = (a + b for a, b in zip(stay.position, drift, strict=True))
        dx, dy, dz = stay.look_at[0] - x, stay.look_at[1] - y, stay.look_at[2] - z
        return x, y, z, math.atan2(dx, dz), math.atan2(dy, math.hypot(dx, dz))
