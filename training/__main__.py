"""Make the bundled model: from nothing, or further from weights that are there.

    python -m training --all                                          # everything, from random weights
    python -m training --all --minutes 4                              # both trainings together take four minutes
    python -m training flow export evaluate --begin models/tiny       # continue the flow of a model that is there
    python -m training autoencoder export evaluate --begin models/tiny --decoder-only

Everything goes into one folder (--folder, default training-output); a stopped training continues from its last state.
The model, as far as it is trained, is its folder `model`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kontext.errors import CheckpointError, KontextError
from kontext.networks import Networks, load_networks
from kontext.weights.layout import ModelFiles, find_model
from training.autoencoder import AutoencoderTraining, latent_statistics
from training.beginning import write_beginning
from training.data.edits import EDITS
from training.export import export
from training.flow import FlowTraining
from training.judging.card import write_card
from training.judging.evaluation import Task, evaluate_together, loaded
from training.judging.examples import write_examples
from training.judging.reconstructions import MEASURED, measure, told
from training.plans import MAIN, PLANS, Plan
from training.record import write_record

AUTOENCODER_SHARE = 0.3  # of --minutes


@dataclass(frozen=True)
class Work:
    """Values that all steps share."""

    folder: Path
    begin: Path
    plan: Plan
    device: torch.device
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
        return AutoencoderTraining(networks.autoencoder, plan, self.folder, self.device, self.decoder_only, self.seed)

    def trainings(self) -> tuple[Networks, ModelFiles, FlowTraining, AutoencoderTraining]:
        """The networks to begin from, the autoencoder as far as it is trained, and the training of the flow."""
        networks, files = self.networks()
        autoencoder = self.autoencoder(networks)
        autoencoder.load_state()
        if autoencoder.step and not autoencoder.decoder_only:
            networks.autoencoder.config = latent_statistics(networks.autoencoder, self.device)
        networks.autoencoder.requires_grad_(False)
        flow = FlowTraining(networks, files.config, self.plan.flow, self.folder, self.device, self.seed)
        return networks, files, flow, autoencoder


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    steps = list(STEPS) if options.all else options.steps
    if not steps or set(steps) - STEPS.keys():
        parser.error(f"name steps among {', '.join(STEPS)}, or --all; got {' '.join(steps) or 'none'}")
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    work = Work(
        folder, options.begin or folder / "begin", _plan(options, device), device, options.decoder_only, options.seed
    )
    for name, step in STEPS.items():
        if name in steps:
            started = time.monotonic()
            step(work)
            sys.stderr.write(f"{name}: done in {time.monotonic() - started:.0f} s\n")


def begin(work: Work) -> None:
    """vocabularies and random weights, unless they are there"""
    if not (work.folder / "begin" / "config.json").exists():
        write_beginning(work.folder / "begin", work.plan.model, work.plan.sentences, work.seed)


def train_autoencoder(work: Work) -> None:
    """the autoencoder, on drawn scenes"""
    networks, _ = work.networks()
    work.autoencoder(networks).run()
    export_model(work)
    measured = measure(loaded(work.model, str(work.device)), work.plan.measured)
    (work.folder / MEASURED).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    sys.stderr.write(told(measured))


def train_flow(work: Work) -> None:
    """the transformer and both text encoders, on edits"""
    _, _, flow, _ = work.trainings()
    flow.run(saved=lambda: export_model(work))


def export_model(work: Work) -> None:
    """what was trained so far, as a model folder"""
    networks, files, flow, autoencoder = work.trainings()
    flow.load_state()
    if not flow.step and not autoencoder.step:
        raise CheckpointError(f"{work.folder} holds no training: do the step flow or autoencoder first")
    averaged = flow.averaged()
    trained = Networks(averaged.transformer, networks.autoencoder, averaged.t5, averaged.clip)
    config = replace(files.config, autoencoder=networks.autoencoder.config)
    part = work.folder / "model.part"
    shutil.rmtree(part, ignore_errors=True)
    export(trained, replace(files, config=config), part)
    write_record(part, work.begin, flow, autoencoder)
    if (work.folder / MEASURED).exists():
        shutil.copy(work.folder / MEASURED, part)
    shutil.rmtree(work.model, ignore_errors=True)
    part.rename(work.model)


def evaluate_model(work: Work) -> None:
    """judge unseen edits; writes eval.json and README.md into the model, and a contact sheet beside it"""
    plan = work.plan
    tasks = [Task(edit, plan.cases if edit in MAIN else plan.other_cases, plan.evaluation_steps) for edit in EDITS]
    evaluate_together(work.model, str(work.device), tasks, plan.evaluators, work.folder / "sheet.png")
    write_card(work.model)


def choose_examples(work: Work) -> None:
    """unseen edits that the model gets right, as a table with images"""
    model = loaded(work.model, str(work.device))
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


def _plan(options: argparse.Namespace, device: torch.device) -> Plan:
    plan = PLANS[options.plan or ("gpu" if device.type == "cuda" else "cpu")]
    flow = replace(plan.flow, steps=options.flow_steps or plan.flow.steps)
    autoencoder = replace(plan.autoencoder, steps=options.autoencoder_steps or plan.autoencoder.steps)
    if options.minutes:
        autoencoder = replace(autoencoder, minutes=AUTOENCODER_SHARE * options.minutes)
        flow = replace(flow, minutes=(1 - AUTOENCODER_SHARE) * options.minutes)
    if options.no_compile:
        autoencoder, flow = replace(autoencoder, compiled=False), replace(flow, compiled=False)
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
    add("--minutes", type=float, help="most minutes of both trainings together; learning rates end in time")
    add("--flow-steps", type=int, help="at most, instead of the plan's")
    add("--autoencoder-steps", type=int, help="at most, instead of the plan's")
    add("--cases", type=int, help="of every edit in the evaluation, instead of the plan's")
    add("--decoder-only", action="store_true", help="leave the latents, and so the flow, as they are")
    add("--no-compile", action="store_true", help="spare the compiler's minute, and learn more slowly")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--seed", type=int, default=0, help="of everything that is drawn; default: %(default)s")
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KontextError as error:
        sys.exit(f"training: {error}")
