"""Pictures in and out: the reference's preparation, our three differences, bad bytes, provenance."""

from __future__ import annotations

import hashlib
import io
import struct
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms

from kontext.errors import ImageError, NotANumber, RequestError
from kontext.images import (
    ImageOptions,
    OutputFormat,
    crop_to_size,
    decode_image,
    encode_image,
    image_to_tensor,
    refuse_one_colour,
    tensor_to_image,
)
from tests.kontext.golden import GOLDEN, read_json

IMAGES = GOLDEN / "preprocess"
PREPARED = read_json("preprocess/preprocess")
EXAMPLE = (IMAGES / "images" / "rgb_3x2.png").read_bytes()
PROVENANCE = {
    ExifTags.Base.Software: "AI generated;img2img;flux",
    ExifTags.Base.Make: "kontext-edits",
    ExifTags.Base.Model: "flux1-tiny-kontext",
}


@pytest.mark.parametrize("picture", PREPARED, ids=lambda picture: picture["name"])
def test_preparation_is_the_references_byte_for_byte(picture: dict[str, Any]) -> None:
    image = decode_image((IMAGES / picture["file"]).read_bytes(), options=ImageOptions.reference())
    tensor = image_to_tensor(image, (picture["chosen_width"], picture["chosen_height"]))

    assert sha256(np.asarray(image)) == picture["sha256_source_rgb_u8_hwc"]
    resized = ((tensor[0].permute(1, 2, 0) + 1.0) * 127.5).round().to(torch.uint8).numpy()
    assert sha256(resized) == picture["sha256_resized_rgb_u8_hwc"]
    assert -1 <= tensor.min() <= tensor.max() <= 1


