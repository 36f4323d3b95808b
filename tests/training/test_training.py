"""The recipe at a scale of seconds: losses fall, states are taken up again, the result is a model."""

from __future__ import annotations

import json
from dataclasses import replace
from multiprocessing import active_children
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
from training.autoencoder import SPIKE, AutoencoderTraining, crops, reconstruction_loss, spike
from training.beginning import write_beginning
from training.flow import FlowTraining, random_times, token_weights
from training.judging.card import AIMS, NAMES
from training.lessons import Batch, Lessons, Orders, changed_tokens, phase_at
from training.loop import move_average
from training.plans import BUNDLED, PLANS, SMALLEST, AutoencoderPlan, Bucket, FlowPlan, Phase, Rates
from training.speed import mixed_precision

CPU = torch.device("cpu")
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
    plan = FlowPlan(steps, phases, matrix_rate=0.02, other_rate=2e-3, uses=4, kept=2, compiled=False)
    return FlowTraining(load_networks(find_model(beginning), torch.float32), SMALLEST, plan, folder, CPU)


def lessons_of(beginning: Path, *phases: Phase, uses: int = 1, kept: int = 1, workers: int = 0) -> Lessons:
    networks = load_networks(find_model(beginning), torch.float32)
    orders = Orders(phases, (networks.t5, networks.clip), SMALLEST, min(uses, 2), 5, torch.tensor(0.0).share_memory_())
    return Lessons(networks.autoencoder, orders, uses, kept, workers)


def batch_of(beginning: Path, bucket: Bucket) -> Batch:
    (batch,) = lessons_of(beginning, Phase(1.0, (bucket,))).batches(0.0)
    return batch


def test_the_bundled_model_has_the_sizes_of_the_plans_that_made_it() -> None:
    made = find_model(bundled_model()).config
    statistics = {"scale_factor": 1.0, "shift_factor": 0.0}

    assert replace(made, autoencoder=replace(made.autoencoder, **statistics)) == BUNDLED
    assert {PLANS["cpu"].model, PLANS["gpu"].model} == {BUNDLED}


