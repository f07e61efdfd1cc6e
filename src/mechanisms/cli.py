"""`mech`: list and show papers, run their experiments, read the ledger and the report.

Papers are known by name only, through the laboratory, and heavy imports wait until a command needs them, so that
`mech --help` is instant.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as _error:  # pragma: no cover - the command line without its extra
    sys.exit(f"{_error.name} is not installed; `mech` needs: pip install 'mechanisms[lab]'")

if TYPE_CHECKING:
    from mechanisms.lab.ledger import Row
    from mechanisms.lab.paper import Experiment, Paper

app = typer.Typer(
    name="mech",
    help="A laboratory that keeps re-checking what papers on learning that generalises claim.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Tables that go to a file or a pipe are wide; a terminal has its own width.
WIDE = None if sys.stdout.isatty() else 160
SECOND = os.environ.get("RANK", "0") != "0"  # under torchrun the first process speaks for all
out = Console(width=WIDE, quiet=SECOND)
err = Console(stderr=True, quiet=SECOND)

MARKS = {"holds": "[green]✔ holds[/]", "fails": "[red]✘ fails[/]", "undecided": "[yellow]? undecided[/]"}

Results = Annotated[
    list[Path] | None,
    typer.Option("--results", help="Folder of records; may be repeated to merge several machines' records."),
]


def main() -> None:
    """Entry point of the command `mech`: one clear line for every mistake, exit code 2."""
    from mechanisms._base.extras import MissingExtra

    try:
        _add_paper_commands()
        app(args=_spread(sys.argv[1:]))
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except MissingExtra as error:
        _refuse(error)
    except BrokenPipeError:  # `mech ledger | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@functools.cache
def _add_paper_commands() -> None:
    """The practitioners' commands that papers bring; recipes import nothing heavy. A broken one is left out."""
    taken = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for paper in _papers():
        for name, target in paper.commands.items():
            module, _, function = target.partition(":")
            try:
                command = getattr(importlib.import_module(module), function)
            except Exception as error:
                _left_out(f"command {name!r} of {paper.slug} ({target}) does not load: {error!r}")
                continue
            if name in taken:
                _left_out(f"command {name!r} of {paper.slug}: there is one of that name already")
                continue
            taken.add(name)
            app.command(name, rich_help_panel="For your own data")(command)


def _spread(words: Sequence[str]) -> list[str]:
    """Options that take several words, `--results DIR DIR` and `--slurm KEY=VALUE KEY=VALUE`, as click reads them."""
    spread: list[str] = []
    option = ""
    many = words[:1] and words[0] in ("list", "ledger", "report", "query")
    for word in words:
        if word.startswith("-"):
            option = word
        elif option == "--results" and many and spread[-1] != "--results":
            spread.append("--results")
        elif option == "--slurm" and spread[-1] != "--slurm":
            if "=" in word:
                spread[-1] += f" {word}"
                continue
            option = ""
        spread.append(word)
    return spread


def _left_out(reason: object) -> None:
    err.print(f"[yellow]left out:[/] {_plain(' '.join(str(reason).split()))}", highlight=False, soft_wrap=True)


def _refuse(error: object) -> NoReturn:
    """Say in one line what is wrong, and stop with exit code 2."""
    err.print(f"[red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
    sys.exit(2)


def _plain(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))


def _papers(slugs: Sequence[str] = ()) -> list[Paper]:
    """The papers that were named, or all that load."""
    from mechanisms.lab.registry import PaperError, load_paper, paper_names

    found = []
    for slug in slugs or paper_names():
        try:
            found.append(load_paper(slug))
        except PaperError as error:
            if slugs:
                _refuse(error)
            if slug not in _told:
                _told.add(slug)
                _left_out(error)
    return found


_told: set[str] = set()  # papers that do not load, each of which is told once


def _folders(results: Sequence[Path] | None) -> list[Path]:
    """The folders of records that were named, which must be there, or the usual one."""
    from mechanisms.lab.folders import results_folder

    for folder in results or ():
        if not folder.is_dir():
            _refuse(f"--results {folder}: there is no such folder")
    return list(results or [results_folder()])


def _ledger(papers: Sequence[Paper], results: Sequence[Path] | None) -> list[Row]:
    from mechanisms.lab.session import ledger

    found, problems = ledger(papers, _folders(results))
    for problem in problems:
        err.print(f"[yellow]skipped:[/] {_plain(problem)}", highlight=False, soft_wrap=True)
    return found


