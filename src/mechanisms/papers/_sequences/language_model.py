"""What language models are made of: windows and rows of text, the model, its evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms._base.seeds import torch_generator
from mechanisms.lab.batches import Batches
from mechanisms.lab.data.language import Tokens
from mechanisms.lab.together import world_size
from mechanisms.papers._sequences.classifier import output_size
from mechanisms.recurrent.states import detach, state_from_dict, state_to_dict


def cut(tokens: Tokens, train: int, validation: int, test: int) -> Tokens:
    """The first tokens of each part; 0 keeps all of it. The vocabulary stays that of the whole."""
    lengths = {"train": train, "validation": validation, "test": test}
    return replace(tokens, **{name: getattr(tokens, name)[: length or None] for name, length in lengths.items()})


def on_device(part: np.ndarray, device: torch.device) -> Tensor:
    """A part of a corpus on a device, in bytes where that does; torch cannot index in 16 bits without a sign."""
    return torch.from_numpy(part if part.dtype == np.uint8 else part.astype(np.int32)).to(device)


class Windows:
    """Shuffled windows that do not overlap, at a random offset in each epoch: batches (window, rows).

    Args:
        text: (length,), integers of any kind.
        window: tokens of a window.
        batch_size: windows of a batch, over all processes.
        seed: decides offsets and order.
    """

    state = None  # every window begins anew

    def __init__(self, text: Tensor, window: int, batch_size: int, seed: int) -> None:
        count = (len(text) - window + 1) // window  # whatever the offset
        if count < 1:
            raise ValueError(f"a text of {len(text)} tokens has no windows of {window} at every offset")
        self._text, self._steps, self._seed = text, torch.arange(window, device=text.device), seed
        self._batches = Batches(count, min(batch_size, count), seed, self._read)

    def _read(self, rows: Tensor) -> Tensor:
        epoch, window = self._batches.state_dict()["epoch"], len(self._steps)
        offset = torch.randint(window, (), generator=torch_generator(self._seed, f"offset {epoch}"))
        starts = (rows * window + offset).to(self._text.device)
        return self._text[self._steps.unsqueeze(1) + starts].long()

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._batches)

    def hand_on(self, state: Any) -> None:
        """Windows have nothing to hand on."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return self._batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._batches.load_state_dict(state_dict)


class Rows:
    """Rows of consecutive text, side by side: batches (window + 1, rows); a window's last token begins the next one.

    After an epoch the rows move up by one, so that each goes on with the text that follows what it has read, and with
    its state.

    Args:
        text: (length,), integers of any kind.
        window: predictions of a window.
        batch_size: number of rows.
        network: whose states are handed on (with `initial_state`).
    """

    def __init__(self, text: Tensor, window: int, batch_size: int, network: Any) -> None:
        if world_size() > 1:
            raise ValueError("rows that hand their state on train in one process: use --jobs, not torchrun")
        self._count = (len(text) - 1) // batch_size // window  # windows of a row
        if self._count < 1:
            raise ValueError(f"a text of {len(text)} tokens has no {batch_size} rows of a window of {window}")
        length = self._count * window
        self._rows = text[: batch_size * length + 1].unfold(0, length + 1, length).T
        self._window, self._network, self._epoch, self._place = window, network, 0, 0
        self.state: Any = None

    def __iter__(self) -> Iterator[Tensor]:
        rows = self._rows.roll(-self._epoch, 1)
        for place in range(self._place, self._count):
            self._epoch, self._place = divmod(self._epoch * self._count + place + 1, self._count)
            yield rows[place * self._window : (place + 1) * self._window + 1].long()

    def hand_on(self, state: Any) -> None:
        """Keep the state that a window ended with, without its history."""
        self.state = detach(state)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, and the rows' state."""
        state = {} if self.state is None else state_to_dict(self.state)
        return {"epoch": self._epoch, "place": self._place, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._epoch, self._place = state_dict["epoch"], state_dict["place"]
        if leaves := state_dict["state"]:
            device = self._rows.device
            self.state = state_from_dict(self._network, {name: leaf.to(device) for name, leaf in leaves.items()})


class LanguageModel(nn.Module):
    """Tokens in, logits of the next ones out.

    Args:
        network: see `language`.
        vocabulary: number of tokens.
        embedding: size of the embeddings; 0 for one-hot vectors.
    """

    def __init__(self, network: nn.Module, vocabulary: int, embedding: int = 0) -> None:
        super().__init__()
        self.vocabulary, self.network = vocabulary, network
        self.embedding = nn.Embedding(vocabulary, embedding) if embedding else None
        self.readout = nn.Linear(output_size(network), vocabulary)

    def forward(
        self, tokens: Tensor, state: Any = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """Logits (T, B, vocabulary), the network's outputs (T, B, O), and the state after the last token."""
        if self.embedding is None:
            inputs = F.one_hot(tokens, self.vocabulary).to(self.readout.weight.dtype)
        else:
            inputs = self.embedding(tokens)
        output, state = self.network(inputs, state, generator=generator)
        first = output if isinstance(output, Tensor) else output[0]
        return self.readout(first), first, state


class Best:
    """The best validation so far, with the weights that reached it, and what was measured at the planned end."""

    def __init__(self) -> None:
        self.update, self.value = 0, math.inf
        self.weights: dict[str, Tensor] = {}
        self.planned: dict[str, float] = {}

    def see(self, update: int, value: float, model: nn.Module) -> None:
        """Keep a copy of the model's weights if they are better (or the first)."""
        value = math.inf if math.isnan(value) else value
        if value < self.value or not self.weights:
            self.update, self.value = update, value
            self.weights = {name: one.detach().clone() for name, one in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        vars(self).update(state_dict)


def endless(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, epoch after epoch."""
    while True:
        yield from batches


def clipped_step(optimizer: Any, parameters: list[nn.Parameter], largest: float) -> None:
    """A step of the optimiser, shortened to a norm (over all parameters together) of at most `largest`."""
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step()
    with torch.no_grad():
        moves = torch._foreach_sub([parameter.detach() for parameter in parameters], before)
        norm = torch.stack(torch._foreach_norm(moves)).norm()
        share = (largest / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp(max=1.0)
        for parameter, old, move in zip(parameters, before, moves, strict=True):
            parameter.copy_(torch.addcmul(old, move, share))


@torch.no_grad()
def read(model: nn.Module, text: Tensor, window: int, rows: int, together: int) -> float:
    """Bits per predicted token.

    Args:
        model: a `LanguageModel`, in evaluation mode.
        text: (length,), integers of any kind.
        window: tokens of the windows the text is cut into.
        rows: 0 reads each window from the initial state; otherwise the text is read in so many rows (fewer for a short
            text) from beginning to end, with their state.
        together: windows that are read at once.

    What is left behind the last whole window, or does not fill a row, is not read.
    """
    total = torch.zeros((), dtype=torch.float64, device=text.device)
    predicted = 0
    if rows == 0:
        window = min(window, len(text))
        pieces = text[: len(text) // window * window].view(-1, window).T.split(together, 1)
    else:
        length = max((len(text) - 1) // rows, 1)
        whole = text[: (len(text) - 1) // length * length + 1].unfold(0, length + 1, length).T
        pieces = [whole[start : start + window + 1] for start in range(0, length, window)]
    state = None
    for piece in pieces:
        piece = piece.long()
        logits, _, after = model(piece[:-1], state)
        total += F.cross_entropy(logits.flatten(0, 1).float(), piece[1:].flatten(), reduction="sum")
        predicted += piece[1:].numel()
        state = after if rows else None
    return float(total) / predicted / math.log(2)
