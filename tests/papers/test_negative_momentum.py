"""The recipe of negative momentum: its games against the part's own play, its claims, figures and pairs."""

import math
from pathlib import Path

import pytest
import torch

from mechanisms.dynamics.extrapolation import OptimisticGradient
from mechanisms.dynamics.games import play
from mechanisms.dynamics.negative_momentum import NegativeMomentumSGD
from mechanisms.lab.bench import Bench
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import Cell, Record, cells, read_records
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from mechanisms.papers._games import bilinear, dirac, gaussians
from mechanisms.papers._games.bilinear import Bilinear, Intervals, Toy
from mechanisms.papers._games.gaussians import Gaussians, Grid, Stack

SMALL = Gaussians(width=8, batch_size=8, steps=6, every=3, samples=50, eigenvalues=4)


def test_claims_1_to_3_hold_on_shorter_runs() -> None:
    found = {name: bilinear.run_bilinear(Bilinear(steps=20_000, grid=20), name, Bench(0)) for name in bilinear.PLAYS}
    assert found["simultaneous"]["least_radius"] > 1
    assert found["simultaneous"]["grew"] == found["simultaneous-negative"]["grew"] == 1
    assert found["alternating"]["bounded"] == 1
    assert found["alternating"]["radius"] == pytest.approx(1, abs=1e-12)
    negative = found["alternating-negative"]
    assert negative["within_bound"] == 1
    assert abs(negative["exponent_error"]) < 1e-3
    assert negative["rate"] == pytest.approx(0.9992, abs=1e-5)
    assert all(math.isfinite(value) for metrics in found.values() for value in metrics.values())


def test_powers_of_the_map_are_the_steps_of_play() -> None:
    sigma = torch.tensor([1.0, 0.5], dtype=torch.float64)
    game = bilinear.bilinear_game(sigma)
    for method, momenta, order in (
        ("momentum", (-0.5, 0.2), "alternating"),
        ("momentum", (-0.5, 0.2), "simultaneous"),
        ("optimistic", (0.0, 0.0), "simultaneous"),
    ):
        theta, phi = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
        losses = [lambda t=theta, p=phi: (t * sigma * p).sum(), lambda t=theta, p=phi: -(t * sigma * p).sum()]
        if method == "optimistic":
            optimizers = [OptimisticGradient([player], lr=0.3) for player in (theta, phi)]
        else:
            optimizers = [
                NegativeMomentumSGD([p], lr=0.3, momentum=beta) for p, beta in zip((theta, phi), momenta, strict=True)
            ]
        path = bilinear.follow(bilinear.operator_of(game, (2, 2), 0.3, momenta, order, method), 4, 25, block=7)
        for step in range(26):
            assert torch.allclose(path[step], torch.cat([theta, phi]).detach(), atol=1e-12)
            play(losses, optimizers, order=order)


def test_the_interval_agrees_with_every_draw() -> None:
    assert bilinear.run_intervals(Intervals(draws=200), "formula", Bench(0))["agreement"] == 1


def test_the_toy_stops_where_a_step_by_step_run_stops() -> None:
    settings = Toy(momenta=(-0.5, 0.0, 0.5), lrs=(0.1,), steps=4000, block=300)
    found = bilinear.run_toy(settings, "alternating", Bench(0))["steps_both"]

    def by_hand(beta: float) -> int:
        x = y = x_before = y_before = 0.5
        for step in range(1, settings.steps + 1):
            x, x_before = x - 0.1 * y + beta * (x - x_before), x
            y, y_before = y + 0.1 * x + beta * (y - y_before), y
            if not 1e-3 <= x * x + y * y <= 10:
                return step if x * x + y * y < 1e-3 else -step
        return 0

    assert found == [by_hand(beta) for beta in settings.momenta]
    assert found[0] > 0 == found[1] > found[2]


@pytest.mark.parametrize(
    ("variant", "distance"),
    [("alternating", 2.55), ("simultaneous-negative", 3.98)],
)
def test_the_dirac_gan_circles_without_negative_momentum(variant: str, distance: float) -> None:
    found = dirac.run_dirac(load_paper("negative-momentum").experiment("dirac-gan").scales["laptop"], variant, Bench(0))
    assert found["distance"] == pytest.approx(distance, abs=0.01)


def test_the_dirac_gan_converges_with_it() -> None:
    settings = load_paper("negative-momentum").experiment("dirac-gan").scales["laptop"]
    assert dirac.run_dirac(settings, "alternating-negative", Bench(0))["converged"] == 1


def test_data_noise_and_weights_follow_from_the_seed_alone() -> None:
    """Without a step the GANs of all variants are the same, and a seed's are the same in every block."""
    alone, together = Stack([Bench(4)], 8, "torch", 8), Stack([Bench(3), Bench(4)], 8, "torch", 8)
    assert all(torch.equal(a[0], b[1]) for a, b in zip(alone.generator, together.generator, strict=True))
    for first, second in zip(alone.batch(), together.batch(), strict=True):
        assert torch.equal(first[0], second[1])
    assert torch.equal(alone.sample(5)[0], together.sample(5)[1])


