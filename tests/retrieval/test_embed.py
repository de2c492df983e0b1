"""The bundled embedder and the names of others. No network: what would need one must say so clearly."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.embed import BUNDLED_FOLDER, Embedder, embedder_revision, load_embedder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    import torch

    torch.set_num_threads(1)  # as every worker
    return load_embedder()


def frames_of(num_frames: int, height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def test_embedding_is_a_unit_vector_and_the_mean_over_every_frame(embedder: Embedder) -> None:
    frames = frames_of(37)
    found = embedder.embed_frames(frames)
    assert found.dtype == np.float32
    assert found.ndim == 1
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    each = np.stack([embedder.frame_features(frame[None])[0] for frame in frames])
    mean = each.mean(0)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)
    changed = frames.copy()
    changed[20] = 255 - changed[20]
    assert not np.allclose(embedder.embed_frames(changed), found, atol=1e-6), "one frame among 37 must count"


def test_whole_frame_is_seen_whatever_its_aspect(embedder: Embedder) -> None:
    wide = np.full((1, 40, 160, 3), 90, dtype=np.uint8)
    marked = wide.copy()
    marked[:, :, :16] = (230, 20, 20)
    likeness = float(embedder.embed_frames(wide) @ embedder.embed_frames(marked))
    assert likeness < 0.999, "what stands at the side of a wide frame must change the embedding"


def test_frames_of_the_input_size_are_used_as_they_are(embedder: Embedder) -> None:
    import torch

    frames = frames_of(2, *embedder.input_size)
    pixels = embedder.pixels(torch.from_numpy(frames))
    mean, std = (
        torch.tensor(values) for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    expected = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=1e-5)


def test_same_frames_same_bits(embedder: Embedder) -> None:
    frames = frames_of(17)
    again = load_embedder()
    assert embedder.embed_frames(frames).tobytes() == again.embed_frames(frames).tobytes()


def test_a_folder_is_an_embedder_and_its_files_are_its_revision(embedder: Embedder, tmp_path: Path) -> None:
    copy = tmp_path / "clip"
    shutil.copytree(BUNDLED_FOLDER, copy)
    loaded = load_embedder(str(copy))
    frames = frames_of(3)
    np.testing.assert_array_equal(loaded.embed_frames(frames), embedder.embed_frames(frames))
    assert loaded.revision == embedder_revision("bundled") == embedder.revision
    config = copy / "open_clip_config.json"
    config.write_text(json.dumps(json.loads(config.read_text())))
    assert embedder_revision(str(copy)) != embedder.revision


def test_revision_needs_no_torch() -> None:
    code = (
        "import sys; from retrieval.embed import embedder_revision; "
        "print(embedder_revision('bundled'), embedder_revision('ViT-B-32:openai')); "
        "sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [embedder_revision("bundled"), "open_clip:ViT-B-32:openai"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "needs 'bundled', a folder"),
        ("VIT-B-32:openai", "nearest is 'ViT-B-32"),
        ("ViT-B-32:laion3b", "needs a file or one of openai"),
    ],
)
def test_unknown_names_say_what_is_known(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_embedder(name)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs open_clip_config.json"):
        load_embedder(str(tmp_path))


def test_weights_that_cannot_be_had_say_which_files_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"download the model from .*laion.* put open_clip_model.safetensors"):
        load_embedder("ViT-B-32:laion2b_s34b_b79k")


@pytest.mark.parametrize("frames", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.float32)])
def test_wrong_frames_are_named(embedder: Embedder, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"needs uint8 \[T, H, W, 3\]"):
        embedder.embed_frames(frames)
