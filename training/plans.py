"""How long to train on what: a plan for a GPU, one for a CPU, and one that only shows that everything runs."""

from __future__ import annotations

from dataclasses import dataclass

from kontext.config import Resolution
from training.lessons import Bucket, Shares

SMALL: tuple[Resolution, ...] = ((128, 128), (112, 144), (144, 112))
LARGE: tuple[Resolution, ...] = ((256, 256), (224, 288), (288, 224))

# Edits of the whole picture are learnt in no time; which shape is meant, and where, takes practice.
ALL: Shares = (
    ("recolour", 2.0),
    ("background", 0.7),
    ("remove", 1.5),
    ("replace", 1.5),
    ("add", 1.0),
    ("move", 1.0),
    ("resize", 1.0),
    ("swap", 1.0),
    ("grey", 0.3),
    ("invert", 0.3),
    ("border", 0.5),
    ("two edits", 1.0),
)
TRANSFER: Shares = (("transfer", 1.0),)
# What a short training can teach: one thing more than it knows, which shape is meant.
FEW: Shares = (
    ("recolour", 4.0),
    ("background", 1.0),
    ("remove", 2.5),
    ("replace", 1.0),
    ("add", 0.5),
    ("resize", 0.4),
    ("swap", 0.4),
    ("grey", 0.5),
    ("invert", 0.6),
    ("border", 0.5),
    ("two edits", 0.4),
)


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


@dataclass(frozen=True)
class AutoencoderPlan:
    """The training of the autoencoder, on square crops."""

    steps: int
    samples: int
    side: int  # pixels
    rate: float = 0.03  # Adam's, as a share of the size of a tensor, from random weights
    decoder_rate: float = 4e-4  # likewise for a trained decoder alone; at 3e-3 it unlearnt within 100 steps


@dataclass(frozen=True)
class Plan:
    flow: FlowPlan
    autoencoder: AutoencoderPlan
    cases: int  # of every edit, in the evaluation
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
    # Two processor cores, about an hour and a half for the flow, from weights that are there.
    "cpu": Plan(
        flow=FlowPlan(
            steps=1400,
            phases=(
                Phase(0.65, (Bucket(SMALL, 16, FEW), Bucket(LARGE, 4, FEW))),
                Phase(0.35, (Bucket(LARGE, 8, FEW), Bucket(SMALL, 4, FEW))),
            ),
            matrix_rate=0.01,
            other_rate=5e-4,
            uses=3,
            lessons=192,
        ),
        autoencoder=AutoencoderPlan(steps=1500, samples=8, side=96),
        cases=50,
    ),
    "smoke": Plan(
        flow=FlowPlan(
            steps=12,
            phases=(
                Phase(0.5, (Bucket(((64, 64),), 4, ALL),)),
                Phase(0.5, (Bucket(((64, 64),), 4, ALL), Bucket(((64, 64),), 1, TRANSFER))),
            ),
            matrix_rate=0.02,
            other_rate=1e-3,
            uses=4,
            lessons=16,
        ),
        autoencoder=AutoencoderPlan(steps=12, samples=4, side=32),
        cases=1,
        evaluation_steps=2,
        tries=1,
        example_steps=(1,),
    ),
}
