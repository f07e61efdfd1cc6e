"""The recipe of gradient starvation: does an easy feature starve the others, and does spectral decoupling feed them?

The toy is exact: fixed points of a convex dual. Two moons show the same in a small network, coloured images with a
colour that misleads; two more questions, minorities and adversarial examples, are where the remedy is expected to fail.

Seeds 0 to 9 are the ones settings were tried on; claims are decided on seeds from 10 on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mechanisms.lab import (
    Claim,
    Experiment,
    Paper,
    all_of,
    at_least,
    at_most,
    better_than,
    close_to,
    exactly,
    predicate,
)
from mechanisms.lab.checks import ShareCheck
from mechanisms.lab.figures import bars, curves
from mechanisms.papers._starvation import attack, coloured, minority, moons, toy
from mechanisms.papers._starvation.celeba import EXPERIMENT as CELEBA
from mechanisms.papers._starvation.cifar import EXPERIMENT as CIFAR
from mechanisms.papers._starvation.pictures import RESPONSES_FIGURE, boundaries

SOURCE = "Pezeshki et al. 2021"
TEST = "test_03"
SMALL: dict[str, Any] = {"hidden": 50, "steps": 100, "test": 200, "every": 20}


def less_than_half(variant: str) -> ShareCheck:
    """A regulariser gains less than half of what spectral decoupling gains over plain cross-entropy, seed by seed."""

    def compare(seed: Mapping[str, Mapping[str, Any]]) -> bool:
        plain = seed["ce"][TEST]
        return bool(seed[variant][TEST] - plain < 0.5 * (seed["sd"][TEST] - plain))

    return predicate(compare, ("ce", "sd", variant), f"{TEST}: {variant} - ce < (sd - ce) / 2")


def moons_claims(scale: str) -> tuple[Claim, ...]:
    """What is claimed of the two moons; the larger networks only where they are trained."""
    where = {"scales": (scale,)}
    larger = ("deep", "wide") if scale == "paper" else ()
    return (
        Claim(
            "A set that is easily separated gives a worse boundary than one that is not",
            at_least(TEST, "ce-overlap", "ce", margin=0.03, bounds=(0, 1)),
            published=f"straight where the classes are apart, bent where they touch ({SOURCE}, figure 1)",
            **where,
        ),
        Claim(
            "Spectral decoupling repairs it, with a wider margin",
            all_of(
                at_least(TEST, "sd", "ce", margin=0.05, bounds=(0, 1)),
                at_least("log_distance", "sd", "ce", margin=math.log(1.5)),
            ),
            published=f"only spectral decoupling bends the boundary ({SOURCE}, figure 3)",
            note="The second part is a ratio of geometric means: the smallest distance to the boundary is at least 1.5 "
            "times that of cross-entropy.",
            **where,
        ),
        *(
            Claim(
                f"Another change does not: {variant}",
                less_than_half(variant),
                published=f"no other change bends the boundary ({SOURCE}, figure 3)",
                **where,
            )
            for variant in ("weight-decay", "dropout", "batch-norm", "longer", *larger)
        ),
    )


TOY = Experiment(
    name="toy",
    description="Two examples, two coupled features: where training comes to rest as the first feature grows stronger.",
    run=toy.run_toy,
    variants=("ce", "sd", "dual"),
    scales={"smoke": toy.Toy(steps=200, time=10.0), "laptop": toy.Toy()},
    claims=(
        Claim(
            "The stronger the first feature, the weaker the response to the second",
            all_of(
                exactly("falls", "ce", 1, 0),
                exactly("table_error", "ce", 0, 1e-6),
                exactly("slope_error", "ce", 0, 1e-6),
                exactly("way_error", "dual", 0, 1e-6),
            ),
            published=f"definition 2, theorem 1, figure 6 ({SOURCE}); fixed points by Newton's method, five decimals",
        ),
        Claim(
            "Under spectral decoupling it does not depend on the first",
            all_of(exactly("spread", "sd", 0, 1e-6), exactly("table_error", "sd", 0, 1e-6)),
            published=f"figure 6 ({SOURCE}): 6.37267 and 1.70755 for every strength",
        ),
    ),
    figures=toy.FIGURES,
    seeds=1,
)

MOONS = Experiment(
    name="moons",
    description="Two moons that are nearly separated by a straight line; tested where only a bent one is right.",
    run=moons.run_moons,
    variants=tuple(moons.VARIANTS),
    scales={"smoke": moons.Moons(**SMALL), "laptop": moons.Moons()},
    claims=moons_claims("laptop"),
    figures=(
        boundaries(("ce-overlap", "ce"), "Cross-entropy on touching and on separated moons (figure 1)"),
        boundaries(tuple(moons.VARIANTS)[1:], "What bends the boundary (figure 3)"),
        bars(TEST, "Accuracy on moons that interlock by 0.3", variants=tuple(moons.VARIANTS)),
        bars("test_05", "Accuracy on moons that interlock by 0.5", variants=tuple(moons.VARIANTS)),
        bars("distance", "Smallest distance of a training point to the boundary", variants=tuple(moons.VARIANTS)),
    ),
)

MOONS_LARGE = Experiment(
    name="moons-large",
    description="The same with the paper's 10,000 steps, and with networks five layers deep and ten times as wide.",
    run=moons.run_moons,
    variants=tuple(moons.LARGE),
    scales={
        "smoke": moons.Moons(**SMALL | {"hidden": 10, "steps": 20}),
        "paper": moons.Moons(steps=10_000, every=1000),
    },
    claims=moons_claims("paper"),
    figures=(
        boundaries(tuple(moons.LARGE)[1:], "What bends the boundary (figure 3)"),
        bars(TEST, "Accuracy on moons that interlock by 0.3", variants=tuple(moons.LARGE)),
    ),
)

MOONS_MARGINS = Experiment(
    name="moons-margins",
    description="Separated moons, trained longer: spectral decoupling gives every example of a finite network the "
    "margin that the linear regime predicts.",
    run=moons.run_long,
    variants=tuple(moons.LONG),
    scales={
        "smoke": moons.Moons(**SMALL),
        "laptop": moons.Moons(steps=4000, every=200),
        "paper": moons.Moons(steps=10_000, every=500),
    },
    claims=(
        *(
            Claim(
                f"Margins concentrate at the predicted value, {margin}, for c = {c}",
                all_of(at_most("variation", variant, 0.15), at_most("margin_error", variant, 0.1)),
                published=f"the dual of spectral decoupling treats every example alike ({SOURCE})",
                note="Coefficient of variation, and relative distance of the mean to w, w (1 + exp(w)) = 1 / (2 c).",
            )
            for variant, c, margin in (("sd", 0.003, 3.767), ("sd-strong", 0.01, 2.818), ("sd-strongest", 0.1, 1.178))
        ),
        Claim(
            "... and without it they do not",
            at_least("variation", "ce", 0.15),
            published=f"cross-entropy keeps them apart ({SOURCE})",
        ),
    ),
    figures=(
        curves("variation", "Coefficient of variation of the training margins", log_y=True),
        curves("mean_margin", "Mean training margin"),
    ),
)

MOONS_RESPONSES = Experiment(
    name="moons-responses",
    description="Figure 2: responses to features of the tangent kernel at initialisation, over 10,000 steps with "
    "weight decay 2e-4.",
    run=moons.run_responses,
    variants=tuple(moons.RESPONSES),
    scales={
        "smoke": moons.Moons(**SMALL, weight_decay=2e-4),
        "laptop": moons.Moons(steps=10_000, weight_decay=2e-4),
    },
    figures=(RESPONSES_FIGURE,),
    seeds=2,
)

ACCURACY = "Test accuracy, where the colour misleads"
PAPER_IMAGES = coloured.Coloured(
    data="colour-mnist",
    num_train=50_000,
    num_validation=10_000,
    hidden=300,
    lr=1e-4,
    steps=1001,
    sd_steps=2001,
    anneal=450,
    irm_hidden=390,
    irm_lr=4.898e-4,
    irm_steps=501,
    irm_anneal=190,
    measured_at=2000,
    every=50,
)
TINY: dict[str, Any] = {"num_train": 500, "hidden": 16, "steps": 21, "sd_steps": 21, "anneal": 10, "every": 10}
TINY |= {"irm_hidden": 16, "irm_steps": 21, "irm_anneal": 10}

COLOURED_IMAGES = Experiment(
    name="coloured-images",
    description="The ColorMNIST recipe: the colour agrees with the label in 80 to 90 % of the training and in 10 % of "
    "the test images. Fashion-MNIST, 5,500 images, measured at step 400 (laptop); MNIST from path=FOLDER (paper).",
    run=coloured.run_coloured,
    variants=("erm", "sd", "sd-unscaled"),
    scales={"smoke": coloured.Coloured(**TINY), "laptop": coloured.Coloured(), "paper": PAPER_IMAGES},
    claims=(
        Claim(
            "With the paper's schedule it relies less on the colour than ERM",
            at_least("test_accuracy", "sd", "erm", margin=0.15, bounds=(0, 1)),
            published="0.684 ± 0.012 against 0.237 ± 0.008 on ColorMNIST (the authors' repository)",
            note="The step, 400 here, was fixed beforehand; accuracy declines with more training, see coloured-longer.",
        ),
        Claim(
            "... and so it does when the loss is not multiplied by c as a whole",
            at_least("test_accuracy", "sd-unscaled", "erm", margin=0.15, bounds=(0, 1)),
            published=f"the paper's objective has no such factor ({SOURCE}); the authors' code has it",
            note="Expected to fail: under Adam the factor all but freezes the weights, which decides the result.",
        ),
    ),
    figures=(
        curves("test_accuracy", ACCURACY),
        curves("train_accuracy", "Training accuracy"),
        bars("test_accuracy", "Test accuracy at the step fixed beforehand"),
    ),
)

COLOURED_LONGER = Experiment(
    name="coloured-longer",
    description="The same Fashion-MNIST, three times as long: the whole curve. It decides nothing.",
    run=coloured.run_coloured,
    variants=("erm", "sd"),
    scales={
        "smoke": coloured.Coloured(**TINY),
        "laptop": coloured.Coloured(steps=1201, sd_steps=1201, every=40),
    },
    figures=(curves("test_accuracy", ACCURACY),),
    seeds=1,
)

COLOURED_REFERENCES = Experiment(
    name="coloured-references",
    description="What IRM, which is told the environments, and a network that sees no colour reach on the same images.",
    run=coloured.run_coloured,
    variants=("irm", "grey"),
    scales={"smoke": coloured.Coloured(**TINY), "laptop": coloured.Coloured(), "paper": PAPER_IMAGES},
    claims=(
        Claim(
            "IRM on ColorMNIST reaches what was published",
            close_to("test_accuracy", "irm", 0.671, within=0.03, bounds=(0, 1)),
            published="0.671 ± 0.015 (the authors' repository)",
            note="A check of the road, not of the paper; the distance is ours.",
            scales=("paper",),
        ),
    ),
    figures=(curves("test_accuracy", ACCURACY), bars("test_accuracy", "Test accuracy at the step fixed beforehand")),
    seeds=3,
)

MINORITY = Experiment(
    name="minority",
    description="A linear model, a shortcut three times as strong as the core feature, 5 % counter-examples, 1,000 "
    "dimensions of noise: does plain spectral decoupling protect the minority?",
    run=minority.run_minority,
    variants=tuple(minority.COEFFICIENTS),
    scales={"smoke": minority.Minority(n=100, n_test=200, steps=20, every=10), "laptop": minority.Minority()},
    claims=(
        Claim(
            "Plain spectral decoupling protects a minority group",
            all_of(
                better_than("worst_group_accuracy", "sd", "ce", bounds=(0, 1)),
                better_than("worst_group_accuracy", "sd-strong", "ce", bounds=(0, 1)),
            ),
            published=f"worst group 0.832 against 0.404 on CelebA ({SOURCE}, table 2), with a target by class",
            note="Expected to fail: without a target by class it is a squared loss, hardly moved by few examples.",
        ),
    ),
    figures=(
        bars("worst_group_accuracy", "Accuracy where the shortcut is wrong"),
        bars("majority_accuracy", "Accuracy where the shortcut is right"),
        curves("worst_group_accuracy", "Accuracy where the shortcut is wrong, over training"),
    ),
)

ATTACK = Experiment(
    name="attack",
    description="scikit-learn's digits 4 against 9, a perceptron, projected gradient ascent in a box of radius 0.1.",
    run=attack.run_attack,
    variants=attack.VARIANTS,
    scales={"smoke": attack.Attack(hidden=16, steps=20, attack_steps=3), "laptop": attack.Attack()},
    claims=(
        Claim(
            "Spectral decoupling makes the network harder to fool",
            all_of(
                better_than("robust_accuracy", "sd", "ce", bounds=(0, 1)),
                better_than("robust_accuracy", "sd-strong", "ce", bounds=(0, 1)),
            ),
            published=f"larger margins and adversarial accuracy on CIFAR ({SOURCE})",
            note="May fail in small; the paper's setting is CIFAR.",
        ),
    ),
    figures=(
        bars("robust_accuracy", "Accuracy under attack"),
        bars("margin_variation", "Coefficient of variation of the training margins"),
    ),
)

paper = Paper(
    slug="gradient-starvation",
    title="Gradient Starvation: A Learning Proclivity in Neural Networks",
    authors="Pezeshki, Kaba, Bengio, Courville, Precup, Lajoie",
    year=2021,
    venue="NeurIPS 2021",
    arxiv="2011.09468",
    topic="dynamics",
    summary="An easy feature starves the others of gradient; a penalty on the logits feeds them.",
    experiments=[
        TOY,
        MOONS,
        MOONS_MARGINS,
        MOONS_RESPONSES,
        COLOURED_IMAGES,
        COLOURED_LONGER,
        COLOURED_REFERENCES,
        MINORITY,
        ATTACK,
        MOONS_LARGE,
        CELEBA,
        CIFAR,
    ],
    parts=tuple(f"mechanisms.dynamics.{name}" for name in ("starvation", "decoupling", "features", "dual")),
)
