"""Rules of `check_cell` about single steps: contract, purity, noise, hoisting, the loop, the fused path."""

from typing import Any

import torch
from torch import Tensor, nn

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
from mechanisms.recurrent._driver import has_kernel
from mechanisms.recurrent._trees import Tree, first_tensor, named_leaves, shapes, tensors, tree_map
from mechanisms.recurrent.protocol import Cell, project
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.states import detach, get_leaf


def contract(case: Case) -> None:
    """Attributes are there; the state is a tree of tensors, batch first, and keeps its form over a step."""
    rule = "contract"
    cell = case.cell(torch.float32)
    if not isinstance(cell, Cell):
        raise CellContractError(rule, f"make_cell made a {type(cell).__name__}, which is no Cell")
    for name in ("input_size", "output_size"):
        if not hasattr(cell, name):
            raise CellContractError(rule, f"the cell has no attribute {name}")
    state = cell.initial_state(case.batch)
    _check_leaves(rule, cell, state, case.batch)
    same(rule, cell.initial_state(case.batch), state, 0.0, "two calls of initial_state")
    for name in cell.zoneable:
        try:
            leaf = get_leaf(state, name)
        except TypeError as error:
            raise CellContractError(rule, f"zoneable names {name!r}: {error}", leaf=name) from error
        if not leaf.is_floating_point():
            raise CellContractError(
                rule, f"zoneable names {name!r}, which holds {leaf.dtype}: Zoneout holds activations only", leaf=name
            )
    inputs, noise = case.inputs(cell), case.noise(cell)
    _check_leading(case, noise)
    forms = []
    for seed in (0, 1):
        now = state
        for t in range(case.steps):
            projected = project(cell, at(case.inputs(cell, seed=seed), t), at(noise, t))
            output, new = cell.step(projected, now, at(noise, t))[:2]
            _check_output(rule, cell, output, case.batch)
            if not cell.growing:
                _check_form(rule, new, now)
            _check_leaves(rule, cell, new, case.batch)
            now = new
        forms.append(shapes(now))
    if forms[0] != forms[1]:
        raise CellContractError(rule, f"the form of the state depends on values: {forms[0]} and {forms[1]}")
    output, info_free = cell(at(inputs, 0))
    _check_output(rule, cell, output, case.batch)
    _check_leaves(rule, cell, info_free, case.batch)


def _check_leaves(rule: str, cell: Cell, state: Tree, batch: int) -> None:
    try:
        leaves = list(named_leaves(state))
    except TypeError as error:
        raise CellContractError(rule, str(error)) from error
    if not any(isinstance(leaf, Tensor) for _, leaf in leaves):
        raise CellContractError(rule, "the state holds no tensor")
    for name, leaf in leaves:
        if not isinstance(leaf, Tensor):
            if not cell.growing:
                raise CellContractError(
                    rule, f"leaf {name!r} is a Python integer: make it a tensor (batch,)", leaf=name
                )
            continue
        if leaf.dim() == 0 or leaf.shape[0] != batch:
            raise CellContractError(
                rule, f"leaf {name!r} has shape {tuple(leaf.shape)}; the batch of {batch} comes first", leaf=name
            )
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            raise CellContractError(rule, f"leaf {name!r} is not finite; mark empty slots by the index -1", leaf=name)
        if not leaf.is_floating_point() and leaf.dtype not in (torch.int64, torch.bool):
            raise CellContractError(rule, f"leaf {name!r} has type {leaf.dtype}; integers are int64", leaf=name)


