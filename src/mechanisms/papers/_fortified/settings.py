"""What can be set, and the variants as data: with which attack a network is trained, and where it denoises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mechanisms.lab import config

Place = Literal["none", "last", "all", "input"]


@config
class Fortified:
    """Data, network, training, and the attacks that judge. Budgets and steps are in units of inputs in [0, 1]."""

    data: Literal["digits", "fashion-mnist", "mnist", "cifar-10", "generated"] = "digits"
    path: str = ""  # folder of the files, if they are not where they are looked for
    hub: str = ""  # in place of the files of MNIST or CIFAR-10, a name on the Hugging Face hub
    num_train: int = 1297  # 0 for all
    num_test: int = 0  # 0 for all
    network: Literal["mlp", "cnn", "resnet"] = "mlp"
    hidden: tuple[int, ...] = (128, 128)  # units of the perceptron's layers
    width: int = 64  # channels of the first convolution (cnn) or stage (resnet)
    units: int = 5  # residual units of a stage
    code: int = 32  # hidden units of the auto-encoder
    activation: Literal["leaky_relu", "tanh"] = "leaky_relu"
    noise_std: float = 0.1
    lambda_rec: float = 1.0
    lambda_adv: float = 1.0
    label_smoothing: float = 0.1
    eps: float = 0.1
    attack_steps: int = 5  # in training; 1 is FGSM
    attack_step_size: float = 0.0  # 0: 2.5 eps / steps, and eps for FGSM
    attack_random_start: bool = True
    epochs: int = 50
    batch_size: int = 128
    lr: float = 1e-3
    test_steps: int = 40
    test_step_size: float = 0.01
    test_restarts: int = 2
    budgets: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # of the picture, with one restart
    pictured: int = 1000  # test images of the picture and of the detector
    draws: int = 20  # averaged where noise is on at test time


@config
class Ensemble(Fortified):
    """The same networks under the whole ensemble of attacks, and the checks on masking."""

    images: int = 1000
    attacked: tuple[float, ...] = (0.1,)  # budgets of the ensemble; the one of training among them
    steps: int = 100
    restarts: int = 2
    queries: int = 500


@config
class BlackBox(Fortified):
    """Papernot's attack on a network that answers with labels alone: a substitute, and FGSM on that."""

    holdout: int = 150  # test images the attacker begins with, which are left out of the test
    augmentations: int = 6
    augmentation_step: float = 0.1
    substitute_hidden: tuple[int, ...] = (200, 200)
    substitute_epochs: int = 10


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        attacked: whether training has adversarial inputs.
        place: of the denoising layers: none, behind the last hidden layer, behind all, or on the input.
        rec, adv: factors on the settings' weights of the two reconstruction losses.
        activation: of the layers; the settings' by default.
        blocked: whether reconstruction's target and input are constants.
        noise: of the layers: "train", or "always" as in the released code.
    """

    attacked: bool = True
    place: Place = "last"
    rec: float | int = 1.0
    adv: float | int = 1.0
    activation: str = ""
    blocked: bool = False
    noise: Literal["train", "always"] = "train"


MAIN = {
    "plain": Variant(attacked=False, place="none"),
    "fortified-no-at": Variant(attacked=False),
    "at": Variant(place="none"),
    "at-dae": Variant(rec=0, adv=0),  # the layers' parameters and noise, and none of their losses
    "fortified-rec": Variant(adv=0),
    "fortified": Variant(),
    "fortified-input": Variant(place="input"),
}
ABLATIONS = {
    "fortified-all": Variant(place="all"),
    "fortified-all-blocked": Variant(place="all", blocked=True),  # is it the shrinking of states that decides there?
    "fortified-light": Variant(rec=0.01, adv=0.01),
    "fortified-tanh": Variant(activation="tanh"),
    "fortified-blocked": Variant(blocked=True),
    "fortified-noisy": Variant(noise="always"),
}
VARIANTS = MAIN | ABLATIONS

# What a trained network depends on, beside seed and variant: experiments with these alike share it.
TRAINING = (
    "data",
    "path",
    "hub",
    "num_train",
    "num_test",
    "network",
    "hidden",
    "width",
    "units",
    "code",
    "activation",
    "noise_std",
    "lambda_rec",
    "lambda_adv",
    "label_smoothing",
    "eps",
    "attack_steps",
    "attack_step_size",
    "attack_random_start",
    "epochs",
    "batch_size",
    "lr",
)


def training_settings(settings: Fortified, variant: str) -> dict[str, Any]:
    """The key of a trained network.

    >>> training_settings(Fortified(test_steps=7), "at") == training_settings(Fortified(), "at")
    True
    """
    from mechanisms.lab.configuration import as_dict

    whole = as_dict(settings)
    return {name: whole[name] for name in TRAINING} | {"variant": variant}
