"""Tables as features, and the columns that environments differ in."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from mechanisms.lab.data import waterbirds_like
from mechanisms.robust.differences import column_differences
from mechanisms.robust.tables import TableEncoder, encode

N = 40
LABEL = ["cow", "camel"] * (N // 2)


def frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"x": np.linspace(-1.0, 3.5, N) ** 2, **columns, "label": LABEL})


def test_numbers_are_standardised() -> None:
    encoded = encode(frame(), "label")
    assert encoded.x.dtype == np.float32
    assert abs(encoded.x.mean()) < 1e-6
    assert abs(encoded.x.std() - 1) < 1e-6
    assert encoded.encoder.classes == ("camel", "cow")
    assert encoded.y.tolist() == [1, 0] * (N // 2)
    assert encoded.notes == ()


def test_every_kind_of_column_is_understood() -> None:
    table = frame(
        colour=["red", "green", "blue", "red"] * (N // 4),
        flag=[True, False, False, True] * (N // 4),
        text_flag=pd.Series(["TRUE", "false"] * (N // 2), dtype=object),
        day=pd.date_range("2020-01-01", periods=N, tz="Europe/Rome"),
        text_day=[f"2021-01-{1 + i % 28:02d}" for i in range(N)],
        span=pd.to_timedelta(np.arange(N) % 7, unit="h"),
        text_number=[f"{i % 9}.5" for i in range(N)],
        whole=pd.array([1, 2, None, 4] * (N // 4), dtype="Int64"),
        grade=pd.Categorical(["a", "b"] * (N // 2)),
        huge=[10**30 + i % 3 * 10**29 for i in range(N)],
    )
    encoder = encode(table, "label").encoder
    assert {column.name: column.kind for column in encoder.columns} == {
        "x": "number",
        "colour": "category",
        "flag": "boolean",
        "text_flag": "boolean",
        "day": "date",
        "text_day": "date",
        "span": "date",
        "text_number": "number",
        "whole": "number",
        "grade": "category",
        "huge": "number",
    }
    x = encode(table, "label").x
    assert np.isfinite(x).all()
    assert x.shape[1] == len(encoder.feature_names) == len(encoder.feature_columns)
    assert x[:, encoder.feature_names.index("colour=green")].tolist() == [0, 1, 0, 0] * (N // 4)
    assert x[:, encoder.feature_names.index("whole (missing)")].tolist() == [0, 0, 1, 0] * (N // 4)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["same"] * N, "same in all rows"),
        ([None] * N, "no value in any row"),
        (range(100, 100 + N), "numbers the rows"),
        ([f"name {i}" for i in range(N)], "differs in nearly every row"),
        ([[1, 2]] * N, "no single values"),
        (np.arange(N) * 1j, "complex numbers"),
    ],
)
def test_columns_that_say_nothing_are_left_out_with_a_line(cells: object, reason: str) -> None:
    encoded = encode(frame(odd=cells), "label")
    assert encoded.encoder.feature_names == ["x"]
    assert len(encoded.notes) == 1
    assert reason in encoded.notes[0]
    assert "'odd'" in encoded.notes[0]


def test_missing_and_infinite_values_are_filled_and_marked() -> None:
    values = np.linspace(0, 1, N)
    values[[3, 5]] = np.nan, np.inf
    encoded = encode(frame(v=values), "label")
    marked = encoded.x[:, encoded.encoder.feature_names.index("v (missing)")]
    assert np.flatnonzero(marked).tolist() == [3, 5]
    median = np.median(np.delete(values, [3, 5]))
    plan = encoded.encoder.columns[1]
    assert plan.fill == pytest.approx(median)
    assert len(encoded.notes) == 2


def test_rare_categories_share_a_feature() -> None:
    levels = [f"c{min(i, 12)}" for i in range(N)]
    encoded = encode(frame(c=levels), "label", max_categories=5)
    assert encoded.encoder.feature_names[1:3] == ["c=c12", "c=c0"]
    assert encoded.encoder.feature_names[-1] == "c (other)"
    assert np.array_equal(encoded.x[:, 1:].sum(1), np.ones(N))
    assert "share one feature" in encoded.notes[0]


def test_excluded_columns_are_not_used() -> None:
    assert encode(frame(z=np.arange(N) ** 2), "label", ["z"]).encoder.feature_names == ["x"]


@pytest.mark.parametrize(
    ("table", "label", "exclude", "reason"),
    [
        (frame(), "class", (), "there is no column 'class'.*it|has 'x', 'label'"),
        (frame(), "label", ("z",), "no column 'z' .excluded."),
        (frame()[:9], "label", (), "9 rows; at least 10"),
        (frame().assign(label="cow"), "label", (), "only 'cow'"),
        (frame().assign(label=[None, *LABEL[1:]]), "label", (), "1 row without a label.*from 1: 1"),
        (frame().assign(label=["elk", *LABEL[1:]]), "label", (), "'elk'.*one row each"),
        (frame().assign(label=np.linspace(0, 1, N)), "label", (), "must be classes"),
        (frame().assign(label=[[1]] * N), "label", (), "no single values"),
        (frame()[["label"]], "label", (), "no column is left"),
        (frame().set_axis(["label", "label"], axis=1), "label", (), "more than once"),
    ],
)
def test_what_cannot_be_encoded_is_refused(table, label: str, exclude, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        encode(table, label, exclude)


def test_an_encoder_survives_json_and_does_the_same_again() -> None:
    values = np.linspace(0, 1, N)
    values[3] = np.nan
    table = frame(v=values, c=["a", "b", None, "d"] * (N // 4), day=pd.date_range("2020-01-01", periods=N))
    first = encode(table, "label")
    again = TableEncoder.from_json(first.encoder.to_json())
    assert again == first.encoder
    assert np.array_equal(again.transform(table).x, first.x)
    assert np.array_equal(again.transform(table.iloc[:, ::-1]).y, first.y)
    part = again.transform(table.iloc[5:9])
    assert np.array_equal(part.x, first.x[5:9])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other"}', "null"])
def test_other_text_is_no_encoder(text: str) -> None:
    with pytest.raises(ValueError, match="no encoder of a table"):
        TableEncoder.from_json(text)


def test_numbers_as_labels_keep_their_order_and_match_whatever_their_type() -> None:
    labels = [2, 10] * (N // 2)
    encoder = encode(frame().assign(label=labels), "label").encoder
    assert encoder.classes == ("2", "10")
    for cast in (float, str, np.int8):
        assert encoder.transform(frame().assign(label=[cast(v) for v in labels])).y.tolist() == [0, 1] * (N // 2)


def test_a_second_table_may_hold_what_was_not_seen() -> None:
    encoder = encode(frame(c=["a", "b"] * (N // 2), v=np.linspace(0, 1, N)), "label").encoder
    second = pd.DataFrame(
        {"c": ["z", "a", None], "v": ["0.5", "text", None], "label": ["cow"] * 3, "x": 0.0, "more": 1}
    )
    encoded = encoder.transform(second)
    assert encoded.x[0, encoder.feature_names.index("c=a") :][:2].tolist() == [0, 0]
    assert np.isfinite(encoded.x).all()
    assert any("1 row with values not seen before ('z')" in note for note in encoded.notes)
    assert any("1 row with text where a number is expected" in note for note in encoded.notes)
    with pytest.raises(ValueError, match="lacks the columns 'c'"):
        encoder.transform(second.drop(columns="c"))
    with pytest.raises(ValueError, match="'elk' are not among the classes"):
        encoder.transform(second.assign(label="elk"))


@pytest.mark.parametrize("seed", range(3))
def test_spurious_coordinates_rank_first(seed: int) -> None:
    train = waterbirds_like(seed, rotate=False).train
    table = pd.DataFrame(train.x, columns=[str(i) for i in range(64)])
    found = column_differences(table, train.y, train.y != train.attribute)
    assert set(found[found["rank"] <= 8]["column"]) == {str(i) for i in range(8, 16)}
    assert found["effect"].iloc[0] > 5 * found[found["rank"] == 9]["effect"].iloc[0]


def test_a_balanced_shortcut_leaves_the_marginal_flat() -> None:
    generator = np.random.default_rng(0)
    n = 40_000
    y, e = np.arange(n) % 2, (generator.random(n) < 0.2).astype(int)
    a = y ^ e
    table = pd.DataFrame({"n": generator.standard_normal(n) + 2 * a, "c": np.where(a, "grass", "sand")})
    found = column_differences(table, y, e).set_index(["column", "class"])
    for column in ("n", "c"):
        assert found.loc[(column, 0), "effect"] > 0.4
        # Standard error of a marginal AUC here is 0.0036.
        assert abs(found.loc[(column, 0), "marginal_auc"] - 0.5) < 0.02
    assert found.loc[("n", 0), "difference"] == pytest.approx(2, abs=0.15)
    assert found.loc[("n", 1), "difference"] == pytest.approx(-2, abs=0.15)


def test_auc_equals_the_one_of_mann_whitney() -> None:
    generator = np.random.default_rng(1)
    values = generator.integers(0, 6, 300)  # with ties
    e = (generator.random(300) < 0.3).astype(int)
    found = column_differences(pd.DataFrame({"v": values}), np.zeros(300), e).iloc[0]
    assert found["auc"] == pytest.approx(roc_auc_score(e, values))
    u = mannwhitneyu(values[e == 1], values[e == 0]).statistic
    assert found["auc"] == pytest.approx(u / (e.sum() * (300 - e.sum())))


def test_delong_variance_equals_its_definition() -> None:
    generator = np.random.default_rng(2)
    zero, one = np.round(generator.standard_normal(40), 1), np.round(generator.standard_normal(25) + 1, 1)
    kernel = (one[:, None] > zero) + 0.5 * (one[:, None] == zero)
    variance = kernel.mean(1).var(ddof=1) / 25 + kernel.mean(0).var(ddof=1) / 40
    table = pd.DataFrame({"v": np.concatenate([zero, one])})
    found = column_differences(table, np.zeros(65), np.repeat([0, 1], [40, 25])).iloc[0]
    assert (found["auc_high"] - found["auc"]) / 1.959964 == pytest.approx(np.sqrt(variance), rel=1e-6)


def test_intervals_cover_the_truth() -> None:
    """800 columns without and with a difference: 95 % cover; a false alarm is rarer than one in a million."""
    generator = np.random.default_rng(3)
    e = np.repeat([0, 1], [150, 60])
    table = pd.DataFrame(generator.standard_normal((210, 800)) + 0.8 * e[:, None])
    found = column_differences(table, np.zeros(210), e)
    truth = 0.7142  # Phi(0.8 / sqrt(2))
    covered = ((found["auc_low"] <= truth) & (truth <= found["auc_high"])).mean()
    assert 0.90 < covered < 0.99
    covered = ((found["low"] <= 0.8) & (found["high"] >= 0.8)).mean()
    assert 0.90 < covered < 0.99


def test_many_categories_are_no_difference_by_themselves() -> None:
    generator = np.random.default_rng(4)
    table = pd.DataFrame({"c": generator.integers(0, 300, 3000).astype(str), "n": generator.standard_normal(3000)})
    table["c"] = "k" + table["c"]
    found = column_differences(table, np.arange(3000) % 2, generator.random(3000) < 0.1)
    assert found[found["column"] == "c"]["effect"].max() < 0.12


def test_missing_values_are_compared_too() -> None:
    generator = np.random.default_rng(5)
    e = (np.arange(2000) // 2 % 2).astype(int)
    values = generator.standard_normal(2000)
    values[(generator.random(2000) < 0.5) & (e == 1)] = np.nan
    found = column_differences(pd.DataFrame({"v": values}), np.arange(2000) % 2, e)
    assert found["column"].iloc[0] == "v (missing)"
    assert found["auc"].iloc[0] == pytest.approx(0.75, abs=0.07)


def test_complete_separation_has_the_exact_bound() -> None:
    found = column_differences(pd.DataFrame({"v": range(30)}), np.zeros(30), np.repeat([0, 1], [20, 10])).iloc[0]
    assert found["auc"] == 1
    assert found["auc_low"] == pytest.approx(0.025 ** (1 / 10))
    assert found["auc_high"] == 1


def test_what_cannot_be_compared_is_not() -> None:
    table = pd.DataFrame({"v": np.arange(8.0), "empty": [np.nan] * 8, "lists": [[1]] * 8, "c": list("aabbaabb")})
    found = column_differences(table, [0] * 4 + [1] * 4, [0, 0, 1, 1, 0, 0, 0, 0])
    assert "lists" not in set(found["column"])
    assert found[(found["column"] == "v") & (found["class"] == 1)]["auc"].isna().all()
    assert found[found["column"] == "v"]["effect"].tolist() == [0.5, 0.5]
    assert found["column"].iloc[-1] == "empty"
    nothing = column_differences(table[[]], [0, 1] * 4, [0] * 8)
    assert len(nothing) == 0
    assert "effect" in nothing.columns


@pytest.mark.user_input
def test_arguments_that_do_not_fit_are_refused() -> None:
    table = pd.DataFrame({"v": range(4)})
    with pytest.raises(ValueError, match="one entry for each row"):
        column_differences(table, [0, 1], [0, 1])
    with pytest.raises(ValueError, match="must hold 0 and 1"):
        column_differences(table, [0, 0, 1, 1], [0, 1, 2, 1])
    with pytest.raises(ValueError, match="confidence"):
        column_differences(table, [0, 0, 1, 1], [0, 1, 0, 1], confidence=95)
