"""GANs on images: shapes, the score, the picture in a record, and roads on files of the real formats."""

import base64
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mechanisms.lab.bench import Bench
from mechanisms.lab.paper import NotHere
from mechanisms.lab.records import LARGEST, Cell, Record, write_record
from mechanisms.papers._games.image_networks import NOISE, discriminator, generator
from mechanisms.papers._games.image_scores import LARGEST_PICTURE, classifier_score, picture
from mechanisms.papers._games.images import EXPERIMENT, EXPERIMENT_FASHION, GRID, Gan, best_is_negative, run
from mechanisms.papers._vision import ResNet
from tests.lab.photographs import write_cifar10

TINY = {"iterations": 4, "every": 2, "scored": 20, "batch_size": 8, "width": 4, "classifier_width": 2}


@pytest.mark.parametrize("architecture", ["dcgan", "residual"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_generators_make_images_that_discriminators_judge(architecture, channels: int, norm: bool) -> None:
    make, judge = generator(architecture, channels, 4, norm), discriminator(architecture, channels, 4)
    images = make.eval()(torch.randn(1, NOISE))
    assert images.shape == (1, channels, 32, 32)
    assert images.abs().max() <= 1
    judge(images).sum().backward()
    assert all(parameter.grad is not None for network in (make, judge) for parameter in network.parameters())
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in judge.modules())


def test_the_original_generator_has_its_published_shapes() -> None:
    shapes = [tuple(p.shape) for p in generator("dcgan", 3, 128, norm=False).parameters() if p.dim() > 1]
    assert shapes == [(8192, 128), (512, 256, 2, 2), (256, 128, 2, 2), (128, 3, 2, 2)]
    shapes = [tuple(p.shape) for p in discriminator("dcgan", 3, 128).parameters() if p.dim() > 1]
    assert shapes == [(128, 3, 3, 3), (256, 128, 3, 3), (512, 256, 3, 3), (1, 8192)]


def test_the_score_is_1_for_one_class_and_the_number_of_classes_for_all() -> None:
    assert classifier_score(np.eye(10)[np.arange(100) % 10]) == pytest.approx(10)
    assert classifier_score(np.eye(10)[np.zeros(100, int)]) == pytest.approx(1)
    assert classifier_score(np.full((50, 10), 0.1)) == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    by_hand = np.exp(np.mean((p * np.log(p / p.mean(0))).sum(1)))
    assert classifier_score(p, splits=1) == pytest.approx(by_hand)


@pytest.mark.user_input
def test_what_are_no_probabilities_is_refused() -> None:
    for p in (np.full((20, 3), 0.5), np.array([[2.0, -1.0]] * 20), np.full((3, 2), 0.5)):
        with pytest.raises(ValueError, match="rows of probabilities that add up to 1"):
            classifier_score(p)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_noise_fits_into_a_record(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, channels)).astype(np.uint8)
    text = picture(images)
    content = base64.b64decode(text.removeprefix("data:image/jpeg;base64,"))
    assert len(content) <= LARGEST_PICTURE
    with Image.open(io.BytesIO(content)) as sheet:
        assert sheet.size == (256, 128)
    record = Record("paper", "gan", "paper", "beta-0-lr-1e-4", 10, {}, {"samples": text})
    assert write_record(record, tmp_path).stat().st_size <= LARGEST


def test_every_variant_runs_at_smoke_from_the_same_start() -> None:
    for experiment in (EXPERIMENT, EXPERIMENT_FASHION):
        settings = experiment.scales["smoke"]
        for variant in list(experiment.variants)[::5]:
            metrics = experiment.run(settings, variant, Bench(0, settings=settings))
            assert 1 <= metrics["last_score"] <= metrics["best_score"] <= 10


def test_the_road_of_cifar_goes_end_to_end_with_a_classifier_of_one_s_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(ResNet(18, 10, width=2).state_dict(), tmp_path / "classifier.pth")
    settings = Gan(path=str(write_cifar10(tmp_path / "cifar")), classifier=str(tmp_path / "classifier.pth"), **TINY)
    bench = Bench(0, settings=settings)
    metrics = run(settings, "beta-m50-lr-1e-4", bench)
    assert bench.curves["score"][0] == [2, 4]
    assert bench.notes == []
    assert metrics["samples"].startswith("data:image/jpeg")
    # The file decides the score: other weights, another score of the same images.
    torch.save(ResNet(18, 10, width=2).state_dict(), tmp_path / "classifier.pth")
    assert run(settings, "beta-m50-lr-1e-4", Bench(0, settings=settings))["score_of_data"] != metrics["score_of_data"]


def test_the_road_of_fashion_mnist_goes_end_to_end_and_says_whose_score_it_is(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 10)):
        shapes = {"images-idx3": (count, 28, 28), "labels-idx1": (count,)}
        for kind, shape in shapes.items():
            values = random.integers(0, 256 if len(shape) == 3 else 10, shape).astype(np.uint8)
            head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
            with gzip.open(tmp_path / f"{name}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + values.tobytes())
    settings = Gan(data="fashion-mnist", architecture="dcgan", path=str(tmp_path), classifier_epochs=1, **TINY)
    bench = Bench(0, settings=settings)
    run(settings, "beta-0-lr-3e-5", bench)
    assert "not comparable with Inception scores" in bench.notes[0]


def test_a_game_that_is_killed_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, variant = EXPERIMENT.scales["smoke"], "beta-m50-lr-1e-4"
    whole = Bench(0, settings=settings)
    expected = run(settings, variant, whole)

    def bench() -> Bench:
        made = Bench(0, settings=settings, owner="paper/gan", cache=tmp_path)
        make = made.checkpoint
        monkeypatch.setattr(made, "checkpoint", lambda key: make(key, seconds=0))
        return made

    first = bench()
    log = first.log

    def stop(step: float | int, **values: float) -> None:
        if step == 3:
            raise KeyboardInterrupt
        log(step, **values)

    monkeypatch.setattr(first, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings, variant, first)
    again = bench()
    assert run(settings, variant, again) == expected
    assert again.curves == whole.curves


def test_several_processes_and_missing_data_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Gan(path=str(tmp_path), **TINY)
    with pytest.raises(NotHere, match="cifar-10 is not here"):
        run(settings, "beta-0-lr-1e-4", Bench(0, settings=settings))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="use --jobs, not torchrun"):
        run(settings, "beta-0-lr-1e-4", Bench(0, settings=settings))


def test_the_best_place_of_the_grid_decides() -> None:
    seed = {variant: {"best_score": 2.0 + (variant == "beta-m10-lr-3e-5")} for variant in GRID}
    assert best_is_negative(seed)
    seed["beta-0-lr-1e-5"]["best_score"] = 9.0
    assert not best_is_negative(seed)


def test_the_figures_show_records_and_none() -> None:
    sheet = picture(np.zeros((32, 32, 32, 3), np.uint8))
    records = [
        Record("paper", "gan", "paper", variant, 10, {}, {"best_score": 3.0, "samples": sheet}) for variant in GRID
    ]
    for found in (records, records[:5], []):
        for figure in EXPERIMENT.figures:
            figure.draw(Cell("paper", "gan", "paper", {}, found))
    full = EXPERIMENT.figures[1].draw(Cell("paper", "gan", "paper", {}, records))
    assert len(full.layout.images) == len(GRID)
