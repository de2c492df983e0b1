"""Between the decoder's planes and upright RGB: matrix, range, bit depth, chroma and orientation. Works on PyAV frames.

RGB is full range and carries the source's own primaries and transfer: nothing is gamut- or tone-mapped. 8-bit RGB is
within 0.51 of the exact formula for 8-bit and limited-range sources (within 1.3 for full-range sources of more bits,
where swscale divides by 4 instead of 1023/255). 16-bit RGB is in units of 1/256 of an 8-bit code: white is 65280,
and what a limited-range source has above white is kept up to 65535.
"""

from collections.abc import Mapping
from typing import cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from pipeline.video.errors import UnsupportedVideo
from pipeline.video.info import FULL_RANGE, LIMITED_RANGE, VideoInfo

UNKNOWN = "unknown"
RGB16_PER_CODE = 256

MATRICES = {
    1: ("bt709", Colorspace.ITU709),
    4: ("fcc", Colorspace.FCC),
    5: ("bt470bg", Colorspace.ITU601),
    6: ("smpte170m", Colorspace.ITU601),
    7: ("smpte240m", Colorspace.SMPTE240M),
    9: ("bt2020nc", Colorspace.BT2020),
}
"""AVColorSpace -> (its name in FFmpeg, swscale's). The others (YCgCo, ICtCp, constant luminance) are refused."""
_SWSCALE = dict(MATRICES.values())
_SPACE_CODES = {name: code for code, (name, _) in MATRICES.items()}
_UNTAGGED = (2, 3)

TRANSFERS = {
    1: "bt709",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    17: "smpte428",
    18: "arib-std-b67",
}
HDR_TRANSFERS = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
PRIMARIES = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    10: "smpte428",
    11: "smpte431",
    12: "smpte432",
    22: "ebu3213",
}
_TRANSFER_CODES = {name: code for code, name in TRANSFERS.items()}
_PRIMARIES_CODES = {name: code for code, name in PRIMARIES.items()}

_EXACT = (
    Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.BITEXACT
)


def color_tags(frame: av.VideoFrame, *, uri: str) -> dict[str, str]:
    """The colour fields of `VideoInfo` for a decoded frame.

    Untagged matrices follow the players' rule: BT.709 from 1280 columns or 577 rows on, BT.601 below.

    Raises:
        UnsupportedVideo: HDR transfer (PQ, HLG), or a matrix that swscale does not invert.
    """
    transfer = TRANSFERS.get(frame.color_trc, UNKNOWN)
    if transfer in HDR_TRANSFERS:
        raise UnsupportedVideo(
            f"{uri}: HDR video ({HDR_TRANSFERS[transfer]}, transfer {transfer}) is not edited, because an SDR editor "
            "would get wrong colours and the result would look washed out; tone-map it first, for example "
            "`ffmpeg -i in -vf zscale=t=linear:npl=100,tonemap=hable,zscale=p=bt709:t=bt709:m=bt709:r=tv,"
            "format=yuv420p out.mp4`"
        )
    primaries = PRIMARIES.get(frame.color_primaries, UNKNOWN)
    space = UNKNOWN if frame.colorspace in _UNTAGGED else MATRICES.get(frame.colorspace, ("",))[0]
    if frame.format.is_rgb or frame.format.has_palette:
        space, matrix, color_range = UNKNOWN, "bt709", FULL_RANGE
    else:
        if not space:
            raise UnsupportedVideo(
                f"{uri}: colour matrix {frame.colorspace} (AVColorSpace) is not supported; "
                f"allowed are {', '.join(name for name, _ in MATRICES.values())} and untagged"
            )
        is_hd = frame.width >= 1280 or frame.height > 576
        guess = "bt2020nc" if primaries == "bt2020" else "bt709" if is_hd else "smpte170m"
        matrix = guess if space == UNKNOWN else space
        # Untagged gray is full range to every codec that has it (FFV1, MJPEG, PNG), untagged YUV limited.
        is_untagged_gray = frame.color_range == ColorRange.UNSPECIFIED and chroma_of(frame.format) == "gray"
        is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj") or is_untagged_gray
        color_range = FULL_RANGE if is_full else LIMITED_RANGE
    return {
        "color_range": color_range,
        "color_primaries": primaries,
        "color_transfer": transfer,
        "color_space": space,
        "color_matrix": matrix,
    }


