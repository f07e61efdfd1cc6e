"""Tasks: layouts, targets, chance levels, and that everything follows from the generator."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mechanisms.recurrent import (
    adding_task,
    copying_task,
    denoise_task,
    pixel_permutation,
    recall_scores,
    sequential_images,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(1, 8), st.integers(0, 99))
def test_copying_and_denoising_ask_for_symbols_in_order(b: int, delay: int, n: int, symbols: int, seed: int) -> None:
    for task in (copying_task, denoise_task):
        x, y = task(b, delay, n, symbols, encoding="tokens", generator=generator(seed))
        assert x.shape == y.shape == (delay + 2 * n, b)
        assert bool((x[delay + n - 1] == symbols + 1).all())
        assert bool((x[delay + n :] == 0).all())
        assert bool((y[: delay + n] == 0).all())
        for row in range(b):
            seen = x[: delay + n - 1, row]
            assert torch.equal(seen[seen > 0], y[-n:, row])
            assert len(seen[seen > 0]) == n
        if task is copying_task:
            assert bool((x[n : delay + n - 1] == 0).all())
            assert torch.equal(x[:n], y[-n:])
        one_hot, again = task(b, delay, n, symbols, generator=generator(seed))
        assert torch.equal(one_hot.argmax(-1), x)
        assert one_hot.shape[-1] == symbols + 2
        assert torch.equal(again, y)
        scalar, _ = task(b, delay, n, symbols, encoding="scalar", generator=generator(seed))
        assert torch.equal(scalar, x.unsqueeze(-1).float())


def test_symbols_and_places_are_uniform() -> None:
    x, y = denoise_task(20_000, 5, n=2, symbols=4, encoding="tokens", generator=generator())
    counts = y[-2:].flatten().bincount(minlength=5)[1:].double() / 40_000
    assert bool((counts - 0.25).abs().max() < 6 * (0.25 * 0.75 / 40_000) ** 0.5)
    places = (x[:6] > 0).double().mean(1)
    assert bool((places - 1 / 3).abs().max() < 6 * (2 / 9 / 20_000) ** 0.5)


def test_recall_is_scored_on_the_last_steps() -> None:
    _, y = copying_task(64, 20, generator=generator())
    perfect = recall_scores(50 * F.one_hot(y, 10).float(), y, 10)
    assert float(perfect.accuracy) == 1
    blind = torch.zeros(*y.shape, 10)
    blind[:-10, :, 0] = 50
    scores = recall_scores(blind, y, 10)
    assert float(scores.accuracy) == 0
    torch.testing.assert_close(scores.recall_loss, torch.tensor(10.0).log())
    torch.testing.assert_close(scores.loss, torch.tensor(10.0).log() * 10 / 40)


@pytest.mark.parametrize("channels", [1, 2])
def test_adding_marks_one_number_in_each_half(channels: int) -> None:
    for steps in (2, 7, 10):
        x, y = adding_task(200, steps, marker_channels=channels, generator=generator())
        assert x.shape == (steps, 200, 1 + channels)
        markers = x[..., 1:].sum(-1)
        assert bool((markers[: steps // 2].sum(0) == 1).all())
        assert bool((markers[steps // 2 :].sum(0) == 1).all())
        torch.testing.assert_close((x[..., 0] * markers).sum(0), y)
    _, y = adding_task(100_000, 10, generator=generator())
    assert abs(float((y - 1).square().mean()) - 1 / 6) < 0.004


def test_images_become_pixels_row_by_row() -> None:
    image = torch.arange(12.0).view(1, 3, 4)
    assert sequential_images(image).flatten().tolist() == list(range(12))
    colour = torch.stack([image[0], -image[0]]).unsqueeze(0)
    assert sequential_images(colour)[5, 0].tolist() == [5.0, -5.0]
    assert sequential_images(torch.arange(16).view(1, 4, 4), size=2).flatten().tolist() == [0, 2, 8, 10]
    assert sequential_images(image, threshold=6).flatten().sum() == 6
    order = pixel_permutation(12, generator=generator())
    assert torch.equal(sequential_images(image, permutation=order).flatten(), order.float())
    assert sequential_images(torch.zeros(0, 2, 2)).shape == (4, 0, 1)


def test_permutations_with_replacement_miss_a_third_of_the_pixels() -> None:
    assert sorted(pixel_permutation(784, generator=generator()).tolist()) == list(range(784))
    seen = len(set(pixel_permutation(784, replacement=True, generator=generator()).tolist()))
    assert abs(seen / 784 - (1 - 1 / torch.e)) < 0.06


@pytest.mark.user_input
def test_bad_sizes_are_named() -> None:
    cases: list[tuple[str, Any]] = [
        ("delay=0", lambda: copying_task(2, 0)),
        ("n=0", lambda: denoise_task(2, 5, n=0)),
        ("batch=0", lambda: copying_task(0, 5)),
        ("encoding='onehot'", lambda: copying_task(2, 5, encoding="onehot")),
        ("steps=1", lambda: adding_task(2, 1)),
        ("marker_channels=3", lambda: adding_task(2, 4, marker_channels=3)),
        ("pixels=0", lambda: pixel_permutation(0)),
        (r"images have shape \(4, 4\)", lambda: sequential_images(torch.zeros(4, 4))),
        ("the images have 16 pixels", lambda: sequential_images(torch.zeros(1, 4, 4), permutation=torch.arange(4))),
        ("size=0", lambda: sequential_images(torch.zeros(1, 4, 4), size=0)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
