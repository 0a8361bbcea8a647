"""DICOM files become the image their header describes, or a sentence without identifiers."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from carzero.data.images import ImageProcessor
from carzero.errors import UserError

pydicom = pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")

SECRETS = {
    "PatientName": "DOE^JANE",
    "PatientID": "MRN-90210",
    "PatientBirthDate": "19470703",
    "InstitutionName": "Roswell General",
    "StudyDate": "19690720",
    "AccessionNumber": "ACC-777",
}


def make(
    pixels: np.ndarray,
    *,
    bits: int | None = None,
    photometric: str = "MONOCHROME2",
    syntax: str = "1.2.840.10008.1.2.1",
    **elements: object,
) -> pydicom.Dataset:
    """A small DICOM dataset around the pixels; elements are header values by keyword."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Modality = "CR"
    for keyword, value in SECRETS.items():
        setattr(dataset, keyword, value)
    size = pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = size, bits or size, (bits or size) - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if size > 8 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def lut(first: int, entries: np.ndarray, depth: int = 16, signed: bool = False) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries), first, depth])
    item.add_new("LUTData", "OW", np.asarray(entries, np.uint16).tobytes())
    return pydicom.Sequence([item])


def data_of(dataset: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read(tmp_path: Path, dataset: pydicom.Dataset) -> np.ndarray:
    path = tmp_path / "image.dcm"
    path.write_bytes(data_of(dataset))
    return ImageProcessor().read(path).astype(int)


NOISE8 = np.random.default_rng(0).integers(0, 256, (24, 31), dtype=np.uint8)
NOISE12 = np.random.default_rng(1).integers(0, 4096, (24, 31), dtype=np.uint16)
SIGNED = np.random.default_rng(2).integers(-1024, 3072, (24, 31), dtype=np.int16)


def rounded(share: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(share, 0, 1) * 255).astype(int)


def same(got: np.ndarray, share: np.ndarray) -> bool:
    # the code computes shares in float32: at a tie the rounding may differ by one level
    return bool(np.abs(got - rounded(share)).max() <= 1 and (got == rounded(share)).mean() > 0.98)


def test_eight_bits_without_window_stay_and_monochrome1_is_inverted(tmp_path):
    assert np.array_equal(read(tmp_path, make(NOISE8)), NOISE8)
    assert np.array_equal(read(tmp_path, make(NOISE8, photometric="MONOCHROME1")), 255 - NOISE8.astype(int))


def test_twelve_bits_without_window_go_from_minimum_to_maximum(tmp_path):
    got = read(tmp_path, make(NOISE12, bits=12))
    low, high = NOISE12.min(), NOISE12.max()
    assert same(got, (NOISE12 - low) / (high - low))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_windows_equal_the_formulas_of_the_standard_and_pydicom(tmp_path, function):
    centre, width = 1500.0, 900.0
    dataset = make(NOISE12, bits=12, WindowCenter=centre, WindowWidth=width)
    if function:
        dataset.VOILUTFunction = function
    x = NOISE12.astype(float)
    share = {
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - centre) / width)),
        "LINEAR_EXACT": (x - centre) / width + 0.5,
    }.get(function, (x - (centre - 0.5)) / (width - 1) + 0.5)
    got = read(tmp_path, dataset)
    assert same(got, share)
    assert same(got, pydicom.pixels.apply_windowing(NOISE12, dataset) / 4095)


def test_window_applies_after_rescale_on_signed_values_and_the_first_of_several_counts(tmp_path):
    dataset = make(SIGNED, bits=13, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[500, 7], WindowWidth=[3000, 9])
    share = (SIGNED * 2.0 - 100 - 499.5) / 2999 + 0.5
    assert same(read(tmp_path, dataset), share)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    assert same(read(tmp_path, dataset), 1 - np.clip(share, 0, 1))


def test_signed_values_without_window_keep_their_order(tmp_path):
    got = read(tmp_path, make(SIGNED, bits=13))
    assert same(got, (SIGNED - SIGNED.min()) / (float(SIGNED.max()) - SIGNED.min()))


@pytest.mark.parametrize("width", [0, -5])
def test_a_window_without_width_is_ignored(tmp_path, width):
    with_window = read(tmp_path, make(NOISE12, bits=12, WindowCenter=50, WindowWidth=width))
    assert np.array_equal(with_window, read(tmp_path, make(NOISE12, bits=12)))


def test_voi_lut_goes_before_the_window_and_clamps_outside(tmp_path):
    table = np.arange(1000, dtype=np.uint16)[::-1] * 4
    dataset = make(NOISE12, bits=12, VOILUTSequence=lut(500, table), WindowCenter=5, WindowWidth=10)
    index = np.clip(NOISE12.astype(int) - 500, 0, 999)
    assert same(read(tmp_path, dataset), table[index] / table.max())


def test_eight_bit_voi_lut_of_many_entries(tmp_path):
    # 4096 entries of 8 bits, in 16-bit words as most writers store them
    table = np.arange(4096) // 16
    dataset = make(NOISE12, bits=12, VOILUTSequence=lut(0, table, depth=8))
    assert np.array_equal(read(tmp_path, dataset), table[NOISE12])


