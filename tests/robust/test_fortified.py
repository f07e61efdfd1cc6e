"""Fortifying a model by name, its losses, and what must stay as it was."""

import copy
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from mechanisms.robust.denoising import ConvDenoisingLayer, DenoisingLayer, ExpectationOverNoise, draws_noise
from mechanisms.robust.fortified import FortifiedModel, fortified_loss, fortify


def network(norm: bool = False) -> nn.Sequential:
    middle = nn.BatchNorm1d(8) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(6, 8), middle, nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def fortified(noise_std: float = 0.0, norm: bool = False, **options: object) -> FortifiedModel:
    torch.manual_seed(0)
    layers = {
        "2": DenoisingLayer(8, 5, noise_std=noise_std, dtype=torch.float64, **options),  # type: ignore[arg-type]
        "4": DenoisingLayer(7, 4, noise_std=noise_std, dtype=torch.float64, **options),  # type: ignore[arg-type]
    }
    return fortify(network(norm), layers)


def batch(rows: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(rows, 6, dtype=torch.float64), torch.arange(rows) % 3


def gradients(loss: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(
        zip(names, torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True), strict=True)
    )


def test_the_network_goes_on_with_the_denoised_state() -> None:
    model, (x, _) = fortified(), batch()
    plain, layers = model.model, model.layers
    h = layers["2"](torch.relu(plain[1](plain[0](x))))
    expected = plain[5](layers["4"](torch.tanh(plain[3](h))))
    logits, before, after = model.trace(x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(after[0], h)
    torch.testing.assert_close(layers["4"](before[1]), after[1])
    assert model.names == ("2", "4")


def test_removing_gives_the_model_back() -> None:
    plain, (x, _) = network(), batch()
    expected, keys = plain(x), list(plain.state_dict())
    model = fortify(plain, {"2": DenoisingLayer(8, 5, dtype=torch.float64)}, inputs=DenoisingLayer(6, 4).double())
    assert not torch.equal(model(x), expected)
    assert list(plain.state_dict()) == keys
    assert model.remove() is plain
    assert torch.equal(plain(x), expected)
    assert torch.equal(model(x), expected)
    assert model.trace(x).before == []
    again = fortify(plain, {"2": DenoisingLayer(8, 5, dtype=torch.float64)})
    assert not torch.equal(again(x), expected)


def test_the_input_can_be_fortified() -> None:
    model = fortify(network(), {"2": DenoisingLayer(8, 5).double()}, inputs=DenoisingLayer(6, 4).double()).eval()
    x, _ = batch()
    found = model.trace(x)
    assert model.names == ("", "2")
    assert torch.equal(found.before[0], x)
    torch.testing.assert_close(found.after[0], model.layers["/input"](x))


def test_lists_follow_the_names_whatever_the_order_of_the_pass() -> None:
    layers = {"4": DenoisingLayer(7, 4).double(), "2": DenoisingLayer(8, 5).double()}
    model = fortify(network(), layers)
    assert [h.shape[1] for h in model.trace(batch()[0]).before] == [7, 8]


def test_convolutional_states_dense_and_as_maps() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    model = fortify(net, {"1": ConvDenoisingLayer(4, 6), "3": DenoisingLayer(32, 8)})
    loss = fortified_loss(model, torch.rand(5, 1, 8, 8), torch.arange(5) % 3, torch.rand(5, 1, 8, 8))
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert loss.reconstruction.shape == (2,)


def test_the_mode_is_that_of_the_model() -> None:
    model = fortify(network().eval(), {"2": DenoisingLayer(8, 5)})
    assert not model.training
    assert not model.draws_noise
    assert model.train().draws_noise


def test_state_dictionaries_and_files() -> None:
    model, other = fortified(), fortified()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert {key.split(".")[0] for key in model.state_dict()} == {"model", "layers"}
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x, _ = batch()
    assert torch.equal(model(x), other(x))
    nested = fortify(nn.Sequential(nn.Sequential(nn.Linear(2, 2))), {"0.0": DenoisingLayer(2, 2)})
    assert "layers.0/0.weights.0" in nested.state_dict()


def test_a_deep_copy_has_hooks_of_its_own() -> None:
    model, (x, _) = fortified(0.1), batch()
    model.set_generator(torch.Generator().manual_seed(3))
    clone = copy.deepcopy(model)
    assert torch.equal(clone(x), model(x))  # noise too: the generator was copied in its state
    model.eval()
    clone.eval()
    before = model(x)
    with torch.no_grad():
        for parameter in clone.layers.parameters():
            parameter.zero_()
    assert torch.equal(model(x), before)
    assert not torch.equal(clone(x), before)
    assert clone.trace(x).before[0] is not None
    clone.remove()
    assert torch.equal(model(x), before)


def test_a_generator_for_all_layers_repeats_the_noise() -> None:
    model, (x, _) = fortified(0.1), batch()
    found = []
    for _ in range(2):
        model.set_generator(torch.Generator().manual_seed(0))
        found.append(model(x))
    assert torch.equal(*found)


@pytest.mark.unhooked
def test_compiled_models_give_the_same() -> None:
    model, (x, y) = fortified(), batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    expected = fortified_loss(model, x, y, x.flip(0))
    found = fortified_loss(compiled, x, y, x.flip(0))
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(gradients(found.total, model), gradients(expected.total, model))


def test_distributed_models_give_the_same(tmp_path: Path) -> None:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        for detach in (False, True):
            model, (x, y) = fortified(), batch()
            wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
            fortified_loss(wrapped, x, y, x.flip(0), detach_target=detach).total.backward()
            fortified_loss(model, x, y, x.flip(0), detach_target=detach).total.backward()
            for one, other in zip(wrapped.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_the_loss_is_the_papers() -> None:
    model, (x, y) = fortified(), batch()
    x_adv = (x + 0.1).clamp(0, 1)
    clean, attacked = model.trace(x), model.trace(x_adv)
    rec = [(a - b).square().mean() for a, b in zip(clean.after, clean.before, strict=True)]
    adv = [(a - b).square().mean() for a, b in zip(attacked.after, clean.before, strict=True)]
    target = torch.full((9, 3), 0.05, dtype=torch.float64).scatter(1, y[:, None], 0.9)
    ce = [-(target * one.logits.log_softmax(1)).sum(1).mean() for one in (clean, attacked)]
    loss = fortified_loss(model, x, y, x_adv, lambda_rec=0.3, lambda_adv=0.7)
    torch.testing.assert_close(loss.total, 0.5 * sum(ce) + 0.3 * sum(rec) + 0.7 * sum(adv))
    torch.testing.assert_close(loss.reconstruction, torch.stack(rec))
    torch.testing.assert_close(loss.adversarial_reconstruction, torch.stack(adv))
    torch.testing.assert_close(loss.norm_before[0], clean.before[0].norm(dim=1).mean())
    torch.testing.assert_close(loss.norm_after[1], clean.after[1].norm(dim=1).mean())
    torch.testing.assert_close(loss.relative_error[0], rec[0] / clean.before[0].square().mean())
    torch.testing.assert_close(loss.logits, clean.logits)
    torch.testing.assert_close(loss.adversarial_logits, attacked.logits)


def test_without_weights_it_is_plain_cross_entropy() -> None:
    model, (x, y) = fortified(), batch()
    found = gradients(fortified_loss(model, x, y, lambda_rec=0, label_smoothing=0).total, model)
    assert all(
        torch.equal(found[name], expected)
        for name, expected in gradients(functional.cross_entropy(model(x), y), model).items()
    )


def test_equal_inputs_have_equal_reconstruction_losses() -> None:
    model, (x, y) = fortified(), batch()
    loss = fortified_loss(model, x, y, x)
    torch.testing.assert_close(loss.reconstruction, loss.adversarial_reconstruction)
    torch.testing.assert_close(loss.total, loss.classification + 2 * loss.reconstruction.sum())


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_a_detached_target_sends_nothing_below(noise_std: float) -> None:
    model, (x, y) = fortified(noise_std), batch()
    model.set_generator(torch.Generator())
    found = []
    for weight in (0.0, 2.0):
        for layer in model.layers.values():
            layer.generator.manual_seed(0)
        loss = fortified_loss(model, x, y, x.flip(0), lambda_rec=weight, detach_target=True)
        found.append(gradients(loss.total, model))
    for name in found[0]:
        same = torch.equal(found[0][name], found[1][name])
        assert same == name.startswith("model."), name


def test_without_detaching_the_reconstruction_shrinks_the_states() -> None:
    model, (x, y) = fortified(), batch()
    loss = fortified_loss(model, x, y, lambda_rec=1.0, label_smoothing=0.0)
    plain = fortified_loss(model, x, y, lambda_rec=0.0, label_smoothing=0.0)
    assert not torch.equal(
        gradients(loss.total, model)["model.0.weight"], gradients(plain.total, model)["model.0.weight"]
    )


def test_one_pass_and_two_give_the_same() -> None:
    model, (x, y) = fortified(), batch()
    one = fortified_loss(model, x, y, x.flip(0), one_pass=True)
    two = fortified_loss(model, x, y, x.flip(0), one_pass=False)
    torch.testing.assert_close(one.total, two.total)
    torch.testing.assert_close(gradients(one.total, model), gradients(two.total, model))


def test_batch_normalisation_keeps_clean_and_adversarial_rows_apart() -> None:
    model, (x, y) = fortified(norm=True), batch()
    seen: list[int] = []
    model.model[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    loss = fortified_loss(model, x, y, x.flip(0))
    torch.testing.assert_close(loss.logits, model(x))
    assert seen[:2] == [9, 9]
    model.eval()
    seen.clear()
    fortified_loss(model, x, y, x.flip(0))
    assert seen == [18]


def test_adversarial_inputs_are_constants() -> None:
    model, (x, y) = fortified(), batch()
    x_adv = x.clone().requires_grad_()
    loss = fortified_loss(model, x, y, x_adv * 0.5)
    assert torch.autograd.grad(loss.total, x_adv, allow_unused=True) == (None,)


def test_any_classifier_has_the_classification_terms() -> None:
    plain, (x, y) = network(), batch()
    loss = fortified_loss(plain, x, y, x.flip(0))
    same = fortified_loss(fortify(plain, {}), x, y, x.flip(0))
    assert torch.equal(loss.total, same.total)
    assert loss.reconstruction.shape == (0,)
    torch.testing.assert_close(loss.total, (loss.classification + loss.adversarial) / 2)


def test_half_precision_and_autocast() -> None:
    model = fortified().bfloat16()
    x, y = batch(1)
    loss = fortified_loss(model, x.bfloat16(), y, x.bfloat16())
    assert loss.relative_error.dtype == torch.float32
    loss.total.backward()
    model = fortified().float()
    with torch.autocast("cpu", torch.bfloat16):
        fortified_loss(model, x.float(), y, x.float()).total.backward()


def test_a_module_that_is_called_twice_is_fortified_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.act = nn.Linear(6, 6), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.one(self.act(self.one(x))))

    model = fortify(Twice(), {"act": DenoisingLayer(6, 3)})
    x, y = torch.rand(4, 6), torch.arange(4)
    assert len(model.trace(x).before) == 2
    assert fortified_loss(model, x, y).reconstruction.shape == (2,)
    with pytest.raises(ValueError, match="1 modules, 2 calls"):
        fortified_loss(model, x, y, detach_target=True)


def test_threads_trace_the_same_model_side_by_side() -> None:
    model = fortified().eval()
    inputs = [torch.rand(200, 6, dtype=torch.float64) for _ in range(2)]
    expected = [model.trace(x) for x in inputs]
    wrong: list[int] = []

    def ask(place: int) -> None:
        for _ in range(100):
            found = model.trace(inputs[place])
            model(inputs[place])
            if len(found.before) != 2 or not torch.allclose(found.after[1], expected[place].after[1]):
                wrong.append(place)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, range(2)))  # an error in a thread is raised here
    assert wrong == []


def test_modules_kept_in_evaluation_mode_stay_in_it() -> None:
    plain = network(norm=True)
    plain[1].eval()
    model = fortify(plain, {"2": DenoisingLayer(8, 5)})
    assert not plain[1].training
    assert model.training
    assert model.layers["2"].training


def test_modules_may_have_the_names_of_methods_of_dictionaries() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, scale: float | int = 1.0) -> torch.Tensor:
            return self.head(self.values(x)) * scale

    model = fortify(Named(), {"values": DenoisingLayer(8, 5)}).eval()
    x = torch.rand(4, 6)
    assert len(model.trace(x).before) == 1
    torch.testing.assert_close(model(x, scale=2), 2 * model(x))
    assert "layers./values.weights.0" in model.state_dict()


