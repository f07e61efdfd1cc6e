"""Bidirectional recurrent independent mechanisms: layers of modules that read from below, and from above one step back.

At each step, from the bottom to the top, layer l is a layer of recurrent independent mechanisms whose slots are

    below_t     the input (l = 1), or the new state of layer l - 1, whole
    above_{t-1} the state of the layer above at the step before (l < L), whole

beside the null slot. So every module weighs evidence, expectation and nothing, at every step.

Mittal, Lamb, Goyal, Voleti, Shanahan, Lajoie, Mozer, Bengio: "Learning to Combine Top-Down and Bottom-Up Signals in
Recurrent Neural Networks with Attention over Modules", ICML 2020, arXiv 2006.16981. The authors' code has two layers,
where the top is the next; with more layers, which of them is above is an argument here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms._base.validation import check_choice
from mechanisms.recurrent._doors import check_whole
from mechanisms.recurrent._rim_sequence import brim_sequence, brim_step
from mechanisms.recurrent._trees import Tree
from mechanisms.recurrent.module_attention import stacked
from mechanisms.recurrent.protocol import Cell, Device
from mechanisms.recurrent.rim_cell import RIMCell
from mechanisms.recurrent.rim_states import Folded, RIMNoise, RIMState, Slots, StepWeights, check_leaves


class BRIMCell(Cell):
    """Layers of recurrent independent mechanisms with attention to the layer above, as one cell.

    It is one cell, and no stack of cells, as a layer reads what the layer above was at the step before.

    Args:
        input_size: size of the input.
        hidden_size, num_modules, num_active: units per module, modules and active modules of each layer, from the
            bottom to the top.
        top_down: which layer a layer reads from above: "next", "top", or `None` for none (hierarchical RIMs).
        cell: the other arguments of `RIMCell`, the same for all layers.

    Submodules: `layers`, a list of `RIMCell`. The output is the state of the top layer; the state is a tuple of the
    layers' states; info is a tuple of the layers' `RIMInfo`.

    With one module per layer this is an LSTM with hierarchy, attention and top-down signals. Attention to a slot of
    zeros takes weight from the others: a top-down slot without weights is not the same as no slot.

    Raises:
        ValueError: sequences of different lengths, an unknown `top_down`, or what `RIMCell` refuses.

    Source: section 3 of the paper.

    >>> cell = BRIMCell(3, [4, 5], [6, 3], [4, 2])
    >>> output, state = cell(torch.ones(2, 3))
    >>> output.shape, state[0].h.shape
    (torch.Size([2, 15]), torch.Size([2, 6, 4]))
    """

    attends = True  # no attention around it
    sequence_takes_lengths = True

    def __init__(
        self,
        input_size: int,
        hidden_size: Sequence[int],
        num_modules: Sequence[int],
        num_active: Sequence[int],
        *,
        top_down: str | None = "next",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **cell: Any,
    ) -> None:
        super().__init__()
        given = {"hidden_size": hidden_size, "num_modules": num_modules, "num_active": num_active}
        for name, sizes in given.items():
            if isinstance(sizes, int) or len(sizes) != len(hidden_size) or not len(sizes):
                raise ValueError(
                    f"hidden_size={hidden_size!r}, num_modules={num_modules!r}, num_active={num_active!r}: {name} must "
                    "have one entry for each layer, from the bottom to the top"
                )
        self.top_down = None if top_down is None else check_choice(top_down, "top_down", ("next", "top"))
        if "readout" in cell:
            raise ValueError("readout: a layer reads the whole state of the one below")
        self.input_size = check_whole(input_size, "input_size")
        totals = [size * count for size, count in zip(hidden_size, num_modules, strict=True)]
        self.output_size, last = totals[-1], len(totals) - 1
        # For each layer, which one it reads from above.
        self.above = tuple(
            None if top_down is None or layer == last else layer + 1 if top_down == "next" else last
            for layer in range(len(totals))
        )
        layers = []
        for layer, above in enumerate(self.above):
            below = input_size if layer == 0 else totals[layer - 1]
            slots = below if above is None else (below, totals[above])
            sizes = hidden_size[layer], num_modules[layer], num_active[layer]
            layers.append(RIMCell(slots, *sizes, device=device, dtype=dtype, **cell))
        self.layers = nn.ModuleList(layers)
        self.exact_gradient = all(layer.exact_gradient for layer in layers)

    def layer(self, place: int) -> RIMCell:
        """A layer, the bottom being 0."""
        found = self.layers[place]
        assert isinstance(found, RIMCell)
        return found

    @property
    def _ours(self) -> bool:
        """Whether no subclass, of the stack or of a layer, may compute otherwise."""
        return type(self) is BRIMCell and all(type(layer) is RIMCell for layer in self.layers)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for place in range(len(self.layers)):
            self.layer(place).reset_parameters()

    def initial_state(
        self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> tuple[RIMState, ...]:
        """Zeros, one state per layer, from the bottom to the top."""
        return tuple(
            self.layer(place).initial_state(batch_size, device=device, dtype=dtype) for place in range(len(self.layers))
        )

    def hidden(self, state: tuple[RIMState, ...]) -> Tensor:
        """h of the top layer (batch, modules * hidden)."""
        return self.layer(-1).hidden(state[-1])

    def with_hidden(self, state: tuple[RIMState, ...], h: Tensor) -> tuple[RIMState, ...]:
        """The state with another h of the top layer."""
        return *state[:-1], self.layer(-1).with_hidden(state[-1], h)

    def forward(
        self, input: Tensor, state: tuple[RIMState, ...] | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, tuple[RIMState, ...]]:
        """One step from the raw input: `(output, state)`.

        Args:
            input: (batch, input_size).
            state: one per layer, leaves (batch, modules, hidden); zeros by default.
            generator: where dropout comes from, in training.

        Raises:
            TypeError: the state is not one of this cell, or the input holds integers.
            ValueError: shapes do not fit.
        """
        if isinstance(state, tuple) and len(state) == len(self.layers):
            for place, one in enumerate(state):
                if isinstance(one, RIMState):
                    check_leaves(one, self.layer(place).num_modules, self.layer(place).hidden_size)
        return super().forward(input, state, generator=generator)

    def noise(
        self,
        steps: int,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[RIMNoise | None, ...] | None:
        """That of each layer."""
        drawn = tuple(
            self.layer(place).noise(steps, batch_size, generator=generator, device=device, dtype=dtype)
            for place in range(len(self.layers))
        )
        return None if all(one is None for one in drawn) else drawn

    def project(self, inputs: Tensor, noise: tuple[RIMNoise | None, ...] | None = None) -> Tree:
        """What the bottom layer makes of the input: all that it can be asked, or the key and the value of its slot."""
        bottom = self.layer(0)
        if self.above[0] is None:
            return bottom.project(inputs, None if noise is None else noise[0])
        return bottom.input_attention.slot(0, inputs)

    def step(
        self,
        projected: Tree,
        state: tuple[RIMState, ...],
        noise: tuple[RIMNoise | None, ...] | None = None,
        *,
        need_info: bool = False,
    ) -> tuple[Any, ...]:
        """One step through all layers."""
        return self.advance(projected, state, noise, weights=self.step_weights(), need_info=need_info)

    def step_weights(self) -> tuple[StepWeights, ...]:
        """The parameters of the loop over time, layer by layer."""
        return tuple(self.layer(place).step_weights() for place in range(len(self.layers)))

    def _stepper(self) -> Callable[..., tuple[Any, ...]]:
        """The weights are put together once."""
        return functools.partial(self.advance, weights=self.step_weights())

    def sequence(
        self,
        inputs: Tensor,
        state: tuple[RIMState, ...],
        noise: tuple[RIMNoise | None, ...] | None,
        *,
        lengths: list[int] | None = None,
    ) -> Any:
        """All steps at once, where `_rim_sequence` has a way that is faster."""
        return brim_sequence(self, inputs, state, noise, lengths) if self._ours else NotImplemented

    def _whole_step(self, input: Tree, state: Any, noise: Tree) -> tuple[Any, Any]:
        found = brim_step(self, input, state, noise) if self._ours else NotImplemented
        return super()._whole_step(input, state, noise) if found is NotImplemented else found

    def advance(
        self,
        projected: Tree,
        state: tuple[RIMState, ...],
        noise: tuple[RIMNoise | None, ...] | None = None,
        *,
        weights: tuple[StepWeights, ...],
        need_info: bool = False,
    ) -> tuple[Any, ...]:
        """A step with the weights of `step_weights`."""
        output, new, infos = None, [], []
        for place, above in enumerate(self.above):
            layer, own = self.layer(place), None if noise is None else noise[place]
            top = None if above is None else state[above].h.flatten(1)
            given = self._given(place, projected, output, top, own)
            output, after, *info = layer.advance(given, state[place], own, weights=weights[place], need_info=need_info)
            new.append(after)
            infos += info
        return (output, tuple(new), tuple(infos)) if need_info else (output, tuple(new))

    def _given(
        self, place: int, projected: Tree, below: Tensor | None, above: Tensor | None, noise: RIMNoise | None
    ) -> Folded | Slots:
        """What a layer reads, projected as far as the states before its step allow."""
        layer = self.layer(place)
        if above is None:
            return projected if below is None else layer.project(below, noise)
        attention = layer.input_attention
        slot = projected if below is None else attention.slot(0, below)
        return Slots(*stacked([slot, attention.slot(1, above)]))

    def extra_repr(self) -> str:
        """What the layers, which are shown, do not say."""
        return f"top_down={self.top_down}"