def test_modality_lut_replaces_rescale_and_feeds_the_window(tmp_path):
    table = np.arange(4096, dtype=np.uint16) * 3
    dataset = make(SIGNED, bits=13, ModalityLUTSequence=lut(-1024, table, signed=True), RescaleSlope=9)
    dataset.RescaleIntercept = 0
    values = table[SIGNED.astype(int) + 1024].astype(float)
    assert same(read(tmp_path, dataset), (values - values.min()) / np.ptp(values))
    dataset.WindowCenter, dataset.WindowWidth = 6000, 4001
    assert same(read(tmp_path, dataset), (values - 5999.5) / 4000 + 0.5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_pixels_are_black_and_out_of_the_range(tmp_path, photometric):
    pixels = NOISE12 // 2 + 200
    pixels[:5] = 4000
    pixels[5] = 3990
    dataset = make(pixels, bits=12, photometric=photometric, PixelPaddingValue=3990, PixelPaddingRangeLimit=4095)
    got = read(tmp_path, dataset)
    assert (got[:6] == 0).all()
    share = (pixels[6:] - float(pixels[6:].min())) / np.ptp(pixels[6:])
    assert same(got[6:], 1 - share if photometric == "MONOCHROME1" else share)


def test_colour_becomes_grey(tmp_path):
    import cv2

    rgb = np.random.default_rng(3).integers(0, 256, (20, 22, 3), dtype=np.uint8)
    expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(read(tmp_path, make(rgb, photometric="RGB")), expected)
    ybr = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    # YBR rounds twice on its way
    assert np.abs(read(tmp_path, make(ybr, photometric="YBR_FULL")) - expected).max() <= 2


@pytest.mark.parametrize(
    "syntax", ["RLELossless", "JPEG2000Lossless", "JPEGLSLossless", "DeflatedExplicitVRLittleEndian"]
)
def test_lossless_compression_gives_the_same_image(tmp_path, syntax):
    from pydicom import uid

    # JPEG 2000 halves the image five times
    dataset = make(np.tile(NOISE12, (3, 3)), bits=12, WindowCenter=2000, WindowWidth=3000)
    expected = read(tmp_path, dataset)
    target = getattr(uid, syntax)
    if syntax == "DeflatedExplicitVRLittleEndian":
        dataset.file_meta.TransferSyntaxUID = target
    elif not _can_encode(target):
        pytest.skip(f"no encoder for {syntax} here; its decoding is tested on real files (mark data)")
    else:
        dataset.compress(target, generate_instance_uid=False)
    assert np.array_equal(read(tmp_path, dataset), expected)


@pytest.mark.parametrize("kind", ["JPEGBaseline8Bit", "JPEG2000Lossless"])
def test_encoded_streams_inside_dicom_are_decoded(tmp_path, kind):
    import cv2
    from pydicom.encaps import encapsulate

    # JPEG 2000 halves the image five times
    smooth = cv2.GaussianBlur(np.tile(NOISE8, (3, 3)), (0, 0), 2)
    if kind == "JPEGBaseline8Bit":
        stream = cv2.imencode(".jpg", smooth)[1]
        expected = cv2.imdecode(stream, cv2.IMREAD_GRAYSCALE).astype(int)
    else:
        openjpeg = pytest.importorskip(
            "openjpeg.utils", reason="pylibjpeg-openjpeg, of the extra [dicom], is not installed"
        )
        stream, expected = np.frombuffer(openjpeg.encode_array(smooth, use_mct=False), np.uint8), smooth.astype(int)
    dataset = make(smooth, syntax=getattr(pydicom.uid, kind))
    dataset.PixelData = encapsulate([stream.tobytes()])
    # another JPEG decoder's inverse transform may round otherwise
    assert np.abs(read(tmp_path, dataset) - expected).max() <= (1 if kind == "JPEGBaseline8Bit" else 0)


def _can_encode(syntax: str) -> bool:
    from pydicom.pixels import get_encoder

    return get_encoder(syntax).is_available


def test_a_dicom_file_is_known_without_its_suffix(tmp_path):
    path = tmp_path / "IM000001"
    path.write_bytes(data_of(make(NOISE8)))
    assert np.array_equal(ImageProcessor().read(path), NOISE8)


def truncated(fraction: float) -> bytes:
    data = data_of(make(NOISE12, bits=12))
    return data[: int(len(data) * fraction)]


def without(keyword: str) -> bytes:
    dataset = make(NOISE12, bits=12)
    delattr(dataset, keyword)
    return data_of(dataset)


BROKEN = {
    "text": (b"not a dicom file at all", "is not a DICOM file"),
    "cut pixels": (truncated(0.7), "damaged, or cut short"),
    "cut header": (truncated(0.15), "damaged|cut short"),
    "no pixels": (without("PixelData"), "without an image"),
    "no rows": (without("Rows"), "is 31 x 0 pixels"),
    "no bits": (without("BitsStored"), "damaged"),
    "no photometric": (without("PhotometricInterpretation"), "photometric interpretation"),
    "frames": (data_of(make(NOISE8, NumberOfFrames=40)), "is a DICOM file of 40 frames"),
    "modality": (data_of(make(NOISE8, Modality="CT")), "modality CT, not a radiograph"),
    "palette": (data_of(make(NOISE8, photometric="PALETTE COLOR")), "photometric interpretation that is not one of"),
    "syntax": (data_of(make(NOISE8, syntax="1.2.3.4.5")), "transfer syntax"),
    "jpeg": (data_of(make(NOISE8)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"), "cannot be decoded"),
    "large": (data_of(make(NOISE8, Rows=60000, Columns=60000)), "at most 134,217,728 in all"),
    "tiny": (data_of(make(NOISE8[:2, :2].copy())), "is 2 x 2 pixels"),
    "empty lut": (
        data_of(make(NOISE8, VOILUTSequence=lut(0, np.zeros(0, np.uint16)))),
        "damaged look-up table",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_get_a_sentence(tmp_path, name):
    data, sentence = BROKEN[name]
    path = tmp_path / "image.dcm"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=sentence) as caught:
            ImageProcessor()(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(".")


def test_no_damage_crashes_or_names_anyone(tmp_path, caplog, capfd):
    """Cut and flipped bytes anywhere: an image or a sentence, and nothing of the header on any channel."""
    rng, refused = np.random.default_rng(4), 0
    path = tmp_path / "image.dcm"
    dataset = make(NOISE12, bits=12, WindowCenter=2000, WindowWidth=3000)
    plain = data_of(dataset)
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    said = []
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for data in (plain, data_of(dataset)):
            for at in rng.integers(132, len(data), 120):
                flipped = bytearray(data)
                flipped[at] ^= int(rng.integers(1, 256))
                for damaged in (data[:at], bytes(flipped)):
                    path.write_bytes(damaged)
                    try:
                        ImageProcessor()(path)
                    except UserError as error:
                        refused += 1
                        said.append(str(error))
    assert refused >= 240  # every cut
    text = " ".join([*said, caplog.text, *(str(w.message) for w in heard), *capfd.readouterr()])
    assert not [secret for secret in SECRETS.values() if secret in text]


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "image.dcm"
    path.write_bytes(data_of(make(NOISE8)))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'carzero\[dicom\]'"):
        ImageProcessor()(path)


@pytest.mark.data
def test_real_files_are_images_with_bright_bones(shared_data):
    folder = shared_data / "dicom"
    processor = ImageProcessor()
    # the same leg in seven encodings; lossy ones differ by little
    leg = processor.read(folder / "compressed" / "RG3_RLE.dcm").astype(int)
    for name, tolerance in {"J2KR": 0, "JLSL": 0, "JPLL": 0, "JLSN": 2, "J2KI": 3}.items():
        other = processor.read(folder / "compressed" / f"RG3_{name}.dcm").astype(int)
        assert np.abs(other - leg).mean() <= tolerance, name
    # air at the side of the leg is dark, bone is bright
    assert leg[900, 700:720].mean() < 90
    assert leg[600, 860:880].mean() > 150
    with pytest.raises(UserError, match=r"12-bit JPEG Extended.*pylibjpeg-libjpeg"):
        processor.read(folder / "compressed" / "RG3_JPLY.dcm")
    for name in ("RG1_J2KI.dcm", "xrv_rsna_PA_jpegbaseline_mono2.dcm"):
        chest = processor.read(folder / "chest" / name).astype(float)
        height, width = chest.shape
        middle = chest[height // 3 : height // 2]
        spine = middle[:, int(0.46 * width) : int(0.54 * width)].mean()
        lungs = [middle[:, int(a * width) : int(b * width)].mean() for a, b in ((0.2, 0.35), (0.65, 0.8))]
        assert spine > max(lungs) + 20, name
    # two test patterns, one through a modality LUT and one through a VOI LUT, show the same image
    patterns = [processor.read(folder / "compressed" / f"{name}.dcm").astype(int) for name in ("mlut_18", "vlut_04")]
    assert np.abs(patterns[0] - patterns[1]).mean() < 1


@pytest.mark.data
def test_real_broken_files_get_a_sentence(shared_data):
    paths = sorted((shared_data / "dicom" / "broken").glob("*.dcm"))
    assert paths
    for path in paths:
        with pytest.raises(UserError) as caught:
            ImageProcessor()(path)
        assert str(caught.value).startswith(str(path))


@pytest.mark.data
def test_cut_real_files_never_crash(tmp_path, shared_data):
    path = tmp_path / "cut.dcm"
    for original in sorted((shared_data / "dicom").glob("*/*.dcm")):
        data = original.read_bytes()
        for fraction in (0.05, 0.5, 0.98):
            path.write_bytes(data[: int(len(data) * fraction)])
            with pytest.raises(UserError, match=r"damaged|cut short|not a radiograph|not a DICOM"):
                ImageProcessor()(path)
