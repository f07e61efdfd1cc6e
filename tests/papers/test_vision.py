"""Networks, augmentation, weights and the attack that the image experiments share."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from mechanisms.lab.paper import NotHere
from mechanisms.papers._vision import (
    CIFAR,
    Normalised,
    ResNet,
    attack,
    crop_and_flip,
    generated_images,
    in_memory,
    load_weights,
    on_device,
    outputs,
    thin,
    vgg,
)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_networks_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert count(ResNet(50, 1000, stem="large")) == 25_557_032
        assert count(ResNet(18, 1000, stem="large")) == 11_689_512
        assert count(ResNet(34, 1000, stem="large")) == 21_797_672
        assert count(ResNet(18, 10)) == 11_173_962


def test_residual_networks_have_the_names_of_torchvision_s() -> None:
    with torch.device("meta"):
        names = ResNet(50, 1000, stem="large").state_dict()
    assert len(names) == 320
    assert names["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert names["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)
    assert names["layer4.2.bn3.running_var"].shape == (2048,)
    assert [name for name in names if name.startswith("fc")] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (ResNet(18, 7, width=4), 32),
        (ResNet(18, 7, width=4, pre_activation=True), 32),
        (ResNet(50, 7, width=4, stem="large"), 64),
        (vgg(11, 7, width=4), 32),
    ],
)
def test_every_network_takes_a_batch_of_one_and_gives_each_parameter_a_gradient(model: nn.Module, size: int) -> None:
    logits = model.eval()(torch.rand(1, 3, size, size))
    assert logits.shape == (1, 7)
    functional.cross_entropy(logits, torch.tensor([3])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_pre_activated_block_without_weights_is_its_shortcut() -> None:
    model = ResNet(18, 2, width=4, pre_activation=True).eval()
    block = model.layer1[0]  # pyrefly: ignore
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_crops_and_flips_are_those_of_a_loop() -> None:
    x = torch.rand(40, 3, 8, 8)
    moved = crop_and_flip(x, torch.Generator().manual_seed(3), pad=2)
    generator = torch.Generator().manual_seed(3)
    shift = torch.randint(0, 5, (2, 40, 1), generator=generator)
    mirrored = torch.rand((40, 1), generator=generator) < 0.5
    for image, result, down, right, flip in zip(x, moved, shift[0], shift[1], mirrored, strict=True):
        crop = functional.pad(image, (2, 2, 2, 2))[:, down : down + 8, right : right + 8]
        assert torch.equal(result, crop.flip(2) if flip else crop)
    assert 5 < int(mirrored.sum()) < 35


def test_no_shift_and_no_mirror_is_the_image() -> None:
    x = torch.rand(6, 1, 5, 7)
    moved = crop_and_flip(x, torch.Generator().manual_seed(0), pad=0)
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(moved, x, strict=True))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_loaded_but_for_the_head(tmp_path: Path, suffix: str) -> None:
    source, model = ResNet(18, 1000, width=4, stem="large"), ResNet(18, 1, width=4, stem="large")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:  # an old file: its batch norm did not count batches
        old = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
        safetensors.torch.save_file(old, path)
    head = model.fc.weight.clone()
    load_weights(model, str(path))
    assert torch.equal(model.layer3[1].conv2.weight, source.layer3[1].conv2.weight)  # pyrefly: ignore
    assert torch.equal(model.fc.weight, head)


def test_weights_are_loaded_with_the_head_if_it_is_no_exception(tmp_path: Path) -> None:
    source, model = ResNet(18, 10, width=2), ResNet(18, 10, width=2)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    load_weights(model, str(tmp_path / "weights.pth"), head=None)
    for name, value in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.user_input
def test_weights_that_do_not_fit_are_one_clear_line(tmp_path: Path) -> None:
    model = ResNet(18, 1, width=4, stem="large")
    torch.save(ResNet(18, 1, width=8, stem="large").state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"of another shape, conv1\.weight for example; .*torchvision's names"):
        load_weights(model, str(tmp_path / "wide.pth"))
    torch.save({"state": nn.Linear(1, 1)}, tmp_path / "object.pth")
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_weights(model, str(tmp_path / "object.pth"))
    for path in ("", str(tmp_path / "none.pth")):
        with pytest.raises(NotHere, match="give weights=FILE"):
            load_weights(model, path)


def test_an_attack_stays_in_its_cube_and_in_the_pixels_and_raises_the_loss() -> None:
    splits = generated_images(64, 32, 3, seed=0)
    x, y = on_device(splits.train.x, torch.device("cpu")), torch.from_numpy(splits.train.y)
    torch.manual_seed(0)
    model = Normalised(nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), CIFAR)
    images = x.float() / 255
    for generator in (None, torch.Generator().manual_seed(0)):
        moved = attack(model, images, y, epsilon=4 / 255, step_size=2 / 255, steps=4, generator=generator)
        assert (moved - images).abs().max() <= 4 / 255 + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert functional.cross_entropy(model(moved), y) > functional.cross_entropy(model(images), y) + 0.01
    assert torch.equal(attack(model, images, y, epsilon=0, step_size=0.1, steps=2), images)


def test_a_network_that_normalises_itself_equals_one_that_is_given_normalised_images() -> None:
    body = ResNet(18, 2, width=4).eval()
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in CIFAR)
    assert torch.equal(Normalised(body, CIFAR).eval()(x), body((x - mean) / std))


def test_batches_in_memory_are_pixels_between_0_and_1_and_follow_from_the_seed() -> None:
    splits = generated_images(20, 4, 3, seed=0)
    x, y = on_device(splits.train.x, torch.device("cpu")), torch.from_numpy(splits.train.y)
    first, second = (list(in_memory(x, y, 8, seed=1, augment=True)) for _ in range(2))
    assert [len(images) for images, _ in first] == [8, 8, 4]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert max(images.max() for images, _ in first) <= 1
    assert [len(images) for images, _ in in_memory(x, y, 8, seed=1, drop_last=True)] == [8, 8]


def test_outputs_of_parts_are_those_of_the_whole() -> None:
    model = ResNet(18, 3, width=4).eval()
    x = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(outputs(model, x, batch_size=3), outputs(model, x), atol=1e-6)


def test_a_thinned_curve_keeps_its_ends_and_its_mean_level() -> None:
    steps = np.arange(1, 1002, dtype=float)
    curves = {"error": (steps.tolist(), (1 / steps).tolist()), "few": ([1.0, 2.0], [3.0, 4.0])}
    thin(curves, "error")
    thin(curves, "few")
    found, values = curves["error"]
    assert curves["few"] == ([1.0, 2.0], [3.0, 4.0])
    assert 60 < len(found) <= 120
    assert found[0] == 1
    assert np.allclose(values, 1 / np.array(found), rtol=0.01)
    assert found == sorted(found)
