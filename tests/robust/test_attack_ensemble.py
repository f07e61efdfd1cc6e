"""The ensemble where the answer is known: linear classifiers, defences that only hide, and its own invariants."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mechanisms._base.extras import MissingExtra
from mechanisms.robust import (
    DenoisingLayer,
    ExpectationOverNoise,
    RobustnessReport,
    attack_ensemble,
    fortify,
    robust_accuracy,
)
from mechanisms.robust._attacked import Attacked
from mechanisms.robust._attacks import ATTACKS, Effort, Frame, Seen
from mechanisms.robust.attack_ensemble import ENSEMBLE
from tests.robust.masked import Cut, Noisy, NoNumber, Quantised, Scaled, closed_form, digits, linear, trained

BUDGETS = (0.01, 0.02, 0.04)
QUICK = {"queries": 60, "restarts": 1}


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return trained()


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    return digits(40)


@pytest.fixture(scope="module")
def sound(network: nn.Sequential, images: tuple[Tensor, Tensor]) -> RobustnessReport:
    other = trained(epochs=10, seed=1)
    return robust_accuracy(network, *images, [0.05, 0.1], surrogate=other, keep_examples=True, **QUICK)


def verdicts(report: RobustnessReport) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


# --- where the answer is known ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20,), (1, 4, 5), (5, 4), (1, 1, 20)])
def test_a_linear_classifier_has_the_accuracy_of_the_closed_form(shape: tuple[int, ...]) -> None:
    layer, x, y = linear(200, 20, 4)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    report = robust_accuracy(model, x.reshape(-1, *shape), y, BUDGETS, checks=False, steps=50, **QUICK)
    for place, eps in enumerate(BUDGETS):
        truth = closed_form(layer, x, y, eps)
        assert abs(report.at(eps) - float(truth.float().mean())) <= 0.01
        # What the attacks broke can be broken: an upper bound for each example, up to rounding at the boundary.
        assert bool((report.correct[place].bool() >= closed_form(layer, x, y, eps + 1e-5)).all())


@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-dlr", "deepfool"])
def test_each_library_attack_alone_is_exact_or_nearly_so_on_a_linear_classifier(attack: str) -> None:
    layer, x, y = linear(200, 20, 4)
    report = robust_accuracy(layer, x, y, 0.02, attacks=[attack], checks=False, **QUICK)
    truth = float(closed_form(layer, x, y, 0.02).float().mean())
    # Cross-entropy climbs towards all classes at once, which a step of the sign does not forgive.
    assert truth <= report.at(0.02) <= truth + (0.05 if attack == "apgd-ce" else 0.01)


def test_two_classes_are_attacked_without_the_ratio_to_a_third() -> None:
    layer, x, y = linear(100, 6, 2)
    report = robust_accuracy(layer, x, y, 0.03, checks=False, **QUICK)
    assert abs(report.at(0.03) - float(closed_form(layer, x, y, 0.03).float().mean())) <= 0.01
    assert "apgd-dlr" not in report.after
    assert "needs 3 classes" in report.notes[0]
    with pytest.raises(ValueError, match="add 'pgd'"):
        robust_accuracy(layer, x, y, 0.03, attacks=["apgd-dlr"])


# --- what hides its gradients is found -------------------------------------------------------------------------------


def test_a_network_with_sound_gradients_passes_every_check(sound: RobustnessReport) -> None:
    assert verdicts(sound) == dict.fromkeys(verdicts(sound), "passes")
    assert len(sound.checks) == 8
    assert sound.masked is False
    assert sound.verdict() == "no sign of gradient masking"
    assert sound.clean_accuracy > 0.85


def test_logits_that_saturate_the_softmax_are_found_and_attacked_all_the_same(
    network: nn.Sequential, images: tuple[Tensor, Tensor], sound: RobustnessReport
) -> None:
    saturated = nn.Sequential(network, Scaled()).eval()
    report = robust_accuracy(saturated, *images, [0.05, 0.1], **QUICK)
    assert report.masked
    assert verdicts(report)["vanishing-gradients"] == "fails"
    # Attacks that do not care for the scale find what they find without it; plain cross-entropy is fooled.
    assert abs(report.at(0.1) - sound.at(0.1)) <= 0.05
    fooled = robust_accuracy(saturated, *images, 0.1, attacks=["apgd-ce"], checks=False, **QUICK)
    assert fooled.at(0.1) > sound.at(0.1) + 0.2


@pytest.mark.parametrize("layer", [Quantised(), Cut(), NoNumber()], ids=["quantised", "cut", "no-number"])
def test_gradients_that_are_zero_are_found(
    network: nn.Sequential, images: tuple[Tensor, Tensor], layer: nn.Module
) -> None:
    report = robust_accuracy(nn.Sequential(layer, network).eval(), *images, 0.15, restarts=1, queries=150)
    assert report.masked
    found = verdicts(report)
    assert found["vanishing-gradients"] == found["unbounded"] == found["growing-loss"] == found["black-box"] == "fails"
    # Only the attack without gradients told the truth, and the figure is its.
    assert report.at(0.15) < report.after["deepfool"][0.15] - 0.3
    assert "do not quote" in report.verdict()


def test_one_draw_of_a_random_layer_is_found(network: nn.Sequential, images: tuple[Tensor, Tensor]) -> None:
    noisy = nn.Sequential(Noisy(0.1), network).eval()
    with pytest.warns(UserWarning, match="overstated; average at least 20 draws"):
        report = robust_accuracy(noisy, *images, 0.1, draws=1, attacks=["pgd"], steps=10, **QUICK)
    assert report.randomised
    assert verdicts(report)["randomness"] == "fails"


def test_a_random_layer_is_attacked_through_its_mean(network: nn.Sequential, images: tuple[Tensor, Tensor]) -> None:
    noisy = nn.Sequential(Noisy(0.2), network).eval()
    options = {"attacks": ["pgd"], "steps": 20, "checks": False, "restarts": 1}
    report = robust_accuracy(noisy, *images, 0.1, **options)
    assert (report.randomised, report.draws) == (True, 20)
    with pytest.warns(UserWarning, match="overstated"):
        single = robust_accuracy(noisy, *images, 0.1, draws=1, **options)
    assert 0 < report.at(0.1) < report.clean_accuracy
    assert single.draws == 1
    wrapped = robust_accuracy(ExpectationOverNoise(noisy, draws=5), *images, 0.1, **options)
    assert (wrapped.randomised, wrapped.draws) == (True, 5)


def test_a_fortified_network_is_random_only_when_its_noise_is_always_on(
    network: nn.Sequential, images: tuple[Tensor, Tensor]
) -> None:
    for noise, randomised in (("train", False), ("always", True)):
        fortified = fortify(copy.deepcopy(network), {"1": DenoisingLayer(64, 16, noise=noise)}).eval()
        report = robust_accuracy(fortified, *images, 0.1, attacks=["pgd"], steps=3, checks=False, restarts=1)
        assert (report.randomised, report.draws) == (randomised, 20 if randomised else 1)


def test_a_constant_classifier_is_no_masking_because_nothing_can_be_broken() -> None:
    layer, x, y = linear(30, 6, 3)
    with torch.no_grad():
        layer.bias += torch.tensor([100.0, 0, 0])
    report = robust_accuracy(layer, x, torch.zeros_like(y), 0.1, attacks=["pgd"], steps=10, **QUICK)
    assert verdicts(report)["unbounded"] == "not run"
    assert report.at(0.1) == 1


# --- invariants ------------------------------------------------------------------------------------------------------


def test_what_is_found_lies_in_the_ball_and_the_box_and_is_misclassified(
    network: nn.Sequential, images: tuple[Tensor, Tensor], sound: RobustnessReport
) -> None:
    x, y = images
    assert sound.examples is not None
    for place, eps in enumerate(sound.robust_accuracy):
        examples = sound.examples[place]
        assert float((examples - x).abs().max()) <= eps + 1e-6
        assert float(examples.min()) >= 0
        assert float(examples.max()) <= 1
        right = network(examples).argmax(1) == y
        assert torch.equal(right, sound.correct[place].bool())
        assert sound.at(eps) == pytest.approx(float(right.float().mean()))


def test_a_budget_of_zero_is_the_clean_accuracy(network: nn.Sequential, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    report = robust_accuracy(network, x, y, 0)
    assert report.at(0) == report.clean_accuracy == float((network(x).argmax(1) == y).float().mean())
    assert report.checks == ()
    assert report.masked is None


def test_accuracy_never_increases_with_budget_restarts_and_attacks(
    network: nn.Sequential, images: tuple[Tensor, Tensor]
) -> None:
    options = {"steps": 3, "queries": 20, "checks": False}
    few = robust_accuracy(network, *images, [0.05, 0.08, 0.1], restarts=1, attacks=["pgd"], **options)
    again = robust_accuracy(network, *images, [0.05, 0.08, 0.1], restarts=4, attacks=["pgd"], **options)
    more = robust_accuracy(network, *images, [0.05, 0.08, 0.1], restarts=1, attacks=["pgd", "apgd-ce"], **options)
    for report in (few, again, more):
        assert list(report.robust_accuracy.values()) == sorted(report.robust_accuracy.values(), reverse=True)
        assert bool((report.correct[1:] <= report.correct[:-1]).all())
    assert bool((again.correct <= few.correct).all())
    assert bool((more.correct <= few.correct).all())
    for eps in more.robust_accuracy:
        left = [more.after[name][eps] for name in more.after]
        assert left == sorted(left, reverse=True)


def test_the_same_seed_gives_the_same_report_and_leaves_all_generators_alone(
    network: nn.Sequential, images: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(1), np.random.random()  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = robust_accuracy(network, *images, 0.1, steps=5, queries=10, checks=False, keep_examples=True)
    assert (torch.rand(1), np.random.random()) == expected  # noqa: NPY002
    second = robust_accuracy(network, *images, 0.1, steps=5, queries=10, checks=False, keep_examples=True)
    assert torch.equal(first.examples, second.examples)
    assert first.to_dict() == second.to_dict()


def test_the_model_is_left_as_it_was(network: nn.Sequential, images: tuple[Tensor, Tensor]) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network[0].weight.requires_grad_(False)
    try:
        robust_accuracy(network, *images, 0.1, steps=3, queries=5, checks=False, restarts=1)
        assert [parameter.requires_grad for parameter in network.parameters()] == [False, True, True, True]
        assert all(parameter.grad is None for parameter in network.parameters())
        assert not network.training
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    finally:
        network[0].weight.requires_grad_(True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_attacked_in_their_own(dtype: torch.dtype) -> None:
    layer, x, y = linear(60, 20, 4)
    model = layer.to(dtype)
    y = model(x.to(dtype)).argmax(1)
    report = robust_accuracy(model, x, y, 0.02, attacks=ENSEMBLE, checks=False, steps=20, **QUICK)
    truth = float(closed_form(layer.float(), x, y, 0.02).float().mean())
    assert report.at(0.02) == pytest.approx(truth, abs=0.07)


def test_a_model_that_works_in_place_leaves_the_examples_alone(
    network: nn.Sequential, images: tuple[Tensor, Tensor]
) -> None:
    class Shifted(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            self.network, self.in_place = network, in_place

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.sub_(0.05) if self.in_place else x - 0.05)

    x, y = images
    before = x.clone()
    options = {"attacks": ["pgd", "apgd-ce", "deepfool"], "steps": 5, "restarts": 1, "checks": False}
    reports = [robust_accuracy(Shifted(in_place).eval(), x, y, 0.05, **options) for in_place in (True, False)]
    assert torch.equal(x, before)
    assert reports[0].to_dict() == reports[1].to_dict()


def test_apgd_proposes_its_largest_loss_beside_examples_that_are_wrong_already() -> None:
    layer, x, y = linear(6, 8, 3)
    y[0] = (y[0] + 1) % 3
    attacked = Attacked(layer, x, y, 3, torch.float32, 1, False, 6)
    last, largest = ATTACKS["apgd-ce"](attacked, Seen(attacked), torch.arange(6), 1e-3, Effort(5, 5, 0), "")
    assert torch.equal(largest[0], x[0])
    assert bool((largest[1:] != x[1:]).flatten(1).any(1).all())
    assert last.shape == largest.shape


def test_a_single_example_is_enough(network: nn.Sequential, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    report = robust_accuracy(network, x[:1], y[:1], 0.2, steps=10, queries=10)
    assert report.images == 1
    assert report.at(0.2) in (0, 1)


def test_progress_and_partial_reports_go_on_to_the_end(network: nn.Sequential, images: tuple[Tensor, Tensor]) -> None:
    told: list[tuple[int, int, str]] = []
    so_far: list[RobustnessReport] = []
    report = robust_accuracy(
        network,
        *images,
        [0.05, 0.1],
        steps=5,
        queries=10,
        progress=lambda *step: told.append(step),
        partial=so_far.append,
    )
    done = [step for step, _, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]
    assert {total for _, total, _ in told} == {told[0][1]}
    assert report.complete
    assert not any(one.complete for one in so_far)
    assert so_far[0].robust_accuracy.keys() == {0.05}
    assert "not complete" in so_far[0].to_markdown()
    assert so_far[-1].robust_accuracy == report.robust_accuracy


def test_an_interrupted_attack_hands_over_what_it_had_found(
    network: nn.Sequential, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(*arguments: Any) -> list[Tensor]:
        if done:
            raise KeyboardInterrupt
        done.append(True)
        return ATTACKS["pgd"](*arguments)

    done: list[bool] = []
    so_far: list[RobustnessReport] = []
    monkeypatch.setitem(attack_ensemble.ATTACKS, "square", once)
    monkeypatch.setitem(attack_ensemble.ATTACKS, "apgd-ce", lambda *_: [])
    options = {"steps": 5, "restarts": 1, "checks": False, "batch_size": 20, "partial": so_far.append}
    with pytest.raises(KeyboardInterrupt):
        robust_accuracy(network, *images, 0.2, attacks=["square"], **options)
    assert so_far == []  # no attack had ended
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        robust_accuracy(network, *images, 0.2, attacks=["apgd-ce", "square"], **options)
    first, last = so_far
    assert last.at(0.2) < first.at(0.2)
    assert list(last.after) == ["apgd-ce", "square"]
    assert 0.2 not in last.after["square"]


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_is_written_as_text_and_as_data(sound: RobustnessReport) -> None:
    text, content = sound.to_markdown(), json.loads(sound.to_json())
    assert "| eps | clean | after pgd |" in text
    assert "| unbounded |" in text
    assert content["table"][1]["robust"] == sound.at(0.1)
    assert content["masked"] is False
    assert {check["name"] for check in content["checks"]} == set(verdicts(sound))
    assert all(check["figures"] for check in content["checks"])
    low, high = sound.interval(0.1)
    assert low < sound.at(0.1) < high
    with pytest.raises(KeyError, match=r"no budget 0\.3; the report has 0\.05, 0\.1"):
        sound.at(0.3)
    assert "eps 0.1: at most" in sound.summary()


# --- bad input -------------------------------------------------------------------------------------------------------


class Probabilities(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3].softmax(1)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] / 0.0


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:1, :3]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


X, Y, MODEL = torch.full((4, 6), 0.5), torch.tensor([0, 1, 2, 0]), nn.Linear(6, 3).eval()


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (MODEL, X * 255, Y, 0.1),
            r"x lies in \[127.5, 127.5\], expected \[0, 1\].*put the normalisation into the model",
        ),
        ((MODEL, X - 1, Y, 0.1), r"expected \[0, 1\]"),
        ((MODEL, (X * 255).byte(), Y, 0.1), "x holds uint8.*divide by 255"),
        ((MODEL, X * torch.nan, Y, 0.1), "x has 24 of 24 values that are infinite or not a number"),
        ((MODEL, X[:, :5], Y, 0.1), r"does not take inputs of shape \(n, 5\)"),
        ((MODEL, X[0], Y, 0.1), r"x has shape \(6,\)"),
        ((MODEL, X, Y[:3], 0.1), r"y has shape \(3,\), expected \(4,\)"),
        ((MODEL, X, torch.eye(3)[Y], 0.1), r"y\.argmax"),
        ((MODEL, X, Y + 1, 0.1), "label 3, but the model has 3 classes"),
        ((MODEL, X, Y - 1, 0.1), "class indices: whole numbers from 0"),
        ((MODEL, X, Y + 0.5, 0.1), "class indices: whole numbers"),
        ((nn.Linear(6, 3), X, Y, 0.1), r"training mode \(itself\).*call model.eval"),
        ((nn.Linear(6, 1).eval(), X, Y, 0.1), r"returned \(1, 1\).*torch.stack"),
        ((Probabilities().eval(), X, Y, 0.1), "returned probabilities, expected logits"),
        ((Broken().eval(), X, Y, 0.1), "not a number for 4 of 4 clean examples, the first in row 0"),
        ((Pair().eval(), X, Y, 0.1), "returned a tuple"),
        ((First().eval(), X, Y, 0.1), "returned 1 rows of logits for 4 examples"),
        (
            (nn.Sequential(MODEL, nn.BatchNorm1d(3, track_running_stats=False)).eval(), X, Y, 0.1),
            "without running statistics",
        ),
        ((MODEL, X, Y, -0.1), "eps=-0.1: a budget must be >= 0"),
        ((MODEL, X, Y, 8), "eps of 255 levels is 8/255"),
        ((MODEL, X, Y, []), "eps is empty"),
    ],
)
def test_what_cannot_be_attacked_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robust_accuracy(*arguments, attacks=["pgd"])


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ["autoattack"]}, "attacks='autoattack': it must be one of 'pgd'"),
        ({"attacks": []}, "attacks is empty"),
        ({"restarts": 0}, "restarts=0"),
        ({"steps": 0}, "steps=0"),
        ({"queries": 0}, "queries=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"draws": 0}, "draws=0"),
        ({"surrogate": nn.Linear(6, 3)}, "the surrogate is in training mode"),
        ({"surrogate": nn.Linear(5, 3).eval()}, "the surrogate does not fit: the model does not take"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robust_accuracy(MODEL, X, Y, 0.1, **options)


@pytest.mark.user_input
def test_what_is_no_model_or_no_numbers_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module from inputs to logits, got function"):
        robust_accuracy(lambda x: x, X, Y, 0.1)
    with pytest.raises(TypeError, match="x must be a tensor or an array"):
        robust_accuracy(MODEL, "images", Y, 0.1)


@pytest.mark.user_input
def test_arrays_and_lists_are_taken() -> None:
    x = X.double().numpy()[::-1]  # strides that torch does not know
    report = robust_accuracy(MODEL, x, Y.tolist(), 0.1, attacks="pgd", steps=2, checks=False)
    assert report.images == 4
    assert report.after.keys() == {"pgd"}


def test_a_missing_library_gives_one_line_and_pgd_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, extra: str) -> None:
        raise MissingExtra(f"{module} is not installed; it comes with: pip install 'mechanisms[{extra}]'")

    monkeypatch.setattr("mechanisms.robust._attacks.require", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'mechanisms\[attacks\]'"):
        robust_accuracy(MODEL, X, Y, 0.1)
    with pytest.raises(MissingExtra, match="foolbox"):
        robust_accuracy(MODEL, X, Y, 0.1, attacks=["deepfool"])
    robust_accuracy(MODEL, X, Y, 0.1, attacks=["pgd"], steps=2, checks=False)


# --- Square on images of any size ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (1,), (1, 4, 5), (3, 2, 9), (1, 1, 6), (4, 5), (2, 3, 2, 2)])
def test_inputs_of_any_shape_are_images_to_square_and_come_back(shape: tuple[int, ...]) -> None:
    frame = Frame(shape)
    x = torch.rand(3, *shape)
    images = frame.fold(x)
    _, height, width = images.shape[1:]
    assert torch.equal(frame.unfold(images), x)
    # The toolbox's largest square leaves room for at least one place.
    assert max(round((frame.share * height * width) ** 0.5), 1) < min(height, width)
