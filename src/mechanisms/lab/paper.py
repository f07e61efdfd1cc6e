"""What a paper is to the laboratory: experiments, each with variants, scales, claims and figures.

A recipe (`mechanisms/papers/<slug>.py`) builds one `Paper`. Recipes import parts and torch inside their functions
only, so that listing the papers stays instant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects

    from mechanisms.lab import records
    from mechanisms.lab.bench import Bench
    from mechanisms.lab.claims import Claim

# What a run returns: named numbers; a list holds one number per unit (world, graph, split); text is shown as it is.
Metric = float | int | bool | str | Sequence[float] | Sequence[int] | Sequence[bool]
Metrics = Mapping[str, Metric]

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class NotHere(Exception):
    """Data or hardware that a run needs is missing; the run counts as *not run*, not as failed.

    The message says what was looked for, where, and how to get it.
    """


@dataclass(frozen=True)
class Figure:
    """A picture of an experiment for the report.

    Args:
        name: heading of the figure.
        draw: takes the `Cell` (all records of one experiment, scale and configuration) and returns a Plotly figure.
        caption: what to see in it.

    >>> def draw(cell):
    ...     import plotly.graph_objects as go
    ...     return go.Figure(go.Bar(x=cell.variants, y=[len(cell.of(variant)) for variant in cell.variants]))
    >>> Figure("Runs by variant", draw).name
    'Runs by variant'
    """

    name: str
    draw: Callable[[records.Cell], plotly.graph_objects.Figure]
    caption: str = ""


@dataclass(frozen=True)
class Experiment:
    """One question put to a paper: variants of a method that are trained alike, compared over seeds.

    Args:
        name: lower-case words joined by dashes.
        run: `run(config, variant, bench) -> Metrics`, one variant with one seed. Data, initial weights and batch order
            must follow from `bench.seed` alone, never from the variant, so that variants are paired.
        variants: names of the variants, in the order of the tables.
        scales: configurations by scale: "smoke" (seconds), "laptop" (minutes on two cores), "paper".
        claims: what is decided.
        figures: what is drawn.
        description: one or two sentences for `mech show` and the report.
        seeds: number of deciding seeds at every scale but "smoke", where it is one.
        first_seed: deciding seeds start here, apart from those that settings were tuned on.
        run_seeds: optional `run_seeds(config, variant, benches) -> list of Metrics`, which trains a whole block of
            `block` seeds in one batch; used instead of `run` where it is given.
        block: number of seeds in a block of `run_seeds`; `first_seed` begins one.

    Raises:
        ValueError: names that are no lower-case words joined by dashes, no "smoke" scale, or a claim about a variant
            that there is none of.

    >>> def run(config, variant, bench):
    ...     return {"heads": int(bench.numpy("coin").integers(2))}
    >>> Experiment("coin", run, variants=("fair",), scales={"smoke": None}).default_seeds("smoke")
    1
    """

    name: str
    run: Callable[[Any, str, Bench], Metrics]
    variants: tuple[str, ...]
    scales: Mapping[str, Any]
    claims: Sequence[Claim] = ()
    figures: Sequence[Figure] = ()
    description: str = ""
    seeds: int = 10
    first_seed: int = 10
    run_seeds: Callable[[Any, str, Sequence[Bench]], Sequence[Metrics]] | None = None
    block: int = 10

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"experiment name {self.name!r}: use lower-case words joined by dashes")
        if not self.variants or len(set(self.variants)) != len(self.variants):
            raise ValueError(f"experiment {self.name}: variants must be distinct and at least one, got {self.variants}")
        for variant in self.variants:
            if not NAME.fullmatch(variant):
                raise ValueError(f"variant {variant!r} of {self.name}: use lower-case words joined by dashes")
        if self.run_seeds is not None and self.first_seed % self.block:
            raise ValueError(f"experiment {self.name}: first_seed={self.first_seed} must begin a block of {self.block}")
        if "smoke" not in self.scales:
            raise ValueError(f"experiment {self.name} needs a 'smoke' scale; it has {', '.join(self.scales) or 'none'}")
        for claim in self.claims:
            for variant in claim.variants:
                if variant not in self.variants:
                    raise ValueError(f"claim {claim.text!r} names {variant!r}, which is no variant of {self.name}")

    @property
    def deciding_scale(self) -> str:
        """Where the ledger expects records: "laptop", or the last scale of an experiment that has none."""
        return "laptop" if "laptop" in self.scales else list(self.scales)[-1]

    def default_seeds(self, scale: str) -> int:
        """How many seeds decide the claims at a scale."""
        return 1 if scale == "smoke" else self.seeds


@dataclass(frozen=True)
class Paper:
    """A paper, its citation, and the experiments that re-check it.

    Args:
        slug: its name everywhere: `mech run <slug>`, the recipe, test, benchmark and docs page.
        title: as published.
        authors: as cited, for example "Pezeshki, Bouchacourt, ...".
        year: of publication.
        topic: folder of its parts, for example "robust".
        summary: one sentence for the table of papers.
        experiments: see `Experiment`.
        parts: dotted names of the modules that implement it; their source, and what they import, enters the records'
            code hash.
        arxiv: identifier, if there is one.
        venue: where it appeared.
        commands: practitioners' commands as text, `{"discover": "mechanisms.papers.xrm:discover"}`.

    Raises:
        ValueError: the slug is no lower-case words joined by dashes, or experiments share a name.

    >>> from mechanisms.lab.registry import load_paper
    >>> load_paper("xrm").title
    'Discovering Environments with XRM'
    """

    slug: str
    title: str
    authors: str
    year: int
    topic: str
    summary: str
    experiments: Sequence[Experiment]
    parts: tuple[str, ...] = ()
    arxiv: str = ""
    venue: str = ""
    commands: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.slug):
            raise ValueError(f"slug {self.slug!r}: use lower-case words joined by dashes")
        names = [experiment.name for experiment in self.experiments]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.slug}: experiments share a name: {names}")

    def experiment(self, name: str) -> Experiment:
        """The experiment of that name.

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        raise KeyError(f"{self.slug} has no experiment {name!r}; it has: {', '.join(e.name for e in self.experiments)}")
