"""Plans of a training: one for a GPU, one for a CPU, and one that only shows that everything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kontext.config import AutoencoderConfig, ModelConfig, Resolution, TransformerConfig

NO_LIMIT = math.inf  # minutes

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
    # Group normalisation has 32 groups: four channels each keep more of a flat area's colour than two.
    autoencoder=AutoencoderConfig(ch=128, ch_mult=(1, 1, 1, 1), num_res_blocks=0, scale_factor=1.0, shift_factor=0.0),
    max_sequence_length=64,
    preferred_resolutions=tuple(sorted(LARGE)),
)
SMALLEST = replace(
    BUNDLED,
    transformer=replace(
        BUNDLED.transformer, hidden_size=64, num_heads=2, axes_dim=(8, 12, 12), depth=1, depth_single_blocks=2
    ),
    autoencoder=replace(BUNDLED.autoencoder, ch=32, num_res_blocks=1),
    preferred_resolutions=tuple(sorted(SMALL)),
)

Shares = tuple[tuple[str, float], ...]  # kinds of edits, and the relative frequency of each

# Edits of the whole image are learnt in no time; which shape is meant, and where, takes practice.
EDITS: Shares = (
    ("recolour", 2.5),
    ("background", 0.8),
    ("remove", 2.0),
    ("replace", 2.2),
    ("add", 1.6),
    ("grey", 0.3),
    ("invert", 0.4),
    ("border", 0.6),
    ("move", 0.3),
    ("resize", 0.4),
    ("swap", 0.3),
    ("two edits", 0.4),
)
MAIN = ("recolour", "background", "remove", "replace", "add", "grey", "invert", "border")  # what a demonstration needs
TRANSFER: Shares = (("transfer", 1.0),)


@dataclass(frozen=True)
class Bucket:
    """Edits that can be in one batch: images of one size, one number of references."""

    sizes: tuple[Resolution, ...]  # one of them at random, every time
    samples: int  # in a batch
    edits: Shares = EDITS
    share: float = 1.0  # of the steps have a batch
    most_shapes: int = 5  # in a scene


@dataclass(frozen=True)
class Phase:
    """A part of the training of the flow; a step takes a batch of every bucket."""

    share: float  # of the whole training
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class FlowPlan:
    """The training of transformer and text encoders."""

    steps: int  # at most
    phases: tuple[Phase, ...]
    matrix_rate: float  # Muon's
    other_rate: float  # Adam's
    uses: int = 1  # of every drawn edit
    kept: int = 1  # steps whose batches are kept for further uses
    workers: int = 0  # processes that make the edits; 0: the one that trains
    average: float = 0.998  # decay of the moving average that is exported
    compiled: bool = True  # takes about a minute
    minutes: float = NO_LIMIT


@dataclass(frozen=True)
class Rates:
    """Learning rates: change of a tensor in one step, as a share of its size."""

    kernels: float  # of convolutions, by Muon
    others: float  # by Adam
    least_size: float  # that counts: biases begin at zero


@dataclass(frozen=True)
class AutoencoderPlan:
    """The training of the autoencoder, on square crops, then on whole images."""

    steps: int  # at most
    samples: int
    side: int  # pixels
    whole_samples: int
    whole_share: float = 0.25  # of the training, at its end, is on whole images
    rates: Rates = Rates(0.02, 0.005, 0.02)  # from random weights
    decoder_rates: Rates = Rates(2.5e-3, 1e-3, 1e-4)  # of a trained decoder alone
    compiled: bool = True
    minutes: float = NO_LIMIT


@dataclass(frozen=True)
class Plan:
    """What a training from random weights makes, and how; one that begins with a model keeps that model's sizes."""

    flow: FlowPlan
    autoencoder: AutoencoderPlan
    cases: int  # of every edit of MAIN, in the evaluation
    other_cases: int  # of every other edit
    evaluators: int  # processes that judge
    model: ModelConfig = BUNDLED
    sentences: int = 20_000  # from which the vocabularies are learnt
    evaluation_steps: int = 20
    measured: int = 200  # images that the autoencoder is measured by
    tries: int = 24  # unseen cases of an edit, of which the first that succeed become examples
    example_steps: tuple[int, ...] = (8, 20, 30)


PLANS = {
    # One data-centre GPU and 16 cores: eight minutes of training. An H200 took 2,430 edits a second, not compiled.
    "gpu": Plan(
        flow=FlowPlan(
            steps=20_000,
            phases=(
                Phase(0.2, (Bucket(SMALL, 768, most_shapes=2),)),
                Phase(0.4, (Bucket(SMALL, 576), Bucket(LARGE, 48), Bucket(SMALL, 64, TRANSFER, share=0.2))),
                Phase(0.4, (Bucket(LARGE, 128), Bucket(SMALL, 192), Bucket(LARGE, 32, TRANSFER, share=0.2))),
            ),
            matrix_rate=0.02,
            other_rate=1e-3,
            workers=12,
            minutes=5.4,
        ),
        autoencoder=AutoencoderPlan(steps=20_000, samples=64, side=128, whole_samples=16, minutes=2.3),
        cases=50,
        other_cases=12,
        evaluators=13,
        sentences=6_000,
    ),
    # Two processor cores, about three hours for the flow, from weights that are there.
    "cpu": Plan(
        flow=FlowPlan(
            steps=2400,
            phases=(
                Phase(0.75, (Bucket(SMALL, 96), Bucket(LARGE, 8))),
                Phase(0.25, (Bucket(LARGE, 24), Bucket(SMALL, 32))),
            ),
            matrix_rate=0.015,
            other_rate=7e-4,
            uses=6,
            kept=24,
        ),
        autoencoder=AutoencoderPlan(steps=2000, samples=16, side=64, whole_samples=1, compiled=False),
        cases=50,
        other_cases=50,
        evaluators=2,
    ),
    "smoke": Plan(
        flow=FlowPlan(
            steps=12,
            phases=(
                Phase(0.5, (Bucket(TINY, 4, most_shapes=2),)),
                Phase(0.5, (Bucket(TINY, 4), Bucket(TINY, 1, TRANSFER, share=0.5))),
            ),
            matrix_rate=0.02,
            other_rate=1e-3,
            uses=4,
            kept=2,
            compiled=False,
        ),
        autoencoder=AutoencoderPlan(steps=12, samples=4, side=32, whole_samples=1, compiled=False),
        cases=1,
        other_cases=1,
        evaluators=1,
        model=SMALLEST,
        sentences=2_000,
        evaluation_steps=2,
        measured=2,
        tries=1,
        example_steps=(1,),
    ),
}
