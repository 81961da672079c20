"""image.shrink=fast: the same crops, drawn alike, in pixels close to those of the whole image."""

import io

import numpy as np
from PIL import Image
import pytest

from configs import base
from tc_jepa.config import data as config_data
from tc_jepa.data.images import EncodedImage
from tc_jepa.data.prepare.scenes import prepare_scenes
from tc_jepa.data.transforms import Box, Crop, cut_encoded, resize
from tc_jepa.errors import UserError
from tests.preparing import PHOTO_LINES, PHOTOS

FILES = [(PHOTOS / line["file"]).read_bytes() for line in PHOTO_LINES]
CROP = Crop(64, (0.3, 1.0), (3 / 4, 4 / 3), flip=False)


def encoded(data: bytes) -> EncodedImage:
    return EncodedImage(data, "image 7")


def as_png(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(file, "PNG")
    return file.getvalue()


# Of photographs of 224 pixels: in full, twice, then 1/2, 1/4, 1/8. Other parts of a picture differ by over 20 of 255.
@pytest.mark.parametrize(("size", "most"), [(200, 1.0), (120, 1.0), (100, 3.5), (50, 5.0), (25, 7.0)])
def test_pixels_are_close_to_means_over_areas(size, most):
    differences = []
    for data in FILES:
        image = encoded(data)
        box = Box(0, 8, 216, 216)  # on whole pixels at every scale, so that nothing but the decoding differs
        exact = resize(box.of(image.pixels()), (size, size)).astype(int)
        differences.append(np.abs(cut_encoded(encoded(data), box, size) - exact).mean())
    assert np.mean(differences) < most


@pytest.mark.parametrize(("size", "divisor"), [(217, 1), (216, 1), (109, 1), (108, 2), (54, 4), (27, 8), (3, 8)])
def test_the_smallest_scale_that_covers_the_crop_is_decoded(size, divisor):
    image, asked = encoded(FILES[0]), []
    pixels = image.pixels
    image.pixels = lambda n: asked.append(n) or pixels(n)
    assert cut_encoded(image, Box(3, 5, 216, 216), size).shape == (size, size, 3)
    assert asked == [divisor]


@pytest.mark.parametrize("size", [64, 300])
def test_random_draws_are_those_of_a_decoded_image(size):
    crop = Crop(size, (0.3, 1.0), (3 / 4, 4 / 3), flip=False)
    for data in FILES[:4]:
        one, other = np.random.default_rng(3), np.random.default_rng(3)
        fast, exact = crop.cut(encoded(data), one), crop.cut(encoded(data).pixels(), other)
        assert one.random() == other.random()
        assert np.abs(fast.astype(int) - exact).mean() < 8


def test_what_is_not_a_jpeg_is_decoded_whole():
    image = encoded(as_png(FILES[0]))
    assert image.divisors == (1,)
    assert CROP.cut(image, np.random.default_rng(0)).shape == (64, 64, 3)


def test_a_turned_photograph_is_cropped_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    upright = Image.open(io.BytesIO(FILES[0])).convert("RGB")
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=95, exif=exif.tobytes())
    turned, plain = encoded(file.getvalue()), encoded(FILES[0])
    assert turned.shape == plain.shape
    one, other = (CROP.cut(image, np.random.default_rng(1)).astype(int) for image in (turned, plain))
    assert np.abs(one - other).mean() < 4


@pytest.mark.parametrize("data", [FILES[0][:3000], b"\xff\xd8\xff, and no picture"], ids=["half", "no header"])
def test_a_broken_file_is_named(data):
    with pytest.raises(UserError, match="image 7"):
        CROP.cut(encoded(data), np.random.default_rng(0))


def test_only_training_reads_encoded_images(tmp_path):
    prepare_scenes(2, str(tmp_path / "data"), seed=0, size=16)
    config = base.get_config()
    config.data.path, config.image.shrink = str(tmp_path / "data"), "fast"
    assert isinstance(config_data.training_source(config)[0].image, EncodedImage)
    assert isinstance(config_data.held_out_source(config)[0].image, EncodedImage)
    assert isinstance(config_data.source(config, "train")[0].image, np.ndarray)
    config.image.shrink = "area"
    assert isinstance(config_data.training_source(config)[0].image, np.ndarray)
