"""The recipe of Zoneout: does holding units at random regularise recurrent networks, and is it the noise that does it?

Characters of the Python manual decide at laptop scale, the Penn Treebank at paper scale: Zoneout against nothing, with
its rates swapped, with masks that never change, and with one mask for a whole layer. How far gradients reach is exact.
"""

from __future__ import annotations

from typing import Any

from mechanisms.lab import Claim, Experiment, Figure, Paper, all_of, at_most, better_than, exactly
from mechanisms.lab.figures import bars, curves
from mechanisms.papers._zoneout import flow, images, pictures, texts
from mechanisms.papers._zoneout.flow import Flow, Reach
from mechanisms.papers._zoneout.images import Images
from mechanisms.papers._zoneout.texts import Text

SOURCE = "Krueger et al. 2017"
BPC = "best_validation_bpc"
NEAR = "Best on validation during training; evaluation takes the masks' expectation."

TINY: dict[str, Any] = {
    "window": 10,
    "batch_size": 4,
    "updates": 4,
    "least": 4,
    "most_updates": 4,
    "every": 2,
    "train": 300,
    "validation": 200,
    "test": 200,
    "hidden_size": 8,
}

REACH = Experiment(
    name="gradient-reach",
    description="An untrained LSTM, forget gates' bias 0, loss on the last output: how large is the gradient on the "
    "first memory beside that on the last one, 100 steps later? Ten networks in double precision.",
    run=flow.run_reach,
    variants=("plain", "recurrent-dropout", "zoneout"),
    scales={"smoke": Reach(networks=2), "laptop": Reach()},
    seeds=1,
    claims=(
        Claim(
            "Gradients reach further back through a memory that is held at random",
            exactly("gain_over_10", "zoneout", 1, 0),
            published=f"gradients flow to earlier steps more easily (figure on pMNIST, {SOURCE})",
            scales=("smoke", "laptop"),
            note="|dL/dc_1| / |dL/dc_T| at least 10 times that of the plain LSTM, for each of the networks: a step's "
            "direct path has the factor d + (1 - d) f, which is never below f.",
        ),
    ),
    figures=(
        pictures.in_powers(
            curves(
                "gradient",
                "Gradient on the memory over time",
                x="step",
                log_y=True,
                caption="Relative to that on the last step's; geometric mean over the networks.",
            )
        ),
        Figure(
            "Time scale of a unit, by rate",
            pictures.draw_time_scales,
            "Half-life of a value on its direct path, where each step keeps z + (1 - z) f of it in expectation.",
        ),
    ),
)

CHARACTER_VARIANTS = ("plain", "zoneout", "swapped", "static", "per-layer")
CHARACTERS = Experiment(
    name="characters",
    description="One LSTM layer predicts characters: 12,000 characters of the Python manual, which it overfits, at "
    "laptop scale; the Penn Treebank at paper scale.",
    run=texts.run_text,
    variants=CHARACTER_VARIANTS,
    scales={
        "smoke": Text(**TINY),
        "laptop": Text(),
        "paper": Text(
            data="penn-treebank",
            train=0,
            validation=0,
            test=0,
            window=100,
            batch_size=32,
            hidden_size=1000,
            initialisation="paper",
            lr=2e-3,
            updates=190_000,
            least=16_000,
            every=1580,
            patience=20,
            most_updates=3_160_000,
        ),
    },
    claims=(
        Claim(
            "Zoneout regularises better than nothing",
            at_most(BPC, "zoneout", "plain", margin=-0.02),
            published=f"Penn Treebank, bits per character: 1.252 with Zoneout, 1.356 without, on test ({SOURCE})",
        ),
        Claim(
            "The memory tolerates more Zoneout than the hidden state",
            better_than(BPC, "zoneout", "swapped", higher=False),
            published=f"the best rates are 0.5 for the memory and 0.05 for the hidden state ({SOURCE})",
            note="Against rates 0.05 for the memory and 0.5 for the hidden state, trained until validation has turned.",
        ),
        Claim(
            "The noise matters, not the skip connections alone",
            better_than(BPC, "zoneout", "static", higher=False),
            published=f"static identity connections do not help on the Penn Treebank ({SOURCE})",
            note="Against masks of the same rates that are drawn once, for each step of a window.",
        ),
        Claim(
            "Masks per unit are better than masks per layer",
            better_than(BPC, "zoneout", "per-layer", higher=False),
            published=f"1.252 against 1.343 for stochastic depth, bits per character on test ({SOURCE})",
        ),
        Claim(
            "Zoneout overfits less",
            at_most("gap", "zoneout", {"plain": 0.7}),
            published=f"training curves of the Penn Treebank ({SOURCE})",
            note="The gap between validation and training at the end is at least 30 % smaller. Both in evaluation "
            "mode.",
        ),
    ),
    figures=(
        Figure(
            "Learning curves",
            pictures.learning_curves(CHARACTER_VARIANTS, "bpc"),
            "Means over seeds, as far as all seeds went; whole lines validation, dotted lines training.",
        ),
        bars(BPC, "Best validation, by variant", variants=CHARACTER_VARIANTS, caption=NEAR),
        bars("gap", "Gap between validation and training", variants=("plain", "zoneout")),
        bars("test_bpc", "Test, at the best validation", variants=CHARACTER_VARIANTS, caption="Bits per character."),
    ),
)

