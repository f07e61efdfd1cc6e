"""The ladder network for scikit-learn: a classifier of tables with few labels.

Rows without a label have y = -1, as in `sklearn.semi_supervised`: for LabelSpreading and SelfTrainingClassifier.

>>> from mechanisms.robust.ladder_classifier import LadderClassifier
>>> X = np.random.default_rng(0).normal(size=(200, 5))
>>> truth = (X[:, 0] + X[:, 1] > 0).astype(int)
>>> y = np.where(np.arange(200) < 40, truth, -1)
>>> classifier = LadderClassifier((16,), epochs=60, random_state=0, device="cpu").fit(X, y)
>>> float((classifier.transduction_ == truth).mean()) > 0.8
True
"""

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data  # type: ignore[missing-module-attribute]

from mechanisms._base.device import resolve_device
from mechanisms._base.seeds import RandomState, as_seed, numpy_generator
from mechanisms.robust._late_bar import LateBar
from mechanisms.robust.ladder import LadderNetwork
from mechanisms.robust.ladder_training import missing_classes, train_ladders
from mechanisms.robust.ladder_variants import LadderVariant, as_variant

__all__ = ["LadderClassifier"]

_FORMAT = "mechanisms.ladder-classifier.1"
_PREDICTED_ROWS = 4096
_FEWEST_UPDATES = 1500  # with "auto" epochs


