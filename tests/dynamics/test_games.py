"""Play, the vector field, its Jacobian and eigenvalues: for toy games and for networks."""

import pytest
import torch
from torch import Tensor, nn

from mechanisms.dynamics.games import game_eigenvalues, game_jacobian, play, vector_field
from mechanisms.dynamics.negative_momentum import NegativeMomentumAdam, NegativeMomentumSGD


def gan(hidden: int = 5, dtype: torch.dtype = torch.float64) -> tuple[list[nn.Module], list]:
    """A saturating GAN in the plane with a fixed batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 2)).to(dtype)
        critic = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(dtype)
        noise, real = torch.randn(16, 3, dtype=dtype), torch.randn(16, 2, dtype=dtype)

    def value() -> Tensor:
        return (
            nn.functional.logsigmoid(critic(real)).mean() + nn.functional.logsigmoid(-critic(generator(noise))).mean()
        )

    return [critic, generator], [lambda: -value(), value]


def parameters(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
def test_play_is_the_update_rule(order: str) -> None:
    theta, phi = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (1.0, 0.5))
    optimizers = [NegativeMomentumSGD([theta], lr=0.2, momentum=-0.5), NegativeMomentumSGD([phi], lr=0.3, momentum=0.1)]
    x, y, x_before, y_before = 1.0, 0.5, 1.0, 0.5
    for _ in range(20):
        values = play([lambda: theta * phi, lambda: -theta * phi], optimizers, order=order)
        x_new = x - 0.2 * y - 0.5 * (x - x_before)
        seen = x_new if order == "alternating" else x
        y_new = y + 0.3 * seen + 0.1 * (y - y_before)
        assert [float(value) for value in values] == pytest.approx([x * y, -seen * y], abs=1e-14)
        x, y, x_before, y_before = x_new, y_new, x, y
        assert (theta.item(), phi.item()) == pytest.approx((x, y), abs=1e-14)


def test_players_in_turn_see_the_steps_before_theirs_and_all_of_three_do() -> None:
    players = [nn.Parameter(torch.tensor(1.0)) for _ in range(3)]
    seen: list[list[float]] = []

    def loss(i: int) -> Tensor:
        seen.append([player.item() for player in players])
        return players[i] * sum(players)

    for order, expected in (
        ("simultaneous", [[1, 1, 1]] * 3),
        ("alternating", [[1, 1, 1], [0, 1, 1], [0, 0.5, 1]]),
    ):
        seen.clear()
        with torch.no_grad():
            for player in players:
                player.fill_(1.0)
        # Gradients are 4, 1 + 2 * 1 + ... as each player finds the others.
        optimizers = [
            torch.optim.SGD([player], lr=lr) for player, lr in zip(players, (0.25, 0.25 / 1.5, 0.1), strict=True)
        ]
        play([lambda i=i: loss(i) for i in range(3)], optimizers, order=order)
        assert seen[0] == expected[0]
        assert seen[1] == pytest.approx(expected[1])
        if order == "alternating":
            assert seen[2] == pytest.approx(expected[2])


def test_gradients_are_each_player_s_own_and_replace_what_was_there() -> None:
    players, losses = gan()
    for module in players:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 100.0)
    expected = vector_field(losses, players)
    play(losses, [torch.optim.SGD(module.parameters(), lr=0.0) for module in players], order="simultaneous")
    found = torch.cat([p.grad.flatten() for module in players for p in module.parameters()])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
def test_a_scaler_changes_nothing(order: str) -> None:
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)):
        players, losses = gan(dtype=torch.float64)
        optimizers = [
            NegativeMomentumSGD(players[0].parameters(), lr=0.1),
            NegativeMomentumAdam(players[1].parameters()),
        ]
        for _ in range(3):
            play(losses, optimizers, order=order, scaler=scaler)
        ends.append(torch.cat([p.detach().flatten() for module in players for p in module.parameters()]))
    assert torch.allclose(*ends, atol=1e-12)
    assert scaler is not None
    assert scaler.get_scale() == 512


def test_play_works_under_autocast() -> None:
    players, losses = gan(dtype=torch.float32)

    def cast(loss) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss().float()

    before = parameters(players[0])
    play(
        [lambda loss=loss: cast(loss) for loss in losses],
        [NegativeMomentumSGD(m.parameters(), lr=0.1) for m in players],
    )
    assert not torch.equal(before[0], parameters(players[0])[0])


def test_frozen_parameters_and_those_a_loss_does_not_use_stay() -> None:
    theta, frozen, unused, phi = (nn.Parameter(torch.ones(1)) for _ in range(4))
    frozen.requires_grad_(False)
    optimizers = [torch.optim.SGD([theta, frozen, unused], lr=0.1), torch.optim.SGD([phi], lr=0.1)]
    play([lambda: theta * frozen * phi, lambda: -theta * phi], optimizers)
    assert (float(frozen), float(unused)) == (1.0, 1.0)
    assert float(theta) == pytest.approx(0.9)
    field = vector_field([lambda: theta * frozen * phi, lambda: -theta * phi], [[theta, frozen, unused], [phi]])
    assert field.tolist() == pytest.approx([1.09, 0.0, -0.9])


def test_the_jacobian_of_one_player_is_the_hessian() -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).double()
    found = game_jacobian([lambda: network(x).square().mean()], [network])
    assert torch.allclose(found, found.T, atol=1e-12)
    names = [name for name, _ in network.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        return torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x,)).square().mean()

    blocks = torch.autograd.functional.hessian(loss, tuple(network.parameters()))
    rows = [
        torch.cat([block.reshape(p.numel(), -1) for block in row], 1)
        for row, p in zip(blocks, network.parameters(), strict=True)
    ]
    assert torch.allclose(found, torch.cat(rows), atol=1e-12)


def test_the_jacobian_of_a_zero_sum_game_has_opposite_blocks() -> None:
    players, losses = gan()
    jacobian = game_jacobian(losses, players)
    size = sum(p.numel() for p in players[0].parameters())
    a, b, c, d = jacobian[:size, :size], jacobian[:size, size:], jacobian[size:, :size], jacobian[size:, size:]
    assert float((b + c.T).abs().max()) < 1e-14
    assert torch.allclose(a, a.T, atol=1e-14)
    assert torch.allclose(d, d.T, atol=1e-14)
    assert float(b.abs().max()) > 1e-3


def test_the_jacobian_is_the_derivative_of_the_vector_field() -> None:
    players, losses = gan()
    jacobian, field = game_jacobian(losses, players), vector_field(losses, players)
    weights = [p for module in players for p in module.parameters()]
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(len(field), generator=generator, dtype=torch.float64)
    moved = direction.split([p.numel() for p in weights])
    ends = []
    for sign in (1e-6, -2e-6):
        with torch.no_grad():
            for weight, part in zip(weights, moved, strict=True):
                weight += sign * part.view_as(weight)
        ends.append(vector_field(losses, players))
    assert torch.allclose((ends[0] - ends[1]) / 2e-6, jacobian @ direction, atol=1e-7)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunks_change_nothing(chunk_size: int) -> None:
    players, losses = gan()
    assert torch.allclose(game_jacobian(losses, players, chunk_size=chunk_size), game_jacobian(losses, players))


@pytest.mark.parametrize("which", ["LM", "LR", "SR", "LI"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arnoldi_finds_the_eigenvalues_of_the_jacobian(which: str, dtype: torch.dtype) -> None:
    players, losses = gan(8, dtype)
    every = torch.linalg.eigvals(game_jacobian(losses, players)).to(torch.complex128)
    found = game_eigenvalues(losses, players, k=4, which=which)
    assert found.dtype == (torch.complex128 if dtype == torch.float64 else torch.complex64)
    keys = {"LM": -every.abs(), "LR": -every.real, "SR": every.real, "LI": -every.imag.abs()}
    expected = every[keys[which].argsort()][:4]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    # Each of the wanted is among the found; a conjugate pair at the end may be cut either way.
    for value in expected[:3]:
        distance = torch.minimum((found - value).abs(), (found - value.conj()).abs()).min()
        assert float(distance) < tolerance


def test_all_eigenvalues_come_in_order_and_small_games_need_no_arnoldi() -> None:
    theta, phi = (nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    losses = [lambda: 2 * theta * phi + theta**2, lambda: phi**2 - 2 * theta * phi]
    every = game_eigenvalues(losses, [[theta], [phi]])
    assert torch.equal(game_eigenvalues(losses, [[theta], [phi]], k=1), every[:1])
    assert sorted(every.imag.tolist()) == pytest.approx([-2, 2])
    players, losses = gan()
    every = game_eigenvalues(losses, players)
    assert bool((every.abs().diff() <= 1e-12).all())


def test_a_loss_that_is_linear_and_alone_has_a_jacobian_of_zeros() -> None:
    theta, phi = (nn.Parameter(torch.ones(2)) for _ in range(2))
    assert float(game_jacobian([lambda: theta.sum(), lambda: phi.sum()], [[theta], [phi]]).abs().max()) == 0


@pytest.mark.user_input
def test_wrong_input_says_what_is_expected() -> None:
    theta, phi = (nn.Parameter(torch.ones(2)) for _ in range(2))
    losses = [lambda: (theta * phi).sum(), lambda: -(theta * phi).sum()]
    optimizers = [torch.optim.SGD([player], lr=0.1) for player in (theta, phi)]
    with pytest.raises(ValueError, match="order='in turn'"):
        play(losses, optimizers, order="in turn")
    with pytest.raises(ValueError, match="1 losses for 2 players"):
        play(losses[:1], optimizers)
    with pytest.raises(ValueError, match="0 losses for 0 players"):
        play([], [])
    with pytest.raises(ValueError, match="players 1 and 2 both own"):
        play(losses, [torch.optim.SGD([theta], lr=0.1), torch.optim.SGD([theta, phi], lr=0.1)])
    with pytest.raises(ValueError, match=r"player 1's loss has shape \(2,\)"):
        play([lambda: theta * phi, losses[1]], optimizers)
    with pytest.raises(TypeError, match="player 2's loss is a float"):
        play([losses[0], lambda: 1.0], optimizers)
    with pytest.raises(ValueError, match="player 2's loss does not depend on its parameters: it is detached"):
        play([losses[0], lambda: losses[1]().detach()], optimizers)
    with pytest.raises(ValueError, match="player 2's loss does not depend on its parameters; are"):
        play([losses[0], lambda: theta.sum()], optimizers)
    with pytest.raises(ValueError, match="player 1's loss does not depend"):
        vector_field([lambda: torch.ones(()), losses[1]], [[theta], [phi]])
    with pytest.raises(TypeError, match="player 1 has a str"):
        vector_field(losses, [["theta"], [phi]])
    with pytest.raises(ValueError, match="player 2 has no parameters that need a gradient"):
        vector_field(losses, [[theta], [torch.ones(2)]])
    with pytest.raises(ValueError, match="chunk_size=0"):
        game_jacobian(losses, [[theta], [phi]], chunk_size=0)
    with pytest.raises(ValueError, match="which='XX'"):
        game_eigenvalues(losses, [[theta], [phi]], which="XX")
    with pytest.raises(ValueError, match="k=0"):
        game_eigenvalues(losses, [[theta], [phi]], k=0)
