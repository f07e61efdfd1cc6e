"""The contract of everything that has a state: a cell describes one step of time as a pure function.

A subclass of `Cell` writes `initial_state` and `step`; `scan` runs it over time, `Recurrent` gives it the face of
`torch.nn.LSTM`, and `check_cell` says whether it keeps the contract:

- `step` is pure: no random numbers, no attribute written, no argument changed in place, no branch on values.
- A state is a tree of tensors (best a `NamedTuple`), batch first in every leaf; shapes, types and structure are the
  same before and after a step. Initial values are finite: an empty slot has index -1, not score -inf.
- `project` holds whatever depends on the input alone; `scan` calls it once for many steps.
- `noise` draws all random numbers of all steps at once. Without noise a cell is deterministic; `train()` and `eval()`
  act through `noise` alone.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mechanisms.recurrent._doors import check_inputs, check_state
from mechanisms.recurrent._trees import Tree, first_tensor, per_row, tree_map
from mechanisms.recurrent.states import State, freeze, get_leaf, with_leaves

Device = torch.device | str | None


class Noise(NamedTuple):
    """What a wrapper draws: its own noise and that of the cell inside.

    >>> Noise(own=None, inner=None)
    Noise(own=None, inner=None)
    """

    own: Tree
    inner: Tree


class Cell(nn.Module):
    """One step of a recurrent network. Write `initial_state` and `step`; the rest has defaults.

    Attributes:
        input_size: last dimension of the input; a tuple when a step takes a tuple of inputs.
        output_size: last dimension of the (first) output.
        zoneable: leaves of the state that are hidden activations ("h", "c"): Zoneout may hold these.
        growing: leaves grow with the number of steps taken (never with values).
        rows_independent: `False` only for batch statistics.
        exact_gradient: `False` when gradients are stopped inside a step.
        constant_leaves: floating-point leaves that carry no gradient.
        noise_in_eval: `True` for stochastic cells, which draw in `eval()` too.
        twice_differentiable: whether gradients of gradients are right.
        records: `False` for cells that record nothing; networks leave them out when they are asked for info.

    >>> class Leaky(Cell):
    ...     def __init__(self, size: int) -> None:
    ...         super().__init__()
    ...         self.input_size, self.output_size = size, size
    ...         self.weight = nn.Parameter(torch.eye(size))
    ...     def initial_state(self, batch_size, *, device=None, dtype=None):
    ...         return {"h": self.weight.new_zeros(batch_size, self.output_size, device=device, dtype=dtype)}
    ...     def project(self, inputs):
    ...         return inputs @ self.weight
    ...     def step(self, projected, state, noise=None, *, need_info=False):
    ...         h = torch.lerp(state["h"], torch.tanh(projected), 0.1)
    ...         return h, {"h": h}
    >>> output, state = Leaky(3)(torch.ones(2, 3))
    >>> output.shape
    torch.Size([2, 3])
    """

    input_size: int | tuple[int, ...]
    output_size: int
    zoneable: tuple[str, ...] = ()
    growing: bool = False
    rows_independent: bool = True
    exact_gradient: bool = True
    constant_leaves: tuple[str, ...] = ()
    noise_in_eval: bool = False
    twice_differentiable: bool = True
    records: bool = True
    _project_sees_noise: bool = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Whether `project` takes noise is read once, so that most cells can leave the parameter out.
        cls._project_sees_noise = "noise" in inspect.signature(cls.project).parameters

    def initial_state(self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> State:
        """The state before the first step, `batch_size` rows; on the parameters' device and of their type by default.

        Zeros, unless the cell has learned initial states: then its parameters, expanded, so that gradients flow.
        """
        raise NotImplementedError(f"{type(self).__name__} must define initial_state(batch_size, *, device, dtype)")

    def project(self, inputs: Tree, noise: Tree = None) -> Tree:
        """Whatever depends on the inputs (and the noise of the same steps) alone, for any leading dimensions.

        `noise` may be left out of the signature by cells that do not need it here.
        """
        return inputs

    def noise(
        self,
        steps: int,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> Tree:
        """All random numbers of `steps` steps, leaves (steps, batch_size, ...); `None` when nothing is random."""
        return None

    def step(self, projected: Tree, state: State, noise: Tree = None, *, need_info: bool = False) -> tuple[Any, ...]:
        """One step: `(output, state)`, and `info` as a third when `need_info` is set and the cell records something.

        Args:
            projected: what `project` makes of the input of this step.
            state: the state before the step; it must not be changed in place.
            noise: the noise of this step; `None` is the deterministic form.
            need_info: whether to return what the cell records (attention weights, masks) as a third value.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(projected, state, noise=None, *, need_info)")

    def forward(
        self, input: Tree, state: State | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Any, State]:
        """One step from the raw input (batch, input_size): `(output, state)`, states batch first.

        Raises:
            TypeError: the state is not one of this cell.
            ValueError: shapes do not fit.
        """
        like = first_tensor(input)
        given = state is not None
        if state is None:
            state = self.initial_state(like.shape[0], device=like.device)
        noise = self.noise(1, like.shape[0], generator=generator, device=like.device)
        if noise is not None:
            noise = tree_map(lambda leaf: leaf[0], noise)
        try:
            return self._whole_step(input, state, noise)
        except Exception:
            # Looked at only now, so that a good step costs nothing more.
            check_inputs(self, input, leading=1)
            if given:
                check_state(self, state, like.shape[0])
            raise

    def _whole_step(self, input: Tree, state: State, noise: Tree) -> tuple[Any, State]:
        """A step from the raw input; cells for which torch has one call override it."""
        return self.step(project(self, input, noise), state, noise)

    def _stepper(self) -> Callable[..., tuple[Any, ...]]:
        """`step`, for many steps under the same parameters; a cell may compute what they share once."""
        return self.step

    def hidden(self, state: State) -> Tensor:
        """The vector (batch, hidden) that stands for the state; attention wrappers read it. By default leaf `h`."""
        return get_leaf(state, "h")

    def with_hidden(self, state: State, h: Tensor) -> State:
        """The state with its vector replaced by `h`. By default leaf `h`."""
        return with_leaves(state, {"h": h})

    def reset(self, state: State, done: Tensor) -> State:
        """The state with the rows where `done` is true started anew; gradients of the other rows are untouched.

        Raises:
            ValueError: the cell's memory grows and only some rows are done.
        """
        fresh = self.initial_state(done.shape[0], device=first_tensor(state).device)
        if self.growing:
            if bool(done.all()):
                return tree_map(lambda new, old: new.to(old.dtype), fresh, state)
            if not bool(done.any()):
                return state
            raise ValueError(
                f"{type(self).__name__} has a memory that grows, the same for all rows, so that single rows cannot be "
                "reset; set max_memory=... for a memory of fixed shape, or reset all rows at once"
            )
        return tree_map(lambda old, new: torch.where(per_row(done, old), new.to(old.dtype), old), state, fresh)

    def freeze(self, active: Tensor, new: State, old: State) -> State:
        """Row by row the new state where `active`, else the old one: finished sequences stay as they are."""
        return freeze(active, new, old)

    def sequence(self, inputs: Tree, state: State, noise: Tree) -> Any:
        """A fused path for whole sequences: `(outputs, state)` for raw inputs (time, batch, ...), or `NotImplemented`.

        Every row runs for all steps; `scan` cuts at lengths, resets and truncation. `noise` has leading (time, batch).
        """
        return NotImplemented

    def update_statistics(self, info: Tree) -> None:
        """Take what a training scan recorded into running statistics; cells with batch statistics override it."""

    def extra_repr(self) -> str:
        """The sizes, as `print` shows them."""
        sizes = getattr(self, "input_size", None), getattr(self, "output_size", None)
        return f"{sizes[0]}, {sizes[1]}"


def project(cell: Cell, inputs: Tree, noise: Tree) -> Tree:
    """`cell.project` with the noise for those that want it; wrappers call it for the cell inside.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> project(LSTMCell(3, 4), torch.ones(5, 2, 3), None).shape
    torch.Size([5, 2, 16])
    """
    return cell.project(inputs, noise) if cell._project_sees_noise else cell.project(inputs)