def test_a_picture_taken_upright_comes_upright_unless_told_otherwise() -> None:
    data = (IMAGES / "images" / "jpeg_exif_rotate6.jpg").read_bytes()
    stored = Image.open(io.BytesIO(data)).size

    assert decode_image(data).size == (stored[1], stored[0])
    assert decode_image(data, options=ImageOptions(apply_exif_orientation=False)).size == stored


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white_unless_told_otherwise(mode: str) -> None:
    data = png(transparent_black(mode))

    assert decode_image(data).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(data, options=ImageOptions(composite_alpha_on_white=False)).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_picture_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (3, 2)).save(buffer, "TIFF")

    image = decode_image(buffer.getvalue())

    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped() -> None:
    data = png(Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)))

    assert [decode_image(data).getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


def test_nothing_of_the_inputs_metadata_is_kept() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "a private person"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif, comment=b"private")

    image = decode_image(buffer.getvalue())

    assert (image.info, dict(image.getexif())) == ({}, {})
    assert b"private" not in encode_image(image, output_format="jpeg", model_name="m")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "the picture is empty: 0 bytes"),
        (b"\n<!DOCTYPE html><html>404</html>", r"start like a web page \(HTML\), b'<!DOCTYPE html><html>404'"),
        (b"just text, no picture", "not a picture that can be read: 21 bytes that start with b'just text, n'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that can be read: a PostScript drawing"),
        (EXAMPLE[: len(EXAMPLE) // 2], "the PNG picture is damaged or cut short"),
        (EXAMPLE[:20], "the picture cannot be read as PNG: Truncated File Read"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_clear_line(data: bytes, complaint: str) -> None:
    with pytest.raises(ImageError, match=complaint) as error:
        decode_image(data)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("output_format", ["jpeg", "webp", "png"])
def test_a_picture_cut_short_is_refused_in_every_format(output_format: OutputFormat) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode_image(Image.fromarray(noise), output_format=output_format, model_name="m")

    with pytest.raises(ImageError):
        decode_image(data[: len(data) * 2 // 3])


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ImageError, match="120x80 is over 9599 pixels"):
        decode_image(EXAMPLE, max_pixels=9599)
    assert decode_image(EXAMPLE, max_pixels=9600).size == (120, 80)


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    # 10,000² is over Pillow's own warning threshold, 30,000² over its error threshold; the file has no pixels at all.
    header = b"P6 %d %d 255\n" % (side, side)

    with pytest.raises(ImageError, match="the picture is too large"):
        decode_image(header)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_results_say_that_a_model_made_them(output_format: OutputFormat) -> None:
    data = encode_image(Image.new("RGB", (8, 8)), output_format=output_format, model_name="flux1-tiny-kontext")

    written = Image.open(io.BytesIO(data))
    assert written.format == output_format.upper()
    assert dict(written.getexif()) == PROVENANCE


@pytest.mark.parametrize(
    ("model_name", "make"), [("flux1-kontext-dev", "Black Forest Labs"), ("flux1-tiny-kontext", "kontext-edits")]
)
def test_only_images_of_their_weights_carry_the_name_of_black_forest_labs(model_name: str, make: str) -> None:
    data = encode_image(Image.new("RGB", (8, 8)), output_format="png", model_name=model_name)

    assert Image.open(io.BytesIO(data)).getexif()[ExifTags.Base.Make] == make


def test_the_prompt_is_written_only_when_given() -> None:
    image = Image.new("RGB", (8, 8))

    data = encode_image(image, output_format="png", model_name="m", prompt="make the café blue 😀")

    assert "make the café blue 😀".encode() in data
    assert ExifTags.Base.ImageDescription in Image.open(io.BytesIO(data)).getexif()


def test_jpeg_keeps_full_colour_resolution_and_its_quality() -> None:
    image = Image.open(io.BytesIO(EXAMPLE)).convert("RGB")

    best, worst = (encode_image(image, output_format="jpeg", quality=quality, model_name="m") for quality in (95, 10))

    assert len(best) > 2 * len(worst)
    assert [layer[1:3] for layer in Image.open(io.BytesIO(best)).layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_an_unknown_output_format_is_refused() -> None:
    with pytest.raises(RequestError, match="output_format is 'gif', expected png, jpeg or webp"):
        encode_image(Image.new("RGB", (8, 8)), output_format="gif", model_name="m")  # type: ignore[arg-type]


def test_eight_bits_are_clamped_and_truncated() -> None:
    # 127.5 * (x + 1): -2 -> 0 after clamping, 0 -> 127.5, 0.5 -> 191.25, 2 -> 255 after clamping
    values = torch.tensor([-2.0, 0.0, 0.5, 2.0]).expand(1, 3, 1, 4)

    assert np.asarray(tensor_to_image(values))[0, :, 0].tolist() == [0, 127, 191, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_result_that_is_not_a_number_is_an_error_and_no_black_picture(value: float) -> None:
    values = torch.zeros(1, 3, 2, 2)
    values[0, 1, 1, 0] = value

    with pytest.raises(NotANumber, match="not a number in 1 of its 12 values"):
        tensor_to_image(values)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_results_carry_the_srgb_profile_when_asked(output_format: OutputFormat) -> None:
    image = Image.open(io.BytesIO(EXAMPLE)).convert("RGB")

    plain, tagged = (
        encode_image(image, output_format=output_format, model_name="m", embed_srgb=embed_srgb)
        for embed_srgb in (False, True)
    )

    assert "icc_profile" not in Image.open(io.BytesIO(plain)).info
    profile = ImageCms.ImageCmsProfile(io.BytesIO(Image.open(io.BytesIO(tagged)).info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    assert decode_image(tagged) == decode_image(plain)


def test_the_srgb_profile_is_the_same_on_every_day() -> None:
    # 1 January 2000 stands where LittleCMS writes the time of making, ICC.1:2010 section 7.2.8
    data = encode_image(Image.new("RGB", (8, 8)), output_format="jpeg", model_name="m", embed_srgb=True)

    profile = Image.open(io.BytesIO(data)).info["icc_profile"]

    assert struct.unpack(">6H", profile[24:36]) == (2000, 1, 1, 0, 0, 0)


def test_the_middle_is_cut_out() -> None:
    image = Image.fromarray(np.arange(112 * 80, dtype=np.uint8).reshape(80, 112))

    cropped = crop_to_size(image, (100, 72))

    assert cropped.size == (100, 72)
    assert cropped.getpixel((0, 0)) == image.getpixel((6, 4))
    assert crop_to_size(image, image.size) is image


def transparent_black(mode: str) -> Image.Image:
    if mode != "P":
        return Image.new(mode, (2, 2))
    image = Image.new("P", (2, 2))
    image.putpalette([0, 0, 0])
    image.info["transparency"] = 0
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def test_a_result_of_one_colour_is_refused_unless_an_input_has_one() -> None:
    grey, drawn = Image.new("RGB", (8, 8), "grey"), Image.linear_gradient("L").convert("RGB")

    with pytest.raises(NotANumber, match="one colour only"):
        refuse_one_colour(grey, [drawn])
    refuse_one_colour(grey, [drawn, grey])
    refuse_one_colour(drawn, [drawn])
