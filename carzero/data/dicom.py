"""From a DICOM radiograph to 8-bit grey as its header says it is to be shown (extra ``[dicom]``).

No message carries a value of the header that could name a person, a place or a date: decoders' own messages, which
quote such values, are dropped.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from carzero.data.decode import ImageError, check_size
from carzero.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom import Dataset

#: Modalities that are no projection radiographs; "OT" and unknown ones are read.
_NOT_RADIOGRAPHS = ("CT", "MR", "NM", "PT", "US", "SR", "SEG", "RTDOSE", "RTPLAN", "RTSTRUCT", "RTRECORD", "REG", "ECG")
_GREY, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_MISSING = "needs pydicom and its decoders, which are not installed: pip install 'carzero[dicom]', or convert it to PNG"


def read_dicom(data: bytes, source: str) -> NDArray[np.uint8]:
    """A single-frame DICOM image as 8-bit grey, bright bones on black air.

    The steps of DICOM PS3.3 C.11, and ours where the standard leaves it open:

    1. modality LUT, or rescale slope and intercept;
    2. VOI LUT if there is one (it goes before the window); else the first window (LINEAR, LINEAR_EXACT or SIGMOID);
       else 8-bit values as they are; else from minimum to maximum;
    3. MONOCHROME1 is inverted; padding pixels become 0; RGB and YBR become grey.

    Args:
        data: the whole file.
        source: what messages call it.
    Returns:
        uint8 [H, W].
    Raises:
        ImageError: no image, more than one frame, damaged, compressed in a way that nothing here decodes, or not a
            radiograph.
    """
    try:
        import pydicom
    except ImportError:
        raise ImageError(source, _MISSING) from None
    with _quiet():
        dataset = _parse(pydicom, data, source)
        _check_header(dataset, source)
        pixels = _decode(dataset, source)
        try:
            return _shown(pixels, dataset)
        except UserError:
            raise
        except Exception:
            raise ImageError(source, "has a damaged look-up table, rescale or window in its header") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom's warnings, which quote header values, off the screen."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _parse(pydicom: Any, data: bytes, source: str) -> Dataset:
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
    except pydicom.errors.InvalidDicomError:
        raise ImageError(source, "is not a DICOM file (no DICM mark at byte 128), or is damaged") from None
    except Exception:
        raise ImageError(source, "is a damaged DICOM file: its header cannot be read") from None
    return dataset


def _check_header(dataset: Dataset, source: str) -> None:
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", ()):
        raise ImageError(source, "is a damaged DICOM file: its header names no transfer syntax")
    modality = _value(dataset, "Modality", str, "", source)
    if modality in _NOT_RADIOGRAPHS:
        raise ImageError(source, f"is a DICOM file of modality {modality}, not a radiograph")
    if "PixelData" not in dataset:
        raise ImageError(source, "is a DICOM file without an image (no pixel data), or is cut short")
    frames = _value(dataset, "NumberOfFrames", int, 1, source)
    if frames > 1:
        raise ImageError(source, f"is a DICOM file of {frames} frames; single radiographs are read: extract one frame")
    width, height = (_value(dataset, name, int, 0, source) for name in ("Columns", "Rows"))
    check_size(width, height, source)
    photometric = _value(dataset, "PhotometricInterpretation", str, "none", source)
    if photometric not in (*_GREY, *_COLOUR):
        known = ", ".join((*_GREY, *_COLOUR))
        raise ImageError(source, f"has a photometric interpretation that is not one of {known}")


def _value(dataset: Dataset, keyword: str, convert: Callable[[Any], Any], default: Any, source: str) -> Any:
    try:
        value = dataset.get(keyword)
        return default if value is None or value == "" else convert(value)
    except Exception:
        raise ImageError(source, f"has a damaged {keyword} in its DICOM header") from None


def _decode(dataset: Dataset, source: str) -> NDArray[Any]:
    from pydicom.pixels import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        pixels = pixel_array(dataset)
    except MemoryError:
        raise ImageError(source, "does not fit into the memory") from None
    except Exception:
        if syntax == _JPEG_EXTENDED and dataset.get("BitsStored") != 8:
            reason = (
                "is compressed as 12-bit JPEG Extended, which the decoders of carzero[dicom] cannot read: "
                "pip install pylibjpeg-libjpeg (its licence is the GPL), or transcode it to JPEG Lossless or JPEG 2000"
            )
        elif syntax.is_transfer_syntax and syntax.is_compressed and not syntax.is_private:
            reason = (
                f"holds pixel data ({syntax.name}) that cannot be decoded: they are damaged or cut short, "
                "or a decoder is missing: pip install 'carzero[dicom]'"
            )
        elif syntax.is_transfer_syntax and not syntax.is_private:
            reason = "holds pixel data that do not fit its header: damaged, or cut short"
        else:
            reason = "has a transfer syntax that is not a standard one"
        raise ImageError(source, reason) from None
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] != 3):
        raise ImageError(source, f"decodes to an array of shape {list(pixels.shape)}, not to one image")
    return pixels


def _shown(pixels: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    bits = int(dataset.BitsStored)
    if pixels.ndim == 3:
        colour = (pixels >> max(bits - 8, 0)).astype(np.uint8)
        return np.asarray(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY), np.uint8)
    padding = _padding(pixels, dataset)
    values = _modality(pixels, dataset)
    share: NDArray[Any] | None = _voi(values, dataset)
    if share is None and bits <= 8 and values is pixels and pixels.min() >= 0:
        share = pixels / np.float32(2**bits - 1)
    if share is None:
        real = values if padding is None or padding.all() else values[~padding]
        low, high = float(real.min()), float(real.max())
        share = ((values - low) / max(high - low, 1e-12)).astype(np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    grey = np.rint(np.clip(share, 0, 1) * np.float32(255)).astype(np.uint8)
    if padding is not None:
        grey[padding] = 0
    return grey


def _padding(pixels: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_] | None:
    """Pixels that were never exposed, as stored values of PixelPaddingValue (to PixelPaddingRangeLimit)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (pixels >= low) & (pixels <= high)


