r"""Games between networks: playing them, and the vector field, Jacobian and eigenvalues that say how play unfolds.

Players i with parameters omega_i and losses L_i(omega). Each follows the gradient of its own loss, so play follows the
vector field and is governed, near a point where it vanishes, by its Jacobian, which is not symmetric:

    v(omega) = (grad_{omega_1} L_1, ..., grad_{omega_N} L_N),    J = grad v,
    two players:  J = [[d²L1/dtheta², d²L1/dtheta dphi], [d²L2/dphi dtheta, d²L2/dphi²]].

Complex eigenvalues of J are what makes a game rotate; gradient flow is stable where all have a positive real part.

Reference: Gidel et al., "Negative Momentum for Improved Game Dynamics", AISTATS 2019, arXiv 1807.04740, section 2.

A *loss* here is a function without arguments that evaluates one player's loss, with a fresh forward pass through the
current parameters of everyone. *Players* are modules or sequences of parameters, one for each loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechanisms._base.seeds import numpy_generator
from mechanisms._base.validation import check_choice, check_number
from mechanisms.dynamics.extrapolation import ExtraGradient

Loss = Callable[[], Tensor]
Player = nn.Module | Iterable[Tensor]
ORDERS = ("alternating", "simultaneous")
WHICH = ("LM", "SM", "LR", "SR", "LI", "SI")


def play(
    losses: Sequence[Loss],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    order: str = "alternating",
    scaler: torch.amp.GradScaler | None = None,
) -> list[Tensor]:
    """One step of every player, each along the gradient of its own loss with respect to its own parameters.

    In turn ("alternating"), a player's loss is evaluated after the steps of those before it; together
    ("simultaneous"), all losses and gradients come before any step. Gradients of one player's loss never reach the
    parameters of another, as they do after `loss.backward()`. Afterwards `.grad` of every parameter holds its player's
    own gradient; what was there before is replaced.

    Args:
        losses: one function for each player, in the order of their moves; see above.
        optimizers: one for each player, with that player's parameters: any of torch's, those of
            `mechanisms.dynamics.negative_momentum`, or `OptimisticGradient`. With `ExtraGradient`, which all players
            must then use, together, every loss is evaluated twice.
        order: "alternating" or "simultaneous".
        scaler: scales the losses of half-precision training, and is updated once after all steps.

    Returns:
        The players' losses before their steps (with `ExtraGradient`, before the look ahead), detached scalars.

    Raises:
        ValueError: an unknown order, numbers of losses and optimisers that differ, a parameter that two players own, a
            loss that is no scalar or does not depend on its player's parameters, extragradient steps that are mixed
            with others, in turn, or scaled.
        TypeError: a loss that returns no tensor.

    >>> theta, phi = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    >>> optimizers = [torch.optim.SGD([player], lr=0.5) for player in (theta, phi)]
    >>> losses = [lambda: theta * phi, lambda: -theta * phi]
    >>> play(losses, optimizers)
    [tensor(1.), tensor(-0.5000)]
    >>> theta.item(), phi.item()  # phi answers the step of theta
    (0.5, 1.25)
    """
    check_choice(order, "order", ORDERS)
    owned = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    players = _check_players(losses, owned)
    extra = [optimizer for optimizer in optimizers if isinstance(optimizer, ExtraGradient)]
    if extra:
        if len(extra) < len(optimizers) or order != "simultaneous" or scaler is not None:
            raise ValueError(
                f"{len(extra)} of {len(optimizers)} players use ExtraGradient, order={order!r}, "
                f"{'with' if scaler else 'without'} a scaler: extragradient steps are defined for all players "
                'together; give it to every player, with order="simultaneous" and no scaler'
            )
        values = _set_gradients(losses, players)
        for optimizer in extra:
            optimizer.extrapolate()
        _set_gradients(losses, players)
        for optimizer in extra:
            optimizer.step()
        return values
    step = _step_with(scaler)
    if order == "simultaneous":
        values = _set_gradients(losses, players, scaler)
        for optimizer in optimizers:
            step(optimizer)
    else:
        values = []
        for index, (loss, player, optimizer) in enumerate(zip(losses, players, optimizers, strict=True)):
            value, gradients = _own_gradient(loss, player, index, scaler=scaler)
            _store(player, gradients)
            values.append(value.detach())
            step(optimizer)
    if scaler is not None:
        scaler.update()
    return values


def vector_field(losses: Sequence[Loss], players: Sequence[Player]) -> Tensor:
    """The game's vector field v at the current parameters: every player's own gradient, one after the other.

    Args:
        losses: one function for each player; see the top of the page.
        players: modules or sequences of parameters, one for each loss. Parameters that need no gradient are left out.

    Returns:
        A vector of as many numbers as there are parameters; 0 where a loss does not depend on one of them.

    Raises:
        ValueError, TypeError: as for `play`.

    >>> theta, phi = (torch.nn.Parameter(torch.tensor(value)) for value in (2.0, 3.0))
    >>> vector_field([lambda: theta * phi, lambda: -theta * phi], [[theta], [phi]])
    tensor([ 3., -2.])
    """
    return field_of(losses, own_parameters(losses, players), create_graph=False)


def game_jacobian(losses: Sequence[Loss], players: Sequence[Player], *, chunk_size: int = 128) -> Tensor:
    """The game Jacobian J: rows are the entries of the vector field, columns the parameters, players in order.

    Each loss is evaluated once and differentiated twice, `chunk_size` rows in one vectorised pass. For more than a few
    thousand parameters use `game_eigenvalues` with `k`, which never builds J.

    Args:
        losses, players: as for `vector_field`.
        chunk_size: rows that are computed at once; more is faster and takes more memory. 1 works for operations that
            torch cannot vectorise.

    Returns:
        An (n, n) matrix for n parameters in all.

    Raises:
        ValueError, TypeError: as for `play`; or a `chunk_size` below 1.

    >>> theta, phi = (torch.nn.Parameter(torch.tensor(value)) for value in (2.0, 3.0))
    >>> game_jacobian([lambda: theta * phi + theta**2 / 2, lambda: phi**2 - theta * phi], [[theta], [phi]])
    tensor([[ 1.,  1.],
            [-1.,  2.]])
    """
    chunk_size = int(check_number(chunk_size, "chunk_size", at_least=1))
    own = own_parameters(losses, players)
    field = field_of(losses, own, create_graph=True)
    return left_products(field, own, torch.eye(len(field), dtype=field.dtype, device=field.device), chunk_size)


def game_eigenvalues(
    losses: Sequence[Loss], players: Sequence[Player], *, k: int | None = None, which: str = "LM"
) -> Tensor:
    """Eigenvalues of the game Jacobian: all of them, or `k` without building it.

    With `k`, Arnoldi's method (ARPACK) works on products of J's transpose, which has the same eigenvalues as J and
    costs one backward pass for each product, through a graph that is built once.

    Args:
        losses, players: as for `vector_field`. Each loss is evaluated once, so noise drawn inside it is held fixed.
        k: how many; `None` for all n. From n - 1 on, all are computed and the `k` chosen among them.
        which: with `k`, the ones of largest or smallest magnitude ("LM", "SM"), real ("LR", "SR") or imaginary part
            ("LI", "SI", by magnitude). The small ones converge slowly.

    Returns:
        Complex eigenvalues, on the CPU, the wanted ones first; all of them by descending magnitude.

    Raises:
        ValueError, TypeError: as for `play`; or a `k` below 1, or an unknown `which`.
        RuntimeError: Arnoldi's method did not converge.

    >>> theta, phi = (torch.nn.Parameter(torch.tensor(value)) for value in (2.0, 3.0))
    >>> game_eigenvalues([lambda: theta * phi + theta**2 / 2, lambda: phi**2 / 2 - theta * phi], [[theta], [phi]])
    tensor([1.+1.j, 1.-1.j])
    """
    check_choice(which, "which", WHICH)
    own = own_parameters(losses, players)
    size = sum(parameter.numel() for player in own for parameter in player)
    if k is None or int(check_number(k, "k", at_least=1)) >= size - 1:
        values = torch.linalg.eigvals(game_jacobian(losses, own).double().cpu()).numpy()
    else:
        field = field_of(losses, own, create_graph=True)
        values, _ = left_eigenpairs(field, own, int(k), which)
    keys = {"M": np.abs(values), "R": values.real, "I": np.abs(values.imag)}
    key = keys[which[1]]
    # Ties of a conjugate pair are broken by the sign, so that the order does not hang on rounding.
    ranked = np.lexsort((-values.imag, np.round(key if which[0] == "S" else -key, 12)))[:k]
    complex_type = torch.complex128 if own[0][0].dtype == torch.float64 else torch.complex64
    return torch.as_tensor(values[ranked]).to(complex_type)


def left_eigenpairs(field: Tensor, players: list[list[Tensor]], k: int, which: str) -> tuple[np.ndarray, np.ndarray]:
    """`k` eigenvalues of a vector field's Jacobian J by Arnoldi's method, and eigenvectors of J's transpose.

    Args:
        field: the vector field, with its graph.
        players: the parameters that need a gradient, by player.
        k, which: as for `game_eigenvalues`; `k` below n - 1.

    Raises:
        RuntimeError: Arnoldi's method did not converge.

    >>> x = torch.arange(1.0, 6.0).requires_grad_()
    >>> values, vectors = left_eigenpairs(x**2 / 2, [[x]], 1, "LM")  # J = diag(x)
    >>> round(float(values[0].real), 4), vectors.shape
    (5.0, (5, 1))
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

    number = np.float64 if field.dtype == torch.float64 else np.float32

    def multiply(vector: np.ndarray) -> np.ndarray:
        given = torch.as_tensor(vector.reshape(1, -1).astype(number)).to(field)
        return left_products(field, players, given)[0].to("cpu", torch.float64).numpy().astype(number)

    operator = LinearOperator((len(field), len(field)), matvec=multiply, dtype=number)  # pyrefly: ignore
    start = numpy_generator(0, "arnoldi").standard_normal(len(field)).astype(number)
    try:
        return eigs(operator, k=k, which=which, v0=start)
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"Arnoldi's method found {len(error.eigenvalues)} of the {k} eigenvalues which={which!r}; ask for fewer, "
            "for those of largest magnitude, or for all (k=None)"
        ) from error


