"""LadderClassifier keeps scikit-learn's contract and its semi-supervised convention."""

import io

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mechanisms.robust._late_bar import LateBar
from mechanisms.robust.ladder_classifier import LadderClassifier
from mechanisms.robust.ladder_variants import LadderVariant


def blobs(n: int = 150, labelled: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X, truth = make_blobs(n, n_features=4, centers=3, cluster_std=2.0, random_state=0)
    return X, truth, np.where(np.arange(n) < labelled, truth, -1)


def quick(**settings: object) -> LadderClassifier:
    return LadderClassifier((12,), **({"epochs": 60, "lr": 0.01, "random_state": 0, "device": "cpu"} | settings))


# One part of this check gives -1 as an ordinary label, which here means "no label" as in LabelSpreading.
MARKER = {"check_classifiers_classes": "-1 marks rows without a label, as in sklearn.semi_supervised"}


@pytest.mark.user_input
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([quick(epochs=80)], expected_failed_checks=lambda estimator: MARKER)
def test_the_estimator_contract(estimator: LadderClassifier, check) -> None:
    if getattr(check, "func", check).__name__ == "check_array_api_input":
        return  # This check runs only in processes with SCIPY_ARRAY_API set, for estimators that claim array API.
    check(estimator)


def test_the_one_excused_check_fails_for_its_marker_alone() -> None:
    from sklearn.utils.estimator_checks import check_classifiers_classes

    with pytest.raises(ValueError, match="y labels 1 class only"):
        check_classifiers_classes("LadderClassifier", quick())


def test_rows_without_labels_help_and_get_one() -> None:
    X, truth, y = blobs()
    classifier = quick().fit(X, y)
    assert classifier.classes_.tolist() == [0, 1, 2]
    assert classifier.score(X, truth) > 0.9
    assert np.array_equal(classifier.transduction_[:30], y[:30])
    assert np.array_equal(classifier.transduction_[30:], classifier.predict(X)[30:])
    assert len(classifier.loss_curve_) == 60
    assert classifier.loss_curve_[-1] < classifier.loss_curve_[0]
    np.testing.assert_allclose(classifier.predict_proba(X).sum(1), 1)


def test_with_and_without_unlabelled_rows_the_shapes_are_the_same() -> None:
    X, truth, y = blobs()
    for labels in (truth, y):
        classifier = quick(epochs=3).fit(X, labels)
        assert classifier.predict_proba(X).shape == (150, 3)
        assert classifier.transduction_.shape == (150,)


@pytest.mark.parametrize("variant", ["amlp-2-2-2", "gamma", "baseline", LadderVariant("linear", noise="first")])
def test_variants_fit(variant: str | LadderVariant) -> None:
    X, truth, y = blobs()
    assert quick(variant=variant).fit(X, y).score(X, truth) > 0.8


def test_labels_of_text_beside_minus_one() -> None:
    X, truth, y = blobs()
    names = np.array(["cat", "dog", "emu"], dtype=object)
    mixed = np.where(y == -1, -1, names[truth])
    classifier = quick(epochs=30).fit(X, mixed)
    assert classifier.classes_.tolist() == ["cat", "dog", "emu"]
    assert set(classifier.predict(X)) <= set(names)
    assert quick(epochs=3).fit(X, names[truth].astype(str)).classes_.tolist() == ["cat", "dog", "emu"]
    assert quick(epochs=3).fit(X, y.astype(float)).classes_.tolist() == [0.0, 1.0, 2.0]


def test_labelled_rows_choose_the_best_epoch() -> None:
    X, _, y = blobs()
    classifier = quick(validation_fraction=0.3).fit(X, y)
    assert len(classifier.validation_curve_) == 60
    assert classifier.validation_curve_[classifier.best_epoch_ - 1] == max(classifier.validation_curve_)
    assert np.array_equal(classifier.transduction_[:30], y[:30])


def test_the_same_seed_gives_the_same_classifier() -> None:
    X, _, y = blobs()
    one, other, third = (quick(epochs=4, random_state=seed).fit(X, y).predict_proba(X) for seed in (0, 0, 1))
    assert np.array_equal(one, other)
    assert not np.allclose(one, third)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0])
def test_constant_columns_and_single_rows(value: float) -> None:
    X, _, y = blobs()
    X[:, 1] = value
    classifier = quick(epochs=5).fit(X, y)
    together = classifier.predict_proba(X)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(classifier.predict_proba(X[7:8]), together[7:8], atol=1e-12)
    # Its mean is rounded; a difference as small as that must not be blown up to a large one.
    X[:, 1] *= 1 + 1e-9
    np.testing.assert_allclose(classifier.predict_proba(X), together, atol=1e-3)


@pytest.mark.user_input
def test_sizes_may_be_numbers_of_numpy_and_one_layer_a_number(tmp_path) -> None:
    X, _, y = blobs()
    for sizes in (np.int64(5), 5, np.array([5]), (np.int64(5),)):
        classifier = LadderClassifier(sizes, epochs=2, batch_size=np.int64(50), random_state=0, device="cpu").fit(X, y)
        assert classifier.network_.shapes[1].channels == 5
        classifier.save(tmp_path / "ladder.safetensors")
        assert LadderClassifier.load(tmp_path / "ladder.safetensors").hidden_layer_sizes == (5,)


