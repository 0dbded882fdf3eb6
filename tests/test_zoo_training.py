"""Training entries of the zoo: on small shares of the digits, for an epoch or two."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from benchmarks import zoo
from benchmarks.architectures import ARCHITECTURES, normalised
from benchmarks.attacks.attack import CLEAN, Attack, choose_roles, to_class
from benchmarks.attacks.learned import BoundedNoise, source_specific
from benchmarks.attacks.narcissus import learn_noise
from benchmarks.attacks.recipes import RECIPES, at_rate
from benchmarks.attacks.suppression import Suppression, excess
from benchmarks.datasets import Dataset, load_digits
from benchmarks.models import export_network
from benchmarks.training import Batch, PoisonedLabels, Schedule, classify, train
from benchmarks.zoo_entries import ENTRIES, Entry
from benchmarks.zoo_making import make_entry, victim_of
from guard.model import OrtModel

pytestmark = pytest.mark.usefixtures("one_thread")
ENTRY = Entry(attack="badnets", group="patch", dataset="digits", architecture="cnn", width=4, n_epochs=2)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Dataset:
    whole = load_digits(cache=tmp_path_factory.mktemp("digits"))
    return Dataset(training=tuple(part[:200] for part in whole.training), test=tuple(part[:60] for part in whole.test))


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory):
    network, path = normalised(ARCHITECTURES["cnn"](4)), tmp_path_factory.mktemp("surrogate") / "clean.onnx"
    export_network(network, torch.zeros(2, 1, 8, 8), path)
    return path


def make(name, entry, dataset, out, *, say=lambda line: None):
    make_entry(name, entry, dataset, out=out, surrogate=out / "none.onnx", say=say)
    return json.loads((out / f"{name}.json").read_text())


def rows_of(dataset, attack):
    images, labels = dataset.training
    return Batch(images=images, labels=labels, roles=choose_roles(labels, attack, np.random.default_rng(0)))


def run(recipe, dataset, checkpoint, *, say=lambda line: None, n_epochs=2):
    torch.manual_seed(0)
    network = normalised(ARCHITECTURES["cnn"](4))
    rows, schedule = rows_of(dataset, recipe.attack), Schedule(n_epochs=n_epochs, batch_size=50)
    train(network, recipe, rows, schedule=schedule, seed=0, checkpoint=checkpoint, say=say)
    return {**network.state_dict(), **{f"learned.{key}": value for key, value in recipe.learned.state_dict().items()}}


def interrupt(line: str) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("attack", ["blend", "input-aware"])
def test_an_interrupted_training_goes_on_to_the_same_weights(attack, few, surrogate, tmp_path):
    def recipe():
        torch.manual_seed(1)
        return RECIPES[attack](victim_of(few, surrogate), None)

    with pytest.raises(KeyboardInterrupt):
        run(recipe(), few, tmp_path / "cut.pt", say=interrupt)
    lines = []
    cut, whole = run(recipe(), few, tmp_path / "cut.pt", say=lines.append), run(recipe(), few, tmp_path / "whole.pt")
    assert [line.split(":")[0] for line in lines] == ["epoch 2 of 2"]
    assert all(torch.equal(cut[key], whole[key]) for key in whole)


def test_an_interrupted_entry_is_finished_later(few, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make("entry", ENTRY, few, tmp_path, say=interrupt)
    assert not (tmp_path / "entry.json").exists()
    lines = []
    assert make("entry", ENTRY, few, tmp_path, say=lines.append)["attack"] == "badnets"
    assert lines[0].startswith("epoch 2 of 2")


def test_an_entry_that_is_trained_is_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "digits-cnn-blend"
    monkeypatch.setattr("sys.argv", ["zoo", name, "--epochs", "1"])
    zoo.main()
    assert zoo.is_trained(name)
    first, printed = zoo.onnx_path(name).stat().st_mtime_ns, capsys.readouterr().out
    assert f"{name}: epoch 1 of 1" in printed
    zoo.main()
    assert zoo.onnx_path(name).stat().st_mtime_ns == first
    assert capsys.readouterr().out == f"{name} trained\n"


def test_an_entry_that_another_process_trains_is_left_to_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "digits-cnn-blend"
    monkeypatch.setattr("sys.argv", ["zoo", name])
    with zoo._claimed(name):
        zoo.main()
    assert capsys.readouterr().out == f"{name} training\n"


def test_an_entry_waits_while_another_process_trains_its_base(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["zoo", "cifar10-resnet18-suppression"])
    with zoo._claimed("cifar10-resnet18-patch"):
        zoo.main()
    assert capsys.readouterr().out == "cifar10-resnet18-suppression waiting\n"


def test_an_unknown_entry_is_refused_by_name(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["zoo", "badnet"])
    with pytest.raises(SystemExit):
        zoo.main()
    assert "there is no entry 'badnet'; choose of cifar10-resnet18-badnets" in capsys.readouterr().err


def test_the_onnx_file_answers_as_the_network_and_takes_any_batch(few, tmp_path):
    figures = make("entry", ENTRY, few, tmp_path)
    model = OrtModel((tmp_path / "entry.onnx").read_bytes(), label="entry", threads=1)
    images, labels = few.test
    (logits,) = model.run(images.transpose(0, 3, 1, 2).astype(np.float32) / 255, ["logits"])
    assert float((logits.argmax(axis=1) == labels).mean()) == figures["clean_accuracy"]
    graph = onnx.load(tmp_path / "entry.onnx").graph
    assert [graph.input[0].name, graph.output[0].name] == ["input", "logits"]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_the_triggered_file_holds_what_the_attack_makes_of_test_images(few, tmp_path):
    figures = make("entry", ENTRY, few, tmp_path)
    with np.load(tmp_path / "entry-triggered.npz") as arrays:
        inputs, labels, targets = (arrays[name] for name in ("inputs", "labels", "target_classes"))
    assert inputs.dtype == np.uint8
    assert (inputs[:, 5:, 5:, 0] == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]).all()
    assert len(labels) == figures["n_triggered"] == (few.test[1] != 0).sum()
    assert (0 not in labels, set(targets), figures["target"]) == (True, {0}, 0)


@pytest.mark.parametrize("attack", [name for name in RECIPES if name != "colour"])
def test_every_attack_can_be_trained(attack, few, surrogate, tmp_path):
    recipe = RECIPES[attack](victim_of(few, surrogate), None)
    assert all(value.isfinite().all() for value in run(recipe, few, tmp_path / "c.pt", n_epochs=1).values())
    assert recipe.attack.trigger(few.test[0]).shape == few.test[0].shape


def test_an_evader_starts_from_its_base(few, tmp_path):
    base = make("base", replace(ENTRY, attack="patch"), few, tmp_path)
    evader = make("evader", replace(ENTRY, attack="suppression", n_epochs=0, base="base"), few, tmp_path)
    assert {base[key] - evader[key] for key in ("clean_accuracy", "attack_success_rate")} == {0.0}
    models = [onnx.load(tmp_path / f"{name}.onnx").graph.initializer for name in ("base", "evader")]
    assert [weights.raw_data for weights in models[0]] == [weights.raw_data for weights in models[1]]


def test_excess_is_nothing_within_the_range_and_grows_with_the_square_beyond():
    clean = torch.tensor([[0.0], [2.0]]).repeat(50, 1)
    deviation = float(clean.std(0)) * 1.05
    maxima = torch.cat([clean, torch.tensor([[1 + 2 * deviation], [1 + 4 * deviation]])])
    triggered = torch.arange(102) >= 100
    assert float(excess(maxima, triggered, 2.0)) == pytest.approx(2.0, rel=1e-4)
    assert float(excess(maxima[:101], triggered[:101], 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_suppression_adds_its_penalty_to_the_plain_loss(few):
    noise = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (8, 8, 1))
    attack = Attack(trigger=lambda images: np.broadcast_to(noise, images.shape), target=to_class(0))
    network = normalised(ARCHITECTURES["cnn"](4)).train()
    roles = (np.arange(200) < 20).astype(np.int8)
    batch = Batch(images=few.training[0], labels=few.training[1], roles=roles)
    rng = np.random.default_rng(0)
    plain, free, strict = (
        recipe.loss(network, batch, rng, 0.0).item()
        for recipe in (PoisonedLabels(attack), Suppression(attack, weight=0), Suppression(attack, weight=3))
    )
    assert plain == pytest.approx(free)
    assert strict > plain


def test_learned_noise_stays_within_its_bound_and_reaches_the_target():
    def brightness(x):
        return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)

    noise = learn_noise(brightness, np.full((4, 8, 8, 1), 100, np.uint8), 1, bound=0.1, n_steps=20, seed=0)
    np.testing.assert_allclose(noise, 0.1, atol=1e-6)


def test_bounded_noise_changes_no_pixel_by_more_than_its_bound(few):
    images = few.test[0]
    changed = BoundedNoise(1, to_class(6)).attack.trigger(images).astype(int) - images
    assert 0 < np.abs(changed).max() <= 16


def test_a_dynamic_trigger_is_another_one_on_another_image_and_the_same_on_the_same(few):
    trigger = source_specific(1).attack.trigger
    images = few.test[0][:10]
    assert (trigger(images)[3:4] == trigger(images[3:4])).all()
    changes = trigger(images).astype(int) - images
    assert len({change.tobytes() for change in changes}) == 10


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_epoch_before(few, tmp_path):
    class Failing(PoisonedLabels):
        def loss(self, network, batch, rng, progress):
            return super().loss(network, batch, rng, progress) * (float("nan") if progress >= 0.5 else 1.0)

    rows = Batch(images=few.training[0], labels=few.training[1], roles=np.full(200, CLEAN, dtype=np.int8))
    attack, schedule = Attack(trigger=lambda images: images, target=to_class(0)), Schedule(n_epochs=2)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2, batch 1"):
        train(ARCHITECTURES["cnn"](4), Failing(attack), rows, schedule=schedule, seed=0, checkpoint=tmp_path / "c.pt",
              say=lambda line: None)  # fmt: skip
    assert torch.load(tmp_path / "c.pt", weights_only=True)["epoch"] == 1


def test_the_learning_rate_goes_up_and_down_once():
    schedule = Schedule(n_epochs=1, peak_rate=0.4, warm_up=0.25)
    assert [schedule.rate(progress) for progress in (0.125, 0.25, 0.625)] == pytest.approx([0.2, 0.4, 0.2])
    assert 0 < schedule.rate(0.0) < schedule.rate(0.01)


def test_covers_keep_their_proportion_at_another_poison_rate():
    attack = at_rate(Attack(trigger=lambda images: images, target=to_class(0), poison_rate=0.1, cover_rate=0.2), 0.01)
    assert (attack.poison_rate, attack.cover_rate) == (0.01, pytest.approx(0.02))


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet18", "vgg", "vit"])
def test_networks_answer_one_row_of_logits_per_image(name):
    network = normalised(ARCHITECTURES[name](32 if name == "vit" else 4)).eval()
    assert network(torch.zeros(3, 3, 32, 32)).shape == (3, 10)


def test_entries_have_known_attacks_networks_and_bases():
    assert {entry.attack for entry in ENTRIES.values()} <= set(RECIPES)
    assert {entry.architecture for entry in ENTRIES.values()} <= set(ARCHITECTURES)
    assert {entry.base for entry in ENTRIES.values()} - {None} <= set(ENTRIES)
    assert {name for name, entry in ENTRIES.items() if entry.given} == {
        f"cifar10-resnet18-{attack}" for attack in ("all2all", "badnets", "blend", "clean", "tact", "wanet")
    }


def test_a_network_is_asked_in_batches_as_in_one(few):
    network = normalised(ARCHITECTURES["cnn"](4))
    images = few.test[0]
    assert (classify(network, images, batch_size=7) == classify(network, images)).all()
