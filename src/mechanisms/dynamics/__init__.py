"""How training unfolds: learning curves in closed form, starved features, games, and the modes of deep networks.

The names below are loaded when they are first used, so that `import mechanisms.dynamics` stays instant.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.dynamics.decoupling import SpectralDecouplingLoss as SpectralDecouplingLoss
    from mechanisms.dynamics.decoupling import spectral_decoupling as spectral_decoupling
    from mechanisms.dynamics.dual import FixedPoint as FixedPoint
    from mechanisms.dynamics.dual import decoupled_margin as decoupled_margin
    from mechanisms.dynamics.dual import dual_flow as dual_flow
    from mechanisms.dynamics.dual import fixed_point as fixed_point
    from mechanisms.dynamics.features import FeatureDecomposition as FeatureDecomposition
    from mechanisms.dynamics.features import decompose as decompose
    from mechanisms.dynamics.features import decompose_kernel as decompose_kernel
    from mechanisms.dynamics.features import jacobian_features as jacobian_features
    from mechanisms.dynamics.features import jacobian_kernel as jacobian_kernel
    from mechanisms.dynamics.features import responses as responses
    from mechanisms.dynamics.starvation import Starvation as Starvation
    from mechanisms.dynamics.starvation import starvation_index as starvation_index
    from mechanisms.dynamics.starvation import starvation_matrix as starvation_matrix

_HOMES = {
    "FeatureDecomposition": "features",
    "FixedPoint": "dual",
    "SpectralDecouplingLoss": "decoupling",
    "Starvation": "starvation",
    "decompose": "features",
    "decompose_kernel": "features",
    "decoupled_margin": "dual",
    "dual_flow": "dual",
    "fixed_point": "dual",
    "jacobian_features": "features",
    "jacobian_kernel": "features",
    "responses": "features",
    "spectral_decoupling": "decoupling",
    "starvation_index": "starvation",
    "starvation_matrix": "starvation",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