def chroma_of(pixel_format: av.VideoFormat) -> str:
    """ "420", "422", "444", "gray", "rgb" or "other"."""
    if pixel_format.is_rgb or pixel_format.has_palette:
        return "rgb"
    if len([c for c in pixel_format.components if not c.is_alpha]) == 1:
        return "gray"
    shares = (pixel_format.chroma_width(64), pixel_format.chroma_height(64))
    return {(32, 32): "420", (32, 64): "422", (64, 64): "444"}.get(shares, "other")


def orientation_of(frame: av.VideoFrame, *, uri: str) -> tuple[int, bool]:
    """(clockwise degrees, mirrored) that make a stored frame upright, from the container's display matrix.

    Raises:
        UnsupportedVideo: the matrix turns by something else than quarter turns.
    """
    side_data = cast(Mapping[SideDataType, bytes], frame.side_data)
    if SideDataType.DISPLAYMATRIX not in side_data:
        return 0, False
    matrix = bytes(side_data[SideDataType.DISPLAYMATRIX])
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5] / 65536.0
    # x' = a x + c y, y' = b x + d y, y downwards. Mirrored (left-right after the turn): the first row is negated.
    signs = tuple(int(np.sign(round(float(value), 3))) for value in (a, b, c, d))
    turns = {(1, 0, 0, 1): 0, (0, 1, -1, 0): 90, (-1, 0, 0, -1): 180, (0, -1, 1, 0): 270}
    if signs in turns:
        return turns[signs], False
    unmirrored = (-signs[0], signs[1], -signs[2], signs[3])
    if unmirrored in turns:
        return turns[unmirrored], True
    raise UnsupportedVideo(f"{uri}: display matrix {signs} is not a quarter turn; allowed are 0, 90, 180, 270 degrees")


