"""A run that was killed goes on as if nothing had happened; what a run needs is what it says it needs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.presets import folder_revision, resolve_preset
from model.training.config import TrainingConfig
from model.training.trainer import train
from tests.model.test_training import micro
from tests.model.training_workers import ROOT, losses

STEPS = 40


def long_run(output: Path, cache: Path) -> TrainingConfig:
    """Real steps (no warm-up), a checkpoint between two lines of the log."""
    config = micro(output, cache)
    return replace(
        config, steps=STEPS, stages=((10, 1, 4), (30, 2, 2)), warmup_steps=1, log_every=1, checkpoint_every=7,
        sample_every=20,
    )  # fmt: skip


def start(config: TrainingConfig, options: Path, *, code: str = "") -> subprocess.Popen[str]:
    """`python -m model.training`, after some code."""
    options.write_text(json.dumps(config.to_json()))
    run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_module('model.training', run_name='__main__', alter_sys=True)"
    return subprocess.Popen(
        [sys.executable, "-c", code + run, "model.training", str(options)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_losses_after_a_kill_are_those_of_the_undisturbed_run(tmp_path: Path) -> None:
    whole = long_run(tmp_path / "whole", tmp_path / "cache")
    train(whole)
    config = replace(whole, output=tmp_path / "killed")
    kill_at = random.Random(5).randrange(9, STEPS - 5)
    process = start(config, tmp_path / "options.json")
    log = config.output / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_text().count("\n") >= kill_at:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert kill_at <= max(losses(config.output)) < STEPS, "killed on the way"
    resumed = train(replace(config, resume=True))
    assert losses(config.output) == losses(whole.output)
    assert folder_revision(resumed) == folder_revision(whole.output / "preset")
    board = EventAccumulator(str(config.output / "tensorboard"))
    board.Reload()
    assert {"loss", "learning_rate", "gradient_norm"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("loss")] == list(range(1, STEPS + 1))
    pictures = board.Images("source, edited, truth")
    # Three rows, and source, edit and truth side by side.
    assert [(event.step, event.height / event.width) for event in pictures] == [(20, 1.0), (40, 1.0)]
    with pytest.raises(ValueError, match=r"learning_rate is 1.0; the run to resume had 0.001"):
        train(replace(config, resume=True, learning_rate=1.0))


ONLY = """
import importlib.metadata as metadata, re, sys
from importlib.machinery import PathFinder

def needs(name, found):
    if name not in found:
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return
        for line in lines:
            if 'extra ==' not in line:
                needs(re.match(r'[A-Za-z0-9._-]+', line)[0].lower().replace('_', '-'), found)

there = set()
for name in ('torch', 'diffusers', 'transformers', 'safetensors', 'einops', 'jaxtyping', 'tqdm', 'tensorboard'):
    needs(name, there)
allowed = {'model'}
for module, packages in metadata.packages_distributions().items():
    if any(package.lower().replace('_', '-') in there for package in packages):
        allowed.add(module)
for gone in ('ray', 'av', 'pyarrow', 'faiss', 'open_clip', 'tyro', 'peft', 'accelerate', 'pandas', 'matplotlib', 'rich'):
    assert gone not in allowed or gone == 'rich', gone

class Only(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        is_installed = spec is not None and 'site-packages' in str(spec.origin or spec.submodule_search_locations)
        return None if is_installed and name.split('.')[0] not in allowed else spec

sys.meta_path = [Only if finder is PathFinder else finder for finder in sys.meta_path if 'editable' not in repr(finder)]
for gone in ('ray', 'peft', 'tyro', 'av'):
    try:
        __import__(gone)
    except ImportError:
        continue
    raise AssertionError(gone)
"""


def test_training_needs_nothing_but_what_it_says(tmp_path: Path) -> None:
    """Everything else is hidden from the interpreter; two steps, and a preset folder comes out."""
    config = replace(micro(tmp_path / "run", tmp_path / "cache"), steps=2, stages=((2, 1, 2),))
    process = start(config, tmp_path / "options.json", code=ONLY)
    assert process.wait(120) == 0, process.stderr.read() if process.stderr else ""
    assert sorted(path.name for path in (tmp_path / "run" / "preset").iterdir()) == [
        "codec", "preset.json", "text_encoder", "transformer",
    ]  # fmt: skip
    assert resolve_preset(tmp_path / "run" / "preset").geometry.segment_frames == 17


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ('{"outptu": "x"}', r"unknown \['outptu'\], missing \['output'\]"),
        ('{"output": "x", "train": "some"}', "train is 'some'; needs one of all, memory, lora"),
        ('{"output": "x", "steps": "many"}', "steps is 'many'; needs int"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, document: str, message: str) -> None:
    (tmp_path / "options.json").write_text(document)
    with pytest.raises(ValueError, match=message):
        TrainingConfig.read(tmp_path / "options.json")
