"""Sizes at which edits are sampled; the arithmetic stands beside each case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext import EditRequest, RequestError
from kontext.config import PREFERRED_RESOLUTIONS, ModelConfig
from kontext.sizes import Placement, SizePlan, asked_size, plan_sizes, preferred_size
from tests.kontext.golden import read_json

LARGE_MODEL = ModelConfig()
SMALL_MODEL = ModelConfig(preferred_resolutions=((224, 288), (256, 256), (288, 224)))
PREPARED = read_json("preprocess/preprocess")


def plan(size: tuple[int, int], *more: tuple[int, int], model: ModelConfig = LARGE_MODEL, **asked: Any) -> SizePlan:
    return plan_sizes(request(size, *more, **asked), model)


def request(*sizes: tuple[int, int], **asked: Any) -> EditRequest:
    return EditRequest(tuple(Image.new("RGB", size) for size in sizes), "make it snow", **asked)


def grids(sizes: SizePlan) -> list[tuple[int, int]]:
    return [placement.size for placement in sizes.references]


@pytest.mark.parametrize("picture", PREPARED, ids=lambda picture: picture["name"])
def test_preferred_size_is_the_references(picture: dict[str, Any]) -> None:
    width, height = picture["source_size_wh"]

    size = preferred_size(width, height, PREFERRED_RESOLUTIONS)

    assert size == (picture["chosen_width"], picture["chosen_height"])


def test_a_tie_between_preferred_sizes_goes_to_the_narrower_one() -> None:
    # 1.25 is as far from 96/64 = 1.5 as from 64/64 = 1.
    assert preferred_size(100, 80, [(96, 64), (64, 64)]) == (64, 64)


@pytest.mark.parametrize(
    ("resolution", "rounded"),
    [((1104, 944), (1104, 944)), ((100, 72), (96, 64))],  # 6 * 16 and 4 * 16
)
def test_preferred_sizes_are_whole_tokens(resolution: tuple[int, int], rounded: tuple[int, int]) -> None:
    width, height = resolution

    assert preferred_size(width, height, [resolution]) == rounded


@pytest.mark.parametrize("model", [LARGE_MODEL, SMALL_MODEL], ids=["large", "small"])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (16, 16), (1920, 1080), (999, 1001), (300, 100), (100, 300)])
@pytest.mark.parametrize("mode", ["match", "fit", "reference"])
def test_without_a_size_everything_is_as_in_the_reference(mode: str, size: tuple[int, int], model: ModelConfig) -> None:
    sizes = plan(size, (70, 50), model=model, size_mode=mode)

    preferred = [preferred_size(*side, model.preferred_resolutions) for side in (size, (70, 50))]
    assert sizes.references == tuple(Placement(size, size) for size in preferred)
    assert sizes.sampled == sizes.shown == sizes.output == preferred[0]


@pytest.mark.parametrize(
    ("size", "asked", "sampled", "reference"),
    [
        ((1920, 1080), (1920, 1080), (1920, 1088), (1920, 1088)),  # 1088 = 68 * 16; 2,073,600 of 2,097,152 pixels
        ((4000, 2250), (1280, 720), (1280, 720), (1280, 720)),
        ((1000, 1000), (512, 512), (512, 512), (512, 512)),  # 512 * 512 is a quarter of 1024 * 1024
        ((1040, 1000), (768, 768), (768, 768), (768, 768)),  # 4 % is rounding
        ((1000, 1040), (768, 768), (768, 768), (768, 768)),
        ((1100, 1000), (768, 768), (768, 768), (800, 736)),  # 10 % is another shape: 805 x 732 has 768 * 768 pixels
        ((1600, 900), (1024, 1024), (1024, 1024), (1360, 768)),  # 1365 x 768 has 1024 * 1024
        ((901, 677), (901, 677), (912, 688), (912, 688)),  # rounded up: 57 * 16, 43 * 16
    ],
)
def test_target_and_reference_share_a_grid_when_the_shapes_agree(
    size: tuple[int, int], asked: tuple[int, int], sampled: tuple[int, int], reference: tuple[int, int]
) -> None:
    sizes = plan(size, width=asked[0], height=asked[1])

    assert (sizes.sampled, grids(sizes), sizes.output) == (sampled, [reference], asked)
    assert bool(sizes.warnings) == (sampled != reference)


@pytest.mark.parametrize(
    ("size", "asked", "sampled", "said"),
    [
        ((3840, 2160), (3840, 2160), (1920, 1088), "above the 2 megapixels that this model samples well"),
        ((4096, 4096), (4096, 4096), (1440, 1440), "sampled at 1440x1440 and enlarged"),  # 1448 * 1448 is 2 * 2**20
        ((3000, 3000), (128, 128), (512, 512), "128x128 is too small for this model: sampled at 512x512 and reduced"),
        ((1600, 900), (160, 90), (688, 384), "too small"),  # 683 x 384 has 512 * 512 pixels
    ],
)
def test_areas_that_the_model_cannot_do_well_are_resampled_with_a_warning(
    size: tuple[int, int], asked: tuple[int, int], sampled: tuple[int, int], said: str
) -> None:
    sizes = plan(size, width=asked[0], height=asked[1])

    assert (sizes.sampled, grids(sizes), sizes.output) == (sampled, [sampled], asked)
    assert len(sizes.warnings) == 1
    assert said in sizes.warnings[0]


def test_a_model_says_its_own_limit() -> None:
    assert LARGE_MODEL.largest_area == 2 * 1024 * 1024
    assert SMALL_MODEL.largest_area == 2 * 256 * 256
    tiny_limit = replace(LARGE_MODEL, most_pixels=10_000)
    assert plan((512, 512), model=tiny_limit, width=64, height=64).sampled == (96, 96)  # and not 512 x 512
    assert ModelConfig.from_json({"most_pixels": 4_000_000}).largest_area == 4_000_000


@pytest.mark.parametrize("side", [17, 500, 1100, 4090])
@pytest.mark.parametrize("model", [LARGE_MODEL, SMALL_MODEL], ids=["large", "small"])
def test_no_grid_is_larger_than_the_limit_or_longer_than_three_to_one(side: int, model: ModelConfig) -> None:
    for other in range(16, 4096, 700):
        sizes = plan((side, other), (other, side), model=model, width=side, height=other)

        width, height = sizes.sampled
        assert width * height <= 1.07 * model.largest_area  # at most one token more on each side
        assert max(width, height) <= 3.5 * min(width, height)
        assert all(side % 16 == 0 for grid in (sizes.sampled, *grids(sizes)) for side in grid)
        assert sizes.output == (side, other)
        assert all(part <= whole for part, whole in zip(sizes.shown, sizes.sampled, strict=True))


@pytest.mark.parametrize(
    ("size", "asked", "output"),
    [
        ((1920, 1080), {"width": 1920}, (1920, 1080)),
        ((1920, 1080), {"height": 1080}, (1920, 1080)),
        ((3000, 200), {"width": 300}, (300, 20)),
        ((3000, 200), {"width": 16}, (16, 1)),
        ((1000, 667), {"height": 400}, (600, 400)),  # 599.7
        ((1234, 567), {"aspect_ratio": "input"}, (1234, 567)),
        ((6000, 4000), {"aspect_ratio": "input"}, (6000, 4000)),
        ((64, 64), {"aspect_ratio": "1:1"}, (1024, 1024)),
        ((64, 64), {"aspect_ratio": "16:9"}, (1360, 768)),  # 1365 x 768
        ((64, 64), {"aspect_ratio": "9:16"}, (768, 1360)),
        ((64, 64), {"aspect_ratio": "4:3"}, (1184, 880)),  # 1182 x 887
        ((64, 64), {"aspect_ratio": "3:2"}, (1248, 832)),  # 1254 x 836
        ((64, 64), {"aspect_ratio": "21:9"}, (1568, 672)),  # 1564 x 670
        ((64, 64), {"aspect_ratio": "9:21"}, (672, 1568)),
        ((64, 64), {}, None),
    ],
)
def test_what_is_asked_for(size: tuple[int, int], asked: dict[str, Any], output: tuple[int, int] | None) -> None:
    assert asked_size(request(size, **asked), LARGE_MODEL.usual_area) == output


def test_a_side_that_would_be_too_long_is_named() -> None:
    with pytest.raises(RequestError, match=r"width is 400, which makes height 8000 in this image's shape, over 4096"):
        plan((10, 200), width=400)


def test_fit_samples_at_the_preferred_size_of_the_asked_shape() -> None:
    sizes = plan((1920, 1080), width=3840, height=2160, size_mode="fit")

    assert (sizes.sampled, grids(sizes), sizes.output) == ((1392, 752), [(1392, 752)], (3840, 2160))
    assert sizes.warnings == ()


def test_reference_changes_the_targets_sides_alone() -> None:
    sizes = plan((1920, 1080), width=100, size_mode="reference")

    assert (sizes.sampled, grids(sizes), sizes.output) == ((100, 752), [(1392, 752)], (100, 752))
    assert sizes.warnings == ()


@pytest.mark.parametrize("asked", [{}, {"size_mode": "fit"}, {"size_mode": "match"}])
def test_a_picture_beyond_three_to_one_keeps_its_shape(asked: dict[str, Any]) -> None:
    sizes = plan((3000, 200), **asked)

    # 3:1 at 1024 * 1024 pixels is 1774 x 591; 1776 * 200 / 3000 = 118.4
    assert sizes.sampled == (1776, 592)
    assert sizes.references == (Placement((1776, 592), (1776, 118)),)
    assert sizes.shown == sizes.output == (1776, 118)
    assert sizes.warnings == (
        "the shape of 3000x200 is beyond 3:1: it was kept by sampling 1776x592 and cutting 1776x118 out of the middle",
    )


def test_a_long_picture_of_a_size_is_cut_out_and_resampled() -> None:
    sizes = plan((200, 3000), width=100, height=1500)

    # 3:1 round 1500 is 500 x 1500, in whole tokens 512 x 1504; 1504 / 15 = 100.3
    assert (sizes.sampled, sizes.shown, sizes.output) == ((512, 1504), (100, 1504), (100, 1500))
    assert sizes.references == (Placement((512, 1504), (100, 1504)),)


def test_further_pictures_lie_on_the_targets_grid_or_keep_their_shape() -> None:
    sizes = plan((800, 600), (400, 300), (600, 800), width=800, height=600)

    assert grids(sizes) == [(800, 608), (800, 608), (608, 800)]
    assert sizes.warnings == ()


def test_a_change_of_shape_that_nobody_asked_for_is_told() -> None:
    assert plan((1920, 1080)).warnings == ()  # 4 %
    (warning,) = plan((3000, 1000)).warnings
    assert warning == ("the picture's shape changed by 29%, from 3000x1000 to 1568x672; aspect_ratio=input keeps it")


def test_padding_repeats_the_edges_and_is_cut_off_again() -> None:
    pixels = np.zeros((2, 32, 3), np.uint8)
    pixels[0], pixels[1] = 10, 200

    padded = Placement((32, 16), (32, 2)).prepare(Image.fromarray(pixels))

    rows = np.asarray(padded)[:, 0, 0].tolist()
    assert rows == [10] * 8 + [200] * 8
    cut = SizePlan((32, 16), (), shown=(32, 2), output=(32, 2)).finish(padded, is_exact=True)
    assert np.array_equal(np.asarray(cut), pixels)


def test_an_output_is_resampled_and_not_cropped() -> None:
    image = Image.new("RGB", (112, 112), "red")
    image.paste("white", (8, 8, 104, 104))  # a frame of which cropping to 100 would leave 2 pixels

    finished = SizePlan((112, 112), (), shown=(112, 112), output=(100, 100)).finish(image, is_exact=True)

    assert finished.size == (100, 100)
    assert finished.getpixel((4, 50)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"size_mode": "crop"}, "size_mode is 'crop', expected match, fit, reference"),
        ({"aspect_ratio": "3:1"}, "aspect_ratio is '3:1', expected input, or a shape from 21:9 to 9:21 such as 16:9"),
        ({"aspect_ratio": "0:1"}, "aspect_ratio is '0:1', expected input"),
        ({"aspect_ratio": "wide"}, "aspect_ratio is 'wide', expected input"),
        ({"aspect_ratio": "1:1", "width": 64}, "aspect_ratio is '1:1' beside width or height; give one or the other"),
        ({"aspect_ratio": "1:1", "size_mode": "reference"}, "which size_mode 'reference' does not know"),
    ],
)
def test_what_cannot_be_asked_for(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        request((64, 64), **asked)
