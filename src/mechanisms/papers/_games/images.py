"""GANs on CIFAR-10 and Fashion-MNIST with the saturating loss, over a grid of the discriminator's momentum and step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, Claim, Experiment, Figure, config, predicate
from mechanisms.lab.figures import canvas, curves

if TYPE_CHECKING:
    import plotly.graph_objects
    from torch import Tensor, nn

    from mechanisms.lab.records import Cell

MOMENTA = {"m50": -0.5, "m10": -0.1, "0": 0.0, "p50": 0.5}
RATES = {"1e-5": 1e-5, "3e-5": 3e-5, "1e-4": 1e-4}
GRID = {
    f"beta-{momentum}-lr-{rate}": (MOMENTA[momentum], RATES[rate])
    for momentum, rate in itertools.product(MOMENTA, RATES)
}
SAMPLES = 32  # in the picture of a run


@config
class Gan:
    """Settings of a GAN on images.

    `path` and `hub` say where the images are; without them `$MECHANISMS_DATA` is looked at. `lr` and `momentum` are the
    generator's. `classifier` is a `.safetensors` or `.pth` file with the state of this package's ResNet-18
    (`classifier_width`, ten outputs, pixels in [0, 1]) that scores the images; without one it is trained here for
    `classifier_epochs`, on the same training images.
    """

    data: Literal["cifar-10", "fashion-mnist", "generated"] = "cifar-10"
    path: str = ""
    hub: str = ""
    architecture: Literal["dcgan", "residual"] = "residual"
    width: int = 128
    batch_norm: bool = True
    iterations: int = 50_000
    batch_size: int = 64
    lr: float = 1e-4
    momentum: float = 0.5
    every: int = 2500
    scored: int = 10_000
    classifier: str = ""
    classifier_width: int = 32
    classifier_epochs: int = 20
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


def run(settings: Gan, variant: str, bench: Bench) -> dict[str, Any]:
    """Train one pair of networks, alternating, the discriminator first."""
    import torch
    from torch.nn.functional import softplus

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.dynamics.games import play
    from mechanisms.dynamics.negative_momentum import NegativeMomentumAdam
    from mechanisms.lab.together import world_size
    from mechanisms.papers._games.image_networks import NOISE, discriminator, generator
    from mechanisms.papers._games.image_scores import picture
    from mechanisms.papers._vision import in_memory

    if world_size() > 1:
        raise ValueError("the players of a game take their own gradients, in one process: use --jobs, not torchrun")
    bench.precision = settings.precision
    fabric = bench.fabric
    device = fabric.device
    x, y = load(settings, bench, device)
    scorer = classifier(settings, bench, x, y)
    with seeded(stream_seed(bench.seed, "weights")):
        make = generator(settings.architecture, x.shape[1], settings.width, settings.batch_norm).to(device)
        judge = discriminator(settings.architecture, x.shape[1], settings.width).to(device)
    beta, rate = GRID[variant]
    optimizers = [
        NegativeMomentumAdam(judge.parameters(), rate, betas=(beta, 0.9), dampened=False),
        NegativeMomentumAdam(make.parameters(), settings.lr, betas=(settings.momentum, 0.9), dampened=False),
    ]
    batches = in_memory(x, y, settings.batch_size, bench.seed, drop_last=True)
    noise = bench.generator("noise", device)
    real: list[Tensor] = []

    def draw(count: int, source: torch.Generator) -> Tensor:
        return make(torch.randn(count, NOISE, generator=source, device=device))

    def judge_loss() -> Tensor:
        with fabric.autocast():
            with torch.no_grad():
                fake = draw(settings.batch_size, noise)
            return (softplus(-judge(real[0])) + softplus(judge(fake))).float().mean()

    def make_loss() -> Tensor:
        with fabric.autocast():
            return -softplus(judge(draw(settings.batch_size, noise))).float().mean()  # saturating: log(1 - D(G(z)))

    def sample(count: int) -> Tensor:
        """Images as bytes, from noise that is the same at every evaluation."""
        source, made = bench.generator("scored", device), []
        make.eval()
        with torch.no_grad():
            for start in range(0, count, 500):
                fake = draw(min(500, count - start), source).float()
                made.append(((fake + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        make.train()
        return torch.cat(made)

    parts = {"generator": make, "discriminator": judge, "batches": batches, "noise": noise}
    parts |= {f"optimizer {place}": optimizer for place, optimizer in enumerate(optimizers)}
    checkpoint = bench.checkpoint(variant)
    done = checkpoint.restore(parts)
    steps = range(done + 1, settings.iterations + 1)
    for step, (images, _) in zip(steps, _again(batches), strict=False):
        real[:] = [2 * images - 1]
        losses = play([judge_loss, make_loss], optimizers)
        bench.progress(step, settings.iterations, judge=losses[0], make=losses[1])
        if step % settings.every == 0 or step == settings.iterations:
            bench.log(step, score=score(scorer, sample(settings.scored)), judge_loss=float(losses[0]))
            checkpoint.keep(step, parts, now=step == settings.iterations)
    scores = bench.curves["score"][1]
    shown = sample(SAMPLES).permute(0, 2, 3, 1).cpu().numpy()
    if not (sheet := picture(shown)):
        bench.note("no picture of samples: it needs Pillow, pip install 'mechanisms[images]'")
    return {
        "best_score": max(scores),
        "last_score": scores[-1],
        "score_of_data": score(scorer, x[: settings.scored]),
        "samples": sheet,
    }


def _again(batches: Any) -> Iterator[Any]:
    while True:
        yield from batches


def load(settings: Gan, bench: Bench, device: Any) -> tuple[Tensor, Tensor]:
    """Training images as bytes (examples, channels, 32, 32), and labels, on the device."""
    import numpy as np
    import torch

    from mechanisms.papers._vision import generated_images, on_device

    if settings.data == "cifar-10":
        from mechanisms.lab.data.cifar import cifar10

        train = cifar10(settings.path or None, hub=settings.hub).train
    elif settings.data == "fashion-mnist":
        from mechanisms.lab.data import fashion_mnist

        train = fashion_mnist(settings.path or None).train
    else:
        train = generated_images(64, 8, 10, bench.seed).train
    images = train.x
    if images.ndim == 3:  # Fashion-MNIST: grey, 28 by 28
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]
    return on_device(images, device), torch.from_numpy(train.y).to(device)


def classifier(settings: Gan, bench: Bench, x: Tensor, y: Tensor) -> nn.Module:
    """The network that scores: from a file, or trained here and shared by the variants of a seed."""
    import torch
    from torch.nn.functional import cross_entropy

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.papers._vision import ResNet, in_memory, load_weights

    with seeded(stream_seed(bench.seed, "classifier")):
        model = ResNet(18, 10, width=settings.classifier_width).to(x.device)

    def fit() -> dict[str, Tensor]:
        batches = in_memory(x, y, 2 * settings.batch_size, stream_seed(bench.seed, "classifier"), augment=True)
        steps = settings.classifier_epochs * len(batches)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps + 1)
        model.train()
        for step, (images, labels) in zip(range(steps), _again(batches), strict=False):
            optimizer.zero_grad()
            loss = cross_entropy(model(images.expand(-1, 3, -1, -1)), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            bench.progress(step + 1, steps, classifier=loss.detach())
        return model.state_dict()

    if settings.classifier:
        load_weights(model, settings.classifier, head=None)
    else:
        bench.note("scored by a classifier of ours, trained on the same images: not comparable with Inception scores")
        names = ("data", "path", "hub", "batch_size", "classifier_width", "classifier_epochs")
        model.load_state_dict(bench.cached("classifier", fit, {name: getattr(settings, name) for name in names}))
    return model.eval()


def score(scorer: nn.Module, images: Tensor) -> float:
    """The classifier's score of images as bytes."""
    from mechanisms.papers._games.image_scores import classifier_score
    from mechanisms.papers._vision import outputs

    logits = outputs(lambda part: scorer(part.expand(-1, 3, -1, -1)), images)
    return classifier_score(logits.double().softmax(1).cpu().numpy(), splits=min(10, len(images)))


