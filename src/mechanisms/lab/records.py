"""One run, one record: JSON files that are written atomically and read back whole, or not at all.

A record lies at `results/<slug>/<experiment>.<scale>.<configuration hash>/<variant>.<seed>.json`. All records of one
experiment, scale and configuration form a `Cell`; different configurations never share one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from pydantic import ConfigDict, TypeAdapter

from mechanisms.lab.configuration import dict_hash
from mechanisms.lab.folders import whole_file

if TYPE_CHECKING:
    import duckdb

LAYOUT = 1
LARGEST = 20_000  # bytes; records are committed, so curves are thinned rather than the repository swollen


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Curve:
    """Values along a run: `step[i]` goes with `value[i]`."""

    step: list[float]
    value: list[float | None]


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Record:
    """Everything that is kept of one run (one variant, one seed).

    Attributes:
        layout: version of this layout.
        slug, experiment, scale, variant, seed: which run it was.
        config: all settings, as plain JSON values.
        metrics: what the run returned: numbers, text, or lists with one number per unit. Text that is a picture
            ("data:image/...") is left to figures.
        curves: what the run logged along the way.
        notes: remarks of the run (a fallback taken, a check sum of its data).
        seconds: wall clock of the run without its cached stages.
        stages: seconds of each cached stage, in the record of the run that computed it.
        peak_memory: bytes: on the CPU the process's peak resident set, on a GPU the peak allocated.
        device, threads: where it ran and with how many CPU threads.
        started: UTC, ISO 8601.
        versions: of Python, torch, numpy, this package and the operating system.
        code: hash of the recipe's and its parts' source.
        looks: how many times the data may be looked at (`--until-decided` splits the error over its stages).
    """

    slug: str
    experiment: str
    scale: str
    variant: str
    seed: int
    config: dict[str, Any]
    metrics: dict[str, bool | int | float | str | list[bool | int | float | None] | None]
    curves: dict[str, Curve] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    device: str = "cpu"
    threads: int = 1
    started: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    looks: int = 1
    layout: int = LAYOUT

    @property
    def config_hash(self) -> str:
        """The name of the configuration."""
        return dict_hash(self.config)

    def path(self, results: Path) -> Path:
        """Where the record lies below the folder `results`."""
        return record_path(results, self.slug, self.experiment, self.scale, self.config_hash, self.variant, self.seed)


class RecordError(ValueError):
    """A file is no record of this layout; the message says which file and why, in one line."""


_ADAPTER = TypeAdapter(Record)


def record_path(
    results: Path, slug: str, experiment: str, scale: str, config_hash: str, variant: str, seed: int
) -> Path:
    """The file of one run below the folder `results`."""
    return results / slug / f"{experiment}.{scale}.{config_hash}" / f"{variant}.{seed}.json"


def write_record(record: Record, results: Path) -> Path:
    """Write a record so that a reader sees all of it or nothing; curves are thinned to keep it below 20 kB.

    Raises:
        OSError: the disk is full or the folder cannot be written; earlier files are as they were.
    """
    text = _dump(record)
    curves = record.curves
    while len(text.encode()) > LARGEST and any(len(curve.step) > 2 for curve in curves.values()):
        # Every second point goes, the last one stays.
        curves = {
            name: Curve(curve.step[-1::-2][::-1], curve.value[-1::-2][::-1]) if len(curve.step) > 2 else curve
            for name, curve in curves.items()
        }
        text = _dump(record, curves)
    path = record.path(results)
    write_atomic(path, text.encode())
    return path


def _dump(record: Record, curves: Mapping[str, Curve] | None = None) -> str:
    values = _ADAPTER.dump_python(record, mode="python")
    if curves is not None:
        values["curves"] = {name: {"step": curve.step, "value": curve.value} for name, curve in curves.items()}
    return json.dumps(_finite(values), ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null, and read back as NaN where a number is needed."""
    if isinstance(value, float):
        # Six significant digits in curves and metrics would break bit equality: numbers stay as they are.
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Put `content` at `path` in one step: a crash or a full disk leaves the old file or none.

    Args:
        path: its folder is made if it is missing.
        content: the bytes.
        private: make the file readable by its owner alone (caches).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, private=private) as file:
        file.write(content)


def read_record(path: Path) -> Record:
    """Read and check one record.

    Raises:
        RecordError: not JSON, an older or newer layout, or fields missing.
    """
    try:
        values = json.loads(path.read_bytes())
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, OSError, RecursionError) as error:
        raise RecordError(f"{path}: not a readable record ({error}); `mech run` makes it anew") from None
    layout = values.get("layout") if isinstance(values, dict) else None
    if layout != LAYOUT:
        raise RecordError(f"{path}: layout {layout} where {LAYOUT} is expected; `mech run` makes it anew")
    try:
        record = _ADAPTER.validate_python(values)
        _check(record)
    except (ValueError, OverflowError) as error:
        if not isinstance(error, pydantic.ValidationError):
            raise RecordError(f"{path}: {error}; `mech run` makes it anew") from None
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: {place}: {first['msg']}; `mech run` makes it anew") from None
    if record.path(Path()).parts[-3:] != path.parts[-3:]:
        raise RecordError(f"{path}: its content says it is {record.path(Path())}; moved or edited by hand?")
    return record