def _modality(pixels: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(pixels, dataset.ModalityLUTSequence[0])
    slope, intercept = _first(dataset, "RescaleSlope", 1.0), _first(dataset, "RescaleIntercept", 0.0)
    return pixels if slope in (0, 1) and intercept == 0 else pixels * (slope or 1.0) + intercept


def _voi(values: NDArray[Any], dataset: Dataset) -> NDArray[np.float32] | None:
    """Values through the VOI LUT or the window, as a share 0..1 of the display range; None where there is neither."""
    if dataset.get("VOILUTSequence"):
        shown = _look_up(values, dataset.VOILUTSequence[0]).astype(np.float32)
        # of the table's own range: many tables fill fewer bits than they declare
        table = _table(dataset.VOILUTSequence[0])
        return (shown - table.min()) / np.float32(max(int(np.ptp(table)), 1))
    centre, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if centre is None or width is None or width <= 0:
        return None
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    else:
        share = (values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5
    return np.clip(share, 0, 1).astype(np.float32)


def _first(dataset: Dataset, keyword: str, default: float | None = None) -> Any:
    """The first of a header element's numbers, finite, or the default."""
    value = dataset.get(keyword)
    if isinstance(value, list) or hasattr(value, "append"):
        value = value[0] if len(value) else None
    if value is None or value == "" or not math.isfinite(float(value)):
        return default
    return float(value)


def _look_up(values: NDArray[Any], item: Dataset) -> NDArray[np.int64]:
    """Values through a LUT: those before its first entry get the first, those after its last the last."""
    table = _table(item)
    index = np.rint(values).astype(np.int64) - int(item.LUTDescriptor[1])
    return table[np.clip(index, 0, len(table) - 1)]


def _table(item: Dataset) -> NDArray[np.int64]:
    entries = int(item.LUTDescriptor[0]) or 2**16
    content = item.LUTData
    if isinstance(content, bytes):
        kind = np.dtype("<u2") if len(content) >= 2 * entries else np.dtype("u1")
        content = np.frombuffer(content, kind)
    table = np.asarray(content, np.int64)[:entries]
    if len(table) == 0:
        raise ValueError("an empty table")
    return table
