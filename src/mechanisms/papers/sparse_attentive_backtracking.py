"""The recipe of sparse attentive backtracking: copying with a short truncation, longer delays, where gradients go.

Copying is decided with seeds 100 to 109: on the small task everything else was settled with lower ones.
"""

from __future__ import annotations

from mechanisms.lab import Claim, Experiment, Figure, Paper, all_of, at_least, better_than, exactly
from mechanisms.lab.figures import bars, curves
from mechanisms.papers._backtracking import corpora, gradients, images, pictures, recall
from mechanisms.papers._backtracking.corpora import Characters
from mechanisms.papers._backtracking.gradients import Reach
from mechanisms.papers._backtracking.images import Images
from mechanisms.papers._backtracking.recall import Memory

SOURCE = "Ke et al. 2018"
PUBLISHED = f"copying, T = 100: truncated LSTM 31.0 %, SAB with k_top 5 100.0 % ({SOURCE}, from memory)"

COPYING = Experiment(
    name="copying",
    description="Repeat 5 of 4 symbols after 20 steps, trained with a truncation at 5; then delays up to 160 without "
    "retraining. At paper scale 10 of 8 symbols after 100 steps, in the released code's settings.",
    run=recall.run_memory,
    variants=("lstm", "tbptt", "full-attention", "sab-additive", "sab-released", "sab-released-trunc-1"),
    scales={
        "smoke": Memory(delay=8, n=2, symbols=2, hidden_size=8, batch_size=4, updates=2, every=1, test_size=16),
        "laptop": Memory(),
        "paper": Memory(
            delay=100,
            n=10,
            symbols=8,
            encoding="scalar",
            hidden_size=128,
            batch_size=64,
            updates=200_000,
            lr=1e-3,
            every=2000,
            test_delays=(200, 300, 400, 800, 2000, 5000),
            test_size=512,
        ),
    },
    first_seed=100,
    claims=(
        Claim(
            "It learns what equal truncation cannot, with either score",
            all_of(
                at_least("accuracy", "sab-additive", "tbptt", 0.3, bounds=(0, 1)),
                at_least("accuracy", "sab-released", "tbptt", 0.3, bounds=(0, 1)),
            ),
            published=PUBLISHED,
            scales=("laptop", "paper"),
        ),
        Claim(
            "With the released score it transfers to eight times the delay, and an LSTM with its whole gradient not",
            at_least("accuracy_at_160", "sab-released", "lstm", 0.3, bounds=(0, 1)),
            published=f"trained at T = 100: 75 % at T = 400 where the LSTM has 21 % ({SOURCE}, from memory)",
            scales=("laptop",),
            note="Decided for the released score; the table shows the additive one beside it.",
        ),
        Claim(
            "It learns copying in fewer updates than the whole gradient does",
            all_of(
                better_than("updates_to_50", "sab-additive", "lstm", higher=False),
                better_than("updates_to_50", "sab-released", "lstm", higher=False),
            ),
            scales=("laptop",),
            note="Ours: the first test with half of the symbols right; one update more than there are if none is.",
        ),
        *(
            Claim(
                f"Five entries are enough, with the {score} score: as good as dense attention, and better in transfer",
                all_of(
                    at_least("accuracy", f"sab-{score}", "full-attention", -0.02, bounds=(0, 1)),
                    better_than("accuracy_at_160", f"sab-{score}", "full-attention", bounds=(0, 1)),
                ),
                published=f"T = 100: both 100 %; at T = 400 75 % against 20 % ({SOURCE}, from memory)",
                scales=("laptop",),
            )
            for score in ("additive", "released")
        ),
        Claim(
            "Backpropagating a single step is enough, with the released score",
            at_least("accuracy", "sab-released-trunc-1", 0.9, bounds=(0, 1)),
            published=f"k_top of 5 or 10 and k_trunc from 1: 100 % ({SOURCE}, from memory)",
            scales=("laptop",),
            note="Decided for the released score.",
        ),
    ),
    figures=(
        Figure(
            "Accuracy over the delay",
            pictures.draw_transfer,
            "Trained at the shortest delay, tested at the others as they are; 95 % Student intervals over seeds.",
        ),
        curves("accuracy", "Accuracy while training", x="update"),
        curves("training_loss", "Training loss", x="update", log_y=True),
        Figure(
            "What a trained network looks at",
            pictures.draw_attention,
            "One test sequence of the first seed: weights of each step over the states that are stored. The symbols "
            "are read in the first steps, and asked for in the last.",
        ),
    ),
)

