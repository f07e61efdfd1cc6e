"""When the data shift: environments and groups, with the baselines they are compared with; adversarial inputs.

The names below are loaded when they are first used, so that `import mechanisms.robust` stays instant. The function
`embed` is not among them: its file has the same name, so it is imported from `mechanisms.robust.embed`.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.robust.adversarial import fgsm as fgsm
    from mechanisms.robust.adversarial import pgd as pgd
    from mechanisms.robust.adversarial import withstands_pgd as withstands_pgd
    from mechanisms.robust.attack_ensemble import robust_accuracy as robust_accuracy
    from mechanisms.robust.baselines import eiil_environments as eiil_environments
    from mechanisms.robust.baselines import jtt as jtt
    from mechanisms.robust.baselines import lff as lff
    from mechanisms.robust.classifier_training import ClassifierFit as ClassifierFit
    from mechanisms.robust.classifier_training import adversarial_training as adversarial_training
    from mechanisms.robust.classifier_training import train_classifier as train_classifier
    from mechanisms.robust.denoising import ConvDenoisingLayer as ConvDenoisingLayer
    from mechanisms.robust.denoising import DenoisingLayer as DenoisingLayer
    from mechanisms.robust.denoising import ExpectationOverNoise as ExpectationOverNoise
    from mechanisms.robust.environments import Environments as Environments
    from mechanisms.robust.estimators import EnvironmentDiscoverer as EnvironmentDiscoverer
    from mechanisms.robust.estimators import XRMClassifier as XRMClassifier
    from mechanisms.robust.fortified import FortifiedLoss as FortifiedLoss
    from mechanisms.robust.fortified import FortifiedModel as FortifiedModel
    from mechanisms.robust.fortified import Trace as Trace
    from mechanisms.robust.fortified import fortified_loss as fortified_loss
    from mechanisms.robust.fortified import fortify as fortify
    from mechanisms.robust.groups import GroupDROLoss as GroupDROLoss
    from mechanisms.robust.groups import group_accuracies as group_accuracies
    from mechanisms.robust.groups import irm_penalty as irm_penalty
    from mechanisms.robust.groups import reweighting_sampler as reweighting_sampler
    from mechanisms.robust.groups import subsampling_sampler as subsampling_sampler
    from mechanisms.robust.groups import worst_group_accuracy as worst_group_accuracy
    from mechanisms.robust.last_layer import afr as afr
    from mechanisms.robust.last_layer import dfr as dfr
    from mechanisms.robust.last_layer import last_layer_features as last_layer_features
    from mechanisms.robust.mistakes import erm_errors as erm_errors
    from mechanisms.robust.mistakes import held_out_errors as held_out_errors
    from mechanisms.robust.off_manifold import FalsePositives as FalsePositives
    from mechanisms.robust.off_manifold import OffManifoldDetector as OffManifoldDetector
    from mechanisms.robust.off_manifold import off_manifold_detector as off_manifold_detector
    from mechanisms.robust.off_manifold import off_manifold_score as off_manifold_score
    from mechanisms.robust.robustness_report import MaskingCheck as MaskingCheck
    from mechanisms.robust.robustness_report import RobustnessReport as RobustnessReport
    from mechanisms.robust.training import Draws as Draws
    from mechanisms.robust.training import GroupFit as GroupFit
    from mechanisms.robust.training import draw_hyperparameters as draw_hyperparameters
    from mechanisms.robust.training import fit_groups as fit_groups
    from mechanisms.robust.xrm import Search as Search
    from mechanisms.robust.xrm import Setting as Setting
    from mechanisms.robust.xrm import TwinTrainer as TwinTrainer
    from mechanisms.robust.xrm import discover_environments as discover_environments

_HOMES = {
    "ClassifierFit": "classifier_training",
    "ConvDenoisingLayer": "denoising",
    "DenoisingLayer": "denoising",
    "Draws": "training",
    "EnvironmentDiscoverer": "estimators",
    "Environments": "environments",
    "ExpectationOverNoise": "denoising",
    "FalsePositives": "off_manifold",
    "FortifiedLoss": "fortified",
    "FortifiedModel": "fortified",
    "GroupDROLoss": "groups",
    "GroupFit": "training",
    "MaskingCheck": "robustness_report",
    "OffManifoldDetector": "off_manifold",
    "RobustnessReport": "robustness_report",
    "Search": "xrm",
    "Setting": "xrm",
    "Trace": "fortified",
    "TwinTrainer": "xrm",
    "XRMClassifier": "estimators",
    "adversarial_training": "classifier_training",
    "afr": "last_layer",
    "dfr": "last_layer",
    "discover_environments": "xrm",
    "draw_hyperparameters": "training",
    "eiil_environments": "baselines",
    "erm_errors": "mistakes",
    "fgsm": "adversarial",
    "fit_groups": "training",
    "fortified_loss": "fortified",
    "fortify": "fortified",
    "group_accuracies": "groups",
    "held_out_errors": "mistakes",
    "irm_penalty": "groups",
    "jtt": "baselines",
    "last_layer_features": "last_layer",
    "lff": "baselines",
    "off_manifold_detector": "off_manifold",
    "off_manifold_score": "off_manifold",
    "pgd": "adversarial",
    "reweighting_sampler": "groups",
    "robust_accuracy": "attack_ensemble",
    "subsampling_sampler": "groups",
    "train_classifier": "classifier_training",
    "withstands_pgd": "adversarial",
    "worst_group_accuracy": "groups",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