def told(folder: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_the_loss_of_the_flow_falls(beginning: Path, tmp_path: Path) -> None:
    training = flow_training(beginning, tmp_path, steps=12)
    batch = batch_of(beginning, RECOLOUR)
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

    steps = [step["step"] for step in told(tmp_path, "flow")]
    assert 3 in steps  # the last of the first training
    assert steps[-1] == 5
    assert steps == sorted(set(steps))
    assert (second.step, second.samples) == (5, 5 * RECOLOUR.samples)
    assert second.seconds > first.seconds > 0


def test_a_training_at_its_end_does_nothing_more(beginning: Path, tmp_path: Path) -> None:
    flow_training(beginning, tmp_path, steps=2).run()
    before = torch.load(tmp_path / "flow.pt", weights_only=True)["model"]

    again = flow_training(beginning, tmp_path, steps=2)
    again.run()

    assert all(torch.equal(value, before[key]) for key, value in again.model.state_dict().items())


def test_a_training_ends_after_its_minutes(beginning: Path, tmp_path: Path) -> None:
    training = flow_training(beginning, tmp_path, steps=10**9)
    training.limit_seconds = 0.5

    training.run()

    assert training.passed == 1
    assert 1 <= training.step < 10**6
    again = flow_training(beginning, tmp_path, steps=10**9)
    again.limit_seconds = 0.5
    again.run()
    assert (again.step, again.samples) == (training.step, training.samples)


@pytest.mark.parametrize("decoder_only", [False, True])
def test_the_loss_of_the_autoencoder_falls(tmp_path: Path, decoder_only: bool) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(SMALLEST.autoencoder)
    encoder = {key: value.clone() for key, value in autoencoder.encoder.state_dict().items()}
    rates = Rates(0.1, 0.1, 1e-4)
    plan = AutoencoderPlan(
        steps=40, samples=4, side=32, whole_samples=1, whole_share=0, rates=rates, decoder_rates=rates, compiled=False
    )
    images = crops(8, 64, Random(99), CPU)

    def loss_of_unseen_images() -> float:
        with torch.no_grad():
            return float(reconstruction_loss(autoencoder.decode(autoencoder.encode(images)), images))

    before = loss_of_unseen_images()
    AutoencoderTraining(autoencoder, plan, tmp_path, CPU, decoder_only).run()

    assert loss_of_unseen_images() < 0.9 * before
    same = all(torch.equal(value, encoder[key]) for key, value in autoencoder.encoder.state_dict().items())
    assert same == decoder_only


def test_every_weight_of_a_decoder_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(SMALLEST.autoencoder)
    before = {name: weights.clone() for name, weights in autoencoder.decoder.named_parameters()}
    plan = AutoencoderPlan(
        steps=2, samples=2, side=32, whole_samples=1, decoder_rates=Rates(0.1, 0.1, 1e-4), compiled=False
    )

    AutoencoderTraining(autoencoder, plan, tmp_path, CPU, True).run()

    same = [name for name, weights in autoencoder.decoder.named_parameters() if torch.equal(weights, before[name])]
    assert same == []


def test_a_stopped_training_of_the_autoencoder_goes_on(tmp_path: Path) -> None:
    plan = AutoencoderPlan(steps=2, samples=2, side=32, whole_samples=1, compiled=False)
    AutoencoderTraining(Autoencoder(SMALLEST.autoencoder), plan, tmp_path, CPU, True).run()

    again = AutoencoderTraining(Autoencoder(SMALLEST.autoencoder), replace(plan, steps=3), tmp_path, CPU, True)
    again.run()

    assert [step["step"] for step in told(tmp_path, "autoencoder")][-1] == 3


def test_the_result_is_a_model_that_edits(finished: Path) -> None:
    model = kontext.load(finished / "model", device="cpu")

    edited = model.edit(Image.new("RGB", (128, 128)), "make it blue", num_inference_steps=1, seed=1)

    assert edited.size == (128, 128)
    assert model.config.autoencoder.scale_factor != 1.0  # from the latents' statistics


def test_the_evaluation_names_every_case_and_every_edit(finished: Path) -> None:
    report = json.loads((finished / "model" / "eval.json").read_text())

    assert report["results"].keys() == {*NAMES, "all"}
    assert report["results"]["all"]["cases"] == len(report["cases"]) == len(NAMES) * PLANS["smoke"].cases
    with Image.open(finished / "sheet.png") as sheet:
        assert min(sheet.size) > 100
    measured = json.loads((finished / "model" / "autoencoder.json").read_text())
    assert measured["one colour"]["images"] == 10


def test_the_card_is_made_from_evaluation_and_record(finished: Path) -> None:
    card = (finished / "model" / "README.md").read_text()
    (run,) = json.loads((finished / "model" / "training.json").read_text())

    assert all(
        f"| {name} | 1 | 0% |" in card and f"| {AIMS[edit]:.0%} | 0% |" in card for edit, name in NAMES.items()
    )  # twelve steps teach nothing
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


def test_every_order_is_used_a_few_times_and_then_makes_place(beginning: Path) -> None:
    lessons = lessons_of(beginning, Phase(1.0, (RECOLOUR,)), uses=4, kept=2)

    steps = [lessons.batches(0.0) for _ in range(40)]

    used = [sum(step is other for other in steps) for step in steps]
    assert len(lessons.kept) == 2
    assert sum(used) / len(used) > 1.5
    assert len({id(step) for step in steps}) > 4
    (batch,) = steps[0]
    assert batch.references.shape == batch.target.shape == (6, 16, 64)
    assert batch.img_ids.shape == (6, 32, 3)
    assert not torch.equal(batch.t5_ids[0], batch.t5_ids[1])  # other words


def test_a_process_of_its_own_makes_the_orders_of_the_phase_that_has_come(beginning: Path) -> None:
    smaller = Bucket(((32, 32),), 2, (("recolour", 1.0),))
    children = set(active_children())
    lessons = lessons_of(beginning, Phase(0.5, (RECOLOUR,)), Phase(0.5, (smaller,)), workers=1)
    assert set(active_children()) - children

    sizes = [lessons.batches(passed)[0].target.shape for passed in (0.0, *[0.6] * 9)]

    assert sizes[0] == (6, 16, 64)
    assert sizes[-1] == (2, 4, 64)  # after the few that were made ahead


def test_two_references_follow_each_other(beginning: Path) -> None:
    batch = batch_of(beginning, Bucket(((64, 64),), 2, (("transfer", 1.0),)))

    assert batch.references.shape == (2, 32, 64)
    assert batch.img_ids[0, :, 0].tolist() == [0.0] * 16 + [1.0] * 16 + [2.0] * 16


def test_a_reference_is_the_edits_own_image(beginning: Path) -> None:
    batch = batch_of(beginning, Bucket(((64, 64),), 12, (("remove", 1.0),)))  # six edits of either of two scenes

    kept = ~batch.changed[..., None]
    differences = (batch.references[:, None] - batch.target[None]).square() * kept[None]
    nearest = differences.mean((2, 3)).argmin(1)
    assert (nearest // 6 == torch.arange(12) // 6).float().mean() > 0.9


def test_phases_follow_the_share_that_has_passed() -> None:
    phases = tuple(Phase(share, ()) for share in (0.2, 0.5, 0.3))

    assert [phases.index(phase_at(phases, passed)) for passed in (0.0, 0.19, 0.21, 0.69, 0.71, 1.0)] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]


def test_tokens_that_cover_a_changed_pixel_are_changed() -> None:
    before = torch.zeros(1, 3, 32, 48)
    after = before.clone()
    after[0, 1, 20, 40] = 0.5

    assert changed_tokens(before, after).tolist() == [[False, False, False, False, False, True]]


def test_changed_tokens_weigh_three_times_as_much() -> None:
    weights = token_weights(torch.tensor([[True, False, False, False]]))

    assert weights.tolist() == [[2.0, *[pytest.approx(2 / 3)] * 3]]  # 3 : 1 : 1 : 1, of mean 1


def test_times_are_between_image_and_noise_and_half_of_them_near_noise() -> None:
    times = random_times(20_000, 256, torch.Generator().manual_seed(0))

    assert 0 < times.min() < 0.2 < 0.99 < times.max() <= 1
    assert 0.5 < (times > 0.88).float().mean() < 0.7


def test_the_average_forgets_where_training_began() -> None:
    average, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.constant_(average.weight, 100.0)
    torch.nn.init.ones_(model.weight)
    for count in range(1, 60):
        move_average(average, model, count, decay=0.998)

    assert average.weight.item() == pytest.approx(1.0, abs=0.01)


def test_one_huge_value_in_a_group_is_a_spike() -> None:
    x = torch.randn(2, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    calm = float(spike(x))
    x[0, 5, 3, 3] = 1000.0

    assert calm == 0
    # Of 64 groups one; a lone value exceeds the size of its 2 * 32 * 32 neighbours by their root.
    assert float(spike(x)) == pytest.approx(((2 * 32 * 32) ** 0.5 - SPIKE) / 64, rel=0.05)


def test_whole_images_are_crops_without_a_side() -> None:
    images = crops(2, None, Random(0), CPU)

    assert len(images) == 2
    assert min(images.shape[2:]) >= 224


def test_crops_are_as_large_as_asked() -> None:
    images = crops(6, 32, Random(0), CPU)

    assert images.shape == (6, 3, 32, 32)
    assert images.abs().max() <= 1
