"""The recipe of fortified networks: pairs of variants, what runs measure, its paper-scale settings on tiny files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mechanisms.lab import Bench
from mechanisms.lab.configuration import as_dict
from mechanisms.lab.records import Cell, Curve, Record
from mechanisms.papers._fortified import black_box, ensemble, examples, judging, networks, pictures
from mechanisms.papers._fortified.settings import MAIN, VARIANTS, BlackBox, Ensemble, Fortified, Variant
from mechanisms.papers._fortified.training import log_history, trained
from mechanisms.papers.fortified_networks import CIFAR, FASHION, MNIST, SMOKE, paper
from mechanisms.robust import FortifiedModel, MaskingCheck, RobustnessReport

TINY = Fortified(**SMOKE | {"num_train": 64, "epochs": 1, "budgets": (0.1,)})


# --- data and networks ------------------------------------------------------------------------------------------------


def test_digits_are_split_anew_by_each_seed_and_no_image_is_in_both_parts() -> None:
    first, second = (examples.load(Fortified(), Bench(seed)) for seed in (0, 1))
    assert (first.x.shape, first.test_x.shape) == ((1297, 1, 8, 8), (500, 1, 8, 8))
    assert not torch.equal(first.test_x, second.test_x)
    whole = torch.cat([first.x, first.test_x]).flatten(1)
    other = torch.cat([second.x, second.test_x]).flatten(1)
    assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, other.tolist()))
    assert 0 <= float(whole.min()) < float(whole.max()) <= 1


def test_asking_for_more_images_than_there_are_is_an_error_with_their_number() -> None:
    with pytest.raises(ValueError, match="num_train=2000: there are 1297 images"):
        examples.load(Fortified(num_train=2000), Bench(0))


def test_weights_follow_from_the_seed_and_never_from_the_variant() -> None:
    built = {name: networks.build(TINY, variant, (1, 8, 8), 3) for name, variant in VARIANTS.items()}
    plain = built["plain"].state_dict()
    for name, model in built.items():
        own = model.model if isinstance(model, FortifiedModel) else model
        assert all(torch.equal(own.state_dict()[key], value) for key, value in plain.items()), name
    layers = {name: model.layers.state_dict() for name, model in built.items() if isinstance(model, FortifiedModel)}
    for name in ("at-dae", "fortified-rec", "fortified-no-at", "fortified-blocked"):
        assert all(torch.equal(layers[name][key], value) for key, value in layers["fortified"].items()), name
    assert not torch.equal(
        networks.build(TINY, MAIN["at"], (1, 8, 8), 4).state_dict()["head.weight"], plain["head.weight"]
    )


def test_layers_stand_where_the_variant_says() -> None:
    names = {name: getattr(networks.build(TINY, VARIANTS[name], (1, 8, 8), 0), "names", ()) for name in VARIANTS}
    assert names["at"] == names["plain"] == ()
    assert names["fortified"] == names["at-dae"] == ("relu2",)
    assert names["fortified-all"] == names["fortified-all-blocked"] == ("relu1", "relu2")
    assert names["fortified-input"] == ("",)


@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet"])
def test_every_network_takes_layers_at_every_place(network: str) -> None:
    shape = (3, 32, 32) if network == "resnet" else (1, 28, 28)
    settings = Fortified(network=network, width=4, units=1, hidden=(8, 8), code=8)
    for place in ("none", "last", "all", "input"):
        model = networks.build(settings, Variant(place=place), shape, 0).eval()
        assert model(torch.rand(2, *shape)).shape == (2, 10)


def test_the_paper_s_networks_have_its_sizes() -> None:
    cnn, states = networks._convolutional(64, (1, 28, 28))
    assert [tuple(layer.weight.shape) for layer in cnn if isinstance(layer, nn.Conv2d)] == [
        (64, 1, 8, 8),
        (128, 64, 6, 6),
        (128, 128, 5, 5),
    ]
    assert states["flatten"] == (128,)
    residual, states = networks._residual(16, 5, (3, 32, 32))
    assert [len(residual.get_submodule(f"stage{stage}")) for stage in (1, 2, 3)] == [5, 5, 5]
    assert states == {"stage1": (16, 32, 32), "stage2": (32, 16, 16), "stage3": (64 * 8 * 8,)}
    with pytest.raises(ValueError, match="too small"):
        networks._convolutional(4, (1, 8, 8))


def test_the_residual_network_wants_colours() -> None:
    with pytest.raises(ValueError, match="images of 1 channels; the residual network takes colours"):
        networks.build(Fortified(network="resnet"), MAIN["at"], (1, 8, 8), 0)


def test_the_capacity_control_has_all_of_the_layer_and_none_of_its_losses() -> None:
    control, full = VARIANTS["at-dae"], VARIANTS["fortified"]
    assert (control.rec, control.adv) == (0, 0)
    assert replace(control, rec=1.0, adv=1.0) == full
    assert (VARIANTS["fortified-rec"].rec, VARIANTS["fortified-rec"].adv) == (1, 0)
    assert not VARIANTS["fortified-no-at"].attacked
    assert not VARIANTS["plain"].attacked


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_measures_accuracies_learning_curves_and_the_detector() -> None:
    bench = Bench(0)
    found = judging.run(TINY, "fortified", bench)
    assert found["pgd_accuracy"] <= found["accuracy"]
    assert {"flagged_clean", "flagged_adversarial", "threshold", "error_ratio", "fgsm_accuracy"} <= set(found)
    assert {"training_adversarial_accuracy", "norm", "relative_error", "reconstruction"} <= set(bench.curves)
    steps, shares = bench.curves["accuracy_under_pgd"]
    assert steps == [0.0, 0.1]
    assert shares[1] <= shares[0]
    for name in ("clean_errors", "adversarial_errors"):
        assert sum(bench.curves[name][1]) == pytest.approx(1, abs=1e-3)
    assert judging.run(TINY, "fortified", Bench(0)) == found


def test_of_two_layers_the_norm_of_the_first_is_kept_beside_that_of_the_last() -> None:
    bench = Bench(0)
    log_history(bench, {"loss": np.ones(2), "norm_before": np.array([[1.0, 2.0], [3.0, 4.0]])})
    assert bench.curves == {"norm": ([1, 2], [2, 4]), "norm_first": ([1, 2], [1, 3])}
    bench = Bench(0)
    log_history(bench, {"loss": np.ones(2), "norm_before": np.array([[1.0], [3.0]])})
    assert bench.curves == {"norm": ([1, 2], [1, 3])}


def test_too_few_images_for_the_detector_are_an_error_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mechanisms.papers._fortified.training.trained", None)
    with pytest.raises(ValueError, match="pictured=20 of 60 test images; the detector takes at least 40"):
        judging.run(replace(TINY, pictured=20), "fortified", Bench(0))


def test_plain_networks_have_no_detector_and_no_norms() -> None:
    bench = Bench(0)
    found = judging.run(TINY, "plain", bench)
    assert "threshold" not in found
    assert not {"norm", "training_adversarial_accuracy"} & set(bench.curves)


def test_a_network_with_noise_at_test_time_is_judged_through_the_mean_of_draws_and_by_one() -> None:
    settings = replace(TINY, draws=3)
    found = judging.run(settings, "fortified-noisy", Bench(0))
    assert 0 <= found["pgd_accuracy_one_draw"] <= 1
    assert "threshold" not in found
    assert judging.run(settings, "fortified-noisy", Bench(0)) == found


def test_a_histogram_has_every_score_in_it_and_those_beyond_its_ends_at_the_ends() -> None:
    bench = Bench(0)
    judging.log_histogram(bench, "errors", torch.tensor([0.0, 1e-9, 0.011, 0.011, 1e5]))
    places, shares = bench.curves["errors"]
    assert sum(shares) == pytest.approx(1)
    assert shares[places.index(-5.95)] == pytest.approx(0.4)
    assert shares[places.index(-1.95)] == pytest.approx(0.4)
    assert shares[places.index(1.95)] == pytest.approx(0.2)


def test_experiments_with_the_same_training_share_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Ensemble(**as_dict(TINY) | {"test_steps": 9}, images=4)
    loaded = examples.load(TINY, Bench(0))
    first, _ = trained(TINY, "at", Bench(0, settings=TINY, owner="fortified-networks/digits", cache=tmp_path), loaded)
    monkeypatch.setattr("mechanisms.robust.classifier_training.adversarial_training", None)
    bench = Bench(0, settings=other, owner="fortified-networks/digits-ensemble", cache=tmp_path)
    second, history = trained(other, "at", bench, loaded)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert len(history["loss"]) == 1


# --- the ensemble -----------------------------------------------------------------------------------------------------


def report(**verdicts: Any) -> RobustnessReport:
    checks = tuple(MaskingCheck(name.replace("_", "-"), "", "found", verdict) for name, verdict in verdicts.items())
    after = {"pgd": {0.05: 0.8, 0.1: 0.6}, "apgd-ce": {0.05: 0.75, 0.1: 0.5}}
    return RobustnessReport(
        0.9, {0.05: 0.75, 0.1: 0.5}, after, correct=torch.ones(2, 4), checks=checks, checked_eps=0.1
    )


def test_the_summary_counts_the_five_checks_and_one_that_was_not_made_as_not_passed() -> None:
    five = dict.fromkeys(("many_steps_beat_one", "more_steps", "unbounded", "black_box", "transfer"), "passes")
    bench = Bench(0)
    sound = ensemble.summary(report(**five, randomness="passes"), 0.1, bench)
    assert (sound["checks_not_passed"], sound["other_checks_failed"]) == (0, 0)
    assert (sound["ensemble_accuracy"], sound["after_pgd"], sound["after_apgd_ce"]) == (0.5, 0.6, 0.5)
    assert bench.curves["ensemble_accuracy"] == ([0.0, 0.05, 0.1], [0.9, 0.75, 0.5])
    masked = five | {"unbounded": "fails", "transfer": "not run"}
    found = ensemble.summary(report(**masked, vanishing_gradients="fails"), 0.1, Bench(0))
    assert (found["checks_not_passed"], found["other_checks_failed"]) == (2, 1)
    assert "unbounded fails" in found["checks"]


def test_the_five_checks_are_checks_that_the_report_makes() -> None:
    pytest.importorskip("art")
    learned = as_dict(TINY) | {"epochs": 15, "lr": 1e-2}
    settings = Ensemble(**learned, images=20, attacked=(0.1,), steps=2, restarts=1, queries=2)
    found = ensemble.run(settings, "fortified", Bench(0))
    made = {part.split(" ")[0] for part in found["checks"].split("; ") if part.split(" ")[0] in ensemble.CHECKS}
    assert made == set(ensemble.CHECKS)
    assert found["ensemble_accuracy"] <= found["after_pgd"] <= found["accuracy"]


def test_an_ensemble_without_the_budget_of_training_is_an_error() -> None:
    with pytest.raises(ValueError, match="lacks the budget of training"):
        ensemble.run(Ensemble(attacked=(0.05,)), "at", Bench(0))
    with pytest.raises(ValueError, match="images=0"):
        ensemble.run(Ensemble(images=0), "at", Bench(0))


# --- the substitute ---------------------------------------------------------------------------------------------------


def test_augmentation_goes_along_the_sign_of_the_answer_s_gradient_and_stays_in_the_box() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, answers = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    moved = black_box.augmented(linear, x, answers, 0.1)
    expected = (x + 0.1 * linear[1].weight.detach()[answers].sign().view_as(x)).clamp(0, 1)
    torch.testing.assert_close(moved, expected)


def test_a_substitute_comes_to_answer_as_the_network_does() -> None:
    settings = BlackBox(
        **as_dict(TINY) | {"num_train": 600, "num_test": 300, "epochs": 20, "lr": 1e-2},
        holdout=100,
        augmentations=3,
        substitute_hidden=(64,),
        substitute_epochs=20,
    )
    found = black_box.run(settings, "plain", Bench(0))
    assert found["substitute_agreement"] > 0.5
    assert found["white_box_accuracy"] <= found["black_box_accuracy"] + 0.1


def test_each_augmentation_doubles_what_the_network_is_asked_and_only_new_images_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Oracle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            asked.append(len(x))
            return x.flatten(1)[:, :10]

    asked: list[int] = []
    seen: list[int] = []
    monkeypatch.setattr(
        "mechanisms.robust.classifier_training.train_classifier", lambda model, x, y, **options: seen.append(len(x))
    )
    settings = BlackBox(augmentations=3, substitute_hidden=(8,))
    black_box.learn_substitute(settings, Oracle(), torch.rand(5, 1, 8, 8), Bench(0))
    assert asked == [5, 5, 10, 20]
    assert seen == [5, 10, 20, 40]


@pytest.mark.parametrize("holdout", [0, 60])
def test_an_attacker_begins_with_some_images_and_leaves_some(holdout: int) -> None:
    with pytest.raises(ValueError, match=f"holdout={holdout} of 60 test images"):
        black_box.run(BlackBox(**as_dict(TINY), holdout=holdout), "plain", Bench(0))


# --- claims and figures -----------------------------------------------------------------------------------------------


def record(experiment: str, variant: str, seed: int, metrics: dict[str, Any], bench: Bench) -> Record:
    curves = {name: Curve(list(steps), list(values)) for name, (steps, values) in bench.curves.items()}
    return Record("fortified-networks", experiment, "laptop", variant, seed, {}, dict(metrics), curves=curves)


def test_claims_and_figures_read_what_the_runs_return() -> None:
    records = []
    for variant in MAIN:
        bench = Bench(0)
        metrics = judging.run(TINY, variant, bench)
        records += [record("digits", variant, seed, metrics, bench) for seed in (10, 11)]
    cell = Cell("fortified-networks", "digits", "laptop", {}, records)
    experiment = paper.experiment("digits")
    assert all(claim.check.evaluate(cell).verdict != "not run" for claim in experiment.claims)
    assert all(figure.draw(cell).data for figure in experiment.figures)
    differences = pictures.draw_differences(cell)
    assert [trace.name for trace in differences.data if trace.name] == ["under PGD", "clean"]


def test_the_ensemble_s_claim_and_figures_read_its_summary() -> None:
    five = dict.fromkeys(("many_steps_beat_one", "more_steps", "unbounded", "black_box", "transfer"), "passes")
    records = []
    for variant in ensemble.VARIANTS:
        bench = Bench(0)
        metrics = ensemble.summary(report(**five), 0.1, bench)
        records += [record("digits-ensemble", variant, seed, metrics, bench) for seed in (10, 11, 12)]
    cell = Cell("fortified-networks", "digits-ensemble", "laptop", {}, records)
    experiment = paper.experiment("digits-ensemble")
    outcomes = [claim.check.evaluate(cell) for claim in experiment.claims]
    assert [(outcome.verdict, outcome.provisional) for outcome in outcomes] == [("holds", True)]
    assert len(pictures.draw_ensemble(cell).data) == 2 * len(ensemble.VARIANTS)
    attacks = pictures.draw_attacks(cell)
    assert list(attacks.data[0].x) == ["clean", "pgd", "apgd-ce"]
    assert attacks.layout.xaxis.type == "category"


def test_figures_without_records_say_so() -> None:
    for experiment in paper.experiments:
        for figure in experiment.figures:
            drawn = figure.draw(Cell("fortified-networks", experiment.name, "laptop", {}, []))
            assert drawn.layout.annotations or drawn.data


# --- the paper's scale ------------------------------------------------------------------------------------------------


def test_settings_are_the_paper_s() -> None:
    mnist, cifar = paper.experiment("mnist-white-box").scales["paper"], paper.experiment("cifar-10").scales["paper"]
    assert (mnist.eps, mnist.attack_steps, mnist.code, mnist.epochs, mnist.network) == (0.3, 1, 256, 10, "cnn")
    assert not mnist.attack_random_start
    assert (cifar.eps, cifar.attack_steps, cifar.attack_step_size) == (8 / 255, 40, 0.01)
    assert (cifar.network, cifar.width, cifar.units, cifar.code, cifar.activation) == ("resnet", 16, 5, 512, "tanh")
    substitute = paper.experiment("black-box").scales["paper"]
    assert (substitute.holdout, substitute.augmentations, substitute.augmentation_step) == (150, 6, 0.1)
    assert (substitute.substitute_epochs, substitute.epochs, substitute.lambda_rec) == (10, 30, 0.01)
    laptop = Fortified(**FASHION)
    assert (laptop.num_train, laptop.num_test, laptop.hidden, laptop.code, laptop.epochs) == (
        6000,
        0,
        (256, 256),
        128,
        12,
    )
    for settings in (mnist, cifar, substitute, laptop):
        assert (settings.lr, settings.batch_size, settings.label_smoothing, settings.noise_std) == (1e-3, 128, 0.1, 0.1)


SHORT: dict[str, Any] = {
    "width": 4,
    "units": 1,
    "code": 8,
    "epochs": 1,
    "attack_steps": 1,
    "test_steps": 2,
    "pictured": 40,
}


@pytest.fixture
def cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in CIFAR-10's binary format, with 20 training and 40 test images."""
    folder, generator = tmp_path / "cifar-10", np.random.default_rng(0)
    folder.mkdir()
    for name, count in (*((f"data_batch_{part}.bin", 4) for part in range(1, 6)), ("test_batch.bin", 40)):
        rows = generator.integers(0, 256, (count, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(count) % 10
        (folder / name).write_bytes(rows.tobytes())
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))


