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
    from mechanisms.dynamics.curves import Descents as Descents
    from mechanisms.dynamics.curves import descents as descents
    from mechanisms.dynamics.decoupling import SpectralDecouplingLoss as SpectralDecouplingLoss
    from mechanisms.dynamics.decoupling import spectral_decoupling as spectral_decoupling
    from mechanisms.dynamics.deep import Forecast as Forecast
    from mechanisms.dynamics.deep import forecast as forecast
    from mechanisms.dynamics.deep import mode_state as mode_state
    from mechanisms.dynamics.dual import FixedPoint as FixedPoint
    from mechanisms.dynamics.dual import decoupled_margin as decoupled_margin
    from mechanisms.dynamics.dual import dual_flow as dual_flow
    from mechanisms.dynamics.dual import fixed_point as fixed_point
    from mechanisms.dynamics.epochwise import LearningCurve as LearningCurve
    from mechanisms.dynamics.epochwise import TeacherStudent as TeacherStudent
    from mechanisms.dynamics.epochwise import learning_curve as learning_curve
    from mechanisms.dynamics.epochwise import learning_curves as learning_curves
    from mechanisms.dynamics.extrapolation import ExtraGradient as ExtraGradient
    from mechanisms.dynamics.extrapolation import OptimisticGradient as OptimisticGradient
    from mechanisms.dynamics.features import FeatureDecomposition as FeatureDecomposition
    from mechanisms.dynamics.features import decompose as decompose
    from mechanisms.dynamics.features import decompose_kernel as decompose_kernel
    from mechanisms.dynamics.features import jacobian_features as jacobian_features
    from mechanisms.dynamics.features import jacobian_kernel as jacobian_kernel
    from mechanisms.dynamics.features import responses as responses
    from mechanisms.dynamics.game_analysis import GameAnalysis as GameAnalysis
    from mechanisms.dynamics.game_analysis import Setting as Setting
    from mechanisms.dynamics.game_analysis import analyse_game as analyse_game
    from mechanisms.dynamics.game_tuning import Step as Step
    from mechanisms.dynamics.game_tuning import Tuned as Tuned
    from mechanisms.dynamics.game_tuning import best_lr as best_lr
    from mechanisms.dynamics.game_tuning import best_momentum as best_momentum
    from mechanisms.dynamics.game_tuning import best_step as best_step
    from mechanisms.dynamics.games import game_eigenvalues as game_eigenvalues
    from mechanisms.dynamics.games import game_jacobian as game_jacobian
    from mechanisms.dynamics.games import play as play
    from mechanisms.dynamics.games import vector_field as vector_field
    from mechanisms.dynamics.gradient_flow import GradientFlow as GradientFlow
    from mechanisms.dynamics.gradient_flow import Trajectory as Trajectory
    from mechanisms.dynamics.gradient_flow import chain_flow as chain_flow
    from mechanisms.dynamics.initialisation import OUTCOMES as OUTCOMES
    from mechanisms.dynamics.initialisation import mode_initialisation as mode_initialisation
    from mechanisms.dynamics.initialisation import separable_classes as separable_classes
    from mechanisms.dynamics.initialisation import success_probability as success_probability
    from mechanisms.dynamics.initialisation import unit_outcome as unit_outcome
    from mechanisms.dynamics.initialisation import will_learn as will_learn
    from mechanisms.dynamics.limits import Limit as Limit
    from mechanisms.dynamics.limits import largest_eigenvalue as largest_eigenvalue
    from mechanisms.dynamics.modes import Mode as Mode
    from mechanisms.dynamics.modes import error_curve as error_curve
    from mechanisms.dynamics.modes import imbalance as imbalance
    from mechanisms.dynamics.modes import margin_curve as margin_curve
    from mechanisms.dynamics.modes import time_to_confidence as time_to_confidence
    from mechanisms.dynamics.modes import time_to_margin as time_to_margin
    from mechanisms.dynamics.negative_momentum import NegativeMomentumAdam as NegativeMomentumAdam
    from mechanisms.dynamics.negative_momentum import NegativeMomentumSGD as NegativeMomentumSGD
    from mechanisms.dynamics.paths import gradient_descent as gradient_descent
    from mechanisms.dynamics.paths import training_path as training_path
    from mechanisms.dynamics.simulation import order_parameters as order_parameters
    from mechanisms.dynamics.simulation import simulate as simulate
    from mechanisms.dynamics.spectra import bilinear_multipliers as bilinear_multipliers
    from mechanisms.dynamics.spectra import helpful_steps as helpful_steps
    from mechanisms.dynamics.spectra import spectral_radii as spectral_radii
    from mechanisms.dynamics.spectra import spectral_radius as spectral_radius
    from mechanisms.dynamics.spectra import update_operator as update_operator
    from mechanisms.dynamics.starvation import Starvation as Starvation
    from mechanisms.dynamics.starvation import starvation_index as starvation_index
    from mechanisms.dynamics.starvation import starvation_matrix as starvation_matrix
    from mechanisms.dynamics.stopping import ErrorForecast as ErrorForecast
    from mechanisms.dynamics.stopping import layer_features as layer_features
    from mechanisms.dynamics.stopping import predict_test_error as predict_test_error
    from mechanisms.dynamics.two_features import starvation_curve as starvation_curve
    from mechanisms.dynamics.two_features import starved_response as starved_response