class LadderClassifier(ClassifierMixin, BaseEstimator):
    """A ladder network on the columns of a table, learned from labelled rows and from those with y = -1.

    -1 always means "no label". Text labels beside it need an object array: `np.array(["cat", -1], dtype=object)`.
    Without any -1 the classifier is a supervised one whose rows are also reconstructed.

    Args:
        hidden_layer_sizes: units of the hidden layers; a number is one layer.
        variant: a name in `ladder_variants.VARIANTS`, or a `LadderVariant`.
        noise_std: standard deviation of the noise, in units of the standardised columns and of the normalised layers.
        reconstruction_weights: lambda_0 to lambda_L, inputs first, where the variant has a cost. None is 10, 1 and
            then 0.1, or the reference's 1000, 10 and 0.1 without `standardize` (meant for pixels from 0 to 1). Worth
            choosing by validation, for every variant anew.
        combinator_init_std: standard deviation of first weights of combinators that are random.
        standardize: whether columns are brought to mean 0 and variance 1, over all rows.
        epochs: passes over all rows; "auto" is 150, or what makes 1500 updates where the table is small.
        batch_size: rows of an unlabelled batch; a labelled one has up to 100.
        lr: Adam's rate; falls linearly to 0 in the last third.
        statistics: "all" or "labelled": rows whose clean statistics are used for prediction.
        validation_fraction: share of the labelled rows of each class that is held out to choose the best epoch; None
            takes the last epoch and trains on all.
        classes: all classes, where some may have no labelled row; None is those that have.
        random_state: seed, generator or None.
        device: "auto" takes an accelerator when there is one.
        verbose: True or False; None shows progress on a terminal when the fit takes more than two seconds.

    Attributes:
        classes_: the labels.
        transduction_: (n,) a label for every row given to `fit`: its own, or the predicted one.
        loss_curve_: mean total cost of each epoch.
        validation_curve_, best_epoch_: accuracy on held-out labelled rows after each epoch, and the chosen epoch; None
            without `validation_fraction`.
        network_: the `LadderNetwork`, on the CPU and in double precision.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Source: Rasmus et al. 2015; variants from Pezeshki et al. 2016.

    >>> X, y = np.array([[0.0], [0.1], [1.0], [0.9], [0.2]]), np.array(["no", "no", "yes", "yes", -1], dtype=object)
    >>> classifier = LadderClassifier((4,), epochs=50, random_state=0, device="cpu").fit(X, y)
    >>> classifier.classes_.tolist(), classifier.predict_proba(X).shape
    (['no', 'yes'], (5, 2))
    """

    n_features_in_: int
    feature_names_in_: np.ndarray

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (128, 64),
        *,
        variant: str | LadderVariant = "vanilla",
        noise_std: float | int = 0.3,
        reconstruction_weights: Sequence[float | int] | None = None,
        combinator_init_std: float | int = 0.5,
        standardize: bool = True,
        epochs: int | np.integer | str = "auto",
        batch_size: int = 100,
        lr: float | int = 0.002,
        statistics: str = "all",
        validation_fraction: float | None = None,
        classes: ArrayLike | None = None,
        random_state: RandomState = None,
        device: str = "auto",
        verbose: bool | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.variant = variant
        self.noise_std = noise_std
        self.reconstruction_weights = reconstruction_weights
        self.combinator_init_std = combinator_init_std
        self.standardize = standardize
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.statistics = statistics
        self.validation_fraction = validation_fraction
        self.classes = classes
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> "LadderClassifier":
        """Learn from X (n, d) and labels y (n,), -1 where there is none.

        Raises:
            ValueError: no labelled row or a single one, fewer than two classes, NaN, continuous labels, settings out
                of range.

        Warns:
            UserWarning: one of `classes` has no labelled row.
        """
        # What an interrupted fit leaves behind is not fitted.
        self.__dict__.pop("network_", None)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        labelled = _labelled(y)
        codes, self.classes_ = _encode(y, labelled, self.classes)
        seed, place = as_seed(self.random_state), resolve_device(self.device)
        self._mean, self._scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.standardize:
            self._mean, spread = X.mean(0, dtype=np.float64), X.std(0, dtype=np.float64)
            # The mean of a constant column is rounded: what is left of it is no scale to divide by.
            rounding = len(X) * np.finfo(np.float64).eps * np.abs(self._mean)
            self._scale = np.where(spread > rounding, spread, 1.0)
        rows = self._prepare(X).float()
        network = self._network(X.shape[1], seed)

        train, held = labelled, np.empty(0, np.int64)
        if self.validation_fraction is not None:
            train, held = _split(labelled, codes, self.validation_fraction, seed)
        place_of = np.full(len(y), -1)
        place_of[labelled] = codes
        labels = torch.from_numpy(place_of)
        self._warn_of_missing(labels[train])
        if len(train) < 2:
            raise ValueError(f"y has {len(train)} labelled row(s) to train on; batch statistics need at least 2")
        fit = train_ladders(
            [network],
            rows[train],
            labels[train],
            rows,
            epochs=self._epochs(len(rows)),
            batch_size=self.batch_size,
            lr=self.lr,
            seeds=[seed],
            statistics=self.statistics,
            x_val=rows[held] if len(held) else None,
            y_val=labels[held] if len(held) else None,
            device=place,
            progress=LateBar("fitting a ladder network, epoch", show=self.verbose),
            warn=False,
        )
        self.loss_curve_ = fit.loss_curve[:, 0].tolist()
        self.validation_curve_ = None if fit.validation_accuracy is None else fit.validation_accuracy[:, 0].tolist()
        self.best_epoch_ = None if fit.best_epoch is None else int(fit.best_epoch[0])
        # In double precision a row's prediction does not depend on the rows beside it.
        network = fit.networks[0].cpu().double()
        self.transduction_ = self.classes_[self._probabilities(X, network).argmax(1)]
        self.transduction_[labelled] = self.classes_[codes]
        self.network_ = network
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities (n, K) of the classes.

        Raises:
            NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        X = np.asarray(validate_data(self, X, reset=False, dtype=[np.float64, np.float32]))
        return self._probabilities(X, self.network_)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Labels (n,)."""
        most_likely = self.predict_proba(X).argmax(1)
        return self.classes_[most_likely]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted classifier to one safetensors file (no pickle), replacing it only when complete.

        Raises:
            NotFittedError: before `fit`.
            TypeError: labels other than numbers and text, or a combinator that is a function.

        >>> X, y = np.eye(4), np.array([0, 1, 0, -1])
        >>> classifier = LadderClassifier((4,), epochs=5, random_state=0, device="cpu").fit(X, y)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     classifier.save(f"{folder}/ladder.safetensors")
        ...     again = LadderClassifier.load(f"{folder}/ladder.safetensors")
        >>> bool((again.predict_proba(X) == classifier.predict_proba(X)).all())
        True
        """
        check_is_fitted(self)
        variant = as_variant(self.variant)
        if not isinstance(variant.combinator, str):
            raise TypeError("only combinators with a name can be saved; give yours one with register_combinator")
        labels = [self.classes_.tolist(), self.transduction_.tolist()]
        if not all(isinstance(label, bool | int | float | str) for label in labels[0]):
            raise TypeError(f"only number and text labels can be saved, got {labels[0][:5]}")
        settings = {name: value for name, value in self.get_params().items() if name not in ("classes", "random_state")}
        settings |= {"variant": asdict(variant), "hidden_layer_sizes": self._hidden()}
        if self.reconstruction_weights is not None:
            settings["reconstruction_weights"] = [float(weight) for weight in self.reconstruction_weights]
        about = {
            "settings": settings,
            "classes": labels[0],
            "text": self.classes_.dtype.kind,
            "transduction": labels[1],
            "features": len(self._mean),
            "names": getattr(self, "feature_names_in_", np.empty(0)).tolist(),
            "loss_curve": self.loss_curve_,
            "validation_curve": self.validation_curve_,
            "best_epoch": self.best_epoch_,
        }
        tensors = {f"network.{name}": value.clone() for name, value in self.network_.state_dict().items()}
        tensors |= {"mean": torch.from_numpy(self._mean), "scale": torch.from_numpy(self._scale)}
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata={"format": _FORMAT, "about": json.dumps(about, default=_plain)})
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LadderClassifier":
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            ValueError: no such file, or another kind of file.

        >>> LadderClassifier.load("nowhere.safetensors")
        Traceback (most recent call last):
            ...
        ValueError: there is no file nowhere.safetensors
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} is a folder" if path.is_dir() else f"there is no file {path}")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"format {metadata.get('format')!r}, not {_FORMAT!r}")
            return cls._from(json.loads(metadata["about"]), tensors)
        except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"{path} is no saved LadderClassifier ({lines[0]})") from None

    @classmethod
    def _from(cls, about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> "LadderClassifier":
        settings = dict(about["settings"])
        variant = settings.pop("variant")
        variant["hidden"] = tuple(variant["hidden"])
        self = cls(**settings, variant=LadderVariant(**variant))
        self.hidden_layer_sizes = tuple(self._hidden())
        self.classes_ = np.array(about["classes"], dtype=object if about["text"] == "O" else None)
        self.transduction_ = np.array(about["transduction"], dtype=self.classes_.dtype)
        self.n_features_in_ = int(about["features"])
        if about["names"]:
            self.feature_names_in_ = np.array(about["names"], dtype=object)
        self.loss_curve_, self.validation_curve_ = about["loss_curve"], about["validation_curve"]
        self.best_epoch_ = about["best_epoch"]
        self._mean, self._scale = tensors["mean"].numpy(), tensors["scale"].numpy()
        self.network_ = self._network(about["features"], 0).double().eval()
        prefix = "network."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        self.network_.load_state_dict(own)
        return self

    def _network(self, features: int, seed: int) -> LadderNetwork:
        widths = [features, *self._hidden(), len(self.classes_)]
        weights = self.reconstruction_weights
        if weights is None and self.standardize:
            weights = [10.0, 1.0, *[0.1] * len(widths)][: len(widths)]
        return as_variant(self.variant).network(
            widths,
            noise_std=self.noise_std,
            reconstruction_weights=weights,
            combinator_init_std=self.combinator_init_std,
            generator=seed,
        )

    def _hidden(self) -> list[int]:
        return np.atleast_1d(self.hidden_layer_sizes).tolist()

    def _epochs(self, rows: int) -> int:
        if self.epochs == "auto":
            steps = max(1, rows // min(self.batch_size, rows))
            return max(150, -(-_FEWEST_UPDATES // steps))
        if isinstance(self.epochs, str):
            raise ValueError(f"epochs is {self.epochs!r}; give a number or 'auto'")
        if self.epochs % 1:
            raise ValueError(f"epochs={self.epochs}: it must be a whole number, or 'auto'")
        return int(self.epochs)

    def _prepare(self, X: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((X.astype(np.float64) - self._mean) / self._scale)

    def _probabilities(self, X: np.ndarray, network: LadderNetwork) -> np.ndarray:
        with torch.no_grad():
            parts = [network(rows).softmax(1) for rows in self._prepare(X).split(_PREDICTED_ROWS)]
        return torch.cat(parts).numpy()

    def _warn_of_missing(self, labels: torch.Tensor) -> None:
        if missing := missing_classes(labels, len(self.classes_)):
            names = ", ".join(str(self.classes_[index]) for index in missing)
            warnings.warn(
                f"class {names} has no labelled row: the classifier will hardly ever predict it",
                UserWarning,
                stacklevel=3,
            )


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be saved: settings are numbers and text")


def _labelled(y: np.ndarray) -> np.ndarray:
    """Places of the rows that have a label."""
    if y.dtype.kind in "US":
        if (y == "-1").any():
            raise ValueError(
                "y is an array of text in which -1 has become '-1'; rows without a label need the number -1 in an "
                "object array: np.array([...], dtype=object)"
            )
        return np.arange(len(y))
    places = np.flatnonzero(y != -1)
    if len(places) == 0:
        raise ValueError("y holds -1 alone: there is no labelled row to learn from; label some rows of each class")
    return places


def _encode(y: np.ndarray, labelled: np.ndarray, classes: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Codes from 0 of the labelled rows, and the classes."""
    given = y[labelled]
    check_classification_targets(given)
    names, codes = np.unique(given, return_inverse=True)
    if classes is not None:
        every = np.unique(np.asarray(classes))
        if -1 in every.tolist():
            raise ValueError(f"classes={every.tolist()} names -1, which means no label; give classes other numbers")
        if unknown := [name for name in names.tolist() if name not in every.tolist()]:
            raise ValueError(f"y holds {unknown[:5]}, which classes={every.tolist()} does not name")
        codes, names = np.searchsorted(every, names)[codes], every
    if len(names) < 2:
        raise ValueError(
            f"y labels 1 class only ({names.tolist()}); a classifier needs two or more (classes=... names those "
            "without labelled rows; -1 means no label)"
        )
    return codes.reshape(-1), names


def _split(labelled: np.ndarray, codes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places to train on and places to choose by: at least one of each class to choose by, if it has two."""
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction is {fraction}; it needs to lie between 0 and 1")
    generator = numpy_generator(seed, "validation")
    held = []
    for code in np.unique(codes):
        members = generator.permutation(labelled[codes == code])
        held.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    chosen = np.sort(np.concatenate(held))
    if len(chosen) == 0:
        raise ValueError(
            "validation_fraction holds out labelled rows, and every class has one only; label more or leave it None"
        )
    return np.setdiff1d(labelled, chosen), chosen
