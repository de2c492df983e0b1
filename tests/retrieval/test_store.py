import os
import pickle
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from retrieval.store import TEMPORARY_PREFIX, Store, StoreError


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty folder of every kind the store is used on."""
    if request.param == "local":
        return Store(str(tmp_path / "workspace"))
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}")
    return Store(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


def test_missing_folder_has_no_names(store: Store) -> None:
    assert store.names() == []
    assert not store.exists("anything")


def test_bytes_come_back_and_are_listed_by_another_reader(store: Store) -> None:
    assert Store(store.url).names() == []
    (store / "deep" / "er").write_bytes("b.json", b"2")
    (store / "deep" / "er").write_bytes("a.parquet", b"1")
    (store / "deep" / "er").write_bytes("b.json", b"22")
    other = Store(store.url) / "deep/er"
    assert other.names() == ["a.parquet", "b.json"]
    assert other.names(".json") == ["b.json"]
    assert other.read_bytes("b.json") == b"22"
    assert store.names() == ["deep"]


def test_names_of_a_file_are_none(store: Store) -> None:
    store.write_bytes("file", b"1")
    assert (store / "file").names() == []


def test_what_another_writes_and_deletes_is_seen_at_once(store: Store) -> None:
    other = Store(store.url)
    for name in ("a", "b", "c"):
        other.write_bytes(name, b"1")
        assert store.names()[-1] == name
        assert store.exists(name)
    other.delete("b")
    assert store.names() == ["a", "c"]
    assert not store.exists("b")


def test_missing_file_names_its_url(store: Store) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        store.read_bytes("nothing.json")
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"), store.open("nothing.json"):
        pass


def test_delete_takes_files_and_folders_and_nothing(store: Store) -> None:
    store.write_bytes("one", b"1")
    store.write_bytes("oneself", b"1")
    (store / "folder").write_bytes("two", b"2")
    for name in ("one", "folder", "never there"):
        store.delete(name)
    assert store.names() == ["oneself"]


def test_put_file_moves(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "finished.mp4"
    local.write_bytes(b"film")
    store.put_file(local, "edited.mp4")
    assert store.read_bytes("edited.mp4") == b"film"
    assert not local.exists()


def test_open_is_seekable(store: Store) -> None:
    store.write_bytes("file", b"0123456789")
    with store.open("file") as file:
        file.seek(4)
        assert file.read(2) == b"45"


def test_json_and_tables_come_back(store: Store) -> None:
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    store.write_table("t.parquet", table)
    store.write_json("j.json", {"b": [1, 2.5], "a": None})
    assert store.read_table("t.parquet") == table
    assert store.read_table("t.parquet", columns=["b"]) == table.select(["b"])
    assert store.read_json("j.json") == {"a": None, "b": [1, 2.5]}


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"PAR1 nonsense PAR1"])
def test_damaged_files_are_named(store: Store, damage: bytes) -> None:
    store.write_bytes("t.parquet", damage)
    store.write_bytes("j.json", damage)
    with pytest.raises(StoreError, match=r"t\.parquet"):
        store.read_table("t.parquet")
    with pytest.raises(StoreError, match=r"j\.json"):
        store.read_json("j.json")


def test_equal_tables_are_equal_bytes(store: Store) -> None:
    table = pa.table({"a": list(range(1000))})
    store.write_table("1", table)
    store.write_table("2", table)
    assert store.read_bytes("1") == store.read_bytes("2")


def test_check_writable_leaves_nothing(store: Store) -> None:
    store.check_writable()
    assert not [name for name in store.fs.find(store.root) if TEMPORARY_PREFIX in name]


def test_a_store_travels_to_another_process(store: Store) -> None:
    store.write_bytes("x", b"1")
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert copy.url == store.url
    assert copy.read_bytes("x") == b"1"


def test_relative_path_means_the_same_folder_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("workspace/")
    store.write_bytes("x", b"1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert (store / "").url == f"{tmp_path}/workspace"
    assert store.read_bytes("x") == b"1"


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("x", b"old")
    target = {"write": "os.fsync", "replace": "pathlib.Path.replace"}[moment]
    code = (
        "import os, pathlib, signal, sys\n"
        "from retrieval.store import Store\n"
        f"{target} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Store(sys.argv[1]).write_bytes('x', b'new' * 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode < 0
    assert store.read_bytes("x") == b"old"
    assert store.names() == ["x"]


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Store(str(tmp_path)).write_bytes("x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_workspace_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(StoreError, match="file/workspace: cannot be written"):
        Store(str(tmp_path / "file/workspace")).check_writable()


@pytest.mark.parametrize(("url", "message"), [("", "empty"), ("nosuch://x", "nosuch"), ("dropbox://x/y", "dropbox")])
def test_unusable_urls(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Store(url)


def test_missing_bucket_is_an_error_not_an_empty_folder(s3: str) -> None:
    store = Store("s3://flims/workspace")
    with pytest.raises(StoreError, match=r"s3://flims/workspace: there is no bucket 'flims'"):
        store.names()
    with pytest.raises(StoreError, match=r"s3://flims/workspace.*bucket"):
        store.check_writable()
    with pytest.raises(OSError, match=r"s3://flims/workspace/x"):
        store.read_bytes("x")


def test_unreachable_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"s3://films/w"):
        Store("s3://films/w").names()
    s3fs.S3FileSystem.clear_instance_cache()
