"""Reading and writing the tables that users bring: a result, or one clear line.

CSV files come in many shapes; what cannot be read without guessing at its meaning is refused with a reason.
"""

from __future__ import annotations

import codecs
import gzip
import warnings
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mechanisms._base.extras import require

if TYPE_CHECKING:
    import pandas as pd

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
PARQUET_SUFFIXES = (".parquet", ".pq")
READABLE = "CSV (.csv, .tsv, .txt, each also .gz), Parquet (.parquet, .pq) or NumPy (.npz)"
WRITABLE = "CSV (.csv, .tsv, .txt, each also .gz) or Parquet (.parquet, .pq)"
# Longer marks first: the UTF-32 mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CHUNK = 2**20


class TableError(ValueError):
    """A table cannot be read or written; the message names the file and the reason in one line."""


def read_table(path: str | Path, *, text: bool = False) -> pd.DataFrame:
    """Read a table of any of the usual formats.

    CSV: comma, semicolon or tab between cells (by the header line; always tab in .tsv), UTF-8 with or without a mark,
    UTF-16 and UTF-32 with one, else Latin-1; gzipped or not. Rows with too few cells are filled with missing values.

    Args:
        path: of a file with the suffix .csv, .tsv, .txt (each also with .gz), .parquet, .pq or .npz (one-dimensional
            arrays are columns, an array `x` of two dimensions gives `x_0`, `x_1`, ...).
        text: leave the cells of a CSV file as the text they are ("007" stays "007", empty stays empty).

    Raises:
        TableError: no such file, a folder, an unknown suffix, nothing in it, damaged, rows with too many cells, column
            names that occur twice, NUL bytes.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    ...     _ = file.write("height,label\\n1.5,cow\\n2.5,camel\\n")
    ...     file.flush()
    ...     read_table(file.name)
       height  label
    0     1.5    cow
    1     2.5  camel
    """
    path = Path(path)
    kind = _kind(path, READABLE)
    try:
        if path.is_dir():
            raise TableError(f"{path} is a folder; give a file: {READABLE}")
        if not path.exists():
            raise TableError(f"there is no file {path}")
        if path.stat().st_size == 0:
            raise TableError(f"{path} is empty")
        if kind == "text":
            return _read_text(path, text)
        return _read_parquet(path) if kind == "parquet" else _read_npz(path)
    except TableError:
        raise
    except PermissionError:
        raise TableError(f"{path} must not be read by this user") from None
    except MemoryError:
        raise TableError(f"{path} does not fit into memory") from None
    except (OSError, ValueError, EOFError, OverflowError, zlib.error, TypeError, NotImplementedError) as error:
        # Parser errors of pandas and Arrow are ValueErrors; some of their messages have several lines.
        raise TableError(f"{path} cannot be read: {_first_line(error)}") from None


def write_table(frame: pd.DataFrame, file: BufferedIOBase, path: Path) -> None:
    """Write a table to an open file in the format of a path's suffix; see `mechanisms._base.files.whole_file`.

    Args:
        frame: the table; its index is left out.
        file: open for writing bytes.
        path: decides on the format: .csv, .tsv, .txt (each also with .gz; UTF-8), .parquet or .pq.

    Raises:
        TableError: an unknown suffix, or a column that Parquet cannot hold.
        OSError: the disk is full or cannot be written.

    >>> import io
    >>> import pandas as pd
    >>> file = io.BytesIO()
    >>> write_table(pd.DataFrame({"a": [1, 2]}), file, Path("out.csv"))
    >>> file.getvalue()
    b'a\\n1\\n2\\n'
    """
    if _kind(path, WRITABLE) == "parquet":
        try:
            frame.to_parquet(cast(Any, file), index=False)
        except (ValueError, TypeError, NotImplementedError, OverflowError) as error:
            raise TableError(f"{path}: Parquet cannot hold this table ({_first_line(error)}); write CSV") from None
        return
    separator = "\t" if ".tsv" in path.suffixes[-2:] else ","
    if path.suffix.lower() == ".gz":
        # No time stamp: the same table gives the same bytes.
        with gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
            frame.to_csv(cast(Any, packed), index=False, sep=separator)
    else:
        frame.to_csv(cast(Any, file), index=False, sep=separator)


def check_writable(path: str | Path) -> None:
    """Say now what would be wrong with writing a table to `path` later.

    Raises:
        TableError: an unknown suffix, a folder, or a folder that is not there.

    >>> check_writable("environments.xls")
    Traceback (most recent call last):
        ...
    mechanisms.lab.table_files.TableError: environments.xls: unknown suffix '.xls'; use CSV (.csv, .tsv, .txt, each \
also .gz) or Parquet (.parquet, .pq)
    """
    path = Path(path)
    if _kind(path, WRITABLE) == "npz":
        raise TableError(f"{path}: tables are not written as .npz; use {WRITABLE}")
    check_folder(path)