def test_a_gan_in_a_stack_trains_as_one_alone() -> None:
    benches = [Bench(0), Bench(1)]
    together = gaussians.run_gaussians_together(SMALL, "both-negative", benches)
    alone = gaussians.run_gaussians(SMALL, "both-negative", Bench(1))
    assert together[1]["samples"] == pytest.approx(alone["samples"], abs=0.011)
    assert together[1]["modes"] == alone["modes"]
    assert list(benches[1].curves) == ["modes", "quality"]


def test_stacked_networks_are_perceptrons_with_relu() -> None:
    gan = Stack([Bench(0), Bench(1)], 8, "torch", 8)
    points = torch.randn(2, 5, 2)
    network = torch.nn.Sequential(*(part for _ in range(3) for part in (torch.nn.LazyLinear(8), torch.nn.ReLU())))
    network.append(torch.nn.LazyLinear(1))
    network(points[1])
    with torch.no_grad():
        for place, layer in enumerate(layer for layer in network if isinstance(layer, torch.nn.Linear)):
            layer.weight.copy_(gan.critic[2 * place][1].T)
            layer.bias.copy_(gan.critic[2 * place + 1][1, 0])
        assert torch.allclose(network(points[1]), gaussians.forward(gan.critic, points)[1], atol=1e-6)


def test_losses_are_those_of_a_gan() -> None:
    gan = Stack([Bench(0)], 8, "normal", 8)
    real, noise = gan.batch()
    fake = gaussians.forward(gan.generator, noise[..., : gaussians.LATENT])
    logits = [gaussians.forward(gan.critic, points)[0, :, 0] for points in (real, fake)]
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(logits[0], torch.ones(8)) + bce(logits[1], torch.zeros(8))
    assert torch.allclose(gaussians.critic_of(gan.critic, real, fake, "saturating", 0.05), expected)
    assert torch.allclose(gaussians.generator_of(gan.critic, fake, "saturating"), -bce(logits[1], torch.zeros(8)))
    assert torch.allclose(gaussians.generator_of(gan.critic, fake, "non-saturating"), bce(logits[1], torch.ones(8)))
    with_penalty = gaussians.critic_of(gan.critic, real, fake, "gradient-penalty", 0.05)
    assert 0 < float((with_penalty - expected).detach()) <= 0.05 * 1.5


def test_modes_are_centres_with_samples() -> None:
    middle = gaussians.centres()
    samples = torch.cat([middle[:1].expand(97, -1), middle[3:4].expand(2, -1), middle[5:6]])[None]
    assert (gaussians.near_centres(samples)[0] > gaussians.SHARE).tolist() == [True, False, False, True] + [False] * 4
    assert float(gaussians.near_centres(torch.full((1, 10, 2), math.nan)).sum()) == 0
    drawn = gaussians.gaussians(4000, torch.Generator().manual_seed(0))
    # 8 centres of 500 each; a binomial share below 1/16 has a probability below 1e-30.
    assert float(gaussians.near_centres(drawn[None]).min()) > 1 / 16


@pytest.mark.parametrize("variant", gaussians.GRID_VARIANTS)
def test_the_original_s_grid_has_a_cell_for_each_step_and_momentum(variant: str) -> None:
    settings = Grid(width=8, batch_size=8, samples=50, steps=2, lrs=(0.1, 0.01), momenta=(-0.5, 0.0, 0.5), d_steps=2)
    found = gaussians.run_grid(settings, variant, Bench(0))
    assert len(found["modes"]) == 6
    assert found["best_modes_at_-0.5"] == max(found["modes"][0], found["modes"][3])


def test_figures_draw_and_claims_find_their_metrics(tmp_path: Path) -> None:
    paper = load_paper("negative-momentum")
    request = Request(work=[(paper, paper.experiments)], scale="smoke", seeds=1, results=tmp_path, device="cpu")
    assert execute(request, Silent()).failed == []
    for cell in cells(read_records([tmp_path])[0]):
        experiment = paper.experiment(cell.experiment)
        for figure in experiment.figures:
            assert figure.draw(cell).data
        for claim in experiment.claims:
            assert claim.check.evaluate(cell).verdict != "not run"


def test_figures_say_so_where_there_are_no_records() -> None:
    paper = load_paper("negative-momentum")
    for name in ("bilinear", "dirac-gan", "eight-gaussians"):
        experiment = paper.experiment(name)
        record = Record("negative-momentum", name, "laptop", experiment.variants[0], 0, {}, {"modes": 1})
        for figure in experiment.figures:
            figure.draw(Cell("negative-momentum", name, "laptop", {}, [record]))
