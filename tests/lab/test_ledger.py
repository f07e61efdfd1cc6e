import math

import pytest

from mechanisms.lab import Claim, Experiment, Paper, at_least, config, ledger
from mechanisms.lab.configuration import as_dict
from mechanisms.lab.records import Record


@config
class Settings:
    steps: int = 3
    noise: float = 0.1


def paper(**changes: object) -> Paper:
    claim = Claim("it is large", at_least("value", "all", 0.5, bounds=(0, 1)))
    values = {"name": "line", "run": lambda config, variant, bench: {}, "variants": ("all",), "claims": (claim,)}
    scales = {"smoke": Settings(), "laptop": Settings(), "paper": Settings(steps=9)}
    experiment = Experiment(**(values | {"scales": scales} | changes))  # pyrefly: ignore
    return Paper("toy", "Toy", "Someone", 2026, "toys", "Nothing.", [experiment])


def record(seed: int, value: float = 0.9, **changes: object) -> Record:
    values = {"scale": "laptop", "config": as_dict(Settings()), "code": "now"} | changes
    return Record("toy", "line", variant="all", seed=seed, metrics={"value": value}, **values)  # pyrefly: ignore


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "code_hash", lambda slug: "now")


def test_without_records_the_deciding_scale_is_not_run_and_the_others_are_silent() -> None:
    (row,) = ledger.rows([paper()], [])
    assert (row.scale, row.outcome.verdict) == ("laptop", "not run")
    (row,) = ledger.rows([paper(scales={"smoke": Settings(), "paper": Settings()})], [])
    assert (row.scale, row.outcome.verdict) == ("paper", "not run")


def test_seeds_that_settings_were_tuned_on_decide_nothing() -> None:
    records = [record(seed, 0.9 + seed / 1000) for seed in range(10, 20)] + [record(seed, 0.0) for seed in range(4)]
    (row,) = ledger.rows([paper()], records)
    assert (row.outcome.verdict, row.outcome.seeds) == ("holds", 10)


def test_other_configurations_are_rows_of_their_own_that_say_what_differs() -> None:
    older = {"steps": 3}
    records = [record(10), record(10, config=as_dict(Settings(steps=4))), record(10, config=older)]
    changed = [row.changed for row in ledger.rows([paper()], records)]
    assert changed[0] == {}
    assert {"steps": 4} in changed
    assert {"noise": "not recorded"} in changed


def test_older_code_is_stale_and_the_verdict_s_marks_are_shown_everywhere() -> None:
    records = [record(seed, code="older") for seed in range(10, 20)]
    (row,) = found = ledger.rows([paper()], records)
    assert row.stale
    assert ledger.verdict_notes(row) == ["zero variance", "stale"]
    table = ledger.to_markdown(found)
    assert "zero variance" in table
    assert "stale" in table
    assert ledger.to_json(found)[0]["marks"] == ("zero variance",)


def test_a_diverged_run_is_marked_and_undecided() -> None:
    records = [record(seed, math.nan if seed == 12 else 0.9) for seed in range(10, 20)]
    (row,) = ledger.rows([paper()], records)
    assert row.outcome.verdict == "undecided"
    assert any("diverged" in text for text in ledger.verdict_notes(row))


def test_records_that_no_paper_asks_for_are_named() -> None:
    (line,) = ledger.unclaimed([paper()], [record(10), record(10, scale="gone")])
    assert "toy/line at gone: 1 records" in line


def test_a_table_cell_cannot_break_out_of_its_table() -> None:
    claim = Claim("a | b\n<script>", at_least("value", "all", 0.5))
    table = ledger.to_markdown(ledger.rows([paper(claims=(claim,))], []))
    assert "a \\| b &lt;script&gt;" in table
    assert len(table.splitlines()) == 3
