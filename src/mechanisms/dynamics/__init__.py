"""How training unfolds: learning curves in closed form, starved features, games, and the modes of deep networks.

The names below are loaded when they are first used, so that `import mechanisms.dynamics` stays instant.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.dynamics.curves import Descents as Descents
    from mechanisms.dynamics.curves import descents as descents
    from mechanisms.dynamics.epochwise import LearningCurve as LearningCurve
    from mechanisms.dynamics.epochwise import TeacherStudent as TeacherStudent
    from mechanisms.dynamics.epochwise import learning_curve as learning_curve
    from mechanisms.dynamics.epochwise import learning_curves as learning_curves
    from mechanisms.dynamics.forecast import ErrorForecast as ErrorForecast
    from mechanisms.dynamics.forecast import layer_features as layer_features
    from mechanisms.dynamics.forecast import predict_test_error as predict_test_error
    from mechanisms.dynamics.limits import Limit as Limit
    from mechanisms.dynamics.limits import largest_eigenvalue as largest_eigenvalue
    from mechanisms.dynamics.paths import gradient_descent as gradient_descent
    from mechanisms.dynamics.paths import training_path as training_path
    from mechanisms.dynamics.simulation import order_parameters as order_parameters
    from mechanisms.dynamics.simulation import simulate as simulate

_HOMES: dict[str, str] = {
    "Descents": "curves",
    "ErrorForecast": "forecast",
    "LearningCurve": "epochwise",
    "Limit": "limits",
    "TeacherStudent": "epochwise",
    "descents": "curves",
    "gradient_descent": "paths",
    "largest_eigenvalue": "limits",
    "layer_features": "forecast",
    "learning_curve": "epochwise",
    "learning_curves": "epochwise",
    "order_parameters": "simulation",
    "predict_test_error": "forecast",
    "simulate": "simulation",
    "training_path": "paths",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