def own_parameters(losses: Sequence[Loss], players: Sequence[Player]) -> list[list[Tensor]]:
    """Every player's parameters that need a gradient, checked.

    >>> own_parameters([lambda: torch.ones(())], [nn.Linear(1, 1)])[0][1].shape
    torch.Size([1])
    """
    return _check_players(
        losses, [list(player.parameters() if isinstance(player, nn.Module) else player) for player in players]
    )


def _check_players(losses: Sequence[Loss], players: Sequence[Sequence[Any]]) -> list[list[Tensor]]:
    if len(losses) != len(players) or not losses:
        raise ValueError(f"{len(losses)} losses for {len(players)} players; give one loss for each, and at least one")
    owner: dict[int, int] = {}
    kept = []
    for index, player in enumerate(players):
        for parameter in player:
            if not isinstance(parameter, Tensor):
                raise TypeError(
                    f"player {index + 1} has a {type(parameter).__name__} among its parameters; give a module or a "
                    "sequence of tensors"
                )
            if owner.setdefault(id(parameter), index) != index:
                raise ValueError(
                    f"players {owner[id(parameter)] + 1} and {index + 1} both own a parameter of shape "
                    f"{tuple(parameter.shape)}; each belongs to one player"
                )
        kept.append([parameter for parameter in player if parameter.requires_grad])
        if not kept[-1]:
            raise ValueError(f"player {index + 1} has no parameters that need a gradient")
    return kept


