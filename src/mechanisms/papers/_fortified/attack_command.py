"""`mech attack`: how robust a classifier of one's own is, and whether that can be believed."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechanisms.papers._fortified.attack_files import NAME, RANGE, Request, heads, shown_range, write_report

if TYPE_CHECKING:
    from mechanisms.robust.robustness_report import RobustnessReport

BUDGETS = "0.01,0.03,0.1,0.3"


def attack(
    factory: Annotated[str, typer.Argument(help="package.module:factory, importable here; makes the network.")],
    weights: Annotated[Path, typer.Option(help="Weights: .safetensors, or a state_dict (.pt, .pth, .bin, .ckpt).")],
    data: Annotated[Path, typer.Option(help="A .npz file with x, in [0, 1], and y, class indices.")],
    eps: Annotated[str, typer.Option(help="Budgets (L-infinity), by commas; 8/255 is understood.")] = BUDGETS,
    attacks: Annotated[
        str | None, typer.Option(help="Of pgd, apgd-ce, apgd-dlr, deepfool, square, by commas; all by default.")
    ] = None,
    restarts: Annotated[int, typer.Option(help="Rounds of the attacks with a random start.")] = 2,
    steps: Annotated[int, typer.Option(help="Steps of PGD and APGD.")] = 100,
    queries: Annotated[int, typer.Option(help="Queries of Square for each image.")] = 500,
    images: Annotated[int, typer.Option(help="How many images, drawn by the seed; 0 for all.")] = 1000,
    surrogate: Annotated[str | None, typer.Option(help="An undefended network's factory, to transfer from.")] = None,
    surrogate_weights: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    draws: Annotated[int | None, typer.Option(help="Draws of a randomised network to average; 20 by default.")] = None,
    checks: Annotated[bool, typer.Option("--checks/--no-checks", help="Look for gradient masking.")] = True,
    batch_size: Annotated[int, typer.Option(help="Images in a pass.")] = 256,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, ...")] = "auto",
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    to: Annotated[Path, typer.Option(help="Folder for the table (Markdown, CSV, JSON) and the page.")] = Path(NAME),
) -> None:
    """Attack a classifier of yours, and say whether the outcome can be believed.

    An ensemble of attacks from two libraries, with restarts and without
    gradients, on your network and images: accuracy by budget, an upper bound
    of the true robust accuracy. Checks tell a network that is robust from one
    that hides its gradients.

    mech attack networks.small:make --weights weights.pt --data images.npz

    The network normalises its inputs itself and returns logits.
    Ctrl-C keeps what was done.
    \f

    Raises:
        typer.Exit: with code 2 after one line of error, or 130 after an interruption.

    >>> with contextlib.redirect_stderr(None):
    ...     try:
    ...         attack("nowhere:net", weights=Path("weights.pt"), data=Path("images.npz"))
    ...     except typer.Exit as end:
    ...         end.exit_code
    2
    """
    from mechanisms._base.extras import MissingExtra

    try:
        request = Request(
            factory,
            str(weights),
            str(data),
            _budgets(eps),
            None if attacks is None else tuple(_words(attacks)),
            restarts,
            steps,
            queries,
            images,
            surrogate,
            None if surrogate_weights is None else str(surrogate_weights),
            draws,
            checks,
            batch_size,
            device,
            seed,
        )
        complete = _carry_out(request, to)
    except (ValueError, TypeError, OSError, MemoryError, MissingExtra) as error:
        _say("error: ", "red", " ".join(str(error).split()) or type(error).__name__)
        raise typer.Exit(2) from None
    if not complete:
        raise typer.Exit(130)


def _carry_out(request: Request, to: Path) -> bool:
    """Load, attack, write, and say what was found; whether it went to the end."""
    import torch

    from mechanisms._base.device import resolve_device
    from mechanisms.papers._fortified.own_classifier import build_classifier, read_images
    from mechanisms.robust.attack_ensemble import ENSEMBLE, robust_accuracy

    if request.images < 0:
        raise ValueError(f"--images must be at least 1, or 0 for all, got {request.images}")
    if (request.surrogate is None) != (request.surrogate_weights is None):
        raise ValueError("--surrogate and --surrogate-weights belong together; give both or neither")
    device = resolve_device(request.device)
    _make_folder(to)
    x, y = read_images(Path(request.data), request.images or None, request.seed)
    model = build_classifier(request.factory, Path(request.weights)).to(device)
    other = None
    if request.surrogate is not None and request.surrogate_weights is not None:
        other = build_classifier(request.surrogate, Path(request.surrogate_weights)).to(device)
    latest: list[RobustnessReport] = []
    began = time.monotonic()
    stopped: KeyboardInterrupt | RuntimeError | None = None
    with warnings.catch_warnings(record=True) as caught, _progress() as progress:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            report = robust_accuracy(
                model,
                x,
                y,
                request.eps,
                attacks=ENSEMBLE if request.attacks is None else request.attacks,
                restarts=request.restarts,
                steps=request.steps,
                queries=request.queries,
                surrogate=other,
                checks=request.checks,
                draws=request.draws,
                batch_size=request.batch_size,
                seed=request.seed,
                progress=progress,
                partial=lambda so_far: latest.__setitem__(slice(None), [so_far]),
            )
            latest[:] = [report]
        except (KeyboardInterrupt, RuntimeError) as error:
            stopped = error
    # Libraries warn of their own affairs; what concerns the figures is ours.
    notes = [text for text in dict.fromkeys(str(warning.message) for warning in caught) if "randomised" in text]
    if latest:
        written = write_report(latest[0], request, to, seconds=time.monotonic() - began, notes=notes)
        _show(latest[0], notes, written)
    elif isinstance(stopped, KeyboardInterrupt):
        _say("interrupted: ", "yellow", "no attack had ended, nothing is written")
    if isinstance(stopped, torch.OutOfMemoryError):
        raise ValueError(
            f"the {device.type} ran out of memory with --batch-size {request.batch_size}; give a smaller one"
        ) from None
    if isinstance(stopped, RuntimeError):
        raise ValueError(f"{request.factory} fails under attack: {stopped}") from None
    return stopped is None


def _show(report: RobustnessReport, notes: list[str], written: list[Path]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    out = Console(width=None if sys.stdout.isatty() else 160)
    title = f"Accuracy under attack, {report.images} images; upper bounds"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    columns = heads(report)
    for head in columns:
        table.add_column(head, justify="right")
    for row in report.rows():
        cells = {head: f"{value:.3f}" for head, value in row.items()}
        cells |= {"eps": f"{row['eps']:.4g}", RANGE: shown_range(row["low"], row["high"])}
        table.add_row(*(cells.get(head, "") for head in columns))
    out.print(table)
    if report.checks:
        colours = {"passes": "green", "fails": "bold red", "not run": "dim"}
        title = f"Can the gradients be believed? At eps {report.checked_eps:g}"
        checks = Table("check", "verdict", "found", box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for check in report.checks:
            checks.add_row(check.name, f"[{colours[check.verdict]}]{check.verdict}[/]", _shown(check.found))
        out.print(checks)
    out.print(_shown(report.verdict()), style="bold red" if report.masked else "", soft_wrap=True)
    for note in [*report.notes, *notes]:
        _say("note: ", "yellow", note)
    if not report.complete:
        _say("interrupted: ", "yellow", "these are the figures so far; they are upper bounds too")
    for path in written:
        out.print(_shown(str(path)), soft_wrap=True)


def _budgets(text: str) -> tuple[float, ...]:
    found = []
    for word in _words(text):
        top, slash, bottom = word.partition("/")
        try:
            found.append(float(top) / float(bottom) if slash else float(top))
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"--eps {word!r} is no budget; write numbers by commas, for example 0,2/255,8/255"
            ) from None
    return tuple(found)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _make_folder(to: Path) -> None:
    """Make the folder now, so that a long run does not end in a folder that cannot be written."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=to):
            pass
    except OSError as error:
        raise ValueError(f"--to {to} cannot be written ({error.strerror or error})") from None


@contextlib.contextmanager
def _progress() -> Generator[Any]:
    """A bar on the screen with the stage and the time left; nothing where the errors go to a file."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("attacks", total=None)
        yield lambda done, total, stage: bar.update(task, completed=done, total=total, description=stage)


def _say(what: str, colour: str, text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(what, style=colour), _shown(text), sep="")


def _shown(text: str) -> Any:
    """Text as it is on the screen: no markup, no control characters."""
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))
