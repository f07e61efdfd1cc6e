"""The paper's own settings: speech as frames of raw samples, digits pixel by pixel, sentences of film reviews.

Training keeps the network that is best on the validation split, and halves the step size when that stops improving.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mechanisms.lab import Bench, config
from mechanisms.papers._z_forcing import generated
from mechanisms.papers._z_forcing.blocks import FRAMES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mechanisms.lab.data import Frames

# Inputs, targets, lengths (None when all are whole), and how many elements count in each row.
Read = Callable[["Tensor"], tuple["Tensor", "Tensor", list[int] | None]]
PARTS = ("train", "validation", "test")


@config
class Corpus:
    """What is modelled, and how it is trained; sizes are those of the speech models on TIMIT."""

    data: Literal["timit", "blizzard", "binarised-mnist", "imdb"] = "timit"
    path: str = ""
    hub: str = ""
    stand_in: int = 0
    hidden_size: int = 1024
    embedding_size: int = 512
    mlp_size: int = 512
    latent_size: int = 256
    vocabulary: int = 16_000
    words: int = 16
    batch_size: int = 32
    evaluation_rows: int = 64
    epochs: int = 100
    lr: float = 1e-3
    lr_floor: float = 1e-4
    patience: int = 2
    clip: float = 100.0
    alpha: float = 0.005
    beta: float = 0.0
    kl_start: float = 0.2
    kl_step: float = 5e-5
    num_samples: int = 1


class Source(NamedTuple):
    """A corpus: how many sequences each part has, and a reader for each."""

    counts: dict[str, int]
    read: dict[str, Read]
    size: int
    likelihood: str


def run(settings: Corpus, variant: str, bench: Bench) -> dict[str, Any]:
    """One variant with one seed: the bound on the test split, in nats per sequence."""
    import torch

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.lab.batches import Batches

    kind = FRAMES[variant]
    source = open_source(settings, bench)
    with seeded(stream_seed(bench.seed, "weights")):
        network = make_network(settings, source, latent=kind.latent, auxiliary=kind.alpha > 0).to(bench.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr, eps=1e-5)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=settings.patience, min_lr=settings.lr_floor
    )
    batches = Batches(source.counts["train"], settings.batch_size, bench.seed, source.read["train"])
    best, reached, noise = copy.deepcopy(network), Best(), bench.generator("noise", bench.device)
    parts: dict[str, Any] = {
        "network": network,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "batches": batches,
        "best": best,
        "reached": reached,
        "noise": noise,
    }
    kept = bench.checkpoint(f"network-{variant}")
    done, steps = kept.restore(parts), settings.epochs * len(batches)
    weights = {"auxiliary_weight": settings.alpha if kind.alpha else 0.0}
    if kind.latent and kind.alpha:
        weights["backward_weight"] = settings.beta  # active while the auxiliary cost is, as in the released code
    while done < steps:
        for x, y, lengths in batches:
            kl_weight = min(1.0, settings.kl_start + done * settings.kl_step) if kind.kl_start < 1 else 1.0
            optimizer.zero_grad()
            output = network(x.to(bench.device), y.to(bench.device), lengths=lengths, generator=noise)
            loss = network.loss(output, kl_weight=kl_weight, **weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
            done += 1
            bench.progress(done, steps, loss=loss.detach())
            if done % len(batches) == 0:
                found = evaluate(network, source, "validation", settings, bench)
                bench.log(done, loss=float(loss.detach()), elbo=found["elbo"], kl=found["kl"])
                scheduler.step(found["elbo"])
                if found["elbo"] > reached.value:
                    reached.value = found["elbo"]
                    best.load_state_dict(network.state_dict())
            kept.keep(done, parts)
            if done == steps:
                break
    found = evaluate(best, source, "test", settings, bench)
    return found | {"validation_elbo": reached.value, "test_sequences": source.counts["test"]}


class Best:
    """The best bound so far; it goes into the checkpoint."""

    def __init__(self) -> None:
        self.value = -math.inf

    def state_dict(self) -> dict[str, float]:
        """The number."""
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Take it over."""
        self.value = state_dict["value"]


def make_network(settings: Corpus, source: Source, *, latent: bool, auxiliary: bool) -> Any:
    """The model of a variant; the auxiliary head comes last, so that the other weights are alike."""
    from torch import nn

    from mechanisms.papers._z_forcing.plain import PlainModel
    from mechanisms.recurrent.z_forcing import ZForcing

    tokens = source.likelihood == "categorical"
    width = settings.embedding_size
    embedding = nn.Embedding(source.size, width) if tokens else nn.Linear(source.size, width)
    if not latent:
        return PlainModel(embedding, width, settings.hidden_size, source.size, source.likelihood)
    return ZForcing(
        source.size,
        settings.hidden_size,
        settings.latent_size,
        embedding=embedding,
        mlp_size=settings.mlp_size,
        likelihood=source.likelihood,
        auxiliary="gaussian" if auxiliary else None,
    )


