"""Continued clips: diffusers' FramePack pipeline with tiny random networks; what becomes of continuations in batches."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.training.batches import BatchSampler
from model.training.codec_fit import fit_codec, world_videos
from model.training.config import TrainingConfig
from model.training.extension import Clip, FramePackExtender, extend_segments
from model.training.segments import Segments, render_segments
from tests.pipelines import tokenizer

FRAMES = 9


@pytest.fixture(scope="module")
def framepack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder as published ones are laid out."""
    folder = tmp_path_factory.mktemp("framepack")
    torch.manual_seed(0)
    text = {
        "vocab_size": 320,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    words = tokenizer()
    words.model_max_length = 77
    pipeline = HunyuanVideoFramepackPipeline(
        text_encoder=LlamaModel(LlamaConfig(**text, max_position_embeddings=512)).eval(),
        tokenizer=tokenizer(),
        transformer=HunyuanVideoFramepackTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True,
            text_embed_dim=16, pooled_projection_dim=16, rope_axes_dim=(2, 4, 4), image_condition_type=None,
            has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True,
        ).eval(),
        vae=AutoencoderKLHunyuanVideo(
            in_channels=3, out_channels=3, latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, act_fn="silu", norm_num_groups=4, scaling_factor=0.476986,
            spatial_compression_ratio=8, temporal_compression_ratio=4, mid_block_add_attention=True,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=CLIPTextModel(CLIPTextConfig(**text, projection_dim=16, max_position_embeddings=77)).eval(),
        tokenizer_2=words,
        image_encoder=SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
            )
        ).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def test_framepack_continues_a_clip(framepack: Path) -> None:
    codec = fit_codec(world_videos(1, seed=500, size=(24, 32)))
    extender = FramePackExtender.from_pretrained(framepack, codec=codec, segment_frames=FRAMES, device="cpu")
    extender.options.update(num_inference_steps=1, latent_window_size=3)
    clip = Clip(source=None, edited=codec.encode(torch.rand(1, 3, FRAMES, 24, 32))[0])
    made = extender.extend(clip, "a red ball", num_segments=2, seed=3)
    assert [item.edited.shape for item in made] == [clip.edited.shape] * 2
    assert all(item.source is None for item in made)
    assert not torch.equal(made[0].edited, made[1].edited)
    again = extender.extend(clip, "a red ball", num_segments=2, seed=3)
    assert torch.equal(made[1].edited, again[1].edited)


def test_framepack_that_is_not_there_is_named(tmp_path: Path) -> None:
    codec = fit_codec(world_videos(1, seed=500, size=(16, 16)))
    with pytest.raises(ValueError, match="needs a HunyuanVideoFramepackPipeline folder"):
        FramePackExtender.from_pretrained(tmp_path, codec=codec, segment_frames=FRAMES, device="cpu")
    with pytest.raises(ValueError, match="extension is 'framepack', framepack None; needs both or neither"):
        TrainingConfig(output=tmp_path, extension="framepack")


class Copies:
    """Continues a clip by itself; every second time without a source."""

    def extend(self, clip: Clip, instruction: str, *, num_segments: int, seed: int) -> list[Clip]:
        assert instruction
        return [
            Clip(source=clip.source if number % 2 else None, edited=clip.edited + 1e5) for number in range(num_segments)
        ]


def test_continuations_are_memories_only() -> None:
    codec = fit_codec(world_videos(1, seed=500, size=(16, 16)))
    short = render_segments(range(100, 104), codec=codec, size=(16, 16), segment_frames=17, num_frames=17)
    continued: Segments = extend_segments(short, Copies(), codec, num_segments=2, seed=0)
    assert len(continued) == 3 * len(short)
    assert not bool(continued.source[1].any())
    assert bool(continued.mask[1].all())
    sampler = BatchSampler([continued], [continued], seed=1, memory_noise=0.0, shift=4.0, memoryless=0.2)
    seen = 0
    for step in range(30):
        batch = sampler.batch(step, batch_size=4, num_frames=5)
        assert float(batch.x_0.abs().mean()) < 1e3, "a continuation is never a target"
        assert all(item.role == "retrieved" for item in batch.memory)
        assert len(batch.memory) <= 2
        if batch.memory_sigma is None:
            seen += sum(bool((item.latents[:, :48].mean((1, 2, 3, 4)) > 5e4).all()) for item in batch.memory)
    assert seen > 5
