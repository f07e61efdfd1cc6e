"""How training unfolds: learning curves in closed form, starved features, games, and the modes of deep networks.

The names below are loaded when they are first used, so that `import mechanisms.dynamics` stays instant.
"""

from mechanisms._base.lazy import lazy_names

_HOMES: dict[str, str] = {}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
