"""Tiny diffusers pipelines with random weights, saved as published ones are: nothing is downloaded."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LucyEditPipeline,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

SIZE = (32, 48)
NUM_FRAMES = 9
STEPS = 4

NETWORK = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with T5's padding and end."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {letter: 3 + number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def components(*, in_channels: int) -> dict[str, object]:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.5, 1.0, 2.0],
    )
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=259, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0)
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": text_encoder.eval(),
        "vae": vae.eval(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
        ),
        "transformer": WanTransformer3DModel(**NETWORK, in_channels=in_channels).eval(),
    }


def save(pipeline: LucyEditPipeline | WanVideoToVideoPipeline, folder: Path, **settings: object) -> None:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    document = {
        "name": "small",
        "geometry": {"segment_frames": NUM_FRAMES, "min_frames": 5, "frame_multiple": 4, "sizes": [list(SIZE)]},
        "sampler": {"num_inference_steps": STEPS, "guidance_scale": 3.0},
        "precision": "float32",
    }
    (folder / "preset.json").write_text(json.dumps(document | settings))


def lucy(folder: Path, *, is_two_stage: bool = False) -> LucyEditPipeline:
    """LucyEdit's layout: the source on channels, timesteps per token."""
    parts = components(in_channels=8)
    if is_two_stage:
        parts |= {"transformer_2": WanTransformer3DModel(**NETWORK, in_channels=8).eval(), "boundary_ratio": 0.9}
    pipeline = LucyEditPipeline(**parts, expand_timesteps=not is_two_stage)
    save(pipeline, folder)
    return pipeline


def text_to_video(folder: Path) -> WanVideoToVideoPipeline:
    """Wan2.1's layout, with the other scheduler."""
    parts = components(in_channels=4) | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    pipeline = WanVideoToVideoPipeline(**parts)
    save(pipeline, folder)
    return pipeline
