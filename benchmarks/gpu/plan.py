"""Plan of `python -m benchmarks.gpu`: sizes of model and edit, measurements in their order, their estimated times."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.random_model import CLIP_WIDTH, T5_WIDTH
from kontext.config import AutoencoderConfig, ModelConfig, TransformerConfig
from kontext.sampling import token_grid

GIB = 2**30
RIVALS = {"official": ("official",), "diffusers": ("diffusers", "diffusers_compiled")}  # what each `--vs` adds
RESIDENT = "resident"  # the mode that others are compared with
WARM_LOAD = "warm_load"
MODEL = "model"


@dataclass(frozen=True)
class Scale:
    """A model and the edit to measure it with."""

    name: str
    model: ModelConfig
    encoders: dict[str, dict[str, Any]]  # of t5 and clip: differences from the bundled model's config.json
    pixels: int  # of each side of the image
    steps: int
    jobs: int  # with all weights resident; the first and the last are reported
    few_jobs: int  # in every other mode
    budgets_bytes: tuple[int, ...]
    roomy_budgets_bytes: tuple[int, ...]  # measured late: they tell least
    shallow_depth: int  # blocks of each kind, for the comparison with a CPU
    shallow_pixels: int
    matmul_size: int
    usual_seconds: float  # of a measurement with its process's start; estimated, to know what still fits
    estimated_seconds: dict[str, float] = field(default_factory=dict)  # of those that take longer or less

    @property
    def tokens(self) -> int:
        """Tokens of the edit: text, target, and one reference of the target's size."""
        rows, columns = token_grid(self.pixels, self.pixels)
        return 2 * rows * columns + self.model.max_sequence_length

    @property
    def shallow(self) -> ModelConfig:
        """The same widths with few blocks and the bundled text encoders, small enough for a CPU."""
        transformer = replace(
            self.model.transformer,
            depth=self.shallow_depth,
            depth_single_blocks=self.shallow_depth,
            context_in_dim=T5_WIDTH,
            vec_in_dim=CLIP_WIDTH,
        )
        # With other resolutions its input image is brought to a megapixel, and a CPU has four times the tokens.
        resolutions = ((self.shallow_pixels, self.shallow_pixels),)
        return replace(
            self.model, name=f"{self.model.name}, shallow", transformer=transformer, preferred_resolutions=resolutions
        )


FULL = Scale(
    name="full size",
    model=ModelConfig(name="flux1-kontext-dev, random"),
    # T5-v1.1-XXL and CLIP-L, apart from the vocabularies, which are those of the bundled tokenizers: 0.3 GB less.
    encoders={
        "t5": {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24},
        "clip": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    },
    pixels=1024,
    steps=30,
    jobs=5,
    few_jobs=2,
    budgets_bytes=(16 * GIB, 12 * GIB, 8 * GIB),
    roomy_budgets_bytes=(24 * GIB,),
    shallow_depth=2,
    shallow_pixels=512,
    matmul_size=8192,
    usual_seconds=45,
    estimated_seconds={
        "ceiling": 30,
        "model": 60,
        "resident": 100,
        "warm_load": 30,
        "fp8": 75,
        "check": 75,
        "official": 65,
        "diffusers": 70,
        "diffusers_compiled": 100,
    },
)
TINY = Scale(
    name="tiny, to try the benchmark out",
    model=ModelConfig(
        name="tiny, random",
        transformer=TransformerConfig(
            hidden_size=128,
            num_heads=2,
            axes_dim=(8, 28, 28),
            depth=2,
            depth_single_blocks=3,
            context_in_dim=64,
            vec_in_dim=64,
        ),
        autoencoder=AutoencoderConfig(ch=32, num_res_blocks=1),
        max_sequence_length=64,
        preferred_resolutions=((64, 64),),
    ),
    encoders={"t5": {"d_model": 64}, "clip": {}},
    pixels=64,
    steps=2,
    jobs=2,
    few_jobs=2,
    budgets_bytes=(GIB,),
    roomy_budgets_bytes=(),
    shallow_depth=1,
    shallow_pixels=64,
    matmul_size=256,
    usual_seconds=10,
)
SCALES = {"full": FULL, "tiny": TINY}


@dataclass(frozen=True)
class Mode:
    """A way of running the model."""

    engine: str = "native"  # or "official", "diffusers"
    jobs: int = 2
    budget_bytes: int | None = None  # of device memory, with offload; None for all weights resident
    compile: bool | None = None  # None: the engine decides
    precision: str = "bf16"
    attention: str = "auto"
    skips_steps: bool = False  # as many as a step cache may
    has_profile: bool = False  # the kernels of a short edit too, at the end


@dataclass(frozen=True)
class Measurement:
    """One of the things measured, each in a process of its own."""

    name: str  # for the command line, its log and its image
    title: str  # in results
    seconds: float  # that it takes, estimated: it is skipped when less is left
    mode: Mode | None = None  # where the full model is run, which must be written before

    @property
    def needs_model(self) -> bool:
        return self.mode is not None

    @property
    def has_edits(self) -> bool:
        return self.mode is not None and self.mode.jobs > 0


def make_plan(scale: Scale, only: Collection[str] = (), rivals: Iterable[str] = ()) -> list[Measurement]:
    """The measurements in their order: the most telling first, in case time runs out.

    Args:
        only: names of those to take, all native ones when empty.
        rivals: keys of `RIVALS` that are measured besides.
    Raises:
        ValueError: there is no measurement of such a name.
    """
    everything = _everything(scale)
    names = [measurement.name for measurement in everything]
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"there is no {', '.join(unknown)}; choose from {', '.join(names)}")
    added = {name for rival in rivals for name in RIVALS[rival]}
    usual = set(names) - {name for group in RIVALS.values() for name in group}
    wanted = (set(only) or usual) | added
    chosen = [measurement for measurement in everything if measurement.name in wanted]
    first = next((i for i, measurement in enumerate(chosen) if measurement.needs_model), None)
    if first is None or MODEL in wanted:
        return chosen
    return [*chosen[:first], *(one for one in everything if one.name == MODEL), *chosen[first:]]


def _everything(scale: Scale) -> list[Measurement]:
    few = scale.few_jobs

    def take(name: str, title: str, mode: Mode | None = None) -> Measurement:
        return Measurement(name, title, scale.estimated_seconds.get(name, scale.usual_seconds), mode)

    def offload(budget_bytes: int) -> Measurement:
        gib = f"{budget_bytes / GIB:.0f}"
        return take(f"offload_{gib}", f"offload {gib} GiB", Mode(jobs=few, budget_bytes=budget_bytes))

    return [
        take("ceiling", "ceiling"),
        take(MODEL, MODEL),
        take(RESIDENT, "resident", Mode(jobs=scale.jobs, has_profile=True)),
        take(WARM_LOAD, WARM_LOAD, Mode(jobs=0)),
        *map(offload, scale.budgets_bytes),
        take("fp8", "fp8", Mode(jobs=few, precision="fp8")),
        take("check", "check"),
        *map(offload, scale.roomy_budgets_bytes),
        take("not_compiled", "resident, not compiled", Mode(jobs=few, compile=False)),
        take("step_cache", "most steps skipped", Mode(jobs=few, skips_steps=True)),
        take("official", "official", Mode("official", jobs=few)),
        take("diffusers", "diffusers", Mode("diffusers", jobs=few, compile=False)),
        take("diffusers_compiled", "diffusers, blocks compiled", Mode("diffusers", jobs=few, compile=True)),
    ]
