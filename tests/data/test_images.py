"""ImageProcessor against a plain re-statement of the published steps, bit for bit."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from carzero.data.images import ImageProcessor
from carzero.errors import UserError


def published(grey: np.ndarray, size: int = 224, side: int = 256) -> torch.Tensor:
    """The published steps on 8-bit grey, written as plainly as they read."""
    height, width = grey.shape
    if height >= width:
        new_height, new_width = side, int(float(width) * (side / float(height)))
    else:
        new_height, new_width = int(float(height) * (side / float(width))), side
    small = cv2.resize(grey, (new_width, new_height), interpolation=cv2.INTER_AREA)
    spare_y, spare_x = side - new_height, side - new_width
    square = np.pad(
        small,
        [(math.floor(spare_y / 2), math.ceil(spare_y / 2)), (math.floor(spare_x / 2), math.ceil(spare_x / 2))],
        "constant",
        constant_values=0,
    )
    low = (side - size) // 2
    crop = torch.from_numpy(square[low : low + size, low : low + size].copy())
    pixels = crop.to(torch.float32).div(255).expand(3, size, size).clone()
    mean, std = torch.full((3, 1, 1), 0.4978), torch.full((3, 1, 1), 0.2449)
    return pixels.sub_(mean).div_(std)


def save(folder: Path, name: str, array: np.ndarray, **options: object) -> Path:
    path = folder / name
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("shape", [(256, 256), (300, 300), (1024, 700), (701, 1023), (97, 64), (16, 16), (500, 31)])
def test_equals_published_bit_for_bit(tmp_path, shape):
    grey = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = save(tmp_path, "a.png", grey)
    expected = published(grey)
    processor = ImageProcessor()
    for image in (path, str(path), grey, grey[..., None], Image.fromarray(grey), np.dstack([grey] * 3)):
        got = processor(image)
        assert got.dtype == torch.float32
        assert got.is_contiguous()
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("size", "side"), [(224, 256), (384, 438), (512, 586), (64, 74)])
def test_other_sizes_keep_the_ratio_of_crop_to_square(size, side):
    grey = np.random.default_rng(1).integers(0, 256, (611, 530), dtype=np.uint8)
    processor = ImageProcessor(size=size)
    assert processor.side == side
    # the crop keeps 224/256 of the square, to within the pixel that even margins need
    assert abs(size / side - 224 / 256) < 1 / side
    assert torch.equal(processor(grey), published(grey, size, side))


def test_jpeg_grey_and_colour_equal_opencv(tmp_path):
    rng = np.random.default_rng(2)
    colour = cv2.GaussianBlur(rng.integers(0, 256, (400, 333, 3), dtype=np.uint8), (0, 0), 4)
    for name, array in {"grey.jpg": colour[..., 0], "colour.jpeg": colour}.items():
        path = save(tmp_path, name, array)
        assert torch.equal(ImageProcessor()(path), published(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))


def test_png_kinds_equal_opencv(tmp_path):
    rng = np.random.default_rng(3)
    rgba = rng.integers(0, 256, (90, 120, 4), dtype=np.uint8)
    grey = rng.integers(0, 256, (90, 120), dtype=np.uint8)
    palette = Image.fromarray(rgba[..., :3]).convert("P")
    palette.save(tmp_path / "palette.png")
    Image.fromarray(grey).convert("1").save(tmp_path / "one.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "la.png")
    save(tmp_path, "rgba.png", rgba)
    save(tmp_path, "rgb.png", rgba[..., :3])
    save(tmp_path, "grey.png", grey)
    for path in sorted(tmp_path.iterdir()):
        expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(ImageProcessor().read(path), expected), path.name
        # Pillow's pixels go through OpenCV's colour conversion, whose rounding differs from libpng's by one level.
        with Image.open(path) as image:
            difference = ImageProcessor().read(image).astype(int) - expected
        assert np.abs(difference).max() <= (1 if path.name in ("rgba.png", "rgb.png", "palette.png") else 0), path.name


def test_equal_channels_are_exact_in_every_form(tmp_path):
    grey = np.random.default_rng(4).integers(0, 256, (64, 70), dtype=np.uint8)
    alpha = np.random.default_rng(5).integers(0, 256, (64, 70), dtype=np.uint8)
    rgba = np.dstack([grey, grey, grey, alpha])
    for image in (save(tmp_path, "a.png", rgba), rgba, Image.fromarray(rgba)):
        assert np.array_equal(ImageProcessor().read(image), grey)


def test_sixteen_bits_full_range_is_published_and_fewer_bits_are_recognised(tmp_path):
    full = np.random.default_rng(6).integers(0, 2**16, (80, 64), dtype=np.uint16)
    full[0, 0] = 2**16 - 1
    for bits in (8, 10, 12, 14, 16):
        values = full >> (16 - bits)
        path = tmp_path / f"{bits}.png"
        assert cv2.imwrite(str(path), values)
        assert np.array_equal(ImageProcessor().read(path), full >> 8)
        assert np.array_equal(ImageProcessor().read(values), full >> 8)
        with Image.open(path) as image:
            assert np.array_equal(ImageProcessor().read(image), full >> 8)
        published_reading = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 8 bits in 16 are black in the published reading: that is its fault
            assert np.array_equal(ImageProcessor(bits=16).read(path), published_reading)
    with pytest.raises(UserError, match="holds the value 65535, which does not fit the 12 bits"):
        ImageProcessor(bits=12)(full)


def test_exif_orientation_is_applied_to_files_and_pillow_images_alike(tmp_path):
    grey = cv2.GaussianBlur(np.random.default_rng(7).integers(0, 256, (64, 100), dtype=np.uint8), (0, 0), 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, "turned.jpg", grey, exif=exif, quality=100)
    read = ImageProcessor().read(path)
    assert read.shape == (100, 64)
    with Image.open(path) as image:
        assert np.array_equal(ImageProcessor().read(image), read)
    assert np.abs(read.astype(int) - np.rot90(grey, -1)).max() <= 3  # JPEG at quality 100


@pytest.mark.parametrize("dtype", [bool, np.float32, np.float64, np.int64, np.uint16])
def test_array_types_agree(dtype):
    grey = (np.random.default_rng(8).random((40, 50)) > 0.5).astype(np.uint8) * 255
    array = {bool: grey > 0, np.float32: grey / np.float32(255)}.get(dtype, grey.astype(dtype))
    assert np.array_equal(ImageProcessor().read(array), grey)


def test_ranges_that_no_radiograph_has_warn():
    noise = np.random.default_rng(9).normal(size=(40, 40))
    with pytest.warns(UserWarning, match="outside what an X-ray image has"):
        read = ImageProcessor().read(noise)
    assert (read.min(), read.max()) == (0, 255)
    with pytest.warns(UserWarning, match="0 to 1 of 255.*a mask, a blank"):
        ImageProcessor().read((noise > 0).astype(np.uint8))
    with pytest.warns(UserWarning, match="almost one flat grey"):
        ImageProcessor().read(np.full((40, 40), 100, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageProcessor().read(np.random.default_rng(0).random((40, 40)))


def encoded(kind: str, array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


NOISE = np.random.default_rng(10).integers(0, 256, (64, 64), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("empty.png", b"", "is empty"),
        ("text.png", b"patient,finding\n1,2\n", "is not a PNG, JPEG or DICOM file"),
        ("head.png", encoded("PNG", NOISE)[:20], "no readable header"),
        ("half.png", encoded("PNG", NOISE)[:2000], "damaged PNG"),
        ("late.png", encoded("PNG", NOISE)[:-6], "damaged PNG"),
        ("flipped.png", encoded("PNG", NOISE).replace(b"IDAT", b"IDAT\x00", 1), "damaged PNG"),
        ("half.jpg", encoded("JPEG", NOISE)[:1500], "damaged JPEG"),
        ("late.jpg", encoded("JPEG", NOISE)[:-2], "damaged JPEG"),
        ("head.jpg", encoded("JPEG", NOISE)[:30], "JPEG"),
        ("tiny.png", encoded("PNG", NOISE[:5, :9]), "is 9 x 5 pixels; at least 16"),
        ("bomb.png", encoded("PNG", np.zeros((12000, 12000), bool)), "is 12000 x 12000 pixels; at most 134,217,728"),
        ("narrow.png", encoded("PNG", np.tile(NOISE[:16], (1, 80))), "too narrow"),
    ],
)
def test_broken_files_get_a_sentence_that_names_them(tmp_path, name, data, sentence):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=sentence) as caught:
        ImageProcessor()(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_no_cut_or_flipped_byte_crashes(tmp_path, kind):
    data = bytearray(encoded(kind, NOISE[:32, :32]))
    path, refused = tmp_path / "x", 0
    rng = np.random.default_rng(11)
    for at in range(0, len(data), 7):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]):
            path.write_bytes(damaged)
            try:
                assert ImageProcessor()(path).shape == (3, 224, 224)
            except UserError:
                refused += 1
    # every cut is refused
    assert refused >= len(range(0, len(data), 7))


def test_missing_folder_and_odd_arrays_get_a_sentence(tmp_path):
    cases = {
        tmp_path / "no.png": "does not exist",
        tmp_path: "is a folder",
    }
    for path, sentence in cases.items():
        with pytest.raises(UserError, match=sentence):
            ImageProcessor()(path)
    for array, sentence in [
        (np.zeros((3, 64, 64), np.uint8), r"must have shape \[H, W\].*got \[3, 64, 64\]"),
        (np.zeros(64, np.uint8), "must have shape"),
        (np.full((64, 64), np.nan), "NaN"),
        (np.zeros((64, 64), complex), "dtype complex128"),
        (np.zeros((4, 64), np.uint8), "64 x 4 pixels"),
    ]:
        with pytest.raises(UserError, match=sentence):
            ImageProcessor()(array)
    with pytest.raises(UserError, match="size must be a positive int, got 0"):
        ImageProcessor(size=0)


@pytest.mark.data
def test_real_images_equal_published(shared_data):
    paths = sorted(shared_data.glob("nih_cxr14/originals_1024/*.png"))
    paths += sorted(shared_data.glob("nih_cxr14/images/*.jpg"))[::20]
    paths += sorted(shared_data.glob("clinical_notes/images/*"))[::4]
    assert len(paths) > 50
    for path in paths:
        assert torch.equal(ImageProcessor()(path), published(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))), path
