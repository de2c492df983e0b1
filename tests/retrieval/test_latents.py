import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from retrieval.commits import parquet_name, record_name
from retrieval.latents import BLOCK, LatentLRU, LatentStore
from retrieval.store import Store, StoreError

META = {"start_frame": 17, "end_frame": 34, "seed": 2**62, "weights_revision": "abc", "memory": [{"score": 0.25}]}


def latents(seed: int = 0, *, shape: tuple[int, ...] = (48, 5, 16, 16)) -> dict[str, torch.Tensor]:
    """An edit that leaves most of the source nearly as it was."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(shape, generator=generator)
    edited = source + 0.03 * torch.randn(shape, generator=generator)
    edited[..., :4] = torch.randn(edited[..., :4].shape, generator=generator)
    return {"edited": edited, "source": source}


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "latents"))


def fresh(folder: Store) -> LatentStore:
    """A reader that has nothing in memory."""
    return LatentStore(Store(folder.url), lru=LatentLRU(0))


@pytest.mark.parametrize("shape", [(48, 5, 16, 16), (48, 5, 10, 24), (3, 1, 1, 1), (48, 9, 30, 52)])
def test_latents_come_back_rounded_to_bfloat16_in_the_dtype_given(folder: Store, shape: tuple[int, ...]) -> None:
    tensors = latents(shape=shape)
    given = LatentStore(folder).put(3, tensors, meta=META, record={})
    read = fresh(folder).get(3)
    assert set(given) == set(read) == {"edited", "source"}
    for name in tensors:
        assert read[name].dtype == torch.float32
        assert torch.equal(read[name], tensors[name].bfloat16().float())
        assert torch.equal(read[name], given[name])


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool],
)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 3), (2, 0, 4), (3, BLOCK // 2 + 1)])
def test_state_comes_back_bit_for_bit(folder: Store, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    LatentStore(folder).put(0, {"state.queue": tensor}, meta={}, record={})
    read = fresh(folder).get(0)["state.queue"]
    assert read.dtype == dtype
    assert read.shape == tensor.shape
    assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_state_keeps_infinities_and_views(folder: Store) -> None:
    state = torch.tensor([[1.0, float("inf")], [-float("inf"), float("nan")]]).T
    LatentStore(folder).put(0, {"state.mask": state}, meta={}, record={})
    assert torch.equal(fresh(folder).get(0)["state.mask"].nan_to_num(5), state.nan_to_num(5))


@pytest.mark.parametrize("shift", [0, 1, 0x80, 0x100, 0x7F81, 0x8000, 0xFFFF])
def test_every_finite_bfloat16_survives_a_reference_far_or_near(folder: Store, shift: int) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32)
    source = ((bits + shift) & 0xFFFF).to(torch.uint16).view(torch.bfloat16)
    edited = bits.to(torch.uint16).view(torch.bfloat16)
    keep = source.isfinite() & edited.isfinite()
    tensors = {"edited": edited[keep], "source": source[keep]}
    LatentStore(folder).put(0, tensors, meta={}, record={})
    read = fresh(folder).get(0)
    assert all(torch.equal(read[name].view(torch.int16), tensors[name].view(torch.int16)) for name in tensors)


def test_an_edit_close_to_its_source_refers_to_it(folder: Store) -> None:
    store = LatentStore(folder)
    near, far = latents(), latents(1)
    far["edited"] = torch.randn(far["edited"].shape, generator=torch.Generator().manual_seed(2))
    store.put(0, near, meta={}, record={})
    store.put(1, far, meta={}, record={})
    rows = [folder.read_table(parquet_name(index)).to_pylist() for index in (0, 1)]
    assert [row["reference"] for row in rows[0]] == ["source", None]
    assert [row["reference"] for row in rows[1]] == [None, None]
    raw = 2 * 2 * near["source"].numel()
    assert store.record(0)["bytes"] < 0.65 * raw
    assert store.record(1)["bytes"] < 0.70 * raw


def test_meta_and_record(folder: Store) -> None:
    store = LatentStore(folder)
    store.put(12, latents(), meta=META, record={"worker": {"pid": 1}, "timings": {"generate_s": 0.5}})
    assert fresh(folder).meta(12) == META
    record = fresh(folder).record(12)
    assert record["timings"] == {"generate_s": 0.5}
    assert record["worker"] == {"pid": 1}
    assert record["tensors"]["edited"] == {"shape": [48, 5, 16, 16], "dtype": "float32"}
    assert folder.names() == ["segment-00012.json", "segment-00012.parquet"]


def test_equal_latents_are_equal_bytes_in_any_process(folder: Store) -> None:
    LatentStore(folder).put(0, latents(), meta=META, record={"at": 1})
    code = (
        "import sys\n"
        "from tests.retrieval.test_latents import META, latents\n"
        "from retrieval.latents import LatentStore\n"
        "from retrieval.store import Store\n"
        "LatentStore(Store(sys.argv[1])).put(0, dict(reversed(latents().items())), meta=META, record={'at': 2})\n"
    )
    subprocess.run([sys.executable, "-c", code, folder.url + "2"], check=True)
    assert Store(folder.url + "2").read_bytes(parquet_name(0)) == folder.read_bytes(parquet_name(0))


def read_as_documented(path: str) -> dict[str, torch.Tensor]:
    """docs/data.md, "To read a tensor", word by word, with no code of ours."""
    rows = {row["name"]: row for row in pq.read_table(path).to_pylist()}

    def numbers(row: dict) -> list[int]:
        planes, start = [], 0
        for num_bytes in row["plane_bytes"]:
            planes.append(zstandard.ZstdDecompressor().decompress(row["data"][start : start + num_bytes]))
            start += num_bytes
        values = [int.from_bytes(element, "big") for element in zip(*planes, strict=True)]
        if row["reference"] is None:
            return values
        other = numbers(rows[row["reference"]])
        return [(value + (base & 0xFF00)) % 2**16 for value, base in zip(values, other, strict=True)]

    read = {}
    for name, row in rows.items():
        assert row["stored_dtype"] == "bfloat16"
        bits = torch.tensor(numbers(row), dtype=torch.int32).to(torch.uint16)
        read[name] = bits.view(torch.bfloat16).reshape(row["shape"])
    return read


def test_readable_without_this_code(folder: Store) -> None:
    given = LatentStore(folder).put(0, latents(shape=(48, 3, 8, 8)), meta=META, record={})
    path = folder.path(parquet_name(0))
    assert {row["reference"] for row in pq.read_table(path).to_pylist()} == {"source", None}
    read = read_as_documented(path)
    assert set(read) == set(given)
    assert all(torch.equal(read[name].float(), given[name]) for name in given)
    head = json.loads(pq.read_metadata(path).metadata[b"memory_v2v.latents"])
    assert head == {"format_version": 1, "segment": 0, "meta": META}


def test_what_is_committed(folder: Store) -> None:
    store = LatentStore(folder)
    assert store.committed() == set()
    for index in (0, 7, 99_999, 100_000):
        store.put(index, latents(), meta={}, record={})
    folder.delete(parquet_name(7))
    folder.write_bytes(record_name(8), b"{}")
    folder.write_bytes("segment-1.parquet", b"of another program")
    assert store.committed() == {0, 99_999, 100_000}
    assert {index for index in (0, 7, 8, 99_999, 100_000) if store.is_committed(index)} == store.committed()


def test_a_process_killed_at_any_system_call_leaves_a_whole_segment_or_none(tmp_path: Path) -> None:
    """`put` in a process that kills itself at its n-th call to the file system, for every n; then a rerun."""
    code = (
        "import os, signal, sys\n"
        "from tests.retrieval.test_latents import META, latents\n"
        "from retrieval.latents import LatentStore\n"
        "from retrieval.store import Store\n"
        "events = ('open', 'os.mkdir', 'os.rename', 'os.remove')\n"
        "for number in range(1, 100):\n"
        "    store, pid = LatentStore(Store(f'{sys.argv[1]}/{number}')), os.fork()\n"
        "    if not pid:\n"
        "        calls = []\n"
        "        def kill(event, arguments):\n"
        "            if event in events and sys.argv[1] in str(arguments):\n"
        "                calls.append(event)\n"
        "                if len(calls) == number:\n"
        "                    os.kill(os.getpid(), signal.SIGKILL)\n"
        "        sys.addaudithook(kill)\n"
        "        store.put(4, latents(), meta=META, record={})\n"
        "        os._exit(0)\n"
        "    if not os.waitpid(pid, 0)[1]:\n"
        "        break\n"
        "print(number)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True, timeout=100
    )
    num_runs = int(result.stdout)
    assert num_runs > 4, "mkdir, open, rename, open, rename: killed before each of them"
    whole = Store(str(tmp_path / str(num_runs))).read_bytes(parquet_name(4))
    for number in range(1, num_runs):
        killed = fresh(Store(str(tmp_path / str(number))))
        assert killed.committed() == set(), "the rename that commits is the last call"
        with pytest.raises(StoreError, match=r"segment 4 is not committed.*segment-00004\.parquet"):
            killed.get(4)
        with pytest.raises(StoreError, match="not committed"):
            killed.meta(4)
        killed.put(4, latents(), meta=META, record={})
        assert killed.store.read_bytes(parquet_name(4)) == whole
        assert killed.committed() == {4}
        assert killed.record(4)["bytes"] == len(whole)


@pytest.mark.parametrize(
    "damage", [lambda folder, name: folder.delete(name), lambda folder, name: folder.write_bytes(name, b"")]
)
def test_without_the_record_a_segment_is_as_good(folder: Store, damage: Callable[[Store, str], None]) -> None:
    """What a power cut may do to a file that was not flushed."""
    LatentStore(folder).put(0, latents(), meta=META, record={"timings": {}})
    damage(folder, record_name(0))
    store = fresh(folder)
    assert store.committed() == {0}
    assert store.is_committed(0)
    assert torch.equal(store.get(0)["source"], latents()["source"].bfloat16().float())
    assert store.meta(0) == META
    assert store.record(0) == {}


def test_the_latents_are_flushed_before_they_appear(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not leave an empty file under the name that says "done"."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flush(descriptor: int) -> None:
        calls.append(f"flush of {os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        calls.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    store = LatentStore(folder)
    store.put(0, latents(), meta=META, record={})
    assert calls == [record_name(0), f"flush of {store.record(0)['bytes']} bytes", parquet_name(0)]


def damage_truncate(folder: Store) -> None:
    folder.write_bytes(parquet_name(0), folder.read_bytes(parquet_name(0))[:-10])


def damage_byte(folder: Store) -> None:
    data = bytearray(folder.read_bytes(parquet_name(0)))
    data[len(data) // 2] ^= 1
    folder.write_bytes(parquet_name(0), bytes(data))


def damage_missing(folder: Store) -> None:
    folder.delete(parquet_name(0))


def damage_other_segment(folder: Store) -> None:
    LatentStore(folder).put(1, latents(), meta={}, record={})
    folder.write_bytes(parquet_name(0), folder.read_bytes(parquet_name(1)))


def damage_other_table(folder: Store) -> None:
    folder.write_table(parquet_name(0), pa.table({"a": [1]}))


def damage_empty(folder: Store) -> None:
    folder.write_bytes(parquet_name(0), b"")


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_byte, damage_missing, damage_other_segment, damage_other_table, damage_empty],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_file_is_named_not_used(folder: Store, damage: Callable[[Store], None]) -> None:
    LatentStore(folder).put(0, latents(), meta={}, record={})
    damage(folder)
    with pytest.raises(StoreError, match=r"segment-00000\.parquet"):
        fresh(folder).get(0)


def test_sha256_finds_another_valid_file(folder: Store) -> None:
    store = LatentStore(folder)
    store.put(0, latents(), meta={"a": 1}, record={})
    record = folder.read_json(record_name(0))
    store.put(0, latents(), meta={"a": 2}, record={})
    folder.write_json(record_name(0), record)
    fresh(folder).get(0)
    with pytest.raises(StoreError, match=r"segment-00000\.parquet: its SHA-256"):
        LatentStore(folder, lru=LatentLRU(0), is_sha256_checked=True).get(0)


def test_a_newer_format_is_refused(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.latents.FORMAT_VERSION", 99)
        LatentStore(folder).put(0, latents(), meta={}, record={})
    with pytest.raises(StoreError, match="format version 99"):
        fresh(folder).get(0)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"edited": torch.tensor([1.0, float("nan")])}, "segment 5: 'edited'.*finite"),
        ({"source": torch.tensor([1.0, float("inf")])}, "segment 5: 'source'.*finite"),
        ({"edited": torch.tensor([1e39], dtype=torch.float64)}, "segment 5: 'edited'.*finite"),
        ({"edited": torch.tensor([1])}, "int64"),
        ({"state.x": torch.tensor([1j])}, "complex64"),
    ],
)
def test_unusable_tensors_commit_nothing(folder: Store, tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentStore(folder).put(5, tensors, meta={}, record={})
    assert folder.names() == []


@pytest.mark.parametrize(
    ("meta", "record", "message"),
    [({"score": float("nan")}, {}, "JSON"), ({}, {"sha256": "x"}, "sha256"), ({}, {"s": float("nan")}, "JSON")],
)
def test_unusable_meta_and_record_commit_nothing(folder: Store, meta: dict, record: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentStore(folder).put(5, latents(), meta=meta, record=record)
    assert LatentStore(folder).committed() == set()


def test_named_tensors_only(folder: Store) -> None:
    LatentStore(folder).put(0, {**latents(), "state.n": torch.arange(3)}, meta={}, record={})
    assert list(fresh(folder).get(0, names=["state.n", "edited"])) == ["state.n", "edited"]
    with pytest.raises(KeyError, match=r"segment 0 has no tensor 'x'; it has \['edited', 'source', 'state.n'\]"):
        fresh(folder).get(0, names=["x"])


def test_a_chain_reads_each_memory_once(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LatentStore(folder)
    for index in range(3):
        store.put(index, latents(index), meta={}, record={})
    reader, reads = LatentStore(folder), []
    read_bytes = Store.read_bytes
    monkeypatch.setattr(Store, "read_bytes", lambda self, name: reads.append(name) or read_bytes(self, name))
    for _ in range(3):
        for index in range(3):
            assert torch.equal(reader.get(index)["edited"], latents(index)["edited"].bfloat16().float())
            store.get(index)
    assert sorted(name for name in reads if name.endswith("parquet")) == [parquet_name(index) for index in range(3)]


def test_lru_is_bounded_and_forgets_the_least_recently_used(folder: Store) -> None:
    one = 2 * 2 * latents()["source"].numel()
    lru = LatentLRU(2 * one)
    store = LatentStore(folder, lru=lru)
    for index in range(3):
        store.put(index, latents(index), meta={}, record={})
        store.put(index, latents(index), meta={}, record={})
        store.get(0)
    assert lru.num_bytes == 2 * one
    assert lru.get((folder.url, 0)) is not None
    assert lru.get((folder.url, 1)) is None
    assert lru.get((folder.url, 2)) is not None


def test_two_edits_may_share_an_lru(folder: Store) -> None:
    lru = LatentLRU(1 << 30)
    one, two = LatentStore(folder, lru=lru), LatentStore(folder / "two", lru=lru)
    one.put(0, latents(1), meta={}, record={})
    two.put(0, latents(2), meta={}, record={})
    assert torch.equal(one.get(0)["source"], latents(1)["source"].bfloat16().float())
    assert torch.equal(two.get(0)["source"], latents(2)["source"].bfloat16().float())


def test_writing_into_what_was_given_changes_no_memory(folder: Store) -> None:
    store = LatentStore(folder)
    tensors = {"edited": latents()["edited"].bfloat16(), "state.x": torch.arange(4)}
    wanted = {name: tensor.clone() for name, tensor in tensors.items()}
    for given in (tensors, store.put(0, tensors, meta={}, record={}), store.get(0)):
        for tensor in given.values():
            tensor.zero_()
        if store.committed():
            assert all(torch.equal(store.get(0)[name], wanted[name]) for name in wanted)


def test_read_and_prefetch_from_two_threads(folder: Store) -> None:
    store = LatentStore(folder, lru=LatentLRU(3 * 2 * 2 * latents()["source"].numel()))
    for index in range(6):
        store.put(index, latents(index), meta={}, record={})
    wanted = [latents(index)["edited"].bfloat16().float() for index in range(6)]
    wrong: list[int] = []

    def read(order: list[int]) -> None:
        wrong.extend(index for index in order if not torch.equal(store.get(index)["edited"], wanted[index]))

    orders = [[index % 6 for index in range(start, 60, step)] for start, step in ((0, 1), (3, 5))]
    threads = [threading.Thread(target=read, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_on_an_object_store(s3: str) -> None:
    folder = Store(f"{s3}/videos/a/edits/b/latents")
    store = LatentStore(folder)
    assert store.committed() == set()
    for index in (0, 1):
        store.put(index, latents(index), meta=META, record={"worker": "w"})
    folder.write_bytes(record_name(2), b"left by a worker that died")
    assert fresh(folder).committed() == {0, 1}
    assert [store.is_committed(index) for index in range(3)] == [True, True, False]
    assert fresh(folder).meta(1) == META
    assert torch.equal(fresh(folder).get(1)["edited"], latents(1)["edited"].bfloat16().float())
    with pytest.raises(StoreError, match=r"not committed: there is no s3://films/.*segment-00002\.parquet"):
        fresh(folder).get(2)
    with pytest.raises(StoreError, match="there is no bucket 'flims'"):
        LatentStore(Store("s3://flims/latents")).committed()
    with pytest.raises(OSError, match=r"s3://flims/latents/segment-00000\.json"):
        LatentStore(Store("s3://flims/latents")).put(0, latents(), meta={}, record={})
