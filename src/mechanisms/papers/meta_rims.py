"""The recipe of Meta-RIMs: does it matter which parameters of a modular agent are fast and which are slow?

PPO in a small grid world, then in a larger one with a new colour. Reversed roles are decided over ten seeds; whether
the two time scales help at all needs the levels of BabyAI and hours.
"""

from __future__ import annotations

from mechanisms.lab import (
    Claim,
    Experiment,
    Figure,
    Paper,
    all_of,
    at_least,
    better_than,
    exactly,
    predicate,
)
from mechanisms.lab.figures import bars
from mechanisms.papers._meta_rims import exact, levels, pictures, roles
from mechanisms.papers._meta_rims.exact import Exact
from mechanisms.papers._meta_rims.levels import Levels
from mechanisms.papers._meta_rims.roles import Roles
from mechanisms.papers._meta_rims.settings import VARIANTS

SOURCE = "Madan et al. 2021"
EVERYWHERE = ("smoke", "laptop")
TINY = roles.tiny()

ROLES = Experiment(
    name="roles",
    description="PPO in a room of 5 by 5 with two balls, then in one of 7 by 7 with four balls and a new colour: which "
    "parameters are updated often, and which in every fifth update only?",
    run=roles.run_roles,
    variants=VARIANTS,
    scales={"smoke": TINY, "laptop": Roles()},
    first_seed=100,
    claims=(
        Claim(
            "Reversing the roles of fast and slow parameters is worse",
            at_least("transfer_auc", "meta", "reversed", margin=0.04, bounds=(0, 1)),
            published=f"reversed roles do not work nearly as well ({SOURCE}; curves only)",
            scales=("laptop",),
            note="Area under the curve of success after the task has changed. With another implementation of PPO, "
            "two seeds: 0.70 and 0.66 against 0.57 and 0.58.",
        ),
    ),
    figures=(
        Figure(
            "Success in training and after the switch",
            pictures.draw_learning(VARIANTS),
            "Sampled actions, episodes that ended within five updates; inner and outer rollouts both count as frames. "
            "Bands are 95 % Student intervals of the mean over seeds. An agent that acts at random is at 0.57 in "
            "training and 0.35 after the switch; at 0.68 and 0.46 in the first five updates of each phase, where short "
            "episodes are most of those that ended.",
        ),
        Figure(
            "Success in each sixth of both phases",
            pictures.draw_sixths(VARIANTS),
            "Their mean is the area under the curve. Bars are 95 % Student intervals.",
        ),
        bars("training_auc", "Area under the curve, training", variants=VARIANTS),
        bars("transfer_auc", "Area under the curve, after the switch", variants=VARIANTS),
        bars("final_training", "Greedy success after training", variants=VARIANTS),
        bars("final_transfer", "Greedy success after transfer", variants=VARIANTS),
        Figure(
            "Modules that are active over an episode, meta",
            pictures.draw_activation("meta"),
            "The longest of 64 greedy episodes that succeeded, first seed, after transfer; arrows are the actions.",
        ),
        Figure(
            "How often each module is active, by action",
            pictures.draw_activity(roles.MODULAR),
            "Greedy episodes of the first seed, after transfer.",
        ),
    ),
)

ADAPTATION = Experiment(
    name="adaptation",
    description="The agents of `meta` when the task changes: which of the two sets does the adapting?",
    run=roles.run_adaptation,
    variants=roles.ADAPTED,
    scales={"smoke": TINY, "laptop": Roles()},
    seeds=3,
    first_seed=100,
    claims=(
        Claim(
            "Adapting the modules alone is nearly as good as adapting all, adapting the attention alone is not",
            all_of(
                at_least("transfer_auc", "fast-only", {"full": 0.9}, bounds=(0, 1)),
                better_than("transfer_auc", "slow-only", {"full": 0.9}, higher=False, bounds=(0, 1)),
            ),
            published=f"fast parameters adapt, slow ones are shared ({SOURCE}; not tested like this)",
            scales=("laptop",),
            note="90 % of the full adaptation's area under the curve; three seeds, so provisional whatever they say.",
        ),
    ),
    figures=(
        Figure(
            "Success after the switch",
            pictures.draw_learning(roles.ADAPTED),
            "Bands are 95 % Student intervals of the mean over seeds.",
        ),
        bars("transfer_auc", "Area under the curve, after the switch", variants=roles.ADAPTED),
    ),
)

