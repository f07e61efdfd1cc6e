"""Trees of tensors: tuples, named tuples and dictionaries, as states, noise and outputs are made of.

`None` and Python integers (the clock of a growing memory) pass through as they are. `torch.utils._pytree` would serve
too, but is private, and would accept what a state must not hold.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

Tree = Any


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree, path: str = "state") -> Tree:
    """The tree with `function` applied to each tensor, together with the tensors at its place in `others`.

    Raises:
        TypeError: something else than a tensor, tuple, dictionary, integer or `None` is in it; the message says where.
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if tree is None or isinstance(tree, int):
        return tree
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", range(len(tree)))
        parts = [
            tree_map(function, part, *[other[place] for other in others], path=f"{path}.{name}")
            for place, (name, part) in enumerate(zip(names, tree, strict=True))
        ]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, dict):
        return {
            key: tree_map(function, part, *[other[key] for other in others], path=f"{path}.{key}")
            for key, part in tree.items()
        }
    raise TypeError(f"{path} is a {type(tree).__name__}; tensors in tuples, named tuples and dictionaries are expected")


def named_leaves(tree: Tree, name: str = "") -> Iterator[tuple[str, Tensor | int]]:
    """Tensors (and clocks) with their places, as in "inner.h"; a bare tensor is called "state"."""
    if isinstance(tree, Tensor | int):
        yield name or "state", tree
    elif isinstance(tree, tuple | dict):
        names = tree if isinstance(tree, dict) else getattr(tree, "_fields", range(len(tree)))
        for key in names:
            part = tree[key] if isinstance(tree, dict) else getattr(tree, str(key), None)
            part = tree[key] if isinstance(key, int) else part
            yield from named_leaves(part, f"{name}.{key}" if name else str(key))
    elif tree is not None:
        raise TypeError(
            f"{name or 'state'} is a {type(tree).__name__}; tensors in tuples, named tuples and dictionaries are "
            "expected"
        )


def tensors(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in order."""
    return [leaf for _, leaf in named_leaves(tree) if isinstance(leaf, Tensor)]


def first_tensor(tree: Tree) -> Tensor:
    """The first tensor of a tree.

    Raises:
        TypeError: there is none.
    """
    if isinstance(tree, Tensor):
        return tree
    found = tensors(tree)
    if not found:
        raise TypeError(f"a tensor, or several in a tuple, is expected, got {type(tree).__name__}")
    return found[0]


def unbind(tree: Tree, steps: int) -> list[Tree]:
    """The trees of the single steps. One backward node for all steps, where indexing would write zeros for each."""
    if tree is None:
        return [None] * steps
    if isinstance(tree, Tensor):
        return list(tree.unbind(0))
    if isinstance(tree, tuple):
        parts = [unbind(part, steps) for part in tree]
        if hasattr(tree, "_fields"):
            return [type(tree)(*step) for step in zip(*parts, strict=True)]
        return list(zip(*parts, strict=True)) if parts else [()] * steps
    if isinstance(tree, dict):
        whole = {key: unbind(part, steps) for key, part in tree.items()}
        return [{key: parts[step] for key, parts in whole.items()} for step in range(steps)]
    raise TypeError(f"tensors in tuples and dictionaries are expected, got {type(tree).__name__}")


def split(tree: Tree, sizes: list[int]) -> list[Tree]:
    """The tree cut into segments of time."""
    if tree is None:
        return [None] * len(sizes)
    if len(sizes) == 1:
        return [tree]
    cut = tree_map(lambda leaf: _Parts(leaf.split(sizes)), tree)
    return [_pick(cut, place) for place in range(len(sizes))]


class _Parts:
    """The segments of one tensor, while a tree is cut."""

    def __init__(self, parts: tuple[Tensor, ...]) -> None:
        self.parts = parts


def _pick(cut: Tree, place: int) -> Tree:
    if isinstance(cut, _Parts):
        return cut.parts[place]
    if isinstance(cut, tuple):
        parts = [_pick(part, place) for part in cut]
        return type(cut)(*parts) if hasattr(cut, "_fields") else tuple(parts)
    if isinstance(cut, dict):
        return {key: _pick(part, place) for key, part in cut.items()}
    return cut


def joined(join: Callable[[list[Tensor]], Tensor], trees: list[Tree]) -> Tree:
    """One tree from several of the same structure: tensors joined place by place (stacked, say)."""
    first = trees[0]
    if isinstance(first, Tensor):
        return join(trees)
    return tree_map(lambda *leaves: join(list(leaves)), first, *trees[1:])


def per_row(flags: Tensor, leaf: Tensor) -> Tensor:
    """Flags (batch,) in the shape that broadcasts over a leaf (batch, ...)."""
    return flags.view(-1, *[1] * (leaf.dim() - 1)) if leaf.dim() > 1 else flags


def shapes(tree: Tree) -> str:
    """A line that shows a tree: `LSTMState(h: float32 (8, 64), c: float32 (8, 64))`."""
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"
    if isinstance(tree, tuple):
        fields = getattr(tree, "_fields", None)
        if fields is None:
            return f"({', '.join(shapes(part) for part in tree)}{',' if len(tree) == 1 else ''})"
        inside = ", ".join(f"{name}: {shapes(part)}" for name, part in zip(fields, tree, strict=True))
        return f"{type(tree).__name__}({inside})"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key}: {shapes(part)}" for key, part in tree.items()) + "}"
    return repr(tree) if tree is None or isinstance(tree, int) else type(tree).__name__
