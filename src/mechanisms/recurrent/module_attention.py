"""The two attentions of recurrent independent mechanisms: what a module reads, and what modules tell each other.

Input attention lets each module look at the input slots and at a *null* slot, which holds nothing. The null slot is a
zero vector and the maps have no biases, so its key and its value are zero whatever the matrices are:

    q[k] = h[k] W_q[k],   κ_s = x_s W_k,s,   v_s = x_s W_v,s,   e[k, i, s] = q[k, i] · κ_s[i] / √d_k,   e[k, i, 0] = 0
    α[k, i] = softmax over slots of e[k, i],   null[k] = mean_i α[k, i, 0]
    read[k] = concat_i Σ_{s ≥ 1} α[k, i, s] v_s[i]

The modules with the least null attention win. An input of zeros cannot be told from the null slot: raw binary pixels
need an embedding (or a bias) before they get here.

Communication attention is ordinary attention among the n modules with weights of their own, and a gate:

    δ[k] = σ(y[k] G + g) tanh(y[k] F + f),   y[k] = concat_i Σ_j softmax_j(Q[k, i] · K[j, i] / √d_k) V[j, i]
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms.recurrent._doors import check_whole
from mechanisms.recurrent._self_attention import as_type, wide
from mechanisms.recurrent.grouped import GroupLinear, grouped
from mechanisms.recurrent.protocol import Device

EPSILON = 1e-7  # of the sparsifier of the competition among modules


class Competition(NamedTuple):
    """What the scores decide.

    Attributes:
        real: attention to the input slots (batch, modules, heads, slots).
        empty: attention to the null slot (batch, modules, heads).
        null: its mean over heads (batch, modules).
        mask: which modules are active (batch, modules); no gradient.

    >>> compete(torch.zeros(1, 3, 1, 1), 2).mask
    tensor([[ True,  True, False]])
    """

    real: Tensor
    empty: Tensor
    null: Tensor
    mask: Tensor


def active_modules(null: Float[Tensor, "batch modules"], num_active: int) -> Bool[Tensor, "batch modules"]:
    """The `num_active` modules of each row with the smallest null attention; of equal ones the lower index wins.

    Exactly so many are chosen whatever the numbers are; what is not a number comes last.

    >>> active_modules(torch.tensor([[0.5, 0.2, 0.5, 0.9]]), 2)
    tensor([[ True,  True, False, False]])
    """
    if num_active == null.shape[-1]:
        return torch.ones_like(null, dtype=torch.bool)
    order = torch.sort(null.detach(), dim=-1, stable=True).indices[..., :num_active]
    return torch.zeros_like(null, dtype=torch.bool).scatter(-1, order, True)


def compete(scores: Float[Tensor, "batch modules heads slots"], num_active: int, kind: str = "null") -> Competition:
    """Attention weights from scores, and which modules win.

    Args:
        scores: e (batch, modules, heads, slots); the null slot's are 0 and not among them.
        num_active: how many modules win.
        kind: "null": softmax over the slots and the null slot. "modules", for one slot: softmax over the modules; the
            best `num_active` win, and weights are what exceeds the next one's, scaled to sum to 1.

    >>> found = compete(torch.tensor([[[[0.0]], [[2.0]]]]), 1)
    >>> found.mask, found.real[0, :, 0, 0]
    (tensor([[False,  True]]), tensor([0.5000, 0.8808]))
    """
    modules = scores.shape[1]
    if kind == "modules":
        weights = torch.softmax(scores, 1)
        mask = active_modules(-weights.detach().mean((2, 3)), num_active)
        if num_active < modules:
            bar = torch.sort(weights, dim=1, descending=True).values[:, num_active : num_active + 1]
            weights = torch.relu(weights - bar - EPSILON)
            weights = weights / (weights.sum(1, keepdim=True) + EPSILON)
        empty = torch.zeros_like(scores[..., 0])
        return Competition(weights, empty, empty.mean(2), mask)
    if scores.shape[3] == 1:
        real, empty = torch.sigmoid(scores), torch.sigmoid(-scores).squeeze(3)
    else:
        alpha = torch.softmax(F.pad(scores, (1, 0)), 3)
        real, empty = alpha[..., 1:], alpha[..., 0]
    null = empty.squeeze(2) if empty.shape[2] == 1 else empty.mean(2)
    return Competition(real, empty, null, active_modules(null, num_active))


def dropped(x: Tensor, kept: Tensor | None, rate: float) -> Tensor:
    """Dropout by a mask that was drawn before.

    >>> dropped(torch.ones(2), torch.tensor([True, False]), 0.5)
    tensor([2., 0.])
    """
    return x if kept is None else torch.where(kept, x / (1 - rate), 0.0)


def masked_gradient(
    u: Float[Tensor, "batch modules size"], mask: Bool[Tensor, "batch modules"]
) -> Float[Tensor, "batch modules size"]:
    """`u` itself; its gradient is exactly zero where the module is inactive. Can be differentiated again.

    >>> u = torch.ones(1, 2, 1, requires_grad=True)
    >>> masked_gradient(u, torch.tensor([[True, False]])).sum().backward()
    >>> u.grad.flatten()
    tensor([1., 0.])
    """
    return torch.where(mask.unsqueeze(-1), u, u.detach())


class InputAttention(nn.Module):
    """Each module's attention to the input slots and to the null slot.

    Args:
        input_sizes: size of each slot.
        hidden_size: size of a module's state.
        num_modules: how many modules ask.
        num_heads, key_size: heads, and size of a key of one head.
        value_size: size of a value of one head.
        std: all matrices start from N(0, std²).
        scored: `False` leaves out queries and keys: every module reads the sum of all values.
        device, dtype: of the parameters.

    Submodules: `query`, a `GroupLinear`, a map per module; `key` and `value`, a list of linear maps, one per slot,
    shared by all modules.

    Source: section 2 of the RIMs paper; two slots and more, section 3 of the BRIMs paper.

    >>> attention = InputAttention([3, 5], 4, num_modules=6)
    >>> read, null, alpha = attention((torch.ones(2, 3), torch.ones(2, 5)), torch.zeros(2, 6, 4))
    >>> read.shape, null.shape, alpha.shape
    (torch.Size([2, 6, 16]), torch.Size([2, 6]), torch.Size([2, 6, 1, 3]))
    """

    def __init__(
        self,
        input_sizes: Sequence[int],
        hidden_size: int,
        num_modules: int,
        *,
        num_heads: int = 1,
        key_size: int = 64,
        value_size: int | None = None,
        std: float | int = 0.01,
        scored: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_sizes = tuple(check_whole(size, "input_size") for size in input_sizes)
        self.num_heads, self.key_size = check_whole(num_heads, "input_heads"), check_whole(key_size, "key_size")
        if value_size is None:
            value_size = max(1, 4 * hidden_size // num_heads)
        self.value_size, self.std = check_whole(value_size, "value_size"), std
        like: dict[str, Any] = {"device": device, "dtype": dtype}

        def maps(out: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(size, out, bias=False, **like) for size in self.input_sizes)

        self.query = GroupLinear(num_modules, hidden_size, num_heads * key_size, std=std, **like) if scored else None
        self.key = maps(num_heads * key_size) if scored else None
        self.value = maps(num_heads * self.value_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all matrices anew."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=self.std)

    def slot(self, place: int, x: Float[Tensor, "*leading size"]) -> tuple[Tensor | None, Tensor]:
        """Key (..., heads, key) and value (..., heads, value) of one slot; no key without scores."""
        value = self.value[place](x).unflatten(-1, (self.num_heads, self.value_size))
        if self.key is None:
            return None, value
        return self.key[place](x).unflatten(-1, (self.num_heads, self.key_size)), value

    def slots(self, inputs: Sequence[Tensor]) -> tuple[Tensor | None, Tensor]:
        """Keys (..., slots, heads, key) and values (..., slots, heads, value)."""
        return stacked([self.slot(place, x) for place, x in enumerate(inputs)])

    def scores(
        self, query: Float[Tensor, "batch modules size"], keys: Float[Tensor, "batch slots heads key"]
    ) -> Float[Tensor, "batch modules heads slots"]:
        """e, in float32 at least."""
        query = query.unflatten(-1, (self.num_heads, self.key_size)).transpose(1, 2)
        found = torch.matmul(query, keys.to(query.dtype).permute(0, 2, 3, 1))
        return wide(found).transpose(1, 2) / math.sqrt(self.key_size)

    def read(
        self, real: Float[Tensor, "batch modules heads slots"], values: Float[Tensor, "batch slots heads value"]
    ) -> Float[Tensor, "batch modules read"]:
        """The attended values, heads side by side."""
        values = values.transpose(1, 2)
        return torch.matmul(real.transpose(1, 2).to(values.dtype), values).transpose(1, 2).flatten(2)

    def forward(
        self, inputs: Sequence[Tensor], h: Float[Tensor, "batch modules size"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What each module reads (batch, modules, heads * value), its null attention (batch, modules), and the weights.

        The weights (batch, modules, heads, 1 + slots) have the null slot first.
        """
        keys, values = self.slots(inputs)
        if self.query is None or keys is None:
            found = unscored(values, h.shape[1])
        else:
            found = compete(self.scores(self.query(h), keys), h.shape[1])
        alpha = torch.cat([found.empty.unsqueeze(3), found.real], 3)
        return self.read(found.real, values), found.null, alpha

    def extra_repr(self) -> str:
        """The sizes."""
        return f"slots={self.input_sizes}, heads={self.num_heads}, key={self.key_size}, value={self.value_size}"


