"""Places to act in: a fast grid world of many rooms at once, and the levels of MiniGrid and BabyAI (extra `worlds`).

The names below are loaded when they are first used, so that `import mechanisms.worlds` stays instant.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.worlds.grid import VectorGoTo as VectorGoTo
    from mechanisms.worlds.levels import make_minigrid as make_minigrid
    from mechanisms.worlds.missions import Vocabulary as Vocabulary
    from mechanisms.worlds.missions import mission_vocabulary as mission_vocabulary
    from mechanisms.worlds.tasks import check_tasks as check_tasks

_HOMES: dict[str, str] = {
    "VectorGoTo": "grid",
    "Vocabulary": "missions",
    "check_tasks": "tasks",
    "make_minigrid": "levels",
    "mission_vocabulary": "missions",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
