"""What `mech run` and `mechanisms.lab.run` share: several papers, stages of seeds, back ends and their progress."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mechanisms._base.device import resolve_device
from mechanisms.lab.claims import STAGES
from mechanisms.lab.configuration import config_hash, override
from mechanisms.lab.folders import cache_folder, results_folder
from mechanisms.lab.ledger import Row, rows, unclaimed
from mechanisms.lab.loggers import LOGGERS, logger_class
from mechanisms.lab.paper import Experiment, Paper
from mechanisms.lab.records import cells, read_records
from mechanisms.lab.running import Backend, Display, Summary, carry_out
from mechanisms.lab.tasks import Task, plan, with_looks
from mechanisms.lab.together import first_decides, world_size


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        work: papers and the experiments of each.
        scale: "smoke", "laptop", "paper" or another scale of the experiments.
        seeds: number of seeds; `None` for the experiments' own.
        variants: a selection; empty for all.
        overrides: `key=value` settings; every chosen experiment must have them.
        device, threads: where, and with how many CPU threads a run.
        logger: "csv", "tensorboard", "mlflow", "wandb" or "none"; its files go to `.logs` below the records.
        results: folder of the records.
        rerun: replace records of older code.
        until_decided: add seeds in stages until every claim is decided.
        jobs, ray, slurm: local processes, or a Ray address, or submitit's parameters.
    """

    work: Sequence[tuple[Paper, Sequence[Experiment]]]
    scale: str = "laptop"
    seeds: int | None = None
    variants: Sequence[str] = ()
    overrides: Sequence[str] = ()
    device: str = "auto"
    threads: int = 1
    logger: str = "csv"
    results: Path = field(default_factory=results_folder)
    rerun: bool = False
    until_decided: bool = False
    jobs: int = 1
    ray: str | None = None
    slurm: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"--threads {self.threads}: at least one is needed")
        if world_size() > 1 and (self.jobs > 1 or self.ray is not None or self.slurm is not None):
            raise ValueError("under torchrun all processes train one run together: leave --jobs, --ray and --slurm out")
        if sum((self.jobs > 1, self.ray is not None, self.slurm is not None)) > 1:
            raise ValueError("--jobs, --ray and --slurm exclude each other: choose where to run")
        if self.until_decided and self.seeds is not None:
            raise ValueError("--until-decided chooses the number of seeds itself (10, 20, 40, 80): leave --seeds out")
        if self.logger not in LOGGERS:
            raise ValueError(f"there is no logger {self.logger!r}; there are: {', '.join(LOGGERS)}")
        logger_class(self.logger)  # a missing package is told now rather than by every run


def execute(request: Request, display: Display) -> Summary:
    """Carry out a request; records are written, finished ones are skipped.

    Experiments without the scale are left out, and told in the summary, when others have it.

    Raises:
        ValueError: a bad scale, variant, seed number or override.
        MissingExtra: the back end's package is not installed.
        OSError: records cannot be written.
    """
    # Everything that can be refused is refused here, before a worker is started.
    if request.ray is None and request.slurm is None:
        resolve_device(request.device)
    everything = [(paper, experiment) for paper, experiments in request.work for experiment in experiments]
    chosen = [(paper, experiment) for paper, experiment in everything if request.scale in experiment.scales]
    for paper, experiment in chosen or everything:
        _tasks(request, paper, experiment, STAGES[0] if request.until_decided else request.seeds)
    summary = Summary()
    if lacking := [
        f"{paper.slug} {experiment.name}" for paper, experiment in everything if request.scale not in experiment.scales
    ]:
        summary.missing[f"no scale {request.scale!r}: {', '.join(lacking)}"] = lacking
    with _backend(request, display) as backend:
        for paper, experiment in chosen:
            summary += _experiment(request, paper, experiment, backend, display)
            if summary.interrupted:
                return summary
    return summary


def _experiment(request: Request, paper: Paper, experiment: Experiment, backend: Backend, display: Display) -> Summary:
    if not request.until_decided:
        tasks = _tasks(request, paper, experiment, request.seeds)
        return carry_out(tasks, request.results, backend, display, rerun=request.rerun)
    summary = Summary()
    for seeds in STAGES:
        tasks = with_looks(_tasks(request, paper, experiment, seeds), len(STAGES))
        summary += carry_out(tasks, request.results, backend, display, rerun=request.rerun)
        stopped = summary.interrupted or bool(summary.failed or summary.missing)
        if first_decides(lambda stopped=stopped: stopped or _decided(request, paper, experiment)):
            break
    return summary


def _tasks(request: Request, paper: Paper, experiment: Experiment, seeds: int | None) -> list[Task]:
    return plan(
        paper.slug,
        experiment,
        request.scale,
        seeds=seeds,
        variants=request.variants,
        overrides=request.overrides,
        device=request.device,
        threads=request.threads,
        cache=str(cache_folder().absolute()),
        logger=request.logger,
        logs=str((request.results / ".logs").absolute()),
    )


def _decided(request: Request, paper: Paper, experiment: Experiment) -> bool:
    """Whether every claim that this scale decides is decided in this configuration, at the stages' confidence."""
    records, _ = read_records([request.results], paper.slug)
    name = config_hash(override(experiment.scales[request.scale], request.overrides))
    for cell in cells(records):
        if (cell.experiment, cell.scale, cell.config_hash) == (experiment.name, request.scale, name):
            chosen = set(request.variants or experiment.variants)
            claims = [
                claim
                for claim in experiment.claims
                if request.scale in claim.scales and chosen.issuperset(claim.variants)
            ]
            outcomes = [claim.check.evaluate(cell, looks=len(STAGES)) for claim in claims]
            return all(outcome.verdict in ("holds", "fails") for outcome in outcomes)
    return False


@contextlib.contextmanager
def _backend(request: Request, display: Display) -> Generator[Backend]:
    from mechanisms.lab import workers

    if request.ray is not None:
        chosen = workers.on_ray(request.ray)
    elif request.slurm is not None:
        chosen = workers.on_slurm(request.slurm, cache_folder() / "slurm")
    else:
        chosen = workers.local(request.jobs, display)
    with chosen as backend:
        yield backend


def ledger(papers: Sequence[Paper], results: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The ledger of some papers from some folders of records, and a line for each file that is none or unasked for."""
    records, problems = read_records(results)
    mine = {paper.slug for paper in papers}
    return rows(papers, records), problems + unclaimed(papers, [record for record in records if record.slug in mine])