@app.command("list")
def list_papers(
    results: Results = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for a README.")] = False,
) -> None:
    """The papers: topic, experiments, and what the ledger says of each."""
    from mechanisms.lab.ledger import papers_to_markdown, tally

    papers = _papers()
    found = _ledger(papers, results)
    if markdown:
        print(papers_to_markdown(papers, found))
        return
    table = Table("paper", "topic", "what it is", "experiments", "ledger", show_lines=True)
    for paper in papers:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in tally(found, paper.slug).items()) or "no claims"
        names = ", ".join(experiment.name for experiment in paper.experiments)
        table.add_row(paper.slug, paper.topic, _plain(paper.summary), names, verdicts)
    out.print(table)


@app.command()
def show(slug: str) -> None:
    """What a paper is: citation, experiments, variants, claims, and settings by scale."""
    from mechanisms.lab.configuration import as_dict

    (paper,) = _papers([slug])
    where = ", ".join(
        part for part in (paper.venue or str(paper.year), f"arXiv {paper.arxiv}" * bool(paper.arxiv)) if part
    )
    out.print(f"[bold]{_plain(paper.title)}[/]\n{_plain(paper.authors)}. {where}\n{_plain(paper.summary)}")
    out.print(f"parts: {', '.join(paper.parts)}", highlight=False)
    for experiment in paper.experiments:
        out.print(f"\n[bold cyan]{experiment.name}[/]  {_plain(experiment.description)}")
        out.print(f"variants: {', '.join(experiment.variants)}", highlight=False)
        out.print(f"seeds {experiment.first_seed} to {experiment.first_seed + experiment.seeds - 1}", highlight=False)
        for claim in experiment.claims:
            published = f" [dim](published: {_plain(claim.published)})[/]" if claim.published else ""
            out.print(f"  • {_plain(claim.text)}{published}", highlight=False)
        scales = {scale: as_dict(settings) for scale, settings in experiment.scales.items()}
        table = Table("setting", *scales)
        for key in dict.fromkeys(key for settings in scales.values() for key in settings):
            table.add_row(
                key, *(_plain(json.dumps(settings[key])) if key in settings else "" for settings in scales.values())
            )
        out.print(table)


@app.command()
def run(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PAPER [EXPERIMENT ...] [KEY=VALUE ...]]", show_default=False)
    ] = None,
    scale: Annotated[str, typer.Option(help="smoke (seconds), laptop (minutes) or paper.")] = "laptop",
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; the experiment's own (ten) by default.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Local processes.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Ray cluster address, or 'local' for an embedded one.")] = None,
    slurm: Annotated[
        str | None, typer.Option(help="SLURM parameters, as submitit names them: --slurm partition=gpu timeout_min=60.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ... ; auto takes an accelerator when there is one.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of each run.")] = 1,
    logger: Annotated[str, typer.Option(help="csv, tensorboard, mlflow, wandb or none, beside the records.")] = "csv",
    results: Annotated[Path | None, typer.Option(help="Folder of the records (default: results).")] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Replace records that older code made.")] = False,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Add seeds (10, 20, 40, 80) until the claims are decided.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="All papers.")] = False,
) -> None:
    """Run a paper's experiments and decide its claims. Finished runs are skipped; Ctrl-C keeps them.

    mech run xrm waterbirds-like --scale laptop --jobs 2 steps=3000
    """
    from mechanisms.lab import session
    from mechanisms.lab.folders import results_folder
    from mechanisms.lab.progress import show as bars

    names = [word for word in words or [] if "=" not in word]
    if everything == bool(names):
        _refuse("name a paper, or give --all for every paper; `mech list` shows them")
    papers = _papers([] if everything else names[:1])
    try:
        work = [(paper, _experiments(paper, names[1:])) for paper in papers]
        request = session.Request(
            work=work,
            scale=scale,
            seeds=seeds,
            variants=variant or (),
            overrides=[word for word in words or [] if "=" in word],
            device=device,
            threads=threads,
            logger=logger,
            results=results or results_folder(),
            rerun=rerun,
            until_decided=until_decided,
            jobs=jobs,
            ray=ray,
            slurm=_pairs(slurm) if slurm is not None else None,
        )
        with bars(err, papers[0].slug if len(papers) == 1 else "all papers") as display:
            summary = session.execute(request, display)
    except ValueError as error:
        _refuse(error)
    except OSError as error:
        place = error.filename or results or results_folder()
        _refuse(f"{place} cannot be written ({error.strerror or error}); earlier records are intact")
    for reason, missing in summary.missing.items():
        err.print(f"[yellow]not run[/] ({len(missing)} runs): {_plain(reason)}", highlight=False, soft_wrap=True)
    for name, reason in summary.failed[:5]:
        err.print(f"[red]failed[/] {name}: {_plain(reason)}", highlight=False, soft_wrap=True)
    if len(summary.failed) > 5:
        err.print(f"[red]failed[/] and {len(summary.failed) - 5} more")
    out.print(f"{summary.done} runs done, {summary.there} were there, {summary.seconds:.1f} s", highlight=False)
    if summary.interrupted:
        err.print("interrupted: finished runs are kept; the same command goes on from here")
        sys.exit(130)
    chosen = {(paper.slug, experiment.name) for paper, experiments in work for experiment in experiments}
    found = [
        row for row in _ledger(papers, [request.results]) if (row.slug, row.experiment) in chosen and row.scale == scale
    ]
    if found:
        out.print(_table(found))
    if summary.failed:
        sys.exit(1)