def _check(record: Record) -> None:
    """What types cannot say.

    Raises:
        ValueError, OverflowError: a curve with unequal steps and values, a number too large for a float.
    """
    for name, curve in record.curves.items():
        if len(curve.step) != len(curve.value):
            raise ValueError(f"curve {name} has {len(curve.step)} steps and {len(curve.value)} values")
    for value in record.metrics.values():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int):
                float(number)


def read_records(folders: Iterable[Path], slug: str | None = None) -> tuple[list[Record], list[str]]:
    """All records below some folders, and one line for each file that is none.

    Records of the same run in several folders count once: the one that started last.
    """
    found: dict[tuple, Record] = {}
    problems: list[str] = []
    for folder in folders:
        for path in sorted((folder / slug if slug else folder).glob("*/*.json" if slug else "*/*/*.json")):
            try:
                record = read_record(path)
            except RecordError as error:
                problems.append(str(error))
                continue
            key = (record.slug, record.experiment, record.scale, record.config_hash, record.variant, record.seed)
            if key not in found or found[key].started < record.started:
                found[key] = record
    return list(found.values()), problems


@dataclass(frozen=True)
class Cell:
    """All records of one experiment, scale and configuration: what claims are decided on and figures drawn from."""

    slug: str
    experiment: str
    scale: str
    config: Mapping[str, Any]
    records: Sequence[Record]

    @property
    def config_hash(self) -> str:
        """The name of the configuration."""
        return dict_hash(self.config)

    @property
    def looks(self) -> int:
        """How many looks the error is split over (1, unless `--until-decided` added seeds)."""
        return max((record.looks for record in self.records), default=1)

    @property
    def variants(self) -> list[str]:
        """The variants there are records of."""
        return sorted({record.variant for record in self.records})

    def of(self, variant: str) -> list[Record]:
        """The records of a variant, by seed."""
        return sorted((r for r in self.records if r.variant == variant), key=lambda record: record.seed)

    def values(self, metric: str, variant: str) -> dict[int, Any]:
        """A metric by seed; seeds without it are left out, null reads as NaN."""
        return {
            record.seed: math.nan if record.metrics[metric] is None else record.metrics[metric]
            for record in self.of(variant)
            if metric in record.metrics
        }

    def curves(self, name: str, variant: str) -> dict[int, Curve]:
        """A logged curve by seed."""
        return {record.seed: record.curves[name] for record in self.of(variant) if name in record.curves}


def cells(records: Iterable[Record]) -> Iterator[Cell]:
    """Sort records into cells."""
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault((record.slug, record.experiment, record.scale, record.config_hash), []).append(record)
    for (slug, experiment, scale, _), members in sorted(groups.items()):
        yield Cell(slug, experiment, scale, members[0].config, members)


def tables(records: Iterable[Record]) -> duckdb.DuckDBPyConnection:
    """The records as DuckDB tables, for questions of one's own.

    Tables: `runs` (one row a run), `metrics` (slug, experiment, scale, config_hash, variant, seed, metric, unit, value,
    text) and `curves` (..., curve, step, value).

    >>> record = Record("toy", "line", "laptop", "fast", 10, config={}, metrics={"error": 0.5})
    >>> tables([record]).execute("SELECT variant, value FROM metrics").fetchall()
    [('fast', 0.5)]
    """
    import pandas as pd

    from mechanisms._base.extras import require

    keys = ("slug", "experiment", "scale", "config_hash", "variant", "seed")
    runs, metrics, curves = [], [], []
    for record in records:
        key = {name: getattr(record, name) for name in keys}
        plain = ("seconds", "peak_memory", "device", "threads", "started", "code", "looks")
        runs.append(key | {name: getattr(record, name) for name in plain} | {"config": json.dumps(record.config)})
        for name, value in record.metrics.items():
            for unit, item in enumerate(value if isinstance(value, list) else [value]):
                number, text = (None, item) if isinstance(item, str) else (item, None)
                number = None if number is None else float(number)
                metrics.append(key | {"metric": name, "unit": unit, "value": number, "text": text})
        for name, curve in record.curves.items():
            for step, value in zip(curve.step, curve.value, strict=True):
                curves.append(key | {"curve": name, "step": step, "value": value})
    connection = require("duckdb", "lab").connect(":memory:")
    extra = {
        "runs": ["seconds", "peak_memory", "device", "threads", "started", "code", "looks", "config"],
        "metrics": ["metric", "unit", "value", "text"],
        "curves": ["curve", "step", "value"],
    }
    for name, rows in (("runs", runs), ("metrics", metrics), ("curves", curves)):
        frame = pd.DataFrame(rows, columns=[*keys, *extra[name]])
        connection.register("frame", frame)
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM frame")
        connection.unregister("frame")
    return connection
