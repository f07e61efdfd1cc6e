"""The features of a network in the linear regime: its Jacobian over a batch, their strengths, the responses to them.

Around given parameters a network is linear in their change: f = Phi theta with the Jacobian Phi = d f / d theta, of
shape (n, m), one row for each example (neural tangent features). With labels y in {-1, +1} and Y = diag(y),

    Y Phi = U diag(s) V^T       feature j is row j of V^T, its strength s_j, its weight in the examples column j of U
    z = U^T Y f                 the network's response to feature j is z_j
    m = Y f = U z               margins
    K = Y Phi Phi^T Y = U diag(s^2) U^T

Signs of singular vectors are arbitrary; here they are such that every column of U sums to 0 or more.

Source: Pezeshki et al., "Gradient Starvation: A Learning Proclivity in Neural Networks", NeurIPS 2021.

>>> model = torch.nn.Linear(3, 1, bias=False)
>>> inputs, labels = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([1, -1])
>>> found = decompose(jacobian_features(model, inputs), labels)
>>> found.strengths.tolist()
[2.0, 1.0]
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mechanisms._base.validation import as_finite, check_number

__all__ = [
    "FeatureDecomposition",
    "decompose",
    "decompose_kernel",
    "jacobian_features",
    "jacobian_kernel",
    "responses",
]

CHUNK_NUMBERS = 2**26  # Jacobian entries held at a time by default: 256 MiB in float32
Output = int | tuple[int, int] | None
Progress = Callable[[int, int], object]


class FeatureDecomposition(NamedTuple):
    """Features of a batch in the order of their strengths.

    Attributes:
        weights: U, (n, k): column j says how much of feature j each example has, times its label.
        strengths: s, (k,), decreasing.
        directions: V^T, (k, m): the features in the space of the parameters; None if only the kernel was given.

    >>> FeatureDecomposition(torch.eye(2), torch.tensor([3.0, 2.0]), None).strengths
    tensor([3., 2.])
    """

    weights: Tensor
    strengths: Tensor
    directions: Tensor | None = None


def jacobian_features(
    model: nn.Module,
    inputs: Tensor,
    *,
    output: Output = None,
    chunk_size: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The gradient of the model's output with respect to its parameters, for each example: Phi, (n, m).

    Args:
        model: any module whose output for one example does not depend on the others; parameters with
            `requires_grad=False` are left out. Its state is not changed.
        inputs: (n, ...), the model's first argument.
        output: which output, for a model with several: an index, or a pair (a, b) for the difference of two logits,
            which is the binary logit of class a against class b.
        chunk_size: examples at a time; by default as many as make 2^26 numbers.
        progress: called with the examples done and their number after every chunk.

    Returns:
        (n, m), columns in the order of `model.named_parameters()`, on the inputs' device.

    Raises:
        TypeError: inputs are no tensor.
        ValueError: dropout or batch norm in training mode, for which the gradient of one example is undefined (call
            `model.eval()`); batch norm without running statistics; several outputs and no choice; no parameters.

    >>> jacobian_features(torch.nn.Linear(2, 1), torch.tensor([[3.0, 4.0]]))
    tensor([[3., 4., 1.]])
    >>> jacobian_features(torch.nn.Linear(2, 2, bias=False), torch.tensor([[3.0, 4.0]]), output=(0, 1))
    tensor([[ 3.,  4., -3., -4.]])
    """
    rows, width, dtype = _per_example(model, inputs, output)
    found = torch.empty(len(inputs), width, dtype=dtype, device=inputs.device)
    for part in _chunks(len(inputs), width, chunk_size, progress):
        torch.cat([block.flatten(1) for block in rows(inputs[part]).values()], 1, out=found[part])
    return found


