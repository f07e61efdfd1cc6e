"""Training loops: what they minimise, that they repeat themselves, and that they go on where they were stopped."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mechanisms.robust import classifier_training
from mechanisms.robust.adversarial import withstands_pgd
from mechanisms.robust.classifier_training import adversarial_training, train_classifier
from mechanisms.robust.denoising import DenoisingLayer
from mechanisms.robust.fortified import FortifiedModel, fortified_loss, fortify


def problem(rows: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """Two strong features and many weak ones, which an attack turns round."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 2
    signs = 2.0 * y.unsqueeze(1) - 1
    x = 0.5 + 0.03 * signs + 0.05 * torch.randn(rows, 30, generator=generator)
    x[:, :2] = 0.5 + 0.25 * signs + 0.15 * torch.randn(rows, 2, generator=generator)
    return x.clamp(0, 1), y


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))


def fortified() -> FortifiedModel:
    return fortify(network(), {"1": DenoisingLayer(16, 8)})


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_one_batch_is_one_step_down_the_fortified_loss() -> None:
    x, y = problem(20)
    model = fortify(network(), {"1": DenoisingLayer(16, 8, noise_std=0)})
    model.model[2].p = 0.0
    other = copy.deepcopy(model)
    fit = train_classifier(
        model, x, y, epochs=1, batch_size=50, make_optimizer=lambda p: torch.optim.SGD(p, lr=0.5), lambda_rec=0.7
    )
    loss = fortified_loss(other, x, y, lambda_rec=0.7)
    torch.optim.SGD(other.parameters(), lr=0.5).zero_grad()
    loss.total.backward()
    for one, start in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, start - 0.5 * start.grad)
    assert fit.history["loss"][0] == pytest.approx(float(loss.total.detach()), rel=1e-5)
    assert fit.history["relative_error"][0, 0] == pytest.approx(float(loss.relative_error), rel=1e-5)
    assert fit.model is model
    assert not model.training


def test_adversarial_training_withstands_what_standard_training_does_not() -> None:
    x, y = problem(300)
    settings = {"epochs": 30, "batch_size": 64, "lr": 0.01}
    plain, robust = network(), network()
    train_classifier(plain, x, y, **settings)
    fit = adversarial_training(robust, x, y, 0.08, steps=4, **settings)
    accuracies = [withstands_pgd(model, x, y, 0.08, steps=10).float().mean() for model in (plain, robust)]
    assert accuracies[1] > accuracies[0] + 0.1
    assert fit.history["adversarial_accuracy"].shape == (30,)
    assert fit.history["adversarial_reconstruction"].shape == (30, 0)


def test_fgsm_is_a_setting() -> None:
    x, y = problem()
    fit = adversarial_training(network(), x, y, 0.05, steps=1, step_size=0.05, random_start=False, epochs=2)
    assert fit.history["adversarial"].shape == (2,)


def test_the_same_seed_gives_the_same_weights_and_torchs_generator_is_left_alone() -> None:
    x, y = problem()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed * 100)
        model = fortified()
        before = torch.get_rng_state()
        adversarial_training(model, x, y, 0.05, steps=2, epochs=2, batch_size=32, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, own_generator: bool) -> None:
    x, y = problem()

    def make() -> FortifiedModel:
        model = fortified()
        if own_generator:
            model.set_generator(torch.Generator().manual_seed(7))
        return model

    settings = {"eps": 0.05, "steps": 2, "epochs": 4, "batch_size": 32}
    whole, stopped = make(), make()
    expected = adversarial_training(whole, x, y, **settings)

    def kill(step: int, total: int, loss: float) -> None:
        raise Stopped

    path = tmp_path / "runs" / "training.pt"
    # The last step's report comes before the last epoch is stored: three epochs are there.
    with pytest.raises(Stopped):
        adversarial_training(stopped, x, y, **settings, checkpoint=path, progress=kill_at_the_end(kill))
    resumed = make()
    steps: list[int] = []
    fit = adversarial_training(
        resumed, x, y, **settings, checkpoint=path, progress=lambda step, total, loss: steps.append(step)
    )
    assert steps == [12]
    assert torch.equal(weights(resumed), weights(whole))
    for name, curve in expected.history.items():
        assert (fit.history[name] == curve).all()
    again = adversarial_training(make(), x, y, **settings, checkpoint=path)
    assert torch.equal(weights(again.model), weights(whole))
    assert [file.name for file in path.parent.iterdir()] == ["training.pt"]
    with pytest.raises(ValueError, match=r"a training with other settings \(eps, step_size\)"):
        adversarial_training(make(), x, y, **(settings | {"eps": 0.06}), checkpoint=path)


def kill_at_the_end(kill: Callable[[int, int, float], None]) -> Callable[[int, int, float], None]:
    return lambda step, total, loss: kill(step, total, loss) if step == total else None