_HOMES = {
    "Descents": "curves",
    "ErrorForecast": "stopping",
    "ExtraGradient": "extrapolation",
    "FeatureDecomposition": "features",
    "FixedPoint": "dual",
    "Forecast": "deep",
    "GameAnalysis": "game_analysis",
    "GradientFlow": "gradient_flow",
    "InitialisationReport": "conditions",
    "LearningCurve": "epochwise",
    "Limit": "limits",
    "Mode": "modes",
    "NegativeMomentumAdam": "negative_momentum",
    "NegativeMomentumSGD": "negative_momentum",
    "OUTCOMES": "initialisation",
    "OptimisticGradient": "extrapolation",
    "SeparabilityReport": "conditions",
    "Setting": "game_analysis",
    "SpectralDecouplingLoss": "decoupling",
    "Starvation": "starvation",
    "Step": "game_tuning",
    "TeacherStudent": "epochwise",
    "Trajectory": "gradient_flow",
    "Tuned": "game_tuning",
    "analyse_game": "game_analysis",
    "best_lr": "game_tuning",
    "best_momentum": "game_tuning",
    "best_step": "game_tuning",
    "bilinear_multipliers": "spectra",
    "chain_flow": "gradient_flow",
    "check_initialisation": "conditions",
    "check_separability": "conditions",
    "decompose": "features",
    "decompose_kernel": "features",
    "decoupled_margin": "dual",
    "descents": "curves",
    "dual_flow": "dual",
    "error_curve": "modes",
    "fixed_point": "dual",
    "forecast": "deep",
    "game_eigenvalues": "games",
    "game_jacobian": "games",
    "gradient_descent": "paths",
    "helpful_steps": "spectra",
    "imbalance": "modes",
    "jacobian_features": "features",
    "jacobian_kernel": "features",
    "largest_eigenvalue": "limits",
    "layer_features": "stopping",
    "learning_curve": "epochwise",
    "learning_curves": "epochwise",
    "margin_curve": "modes",
    "mode_initialisation": "initialisation",
    "mode_state": "deep",
    "order_parameters": "simulation",
    "play": "games",
    "predict_test_error": "stopping",
    "responses": "features",
    "separable_classes": "initialisation",
    "simulate": "simulation",
    "spectral_decoupling": "decoupling",
    "spectral_radii": "spectra",
    "spectral_radius": "spectra",
    "starvation_curve": "two_features",
    "starvation_index": "starvation",
    "starvation_matrix": "starvation",
    "starved_response": "two_features",
    "success_probability": "initialisation",
    "time_to_confidence": "modes",
    "time_to_margin": "modes",
    "training_path": "paths",
    "unit_activity": "conditions",
    "unit_outcome": "initialisation",
    "update_operator": "spectra",
    "vector_field": "games",
    "will_learn": "initialisation",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