def _own_gradient(
    loss: Loss,
    player: list[Tensor],
    index: int,
    *,
    create_graph: bool = False,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """A player's loss, and its gradient with respect to its own parameters alone."""
    with torch.enable_grad():
        value = loss()
    name = f"player {index + 1}'s loss"
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; return a tensor that depends on the parameters")
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; return a scalar, the mean of it, say")
    depends = f"{name} does not depend on its parameters"
    if not value.requires_grad:
        raise ValueError(f"{depends}: it is detached; evaluate it with gradients")
    scaled = value if scaler is None else scaler.scale(value)
    # A loss of shape (1,) is a scalar to its user.
    gradients = torch.autograd.grad(scaled.sum(), player, allow_unused=True, create_graph=create_graph)
    if all(gradient is None for gradient in gradients):
        raise ValueError(f"{depends}; are losses and optimisers in the same order?")
    return value, gradients


def _set_gradients(
    losses: Sequence[Loss], players: list[list[Tensor]], scaler: torch.amp.GradScaler | None = None
) -> list[Tensor]:
    """Every player's own gradient in `.grad`, all from the same parameters; the losses, detached."""
    found = [
        _own_gradient(loss, player, index, scaler=scaler)
        for index, (loss, player) in enumerate(zip(losses, players, strict=True))
    ]
    for player, (_, gradients) in zip(players, found, strict=True):
        _store(player, gradients)
    return [value.detach() for value, _ in found]


def _store(player: list[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(player, gradients, strict=True):
        parameter.grad = gradient


def _step_with(scaler: torch.amp.GradScaler | None) -> Callable[[torch.optim.Optimizer], Any]:
    return (lambda optimizer: optimizer.step()) if scaler is None else scaler.step


def field_of(losses: Sequence[Loss], players: list[list[Tensor]], *, create_graph: bool) -> Tensor:
    """The vector field of players' parameters, with its graph where it is to be differentiated.

    >>> x = torch.ones(1, requires_grad=True)
    >>> field_of([lambda: (x**2).sum()], [[x]], create_graph=False)
    tensor([2.])
    """
    parts = []
    for index, (loss, player) in enumerate(zip(losses, players, strict=True)):
        _, gradients = _own_gradient(loss, player, index, create_graph=create_graph)
        parts += [
            torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
            for parameter, gradient in zip(player, gradients, strict=True)
        ]
    return torch.cat(parts)


def left_products(field: Tensor, players: list[list[Tensor]], rows: Tensor, chunk_size: int = 1) -> Tensor:
    """`rows @ J` for a vector field's Jacobian J: one backward pass for each chunk of rows.

    >>> x = torch.ones(2, requires_grad=True)
    >>> left_products(torch.stack([x[0] * x[1], x[1]]), [[x]], torch.eye(2))
    tensor([[1., 1.],
            [0., 1.]])
    """
    parameters = [parameter for player in players for parameter in player]
    if not field.requires_grad:  # every loss is linear in its own parameters and free of the others
        return torch.zeros(len(rows), len(field), dtype=field.dtype, device=field.device)
    found = []
    for part in rows.split(chunk_size):
        batched = len(part) > 1
        gradients = torch.autograd.grad(
            field,
            parameters,
            grad_outputs=part if batched else part[0],
            is_grads_batched=batched,
            retain_graph=True,
            allow_unused=True,
        )
        found.append(
            torch.cat(
                [
                    (parameter.new_zeros(len(part), parameter.numel()) if gradient is None else gradient).reshape(
                        len(part), -1
                    )
                    for parameter, gradient in zip(parameters, gradients, strict=True)
                ],
                dim=1,
            )
        )
    return torch.cat(found)
