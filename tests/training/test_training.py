"""The recipe at a scale of seconds: losses fall, states are taken up again, the result is a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

import kontext
from kontext.autoencoder import Autoencoder
from kontext.errors import CheckpointError
from kontext.networks import load_networks
from kontext.weights.layout import bundled_model, find_model
from training.__main__ import main
from training.autoencoder import AutoencoderTraining, crops, reconstruction_loss
from training.beginning import write_beginning
from training.flow import FlowTraining, moving_average, random_times, token_weights
from training.judging.card import NAMES
from training.lessons import Bucket, Pools, changed_tokens
from training.plans import BUNDLED, PLANS, SMALLEST, AutoencoderPlan, FlowPlan, Phase, Rates
from training.ranks import Ranks
from training.speed import mixed_precision

ALONE = Ranks(rank=0, size=1, device=torch.device("cpu"))
RECOLOUR = Bucket(((64, 64),), 6, (("recolour", 1.0),))


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begin")
    write_beginning(folder, SMALLEST, sentence_count=500)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m training --all` leaves behind, in its shortest plan."""
    folder = tmp_path_factory.mktemp("all")
    main(["--all", "--plan", "smoke", "--device", "cpu", "--folder", str(folder)])
    return folder


def flow_training(beginning: Path, folder: Path, steps: int) -> FlowTraining:
    phases = (Phase(1.0, (RECOLOUR,)),)
    plan = FlowPlan(steps, phases, matrix_rate=0.02, other_rate=2e-3, uses=4, lessons=12, compiled=False)
    return FlowTraining(load_networks(find_model(beginning), torch.float32), SMALLEST, plan, folder, ALONE)


def test_the_bundled_model_has_the_sizes_of_the_plans_that_made_it() -> None:
    made = find_model(bundled_model()).config
    statistics = {"scale_factor": 1.0, "shift_factor": 0.0}

    assert replace(made, autoencoder=replace(made.autoencoder, **statistics)) == BUNDLED
    assert {PLANS["cpu"].model, PLANS["gpu"].model} == {BUNDLED}


