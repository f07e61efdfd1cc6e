"""The laboratory in a notebook or script: `mechanisms.lab.run("xrm")`."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechanisms.lab import session
from mechanisms.lab.claims import describe, verdict_label
from mechanisms.lab.folders import results_folder
from mechanisms.lab.ledger import Row
from mechanisms.lab.progress import Silent, show
from mechanisms.lab.records import Record, read_records, tables
from mechanisms.lab.registry import load_paper
from mechanisms.lab.running import Summary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study:
    """What a call of `run` found; notebooks show it as the table of its claims.

    Attributes:
        rows: the claims with their verdicts.
        records: all records of the paper below the folder of results.
        summary: how many runs were done, were there already, were missing or failed.
    """

    rows: list[Row]
    records: list[Record]
    summary: Summary

    def metrics(self) -> pd.DataFrame:
        """All metrics as a table: experiment, scale, config_hash, variant, seed, metric, unit, value, text."""
        return tables(self.records).execute("SELECT * EXCLUDE (slug) FROM metrics").df()

    def troubles(self) -> list[str]:
        """One line for each run that failed and for each reason why runs were not done."""
        failed = [f"failed: {name}: {reason}" for name, reason in self.summary.failed]
        return failed + [f"not run ({len(names)} runs): {why}" for why, names in self.summary.missing.items()]

    def __str__(self) -> str:
        verdicts = (
            f"{row.experiment} ({row.scale}): {row.claim.text}: {verdict_label(row.outcome)}, {describe(row.outcome)}"
            for row in self.rows
        )
        return "\n".join([*verdicts, *self.troubles()])

    def _repr_html_(self) -> str:
        cells = [
            (row.experiment, row.scale, row.claim.text, verdict_label(row.outcome), describe(row.outcome))
            for row in self.rows
        ]
        body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in line) + "</tr>" for line in cells)
        head = "".join(f"<th>{text}</th>" for text in ("experiment", "scale", "claim", "verdict", "measured"))
        troubles = "".join(f"<p>{html.escape(text)}</p>" for text in self.troubles())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{troubles}"


def run(
    slug: str,
    *experiments: str,
    scale: str = "laptop",
    seeds: int | None = None,
    variants: Sequence[str] = (),
    jobs: int = 1,
    ray: str | None = None,
    slurm: dict[str, str] | None = None,
    device: str = "auto",
    threads: int = 1,
    logger: str = "csv",
    results: str | Path | None = None,
    rerun: bool = False,
    until_decided: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Study:
    """Run a paper's experiments and decide its claims, as `mech run` does; finished runs are skipped.

    Args:
        slug: the paper.
        *experiments: names; all by default.
        scale: "smoke" (seconds), "laptop" (minutes) or "paper".
        seeds: number of seeds; the experiments' own (ten) by default.
        variants: a selection; all by default.
        jobs, ray, slurm: local processes, or a Ray address, or submitit's parameters.
        device: "auto" takes an accelerator when there is one.
        threads: CPU threads of each run.
        logger: "csv", "tensorboard", "mlflow", "wandb" or "none", in `.logs` beside the records.
        results: folder of the records; `results` in the current folder by default.
        rerun: replace records made by older code.
        until_decided: add seeds in stages until the claims are decided.
        progress: show bars.
        **settings: settings that differ from the scale's own.

    Returns:
        The claims with their verdicts, and the records.

    Raises:
        ValueError: an unknown paper, scale, variant or setting.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     study = run("xrm", "waterbirds-like", scale="smoke", variants=["erm"], results=folder, progress=False)
    >>> study.summary.done
    1
    """
    from rich.console import Console

    paper = load_paper(slug)
    try:
        chosen = [paper.experiment(name) for name in experiments] or list(paper.experiments)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    request = session.Request(
        work=[(paper, chosen)],
        scale=scale,
        seeds=seeds,
        variants=variants,
        overrides=[f"{key}={_text(value)}" for key, value in settings.items()],
        device=device,
        threads=threads,
        logger=logger,
        results=results_folder() if results is None else Path(results),
        rerun=rerun,
        until_decided=until_decided,
        jobs=jobs,
        ray=ray,
        slurm=slurm,
    )
    with show(Console(), slug) if progress else Silent() as display:
        summary = session.execute(request, display)
    if summary.interrupted:
        raise KeyboardInterrupt
    records, _ = read_records([request.results], slug)
    names = {experiment.name for experiment in chosen}
    found = [row for row in session.ledger([paper], [request.results])[0] if row.experiment in names]
    return Study([row for row in found if row.scale == scale], records, summary)


def _text(value: Any) -> str:
    """A setting as it would be written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