def best_is_negative(seed: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the best score over the grid belongs to a negative momentum of the discriminator."""
    best = max(GRID, key=lambda variant: seed[variant]["best_score"])
    return GRID[best][0] < 0


def draw_map(cell: Cell) -> plotly.graph_objects.Figure:
    """Best score over the grid, mean over seeds."""
    import numpy as np

    figure = canvas(x="step size of the discriminator", y="momentum of the discriminator", legend=False)

    def mean(momentum: str, rate: str) -> float | None:
        values = list(cell.values("best_score", f"beta-{momentum}-lr-{rate}").values())
        return round(float(np.mean(values)), 3) if values else None

    figure.add_heatmap(
        x=list(RATES),
        y=[str(value) for value in MOMENTA.values()],
        z=[[mean(momentum, rate) for rate in RATES] for momentum in MOMENTA],
        colorscale="Viridis",
        texttemplate="%{z}",
        colorbar={"title": "score"},
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")  # as the samples are laid out
    return figure


def draw_samples(cell: Cell) -> plotly.graph_objects.Figure:
    """Samples of each place of the grid, of its first seed."""
    figure = canvas(x="step size of the discriminator", y="momentum of the discriminator", height=720, legend=False)
    # Without a trace Plotly draws no axes.
    figure.add_scatter(x=[-0.5, len(RATES) - 0.5], y=[-0.5, len(MOMENTA) - 0.5], mode="markers", opacity=0)
    for row, momentum in enumerate(MOMENTA):
        for column, rate in enumerate(RATES):
            sheets = [text for text in cell.values("samples", f"beta-{momentum}-lr-{rate}").values() if text]
            if sheets:
                figure.add_layout_image(
                    source=sheets[0],
                    xref="x",
                    yref="y",
                    x=column,
                    y=row,
                    sizex=0.94,
                    sizey=0.94,
                    xanchor="center",
                    yanchor="middle",
                )
    figure.update_xaxes(tickvals=list(range(len(RATES))), ticktext=list(RATES), showgrid=False, zeroline=False)
    figure.update_yaxes(
        tickvals=list(range(len(MOMENTA))),
        ticktext=[str(value) for value in MOMENTA.values()],
        range=[len(MOMENTA) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure


CLAIM = "The best score over the grid is reached with a negative momentum of the discriminator"
FIGURES = (
    Figure("Best score over the grid", draw_map, "Mean over seeds of the best score during training."),
    Figure("Samples", draw_samples, "One seed, at the end of training."),
    curves(
        "score",
        "Score over training, discriminator's step size 1e-4",
        variants=tuple(variant for variant in GRID if variant.endswith("1e-4")),
        x="iteration",
    ),
)


def _experiment(name: str, description: str, paper: Gan, note: str) -> Experiment:
    smoke = {"iterations": 3, "every": 2, "scored": 20, "batch_size": 8, "classifier_epochs": 1}
    return Experiment(
        name=name,
        description=description,
        run=run,
        variants=tuple(GRID),
        scales={
            "smoke": Gan(data="generated", width=4, classifier_width=2, architecture=paper.architecture, **smoke),
            "paper": paper,
        },
        claims=(
            Claim(
                CLAIM,
                predicate(best_is_negative, tuple(GRID), "the best score of the grid has a negative momentum"),
                published="the paper's heat maps of the Inception score on CIFAR-10; no numbers are published",
                scales=("paper",),
                note=note,
            ),
        ),
        figures=FIGURES,
    )


EXPERIMENT = _experiment(
    "cifar-gan",
    "GANs with the saturating loss on CIFAR-10: residual networks, generator momentum 0.5 and step 1e-4, a grid of the "
    "discriminator's. Needs CIFAR-10 (path=FOLDER, hub=NAME or MECHANISMS_DATA) and a GPU; stopped runs go on.",
    Gan(),
    "The score is the Inception score's formula on a classifier of CIFAR-10, as Inception weights are not bundled; "
    "sizes of the residual networks are ours.",
)
EXPERIMENT_FASHION = _experiment(
    "fashion-gan",
    "The same on Fashion-MNIST, with the networks of the original code (DCGAN-like, without residuals).",
    Gan(data="fashion-mnist", architecture="dcgan"),
    "The paper shows samples of Fashion-MNIST; the score and its claim are ours there.",
)
