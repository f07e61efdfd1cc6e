"""The attacks of the ensemble, each a function from examples to inputs that it proposes.

Those that judge a defence come from kept libraries: APGD (Croce and Hein 2020, arXiv 2003.01690) and Square
(Andriushchenko et al. 2020, arXiv 1912.00049) from the adversarial robustness toolbox, DeepFool (Moosavi-Dezfooli et
al. 2016, arXiv 1511.04599) from foolbox. What is worked around was met with toolbox 1.20.1.
"""

import logging
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechanisms._base.extras import require
from mechanisms._base.seeds import stream_seed, torch_generator
from mechanisms.robust._attacked import Attacked
from mechanisms.robust.adversarial import fgsm, pgd
from mechanisms.robust.denoising import ExpectationOverNoise

DEEPFOOL_STEPS = 50  # as in the library and the paper
CANDIDATES = 10  # classes that DeepFool looks at, the likeliest first


@dataclass(frozen=True)
class Effort:
    """How hard the attacks try: steps of the gradient attacks, queries of the black-box one, and where noise starts."""

    steps: int
    queries: int
    seed: int


class Seen(nn.Module):
    """The classifier as the libraries see it: single precision, on their device, its noise averaged out.

    It is no submodule here, so that a library's `to`, `train` and `zero_grad` do not reach it. Logits are centred:
    losses and margins stay the same, and the toolbox, which refuses outputs that look like probabilities, meets none.
    """

    def __init__(self, attacked: Attacked) -> None:
        super().__init__()
        model = attacked.model
        if attacked.draws > 1:
            # One draw in a pass: a model may draw its noise once for all rows.
            model = ExpectationOverNoise(model, draws=attacked.draws, rows=1)
        self._held = (model, attacked)
        self.eval()

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        model, attacked = self._held
        if x.requires_grad:
            # No attack can follow a gradient that is no number, and some stop with an error. Zero: the checks find it.
            x = x.view_as(x)
            x.register_hook(_finite)
        # A copy: a model may work on its input in place.
        logits = model(x.to(attacked.x.device, attacked.dtype, copy=True))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if x.requires_grad and not logits.requires_grad:
            # The same for a classifier that cuts the graph and has no gradient to give.
            logits = logits + 0.0 * x.to(logits).flatten(1).sum(1, keepdim=True)
        return (logits - logits.detach().mean(1, keepdim=True)).to(x.device, torch.float32)


def _finite(gradient: Tensor) -> Tensor:
    return gradient.nan_to_num(0.0, 0.0, 0.0)


Attack = Callable[[Attacked, Seen, Int[Tensor, " m"], float, Effort, str], list[Tensor]]


def fast_gradient(
    attacked: Attacked, seen: Seen, rows: Int[Tensor, " m"], eps: float, effort: Effort, stream: str
) -> list[Tensor]:
    """One step of the sign of the gradient (Goodfellow et al. 2015): too weak to judge a defence by."""
    return [fgsm(seen, attacked.x[rows], attacked.y[rows], eps)]


def projected_gradient(
    attacked: Attacked, seen: Seen, rows: Int[Tensor, " m"], eps: float, effort: Effort, stream: str
) -> list[Tensor]:
    """Steps of the sign of the gradient from a random start (Madry et al. 2018), with steps of 2.5 eps / steps."""
    x, y = attacked.x[rows], attacked.y[rows]
    generator = torch_generator(effort.seed, stream, x.device)
    return [pgd(seen, x, y, eps, steps=effort.steps, step_size=2.5 * eps / effort.steps, generator=generator)]


def _apgd(loss: str) -> Attack:
    def run(
        attacked: Attacked, seen: Seen, rows: Int[Tensor, " m"], eps: float, effort: Effort, stream: str
    ) -> list[Tensor]:
        evasion = _toolbox("art.attacks.evasion")
        x, y = attacked.x[rows].cpu().numpy(), attacked.y[rows].cpu().numpy()
        attack = evasion.AutoProjectedGradientDescent(
            _toolbox("art.estimators.classification").PyTorchClassifier(
                model=seen,
                loss=nn.CrossEntropyLoss(),
                input_shape=x.shape[1:],
                nb_classes=attacked.classes,
                clip_values=(0.0, 1.0),
                device_type="cpu",  # what it hands over comes from NumPy; `Seen` moves it to where the classifier is
            ),
            eps=float(eps),
            eps_step=2.0 * float(eps),  # the first step of the paper
            max_iter=effort.steps,
            nb_random_init=1,
            batch_size=len(x),
            loss_type=loss,
            verbose=False,
        )
        answers = _answers(attack.estimator)
        with _numpy_seeded(stream_seed(effort.seed, stream)):
            found = [torch.from_numpy(attack.generate(x, y))]
        # The toolbox judges the last iterate alone; the one with the largest loss is the paper's answer. It is kept for
        # the examples that the toolbox went on with: by its first pass, which another draw of the noise may contradict.
        taken = answers[0].argmax(1) == y
        if taken.any():
            largest = x.copy()
            largest[taken] = attack.x_max
            found.append(torch.from_numpy(largest))
        return found

    return run


