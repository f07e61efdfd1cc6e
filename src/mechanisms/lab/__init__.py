"""The laboratory: papers, experiments, claims, data, running and reporting. It knows no method.

The names below are loaded when they are first used, so that `import mechanisms.lab` stays instant.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.lab.bench import Bench as Bench
    from mechanisms.lab.claims import Claim as Claim
    from mechanisms.lab.claims import all_of as all_of
    from mechanisms.lab.claims import at_least as at_least
    from mechanisms.lab.claims import at_most as at_most
    from mechanisms.lab.claims import better_than as better_than
    from mechanisms.lab.claims import close_to as close_to
    from mechanisms.lab.claims import exactly as exactly
    from mechanisms.lab.claims import predicate as predicate
    from mechanisms.lab.claims import share_at_least as share_at_least
    from mechanisms.lab.configuration import config as config
    from mechanisms.lab.notebook import run as run
    from mechanisms.lab.paper import Experiment as Experiment
    from mechanisms.lab.paper import Figure as Figure
    from mechanisms.lab.paper import NotHere as NotHere
    from mechanisms.lab.paper import Paper as Paper
    from mechanisms.lab.records import tables as tables

_HOMES = {
    "Bench": "bench",
    "Claim": "claims",
    "Experiment": "paper",
    "Figure": "paper",
    "NotHere": "paper",
    "Paper": "paper",
    "all_of": "claims",
    "at_least": "claims",
    "at_most": "claims",
    "better_than": "claims",
    "close_to": "claims",
    "config": "configuration",
    "exactly": "claims",
    "predicate": "claims",
    "run": "notebook",
    "share_at_least": "claims",
    "tables": "records",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
