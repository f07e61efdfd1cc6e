"""Weights of a cost that change over training."""

from mechanisms._base.validation import check_number


class LinearSchedule:
    """A weight that moves from `start` to `end` over so many updates and stays there.

    Args:
        start, end: the weight at update 0, and from update `steps` on.
        steps: how many updates it takes.

    Raises:
        ValueError: `steps` is negative, or a weight is not finite.

    >>> kl_weight = LinearSchedule(0.2, 1.0, steps=16_000)
    >>> kl_weight(0), kl_weight(4_000), kl_weight(20_000)
    (0.2, 0.4, 1.0)
    """

    def __init__(self, start: float | int, end: float | int, steps: int) -> None:
        self.start, self.end = check_number(start, "start"), check_number(end, "end")
        self.steps = int(check_number(steps, "steps", at_least=0))

    def __call__(self, step: int) -> float:
        """The weight at an update, counted from 0."""
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * max(step, 0) / self.steps
