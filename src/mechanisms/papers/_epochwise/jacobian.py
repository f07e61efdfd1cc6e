"""Which directions of a network's Jacobian are learned when: the parameters' change along its singular vectors.

Phi = U diag(s) V^T is the Jacobian of one output over n examples at initialisation, (n, m). What has been learned along
the right singular vector v_j at time t is v_j^T (theta_t - theta_0) = u_j^T Phi (theta_t - theta_0) / s_j: the kernel
Phi Phi^T gives u_j and s_j, and one Jacobian-vector product Phi (theta_t - theta_0), so Phi is never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mechanisms.lab import Bench, Claim, Experiment, Figure, all_of, at_least, at_most, better_than, config
from mechanisms.lab.figures import INK, canvas, line
from mechanisms.papers._epochwise import resnet
from mechanisms.papers._epochwise.students import kept_steps

if TYPE_CHECKING:
    import plotly.graph_objects
    from torch import Tensor, nn

    from mechanisms.lab.data import Splits
    from mechanisms.lab.records import Cell

VARIANT = "l2-1e-8"
GROUPS = ("large", "small")
# Of the largest singular value: below it the kernel, whose eigenvalues are squares, has no digits left in float64.
FLOOR = 1e-6


@config
class JacobianModes(resnet.NoisyCifar):
    """Settings beside those of the ResNet-18 on noisy CIFAR-10.

    `examples` of the training set (the first ones, without augmentation) and the logit of class `output` make the
    Jacobian; its `num_large` largest singular values are the large ones. `chunk` examples at a time are computed with.
    The network "digits-mlp" has one hidden layer of `hidden` units and learns scikit-learn's digits, without
    augmentation, whatever `data` says.
    """

    network: Literal["resnet-18", "digits-mlp"] = "resnet-18"
    examples: int = 1000
    num_large: int = 100
    output: int = 0
    chunk: int = 50
    hidden: int = 128


class Modes(NamedTuple):
    """Left singular vectors (examples, modes) and singular values (modes,) of the Jacobian, largest first."""

    weights: Tensor
    strengths: Tensor


def run(settings: JacobianModes, variant: str, bench: Bench) -> dict[str, Any]:
    """Train once; follow the parameters along the singular vectors of the first Jacobian."""
    import torch

    if not 0 < settings.num_large < settings.examples:
        raise ValueError(
            f"num_large={settings.num_large}: expected 1 to {settings.examples - 1}, so that both groups of the "
            f"{settings.examples} singular values have members"
        )
    small = settings.network == "digits-mlp"
    task = resnet.noisy(digits(bench.seed) if small else resnet.load(settings, bench), settings, bench)
    model = perceptron(settings, bench) if small else resnet.network(settings, bench)
    precision = torch.float32 if task.x.device.type == "mps" else torch.float64  # MPS has no float64
    x = task.x[: settings.examples].to(precision) / 255
    first = frozen(model, x)
    found = bench.cached("modes", lambda: modes(first, x, settings.output, settings.chunk, bench.progress)._asdict())
    spectrum = Modes(**{name: value.to(x) for name, value in found.items()})
    kept = set(kept_steps(settings.epochs))

    def observe(epoch: int) -> dict[str, float]:
        if epoch not in kept:
            return {}
        before = dict(first.named_parameters())
        change = {name: value.detach().to(x) - before[name] for name, value in model.named_parameters()}
        along = projections(spectrum, response(first, x, change, settings.output, settings.chunk))
        parts = along[: settings.num_large], along[settings.num_large :]
        return dict(zip(GROUPS, torch.stack([part.norm() for part in parts]).tolist(), strict=True))

    weight_decay = resnet.DECAYS[variant]
    checkpoint = f"jacobian-{variant}"
    resnet.fit(settings, bench, model, task, weight_decay, checkpoint, augment=not small, observe=observe)
    return shares(bench, resnet.summary(settings, bench, task)) | keep_spectrum(bench, spectrum, settings.num_large)


def digits(seed: int) -> Splits:
    """scikit-learn's digits in CIFAR's format: bytes, channels last (one of them)."""
    import numpy as np

    from mechanisms.lab import data

    found = data.digits(seed)
    parts = (found.train, found.validation, found.test)
    return data.Splits(*(data.Split((255 * part.x).round().astype(np.uint8)[..., None], part.y) for part in parts))


def perceptron(settings: JacobianModes, bench: Bench) -> nn.Module:
    """An MLP for digits with this seed's first weights."""
    from torch import nn

    from mechanisms._base.seeds import seeded, stream_seed

    with seeded(stream_seed(bench.seed, "weights")):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 10))


