"""The recipe of negative momentum in games: what the theorems say of toy games, and how many modes a GAN keeps.

The theorems are exact: closed forms against runs. The GANs on eight Gaussians are decided over ten seeds, paired by
seed, against both controls: no momentum at the same step size, and at the same effective step.
"""

from __future__ import annotations

from typing import Any

from mechanisms.lab import Claim, Experiment, Figure, Paper, all_of, better_than, exactly
from mechanisms.lab.figures import bars, curves
from mechanisms.papers._games import bilinear, dirac, gaussians, images, pictures
from mechanisms.papers._games.bilinear import Bilinear, Intervals, Toy
from mechanisms.papers._games.dirac import Dirac
from mechanisms.papers._games.gaussians import Gaussians, Grid

SOURCE = "Gidel et al. 2019"
GAN_VARIANTS = tuple(gaussians.VARIANTS)

THEORY = (
    Figure(
        "Multipliers in the complex plane",
        pictures.draw_spectra,
        "The bilinear game at step size times singular value 0.8. Play converges when all are in the circle.",
    ),
    Figure(
        "Where simultaneous play converges, by momentum",
        pictures.draw_regions,
        "Eigenvalues of the game Jacobian, times the step size, inside a curve converge with that momentum. A negative "
        "one stretches the region along the imaginary axis, a positive one along the real axis.",
    ),
    Figure(
        "Rate over momentum and step size",
        pictures.draw_rates,
        "The bilinear game: blue converges. Alternating play converges below the line 2 (1 + momentum), simultaneous "
        "play nowhere.",
    ),
    Figure(
        "Rate over the step size",
        pictures.draw_slices,
        "The bilinear game. Extragradient takes two gradients a step.",
    ),
)


BILINEAR = Experiment(
    name="bilinear",
    description="min over theta, max over phi of theta^T M phi with singular values 1, 0.5 and 0.2: simultaneous and "
    "alternating play with momenta of either sign, beside extragradient, optimistic and consensus steps.",
    run=bilinear.run_bilinear,
    variants=(*bilinear.PLAYS, *bilinear.METHODS),
    scales={"smoke": Bilinear(steps=200, grid=10), "laptop": Bilinear()},
    seeds=1,
    claims=(
        Claim(
            "Simultaneous play diverges whatever the momentum",
            all_of(
                exactly("all_diverge", "simultaneous", 1, 0),
                exactly("grew", "simultaneous", 1, 0),
                exactly("grew", "simultaneous-negative", 1, 0),
            ),
            published=f"simultaneous gradient play with any momentum diverges on the bilinear game ({SOURCE})",
            scales=("laptop",),
            note="Roots on a grid of momenta in (-1, 1) for each player and steps in (0, 3]; runs of 300 steps.",
        ),
        Claim(
            "Alternating play without momentum is bounded and does not converge",
            all_of(exactly("bounded", "alternating", 1, 0), exactly("radius", "alternating", 1, 1e-12)),
            published=f"alternating gradient play is bounded on the bilinear game ({SOURCE})",
            scales=("laptop",),
            note="Over 100,000 steps the distance stays within a factor of 3 of the first.",
        ),
        Claim(
            "Alternating play with one negative momentum converges at the stated rate",
            all_of(
                exactly("within_bound", "alternating-negative", 1, 0),
                exactly("exponent_error", "alternating-negative", 0, 1e-3),
            ),
            published=f"momentum (-1/2, 0): O(max(1/2, 1 - eta² sigma_min² / 16)^t) ({SOURCE})",
            scales=("laptop",),
            note="The bound is loose: the true coefficient is 2/9, not 1/16.",
        ),
    ),
    figures=(
        *THEORY,
        Figure(
            "Trajectories of the bilinear game",
            pictures.draw_trajectories(
                ("theta", "phi"), ("simultaneous", "alternating", "alternating-negative", "alternating-positive"), 40
            ),
            "The coordinates of the largest singular value over the first 40 steps.",
        ),
        curves("distance", "Distance to the equilibrium", log_y=True, caption="The first 200 steps."),
    ),
)

INTERVALS = Experiment(
    name="helpful-steps",
    description="2,000 random eigenvalues and step sizes: does a little negative momentum help exactly where the "
    "interval says?",
    run=bilinear.run_intervals,
    variants=("formula",),
    scales={"smoke": Intervals(draws=100), "laptop": Intervals()},
    seeds=1,
    claims=(
        Claim(
            "Negative momentum helps exactly when the step size lies in I(lambda)",
            exactly("agreement", "formula", 1, 0),
            published=f"rho'(0) > 0 iff eta in I(lambda) ({SOURCE})",
        ),
    ),
    figures=(
        Figure(
            "The interval of helpful steps",
            pictures.draw_interval,
            "From 30 degrees on it contains every step from the best to the largest stable one.",
        ),
    ),
)

TOY = Experiment(
    name="toy",
    description="The original's toy, theta phi from (1/2, 1/2): steps until the squared distance is below 0.001 or "
    "above 10, for seven momenta, three step sizes, and both players or one of them having the momentum.",
    run=bilinear.run_toy,
    variants=bilinear.ORDERS,
    scales={
        "smoke": Toy(steps=2000, block=200),
        "laptop": Toy(steps=500_000),
        "paper": Toy(),
    },
    seeds=1,
    figures=(
        Figure(
            "Steps to convergence or divergence",
            pictures.draw_toy,
            "Positive: converged at this step; negative: diverged; neither within the steps that were played.",
        ),
    ),
)

