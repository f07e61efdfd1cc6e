"""Train a network on a task of memory (copying, denoising, adding), and test it at longer delays as it is.

`train_recall(settings, make_network, bench)` is the whole of it. `settings` are `Recall` or a class that inherits from
it; `make_network(input_size)` makes anything that maps (time, batch, input_size) to `(output, state)` and has
`output_size`: `Recurrent`, where truncation is an option, or a network that stands in for `nn.LSTM`. Weights are drawn
from the bench's stream "weights", data from "data" and "test", so that variants with one seed are pairs. A linear
readout is put behind.

`train_recall_together` trains the networks of several benches in one batch, with stacked parameters: it pays where a
network is bound by the number of calls, as loops over steps with little arithmetic are.

Returned are numbers by name, curves go to the benches:

- copying and denoising: `accuracy` of the recalled symbols at the trained delay, `recall_loss` (their cross-entropy in
  nats), `loss` (of all steps); `accuracy_at_<delay>` and `recall_loss_at_<delay>` for each of `test_delays`; `chance`;
  `updates_to_<percent>`, the first test at which the accuracy was so high (one update more than there are if never).
- adding: `loss` (mean squared error; predicting 1 always gives `baseline`, 1/6) and `loss_at_<delay>`.

>>> from mechanisms.lab import Bench
>>> from mechanisms.recurrent import LSTMCell, Recurrent
>>> settings = Recall(delay=3, n=2, symbols=2, batch_size=4, updates=2, every=1, test_delays=(6,), test_size=8)
>>> found = train_recall(settings, lambda size: Recurrent(lambda n: LSTMCell(n, 8), size), Bench(seed=0))
>>> sorted(found)[:3]
['accuracy', 'accuracy_at_6', 'chance']
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from torch import Tensor

    from mechanisms.papers._sequences.readout import WithReadout
    from mechanisms.recurrent.tasks import Batch

MakeNetwork = Callable[[int], Any]
REACHED = (50, 90)  # percent: accuracies whose first update is kept
DRAWS = 4096  # test sequences that run at once
DRAWN = 2**17  # steps of training sequences that are drawn at once: one batch alone costs mostly calls


@config
class Recall:
    """A task, a network's size, and how it is trained.

    `delay` is the length of the sequence for adding. `encoding` is that of `copying_task`; "tokens" are embedded in
    `embedding` numbers. `clip` is the largest norm of the gradient, 0 for none. `rmsprop_alpha` is its smoothing.
    """

    task: Literal["copying", "denoise", "adding"] = "copying"
    delay: int = 20
    n: int = 5
    symbols: int = 4
    encoding: Literal["one_hot", "tokens", "scalar"] = "one_hot"
    embedding: int = 16
    hidden_size: int = 64
    batch_size: int = 32
    updates: int = 6000
    optimizer: Literal["adam", "rmsprop"] = "adam"
    lr: float = 2e-3
    rmsprop_alpha: float = 0.99
    clip: float = 1.0
    every: int = 250
    test_delays: tuple[int, ...] = (40, 80, 160)
    test_size: int = 256


def train_recall(settings: Recall, make_network: MakeNetwork, bench: Bench) -> dict[str, Any]:
    """Train one network with one seed and test it; see the module for what is returned.

    Args:
        settings: the task and how to train.
        make_network: makes the network for an input size.
        bench: seed, device, progress and curves: "training_loss", and "accuracy" (or "test_loss" for adding) at the
            trained delay every `every` updates.
    """
    found, _ = train_recall_network(settings, make_network, bench)
    return found


def train_recall_network(
    settings: Recall, make_network: MakeNetwork, bench: Bench
) -> tuple[dict[str, Any], WithReadout]:
    """As `train_recall`, and the trained module with its readout: (time, batch, inputs) to logits; `module.network`."""
    import torch

    from mechanisms._base.seeds import seeded, stream_seed

    with seeded(stream_seed(bench.seed, "weights")):
        model = with_readout(settings, make_network)
    model = model.to(bench.device)
    weights: list[Tensor] = list(model.parameters())
    optimizer, test, reached = _optimizer(settings, weights), Scorer(settings, bench), Reached(settings)
    data = batches(settings, bench.generator("data"), bench.device)
    total = torch.zeros((), device=bench.device)
    for update in range(1, settings.updates + 1):
        inputs, targets = next(data)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(settings, model(inputs), targets)
        loss.backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(weights, settings.clip, foreach=True)
        optimizer.step()
        total += loss.detach()
        bench.progress(update, settings.updates, loss=loss.detach())
        if update % settings.every == 0 or update == settings.updates:
            scores = test(model, settings.delay)
            since = (update - 1) % settings.every + 1
            bench.log(update, training_loss=_short(total / since), **reached.note(update, scores))
            total.zero_()
    return report(settings, reached, [test(model, delay) for delay in (settings.delay, *settings.test_delays)]), model


def train_recall_together(
    settings: Recall, make_network: MakeNetwork, benches: Sequence[Bench]
) -> list[dict[str, Any]]:
    """As `train_recall` for each bench, all in one batch: parameters are stacked, each network has its own data.

    The numbers are those of single runs but for rounding, which training amplifies: a block is a run of its own.
    Networks with noise are not for this: all would share its draws.
    """
    import torch
    from torch.func import functional_call, stack_module_state, vmap

    from mechanisms._base.seeds import seeded, stream_seed

    device = benches[0].device
    models = []
    for bench in benches:
        with seeded(stream_seed(bench.seed, "weights")):
            models.append(with_readout(settings, make_network).to(device))
    weights, buffers = stack_module_state(models)  # pyrefly: ignore[bad-argument-type]
    weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    model, tests = models[0], [Scorer(settings, bench) for bench in benches]

    def one(own: Any, kept: Any, inputs: Tensor) -> Tensor:
        return functional_call(model, (own, kept), (inputs,))

    def of(place: int) -> Callable[[Tensor], Tensor]:
        own = {name: weight[place].detach() for name, weight in weights.items()}
        kept = {name: buffer[place] for name, buffer in buffers.items()}
        return lambda inputs: one(own, kept, inputs)

    run = vmap(one)
    optimizer = _optimizer(settings, list(weights.values()))
    streams = [batches(settings, bench.generator("data"), device) for bench in benches]
    reached = [Reached(settings) for _ in benches]
    total = torch.zeros(len(benches), device=device)
    for update in range(1, settings.updates + 1):
        drawn = [next(stream) for stream in streams]
        inputs, targets = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        optimizer.zero_grad(set_to_none=True)
        losses = vmap(lambda logits, wanted: loss_of(settings, logits, wanted))(run(weights, buffers, inputs), targets)
        losses.sum().backward()
        if settings.clip:
            _clip_each(list(weights.values()), settings.clip)
        optimizer.step()
        total += losses.detach()
        benches[0].progress(update, settings.updates, loss=losses.detach().mean())
        if update % settings.every == 0 or update == settings.updates:
            since = (update - 1) % settings.every + 1
            for place, (bench, test, kept) in enumerate(zip(benches, tests, reached, strict=True)):
                scores = test(of(place), settings.delay)
                bench.log(update, training_loss=_short(total[place] / since), **kept.note(update, scores))
            total.zero_()
    return [
        report(settings, kept, [test(of(place), delay) for delay in (settings.delay, *settings.test_delays)])
        for place, (test, kept) in enumerate(zip(tests, reached, strict=True))
    ]


def with_readout(settings: Recall, make_network: MakeNetwork) -> WithReadout:
    """The network for the task, with its readout."""
    from mechanisms.papers._sequences.readout import WithReadout

    if settings.task == "adding":
        return WithReadout(make_network, 2, 1, last=True)
    classes = settings.symbols + 2
    if settings.encoding == "tokens":
        return WithReadout(make_network, settings.embedding, classes, tokens=classes)
    return WithReadout(make_network, classes if settings.encoding == "one_hot" else 1, classes)


def draw(settings: Recall, batch: int, delay: int, generator: Any, device: Any) -> Batch:
    """Fresh sequences of the task with a delay."""
    from mechanisms.recurrent import adding_task, copying_task, denoise_task
    from mechanisms.recurrent.tasks import Batch

    if settings.task == "adding":
        drawn = adding_task(batch, delay, generator=generator)
    else:
        task = copying_task if settings.task == "copying" else denoise_task
        drawn = task(batch, delay, settings.n, settings.symbols, encoding=settings.encoding, generator=generator)
    return Batch(drawn.inputs.to(device), drawn.targets.to(device))


def batches(settings: Recall, generator: Any, device: Any) -> Iterator[Batch]:
    """Training batches without an end, drawn many at a time; how many there will be changes none of them."""
    from mechanisms.recurrent.tasks import Batch

    size = settings.batch_size
    steps = settings.delay + (0 if settings.task == "adding" else 2 * settings.n)
    count = max(1, DRAWN // (size * steps))
    while True:
        drawn = draw(settings, size * count, settings.delay, generator, device)
        inputs = drawn.inputs.unflatten(1, (count, size)).transpose(0, 1).contiguous()
        if settings.task == "adding":
            targets = drawn.targets.unflatten(0, (count, size))
        else:
            targets = drawn.targets.unflatten(1, (count, size)).transpose(0, 1).contiguous()
        yield from map(Batch, inputs, targets)


def loss_of(settings: Recall, output: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of all steps, or the mean squared error of the sum."""
    from torch.nn import functional as F

    if settings.task == "adding":
        return F.mse_loss(output.squeeze(-1), targets)
    return F.cross_entropy(output.flatten(0, 1), targets.flatten())