TRUNCATION = Experiment(
    name="truncation",
    description="Copying after 100 steps: a cut at every step with reminders, beside a cut at every twentieth without.",
    run=recall.run_memory,
    variants=("tbptt-20", "sab-additive-trunc-1", "sab-released-trunc-1"),
    scales={name: COPYING.scales[name] for name in ("smoke", "paper")},
    claims=tuple(
        Claim(
            f"Cut at every step it is ahead of an LSTM cut at every twentieth, with the {score} score",
            at_least("accuracy", f"sab-{score}-trunc-1", "tbptt-20", 0.3, bounds=(0, 1)),
            published=f"100.0 % with k_top 5 or 10, against 30.5 % ({SOURCE}, from memory)",
            scales=("paper",),
        )
        for score in ("additive", "released")
    ),
    figures=(bars("accuracy"), curves("accuracy", "Accuracy while training", x="update")),
)

ADDING = Experiment(
    name="adding",
    description="Add two marked numbers of a sequence: mean squared error, 1/6 for a constant.",
    run=recall.run_memory,
    variants=("lstm", "tbptt", "sab-additive", "sab-released"),
    scales={
        "smoke": Memory(task="adding", delay=12, hidden_size=8, batch_size=4, updates=2, every=1, test_size=16),
        "paper": Memory(
            task="adding",
            delay=200,
            hidden_size=128,
            batch_size=50,
            updates=40_000,
            lr=1e-3,
            every=400,
            k_trunc=20,
            k_top=10,
            k_att=5,
            test_delays=(400,),
            test_size=1000,
        ),
    },
    claims=(
        Claim(
            "It adds where equal truncation cannot",
            better_than("loss", "sab-additive", "tbptt", higher=False),
            published=f"SAB reaches the full gradient's error, truncation stays behind ({SOURCE}, from memory)",
            scales=("paper",),
        ),
    ),
    figures=(bars("loss", "Mean squared error"), curves("test_loss", "Mean squared error while training", x="update")),
)

GRADIENTS = Experiment(
    name="gradients",
    description="Untrained networks on sequences of copying: the share of inputs that get exactly no gradient of the "
    "last step's loss.",
    run=gradients.run_reach,
    variants=("lstm", "tbptt", "full-attention", "sab-additive", "sab-released"),
    scales={"smoke": Reach(lengths=(20, 30), batch_size=2, hidden_size=8), "laptop": Reach()},
    claims=(
        Claim(
            "The whole gradient reaches every input",
            all_of(*(exactly(f"zero_share_{length}", "lstm", 0, 0) for length in (50, 100, 200))),
            published=f"the memories that are not attended are never replayed ({SOURCE})",
            scales=("laptop",),
            note="In double precision, in which nothing is so small that it vanishes.",
        ),
        Claim(
            "The share of inputs without a gradient grows with the length",
            better_than("growth", "sab-additive", 0.0),
            published=f"the memories that are not attended are never replayed ({SOURCE})",
            scales=("laptop",),
        ),
        Claim(
            "At 200 steps half of the inputs or more get exactly no gradient",
            at_least("zero_share_200", "sab-additive", 0.5, bounds=(0, 1)),
            note="Ours: k_trunc and k_top 5, additive score, before training; the released score is shown beside it.",
            scales=("laptop",),
        ),
    ),
    figures=(
        Figure(
            "Which inputs get a gradient",
            pictures.draw_reach,
            "Blue: the input of that step gets a gradient of the loss at this step. One sequence, first seed.",
        ),
        bars("zero_share_200", "Share of inputs without a gradient, 200 steps"),
    ),
)

