"""Cells as a user would write them: a leaky one, a noisy one, one with batch statistics, one with a growing memory."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mechanisms.recurrent import Cell


class LeakyState(NamedTuple):
    h: Tensor


class Leaky(Cell):
    """h' = (1 - a) h + a tanh(W x + U h + b)."""

    zoneable = ("h",)

    def __init__(self, input_size: int, hidden_size: int, a: float = 0.1) -> None:
        super().__init__()
        self.input_size, self.output_size, self.a = input_size, hidden_size, a
        self.w, self.u = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return LeakyState(self.u.weight.new_zeros(batch_size, self.output_size, device=device, dtype=dtype))

    def project(self, inputs: Tensor) -> Tensor:
        return self.w(inputs)

    def step(self, projected: Tensor, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h = torch.lerp(state.h, torch.tanh(projected + self.u(state.h)).to(state.h.dtype), self.a)
        return h, LeakyState(h)


class Noisy(Leaky):
    """Its update is masked at random in training; the expectation of the mask stands in for it otherwise."""

    def noise(
        self, steps: int, batch_size: int, *, generator: Any = None, device: Any = None, dtype: Any = None
    ) -> Any:
        if not self.training:
            return None
        like = self.u.weight
        shape = (steps, batch_size, self.output_size)
        drawn = torch.rand(shape, generator=generator, device=device or like.device, dtype=torch.float32)
        return (drawn < 0.5).to(dtype or like.dtype)

    def step(self, projected: Tensor, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h = torch.lerp(state.h, torch.tanh(projected + self.u(state.h)).to(state.h.dtype), self.a)
        h = torch.lerp(h, state.h, 0.5 if noise is None else noise)
        return (h, LeakyState(h), {"kept": h}) if need_info else (h, LeakyState(h))


class PairState(NamedTuple):
    h: Tensor
    s: Tensor


class PairOutput(NamedTuple):
    h: Tensor
    s: Tensor


class Pair(Cell):
    """Two inputs, two outputs, a dictionary inside its state."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.output_size = (3, 2), 4
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        zeros = self.a.weight.new_zeros(batch_size, 4, device=device, dtype=dtype)
        count = torch.zeros(batch_size, dtype=torch.int64, device=zeros.device)
        return {"h": zeros, "inner": (zeros.clone(), count)}

    def project(self, inputs: Any) -> Any:
        return {"a": self.a(inputs[0]), "b": self.b(inputs[1])}

    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        trace, count = state["inner"]
        h = torch.tanh(projected["a"] + state["h"]).to(trace.dtype)
        trace = 0.5 * trace + torch.sigmoid(projected["b"]).to(trace.dtype) * h
        return PairOutput(h, trace), {"h": h, "inner": (trace, count + 1)}


class Normalised(Leaky):
    """Batch statistics in the recurrence: in training those of the batch, which it hands out as info."""

    rows_independent = False

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.mean: Tensor

    def step(self, projected: Tensor, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        u = (projected + self.u(state.h)).to(state.h.dtype)
        mean = u.mean(0) if self.training else self.mean
        h = torch.lerp(state.h, torch.tanh(u - mean), self.a)
        return (h, LeakyState(h), mean.expand_as(u)) if need_info else (h, LeakyState(h))

    def update_statistics(self, info: Tensor) -> None:
        self.mean.lerp_(info.detach().mean((0, 1)), 0.1)


class GrowingState(NamedTuple):
    h: Tensor
    memory: Tensor
    count: Tensor
    clock: int


class Growing(Leaky):
    """It stores every state, and reads their mean."""

    growing = True

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        h = self.u.weight.new_zeros(batch_size, self.output_size, device=device, dtype=dtype)
        return GrowingState(
            h,
            h.new_zeros(batch_size, 0, self.output_size),
            torch.zeros(batch_size, dtype=torch.int64, device=h.device),
            0,
        )

    def step(self, projected: Tensor, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        read = state.memory.sum(1) / state.count.clamp(min=1).to(state.memory.dtype).unsqueeze(1)
        h = torch.lerp(state.h, torch.tanh(projected + self.u(state.h) + read).to(state.h.dtype), self.a)
        memory = torch.cat([state.memory, h.unsqueeze(1)], 1)
        return h, GrowingState(h, memory, state.count + 1, state.clock + 1)

    def freeze(self, active: Tensor, new: Any, old: Any) -> Any:
        flags = active.unsqueeze(1)
        kept = torch.where(flags.unsqueeze(2), new.memory[:, -1:], torch.zeros_like(new.memory[:, -1:]))
        return GrowingState(
            torch.where(flags, new.h, old.h),
            torch.cat([new.memory[:, :-1], kept], 1),
            torch.where(active, new.count, old.count),
            new.clock,
        )
