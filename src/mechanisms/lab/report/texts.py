"""Numbers, durations, sizes and seeds as people read them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any


def number(value: Any) -> str:
    """A number with the digits that matter, a proper minus sign, and thousands apart; other values as JSON-like text.

    >>> number(-0.0264), number(12345.6), number(3), number(True), number(None), number(2.5e-7)
    ('−0.026', '12 346', '3', 'true', '–', '2.5e−07')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return (f"{value:,}" if abs(value) >= 10_000 else str(value)).replace(",", " ").replace("-", "−")
    if not isinstance(value, float):
        return setting(value)
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "NaN")
    size = abs(value)
    if size == 0:
        text = "0"
    elif size < 1e-3 or size >= 1e7:
        text = f"{value:.3g}"
    elif size < 100:
        text = f"{value:.3f}"
    else:
        text = f"{value:,.1f}" if size < 10_000 else f"{value:,.0f}"
    return text.replace(",", " ").replace("-", "−")


def mean_and_deviation(mean: float, deviation: float | None) -> tuple[str, str]:
    """A mean and its standard deviation with the same decimals, as many as show two digits of the deviation.

    >>> mean_and_deviation(0.85512, 0.0491), mean_and_deviation(12345.67, 0.342), mean_and_deviation(0.5, None)
    (('0.855', '0.049'), ('12 345.67', '0.34'), ('0.500', ''))
    >>> mean_and_deviation(0.1, 1.7e-17)
    ('0.100', '0')
    """
    if deviation is None:
        return number(mean), ""
    if deviation < 1e-12 * abs(mean):  # what rounding leaves of equal values
        deviation = 0.0
    if not 1e-7 < deviation < 1e7:
        return number(mean), number(deviation)
    decimals = max(1 - math.floor(math.log10(deviation)), 0)
    mean_text, deviation_text = (f"{value:,.{decimals}f}".replace(",", " ") for value in (mean, deviation))
    return mean_text.replace("-", "−"), deviation_text


def setting(value: Any) -> str:
    """A value of a configuration, as one would write it on the command line.

    >>> setting(0.95), setting([64, 32]), setting("adam"), setting(""), setting(None)
    ('0.95', '[64, 32]', 'adam', '""', 'null')
    """
    if isinstance(value, str):
        return value or '""'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(setting(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {setting(item)}' for key, item in value.items())}}}"
    return str(value)


def duration(seconds: float | int) -> str:
    """Seconds as people say them.

    >>> duration(0.42), duration(75), duration(7300)
    ('0.42 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds else "0 s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: int) -> str:
    """Bytes as people say them.

    >>> memory(0), memory(734003200), memory(3 * 2**30)
    ('–', '700 MiB', '3.0 GiB')
    """
    if size <= 0:
        return "–"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def seed_ranges(seeds: Iterable[int]) -> str:
    """Seeds with runs of neighbours drawn together.

    >>> seed_ranges([10, 11, 12, 15, 17, 18])
    '10–12, 15, 17, 18'
    """
    found: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if found and found[-1][-1] == seed - 1:
            found[-1].append(seed)
        else:
            found.append([seed])
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in found]
    return ", ".join(parts)
