"""Decoding: the odd files that the web holds come out as a person sees them, and broken ones are refused."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import features, Image
import pytest

from tc_jepa.data.images import decode_image, decode_mask, image_shape, MOST_PIXELS


def photo() -> Image.Image:
    """Smooth, so that JPEG keeps it, and different under every flip and turn."""
    y, x = np.mgrid[0:48, 0:80]
    return Image.fromarray(np.stack([x * 3, y * 5, 90 + x - y], axis=-1).astype(np.uint8))


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def sixteen_bits() -> bytes:
    return cv2.imencode(".png", np.asarray(photo())[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def with_alpha() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


@pytest.mark.parametrize(
    "data, tolerance",
    [
        (encode(photo(), "JPEG", quality=95), 6),
        (encode(photo().convert("CMYK"), "JPEG", quality=95), 6),
        (encode(photo().quantize(256), "PNG"), 16),
        (encode(photo().quantize(256), "GIF"), 16),
        (encode(with_alpha(), "PNG"), 0),  # alpha dropped, not composited
        (sixteen_bits(), 0),
    ],
    ids=["jpeg", "cmyk", "palette", "gif", "alpha", "16 bits"],
)
def test_colours_come_out_right(data, tolerance):
    decoded = decode_image(data)
    assert decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded.astype(int), np.asarray(photo(), int), atol=tolerance)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_is_repeated_over_three_channels(mode):
    grey = np.asarray(photo().convert("L"))
    np.testing.assert_array_equal(decode_image(encode(photo().convert(mode), "PNG")), np.stack([grey] * 3, axis=-1))


# The turn that undoes each orientation, so that the file is upright once its EXIF is obeyed.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo().transpose(STORED[orientation]), form, exif=exif.tobytes(), quality=95)
    np.testing.assert_allclose(decode_image(data).astype(int), np.asarray(photo(), int), atol=10)
    assert image_shape(data) == image_shape(io.BytesIO(data)) == (48, 80)


@pytest.mark.parametrize("orientation", STORED)
def test_a_mask_is_turned_as_its_image(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = photo().convert("L").transpose(STORED[orientation])
    data = encode(grey, "PNG", exif=exif.tobytes())
    np.testing.assert_array_equal(decode_mask(data), decode_image(data)[..., 0])
    assert decode_mask(data).shape == image_shape(data) == (48, 80)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_exif_after_the_pixels_of_a_png_counts():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo().convert("L"), "PNG")
    late = data[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    assert decode_image(late).shape[:2] == decode_mask(late).shape == image_shape(late) == (80, 48)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12", b"Exif\0\0" + b"\xff" * 40], ids=range(3)
)
def test_damaged_exif_leaves_an_image_as_it_is(exif):
    data = encode(photo(), "JPEG", exif=exif, quality=95)
    assert decode_image(data).shape[:2] == image_shape(data) == (48, 80)


def png_of(width: int, height: int) -> bytes:
    """A PNG's header and the beginning of its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(1 << 14, (1 << 13) + 1), (30_000, 30_000), ((1 << 31) - 1, (1 << 31) - 1)])
def test_too_many_pixels_are_refused_by_the_header(size, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    monkeypatch.setattr(Image.Image, "load", None)
    for decode in (decode_image, image_shape, decode_mask):
        with pytest.raises(ValueError, match=f"{MOST_PIXELS:,}.*shrink it"):
            decode(png_of(*size))
    assert image_shape(png_of(1 << 14, 1 << 13)) == (1 << 13, 1 << 14)


def test_a_git_lfs_pointer_is_called_one():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    for decode in (decode_image, decode_mask):
        with pytest.raises(ValueError, match="Git LFS pointer.*git lfs pull"):
            decode(pointer)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_half_an_image_is_refused_not_padded(form, kept):
    data = encode(photo(), form)
    with pytest.raises(ValueError, match="OpenCV|header"):
        decode_image(data[: int(kept * len(data))])


@pytest.mark.parametrize("data", [b"", b"<html>404</html>"])
def test_what_is_no_image_is_refused(data):
    for decode in (decode_image, image_shape, decode_mask):
        with pytest.raises(ValueError):
            decode(data)


@pytest.mark.parametrize("classes", [2, 13, 256])  # stored with 1, 4 and 8 bits a pixel
def test_a_palette_mask_gives_indices_not_colours(classes):
    indices = np.random.default_rng(0).integers(0, classes, (21, 34)).astype(np.uint8)
    mask = Image.fromarray(indices)
    mask.putpalette([200 - index % 200 for index in range(3 * classes)])
    decoded = decode_mask(encode(mask, "PNG"))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, indices)


def test_a_grey_mask_gives_its_values():
    indices = np.array([[0, 1, 2], [80, 254, 255]], np.uint8)
    np.testing.assert_array_equal(decode_mask(encode(Image.fromarray(indices), "PNG")), indices)


def test_masks_that_hold_no_indices_are_refused():
    with pytest.raises(ValueError, match="one channel"):
        decode_mask(encode(photo(), "PNG"))
    with pytest.raises(ValueError, match="at most 255"):
        decode_mask(encode(Image.fromarray(np.full((4, 4), 300, np.uint16)), "PNG"))
    with pytest.raises(ValueError, match="PNG"):
        decode_mask(encode(photo().convert("L"), "JPEG"))