def test_after_a_fit_that_failed_it_is_not_fitted() -> None:
    X, _, y = blobs()
    classifier = quick(epochs=2).fit(X, y)
    with pytest.raises(ValueError, match="epochs=0"):
        classifier.set_params(epochs=0).fit(X, y)
    with pytest.raises(NotFittedError):
        classifier.predict(X)


def test_it_works_in_a_pipeline_and_in_cross_validation() -> None:
    X, truth, _ = blobs()
    pipeline = make_pipeline(MinMaxScaler(), quick(standardize=False, reconstruction_weights=(10, 1, 0.1)))
    assert cross_val_score(pipeline, X, truth, cv=2).mean() > 0.6  # chance is 1/3
    assert clone(quick(variant="linear")).get_params()["variant"] == "linear"


@pytest.mark.parametrize("text", [True, False])
def test_a_saved_classifier_predicts_the_same(tmp_path, text: bool) -> None:
    pandas = pytest.importorskip("pandas")
    X, truth, y = blobs()
    labels = np.where(y == -1, -1, np.array(["a", "b", "c"], dtype=object)[truth]) if text else y
    frame = pandas.DataFrame(X, columns=list("wxyz"))
    settings = {"epochs": np.int64(4), "reconstruction_weights": [1, 1, 1], "validation_fraction": 0.2}
    classifier = quick(variant="amlp-4", **settings).fit(frame, labels)
    classifier.save(tmp_path / "ladder.safetensors")
    again = LadderClassifier.load(tmp_path / "ladder.safetensors")
    assert np.array_equal(again.predict_proba(frame), classifier.predict_proba(frame))
    assert np.array_equal(again.transduction_, classifier.transduction_)
    assert again.classes_.dtype == classifier.classes_.dtype
    assert again.feature_names_in_.tolist() == list("wxyz")
    assert again.best_epoch_ == classifier.best_epoch_
    again.fit(frame, labels)
    assert [path.name for path in tmp_path.iterdir()] == ["ladder.safetensors"]


@pytest.mark.user_input
def test_files_that_are_none(tmp_path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no")
    for name, text in (
        ("other.safetensors", "format None"),
        ("text", "no saved LadderClassifier"),
        ("", "is a folder"),
    ):
        with pytest.raises(ValueError, match=text):
            LadderClassifier.load(tmp_path / name)
    X, _, y = blobs()
    own = LadderVariant(lambda size, settings: None, reconstruction="none")
    classifier = quick(epochs=2, variant=own).fit(X, y)
    with pytest.raises(TypeError, match="register_combinator"):
        classifier.save(tmp_path / "own.safetensors")


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"y": np.full(150, -1)}, "no labelled row"),
        ({"y": np.where(np.arange(150) < 3, 0, -1)}, "1 class only"),
        ({"y": np.arange(150) + 0.5}, "Unknown label type: continuous"),
        ({"y": np.array(["cat", -1] * 75)}, "object array"),
        ({"classes": [0, 1]}, r"y holds \[2\]"),
        ({"classes": [-1, 0, 1, 2]}, "names -1, which means no label"),
        ({"epochs": 2.5}, "whole number"),
        ({"variant": "best"}, "must be one of 'vanilla'"),
        ({"epochs": "many"}, "give a number or 'auto'"),
        ({"validation_fraction": 1.5}, "between 0 and 1"),
        ({"validation_fraction": 0.5, "y": np.r_[0, 1, 2, np.full(147, -1)]}, "every class has one only"),
        ({"reconstruction_weights": (1, 2)}, "2 values for 3 levels"),
        ({"X": np.full((150, 4), np.nan)}, "NaN"),
        ({"device": "nowhere"}, "cannot be used"),
    ],
)
def test_what_cannot_be_fitted(change: dict, text: str) -> None:
    X, _, y = blobs()
    given = {"X": change.pop("X", X), "y": change.pop("y", y)}
    with pytest.raises(ValueError, match=text):
        quick(**change).fit(**given)


@pytest.mark.user_input
def test_warnings_and_what_comes_before_fit() -> None:
    X, _, y = blobs()
    with pytest.raises(NotFittedError):
        quick().predict(X)
    with pytest.raises(NotFittedError):
        quick().save("nowhere")
    with pytest.warns(UserWarning, match="class 7 has no labelled row"):
        classifier = quick(epochs=2, classes=[0, 1, 2, 7]).fit(X, y)
    assert classifier.predict_proba(X).shape == (150, 4)


def test_the_bar_is_late_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("mechanisms.robust._late_bar.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    bar = LateBar("fitting", show=True, stream=stream)
    for done in range(1, 5):
        now[0] += 1.0
        bar(done, 5)
    assert stream.getvalue().startswith("\rfitting: 2 of 5, 3 s left")
    now[0] += 1.0
    bar(5, 5)
    assert stream.getvalue().endswith(" \r")
    assert not LateBar("fitting", stream=io.StringIO())._shows
