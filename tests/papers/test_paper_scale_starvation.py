"""Spectral decoupling on CelebA and CIFAR: roads on files of the real formats, groups and margins."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mechanisms.lab.bench import Bench
from mechanisms.lab.data import Split
from mechanisms.lab.paper import NotHere
from mechanisms.papers._starvation import celeba, cifar
from mechanisms.papers._vision import ResNet
from tests.lab.photographs import write_celeba, write_cifar10, write_cifar100


def test_the_worst_group_is_the_worst_of_label_and_attribute() -> None:
    y, attribute = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 1])
    found = celeba.by_group(np.array([0, 1, 0, 1, 1, 0]), Split(np.zeros(6), y, attribute=attribute))
    assert found == {"average": pytest.approx(4 / 6), "worst": 0.5}


def test_a_margin_is_the_label_s_logit_minus_the_next() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert cifar.margin(logits, torch.tensor([1, 0])).tolist() == [1.0, -2.0]


@pytest.mark.parametrize("module", [celeba, cifar])
def test_every_variant_runs_at_smoke(module) -> None:
    settings = module.EXPERIMENT.scales["smoke"]
    for variant in module.EXPERIMENT.variants:
        metrics = module.EXPERIMENT.run(settings, variant, Bench(0, settings=settings))
        assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(("variant", "workers"), [("sd-class", 2), ("erm-sgd", 0)])
def test_the_road_of_celeba_goes_end_to_end_from_jpegs_and_pretrained_weights(
    tmp_path: Path, variant: str, workers: int
) -> None:
    folder = write_celeba(tmp_path / "celeba", layout="distributed")
    weights = ResNet(18, 1000, width=2, stem="large").state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    settings = celeba.CelebA(
        path=str(folder),
        weights=str(tmp_path / "weights.pth"),
        depth=18,
        width=2,
        size=32,
        epochs=2,
        batch_size=16,
        lr=3e-3,
        workers=workers,
    )
    bench = Bench(0, settings=settings)
    metrics = celeba.run(settings, variant, bench)
    assert bench.curves["validation_worst"][0] == [1, 2]
    assert metrics["worst_group_accuracy"] <= metrics["average_accuracy"]
    assert metrics["chosen_epoch"] in (1, 2)


def test_celeba_needs_its_folder_and_the_weights(tmp_path: Path) -> None:
    small = {"depth": 18, "width": 2, "workers": 0}
    for settings, words in (
        (celeba.CelebA(path=str(tmp_path), **small), "CelebA is not here"),
        (celeba.CelebA(path=str(write_celeba(tmp_path / "celeba")), **small), "give weights=FILE"),
    ):
        with pytest.raises(NotHere, match=words):
            celeba.run(settings, "sd", Bench(0, settings=settings))


@pytest.mark.parametrize("variant", ["vgg-sd", "resnet-ce"])
def test_the_road_of_cifar_goes_end_to_end_on_the_binary_versions(tmp_path: Path, variant: str) -> None:
    settings = cifar.Margins(
        path10=str(write_cifar10(tmp_path / "10")),
        path100=str(write_cifar100(tmp_path / "100")),
        depth_vgg=11,
        width=4,
        epochs=2,
        batch_size=64,
        lr=0.01,
        attacked=10,
    )
    metrics = cifar.run(settings, variant, Bench(0, settings=settings))
    assert 0 <= metrics["attacked_accuracy"] <= 1


def test_variants_of_a_network_share_data_and_first_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a coefficient of 0 the two losses are the same, and so are all numbers."""
    settings = cifar.Margins(
        data="generated", depth_vgg=11, width=4, epochs=1, batch_size=32, lr=0.01, attacked=8, coefficient=0.0
    )
    first, second = (cifar.run(settings, variant, Bench(0, settings=settings)) for variant in ("vgg-ce", "vgg-sd"))
    assert first == second
