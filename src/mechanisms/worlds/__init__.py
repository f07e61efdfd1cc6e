"""Places to act in: a fast grid world of many rooms at once, and the levels of MiniGrid and BabyAI (extra `worlds`).

The names below are loaded when they are first used, so that `import mechanisms.worlds` stays instant.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.worlds.grid import VectorGoTo as VectorGoTo

_HOMES: dict[str, str] = {
    "VectorGoTo": "grid",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
