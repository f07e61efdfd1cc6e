"""When the data shift: finding environments, learning from groups, and the baselines they are compared with.

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
    from mechanisms.robust.ladder import LadderLoss as LadderLoss
    from mechanisms.robust.ladder import LadderNetwork as LadderNetwork
    from mechanisms.robust.ladder_classifier import LadderClassifier as LadderClassifier
    from mechanisms.robust.ladder_combinators import register_combinator as register_combinator
    from mechanisms.robust.ladder_layers import ConvLayer as ConvLayer
    from mechanisms.robust.ladder_layers import PoolLayer as PoolLayer
    from mechanisms.robust.ladder_stack import stack_ladders as stack_ladders
    from mechanisms.robust.ladder_stack import unstack_ladders as unstack_ladders
    from mechanisms.robust.ladder_training import LadderFit as LadderFit
    from mechanisms.robust.ladder_training import train_ladders as train_ladders
    from mechanisms.robust.ladder_variants import LadderVariant as LadderVariant
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

_HOMES: dict[str, str] = {
    "ClassifierFit": "classifier_training",
    "ConvDenoisingLayer": "denoising",
    "ConvLayer": "ladder_layers",
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
    "LadderClassifier": "ladder_classifier",
    "LadderFit": "ladder_training",
    "LadderLoss": "ladder",
    "LadderNetwork": "ladder",
    "LadderVariant": "ladder_variants",
    "MaskingCheck": "robustness_report",
    "OffManifoldDetector": "off_manifold",
    "PoolLayer": "ladder_layers",
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
    "register_combinator": "ladder_combinators",
    "reweighting_sampler": "groups",
    "robust_accuracy": "attack_ensemble",
    "stack_ladders": "ladder_stack",
    "subsampling_sampler": "groups",
    "train_classifier": "classifier_training",
    "train_ladders": "ladder_training",
    "unstack_ladders": "ladder_stack",
    "withstands_pgd": "adversarial",
    "worst_group_accuracy": "groups",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
