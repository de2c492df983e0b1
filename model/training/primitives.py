"""Where rays meet unit primitives, in the primitive's own space. Knows nothing of scenes or colours.

Every function takes origins and directions by component and returns the ray parameter of the nearest hit in front of the
origin (FAR_M where there is none) and the unnormalised normal by component. Sphere: radius 1. Dome: its upper half. Box:
[-1, 1]^3. Cylinder: radius 1, y in [-1, 1]. Cone: apex at y = 1, base of radius 1 at y = -1, seen from above (no base). Ring and
frame: flat in z = 0, what is left of the unit disc and square without their inner 0.7.
"""

import torch
from torch import Tensor

FAR_M = 1e4
RIM_INNER = 0.7


def sphere(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    disc = b * b - a * (ox * ox + oy * oy + oz * oz - 1)
    t = (-b - disc.clamp(min=0).sqrt_()) / a
    t = t.masked_fill((disc < 0) | (t < 1e-3), FAR_M)
    return t, ox + t * dx, oy + t * dy, oz + t * dz


def dome(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    t, nx, ny, nz = sphere(ox, oy, oz, dx, dy, dz)
    return t.masked_fill(ny < 0, FAR_M), nx, ny, nz


def box(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    nears, fars = [], []
    for o, d in ((ox, dx), (oy, dy), (oz, dz)):
        inverse = 1 / torch.where(d.abs() < 1e-6, 1e-6, d)
        middle, reach = -o * inverse, inverse.abs()
        nears.append(middle - reach)
        fars.append(middle + reach)
    near = torch.maximum(torch.maximum(nears[0], nears[1]), nears[2])
    far = torch.minimum(torch.minimum(fars[0], fars[1]), fars[2])
    nx, ny, nz = (torch.where(own == near, -d.sign(), 0.0) for own, d in zip(nears, (dx, dy, dz), strict=True))
    return near.masked_fill((near > far) | (near < 1e-3), FAR_M), nx, ny, nz


def cylinder(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    a = (dx * dx + dz * dz).clamp_(min=1e-9)
    b = ox * dx + oz * dz
    disc = b * b - a * (ox * ox + oz * oz - 1)
    side = (-b - disc.clamp(min=0).sqrt_()) / a
    side = side.masked_fill((disc < 0) | (side < 1e-3) | ((oy + side * dy).abs() > 1), FAR_M)
    facing = -dy.sign()
    cap = (facing - oy) / torch.where(dy.abs() < 1e-6, 1e-6, dy)
    x, z = ox + cap * dx, oz + cap * dz
    cap = cap.masked_fill((cap < 1e-3) | (x * x + z * z > 1), FAR_M)
    is_cap = cap < side
    t = torch.where(is_cap, cap, side)
    return (
        t,
        torch.where(is_cap, 0.0, ox + t * dx),
        torch.where(is_cap, facing, 0.0),
        torch.where(is_cap, 0.0, oz + t * dz),
    )


def cone(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    drop = 1 - oy
    a = dx * dx + dz * dz - 0.25 * dy * dy
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    b = ox * dx + oz * dz + 0.25 * drop * dy
    disc = b * b - a * (ox * ox + oz * oz - 0.25 * drop * drop)
    root = disc.clamp(min=0).sqrt_()
    best = torch.full_like(a, FAR_M)
    for t in ((-b - root) / a, (-b + root) / a):
        is_valid = (disc >= 0) & (t > 1e-3) & ((oy + t * dy).abs() <= 1)
        best = torch.where(is_valid & (t < best), t, best)
    return best, ox + best * dx, 0.25 * (drop - best * dy), oz + best * dz


def ring(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    return _rim(ox, oy, oz, dx, dy, dz, is_round=True)


def frame(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    return _rim(ox, oy, oz, dx, dy, dz, is_round=False)


def _rim(
    ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor, *, is_round: bool
) -> tuple[Tensor, ...]:
    t = -oz / torch.where(dz.abs() < 1e-6, 1e-6, dz)
    x, y = ox + t * dx, oy + t * dy
    reach = (x * x + y * y).sqrt_() if is_round else torch.maximum(x.abs(), y.abs())
    t = t.masked_fill((t < 1e-3) | (reach > 1) | (reach < RIM_INNER), FAR_M)
    flat = torch.zeros_like(t)
    return t, flat, flat, -dz.sign()


INTERSECT = {
    "sphere": sphere,
    "dome": dome,
    "box": box,
    "cylinder": cylinder,
    "cone": cone,
    "ring": ring,
    "frame": frame,
}
