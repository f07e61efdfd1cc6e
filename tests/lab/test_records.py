import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.lab.records import (
    LARGEST,
    Cell,
    Curve,
    Record,
    RecordError,
    cells,
    read_record,
    read_records,
    tables,
    write_atomic,
    write_record,
)


def make(seed: int = 0, **changes: object) -> Record:
    values: dict = {"slug": "toy", "experiment": "line", "scale": "laptop", "variant": "fast", "seed": seed}
    return Record(**(values | {"config": {"steps": 3}, "metrics": {"error": 0.5}} | changes))


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.text(max_size=5), NUMBERS | st.integers(-(2**53), 2**53) | st.text() | st.lists(NUMBERS)))
def test_what_is_written_is_read_back_to_the_bit(metrics: dict) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        record = make(metrics=metrics, curves={"loss": Curve([0, 1], [0.1 + 0.2, 1 / 3])})
        assert read_record(write_record(record, Path(folder))) == record


def test_nan_and_infinity_become_null_and_read_as_nan(tmp_path: Path) -> None:
    path = write_record(make(metrics={"error": math.nan, "many": [math.inf, 1.0]}), tmp_path)
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    (cell,) = cells(read_records([tmp_path])[0])
    assert math.isnan(cell.values("error", "fast")[0])


def test_long_curves_are_thinned_to_the_limit_and_keep_their_last_point(tmp_path: Path) -> None:
    steps = list(range(20_000))
    path = write_record(make(curves={"loss": Curve(steps, [1 / (1 + s) for s in steps])}), tmp_path)
    assert path.stat().st_size <= LARGEST
    curve = read_record(path).curves["loss"]
    assert curve.step[-1] == steps[-1]
    assert len(curve.step) > 100


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"layout": 0}', '{"layout": 1}', "\x00\x01", '{"layout": 1, "slug": 3}'],
)
def test_a_corrupt_or_older_record_is_one_clear_line_and_the_others_are_read(tmp_path: Path, content: str) -> None:
    write_record(make(0), tmp_path)
    bad = write_record(make(1), tmp_path)
    bad.write_text(content)
    records, problems = read_records([tmp_path])
    assert [record.seed for record in records] == [0]
    assert len(problems) == 1
    assert str(bad) in problems[0]
    assert "\n" not in problems[0]


@pytest.mark.parametrize(
    "change",
    [
        ('"error":0.5', '"error":1' + "0" * 400),
        ('"step":[0.0]', '"step":[0.0,1.0]'),
        ('"notes":[]', '"notes":["\\ud800"]'),
        ('"notes":[]', '"notes":' + "[" * 100_000),
    ],
)
def test_a_record_that_types_alone_would_let_pass_is_one_clear_line(tmp_path: Path, change: tuple[str, str]) -> None:
    path = write_record(make(1, curves={"loss": Curve([0.0], [1.0])}), tmp_path)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    records, problems = read_records([tmp_path])
    assert records == []
    assert len(problems) == 1
    assert "\n" not in problems[0]


def test_a_record_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    path = write_record(make(0), tmp_path)
    moved = path.with_name("fast.9.json")
    path.rename(moved)
    with pytest.raises(RecordError, match="moved or edited"):
        read_record(moved)


def test_records_of_several_machines_are_merged_and_the_latest_counts(tmp_path: Path) -> None:
    write_record(make(0, started="2026-01-01T00:00:00Z", metrics={"error": 1.0}), tmp_path / "a")
    write_record(make(0, started="2026-01-02T00:00:00Z", metrics={"error": 2.0}), tmp_path / "b")
    write_record(make(1), tmp_path / "b")
    records, problems = read_records([tmp_path / "a", tmp_path / "b", tmp_path / "nowhere"])
    assert not problems
    assert {record.seed: record.metrics["error"] for record in records} == {0: 2.0, 1: 0.5}


def test_configurations_are_never_mixed(tmp_path: Path) -> None:
    write_record(make(0), tmp_path)
    write_record(make(0, config={"steps": 4}), tmp_path)
    found = list(cells(read_records([tmp_path])[0]))
    assert [len(cell.records) for cell in found] == [1, 1]
    assert found[0].config_hash != found[1].config_hash


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text, not bytes")  # pyrefly: ignore
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_private_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    write_atomic(tmp_path / "secret", b"x", private=True)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    write_atomic(tmp_path / "open", b"x")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_full_disk_leaves_earlier_records_and_no_rest(tmp_path: Path) -> None:
    write_record(make(0), tmp_path)
    code = """
import resource, sys
from pathlib import Path
from mechanisms.lab.records import Record, write_record
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
record = Record(slug="toy", experiment="line", scale="laptop", variant="fast", seed=1, config={}, metrics={})
try:
    write_record(record, Path(sys.argv[1]))
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "too large" in done.stdout
    assert [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["fast.0.json"]


def test_tables_answer_sql_over_runs_metrics_units_text_and_curves(tmp_path: Path) -> None:
    record = make(
        0, metrics={"error": 0.5, "near": [True, False], "tag": "a"}, curves={"loss": Curve([0, 1], [3, None])}
    )
    connection = tables([record, make(1)])
    assert connection.execute("select count(*) from runs").fetchone() == (2,)
    assert connection.execute("select avg(value) from metrics where metric = 'near'").fetchone() == (0.5,)
    assert connection.execute("select text from metrics where metric = 'tag'").fetchone() == ("a",)
    assert connection.execute("select value from curves where step = 0").fetchone() == (3.0,)
    assert tables([]).execute("select count(*) from metrics").fetchone() == (0,)


def test_a_cell_gives_values_by_seed_and_leaves_out_what_is_not_there() -> None:
    cell = Cell("toy", "line", "laptop", {}, [make(2), make(1, metrics={}), make(0, variant="slow")])
    assert cell.values("error", "fast") == {2: 0.5}
    assert cell.variants == ["fast", "slow"]
    assert cell.curves("loss", "fast") == {}
