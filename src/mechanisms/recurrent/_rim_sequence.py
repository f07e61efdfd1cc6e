"""Whole sequences of RIM and BRIM cells at once, where that is faster than single steps."""

from typing import TYPE_CHECKING, Any

from mechanisms.recurrent._trees import Tree

if TYPE_CHECKING:
    from mechanisms.recurrent.brim_cell import BRIMCell
    from mechanisms.recurrent.rim_cell import RIMCell


def rim_sequence(cell: "RIMCell", inputs: Tree, state: Any, noise: Tree) -> Any:
    """`(outputs, state)` for all steps, or `NotImplemented`: then the cell steps singly."""
    return NotImplemented


def brim_sequence(cell: "BRIMCell", inputs: Tree, state: Any, noise: Tree) -> Any:
    """`(outputs, state)` for all steps, or `NotImplemented`: then the cell steps singly."""
    return NotImplemented
