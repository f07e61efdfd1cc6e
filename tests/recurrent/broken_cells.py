"""Cells with one fault each, and the rule that names it."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.recurrent import Cell, GRUCell
from tests.recurrent.own_cells import Growing, GrowingState, Leaky, LeakyState, Noisy

KEPT: list[Tensor] = []


class DrawsInStep(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected + torch.rand_like(projected), state)


class DrawsFromPython(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected + random.random(), state)


class HiddenStateOnTheModule(Leaky):
    last: Any = None

    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h, new = super().step(projected, state)
        self.last = h
        return h, new


class AppendsToAList(Leaky):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.seen: list[Tensor] = []

    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        self.seen.append(projected)
        return super().step(projected, state)


class CountsInABuffer(Leaky):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.register_buffer("steps", torch.zeros(()))
        self.steps: Tensor

    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        self.steps += 1
        return super().step(projected, state)


class ChangesItsState(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h = state.h.mul_(0.5).add_(torch.tanh(projected))
        return h, LeakyState(h)


class ReadsTraining(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected * (1.0 if self.training else 0.9), state)


class TypeDrifts(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h, _ = super().step(projected, state)
        return h, LeakyState(h.double())


class StateIsAList(Leaky):
    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return [super().initial_state(batch_size, device=device, dtype=dtype).h]


class TimeFirst(Leaky):
    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return LeakyState(super().initial_state(batch_size, device=device, dtype=dtype).h.unsqueeze(0))


class StartsInfinite(Leaky):
    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return LeakyState(super().initial_state(batch_size, device=device, dtype=dtype).h - torch.inf)


class StartsAtRandom(Leaky):
    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return LeakyState(torch.randn_like(super().initial_state(batch_size, device=device, dtype=dtype).h))


class GrowsSecretly(Growing):
    growing = False

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return super().initial_state(batch_size, device=device, dtype=dtype)[:3]

    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h, new = super().step(projected, GrowingState(*state, clock=0))
        return h, new[:3]


class CountsInPython(Leaky):
    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return {"h": super().initial_state(batch_size, device=device, dtype=dtype).h, "step": 0}

    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h, _ = super().step(projected, LeakyState(state["h"]))
        return h, {"h": h, "step": state["step"] + 1}


class ZonesWhatIsNotThere(Leaky):
    zoneable = ("h", "c")


class ZonesACounter(Leaky):
    zoneable = ("h", "step")

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        h = super().initial_state(batch_size, device=device, dtype=dtype).h
        return {"h": h, "step": torch.zeros(batch_size, dtype=torch.int64, device=h.device)}

    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h, _ = super().step(projected, LeakyState(state["h"]))
        return h, {"h": h, "step": state["step"] + 1}


class StartsWithoutGradient(Leaky):
    """Learned initial states, copied in place of expanded."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.start = nn.Parameter(torch.zeros(hidden_size))

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        zeros = super().initial_state(batch_size, device=device, dtype=dtype).h
        return LeakyState(zeros + self.start.detach().to(zeros))


class ResetsWithoutGradient(StartsWithoutGradient):
    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        zeros = Leaky.initial_state(self, batch_size, device=device, dtype=dtype).h
        return LeakyState(zeros + self.start.to(zeros))

    def reset(self, state: Any, done: Tensor) -> Any:
        fresh = self.initial_state(len(done)).h.detach()
        return LeakyState(torch.where(done.unsqueeze(1), fresh.to(state.h), state.h))


class SaysAnotherSize(Leaky):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.output_size = hidden_size

    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h, new = super().step(projected, state)
        return torch.cat([h, h], 1), new


class NoiseOfOneStep(Noisy):
    def noise(self, steps: int, batch_size: int, **options: Any) -> Any:
        return super().noise(1, batch_size, **options)


class NoiseWithoutItsGenerator(Noisy):
    def noise(self, steps: int, batch_size: int, **options: Any) -> Any:
        return super().noise(steps, batch_size, **{**options, "generator": None})


class NoiseInEval(Noisy):
    def noise(self, steps: int, batch_size: int, **options: Any) -> Any:
        training, self.training = self.training, True
        drawn = super().noise(steps, batch_size, **options)
        self.training = training
        return drawn


class NoiseOfOtherRows(Noisy):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected, state, None if noise is None else noise.flip(0))


class LooksAcrossTime(Leaky):
    def project(self, inputs: Tensor) -> Tensor:
        return super().project(inputs - inputs.mean(0, keepdim=True))


class RowsLeak(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected - projected.mean(0), state)


class LosesItsTypeUnderAutocast(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h = torch.tanh(projected + self.u(state.h))
        return h, LeakyState(h)


class BranchesOnValues(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected * 2 if state.h.sum().item() > 0 else projected, state)


class MakesTensorsOnTheCPU(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected + torch.ones(projected.shape[1]), state)


class ForgetsABuffer(Leaky):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.scale = torch.rand(hidden_size)

    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected * self.scale, state)


