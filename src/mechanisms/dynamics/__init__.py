"""How training unfolds: learning curves in closed form, starved features, games, and the modes of deep networks.

The names below are loaded when they are first used, so that `import mechanisms.dynamics` stays instant.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.dynamics.extrapolation import ExtraGradient as ExtraGradient
    from mechanisms.dynamics.extrapolation import OptimisticGradient as OptimisticGradient
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
    from mechanisms.dynamics.negative_momentum import NegativeMomentumAdam as NegativeMomentumAdam
    from mechanisms.dynamics.negative_momentum import NegativeMomentumSGD as NegativeMomentumSGD
    from mechanisms.dynamics.spectra import bilinear_multipliers as bilinear_multipliers
    from mechanisms.dynamics.spectra import helpful_steps as helpful_steps
    from mechanisms.dynamics.spectra import spectral_radii as spectral_radii
    from mechanisms.dynamics.spectra import spectral_radius as spectral_radius
    from mechanisms.dynamics.spectra import update_operator as update_operator

_HOMES: dict[str, str] = {
    "ExtraGradient": "extrapolation",
    "GameAnalysis": "game_analysis",
    "NegativeMomentumAdam": "negative_momentum",
    "NegativeMomentumSGD": "negative_momentum",
    "OptimisticGradient": "extrapolation",
    "Setting": "game_analysis",
    "Step": "game_tuning",
    "Tuned": "game_tuning",
    "analyse_game": "game_analysis",
    "best_lr": "game_tuning",
    "best_momentum": "game_tuning",
    "best_step": "game_tuning",
    "bilinear_multipliers": "spectra",
    "game_eigenvalues": "games",
    "game_jacobian": "games",
    "helpful_steps": "spectra",
    "play": "games",
    "spectral_radii": "spectra",
    "spectral_radius": "spectra",
    "update_operator": "spectra",
    "vector_field": "games",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
