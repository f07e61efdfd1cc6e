"""XRM for scikit-learn users: discover environments, or train a classifier that is robust to them.

`EnvironmentDiscoverer` annotates training data; `XRMClassifier` goes on to train a group-robust classifier on what was
found, selected by the discovered validation groups. Neither takes an annotation anywhere.

Reference: Pezeshki et al., "Discovering Environments with XRM", ICML 2024, arXiv 2309.16748.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data  # type: ignore[missing-module-attribute]
from torch import nn

from mechanisms._base.seeds import RandomState, as_seed, numpy_generator
from mechanisms.robust._rows import check_labels
from mechanisms.robust._settings import Search, Setting
from mechanisms.robust._stack import OptimizerName
from mechanisms.robust.environments import Environments, missing_environments
from mechanisms.robust.training import Draws, draw_hyperparameters, fit_groups
from mechanisms.robust.xrm import discover_environments, zero_head

__all__ = ["EnvironmentDiscoverer", "XRMClassifier"]

_PREDICTED_ROWS = 4096


class EnvironmentDiscoverer(BaseEstimator):
    """Finds two environments in labelled data, without annotations.

    Args:
        model: returns a fresh `nn.Module` from inputs to K logits; default a linear head on standardised features.
        search: number of combinations to try, a `Search`, or the combinations.
        steps: updates per combination; "auto" is 40 epochs between 1500 and 5000.
        random_state: seed, generator or None.
        device: "auto" takes an accelerator when there is one.

    Attributes:
        environments_: (n,) environment 0 or 1 of each training example; 1 where a twin errs.
        flip_rate_: share of training labels flipped at the end.
        flip_history_: (step, flip rate) pairs.
        trials_: all combinations with their flip rates.
        degenerate_: whether some class lacks an environment.
        discovery_: the whole `Environments`, to save or for its held-out probabilities.
        classes_: the labels.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    >>> from mechanisms.robust.estimators import EnvironmentDiscoverer
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(400) % 2
    >>> background = np.where(np.arange(400) < 360, y, 1 - y)
    >>> X = rng.normal(size=(400, 4)) + 8 * background[:, None] * [1, 0, 0, 0]
    >>> found = EnvironmentDiscoverer(search=4, steps=300, random_state=0, device="cpu").fit(X, y)
    >>> bool((found.environments_ == (background != y)).all())
    True
    """

    def __init__(
        self,
        model: Callable[[], nn.Module] | None = None,
        search: int | Search | Sequence[Setting] = 10,
        steps: int | str = "auto",
        random_state: RandomState = None,
        device: str = "auto",
    ) -> None:
        self.model = model
        self.search = search
        self.steps = steps
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> "EnvironmentDiscoverer":
        """Find the environments of X (n, d) with labels y (n,).

        Raises:
            ValueError: fewer than two classes, a class with a single example, NaN, or continuous labels.
        """
        X, y = _checked(self, X, y)
        self.discovery_ = discover_environments(
            X, y, model=self.model, search=self.search, steps=_steps(self.steps), random_state=self.random_state,
            device=self.device,
        )  # fmt: skip
        self.classes_ = self.discovery_.classes
        self.environments_ = self.discovery_.train.numpy()
        self.flip_rate_ = self.discovery_.flip_rate
        self.flip_history_ = self.discovery_.flip_history
        self.trials_ = self.discovery_.trials
        self.degenerate_ = self.discovery_.degenerate
        return self

    def predict_environments(self, X: ArrayLike, y: ArrayLike) -> np.ndarray:
        """Environments (n,) of labelled data, new or old."""
        check_is_fitted(self)
        X, y = _checked(self, X, y, reset=False)
        return self.discovery_.annotate(X, y, device=self.device).numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[missing-attribute]
        tags.target_tags.required = True
        return tags


class XRMClassifier(ClassifierMixin, BaseEstimator):
    """A classifier trained to be right in both discovered environments of every class.

    Args:
        model: returns a fresh `nn.Module` from inputs to K logits, for the twins and for the classifier; default linear
            heads on standardised features.
        robust: the group-robust learner: "groupdro", "rwg" (re-weighting) or "subg" (sub-sampling).
        search: combinations to try, for the twins and for the robust learner: a number, a `Search` whose ranges and
            optimizer serve both, or the combinations. Of the latter the robust learner takes those with the optimizer
            of the chosen twins, in turn, for at least ten draws.
        steps: updates per combination in each phase; "auto" is 40 epochs between 1500 and 5000.
        validation_fraction: share of each class that is kept for selection when `fit` gets no validation data; at least
            four examples of a class, or two of a class with fewer than eight. Classes with fewer than six examples are
            trained on only.
        random_state: seed, generator or None.
        device: "auto" takes an accelerator when there is one.

    Attributes:
        classes_: the labels.
        environments_: (n,) environments of the examples given to `fit`, in their order.
        validation_environments_: environments of the examples that selected, and
        validation_indices_: their places in the training data, or None when they were given.
        worst_group_accuracy_: accuracy on the worst discovered validation group.
        degenerate_: True when some class lacks an environment. It is then one group for the robust learner; only when
            every class lacks one is the classifier class-balanced ERM. A warning says which.
        discovery_, network_: the `Environments`, and the trained module.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    >>> from mechanisms.robust.estimators import XRMClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(600) % 2
    >>> background = np.where(np.arange(600) < 540, y, 1 - y)
    >>> X = rng.normal(size=(600, 2)) + np.stack([8 * background, 3 * y], 1)
    >>> classifier = XRMClassifier(search=4, steps=400, random_state=0, device="cpu").fit(X, y)
    >>> classifier.worst_group_accuracy_ > 0.8
    True
    """

    def __init__(
        self,
        model: Callable[[], nn.Module] | None = None,
        robust: str = "groupdro",
        search: int | Search | Sequence[Setting] = 10,
        steps: int | str = "auto",
        validation_fraction: float = 0.2,
        random_state: RandomState = None,
        device: str = "auto",
    ) -> None:
        self.model = model
        self.robust = robust
        self.search = search
        self.steps = steps
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device

    def fit(
        self, X: ArrayLike, y: ArrayLike, X_val: ArrayLike | None = None, y_val: ArrayLike | None = None
    ) -> "XRMClassifier":
        """Discover environments in X (n, d), y (n,), then train on them.

        Args:
            X, y: training data.
            X_val, y_val: data that select checkpoint and combination; default a stratified part of X.

        Raises:
            ValueError: fewer than two classes, a class with a single example, NaN, or an unknown learner.
        """
        if self.robust not in ("groupdro", "rwg", "subg"):
            raise ValueError(f"robust is {self.robust!r}; choose 'groupdro', 'rwg' or 'subg'")
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val go together; give both or neither")
        X, y = _checked(self, X, y)
        seed, steps = as_seed(self.random_state), _steps(self.steps)
        self.validation_indices_ = None
        train = np.arange(len(y))
        if X_val is None:
            held = _stratified_part(y, self.validation_fraction, seed)
            # Too few examples to spare any: then the training data select.
            self.validation_indices_ = held if len(held) else train
            train = np.setdiff1d(train, held)
            X_val, y_val = X[self.validation_indices_], y[self.validation_indices_]
        else:
            X_val, y_val = _checked(self, X_val, y_val, reset=False)

        found = discover_environments(
            X[train], y[train], validation=(X_val, y_val), model=self.model, search=self.search, steps=steps,
            random_state=seed, device=self.device,
        )  # fmt: skip
        assert found.validation is not None
        assert found.validation_labels is not None
        self.discovery_, self.classes_, self.degenerate_ = found, found.classes, found.degenerate
        self.environments_ = np.empty(len(y), np.int64)
        self.validation_environments_ = found.validation.numpy()
        if self.validation_indices_ is not None:
            self.environments_[self.validation_indices_] = self.validation_environments_
        self.environments_[train] = found.train.numpy()

        inputs, held_inputs = (found.twins.prepare(torch.tensor(part)) for part in (X[train], X_val))
        useless = _warn_of_missing(found, self.robust)
        if useless:
            groups, held_groups = found.labels, found.validation_labels
        else:
            groups, held_groups = found.groups(), found.groups(validation=True)
        draws, optimizer, momentum = _phase2(self.search, found.best_setting, seed)
        fit = fit_groups(
            inputs, found.labels, groups, held_inputs, found.validation_labels, held_groups,
            make_model=self.model or zero_head(inputs.shape[1], len(self.classes_)),
            learner="rwg" if useless else self.robust,
            draws=draws,
            optimizer=optimizer,
            momentum=momentum,
            steps=found.flip_history[-1][0],
            seed=seed,
            device=self.device,
        )  # fmt: skip
        self.worst_group_accuracy_ = float(fit.worst_group_accuracy[:, fit.chosen].max())
        # In double precision a row's prediction does not depend on the rows beside it.
        self.network_ = fit.model.cpu().double() if self.model is None else fit.model.cpu()
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities (n, K) of the classes."""
        check_is_fitted(self)
        dtype = np.float32 if self.model is not None else [np.float64, np.float32]
        rows = np.asarray(validate_data(self, X, reset=False, dtype=dtype, allow_nd=self.model is not None))
        parts = []
        with torch.no_grad():
            for start in range(0, len(rows), _PREDICTED_ROWS):
                # A copy of a few rows: arrays that cannot be written to make torch warn.
                inputs = self.discovery_.twins.prepare(torch.tensor(rows[start : start + _PREDICTED_ROWS]))
                parts.append(self.network_(inputs.double() if self.model is None else inputs).double().softmax(1))
        return torch.cat(parts).numpy()

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Labels (n,)."""
        most_likely = self.predict_proba(X).argmax(1)
        return self.classes_[most_likely]


def _checked(estimator: Any, X: Any, y: Any, *, reset: bool = True) -> tuple[np.ndarray, np.ndarray]:
    if y is not None:
        check_labels(y)
    allow_nd = estimator.model is not None
    # Without a model of the user's, features are standardised in the precision they have.
    dtype = np.float32 if estimator.model is not None else [np.float64, np.float32]
    X, y = validate_data(estimator, X, y, reset=reset, dtype=dtype, allow_nd=allow_nd)
    check_classification_targets(y)
    return X, y


def _steps(steps: int | str) -> int | None:
    if steps == "auto":
        return None
    if isinstance(steps, str):
        raise ValueError(f"steps is {steps!r}; give a number or 'auto'")
    return steps


def _phase2(search: int | Search | Sequence[Setting], best: Setting, seed: int) -> tuple[Draws, OptimizerName, float]:
    """Hyper-parameters, optimizer and momentum of the robust learner, from the family of the twins'."""
    if isinstance(search, int):
        search = Search(trials=search)
    names = ("lr", "weight_decay", "batch_size")
    if isinstance(search, Search):
        given = {name: getattr(search, name) for name in names}
        ranges = {name: (value[0], value[1]) for name, value in given.items() if isinstance(value, Sequence)}
        fixed = {name: (value,) * search.trials for name, value in given.items() if name not in ranges}
        draws = draw_hyperparameters(search.trials, ranges, generator=seed)
        return replace(draws, **fixed), search.optimizer, search.momentum
    settings = [one for one in search if (one.optimizer, one.momentum) == (best.optimizer, best.momentum)]
    draws = draw_hyperparameters(max(10, len(settings)), generator=seed)
    turns = [settings[turn % len(settings)] for turn in range(len(draws))]
    taken = {name: tuple(getattr(one, name) for one in turns) for name in names}
    return replace(draws, **taken), best.optimizer, best.momentum