def _answers(estimator: Any) -> list[np.ndarray]:
    """A list that gets every prediction that this classifier of the toolbox makes from now on."""
    predict, answers = estimator.predict, []

    def noting(*arguments: Any, **options: Any) -> np.ndarray:
        answers.append(predict(*arguments, **options))
        return answers[-1]

    estimator.predict = noting
    return answers


def deepfool(
    attacked: Attacked, seen: Seen, rows: Int[Tensor, " m"], eps: float, effort: Effort, stream: str
) -> list[Tensor]:
    """The nearest input of another class that linear steps find; it knows no budget, so one run serves all."""
    foolbox = require("foolbox", "attacks")
    x = attacked.x[rows]
    classifier = foolbox.PyTorchModel(seen, bounds=(0, 1), device=x.device)
    candidates = min(CANDIDATES, attacked.classes)
    attack = foolbox.attacks.LinfDeepFoolAttack(steps=DEEPFOOL_STEPS, candidates=candidates)
    return [attack.run(classifier, x, foolbox.criteria.Misclassification(attacked.y[rows]))]


def square(
    attacked: Attacked, seen: Seen, rows: Int[Tensor, " m"], eps: float, effort: Effort, stream: str
) -> list[Tensor]:
    """Random squares that raise the loss; it sees logits alone, so masked gradients cannot stop it."""
    evasion = _toolbox("art.attacks.evasion")
    frame = Frame(tuple(attacked.x.shape[1:]))
    x = frame.fold(attacked.x[rows]).cpu().numpy()
    device = attacked.x.device

    @torch.no_grad()
    def predict(images: np.ndarray) -> np.ndarray:
        return seen(frame.unfold(torch.from_numpy(images).to(device))).cpu().numpy()

    attack = evasion.SquareAttack(
        _toolbox("art.estimators.classification").BlackBoxClassifierNeuralNetwork(
            predict, input_shape=x.shape[1:], nb_classes=attacked.classes, clip_values=(0.0, 1.0)
        ),
        eps=float(eps),
        max_iter=effort.queries,
        p_init=frame.share,
        batch_size=len(x),
        verbose=False,
    )
    with _numpy_seeded(stream_seed(effort.seed, stream)):
        found = attack.generate(x, attacked.y[rows].cpu().numpy())
    return [frame.unfold(torch.from_numpy(found))]


class Frame:
    """Inputs of any shape as images for the toolbox's Square, with a last row and column that the model never sees.

    The toolbox draws the place of a square from a range that is empty when the square is as large as the image (it
    fails on 4 x 5 images), and that never reaches the last row and column. With a margin both are harmless. Vectors and
    other shapes become one nearly square channel.

    >>> frame = Frame((5,))
    >>> frame.fold(torch.arange(5.0)[None]).tolist()
    [[[[0.0, 1.0, 2.0, 0.0], [3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]]
    >>> frame.unfold(frame.fold(torch.arange(5.0)[None])).tolist()
    [[0.0, 1.0, 2.0, 3.0, 4.0]]
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.features = shape, math.prod(shape)
        if len(shape) == 3:
            self.image = shape
        elif len(shape) == 2:
            self.image = (1, *shape)
        else:
            width = math.isqrt(self.features - 1) + 1
            self.image = (1, -(-self.features // width), width)
        _, height, width = self.image
        # Squares start with 0.8 of the image, the library's default, if that fits.
        self.share = min(0.8, min(height, width) ** 2 / ((height + 1) * (width + 1)))

    def fold(self, x: Tensor) -> Tensor:
        """(n, channels, height + 1, width + 1)."""
        cells = math.prod(self.image) - self.features
        flat = nn.functional.pad(x.flatten(1), (0, cells))
        return nn.functional.pad(flat.reshape(-1, *self.image), (0, 1, 0, 1))

    def unfold(self, images: Tensor) -> Tensor:
        """(n, ...) as they were."""
        return images[:, :, :-1, :-1].flatten(1)[:, : self.features].reshape(-1, *self.shape)


ATTACKS: dict[str, Attack] = {
    "pgd": projected_gradient,
    "apgd-ce": _apgd("cross_entropy"),
    "apgd-dlr": _apgd("difference_logits_ratio"),
    "deepfool": deepfool,
    "square": square,
}
GRADIENT = ("pgd", "apgd-ce", "apgd-dlr", "deepfool")
ONCE = ("deepfool", "square", "transfer")  # not repeated by restarts: no random start, or a budget of queries
FEWEST_CLASSES = {"apgd-dlr": 3}  # its loss is a ratio to the third largest logit


def check_library(attacks: tuple[str, ...]) -> None:
    """Say now that an extra is missing.

    Raises:
        MissingExtra: the libraries of these attacks are not installed.
    """
    if {"apgd-ce", "apgd-dlr", "square"} & set(attacks):
        _toolbox("art.attacks.evasion")
    if "deepfool" in attacks:
        require("foolbox", "attacks")


def _toolbox(module: str) -> Any:
    found = require(module, "attacks")
    logging.getLogger("art").setLevel(logging.WARNING)
    return found


@contextmanager
def _numpy_seeded(seed: int) -> Generator[None]:
    """NumPy's global generator, which the toolbox draws from, seeded inside the block and as before behind it."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
