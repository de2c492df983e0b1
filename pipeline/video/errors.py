"""What can be wrong with a video file, one class per reason. Imports nothing, so that every process may name them."""


class VideoError(ValueError):
    """A video file that cannot be edited. The message names the file and what is wrong with it."""


class VideoNotFound(VideoError):
    """There is no such file."""


class UnreadableVideo(VideoError):
    """Not a video file, a directory, a bucket without access, or an mp4 whose index (moov) is missing."""


class EmptyVideo(VideoError):
    """A file of zero bytes, or a video stream that holds no frame."""


class NoVideoStream(VideoError):
    """A readable media file without moving pictures (audio only, cover art)."""


class DamagedVideo(VideoError):
    """Frames inside the file do not decode, or decode with errors that a player would conceal."""


class TruncatedVideo(DamagedVideo):
    """The file ends before its last frame. The message says how many frames decode."""


class UnsupportedVideo(VideoError):
    """Decodable, but what we would make of it would be wrong: HDR, changing frame sizes, sizes beyond H.264, …"""


class BadTimestamps(UnsupportedVideo):
    """Presentation timestamps that are missing or do not increase; the message names the frame."""


class ProbeTimeout(VideoError):
    """Decoding the file took longer than its time limit, or stood still."""


class DecoderCrashed(VideoError):
    """The decoder killed the process it ran in."""


class AssemblyError(VideoError):
    """The edited file could not be written exactly; nothing was published."""


VIDEO_ERRORS: dict[str, type[VideoError]] = {
    error.__name__: error
    for error in (
        VideoError,
        VideoNotFound,
        UnreadableVideo,
        EmptyVideo,
        NoVideoStream,
        DamagedVideo,
        TruncatedVideo,
        UnsupportedVideo,
        BadTimestamps,
        ProbeTimeout,
        DecoderCrashed,
        AssemblyError,
    )
}
"""By name: an error crosses the process boundary of `probe.inspect` as its class name and message."""