def evaluate(network: Any, source: Source, part: str, settings: Corpus, bench: Bench) -> dict[str, float]:
    """Exact means over the sequences of a part: the bound, the KL, and for words the perplexity."""
    import torch

    network.eval()
    noise = bench.generator(f"{part} noise", bench.device)
    sums = dict.fromkeys(("elbo", "kl", "importance_bound", "steps"), 0.0)
    count = source.counts[part]
    with torch.no_grad():
        for first in range(0, count, settings.evaluation_rows):
            rows = torch.arange(first, min(first + settings.evaluation_rows, count))
            x, y, lengths = source.read[part](rows)
            x, y = x.to(bench.device), y.to(bench.device)
            output = network(x, y, lengths=lengths, generator=noise)
            sums["elbo"] -= float((output.nll + output.kl).sum())
            sums["kl"] += float(output.kl.sum())
            sums["steps"] += int(output.steps.sum())
            if settings.num_samples > 1 and part == "test":
                bound = network.elbo(x, y, lengths=lengths, num_samples=settings.num_samples, generator=noise)
                sums["importance_bound"] += float(bound.sum())
    network.train()
    found = {"elbo": sums["elbo"] / count, "kl": sums["kl"] / count, "steps_per_sequence": sums["steps"] / count}
    if settings.num_samples > 1 and part == "test":
        found["importance_bound"] = sums["importance_bound"] / count
    if source.likelihood == "categorical":
        found["perplexity"] = math.exp(min(-sums["elbo"] / sums["steps"], 700.0))
    return found


# --- the corpora ------------------------------------------------------------------------------------------------------


def open_source(settings: Corpus, bench: Bench) -> Source:
    """The corpus, or, for a look at the road, so many generated sequences in its place.

    Raises:
        NotHere: the corpus is in none of the places where it is looked for.
    """
    from mechanisms.lab import data

    path = settings.path or None
    if settings.data in ("timit", "blizzard"):
        if settings.stand_in:
            made = generated.frames(settings.stand_in, 12, bench.generator("stand-in"))
            signals = [1000 * wave.flatten().numpy() for wave in made.unbind(1)]
            part = data.frames(signals, generated.SAMPLES, whole=True, std=1000.0)
            splits = data.FrameSplits(part, part, part)
        else:
            splits = data.timit(path) if settings.data == "timit" else data.blizzard(path)
        return _frames({name: getattr(splits, name) for name in PARTS})
    if settings.data == "binarised-mnist":
        if settings.stand_in:
            digits = data.digits()
            images = [(getattr(digits, name).x[: settings.stand_in] > 0.5) * 1 for name in PARTS]
        else:
            found = data.binarised_mnist(path)
            images = [getattr(found, name) for name in PARTS]
        return _pixels(dict(zip(PARTS, images, strict=True)))
    if settings.stand_in:
        words = generated.tokens(
            settings.stand_in,
            settings.words,
            generated.permutations(bench.generator("topics")),
            bench.generator("data"),
        )[0]
        rows = (words + 1).T.numpy()
        rows[:, -1] = 0  # the end
        return _words(dict.fromkeys(PARTS, rows), generated.WORDS + 1)
    sentences = data.imdb(path, hub=settings.hub, words=settings.words, vocabulary=settings.vocabulary)
    return _words({name: getattr(sentences, name) for name in PARTS}, len(sentences.vocabulary))


def _before(targets: Tensor) -> Tensor:
    """The inputs: zeros (the end of a sentence, for words), then the targets up to the last but one."""
    import torch

    return torch.cat([torch.zeros_like(targets[:1]), targets[:-1]])


def _frames(parts: dict[str, Frames]) -> Source:
    import torch

    def reader(part: Frames) -> Read:
        def read(rows: Tensor) -> tuple[Tensor, Tensor, list[int] | None]:
            batch = part.batch(rows.numpy())
            targets = torch.from_numpy(batch.x)
            return _before(targets), targets, batch.lengths.tolist()

        return read

    size = parts["train"].size
    return Source(
        {name: len(part) for name, part in parts.items()},
        {name: reader(part) for name, part in parts.items()},
        size,
        "gaussian",
    )


def _pixels(parts: dict[str, np.ndarray]) -> Source:
    import torch

    def reader(images: np.ndarray) -> Read:
        def read(rows: Tensor) -> tuple[Tensor, Tensor, list[int] | None]:
            targets = torch.from_numpy(images[rows.numpy()]).float().flatten(1).T.unsqueeze(-1)
            return _before(targets), targets, None

        return read

    return Source(
        {name: len(part) for name, part in parts.items()},
        {name: reader(part) for name, part in parts.items()},
        1,
        "bernoulli",
    )


def _words(parts: dict[str, np.ndarray], vocabulary: int) -> Source:
    import torch

    def reader(sentences: np.ndarray) -> Read:
        def read(rows: Tensor) -> tuple[Tensor, Tensor, list[int] | None]:
            targets = torch.from_numpy(sentences[rows.numpy()].astype("int64")).T
            lengths = (targets != 0).sum(0) + 1  # the end is predicted too
            return _before(targets), targets, lengths.tolist()

        return read

    return Source(
        {name: len(part) for name, part in parts.items()},
        {name: reader(part) for name, part in parts.items()},
        vocabulary,
        "categorical",
    )
