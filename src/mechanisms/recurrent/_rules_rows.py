"""Rules of `check_cell` about time and rows: lengths, chunks, resets, rows, checkpoints."""

import torch

from mechanisms.recurrent._case import (
    EXACT,
    Case,
    CellContractError,
    at,
    at_rows,
    gradients,
    loss,
    parameters,
    same,
    tracked,
)
from mechanisms.recurrent._trees import Tree, named_leaves, tensors, tree_map
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.states import detach, select

GARBAGE = 1e3


def lengths(case: Case) -> None:
    """A padded batch is its sequences alone: outputs, state, zeros beyond the end, no gradient from there."""
    rule = "lengths"
    cell = case.cell()
    valid = _valid(case, cell)
    inputs, own = tracked(_padded(case.inputs(cell), valid)), case.noise(cell)
    start = case.state(cell) if not cell.growing else None
    whole = case.run(cell, inputs, start, noise=own, lengths=valid)
    for name, leaf in named_leaves(whole.output):
        assert isinstance(leaf, torch.Tensor)
        for row, length in enumerate(valid):
            if bool((leaf[length:, row] != 0).any()):
                raise CellContractError(rule, f"output {name!r} of row {row} is not 0 beyond its length", leaf=name)
    groups = [[row] for row in range(case.batch)] if cell.rows_independent else [list(range(case.batch))]
    for rows in groups:
        length = valid[rows[0]]
        alone = case.run(
            cell,
            at(at_rows(inputs, rows), slice(0, length)),
            None if start is None else select(start, rows),
            noise=at(at_rows(own, rows), slice(0, length)),
        )
        got = at(at_rows(whole.output, rows), slice(0, length))
        same(rule, got, alone.output, EXACT, f"outputs of row {rows[0]} in the batch against alone")
        last = _alike(select(whole.state, rows), alone.state) if cell.growing else select(whole.state, rows)
        wanted = _alike(alone.state, alone.state) if cell.growing else alone.state
        same(rule, last, wanted, EXACT, f"the state of row {rows[0]} after its last valid step")
        if not cell.growing:
            mine = gradients(loss(last), inputs, parameters(cell))
            same(rule, mine, gradients(loss(wanted), inputs, parameters(cell)), 10 * EXACT, "gradients of that state")
    found = gradients(loss(whole.output, whole.state), inputs)
    for name, gradient in found.items():
        for row, length in enumerate(valid):
            if bool((gradient[length:, row] != 0).any()):
                raise CellContractError(rule, f"padding of row {row} of input {name} gets a gradient", leaf=name)


