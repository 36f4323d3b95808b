"""Make the bundled model: from nothing, or further from weights that are there.

    python -m training --all                                          # everything, from random weights
    python -m training flow export evaluate --begin models/tiny       # continue the flow of a model that is there
    python -m training autoencoder export evaluate --begin models/tiny --decoder-only
    torchrun --nproc-per-node 2 -m training flow --begin models/tiny  # on two GPUs, or two cores; `evaluate` too

Everything goes into one folder (--folder, default training-output); a stopped training continues from its last state.
The finished model is its folder `model`.
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
from kontext.weights.layout import ModelFiles, find_model
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
    """Values that all steps share."""

    folder: Path
    begin: Path
    plan: Plan
    ranks: Ranks
    decoder_only: bool
    seed: int

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def networks(self) -> tuple[Networks, ModelFiles]:
        """The networks to begin from."""
        files = find_model(self.begin)
        return load_networks(files, torch.float32), files

    def autoencoder(self, networks: Networks) -> AutoencoderTraining:
        plan = self.plan.autoencoder
        return AutoencoderTraining(networks.autoencoder, plan, self.folder, self.ranks, self.decoder_only, self.seed)

    def trainings(self) -> tuple[Networks, ModelFiles, FlowTraining, AutoencoderTraining]:
        """The networks to begin from, the autoencoder as far as it is trained, and the training of the flow."""
        networks, files = self.networks()
        autoencoder = self.autoencoder(networks)
        autoencoder.load_state()
        if autoencoder.step and not autoencoder.decoder_only:
            networks.autoencoder.config = latent_statistics(networks.autoencoder, Random(self.seed), self.ranks.device)
        networks.autoencoder.requires_grad_(False)
        flow = FlowTraining(networks, files.config, self.plan.flow, self.folder, self.ranks, self.seed)
        return networks, files, flow, autoencoder


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    steps = list(STEPS) if options.all else options.steps
    if not steps or set(steps) - STEPS.keys():
        parser.error(f"name steps among {', '.join(STEPS)}, or --all; got {' '.join(steps) or 'none'}")
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    with all_ranks(options.device) as ranks:
        plan = _plan(options, ranks)
        work = Work(folder, options.begin or folder / "begin", plan, ranks, options.decoder_only, options.seed)
        for name, step in STEPS.items():
            if name in steps:
                if ranks.is_first or step in SHARED:
                    step(work)
                ranks.wait()  # the next step reads what the first process has written


def begin(work: Work) -> None:
    """vocabularies and random weights"""
    write_beginning(work.folder / "begin", work.plan.model, work.plan.sentences, work.seed)


def train_autoencoder(work: Work) -> None:
    """the autoencoder, on drawn scenes"""
    networks, _ = work.networks()
    work.autoencoder(networks).run()


def train_flow(work: Work) -> None:
    """the transformer and both text encoders, on edits"""
    _, _, flow, _ = work.trainings()
    flow.run()


def export_model(work: Work) -> None:
    """what was trained so far, as a model folder"""
    networks, files, flow, autoencoder = work.trainings()
    flow.load_state()
    if not flow.step and not autoencoder.step:
        raise CheckpointError(f"{work.folder} holds no training: do the step flow or autoencoder first")
    averaged = flow.averaged()
    trained = Networks(averaged.transformer, networks.autoencoder, averaged.t5, averaged.clip)
    config = replace(files.config, autoencoder=networks.autoencoder.config)
    export(trained, replace(files, config=config), work.model)
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
    """unseen edits that the model gets right, as a table with images"""
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
SHARED = (train_flow, evaluate_model)  # among all processes; the first does the others alone


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
    add = parser.add_argument
    add("steps", nargs="*", metavar="STEP", help="what to do, see below")
    add("--all", action="store_true", help="all steps")
    add("--folder", type=Path, default=Path("training-output"), help="default: %(default)s")
    add("--begin", type=Path, help="a model folder to begin from; default: what the step `begin` wrote")
    add("--plan", choices=PLANS, help="default: gpu where there is one, otherwise cpu")
    add("--flow-steps", type=int, help="instead of the plan's")
    add("--autoencoder-steps", type=int, help="instead of the plan's")
    add("--cases", type=int, help="of every edit in the evaluation, instead of the plan's")
    add("--decoder-only", action="store_true", help="leave the latents, and so the flow, as they are")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--seed", type=int, default=0, help="of everything that is drawn; default: %(default)s")
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KontextError as error:
        sys.exit(f"training: {error}")
