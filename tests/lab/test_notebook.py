from pathlib import Path

import pytest

from mechanisms.lab import run


def test_a_notebook_gets_the_claims_as_a_table_and_the_metrics_as_a_frame(toy: Path) -> None:
    study = run("toy", "line", seeds=3, results=toy, device="cpu", progress=False, steps=10)
    assert study.summary.done == 6
    assert study.rows == [row for row in study.rows if row.scale == "laptop"]
    frame = study.metrics()
    assert set(frame.variant) == {"fast", "slow"}
    assert {"error", "near", "tag", "seed"} == set(frame.metric)
    page = study._repr_html_()
    assert page.startswith("<table>")
    assert "larger steps go further" in page
    assert "larger steps go further" in str(study)


def test_a_notebook_is_told_of_runs_that_failed_or_were_not_done(toy: Path) -> None:
    study = run("toy", "broken", "missing", scale="smoke", results=toy, device="cpu", progress=False)
    assert "failed: broken bad seed 10: RuntimeError: it broke" in str(study)
    assert "toy-get" in str(study)
    assert "&lt;b&gt;badly&lt;/b&gt;" in study._repr_html_()


def test_mistakes_in_a_notebook_are_value_errors(toy: Path) -> None:
    with pytest.raises(ValueError, match="no experiment"):
        run("toy", "lines", results=toy)
    with pytest.raises(ValueError, match="did you mean steps"):
        run("toy", "line", results=toy, step=3)