def test_cifar_10_end_to_end(cifar_files: None) -> None:
    settings = Fortified(**CIFAR | SHORT | {"budgets": (8 / 255,)})
    loaded = examples.load(settings, Bench(0))
    assert (loaded.x.shape, loaded.test_x.shape, float(loaded.x.max()) <= 1) == ((20, 3, 32, 32), (40, 3, 32, 32), True)
    for variant in ("fortified", "fortified-input"):
        found = judging.run(settings, variant, Bench(0))
        assert 0 <= found["pgd_accuracy"] <= found["accuracy"] <= 1


def test_cifar_10_under_the_ensemble_end_to_end(cifar_files: None) -> None:
    pytest.importorskip("art")
    settings = Ensemble(**CIFAR | SHORT, images=6, attacked=(8 / 255,), steps=2, restarts=1, queries=2)
    found = ensemble.run(settings, "at-dae", Bench(0))
    assert 0 <= found["ensemble_accuracy"] <= found["accuracy"]


@pytest.fixture
def mnist_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the format of MNIST, with 24 training and 40 test images."""
    folder, generator = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("train", 24), ("t10k", 40)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))


def test_mnist_white_box_and_black_box_end_to_end(mnist_files: None) -> None:
    found = judging.run(Fortified(**MNIST | SHORT | {"budgets": (0.3,)}), "fortified", Bench(0))
    assert 0 <= found["fgsm_accuracy"] <= 1
    settings = replace(
        paper.experiment("black-box").scales["paper"], **SHORT, holdout=10, augmentations=2, substitute_epochs=1
    )
    found = black_box.run(settings, "fortified", Bench(0))
    assert 0 <= found["black_box_accuracy"] <= 1
