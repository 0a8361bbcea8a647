"""A file that a browser sent, as grey pixels and what is to be said of them: never its name, never its header."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carzero.data.decode import ImageError
from carzero.data.images import ImageProcessor
from carzero.errors import UserError
from carzero.zeroshot.guard import FrontalGuard, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Larger files are refused: an uncompressed 16-bit chest film of 20 million pixels has 40 MB.
MAX_BYTES = 128 * 2**20
#: Side of the radiographs that the page draws itself.
DRAWN_SIDE = 512


@dataclass(frozen=True, eq=False)
class Radiograph:
    """One image, ready to be scored.

    Args:
        grey: uint8 [H, W], upright, at its own size.
        verdict: whether it looks like an upright frontal chest radiograph.
        notes: sentences on what looks odd; none names the file.
        drawn: it was drawn by this package: no patient.
    """

    grey: NDArray
    verdict: Verdict
    notes: tuple[str, ...] = ()
    drawn: bool = False

    @property
    def tag(self) -> str:
        """What downloads call the image: eight hex digits that its pixels alone decide."""
        return hashlib.sha256(repr(self.grey.shape).encode() + self.grey.tobytes()).hexdigest()[:8]


def open_radiograph(path: str | os.PathLike[str]) -> Radiograph:
    """Read a PNG, JPEG or DICOM file.

    Raises:
        UserError: it is too large, or cannot be read; the sentence names neither the file nor a value of its header.
    """
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise UserError(f"This file has {size / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20} are read: downscale it.")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        try:
            grey = ImageProcessor().read(path)
        except ImageError as error:
            raise UserError(f"This file {error.reason}.") from None
        except Exception as error:
            # the kind of error is kept; its text may quote a header
            raise UserError(f"This file cannot be read ({type(error).__name__}).") from None
    said = [str(w.message) for w in heard if w.category is UserWarning]
    return Radiograph(grey, FrontalGuard.load()(grey), tuple(s.replace(os.fspath(path), "This image") for s in said))


def draw_radiograph(number: int) -> Radiograph:
    """A drawn radiograph with findings; equal numbers draw the same."""
    from carzero.data.phantom import draw

    grey = draw(number, seed=1, size=DRAWN_SIDE).image
    return Radiograph(grey, FrontalGuard.load()(grey), drawn=True)