ABLATION_VARIANTS = (
    "plain",
    "zoneout",
    "swapped",
    "both-half",
    "both-small",
    "cell-half",
    "cell-small",
    "hidden-half",
    "hidden-small",
    "recurrent-dropout",
    "norm-stabiliser",
    "weight-noise",
)
ABLATIONS = Experiment(
    name="rates",
    description="The paper's other rates and its baselines, on the Penn Treebank by character.",
    run=texts.run_text,
    variants=ABLATION_VARIANTS,
    scales={"smoke": Text(**TINY), "paper": CHARACTERS.scales["paper"]},
    figures=(
        bars(BPC, "Best validation, by rates and baselines", variants=ABLATION_VARIANTS, caption=NEAR),
        Figure(
            "Learning curves of the baselines",
            pictures.learning_curves(("plain", "zoneout", *ABLATION_VARIANTS[-3:]), "bpc"),
            "Means over seeds, as far as all seeds went; whole lines validation, dotted lines training.",
        ),
    ),
)

TEXT8_VARIANTS = ("plain", "zoneout", "per-layer", "recurrent-dropout", "norm-stabiliser", "weight-noise")
TEXT8 = Experiment(
    name="text8",
    description="Characters of text8, a cleaned Wikipedia, with rates 0.2 and 0.2, beside the baselines.",
    run=texts.run_text,
    variants=TEXT8_VARIANTS,
    scales={
        "smoke": Text(**TINY, zoneout_cell=0.2, zoneout_hidden=0.2),
        "paper": Text(
            data="text8",
            train=0,
            validation=0,
            test=0,
            window=180,
            batch_size=128,
            hidden_size=2000,
            initialisation="paper",
            lr=1e-3,
            zoneout_cell=0.2,
            zoneout_hidden=0.2,
            updates=156_240,
            least=39_060,
            every=3906,
            patience=5,
            most_updates=390_600,
            evaluated=128,
        ),
    },
    claims=(
        Claim(
            "Zoneout regularises better than nothing on text8",
            better_than("test_bpc", "zoneout", "plain", higher=False),
            published=f"1.336 against 1.408 bits per character on test ({SOURCE}, recalled)",
            scales=("paper",),
        ),
    ),
    figures=(
        bars("test_bpc", "Test, at the best validation", caption="Bits per character."),
        Figure("Learning curves", pictures.learning_curves(TEXT8_VARIANTS, "bpc"), "Means over seeds."),
    ),
)

WORDS = Experiment(
    name="words",
    description="Words of the Penn Treebank: one layer of 256 units, the state carried over from window to window.",
    run=texts.run_text,
    variants=("plain", "recurrent-dropout", "zoneout"),
    scales={
        "smoke": Text(**TINY, carry=True, embedding=6, measure="perplexity"),
        "paper": Text(
            data="penn-treebank-words",
            train=0,
            validation=0,
            test=0,
            window=35,
            batch_size=20,
            carry=True,
            hidden_size=256,
            lr=2e-3,
            clip=10.0,
            updates=66_350,
            least=13_270,
            every=1327,
            patience=5,
            most_updates=132_700,
            measure="perplexity",
        ),
    },
    claims=(
        Claim(
            "Zoneout is better than nothing, and than recurrent dropout, on words",
            all_of(
                better_than("test_perplexity", "zoneout", "plain", higher=False),
                better_than("test_perplexity", "zoneout", "recurrent-dropout", higher=False),
            ),
            published=f"perplexity on test: 77.4 against 114.5 and 87.0 ({SOURCE}, recalled; a larger network)",
            scales=("paper",),
        ),
    ),
    figures=(
        bars("test_perplexity", "Test perplexity, at the best validation"),
        Figure(
            "Learning curves",
            pictures.learning_curves(("plain", "recurrent-dropout", "zoneout"), "perplexity"),
            "Means over seeds.",
        ),
    ),
)