def frozen(model: nn.Module, like: Tensor) -> nn.Module:
    """A copy of the network in evaluation mode, of the type and on the device of a tensor.

    Batch norm then uses its running statistics, which at initialisation are mean 0 and variance 1: the Jacobian is that
    of a network whose normalisation is the identity, and stays so while the trained one's statistics move.
    """
    import copy

    return copy.deepcopy(model).to(like.device, like.dtype).eval()


def modes(
    network: nn.Module,
    x: Tensor,
    output: int,
    chunk: int,
    progress: Callable[[int, int], object] | None = None,
) -> Modes:
    """Singular vectors and values of the Jacobian of an output over examples, without those that are rounding."""
    from mechanisms.dynamics.features import decompose_kernel, jacobian_kernel

    kernel = jacobian_kernel(network, x, output=output, chunk_size=chunk, progress=progress)
    found = decompose_kernel(kernel)
    rank = int((found.strengths > FLOOR * found.strengths[0]).sum())
    # In the layout in which they come back from a file, so that a run that goes on has the same bits.
    return Modes(found.weights[:, :rank].contiguous(), found.strengths[:rank].contiguous())


def response(network: nn.Module, x: Tensor, change: Mapping[str, Tensor], output: int, chunk: int) -> Tensor:
    """What a change of the parameters does to the output to first order, Phi change, (examples,)."""
    import torch
    from torch.func import functional_call, jvp

    weights = {name: value.detach() for name, value in network.named_parameters()}
    buffers = dict(network.named_buffers())
    parts = []
    for part in x.split(chunk):

        def outputs(weights: dict[str, Tensor], part: Tensor = part) -> Tensor:
            return functional_call(network, (weights, buffers), (part,))[:, output]

        parts.append(jvp(outputs, (weights,), (dict(change),))[1])
    return torch.cat(parts)


def projections(spectrum: Modes, response: Tensor) -> Tensor:
    """The change of the parameters along each right singular vector, (modes,), from its response Phi change."""
    return (response @ spectrum.weights) / spectrum.strengths


def shares(bench: Bench, metrics: dict[str, Any]) -> dict[str, Any]:
    """Lengths of the projections relative to those after the last epoch, and the epoch at which each is half of it."""
    import math

    import numpy as np

    for group in GROUPS:
        epochs, lengths = bench.curves.pop(group)
        share = np.array(lengths) / lengths[-1]
        bench.curves[f"learned_{group}"] = (epochs, np.round(share, 4).tolist())
        x, y = np.array([0.0, *epochs]), np.array([0.0, *share])
        after = int((y >= 0.5).argmax())
        metrics[f"half_epoch_{group}"] = float(np.interp(0.5, y[after - 1 : after + 1], x[after - 1 : after + 1]))
        metrics[f"{group}_at_first_minimum"] = float(np.interp(metrics["first_minimum_epoch"], x, y))
        metrics[f"length_{group}"] = float(lengths[-1])
    metrics["lead"] = math.log10(metrics["half_epoch_small"] / metrics["half_epoch_large"])
    return metrics


def keep_spectrum(bench: Bench, spectrum: Modes, num_large: int) -> dict[str, Any]:
    """The singular values as a curve over their rank, thinned evenly in its logarithm, and how far they fall."""
    import numpy as np

    values = spectrum.strengths.tolist()
    for rank in np.unique(np.geomspace(1, len(values), 80).round().astype(int)).tolist():
        bench.log(rank, singular_value=float(f"{values[rank - 1]:.4g}"))
    return {
        "modes": len(values),
        "split_over_largest": values[num_large - 1] / values[0],
        "smallest_over_largest": values[-1] / values[0],
    }


