"""Pictures that people bring: those of `pictures/README.md`, and others of the same kinds."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFilter

from kontext import ImageError, ImageOptions, decode_image, decode_with_warnings

PICTURES = Path(__file__).parent / "pictures"


def profile_of(name: str) -> bytes:
    profile: bytes = picture(PICTURES / name).info["icc_profile"]
    return profile


def picture(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


DISPLAY_P3, PRINT = profile_of("display_p3.png"), profile_of("cmyk_inks.jpg")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREEN, GREEN_OF_P3 = (0, 200, 50), (0, 205, 0)  # numbers in Display P3, and the same colour in sRGB, clipped


@pytest.mark.parametrize(
    "name",
    [
        "display_p3.jpg",
        "display_p3.png",
        "adobe_rgb.jpg",
        "cmyk_inks.jpg",
        "iphone.heic",
        "iphone_named.jpg",
        "grey16.pgm",
    ],
)
def test_a_picture_is_read_as_a_viewer_shows_it(name: str) -> None:
    read = decode_with_warnings((PICTURES / name).read_bytes())

    wanted = picture(PICTURES / "expected" / f"{name}.png").convert("RGB")
    off = np.abs(np.asarray(read.image, int) - np.asarray(wanted, int)).max(axis=2)
    # One step of rounding in a JPEG, 95 -> 96 of red in a green, is 5 steps of sRGB's steep dark end.
    assert off[inside_patches(wanted)].max() <= (5 if name.endswith(".jpg") else 3)
    assert read.warnings == ()


def inside_patches(image: Image.Image) -> np.ndarray:
    """Pixels far enough from the edges between patches of one colour, which JPEG and HEIC blur over 16 pixels."""
    darkest, lightest = (np.asarray(image.filter(kind(17))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    inside: np.ndarray = (darkest == lightest).all(axis=2)
    assert inside.mean() > 0.1
    return inside


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_colour_profiles_are_applied_in_every_format(format_: str) -> None:
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 100}}.get(format_, {})
    data = saved(Image.new("RGB", (16, 16), GREEN), format_, icc_profile=DISPLAY_P3, **lossless)

    assert_close(data, GREEN_OF_P3, within=3)
    assert_close(data, GREEN, within=3, options=ImageOptions(apply_colour_profile=False))
    assert_close(data, GREEN, within=3, options=ImageOptions.reference())


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (Image.new("RGBA", (4, 4), (*GREEN, 255)), GREEN_OF_P3),
        (Image.new("RGBA", (4, 4), (*GREEN, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 255, 0, 128)), (127, 255, 127)),
        (Image.new("RGB", (4, 4), GREEN).quantize(), GREEN_OF_P3),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
    ],
    ids=["opaque", "transparent", "half transparent", "palette", "grey"],
)
def test_colour_profiles_are_applied_under_transparency_palettes_and_to_grey(
    image: Image.Image, wanted: tuple[int, ...]
) -> None:
    assert_close(saved(image, "PNG", icc_profile=DISPLAY_P3), wanted, within=1)


def test_a_picture_that_says_it_is_srgb_keeps_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    data = saved(Image.fromarray(pixels), "PNG", icc_profile=SRGB)

    assert np.array_equal(np.asarray(decode_image(data)), pixels)


@pytest.mark.parametrize(
    ("mode", "profile", "reason"),
    [
        ("RGB", b"no profile", "cannot open profile"),
        ("RGB", SRGB[:200], "cannot open profile"),
        ("RGB", bytes(4096), "cannot open profile"),
        ("RGB", PRINT, "it is for CMYK, the picture is RGB"),
        ("L", PRINT, "it is for CMYK, the picture is GRAY"),
        ("CMYK", SRGB, "it is for RGB, the picture is CMYK"),
    ],
)
def test_a_broken_profile_is_ignored_with_a_warning(mode: str, profile: bytes, reason: str) -> None:
    plain = saved(Image.new(mode, (8, 8), "orange"), "JPEG")
    data = saved(Image.new(mode, (8, 8), "orange"), "JPEG", icc_profile=profile)

    read = decode_with_warnings(data)

    assert np.array_equal(np.asarray(read.image), np.asarray(decode_image(plain)))
    assert reason in read.warnings[0]
    assert "was ignored" in read.warnings[0]


def test_cmyk_without_a_profile_is_read_with_a_warning() -> None:
    read = decode_with_warnings(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"))

    assert read.image.getpixel((0, 0)) == (0, 255, 255)
    assert read.warnings == ("CMYK without a colour profile: the colours are approximate",)


def test_lab_is_read() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (4, 4), (200, 100, 50)), to_lab)
    assert lab is not None

    assert_close(saved(lab, "TIFF"), (200, 100, 50), within=2)


@pytest.mark.parametrize(
    ("values", "wanted", "warning"),
    [
        # 32768 / 257 = 127.5 -> 128; 0.25 * 255 = 63.75 -> 64
        (np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255], None),
        (np.array([[0.0, 0.25, 1.0]], np.float32), [0, 64, 255], None),
        (np.array([[0.0, 1.0, 4.0]], np.float32), [0, 64, 255], "floating values up to 4 were read as 0 to 4"),
        (np.array([[0.0, 99.6, 200.0]], np.float32), [0, 100, 200], "read as 0 to 255"),
        (np.array([[0.0, 25700.0, 65535.0]], np.float32), [0, 100, 255], "read as 0 to 65535"),
        (np.array([[-1.0, 0.5, np.nan]], np.float32), [0, 128, 0], "values that are not numbers"),
        (np.array([[0.5, np.inf, -np.inf]], np.float32), [128, 0, 0], "values that are not numbers"),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255], "read as 0 to 255"),
        (np.array([[0, 25700, 60000]], np.int32), [0, 100, 233], "32-bit values up to 60000 were read as 0 to 65535"),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 64, 127], "read as 0 to 4294967295"),
        (np.array([[-7, 100, 255]], np.int32), [0, 100, 255], "read as 0 to 255"),
    ],
)
def test_deep_formats_are_scaled_and_not_clipped(values: np.ndarray, wanted: list[int], warning: str | None) -> None:
    read = decode_with_warnings(saved(Image.fromarray(values), "TIFF"))

    assert [read.image.getpixel((x, 0)) for x in range(3)] == [(grey,) * 3 for grey in wanted]
    assert len(read.warnings) == (warning is not None)
    assert (warning or "") in " ".join(read.warnings)


def test_a_picture_of_no_number_at_all_is_refused() -> None:
    with pytest.raises(ImageError, match="not a number"):
        decode_image(saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"))


def test_sixteen_bits_with_a_hidden_grey_are_transparent_there() -> None:
    values = np.array([[0, 32768, 65535]], np.uint16)

    image = decode_image(saved(Image.fromarray(values), "PNG", transparency=0))

    assert [image.getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (128,) * 3, (255,) * 3]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("missing_bytes", [1, 2, 3, 20])
def test_a_jpeg_that_lacks_only_its_end_is_forgiven_with_a_warning(options: dict[str, int], missing_bytes: int) -> None:
    whole = saved(photo(), "JPEG", quality=90, **options)

    read = decode_with_warnings(whole[:-missing_bytes])

    assert read.warnings == ("the JPEG picture lacks its end; what there is of it was used",)
    difference = np.asarray(read.image, int) - np.asarray(decode_image(whole), int)
    assert (difference != 0).any(axis=2).mean() < 0.02
    assert missing_bytes > 2 or not difference.any()


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("part", [0.9, 0.5, 0.1])
def test_a_jpeg_that_lacks_more_is_refused(options: dict[str, int], part: float) -> None:
    whole = saved(photo(), "JPEG", quality=90, **options)

    with pytest.raises(ImageError, match="the JPEG picture is damaged or cut short"):
        decode_image(whole[: int(len(whole) * part)])


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cat.png", b"...")
    return buffer.getvalue()


PNG = (PICTURES / "display_p3.png").read_bytes()


@pytest.mark.parametrize(
    ("data", "kind", "remedy"),
    [
        ((PICTURES / "lfs_pointer.png").read_bytes(), "Git LFS pointer", "git lfs pull"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><title>Sign in</title>", "web page", "own address"),
        (b"<html><body>404</body></html>", "web page", "own address"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "store, AccessDenied", "rights"),
        (b"<rss></rss>", "XML", "check the address"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG", "PNG"),
        (json.dumps({"error": "no such file"}).encode(), "JSON", "check the address"),
        (b"[]", "JSON", "check the address"),
        (b"%PDF-1.7\n", "PDF", "export"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript", "export"),
        (zipped(), "ZIP", "unpack"),
        (gzip.compress(PNG), "gzip", "unpack"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "7z", "unpack"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "video", "frame"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video", "frame"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", "video", "frame"),
        (b"RIFF\x10\0\0\0AVI LIST", "video", "frame"),
        (b"8BPS\0\1", "PSD", "export"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL", "save it as"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", "save it as"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "raw file", "develop"),
        (b"\x93NUMPY\1\0", "NumPy", "save it as"),
        (base64.b64encode(PNG), "PNG picture in base64", "data:image/png;base64"),
        (b"data:image/png;base64," + base64.b64encode(PNG), "data: URI", "address"),
        (bytes(1000), "1000 zero bytes", "upload it again"),
        (b"P", "1 bytes that start with b'P'", "PNG, JPEG"),
        (b"a plain text", "12 bytes that start with b'a plain text'", "PNG, JPEG"),
    ],
)
def test_what_is_no_picture_is_named_by_what_it_is_with_the_remedy(data: bytes, kind: str, remedy: str) -> None:
    with pytest.raises(ImageError) as error:
        decode_image(data)

    assert kind in str(error.value)
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1, 330: 8}], ids=["DNG", "NEF and ARW"])
def test_a_cameras_raw_file_is_not_taken_for_its_preview(tags: dict[int, object]) -> None:
    data = saved(Image.new("RGB", (16, 12)), "TIFF", tiffinfo=tags)

    with pytest.raises(ImageError, match="a camera's raw file: develop it to JPEG or TIFF"):
        decode_image(data)


def test_heic_is_named_where_its_decoder_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "OPEN", {name: decoder for name, decoder in Image.OPEN.items() if name != "HEIF"})
    monkeypatch.setitem(__import__("sys").modules, "pi_heif", None)

    with pytest.raises(ImageError, match="a HEIC picture: install pi-heif"):
        decode_image((PICTURES / "iphone.heic").read_bytes())


def test_a_phones_108_megapixels_are_refused_with_the_name_of_the_limit() -> None:
    header = b"P6 12000 9000 255\n"

    with pytest.raises(ImageError, match=r"12000x9000 is over 64000000 pixels \(DG_MAX_INPUT_PIXELS\)"):
        decode_image(header)
    with pytest.raises(ImageError, match="cut short"):  # past the limit now, and there are no pixels
        decode_image(header, max_pixels=108_000_000)


def test_a_raised_limit_is_not_undercut_by_pillows_own() -> None:
    with pytest.raises(ImageError, match="cut short"):
        decode_image(b"P6 20000 20000 255\n", max_pixels=400_000_000)


def photo() -> Image.Image:
    """Something like a photo, so that a JPEG of it has its data all over."""
    patches = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((640, 480), Image.Resampling.BICUBIC)


def saved(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def assert_close(data: bytes, wanted: tuple[int, ...], within: int, options: ImageOptions | None = None) -> None:
    read = decode_with_warnings(data, options=options or ImageOptions())
    assert read.warnings == ()
    assert np.abs(np.asarray(read.image, int) - np.array(wanted)).max() <= within
