import hashlib
import os

import pytest

from pipeline import source as source_module
from pipeline.source import (
    SourceEmpty,
    SourceIdentity,
    SourceIsDirectory,
    SourceMissing,
    SourceUnreadable,
    identify,
    identify_sources,
    split_url,
)
from retrieval.store import Store


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(os.urandom(100_000))
    return path


def test_the_hash_is_of_all_bytes_across_blocks(film, monkeypatch):
    monkeypatch.setattr(source_module, "HASH_BLOCK_BYTES", 999)
    identity = identify(str(film))
    assert identity.sha256 == hashlib.sha256(film.read_bytes()).hexdigest()
    assert identity.size_bytes == 100_000
    assert identity.stamp == str(film.stat().st_mtime_ns)
    assert SourceIdentity.from_json(identity.to_json()) == identity


def test_an_unchanged_file_is_not_read_again(film):
    known = identify(str(film))
    marked = SourceIdentity(**{**known.to_json(), "sha256": "not read"})
    assert identify(str(film), marked) is marked


def test_a_changed_stamp_size_or_address_is_read_again(film, tmp_path):
    marked = SourceIdentity(**{**identify(str(film)).to_json(), "sha256": "not read"})
    stat = film.stat()
    os.utime(film, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert identify(str(film), marked).sha256 != "not read"

    with film.open("ab") as file:
        file.write(b"x")
    os.utime(film, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert identify(str(film), marked).sha256 == hashlib.sha256(film.read_bytes()).hexdigest()

    moved = tmp_path / "moved.mp4"
    film.rename(moved)
    assert identify(str(moved), marked).uri == str(moved)


def test_an_object_store_is_stamped_and_a_rewritten_object_is_seen():
    store = Store("memory://bucket/films")
    store.write_bytes("a.mp4", b"first")
    url = "memory://bucket/films/a.mp4"
    first = identify(url)
    assert first.stamp
    assert identify(url, first) is first
    store.write_bytes("a.mp4", b"secnd")
    assert identify(url, first).sha256 == hashlib.sha256(b"secnd").hexdigest()


def test_s3_over_a_real_server(s3):
    store = Store(f"{s3}/films")
    store.write_bytes("a.mp4", b"first")
    url = f"{s3}/films/a.mp4"
    first = identify(url)
    assert first.sha256 == hashlib.sha256(b"first").hexdigest()
    assert first.stamp
    assert identify(url, first) is first
    with pytest.raises(SourceMissing, match="does not exist"):
        identify(f"{s3}/films/b.mp4")
    with pytest.raises(SourceIsDirectory, match="directory"):
        identify(f"{s3}/films")
    with pytest.raises((SourceMissing, SourceUnreadable)):
        identify("s3://no-such-bucket-here/a.mp4")


def test_a_bucket_without_credentials_is_named_unreadable(monkeypatch):
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(SourceUnreadable, match=r"'s3://private/film\.mp4' cannot be read"):
        identify("s3://private/film.mp4")


def test_what_cannot_be_edited_has_its_named_error(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nothing")
    with pytest.raises(SourceEmpty, match=r"empty\.mp4' is empty \(0 bytes\)"):
        identify(str(tmp_path / "empty.mp4"))
    with pytest.raises(SourceIsDirectory, match="folder' is a directory"):
        identify(str(tmp_path / "folder"))
    with pytest.raises(SourceMissing, match=r"missing\.mp4' does not exist"):
        identify(str(tmp_path / "missing.mp4"))
    with pytest.raises(SourceMissing):
        identify(str(tmp_path / "dangling.mp4"))
    with pytest.raises(SourceMissing):
        identify(str(tmp_path / "empty.mp4" / "inside.mp4"))
    with pytest.raises(SourceUnreadable, match="nope"):
        identify("nope://bucket/film.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named_unreadable(film):
    film.chmod(0)
    with pytest.raises(SourceUnreadable, match="PermissionError"):
        identify(str(film))


def test_a_file_that_grows_while_it_is_read_is_refused(film, monkeypatch):
    looks = iter([(100_000, "1"), (100_001, "2")])
    monkeypatch.setattr(source_module, "look", lambda uri: next(looks))
    with pytest.raises(SourceUnreadable, match="changed while it was read"):
        identify(str(film))


def test_identities_of_a_batch_are_remembered_and_errors_are_data(film, tmp_path):
    workspace = Store(str(tmp_path / "ws"))
    sources = {"a": str(film), "b": str(tmp_path / "missing.mp4")}
    first = identify_sources(workspace, sources)
    assert isinstance(first["b"], SourceMissing)
    assert SourceIdentity.from_json((workspace / "videos" / "a").read_json("source.json")) == first["a"]
    assert not (workspace / "videos" / "b").exists("source.json")

    marked = {**first["a"].to_json(), "sha256": "not read"}
    (workspace / "videos" / "a").write_json("source.json", marked)
    assert identify_sources(workspace, sources)["a"].sha256 == "not read"


@pytest.mark.parametrize(
    ("url", "folder", "name"),
    [
        ("a.mp4", ".", "a.mp4"),
        ("/a.mp4", "/", "a.mp4"),
        ("/x/a.mp4", "/x", "a.mp4"),
        ("s3://bucket/x/a.mp4", "s3://bucket/x", "a.mp4"),
    ],
)
def test_split_url(url, folder, name):
    assert split_url(url) == (folder, name)
