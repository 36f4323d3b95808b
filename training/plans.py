"""Plans of a training: one for a GPU, one for a CPU, and one that only shows that everything runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kontext.config import AutoencoderConfig, ModelConfig, Resolution, TransformerConfig
from training.lessons import Bucket, Shares

SMALL: tuple[Resolution, ...] = ((128, 128), (112, 144), (144, 112))
LARGE: tuple[Resolution, ...] = ((256, 256), (224, 288), (288, 224))
TINY: tuple[Resolution, ...] = ((64, 64),)

T5_WIDTH, CLIP_WIDTH = 128, 64
BUNDLED = ModelConfig(
    name="flux1-tiny-kontext",
    transformer=TransformerConfig(
        vec_in_dim=CLIP_WIDTH,
        context_in_dim=T5_WIDTH,
        hidden_size=256,
        num_heads=4,
        depth=2,
        depth_single_blocks=6,
        axes_dim=(8, 28, 28),
    ),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(2, 2, 2, 4), num_res_blocks=1, scale_factor=1.0, shift_factor=0.0),
    max_sequence_length=64,
    preferred_resolutions=tuple(sorted(LARGE)),
)
SMALLEST = replace(
    BUNDLED,
    transformer=replace(
        BUNDLED.transformer, hidden_size=64, num_heads=2, axes_dim=(8, 12, 12), depth=1, depth_single_blocks=2
    ),
    autoencoder=replace(BUNDLED.autoencoder, ch_mult=(1, 1, 1, 1)),
    preferred_resolutions=tuple(sorted(SMALL)),
)

# Frequencies of the edits. Edits of the whole image are learnt in no time; which shape is meant, and where, takes
# practice, and is most of what some hours on a CPU can teach.
FREQUENCIES = {  # with a GPU, with a CPU
    "recolour": (2.0, 3.5),
    "background": (0.7, 0.7),
    "remove": (1.5, 2.2),
    "replace": (1.5, 1.5),
    "add": (1.0, 1.0),
    "move": (1.0, 0.5),
    "resize": (1.0, 0.8),
    "swap": (1.0, 0.6),
    "grey": (0.3, 0.3),
    "invert": (0.3, 0.4),
    "border": (0.5, 0.4),
    "two edits": (1.0, 0.6),
}
ALL: Shares = tuple((edit, gpu) for edit, (gpu, _) in FREQUENCIES.items())
FEW: Shares = tuple((edit, cpu) for edit, (_, cpu) in FREQUENCIES.items())
TRANSFER: Shares = (("transfer", 1.0),)


@dataclass(frozen=True)
class Phase:
    """A part of the training of the flow; a step takes one batch of every bucket."""

    share: float  # of all steps
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class FlowPlan:
    """The training of transformer and text encoders."""

    steps: int
    phases: tuple[Phase, ...]
    matrix_rate: float  # Muon's
    other_rate: float  # Adam's
    uses: int  # of every drawn edit
    lessons: int  # kept for every size
    average: float = 0.998  # decay of the moving average that is exported
    compiled: bool = True  # takes about a minute


@dataclass(frozen=True)
class Rates:
    """Learning rates: change of a tensor in one step, as a share of its size."""

    kernels: float  # of convolutions, by Muon
    others: float  # by Adam


@dataclass(frozen=True)
class AutoencoderPlan:
    """The training of the autoencoder, on square crops."""

    steps: int
    samples: int
    side: int  # pixels
    rates: Rates = Rates(0.03, 0.03)  # from random weights
    decoder_rates: Rates = Rates(2.5e-3, 1e-3)  # of a trained decoder alone
    compiled: bool = True


@dataclass(frozen=True)
class Plan:
    """What a training from random weights makes, and how; one that begins with a model keeps that model's sizes."""

    flow: FlowPlan
    autoencoder: AutoencoderPlan
    cases: int  # of every edit, in the evaluation
    model: ModelConfig = BUNDLED
    sentences: int = 20_000  # from which the vocabularies are learnt
    evaluation_steps: int = 20
    tries: int = 24  # unseen cases of an edit, of which the first that succeed become examples
    example_steps: tuple[int, ...] = (8, 20, 30)


PLANS = {
    # One data-centre GPU, under 20 minutes; about a million edits.
    "gpu": Plan(
        flow=FlowPlan(
            steps=8000,
            phases=(
                Phase(0.6, (Bucket(SMALL, 128, ALL), Bucket(SMALL, 16, TRANSFER), Bucket(LARGE, 24, ALL))),
                Phase(0.4, (Bucket(LARGE, 72, ALL), Bucket(LARGE, 12, TRANSFER), Bucket(SMALL, 32, ALL))),
            ),
            matrix_rate=0.02,
            other_rate=1e-3,
            uses=1,
            lessons=256,
            average=0.999,
        ),
        autoencoder=AutoencoderPlan(steps=6000, samples=64, side=128),
        cases=50,
    ),
    # Two processor cores, a process on each, about an hour and a half for the flow, from weights that are there.
    "cpu": Plan(
        flow=FlowPlan(
            steps=2400,
            phases=(
                Phase(0.75, (Bucket(SMALL, 48, FEW), Bucket(LARGE, 4, FEW))),
                Phase(0.25, (Bucket(LARGE, 12, FEW), Bucket(SMALL, 16, FEW))),
            ),
            matrix_rate=0.015,
            other_rate=7e-4,
            uses=6,
            lessons=256,
        ),
        autoencoder=AutoencoderPlan(steps=2000, samples=16, side=64),
        cases=50,
    ),
    "smoke": Plan(
        flow=FlowPlan(
            steps=12,
            phases=(
                Phase(0.5, (Bucket(TINY, 4, ALL),)),
                Phase(0.5, (Bucket(TINY, 4, ALL), Bucket(TINY, 1, TRANSFER))),
            ),
            matrix_rate=0.02,
            other_rate=1e-3,
            uses=4,
            lessons=16,
            compiled=False,
        ),
        autoencoder=AutoencoderPlan(steps=12, samples=4, side=32, compiled=False),
        cases=1,
        model=SMALLEST,
        sentences=2_000,
        evaluation_steps=2,
        tries=1,
        example_steps=(1,),
    ),
}
