"""Rules of `check_cell` about states: saving, packing, memory."""

import gc
import weakref

import torch
from safetensors.torch import load, save
from torch import Tensor

from mechanisms.recurrent._case import EXACT, Case, CellContractError, at, same, tracked
from mechanisms.recurrent._trees import tensors, tree_map
from mechanisms.recurrent.agents import pack_state, unpack_state
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.states import state_from_dict, state_to_dict


def saved(case: Case) -> None:
    """Weights and state on disk are enough to go on as if nothing had happened."""
    rule = "save"
    cell, other = case.cell(), case.cell(seed=1)
    try:
        other.load_state_dict(cell.state_dict())
    except RuntimeError as error:
        raise CellContractError(rule, f"the state_dict does not load into a fresh cell: {error}") from error
    cut = case.steps // 2
    inputs, own = case.inputs(cell), case.noise(cell)
    whole = case.run(cell, inputs, noise=own)
    first = case.run(cell, at(inputs, slice(0, cut)), noise=at(own, slice(0, cut)))
    read = state_from_dict(other, load(save(state_to_dict(first.state))))
    same(rule, read, tree_map(lambda leaf: leaf.detach(), first.state), 0.0, "the state after saving and loading")
    rest = case.run(other, at(inputs, slice(cut, None)), read, noise=at(own, slice(cut, None)))
    same(rule, rest.output, at(whole.output, slice(cut, None)), EXACT, "a fresh cell with the saved weights and state")
    same(rule, rest.state, whole.state, EXACT, "the state of a fresh cell with the saved weights and state")


def packed(case: Case) -> None:
    """A packed initial state is zero, and packing loses nothing."""
    rule = "packing"
    cell = case.cell(torch.float32)
    if cell.growing:
        return
    initial = cell.initial_state(case.batch)
    zeros = pack_state(cell, initial)
    if bool((zeros != 0).any()):
        raise CellContractError(rule, "the packed initial state is not zero: initial_state differs from call to call")
    state = case.state(cell)
    same(rule, unpack_state(cell, pack_state(cell, state)), state, case.tolerance, "a state packed and unpacked")
    done = torch.ones(case.batch, dtype=torch.bool)
    fresh = unpack_state(cell, pack_state(cell, state) * 0)
    same(rule, fresh, tree_map(lambda leaf: leaf.detach(), cell.reset(state, done)), 0.0, "a packed state times zero")


def memory(case: Case) -> None:
    """The state does not grow, and nothing of a run is kept."""
    rule = "memory"
    cell = case.cell(torch.float32)
    if not cell.growing:
        sizes = []
        for steps in (3, 30):
            state = case.run(cell, case.inputs(cell, steps), noise=case.noise(cell, steps)).state
            sizes.append(sum(leaf.numel() * leaf.element_size() for leaf in tensors(state)))
        if sizes[0] != sizes[1]:
            raise CellContractError(rule, f"the state takes {sizes[0]} bytes after 3 steps and {sizes[1]} after 30")
    kept = _references(case, cell)
    gc.collect()
    left = sum(reference() is not None for reference in kept)
    if left:
        raise CellContractError(rule, f"{left} tensors of a run are kept after it was deleted")


def _references(case: Case, cell: Cell) -> "list[weakref.ref[Tensor]]":
    """Weak references to every output and state of a run with gradients."""
    result = scan(cell, tracked(case.inputs(cell)), noise=case.noise(cell), backend="eager", keep_states=True)
    found = [*tensors(result.output), *tensors(result.states and tuple(result.states))]
    mine = {id(parameter) for parameter in [*cell.parameters(), *cell.buffers()]}
    return [weakref.ref(leaf) for leaf in found if id(leaf) not in mine]
