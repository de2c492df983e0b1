"""`memory-v2v evaluate` as other tools call it."""

from pathlib import Path

import pytest

from pipeline.evaluation.evaluate import METRICS_NAME, METRICS_SCHEMA
from pipeline.evaluation.tables import METRICS
from retrieval.store import Store
from tests.jobs.commands import committed, memory_v2v

pytestmark = pytest.mark.ray


def test_one_video_by_two_methods_and_again(tmp_path: Path) -> None:
    arguments = (
        "evaluate",
        "--suite",
        "long-edit",
        "--preset",
        "tiny",
        "--videos",
        "1",
        "--seed",
        "5",
        "--out",
        tmp_path,
    )
    answer = memory_v2v(*arguments, "--methods", "independent,memory", "--json")
    assert answer.status == 0, answer.stderr
    table = Store(str(tmp_path)).read_table(METRICS_NAME)
    assert table.schema == METRICS_SCHEMA
    rows = table.to_pylist()
    assert {row["method"] for row in rows} == {"independent", "memory", "do-nothing", "truth"}
    assert {row["metric"] for row in rows} == set(METRICS)
    assert {row["seed"] for row in rows} == {5}
    assert all(row["value"] == 0 for row in rows if row["method"] == "truth" and row["metric"] == "edit_error")
    means = answer.result["means"]
    assert means["flops"]["memory"] > means["flops"]["independent"] > 0
    assert means["edit_error"]["do-nothing"] > 0
    assert set(means["edit_error"]) == {"independent", "memory", "do-nothing", "truth"}
    for name in ("report.md", "report.html", "consistency_by_gap.png", "metrics.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert "times lower with memory" in (tmp_path / "report.html").read_text()

    before = committed(tmp_path / "workspace")
    again = memory_v2v(*arguments, "--methods", "independent", "--json")
    assert again.status == 0, again.stderr
    assert committed(tmp_path / "workspace") == before, "what is edited is not edited again"
    assert set(again.result["means"]["edit_error"]) == {"independent", "do-nothing", "truth"}


def test_wrong_commands_say_so(tmp_path: Path) -> None:
    answer = memory_v2v("evaluate", "--methods", "memory,magic", "--out", tmp_path)
    assert answer.status == 2
    assert "--methods has 'magic'; needs some of memory, independent, previous, recent, random" in answer.stderr