def test_labels_of_any_integer_type_and_the_largest_smoothing() -> None:
    model, (x, y) = fortified(), batch()
    for kind in (torch.uint8, torch.int32):
        assert torch.equal(fortified_loss(model, x, y.to(kind)).total, fortified_loss(model, x, y).total)
    for classes in range(2, 60):
        fortified_loss(nn.Linear(6, classes).double(), x, y % 2, label_smoothing=1 - 1 / classes)
    assert fortified_loss(model, x[:0], y[:0]).logits.shape == (0, 3)


def test_noise_of_layers_is_seen_from_the_network_within() -> None:
    model = fortified(0.1)
    assert draws_noise(model.model)
    assert not draws_noise(ExpectationOverNoise(model.model))
    assert not draws_noise(model.eval().model)


def test_a_failed_pass_leaves_nothing_behind() -> None:
    model, (x, _) = fortified(), batch()
    with pytest.raises(RuntimeError):
        model.trace(x[:, :3])
    model(x)
    assert model._tape.entries is None
    assert len(model.trace(x).before) == 2


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def taken() -> object:
    plain = network()
    fortify(plain, {"2": DenoisingLayer(8, 5)})
    return fortify(plain, {"2": DenoisingLayer(8, 5)})


def shared() -> object:
    layer = DenoisingLayer(8, 5)
    return fortify(network(), {"1": layer, "2": layer})


