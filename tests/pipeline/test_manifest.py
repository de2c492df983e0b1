import json
import math

import pyarrow as pa
import pytest

from pipeline.manifest import (
    MAX_ID_CHARS,
    MAX_SEED,
    ManifestError,
    ManifestRow,
    default_id,
    load_manifest,
    rows_from_sources,
)
from retrieval.store import Store


@pytest.fixture
def write(tmp_path):
    """Write a manifest, return its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def row(source="/v/a.mp4", instruction="make it red", **more):
    return {"source": source, "instruction": instruction, **more}


def problems_of(url, **options):
    """[(line, column, message)] of the error that loading `url` must raise."""
    with pytest.raises(ManifestError) as caught:
        load_manifest(url, **options)
    problems = [(problem.line, problem.column, problem.message) for problem in caught.value.problems]
    assert all(message in str(caught.value) for _, _, message in problems)
    return problems


def only_problem(url):
    (problem,) = problems_of(url)
    return problem


FULL = [
    ManifestRow(line=1, source="/v/a.mp4", instruction="red, please", id="one", seed=5, preset="tiny"),
    ManifestRow(line=2, source="s3://b/c.mp4", instruction='a "blue" hat — é', id="two", seed=0, preset="tiny"),
]


def test_jsonl(write):
    rows = [
        {"source": "/v/a.mp4", "instruction": "red, please", "id": "one", "seed": 5, "preset": "tiny"},
        {"source": "s3://b/c.mp4", "instruction": 'a "blue" hat — é', "id": "two", "seed": None, "preset": ""},
    ]
    assert load_manifest(write("m.jsonl", rows)) == FULL


def test_csv_with_a_byte_order_mark_and_windows_lines(write):
    text = (
        '\ufeffsource,instruction,id,seed\r\n/v/a.mp4,"red, please",one,5\r\ns3://b/c.mp4,"a ""blue"" hat — é",two,\r\n'
    )
    loaded = load_manifest(write("m.csv", text))
    assert [r.line for r in loaded] == [2, 3]
    assert [(r.source, r.instruction, r.id, r.seed) for r in loaded] == [
        (r.source, r.instruction, r.id, r.seed) for r in FULL
    ]


def test_parquet_on_an_object_store_where_missing_seeds_made_the_column_float():
    table = pa.table(
        {
            "source": ["/v/a.mp4", "s3://b/c.mp4"],
            "instruction": ["red, please", 'a "blue" hat — é'],
            "id": ["one", "two"],
            "seed": [5.0, math.nan],
        }
    )
    Store("memory://manifests").write_table("m.parquet", table)
    assert load_manifest("memory://manifests/m.parquet") == FULL


def test_defaults_fill_only_what_a_row_leaves_out(write):
    url = write("m.jsonl", [row(id="a"), row(id="b", seed=1)])
    assert [r.seed for r in load_manifest(url, seed=9)] == [9, 1]


def test_a_relative_source_is_relative_to_the_manifest(write, tmp_path):
    (loaded,) = load_manifest(write("m.jsonl", [row("clips/a.mp4")]))
    assert loaded.source == str(tmp_path / "clips" / "a.mp4")
    Store("memory://bucket/lists").write_bytes("m.jsonl", json.dumps(row("clips/a.mp4")).encode())
    (loaded,) = load_manifest("memory://bucket/lists/m.jsonl")
    assert loaded.source == "memory://bucket/lists/clips/a.mp4"


def test_default_ids_are_readable_safe_and_independent_of_other_rows(write):
    rows = [row("/v/Été à Paris (1).mp4"), row("/v/a.mp4"), row("/w/a.mp4"), row("/v/帽子.mp4")]
    ids = [r.id for r in load_manifest(write("m.jsonl", rows))]
    assert len(set(ids)) == 4
    assert ids[0].startswith("Ete-a-Paris-1-")
    assert ids[3].startswith("video-")
    (alone,) = load_manifest(write("alone.jsonl", rows[2:3]))
    assert alone.id == ids[2]
    assert len(default_id("/v/" + "x" * 500 + ".mp4")) <= MAX_ID_CHARS
    assert "sig" not in default_id("https://host/a.mp4?sig=1/2")


def test_every_bad_row_is_listed_with_its_line_and_nothing_is_returned(write):
    rows = [
        row(id="good"),
        "",
        row(source="", instruction="   "),
        "{not json",
        '["a", "list"]',
        {"source": "/v/b.mp4"},
        row("/v/c.mp4", seed="seven", prest="tiny"),
        row("/v/d.mp4", id="good"),
    ]
    found = problems_of(write("m.jsonl", rows))
    assert [(line, column) for line, column, _ in found] == [
        (3, "source"),
        (3, "instruction"),
        (4, ""),
        (5, ""),
        (6, "instruction"),
        (7, "prest"),
        (7, "seed"),
        (8, "id"),
    ]
    messages = [message for *_, message in found]
    assert messages[1] == "is empty"
    assert "is not JSON" in messages[2]
    assert "JSON list" in messages[3]
    assert "did you mean 'preset'" in messages[5]
    assert "'seven'; needs a whole number" in messages[6]
    assert "line 8" in messages[7]
    assert "line 1" in messages[7]


def test_the_error_reads_as_a_list(write):
    with pytest.raises(ManifestError) as caught:
        load_manifest(write("m.jsonl", [row(id="a", seed=-1), row(id="b", instruction="")]))
    head, first, second = str(caught.value).splitlines()
    assert head.endswith("m.jsonl: 2 problems, nothing was started")
    assert first.startswith("  line 1: column 'seed': is -1; needs 0 to")
    assert second.startswith("  line 2: column 'instruction': is empty")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("source,instruction\n/v/a.mp4,red\n/v/b.mp4\n", 3, "has 1 fields; the header has 2"),
        ("source,instruction\n/v/a.mp4,red, please\n", 2, "has 3 fields; the header has 2"),
        ('source,instruction\n/v/a.mp4,"red" hat\n/v/b.mp4,blue\n', 2, "is not CSV"),
        ('source,instruction\n/v/a.mp4,red\n/v/b.mp4,"blue\n/v/c.mp4,green\n', 3, "is not CSV: unexpected end"),
        (b"source,instruction\n/v/a.mp4,caf\xe9\n/v/b.mp4,blue\n", 2, "is not UTF-8: byte 0xe9 at position 13"),
    ],
)
def test_a_broken_csv_line_is_named(write, text, line, says):
    at, column, message = only_problem(write("m.csv", text))
    assert (at, column) == (line, "")
    assert says in message


def test_rows_after_a_broken_csv_line_are_still_checked(write):
    text = 'source,instruction,seed\n/v/a.mp4\n/v/b.mp4,"red" hat,1\n"/v/c.mp4","two\nlines",x\n/v/d.mp4,red,-1\n'
    assert [line for line, *_ in problems_of(write("m.csv", text))] == [2, 3, 4, 6]


def test_csv_header_problems(write):
    found = problems_of(write("m.csv", "source,instructon,id,id\n/v/a.mp4,red,a,a\n"))
    assert [(line, column) for line, column, _ in found] == [(1, "instructon"), (1, "instruction"), (1, "id")]
    assert "did you mean 'instruction'" in found[0][2]
    assert found[1][2] == "is missing"


def test_a_utf16_csv_is_named(write):
    assert "UTF-16" in problems_of(write("m.csv", "source,instruction\n/v/a.mp4,red\n".encode("utf-16")))[0][2]


def test_json_that_says_a_column_twice_or_nests_too_deep(write):
    found = problems_of(write("m.jsonl", ['{"source": "/a", "source": "/b", "instruction": "x"}', "[" * 100_000]))
    assert "'source' appears twice" in found[0][2]
    assert "is not JSON" in found[1][2]


@pytest.mark.parametrize("column", ["source", "instruction", "id", "preset"])
def test_a_number_where_text_is_needed(write, column):
    _, at, message = only_problem(write("m.jsonl", [{**row(), column: 3}]))
    assert (at, message) == (column, "is 3 (int); needs text")


@pytest.mark.parametrize("bad", ["/v/a\0.mp4", "/v/\ud800.mp4"])
def test_text_that_no_file_can_hold(write, bad):
    assert "may not contain" in only_problem(write("m.jsonl", [row(bad)]))[2]


@pytest.mark.parametrize("bad", ["../up", "a/b", ".hidden", "-flag", "a b", "é", "a\n", "x" * (MAX_ID_CHARS + 1)])
def test_an_id_that_is_not_a_safe_folder_name(write, bad):
    _, column, message = only_problem(write("m.jsonl", [row(id=bad)]))
    assert column == "id"
    assert f"needs 1 to {MAX_ID_CHARS} of the letters A-Z a-z, digits and . _ -" in message


def test_ids_that_differ_only_in_case_are_duplicates(write):
    assert "already the id on line 1" in only_problem(write("m.jsonl", [row(id="Film"), row(id="film")]))[2]


def test_the_same_source_twice_needs_ids(write):
    line, column, message = only_problem(write("m.jsonl", [row(), row(instruction="make it blue")]))
    assert (line, column) == (2, "id")
    assert "give each row an id" in message


@pytest.mark.parametrize("bad", [1.5, True, "1e3", "0x10", [1], -1, MAX_SEED + 1, 1e300])
def test_a_seed_that_is_no_whole_number_or_out_of_range(write, bad):
    assert only_problem(write("m.jsonl", [row(seed=bad)]))[1] == "seed"


@pytest.mark.parametrize(("good", "seed"), [(7, 7), (7.0, 7), ("7", 7), ("7.0", 7), (MAX_SEED, MAX_SEED), ("", 0)])
def test_seeds(write, good, seed):
    assert load_manifest(write("m.jsonl", [row(seed=good)]))[0].seed == seed


def test_a_default_is_checked_as_a_column_is(write):
    url = write("m.jsonl", [row(id="a", seed=1, preset="tiny"), row(id="b")])
    assert [(line, column) for line, column, _ in problems_of(url, seed=-1, preset="huge")] == [
        (2, "seed"),
        (2, "preset"),
    ]


def test_an_unknown_preset_suggests_the_nearest(write):
    line, column, message = only_problem(write("m.jsonl", [row(id="a"), row(id="b", preset="tinny")]))
    assert (line, column) == (2, "preset")
    assert "tinny" in message
    assert "tiny" in message.replace("tinny", "")


def test_an_instruction_of_ten_thousand_characters_is_refused_with_count_and_limit(write):
    _, column, message = only_problem(write("m.jsonl", [row(instruction="x" * 10_000)]))
    assert column == "instruction"
    assert "has 10000 characters" in message
    assert "at most" in message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.jsonl", b"", "has no rows"),
        ("m.csv", b"", "has no rows"),
        ("m.csv", b"source,instruction\n", "has no rows"),
        ("m.parquet", b"", "cannot be read"),
        ("m.parquet", b"PAR1 but not really", "cannot be read"),
        ("m.txt", b"x", "suffix '.txt' is unknown; needs .jsonl, .csv, .parquet"),
        ("manifest", b"x", "suffix '' is unknown"),
    ],
)
def test_a_file_that_is_no_manifest(write, name, content, says):
    line, column, message = only_problem(write(name, content))
    assert (line, column) == (0, "")
    assert says in message


def test_a_missing_manifest_a_directory_and_an_unknown_protocol(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    assert "does not exist" in only_problem(str(tmp_path / "missing.csv"))[2]
    assert "does not exist" in only_problem("memory://nothing/here/missing.csv")[2]
    assert "is a directory" in only_problem(str(tmp_path / "folder.csv"))[2]
    assert "nope" in only_problem("nope://bucket/m.csv")[2]


def test_rows_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = rows_from_sources(["a.mp4", "gs://b/c.mp4"], "make it red", seed=3)
    assert first.source == str(tmp_path / "a.mp4")
    assert second.source == "gs://b/c.mp4"
    assert (first.seed, second.line) == (3, 2)


@pytest.mark.parametrize(
    ("sources", "instruction", "column"),
    [([], "red", "source"), (["a.mp4"], "", "instruction"), (["a.mp4", "./a.mp4"], "red", "id")],
)
def test_what_is_wrong_on_the_command_line(sources, instruction, column):
    with pytest.raises(ManifestError, match="command line: ") as caught:
        rows_from_sources(sources, instruction)
    assert [problem.column for problem in caught.value.problems] == [column]