class StartsOnTheCPU(Leaky):
    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return LeakyState(torch.zeros(batch_size, self.output_size, dtype=dtype or self.u.weight.dtype))


class ForwardIsAnotherStep(Leaky):
    def forward(self, input: Any, state: Any = None, *, generator: Any = None) -> Any:
        h, new = super().forward(input, state)
        return 2 * h, new


class NeverFreezes(Leaky):
    def freeze(self, active: Tensor, new: Any, old: Any) -> Any:
        return new


class ResetsToOnes(Leaky):
    def reset(self, state: Any, done: Tensor) -> Any:
        return LeakyState(torch.where(done.unsqueeze(1), torch.ones_like(state.h), state.h))


class ResetsAllRows(Leaky):
    def reset(self, state: Any, done: Tensor) -> Any:
        return super().reset(state, torch.ones_like(done))


class CutsGradients(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected, LeakyState(0.5 * state.h + 0.5 * state.h.detach()))


class ConstantThatLearns(Leaky):
    constant_leaves = ("h",)


class WrongKernel(GRUCell):
    def sequence(self, inputs: Any, state: Any, noise: Any) -> Any:
        outputs, last = super().sequence(inputs, state, noise)
        return outputs * 1.001, last


class IsNotSaved(Leaky):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.register_buffer("scale", torch.rand(hidden_size), persistent=False)
        self.scale: Tensor

    def project(self, inputs: Tensor) -> Tensor:
        return super().project(inputs) * self.scale


class CannotBeSent(Leaky):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.squash = lambda u: torch.tanh(u)


class KeepsWhatItMade(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h, new = super().step(projected, state)
        if not torch.compiler.is_compiling():
            KEPT.append(h)
        return h, new


class IsNoCell(nn.Linear):
    pass


class NeedsItsNoise(Noisy):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected, state, noise + 0, need_info=need_info)


class InfoChangesTheOutput(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h, new = super().step(projected, state)
        return (h + 1, new, h) if need_info else (h, new)


class InfoIsText(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        h, new = super().step(projected, state)
        return (h, new, "nothing to see") if need_info else (h, new)


class LosesItsHidden(Leaky):
    def with_hidden(self, state: Any, h: Tensor) -> Any:
        return state


class FailsOnNoRows(Leaky):
    def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return super().step(projected + 0 * projected.max(), state)


class StartsInItsOwnType(Leaky):
    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return super().initial_state(batch_size, device=device)


class FreezesGradients(Leaky):
    def freeze(self, active: Tensor, new: Any, old: Any) -> Any:
        return LeakyState(super().freeze(active, new, old).h.detach())


class ResetsGradients(Leaky):
    def reset(self, state: Any, done: Tensor) -> Any:
        return LeakyState(super().reset(state, done).h.detach())


class WrongKernelInEvaluation(Noisy):
    def sequence(self, inputs: Any, state: Any, noise: Any) -> Any:
        if noise is not None:
            return NotImplemented
        return inputs.new_zeros(*inputs.shape[:2], self.output_size), state


BROKEN: dict[type[nn.Module], str] = {
    IsNoCell: "contract",
    TypeDrifts: "contract",
    StateIsAList: "contract",
    TimeFirst: "contract",
    StartsInfinite: "contract",
    StartsAtRandom: "contract",
    GrowsSecretly: "contract",
    CountsInPython: "contract",
    ZonesWhatIsNotThere: "contract",
    ZonesACounter: "contract",
    SaysAnotherSize: "contract",
    DrawsInStep: "purity",
    DrawsFromPython: "purity",
    HiddenStateOnTheModule: "purity",
    AppendsToAList: "purity",
    CountsInABuffer: "purity",
    ChangesItsState: "purity",
    ReadsTraining: "purity",
    NoiseOfOneStep: "noise",
    NoiseWithoutItsGenerator: "noise",
    NoiseInEval: "noise",
    NoiseOfOtherRows: "noise",
    NeedsItsNoise: "modes",
    InfoChangesTheOutput: "modes",
    InfoIsText: "modes",
    LosesItsHidden: "modes",
    FailsOnNoRows: "modes",
    StartsInItsOwnType: "modes",
    FreezesGradients: "lengths",
    StartsWithoutGradient: "gradient",
    ResetsWithoutGradient: "reset",
    ResetsGradients: "reset",
    WrongKernelInEvaluation: "sequence",
    LooksAcrossTime: "hoisting",
    RowsLeak: "rows",
    LosesItsTypeUnderAutocast: "dtype",
    BranchesOnValues: "compile",
    MakesTensorsOnTheCPU: "device",
    ForgetsABuffer: "device",
    StartsOnTheCPU: "device",
    ForwardIsAnotherStep: "scan",
    NeverFreezes: "lengths",
    ResetsToOnes: "reset",
    ResetsAllRows: "reset",
    ConstantThatLearns: "detach",
    CutsGradients: "gradient",
    WrongKernel: "sequence",
    IsNotSaved: "save",
    CannotBeSent: "copies",
    KeepsWhatItMade: "memory",
}


def make(kind: type[Any]) -> Cell:
    return kind(3, 4)
