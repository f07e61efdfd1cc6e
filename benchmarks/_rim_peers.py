"""The ways of working of earlier implementations of modular recurrent layers, for the bench beside this file.

Written anew, so that they do the work of the public implementations and compute what ours do:

- `dense=True`, the authors' RIMs and BRIMs: the modules' LSTMs are one dense `nn.LSTMCell` over all of them, whose
  blocks off the diagonal are set to zero before each sequence; everything else happens at each step, and the empty slot
  is a slot of zeros that has a key and a value.
- `dense=False`, the grouped way: weights of the modules' own, multiplied module by module in one batched product;
  everything at each step.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms.recurrent.brim_cell import BRIMCell
from mechanisms.recurrent.rim_cell import RIMCell, RIMState
from mechanisms.recurrent.scan import scan

State = tuple[Tensor, Tensor]


class _OnlyActive(torch.autograd.Function):
    """Hands numbers on, and gradients to active units alone."""

    @staticmethod
    def forward(ctx: Any, units: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return units

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class Grouped(nn.Module):
    """A matrix for each group: (B, groups, in) to (B, groups, out)."""

    def __init__(self, groups: int, size: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(groups, size, out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.permute(1, 0, 2), self.weight).permute(1, 0, 2)


class Attention(nn.Module):
    """Scaled dot-product attention with maps of its own for each group of queries, of keys and of values."""

    def __init__(self, asking: int, asked: int, ask_size: int, size: int, heads: int, key: int, value: int) -> None:
        super().__init__()
        self.heads, self.key_size, self.value_size = heads, key, value
        self.query = Grouped(asking, ask_size, heads * key)
        self.key, self.value = Grouped(asked, size, heads * key), Grouped(asked, size, heads * value)

    def forward(self, asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(asking)
        q = self.query(asking).reshape(rows, -1, self.heads, self.key_size).transpose(1, 2)
        k = self.key(asked).reshape(rows, -1, self.heads, self.key_size).transpose(1, 2)
        v = self.value(asked).reshape(rows, -1, self.heads, self.value_size).transpose(1, 2)
        weights = torch.softmax(torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.key_size), 3)
        return torch.matmul(weights, v).transpose(1, 2).reshape(rows, asking.shape[1], -1), weights


class PeerLayer(nn.Module):
    """One layer, a step at a time; `slots` inputs of one size beside an empty one, which comes last."""

    def __init__(
        self, inputs: int, size: int, modules: int, active: int, *, dense: bool, slots: int, heads: int, comm_key: int
    ) -> None:
        super().__init__()
        self.size, self.groups, self.active, self.dense = size, modules, active, dense
        value = 4 * size // heads
        self.read = Attention(modules, slots + 1, size, inputs, heads, 64, value)
        self.talk = Attention(modules, modules, size, size, 4, comm_key, comm_key)
        self.told, self.gate = nn.Linear(4 * comm_key, size), nn.Linear(4 * comm_key, size)
        if dense:
            self.cell = nn.LSTMCell(modules * 4 * size, modules * size)
            self.clean()
        else:
            self.from_read, self.from_h = Grouped(modules, 4 * size, 4 * size), Grouped(modules, size, 4 * size)

    @torch.no_grad()
    def clean(self) -> None:
        """Zeros off the diagonal; what the optimiser has put there goes."""
        for weight in (self.cell.weight_ih, self.cell.weight_hh):
            blocks = weight.view(4, self.groups, self.size, self.groups, -1)
            for row in range(self.groups):
                for column in range(self.groups):
                    if row != column:
                        blocks[:, row, :, column] = 0

    def dynamics(self, read: Tensor, h: Tensor, c: Tensor) -> State:
        if self.dense:
            h, c = self.cell(read.reshape(len(h), -1), (h, c))
            return h, c
        blocks = h.view(len(h), self.groups, self.size)
        i, f, g, o = (self.from_read(read) + self.from_h(blocks)).chunk(4, 2)
        c = torch.sigmoid(f) * c.view_as(blocks) + torch.sigmoid(i) * torch.tanh(g)
        return (torch.sigmoid(o) * torch.tanh(c)).reshape(h.shape), c.reshape(h.shape)

    def forward(self, slots: Sequence[Tensor], h: Tensor, c: Tensor) -> State:
        rows = len(h)
        asked = torch.stack([*slots, torch.zeros_like(slots[0])], 1)
        read, weights = self.read(h.view(rows, self.groups, self.size), asked)
        read = F.dropout(read, 0.1, self.training)
        null = weights[..., -1].mean(1)
        losers = torch.topk(null, self.groups - self.active, dim=1).indices
        mask = torch.ones_like(null).scatter(1, losers, 0.0)
        mask = mask.unsqueeze(2).expand(-1, -1, self.size).reshape(rows, -1).detach()
        h_new, c_new = self.dynamics(read, h, c)
        blocks = _OnlyActive.apply(h_new, mask).view(rows, self.groups, self.size)
        heard, _ = self.talk(blocks, blocks)
        told = torch.tanh(F.dropout(self.told(heard), 0.1, self.training))
        h_new = h_new + (torch.sigmoid(self.gate(heard)) * told).reshape(rows, -1)
        return mask * h_new + (1 - mask) * h, mask * c_new + (1 - mask) * c


class Peer(nn.Module):
    """One layer, or two with attention from the lower to the upper one's last state, over time."""

    def __init__(
        self,
        inputs: int,
        size: Sequence[int],
        modules: Sequence[int],
        active: Sequence[int],
        *,
        dense: bool,
        heads: int = 1,
        comm_key: int = 16,
    ) -> None:
        super().__init__()
        totals = [one * count for one, count in zip(size, modules, strict=True)]
        self.totals, self.layers = totals, nn.ModuleList()
        for place, sizes in enumerate(zip(size, modules, active, strict=True)):
            below, above = inputs if place == 0 else totals[place - 1], place + 1 < len(size)
            if above and below != totals[-1]:
                raise ValueError(f"the input ({below}) and the top layer ({totals[-1]}) must be of one size here")
            kind: dict[str, Any] = {"dense": dense, "slots": 1 + above, "heads": heads, "comm_key": comm_key}
            self.layers.append(PeerLayer(below, *sizes, **kind))

    def forward(self, x: Tensor, states: list[State] | None = None) -> Tensor:
        if states is None:
            states = [(x.new_zeros(x.shape[1], total), x.new_zeros(x.shape[1], total)) for total in self.totals]
        states, outputs = list(states), []
        layers: list[Any] = list(self.layers)
        for layer in layers:
            if layer.dense:
                layer.clean()
        for below in x.unbind(0):
            top = states[-1][0]
            for place, layer in enumerate(layers):
                slots = [below] if place + 1 == len(layers) else [below, top]
                states[place] = layer(slots, *states[place])
                below = states[place][0]
            outputs.append(below)
        return torch.stack(outputs)


