"""Light and dark cats and dogs: what is chosen for training and test, and the road on files."""

from pathlib import Path

import numpy as np
import pytest

from mechanisms.lab.bench import Bench
from mechanisms.lab.paper import NotHere
from mechanisms.papers._deep.images import EXPERIMENT, Pets, choose, run
from tests.lab.photographs import write_pets


def population() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 2, 2000), generator.random(2000) < 0.5


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_the_bias_is_q_and_the_number_of_images_does_not_depend_on_it(q: float) -> None:
    labels, light = population()
    rows, tests = choose(labels, light, q, Pets(), np.random.default_rng(1))
    own = light == (labels == 0)
    everything = np.concatenate([rows, *tests.values()])
    assert len(np.unique(everything)) == len(everything)
    # of those that are not forced, about half have their class's brightness
    expected = q + (1 - q) * own[np.setdiff1d(np.arange(2000), np.concatenate(list(tests.values())))].mean()
    assert own[rows].mean() == pytest.approx(expected, abs=0.08)
    assert len(rows) == len(choose(labels, light, 1.0, Pets(), np.random.default_rng(1))[0])
    assert own[tests["aligned"]].all()
    assert not own[tests["opposite"]].any()


def test_the_test_images_are_the_same_whatever_the_bias() -> None:
    labels, light = population()
    first, second = (choose(labels, light, q, Pets(), np.random.default_rng(1))[1] for q in (0.0, 1.0))
    assert set(first["opposite"]) == set(second["opposite"])
    assert set(first["aligned"]) == set(second["aligned"])


@pytest.mark.user_input
def test_too_few_images_are_told() -> None:
    with pytest.raises(ValueError, match="class 0 has 2 aligned images"):
        choose(np.array([0, 0, 0, 1]), np.array([True, True, False, False]), 1.0, Pets(), np.random.default_rng(0))


def test_every_variant_runs_at_smoke_on_as_many_images() -> None:
    settings = EXPERIMENT.scales["smoke"]
    found = [EXPERIMENT.run(settings, variant, Bench(0, settings=settings)) for variant in EXPERIMENT.variants]
    assert len({metrics["train_images"] for metrics in found}) == 1
    assert found[0]["train_agreement"] == 1


def test_the_road_goes_end_to_end_on_a_folder_and_a_damaged_file_is_noted(tmp_path: Path) -> None:
    folder = write_pets(tmp_path)
    (folder / "Cat" / "666.jpg").write_bytes(b"")
    settings = Pets(path=str(folder), size=16, width=2, epochs=2, batch_size=16)
    bench = Bench(0, settings=settings)
    metrics = run(settings, "biased", bench)
    assert metrics["train_agreement"] == 1
    assert bench.notes == [
        f"1 of 121 files could not be decoded and were left out, {folder / 'Cat' / '666.jpg'} for example"
    ]
    with pytest.raises(NotHere, match="cats-and-dogs is not here"):
        run(Pets(path=str(tmp_path / "none")), "biased", Bench(0))
