"""The recipe of Z-Forcing: its data, blocks of seeds against single networks, and the corpora end to end."""

import math
from pathlib import Path

import pytest
import torch

from mechanisms.lab.bench import Bench
from mechanisms.lab.paper import NotHere
from mechanisms.lab.records import Cell, Record
from mechanisms.lab.registry import load_paper
from mechanisms.papers._z_forcing import blocks, corpora, generated
from mechanisms.papers._z_forcing.blocks import FRAMES, TOKENS, Block, Kind, Small
from mechanisms.papers._z_forcing.corpora import Corpus
from mechanisms.papers._z_forcing.plain import PlainModel
from tests.lab import corpora as files

BRIEF = {"updates": 3, "kl_updates": 2, "every": 3, "watched": 10, "sequences": 40, "num_samples": 2}
TINY = {"hidden_size": 8, "embedding_size": 4, "mlp_size": 4, "latent_size": 2}


def small(data: str = "frames", **changes) -> Small:
    return Small(data=data, **(BRIEF | TINY | {"steps": 5, "batch_size": 4} | changes))


# --- data -------------------------------------------------------------------------------------------------------------


def test_waves_go_on_where_the_last_frame_ended_and_modes_follow_their_law() -> None:
    """Shares over 100,000 steps, six standard errors: two in a thousand million by chance."""
    waves = generated.frames(5000, 21, torch.Generator().manual_seed(0)).double()
    assert waves.shape == (21, 5000, 10)
    basis = []
    for frequency in generated.FREQUENCIES:
        angle = frequency * torch.arange(10).double()
        columns = torch.stack([angle.sin(), angle.cos()], 1)
        basis.append(columns @ torch.linalg.pinv(columns))
    left = torch.stack([(waves - waves @ projection.T).square().sum(-1) for projection in basis])
    mode, residual = left.argmin(0), left.min(0).values
    # What a wave of the right frequency leaves is noise in 8 dimensions.
    assert abs(residual.mean() - 8 * generated.NOISE**2) < 0.01
    stay = (mode[1:] == mode[:-1]).double().mean()
    assert abs(stay - 0.625) < 6 * math.sqrt(0.625 * 0.375 / 100_000) + 0.01  # a hundredth is misread
    # Within a mode the next frame continues the phase.
    same = (mode[1:] == 3) & (mode[:-1] == 3)
    angle = 1.5 * torch.arange(20).double()
    columns = torch.stack([angle.sin(), angle.cos()], 1)
    both = torch.cat([waves[:-1], waves[1:]], -1)[same]
    assert (both - both @ (columns @ torch.linalg.pinv(columns)).T).square().sum(-1).mean() < 0.25
    assert generated.best_frames() == pytest.approx(8.84 - 1.07, abs=0.01)


def test_words_follow_their_topic() -> None:
    generator = torch.Generator().manual_seed(0)
    topics = generated.permutations(generator)
    words, topic = generated.tokens(5000, 21, topics, generator)
    follows = (topics[topic.expand(20, -1), words[:-1]] == words[1:]).double().mean()
    share = 0.7 + 0.3 / 20
    assert abs(follows - share) < 6 * math.sqrt(share * (1 - share) / 100_000)
    assert sorted(topics[0].tolist()) == list(range(20))


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "variant"), [("frames", "aux"), ("frames", "rnn"), ("tokens", "aux"), ("tokens", "rnn")]
)
def test_a_block_is_its_seeds_alone(data: str, variant: str) -> None:
    together = blocks.run_together(small(data), variant, [Bench(3), Bench(4)])
    alone = [blocks.run(small(data), variant, Bench(seed)) for seed in (3, 4)]
    for mine, theirs in zip(together, alone, strict=True):
        assert ("perplexity" in mine) == (data == "tokens")
        for name in mine.keys() & {"elbo", "kl", "perplexity"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5)
    assert together[0] != together[1]


def test_variants_of_a_seed_begin_alike_and_meet_the_same_data() -> None:
    found = [Block(small(), kind, [Bench(5)]) for kind in (Kind(), Kind(alpha=0.1), Kind(latent=False))]
    for name, weight in found[0].weights.items():
        assert torch.equal(weight, found[1].weights[name])
    assert torch.equal(found[0].weights["embedding.weight"], found[2].weights["embedding.weight"])
    batches = [block.batch() for block in found]
    for batch in batches[1:]:
        assert torch.equal(batch[0], batches[0][0])
        assert torch.equal(batch[1], batches[0][1])


def test_the_weight_of_the_auxiliary_cost_can_be_set() -> None:
    one, two = (blocks.run(small(alpha=alpha), "aux", Bench(0)) for alpha in (None, 0.0005))
    assert one == two
    assert blocks.run(small(alpha=0.5), "aux", Bench(0)) != one
    assert blocks.run(small(alpha=0.5), "latent", Bench(0)) == blocks.run(small(), "latent", Bench(0))


def test_each_network_is_clipped_by_its_own_norm() -> None:
    block = Block(small(clip=0.5), Kind(), [Bench(0), Bench(1)])
    for place, weight in enumerate(block.weights.values()):
        weight.grad = torch.zeros_like(weight)
        if not place:
            weight.grad[0], weight.grad[1] = 10.0, 1e-4
    first = next(iter(block.weights.values()))
    before = first.grad.clone()
    block.clip()
    assert float(first.grad[0].norm()) == pytest.approx(0.5, rel=1e-5)
    assert torch.equal(first.grad[1], before[1])