@torch.no_grad()
def ours_like(peer: Peer, inputs: int) -> RIMCell | BRIMCell:
    """Ours with the peer's weights."""
    layers: list[Any] = list(peer.layers)
    kind: dict[str, Any] = {
        "input_heads": layers[0].read.heads,
        "comm_key_size": layers[0].talk.key_size,
        "dtype": next(peer.parameters()).dtype,
    }
    sizes = [(layer.size, layer.groups, layer.active) for layer in layers]
    if len(layers) == 1:
        cell: RIMCell | BRIMCell = RIMCell(inputs, *sizes[0], **kind)
        own: list[Any] = [cell]
    else:
        cell = BRIMCell(inputs, *(list(one) for one in zip(*sizes, strict=True)), **kind)
        own = list(cell.layers)
    for theirs, mine in zip(layers, own, strict=True):
        n, d = theirs.groups, theirs.size
        read, dynamics, talk = mine.input_attention, mine.dynamics, mine.communication
        read.query.weight.copy_(theirs.read.query.weight)
        for slot, (key, value) in enumerate(zip(read.key, read.value, strict=True)):
            key.weight.copy_(theirs.read.key.weight[slot].t())
            value.weight.copy_(theirs.read.value.weight[slot].t())
        for name in ("query", "key", "value"):
            getattr(talk, name).weight.copy_(getattr(theirs.talk, name).weight)
        talk.output.load_state_dict(theirs.told.state_dict())
        talk.gate.load_state_dict(theirs.gate.state_dict())
        if not theirs.dense:
            dynamics.weight_ih.copy_(theirs.from_read.weight)
            dynamics.weight_hh.copy_(theirs.from_h.weight)
            dynamics.bias.zero_()
            continue
        for name in ("weight_ih", "weight_hh"):
            blocks = getattr(theirs.cell, name).view(4, n, d, n, -1)
            diagonal = torch.stack([blocks[:, k, :, k] for k in range(n)])  # (n, 4, d, in)
            getattr(dynamics, name).copy_(diagonal.flatten(1, 2).transpose(1, 2))
        both = (theirs.cell.bias_ih + theirs.cell.bias_hh).view(4, n, d)
        dynamics.bias.copy_(both.transpose(0, 1).reshape(n, 4 * d))
    return cell


def difference(peer: Peer, inputs: int, *, steps: int = 5, rows: int = 4, tolerance: float = 5e-6) -> float:
    """The largest difference of outputs between the peer and ours, from random states; gradients are compared too.

    Raises:
        AssertionError: it is larger than allowed.
    """
    training = peer.training
    peer.eval()
    cell = ours_like(peer, inputs).eval().to(next(peer.parameters()))
    like = next(peer.parameters())
    x = torch.randn(steps, rows, inputs).to(like).requires_grad_()
    # Not from zeros: there all modules tie, and which of them win is up to each implementation.
    states = [(0.5 * torch.randn(rows, total).to(like), torch.randn(rows, total).to(like)) for total in peer.totals]
    layers: list[Any] = list(peer.layers)
    made = [
        RIMState(*(leaf.view(rows, layer.groups, layer.size) for leaf in state))
        for layer, state in zip(layers, states, strict=True)
    ]
    expected = peer(x, states)
    found = scan(cell, x, made[0] if len(made) == 1 else tuple(made)).output
    weights = torch.randn_like(expected)
    theirs, mine = (torch.autograd.grad((one * weights).sum(), x)[0] for one in (expected, found))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=20 * tolerance)
    peer.train(training)
    return float((found - expected).abs().max().detach())
