"""Bouncing balls: frames are predicted from those before, then from predictions alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._rims.networks import Sizes, make_network

if TYPE_CHECKING:
    from torch import Tensor

    from mechanisms.papers._rims.coder import Predictor

SHOWN = (1, 3, 5, 9, 15)  # frames of a roll-out that a record keeps of one film
SIDE = 16  # pixels of a frame in a record


@config
class Video(Sizes):
    """Films, a network between an encoder and a decoder, and how both are trained.

    Args:
        size: height and width of frames in pixels.
        balls, test_balls: in a film, in training and in the tests.
        radius: of balls, in a box of side 10.
        curtain: height and width in pixels of a band over the test films; zeros for none.
        films, test_films: how many; each training film is seen again and again, in a random order.
        observed, rolled: frames that are shown and frames that are then predicted from predictions alone.
        flips: probability that a pixel of a frame that is shown is turned over.
        coder: "linear", or "convolutional": two layers of stride 4 and 2, and the same back.
        features: of an encoded frame.
        batch_size, updates, lr, clip: of Adam.
        every: updates between evaluations.
    """

    size: int = 16
    balls: int = 4
    test_balls: tuple[int, ...] = (4, 6)
    radius: float = 1.2
    curtain: tuple[int, int] = (0, 0)
    films: int = 1000
    test_films: int = 200
    observed: int = 10
    rolled: int = 15
    flips: float = 0.05
    coder: Literal["linear", "convolutional"] = "linear"
    features: int = 64
    batch_size: int = 32
    updates: int = 1500
    lr: float = 2e-3
    clip: float = 1.0
    every: int = 250


def run_video(settings: Video, variant: str, bench: Bench) -> dict[str, Any]:
    """Train on next frames; test by rolling out.

    Returns:
        `bce_<balls>`: cross-entropy of a pixel in nats, over all frames that are rolled out; `constant_bce_<balls>`:
        that of the share of white pixels, the same for each; `frames`: one film of the last test, true and predicted
        pixels from 0 to 9 as text, of the steps `SHOWN`. Curves: `bce_<balls>_by_step` of each frame.
    """
    import torch
    from torch.nn import functional as F

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.lab.batches import Batches
    from mechanisms.lab.training import train
    from mechanisms.papers._rims.coder import Predictor

    with seeded(stream_seed(bench.seed, "weights")):
        model = Predictor(make_network(variant, settings), settings.size, settings.features, settings.coder)
    films = _films(settings, settings.balls, settings.films, bench, "training").to(bench.device)

    def ready(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        frames = films[rows.to(bench.device)].transpose(0, 1)
        return flipped(frames[:-1], settings.flips, generator), frames[1:].float()

    batches = Batches(
        settings.films, settings.batch_size, bench.seed, lambda rows: rows, finish=ready, device=bench.device
    )
    losses: list[Tensor] = []  # since the last evaluation

    def loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        value = F.binary_cross_entropy_with_logits(model(batch[0])[0], batch[1])
        losses.append(value.detach())
        return value

    def evaluate(_: torch.nn.Module) -> dict[str, float]:
        mean = float(torch.stack(losses).mean())
        losses.clear()
        return {"training_loss": mean}

    with seeded(stream_seed(bench.seed, "noise"), bench.device):
        train(
            bench,
            model,
            torch.optim.Adam(model.parameters(), lr=settings.lr),
            batches,
            loss,
            steps=settings.updates,
            evaluate=evaluate,
            every=settings.every,
            clip=settings.clip or None,
            checkpoint=f"video-{variant}",
        )
    found: dict[str, Any] = {}
    for balls in settings.test_balls:
        frames = _films(settings, balls, settings.test_films, bench, "test").to(bench.device).transpose(0, 1)
        flips = bench.generator(f"test flips {balls}", bench.device)
        shown = flipped(frames[: settings.observed], settings.flips, flips)
        predicted = roll_out(model, shown, settings.rolled)
        wanted = frames[settings.observed :].float()
        errors = F.binary_cross_entropy(predicted, wanted, reduction="none").mean((1, 2, 3))
        for step, error in enumerate(errors.tolist(), start=1):
            bench.log(step, **{f"bce_{balls}_by_step": round(error, 5)})
        found[f"bce_{balls}"] = float(errors.mean())
        share = wanted.mean()
        found[f"constant_bce_{balls}"] = float(F.binary_cross_entropy(share.expand_as(wanted), wanted))
        found["frames"] = as_text(wanted[:, 0], predicted[:, 0])
    return found


def flipped(frames: Tensor, rate: float | int, generator: Any) -> Tensor:
    """Frames of bytes as numbers, each pixel turned over with a probability."""
    import torch

    drawn = torch.rand(frames.shape, generator=generator, device=frames.device) < rate
    return (frames.bool() ^ drawn).float()


def roll_out(model: Predictor, shown: Tensor, steps: int) -> Tensor:
    """Probabilities (steps, films, size, size) of the frames after those that are shown, each from the one before."""
    import torch

    model.eval()
    found = []
    with torch.no_grad():
        logits, state = model(shown)
        found.append(logits[-1].sigmoid())
        for _ in range(steps - 1):
            logits, state = model(found[-1].unsqueeze(0), state)
            found.append(logits[0].sigmoid())
    return torch.stack(found).clamp(1e-6, 1 - 1e-6)


def as_text(true: Tensor, predicted: Tensor) -> str:
    """One film's frames at the steps `SHOWN`: for each the true and the predicted pixels, a digit each, on one line."""
    from torch.nn import functional as F

    lines = []
    for step in SHOWN:
        if step > len(true):
            break
        for frame in (true[step - 1], predicted[step - 1]):
            small = F.adaptive_avg_pool2d(frame[None, None].float(), min(SIDE, frame.shape[-1]))
            lines.append("".join(str(int(pixel)) for pixel in small.flatten().mul(9).round().tolist()))
    return "\n".join(lines)


def _films(settings: Video, balls: int, count: int, bench: Bench, name: str) -> Tensor:
    """Frames (films, time, size, size) of bytes, shared by all variants of a seed."""
    import torch

    from mechanisms._base.seeds import stream_seed
    from mechanisms.lab.data.balls import bouncing_balls

    radius = settings.radius if balls < 8 else 2 / 3 * settings.radius
    curtain = settings.curtain if name == "test" and all(settings.curtain) else None
    films = bouncing_balls(
        count,
        seed=stream_seed(bench.seed, f"films {name}"),
        num_balls=balls,
        radius=radius,
        num_frames=settings.observed + settings.rolled,
        size=settings.size,
        curtain=curtain,
    )
    return torch.from_numpy(films.frames)