MNIST: dict[str, Any] = {"data": "mnist", "batch_size": 100, "epochs": 100}
DIGITS: dict[str, Any] = {"hidden_size": 40, "batch_size": 25, "lr": 3e-3}
# With these a normalised network without Zoneout hardly improves in the last epochs (tried on seeds 0 and 1).
LEARNT: dict[str, Any] = {"hidden_size": 40, "batch_size": 50, "optimizer": "adam", "lr": 1e-2, "epochs": 24}

PIXELS = Experiment(
    name="permuted-pixels",
    description="MNIST read pixel by pixel in a fixed random order; an LSTM of 100 units.",
    run=images.run_images,
    variants=("plain", "recurrent-dropout", "zoneout"),
    scales={"smoke": Images(**DIGITS, epochs=1, num_train=50), "paper": Images(**MNIST)},
    claims=(
        Claim(
            "Zoneout helps on permuted MNIST",
            better_than("accuracy", "zoneout", "plain", bounds=(0, 1)),
            published="93.1 % against 89.8 % on test, recurrent dropout 92.5 % (quoted in Gulcehre et al., 2018)",
            scales=("paper",),
        ),
    ),
    figures=(bars("accuracy", "Test accuracy, at the best validation"), curves("validation_accuracy", x="update")),
)

NORMALISED = Experiment(
    name="batch-norm",
    description="Pixels in a fixed random order again, with recurrent batch normalisation: the digits of scikit-learn "
    "(64 steps) at laptop scale, MNIST at paper scale.",
    run=images.run_normalised,
    run_seeds=images.run_normalised_together,
    variants=("batch-norm", "batch-norm-zoneout"),
    scales={
        "smoke": Images(**DIGITS | {"hidden_size": 8}, epochs=1, num_train=50),
        "laptop": Images(**LEARNT, evaluate_every=3),
        "paper": Images(**MNIST),
    },
    claims=(
        Claim(
            "With recurrent batch normalisation Zoneout still helps",
            better_than("validation_accuracy", "batch-norm-zoneout", "batch-norm", bounds=(0, 1)),
            published="95.9 % with Zoneout on the test images of permuted MNIST, 95.4 % without "
            f"({SOURCE}; the second recalled)",
            note="The best validation accuracy.",
        ),
    ),
    figures=(
        bars("validation_accuracy", "Best validation accuracy"),
        curves("validation_accuracy", "Validation accuracy over training", x="epoch"),
    ),
)

FLOW = Experiment(
    name="gradient-after-an-epoch",
    description="The paper's picture: the gradient on the memory at each step after one epoch on pixels in a fixed "
    "random order.",
    run=flow.run_flow,
    variants=("plain", "recurrent-dropout", "zoneout"),
    scales={
        "smoke": Flow(**DIGITS, num_train=50, shown=10),
        "laptop": Flow(**DIGITS),
        "paper": Flow(data="mnist", batch_size=100),
    },
    seeds=1,
    figures=(
        curves(
            "gradient",
            "Gradient on the memory, after one epoch",
            x="step",
            log_y=True,
            caption="Mean over training images of the norm of the loss's gradient with respect to c_t, in training "
            "mode.",
        ),
    ),
)

paper = Paper(
    slug="zoneout",
    title="Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations",
    authors="Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville, Pal",
    year=2017,
    venue="ICLR 2017",
    arxiv="1606.01305",
    topic="recurrent",
    summary="Units of a recurrent state keep their old value at random: noise regularises, gradients still pass.",
    parts=(
        "mechanisms.recurrent.zoneout",
        "mechanisms.recurrent.zoneout_layers",
        "mechanisms.recurrent.zoneout_baselines",
        "mechanisms.recurrent.batch_norm",
        "mechanisms.recurrent.kernels",
    ),
    experiments=(REACH, CHARACTERS, ABLATIONS, TEXT8, WORDS, PIXELS, NORMALISED, FLOW),
)