EXACT = Experiment(
    name="two-loops",
    description="What must be so, whatever is learnt: who moves in which loop, and gradients through an inner step.",
    run=exact.run_exact,
    variants=exact.VARIANTS,
    scales={"smoke": Exact(), "laptop": Exact()},
    seeds=1,
    first_seed=100,
    claims=(
        Claim(
            "With inner updates alone the attention never changes",
            all_of(exactly("slow_change", "inner-alone", 0, 0), exactly("fast_moved", "inner-alone", 1, 0)),
            scales=EVERYWHERE,
            note="PPO in the grid world; largest change of any parameter of the slow set.",
        ),
        Claim(
            "With outer updates alone the modules never change",
            all_of(exactly("fast_change", "outer-alone", 0, 0), exactly("slow_moved", "outer-alone", 1, 0)),
            scales=EVERYWHERE,
            note="Encoder and heads, which belong to the fast set, do not either.",
        ),
        Claim(
            "Two time scales of equal rates are joint training, bit for bit",
            exactly("difference", "two-timescales", 0, 0),
            scales=EVERYWHERE,
            note="One clipping of the norm over both sets.",
        ),
        Claim(
            "The gradient through the inner loop is that of the closed form",
            all_of(
                exactly("maml_error", "closed-form", 0, 1e-12),
                exactly("first_order", "closed-form", 0, 0),
                exactly("two_steps_error", "closed-form", 0, 1e-12),
            ),
            scales=EVERYWHERE,
            note="Quadratic losses: α (θ' - t) with one inner step, 0 to first order, (1 - (1-α)²) (θ' - t) with two.",
        ),
        Claim(
            "Reptile with one inner step is a step of SGD",
            exactly("reptile_error", "closed-form", 0, 1e-12),
            scales=EVERYWHERE,
            note="Of the length rate times inner rate.",
        ),
    ),
)

LEVELS = Experiment(
    name="levels",
    description="Pairs of BabyAI and MiniGrid levels: PPO on the easier one, then on the harder one, with the agent of "
    "convolutions, instruction encoder and five modules.",
    run=levels.run_levels,
    variants=VARIANTS,
    scales={
        "smoke": levels.tiny(),
        "paper": Levels(),
    },
    seeds=6,  # of five that all succeed, the interval of their share would still begin below a half
    first_seed=100,
    claims=(
        Claim(
            "Meta-learning the attention adapts faster than training all jointly",
            predicate(
                levels.adapts_faster,
                ("meta", "joint"),
                "meta reaches 90 % of joint's final success in at most 0.8 of the frames, in the median over pairs",
            ),
            published=f"faster adaptation ({SOURCE}; curves only)",
            scales=("paper",),
            note="Of the frames in which joint reaches it. Not seen at laptop scale.",
        ),
    ),
    figures=(
        bars("training_auc", "Area under the curve, training, mean over pairs", variants=VARIANTS),
        bars("transfer_auc", "Area under the curve, after the switch, mean over pairs", variants=VARIANTS),
        bars("zero_shot", "Greedy success on the harder level before adaptation", variants=VARIANTS),
        bars("final_transfer", "Greedy success on the harder level after adaptation", variants=VARIANTS),
    ),
)

paper = Paper(
    slug="meta-rims",
    title="Fast and Slow Learning of Recurrent Independent Mechanisms",
    authors="Madan, Ke, Goyal, Schölkopf, Bengio",
    year=2021,
    venue="ICLR 2021",
    arxiv="2105.08710",
    topic="recurrent",
    summary="The modules of an agent are updated often, the attention that selects them rarely: two sets, two loops.",
    parts=(
        "mechanisms.recurrent.meta_rims",
        "mechanisms.recurrent.meta_gradients",
        "mechanisms.recurrent.agents",
        "mechanisms.recurrent.bidirectional_rims",
        "mechanisms.worlds.grid",
    ),
    experiments=(ROLES, ADAPTATION, EXACT, LEVELS),
)
