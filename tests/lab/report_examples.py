"""Papers and records made up for the report's tests: every verdict, every mark, and strings that try to be HTML."""

import dataclasses
import math
import random

from mechanisms.lab import figures
from mechanisms.lab.claims import Claim, Outcome
from mechanisms.lab.configuration import as_dict, config
from mechanisms.lab.paper import Experiment, Figure, Paper
from mechanisms.lab.records import Cell, Curve, Record

CODE = "0123456789ab"
SCRIPT = "<script>window.struck = 1</script>"
IMAGE = '<img src="https://example.invalid/x.png" onerror="window.struck = 2">'


@config
class Config:
    spurious: float = 0.95
    steps: int = 1500
    optimiser: str = "sgd"
    hidden_sizes: tuple[int, ...] = (256,)
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Given:
    """A check whose outcome is given; *not run* on an empty cell."""

    outcome: Outcome
    variants: tuple[str, ...] = ("erm", "xrm")

    def evaluate(self, cell: Cell, *, looks: int = 1, share: int = 1) -> Outcome:
        if not cell.records:
            return Outcome("not run", self.outcome.statement)
        return self.outcome


def outcome(verdict, statement, estimate, low, high, **more):
    return Outcome(verdict, statement, estimate, (low, high), seeds=more.pop("seeds", 10), **more)


def run(settings, variant, bench):
    raise NotImplementedError


def broken(cell):
    raise KeyError("no such <b>column</b>")


WORTH = outcome("undecided", "worst_group_accuracy: xrm - oracle >= -0.03", -0.0264, -0.0643, -0.003, marks=("skewed",))
BETTER = outcome("holds", "worst_group_accuracy: xrm - erm >= 0.25", 0.323, 0.265, 0.385)
PARTS = Outcome(
    "fails",
    "all of: f1 at 2000 steps, f1 at 8000 steps",
    confidence=0.975,
    seeds=10,
    parts=(
        outcome("holds", "f1_at_2000: xrm >= 0.7", 0.846, 0.81, 0.88),
        outcome("fails", "f1_at_8000: xrm >= 0.7", 0.49, 0.41, 0.58),
        outcome("holds", "|recall: xrm - oracle| <= 0.1", 0.012, -0.03, 0.05),
    ),
)
SHARE = outcome(
    "holds", "share of environments with recall >= 0.9", 0.94, 0.87, 0.98, units=100, provisional=True, seeds=4
)
EXACT = Outcome("holds", "flip_probability at chance: erm <= 0.0", 0.0, None, seeds=1)

WATERBIRDS = Experiment(
    name="waterbirds-like",
    run=run,
    variants=("erm", "xrm", "xrm-without-flips", "oracle"),
    scales={"smoke": Config(steps=10), "laptop": Config(), "paper": Config(steps=5001)},
    description="Gaussian features with a core and a stronger spurious direction, in the group sizes of Waterbirds.",
    claims=[
        Claim(
            "Environments from XRM are worth as much as the true ones",
            Given(WORTH, ("xrm", "oracle")),
            published="86.1 % vs 86.0 % worst-group accuracy (README of the authors' repository)",
            note="Expected to stay undecided with ten seeds: the difference is close to the margin.",
        ),
        Claim("… and far better than plain training", Given(BETTER), published="0.86 vs 0.62, one-minute run"),
        Claim(
            "No early stopping is needed", Given(PARTS), note="Against the paper: the echo chamber flips ordinary rows."
        ),
        Claim("Flips are what finds the groups", Given(SHARE), published="Section 4.2"),
    ],
    figures=[
        figures.bars("worst_group_accuracy", variants=("erm", "xrm", "xrm-without-flips", "oracle", "jtt")),
        figures.curves("flip_rate", variants=("xrm", "xrm-without-flips")),
        figures.curves("train_loss", variants=("erm", "xrm", "oracle")),
    ],
)
DIGITS = Experiment(
    name="coloured-digits",
    run=run,
    variants=("erm", "xrm"),
    scales={"smoke": Config(steps=10), "laptop": Config()},
    claims=[Claim("Worth more than bad human environments", Given(BETTER), published="Table 3")],
    figures=[Figure("broken figure", broken), figures.bars(SCRIPT, variants=("erm", "xrm"))],
    description="scikit-learn's digits, coloured.",
)
EQUILIBRIUM = Experiment(
    name="fixed-point",
    run=run,
    variants=("free", "nudged"),
    scales={"smoke": Config(), "laptop": Config()},
    claims=[
        Claim(
            "The update follows the gradient in the limit of small nudging",
            Given(EXACT, ("free",)),
            published="Theorem 1",
        ),
        Claim(
            "It trains without symmetric weights", Given(BETTER, ("free", "nudged")), published="1.4 % error on MNIST"
        ),
    ],
)