def told(folder: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_the_loss_of_the_flow_falls(beginning: Path, tmp_path: Path) -> None:
    training = flow_training(beginning, tmp_path, steps=12)
    batch = Pools(training.encoder, seed=5, uses=1, capacity=12).batch(RECOLOUR)
    t, noise, guidance = torch.full((6,), 0.9), torch.randn(batch.target.shape), torch.full((6,), 2.5)

    def loss_of_unseen_edits() -> float:
        with torch.no_grad(), mixed_precision(torch.device("cpu")):
            return float(training.model(batch, t, noise, guidance).mean())

    before = loss_of_unseen_edits()
    training.run()

    assert loss_of_unseen_edits() < 0.85 * before


def test_a_stopped_training_of_the_flow_goes_on(beginning: Path, tmp_path: Path) -> None:
    first = flow_training(beginning, tmp_path, steps=3)
    first.run()

    second = flow_training(beginning, tmp_path, steps=5)
    second.run()

    assert [step["step"] for step in told(tmp_path, "flow")] == [1, 2, 3, 4, 5]
    assert (second.step, second.samples) == (5, 5 * RECOLOUR.samples)
    assert second.seconds > first.seconds > 0


def test_a_training_at_its_end_does_nothing_more(beginning: Path, tmp_path: Path) -> None:
    flow_training(beginning, tmp_path, steps=2).run()
    before = torch.load(tmp_path / "flow.pt", weights_only=True)["model"]

    again = flow_training(beginning, tmp_path, steps=2)
    again.run()

    assert all(torch.equal(value, before[key]) for key, value in again.model.state_dict().items())


@pytest.mark.parametrize("decoder_only", [False, True])
def test_the_loss_of_the_autoencoder_falls(tmp_path: Path, decoder_only: bool) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(SMALLEST.autoencoder)
    encoder = {key: value.clone() for key, value in autoencoder.encoder.state_dict().items()}
    rates = Rates(0.1, 0.1)
    plan = AutoencoderPlan(steps=40, samples=4, side=32, rates=rates, decoder_rates=rates, compiled=False)
    images = crops(8, 64, Random(99), torch.device("cpu"))

    def loss_of_unseen_images() -> float:
        with torch.no_grad():
            return float(reconstruction_loss(autoencoder.decode(autoencoder.encode(images)), images))

    before = loss_of_unseen_images()
    AutoencoderTraining(autoencoder, plan, tmp_path, ALONE, decoder_only).run()

    assert loss_of_unseen_images() < 0.9 * before
    same = all(torch.equal(value, encoder[key]) for key, value in autoencoder.encoder.state_dict().items())
    assert same == decoder_only


def test_every_weight_of_a_decoder_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(SMALLEST.autoencoder)
    before = {name: weights.clone() for name, weights in autoencoder.decoder.named_parameters()}
    plan = AutoencoderPlan(steps=2, samples=2, side=32, decoder_rates=Rates(0.1, 0.1), compiled=False)

    AutoencoderTraining(autoencoder, plan, tmp_path, ALONE, True).run()

    same = [name for name, weights in autoencoder.decoder.named_parameters() if torch.equal(weights, before[name])]
    assert same == []


def test_a_stopped_training_of_the_autoencoder_goes_on(tmp_path: Path) -> None:
    plan = AutoencoderPlan(steps=2, samples=2, side=32, compiled=False)
    AutoencoderTraining(Autoencoder(SMALLEST.autoencoder), plan, tmp_path, ALONE, True).run()

    again = AutoencoderTraining(Autoencoder(SMALLEST.autoencoder), replace(plan, steps=3), tmp_path, ALONE, True)
    again.run()

    assert [step["step"] for step in told(tmp_path, "autoencoder")] == [1, 2, 3]


def test_the_result_is_a_model_that_edits(finished: Path) -> None:
    model = kontext.load(finished / "model", device="cpu")

    edited = model.edit(Image.new("RGB", (128, 128)), "make it blue", num_inference_steps=1, seed=1)

    assert edited.size == (128, 128)
    assert model.config.autoencoder.scale_factor != 1.0  # from the latents' statistics


def test_the_evaluation_names_every_case_and_every_edit(finished: Path) -> None:
    report = json.loads((finished / "model" / "eval.json").read_text())

    assert report["results"].keys() == {*NAMES, "all"}
    assert report["results"]["all"]["cases"] == len(report["cases"]) == len(NAMES) * PLANS["smoke"].cases
    assert all((finished / "sheets" / f"{edit.replace(' ', '_')}.png").exists() for edit in NAMES)


def test_the_card_is_made_from_evaluation_and_record(finished: Path) -> None:
    card = (finished / "model" / "README.md").read_text()
    (run,) = json.loads((finished / "model" / "training.json").read_text())

    assert all(f"| {name} | 1 | 0% |" in card for name in NAMES.values())  # twelve steps teach nothing
    assert f"| 1 | {run['machine']['cores']} cores" in card
    assert f"| {run['flow']['edits']} |" in card
    assert "| 12 steps |" in card


def test_a_model_can_be_trained_further(finished: Path, tmp_path: Path) -> None:
    main(
        [
            "flow",
            "export",
            "--plan",
            "smoke",
            "--device",
            "cpu",
            "--begin",
            str(finished / "model"),
            "--folder",
            str(tmp_path),
        ]
    )

    runs = json.loads((tmp_path / "model" / "training.json").read_text())
    assert [run["flow"]["steps"] for run in runs] == [12, 12]
    old, new = (find_model(folder / "model") for folder in (finished, tmp_path))
    assert old.autoencoder.read_bytes() == new.autoencoder.read_bytes()
    assert old.transformer.read_bytes() != new.transformer.read_bytes()
    assert old.config == new.config


def test_a_better_decoder_is_exported_without_a_training_of_the_flow(finished: Path, tmp_path: Path) -> None:
    begin = ["--plan", "smoke", "--device", "cpu", "--begin", str(finished / "model"), "--folder", str(tmp_path)]
    main(["autoencoder", "--decoder-only", *begin])
    main(["export", *begin])  # the state knows that it was the decoder alone

    old, new = (find_model(folder / "model") for folder in (finished, tmp_path))
    assert old.autoencoder.read_bytes() != new.autoencoder.read_bytes()
    assert old.transformer.read_bytes() == new.transformer.read_bytes()
    assert old.config == new.config


def test_nothing_trained_is_nothing_to_export(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="do the step flow or autoencoder first"):
        main(["export", "--plan", "smoke", "--begin", str(finished / "model"), "--folder", str(tmp_path)])


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--plan", "smoke"]])
def test_a_wrong_command_says_which_steps_there_are(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert "begin, autoencoder, flow, export, evaluate, examples" in capsys.readouterr().err


def test_every_edit_is_used_a_few_times_and_then_makes_place(beginning: Path) -> None:
    encoder = load_networks(find_model(beginning), torch.float32).autoencoder
    pools = Pools(encoder, seed=0, uses=2, capacity=24)

    batches = [pools.batch(RECOLOUR) for _ in range(30)]

    (pool,) = pools.pools.values()
    assert len(pool.lessons) == 24
    assert len({prompt for batch in batches for prompt in batch.prompts}) > 60
    assert batches[0].references.shape == batches[0].target.shape == (6, 16, 64)
    assert batches[0].img_ids.shape == (6, 32, 3)


def test_two_references_follow_each_other(beginning: Path) -> None:
    encoder = load_networks(find_model(beginning), torch.float32).autoencoder
    bucket = Bucket(((64, 64),), 2, (("transfer", 1.0),))

    batch = Pools(encoder, seed=0, uses=1, capacity=4).batch(bucket)

    assert batch.references.shape == (2, 32, 64)
    assert batch.img_ids[0, :, 0].tolist() == [0.0] * 16 + [1.0] * 16 + [2.0] * 16


def test_tokens_that_cover_a_changed_pixel_are_changed() -> None:
    before = torch.zeros(3, 32, 48)
    after = before.clone()
    after[1, 20, 40] = 0.5

    assert changed_tokens(before, after).tolist() == [False, False, False, False, False, True]


def test_changed_tokens_weigh_three_times_as_much() -> None:
    weights = token_weights(torch.tensor([[True, False, False, False]]))

    assert weights.tolist() == [[2.0, *[pytest.approx(2 / 3)] * 3]]  # 3 : 1 : 1 : 1, of mean 1


def test_times_are_between_image_and_noise_and_half_of_them_near_noise() -> None:
    times = random_times(20_000, 256, torch.Generator().manual_seed(0))

    assert 0 < times.min() < 0.2 < 0.99 < times.max() <= 1
    assert 0.5 < (times > 0.88).float().mean() < 0.7


def test_the_average_forgets_where_training_began() -> None:
    average = torch.tensor(100.0)
    for count in range(1, 60):
        average = moving_average(average, torch.tensor(1.0), count, decay=0.998)

    assert float(average) == pytest.approx(1.0, abs=0.01)


def test_crops_are_as_large_as_asked() -> None:
    images = crops(6, 32, Random(0), torch.device("cpu"))

    assert images.shape == (6, 3, 32, 32)
    assert images.abs().max() <= 1
