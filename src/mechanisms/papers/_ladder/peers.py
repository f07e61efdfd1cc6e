"""Scikit-learn's semi-supervised classifiers on the same rows, with as many trials as the ladder's variants have."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mechanisms.lab import Bench
from mechanisms.papers._ladder.settings import Ladders, suffix
from mechanisms.papers._ladder.splits import Rows, Source, labelled

Classifier = Any  # of scikit-learn, whose mixins declare neither fit nor predict


def _self_training(threshold: float) -> Classifier:
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    return SelfTrainingClassifier(LogisticRegression(C=10, max_iter=200), threshold=threshold)


def _label_spreading(neighbours: float) -> Classifier:
    from sklearn.semi_supervised import LabelSpreading

    return LabelSpreading("knn", n_neighbors=int(neighbours), max_iter=100)


class Peer(NamedTuple):
    """A classifier and the values that are tried of its setting."""

    make: Callable[[float], Classifier]
    values: tuple[float, ...]


PEERS = {
    "self-training": Peer(_self_training, (0.6, 0.75, 0.9, 0.95)),  # threshold above which a guess becomes a label
    "label-spreading": Peer(_label_spreading, (7.0, 10.0, 15.0, 20.0)),  # neighbours of the graph
}


def run_peer(
    settings: Ladders, variant: str, labels: int, place: int, source: Source, benches: Sequence[Bench]
) -> list[dict[str, Any]]:
    """Metrics of each seed; the value is chosen as for the ladder's variants. `place` is that of the labels, from 0."""
    from mechanisms.papers._ladder.runs import choose

    peer = PEERS[variant]
    values = peer.values[: len(settings.multiples)]
    each = len(values) * settings.tuning_seeds + len(benches)

    def fit(count: int, value: float, rows: Rows, seed: int) -> float:
        error = _wrong(peer.make(value), rows, labels, seed)
        benches[0].progress(place * each + count, len(settings.labels) * each)
        return error

    def tune() -> list[list[float]]:
        x, y = source.validation
        rows = [source.rows(seed)._replace(x_test=x, y_test=y) for seed in range(settings.tuning_seeds)]
        counts = itertools.count(1)
        return [[fit(next(counts), value, one, seed) for seed, one in enumerate(rows)] for value in values]

    errors = benches[0].cached(f"tuning-{variant}-{suffix(labels)}", tune)
    value = choose(values, errors)
    validation = [one for row in errors for one in row]
    found = []
    for count, bench in enumerate(benches, start=len(validation) + 1):
        error = fit(count, value, source.rows(bench.seed, deciding=True), bench.seed)
        found.append({"error": error, "value": value, "validation": validation})
    return found


def _wrong(classifier: Classifier, rows: Rows, labels: int, seed: int) -> float:
    """The share of test rows that it gets wrong, fitted to all training rows, of which some are labelled."""
    import numpy as np

    y = np.full(len(rows.y), -1)
    places = labelled(rows.y, labels, seed)
    y[places] = rows.y[places]
    with warnings.catch_warnings():
        # With all labels there is nothing to guess, and it says so.
        warnings.filterwarnings("ignore", message="y contains no unlabeled samples")
        # Rows of the graph that no label reaches divide zero by zero, and count as the first class.
        warnings.filterwarnings("ignore", message="invalid value encountered in divide")
        guesses = classifier.fit(rows.x, y).predict(rows.x_test)
    return float((guesses != rows.y_test).mean())
