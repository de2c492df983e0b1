"""The attempt ledger against a real folder."""

import json
from pathlib import Path

import pytest

from pipeline.ledger import AttemptLedger
from pipeline.tasks import Task, TaskFailure
from retrieval.store import Store


def task(kind, index: int) -> Task:
    return Task("bikes", kind, index, "/workspace/bikes/edits/1")


@pytest.fixture
def ledger(tmp_path: Path) -> AttemptLedger:
    return AttemptLedger(Store(str(tmp_path / "attempts")))


def failures(ledger: AttemptLedger):
    return ledger.failures(video="bikes", edit_url="/workspace/bikes/edits/1")


def test_an_edit_without_failures_has_no_folder(ledger, tmp_path):
    assert failures(ledger) == {}
    assert ledger.clear() == 0
    assert not (tmp_path / "attempts").exists()


def test_failures_come_back_by_task_in_order_of_attempts(ledger):
    for attempt in range(1, 12):  # more than nine: "10" must not sort before "2"
        ledger.record(
            task("edit", 12), TaskFailure(error_type="Killed", message=f"try {attempt}"), attempt=attempt, worker="w0"
        )
    ledger.record(task("render", 3), TaskFailure(error_type="OSError", message="disk"), attempt=1, worker="w1")
    found = failures(ledger)
    assert [failure.message for failure in found[task("edit", 12)]] == [f"try {n}" for n in range(1, 12)]
    assert ledger.attempts(task("render", 3)) == [TaskFailure(error_type="OSError", message="disk")]
    assert ledger.attempts(task("edit", 3)) == []
    assert set(found) == {task("edit", 12), task("render", 3)}


def test_the_file_says_what_when_and_who(ledger, tmp_path):
    ledger.record(task("edit", 12), TaskFailure(error_type="ValueError", message="é\nline"), attempt=1, worker="w0")
    row = json.loads((tmp_path / "attempts/edit-00012-1.json").read_text())
    assert row.pop("at") > 1.7e9
    assert row == {
        "kind": "edit",
        "segment": 12,
        "attempt": 1,
        "error_type": "ValueError",
        "message": "é\nline",
        "worker": "w0",
    }


def test_clear_forgets_everything(ledger):
    ledger.record(task("edit", 0), TaskFailure(error_type="E", message="m"), attempt=1, worker="w0")
    assert ledger.clear() == 1
    assert failures(ledger) == {}


def test_a_half_written_file_is_not_an_attempt(ledger, tmp_path):
    ledger.record(task("edit", 0), TaskFailure(error_type="E", message="m"), attempt=1, worker="w0")
    (tmp_path / "attempts/.tmp-0123").write_text('{"kind": "ed')
    assert len(failures(ledger)) == 1
