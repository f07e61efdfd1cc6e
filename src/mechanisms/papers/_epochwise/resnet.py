"""ResNet-18 on CIFAR-10 with permuted labels: test error over training, for weak and strong weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, Claim, Experiment, Figure, all_of, at_least, at_most, close_to, config
from mechanisms.lab.figures import canvas, curves, plain

if TYPE_CHECKING:
    import numpy as np
    import plotly.graph_objects
    from torch import Tensor, nn

    from mechanisms.lab.records import Cell

# Coupled weight decay of Adam by variant; the last one is 10^-1.5.
DECAYS = {"l2-1e-8": 1e-8, "l2-1e-3": 1e-3, "l2-1e-2": 1e-2, "l2-3e-2": 10**-1.5}


@config
class NoisyCifar:
    """Settings of the ResNet-18 on noisy CIFAR-10.

    `path` is a folder or `.npz` file and `hub` a name on the Hugging Face hub; without them `$MECHANISMS_DATA/cifar-10`
    is looked at. `last` epochs are averaged for the final error, `window` for the running mean.
    """

    data: Literal["cifar-10", "generated"] = "cifar-10"
    path: str = ""
    hub: str = ""
    label_noise: float = 0.15
    width: int = 64
    epochs: int = 1001
    batch_size: int = 128
    lr: float = 1e-4
    window: int = 5
    last: int = 50
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"


def run(settings: NoisyCifar, variant: str, bench: Bench) -> dict[str, Any]:
    """Train once and describe the curve of the test error."""
    import torch
    from torch.nn import functional

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.lab.data.cifar import cifar10
    from mechanisms.lab.training import train
    from mechanisms.papers._vision import ResNet, generated_images, in_memory, on_device, outputs, place, thin

    if settings.data == "generated":
        splits = generated_images(96, 48, 10, bench.seed)
    else:
        splits = cifar10(settings.path or None, hub=settings.hub)
    labels = permute_some(splits.train.y, settings.label_noise, bench.numpy("noise"))
    bench.precision = settings.precision
    device = bench.fabric.device
    x, test_x = (on_device(part.x, device) for part in (splits.train, splits.test))
    y, test_y = (torch.from_numpy(part).to(device) for part in (labels, splits.test.y))
    with seeded(stream_seed(bench.seed, "weights")):
        model = ResNet(18, 10, width=settings.width)
    place(model, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=DECAYS[variant])
    batches = in_memory(x, y, settings.batch_size, bench.seed, augment=True)
    epoch_steps = len(batches)
    seen: list[Tensor] = []

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = network(batch[0])
        seen.append((logits.detach().argmax(1) != batch[1]).float().mean())
        return functional.cross_entropy(logits, batch[1])

    def evaluate(network: nn.Module) -> dict[str, float]:
        epoch = len(bench.curves.get("test_error", ([], []))[0]) + 1
        wrong = (outputs(network, test_x).argmax(1) != test_y).float().mean()
        bench.log(epoch, test_error=float(wrong), train_error=float(torch.stack(seen).mean()))
        seen.clear()
        return {}

    train(
        bench,
        model,
        optimizer,
        batches,
        loss,
        steps=settings.epochs * epoch_steps,
        evaluate=evaluate,
        every=epoch_steps,
        checkpoint=f"resnet-{variant}",
    )
    metrics = describe(bench.curves["test_error"][1], settings.window, settings.last)
    metrics["final_train_error"] = sum(late := bench.curves["train_error"][1][-settings.last :]) / len(late)
    metrics["wrong_labels"] = float((labels != splits.train.y).mean())
    for name in ("test_error", "train_error", "loss"):
        thin(bench.curves, name)
    return metrics


def permute_some(labels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """The labels, with those of a random share of the examples permuted among themselves (so that some stay right)."""
    rows = generator.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[rows] = labels[generator.permutation(rows)]
    return noisy


def describe(error: list[float], window: int, last: int) -> dict[str, float]:
    """First minimum and peak of a curve with one value for each epoch, and its end.

    The curve is its running mean over `window` epochs. First minimum and peak are the earlier and the later of the two
    points between which it rises most; a curve that only falls has both at one place.
    """
    import numpy as np

    window = min(window, len(error))
    smooth = np.convolve(error, np.ones(window) / window, mode="valid")
    lowest = np.minimum.accumulate(smooth)
    peak = int((smooth - lowest).argmax())
    first = int(smooth[: peak + 1].argmin())
    middle = (window + 1) / 2  # the epoch in the middle of the first window
    final = float(np.mean(error[-last:]))
    return {
        "first_minimum": float(smooth[first]),
        "first_minimum_epoch": first + middle,
        "peak": float(smooth[peak]),
        "peak_epoch": peak + middle,
        "rise": float(smooth[peak] - smooth[first]),
        "final": final,
        "final_excess": final - float(smooth[first]),
    }


def draw_map(cell: Cell) -> plotly.graph_objects.Figure:
    """Test error over weight decay and epoch: mean over seeds, a row for each variant."""
    import numpy as np

    figure = canvas(x="epoch", log_x=True, height=300, legend=False)
    names = [name for name in DECAYS if cell.curves("test_error", name)]
    if not names:
        figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text="no records yet", showarrow=False)
        return figure
    runs = {name: list(cell.curves("test_error", name).values()) for name in names}
    last = max(curve.step[-1] for found in runs.values() for curve in found)
    edges = np.geomspace(1, last + 1, 81)
    epochs = np.sqrt(edges[1:] * edges[:-1])
    rows = [
        np.mean([np.interp(epochs, c.step, np.array(c.value, float)) for c in runs[name]], axis=0) for name in names
    ]
    figure.add_heatmap(
        x=edges.tolist(),
        y=[plain(name) for name in names],
        z=np.round(rows, 4).tolist(),
        zmin=float(np.nanmin(rows)),
        zmax=2 * float(np.nanmin(rows)),  # the first epochs would take all the colours
        colorscale="Viridis",
        colorbar={"title": "test error"},
        hovertemplate="%{y}, epoch %{x:.0f}: %{z:.3f}<extra></extra>",
    )
    figure.update_yaxes(type="category")
    return figure


TABLE = "mean of five seeds in the authors' published logs"
WIDTH = 0.027  # three of the published standard deviations over seeds (0.009)

EXPERIMENT = Experiment(
    name="resnet-noisy-cifar",
    description="ResNet-18 on CIFAR-10 with 15 % of the labels permuted among themselves, 1,001 epochs of Adam. Needs "
    "CIFAR-10 (path=FOLDER, hub=NAME or MECHANISMS_DATA) and a GPU for about a day a run; runs that are stopped go on.",
    run=run,
    variants=tuple(DECAYS),
    scales={
        "smoke": NoisyCifar(data="generated", width=4, epochs=3, batch_size=48, lr=1e-3),
        "paper": NoisyCifar(),
    },
    claims=(
        Claim(
            "A ResNet-18 on noisy CIFAR-10 descends twice when weight decay is small",
            all_of(
                at_least("rise", "l2-1e-8", 0.04),
                at_most("final_excess", "l2-1e-8", 0.01),
            ),
            published=f"first minimum 0.195, peak 0.264, end 0.189 ({TABLE})",
            scales=("paper",),
        ),
        Claim(
            "... with the published first minimum, peak and final error",
            all_of(
                close_to("first_minimum", "l2-1e-8", 0.195, within=WIDTH, bounds=(0, 1)),
                close_to("peak", "l2-1e-8", 0.264, within=WIDTH, bounds=(0, 1)),
                close_to("final", "l2-1e-8", 0.189, within=WIDTH, bounds=(0, 1)),
            ),
            published=f"0.195 at epoch 25, 0.264 at epoch 69, 0.189 ({TABLE})",
            scales=("paper",),
            note="The tolerance is ours: three of the published standard deviations over seeds.",
        ),
        Claim(
            "Stronger weight decay takes the second descent away (1e-2), then the ascent (10^-1.5)",
            all_of(
                at_least("final_excess", "l2-1e-2", 0.04),
                at_most("rise", "l2-3e-2", 0.04),
            ),
            published=f"1e-2: 0.214, rises to 0.278 and stays; 10^-1.5: monotone to 0.217 ({TABLE})",
            scales=("paper",),
            note="The threshold of the rise for small weight decay, used for both.",
        ),
    ),
    figures=(
        Figure(
            "Test error over weight decay and training",
            draw_map,
            "Figure 2 a of the paper on four strengths. Weak: down, up, down again; middle: no second descent; strong: "
            "neither.",
        ),
        curves("test_error", "Test error over training", variants=tuple(DECAYS), x="epoch", log_x=True),
        curves("train_error", "Error on the noisy training labels", variants=tuple(DECAYS), x="epoch", log_x=True),
    ),
    seeds=5,
)
