"""Sources in a bucket: read through fsspec, in the decoder's process too; an unreachable bucket is a named error."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.video.assemble import assemble
from pipeline.video.decode import decode_span, iter_span
from pipeline.video.encode import encode_chunk
from pipeline.video.errors import UnreadableVideo, VideoNotFound
from pipeline.video.probe import inspect
from tests.pipeline.video.test_assemble import check_exact
from tests.videos import inspection_of, write_source


def test_a_film_in_a_bucket_goes_all_the_way(s3: str, tmp_path: Path) -> None:
    import fsspec

    local = write_source(tmp_path / "v.mp4", num_frames=30, audio=["aac"])
    uri = f"{s3}/v.mp4"
    with fsspec.open(uri, "wb") as file:
        file.write(local.read_bytes())
    found, here = inspect(uri), inspection_of(local)
    assert found.info.uri == uri
    assert np.array_equal(found.pts, here.pts)
    assert np.array_equal(decode_span(uri, found, 17, 23), decode_span(str(local), here, 17, 23))
    encode_chunk(tmp_path / "c.mp4", iter_span(uri, found, 0, 30), found.pts, found.info)
    result = assemble([tmp_path / "c.mp4"], uri, found, tmp_path / "edited")
    check_exact(local, here, result)
    with pytest.raises(VideoNotFound, match="none"):
        inspect(f"{s3}/none.mp4")
    with pytest.raises(VideoNotFound, match="elsewhere"):
        inspect("s3://elsewhere/v.mp4")


def test_an_unreachable_bucket_is_an_unreadable_video(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnreadableVideo, match=r"s3://films/v\.mp4: cannot be read"):
        inspect("s3://films/v.mp4")