XRM = Paper(
    slug="xrm",
    title="Discovering Environments with XRM",
    authors="Pezeshki, Bouchacourt, Ibrahim, Ballas, Vincent, Lopez-Paz",
    year=2024,
    topic="robust",
    summary="Finds the groups into which a shortcut splits data: two networks adopt each other's confident mistakes.",
    experiments=(WATERBIRDS, DIGITS),
    parts=("mechanisms.robust.xrm", "mechanisms.robust.groups"),
    arxiv="2309.16748",
    venue="ICML",
    commands={"discover": "mechanisms.papers.xrm:discover"},
)
EQPROP = Paper(
    slug="vector-field-eqprop",
    title=f"Generalization of Equilibrium Propagation to Vector Field Dynamics {SCRIPT}",
    authors=f"Scellier {IMAGE}",
    year=2018,
    topic="equilibrium",
    summary="Learning at a fixed point without symmetric weights.",
    experiments=(EQUILIBRIUM,),
    parts=("mechanisms.equilibrium.vector_field",),
)
PAPERS = (XRM, EQPROP)

MEANS = {"erm": 0.53, "xrm": 0.855, "xrm-without-flips": 0.58, "oracle": 0.882, "free": 0.4, "nudged": 0.7}


def record(paper, experiment, scale, variant, seed, settings=None, **more):
    """One made-up run, the same whenever it is made."""
    draw = random.Random(f"{experiment.name} {variant} {seed} {scale}")
    mean = MEANS[variant]
    steps = [float(step) for step in range(0, 1501, 50)]
    values = {
        "metrics": {
            "worst_group_accuracy": mean + draw.gauss(0, 0.03),
            "average_accuracy": 0.9 + draw.gauss(0, 0.01),
            "groups_found": [True, seed % 3 > 0, True, True],
            "seconds_to_fit": 12345.6 + draw.random(),
        },
        "curves": {
            "train_loss": Curve(steps, [0.7 * math.exp(-step / 400 * mean) + draw.gauss(0, 0.01) for step in steps]),
        },
        "seconds": 20 + 5 * draw.random(),
        "stages": {"environments": 64.2} if variant == "erm" else {},
        "peak_memory": 612_000_000 + seed,
        "started": f"2026-11-{10 + seed % 15:02d}T09:{seed % 60:02d}:12Z",
        "versions": {"python": "3.13.5", "torch": "2.13.0", "numpy": "2.4.1", "mechanisms": "0.1.0", "system": "Linux"},
        "code": CODE,
    }
    if "xrm" in variant:
        rate = 0.12 if variant == "xrm" else 0.02
        values["curves"]["flip_rate"] = Curve(
            steps, [rate * (1 - math.exp(-s / 300)) + draw.gauss(0, 0.002) for s in steps]
        )
    return Record(
        paper.slug,
        experiment.name,
        scale,
        variant,
        seed,
        as_dict(settings or experiment.scales[scale]),
        **{**values, **more},
    )


def records():
    """Ten seeds at laptop scale, others with overridden settings, from older code, on a GPU, and with nasty strings."""
    found = [record(XRM, WATERBIRDS, "laptop", v, s) for v in WATERBIRDS.variants for s in range(10, 20)]
    found[0] = dataclasses.replace(found[0], notes=["scikit-learn's digits in place of Fashion-MNIST (not found)"])
    changed = Config(spurious=0.8, optimiser="adam")
    found += [
        record(XRM, WATERBIRDS, "laptop", v, s, changed, code="older") for v in ("erm", "xrm") for s in (10, 11, 14)
    ]
    found += [record(XRM, WATERBIRDS, "paper", v, 10, device="cuda: NVIDIA H200") for v in ("erm", "xrm", "oracle")]
    nasty = Config(remark=SCRIPT)
    for variant in DIGITS.variants:
        for seed in (10, 11):
            run = record(XRM, DIGITS, "laptop", variant, seed, nasty, notes=[IMAGE, SCRIPT])
            metrics = {
                **run.metrics,
                SCRIPT: 0.5 + seed / 100,
                "remark": IMAGE,
                "best_columns": f"seed {seed}: <b>age</b>, zip",
            }
            versions = {**run.versions, "torch": f"2.1{seed % 10}.0", IMAGE: SCRIPT}
            found.append(
                dataclasses.replace(run, metrics=metrics, versions=versions, device=IMAGE if seed == 11 else "cpu")
            )
    found += [record(EQPROP, EQUILIBRIUM, "laptop", "free", 10)]
    return found
