"""How training unfolds: learning curves in closed form, starved features, games, and the modes of deep networks.

The names below are loaded when they are first used, so that `import mechanisms.dynamics` stays instant.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.dynamics.conditions import InitialisationReport as InitialisationReport
    from mechanisms.dynamics.conditions import SeparabilityReport as SeparabilityReport
    from mechanisms.dynamics.conditions import check_initialisation as check_initialisation
    from mechanisms.dynamics.conditions import check_separability as check_separability
    from mechanisms.dynamics.conditions import unit_activity as unit_activity
    from mechanisms.dynamics.deep import Forecast as Forecast
    from mechanisms.dynamics.deep import forecast as forecast
    from mechanisms.dynamics.deep import mode_state as mode_state
    from mechanisms.dynamics.gradient_flow import GradientFlow as GradientFlow
    from mechanisms.dynamics.gradient_flow import Trajectory as Trajectory
    from mechanisms.dynamics.gradient_flow import chain_flow as chain_flow
    from mechanisms.dynamics.initialisation import OUTCOMES as OUTCOMES
    from mechanisms.dynamics.initialisation import mode_initialisation as mode_initialisation
    from mechanisms.dynamics.initialisation import separable_classes as separable_classes
    from mechanisms.dynamics.initialisation import success_probability as success_probability
    from mechanisms.dynamics.initialisation import unit_outcome as unit_outcome
    from mechanisms.dynamics.initialisation import will_learn as will_learn
    from mechanisms.dynamics.modes import Mode as Mode
    from mechanisms.dynamics.modes import error_curve as error_curve
    from mechanisms.dynamics.modes import imbalance as imbalance
    from mechanisms.dynamics.modes import margin_curve as margin_curve
    from mechanisms.dynamics.modes import time_to_confidence as time_to_confidence
    from mechanisms.dynamics.modes import time_to_margin as time_to_margin
    from mechanisms.dynamics.two_features import starvation_curve as starvation_curve
    from mechanisms.dynamics.two_features import starved_response as starved_response

_HOMES: dict[str, str] = {
    "Forecast": "deep",
    "GradientFlow": "gradient_flow",
    "InitialisationReport": "conditions",
    "Mode": "modes",
    "OUTCOMES": "initialisation",
    "SeparabilityReport": "conditions",
    "Trajectory": "gradient_flow",
    "chain_flow": "gradient_flow",
    "check_initialisation": "conditions",
    "check_separability": "conditions",
    "error_curve": "modes",
    "forecast": "deep",
    "imbalance": "modes",
    "margin_curve": "modes",
    "mode_initialisation": "initialisation",
    "mode_state": "deep",
    "separable_classes": "initialisation",
    "starvation_curve": "two_features",
    "starved_response": "two_features",
    "success_probability": "initialisation",
    "time_to_confidence": "modes",
    "time_to_margin": "modes",
    "unit_activity": "conditions",
    "unit_outcome": "initialisation",
    "will_learn": "initialisation",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
