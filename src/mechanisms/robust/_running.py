"""How the ensemble goes on: one attack on what still stands, batch by batch, with progress."""

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor

from mechanisms.robust._attacked import Worst
from mechanisms.robust._attacks import Attack, Effort, Seen


class Progress:
    """Counts passes of examples through the classifier, and tells whoever wants to know."""

    def __init__(self, tell: Callable[[int, int, str], None] | None, total: int) -> None:
        self._tell, self._total, self._done = tell, total, 0
        self._planned = 0

    def plan(self, passes: int) -> None:
        """A stage of at most so many passes begins; whatever the last one did not need counts as done."""
        self._done = max(self._done, self._planned)
        self._planned = self._done + passes

    def advance(self, passes: int, stage: str) -> None:
        """Some passes more, within what was planned."""
        self._done = min(self._done + passes, self._planned)
        if self._tell is not None:
            self._tell(min(self._done, self._total), self._total, stage)

    def finish(self) -> None:
        """All is done."""
        if self._tell is not None:
            self._tell(self._total, self._total, "done")


def carry_out(
    attack: Attack,
    worst: Worst,
    seen: Seen,
    rows: Int[Tensor, " m"],
    effort: Effort,
    stream: str,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Attack some examples and propose what is found; each batch draws from a stream of its own."""
    for place, part in enumerate(rows.split(worst.attacked.batch_size)):
        if not len(part):
            continue
        for candidate in attack(worst.attacked, seen, part, worst.eps, effort, f"{stream}/{place}"):
            worst.propose(part, candidate)
        if advance is not None:
            advance(len(part))
