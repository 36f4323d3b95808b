"""The differences from the reference in how pictures come in and go out, each one an option."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageOptions:
    """The differences from the reference; every option is on unless turned off."""

    apply_exif_orientation: bool = True  # a camera held upright gives an upright picture
    composite_alpha_on_white: bool = True  # instead of whatever colour transparent pixels hide
    apply_colour_profile: bool = True  # colours as a viewer shows them, instead of numbers without their profile
    scale_deep_formats: bool = True  # 16 bits, 32 bits and floats scaled to 8 bits, instead of clipped
    crop_to_asked_size: bool = True  # instead of the asked size rounded up to 16

    @classmethod
    def reference(cls) -> ImageOptions:
        """Options that reproduce the reference code."""
        return cls(
            apply_exif_orientation=False,
            composite_alpha_on_white=False,
            apply_colour_profile=False,
            scale_deep_formats=False,
            crop_to_asked_size=False,
        )


DEFAULT_OPTIONS = ImageOptions()
