"""The recipe of "On the Learning Dynamics of Deep Neural Networks": do the closed forms predict trained networks?

The theory's own cases first (one direction per class, units of one class each), where agreement is a fact and one run
suffices unless data or weights are drawn; then where it stops, and digits with a shortcut.

Seeds 0 to 9 were used to build it; claims are decided on seeds from 10 on.
"""

from __future__ import annotations

from mechanisms.lab import Claim, Experiment, Paper, all_of, at_least, at_most, better_than, exactly
from mechanisms.papers._deep import figures
from mechanisms.papers._deep.digits import VARIANTS, Digits, run_digits, run_digits_block
from mechanisms.papers._deep.failure import Failure, run_failure
from mechanisms.papers._deep.images import EXPERIMENT as LIGHT_AND_DARK
from mechanisms.papers._deep.modes import (
    LOSSES,
    Depth,
    Independent,
    Losses,
    OneMode,
    Speed,
    run_depth,
    run_independent,
    run_losses,
    run_one_mode,
    run_speed,
)
from mechanisms.papers._deep.starvation import TwoFeatures, run_two_features

SOURCE = "Tachet des Combes et al. 2018"
ABSTRACT = f"({SOURCE}, abstract)"
OURS = "Not the paper's claim but one of ours."

ONE_MODE = Experiment(
    name="one-mode",
    description="A network of 20 units on two classes of one direction each, by gradient descent, beside the closed "
    "form; and the closed form beside an adaptive integration.",
    run=run_one_mode,
    variants=tuple(LOSSES),
    scales={
        "smoke": OneMode(widths=(4,), horizon=2.0, points=10),
        "laptop": OneMode(),
        "paper": OneMode(widths=(4, 20, 100, 500, 2000), horizon=200.0),
    },
    claims=(
        Claim(
            "The error is sigmoidal and predicted: the network follows the closed form within 1 % of the margin",
            exactly("relative_error", "cross-entropy", 0, tolerance=0.01),
            published=f"the classification error has a sigmoidal shape {ABSTRACT}",
            note="Every seed has to.",
        ),
        Claim(
            "... and the closed form is the solution of its equation",
            exactly("integration_error", "cross-entropy", 0, tolerance=1e-8),
            published=f"the dynamics are solved {ABSTRACT}",
        ),
    ),
    figures=figures.ONE_MODE,
)

INDEPENDENT = Experiment(
    name="independent-modes",
    description="Class +1's outputs over 2,000 steps with class -1 as it is and with its inputs scaled by three; the "
    "same with classes that overlap, which the theory excludes.",
    run=run_independent,
    variants=("separable", "overlapping"),
    scales={
        "smoke": Independent(steps=50),
        "laptop": Independent(),
        "paper": Independent(num_samples=400, dim=100, width=200),
    },
    claims=(
        Claim(
            "The classes are independent modes",
            exactly("change", "separable", 0, tolerance=1e-12),
            published=f"classes are learned independently {ABSTRACT}",
        ),
        Claim(
            "... and no longer where they overlap",
            at_least("change", "overlapping", 1e-3),
            note=f"{OURS} It shows where the theory stops.",
        ),
    ),
    figures=figures.INDEPENDENT,
)

FAILURE = Experiment(
    name="failed-initialisation",
    description="Single units from random states, and random layers of 1 to 8 units, on a class of one direction.",
    run=run_failure,
    variants=tuple(LOSSES),
    scales={
        "smoke": Failure(units=50, networks=20, widths=(1, 2), grid=7, horizon=10.0, step=0.5),
        "laptop": Failure(),
        "paper": Failure(units=20_000, networks=20_000, widths=(1, 2, 4, 8, 12, 16), grid=61),
    },
    claims=(
        Claim(
            "Which units fail is predicted, without exception",
            all_of(*(exactly("mismatches", loss, 0, tolerance=0) for loss in LOSSES)),
            published=f"some initialisations fail {ABSTRACT}",
            note="Units nearer than 0.01 to the border are left out.",
        ),
        Claim(
            "... and so is the share of layers that fail, by width",
            all_of(*(at_most("deviation", loss, 3) for loss in LOSSES)),
            published=f"some initialisations fail {ABSTRACT}",
            note="The largest deviation over the widths, in binomial standard errors.",
        ),
    ),
    figures=figures.FAILURE,
)

SPEED = Experiment(
    name="frequency-and-norm",
    description="Networks on two orthogonal classes, over a range of frequencies and of norms: time to error 0.1.",
    run=run_speed,
    variants=("frequency", "norm", "norm-unbalanced"),
    scales={
        "smoke": Speed(frequencies=(0.4, 0.8), norms=(2.0, 4.0), width=4, lr=0.1, initial_margin=0.5),
        "laptop": Speed(),
        "paper": Speed(width=200, lr=0.005),
    },
    claims=(
        Claim(
            "The time to a confidence falls as 1 / (frequency times norm)",
            all_of(*(exactly("slope", variant, -1, tolerance=0.02) for variant in ("frequency", "norm"))),
            published=f"larger and more frequent inputs are learned faster {ABSTRACT}",
            note="Balanced layers. With imbalance the norm no longer scales time exactly: variant norm-unbalanced.",
        ),
    ),
    figures=figures.SPEED,
    seeds=1,
)

