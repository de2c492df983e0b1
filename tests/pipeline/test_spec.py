import json
from dataclasses import replace

import pytest

from model.geometry import Geometry
from model.memory import MemorySettings
from pipeline.spec import (
    EditSpec,
    Retrieval,
    SegmentGeometry,
    ShotDetection,
    Turn,
    canonical_json,
    content_id,
    prepare_id,
)

SPEC = EditSpec(
    source_sha256="ab" * 32,
    turns=(Turn(instruction="make the hat red — é 帽子"),),
    preset="tiny",
    weights_revision="0123456789ab",
    sampler={"num_inference_steps": 8, "guidance_scale": 1.5, "shift": 3.0},
    seed=7,
    geometry=SegmentGeometry(segment_frames=17, min_frames=17, frame_multiple=4, height_px=64, width_px=96),
    retrieval=Retrieval(method="memory", top_k=3, slack=0.02, embedder_revision="clip0"),
    memory=MemorySettings(kernels="dynamic", merging="off", merging_share=0.0),
    shots=ShotDetection(detector="adaptive", threshold=3.0, min_content_change=15.0, min_shot_frames=15, width_px=256),
)
GEOMETRY = Geometry(segment_frames=17, min_frames=1, frame_multiple=4, sizes=((64, 96), (96, 64)))


def leaves(value, path=()):
    """(path, value) of every scalar in nested JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def changed_at(value, path, leaf):
    value = json.loads(json.dumps(value))
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = leaf
    return value


def test_golden_ids():
    # These name folders that users have. If one changes, SPEC_VERSION or PREPARE_VERSION must have changed with it.
    assert SPEC.edit_id == "9c22b641de572631"
    prepared = prepare_id("ab" * 32, geometry=GEOMETRY, shots=SPEC.shots, embedder_revision="clip0")
    assert prepared == "09bdd793607896a3"


def test_every_changed_field_changes_the_id():
    value = SPEC.to_json()
    ids = {SPEC.edit_id}
    paths = [path for path, _ in leaves(value)]
    assert len(paths) == 28
    for path, leaf in leaves(value):
        ids.add(content_id(changed_at(value, path, leaf + "x" if isinstance(leaf, str) else leaf + 1)))
    assert len(ids) == 1 + len(paths)


def test_a_further_turn_or_sampler_setting_changes_the_id():
    assert replace(SPEC, turns=(*SPEC.turns, Turn(instruction="then blue"))).edit_id != SPEC.edit_id
    assert replace(SPEC, sampler={**SPEC.sampler, "eta": 0}).edit_id != SPEC.edit_id


def test_key_order_and_number_formatting_do_not_change_the_id():
    reordered = dict(reversed(SPEC.sampler.items()))
    assert replace(SPEC, sampler=reordered).edit_id == SPEC.edit_id
    assert replace(SPEC, sampler={**SPEC.sampler, "shift": 3, "num_inference_steps": 8.0}).edit_id == SPEC.edit_id
    assert replace(SPEC, shots=replace(SPEC.shots, threshold=3, min_shot_frames=15.0)).edit_id == SPEC.edit_id
    assert canonical_json({"b": 1.50, "a": [2.0, -0.0, 1e3]}) == '{"a":[2,0,1000],"b":1.5}'


@pytest.mark.parametrize("indent", [None, 4])
def test_a_spec_survives_json(indent):
    text = json.dumps(SPEC.to_json(), indent=indent, sort_keys=indent is None)
    back = EditSpec.from_json(json.loads(text))
    assert back == SPEC
    assert back.edit_id == SPEC.edit_id


def test_a_spec_of_another_version_is_refused():
    with pytest.raises(ValueError, match="version 99; this software reads 6"):
        EditSpec.from_json({**SPEC.to_json(), "version": 99})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), b"bytes", object(), {1: 2}])
def test_what_has_no_canonical_form_is_refused(bad):
    with pytest.raises(ValueError, match=r"finite|identity|text"):
        replace(SPEC, sampler={"shift": bad})


def test_a_spec_without_turns_is_refused():
    with pytest.raises(ValueError, match="turns is empty"):
        replace(SPEC, turns=())


def test_segment_geometry_takes_a_legal_size_only():
    assert SegmentGeometry.of(GEOMETRY, size=(96, 64)).height_px == 96
    with pytest.raises(ValueError, match="not legal"):
        SegmentGeometry.of(GEOMETRY, size=(64, 64))


def test_prepare_id_depends_on_everything_that_cuts_or_embeds():
    settings = {"geometry": GEOMETRY, "shots": SPEC.shots, "embedder_revision": "clip0"}
    ids = {
        prepare_id("ab" * 32, **settings),
        prepare_id("cd" * 32, **settings),
        prepare_id("ab" * 32, **{**settings, "geometry": replace(GEOMETRY, segment_frames=13)}),
        prepare_id("ab" * 32, **{**settings, "geometry": replace(GEOMETRY, sizes=((64, 96),))}),
        prepare_id("ab" * 32, **{**settings, "shots": replace(SPEC.shots, threshold=30)}),
        prepare_id("ab" * 32, **{**settings, "shots": replace(SPEC.shots, detector="other")}),
        prepare_id("ab" * 32, **{**settings, "embedder_revision": "clip1"}),
    }
    assert len(ids) == 7