class RgbReader:
    """Decoded frames of one video as upright RGB `[H, W, 3]`, at the video's size or area-resized to `size`."""

    def __init__(self, info: VideoInfo, *, size: tuple[int, int] | None = None, is_16bit: bool = False) -> None:
        height, width = size or (info.height_px, info.width_px)
        is_turned = info.rotation_deg in (90, 270)
        self.info = info
        self.stored_height, self.stored_width = (width, height) if is_turned else (height, width)
        self.format = "rgb48le" if is_16bit else "rgb24"
        is_resized = (height, width) != (info.height_px, info.width_px)
        if is_16bit and height == info.height_px:
            is_resized = False  # swscale's two-row filters write garbage to 16-bit RGB where the height stays
        self.interpolation = (Interpolation.AREA if is_resized else Interpolation.BICUBIC) | _EXACT
        self.matrix = None if info.chroma == "rgb" else _SWSCALE[info.color_matrix]
        self.range = ColorRange.JPEG if info.color_range == FULL_RANGE else ColorRange.MPEG
        self.reformatter = VideoReformatter()

    def read(self, frame: av.VideoFrame) -> np.ndarray:
        converted = self.reformatter.reformat(
            frame,
            width=self.stored_width,
            height=self.stored_height,
            format=self.format,
            src_colorspace=self.matrix,
            dst_colorspace=self.matrix,
            src_color_range=self.range,
            dst_color_range=ColorRange.JPEG,
            interpolation=self.interpolation,
            threads=1,
        )
        rgb = np.rot90(converted.to_ndarray(), k=-(self.info.rotation_deg // 90))
        return np.array(rgb[:, ::-1] if self.info.is_mirrored else rgb, order="C")


def encoded_pixel_format(info: VideoInfo, height_px: int, width_px: int) -> str:
    """What an edit of this source is encoded as: its own chroma and depth as far as H.264 has them.

    Odd widths (and odd heights for 4:2:0) need 4:4:4. Gray becomes 4:2:0, because an edit may colour it; RGB and
    unusual subsampling become 4:4:4. More than 8 bits become 10.
    """
    chroma = {"gray": "420", "rgb": "444", "other": "444"}.get(info.chroma, info.chroma)
    if (width_px % 2 and chroma != "444") or (height_px % 2 and chroma == "420"):
        chroma = "444"
    return f"yuv{chroma}p" + ("10le" if info.bit_depth > 8 else "")


class RgbWriter:
    """Upright RGB `[H, W, 3]` uint8 or uint16 as encoder frames in the source's matrix and range.

    swscale converts to 16-bit 4:4:4; chroma is then reduced and everything rounded once, here: swscale would site
    chroma between the columns, while a decoder takes untagged H.264 for sited on the even ones (half a pixel of colour
    shift), and it truncates full-range chroma (half a code of tint).
    """

    def __init__(self, info: VideoInfo, *, pixel_format: str) -> None:
        self.format = pixel_format
        self.matrix = _SWSCALE[info.color_matrix]
        self.range = ColorRange.JPEG if encoded_range(info) == FULL_RANGE else ColorRange.MPEG
        self.reformatter = VideoReformatter()

    def write(self, rgb: np.ndarray) -> av.VideoFrame:
        wide = self.reformatter.reformat(
            av.VideoFrame.from_ndarray(rgb, format="rgb48le" if rgb.dtype == np.uint16 else "rgb24"),
            format="yuv444p16le",
            src_colorspace=self.matrix,
            dst_colorspace=self.matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=self.range,
            interpolation=Interpolation.BICUBIC | _EXACT,
            threads=1,
        )
        frame = av.VideoFrame(wide.width, wide.height, self.format)
        bits = frame.format.components[0].bits
        is_full = self.range == ColorRange.JPEG
        scale = (2**bits - 1) / 65535 if is_full else 2.0 ** (bits - 16)
        for index, plane in enumerate(frame.planes):
            values = _samples(wide.planes[index])
            zero = 0.5
            if index:
                values = _subsampled(values, columns=plane.width, rows=plane.height)
                zero += 2 ** (bits - 1) - 32768 * scale
            _fill(plane, np.clip(values * np.float32(scale) + np.float32(zero), 0, 2**bits - 1), bits=bits)
        return frame


def _samples(plane: av.video.plane.VideoPlane) -> np.ndarray:
    rows = np.frombuffer(memoryview(plane), np.uint16).reshape(plane.height, -1)
    return rows[:, : plane.width].astype(np.float32)


def _subsampled(chroma: np.ndarray, *, columns: int, rows: int) -> np.ndarray:
    """Chroma sited on the even columns (weights 1 2 1) and between the rows, as H.264 means it by default."""
    if columns < chroma.shape[1]:
        left = np.concatenate([chroma[:, :1], chroma[:, 1:-1:2]], axis=1)
        chroma = 0.5 * chroma[:, ::2] + 0.25 * (left + chroma[:, 1::2])
    if rows < chroma.shape[0]:
        chroma = 0.5 * (chroma[::2] + chroma[1::2])
    return chroma


def _fill(plane: av.video.plane.VideoPlane, values: np.ndarray, *, bits: int) -> None:
    dtype = np.dtype(np.uint16 if bits > 8 else np.uint8)
    rows = np.zeros((plane.height, plane.line_size // dtype.itemsize), dtype)
    rows[:, : plane.width] = values
    plane.update(rows.tobytes())


def encoded_range(info: VideoInfo) -> str:
    return LIMITED_RANGE if info.chroma == "rgb" else info.color_range


def tag_encoder(context: av.VideoCodecContext, info: VideoInfo) -> None:
    """The source's tags, and the matrix that was used even where the source had none: the result says what it is."""
    context.color_range = ColorRange.JPEG if encoded_range(info) == FULL_RANGE else ColorRange.MPEG
    context.colorspace = _SPACE_CODES[info.color_matrix]
    context.color_primaries = _PRIMARIES_CODES.get(info.color_primaries, 2)
    context.color_trc = _TRANSFER_CODES.get(info.color_transfer, 2)