LOSS = Experiment(
    name="losses",
    description="One balanced mode (p = 0.3, r = 1.7, margin 0.00425) under cross-entropy and hinge.",
    run=run_losses,
    variants=tuple(LOSSES),
    scales={
        "smoke": Losses(width=4, lr=0.1, initial_margin=0.1, errors=(0.4, 0.3)),
        "laptop": Losses(),
        "paper": Losses(width=200, lr=0.002),
    },
    claims=(
        Claim(
            "Hinge arrives in finite time, cross-entropy only logarithmically",
            all_of(
                exactly("time_error", "hinge", 0, tolerance=0.02),
                exactly("short_of_four", "cross-entropy", 0, tolerance=0),
            ),
            published=f"hinge converges in finite time, cross-entropy much more slowly {ABSTRACT}",
            note="From error 0.01 to 0.001 the time has to grow more than fourfold.",
        ),
    ),
    figures=figures.LOSS_FIGURES,
    seeds=1,
)

DEPTH = Experiment(
    name="depth",
    description="Balanced chains of 1 to 4 layers from the same margin.",
    run=run_depth,
    variants=("chain",),
    scales={
        "smoke": Depth(depths=(1, 2), initial_margin=0.1, points=20, step=0.2),
        "laptop": Depth(),
        "paper": Depth(depths=(1, 2, 3, 4, 5, 6, 7, 8), points=20),
    },
    claims=(
        Claim(
            "Depth sharpens the sigmoid",
            all_of(
                exactly("decreasing", "chain", 1, tolerance=0),
                exactly("simulation_error", "chain", 0, tolerance=1e-6),
            ),
            published=f"the analysis extends to deeper networks {ABSTRACT}",
            note="Time from error 0.45 to 0.05, divided by the time to 0.45.",
        ),
    ),
    figures=figures.DEPTH,
    seeds=1,
)

TWO_FEATURES = Experiment(
    name="two-features",
    description="Logistic regression on two equally informative features, one of them rarer.",
    run=run_two_features,
    variants=("cross-entropy", "hinge", "exponential"),
    scales={"smoke": TwoFeatures(frequencies=(0.1, 0.5), horizon=100.0, points=20), "laptop": TwoFeatures()},
    claims=(
        Claim(
            "The frequent feature starves the rare one",
            all_of(
                exactly("ratio", "cross-entropy", 0, tolerance=0.07),
                exactly("relation_error", "cross-entropy", 0, tolerance=0.02),
            ),
            published=f"frequent features starve the gradient of equally informative rare ones {ABSTRACT}",
            note="s2 / s1 at frequency 0.1 and time 1e6; s1 against the relation of the exponential tail.",
        ),
        Claim(
            "Hinge leaves the rare feature q / (1 + q)",
            exactly("hinge_share_error", "hinge", 0, tolerance=1e-12),
            note=OURS,
        ),
    ),
    figures=figures.TWO_FEATURES,
    seeds=1,
)

DIGITS = Experiment(
    name="digits-shortcut",
    description="Digits 4 against 9 with an extra input that betrays the label in a fraction of the training samples; "
    "variants are the loss and the fraction in percent.",
    run=run_digits,
    run_seeds=run_digits_block,
    variants=VARIANTS,
    scales={"smoke": Digits(hidden=10, steps=20), "laptop": Digits(), "paper": Digits(points=50)},
    claims=(
        Claim(
            "The more frequent the shortcut, the less is learned from the digits",
            all_of(
                better_than("margin_ratio", "cross-entropy-0", "cross-entropy-50"),
                better_than("margin_ratio", "cross-entropy-50", "cross-entropy-90"),
                better_than("margin_ratio", "cross-entropy-90", "cross-entropy-100"),
                at_least("margin_ratio", "cross-entropy-0", "cross-entropy-100", margin=0.5),
                at_most("flipped_accuracy", "cross-entropy-90", 0.2, bounds=(0, 1)),
            ),
            published=f"gradient starvation: a network that learns brightness fails on the opposite images ({SOURCE})",
        ),
        Claim(
            "Hinge starves less than cross-entropy where the shortcut is frequent but not perfect",
            at_least("flipped_accuracy", "hinge-90", "cross-entropy-90", margin=0.1, bounds=(0, 1)),
            note=OURS,
        ),
    ),
    figures=figures.DIGITS,
)

paper = Paper(
    slug="deep-learning-dynamics",
    title="On the Learning Dynamics of Deep Neural Networks",
    authors="Tachet des Combes, Pezeshki, Shabanian, Courville, Bengio",
    year=2018,
    arxiv="1809.06848",
    topic="dynamics",
    summary="Classes are learned as independent modes with closed-form curves; frequent features starve rare ones.",
    experiments=[ONE_MODE, INDEPENDENT, FAILURE, SPEED, LOSS, DEPTH, TWO_FEATURES, DIGITS, LIGHT_AND_DARK],
    parts=tuple(
        f"mechanisms.dynamics.{name}"
        for name in ("deep", "modes", "conditions", "initialisation", "gradient_flow", "two_features")
    ),
)
