"""How far back gradients reach: at initial weights, exactly, and after one epoch on pixels, as the paper shows it."""

from __future__ import annotations

from typing import Any

from mechanisms.lab import Bench, config
from mechanisms.papers._zoneout.images import STEPS, Images, pixel_order
from mechanisms.papers._zoneout.networks import make_cell


@config
class Reach:
    """An untrained LSTM in double precision, all its biases 0.

    Args:
        steps: T; the loss is the sum of the outputs one step later.
        hidden_size, input_size, batch_size: sizes.
        networks: so many draws of weights, inputs and masks.
        zoneout_cell, zoneout_hidden: rates; only the memory's is asked about.
        dropout: rate of recurrent dropout.
    """

    steps: int = 100
    hidden_size: int = 32
    input_size: int = 8
    batch_size: int = 4
    networks: int = 10
    zoneout_cell: float = 0.5
    zoneout_hidden: float = 0.0
    dropout: float = 0.25


def run_reach(settings: Reach, variant: str, bench: Bench) -> dict[str, Any]:
    """‖∂L/∂c_1‖ / ‖∂L/∂c_T‖ of each network, and how many times the plain LSTM's that is."""
    import torch

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.recurrent import LSTMCell, RecurrentDropoutLSTMCell, Zoneout, gradient_flow

    ratios: dict[str, list[float]] = {"plain": [], variant: []}
    flows = []
    for number in range(settings.networks):
        with seeded(stream_seed(bench.seed, f"weights {number}")):
            inner = LSTMCell(settings.input_size, settings.hidden_size)
            dropping = RecurrentDropoutLSTMCell(settings.input_size, settings.hidden_size, rate=settings.dropout)
        for name, parameter in inner.named_parameters():
            if name.startswith("bias"):
                torch.nn.init.zeros_(parameter)
        dropping.load_state_dict(inner.state_dict())
        rates = {"c": settings.zoneout_cell, "h": settings.zoneout_hidden}
        cells = {"plain": inner, "zoneout": Zoneout(inner, rates), "recurrent-dropout": dropping}
        shape = (settings.steps + 1, settings.batch_size, settings.input_size)
        inputs = torch.randn(shape, generator=bench.generator(f"inputs {number}"))
        for name, found in ratios.items():
            # With Zoneout the output of step T comes from the memory before it is held, so that the loss stands one
            # step later: otherwise it would not depend on c_T at all.
            flow = gradient_flow(
                cells[name],
                inputs,
                lambda outputs: outputs[-1].sum(),
                leaf="c",
                generator=bench.generator(f"masks {number}"),
            )[: settings.steps]
            found.append(float(flow[0] / flow[-1]))
            if name == variant:
                flows.append(flow / flow[-1])
    mean = torch.stack(flows).log().mean(0).exp()
    for step, value in enumerate(mean.tolist(), start=1):
        bench.log(step, gradient=float(f"{value:.4g}"))
    gains = [own / plain for own, plain in zip(ratios[variant], ratios["plain"], strict=True)]
    return {
        "ratio": [float(f"{value:.5g}") for value in ratios[variant]],
        "gain": [float(f"{value:.5g}") for value in gains],
        "gain_over_10": [gain > 10 for gain in gains],
    }


@config
class Flow(Images):
    """One epoch on pixels, then the gradient on some training images.

    Args:
        shown: images whose gradients are averaged.
    """

    shown: int = 100
    epochs: int = 1


def run_flow(settings: Flow, variant: str, bench: Bench) -> dict[str, Any]:
    """The mean of ‖∂L/∂c_t‖ over images, for each step t, after `epochs` epochs."""
    import copy

    import torch
    from torch.nn import functional as F

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.lab.batches import Batches
    from mechanisms.lab.training import train
    from mechanisms.papers._sequences.classifier import LastOutputClassifier
    from mechanisms.papers._sequences.pixels import make_optimizer, read_splits
    from mechanisms.recurrent import Recurrent, gradient_flow, sequential_images

    steps = STEPS[settings.data]
    split = read_splits(settings, bench.seed).train
    order = pixel_order(settings, bench)
    x, y = torch.tensor(split.x), torch.tensor(split.y)
    scale = 1.0 if x.is_floating_point() else 255.0
    with seeded(stream_seed(bench.seed, "weights")):
        cell = make_cell(variant, settings, 1, steps)
    with seeded(stream_seed(bench.seed, "head")):
        model = LastOutputClassifier(Recurrent(cell, 1), 10)

    def ready(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sequential_images(x[rows] / scale, permutation=order).to(bench.device), y[rows].to(bench.device)

    def loss(model: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch[0])[0], batch[1])

    batches = Batches(len(x), settings.batch_size, bench.seed, ready)
    total = settings.epochs * len(batches)
    with seeded(stream_seed(bench.seed, "noise"), bench.device):
        optimizer = make_optimizer(model, settings)
        train(bench, model, optimizer, batches, loss, steps=total, every=total, clip=settings.clip)
    inputs, labels = ready(torch.arange(min(settings.shown, len(x))))
    head = copy.deepcopy(model.head).double()
    flow = gradient_flow(
        cell.train(),
        inputs,
        # The sum: each image's gradient by itself, then the mean of their norms.
        lambda outputs: F.cross_entropy(head(outputs[-1]), labels, reduction="sum"),
        leaf="c",
        generator=bench.generator("masks", bench.device),
    )
    for step, value in enumerate(flow[:-1].tolist(), start=1):
        bench.log(step, gradient=float(f"{value:.4g}"))
    return {"first": float(flow[0]), "last": float(flow[-2]), "reach": float(flow[0] / flow[-2])}