def stacked(slots: Sequence[tuple[Tensor | None, Tensor]]) -> tuple[Tensor | None, Tensor]:
    """Keys and values of several slots, slots before heads.

    >>> stacked([(None, torch.ones(2, 1, 4)), (None, torch.ones(2, 1, 4))])[1].shape
    torch.Size([2, 2, 1, 4])
    """
    values = torch.stack([value for _, value in slots], -3)
    keys = [key for key, _ in slots if key is not None]
    return (torch.stack(keys, -3) if keys else None), values


def unscored(values: Float[Tensor, "batch slots heads value"], modules: int) -> Competition:
    """Attention switched off: every module takes every slot whole, and all are active.

    >>> unscored(torch.ones(2, 1, 1, 4), 3).null.shape
    torch.Size([2, 3])
    """
    batch, slots, heads, _ = values.shape
    real = values.new_ones(batch, modules, heads, slots)
    empty = torch.zeros_like(real[..., 0])
    null = empty[:, :, 0]
    return Competition(real, empty, null, torch.ones_like(null, dtype=torch.bool))


class CommunicationAttention(nn.Module):
    """What the modules read from each other: attention over all of them, itself included, and a gated readout.

    Args:
        hidden_size: size of a module's state.
        num_modules: how many there are.
        num_heads, key_size: heads, and size of a key of one head.
        value_size: size of a value of one head; that of a key by default.
        std: matrices of the modules start from N(0, std²); `output` and `gate` as linear layers do.
        device, dtype: of the parameters.

    Submodules: `query`, `key`, `value`, a map per module; `output` (F, f) and `gate` (G, g), shared by all.

    >>> delta, weights = CommunicationAttention(5, num_modules=6)(torch.ones(2, 6, 5))
    >>> delta.shape, weights.shape
    (torch.Size([2, 6, 5]), torch.Size([2, 4, 6, 6]))
    """

    def __init__(
        self,
        hidden_size: int,
        num_modules: int,
        *,
        num_heads: int = 4,
        key_size: int = 32,
        value_size: int | None = None,
        std: float | int = 0.01,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = check_whole(num_heads, "comm_heads")
        self.key_size = check_whole(key_size, "comm_key_size")
        self.value_size = self.key_size if value_size is None else check_whole(value_size, "comm_value_size")
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        keys, values = self.num_heads * self.key_size, self.num_heads * self.value_size
        self.query = GroupLinear(num_modules, hidden_size, keys, std=std, **like)
        self.key = GroupLinear(num_modules, hidden_size, keys, std=std, **like)
        self.value = GroupLinear(num_modules, hidden_size, values, std=std, **like)
        self.output = nn.Linear(values, hidden_size, **like)
        self.gate = nn.Linear(values, hidden_size, **like)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for part in (self.query, self.key, self.value, self.output, self.gate):
            part.reset_parameters()

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three maps in one (modules, hidden, 2 keys + values), output and gate in one, and their biases."""
        three = torch.cat([self.query.weight, self.key.weight, self.value.weight], 2)
        both = torch.cat([self.output.weight, self.gate.weight])
        return three, both, torch.cat([self.output.bias, self.gate.bias])

    def forward(
        self,
        u: Float[Tensor, "batch modules size"],
        kept: Bool[Tensor, "batch modules size"] | None = None,
        rate: float | int = 0.0,
        joined: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What is added to each state (batch, modules, hidden), and the weights (batch, heads, modules, modules).

        Args:
            u: the states that are read.
            kept: mask of the dropout on the output, before its tanh.
            rate: rate of that dropout.
            joined: what `joined` gives, when many steps share it.
        """
        three, both, bias = self.joined() if joined is None else joined
        keys, values = self.num_heads * self.key_size, self.num_heads * self.value_size
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in grouped(u, three).split([keys, keys, values], -1)
        )
        scores = wide(torch.matmul(query, key.transpose(2, 3))) / math.sqrt(self.key_size)
        weights = torch.softmax(scores, -1)
        y = torch.matmul(weights.to(value.dtype), value).transpose(1, 2).flatten(2)
        output, gate = as_type(F.linear(y, both, bias), u).chunk(2, -1)
        return torch.sigmoid(gate) * torch.tanh(dropped(output, kept, float(rate))), weights

    def extra_repr(self) -> str:
        """The sizes."""
        return f"heads={self.num_heads}, key={self.key_size}, value={self.value_size}"
