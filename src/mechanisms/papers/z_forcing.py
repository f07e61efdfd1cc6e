"""The recipe of Z-Forcing: what a latent per step is worth, and whether reconstructing the future keeps it in use.

Small models on generated waves and words decide the claims, all seeds of a block in one batch. The paper's own settings
(TIMIT, Blizzard, binarised MNIST, IMDB) run from the data as distributed.
"""

from __future__ import annotations

from mechanisms.lab import Claim, Experiment, Figure, Paper, at_least, better_than
from mechanisms.lab.figures import bars, curves
from mechanisms.papers._z_forcing import blocks, corpora, pictures
from mechanisms.papers._z_forcing.blocks import TOKENS, Small
from mechanisms.papers._z_forcing.corpora import Corpus

SOURCE = "Goyal et al. 2017"
BRIEF = {"updates": 4, "kl_updates": 2, "every": 2, "watched": 10, "sequences": 40, "num_samples": 3}

WAVES = Experiment(
    name="frames",
    description="Waves whose frequency jumps, ten samples a frame, Gaussian outputs: the bound on fresh sequences of "
    "20 frames, with and without latents, KL annealing, and the auxiliary cost.",
    run=blocks.run,
    run_seeds=blocks.run_together,
    variants=("rnn", "latent", "kla", "aux"),
    scales={"smoke": Small(**BRIEF), "laptop": Small()},
    claims=(
        Claim(
            "A latent in the recurrence models frames of many modes far better than a Gaussian output alone",
            better_than("elbo", "latent", "rnn"),
            published=f"Blizzard: at least 14435 nats per sequence against 3539; TIMIT: 68132 against -1900 ({SOURCE})",
            scales=("laptop",),
            note="A bound against an exact likelihood.",
        ),
        Claim(
            "The auxiliary cost improves the bound",
            better_than("elbo", "aux", "latent"),
            published=f"+995 nats on Blizzard, +1398 on TIMIT ({SOURCE})",
            scales=("laptop",),
            note="Weight 0.0005: the cost is a sum over H = 48 dimensions.",
        ),
        Claim(
            "The auxiliary cost does more than annealing the KL, at equal updates",
            better_than("elbo", "aux", "kla"),
            published=f"Blizzard: 15430 against 14226; TIMIT: 69530 against 68903 ({SOURCE})",
            scales=("laptop",),
            note="The weight of the KL rises from 0.2 to 1 over the first half of the updates.",
        ),
    ),
    figures=(
        curves("elbo", "The bound over training", x="update", caption="Nats per sequence, on the same 200 sequences."),
        curves("kl", "KL in use over training", x="update", caption="Nats per sequence that the latents carry."),
        bars("elbo", "The bound at the end"),
        bars("importance_bound", "The importance-weighted bound"),
        Figure(
            "Waves of the data and of the models",
            pictures.draw_waves,
            "Sequences of 200 samples after the last update, each begun with one frame of the data.",
        ),
        Figure(
            "Between two sequences",
            pictures.draw_between,
            "Eight frames decoded from latents between the posterior means of two sequences.",
        ),
    ),
)

WORDS = Experiment(
    name="tokens",
    description="Words under a hidden topic, where a latent is not needed: what is left of it, and what it knows.",
    run=blocks.run,
    run_seeds=blocks.run_together,
    variants=tuple(TOKENS),
    scales={
        "smoke": Small(data="tokens", **BRIEF),
        "laptop": Small(data="tokens", updates=1000, kl_updates=500, every=100),
    },
    claims=(
        Claim(
            "The auxiliary cost keeps latents in use where they collapse: 0.1 nats more per sequence",
            at_least("kl", "aux", "latent", margin=0.1),
            published=f"the auxiliary cost helps to use the latent variables ({SOURCE})",
            scales=("laptop",),
            note="Weight 0.05; the price is in the bound and in the perplexity, beside it.",
        ),
        Claim(
            "What the latents keep is the topic",
            better_than("probe", "aux", "latent", bounds=(0, 1)),
            published=f"latents interpolated between two sentences change the text gradually ({SOURCE})",
            scales=("laptop",),
            note="Accuracy of a linear map from the time-mean of the posterior's mean to the hidden topic; chance is "
            "0.25.",
        ),
    ),
    figures=(
        bars("kl", "KL in use"),
        bars("probe", "How well the latents tell the topic"),
        bars("perplexity", "Perplexity", caption="From the bound, per word; for the network without latents exact."),
        curves("elbo", "The bound over training of words", x="update"),
        curves("kl", "KL over training of words", x="update"),
    ),
)


