"""Users' tables: a result, or one clear line."""

import gzip
import io
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechanisms.lab.folders import whole_file
from mechanisms.lab.table_files import TableError, check_folder, check_writable, read_table, write_table

PLAIN = "größe,animal\n1.5,cow\n2.5,camel\n"


def refused(path: Path) -> str:
    with pytest.raises(TableError) as error:
        read_table(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_are_told_apart(tmp_path: Path, encoding: str, packed: bool) -> None:
    content = PLAIN.encode(encoding)
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    frame = read_table(path)
    assert list(frame.columns) == ["größe", "animal"]
    assert frame["größe"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.csv", ";"), ("t.txt", "\t"), ("t.tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_and_line_ends_are_told_apart(tmp_path: Path, name: str, separator: str, end: str) -> None:
    (tmp_path / name).write_bytes(end.join(separator.join(row) for row in ("ab", "12", "34")).encode())
    assert read_table(tmp_path / name).to_numpy().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b\n1,2\n3,4,5\n", "line 3, saw 3"),
        (b"a,b\n1,2,3\n4,5,6\n", "more cells than its header"),
        (b"a,a\n1,2\n", "occurs more than once"),
        (b'a,b\n1,"2\n3,4\n', "EOF inside string"),
        (b"a,b\n1,2\0\n", "NUL bytes"),
        ("a,b\n1,2\n".encode("utf-16-le"), "NUL bytes"),
        (b"\x1f\x8b\x08\x00broken", "cannot be read"),
        (gzip.compress(b"a,b\n1,2\n" * 1000, mtime=0)[:40], "cannot be read"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (b"\xff\xfea", "cannot be read"),
        (b"PAR1" + bytes(8) + b"PAR1", "NUL bytes"),
    ],
)
def test_a_damaged_table_is_one_clear_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert reason in (message := refused(path))
    assert str(path) in message


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" + bytes(20) + b"PAR1", b"a,b\n1,2\n"])
def test_damaged_parquet_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    assert "cannot be read" in refused(tmp_path / "t.parquet")


def test_places_that_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.csv")
    assert "there is no file" in refused(tmp_path / "none.csv")
    assert "unknown suffix '.xlsx'" in refused(tmp_path / "t.xlsx")
    assert "no suffix" in refused(tmp_path / "t")
    assert "'.gz'" in refused(tmp_path / "t.gz")


def test_short_rows_are_filled_with_missing_values(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1\n3,4\n")
    assert read_table(tmp_path / "t.csv")["b"].isna().tolist() == [True, False]


def test_huge_integers_and_mixed_types_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"a,b\n{10**40},1\n2,x\n-{10**400},2.5\n")
    frame = read_table(tmp_path / "t.csv")
    assert len(frame) == 3


def test_text_stays_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b,c\n007,1.50,NA\n,"x, y",0x1\n')
    frame = read_table(tmp_path / "t.csv", text=True)
    assert frame.to_numpy().tolist() == [["007", "1.50", "NA"], ["", "x, y", "0x1"]]


def test_parquet_keeps_types_and_a_named_index(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1, 2], "t": pd.to_datetime(["2020-01-01", "2021-01-01"])}, index=["x", "y"])
    frame.rename_axis("key").to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert list(read.columns) == ["key", "n", "t"]
    assert read["t"].dtype.kind == "M"


def test_npz_arrays_become_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.arange(6).reshape(3, 2), y=np.array(["a", "b", "c"]))
    assert list(read_table(tmp_path / "t.npz").columns) == ["x_0", "x_1", "y"]
    np.savez(tmp_path / "u.npz", x=np.zeros(3), y=np.zeros(4))
    assert "differ in length" in refused(tmp_path / "u.npz")
    np.savez(tmp_path / "v.npz", x=np.zeros((2, 2, 2)))
    assert "3 dimensions" in refused(tmp_path / "v.npz")
    np.savez(tmp_path / "w.npz", x=np.zeros((2, 2)), x_1=np.zeros(2))
    assert "two arrays give the column 'x_1'" in refused(tmp_path / "w.npz")
    np.savez(tmp_path / "p.npz", x=np.array([{}], dtype=object))
    assert "Python objects" in refused(tmp_path / "p.npz")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet"])
def test_what_is_written_reads_back(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"a": [0.1, 2.0], "b": ["x, y", 'quoted "z"\nline'], "é": [1, 2]})
    with whole_file(tmp_path / name) as file:
        write_table(frame, file, tmp_path / name)
    pd.testing.assert_frame_equal(read_table(tmp_path / name), frame)


def test_the_same_table_gives_the_same_bytes() -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        write_table(pd.DataFrame({"a": [1]}), file, Path("t.csv.gz"))
    assert files[0].getvalue() == files[1].getvalue()


def test_what_parquet_cannot_hold_is_one_clear_line() -> None:
    with pytest.raises(TableError, match="write CSV") as error:
        write_table(pd.DataFrame({"a": [1, "x", (2, 3)]}, dtype=object), io.BytesIO(), Path("t.parquet"))
    assert "\n" not in str(error.value)


def test_outputs_are_checked_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "t.csv")
    with pytest.raises(TableError, match=r"not written as \.npz"):
        check_writable(tmp_path / "t.npz")
    with pytest.raises(TableError, match="there is no folder"):
        check_folder(tmp_path / "none" / "t.csv")
    with pytest.raises(TableError, match="is a folder"):
        check_folder(tmp_path)


def test_a_file_that_must_not_be_read(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "t.csv").write_text(PLAIN)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)  # root, who may run this, can read everything
    assert "must not be read" in refused(tmp_path / "t.csv")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(alphabet='ab1,;\t"\n\r\0.é', max_size=60).map(str.encode))
def test_any_bytes_give_a_table_or_one_line(tmp_path: Path, content: bytes) -> None:
    for name in ("t.csv", "t.tsv", "t.parquet", "t.npz"):
        (tmp_path / name).write_bytes(content)
        problem = None
        try:
            assert read_table(tmp_path / name).columns.is_unique
        except TableError as error:
            problem = str(error)
        assert problem is None or ("\n" not in problem and str(tmp_path / name) in problem)


def test_a_million_rows_are_read_within_seconds(tmp_path: Path) -> None:
    row = b"1.25,cow,17,-0.5\n"
    (tmp_path / "t.csv").write_bytes(b"a,b,c,d\n" + row * 10**6)
    started = time.perf_counter()
    assert len(read_table(tmp_path / "t.csv")) == 10**6
    assert time.perf_counter() - started < 30