def _experiments(paper: Paper, names: Sequence[str]) -> list[Experiment]:
    try:
        return [paper.experiment(name) for name in names] or list(paper.experiments)
    except KeyError as error:
        raise ValueError(error.args[0]) from None


def _pairs(text: str) -> dict[str, str]:
    """`"a=1 b=2"` as a dictionary."""
    pairs = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--slurm {word!r}: write key=value, for example slurm_partition=gpu")
        pairs[key] = value
    return pairs


def _table(found: Sequence[Row]) -> Table:
    from mechanisms.lab.claims import describe, verdict_label
    from mechanisms.lab.ledger import verdict_notes

    table = Table("experiment", "claim", "published", "measured", "verdict", "seeds", "when, where", show_lines=True)
    for row in found:
        verdict = verdict_label(row.outcome)
        mark = MARKS.get(row.outcome.verdict, "[dim]– not run[/]")
        colour, _, word = mark.partition("]")
        label = f"{colour}]{word.split(' ')[0]} {verdict}[/]"
        label += "".join(f"\n[dim]{_plain(text)}[/]" for text in verdict_notes(row))
        changed = "".join(f"\n[dim]{_plain(key)}={_plain(value)}[/]" for key, value in row.changed.items())
        table.add_row(
            f"{row.experiment}\n[dim]{row.scale}[/]{changed}",
            _plain(row.claim.text),
            _plain(row.claim.published),
            _plain(describe(row.outcome)),
            label,
            str(row.outcome.seeds),
            "\n".join((row.date, *row.devices)),
        )
    return table


@app.command()
def ledger(
    slugs: Annotated[list[str] | None, typer.Argument(metavar="[PAPER ...]", show_default=False)] = None,
    results: Results = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for a README.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All figures, for programs.")] = False,
) -> None:
    """What the records say of every claim: holds, fails, undecided or not run."""
    from mechanisms.lab.ledger import to_json, to_markdown

    found = _ledger(_papers(slugs or ()), results)
    if as_json:
        typer.echo(json.dumps(to_json(found), indent=2, ensure_ascii=False))
    elif markdown:
        typer.echo(to_markdown(found))
    else:
        out.print(_table(found))


@app.command()
def report(
    results: Results = None,
    to: Annotated[Path, typer.Option("--to", help="Folder of the site.")] = Path("report"),
    show_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """A static site with the ledger and a page of interactive plots per paper; it opens from disk."""
    from mechanisms.lab.records import read_records
    from mechanisms.lab.report import build_report

    papers = _papers()
    records, problems = read_records(_folders(results))
    try:
        index = build_report(papers, records, to, problems=problems)
    except OSError as error:
        _refuse(f"{to}: the report cannot be written ({error.strerror or error})")
    out.print(f"{index}", highlight=False, soft_wrap=True)
    if show_it:
        typer.launch(index.resolve().as_uri())


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="Over the tables runs, metrics and curves.")],
    results: Results = None,
) -> None:
    """Ask the records in SQL (DuckDB).

    mech query "select variant, avg(value) from metrics where metric = 'worst_group_accuracy' group by variant"
    """
    import duckdb

    from mechanisms.lab.records import read_records, tables

    records, _ = read_records(_folders(results))
    try:
        answer = tables(records).execute(sql)
        lines = answer.fetchall() if answer.description else []
    except duckdb.Error as error:
        _refuse(str(error).splitlines()[0])
    except AttributeError:  # DuckDB's answer to no statement at all is no answer
        _refuse("there is no question; try: select * from runs")
    table = Table(*(_plain(column[0]) for column in answer.description or ()))
    for line in lines:
        table.add_row(*("" if value is None else _plain(value) for value in line))
    out.print(table)


@app.command()
def doctor() -> None:
    """Devices, extras, data sets: what is here and how to get the rest."""
    from mechanisms.lab.doctor import examine

    table = Table("", "what", "here", "details")
    for finding in examine():
        table.add_row(
            finding.topic, finding.name, "[green]yes[/]" if finding.here else "[yellow]no[/]", _plain(finding.detail)
        )
    out.print(table)


if __name__ == "__main__":
    main()
