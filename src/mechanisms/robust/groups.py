"""Learning from groups: worst-group accuracy, the GroupDRO and IRM losses, re-weighting and sub-sampling.

For anyone whose examples carry a group (usually class and environment, `group = num_environments * y + e`) and whose
model must not fail on the rare ones. Everything here takes any number of integer groups and classes.

With `l_g` the mean loss of group g in a minibatch (0 when the batch has none of it), n_g the group's size:

    GroupDRO   q_g <- q_g exp(eta l_g),  q <- q / sum(q),  loss = sum_g q_g l_g        (Sagawa et al., ICLR 2020)
    RWG        P(example i is drawn) proportional to 1 / n_{g(i)}, with replacement    (Idrissi et al., CLeaR 2022)
    SUBG       every group cut at random, once, to the size of the smallest            (Idrissi et al., CLeaR 2022)
    IRM        mean_e [ nll_e + lambda d/ds nll_e(half)(s z) d/ds nll_e(other half)(s z) ] at s = 1
                                                                                       (Arjovsky et al., 2019)

`mechanisms.robust.training.fit_groups` trains and selects small models with all of them. A deep network keeps its own
loop, which needs only the parts of this file:

>>> import torch
>>> from torch.utils.data import DataLoader, TensorDataset
>>> _ = torch.manual_seed(0)
>>> x, y, groups = torch.randn(64, 5), torch.arange(64) % 2, torch.arange(64) % 4
>>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> objective = GroupDROLoss(num_groups=4, eta=0.1)
>>> loader = DataLoader(TensorDataset(x, y, groups), batch_size=16, shuffle=True)  # RWG: sampler=reweighting_sampler(g)
>>> for inputs, labels, group in loader:
...     loss = objective(torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none"), group)
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
>>> 0 <= worst_group_accuracy(y, model(x).argmax(1), groups) <= 1
True
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.data import SubsetRandomSampler, WeightedRandomSampler

__all__ = [
    "GroupDROLoss",
    "group_accuracies",
    "group_counts",
    "group_means",
    "group_weights",
    "irm_penalty",
    "reweighting_sampler",
    "subsample_groups",
    "subsampling_sampler",
    "worst_group_accuracy",
]


def worst_group_accuracy(y: ArrayLike | Tensor, prediction: ArrayLike | Tensor, groups: ArrayLike | Tensor) -> float:
    """The accuracy on the group where it is lowest; groups without examples do not count.

    Args:
        y: true labels, (n,), of any type.
        prediction: predicted labels, (n,), of the same type.
        groups: group of each example, (n,), integers from 0.

    Raises:
        ValueError: lengths differ, there are no examples, or groups are not integers from 0.

    >>> worst_group_accuracy(["cow", "cow", "camel"], ["cow", "camel", "camel"], [0, 0, 1])
    0.5
    """
    return min(group_accuracies(y, prediction, groups).values())


def group_accuracies(
    y: ArrayLike | Tensor, prediction: ArrayLike | Tensor, groups: ArrayLike | Tensor
) -> dict[int, float]:
    """The accuracy on every group that has examples, by group.

    Args:
        y: true labels, (n,), of any type.
        prediction: predicted labels, (n,), of the same type.
        groups: group of each example, (n,), integers from 0.

    Raises:
        ValueError: lengths differ, there are no examples, or groups are not integers from 0.

    >>> group_accuracies([0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 2, 2])
    {0: 0.5, 2: 1.0}
    """
    labels, predicted = _flat(y, "y"), _flat(prediction, "prediction")
    if len(labels) != len(predicted):
        raise ValueError(f"y has {len(labels)} examples and prediction {len(predicted)}: one prediction for each")
    present, index = np.unique(check_groups(groups, length=len(labels)), return_inverse=True)
    sizes, right = np.bincount(index), np.bincount(index, weights=labels == predicted)
    return {int(group): float(hits / size) for group, hits, size in zip(present, right, sizes, strict=True)}


def group_counts(groups: ArrayLike | Tensor) -> dict[int, int]:
    """The number of examples of every group that has any, by group.

    Args:
        groups: group of each example, (n,), integers from 0.

    Raises:
        ValueError: there are no examples, or groups are not integers from 0.

    >>> group_counts([0, 3, 3])
    {0: 1, 3: 2}
    """
    present, sizes = np.unique(check_groups(groups), return_counts=True)
    return {int(group): int(size) for group, size in zip(present, sizes, strict=True)}


class GroupDROLoss(nn.Module):
    """The GroupDRO objective: group losses under weights that grow where the loss is high.

    Call it with the loss of every example and its group. In training mode each call first updates the weights,
    `q_g <- q_g exp(eta l_g)` and normalises them; in evaluation mode they stay. Absent groups count as `l_g = 0`.
    The gradient flows through the group losses only, never through the weights.

    Several models trained side by side share one module: with `num_models=M` the losses are (M, batch), every model
    has weights of its own, and the result is (M,), to be summed before `backward`.

    Args:
        num_groups: G; groups are integers from 0 to G - 1.
        eta: step size of the weights, a number or one per model; 0 weighs the group losses uniformly. The XRM paper
            draws 10^U(-3, -1).
        num_models: M models side by side, or None for one.
        device, dtype: of the weights, as in `torch.nn`.

    Attributes:
        q: the weights, (G,) or (M, G); ones until the first call, then summing to one.
        log_q: their logarithms, which the `state_dict` holds: a group whose weight is too small for a floating-point
            number can come back.

    Raises:
        ValueError: fewer than one group, a negative or infinite eta; in a call: shapes that do not belong together.

    Source: Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020, algorithm 1.

    >>> objective = GroupDROLoss(num_groups=2, eta=1.0)
    >>> loss = objective(torch.tensor([1.0, 1.0, 3.0]).log(), torch.tensor([0, 0, 1]))
    >>> objective.q
    tensor([0.2500, 0.7500])
    """

    log_q: Tensor
    eta: Tensor

    def __init__(
        self,
        num_groups: int,
        eta: float | Tensor = 0.01,
        *,
        num_models: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or (num_models is not None and num_models < 1):
            raise ValueError(f"num_groups is {num_groups} and num_models {num_models}; each needs at least 1")
        rates = torch.as_tensor(eta, dtype=dtype or torch.get_default_dtype(), device=device)
        if not bool(((rates >= 0) & rates.isfinite()).all()):
            raise ValueError(f"eta is {eta}; the step size of the group weights is a finite number, at least 0")
        if rates.ndim > 1 or (rates.ndim == 1 and len(rates) != num_models):
            raise ValueError(
                f"eta has shape {tuple(rates.shape)}; give a number, or one for each of {num_models} models"
            )
        models = () if num_models is None else (num_models,)
        self.num_groups = num_groups
        self.register_buffer("log_q", torch.zeros(*models, num_groups, dtype=dtype, device=device))
        # A setting, not a state: it comes from the constructor, so a loaded state does not overwrite it.
        self.register_buffer("eta", rates.unsqueeze(-1) if rates.ndim else rates, persistent=False)

    @property
    def q(self) -> Tensor:
        """The weights, (G,) or (M, G)."""
        return self.log_q.exp()

    def forward(self, loss: Tensor, groups: Tensor, rows: Tensor | None = None) -> Tensor:
        """The weighted loss, () or (models,).

        Args:
            loss: loss of each example, (batch,) or (models, batch).
            groups: group of each example, (batch,), integers from 0 to G - 1.
            rows: 0/1, of the shape of `loss`: which examples count (models of different batch sizes); default all.
        """
        return (self.example_weights(loss, groups, rows) * loss).sum(-1)

    @torch.no_grad()
    def example_weights(self, loss: Tensor, groups: Tensor, rows: Tensor | None = None) -> Tensor:
        """Weights w with `sum_i w_i loss_i` the GroupDRO loss, `w_i = q_g / (size of i's group in the batch)`.

        For training loops that know the gradient of their loss. In training mode this updates `q`, as a call does.

        Args:
            loss: loss of each example, (batch,) or (models, batch).
            groups: group of each example, (batch,), integers from 0 to G - 1.
            rows: 0/1, of the shape of `loss`: which examples count; default all.

        >>> GroupDROLoss(2, eta=0.0).example_weights(torch.tensor([1.0, 5.0, 2.0]), torch.tensor([0, 0, 1]))
        tensor([0.2500, 0.2500, 0.5000])
        """
        if loss.shape[:-1] != self.log_q.shape[:-1] or loss.shape[-1:] != groups.shape:
            raise ValueError(
                f"loss has shape {tuple(loss.shape)} and groups {tuple(groups.shape)}; expected "
                f"{(*self.log_q.shape[:-1], 'batch')} and ('batch',): one loss per example (reduction='none')"
            )
        # In half precision counts above 256 or 2048 would be rounded, so never below that of q.
        loss = loss.to(torch.promote_types(loss.dtype, self.log_q.dtype))
        where = groups.expand_as(loss)
        counted = torch.ones_like(loss) if rows is None else rows.to(loss.dtype)
        sizes = torch.zeros_like(self.log_q, dtype=loss.dtype).scatter_add(-1, where, counted).clamp(min=1)
        log_q = self.log_q
        if self.training:
            sums = torch.zeros_like(sizes).scatter_add(-1, where, loss * counted)
            log_q = log_q + self.eta * (sums / sizes)
            self.log_q.copy_(log_q.log_softmax(-1))
        # softmax(log q + eta l) is the update and its normalisation at once, and cannot overflow.
        return (log_q.softmax(-1) / sizes).gather(-1, where) * counted

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"num_groups={self.num_groups}, eta={self.eta.flatten().tolist()}"


def group_means(
    values: Float[Tensor, "*models batch"],
    groups: Int[Tensor, "batch"],
    num_groups: int,
    rows: Float[Tensor, "*models batch"] | None = None,
) -> Float[Tensor, "*models groups"]:
    """The mean of `values` in each group, 0 for absent ones, without a loop over groups.

    Args:
        values: one number per example, (batch,) or (models, batch).
        groups: group of each example, (batch,), integers from 0 to num_groups - 1.
        num_groups: G, the length of the result's last axis.
        rows: 0/1, of the shape of `values`: which examples count; default all.

    >>> group_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3)
    tensor([2., 0., 5.])
    """
    where = groups.expand_as(values)
    shape = (*values.shape[:-1], num_groups)
    counted = values if rows is None else values * rows
    sums = values.new_zeros(shape).scatter_add(-1, where, counted)
    sizes = values.new_zeros(shape).scatter_add(-1, where, torch.ones_like(values) if rows is None else rows)
    return sums / sizes.clamp(min=1)


def irm_penalty(
    logits: Tensor, labels: Tensor, environments: Tensor, num_environments: int, rows: Tensor | None = None
) -> Tensor:
    """IRM's penalty, unbiased: per environment, the product of two gradients from the two halves of its examples.

    The gradient is that of the mean cross-entropy of `s * logits` with respect to s at s = 1, which is
    `mean_i (sum_k p_ik z_ik - z_iy)` in closed form, so no second differentiation is needed. The halves are every
    other example of the environment in batch order. Averaged over the environments present; one with a single
    example contributes 0. Add it, times lambda, to the cross-entropy averaged over environments.

    Args:
        logits: (batch, classes) or (models, batch, classes).
        labels: (batch,), integers from 0.
        environments: (batch,), integers from 0 to num_environments - 1; not groups, which contain the label.
        num_environments: E.
        rows: 0/1, (batch,) or (models, batch): which examples count, the first ones of each model; default all.

    Returns:
        The penalty, () or (models,). It can be negative, as unbiased estimates of a square can.

    Raises:
        ValueError: labels or environments do not have one entry per example.

    Source: Arjovsky et al., "Invariant Risk Minimization", 2019, IRMv1 and appendix D.

    >>> z, y = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    >>> bool(irm_penalty(z, y, torch.tensor([0, 0]), 1) < 0)
    True
    """
    if labels.shape != logits.shape[-2:-1] or environments.shape != labels.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)}, environments "
            f"{tuple(environments.shape)}; expected (..., batch, classes), (batch,), (batch,)"
        )
    slopes = (logits.softmax(-1) * logits).sum(-1) - logits.gather(-1, _like_rows(labels, logits)).squeeze(-1)
    # Position within the environment; its parity is the half. Prefixes of a batch keep positions, so models of
    # different batch sizes agree on the halves.
    member = nn.functional.one_hot(environments, num_environments)
    position = member.cumsum(0).gather(1, environments.unsqueeze(1)).squeeze(1)
    half = position % 2 + 2 * environments
    means = group_means(slopes, half, 2 * num_environments, rows).unflatten(-1, (num_environments, 2))
    counted = torch.ones_like(slopes) if rows is None else rows.expand_as(slopes)
    present = (group_means(counted, environments, num_environments, rows) > 0).sum(-1)
    return means.prod(-1).sum(-1) / present.clamp(min=1)


def group_weights(groups: ArrayLike | Tensor) -> Tensor:
    """RWG's sampling probabilities: each group that has examples is drawn equally often.

    Args:
        groups: group of each example, (n,), integers from 0.

    Returns:
        Probabilities, (n,), float64, proportional to 1 / size of the example's group, summing to one. A group
        without examples has weight 0.

    Raises:
        ValueError: there are no examples, or groups are not integers from 0.

    Source: Idrissi et al., "Simple data balancing achieves competitive worst-group-accuracy", CLeaR 2022.

    >>> group_weights([0, 0, 1])
    tensor([0.2500, 0.2500, 0.5000], dtype=torch.float64)
    """
    _, index, sizes = np.unique(check_groups(groups), return_inverse=True, return_counts=True)
    return torch.from_numpy(1 / (len(sizes) * sizes[index]))


def subsample_groups(
    groups: ArrayLike | Tensor, num_groups: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """SUBG's subset: every group cut at random to the size of the smallest.

    Args:
        groups: group of each example, (n,), integers from 0.
        num_groups: G, when each of 0 .. G - 1 must be there; default: the groups that have examples.
        generator: a CPU generator; default torch's own.

    Returns:
        Indices of the chosen examples in ascending order, (G * smallest size,), int64.

    Raises:
        ValueError: a group without examples (it is named), or groups are not integers from 0.

    Source: Idrissi et al., "Simple data balancing achieves competitive worst-group-accuracy", CLeaR 2022.

    >>> chosen = subsample_groups([0, 0, 0, 1, 1])
    >>> len(chosen), chosen[2:].tolist()
    (4, [3, 4])
    """
    present, index = np.unique(check_groups(groups), return_inverse=True)
    if num_groups is not None:
        if present[-1] >= num_groups:
            raise ValueError(f"groups hold {present[-1]}; expected 0 .. {num_groups - 1} (num_groups is {num_groups})")
        if len(present) < num_groups:
            empty = sorted(set(range(num_groups)) - set(present.tolist()))
            raise ValueError(
                f"groups {empty} have no examples, so every group would be cut to none: merge or drop them"
            )
    shuffled = torch.randperm(len(index), generator=generator)
    by_group = shuffled[torch.from_numpy(index)[shuffled].argsort(stable=True)]
    sizes = np.bincount(index)
    starts = torch.from_numpy(np.cumsum(sizes) - sizes)
    return by_group[starts[:, None] + torch.arange(int(sizes.min()))].flatten().sort().values


def reweighting_sampler(
    groups: ArrayLike | Tensor, num_samples: int | None = None, generator: torch.Generator | None = None
) -> WeightedRandomSampler:
    """RWG for a `DataLoader`: examples drawn with replacement so that every group comes equally often.

    Args:
        groups: group of each example of the data set, (n,), integers from 0.
        num_samples: examples per epoch; default n.
        generator: default torch's own.

    Raises:
        ValueError: there are no examples, or groups are not integers from 0.

    >>> len(list(reweighting_sampler([0, 0, 0, 1])))
    4
    """
    weights = group_weights(groups)
    # torch accepts any sequence of weights, though its annotation says list.
    return WeightedRandomSampler(weights.tolist(), num_samples or len(weights), generator=generator)


def subsampling_sampler(
    groups: ArrayLike | Tensor, num_groups: int | None = None, generator: torch.Generator | None = None
) -> SubsetRandomSampler:
    """SUBG for a `DataLoader`: the subset of `subsample_groups`, drawn now and shuffled anew in each epoch.

    Args:
        groups: group of each example of the data set, (n,), integers from 0.
        num_groups: G, when each of 0 .. G - 1 must be there; default: the groups that have examples.
        generator: a CPU generator; default torch's own.

    Raises:
        ValueError: a group without examples (it is named), or groups are not integers from 0.

    >>> sorted(subsampling_sampler([0, 1, 1, 1]))[0]
    0
    """
    return SubsetRandomSampler(subsample_groups(groups, num_groups, generator).tolist(), generator=generator)


def check_groups(groups: ArrayLike | Tensor, name: str = "groups", length: int | None = None) -> np.ndarray:
    """Groups (or environments) of a user as int64, (n,), or a ValueError that says what is wrong with them.

    Args:
        groups: what the user gave.
        name: what to call it in messages.
        length: number of examples they must describe.

    Raises:
        ValueError: not one integer from 0 for each example, or no examples.

    >>> check_groups([0.0, 2.0])
    array([0, 2])
    """
    values = _flat(groups, name)
    if len(values) == 0:
        raise ValueError(f"{name} is empty: at least one example is needed")
    if length is not None and len(values) != length:
        raise ValueError(f"{name} has {len(values)} entries for {length} examples: one for each")
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} has type {values.dtype}; expected integers from 0 (np.unique's return_inverse codes any)"
        )
    odd = ~np.isfinite(values) | (values != np.floor(values))
    if odd.any():
        raise ValueError(f"{name} holds {values[odd][0]}; expected integers from 0")
    if values.min() < 0:
        raise ValueError(f"{name} holds {values.min()}; expected integers from 0")
    return values.astype(np.int64)


def _flat(values: ArrayLike | Tensor, name: str) -> np.ndarray:
    """One-dimensional NumPy view of a tensor or array-like."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; expected (n,), one entry per example")
    return array


def _like_rows(labels: Int[Tensor, "batch"], logits: Float[Tensor, "*models batch classes"]) -> Tensor:
    """Labels as an index into the last axis of logits, for every model."""
    return labels.expand(logits.shape[:-1]).unsqueeze(-1)