def _valid(case: Case, cell: Cell) -> list[int]:
    if not cell.rows_independent:
        return [max(1, case.steps - 3)] * case.batch
    return [[case.steps, case.steps // 2 + 1, 1][row % 3] for row in range(case.batch)]


def _padded(inputs: Tree, valid: list[int]) -> Tree:
    def pad(leaf: torch.Tensor) -> torch.Tensor:
        leaf = leaf.clone()
        for row, length in enumerate(valid):
            leaf[length:, row] = GARBAGE
        return leaf

    return tree_map(pad, inputs)


def _alike(state: Tree, like: Tree) -> list[torch.Tensor] | Tree:
    """The part of a grown state that a shorter run has too; clocks aside."""
    cut = [
        leaf[tuple(slice(0, size) for size in short.shape)]
        for leaf, short in zip(tensors(state), tensors(like), strict=True)
    ]
    return tuple(cut)


def chunks(case: Case) -> None:
    """Two runs with the state handed over are one; truncation is a detach between them."""
    rule = "chunks"
    cell = case.cell()
    cut = case.steps // 2
    inputs, own = tracked(case.inputs(cell)), case.noise(cell)
    whole = case.run(cell, inputs, noise=own)
    first = case.run(cell, at(inputs, slice(0, cut)), noise=at(own, slice(0, cut)))
    second = case.run(cell, at(inputs, slice(cut, None)), first.state, noise=at(own, slice(cut, None)))
    same(rule, at(whole.output, slice(cut, None)), second.output, EXACT, "outputs of the second of two runs")
    same(rule, whole.state, second.state, EXACT, "the state after two runs")
    truncated = case.run(cell, inputs, noise=own, truncate=(cut + 1, cut))
    mine = gradients(loss(at(truncated.output, slice(cut, None))), inputs, parameters(cell))
    again = case.run(cell, at(inputs, slice(cut, None)), detach(first.state), noise=at(own, slice(cut, None)))
    theirs = gradients(loss(again.output), inputs, parameters(cell))
    if mine.keys() == theirs.keys():
        same(rule, mine, theirs, 10 * EXACT, "gradients with truncation against a detach by hand")


def resets(case: Case) -> None:
    """A row that is reset starts anew: nothing before reaches it, and other rows do not notice."""
    rule = "reset"
    cell = case.cell()
    at_step, row = case.steps // 2, min(1, case.batch - 1)
    whole_batch = cell.growing or not cell.rows_independent
    rows = list(range(case.batch)) if whole_batch else [row]
    flags = torch.zeros(case.steps, case.batch, dtype=torch.bool)
    flags[at_step, rows] = True
    inputs, own = tracked(case.inputs(cell)), case.noise(cell)
    start = case.state(cell) if not cell.growing else None
    result = case.run(cell, inputs, start, noise=own, reset=flags)
    fresh = case.run(
        cell, at(at_rows(inputs, rows), slice(at_step, None)), noise=at(at_rows(own, rows), slice(at_step, None))
    )
    after = at(at_rows(result.output, rows), slice(at_step, None))
    same(rule, after, fresh.output, EXACT, f"row {rows[0]} after its reset against a fresh run")
    same(rule, select(result.state, rows), fresh.state, EXACT, f"the state of row {rows[0]} after its reset")
    mine, theirs = (gradients(loss(one), parameters(cell)) for one in (after, fresh.output))
    same(rule, mine, theirs, 10 * EXACT, f"gradients of the parameters from row {rows[0]} after its reset")
    for name, gradient in gradients(loss(after), inputs).items():
        if bool((gradient[:at_step][:, rows] != 0).any()):
            raise CellContractError(rule, f"gradients reach across the reset into input {name}", leaf=name)
    if not whole_batch and case.batch > 1:
        others = [other for other in range(case.batch) if other != row]
        plain = case.run(cell, inputs, start, noise=own)
        mine, theirs = at_rows(result.output, others), at_rows(plain.output, others)
        same(rule, mine, theirs, 0.0, "rows that are not reset")
        found, wanted = (gradients(loss(one), inputs, parameters(cell)) for one in (mine, theirs))
        same(rule, found, wanted, 10 * EXACT, "gradients of rows that are not reset")
    if not cell.growing:
        done = torch.zeros(case.batch, dtype=torch.bool)
        done[rows] = True
        state = cell.reset(case.state(cell), done)
        initial = cell.initial_state(case.batch)
        same(rule, select(state, rows), select(initial, rows), 0.0, "reset() against initial_state()")


def rows(case: Case) -> None:
    """Rows know nothing of each other."""
    rule = "rows"
    cell = case.cell()
    if not cell.rows_independent or case.batch < 2:
        return
    inputs, own = case.inputs(cell), case.noise(cell)
    whole = case.run(cell, inputs, noise=own)
    order = torch.arange(case.batch).flip(0)
    turned = case.run(cell, at_rows(inputs, order), noise=at_rows(own, order))
    same(rule, turned.output, at_rows(whole.output, order), EXACT, "outputs when the rows are permuted")
    same(rule, turned.state, select(whole.state, order), EXACT, "the state when the rows are permuted")
    alone = case.run(cell, at_rows(inputs, slice(0, 1)), noise=at_rows(own, slice(0, 1)))
    same(rule, alone.output, at_rows(whole.output, slice(0, 1)), EXACT, "row 0 alone against row 0 in the batch")
    same(rule, alone.state, select(whole.state, slice(0, 1)), EXACT, "the state of row 0 alone")


def checkpoints(case: Case) -> None:
    """Computing again in the backward pass changes nothing."""
    rule = "checkpoint"
    cell = case.cell()
    results = []
    # Projected three steps at a time in both, so that even the last bit agrees.
    for every in (None, 3):
        inputs, own = tracked(case.inputs(cell)), case.noise(cell)
        result = case.run(cell, inputs, noise=own, checkpoint=every, hoist=3)
        found = gradients(loss(result.output, result.state), inputs, parameters(cell))
        results.append(((result.output, result.state), found))
    same(rule, results[1][0], results[0][0], 0.0, "outputs with checkpoints")
    same(rule, results[1][1], results[0][1], 10 * EXACT, "gradients with checkpoints")
