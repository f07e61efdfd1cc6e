"""Weights of the dense code: a network of its layout, written anew, gives what the grouped cell gives."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechanisms.recurrent.bidirectional_rims import RIMCell, RIMState, load_reference_state_dict
from mechanisms.recurrent.scan import scan

N, D, READ, KEYS = 3, 4, 16, 5


class Maps(nn.Module):
    def __init__(self, groups: int, size: int, out: int) -> None:
        super().__init__()
        self.w = nn.Parameter(0.7 * torch.randn(groups, size, out))


class Attention(nn.Module):
    def __init__(self, read: int, write: tuple[int, int], heads: int, key: int, value: int, out: int) -> None:
        super().__init__()
        self.heads, self.root = heads, math.sqrt(key)
        self.GLN_qs = Maps(N, read, heads * key)
        self.GLN_ks, self.GLN_vs = Maps(*write, heads * key), Maps(*write, heads * value)
        self.gate_fc, self.ln = nn.Linear(heads * value, out), nn.LayerNorm(out)

    def forward(self, asking: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (
            torch.einsum("bsi,sio->bso", x, maps.w).unflatten(2, (self.heads, -1))
            for x, maps in ((asking, self.GLN_qs), (told, self.GLN_ks), (told, self.GLN_vs))
        )
        weights = (torch.einsum("bqhc,bkhc->bhqk", q, k) / self.root).softmax(3)
        return torch.einsum("bhqk,bkhc->bqhc", weights, v).flatten(2), weights


class Dense(nn.Module):
    """The dense layout: an LSTM (or GRU) of all modules, its blocks off the diagonal zero when it computes."""

    def __init__(self, inputs: int, kind: str, repeats: int = 1) -> None:
        super().__init__()
        self.repeats, self.kind = repeats, kind
        self.inp_att = Attention(D, (1 + repeats, inputs), 1, KEYS, READ, READ)
        self.mha = Attention(D, (N, D), 4, 6, 6, D)
        self.mha.fc = nn.Linear(4 * 6, D)
        cell = nn.LSTMCell if kind == "lstm" else nn.GRUCell
        self.block_lstm = nn.ModuleDict({kind: cell(N * READ, N * D)})

    def forward(self, x: Tensor, h: Tensor, c: Tensor, active: int) -> tuple[Tensor, Tensor]:
        cell: Any = self.block_lstm[self.kind]
        slots = torch.cat([torch.zeros_like(x).unsqueeze(1), x.unsqueeze(1).expand(-1, self.repeats, -1)], 1)
        read, weights = self.inp_att(h.view(-1, N, D), slots)
        lost = weights[:, 0, :, 0].argsort(dim=1, stable=True)[:, active:]
        mask = torch.ones(len(x), N).scatter(1, lost, 0.0).double().repeat_interleave(D, 1)
        gates = 4 if self.kind == "lstm" else 3
        blocks = {
            name: getattr(cell, name) * torch.block_diag(*[torch.ones(D, width)] * N).repeat(gates, 1)
            for name, width in (("weight_ih", READ), ("weight_hh", D))
        }
        state = (h, c) if self.kind == "lstm" else h
        new = torch.func.functional_call(cell, blocks, (read.flatten(1), state), strict=False)
        new_h, new_c = new if self.kind == "lstm" else (new, c)
        between, _ = self.mha(new_h.view(-1, N, D), new_h.view(-1, N, D))
        new_h = new_h + (self.mha.gate_fc(between).sigmoid() * self.mha.fc(between).tanh()).flatten(1)
        return mask * new_h + (1 - mask) * h, mask * new_c + (1 - mask) * c


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_outputs_are_those_of_the_dense_layout_whatever_lies_off_the_diagonal(kind: str, repeats: int) -> None:
    torch.manual_seed(0)
    dense = Dense(5, kind, repeats).double()
    with torch.no_grad():
        for parameter in dense.block_lstm.parameters():
            parameter.copy_(torch.randn_like(parameter))  # the blocks and what is left over between them alike
    sizes = 5 if repeats == 1 else (5,) * repeats
    cell = RIMCell(
        sizes, D, N, 2, cell=kind, key_size=KEYS, value_size=READ, comm_key_size=6, dtype=torch.float64
    ).eval()
    unread = load_reference_state_dict(cell, {f"bc_lst.0.{name}": value for name, value in dense.state_dict().items()})
    assert sorted(unread) == sorted(
        f"{part}.{name}"
        for part in ("inp_att", "mha")
        for name in ("ln.weight", "ln.bias", "gate_fc.weight", "gate_fc.bias")
        if (part, name[:4]) != ("mha", "gate")
    )
    x = torch.randn(7, 3, 5).double()
    h = c = torch.randn(3, N * D).double()
    state = RIMState(h.view(3, N, D), c.view(3, N, D) if kind == "lstm" else None)
    output = scan(cell, x if repeats == 1 else (x,) * repeats, state).output
    for t in range(7):
        h, c = dense(x[t], h, c, 2)
        torch.testing.assert_close(output[t], h, rtol=0, atol=1e-11)


@pytest.mark.user_input
def test_what_does_not_fit_is_refused_by_name() -> None:
    dense = Dense(5, "lstm").state_dict()
    good = {"key_size": KEYS, "value_size": READ, "comm_key_size": 6}
    with pytest.raises(ValueError, match=r"lacks mha\.fc\.weight"):
        load_reference_state_dict(RIMCell(5, D, N, 2, **good), {k: v for k, v in dense.items() if k != "mha.fc.weight"})
    with pytest.raises(ValueError, match="there is none"):
        load_reference_state_dict(RIMCell(5, D, N, 2, cell="gru", **good), dense)
    with pytest.raises(ValueError, match=r"GLN_qs\.w has shape \(3, 4, 5\)"):
        load_reference_state_dict(RIMCell(5, D, N, 2, **{**good, "key_size": 7}), dense)
    with pytest.raises(ValueError, match="weight_ih has shape"):
        load_reference_state_dict(RIMCell(5, D, N, 2, **{**good, "value_size": 8}), dense)
    with pytest.raises(ValueError, match="the same input again"):
        load_reference_state_dict(RIMCell((5, 5), D, N, 2, **good), dense)
    with pytest.raises(ValueError, match="the cell lacks one"):
        load_reference_state_dict(RIMCell(5, D, N, 2, communicate=False, **good), dense)
    twice = {f"bc_lst.{place}.{name}": value for place in range(2) for name, value in dense.items()}
    with pytest.raises(ValueError, match=r"there is 2, with the prefixes 'bc_lst.0.', 'bc_lst.1.': pass prefix="):
        load_reference_state_dict(RIMCell(5, D, N, 2, **good), twice)
    assert load_reference_state_dict(RIMCell(5, D, N, 2, **good), twice, prefix="bc_lst.1.")
