"""XRM's estimators keep scikit-learn's contract, and do what they promise."""

import functools
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from mechanisms.robust.embed import embed
from mechanisms.robust.estimators import EnvironmentDiscoverer, XRMClassifier, _stratified_part
from mechanisms.robust.groups import worst_group_accuracy
from mechanisms.robust.training import fit_groups
from mechanisms.robust.xrm import Search, Setting


def shortcut(n: int = 800, seed: int = 0, classes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A core feature that is right in about nine of ten, and a loud one that agrees with the label in nine of ten."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    background = np.where(np.arange(n) // classes % 10 == 9, (y + 1) % classes, y)
    core, loud = np.eye(classes)[y] * 2, np.eye(classes)[background] * 12
    return rng.normal(size=(n, 2 * classes)) + np.concatenate([core, loud], 1), y, background


def finds(environments: np.ndarray, truth: np.ndarray) -> bool:
    """Nearly all of the minority and nearly nothing else: twins see a little of the core feature as well."""
    return environments[truth].mean() >= 0.9 and environments[~truth].mean() <= 0.01


@pytest.mark.user_input
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        EnvironmentDiscoverer(search=2, steps=30, random_state=0, device="cpu"),
        XRMClassifier(search=3, steps=200, random_state=0, device="cpu"),
    ],
    expected_failed_checks=lambda estimator: {},
)
def test_the_estimator_contract(estimator, check) -> None:
    if getattr(check, "func", check).__name__ == "check_array_api_input":
        return  # This check runs only in processes with SCIPY_ARRAY_API set, for estimators that claim array API.
    check(estimator)


def test_environments_of_training_and_new_data() -> None:
    X, y, background = shortcut()
    names = np.array(["cow", "horse"])[y]
    found = EnvironmentDiscoverer(random_state=0, device="cpu").fit(X, names)
    assert finds(found.environments_, background != y)
    assert found.classes_.tolist() == ["cow", "horse"]
    assert not found.degenerate_
    assert len(found.trials_) == 10
    assert found.flip_history_[-1][1] == found.flip_rate_
    new_X, new_y, new_background = shortcut(100, seed=1)
    environments = found.predict_environments(new_X, np.array(["cow", "horse"])[new_y])
    assert finds(environments, new_background != new_y)


def test_data_frames_keep_their_column_names() -> None:
    pandas = pytest.importorskip("pandas")
    X, y, _ = shortcut(400)
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    found = EnvironmentDiscoverer(random_state=0, steps=300, search=2, device="cpu").fit(frame, pandas.Series(y))
    assert found.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        found.predict_environments(frame[["d", "c", "b", "a"]], y)


