"""The black-box experiment: a substitute that learns from the network's labels alone, and FGSM on that.

    S <- S and clip(x + λ sign ∇_x F_{O(x)}(x))  for x in S        labels O(x) from the network under attack

F is the substitute, trained on the first S, and trained on after each enlargement. Papernot, McDaniel, Goodfellow, Jha,
Celik, Swami: "Practical Black-Box Attacks against Machine Learning", ASIA CCS 2017, arXiv 1602.02697.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mechanisms.lab import Bench
    from mechanisms.papers._fortified.settings import BlackBox

VARIANTS = ("plain", "at", "at-dae", "fortified")


def run(settings: BlackBox, variant: str, bench: Bench) -> dict[str, Any]:
    """Train the network and a substitute of it, and try on it what turns the substitute.

    Raises:
        NotHere: the data are not on this machine.
        ValueError: the attacker begins with no image, or with all.
    """
    import torch

    from mechanisms.papers._fortified.examples import load
    from mechanisms.papers._fortified.judging import accuracy
    from mechanisms.papers._fortified.training import trained
    from mechanisms.robust.adversarial import fgsm

    examples = load(settings, bench)
    if not 0 < settings.holdout < len(examples.test_y):
        raise ValueError(
            f"holdout={settings.holdout} of {len(examples.test_y)} test images; the attacker begins with some of them, "
            "and some must be left"
        )
    model, _ = trained(settings, variant, bench, examples)
    x, y = examples.test_x.to(bench.device), examples.test_y.to(bench.device)
    held, x, y = x[: settings.holdout], x[settings.holdout :], y[settings.holdout :]
    substitute = learn_substitute(settings, model, held, bench)
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in x.split(1024)])
    return {
        "accuracy": accuracy(model, x, y),
        "black_box_accuracy": accuracy(model, fgsm(substitute, x, y, settings.eps), y),
        "white_box_accuracy": accuracy(model, fgsm(model, x, y, settings.eps), y),
        "substitute_agreement": accuracy(substitute, x, answers),
    }


def learn_substitute(settings: BlackBox, model: nn.Module, held: Tensor, bench: Bench) -> nn.Module:
    """A perceptron trained on the network's answers to a set of images that grows along the perceptron's gradients."""
    import torch

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.papers._fortified.networks import perceptron
    from mechanisms.robust.classifier_training import train_classifier

    with seeded(stream_seed(bench.seed, "substitute")):
        substitute = perceptron(held[0].numel(), settings.substitute_hidden).to(bench.device)
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in held.split(1024)])
    for round_ in range(settings.augmentations + 1):
        if round_:
            fresh = augmented(substitute, held, answers, settings.augmentation_step)
            with torch.no_grad():
                # The network is asked about the new images alone: of the others the attacker has its answers.
                answers = torch.cat([answers, *(model(part).argmax(1) for part in fresh.split(1024))])
            held = torch.cat([held, fresh])
        train_classifier(
            substitute,
            held,
            answers,
            epochs=settings.substitute_epochs,
            batch_size=settings.batch_size,
            lr=settings.lr,
            label_smoothing=0,
            seed=stream_seed(bench.seed, f"substitute/{round_}"),
            device=bench.device,
            progress=lambda done, total, loss: bench.progress(done, total, loss=loss),
        )
    return substitute


def augmented(substitute: nn.Module, x: Tensor, answers: Tensor, step: float) -> Tensor:
    """Images moved along the sign of the gradient of the logit of their answer, within [0, 1]."""
    import torch

    moved = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(substitute(moved).gather(1, answers[:, None]).sum(), moved)
    return (x + step * gradient.sign()).clamp(0, 1)