def jacobian_kernel(
    model: nn.Module,
    inputs: Tensor,
    *,
    output: Output = None,
    chunk_size: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The empirical neural tangent kernel Phi Phi^T, (n, n), without storing Phi.

    Two chunks of Jacobians are in memory at a time. With more than one chunk the gradients of an example are computed
    again for every earlier chunk, so larger chunks are faster.

    Args:
        model, inputs, output, progress: see `jacobian_features`.
        chunk_size: examples at a time; by default as many as make 2^26 numbers.

    Raises:
        TypeError, ValueError: as `jacobian_features`.

    >>> jacobian_kernel(torch.nn.Linear(2, 1), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    tensor([[26.,  4.],
            [ 4.,  2.]])
    """
    rows, width, dtype = _per_example(model, inputs, output)
    kernel = torch.empty(len(inputs), len(inputs), dtype=dtype, device=inputs.device)
    parts = list(_chunks(len(inputs), width, chunk_size, None))
    for place, part in enumerate(parts):
        left = rows(inputs[part])
        for other in parts[place:]:
            right = left if other is part else rows(inputs[other])
            block = _contract(left, right)
            kernel[part, other] = block
            kernel[other, part] = block.T
        if progress is not None:
            progress(part.stop, len(inputs))
    return kernel


def decompose(features: Tensor, labels: Tensor, *, num_features: int | None = None) -> FeatureDecomposition:
    """Singular value decomposition of Y Phi: features, their strengths and their weights in the examples.

    Args:
        features: Phi, (n, m), for example from `jacobian_features`.
        labels: (n,), in {-1, +1}.
        num_features: how many of the strongest to keep; by default all min(n, m).

    Raises:
        ValueError: shapes that do not belong together, values that are not finite, labels in {0, 1}.

    >>> decompose(torch.diag(torch.tensor([2.0, 3.0])), torch.tensor([1, -1]), num_features=1).strengths
    tensor([3.])
    """
    values = as_finite(features, "features")
    if values.dim() != 2 or 0 in values.shape:
        raise ValueError(f"features have shape {tuple(values.shape)}, expected (examples, parameters)")
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    signs = check_signs(labels, len(values)).to(values)
    # LAPACK is slow on wide matrices, so their QR decomposition comes first.
    basis, lower = torch.linalg.qr((signs[:, None] * values).T)
    weights, strengths, inner = torch.linalg.svd(lower.T, full_matrices=False)
    directions = inner @ basis.T
    keep = _number(num_features, len(strengths))
    flips = _flips(weights)
    return FeatureDecomposition((weights * flips)[:, :keep], strengths[:keep], (directions * flips[:, None])[:keep])


def decompose_kernel(
    kernel: Tensor, labels: Tensor | None = None, *, num_features: int | None = None
) -> FeatureDecomposition:
    """The same from the kernel, for models with many more parameters than examples; without directions.

    Args:
        kernel: Phi Phi^T, (n, n), for example from `jacobian_kernel`; computed with in float64. Strengths below about
            the square root of its precision (3e-4 of the largest in float32) are noise.
        labels: (n,), in {-1, +1}; None if the kernel is Y Phi Phi^T Y already.
        num_features: how many of the strongest to keep; by default all n.

    Raises:
        ValueError: a kernel that is not square, symmetric, finite or positive semi-definite, labels in {0, 1}.

    >>> decompose_kernel(torch.diag(torch.tensor([4.0, 9.0])), torch.tensor([1, -1])).strengths.tolist()
    [3.0, 2.0]
    """
    values = as_finite(kernel, "kernel")
    if values.dim() != 2 or values.shape[0] != values.shape[1] or len(values) == 0:
        raise ValueError(f"the kernel has shape {tuple(values.shape)}, expected (examples, examples)")
    precision = torch.finfo(values.dtype).eps
    values = values.double()
    largest = float(values.abs().max())
    difference = float((values - values.T).abs().max())
    if difference > 100 * precision * largest:
        raise ValueError(
            f"the kernel is not symmetric: entries differ from their mirror images by up to {difference:g}"
        )
    if labels is not None:
        signs = check_signs(labels, len(values)).to(values)
        values = signs[:, None] * values * signs
    squares, weights = torch.linalg.eigh((values + values.T) / 2)
    if float(squares[0]) < -100 * precision * len(values) * largest:
        raise ValueError(f"the kernel has the eigenvalue {float(squares[0]):g}; a kernel Phi Phi^T has none below 0")
    keep = _number(num_features, len(values))
    weights = weights.flip(1)
    return FeatureDecomposition((weights * _flips(weights))[:, :keep], squares.flip(0).clamp(min=0).sqrt()[:keep], None)


def responses(logits: Tensor, labels: Tensor, decomposition: FeatureDecomposition) -> Tensor:
    """The network's responses to the features, z = U^T Y f.

    Args:
        logits: f, (n,), or (..., n) for several networks or moments of training.
        labels: (n,), in {-1, +1}.
        decomposition: of the same examples, in the same order.

    Returns:
        (k,), or (..., k).

    Raises:
        ValueError: shapes that do not belong together, values that are not finite, labels in {0, 1}.

    >>> found = FeatureDecomposition(torch.eye(2), torch.tensor([3.0, 2.0]))
    >>> responses(torch.tensor([1.5, -0.5]), torch.tensor([1, -1]), found)
    tensor([1.5000, 0.5000])
    """
    values = as_finite(logits, "logits")
    examples = len(decomposition.weights)
    if values.dim() == 0 or values.shape[-1] != examples:
        raise ValueError(f"logits have shape {tuple(values.shape)}, expected (..., {examples}) as in the decomposition")
    dtype = torch.promote_types(values.dtype, decomposition.weights.dtype)
    return (values * check_signs(labels, examples).to(values)).to(dtype) @ decomposition.weights.to(dtype)


def check_inputs(inputs: Tensor) -> None:
    """Inputs are a tensor with at least one example.

    Raises:
        TypeError, ValueError: they are not.

    >>> check_inputs(torch.ones(1, 2))
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
    if inputs.dim() == 0 or len(inputs) == 0:
        raise ValueError(f"inputs have shape {tuple(inputs.shape)}, expected (examples, ...) with at least one example")


def check_signs(labels: Tensor, examples: int) -> Tensor:
    """Labels in {-1, +1}, one for each example.

    Raises:
        ValueError: others; the message names both conventions.

    >>> check_signs(torch.tensor([1, -1]), 2)
    tensor([ 1, -1])
    """
    values = torch.as_tensor(labels)
    if values.shape != (examples,):
        raise ValueError(f"labels have shape {tuple(values.shape)}, expected ({examples},)")
    if not bool(((values == 1) | (values == -1)).all()):
        raise ValueError(
            f"labels must be in {{-1, +1}} (not {{0, 1}}), got {torch.unique(values)[:5].tolist()}; "
            "2 * labels - 1 converts {0, 1}"
        )
    return values


def _per_example(
    model: nn.Module, inputs: Tensor, output: Output
) -> tuple[Callable[[Tensor], dict[str, Tensor]], int, torch.dtype]:
    """The function from examples to their gradients by parameter, the number of parameters, and their type."""
    check_inputs(inputs)
    _check_modes(model)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    if not weights:
        raise ValueError("the model has no parameters with requires_grad=True, so its output has no gradient")
    fixed = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
    fixed |= dict(model.named_buffers())

    def one(weights: dict[str, Tensor], example: Tensor) -> Tensor:
        values = functional_call(model, (weights, fixed), (example.unsqueeze(0),))
        return _choose(values, output)

    gradient = vmap(grad(one), in_dims=(None, 0))

    def rows(part: Tensor) -> dict[str, Tensor]:
        try:
            return gradient(weights, part)
        except RuntimeError as error:
            if "randomness error mode" not in str(error):
                raise
            raise ValueError(
                "the model draws at random, so the gradient of one example is undefined; call model.eval()"
            ) from None

    dtype = weights[next(iter(weights))].dtype
    for value in weights.values():
        dtype = torch.promote_types(dtype, value.dtype)
    return rows, sum(value.numel() for value in weights.values()), dtype


def _choose(values: Tensor, output: Output) -> Tensor:
    """One number from a model's output for one example."""
    if not isinstance(values, Tensor):
        raise TypeError(f"the model gives a {type(values).__name__}, expected a tensor; wrap it in one that picks it")
    outputs = values.numel()
    if output is None:
        if outputs != 1:
            raise ValueError(f"the model has {outputs} outputs; choose one, output=k, or a difference, output=(a, b)")
        return values.reshape(())
    chosen = output if isinstance(output, tuple) else (output,)
    known = all(isinstance(index, int) and -outputs <= index < outputs for index in chosen)
    if not known or len({index % outputs for index in chosen}) != (2 if isinstance(output, tuple) else 1):
        raise ValueError(
            f"output={output}: the model has outputs 0 to {outputs - 1}; give one of them or a pair of two, (a, b)"
        )
    flat = values.flatten()
    return flat[chosen[0]] if len(chosen) == 1 else flat[chosen[0]] - flat[chosen[1]]


def _check_modes(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{where} normalises over the batch, so the gradient of one example is undefined; call model.eval() "
                "(and let it track running statistics)"
            )
        rate = getattr(module, "p" if isinstance(module, nn.modules.dropout._DropoutNd) else "dropout", 0)
        if module.training and isinstance(rate, float | int) and rate > 0:
            raise ValueError(f"{where} drops at random in training mode; call model.eval()")


def _chunks(n: int, width: int, chunk_size: int | None, progress: Progress | None) -> Iterator[slice]:
    size = (
        max(1, CHUNK_NUMBERS // width) if chunk_size is None else int(check_number(chunk_size, "chunk_size", above=0))
    )
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
        if progress is not None:
            progress(min(start + size, n), n)


def _contract(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    blocks = [(left[name].flatten(1), right[name].flatten(1)) for name in left]
    total = blocks[0][0] @ blocks[0][1].T
    for one, other in blocks[1:]:
        total = total.addmm(one, other.T) if one.dtype == total.dtype else total + one @ other.T
    return total


def _flips(weights: Tensor) -> Tensor:
    """The signs that make every column sum to 0 or more."""
    return torch.where(weights.sum(0) < 0, -1.0, 1.0).to(weights)


def _number(num_features: int | None, most: int) -> int:
    if num_features is None:
        return most
    return int(check_number(num_features, "num_features", at_least=1, at_most=most))