def aliased() -> object:
    act = nn.ReLU()
    return fortify(nn.Sequential(act, act), {"0": DenoisingLayer(8, 5), "1": DenoisingLayer(8, 5)})


def of_loss(**settings: object) -> Callable[[], object]:
    x, y = batch()
    return lambda: fortified_loss(fortified(), x, y, **settings)  # type: ignore[arg-type]


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fortify(network(), {"9": DenoisingLayer(8, 5)}), KeyError, "no module named '9'; it has '0', '1'"),
        (lambda: fortify(network(), {"": DenoisingLayer(8, 5)}), KeyError, "no module named ''"),
        (lambda: fortify(network(), {"2": 3}), TypeError, "the layer for '2' is a int"),
        (
            lambda: fortify(torch.compile(network()), {}),
            ValueError,
            "compiled or distributed already; fortify it first",
        ),
        (taken, ValueError, "fortified there already"),
        (shared, ValueError, "one layer stands for two names"),
        (aliased, ValueError, "are one module"),
        (
            lambda: fortify(network(), {"2": DenoisingLayer(9, 5)})(batch()[0]),
            ValueError,
            "layer '2': the activation has shape .9, 8., 8 features in each row.*features=9",
        ),
        (
            lambda: fortify(nn.Sequential(nn.LSTM(6, 4)), {"0": DenoisingLayer(4, 2)})(torch.rand(2, 3, 6)),
            ValueError,
            "layer '0' gives a tuple",
        ),
        (
            lambda: fortify(network().float(), {"2": nn.Linear(8, 4)})(torch.rand(3, 6)),
            ValueError,
            r"made \(3, 4\) of \(3, 8\); shapes must stay",
        ),
        (
            lambda: fortify(Unreached(), {"spare": DenoisingLayer(3, 2)}).trace(torch.rand(3, 6)),
            ValueError,
            r"did not go through \['spare'\]",
        ),
        (
            lambda: fortified_loss(nn.Sequential(nn.Identity(), fortified()), *batch()),
            ValueError,
            "is a Sequential with denoising layers inside, whose reconstruction cannot be seen; give the Fort",
        ),
        (lambda: fortified_loss(fortified().model, *batch()), ValueError, "cannot be seen"),
        (lambda: fortified_loss(nn.DataParallel(fortified()), *batch()), ValueError, "is a DataParallel"),
        (
            lambda: fortify(network(), {}, inputs=DenoisingLayer(6, 4).double())(input=batch()[0]),
            ValueError,
            "first input by place, not by keyword",
        ),
        (of_loss(lambda_rec=-1), ValueError, "lambda_rec=-1: it must be >= 0"),
        (of_loss(lambda_adv=-1), ValueError, "lambda_adv=-1: it must be >= 0"),
        (of_loss(lambda_adv=0.5), ValueError, "lambda_adv=0.5 without x_adv"),
        (of_loss(x_adv=torch.rand(3, 6)), ValueError, r"x has shape \(9, 6\) and x_adv \(3, 6\)"),
        (of_loss(label_smoothing=0.9), ValueError, "label_smoothing=0.9"),
        (
            lambda: fortified_loss(nn.Linear(6, 1), torch.rand(3, 6), torch.zeros(3, dtype=torch.int64)),
            ValueError,
            "logits .n, K. of at least two classes",
        ),
    ],
)
def test_mistakes_say_what_to_do(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
