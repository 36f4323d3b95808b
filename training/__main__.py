"""Make the bundled model: from nothing, or further from weights that are there.

    python -m training --all                                          # everything, from random weights
    python -m training flow export evaluate --begin models/tiny       # go on with the flow of a model that is there
    python -m training autoencoder export evaluate --begin models/tiny --decoder-only
    torchrun --nproc-per-node 2 -m training flow --begin models/tiny  # on two GPUs, or two cores; `evaluate` too

Everything goes into one folder (--folder, default training-output); a training that was stopped goes on from its last
state. The finished model is its folder `model`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch

import kontext
from kontext.errors import CheckpointError, KontextError
from kontext.networks import Networks, load_networks
from kontext.weights.layout import find_model
from training.autoencoder import AutoencoderTraining, latent_statistics
from training.beginning import write_beginning
from training.data.edits import EDITS
from training.export import export
from training.flow import FlowTraining
from training.judging.card import write_card
from training.judging.evaluation import evaluate, write_report
from training.judging.examples import write_examples
from training.plans import PLANS, Plan
from training.ranks import Ranks, all_ranks, gathered
from training.record import write_record


@dataclass(frozen=True)
class Work:
    """What all steps share."""

    folder: Path
    begin: Path
    plan: Plan
    ranks: Ranks
    decoder_only: bool
    seed: int

    @property
    def model(self) -> Path:
        return self.folder / "model"


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    steps = list(STEPS) if options.all else options.steps
    if not steps or set(steps) - STEPS.keys():
        _parser().error(f"name steps among {', '.join(STEPS)}, or --all; got {' '.join(steps) or 'none'}")
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    with all_ranks(options.device) as ranks:
        plan = _plan(options, ranks)
        work = Work(folder, options.begin or folder / "begin", plan, ranks, options.decoder_only, options.seed)
        for name in STEPS:
            if name in steps:
                STEPS[name](work)
                ranks.wait()  # the next step reads what the first process has written


def begin(work: Work) -> None:
    """vocabularies and random weights"""
    if work.ranks.is_first:
        write_beginning(work.folder / "begin", work.seed)


def train_autoencoder(work: Work) -> None:
    """the autoencoder, on drawn scenes"""
    if work.ranks.is_first:
        networks = load_networks(find_model(work.begin), torch.float32)
        AutoencoderTraining(
            networks.autoencoder, work.plan.autoencoder, work.folder, work.ranks, work.decoder_only, work.seed
        ).run()


def train_flow(work: Work) -> None:
    """the transformer and both text encoders, on edits"""
    _, flow, _ = _trainings(work)
    flow.run()


def export_model(work: Work) -> None:
    """what was trained so far, as a model folder"""
    if not work.ranks.is_first:
        return
    networks, flow, autoencoder = _trainings(work)
    flow.load_state()
    if not flow.step and not autoencoder.step:
        raise CheckpointError(f"{work.folder} holds no training: do the step flow or autoencoder first")
    averaged = flow.averaged()
    trained = Networks(averaged.transformer, networks.autoencoder, averaged.t5, averaged.clip)
    files = find_model(work.begin)
    export(trained, replace(files, config=replace(files.config, autoencoder=networks.autoencoder.config)), work.model)
    write_record(work.model, work.begin, flow, autoencoder)


def evaluate_model(work: Work) -> None:
    """judge unseen edits; writes eval.json, README.md, and contact sheets beside the model"""
    sheets = work.folder / "sheets"
    sheets.mkdir(exist_ok=True)
    model = kontext.load(work.model, device=str(work.ranks.device))
    mine = EDITS[work.ranks.rank :: work.ranks.size]
    verdicts = gathered(evaluate(model, work.plan.cases, work.plan.evaluation_steps, mine, sheets), work.ranks)
    if work.ranks.is_first:
        verdicts.sort(key=lambda verdict: EDITS.index(verdict.edit))
        write_report(work.model / "eval.json", verdicts, work.plan.evaluation_steps, model.config)
        write_card(work.model)


def choose_examples(work: Work) -> None:
    """unseen edits that the model gets right, as a table with pictures"""
    if not work.ranks.is_first:
        return
    model = kontext.load(work.model, device=str(work.ranks.device))
    short = write_examples(model, work.folder / "examples", work.plan.example_steps, work.plan.tries)
    if short:
        sys.stderr.write(f"too few right among {work.plan.tries}: {', '.join(short)}\n")


STEPS: dict[str, Callable[[Work], None]] = {
    "begin": begin,
    "autoencoder": train_autoencoder,
    "flow": train_flow,
    "export": export_model,
    "evaluate": evaluate_model,
    "examples": choose_examples,
}


def _trainings(work: Work) -> tuple[Networks, FlowTraining, AutoencoderTraining]:
    """The networks to begin from, the autoencoder as far as it is trained, and the training of the flow."""
    files = find_model(work.begin)
    networks = load_networks(files, torch.float32)
    autoencoder = AutoencoderTraining(
        networks.autoencoder, work.plan.autoencoder, work.folder, work.ranks, work.decoder_only
    )
    autoencoder.load_state()
    if autoencoder.step and not autoencoder.decoder_only:
        networks.autoencoder.config = latent_statistics(networks.autoencoder, Random(work.seed), work.ranks.device)
    networks.autoencoder.requires_grad_(False)
    return (
        networks,
        FlowTraining(networks, files.config, work.plan.flow, work.folder, work.ranks, work.seed),
        autoencoder,
    )


def _plan(options: argparse.Namespace, ranks: Ranks) -> Plan:
    plan = PLANS[options.plan or ("gpu" if ranks.device.type == "cuda" else "cpu")]
    flow = replace(plan.flow, steps=options.flow_steps or plan.flow.steps)
    autoencoder = replace(plan.autoencoder, steps=options.autoencoder_steps or plan.autoencoder.steps)
    return replace(plan, flow=flow, autoencoder=autoencoder, cases=options.cases or plan.cases)


def _parser() -> argparse.ArgumentParser:
    steps = "\n".join(f"  {name:12s} {step.__doc__}" for name, step in STEPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__,
        epilog=f"steps, always done in this order:\n{steps}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help="what to do, see below")
    parser.add_argument("--all", action="store_true", help="all steps")
    parser.add_argument("--folder", type=Path, default=Path("training-output"), help="default: %(default)s")
    parser.add_argument("--begin", type=Path, help="a model folder to begin from; default: what the step `begin` wrote")
    parser.add_argument("--plan", choices=PLANS, help="default: gpu where there is one, else cpu")
    parser.add_argument("--flow-steps", type=int, help="instead of the plan's")
    parser.add_argument("--autoencoder-steps", type=int, help="instead of the plan's")
    parser.add_argument("--cases", type=int, help="of every edit in the evaluation, instead of the plan's")
    parser.add_argument("--decoder-only", action="store_true", help="leave the latents, and so the flow, as they are")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn; default: %(default)s")
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KontextError as error:
        sys.exit(f"training: {error}")