TEXT = (
    Claim(
        "It models text better than equal truncation",
        better_than("test_bpc", "sab-additive", "tbptt", higher=False),
        published=f"SAB is ahead of equal truncation and close to the whole gradient ({SOURCE})",
        scales=("paper",),
    ),
)
TEXT_FIGURES = (
    bars("test_bpc", "Bits per character"),
    curves("validation_bpc", "Bits per character on the validation text", x="update"),
)
SMOKE_TEXT = Characters(
    corpus="manual", most=400, window=12, batch_size=4, updates=2, every=1, hidden_size=8, evaluated=8
)

PTB = Experiment(
    name="penn-treebank",
    description="Characters of the Penn Treebank, in sequences of 100.",
    run=corpora.run_characters,
    variants=("lstm", "tbptt", "sab-additive", "sab-released"),
    scales={
        "smoke": SMOKE_TEXT,
        "paper": Characters(window=101, batch_size=64, lr=1e-3, updates=60_000, every=1000),
    },
    seeds=3,
    claims=TEXT,
    figures=TEXT_FIGURES,
)

TEXT8 = Experiment(
    name="text8",
    description="Characters of Wikipedia, in sequences of 180.",
    run=corpora.run_characters,
    variants=("lstm", "tbptt", "sab-additive", "sab-released"),
    scales={
        "smoke": SMOKE_TEXT,
        "paper": Characters(corpus="text8", window=181, batch_size=64, lr=1e-3, updates=120_000, every=4000),
    },
    seeds=3,
    claims=TEXT,
    figures=TEXT_FIGURES,
)

SMOKE_IMAGES = Images(num_train=8, batch_size=8, epochs=1, hidden_size=8)

MNIST = Experiment(
    name="permuted-mnist",
    description="Handwritten digits, 784 pixels in one fixed random order.",
    run=images.run_images,
    variants=("lstm", "tbptt", "sab-additive", "sab-released"),
    scales={"smoke": SMOKE_IMAGES, "paper": Images(data="mnist", optimizer="adam", epochs=50, batch_size=64)},
    seeds=3,
    claims=(
        Claim(
            "It classifies better than an LSTM with the whole gradient",
            better_than("accuracy", "sab-additive", "lstm"),
            published=f"94.2 % against 90.3 % ({SOURCE}, from memory)",
            scales=("paper",),
        ),
    ),
    figures=(bars("accuracy"), curves("validation_accuracy", x="update")),
)

CIFAR = Experiment(
    name="pixel-cifar10",
    description="CIFAR-10 pixel by pixel, 1,024 steps of three channels.",
    run=images.run_images,
    variants=("lstm", "tbptt", "sab-additive", "sab-released"),
    scales={
        "smoke": SMOKE_IMAGES,
        "paper": Images(data="cifar10", permutation="none", optimizer="adam", epochs=50, batch_size=64),
    },
    seeds=3,
    claims=(
        Claim(
            "It classifies better than an LSTM with the whole gradient",
            better_than("accuracy", "sab-additive", "lstm"),
            published=f"64.5 % against 58.3 % ({SOURCE}, from memory)",
            scales=("paper",),
        ),
    ),
    figures=(bars("accuracy"), curves("validation_accuracy", x="update")),
)

paper = Paper(
    slug="sparse-attentive-backtracking",
    title="Sparse Attentive Backtracking: Temporal Credit Assignment Through Reminding",
    authors="Ke, Goyal, Bilaniuk, Binas, Mozer, Pal, Bengio",
    year=2018,
    venue="NeurIPS 2018",
    arxiv="1809.03702",
    topic="recurrent",
    summary="A recurrent network is reminded of a few of its past states, and sends its gradient back through these "
    "alone.",
    experiments=(COPYING, TRUNCATION, ADDING, GRADIENTS, PTB, TEXT8, MNIST, CIFAR),
    parts=(
        "mechanisms.recurrent.backtracking",
        "mechanisms.recurrent.backtracking_layers",
        "mechanisms.recurrent.sparsifier",
        "mechanisms.recurrent.tasks",
    ),
)