def check_folder(path: str | Path) -> None:
    """Say now that a file cannot be written to `path` because of its folder.

    Raises:
        TableError: it is a folder itself, or lies in none.

    >>> check_folder("nowhere/page.html")
    Traceback (most recent call last):
        ...
    mechanisms.lab.table_files.TableError: nowhere/page.html cannot be written: there is no folder nowhere
    """
    path = Path(path)
    if path.is_dir():
        raise TableError(f"{path} cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise TableError(f"{path} cannot be written: there is no folder {path.parent}")


def is_text(path: str | Path) -> bool:
    """Whether a path's suffix is one of the CSV kinds.

    >>> is_text("cows.csv.gz"), is_text("cows.parquet")
    (True, False)
    """
    return _kind(Path(path), READABLE) == "text"


def _kind(path: Path, choices: str) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    last = suffixes[-1] if suffixes else ""
    if last in TEXT_SUFFIXES or (last == ".gz" and suffixes[0] in TEXT_SUFFIXES):
        return "text"
    if last in PARQUET_SUFFIXES:
        return "parquet"
    if last == ".npz":
        return "npz"
    raise TableError(f"{path}: {f'unknown suffix {last!r}' if last else 'it has no suffix'}; use {choices}")


def _read_text(path: Path, text: bool) -> pd.DataFrame:
    pd = require("pandas", "lab")
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    encoding = _encoding(path, gzipped)
    options: dict[str, Any] = {"encoding": encoding, "compression": "gzip" if gzipped else None}
    header = _header(path, options)
    options["sep"] = "\t" if ".tsv" in path.suffixes[-2:] else max(",;\t", key=header.count)
    try:
        names = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, index_col=False, **options)
        repeated = [name for name, count in names.iloc[0].value_counts().items() if count > 1 and name]
        if repeated:
            raise TableError(f"{path}: the column name {repeated[0]!r} occurs more than once; rename one of them")
        options |= {"dtype": str, "keep_default_na": False} if text else {"low_memory": False}
        with warnings.catch_warnings():
            # Rows longer than the header would be cut off with no more than a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, index_col=False, **options)
    except pd.errors.EmptyDataError:
        raise TableError(f"{path} is empty") from None
    except pd.errors.ParserWarning:
        raise TableError(f"{path}: its rows have more cells than its header") from None
    except pd.errors.ParserError as error:
        raise TableError(f"{path} is no proper table: {_first_line(error).split('C error: ')[-1]}") from None


def _encoding(path: Path, gzipped: bool) -> str:
    """The encoding that the whole file can be read with; Latin-1 takes any bytes and therefore comes last."""
    decoder: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder("utf-8")()
    first = True
    with gzip.open(path, "rb") if gzipped else path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if first:
                for mark, encoding in MARKS:
                    if chunk.startswith(mark):
                        return encoding
                first = False
            if b"\0" in chunk:
                raise TableError(
                    f"{path} contains NUL bytes: it is binary, damaged, or UTF-16 without a byte-order mark"
                )
            try:
                if decoder is not None:
                    decoder.decode(chunk)
            except UnicodeDecodeError:
                decoder = None
    try:
        if decoder is not None:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        decoder = None
    if first:
        raise TableError(f"{path} is empty")
    return "utf-8" if decoder is not None else "latin-1"


def _header(path: Path, options: dict[str, Any]) -> str:
    """The first line with something in it, to tell the separator by."""
    with (gzip.open if options["compression"] else open)(path, "rt", encoding=options["encoding"]) as file:
        for _ in range(1000):
            line = file.readline(CHUNK)
            if line.strip() or not line:
                return line
    return ""


def _read_parquet(path: Path) -> pd.DataFrame:
    pd = require("pandas", "lab")
    require("pyarrow", "lab")
    frame = pd.read_parquet(path)
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    frame.columns = pd.Index([str(name) for name in frame.columns])
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise TableError(f"{path}: the column name {repeated[0]!r} occurs more than once; rename one of them")
    return frame


def _read_npz(path: Path) -> pd.DataFrame:
    pd = require("pandas", "lab")
    from mechanisms.lab.data.files import read_arrays

    columns: dict[str, Any] = {}
    for name, array in read_arrays(path).items():
        if array.ndim == 2:
            parts = {f"{name}_{i}": column for i, column in enumerate(array.T)}
        elif array.ndim == 1:
            parts = {name: array}
        else:
            raise TableError(f"{path}: array {name!r} has {array.ndim} dimensions; columns have one, matrices two")
        if clash := sorted(columns.keys() & parts.keys()):
            raise TableError(f"{path}: two arrays give the column {clash[0]!r}; rename one of them")
        columns |= parts
    if not columns:
        raise TableError(f"{path} is empty")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in list(lengths.items())[:5])
        raise TableError(f"{path}: its arrays differ in length ({shown})")
    return pd.DataFrame(columns)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
