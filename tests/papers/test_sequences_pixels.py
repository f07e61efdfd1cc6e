"""Images read pixel by pixel, as the recipes of recurrent networks share them."""

import pytest
import torch
from torch import nn

from mechanisms.lab import Bench, NotHere
from mechanisms.papers._sequences.classifier import LastOutputClassifier, output_size
from mechanisms.papers._sequences.pixels import Pixels, _reader, classify_pixels
from mechanisms.recurrent import LSTMCell, Recurrent

SMALL = Pixels(num_train=200, batch_size=50, epochs=2, evaluation_batch=200)


def lstm(size: int) -> nn.Module:
    return nn.LSTM(size, 8)


def test_a_run_gives_the_test_accuracy_at_the_best_validation_accuracy_and_repeats() -> None:
    benches = [Bench(0), Bench(0)]
    first, second = (classify_pixels(lstm, SMALL, bench, name="lstm") for bench in benches)
    assert first == second
    curves = benches[0].curves
    assert len(curves["test_accuracy"][1]) == 2
    best = curves["validation_accuracy"][1].index(max(curves["validation_accuracy"][1]))
    assert first["accuracy"] == curves["test_accuracy"][1][best]
    assert first["validation_accuracy"] == max(curves["validation_accuracy"][1])
    assert first["best_epoch"] == best + 1


def test_a_permutation_is_the_same_for_all_images_and_follows_from_its_seed() -> None:
    images = torch.arange(128.0).view(2, 8, 8)
    plain = _reader(64, Pixels(permutation="none"), Bench(0))(images)
    assert torch.equal(plain[:, 1, 0], torch.arange(64.0, 128.0))
    fixed = Pixels(permutation="true", permutation_seed=100)
    mixed, again = (_reader(64, fixed, Bench(seed))(images) for seed in (0, 1))
    assert torch.equal(mixed, again)
    assert torch.equal(mixed[:, 0] + 64, mixed[:, 1])
    assert torch.equal(mixed[:, 0, 0].sort().values, torch.arange(64.0))
    assert not torch.equal(*(_reader(64, Pixels(), Bench(seed))(images) for seed in (0, 1)))
    assert _reader(64, Pixels(permutation="with-replacement"), Bench(0))(images)[:, 0].unique().numel() < 60


def test_bytes_become_fractions_and_channels_stay_together() -> None:
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    images[0, 0, 1] = torch.tensor([255, 0, 51])
    sequence = _reader(16, Pixels(permutation="none"), Bench(0))(images)
    assert sequence.shape == (16, 2, 3)
    assert sequence[1, 0].tolist() == pytest.approx([1, 0, 0.2])


def test_a_penalty_is_trained_with_and_networks_of_ours_are_read_too() -> None:
    seen = []

    def penalty(outputs: torch.Tensor) -> torch.Tensor:
        seen.append(outputs.shape)
        return outputs.pow(2).mean()

    found = classify_pixels(
        lambda size: Recurrent(lambda inner: LSTMCell(inner, 8), size, bidirectional=True),
        Pixels(num_train=100, batch_size=100, epochs=1, optimizer="adam", clip=None),
        Bench(0),
        name="penalty",
        penalty=penalty,
    )
    assert seen == [(64, 100, 16)]
    assert 0 <= found["accuracy"] <= 1


def test_output_sizes_of_torch_s_modules() -> None:
    assert output_size(nn.GRU(1, 4, bidirectional=True)) == 8
    assert LastOutputClassifier(nn.LSTM(1, 4), 3).head.weight.shape == (3, 4)


@pytest.mark.parametrize("data", ["cifar10"])
def test_data_that_are_missing_are_said_to_be(data: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    with pytest.raises(NotHere, match="cifar"):
        classify_pixels(lstm, Pixels(data=data), Bench(0), name="x")
