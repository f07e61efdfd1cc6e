"""What a generative model does with the sequences that users pass: checks, lengths, chunks, sums over valid steps."""

from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.recurrent._doors import as_lengths
from mechanisms.recurrent._driver import transformed
from mechanisms.recurrent._trees import Tree, first_tensor, tree_map
from mechanisms.recurrent.densities import Likelihood


def eager() -> bool:
    """Whether values may be looked at: not while torch compiles or transforms."""
    return not (torch.compiler.is_compiling() or transformed())


def time_first(sequence: Tensor, batch_first: bool) -> Tensor:
    """Time and batch exchanged where the batch comes first; this undoes itself."""
    return sequence.transpose(0, 1) if batch_first else sequence


def embedding_size(embedding: nn.Module, size: int | None) -> int:
    """What an embedding gives for frames of a size, or for tokens (`None`), found by trying."""
    like = next(iter([*embedding.parameters(), *embedding.buffers()]), torch.zeros(()))
    mode = {module: module.training for module in embedding.modules()}
    embedding.eval()
    try:
        with torch.no_grad():
            if size is None:
                tried = torch.zeros(1, 1, dtype=torch.int64, device=like.device)
            else:
                tried = torch.zeros(1, 1, size, dtype=like.dtype, device=like.device)
            found = embedding(tried)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"the embedding does not take {'integers' if size is None else f'frames of size {size}'}: {error}"
        ) from error
    finally:
        for module, training in mode.items():
            module.training = training
    if found.dim() != 3 or found.shape[:2] != (1, 1):
        raise ValueError(f"the embedding made {tuple(found.shape)} of one element; expected (1, 1, embedding size)")
    return found.shape[-1]


def check_sequence(sequence: Tensor, name: str, size: int | None, count: int) -> None:
    """Type, shape and, for tokens, range of a sequence (time, batch, D), or (time, batch) of integers.

    Raises:
        TypeError: integers where frames are expected, or the reverse.
        ValueError: dimensions or tokens do not fit.
    """
    if size is None:
        if sequence.is_floating_point() or sequence.is_complex() or sequence.dtype is torch.bool:
            raise TypeError(f"{name} has type {sequence.dtype}; tokens are integers")
        if sequence.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(sequence.shape)}; expected tokens (time, batch)")
    else:
        if not sequence.is_floating_point():
            raise TypeError(f"{name} has type {sequence.dtype}; frames are floating-point numbers")
        if sequence.dim() != 3 or sequence.shape[-1] != size:
            raise ValueError(f"{name} has shape {tuple(sequence.shape)}; expected frames (time, batch, {size})")
    if not sequence.shape[0]:
        raise ValueError(f"{name} has no steps: {tuple(sequence.shape)}")
    if size is None and sequence.numel() and eager():
        low, high = (int(end) for end in sequence.aminmax())
        if low < 0 or high >= count:
            raise ValueError(f"{name} holds tokens from {low} to {high}; they must be from 0 to {count - 1}")


def open_pair(
    x: Tensor, y: Tensor, lengths: Any, likelihood: Likelihood, input_size: int
) -> tuple[Tensor, Tensor, list[int] | None]:
    """Checked inputs and targets with zeros beyond their lengths, and the lengths where any is short.

    Raises:
        TypeError, ValueError: see `check_sequence`; shapes that differ, values outside [0, 1] where the likelihood asks
            for probabilities, lengths that are none, or all 0.
    """
    tokens = likelihood.kind == "categorical"
    size = None if tokens else input_size
    if x.shape != y.shape:
        raise ValueError(
            f"inputs have shape {tuple(x.shape)}, targets {tuple(y.shape)}; targets are the inputs one step later, of "
            "the same shape"
        )
    valid = None
    if lengths is not None:
        valid = as_lengths(lengths, x.shape[0], x.shape[1], least=0)
        if valid and not any(valid):
            raise ValueError("all lengths are 0: there is nothing to learn from; drop the batch")
        if min(valid, default=x.shape[0]) == x.shape[0]:
            valid = None
        else:
            # Whatever padding holds, infinities included, must not come near the sums.
            keep = mask(valid, x)
            assert keep is not None
            x, y = (torch.where(keep.view(*keep.shape, *[1] * (part.dim() - 2)), part, 0) for part in (x, y))
    check_sequence(x, "inputs", size, input_size)
    check_sequence(y, "targets", size, likelihood.size)
    if likelihood.kind == "bernoulli" and y.numel() and eager():
        low, high = (float(end) for end in y.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"targets lie between {low:g} and {high:g}; likelihood='bernoulli' takes [0, 1]")
    return x, y, valid


def mask(valid: list[int] | None, like: Tensor) -> Tensor | None:
    """Which steps are valid (time, batch); `None` when all are."""
    if valid is None:
        return None
    time = torch.arange(like.shape[0], device=like.device).unsqueeze(1)
    return time < torch.tensor(valid, device=like.device)


def steps(valid: list[int] | None, like: Tensor) -> Tensor:
    """Valid steps of each sequence (batch,)."""
    if valid is None:
        return torch.full((like.shape[1],), like.shape[0], dtype=torch.int64, device=like.device)
    return torch.tensor(valid, device=like.device)


def total(costs: Tensor, keep: Tensor | None) -> Tensor:
    """Sums over the valid steps, (time, batch) to (batch,)."""
    return (costs if keep is None else torch.where(keep, costs, 0)).sum(0)


def full(tensor: Tensor) -> Tensor:
    """At least single precision, in which sums over hundreds of steps keep their digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def full_as(tensor: Tensor, like: Tensor) -> Tensor:
    """In the type of another: embeddings come back in half precision under autocast."""
    return tensor if tensor.dtype is like.dtype else tensor.to(like.dtype)


def chunks(x: Tensor, y: Tensor, valid: list[int] | None, size: int) -> tuple[Tensor, Tensor, list[int] | None]:
    """Sequences cut into `size` steps each; the pieces are rows, those of one place after those of the place before."""
    length, rows = x.shape[:2]
    pieces = -(-length // size)
    if pieces == 1:
        return x, y, valid

    def cut(part: Tensor) -> Tensor:
        missing = part.new_zeros(pieces * size - length, *part.shape[1:])
        part = torch.cat([part, missing]).view(pieces, size, *part.shape[1:])
        return part.transpose(0, 1).flatten(1, 2)

    ends = [length] * rows if valid is None else valid
    short = [min(max(end - place * size, 0), size) for place in range(pieces) for end in ends]
    return cut(x), cut(y), None if min(short) == size else short


def repeat(part: Tensor, count: int) -> Tensor:
    """(time, batch, ...) repeated along the batch, copy by copy."""
    return part if count == 1 else part.repeat(1, count, *[1] * (part.dim() - 2))


def at(tree: Tree, t: int) -> Tree:
    """One step of a tree."""
    return tree_map(lambda leaf: leaf[t], tree)


def main(output: Tree) -> Tensor:
    """The first tensor of a cell's output."""
    return first_tensor(output)
