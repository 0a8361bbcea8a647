"""Images and files that the tests of the page send."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

#: What the reference set was asked; "left effusion" has quantiles but no template makes it.
ASKED = {"effusion": "There is effusion", "mass": "There is mass", "lines": "left effusion"}


def radiograph(seed: int, height: int = 90, width: int = 70) -> np.ndarray:
    """A grey image that is not flat."""
    rng = np.random.default_rng(seed)
    return (np.cumsum(np.cumsum(rng.normal(size=(height, width)), 0), 1) * 3 + 128).clip(0, 255).astype(np.uint8)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


#: Identifiers in the header of `dicom`.
SECRETS = {
    "PatientName": "DOE^JANE",
    "PatientID": "MRN-90210",
    "InstitutionName": "Roswell General",
    "PatientBirthDate": "19470703",
    "AccessionNumber": "ACC-777",
}


def dicom(pixels: np.ndarray, *, bits: int) -> bytes:
    """A DICOM file of uint16 pixels with `SECRETS` in its header."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword, value in SECRETS.items():
        setattr(dataset, keyword, value)
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "DX", "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, bits, bits - 1, 0
    dataset.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
