"""The door to video files: everything other parts of the pipeline call. The work is in the files named here.

| call                                      | does                                                          | file        |
|-------------------------------------------|---------------------------------------------------------------|-------------|
| `inspect`                                 | one full decode in a process of its own: frames, times, shots | probe.py    |
| `decode_span`, `iter_span`                | exact frames as upright RGB                                   | decode.py   |
| `encode_chunk`, `write_video`             | RGB into H.264                                                | encode.py   |
| `assemble`                                | chunks + the source's sound and times = the edited file       | assemble.py |
"""

from pipeline.video.assemble import AssembledVideo, assemble
from pipeline.video.decode import decode_span, iter_span
from pipeline.video.encode import encode_chunk, write_video
from pipeline.video.info import Inspection, StreamInfo, VideoInfo
from pipeline.video.probe import inspect

__all__ = [
    "AssembledVideo",
    "Inspection",
    "StreamInfo",
    "VideoInfo",
    "assemble",
    "decode_span",
    "encode_chunk",
    "inspect",
    "iter_span",
    "write_video",
]
