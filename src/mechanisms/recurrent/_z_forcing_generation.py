"""Sequences out of a Z-Forcing model: new ones, and what lies between two."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechanisms._base.validation import check_number
from mechanisms.recurrent import _sequence_doors as doors
from mechanisms.recurrent.protocol import Noise

if TYPE_CHECKING:
    from mechanisms.recurrent.z_forcing import ZForcing


def generate(
    model: "ZForcing",
    num_steps: int,
    batch_size: int,
    prefix: Tensor | None,
    temperature: float | int,
    generator: torch.Generator | None,
) -> Tensor:
    """New elements (time, batch, ...); see `ZForcing.sample`."""
    check_number(num_steps, "num_steps", at_least=1)
    check_number(temperature, "temperature", at_least=0)
    state = None
    if prefix is not None:
        given = doors.time_first(prefix, model.batch_first)
        doors.check_sequence(given, "prefix", None if model.tokens else model.input_size, model.input_size)
        current, batch_size = given[-1], given.shape[1]
        if given.shape[0] > 1:
            noise = model._noise(given[1:], None, generator)
            noise = noise._replace(own=temperature * noise.own)
            state = model._infer(given[:-1], given[1:], None, noise)[2]
    else:
        current = _start(model, int(check_number(batch_size, "batch_size", at_least=1)))
    cell = model.cell
    if state is None:
        state = cell.initial_state(batch_size, device=current.device)
    drawn = cell.noise(num_steps, batch_size, generator=generator, device=current.device)
    elements = []
    for t in range(num_steps):
        own = Noise(temperature * drawn.own[t], doors.at(drawn.inner, t))
        output, state = cell.step(cell.project((model.embedding(current),), own), state, own)
        parameters = doors.full(model.output(output.h))
        current = model.likelihood.sample(parameters, temperature=temperature, generator=generator)
        current = current if model.tokens else current.to(drawn.own.dtype)
        elements.append(current)
    return torch.stack(elements)


def decode_between(model: "ZForcing", a: Tensor, b: Tensor, steps: int, generator: torch.Generator | None) -> Tensor:
    """Sequences (steps, time, ...) between two; see `ZForcing.interpolate`."""
    check_number(steps, "steps", at_least=2)
    if a.shape != b.shape or a.dim() != (1 if model.tokens else 2) or a.shape[0] < 2:
        raise ValueError(
            f"a has shape {tuple(a.shape)}, b {tuple(b.shape)}; two sequences of one shape are expected, without a "
            "batch and at least two elements long"
        )
    pair = torch.stack([a, b], 1)
    doors.check_sequence(pair, "a and b", None if model.tokens else model.input_size, model.input_size)
    zeros = pair.new_zeros(len(a) - 1, 2, model.latent_size, dtype=model.output.weight.dtype)
    found, _, _ = model._infer(pair[:-1], pair[1:], None, model._noise(pair[1:], zeros, generator))
    first, last = found.posterior.chunk(2, -1)[0].unbind(1)
    weights = torch.linspace(0, 1, steps, device=first.device, dtype=first.dtype).unsqueeze(1)
    latents = torch.lerp(first.unsqueeze(1), last.unsqueeze(1), weights)
    current = torch.where(weights[:, 0] < 0.5, a[0], b[0]) if model.tokens else torch.lerp(a[0], b[0], weights)
    cell, elements = model.cell, []
    state = cell.initial_state(steps, device=current.device)
    for z in latents:
        output, state = cell.advance(cell.project((model.embedding(current),)), z, state)
        parameters = doors.full(model.output(doors.main(output)))
        temperature = 0 if generator is None else 1
        current = model.likelihood.sample(parameters, temperature=temperature, generator=generator)
        current = current if model.tokens else current.to(first.dtype)
        elements.append(current)
    return torch.stack(elements, 1)


def _start(model: "ZForcing", rows: int) -> Tensor:
    """The first input where nothing went before."""
    like = model.output.weight
    if not model.tokens:
        return like.new_zeros(rows, model.input_size)
    first = model.input_size - 1 if model.input_size > model.likelihood.size else 0
    return torch.full((rows,), first, dtype=torch.int64, device=like.device)
