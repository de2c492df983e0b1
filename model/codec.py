"""`PatchCodec`: a linear space-time latent codec, cheap on a CPU, behind the interface of diffusers' video VAEs.

The first frame alone and every further group of frames become one latent frame (as in Wan's VAEs, whose groups have 4). A pixel
patch is projected on orthonormal directions, so decoding is the transposed projection: no network, no state.
The first frame's 4x4x3 = 48 numbers are kept exactly; those of a group (96 for 2 frames, 192 for 4) are cut to 48.

The leading `num_shared` channels mean the same in both: the spatial components of a patch, averaged over its frames. A
position carries no absolute time, so a network could not otherwise know which of two codes it is looking at.
The remaining channels are what the fit found most variance in: fine spatial components (first frame), motion (groups).

Knows nothing of files; `model.training.codec_fit` finds the directions.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

COLOUR_MAPS = 9
"""From one of R, G, B to one of R, G, B."""


class PatchCodec(ModelMixin, ConfigMixin):
    """Linear codec. Latents come out normalised: zero mean, unit variance per channel over the fitting set.

    Args:
        latent_channels: numbers per latent position.
        patch: pixels per latent position along (height, width).
        group_frames: frames per latent frame after the first.
        num_shared: leading channels that mean the same in the first frame and in groups (recorded, not used).
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        patch: tuple[int, int] = (4, 4),
        group_frames: int = 4,
        num_shared: int = 24,
    ) -> None:
        super().__init__()
        spatial = patch[0] * patch[1] * 3
        for name, width in (("first", spatial), ("group", spatial * group_frames)):
            # Rows are encoding directions; decoding uses their own inverse, since shared rows average over frames.
            self.register_buffer(f"{name}_encode", torch.zeros(latent_channels, width))
            self.register_buffer(f"{name}_decode", torch.zeros(width, latent_channels))
            self.register_buffer(f"{name}_mean", torch.zeros(latent_channels))
            self.register_buffer(f"{name}_std", torch.ones(latent_channels))

    @property
    def patch(self) -> tuple[int, int]:
        height, width = self.config.patch
        return height, width

    @property
    def group_frames(self) -> int:
        return int(self.config.group_frames)

    def mean_colour(self) -> Float[Tensor, "3 c1"]:
        """The mean RGB, in [0, 1], of what a latent decodes to: [*, :C] @ latent + [*, C].

        It lies in the shared channels, and so is the same of a first frame and of a group.
        """
        colours = rearrange(self.group_decode, "(p c f) k -> c (p f) k", c=3, f=self.group_frames).mean(1)
        return torch.cat([colours * self.group_std, (colours @ self.group_mean + 0.5)[:, None]], dim=1)

    def colour_maps(self) -> tuple[Float[Tensor, "9 c c1"], Float[Tensor, "9 c c1"]]:
        """What adding one colour to another does to latents, as far as they can hold it: [*, C, :C] @ latent + [*, C, C].

        Map 3 i + j adds colour j to colour i; black stays black.

        Returns:
            those of first frames and those of groups.
        """
        positions = self.patch[0] * self.patch[1]
        kinds = (
            (self.first_encode, self.first_decode, self.first_mean, self.first_std, 1),
            (self.group_encode, self.group_decode, self.group_mean, self.group_std, self.group_frames),
        )
        found = []
        for encode, decode, mean, std, frames in kinds:
            maps = []
            for place in torch.eye(COLOUR_MAPS).view(COLOUR_MAPS, 3, 3):
                mixed = torch.kron(torch.eye(positions), torch.kron(place, torch.eye(frames)))
                linear = encode @ mixed @ decode
                constant = linear @ mean + 0.5 * encode @ mixed.sum(1)
                maps.append(torch.cat([linear * std / std[:, None], (constant / std)[:, None]], dim=1))
            found.append(torch.stack(maps))
        return found[0], found[1]

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b c t h w"]:
        """Normalised latents of RGB frames in [0, 1].

        Raises:
            ValueError: if the frames are not `group_frames` n + 1 or the size is not a multiple of the patch.
        """
        frames, height, width = video.shape[2:]
        (ph, pw), kt = self.config.patch, self.config.group_frames
        if (frames - 1) % kt:
            raise ValueError(f"video has {frames} frames; the codec needs {kt}n+1")
        if height % ph or width % pw:
            raise ValueError(f"video is {height}x{width} px; the codec needs multiples of {ph}x{pw}")
        first = rearrange(video[:, :, :1], "b c (t f) (h p) (w q) -> b t h w (p q c f)", p=ph, q=pw, f=1)
        group = rearrange(video[:, :, 1:], "b c (t f) (h p) (w q) -> b t h w (p q c f)", p=ph, q=pw, f=kt)
        latents = [
            ((first - 0.5) @ self.first_encode.T - self.first_mean) / self.first_std,
            ((group - 0.5) @ self.group_encode.T - self.group_mean) / self.group_std,
        ]
        return rearrange(torch.cat(latents, dim=1), "b t h w c -> b c t h w").contiguous()

    def decode(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 T H W"]:
        """Frames, in [0, 1] but NOT clamped, so that the difference of two decodes is linear in the latents."""
        (ph, pw), kt = self.config.patch, self.config.group_frames
        latents = rearrange(latents, "b c t h w -> b t h w c")
        first = (latents[:, :1] * self.first_std + self.first_mean) @ self.first_decode.T + 0.5
        group = (latents[:, 1:] * self.group_std + self.group_mean) @ self.group_decode.T + 0.5
        return torch.cat(
            [
                rearrange(first, "b t h w (p q c f) -> b c (t f) (h p) (w q)", p=ph, q=pw, f=1),
                rearrange(group, "b t h w (p q c f) -> b c (t f) (h p) (w q)", p=ph, q=pw, f=kt),
            ],
            dim=2,
        )