@pytest.mark.parametrize("robust", ["groupdro", "rwg", "subg"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_worst_group_is_learned_where_a_plain_classifier_fails(robust: str, classes: int) -> None:
    X, y, background = shortcut(1500, classes=classes)
    new_X, new_y, new_background = shortcut(6000, seed=1, classes=classes)
    groups = 2 * new_y + (new_background != new_y)
    classifier = XRMClassifier(robust=robust, steps=600, search=4, random_state=0, device="cpu").fit(X, y)
    plain = LogisticRegression().fit(X, y)
    worst, expected = (float(worst_group_accuracy(new_y, one.predict(new_X), groups)) for one in (classifier, plain))
    assert worst > expected + 0.2
    assert finds(classifier.environments_, background != y)
    cut = classifier.validation_indices_
    assert np.array_equal(classifier.validation_environments_, classifier.environments_[cut])
    assert expected < classifier.worst_group_accuracy_ <= 1
    np.testing.assert_allclose(classifier.predict_proba(new_X).sum(1), 1)


def test_given_validation_data_select() -> None:
    X, y, background = shortcut(600)
    X_val, y_val, background_val = shortcut(200, seed=1)
    classifier = XRMClassifier(random_state=0, steps=300, search=2, device="cpu").fit(X, y, X_val, y_val)
    assert classifier.validation_indices_ is None
    assert finds(classifier.environments_, background != y)
    assert finds(classifier.validation_environments_, background_val != y_val)


def test_without_usable_environments_it_is_balanced_erm_and_says_so() -> None:
    X, y, _ = shortcut(200)
    X[:, :2] = 20 * np.eye(2)[y]
    with pytest.warns(UserWarning, match="class-balanced ERM in place of 'groupdro'"):
        classifier = XRMClassifier(random_state=0, steps=200, search=2, device="cpu").fit(X, y)
    assert classifier.degenerate_
    assert classifier.score(X, y) > 0.9


@functools.cache
def without_a_rare_class() -> XRMClassifier:
    return XRMClassifier(steps=400, search=3, random_state=0, device="cpu").fit(*shortcut(2000)[:2])


@pytest.mark.parametrize("rare", [4, 5, 6, 8])
def test_a_rare_class_does_not_switch_robustness_off_for_the_others(rare: int) -> None:
    X, y, _ = shortcut(2000)
    new_X, new_y, new_background = shortcut(4000, seed=1)
    rng = np.random.default_rng(2)
    X = np.concatenate([X, rng.normal(size=(rare, 4)) - 12])
    y = np.concatenate([y, np.full(rare, 2)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier = XRMClassifier(steps=400, search=3, random_state=0, device="cpu").fit(X, y)
    texts = [str(one.message) for one in caught]
    assert any("class 2 lacks one" in text and "trains on the 5 groups that exist" in text for text in texts)
    assert not any("ERM" in text or "fewer than four" in text for text in texts)
    assert classifier.degenerate_
    alone = without_a_rare_class()
    groups = 2 * new_y + (new_background != new_y)
    worst, expected = (float(worst_group_accuracy(new_y, one.predict(new_X), groups)) for one in (classifier, alone))
    assert worst > expected - 0.05
    assert (classifier.predict(X[y == 2]) == 2).all()


@pytest.mark.parametrize(
    ("size", "kept"), [(2, 0), (3, 0), (5, 0), (6, 2), (7, 2), (8, 4), (17, 4), (40, 8), (2000, 400)]
)
def test_the_cut_takes_examples_of_a_class_only_when_it_leaves_four(size: int, kept: int) -> None:
    y = np.concatenate([np.zeros(100), np.ones(size)])
    part = _stratified_part(y, 0.2, seed=0)
    assert (y[part] == 1).sum() == kept
    assert (y[part] == 0).sum() == 20
    assert (y[_stratified_part(y, 0.99, seed=0)] == 1).sum() == (min(round(0.99 * size), size - 4) if size >= 6 else 0)


def test_a_model_of_ones_own_serves_both_phases() -> None:
    X, y, _ = shortcut(600)
    X = X.astype(np.float32)
    classifier = XRMClassifier(
        lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), steps=300, search=2, random_state=0,
        device="cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.fit(X, y)
    assert isinstance(classifier.network_, nn.Sequential)
    assert classifier.score(X, y) > 0.8


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_same_seed_gives_the_same_classifier() -> None:
    X, y, _ = shortcut(200)
    one = XRMClassifier(random_state=3, steps=50, search=2, device="cpu")
    expected = one.fit(X, y).predict_proba(X)
    torch.rand(3)
    assert np.array_equal(clone(one).fit(X, y).predict_proba(X), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_offset_that_single_precision_would_not_survive_changes_nothing() -> None:
    X, y, _ = shortcut(400)
    one, far = (XRMClassifier(random_state=0, steps=200, search=2, device="cpu") for _ in range(2))
    one.fit(X, y)
    far.fit(X + 1e8, y)
    assert np.array_equal(one.predict(X), far.predict(X + 1e8))
    assert np.array_equal(one.environments_, far.environments_)
    found = EnvironmentDiscoverer(random_state=0, steps=200, search=2, device="cpu").fit(X + 1e8, y)
    assert np.array_equal(found.predict_environments(X + 1e8, y), found.environments_)


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (2, ("sgd", 0.9, 2, (1e-4, 1e-2), (1e-6, 1e-3))),
        (Search(lr=(0.1, 0.2), weight_decay=0.0, optimizer="adam", trials=3), ("adam", 0.9, 3, (0.1, 0.2), (0.0, 0.0))),
        ([Setting(0.03, 0.5, 16, "sgd", 0.0)], ("sgd", 0.0, 10, (0.03, 0.03), (0.5, 0.5))),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_robust_learner_searches_in_the_family_of_the_twins(monkeypatch, search, expected) -> None:
    X, y, _ = shortcut(200)
    seen = {}

    def spy(*args, **options):
        seen.update(options)
        return fit_groups(*args, **options)

    monkeypatch.setattr("mechanisms.robust.estimators.fit_groups", spy)
    XRMClassifier(search=search, steps=20, random_state=0, device="cpu").fit(X, y)
    optimizer, momentum, count, lr, weight_decay = expected
    draws = seen["draws"]
    assert (seen["optimizer"], seen["momentum"], len(draws)) == (optimizer, momentum, count)
    assert all(lr[0] <= value <= lr[1] for value in draws.lr)
    assert all(weight_decay[0] <= value <= weight_decay[1] for value in draws.weight_decay)
    if count == 10:
        assert draws.batch_size == (16,) * 10
        assert len(set(draws.eta)) == 10


def test_arrays_that_cannot_be_written_to_are_predicted_in_silence_and_in_parts(monkeypatch) -> None:
    X, y, _ = shortcut(400)
    classifier = XRMClassifier(random_state=0, steps=100, search=2, device="cpu")
    frozen = X.astype(np.float32)
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.fit(frozen, y, frozen, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = classifier.predict_proba(frozen)
        monkeypatch.setattr("mechanisms.robust.estimators._PREDICTED_ROWS", 7)
        np.testing.assert_allclose(classifier.predict_proba(frozen), expected, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_works_inside_pipelines_grids_and_cross_validation() -> None:
    X, y, _ = shortcut(240)
    classifier = XRMClassifier(random_state=0, steps=30, search=1, device="cpu")
    assert cross_val_score(make_pipeline(StandardScaler(), classifier), X, y, cv=2).shape == (2,)
    grid = GridSearchCV(classifier, {"robust": ["rwg", "subg"]}, cv=2).fit(X, y)
    assert grid.best_params_["robust"] in ("rwg", "subg")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("estimator", [EnvironmentDiscoverer, XRMClassifier])
def test_five_rows_are_enough_to_run(estimator) -> None:
    X, y = np.random.default_rng(0).normal(size=(5, 2)), [0, 1, 0, 1, 1]
    assert estimator(random_state=0, device="cpu").fit(X, y).environments_.shape == (5,)


@pytest.mark.user_input
def test_mistakes_are_named() -> None:
    X, y, _ = shortcut(40)
    with pytest.raises(ValueError, match="robust is 'dro'"):
        XRMClassifier(robust="dro").fit(X, y)
    with pytest.raises(ValueError, match="go together"):
        XRMClassifier().fit(X, y, X_val=X)
    with pytest.raises(ValueError, match="validation_fraction is 2"):
        XRMClassifier(validation_fraction=2).fit(X, y)
    with pytest.raises(ValueError, match="number or 'auto'"):
        EnvironmentDiscoverer(steps="many").fit(X, y)
    with pytest.raises(ValueError, match="label 1 is missing"):
        XRMClassifier().fit(X[:4], ["cow", None, "elk", "cow"])
    with pytest.raises(ValueError, match="labels mix int, text"):
        EnvironmentDiscoverer().fit(X[:4], np.array(["cow", 1, "cow", 1], object))
    with pytest.raises(TypeError, match="Linear, not a function"):
        XRMClassifier(model=nn.Linear(4, 2)).fit(X, y)
    with pytest.raises(ValueError, match="at least two classes"):
        EnvironmentDiscoverer().fit(X, np.ones(40))
    with pytest.raises(NotFittedError):
        EnvironmentDiscoverer().predict_environments(X, y)
    with pytest.raises(TypeError, match="map-style"):
        embed(nn.Identity(), iter([1]))
    with pytest.raises(TypeError, match="numeric y"):
        embed(nn.Identity(), [(torch.zeros(2), "cow")])
    with pytest.raises(ValueError, match="empty"):
        embed(nn.Identity(), [])
    with pytest.raises(ValueError, match="expected"):
        embed(nn.Flatten(0), [(torch.zeros(2), 1)])


def test_embedding_keeps_order_and_leaves_the_body_as_it_was() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1))
    images, labels = torch.randn(10, 3, 5, 5), torch.arange(10)
    dataset, seen = list(zip(images, labels, strict=True)), []
    features, again = embed(
        body, torch.utils.data.TensorDataset(images, labels), batch_size=4, device="cpu",
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert len(dataset) == len(features)
    assert body.training
    assert torch.equal(again, labels)
    assert seen == [(4, 10), (8, 10), (10, 10)]
    with torch.no_grad():
        torch.testing.assert_close(features, body.eval()(images).flatten(1))
