"""Recurrent independent mechanisms as a cell: modules that compete for the input, run their own dynamics, and talk.

One step, for modules k = 1..n with states h[k], c[k] of d units:

    read[k], null[k] = input attention of h_{t-1}[k] to the input's slots and a null slot
    m[k]   = 1 for the K modules with the smallest null[k], else 0                     (no gradient)
    h~, c~ = LSTM_k(read[k], h_{t-1}[k], c_{t-1}[k])                                   (weights of its own; or a GRU)
    h^[k]  = h~[k] + δ[k],   δ = communication attention among the states u
    h_t[k] = h^[k] if m[k] else h_{t-1}[k],   c_t[k] = c~[k] if m[k] else c_{t-1}[k]   (held to the bit)

With `comm_source="candidate"`, u = h~ of all modules, and no gradient flows through u of those that lost; with "held",
u = m h~ + (1 - m) h_{t-1}. A consequence: the competition gets no gradient of its own; queries and keys learn through
the attention that multiplies what *active* modules read.

Goyal, Lamb, Hoffmann, Sodhani, Levine, Bengio, Schoelkopf: "Recurrent Independent Mechanisms", ICLR 2021, arXiv
1909.10893. Details that the text leaves open follow the authors' code.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mechanisms._base.validation import check_choice, check_number
from mechanisms.recurrent._doors import check_state, check_whole
from mechanisms.recurrent._rim_sequence import rim_sequence, rim_step
from mechanisms.recurrent._self_attention import as_type
from mechanisms.recurrent._trees import Tree, shapes
from mechanisms.recurrent.grouped import GroupGRUCell, GroupLSTMCell, grouped, gru_update, lstm_update, to_groups
from mechanisms.recurrent.module_attention import (
    CommunicationAttention,
    Competition,
    InputAttention,
    compete,
    dropped,
    masked_gradient,
    unscored,
)
from mechanisms.recurrent.protocol import Cell, Device
from mechanisms.recurrent.rim_states import (
    Folded,
    RIMInfo,
    RIMNoise,
    RIMState,
    Slots,
    StepWeights,
    check_active,
    check_leaves,
)
from mechanisms.recurrent.zoneout import draw_masks

KINDS = ("lstm", "gru")
SOURCES = ("candidate", "held")
COMPETITIONS = ("null", "modules")
READOUTS = ("state", "active")


class RIMCell(Cell):
    """Recurrent independent mechanisms: modules of which the `num_active` that find most in the input are updated.

    `hidden_size` is the size of **one** module: the whole state has num_modules * hidden_size units, and that is the
    size of the output, module by module.

    At the first step the state is zero, so all modules are alike to the input attention, and modules 0 to K - 1 win:
    of equal modules the lower index does. The choice is not continuous: where modules attend nearly alike, as small
    ones do at the published initial values, rounding decides, and may differ between types (autocast), devices and
    back ends: `need_info=True` takes single steps where a plain run takes the kernel.

    Inputs that are zero cannot be told from the null slot: embed raw binary pixels. What is not a number in an input
    stays so in the output; under `torch.autograd.detect_anomaly()` it raises where modules are chosen.

    Args:
        input_size: size of the input, or sizes of several slots; the input is then a tuple.
        hidden_size: units **per module**, d.
        num_modules: n.
        num_active: K, between 1 and n; K = n updates all, without competition.
        cell: "lstm" or "gru" modules.
        input_heads: heads of the input attention.
        key_size: size of a key of one head.
        value_size: size of a value of one head; 4 d // input_heads by default, as in the authors' code.
        input_dropout: rate of dropout on what modules read, in training.
        comm_heads, comm_key_size, comm_value_size: the same for the communication; values are as large as keys by
            default. The paper's table says 32; the authors' code for copying and pixels has 16.
        comm_dropout: rate of dropout on what modules tell each other, before its tanh, in training.
        communicate: `False` leaves the communication out.
        comm_source: "candidate", all public code: modules tell what they would be, also those that lost; "held", the
            paper's text: those that lost tell the state that they hold.
        block_inactive_grad: whether gradients into what inactive modules tell are cut; "candidate" only.
        input_attention: `False` gives every module the whole input (attention 1) and makes no competition; then
            `num_active` must be `num_modules`.
        competition: "null": against the null slot; "modules": softmax over the modules with the weights of the losers
            subtracted, one slot, without a null slot (the authors' code for Atari).
        readout: "state" puts out h; "active" puts zeros for inactive modules (what a layer above may read).
        init: "reference" draws W_ih, W_hh and biases within 1/sqrt(n d), as the authors' dense cell does; "module"
            within 1/sqrt(d).
        qkv_std: queries, keys and values of both attentions start from N(0, qkv_std²). Small modules (d of 16 and
            below) learn slowly at 0.01; 0.05 to 0.1 suits them.
        device, dtype: of the parameters.

    Submodules: `input_attention`, `dynamics`, `communication`; see `parameter_groups`.

    An attention wrapper around it is a TypeError, as its sum would move units that are held. `Zoneout` may go around
    it: it acts after the hold, so that held units stay as they are.

    Raises:
        ValueError: sizes, numbers or names do not fit; more active modules than there are.

    Source: section 2 of the paper; hyper-parameters from the authors' code.

    >>> cell = RIMCell(3, 4, num_modules=6, num_active=2)
    >>> output, state = cell(torch.ones(2, 3))
    >>> output.shape, state.h.shape
    (torch.Size([2, 24]), torch.Size([2, 6, 4]))
    """

    attends = True  # no attention around it
    sequence_takes_lengths = True
    dynamics: GroupLSTMCell | GroupGRUCell

    def __init__(
        self,
        input_size: int | Sequence[int],
        hidden_size: int,
        num_modules: int,
        num_active: int,
        *,
        cell: str = "lstm",
        input_heads: int = 1,
        key_size: int = 64,
        value_size: int | None = None,
        input_dropout: float | int = 0.1,
        comm_heads: int = 4,
        comm_key_size: int = 32,
        comm_value_size: int | None = None,
        comm_dropout: float | int = 0.1,
        communicate: bool = True,
        comm_source: str = "candidate",
        block_inactive_grad: bool = True,
        input_attention: bool = True,
        competition: str = "null",
        readout: str = "state",
        init: str = "reference",
        qkv_std: float | int = 0.01,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = (input_size,) if isinstance(input_size, int) else tuple(input_size)
        self.input_size = input_size if isinstance(input_size, int) else sizes
        self.hidden_size = check_whole(hidden_size, "hidden_size")
        self.num_modules = check_whole(num_modules, "num_modules")
        self.num_active = check_active(num_active, num_modules)
        self.output_size = num_modules * hidden_size
        self.kind = check_choice(cell, "cell", KINDS)
        self.zoneable = ("h", "c") if cell == "lstm" else ("h",)
        self.comm_source = check_choice(comm_source, "comm_source", SOURCES)
        self.competition = check_choice(competition, "competition", COMPETITIONS)
        self.readout = check_choice(readout, "readout", READOUTS)
        self.input_dropout = check_number(input_dropout, "input_dropout", at_least=0, below=1)
        self.comm_dropout = check_number(comm_dropout, "comm_dropout", at_least=0, below=1)
        self.block_inactive_grad = block_inactive_grad
        if not sizes:
            raise ValueError("input_size=(): at least one input slot is needed")
        if competition == "modules" and len(sizes) > 1:
            raise ValueError(f"competition='modules' takes one input slot, got {len(sizes)}: input_size={sizes}")
        if not input_attention and num_active < num_modules:
            raise ValueError(
                f"input_attention=False leaves nothing to compete by: num_active={num_active} must be num_modules="
                f"{num_modules}"
            )
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        self.input_attention = InputAttention(
            sizes,
            hidden_size,
            num_modules,
            num_heads=input_heads,
            key_size=key_size,
            value_size=value_size,
            std=qkv_std,
            scored=input_attention,
            **like,
        )
        read = self.input_attention.num_heads * self.input_attention.value_size
        dynamics = GroupLSTMCell if cell == "lstm" else GroupGRUCell
        self.dynamics = dynamics(num_modules, read, hidden_size, init=init, **like)
        self.communication = (
            CommunicationAttention(
                hidden_size,
                num_modules,
                num_heads=comm_heads,
                key_size=comm_key_size,
                value_size=comm_value_size,
                std=qkv_std,
                **like,
            )
            if communicate
            else None
        )
        # One slot and one head (or no scores): what modules read is a number times a vector, which is multiplied by
        # W_ih before the loop over time.
        self.folded = len(sizes) == 1 and (input_heads == 1 or not input_attention)
        self.exact_gradient = not self._blocks

    @property
    def _blocks(self) -> bool:
        """Whether gradients are cut within a step."""
        cuts = self.block_inactive_grad and self.comm_source == "candidate" and self.num_active < self.num_modules
        return cuts and self.communication is not None

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for part in (self.input_attention, self.dynamics, self.communication):
            if part is not None:
                part.reset_parameters()

    # --- states -------------------------------------------------------------------------------------------------------

    def initial_state(self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> RIMState:
        """Zeros."""
        shape = batch_size, self.num_modules, self.hidden_size
        like = self.dynamics.weight_hh
        h = like.new_zeros(shape, device=device, dtype=dtype)
        return RIMState(h, torch.zeros_like(h) if self.kind == "lstm" else None)

    def hidden(self, state: RIMState) -> Tensor:
        """h of all modules (batch, modules * hidden), module by module."""
        return state.h.flatten(1)

    def with_hidden(self, state: RIMState, h: Tensor) -> RIMState:
        """The state with another h, given as `hidden` gives it."""
        return state._replace(h=h.unflatten(1, (self.num_modules, self.hidden_size)))

    def forward(
        self, input: Tree, state: RIMState | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, RIMState]:
        """One step from the raw input: `(output, state)`.

        Args:
            input: (batch, input_size), or a tuple of such tensors, one per slot.
            state: leaves (batch, modules, hidden); zeros by default.
            generator: where dropout comes from, in training.

        Raises:
            TypeError: the state is not one of this cell, or the input holds integers.
            ValueError: shapes do not fit.
        """
        if isinstance(state, RIMState):
            check_leaves(state, self.num_modules, self.hidden_size)
            if (state.c is None) == (self.kind == "lstm"):
                check_state(self, state, state.h.shape[0])
        return super().forward(input, state, generator=generator)

    # --- before the loop ----------------------------------------------------------------------------------------------

    def noise(
        self,
        steps: int,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> RIMNoise | None:
        """Masks of both dropouts in training, where their rates are above 0."""
        device = self.dynamics.weight_hh.device if device is None else device
        if not self.training:
            return None
        told = self.comm_dropout if self.communication is not None else 0.0
        read, comm = (
            draw_masks((steps, batch_size, self.num_modules, size), 1 - rate, generator, device) if rate > 0 else None
            for rate, size in ((self.input_dropout, self.dynamics.input_size), (told, self.hidden_size))
        )
        return None if read is None and comm is None else RIMNoise(read, comm)

    def project(self, inputs: Tree, noise: RIMNoise | None = None) -> Folded | Slots:
        """Keys and values; of a single slot and head also their products with W_q and W_ih, with dropout between.

        Raises:
            ValueError: another number of slots than `input_size` says.
        """
        slots = (inputs,) if isinstance(self.input_size, int) else inputs
        attention = self.input_attention
        if len(slots) != len(attention.input_sizes):
            raise ValueError(
                f"{len(attention.input_sizes)} input slots are expected, of sizes {attention.input_sizes}; got "
                f"{len(slots)}: {shapes(slots)}"
            )
        if not self.folded:
            return Slots(*attention.slots(slots))
        key, value = attention.slot(0, slots[0])
        value = value.flatten(-2)
        if noise is None or noise.read is None:
            drive = to_groups(value, self.dynamics.weight_ih)
        else:
            kept = dropped(value.unsqueeze(-2), noise.read, self.input_dropout)
            drive = grouped(kept, self.dynamics.weight_ih)
        if key is None or attention.query is None:
            return Folded(None, drive)
        return Folded(to_groups(key.flatten(-2), attention.query.weight.mT) / math.sqrt(attention.key_size), drive)

    def step_weights(self) -> StepWeights:
        """The parameters of the loop over time, put together."""
        dynamics, query = self.dynamics, self.input_attention.query
        recurrent = dynamics.weight_hh
        bias = dynamics.bias if isinstance(dynamics, GroupLSTMCell) else dynamics.bias_hh
        if not self.folded and query is not None:
            recurrent = torch.cat([recurrent, query.weight], 2)
            bias = F.pad(bias, (0, query.out_features))
        return StepWeights(recurrent, bias, None if self.communication is None else self.communication.joined())

    # --- a step -------------------------------------------------------------------------------------------------------

    def step(
        self, projected: Folded | Slots, state: RIMState, noise: RIMNoise | None = None, *, need_info: bool = False
    ) -> tuple[Any, ...]:
        """One step; see the top of this file."""
        return self.advance(projected, state, noise, weights=self.step_weights(), need_info=need_info)

    def _stepper(self) -> Callable[..., tuple[Any, ...]]:
        """The weights are put together once."""
        return functools.partial(self.advance, weights=self.step_weights())

    def sequence(
        self, inputs: Tree, state: RIMState, noise: RIMNoise | None, *, lengths: list[int] | None = None
    ) -> Any:
        """All steps at once, where `_rim_sequence` has a way that is faster.

        Subclasses, which may compute otherwise, step singly unless they define their own.
        """
        return rim_sequence(self, inputs, state, noise, lengths) if type(self) is RIMCell else NotImplemented

    def _whole_step(self, input: Tree, state: RIMState, noise: RIMNoise | None) -> tuple[Any, Any]:
        found = rim_step(self, input, state, noise) if type(self) is RIMCell else NotImplemented
        return super()._whole_step(input, state, noise) if found is NotImplemented else found

    def advance(
        self,
        projected: Folded | Slots,
        state: RIMState,
        noise: RIMNoise | None = None,
        *,
        weights: StepWeights,
        need_info: bool = False,
    ) -> tuple[Any, ...]:
        """A step with the weights of `step_weights`."""
        old = state.h
        recurrent = as_type(grouped(old, weights.recurrent, weights.bias), old)
        rows = self.dynamics.weight_hh.shape[2]
        if isinstance(projected, Folded):
            found = self._compete_folded(projected, old)
            drive = as_type(projected.drive, old)
            if projected.ask is not None:
                drive = drive * as_type(found.real.squeeze(3), old)  # one head: (batch, modules, 1)
        else:
            found, recurrent = self._compete(projected, recurrent, rows), recurrent[..., :rows]
            read = as_type(self.input_attention.read(found.real, projected.values), old)
            read = dropped(read, None if noise is None else noise.read, self.input_dropout)
            drive = as_type(grouped(read, self.dynamics.weight_ih), old)
        h, c = self._candidate(drive, recurrent, state)
        active = found.mask.unsqueeze(2)
        weights_between = None
        if self.communication is not None:
            told = h
            if self.comm_source == "held":
                told = torch.where(active, h, old)
            elif self._blocks:
                told = masked_gradient(h, found.mask)
            delta, weights_between = self.communication(
                told, None if noise is None else noise.comm, self.comm_dropout, weights.communication
            )
            h = h + delta
        if self.num_active < self.num_modules:
            h = torch.where(active, h, old)
            c = None if c is None or state.c is None else torch.where(active, c, state.c)
        output = h if self.readout == "state" else torch.where(active, h, 0.0)
        new = RIMState(h, c)
        if not need_info:
            return output.flatten(1), new
        alpha = torch.cat([found.empty.unsqueeze(3), found.real], 3)
        return output.flatten(1), new, RIMInfo(found.mask, found.null, alpha, weights_between)

    def _compete_folded(self, projected: Folded, old: Tensor) -> Competition:
        if projected.ask is None:
            return unscored(old[:, :1, None].expand(-1, -1, self.input_attention.num_heads, -1), self.num_modules)
        scores = wide_dot(old, projected.ask)
        return self._chosen(scores[..., None, None])

    def _compete(self, projected: Slots, recurrent: Tensor, rows: int) -> Competition:
        if projected.keys is None:
            return unscored(as_type(projected.values, recurrent), self.num_modules)
        return self._chosen(self.input_attention.scores(recurrent[..., rows:], projected.keys))

    def _chosen(self, scores: Tensor) -> Competition:
        if not torch.compiler.is_compiling() and torch.is_anomaly_enabled() and bool(scores.isnan().any()):
            raise ValueError(
                "the scores of the input attention hold values that are no numbers, so that no module can be chosen; "
                "look at the input, the state and the parameters"
            )
        return compete(scores, self.num_active, self.competition)

    def _candidate(self, drive: Tensor, recurrent: Tensor, state: RIMState) -> tuple[Tensor, Tensor | None]:
        """h~ and c~ of all modules, those that lost among them."""
        dynamics = self.dynamics
        if isinstance(dynamics, GroupGRUCell):
            return gru_update(drive + as_type(dynamics.bias_ih, drive), recurrent, state.h), None
        assert state.c is not None
        return lstm_update(as_type(drive + recurrent, state.c), state.c)

    def extra_repr(self) -> str:
        """Sizes, and what is not the default."""
        said = [f"{self.input_size}, {self.num_modules} modules x {self.hidden_size} = {self.output_size}"]
        said += [f"{self.num_active} active", self.kind]
        said += ["no communication"] if self.communication is None else []
        said += [f"comm_source={self.comm_source}"] if self.comm_source != "candidate" else []
        said += [f"competition={self.competition}"] if self.competition != "null" else []
        return ", ".join(said)


def wide_dot(h: Tensor, ask: Tensor) -> Tensor:
    """Scores h[k] · ask[k] (batch, modules), in float32 at least.

    >>> wide_dot(torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    tensor([[3., 3.]])
    """
    kind = torch.promote_types(h.dtype, torch.float32)
    return (h.to(kind) * ask.to(kind)).sum(-1)
