"""`memory-v2v evaluate` as other tools call it."""

from pathlib import Path

import pytest

from pipeline.evaluation.evaluate import METRICS_NAME, METRICS_SCHEMA
from pipeline.evaluation.tables import METRICS
from retrieval.store import Store
from tests.jobs.commands import committed, memory_v2v
from tests.presets import write_random_preset

pytestmark = pytest.mark.ray


@pytest.mark.timeout(1200)
def test_one_video_by_three_rows_and_again(tmp_path: Path) -> None:
    merging = write_random_preset(tmp_path / "merging", merging_blocks=(1, 2))
    isolated = write_random_preset(tmp_path / "isolated", memory_attention="isolated")
    coarse = "memory:kernels=coarse:merging=discard-low:share=0.7"
    arguments = (
        "evaluate",
        "--suite",
        "long-edit",
        "--videos",
        "1",
        "--seed",
        "5",
        "--out",
        tmp_path / "out",
        "--json",
    )
    answer = memory_v2v(
        *arguments, "--preset", f"{merging},{isolated}", "--methods", f"memory,{coarse}", "--frame-embedder", "bundled",
        timeout_s=900,
    )  # fmt: skip
    assert answer.status == 0, answer.stderr
    table = Store(str(tmp_path / "out")).read_table(METRICS_NAME)
    assert table.schema == METRICS_SCHEMA
    rows = table.to_pylist()
    methods = {"memory", coarse, f"memory@{isolated}", "do-nothing", "truth"}
    assert {row["method"] for row in rows} == methods
    assert {row["metric"] for row in rows} == {*METRICS, "clip_f"}
    assert {row["seed"] for row in rows} == {5}
    assert all(row["value"] == 0 for row in rows if row["method"] == "truth" and row["metric"] == "edit_error")
    means = answer.result["means"]
    assert set(means["edit_error"]) == methods
    assert means["flops"]["memory"] > means["flops"][coarse] > 0
    assert means["edit_error"]["memory"] != means["edit_error"][f"memory@{isolated}"]
    assert means["edit_error"]["do-nothing"] > 0
    assert 0.5 < means["clip_f"]["truth"] <= 1
    for name in ("report.md", "report.html", "consistency_by_gap.png", "metrics.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert "How many times lower the consistency error is with memory" in (tmp_path / "out/report.html").read_text()

    before = committed(tmp_path / "out/workspace")
    again = memory_v2v(*arguments, "--preset", merging, "--methods", "memory:merging=off")
    assert again.status == 0, again.stderr
    assert committed(tmp_path / "out/workspace") == before, "what is edited is not edited again, however it is written"
    assert set(again.result["means"]["edit_error"]) == {"memory:merging=off", "do-nothing", "truth"}
    assert "clip_f" not in again.result["means"]


def test_wrong_commands_say_so(tmp_path: Path) -> None:
    answer = memory_v2v("evaluate", "--methods", "memory,magic", "--out", tmp_path)
    assert answer.status == 2
    assert "--methods has 'magic'; needs some of memory, independent, previous, recent, random" in answer.stderr
    isolated = write_random_preset(tmp_path / "isolated", memory_attention="isolated")
    answer = memory_v2v(
        "edit", "film.mp4", "--instruction", "make it red", "--workspace", tmp_path / "work", "--preset", isolated,
        "--kernels", "fine", "--merging", "merge-low", "--merging-share", "0.3",
    )  # fmt: skip
    assert answer.status == 2
    assert "merging is 'merge-low'; preset 'isolated' has isolated memory" in answer.stderr
    assert not (tmp_path / "work").exists(), "nothing is begun"