class Scorer:
    """Scores on fresh sequences, the same for all variants and at each time of a seed."""

    def __init__(self, settings: Recall, bench: Bench) -> None:
        self.settings, self.bench = settings, bench

    def __call__(self, model: Callable[[Tensor], Tensor], delay: int) -> dict[str, float]:
        """Scores at a delay; long sequences go in parts that take as much memory as short ones."""
        import torch
        from torch import nn

        from mechanisms.recurrent import recall_scores

        settings = self.settings
        generator = self.bench.generator(f"test {delay}")
        part = max(1, min(settings.test_size, DRAWS * 32 // (delay + 2 * settings.n)))
        training = isinstance(model, nn.Module) and model.training
        if isinstance(model, nn.Module):
            model.eval()
        sums: dict[str, float] = {}
        for begin in range(0, settings.test_size, part):
            count = min(part, settings.test_size - begin)
            inputs, targets = draw(settings, count, delay, generator, self.bench.device)
            with torch.no_grad():
                output = model(inputs)
                if settings.task == "adding":
                    scores = {"loss": loss_of(settings, output, targets)}
                else:
                    scores = recall_scores(output, targets, settings.n)._asdict()
            for name, value in scores.items():
                sums[name] = sums.get(name, 0.0) + float(value) * count / settings.test_size
        if isinstance(model, nn.Module):
            model.train(training)
        return sums


class Reached:
    """When an accuracy was first seen."""

    def __init__(self, settings: Recall) -> None:
        self.adding = settings.task == "adding"
        self.updates = dict.fromkeys(REACHED, settings.updates + 1)
        self.never = settings.updates + 1

    def note(self, update: int, scores: dict[str, float]) -> dict[str, float]:
        """What goes to the curves."""
        if self.adding:
            return {"test_loss": _short(scores["loss"])}
        for percent, first in self.updates.items():
            if first == self.never and scores["accuracy"] * 100 >= percent:
                self.updates[percent] = update
        return {"accuracy": round(scores["accuracy"], 4)}


def report(settings: Recall, reached: Reached, scores: list[dict[str, float]]) -> dict[str, Any]:
    """Numbers by name from the scores at the trained delay and at `test_delays`."""
    found: dict[str, Any] = dict(scores[0])
    for delay, at in zip(settings.test_delays, scores[1:], strict=True):
        names = ("loss",) if settings.task == "adding" else ("accuracy", "recall_loss")
        found |= {f"{name}_at_{delay}": at[name] for name in names}
    if settings.task == "adding":
        return found | {"baseline": 1 / 6}
    found |= {f"updates_to_{percent}": first for percent, first in reached.updates.items()}
    return found | {"chance": 1 / settings.symbols}


def _optimizer(settings: Recall, parameters: list[Tensor]) -> Any:
    import torch

    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, fused=True)
    return torch.optim.RMSprop(parameters, lr=settings.lr, alpha=settings.rmsprop_alpha)


def _clip_each(weights: list[Tensor], most: float) -> None:
    """Gradients (networks, ...) scaled so that no network's norm is above `most`, as `clip_grad_norm_` does for one."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norms = sum(gradient.flatten(1).square().sum(1) for gradient in gradients) ** 0.5
    scale = (most / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def _short(value: Any) -> float:
    return float(f"{float(value):.4g}")
