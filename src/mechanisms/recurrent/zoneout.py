"""Zoneout: units of a recurrent state keep their old value at random: noise regularises, and gradients still pass.

    training:    h_t = d_t h_{t-1} + (1 - d_t) h̃_t,    d_t ~ Bernoulli(z), per step, row and unit
    evaluation:  h_t = z h_{t-1} + (1 - z) h̃_t         the mask's expectation, nothing is rescaled

z, the rate, is the probability of keeping the *old* value. In an LSTM the memory has a rate and masks of its own, and
h̃_t comes from the memory before it is held. The output is the held h_t, which the next step sees too.

`zoneout` is the bare formula, `Zoneout` wraps any cell of the protocol, and the networks of `zoneout_layers` stand in
for `torch.nn.LSTM`, `GRU`, `RNN` and their cells.

Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville, Pal: "Zoneout: Regularizing RNNs by Randomly
Preserving Hidden Activations", ICLR 2017, arXiv 1606.01305.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mechanisms._base.validation import check_choice, check_number
from mechanisms.recurrent import kernels
from mechanisms.recurrent._trees import Tree, first_tensor
from mechanisms.recurrent.cells import GRUCell, GRUState, LSTMCell, LSTMState, RNNCell, RNNState
from mechanisms.recurrent.kernels import Hold
from mechanisms.recurrent.protocol import Cell, Device, Noise, State, project
from mechanisms.recurrent.states import get_leaf, with_leaves

MASKS = ("unit", "layer", "static")
FUSED = (LSTMCell, GRUCell, RNNCell)  # the kernels compute what these do, and not what subclasses change
WORDS = 1 << 16  # masks compare 16-bit words with the rate, which is rounded to 1/65536 for the draw


def zoneout(
    new: Tensor,
    previous: Tensor,
    rate: float | int | Tensor,
    *,
    training: bool,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The new values, some of them replaced by the previous ones.

    Args:
        new: what the recurrence computed (..., H).
        previous: the values before the step, of the same shape.
        rate: probability of keeping the previous value, in [0, 1]; a tensor may give one per unit, and is not checked.
        training: draw a mask; otherwise the mask's expectation is used.
        mask: true (or 1) where the previous value is kept; in place of a draw, whatever `training` says.
        generator: where the draw comes from, on the device of `new`; torch's own by default. Not used in evaluation or
            at rates 0 and 1.

    Raises:
        ValueError: the rate is outside [0, 1].

    Source: section 3.2 of the paper.

    >>> zoneout(torch.ones(3), torch.zeros(3), 0.25, training=False)
    tensor([0.7500, 0.7500, 0.7500])
    >>> zoneout(torch.ones(3), torch.zeros(3), 0.25, training=True, mask=torch.tensor([True, False, False]))
    tensor([0., 1., 1.])
    """
    if mask is not None:
        return torch.lerp(new, previous, mask.to(new.dtype))
    if isinstance(rate, Tensor):
        if training:
            drawn = torch.rand(new.shape, generator=generator, device=new.device) < rate
            return torch.lerp(new, previous, drawn.to(new.dtype))
        return torch.lerp(new, previous, rate.to(new.dtype))
    rate = check_rate(rate)
    if rate == 0:
        return new
    if training and rate < 1:
        return torch.lerp(new, previous, draw_masks(tuple(new.shape), rate, generator, new.device).to(new.dtype))
    return torch.lerp(new, previous, rate)


def check_rate(rate: float | int, name: str = "zoneout rate") -> float:
    """A rate in [0, 1].

    Raises:
        TypeError: it is no number.
        ValueError: it is outside; the message says what was given.

    >>> check_rate(0.5)
    0.5
    """
    if isinstance(rate, tuple | list):
        raise TypeError(f"{name} must be one number in [0, 1], got {rate!r}; several rates go by name: {{'h': 0.05}}")
    try:
        return check_number(rate, name, at_least=0, at_most=1)
    except ValueError:
        raise ValueError(f"{name} must be in [0, 1], got {rate}") from None