def _check_form(rule: str, new: Tree, old: Tree) -> None:
    pairs = list(named_leaves(new)), list(named_leaves(old))
    if type(new) is not type(old) or [name for name, _ in pairs[0]] != [name for name, _ in pairs[1]]:
        raise CellContractError(rule, f"the structure changes over a step: {shapes(old)} became {shapes(new)}")
    for (name, after), (_, before) in zip(*pairs, strict=True):
        if not isinstance(after, Tensor) or not isinstance(before, Tensor):
            continue
        if (after.shape, after.dtype, after.device) != (before.shape, before.dtype, before.device):
            raise CellContractError(
                rule,
                f"leaf {name!r} changes over a step: {shapes(before)} on {before.device} became {shapes(after)} on "
                f"{after.device}",
                leaf=name,
            )


def _check_output(rule: str, cell: Cell, output: Tree, batch: int) -> None:
    for name, leaf in named_leaves(output):
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != batch:
            raise CellContractError(rule, f"output {name!r} is no tensor with the batch of {batch} first", leaf=name)
    main = first_tensor(output)
    if main.shape[-1] != cell.output_size:
        raise CellContractError(rule, f"the output has size {main.shape[-1]}, but output_size={cell.output_size}")


def purity(case: Case) -> None:
    """A step changes nothing and draws nothing; modes matter through noise alone."""
    rule = "purity"
    cell = case.cell()
    inputs, noise = at(case.inputs(cell), 0), at(case.noise(cell), 0)
    state = cell.initial_state(case.batch)
    projected = project(cell, inputs, noise)
    # In-place changes must not be refused by autograd before they are found.
    with torch.no_grad():
        before, versions = _snapshot(cell), _versions(projected, state, noise)
        first = cell.step(projected, state, noise)[:2]
        _unchanged(rule, before, _snapshot(cell))
        if _versions(projected, state, noise) != versions:
            raise CellContractError(rule, "step changes its arguments in place; make new tensors instead")
        random = torch.get_rng_state()
        second = cell.step(projected, state, noise)[:2]
        if not torch.equal(random, torch.get_rng_state()):
            raise CellContractError(rule, "step draws random numbers; draw them in noise()")
        same(rule, second, first, 0.0, "two calls with the same arguments")
        if cell.rows_independent:
            cell.eval()
            same(
                rule,
                cell.step(projected, state, noise)[:2],
                first,
                0.0,
                "eval() against train() with the same noise (step must not read self.training)",
            )
            cell.train()
        before = _snapshot(cell)
        scan(cell, case.inputs(cell), noise=case.noise(cell), backend="eager")
        _unchanged(rule, before, _snapshot(cell))


def _versions(*trees: Tree) -> list[int]:
    return [leaf._version for tree in trees for leaf in tensors(tree)]


def _snapshot(cell: nn.Module) -> dict[str, Any]:
    """What a step must leave as it is: attributes of all modules, parameters, buffers and their versions."""
    found: dict[str, Any] = {}
    for prefix, module in cell.named_modules():
        for name, value in vars(module).items():
            sized = len(value) if isinstance(value, list | dict | set | tuple) else None
            version = value._version if isinstance(value, Tensor) else None
            number = value if isinstance(value, int | float | str | bool) else id(value)
            found[f"{prefix}.{name}".lstrip(".")] = (number, sized, version)
    for kind in (cell.named_parameters(), cell.named_buffers()):
        for name, tensor in kind:
            found[f"tensor {name}"] = (id(tensor), tuple(tensor.shape), tensor._version)
    return found


