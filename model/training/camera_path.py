"""Where the camera is and where it looks, frame by frame, and how such a path is drawn. Knows where the target stands; no more.

World axes: x right, y up, z forward at yaw 0; metres; the floor is y = 0. A path is a list of stays: the camera eases from
one stay to the next, or cuts to it. A slow drift lies over everything, so that no two visits show the same frames.
"""

import math
import random
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


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How the target is looked at: ranges from which a path draws. Near things are framed more tightly than far ones.

    Attributes:
        aim_x_m, aim_z_m: how far beside the target, and before or behind it, the camera may look.
        aim_y: at which share of the target's height.
        roam_m: how far stands may be from the middle.
    """

    fov_deg: tuple[float, float] = (48, 66)
    drift_m: tuple[float, float] = (0.1, 0.45)
    aim_x_m: float = 0.7
    aim_y: tuple[float, float] = (0.6, 1.3)
    aim_z_m: float = 0.3
    roam_m: tuple[float, float] = (0.2, 0.9)


def draw_camera(
    rng: random.Random,
    target: Point,
    elsewhere: Point | None,
    *,
    num_frames: int,
    absence_frames: tuple[int, int],
    presence_frames: tuple[int, int],
    starts_in_view: bool,
    height_m: float,
    raise_view_m: float,
    framing: Framing,
) -> CameraPath:
    """A path on which the target leaves the view and returns, over and over.

    Visits last `presence_frames` and absences `absence_frames` (drawn log-uniformly). Away from the target the camera
    looks to other sides from the same stand or, where `elsewhere` is given, may cut to a stand there.
    """
    roam_m = rng.uniform(*framing.roam_m)
    stays: list[Stay] = []
    frame, sees_target = 0, starts_in_view
    side = rng.choice((-1.0, 1.0))
    while frame < num_frames:
        low, high = presence_frames if sees_target else absence_frames
        length = round(math.exp(rng.uniform(math.log(low), math.log(max(low, high)))))
        end = frame + length
        is_cut = elsewhere is not None and rng.random() < 0.6
        while frame < end:
            ease = 0 if is_cut else rng.randint(9, 16)
            if sees_target:
                stand = (rng.uniform(-roam_m, roam_m), height_m, rng.uniform(-roam_m, roam_m) * 0.7)
                look_at = (
                    target[0] + rng.uniform(-framing.aim_x_m, framing.aim_x_m),
                    target[1] * rng.uniform(*framing.aim_y) + raise_view_m,
                    target[2] + rng.uniform(-framing.aim_z_m, framing.aim_z_m),
                )
                hold = end - frame
            else:
                if elsewhere is not None and is_cut:
                    stand = (elsewhere[0] + rng.uniform(-1, 1), height_m, elsewhere[2] + rng.uniform(-1, 1))
                    azimuth = math.atan2(elsewhere[0], elsewhere[2]) + rng.uniform(-1.0, 1.0)
                else:
                    stand = (rng.uniform(-roam_m, roam_m) * 0.5, height_m, rng.uniform(-roam_m, roam_m) * 0.5)
                    azimuth = math.atan2(target[0], target[2]) + side * rng.uniform(1.75, 3.0)
                look_at = (stand[0] + 5 * math.sin(azimuth), rng.uniform(0.4, 1.6), stand[2] + 5 * math.cos(azimuth))
                hold = min(end - frame, rng.randint(34, 80))
                hold = end - frame if end - frame - hold < 20 else hold
                side = rng.choice((side, side, -side))
            stays.append(Stay(frame=frame, position=stand, look_at=look_at, ease_frames=ease, sees_target=sees_target))
            frame += hold
            is_cut = False if elsewhere is None or sees_target else is_cut and rng.random() < 0.5
        sees_target = not sees_target
    drift = [rng.uniform(70, 240) for _ in range(3)]
    phase = [rng.uniform(0, 2 * math.pi) for _ in range(3)]
    return CameraPath(
        stays=tuple(stays),
        fov_deg=rng.uniform(*framing.fov_deg),
        drift_m=rng.uniform(*framing.drift_m),
        drift_frames=(drift[0], drift[1], drift[2]),
        drift_phase=(phase[0], phase[1], phase[2]),
    )