def draw_masks(
    shape: tuple[int, ...], rate: float, generator: torch.Generator | None = None, device: Device = None
) -> Tensor:
    """Masks that are true with probability `rate` (to the nearest 1/65536, but never 0 or 1), from 16 random bits each.

    >>> draw_masks((3,), 0.5, torch.Generator().manual_seed(0)).dtype
    torch.bool
    """
    return _below(_words(math.prod(shape), generator, device), rate).view(shape)


def _words(count: int, generator: torch.Generator | None, device: Device) -> Tensor:
    if torch.compiler.is_compiling():  # knows no random_()
        return torch.randint(-WORDS // 2, WORDS // 2, (count,), dtype=torch.int16, generator=generator, device=device)
    # The whole range of 64 bits is named: without it random_() leaves the sign bit zero, and every fourth word biased.
    drawn = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return drawn.view(torch.int16)[:count]


def _below(words: Tensor, rate: float) -> Tensor:
    return words < min(max(round(rate * WORDS), 1), WORDS - 1) - WORDS // 2


class StaticState(NamedTuple):
    """State under static masks: the cell's own, and how many steps each row has taken (batch).

    >>> StaticState(inner=None, step=torch.zeros(2, dtype=torch.int64)).step
    tensor([0, 0])
    """

    inner: State
    step: Tensor


class Zoneout(Cell):
    """Zoneout around a cell: leaves of its state that are hidden activations keep old values at random.

    In `eval()` the masks are replaced by their expectation, which still mixes old and new values: a rate is not a
    dropout rate that vanishes. For masks at test time (Monte-Carlo), call `train()` on this module alone.

    LSTM, GRU and plain cells run through a fused kernel on the CPU (`kernels`); all else steps through the cell.

    Args:
        cell: any cell with `zoneable` leaves.
        rate: probability of keeping the old value: one for all leaves, or by leaf, `{"h": 0.05, "c": 0.5}`; leaves that
            are not named are not held.
        mask: "unit" draws for each step, row and unit; "layer" one draw for all units of a row (stochastic depth in
            time); "static" draws once for each step, the same for all rows and for ever, in evaluation too (static
            identity connections, the paper's control).
        share_mask: whether all leaves use the same draws.
        max_length: steps of the static masks; longer sequences start over.

    Raises:
        TypeError: the cell has no leaves to hold, as attention wrappers; zone the cell inside.
        ValueError: a rate outside [0, 1], or for a leaf that the cell has not.

    Source: sections 3.2 and 4 of the paper.

    >>> cell = Zoneout(LSTMCell(3, 4), {"h": 0.05, "c": 0.5})
    >>> output, state = cell(torch.ones(2, 3))
    >>> output.shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        cell: Cell,
        rate: float | int | Mapping[str, float | int],
        *,
        mask: str = "unit",
        share_mask: bool = False,
        max_length: int = 1000,
    ) -> None:
        super().__init__()
        if not cell.zoneable:
            raise TypeError(
                f"{type(cell).__name__} has no leaves that Zoneout may hold (its `zoneable` is empty); zone the inner "
                f"cell: {type(cell).__name__}(Zoneout(cell))"
            )
        self.cell = cell
        self.input_size, self.output_size = cell.input_size, cell.output_size
        self.growing, self.rows_independent, self.exact_gradient = (
            cell.growing,
            cell.rows_independent,
            cell.exact_gradient,
        )
        self.constant_leaves, self.noise_in_eval = cell.constant_leaves, cell.noise_in_eval
        self.twice_differentiable, self.records = cell.twice_differentiable, cell.records
        rates = dict(rate) if isinstance(rate, Mapping) else dict.fromkeys(cell.zoneable, rate)
        for leaf, one in rates.items():
            if leaf not in cell.zoneable:
                raise ValueError(
                    f"a zoneout rate is given for {leaf!r}; {type(cell).__name__} has {', '.join(cell.zoneable)}"
                )
            rates[leaf] = check_rate(one, f"zoneout rate of {leaf!r}" if len(cell.zoneable) > 1 else "zoneout rate")
        if rates.get("h", 0) > 0.5 and rates["h"] < 1:
            warnings.warn(
                f"the hidden state keeps its old value with probability {rates['h']}: a zoneout rate is the "
                "probability of keeping the old value, not of updating",
                stacklevel=2,
            )
        self.rates = {leaf: one for leaf, one in rates.items() if one > 0}
        self.mask, self.share_mask = check_choice(mask, "mask", MASKS), share_mask
        self.max_length = int(check_number(max_length, "max_length", at_least=1))
        like = cell.initial_state(1)
        self._shapes = {leaf: tuple(get_leaf(like, leaf).shape[1:]) for leaf in self.rates}
        if mask == "static":
            for leaf, one in self._draw(self.max_length, 1, None, first_tensor(like).device, self.rates).items():
                self.register_buffer(f"static_{leaf}", one)

    def _draw(
        self, steps: int, rows: int, generator: torch.Generator | None, device: Device, rates: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Masks (steps, rows, ...) by leaf; rates of 0 and 1 take no draw."""
        masks, shared = {}, None
        for leaf, rate in rates.items():
            shape = self._shapes[leaf]
            own = (1,) * len(shape) if self.mask == "layer" else shape
            if rate == 1:
                masks[leaf] = torch.ones(steps, rows, *own, dtype=torch.bool, device=device)
            else:
                words = shared
                if words is None or words.numel() != steps * rows * math.prod(own):
                    words = _words(steps * rows * math.prod(own), generator, device)
                shared = words if self.share_mask else None
                masks[leaf] = _below(words, rate).view(steps, rows, *own)
            masks[leaf] = masks[leaf].expand(steps, rows, *shape)
        return masks

    def initial_state(self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> State:
        """The inner cell's; with static masks, a `StaticState` around it."""
        inner = self.cell.initial_state(batch_size, device=device, dtype=dtype)
        if self.mask != "static":
            return inner
        return StaticState(inner, torch.zeros(batch_size, dtype=torch.int64, device=first_tensor(inner).device))

    def noise(
        self,
        steps: int,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> Noise | None:
        """Masks (steps, batch, ...) by leaf, true = keep; in training, at rates between 0 and 1, unless static."""
        inner = self.cell.noise(steps, batch_size, generator=generator, device=device, dtype=dtype)
        own = None
        drawn = {leaf: rate for leaf, rate in self.rates.items() if rate < 1}
        if self.training and drawn and self.mask != "static":
            if device is None:
                device = first_tensor(self.cell.initial_state(1)).device
            own = self._draw(steps, batch_size, generator, device, drawn)
        return None if own is None and inner is None else Noise(own, inner)

    def project(self, inputs: Tree, noise: Noise | None = None) -> Tree:
        """The inner cell's."""
        return project(self.cell, inputs, None if noise is None else noise.inner)

    def step(
        self, projected: Tree, state: State, noise: Noise | None = None, *, need_info: bool = False
    ) -> tuple[Any, ...]:
        """The inner step, then old values where the mask says; without noise, the mask's expectation."""
        old = self._inner(state)
        own, inner_noise = (None, None) if noise is None else noise
        output, new, *info = (
            self.cell.step(projected, old, inner_noise, need_info=True)
            if need_info
            else self.cell.step(projected, old, inner_noise)
        )
        held = {}
        for leaf, rate in self.rates.items():
            previous = get_leaf(old, leaf)
            weight: float | Tensor = rate
            if self.mask == "static":
                weight = getattr(self, f"static_{leaf}")[state.step % self.max_length, 0].to(previous.dtype)
            elif own is not None and leaf in own:
                weight = own[leaf].to(previous.dtype)
            held[leaf] = torch.lerp(get_leaf(new, leaf).to(previous.dtype), previous, weight)
        if held:
            new = with_leaves(new, held)
        if "h" in held:
            h = self.cell.hidden(new)
            output = h if isinstance(output, Tensor) else output._replace(**{output._fields[0]: h})
        if self.mask == "static":
            new = StaticState(new, state.step + 1)
        return output, new, *info

    def _inner(self, state: State) -> State:
        return state.inner if self.mask == "static" else state

    def _outer(self, inner: State, state: State) -> State:
        return state._replace(inner=inner) if self.mask == "static" else inner

    def hidden(self, state: State) -> Tensor:
        """The inner cell's."""
        return self.cell.hidden(self._inner(state))

    def with_hidden(self, state: State, h: Tensor) -> State:
        """The inner cell's."""
        return self._outer(self.cell.with_hidden(self._inner(state), h), state)

    def reset(self, state: State, done: Tensor) -> State:
        """The inner cell's; static masks start over in the rows that are done."""
        inner = self.cell.reset(self._inner(state), done)
        if self.mask != "static":
            return inner
        return StaticState(inner, torch.where(done, 0, state.step))

    def freeze(self, active: Tensor, new: State, old: State) -> State:
        """The inner cell's; frozen rows take no step."""
        inner = self.cell.freeze(active, self._inner(new), self._inner(old))
        return inner if self.mask != "static" else StaticState(inner, torch.where(active, new.step, old.step))

    def update_statistics(self, info: Tree) -> None:
        """The inner cell's."""
        self.cell.update_statistics(info)

    @property
    def sequence_takes_lengths(self) -> bool:
        """Whether `sequence` has an argument for lengths: torch's kernels, which serve rate 0, have none."""
        return bool(self.rates)

    def sequence(self, inputs: Tensor, state: State, noise: Noise | None, *, lengths: list[int] | None = None) -> Any:
        """All steps in the fused kernel; at rate 0, in whatever the inner cell has."""
        cell, inner = self.cell, self._inner(state)
        steps = first_tensor(inputs).shape[0]
        taken = steps if lengths is None else torch.tensor(lengths, device=first_tensor(inputs).device)
        if not self.rates:
            found = cell.sequence(inputs, inner, None if noise is None else noise.inner)
        elif isinstance(cell, FUSED) and type(cell) in FUSED:
            found = self._fused(cell, inputs, inner, self._holds(state, noise, steps), lengths)
        else:
            return NotImplemented
        if found is NotImplemented or self.mask != "static":
            return found
        return found[0], StaticState(found[1], state.step + taken)

    def _holds(self, state: State, noise: Noise | None, steps: int) -> dict[str, Hold]:
        own = None if noise is None else noise.own
        holds = {leaf: Hold(rate=rate) for leaf, rate in self.rates.items()}
        if self.mask == "static":
            at = (state.step + torch.arange(steps, device=state.step.device).unsqueeze(1)) % self.max_length
            return {leaf: Hold(getattr(self, f"static_{leaf}")[at, 0]) for leaf in holds}
        return {leaf: Hold(own[leaf]) if own is not None and leaf in own else hold for leaf, hold in holds.items()}

    def _fused(
        self,
        cell: LSTMCell | GRUCell | RNNCell,
        inputs: Tensor,
        state: State,
        holds: Mapping[str, Hold],
        lengths: list[int] | None,
    ) -> Any:
        weights = kernels.Weights(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        if inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            inputs = inputs.to(weights.ih.dtype)  # as torch's own kernels do here: in and out in the parameters' type
        given = [tensor for tensor in (inputs, *state, *weights) if tensor is not None]
        # Masks of other types than truth values may hold weights in between.
        graded = any(hold.mask is not None and hold.mask.dtype is not torch.bool for hold in holds.values())
        if graded or kernels.unavailable(*given) is not None:
            return NotImplemented
        ends = None if lengths is None else torch.tensor(lengths)
        hold_h, hold_c = holds.get("h", kernels.NEVER), holds.get("c", kernels.NEVER)
        if isinstance(cell, LSTMCell):
            output, h, c = kernels.lstm(inputs, state.h, state.c, weights, hold_h=hold_h, hold_c=hold_c, lengths=ends)
            return output, LSTMState(h, c)
        if isinstance(cell, GRUCell):
            output, h = kernels.gru(inputs, state.h, weights, hold_h=hold_h, lengths=ends)
            return output, GRUState(h)
        if not isinstance(cell.nonlinearity, str):
            return NotImplemented
        output, h = kernels.rnn(inputs, state.h, weights, cell.nonlinearity, hold_h=hold_h, lengths=ends)
        return output, RNNState(h)

    def extra_repr(self) -> str:
        """Rates, and what is not the default."""
        said = ", ".join(f"{leaf}={rate:g}" for leaf, rate in self.rates.items()) or "rate=0"
        return (
            said + (f", mask={self.mask}" if self.mask != "unit" else "") + (", share_mask" if self.share_mask else "")
        )