def _warn_of_missing(found: Environments, robust: str) -> bool:
    """Whether no class has both environments to train on, so that there is nothing to be robust to; with a warning."""
    assert found.validation is not None
    assert found.validation_labels is not None
    number = len(found.classes)
    in_training = missing_environments(found.train, found.labels, number)
    in_validation = missing_environments(found.validation, found.validation_labels, number)
    missing = sorted({*in_training, *in_validation})
    # Twins that diverged lack nothing that could be counted, yet are degenerate.
    useless = len(in_training) == number or (found.degenerate and not missing)
    if useless:
        text = (
            "the discovered environments are degenerate for every class; training class-balanced ERM in place of "
            f"{robust!r}, selected by the worst class"
        )
    elif missing:
        names = ", ".join(str(found.classes[index]) for index in missing[:5])
        text = (
            f"class {names} lacks one of the two environments in training or validation data and counts as one group "
            f"there; {robust!r} trains on the {len(found.groups().unique())} groups that exist"
        )
    else:
        return False
    warnings.warn(text, UserWarning, stacklevel=3)
    return useless


def _stratified_part(y: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Places of about `fraction` of each class, in order, leaving four to train on; none of the smallest classes.

    One validation example could not be in both environments, so a class gives at least four, or two if it is small.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction is {fraction}; it needs to lie between 0 and 1")
    generator = numpy_generator(seed, "validation")
    parts = []
    for members in (np.flatnonzero(y == label) for label in np.unique(y)):
        if len(members) >= 4:
            shuffled = generator.permutation(members)
            least = 4 if len(members) >= 8 else 2
            number = min(max(round(fraction * len(members)), least), len(members) - 4)
            parts.append(shuffled[: number if number >= 2 else 0])
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
