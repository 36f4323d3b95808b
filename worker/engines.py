"""The interface of an engine, the request that a job becomes, and the engine that the settings name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from PIL.Image import Image

from jobs.errors import SettingsError
from jobs.schema import EditJob, EditParams
from kontext import Edited, EditRequest, Lora
from kontext.choices import ALLOCATOR_SETTING, ALLOCATOR_VARIABLE
from worker.settings import Settings

if TYPE_CHECKING:
    from kontext import EngineOptions

SAMPLING_PARAMETERS = tuple(field.name for field in fields(EditRequest) if field.name in EditParams.model_fields)
"""Parameters of a job that the engine takes, under the one name that both sides give them."""


def edit_request(job: EditJob, images: Sequence[Image], loras: Sequence[Lora] = ()) -> EditRequest:
    """Build the engine's request for a job; a parameter that the job leaves open has the request's default.

    Args:
        images, loras: what the URIs of the job stand for.
    """
    given = {name: getattr(job.params, name) for name in SAMPLING_PARAMETERS} | {"loras": tuple(loras)}
    return EditRequest(tuple(images), job.prompt, **{name: value for name, value in given.items() if value is not None})


class Engine(Protocol):
    """A resident model. `run` is called by one thread at a time and calls `on_step(done, total)` after each step;
    what `on_step` raises ends the edit and leaves the engine usable.
    """

    @property
    def name(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def approximations(self) -> tuple[str, ...]: ...
    @property
    def device(self) -> str: ...

    def run(self, request: EditRequest, on_step: Callable[[int, int], None]) -> Edited: ...

    def warm_up(self) -> None: ...

    def spare_memory(self) -> AbstractContextManager[object]:
        """Within the context `run` needs less of the device's memory, and more time.

        Raises:
            kontext.ModelLost: at its end the engine cannot have its usual place back, so that this process must end.
        """
        ...


def load_engine(settings: Settings, on_progress: Callable[[int, int], None] | None = None) -> Engine:
    """Load the engine that `DG_FLUX_KONTEXT_ENGINE` names, with its weights.

    Args:
        on_progress: called with (bytes read, bytes in all) while weights are read; `module:callable` makes its engine
            without.
    Raises:
        SettingsError: there is no such engine, or it has no choice of what a setting chooses.
        kontext.KontextError: the weights cannot be used.
    """
    _set_allocator()
    if ":" in settings.flux_kontext_engine:
        return _factory(settings.flux_kontext_engine)(settings)
    if settings.flux_kontext_engine == "native":
        import kontext

        return kontext.load(settings.flux_kontext_model, engine_options(settings), on_progress=on_progress)
    if settings.flux_kontext_engine == "official":
        from kontext import official

        check_official_settings(settings)
        return official.load(settings.flux_kontext_model, engine_options(settings), on_progress=on_progress)
    if settings.flux_kontext_engine == "standin":
        from worker.standin import load_standin

        return load_standin(settings)
    given = settings.flux_kontext_engine
    raise SettingsError(f"DG_FLUX_KONTEXT_ENGINE={given!r}: expected native, official, standin or module:callable")


NATIVE_ALONE: dict[str, tuple[object, ...]] = {
    "flux_kontext_cache": (None,),
    "flux_kontext_precision": ("bf16",),
    "flux_kontext_attention": ("auto",),
    "flux_kontext_compile": (None, False),
    "flux_kontext_kernels": ("auto", "reference"),
}
"""Settings that choose what only the native engine has, with the values that the official one does not contradict.

Sizes of caches are not among them: an engine that keeps nothing stays within each.
"""


def check_official_settings(settings: Settings) -> None:
    """Refuse settings that the official engine would ignore.

    Raises:
        SettingsError: one line that names each.
    """
    ignored = [f"DG_{name.upper()}" for name, fitting in NATIVE_ALONE.items() if getattr(settings, name) not in fitting]
    if ignored:
        raise SettingsError(
            f"{', '.join(ignored)}: not for the official engine; "
            "unset what is named here, or set DG_FLUX_KONTEXT_ENGINE=native"
        )


def _set_allocator() -> None:
    """Tell torch's allocator how to work, unless somebody has: it looks once, when the first engine is loaded."""
    if ALLOCATOR_VARIABLE not in os.environ and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ[ALLOCATOR_VARIABLE] = ALLOCATOR_SETTING


def engine_options(settings: Settings) -> EngineOptions:
    """The options that the settings give an engine. Loads torch."""
    from kontext import EngineOptions

    return EngineOptions(
        device=settings.flux_kontext_device,
        offload=settings.flux_kontext_offload,
        vram_budget_bytes=settings.flux_kontext_vram_budget,
        max_sequence_length=settings.flux_kontext_max_sequence_length,
        most_pixels=settings.flux_kontext_max_pixels,
        cache_bytes=settings.flux_kontext_cache_bytes,
        compile=settings.flux_kontext_compile,
        attention=settings.flux_kontext_attention,
        precision=settings.flux_kontext_precision,
        step_cache=settings.flux_kontext_cache,
        kernels=settings.flux_kontext_kernels,
        lora_bytes=settings.flux_kontext_lora_bytes,
        prepared=settings.prepared_dir,
    )


def _factory(path: str) -> Callable[[Settings], Engine]:
    module, _, name = path.partition(":")
    try:
        return cast("Callable[[Settings], Engine]", getattr(import_module(module), name))
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"DG_FLUX_KONTEXT_ENGINE={path!r}: {error}") from error
