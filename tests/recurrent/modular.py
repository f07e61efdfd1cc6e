"""RIMs and BRIMs as they are written down: one row, one module, one head at a time; and cells of small sizes."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mechanisms.recurrent.bidirectional_rims import BRIMCell, GroupLSTMCell, RIMCell

SMALL: dict[str, Any] = {"key_size": 5, "value_size": 4, "comm_heads": 2, "comm_key_size": 3, "qkv_std": 0.8}


def small(input_size: Any = 3, hidden: int = 4, modules: int = 4, active: int = 2, **options: Any) -> RIMCell:
    """A small cell in float64 whose attention is far from uniform."""
    torch.manual_seed(options.pop("seed", 0))
    return RIMCell(input_size, hidden, modules, active, **{**SMALL, **options}, dtype=torch.float64)


def small_brim(layers: int = 2, **options: Any) -> BRIMCell:
    """Up to three layers of different sizes."""
    torch.manual_seed(options.pop("seed", 0))
    sizes = [4, 3, 2][:layers], [4, 3, 5][:layers], [2, 2, 3][:layers]
    return BRIMCell(3, *sizes, **{**SMALL, **options}, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Row(NamedTuple):
    """One row after a step."""

    h: Tensor
    c: Tensor | None
    active: list[int]
    alpha: Tensor


def slow_step(
    cell: RIMCell,
    slots: list[Tensor],
    h: Tensor,
    c: Tensor | None,
    read_kept: Tensor | None = None,
    comm_kept: Tensor | None = None,
) -> Row:
    """A step of one row: slots (size,), h and c (n, d)."""
    n, d, attention = cell.num_modules, cell.hidden_size, cell.input_attention
    heads, size, count = attention.num_heads, attention.key_size, len(slots)
    values = [attention.value[s].weight @ x for s, x in enumerate(slots)]
    alpha = torch.zeros(n, heads, 1 + count, dtype=h.dtype)
    if attention.query is None:
        alpha = torch.cat([alpha[:, :, :1], torch.ones_like(alpha[:, :, 1:])], 2)
    else:
        rows = []
        for k in range(n):
            q = h[k] @ attention.query.weight[k]
            for i in range(heads):
                part = slice(i * size, (i + 1) * size)
                keys = [(attention.key[s].weight @ x)[part] for s, x in enumerate(slots)]
                rows.append(torch.stack([h.new_zeros(()), *[q[part] @ key / math.sqrt(size) for key in keys]]))
        scores = torch.stack(rows).view(n, heads, 1 + count)
        alpha = scores.softmax(2)
    if attention.query is None:
        active = list(range(n))
    elif cell.competition == "modules":
        weights = scores[:, :, 1].softmax(0)
        order = sorted(range(n), key=lambda k: (-float(weights[k].detach().mean()), k))
        active = sorted(order[: cell.num_active])
        if cell.num_active < n:
            bar = weights.sort(0, descending=True).values[cell.num_active]
            weights = (weights - bar - 1e-7).clamp(min=0)
            weights = weights / (weights.sum(0) + 1e-7)
        alpha = torch.stack([torch.zeros_like(weights), weights], 2)
    else:
        order = sorted(range(n), key=lambda k: (float(alpha[k, :, 0].detach().mean()), k))
        active = sorted(order[: cell.num_active])
    new_h, new_c = [], []
    for k in range(n):
        width = attention.value_size
        heads_read = [
            sum(alpha[k, i, 1 + s] * values[s][i * width : (i + 1) * width] for s in range(count)) for i in range(heads)
        ]
        read = torch.cat(heads_read)
        if read_kept is not None:
            read = read * read_kept[k] / (1 - cell.input_dropout)
        dynamics = cell.dynamics
        if isinstance(dynamics, GroupLSTMCell):
            z = read @ dynamics.weight_ih[k] + h[k] @ dynamics.weight_hh[k] + dynamics.bias[k]
            i, f, g, o = z.view(4, d)
            assert c is not None
            new_c.append(f.sigmoid() * c[k] + i.sigmoid() * g.tanh())
            new_h.append(o.sigmoid() * new_c[-1].tanh())
        else:
            own = (h[k] @ dynamics.weight_hh[k] + dynamics.bias_hh[k]).view(3, d)
            given = (read @ dynamics.weight_ih[k] + dynamics.bias_ih[k]).view(3, d)
            r, z = (own[0] + given[0]).sigmoid(), (own[1] + given[1]).sigmoid()
            new_h.append((1 - z) * (given[2] + r * own[2]).tanh() + z * h[k])
    out = list(new_h)
    between = cell.communication
    if between is not None:
        told = list(new_h)
        for k in set(range(n)) - set(active):
            if cell.comm_source == "held":
                told[k] = h[k]
            elif cell.block_inactive_grad:
                told[k] = told[k].detach()
        for k in range(n):
            summary = []
            for i in range(between.num_heads):
                keys = slice(i * between.key_size, (i + 1) * between.key_size)
                wide = slice(i * between.value_size, (i + 1) * between.value_size)
                query = (told[k] @ between.query.weight[k])[keys]
                e = [query @ (told[j] @ between.key.weight[j])[keys] / math.sqrt(between.key_size) for j in range(n)]
                w = torch.stack(e).softmax(0)
                summary.append(sum(w[j] * (told[j] @ between.value.weight[j])[wide] for j in range(n)))
            y = torch.cat(summary)
            fed = between.output(y)
            if comm_kept is not None:
                fed = fed * comm_kept[k] / (1 - cell.comm_dropout)
            out[k] = new_h[k] + between.gate(y).sigmoid() * fed.tanh()
    held_h = torch.stack([out[k] if k in active else h[k] for k in range(n)])
    held_c = None if c is None else torch.stack([new_c[k] if k in active else c[k] for k in range(n)])
    return Row(held_h, held_c, active, alpha)


def slow_run(
    layers: list[RIMCell], above: tuple[int | None, ...], x: tuple[Tensor, ...], noise: Any = None
) -> list[list[Row]]:
    """All steps of one row, slots (time, size), through layers; per step and layer what it became."""
    last = [Row(x[0].new_zeros(c.num_modules, c.hidden_size), None, [], x[0]) for c in layers]
    last = [
        row._replace(c=row.h if isinstance(cell.dynamics, GroupLSTMCell) else None)
        for row, cell in zip(last, layers, strict=True)
    ]
    steps = []
    for t in range(len(x[0])):
        new: list[Row] = []
        for place, cell in enumerate(layers):
            slots = [slot[t] for slot in x] if place == 0 else [new[-1].h.flatten()]
            over = above[place]
            if over is not None:
                slots.append(last[over].h.flatten())
            own = None if noise is None else noise[place]
            read = None if own is None or own.read is None else own.read[t]
            comm = None if own is None or own.comm is None else own.comm[t]
            new.append(slow_step(cell, slots, last[place].h, last[place].c, read, comm))
        last = new
        steps.append(new)
    return steps


def inputs_of(cell: RIMCell, steps: int, batch: int, seed: int = 0) -> Any:
    sizes = cell.input_size
    if isinstance(sizes, int):
        return draw(steps, batch, sizes, seed=seed)
    return tuple(draw(steps, batch, size, seed=seed + place) for place, size in enumerate(sizes))


def slots_of(x: Any) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def gradients(cell: nn.Module, output: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(output.cos().sum(), list(cell.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(cell.parameters(), found, strict=True)]
