"""From a file, a PIL image or an array to upright 8-bit grey, or a sentence that says why not."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageOps

from carzero.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any]"

#: Larger images are refused before they are decoded (a decompression bomb fills the memory); a chest film has 20 M.
MAX_PIXELS = 2**27
#: Smaller images are refused: no radiograph survives it.
MIN_SIDE = 16

_PNG, _JPEG, _DICOM = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"DICM"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_DEPTHS = (8, 10, 12, 14, 16)


class ImageError(UserError):
    """An image that cannot be read; `reason` is the sentence without the image's name."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source} {self.reason}."


def image_error(source: str, reason: str) -> ImageError:
    """The error for an image that `describe_source` names."""
    return ImageError(source, reason)


def describe_source(image: ImageSource) -> str:
    """How messages name an image: its path, or what kind of object it is."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    name = getattr(image, "filename", "")
    return name or f"the {type(image).__name__} image"


def is_dicom(path: str | os.PathLike[str], head: bytes | None = None) -> bool:
    """Whether a file is DICOM, by its suffix or by the mark at byte 128 (of `head`, if it was read already)."""
    if Path(path).suffix.lower() in (".dcm", ".dicom"):
        return True
    if head is None:
        with open(path, "rb") as file:
            head = file.read(132)
    return head[128:132] == _DICOM


def read_grey(image: ImageSource, bits: int | None = None) -> NDArray[np.uint8]:
    """Any image as upright 8-bit grey.

    Args:
        image: path, PIL image or array, as `ImageProcessor` takes them.
        bits: bits that values beyond 8-bit fill; None: the fewest of 8, 10, 12, 14, 16 that hold the maximum.
    Returns:
        uint8 [H, W].
    Raises:
        ImageError: the image cannot be read; the sentence names it and says why.
    """
    source = describe_source(image)
    if isinstance(image, str | os.PathLike):
        grey = _read_file(Path(image), source, bits)
    elif isinstance(image, Image.Image):
        grey = _array_to_grey(_pil_to_array(image, source), source, bits)
    else:
        grey = _array_to_grey(np.asarray(image), source, bits)
    if np.ptp(grey) < 8:
        warnings.warn(
            f"{source} is almost one flat grey ({grey.min()} to {grey.max()} of 255), which no radiograph is: "
            "a mask, a blank, or scaled to 0..1 as integers?",
            stacklevel=3,
        )
    return grey


def check_size(width: int, height: int, source: str) -> None:
    """Raise `ImageError` where an image is too small to be a radiograph or too large to be decoded safely."""
    if min(width, height) < MIN_SIDE:
        raise ImageError(source, f"is {width} x {height} pixels; at least {MIN_SIDE} on each side are needed")
    if width * height > MAX_PIXELS:
        raise ImageError(
            source, f"is {width} x {height} pixels; at most {MAX_PIXELS:,} in all are decoded: downscale it first"
        )


def _read_file(path: Path, source: str, bits: int | None) -> NDArray[np.uint8]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(source, "does not exist") from None
    except IsADirectoryError:
        raise ImageError(source, "is a folder, not an image") from None
    except OSError as error:
        raise ImageError(source, f"cannot be read: {error.strerror}") from None
    if not data:
        raise ImageError(source, "is empty (0 bytes)")
    if is_dicom(path, data[:132]):
        from carzero.data.dicom import read_dicom

        return read_dicom(data, source)
    if not data.startswith((_PNG, _JPEG)):
        raise ImageError(source, "is not a PNG, JPEG or DICOM file")
    _check_encoded(data, source)
    # IMREAD_GRAYSCALE keeps to 8 bits by dropping the low byte, so depth is read first and brought down by our rule.
    # Both flags turn the image upright by its EXIF mark.
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH)
    if grey is None:
        raise ImageError(source, "cannot be decoded (damaged)")
    return np.asarray(grey, np.uint8) if grey.dtype == np.uint8 else _integers_to_grey(grey, source, bits)


def _check_encoded(data: bytes, source: str) -> None:
    """Raise unless the header gives a sane size and the data go on to their end."""
    kind = "PNG" if data.startswith(_PNG) else "JPEG"
    try:
        with warnings.catch_warnings():
            # our own limit is tighter
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise ImageError(source, f"has more than the {MAX_PIXELS:,} pixels that are decoded") from None
    except Exception:
        raise ImageError(source, f"starts like a {kind} but has no readable header (damaged or cut short)") from None
    check_size(*image.size, source)
    try:
        if kind == "PNG":
            # walks over the chunks and their checksums without decoding
            image.verify()
        elif data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
            # Usually cut short; or bytes after the end look like a scan: decode to be sure.
            image.load()
    except Exception:
        raise ImageError(source, f"is a damaged {kind}, probably cut short ({len(data):,} bytes)") from None


def _pil_to_array(image: Image.Image, source: str) -> NDArray[Any]:
    check_size(*image.size, source)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("L", "RGB", "RGBA", "1", "I", "F") or image.mode.startswith("I;16"):
            return np.asarray(image)
        if image.mode == "LA":
            return np.asarray(image.getchannel("L"))
        return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ImageError(source, f"cannot be decoded: {error}") from None


def _array_to_grey(array: NDArray[Any], source: str, bits: int | None) -> NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise ImageError(source, f"must have shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(array.shape)}")
    check_size(array.shape[1], array.shape[0], source)
    if array.dtype.kind not in "buif":
        raise ImageError(source, f"must hold bool, integer or float values, got dtype {array.dtype}")
    array = array[..., :3] if array.ndim == 3 else array
    if array.dtype == np.uint8:
        grey = np.ascontiguousarray(array)
    elif array.dtype == bool:
        grey = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        grey = _floats_to_grey(array, source)
    else:
        grey = _integers_to_grey(array, source, bits)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY), np.uint8) if grey.ndim == 3 else grey


def _integers_to_grey(array: NDArray[Any], source: str, bits: int | None) -> NDArray[np.uint8]:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= 2**16:
        return _stretch(array, source)
    if bits is None:
        bits = next(depth for depth in _DEPTHS if high < 2**depth)
    if high >= 2**bits:
        raise ImageError(source, f"holds the value {high}, which does not fit the {bits} bits that were asked for")
    return (array.astype(np.uint16) >> (bits - 8)).astype(np.uint8)


def _floats_to_grey(array: NDArray[Any], source: str) -> NDArray[np.uint8]:
    if not np.isfinite(array).all():
        raise ImageError(source, "holds NaN or infinite values")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 255:
        return _stretch(array, source)
    return np.rint(array * 255 if high <= 1 else array).astype(np.uint8)


def _stretch(array: NDArray[Any], source: str) -> NDArray[np.uint8]:
    low, high = float(array.min()), float(array.max())
    warnings.warn(
        f"{source} holds values from {low:g} to {high:g}, outside what an X-ray image has (0..1, 0..255 or 0..65535); "
        "they are stretched to 0..255.",
        stacklevel=4,
    )
    return np.rint((array.astype(np.float64) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