def _at_paper_scale(name: str, description: str, settings: Corpus, claims: tuple[Claim, ...] = ()) -> Experiment:
    """One of the paper's data sets; a look at the road takes generated sequences in its place."""
    smoke = Corpus(
        data=settings.data,
        stand_in=6,
        hidden_size=8,
        embedding_size=4,
        mlp_size=4,
        latent_size=2,
        words=6,
        batch_size=3,
        epochs=1,
        num_samples=2,
    )
    return Experiment(
        name=name,
        description=description,
        run=corpora.run,
        variants=("rnn", "latent", "kla", "aux", "aux-kla"),
        scales={"smoke": smoke, "paper": settings},
        claims=claims,
        figures=(
            curves("elbo", f"The bound over training, {name}", x="update"),
            curves("kl", f"KL in use, {name}", x="update"),
            bars("elbo", f"The bound on the test split, {name}"),
        ),
    )


def _better(text: str, variant: str, than: str, published: str) -> Claim:
    return Claim(text, better_than("elbo", variant, than), published=f"{published} ({SOURCE})", scales=("paper",))


TIMIT = _at_paper_scale(
    "timit",
    "Raw speech of TIMIT in frames of 200 samples; the bound in nats per test utterance, for samples normalised by the "
    "training data. Needs TIMIT (path=FOLDER or MECHANISMS_DATA) and a GPU; stopped runs go on.",
    Corpus(),
    (
        _better("A latent in the recurrence pays on speech", "latent", "rnn", "68132 against -1900"),
        _better("The auxiliary cost improves the bound on speech", "aux", "latent", "69530 against 68132"),
        _better("... by more than annealing the KL", "aux", "kla", "69530 against 68903"),
    ),
)
BLIZZARD = _at_paper_scale(
    "blizzard",
    "The same on half a second each of a speaker who reads books. Needs the recordings of the Blizzard Challenge 2013.",
    Corpus(
        data="blizzard",
        hidden_size=2048,
        embedding_size=1024,
        mlp_size=1024,
        batch_size=128,
        epochs=5,
        lr=3e-4,
        alpha=0.0025,
    ),
    (
        _better("A latent in the recurrence pays on read books", "latent", "rnn", "14435 against 3539"),
        _better("The auxiliary cost improves the bound on read books", "aux", "latent", "15430 against 14435"),
        _better("... by more than annealing the KL", "aux", "kla", "15430 against 14226"),
    ),
)
DIGITS = _at_paper_scale(
    "pixels",
    "Binarised MNIST, one pixel after the other. Needs Larochelle's fixed copy; the paper does not give the sizes.",
    Corpus(
        data="binarised-mnist",
        hidden_size=512,
        embedding_size=256,
        mlp_size=256,
        latent_size=64,
        epochs=50,
        lr=1e-4,
        lr_floor=1e-5,
        clip=1.0,
    ),
    (_better("The auxiliary cost improves the bound on digits", "aux", "latent", "80.09 against 80.60 nats"),),
)
SENTENCES = _at_paper_scale(
    "sentences",
    "Film reviews as sentences of at most 16 words, 16,000 words; perplexity from the bound. Needs IMDB (path=FOLDER, "
    "hub=NAME or MECHANISMS_DATA).",
    Corpus(
        data="imdb",
        hidden_size=512,
        embedding_size=256,
        mlp_size=256,
        latent_size=64,
        epochs=10,
        clip=5.0,
        num_samples=10,
    ),
)

paper = Paper(
    slug="z-forcing",
    title="Z-Forcing: Training Stochastic Recurrent Networks",
    authors="Goyal, Sordoni, Côté, Ke, Bengio",
    year=2017,
    venue="NIPS 2017",
    arxiv="1711.05411",
    topic="recurrent",
    summary="A latent for each step of a recurrent model, kept in use as it must reconstruct what the future holds.",
    parts=(
        "mechanisms.recurrent.z_forcing",
        "mechanisms.recurrent.stochastic",
        "mechanisms.recurrent.conditional_norm",
        "mechanisms.recurrent.densities",
        "mechanisms.recurrent.schedules",
    ),
    experiments=(WAVES, WORDS, TIMIT, BLIZZARD, DIGITS, SENTENCES),
)
