"""What the self-attentive cells share: additive attention over past states, and a state that is part attention."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms._base.validation import check_choice
from mechanisms.recurrent._doors import check_whole
from mechanisms.recurrent._trees import Tree, per_row, shapes, tree_map
from mechanisms.recurrent.protocol import Cell, Device, State, project

COMBINE = ("sum", "mean")
READOUT = ("state", "hidden")


class SelfAttention(Cell):
    """A cell whose state s is combined from the inner cell's hidden vector h and attention c over earlier ones.

    The inner cell reads s in the place of its own h; what else is in its state (an LSTM's memory) is carried as usual
    and never attended.
    """

    # Memories are not activations: holding them at random has no meaning, and attention over attention has none here.
    attends = True

    def __init__(
        self, cell: Cell, attention_size: int | None, combine: str, readout: str, released: bool, **options: Any
    ) -> None:
        super().__init__()
        if getattr(cell, "attends", False):
            raise TypeError(
                f"{type(self).__name__} around {type(cell).__name__}: attention over attention is not defined; wrap "
                "the cell inside"
            )
        check_choice(combine, "combine", COMBINE)
        check_choice(readout, "readout", READOUT)
        if released:
            wanted = {"combine": (combine, "mean"), **{name: (one, "sum") for name, one in options.items()}}
            for name, (given, needed) in wanted.items():
                if given != needed:
                    raise ValueError(f"{name}={given!r} with released=True: the released code has {name}={needed!r}")
            readout = "hidden"
        start = cell.initial_state(1)
        like = cell.hidden(start)
        if like.dim() != 2:
            raise TypeError(
                f"hidden() of {type(cell).__name__} gives {shapes(like)}; one vector for each row, (batch, hidden), is "
                "needed to attend to"
            )
        self.cell, self.combine, self.readout = cell, combine, readout
        self.input_size, self.output_size = cell.input_size, like.shape[-1]
        self.attention_size = self.output_size
        if attention_size is not None:
            self.attention_size = check_whole(attention_size, "attention_size")
        self.growing, self.rows_independent, self.exact_gradient = (
            cell.growing,
            cell.rows_independent,
            cell.exact_gradient,
        )
        self.constant_leaves, self.noise_in_eval = cell.constant_leaves, cell.noise_in_eval
        self.twice_differentiable = cell.twice_differentiable

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, device=like.device, dtype=like.dtype)

        self.key = linear(self.output_size, self.attention_size)
        self.query = linear(self.output_size, self.attention_size)
        self.score = linear(self.attention_size, 1)
        nn.init.xavier_normal_(self.score.weight)

    def noise(
        self,
        steps: int,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> Tree:
        """The inner cell's."""
        return self.cell.noise(steps, batch_size, generator=generator, device=device, dtype=dtype)

    def project(self, inputs: Tree, noise: Tree = None) -> Tree:
        """The inner cell's."""
        return project(self.cell, inputs, noise)

    def hidden(self, state: State) -> Tensor:
        """The state s (batch, hidden), which the next step reads."""
        return state.s

    def with_hidden(self, state: State, h: Tensor) -> State:
        """The state with s replaced."""
        return state._replace(s=h)

    def reset(self, state: State, done: Tensor) -> State:
        """Rows that are done remember nothing; the inner cell resets its own part.

        Raises:
            ValueError: the memory grows and only some rows are done.
        """
        if self.growing:
            return super().reset(state, done)
        fresh = self.initial_state(done.shape[0], device=state.s.device)._replace(inner=None)
        rest = tree_map(
            lambda old, new: torch.where(per_row(done, old), as_type(new, old), old), state._replace(inner=None), fresh
        )
        return rest._replace(inner=self.cell.reset(state.inner, done))

    def freeze(self, active: Tensor, new: State, old: State) -> State:
        """Finished rows keep everything, relevances too; the inner cell freezes its own part."""
        rest = super().freeze(active, new._replace(inner=None), old._replace(inner=None))
        return rest._replace(inner=self.cell.freeze(active, new.inner, old.inner))

    def update_statistics(self, info: Tree) -> None:
        """The inner cell's."""
        self.cell.update_statistics(info.inner)

    def _inner_step(self, projected: Tree, state: State, noise: Tree, need_info: bool) -> tuple[Any, ...]:
        """Output, state and info of the inner cell, and its hidden vector in the type of the state."""
        inner = self.cell.with_hidden(state.inner, state.s)
        if not need_info:
            output, inner = self.cell.step(projected, inner, noise)
            return output, inner, None, as_type(self.cell.hidden(inner), state.s)
        output, inner, *info = self.cell.step(projected, inner, noise, need_info=True)
        return output, inner, info[0] if info else None, as_type(self.cell.hidden(inner), state.s)

    def _weights(self, s: Tensor, keys: Tensor, index: Tensor) -> Tensor:
        """Attention weights (batch, entries), in single precision at least; exactly 0 for empty entries (index -1)."""
        query = self.query(s).unsqueeze(1)
        energy = torch.tanh(wide(keys) + wide(query))
        if self.score.weight.dtype is energy.dtype and not _lowers(energy.device):
            scores = self.score(energy).squeeze(-1)
        else:
            scores = (energy * wide(self.score.weight)).sum(-1)
        return torch.softmax(torch.where(index < 0, -math.inf, scores), -1)

    def _combined(self, h: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """The new state s from h and what is attended."""
        attended = torch.bmm(as_type(weights, values).unsqueeze(1), values).squeeze(1)
        s = h + as_type(attended, h)
        return 0.5 * s if self.combine == "mean" else s

    def _output(self, output: Tree, h: Tensor, s: Tensor) -> Tree:
        """What a step gives out: s or h, in the place of the inner cell's (first) output."""
        read = s if self.readout == "state" else h
        return read if isinstance(output, Tensor) else output._replace(**{output._fields[0]: read})

    def extra_repr(self) -> str:
        """What is not the default."""
        said = {"combine": (self.combine, "mean"), "readout": (self.readout, "state")}
        return ", ".join(f"{name}={value}" for name, (value, default) in said.items() if value != default)


def _lowers(device: torch.device) -> bool:
    """Whether matrix products there run in half precision now; the meta device has no such mode."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def wide(tensor: Tensor) -> Tensor:
    """In single precision at least: softmax and sums of its weights are too coarse in half.

    >>> wide(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def as_type(tensor: Tensor, like: Tensor) -> Tensor:
    """In the type of another tensor.

    >>> as_type(torch.ones(1), torch.ones(1, dtype=torch.float64)).dtype
    torch.float64
    """
    return tensor if tensor.dtype is like.dtype else tensor.to(like.dtype)