def test_the_plain_model_is_an_lstm_and_its_bound_the_likelihood() -> None:
    torch.manual_seed(0)
    model = PlainModel(torch.nn.Linear(3, 4), 4, 5, 3, "gaussian").double()
    y = torch.randn(6, 2, 3, dtype=torch.float64)
    theirs = torch.nn.LSTM(4, 5).double()
    theirs.load_state_dict({f"{name}_l0": weight for name, weight in model.cell.state_dict().items()})
    output = model(y[:-1], y[1:], lengths=[5, 2])
    expected = model.likelihood.nll(model.output(theirs(model.embedding(y[:-1]))[0]), y[1:])
    torch.testing.assert_close(output.nll, torch.stack([expected[:, 0].sum(), expected[:2, 1].sum()]))
    torch.testing.assert_close(model.elbo(y[:-1], y[1:], lengths=[5, 2]), -output.nll)
    assert model.sample(4, 2, prefix=y[:1]).shape == (4, 2, 3)


def test_the_pictures_show_what_one_seed_recorded() -> None:
    metrics = {name: blocks.run_together(small(steps=9), name, [Bench(0)])[0] for name in ("rnn", "latent", "aux")}
    records = [Record("z-forcing", "frames", "laptop", name, 10, {}, found) for name, found in metrics.items()]
    experiment = load_paper("z-forcing").experiment("frames")
    for cell in (Cell("z-forcing", "frames", "laptop", {}, records), Cell("z-forcing", "frames", "laptop", {}, [])):
        drawn = {figure.name: figure.draw(cell) for figure in experiment.figures}
        expected = (12, 5) if cell.records else (0, 0)
        for name, count in zip(("Waves of the data and of the models", "Between two sequences"), expected, strict=True):
            assert len(drawn[name].data) == count


def test_the_claims_are_those_of_the_paper() -> None:
    paper = load_paper("z-forcing")
    assert set(paper.experiment("frames").variants) < set(FRAMES)
    assert paper.experiment("tokens").variants == tuple(TOKENS)
    checks = [claim.check.statement for claim in paper.experiment("tokens").claims]
    assert checks[0] == "kl: aux - latent >= 0.1"
    for name in ("frames", "tokens"):
        assert paper.experiment(name).first_seed == 10
        assert paper.experiment(name).seeds == 10


# --- corpora ----------------------------------------------------------------------------------------------------------


def corpus(data: str, path: Path, **changes) -> Corpus:
    return Corpus(
        **({"data": data, "path": str(path), "batch_size": 4, "epochs": 2, "vocabulary": 30} | TINY | changes)
    )


@pytest.mark.parametrize("data", ["timit", "blizzard", "binarised-mnist", "imdb"])
def test_the_paper_s_data_run_end_to_end(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))
    write = {
        "timit": files.write_timit,
        "blizzard": files.write_blizzard,
        "binarised-mnist": lambda folder: files.write_binarised_mnist(folder, counts=(8, 4, 4)),
        "imdb": files.write_imdb,
    }[data]
    write(tmp_path / data)
    settings = corpus(data, tmp_path / data, num_samples=2, epochs=1 if data == "binarised-mnist" else 2)
    for variant in ("rnn", "aux-kla"):
        bench = Bench(0)
        found = corpora.run(settings, variant, bench)
        assert math.isfinite(found["elbo"])
        assert (found["kl"] > 0) == (variant != "rnn")
        assert len(bench.curves["elbo"][0]) == settings.epochs
        assert found["validation_elbo"] == max(bench.curves["elbo"][1])
        assert ("perplexity" in found) == (data == "imdb")
        if data == "binarised-mnist":
            assert found["steps_per_sequence"] == 784


def test_a_corpus_that_is_missing_is_said_so(tmp_path: Path) -> None:
    for data in ("timit", "blizzard", "binarised-mnist", "imdb"):
        with pytest.raises(NotHere):
            corpora.run(corpus(data, tmp_path / "nowhere"), "rnn", Bench(0))


def test_inputs_are_the_targets_one_step_before_and_words_end_once(tmp_path: Path) -> None:
    source = corpora.open_source(Corpus(data="imdb", stand_in=6, words=6), Bench(0))
    x, y, lengths = source.read["train"](torch.arange(6))
    assert torch.equal(x[1:], y[:-1])
    assert not x[0].any()
    assert lengths == [6] * 6
    assert not y[-1].any()
    assert y[:-1].all()
    x, y, lengths = corpora.open_source(Corpus(data="timit", stand_in=3), Bench(0)).read["test"](torch.arange(3))
    assert y.shape == (12, 3, 10)
    assert torch.equal(x[1:], y[:-1])


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    settings = Corpus(data="timit", stand_in=6, batch_size=3, epochs=4, **TINY)
    whole = corpora.run(settings, "aux", Bench(0))

    class Stopped(Exception):
        pass

    def stop(step: int, total: int | None, numbers: object) -> None:
        if step == total:
            raise Stopped

    bench = Bench(0, cache=tmp_path, settings=settings, report=stop)
    kept = bench.checkpoint
    bench.checkpoint = lambda key: kept(key, seconds=0)
    with pytest.raises(Stopped):
        corpora.run(settings, "aux", bench)
    again = Bench(0, cache=tmp_path, settings=settings)
    assert corpora.run(settings, "aux", again) == whole
    assert len(again.curves["elbo"][0]) == 4