DIRAC = Experiment(
    name="dirac-gan",
    description="A discriminator psi x, real data at 0 and a fake at theta, saturating loss, "
    "from (1, 1), step size 0.5.",
    run=dirac.run_dirac,
    variants=tuple(dirac.PLAYS),
    scales={"smoke": Dirac(steps=200, drawn=50), "laptop": Dirac()},
    seeds=1,
    claims=(
        Claim(
            "Alternating play with negative momentum converges in a non-linear game, and no other sign or order does",
            all_of(
                *(exactly("converged", name, 1, 0) for name in ("alternating-negative", "alternating-one-negative")),
                *(
                    exactly("converged", name, 0, 0)
                    for name in dirac.PLAYS
                    if name.startswith("simultaneous") or name in ("alternating", "alternating-positive")
                ),
            ),
            published=f"the bilinear theorems describe play near the equilibrium ({SOURCE})",
            scales=("laptop",),
            note="Converged: a distance below 1e-6 after 5,000 steps.",
        ),
    ),
    figures=(
        Figure(
            "Trajectories of the Dirac GAN",
            pictures.draw_trajectories(
                ("psi", "theta"),
                ("alternating-negative", "alternating-one-negative", "alternating", "simultaneous", "extragradient"),
                150,
            ),
            "Discriminator against generator over the first 150 steps.",
        ),
        curves(
            "distance",
            "Distance to the equilibrium",
            variants=(
                "alternating-negative",
                "alternating-one-negative",
                "alternating",
                "alternating-effective",
                "alternating-positive",
                "extragradient",
                "optimistic",
                "consensus",
            ),
            log_y=True,
        ),
    ),
)

SMALL: dict[str, Any] = {"width": 16, "batch_size": 16, "samples": 200}
EIGHT = Experiment(
    name="eight-gaussians",
    description="A saturating GAN on eight Gaussians, alternating SGD: modes that stay, by momentum.",
    run=gaussians.run_gaussians,
    run_seeds=gaussians.run_gaussians_together,
    variants=GAN_VARIANTS,
    scales={"smoke": Gaussians(**SMALL, steps=20, every=10, eigenvalues=4), "laptop": Gaussians()},
    claims=(
        Claim(
            "With negative momentum the discriminator lets a saturating GAN keep more modes",
            all_of(
                better_than("modes", "discriminator-negative", "none", bounds=(0, 8)),
                better_than("modes", "discriminator-negative", "none-effective", bounds=(0, 8)),
            ),
            published=f"negative momentum helps GANs with the saturating loss ({SOURCE})",
            scales=("laptop",),
            note="Modes after 10,000 steps, against momentum 0 at the same step size and at the same effective step.",
        ),
    ),
    figures=(
        bars("modes", "Modes after 10,000 steps", caption=pictures.near_caption()),
        curves("modes", "Modes over time", caption=pictures.near_caption()),
        curves("quality", "Share of samples near a centre"),
        Figure(
            "Samples of one seed",
            pictures.draw_samples(GAN_VARIANTS),
            "150 samples after the last step; circles are the centres.",
        ),
        Figure(
            "Eigenvalues of the GAN's game Jacobian",
            pictures.draw_game_eigenvalues,
            "The leading ones after the last step, of one seed: far from the real axis play rotates.",
        ),
    ),
)

ORIGINAL = Experiment(
    name="eight-gaussians-original",
    description="The original's setting: width 256, weights from N(0, 0.02), a grid of step sizes and momenta, for "
    "four pairs of optimisers and three losses.",
    run=gaussians.run_grid,
    run_seeds=gaussians.run_grid_together,
    variants=gaussians.GRID_VARIANTS,
    scales={
        "smoke": Grid(**SMALL, steps=2, lrs=(0.01,), momenta=(-0.5, 0.0)),
        "paper": Grid(),
    },
    figures=(
        Figure(
            "Modes by momentum, at the best step size",
            pictures.draw_grid,
            "Rows are pairs of optimisers and losses. " + pictures.near_caption(),
        ),
    ),
)

paper = Paper(
    slug="negative-momentum",
    title="Negative Momentum for Improved Game Dynamics",
    authors="Gidel, Askari Hemmat, Pezeshki, Le Priol, Huang, Lacoste-Julien, Mitliagkas",
    year=2019,
    venue="AISTATS 2019",
    arxiv="1807.04740",
    topic="dynamics",
    summary="Momentum below zero damps the rotation of games: alternating play then converges where it would circle.",
    parts=(
        "mechanisms.dynamics.negative_momentum",
        "mechanisms.dynamics.extrapolation",
        "mechanisms.dynamics.games",
        "mechanisms.dynamics.spectra",
        "mechanisms.dynamics.game_tuning",
        "mechanisms.dynamics.game_analysis",
    ),
    experiments=(
        BILINEAR,
        INTERVALS,
        TOY,
        DIRAC,
        EIGHT,
        ORIGINAL,
        images.EXPERIMENT,
        images.EXPERIMENT_FASHION,
    ),
)
