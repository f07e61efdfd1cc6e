"""Spectral decoupling as a loss: limits, gradients, reductions, classes, types, and what it refuses."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mechanisms.dynamics.decoupling import SpectralDecouplingLoss, spectral_decoupling


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_without_a_coefficient_it_is_the_base_loss_to_the_bit() -> None:
    logits, labels = draws(16, dtype=torch.float32), torch.arange(16) % 2
    expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    assert torch.equal(SpectralDecouplingLoss(0)(logits, labels), expected)
    logits, labels = draws(16, 5, dtype=torch.float32), torch.arange(16) % 5
    assert torch.equal(SpectralDecouplingLoss(0)(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("target", [0.0, 1.5])
@pytest.mark.parametrize("shape", [(7,), (7, 4), (7, 4, 2, 3)])
def test_the_gradient_is_that_of_the_base_loss_plus_twice_the_distance(shape: tuple[int, ...], target: float) -> None:
    logits = draws(*shape).requires_grad_()
    labels = torch.arange(7) % 2 if len(shape) == 1 else torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    (whole,) = torch.autograd.grad(SpectralDecouplingLoss(0.3, target=target)(logits, labels), logits)
    (base,) = torch.autograd.grad(SpectralDecouplingLoss(0)(logits, labels), logits)
    torch.testing.assert_close(whole, base + 2 * 0.3 * (logits.detach() - target) / logits.numel())


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2)])
def test_gradcheck(shape: tuple[int, ...], per_class: bool) -> None:
    logits = draws(*shape).requires_grad_()
    classes = 2 if len(shape) == 1 else 3
    labels = torch.randint(classes, shape[:1] + shape[2:], generator=torch.Generator().manual_seed(0))
    target = torch.linspace(-1, 2, classes, dtype=torch.float64)
    objective = SpectralDecouplingLoss(0.2, target=target, per_class=per_class)
    assert torch.autograd.gradcheck(lambda f: objective(f, labels), logits)


@given(batch=st.integers(1, 9), classes=st.integers(2, 5), pixels=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_reductions_agree_as_in_torch(batch: int, classes: int, pixels: int) -> None:
    logits = draws(batch, classes, pixels)
    labels = torch.randint(classes, (batch, pixels), generator=torch.Generator().manual_seed(1))
    none = spectral_decoupling(logits, reduction="none")
    assert none.shape == logits.shape
    torch.testing.assert_close(spectral_decoupling(logits), none.mean())
    torch.testing.assert_close(spectral_decoupling(logits, reduction="sum"), none.sum())
    each = SpectralDecouplingLoss(0.2, reduction="none")(logits, labels)
    assert each.shape == labels.shape
    torch.testing.assert_close(SpectralDecouplingLoss(0.2)(logits, labels), each.mean())
    torch.testing.assert_close(SpectralDecouplingLoss(0.2, reduction="sum")(logits, labels), each.sum())


def test_a_target_by_class_follows_the_label() -> None:
    logits, labels = draws(6), torch.tensor([0, 1, 1, 0, 1, 0])
    levels = torch.tensor([0.44, 2.5], dtype=torch.float64)
    expected = (logits - levels[labels]).square()
    assert torch.equal(spectral_decoupling(logits, labels, target=levels, reduction="none"), expected)
    assert torch.equal(spectral_decoupling(logits, labels.double(), target=(0.44, 2.5), reduction="none"), expected)
    many = draws(6, 3)
    three = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    expected = (many - three[labels][:, None]).square()
    assert torch.equal(spectral_decoupling(many, labels, target=three, reduction="none"), expected)


def test_means_by_class_are_added_and_an_absent_class_adds_nothing() -> None:
    logits, labels = draws(5), torch.tensor([1, 0, 1, 1, 0])
    squares = logits.square()
    expected = squares[labels == 1].mean() + squares[labels == 0].mean()
    torch.testing.assert_close(spectral_decoupling(logits, labels, per_class=True), expected)
    ones = torch.ones(5, dtype=torch.long)
    torch.testing.assert_close(spectral_decoupling(logits, ones, per_class=True), squares.mean())
    many = draws(5, 4)
    torch.testing.assert_close(spectral_decoupling(many, ones, per_class=True), many.square().mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_squared_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([300.0, -300.0]).to(dtype).requires_grad_()
    penalty = spectral_decoupling(logits)
    assert penalty.dtype == torch.float32
    assert float(penalty.detach()) == 90_000
    SpectralDecouplingLoss(0.01)(logits, torch.tensor([1, 0])).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.dtype == dtype


def test_under_autocast_the_penalty_is_computed_in_float32() -> None:
    model, x = nn.Linear(4, 3), draws(8, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(100 * x)
        assert logits.dtype == torch.bfloat16
        loss = SpectralDecouplingLoss(0.1)(logits, torch.arange(8) % 3)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, F.cross_entropy(logits.float(), torch.arange(8) % 3) + 0.1 * logits.float().square().mean()
    )


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = SpectralDecouplingLoss(1e-3)(logits, torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_free_logits_of_many_classes_come_to_rest_where_the_equilibrium_is() -> None:
    """Symmetric equilibrium: z_y = a, the others -a / (K - 1), 1 - p_y = 2 c a / K."""
    logits = torch.zeros(1, 10, dtype=torch.float64, requires_grad=True)
    objective, label = SpectralDecouplingLoss(0.01), torch.tensor([3])
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(logits, label)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = logits.detach()[0]
    assert float(found[3]) == pytest.approx(5.95418, abs=1e-5)
    assert found[[0, 1, 2, 4, 5, 6, 7, 8, 9]].tolist() == pytest.approx([-0.66158] * 9, abs=1e-5)
    assert float(found.softmax(0)[3]) == pytest.approx(0.98809, abs=1e-5)


def test_one_logit_in_a_column_is_binary() -> None:
    logits, labels = draws(6, 1), torch.arange(6).reshape(6, 1) % 2
    expected = SpectralDecouplingLoss(0.1)(logits[:, 0], labels[:, 0])
    torch.testing.assert_close(SpectralDecouplingLoss(0.1)(logits, labels), expected)
    each = SpectralDecouplingLoss(0.1, reduction="none")(logits, labels)
    assert each.shape == (6, 1)


def test_one_example_without_a_batch_is_understood_as_in_torch() -> None:
    logits, label = draws(4), torch.tensor(2)
    expected = F.cross_entropy(logits, label) + 0.1 * logits.square().mean()
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(SpectralDecouplingLoss(0.1, reduction=reduction)(logits, label), expected)


def test_class_probabilities_and_a_loss_of_the_users_own() -> None:
    logits = draws(5, 3)
    probabilities = draws(5, 3, seed=1).softmax(1)
    expected = F.cross_entropy(logits, probabilities) + 0.1 * logits.square().mean()
    torch.testing.assert_close(SpectralDecouplingLoss(0.1)(logits, probabilities), expected)
    many = (probabilities > 0.3).double()
    own = SpectralDecouplingLoss(0.1, base_loss=nn.BCEWithLogitsLoss(), target=(-1.0, 1.0))
    expected = F.binary_cross_entropy_with_logits(logits, many) + 0.1 * (logits - (2 * many - 1)).square().mean()
    torch.testing.assert_close(own(logits, many), expected)
    ignoring = SpectralDecouplingLoss(0.1, base_loss=nn.CrossEntropyLoss(ignore_index=-100))
    assert torch.isfinite(ignoring(logits, torch.tensor([0, -100, 1, 2, -100])))


def test_class_indices_of_any_integer_type_are_taken_and_padding_is_refused() -> None:
    logits, labels = draws(4, 3), torch.tensor([0, 1, 2, 1])
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(SpectralDecouplingLoss()(logits, labels.to(dtype)), SpectralDecouplingLoss()(logits, labels))
    with pytest.raises(ValueError, match="to 1; leave positions without a label"):
        SpectralDecouplingLoss()(logits, torch.tensor([0, 1, -100, 1]))


def test_soft_binary_labels_are_taken_by_the_plain_form() -> None:
    logits, labels = draws(4), torch.tensor([0.1, 0.9, 0.5, 1.0], dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(logits, labels) + 0.01 * logits.square().mean()
    torch.testing.assert_close(SpectralDecouplingLoss()(logits, labels), expected)


def test_the_module_is_saved_copied_and_moved_as_any_other() -> None:
    objective = SpectralDecouplingLoss(0.1, target=(0.44, 2.5), per_class=True)
    buffer = io.BytesIO()
    torch.save(objective.state_dict(), buffer)
    buffer.seek(0)
    other = SpectralDecouplingLoss(0.1, target=(0.0, 0.0), per_class=True)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other.target, objective.target)
    assert objective.to("meta").target.device.type == "meta"
    assert SpectralDecouplingLoss().state_dict() == {}
    assert "coefficient=0.1" in repr(other)


@pytest.mark.unhooked
@pytest.mark.parametrize("per_class", [False, True])
def test_it_compiles_as_one_graph(per_class: bool) -> None:
    objective = SpectralDecouplingLoss(0.1, target=(0.44, 2.5), per_class=per_class)
    logits, labels = draws(8, dtype=torch.float32), torch.arange(8) % 2
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, labels), objective(logits, labels))


@pytest.mark.user_input
def test_labels_of_the_other_convention_are_refused_by_name() -> None:
    logits, labels = draws(4), torch.tensor([1, -1, 1, -1])
    for call in (
        lambda: SpectralDecouplingLoss()(logits, labels),
        lambda: SpectralDecouplingLoss()(logits, labels.double()),
        lambda: spectral_decoupling(logits, labels, per_class=True),
    ):
        with pytest.raises(ValueError, match=r"\{0, 1\} \(not \{-1, \+1\}\)"):
            call()
    with pytest.raises(ValueError, match=r"class indices in \{0, ..., 2\}; got values from 0 to 3"):
        SpectralDecouplingLoss()(draws(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="some fractional"):
        spectral_decoupling(logits, torch.tensor([0.5, 1, 0, 1]), target=(0.0, 1.0))


@pytest.mark.user_input
def test_what_is_refused() -> None:
    logits = draws(4)
    with pytest.raises(ValueError, match="coefficient=-1: it must be >= 0"):
        SpectralDecouplingLoss(-1)
    with pytest.raises(ValueError, match="need labels"):
        spectral_decoupling(logits, target=(0.0, 1.0))
    with pytest.raises(ValueError, match="need labels"):
        spectral_decoupling(logits, per_class=True)
    with pytest.raises(ValueError, match=r"target has shape \(3,\), expected one number for each of 2 classes"):
        spectral_decoupling(logits, torch.tensor([0, 1, 0, 1]), target=(0.0, 1.0, 2.0))
    with pytest.raises(ValueError, match=r"target has shape \(1, 2\)"):
        SpectralDecouplingLoss(target=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"labels have shape \(3,\) for logits \(4,\)"):
        SpectralDecouplingLoss()(logits, torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"give logits.squeeze\(1\)"):
        SpectralDecouplingLoss()(draws(4, 1), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="reduction='max'"):
        spectral_decoupling(logits, reduction="max")
    with pytest.raises(ValueError, match="reduction must be 'mean'"):
        SpectralDecouplingLoss(per_class=True, reduction="sum")
    with pytest.raises(ValueError, match="class probabilities"):
        SpectralDecouplingLoss(per_class=True)(draws(4, 3), draws(4, 3).softmax(1))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        spectral_decoupling(torch.arange(3))
    with pytest.raises(TypeError, match="must be integers"):
        spectral_decoupling(draws(2, 3), torch.tensor([0.0, 1.0]), per_class=True)
    with pytest.raises(TypeError, match="labels must be a tensor"):
        SpectralDecouplingLoss()(logits, [0, 1, 0, 1])  # pyrefly: ignore
