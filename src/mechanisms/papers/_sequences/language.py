"""Language models of characters or words, trained as the recurrent papers do; the recipe brings the network.

    tokens = character_tokens(manual_text())                        # or penn_treebank(), text8() of mechanisms.lab.data
    settings = Language(window=50, updates=2000)                    # or a recipe's own @config class, derived from it
    result = train_language(make_network, tokens, settings, bench)  # bench curves: train_bpc, validation_bpc
    result.metrics["best_validation_bpc"], result.model

`make_network(input_size)` returns a network `network(x, state, generator=...) -> (output, state)` of inputs (T, B, I):
a `Recurrent`, or one that stands in for `nn.LSTM` (with `carry` a `Recurrent`, so that a run that was killed can go
on). Its initial weights are drawn from the seed alone; draw them before anything else, and variants are paired.

Either windows are shuffled, at a random offset in each epoch, and start from the network's initial state; or, with
`carry`, rows of consecutive text hand their state on from window to window, and from row to row between epochs. Every
`every` updates the text is read in evaluation mode; the weights that were best on validation are tested. Losses may
have a penalty on the outputs, `penalty(outputs (T, B, O)) -> scalar`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mechanisms.lab.data import Tokens
    from mechanisms.papers._sequences.language_model import LanguageModel


@config
class Language:
    """How a language model is trained; defaults are those of characters at laptop scale.

    Args:
        window: tokens of a window; one less is predicted, or all of them with `carry`.
        batch_size: windows (or rows) of a batch.
        carry: whether rows hand their state on.
        embedding: size of learned embeddings; 0 puts one-hot vectors straight into the network.
        optimizer, lr: of torch, otherwise with its defaults.
        clip: largest norm over all parameters; 0 for none.
        clipped: what is clipped: the gradient, or the update that the optimiser makes of it.
        weight_noise: standard deviation of noise on the weights, fresh for each batch.
        updates: how many there are, at least.
        patience: evaluations without a better validation after which training ends, once `updates` are done.
        most_updates: the end in any case; `updates` if that is more.
        every: updates between evaluations.
        evaluated: windows (or rows) that are evaluated at once.
        measure: bits per token ("bpc") or perplexity.
        precision: of Fabric.
    """

    window: int = 50
    batch_size: int = 16
    carry: bool = False
    embedding: int = 0
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 5e-3
    clip: float = 1.0
    clipped: Literal["gradient", "update"] = "gradient"
    weight_noise: float = 0.0
    updates: int = 2000
    patience: int = 0
    most_updates: int = 0
    every: int = 100
    evaluated: int = 256
    measure: Literal["bpc", "perplexity"] = "bpc"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"


@dataclass(frozen=True)
class Trained:
    """The model with the weights that were best on validation, and what was measured.

    Args:
        model: in evaluation mode.
        metrics: `best_validation_*`, `best_update`, `test_*` (at the best), `validation_*`, `train_*` and `gap`, the
            difference of the two, after `updates` (not at a later end), `lasted`, the updates made; `*` is the measure.
    """

    model: LanguageModel
    metrics: dict[str, float]


def train_language(
    make_network: Callable[[int], nn.Module],
    tokens: Tokens,
    settings: Language,
    bench: Bench,
    *,
    penalty: Callable[[Tensor], Tensor] | None = None,
    name: str = "language",
) -> Trained:
    """Train, evaluate, keep the best; curves go to the bench, and a run that was killed goes on where it was.

    Args:
        make_network: see above.
        tokens: the corpus.
        settings: see `Language`.
        bench: gives seed, device, progress, logging and the checkpoint.
        penalty: added to the loss; it gets the network's outputs (T, B, O).
        name: of the checkpoint: say the variant in it.

    Raises:
        ValueError: the text is shorter than a window or a batch of rows; `carry` with several processes.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.lab.together import rank
    from mechanisms.papers._sequences.language_model import (
        Best,
        LanguageModel,
        Rows,
        Windows,
        clipped_step,
        endless,
        on_device,
        read,
    )
    from mechanisms.recurrent.zoneout_baselines import weight_noise

    bench.precision = settings.precision
    fabric = bench.fabric
    device = fabric.device
    train, validation, test = (on_device(part, device) for part in (tokens.train, tokens.validation, tokens.test))
    vocabulary = len(tokens.vocabulary)
    with seeded(stream_seed(bench.seed, "weights")):
        network = make_network(settings.embedding or vocabulary)
    with seeded(stream_seed(bench.seed, "readout")):
        model = LanguageModel(network, vocabulary, settings.embedding).to(device)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
    # With losses scaled for float16 a fused step would divide the scale out itself, after the gradients are clipped.
    fused = settings.precision != "16-mixed"
    wrapped, optimizer = fabric.setup(model, kind(model.parameters(), lr=settings.lr, fused=fused))
    noise, shaken = bench.generator(f"noise {rank()}", device), bench.generator("weight noise", device)
    source = (
        Rows(train, settings.window, settings.batch_size, model.network)
        if settings.carry
        else Windows(train, settings.window, settings.batch_size, bench.seed)
    )
    best = Best()
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "source": source, "best": best}
    parts |= {"noise": noise, "weight noise": shaken, "precision": fabric.strategy.precision}
    kept = bench.checkpoint(name)
    update = kept.restore(parts)
    total = max(settings.updates, settings.most_updates)
    # Enough to judge a fit by, and never more than what validation costs.
    fitted = train[: len(validation)]

    def going() -> bool:
        if update < settings.updates:
            return True
        return update < total and update - best.update < settings.patience * settings.every

    def measured(text: Tensor) -> float:
        bits = read(wrapped, text, settings.window, settings.batch_size if settings.carry else 0, settings.evaluated)
        return bits if settings.measure == "bpc" else 2.0 ** min(bits, 1000.0)

    batches = endless(source)
    while going():
        batch = next(batches)
        wrapped.train()
        optimizer.zero_grad()
        shake = settings.weight_noise > 0
        with weight_noise(model, settings.weight_noise, generator=shaken) if shake else nullcontext():
            logits, output, state = wrapped(batch[:-1], source.state, generator=noise)
            loss = cross_entropy(logits.flatten(0, 1).float(), batch[1:].flatten())
            fabric.backward(loss if penalty is None else loss + penalty(output))
        source.hand_on(state)
        if settings.clip and settings.clipped == "update":
            clipped_step(optimizer, list(model.parameters()), settings.clip)
        else:
            if settings.clip:
                fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip)
            optimizer.step()
        update += 1
        bench.progress(update, total, loss=loss.detach())
        if update % settings.every == 0 or update == settings.updates or not going():
            wrapped.eval()
            values = {"train": measured(fitted), "validation": measured(validation)}
            bench.log(update, **{f"{part}_{settings.measure}": round(value, 5) for part, value in values.items()})
            best.see(update, values["validation"], model)
            if update == settings.updates:
                best.planned = values
            kept.keep(update, parts, now=not going())
    model.load_state_dict(best.weights)
    model.eval()
    found = {
        "best_validation": best.value,
        "test": measured(test),
        "validation": best.planned["validation"],
        "train": best.planned["train"],
    }
    metrics = {f"{part}_{settings.measure}": value for part, value in found.items()}
    metrics["gap"] = best.planned["validation"] - best.planned["train"]
    return Trained(model, metrics | {"best_update": best.update, "lasted": update})