def test_a_training_stopped_within_an_epoch_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem()
    settings = {"eps": 0.05, "steps": 2, "epochs": 3, "batch_size": 16}
    whole = fortified()
    expected = adversarial_training(whole, x, y, **settings)
    monkeypatch.setattr(classifier_training, "KEEP_EVERY", 0.0)
    path, resumed = tmp_path / "training.pt", fortified()
    seen: list[int] = []
    resumed.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    # A batch has two passes for the attack and one for the loss; stopped in the attack on the ninth of eighteen.
    with pytest.raises(KeyboardInterrupt):
        adversarial_training(interrupted(3 * 8 + 1), x, y, **settings, checkpoint=path)
    fit = adversarial_training(resumed, x, y, **settings, checkpoint=path)
    assert len(seen) == 3 * 10
    assert torch.equal(weights(resumed), weights(whole))
    for name, curve in expected.history.items():
        assert (fit.history[name] == curve).all()


def interrupted(passes: int) -> FortifiedModel:
    """A model in whose passes Ctrl-C is pressed, after so many."""
    model, left = fortified(), [passes]

    def press(module: nn.Module, inputs: object) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1

    model.register_forward_pre_hook(press)
    return model


def test_a_checkpoint_is_of_its_examples_its_model_and_its_noise(tmp_path: Path) -> None:
    x, y = problem()
    path = tmp_path / "t.pt"
    train_classifier(fortified(), x, y, epochs=1, checkpoint=path)
    with pytest.raises(ValueError, match=r"other settings \(examples\)"):
        train_classifier(fortified(), x, 1 - y, epochs=1, checkpoint=path)
    with pytest.raises(ValueError, match=r"a training of another model; delete it to start anew"):
        train_classifier(network(), x, y, epochs=1, checkpoint=path)
    other = fortified()
    other.set_generator(torch.Generator())
    with pytest.raises(ValueError, match="other generators of noise"):
        train_classifier(other, x, y, epochs=1, checkpoint=path)


def test_a_single_row_left_over_joins_the_batch_before_it() -> None:
    x, y = problem(33)
    sizes: list[int] = []
    for middle in (nn.BatchNorm1d(16), nn.Identity()):
        model = nn.Sequential(nn.Linear(30, 16), middle, nn.ReLU(), nn.Linear(16, 2))
        model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
        train_classifier(model, x, y, epochs=2, batch_size=8)
    assert sizes == [8, 8, 8, 9] * 2 + [8, 8, 8, 8, 1] * 2


def test_half_precision_and_autocast() -> None:
    x, y = problem()
    fit = adversarial_training(fortified().bfloat16(), x.bfloat16(), y, 0.05, steps=2, epochs=2)
    assert fit.history["loss"].shape == (2,)
    settings = {"steps": 2, "epochs": 15, "lr": 0.02, "batch_size": 32}
    with torch.autocast("cpu", torch.bfloat16):
        loss = adversarial_training(network(), x, y, 0.02, **settings).history["loss"]
    # With weights that were cast once for all it would stay where it began.
    assert loss[-1] < 0.85 * loss[0]


def test_a_longer_training_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    x, y = problem()
    model, whole = fortified(), fortified()
    train_classifier(model, x, y, epochs=2, checkpoint=tmp_path / "t.pt")
    fit = train_classifier(fortified(), x, y, epochs=4, checkpoint=tmp_path / "t.pt")
    train_classifier(whole, x, y, epochs=4)
    assert torch.equal(weights(fit.model), weights(whole))


def test_progress_says_where_it_is() -> None:
    x, y = problem()
    seen: list[tuple[int, int, float]] = []
    train_classifier(network(), x, y, epochs=3, batch_size=40, progress=lambda *now: seen.append(now))
    assert seen[-1][:2] == (9, 9)


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": torch.rand(90, 30) + 1}, r"expected \[0, 1\]"),
        ({"x": torch.rand(0, 30), "y": torch.zeros(0, dtype=torch.int64)}, "x is empty"),
        ({"y": torch.arange(90) % 3}, "y holds the label 2 and the model returns 2 logits"),
        ({"eps": -1}, "eps=-1"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lambda_adv": -1}, "lambda_adv=-1"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
    ],
)
def test_mistakes_say_what_to_do(settings: dict, message: str) -> None:
    x, y = problem()
    with pytest.raises(ValueError, match=message):
        adversarial_training(network(), **({"x": x, "y": y, "eps": 0.1, "steps": 1} | settings))


@pytest.mark.user_input
def test_a_foreign_file_is_no_training(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(ValueError, match="is no training that can be gone on with"):
        train_classifier(network(), *problem(), checkpoint=path)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is no training that can be gone on with"):
        train_classifier(network(), *problem(), checkpoint=path)