def _unchanged(rule: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise CellContractError(
            rule,
            f"step writes to the module ({', '.join(changed)}); what changes belongs into the state",
            leaf=changed[0],
        )


def noise(case: Case) -> None:
    """Noise follows from its generator, has (steps, batch) in front, stays in its row, and is silent in eval()."""
    rule = "noise"
    cell = case.cell()
    first, second = case.noise(cell), case.noise(cell)
    same(rule, second, first, 0.0, "two draws from the same seed")
    _check_leading(case, first)
    random = torch.get_rng_state()
    case.noise(cell)
    if not torch.equal(random, torch.get_rng_state()):
        raise CellContractError(rule, "noise() draws from torch's own generator although another one is given")
    if not cell.noise_in_eval:
        cell.eval()
        generator = torch.Generator().manual_seed(0)
        kept = generator.get_state()
        drawn = cell.noise(case.steps, case.batch, generator=generator)
        if tensors(drawn) or not torch.equal(kept, generator.get_state()):
            raise CellContractError(
                rule, "noise() draws in eval(); it must return None, or declare noise_in_eval = True"
            )
        cell.train()
    if tensors(first) and cell.rows_independent and case.batch > 1:
        other = case.noise(cell, seed=1)
        inputs = case.inputs(cell)
        mixed = _mixed(first, other)
        plain, changed = case.run(cell, inputs, noise=first), case.run(cell, inputs, noise=mixed)
        same(
            rule,
            at_rows(changed.output, slice(1, None)),
            at_rows(plain.output, slice(1, None)),
            EXACT,
            "rows 1 and up when the noise of row 0 changes",
        )


def _check_leading(case: Case, drawn: Tree) -> None:
    for name, leaf in named_leaves(drawn):
        if isinstance(leaf, Tensor) and tuple(leaf.shape[:2]) != (case.steps, case.batch):
            raise CellContractError(
                "noise",
                f"leaf {name!r} has shape {tuple(leaf.shape)}; it must lead with (steps, batch) = "
                f"{(case.steps, case.batch)}, so that steps and rows can be sliced",
                leaf=name,
            )


def _mixed(first: Tree, other: Tree) -> Tree:
    return tree_map(lambda mine, theirs: torch.cat([theirs[:, :1], mine[:, 1:]], 1), first, other)


def hoisting(case: Case) -> None:
    """Projecting all steps at once is projecting each alone."""
    rule = "hoisting"
    cell = case.cell()
    inputs, own = case.inputs(cell), case.noise(cell)
    whole = project(cell, inputs, own)
    for t in range(case.steps):
        alone = project(cell, at(inputs, t), at(own, t))
        same(rule, at(whole, t), alone, EXACT, f"project(inputs)[{t}] against project(inputs[{t}])")
    once = case.run(cell, inputs, noise=own, hoist=case.steps)
    parts = case.run(cell, inputs, noise=own, hoist=2)
    same(rule, (parts.output, parts.state), (once.output, once.state), EXACT, "two steps projected at a time")


def loop(case: Case) -> None:
    """`scan` is a loop of steps: outputs, state and gradients."""
    rule = "scan"
    for dtype, tolerance in ((torch.float64, EXACT), (torch.float32, case.tolerance)):
        cell = case.cell(dtype)
        inputs, own = tracked(case.inputs(cell)), case.noise(cell)
        start = tracked(cell.initial_state(case.batch))
        scanned = case.run(cell, inputs, start, noise=own)
        state, outputs = start, []
        for t in range(case.steps):
            output, state = cell.step(project(cell, at(inputs, t), at(own, t)), state, at(own, t))[:2]
            outputs.append(output)
        for t in range(case.steps):
            same(rule, at(scanned.output, t), outputs[t], tolerance, f"output {t} against a loop of steps")
        same(rule, scanned.state, state, tolerance, "the last state against a loop of steps")
        mine = gradients(
            loss(*[at(scanned.output, t) for t in range(case.steps)], scanned.state), inputs, start, parameters(cell)
        )
        theirs = gradients(loss(*outputs, state), inputs, start, parameters(cell))
        same(rule, mine, theirs, 10 * tolerance, "gradients against a loop of steps")
    if not tensors(own):
        cell, state = case.cell(), None
        inputs = case.inputs(cell)
        scanned = case.run(cell, inputs)
        for t in range(case.steps):
            output, state = cell(at(inputs, t), state)
            same(rule, output, at(scanned.output, t), EXACT, f"output {t} of scan against cell(input, state)")


def fused(case: Case) -> None:
    """The fused path gives what the loop gives, with lengths and resets too."""
    rule = "sequence"
    if not has_kernel(case.cell()):
        return
    for dtype, tolerance, training in (
        (torch.float64, EXACT, True),
        (torch.float64, EXACT, False),
        (torch.float32, case.tolerance, True),
    ):
        cell = case.cell(dtype).train(training)
        inputs, own = case.inputs(cell), case.noise(cell)
        if cell.sequence(inputs, cell.initial_state(case.batch), own) is NotImplemented:
            continue
        flags = torch.zeros(case.steps, case.batch, dtype=torch.bool)
        flags[case.steps // 2] = True
        options: list[dict[str, Any]] = [{}, {"reset": flags}, {"truncate": 3}]
        if not cell.growing and cell.rows_independent:
            options.append({"lengths": [max(1, case.steps - 3 * row) for row in range(case.batch)]})
        for option in options:
            results = []
            for backend in ("kernel", "eager"):
                mine, start = tracked(inputs), tracked(cell.initial_state(case.batch))
                result = scan(cell, mine, start, noise=own, backend=backend, **option)
                found = gradients(loss(result.output, result.state), mine, start, parameters(cell))
                results.append(((result.output, result.state), found))
            said = f" with {next(iter(option))}" if option else ""
            same(rule, results[0][0], results[1][0], tolerance, f"the fused path against the loop{said}")
            same(rule, results[0][1], results[1][1], 10 * tolerance, f"gradients of the fused path{said}")


def modes(case: Case) -> None:
    """What a step does without noise, in `eval()`, with `need_info`, for no rows; and the vector of a state."""
    rule = "modes"
    cell = case.cell().eval()
    inputs, state = at(case.inputs(cell), 0), case.state(cell)
    own = at(cell.noise(1, case.batch), 0)
    projected = project(cell, inputs, own)
    plain = cell.step(projected, state, own)
    found = cell.step(projected, state, own, need_info=True)
    same(rule, found[:2], plain[:2], 0.0, "a step with need_info=True against one without")
    if len(plain) != 2 or len(found) not in (2, 3):
        raise CellContractError(
            rule, f"step gives {len(plain)} values, {len(found)} with need_info=True; 2, and 2 or 3"
        )
    for name, leaf in named_leaves(found[2]) if len(found) == 3 else ():
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != case.batch:
            raise CellContractError(rule, f"info {name!r} is no tensor with the batch of {case.batch} first", leaf=name)
    cell.step(projected, state, None)
    if cell.zoneable:
        h = torch.randn_like(cell.hidden(state))
        same(rule, cell.hidden(cell.with_hidden(state, h)), h, 0.0, "hidden(with_hidden(state, h)) against h")
    empty = case.run(cell, case.inputs(cell, batch=0), noise=case.noise(cell, batch=0))
    if first_tensor(empty.output).shape[:2] != (case.steps, 0):
        raise CellContractError(rule, f"a batch of no rows has the outputs {shapes(empty.output)}")
    for name, leaf in named_leaves(cell.initial_state(1, dtype=torch.float32)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float32:
            raise CellContractError(
                rule, f"initial_state(dtype=float32) makes leaf {name!r} of {leaf.dtype}", leaf=name
            )


def detached(case: Case) -> None:
    """A detached state has no history, and integers never carry gradients."""
    rule = "detach"
    cell = case.cell()
    state = case.run(cell, tracked(case.inputs(cell)), noise=case.noise(cell)).state
    for name, leaf in named_leaves(detach(state)):
        if isinstance(leaf, Tensor) and (leaf.grad_fn is not None or leaf.requires_grad):
            raise CellContractError(rule, f"leaf {name!r} of a detached state still has a history", leaf=name)
    for name, leaf in named_leaves(state):
        constant = name.split(".")[-1] in cell.constant_leaves
        if isinstance(leaf, Tensor) and leaf.requires_grad and constant:
            raise CellContractError(rule, f"leaf {name!r} is declared constant but carries gradients", leaf=name)
