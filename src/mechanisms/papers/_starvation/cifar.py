"""CIFAR with and without spectral decoupling: accuracy, margins, and accuracy under attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, Claim, Experiment, all_of, better_than, config
from mechanisms.lab.figures import bars, curves

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mechanisms.lab.data import Splits

# The network decides the data set, as in the paper.
VARIANTS = ("vgg-ce", "vgg-sd", "resnet-ce", "resnet-sd")
CLASSES = {"vgg": 10, "resnet": 100}


@config
class Margins:
    """Settings of the runs on CIFAR-10 (VGG) and CIFAR-100 (pre-activation ResNet).

    `path10`, `hub10`, `path100` and `hub100` say where the two sets are; without them `$MECHANISMS_DATA` is looked at.
    Step size, `milestones` (shares of the run after which it is divided by ten) and depths are ours. `epsilon` and
    `step_size` of the attack are in units of a pixel's 255 levels. `attacked` test images are attacked (0 for all).
    """

    data: Literal["cifar", "generated"] = "cifar"
    path10: str = ""
    hub10: str = ""
    path100: str = ""
    hub100: str = ""
    depth_vgg: int = 16
    depth_resnet: int = 18
    width: int = 64
    epochs: int = 160
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    coefficient: float = 0.01
    epsilon: float = 4.0
    step_size: float = 2.0
    attack_steps: int = 4
    attacked: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"


def run(settings: Margins, variant: str, bench: Bench) -> dict[str, Any]:
    """Train once; test, and attack in pixels."""
    import torch
    from torch.nn import functional

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.dynamics.starvation import SpectralDecouplingLoss
    from mechanisms.lab.training import train
    from mechanisms.papers._vision import CIFAR, Normalised, ResNet, attack, in_memory, on_device, outputs, place, vgg

    kind, method = variant.split("-")
    splits = load(settings, kind, bench)
    bench.precision = settings.precision
    device = bench.fabric.device
    x, test_x = (on_device(part.x, device) for part in (splits.train, splits.test))
    y, test_y = (torch.from_numpy(part.y).to(device) for part in (splits.train, splits.test))
    with seeded(stream_seed(bench.seed, "weights")):
        if kind == "vgg":
            network: nn.Module = vgg(settings.depth_vgg, CLASSES[kind], settings.width)
        else:
            network = ResNet(settings.depth_resnet, CLASSES[kind], width=settings.width, pre_activation=True)
    model = Normalised(network, CIFAR)
    place(model, device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    batches = in_memory(x, y, settings.batch_size, bench.seed, augment=True)
    steps = settings.epochs * len(batches)
    milestones = [round(share * steps) for share in settings.milestones]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    criterion: Any = SpectralDecouplingLoss(settings.coefficient) if method == "sd" else functional.cross_entropy

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return criterion(network(batch[0]), batch[1])

    def evaluate(network: nn.Module) -> dict[str, float]:
        epoch = len(bench.curves.get("test_accuracy", ([], []))[0]) + 1
        bench.log(epoch, test_accuracy=float((outputs(network, test_x).argmax(1) == test_y).float().mean()))
        return {}

    train(
        bench,
        model,
        optimizer,
        batches,
        loss,
        steps=steps,
        evaluate=evaluate,
        every=len(batches),
        scheduler=scheduler,
        checkpoint=variant,
    )
    with torch.no_grad():
        margins = margin(outputs(model, test_x), test_y)
    count = settings.attacked or len(test_x)
    generator, right = bench.generator("attack", device), 0
    pixels, labels = test_x[:count].split(settings.batch_size), test_y[:count].split(settings.batch_size)
    for part, part_labels in zip(pixels, labels, strict=True):
        moved = attack(
            model,
            part.float() / 255,
            part_labels,
            epsilon=settings.epsilon / 255,
            step_size=settings.step_size / 255,
            steps=settings.attack_steps,
            generator=generator,
        )
        with torch.no_grad():
            right += int((model(moved).argmax(1) == part_labels).sum())
    return {
        "accuracy": float((margins > 0).float().mean()),
        "attacked_accuracy": right / min(count, len(test_x)),
        # A margin means something beside the scale of the logits only.
        "relative_margin": float(margins.mean() / margins.std()),
    }


def load(settings: Margins, kind: str, bench: Bench) -> Splits:
    """The data set that goes with a network."""
    from mechanisms.lab.data.cifar import cifar10, cifar100
    from mechanisms.papers._vision import generated_images

    if settings.data == "generated":
        return generated_images(96, 40, CLASSES[kind], bench.seed)
    if kind == "vgg":
        return cifar10(settings.path10 or None, hub=settings.hub10)
    return cifar100(settings.path100 or None, hub=settings.hub100)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other one, for each example."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -float("inf"))
    return (own - others.amax(1, keepdim=True))[:, 0]


SOURCE = "spectral decoupling enlarges margins on CIFAR-10 and CIFAR-100 (Pezeshki et al. 2021)"
EXPERIMENT = Experiment(
    name="cifar-margins",
    description="VGG on CIFAR-10 and a pre-activation ResNet on CIFAR-100, cross-entropy beside cross-entropy with "
    "spectral decoupling (0.01), attacked within 4/255 of each pixel. Needs both sets and a GPU.",
    run=run,
    variants=VARIANTS,
    scales={
        "smoke": Margins(data="generated", depth_vgg=11, width=4, epochs=2, batch_size=32, lr=0.01, attacked=16),
        "paper": Margins(),
    },
    claims=(
        Claim(
            "Spectral decoupling enlarges margins: the networks resist an attack better",
            all_of(
                better_than("attacked_accuracy", "vgg-sd", "vgg-ce", bounds=(0, 1)),
                better_than("attacked_accuracy", "resnet-sd", "resnet-ce", bounds=(0, 1)),
            ),
            published=SOURCE,
            scales=("paper",),
            note="The attack moves pixels of a network that normalises them itself; the original attacked a network of "
            "normalised images with unnormalised ones. In small (digits) it does not reproduce.",
        ),
    ),
    figures=(
        bars("attacked_accuracy", "Accuracy under attack", variants=VARIANTS),
        bars("accuracy", "Test accuracy", variants=VARIANTS),
        curves("test_accuracy", "Test accuracy over the epochs", variants=VARIANTS, x="epoch"),
    ),
)
