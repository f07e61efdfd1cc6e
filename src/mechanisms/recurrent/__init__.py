"""Networks with a state: one protocol for cells, one scan over time, and the methods that stand on them.

The names below are loaded when they are first used, so that `import mechanisms.recurrent` stays instant.
"""

from mechanisms._base.lazy import lazy_names

_HOMES: dict[str, str] = {}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
