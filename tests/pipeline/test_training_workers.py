"""Two real Ray Train workers."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.presets import load_editor
from model.training.trainer import train
from pipeline.training_workers import train_with_workers
from tests.model.test_training import micro
from tests.model.training_workers import losses

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("local_ray")
def test_two_workers_lose_what_one_process_does(tmp_path: Path) -> None:
    config = replace(
        micro(tmp_path / "one", tmp_path / "cache"), steps=8, stages=((4, 1, 6), (4, 2, 3)), warmup_steps=1, log_every=1,
    )  # fmt: skip
    train(config)
    folder = train_with_workers(replace(config, output=tmp_path / "two"), num_workers=2, address="local")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    # Sums in another order, which Muon rounds to bfloat16; the first step has no update before it.
    assert abs(one[1] - two[1]) < 1e-5
    assert all(abs(one[step] - two[step]) < 1e-3 * max(1, one[step]) for step in one)
    assert max(one.values()) - min(one.values()) > 0.1, "something was learned"
    assert load_editor(folder).geometry.segment_frames == 17
    with pytest.raises(ValueError, match="num_shards is 3; needs a multiple of the 2 workers"):
        train_with_workers(replace(config, output=tmp_path / "odd", num_shards=3), num_workers=2, address="local")
