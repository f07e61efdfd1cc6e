"""Rules of `check_cell` about what torch does with a cell: types, devices, gradients, copies, compilation, vmap."""

import copy
import pickle
import types
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.recurrent._case import EXACT, Case, CellContractError, at, parameters, same, tracked
from mechanisms.recurrent._driver import differentiable
from mechanisms.recurrent._trees import Tree, named_leaves, tensors, tree_map
from mechanisms.recurrent.protocol import Cell, project

# What half precision may cost, relative to the largest output.
HALF = 0.05
NUDGE = 1e-4  # by how much parameters are moved to see what follows them


def dtypes(case: Case) -> None:
    """Everything follows the module's type; under autocast leaves keep theirs."""
    rule = "dtype"
    for dtype in (torch.float64, torch.float32):
        cell = case.cell(dtype)
        inputs, own = case.inputs(cell), case.noise(cell)
        result = case.run(cell, inputs, noise=own)
        for name, leaf in [*named_leaves(result.output), *named_leaves(result.state)]:
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != dtype:
                raise CellContractError(
                    rule,
                    f"after .to({dtype}) leaf {name!r} is {leaf.dtype}; are all tensors parameters or buffers?",
                    leaf=name,
                )
    cell = case.cell(torch.float32)
    inputs, own = case.inputs(cell), case.noise(cell)
    plain = case.run(cell, inputs, noise=own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = case.run(cell, inputs, noise=own)
    for (name, after), (_, before) in zip(named_leaves(lowered.state), named_leaves(plain.state), strict=True):
        if isinstance(after, Tensor) and isinstance(before, Tensor) and after.dtype != before.dtype:
            raise CellContractError(
                rule, f"under autocast leaf {name!r} is {after.dtype}; it must stay {before.dtype}", leaf=name
            )
    for (name, low), (_, full) in zip(named_leaves(lowered.output), named_leaves(plain.output), strict=True):
        if isinstance(low, Tensor) and isinstance(full, Tensor) and full.numel():
            difference = float((low.detach().float() - full.detach()).abs().max())
            if not difference <= HALF * max(float(full.detach().abs().max()), 1e-6):
                raise CellContractError(
                    rule,
                    f"output {name!r} under autocast differs by {difference:.3g}",
                    leaf=name,
                    difference=difference,
                )


def device(case: Case) -> None:
    """On the meta device, a step makes no tensor elsewhere: what would fail on a GPU is found without one."""
    rule = "device"
    cell = case.cell(torch.float32)
    inputs = tree_map(lambda leaf: leaf.to("meta"), at(case.inputs(cell), 0))
    moved = copy.deepcopy(cell).to("meta")
    state = moved.initial_state(case.batch)
    for name, leaf in named_leaves(state):
        if isinstance(leaf, Tensor) and leaf.device.type != "meta":
            raise CellContractError(
                rule, f"initial_state makes leaf {name!r} on {leaf.device}, not where the parameters are", leaf=name
            )
    own = moved.noise(1, case.batch, device="meta")
    for name, leaf in named_leaves(own):
        if isinstance(leaf, Tensor) and leaf.device.type != "meta":
            raise CellContractError(
                rule, f"noise() makes leaf {name!r} on {leaf.device} although told 'meta'", leaf=name
            )
    try:
        output, new = moved.step(project(moved, inputs, at(own, 0)), state, at(own, 0))[:2]
    except RuntimeError as error:
        raise CellContractError(
            rule, f"a step needs numbers, or tensors of another device than the parameters': {error}"
        ) from error
    for name, leaf in [*named_leaves(output), *named_leaves(new)]:
        if isinstance(leaf, Tensor) and leaf.device.type != "meta":
            raise CellContractError(rule, f"leaf {name!r} is on {leaf.device}, not where its inputs are", leaf=name)


def gradient(case: Case) -> None:
    """Gradients are the derivatives: of one step, of two, and again where the cell says so."""
    rule = "gradient"
    cell = case.cell()
    _learned_start(rule, cell, case.batch)
    if not cell.exact_gradient:
        return
    stepper = _Stepper(cell)
    names, values = list(dict(stepper.named_parameters())), list(stepper.parameters())
    start = case.state(cell) if not cell.growing else cell.initial_state(case.batch)
    free = [
        leaf.is_floating_point() and name.split(".")[-1] not in cell.constant_leaves
        for name, leaf in named_leaves(start)
        if isinstance(leaf, Tensor)
    ]
    for steps in (1, 2):
        inputs, own = case.inputs(cell, steps), case.noise(cell, steps)
        leaves = tracked(inputs), start

        def run(*given: Tensor, leaves: Any = leaves, own: Tree = own) -> tuple[Tensor, ...]:
            rest = iter(given)
            inputs = tree_map(lambda leaf: next(rest), leaves[0])
            flags = iter(free)
            state = tree_map(lambda leaf: next(rest) if next(flags) else leaf, leaves[1])
            weights = dict(zip(names, rest, strict=True))
            found = torch.func.functional_call(stepper, weights, (inputs, state, own))
            return tuple(leaf for leaf in found if leaf.is_floating_point())

        given = [
            *[leaf.detach().clone().requires_grad_() for leaf in tensors(inputs)],
            *[
                leaf.detach().clone().requires_grad_()
                for leaf, wanted in zip(tensors(start), free, strict=True)
                if wanted
            ],
            *[value.detach().clone().requires_grad_() for value in values],
        ]
        try:
            torch.autograd.gradcheck(run, given, fast_mode=True)
        except RuntimeError as error:  # gradcheck's own kind
            raise CellContractError(rule, f"the gradient of {steps} steps is not their derivative: {error}") from error
        if steps == 1 and cell.twice_differentiable:
            try:
                torch.autograd.gradgradcheck(run, given, fast_mode=True)
            except RuntimeError as error:
                raise CellContractError(
                    rule, f"gradients of gradients are wrong; or declare twice_differentiable = False: {error}"
                ) from error


def _learned_start(rule: str, cell: Cell, batch: int) -> None:
    """Whatever initial_state makes of the parameters, it gives them their gradient."""
    for name, parameter in cell.named_parameters():
        direction = torch.cos(torch.arange(parameter.numel(), dtype=parameter.dtype)).view_as(parameter)
        moved_starts = []
        kept = parameter.detach().clone()
        with torch.no_grad():
            for shift in (NUDGE, -NUDGE):
                parameter.copy_(kept + shift * direction)
                # Copies: an expanded parameter shares its memory.
                moved_starts.append([leaf.clone() for leaf in tensors(cell.initial_state(batch))])
            parameter.copy_(kept)
        plain = [(leaf, value) for leaf, value in named_leaves(cell.initial_state(batch)) if isinstance(value, Tensor)]
        for (leaf, value), up, down in zip(plain, *moved_starts, strict=True):
            if not value.is_floating_point() or leaf.split(".")[-1] in cell.constant_leaves:
                continue
            weights = torch.sin(1 + torch.arange(value.numel(), dtype=value.dtype)).view_as(value)
            moved = float(((up - down) * weights).sum()) / (2 * NUDGE)
            found = 0.0
            if value.requires_grad:
                (gradient,) = torch.autograd.grad((value * weights).sum(), parameter, allow_unused=True)
                found = 0.0 if gradient is None else float((gradient * direction).sum())
            if not abs(found - moved) <= 1e-6 * max(1.0, abs(moved)):
                raise CellContractError(
                    rule,
                    f"the initial {leaf!r} follows the parameter {name!r} (its derivative is {moved:.3g}), but the "
                    f"gradient is {found:.3g}: expand the parameter, do not copy or detach it",
                    leaf=leaf,
                    difference=abs(found - moved),
                )


class _Stepper(nn.Module):
    """A few steps as a module, so that parameters can be put in from outside.

    It returns tensors alone, and none that is declared constant.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, inputs: Tree, state: Tree, own: Tree) -> list[Tensor]:
        outputs: list[Tensor] = []
        for t in range(tensors(inputs)[0].shape[0]):
            projected = project(self.cell, at(inputs, t), at(own, t))
            output, state = self.cell.step(projected, state, at(own, t))[:2]
            outputs += tensors(output)
        constant = self.cell.constant_leaves
        last = [
            leaf
            for name, leaf in named_leaves(state)
            if isinstance(leaf, Tensor) and name.split(".")[-1] not in constant
        ]
        return [*outputs, *last]


def copies(case: Case) -> None:
    """Copies and pickles give the same and share nothing."""
    rule = "copies"
    cell = case.cell()
    inputs, own = case.inputs(cell), case.noise(cell)
    early = copy.deepcopy(cell)
    want = case.run(cell, inputs, noise=own)
    late = copy.deepcopy(cell)
    try:
        sent = pickle.loads(pickle.dumps(cell))  # what a worker process would receive; these bytes are our own
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CellContractError(rule, f"the cell cannot be sent to another process: {error}") from error
    for name, other in (("a copy before the first run", early), ("a copy after it", late), ("a pickle", sent)):
        got = case.run(other, inputs, noise=own)
        same(rule, (got.output, got.state), (want.output, want.state), 0.0, name)
        mine = {parameter.data_ptr() for parameter in cell.parameters()}
        if any(parameter.numel() and parameter.data_ptr() in mine for parameter in other.parameters()):
            raise CellContractError(rule, f"{name} shares parameters with the original")


def compiled(case: Case) -> None:
    """A step compiles as one graph, gives the same to the bit, and is compiled again for a new batch size at most."""
    rule = "compile"
    cell = case.cell()
    graphs = 0

    def count(module: torch.fx.GraphModule, examples: list[Any]) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    # A copy of the code has a cache of its own, so that no limit of recompilations is reached over many checks.
    original = type(cell).step
    code = getattr(original, "__code__", None)
    if code is None:
        raise CellContractError(rule, "step is no plain Python function")
    fresh = types.FunctionType(
        code.replace(), original.__globals__, original.__name__, original.__defaults__, original.__closure__
    )
    fresh.__kwdefaults__ = original.__kwdefaults__
    step = torch.compile(fresh, fullgraph=True, backend=count)
    for batch in (case.batch, case.batch + 2):
        inputs, own = case.inputs(cell, 5, batch), case.noise(cell, 5, batch)
        state = mine = differentiable(cell, cell.initial_state(batch))
        for t in range(5):
            projected, noise = project(cell, at(inputs, t), at(own, t)), at(own, t)
            want, state = cell.step(projected, state, noise)[:2]
            try:
                got, mine = step(cell, projected, mine, noise)[:2]
            except Exception as error:  # the compiler has many kinds of errors
                reason = " ".join(str(error).split())[:400]
                raise CellContractError(
                    rule, f"step does not compile as one graph (a branch on values? .item()?): {reason}"
                ) from error
            same(rule, (got, mine), (want, state), 0.0, f"the compiled step {t} of a batch of {batch}")
    if graphs > 2 and not cell.growing:
        raise CellContractError(rule, f"5 steps of 2 batch sizes were compiled {graphs} times; 2 are needed")


def mapped(case: Case) -> None:
    """Several models in one batch by torch.func: stacked parameters give what each gives alone."""
    rule = "vmap"
    cell = case.cell()
    if not cell.rows_independent:
        return
    models = [case.cell(seed=seed) for seed in (0, 1)]
    stepper = _Stepper(cell)
    stacked = {
        name: torch.stack([dict(_Stepper(model).named_parameters())[name].detach() for model in models])
        for name, _ in stepper.named_parameters()
    }
    inputs, own = case.inputs(cell, 3), case.noise(cell, 3)
    start = case.state(cell) if not cell.growing else cell.initial_state(case.batch)

    def run(weights: dict[str, Tensor]) -> list[Tensor]:
        return torch.func.functional_call(stepper, weights, (inputs, start, own))

    if not stacked:
        return
    try:
        together = torch.func.vmap(run)(stacked)
    except RuntimeError as error:
        raise CellContractError(rule, f"the step does not run under vmap: {error}") from error
    for place in range(len(models)):
        alone = run({name: weight[place] for name, weight in stacked.items()})
        same(rule, tuple(one[place] for one in together), tuple(alone), case.tolerance, f"model {place} under vmap")
    del models
    same(rule, parameters(cell), parameters(case.cell()), EXACT, "parameters after vmap")
