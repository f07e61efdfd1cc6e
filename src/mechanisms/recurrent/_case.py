"""What the rules of `check_cell` share: a cell with its inputs and noise, and comparisons that name what differs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mechanisms._base.seeds import seeded
from mechanisms.recurrent._trees import Tree, named_leaves, shapes, tensors, tree_map
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.scan import ScanResult, scan

EXACT = 1e-12


class CellContractError(AssertionError):
    """A cell breaks the contract of the protocol.

    Attributes:
        rule: the rule it breaks.
        leaf: the leaf of state or output where that shows, if one does.
        difference: the largest difference found, if numbers were compared.
    """

    def __init__(self, rule: str, message: str, *, leaf: str | None = None, difference: float | None = None) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule, self.leaf, self.difference = rule, leaf, difference


class Case:
    """A cell under test, with inputs and noise that follow from a seed.

    Args:
        make_cell: makes a cell.
        batch_size, steps: sizes of the sequences.
        tolerance: for comparisons in float32; float64 is compared to 1e-12.
        seed: for weights, inputs and noise.
    """

    def __init__(
        self, make_cell: Callable[[], Cell], batch_size: int, steps: int, tolerance: float | int, seed: int
    ) -> None:
        self.make_cell, self.batch, self.steps = make_cell, batch_size, steps
        self.tolerance, self.seed = float(tolerance), seed

    def cell(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Cell:
        """A fresh cell in training mode; the same weights each time."""
        with seeded(self.seed + seed):
            return self.make_cell().to(dtype).train()

    def inputs(self, cell: Cell, steps: int | None = None, batch: int | None = None, seed: int = 0) -> Tree:
        """Inputs (steps, batch, size) of the cell's type."""
        generator = torch.Generator().manual_seed(self.seed + 1000 + seed)
        dtype = self.dtype(cell)
        shape = (self.steps if steps is None else steps, self.batch if batch is None else batch)

        def draw(size: int) -> Tensor:
            return torch.randn(*shape, size, generator=generator, dtype=torch.float64).to(dtype)

        sizes = cell.input_size
        return draw(sizes) if isinstance(sizes, int) else tuple(draw(size) for size in sizes)

    def noise(self, cell: Cell, steps: int | None = None, batch: int | None = None, seed: int = 0) -> Tree:
        """Noise of the training mode."""
        generator = torch.Generator().manual_seed(self.seed + 2000 + seed)
        steps = self.steps if steps is None else steps
        return cell.noise(steps, self.batch if batch is None else batch, generator=generator)

    def state(self, cell: Cell, steps: int = 2) -> Tree:
        """A state that is not the initial one, without history."""
        result = scan(cell, self.inputs(cell, steps, seed=7), noise=self.noise(cell, steps, seed=7), backend="eager")
        return tree_map(lambda leaf: leaf.detach().clone(), result.state)

    @staticmethod
    def dtype(cell: Cell) -> torch.dtype:
        """The type of the cell's parameters, or of its state where it has none."""
        for parameter in cell.parameters():
            return parameter.dtype
        return next((leaf.dtype for leaf in tensors(cell.initial_state(1)) if leaf.is_floating_point()), torch.float32)

    def run(self, cell: Cell, inputs: Tree, state: Tree = None, **options: Any) -> ScanResult:
        """A scan through single steps."""
        return scan(cell, inputs, state, backend="eager", **options)


def at(tree: Tree, index: Any) -> Tree:
    """Part of every tensor."""
    return tree_map(lambda leaf: leaf[index], tree)


def at_rows(tree: Tree, rows: Any) -> Tree:
    """Rows of (time, batch, ...)."""
    return tree_map(lambda leaf: leaf[:, rows], tree)


def same(rule: str, got: Tree, want: Tree, tolerance: float, what: str) -> None:
    """Refuse trees that differ by more than `tolerance`, relative to the largest number where that is above 1."""
    pairs = list(named_leaves(got)), list(named_leaves(want))
    if [name for name, _ in pairs[0]] != [name for name, _ in pairs[1]]:
        raise CellContractError(rule, f"{what}: the structure is {shapes(got)}, expected {shapes(want)}")
    for (name, mine), (_, theirs) in zip(*pairs, strict=True):
        if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
            if mine != theirs:
                raise CellContractError(rule, f"{what}: {name!r} is {mine}, expected {theirs}", leaf=name)
            continue
        if mine.shape != theirs.shape:
            raise CellContractError(
                rule, f"{what}: leaf {name!r} has shape {tuple(mine.shape)}, expected {tuple(theirs.shape)}", leaf=name
            )
        if not mine.numel():
            continue
        difference = float((mine.detach().double() - theirs.detach().double()).abs().max())
        allowed = tolerance * max(1.0, float(theirs.detach().double().abs().max()))
        if not difference <= allowed:
            raise CellContractError(
                rule,
                f"{what}: leaf {name!r} differs by {difference:.3g}, allowed are {allowed:.3g}",
                leaf=name,
                difference=difference,
            )


def loss(*trees: Tree) -> Tensor:
    """A sum in which every number has its own weight, so that gradients that are mixed up show."""
    total = torch.zeros((), dtype=torch.float64)
    for tree in trees:
        for leaf in tensors(tree):
            if leaf.requires_grad and leaf.numel():
                weights = torch.cos(torch.arange(leaf.numel(), dtype=leaf.dtype, device=leaf.device))
                total = total + (leaf.reshape(-1) * weights).sum().double()
    return total


def gradients(value: Tensor, *trees: Tree) -> dict[str, Tensor]:
    """Gradients by name with respect to the tensors of `trees` that want one; zeros where there is none."""
    named = [
        (f"{place}.{name}", leaf)
        for place, tree in enumerate(trees)
        for name, leaf in named_leaves(tree)
        if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    if not named or not value.requires_grad:
        return {}
    found = torch.autograd.grad(value, [leaf for _, leaf in named], allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(named, found, strict=True)
    }


def tracked(tree: Tree) -> Tree:
    """Copies of the floating-point tensors that ask for gradients."""
    return tree_map(
        lambda leaf: leaf.detach().clone().requires_grad_() if leaf.is_floating_point() else leaf.clone(), tree
    )


def parameters(cell: Cell) -> dict[str, Tensor]:
    """The cell's parameters by name."""
    return dict(cell.named_parameters())
