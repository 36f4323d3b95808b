"""How large a model is measured, with what edit: the real one, or a tiny one that tries the benchmark out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kontext.config import AutoencoderConfig, ModelConfig, TransformerConfig

GIB = 2**30
TINY_T5_WIDTH, TINY_CLIP_WIDTH = 128, 64  # of the bundled model's encoders


@dataclass(frozen=True)
class Scale:
    """A model and the edit to measure it with."""

    name: str
    model: ModelConfig
    t5: dict[str, Any]  # what differs from the bundled model's config.json
    clip: dict[str, Any]
    pixels: int  # of each side of the picture
    steps: int
    jobs: int  # with all weights resident; the first and the last are reported
    few_jobs: int  # in every other mode
    budgets_bytes: tuple[int, ...]
    roomy_budgets_bytes: tuple[int, ...]  # measured late: they tell least
    shallow: ModelConfig  # the same widths with few blocks, for the comparison with a CPU
    shallow_pixels: int
    matmul_size: int
    usual_seconds: float  # that a measurement takes, with its process's start: estimates, to know what still fits
    estimated_seconds: dict[str, float] = field(default_factory=dict)  # of those that take longer or less


FULL = Scale(
    name="full size",
    model=ModelConfig(name="flux1-kontext-dev, random"),
    # T5-v1.1-XXL and CLIP-L, apart from the vocabularies, which are those of the bundled tokenizers: 0.3 GB less.
    t5={"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24},
    clip={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    pixels=1024,
    steps=30,
    jobs=10,
    few_jobs=2,
    budgets_bytes=(16 * GIB, 12 * GIB, 8 * GIB),
    roomy_budgets_bytes=(24 * GIB,),
    shallow=ModelConfig(
        name="two blocks of each kind, full width",
        transformer=TransformerConfig(
            depth=2, depth_single_blocks=2, context_in_dim=TINY_T5_WIDTH, vec_in_dim=TINY_CLIP_WIDTH
        ),
        # Otherwise its input picture is brought to a megapixel, and a CPU has four times the tokens.
        preferred_resolutions=((512, 512),),
    ),
    shallow_pixels=512,
    matmul_size=8192,
    usual_seconds=45,
    estimated_seconds={
        "ceiling": 20,
        "model": 60,
        "resident": 130,
        "warm_load": 25,
        "offload_8": 60,
        "fp8": 100,
        "check": 75,
        "official": 65,
        "diffusers": 70,
        "diffusers_compiled": 120,
    },
)

_TINY = TransformerConfig(
    hidden_size=128,
    num_heads=2,
    axes_dim=(8, 28, 28),
    depth=2,
    depth_single_blocks=3,
    context_in_dim=64,
    vec_in_dim=64,
)
TINY = Scale(
    name="tiny, to try the benchmark out",
    model=ModelConfig(
        name="tiny, random",
        transformer=_TINY,
        autoencoder=AutoencoderConfig(ch=32, num_res_blocks=1),
        max_sequence_length=64,
        preferred_resolutions=((64, 64),),
    ),
    t5={"d_model": 64},
    clip={},
    pixels=64,
    steps=2,
    jobs=2,
    few_jobs=2,
    budgets_bytes=(GIB,),
    roomy_budgets_bytes=(),
    shallow=ModelConfig(
        name="tiny, one block of each kind",
        transformer=TransformerConfig(
            hidden_size=128,
            num_heads=2,
            axes_dim=(8, 28, 28),
            depth=1,
            depth_single_blocks=1,
            context_in_dim=TINY_T5_WIDTH,
            vec_in_dim=TINY_CLIP_WIDTH,
        ),
        autoencoder=AutoencoderConfig(ch=32, num_res_blocks=1),
        max_sequence_length=64,
        preferred_resolutions=((64, 64),),
    ),
    shallow_pixels=64,
    matmul_size=256,
    usual_seconds=10,
)
SCALES = {"full": FULL, "tiny": TINY}
