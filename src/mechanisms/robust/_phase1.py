"""Training pairs of twins for a list of settings: all in one pass where that is possible, else one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mechanisms._base.seeds import seeded, torch_generator
from mechanisms.robust._networks import check_factory
from mechanisms.robust._rows import Rows, TensorRows
from mechanisms.robust._settings import Setting
from mechanisms.robust._stack import SharedBatches, is_linear_chain
from mechanisms.robust._twin_stack import TwinStack
from mechanisms.robust.environments import Snapshot, missing_environments
from mechanisms.robust.twins import TwinTrainer, cross_mistakes

_HISTORY_POINTS = 50


class Progress:
    """Counts steps over several runs and reports about a hundred times."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0
        self._every = max(1, total // 100)

    def advance(self) -> None:
        """One more step is done."""
        self._done += 1
        if self._report is not None and (self._done % self._every == 0 or self._done == self._total):
            self._report(self._done, self._total)


@dataclass(frozen=True, eq=False)
class Problem:
    """What all runs of a search share."""

    make_model: Callable[[], nn.Module]
    rows: Rows
    labels: Tensor
    num_classes: int
    validation_rows: Rows | None
    validation_labels: Tensor | None
    device: torch.device
    steps: int
    snapshots: tuple[int, ...]
    one_pass: bool
    flips: bool
    balanced: bool
    held_out: bool
    progress: Progress

    def history_steps(self) -> set[int]:
        """Steps after which the flip rate is remembered."""
        return {*range(0, self.steps + 1, max(1, self.steps // _HISTORY_POINTS)), self.steps, *self.snapshots} - {0}


@dataclass(frozen=True, eq=False)
class Outcome:
    """One trained pair.

    `networks` gives its two modules, `missing` the classes that lack an environment; without `finite` the logits of
    some example are not, and the environments mean nothing.
    """

    setting: Setting
    flip_rate: float
    flip_history: tuple[tuple[int, float], ...]
    train: Tensor
    validation: Tensor | None
    snapshots: tuple[Snapshot, ...]
    missing: list[int]
    finite: bool
    twin_of: Tensor
    networks: Callable[[], tuple[nn.Module, nn.Module]]

    @property
    def degenerate(self) -> bool:
        """Whether the environments cannot be used as they are."""
        return bool(self.missing) or not self.finite


def can_stack(make_model: Callable[[], nn.Module], rows: Rows) -> bool:
    """Whether all pairs can be trained in one pass: chains of linear layers on floating-point rows in memory.

    >>> can_stack(lambda: nn.Linear(3, 2), TensorRows(torch.zeros(4, 3)))
    True
    """
    check_factory(make_model)
    if not isinstance(rows, TensorRows) or rows.inputs.dtype not in (torch.float32, torch.float64):
        return False
    with seeded(0, rows.inputs.device):
        model = make_model()
    return is_linear_chain(model) and (rows.inputs.dim() == 2 or type(model) is not nn.Linear)


def train_pairs(problem: Problem, settings: Sequence[Setting], seed: int) -> list[Outcome]:
    """One pair of twins per setting, all with the same seed, hence the same assignment, initial weights and batches."""
    if not problem.one_pass:
        return [_train_alone(problem, setting, seed) for setting in settings]
    outcomes: dict[int, Outcome] = {}
    for kind in _kinds(settings):
        places = [place for place, one in enumerate(settings) if (one.optimizer, one.momentum) == kind]
        outcomes |= zip(places, _train_stacked(problem, [settings[place] for place in places], seed), strict=True)
    return [outcomes[place] for place in range(len(settings))]


def num_runs(problem_in_one_pass: bool, settings: Sequence[Setting]) -> int:
    """How often `train_pairs` goes through all steps.

    >>> num_runs(True, [Setting(), Setting(lr=0.1), Setting(optimizer="adam")])
    2
    """
    return len(_kinds(settings)) if problem_in_one_pass else len(settings)


def _kinds(settings: Sequence[Setting]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((one.optimizer, one.momentum) for one in settings))


def _train_stacked(problem: Problem, settings: Sequence[Setting], seed: int) -> list[Outcome]:
    assert isinstance(problem.rows, TensorRows)
    inputs, labels = problem.rows.inputs, problem.labels.to(problem.device)
    held_rows, held_labels = problem.validation_rows, problem.validation_labels
    stack = TwinStack(
        problem.make_model, inputs, labels, problem.num_classes, settings, seed=seed,
        flips=problem.flips, balanced=problem.balanced, held_out=problem.held_out,
    )  # fmt: skip

    def annotate() -> tuple[Tensor, Tensor | None, Tensor]:
        (train, finite), held = stack.annotate(inputs, labels), None
        if isinstance(held_rows, TensorRows) and held_labels is not None:
            held, also = stack.annotate(held_rows.inputs, held_labels.to(problem.device))
            held, finite = held.cpu(), finite & also
        return train.cpu(), held, finite

    history: list[tuple[int, Tensor]] = []
    shots: list[tuple[int, Tensor, Tensor | None]] = []
    remembered = problem.history_steps()
    for step in range(1, problem.steps + 1):
        stack.step()
        problem.progress.advance()
        if step in remembered:
            history.append((step, stack.flip_rates()))
        if step in problem.snapshots:
            shots.append((step, *annotate()[:2]))
    train, held, finite = annotate()
    rates = torch.stack([rate for _, rate in history]).T.tolist()
    twin_of = (~stack.assignment).long().cpu()
    outcomes = []
    for pair, setting in enumerate(settings):
        curve = tuple(zip([step for step, _ in history], rates[pair], strict=True))
        at = dict(curve)
        snapshots = tuple(
            Snapshot(step, at[step], some[pair], None if others is None else others[pair])
            for step, some, others in shots
        )
        own = None if held is None else held[pair]
        networks = partial(stack.twins, pair)
        outcomes.append(
            Outcome(
                setting, curve[-1][1], curve, train[pair], own, snapshots, _missing(problem, train[pair], own),
                bool(finite[pair]), twin_of, networks,
            )
        )  # fmt: skip
    return outcomes


def _train_alone(problem: Problem, setting: Setting, seed: int) -> Outcome:
    trainer = TwinTrainer(
        problem.make_model, problem.labels, problem.num_classes, generator=seed, device=problem.device,
        make_optimizer=lambda parameters: _make_optimizer(setting, parameters),
        flips=problem.flips, balanced=problem.balanced, held_out=problem.held_out,
    )  # fmt: skip
    batches = SharedBatches(len(problem.labels), [setting.batch_size], torch_generator(seed, "batches"))

    def draws() -> Iterator[Tensor]:
        for _ in range(problem.steps):
            yield batches.draw()

    def environments(rows: Rows, labels: Tensor) -> tuple[Tensor, bool]:
        one, other = (logits.cpu() for logits in trainer.predict(rows.in_order()))
        return cross_mistakes(one, other, labels), bool(one.isfinite().all() and other.isfinite().all())

    def annotate() -> tuple[Tensor, Tensor | None, bool]:
        (train, finite), held = environments(problem.rows, problem.labels), None
        if problem.validation_rows is not None and problem.validation_labels is not None:
            held, also = environments(problem.validation_rows, problem.validation_labels)
            finite = finite and also
        return train, held, finite

    history: list[tuple[int, Tensor]] = []
    shots: list[tuple[int, Tensor, Tensor | None]] = []
    remembered = problem.history_steps()
    for step, (indices, inputs) in enumerate(problem.rows.batches(draws()), start=1):
        rate = trainer.step(indices, inputs)["flip_rate"]
        problem.progress.advance()
        if step in remembered:
            history.append((step, rate))
        if step in problem.snapshots:
            shots.append((step, *annotate()[:2]))
    train, held, finite = annotate()
    curve = tuple((step, float(rate)) for step, rate in history)
    at = dict(curve)
    networks = (trainer.twins[0], trainer.twins[1])
    return Outcome(
        setting, curve[-1][1], curve, train, held,
        tuple(Snapshot(step, at[step], some, others) for step, some, others in shots),
        _missing(problem, train, held), finite, (~trainer.assignment).long(), lambda: networks,
    )  # fmt: skip


def _missing(problem: Problem, train: Tensor, held: Tensor | None) -> list[int]:
    missing = set(missing_environments(train, problem.labels, problem.num_classes))
    if held is not None and problem.validation_labels is not None:
        missing |= set(missing_environments(held, problem.validation_labels, problem.num_classes))
    return sorted(missing)


def _make_optimizer(setting: Setting, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    if setting.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=setting.lr, weight_decay=setting.weight_decay, momentum=setting.momentum)
    kind = torch.optim.Adam if setting.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=setting.lr, weight_decay=setting.weight_decay)
