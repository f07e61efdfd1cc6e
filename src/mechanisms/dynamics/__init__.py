"""How training unfolds: learning curves in closed form, starved features, games, and the modes of deep networks.

The names below are loaded when they are first used, so that `import mechanisms.dynamics` stays instant.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.dynamics.curves import Descents as Descents
    from mechanisms.dynamics.curves import descents as descents
    from mechanisms.dynamics.decoupling import SpectralDecouplingLoss as SpectralDecouplingLoss
    from mechanisms.dynamics.decoupling import spectral_decoupling as spectral_decoupling
    from mechanisms.dynamics.dual import FixedPoint as FixedPoint
    from mechanisms.dynamics.dual import decoupled_margin as decoupled_margin
    from mechanisms.dynamics.dual import dual_flow as dual_flow
    from mechanisms.dynamics.dual import fixed_point as fixed_point
    from mechanisms.dynamics.epochwise import LearningCurve as LearningCurve
    from mechanisms.dynamics.epochwise import TeacherStudent as TeacherStudent
    from mechanisms.dynamics.epochwise import learning_curve as learning_curve
    from mechanisms.dynamics.epochwise import learning_curves as learning_curves
    from mechanisms.dynamics.features import FeatureDecomposition as FeatureDecomposition
    from mechanisms.dynamics.features import decompose as decompose
    from mechanisms.dynamics.features import decompose_kernel as decompose_kernel
    from mechanisms.dynamics.features import jacobian_features as jacobian_features
    from mechanisms.dynamics.features import jacobian_kernel as jacobian_kernel
    from mechanisms.dynamics.features import responses as responses
    from mechanisms.dynamics.forecast import ErrorForecast as ErrorForecast
    from mechanisms.dynamics.forecast import layer_features as layer_features
    from mechanisms.dynamics.forecast import predict_test_error as predict_test_error
    from mechanisms.dynamics.limits import Limit as Limit
    from mechanisms.dynamics.limits import largest_eigenvalue as largest_eigenvalue
    from mechanisms.dynamics.paths import gradient_descent as gradient_descent
    from mechanisms.dynamics.paths import training_path as training_path
    from mechanisms.dynamics.simulation import order_parameters as order_parameters
    from mechanisms.dynamics.simulation import simulate as simulate
    from mechanisms.dynamics.starvation import Starvation as Starvation
    from mechanisms.dynamics.starvation import starvation_index as starvation_index
    from mechanisms.dynamics.starvation import starvation_matrix as starvation_matrix

_HOMES: dict[str, str] = {
    "Descents": "curves",
    "ErrorForecast": "forecast",
    "FeatureDecomposition": "features",
    "FixedPoint": "dual",
    "LearningCurve": "epochwise",
    "Limit": "limits",
    "SpectralDecouplingLoss": "decoupling",
    "Starvation": "starvation",
    "TeacherStudent": "epochwise",
    "decompose": "features",
    "decompose_kernel": "features",
    "decoupled_margin": "dual",
    "descents": "curves",
    "dual_flow": "dual",
    "fixed_point": "dual",
    "gradient_descent": "paths",
    "jacobian_features": "features",
    "jacobian_kernel": "features",
    "largest_eigenvalue": "limits",
    "layer_features": "forecast",
    "learning_curve": "epochwise",
    "learning_curves": "epochwise",
    "order_parameters": "simulation",
    "predict_test_error": "forecast",
    "responses": "features",
    "simulate": "simulation",
    "spectral_decoupling": "decoupling",
    "starvation_index": "starvation",
    "starvation_matrix": "starvation",
    "training_path": "paths",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
