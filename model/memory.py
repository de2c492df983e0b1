"""Where a memory stands: relevance decides its patch kernel, its role decides its temporal positions.

Torch-free arithmetic, because the driver freezes kernels in the plan. Source: Memory-V2V (arXiv 2601.16296) section 3.2
(kernels) and appendix E (positions). The paper leaves open which kernel the previous segment of a long video gets; it is the
continuation the target must join, so it gets the finest.
"""

from typing import Literal

MemoryRole = Literal["previous", "retrieved"]
Kernel = tuple[int, int, int]

BASE_KERNEL: Kernel = (1, 2, 2)
RELEVANT_KERNEL: Kernel = (1, 4, 4)
COARSE_KERNEL: Kernel = (1, 8, 8)
KERNELS: tuple[Kernel, ...] = (BASE_KERNEL, RELEVANT_KERNEL, COARSE_KERNEL)

NUM_RELEVANT = 3
"""How many of the retrieved get `RELEVANT_KERNEL` (paper section 4.1)."""


def memory_kernel(role: MemoryRole, rank: int = 0) -> Kernel:
    """Kernel of a memory: `rank` counts the RETRIEVED memories from 0, most relevant first.

    Raises:
        ValueError: for a role that is neither "previous" nor "retrieved".
    """
    if role == "previous":
        return BASE_KERNEL
    if role == "retrieved":
        return RELEVANT_KERNEL if rank < NUM_RELEVANT else COARSE_KERNEL
    raise ValueError(f'memory role is {role!r}; needs "previous" or "retrieved"')


def temporal_start(role: MemoryRole, num_frames: int) -> int:
    """First temporal position of a memory beside a target of `num_frames` latent frames.

    The target holds 0..T-1, the previous segment T..2T-1, and all other memories share 2T..3T-1 (appendix E): they are a
    set, not a sequence, so a memory means the same whenever it was made.
    """
    return num_frames if role == "previous" else 2 * num_frames


def kernel_name(kernel: Kernel) -> str:
    """`(1, 4, 4)` -> `1x4x4`."""
    return "x".join(map(str, kernel))