def draw_spectrum(cell: Cell) -> plotly.graph_objects.Figure:
    """Singular values over their rank, a line for each seed."""
    import math

    figure = canvas(x="rank", y="singular value of the Jacobian", log_x=True, log_y=True, legend=False)
    runs = cell.curves("singular_value", VARIANT)
    for seed, curve in runs.items():
        hover = f"seed {seed}, rank %{{x}}: %{{y:.3g}}<extra></extra>"
        look = line(0, width=1.2)
        figure.add_scatter(x=curve.step, y=curve.value, mode="lines", line=look, opacity=0.6, hovertemplate=hover)
    if runs:
        split = float(cell.config.get("num_large", JacobianModes.num_large))
        figure.add_vline(x=split, line={"color": INK[0], "dash": "dot"})
        # On a logarithmic axis an annotation stands at the logarithm.
        figure.add_annotation(x=math.log10(split), y=1, yref="paper", text="large | small", showarrow=False)
    return _or_nothing(figure)


def draw_learning(cell: Cell) -> plotly.graph_objects.Figure:
    """Learned shares of both groups and the test error over epochs: mean over seeds."""
    import numpy as np

    figure = canvas(x="epoch", y="learned share of the final projection", log_x=True)
    lines = (
        ("learned_large", "large singular values", "y"),
        ("learned_small", "small singular values", "y"),
        ("test_error", "test error (right)", "y2"),
    )
    for place, (name, label, axis) in enumerate(lines):
        runs = list(cell.curves(name, VARIANT).values())
        if not runs:
            continue
        epochs = np.array(runs[0].step, float)
        mean = np.mean([np.interp(epochs, run.step, np.array(run.value, float)) for run in runs], axis=0)
        figure.add_scatter(
            x=epochs.tolist(),
            y=np.round(mean, 4).tolist(),
            name=label,
            mode="lines",
            line=line(place),
            yaxis=axis,
            hovertemplate=f"{label}, epoch %{{x:.0f}}: %{{y:.3f}}<extra></extra>",
        )
    right = {"title": "test error", "overlaying": "y", "side": "right", "showgrid": False, "tickmode": "auto"}
    figure.update_layout(yaxis2=right | {"rangemode": "tozero", "automargin": True}, yaxis_rangemode="tozero")
    return _or_nothing(figure)


def _or_nothing(figure: plotly.graph_objects.Figure) -> plotly.graph_objects.Figure:
    if not figure.data:
        figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text="no records yet", showarrow=False)
    return figure


PUBLISHED = (
    "large by the first descent (epoch 40), small by epoch 1100; test error 0.160, 0.128, 0.142, 0.124 (read off a "
    "plot in the paper's public discussion)"
)

EXPERIMENT = Experiment(
    name="jacobian-modes",
    description="Along which singular vectors of the first Jacobian the parameters have moved, over training: those of "
    "large and of small singular values. Paper scale: ResNet-18 on noisy CIFAR-10, 1,000 examples (a GPU for about a "
    "day); in small: an MLP on digits with 15 % of the labels permuted, which is not expected to descend twice.",
    run=run,
    variants=(VARIANT,),
    scales={
        "smoke": JacobianModes(
            data="generated", width=2, epochs=2, batch_size=48, lr=1e-3, last=1, window=1, examples=12, num_large=4
        ),
        "laptop": JacobianModes(
            network="digits-mlp", epochs=75, lr=5e-3, last=10, examples=200, num_large=20, chunk=200
        ),
        "paper": JacobianModes(),
    },
    claims=(
        Claim(
            "Directions of large singular values reach half of their final projection before those of small ones",
            better_than("lead", VARIANT, 0.0),
            published=PUBLISHED,
            note="Ours: half, by epoch; lead is log10 of the ratio of the two epochs. In small an MLP on digits, which "
            "says nothing on double descent.",
        ),
        Claim(
            "At the first descent the large directions are learned, and the small ones are not",
            all_of(
                at_least("large_at_first_minimum", VARIANT, 0.5),
                at_most("small_at_first_minimum", VARIANT, 0.5),
            ),
            published=PUBLISHED,
            scales=("paper",),
            note="Ours: half of the final projection, at the first minimum of the test error.",
        ),
    ),
    figures=(
        Figure(
            "Singular values of the Jacobian",
            draw_spectrum,
            "At initialisation, of one logit over the examples; one line for each seed.",
        ),
        Figure(
            "What is learned along large and small singular values",
            draw_learning,
            "Length of the parameters' change projected on each group of right singular vectors, relative to the last "
            "epoch, beside the test error; mean over seeds.",
        ),
    ),
    seeds=10,
)
