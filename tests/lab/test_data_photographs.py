"""CIFAR, CelebA and folders of images: the distributed formats are read exactly, and damage is told in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mechanisms.lab.data.cifar import cifar10, cifar100, read_cifar
from mechanisms.lab.data.folders import brightness, image_folder, read_image, read_images
from mechanisms.lab.data.portraits import celeba
from mechanisms.lab.paper import NotHere
from tests.lab.photographs import write_celeba, write_cifar10, write_cifar100, write_pets


def test_a_record_is_a_label_and_three_planes(tmp_path: Path) -> None:
    planes = np.arange(3072, dtype=np.uint32).astype(np.uint8).reshape(3, 32, 32)
    (tmp_path / "one.bin").write_bytes(bytes([4]) + planes.tobytes() + bytes([9]) + bytes(3072))
    images, labels = read_cifar(tmp_path / "one.bin")
    assert labels.tolist() == [4, 9]
    assert np.array_equal(images[0], planes.transpose(1, 2, 0))
    assert not images[1].any()


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10_is_found_in_its_folder_or_the_one_above(
    tmp_path: Path, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar10(tmp_path / "cifar-10" / inner)
    first, labels = read_cifar(folder / "data_batch_1.bin")
    splits = cifar10(tmp_path / "cifar-10", num_validation=30)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [70, 30, 20]
    assert np.array_equal(splits.train.x[:20], first)
    assert np.array_equal(splits.train.y[:20], labels)
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    assert np.array_equal(cifar10(num_validation=30).test.x, splits.test.x)


def test_cifar100_gives_the_fine_labels(tmp_path: Path) -> None:
    splits = cifar100(write_cifar100(tmp_path))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (100, 0, 40)
    assert splits.train.y.max() > 20
    assert np.array_equal(splits.test.x[0], read_cifar(tmp_path / "test.bin", 2)[0][0])


def test_cifar_is_read_from_npz_and_by_a_name_of_the_hub_s_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    binary = cifar10(write_cifar10(tmp_path / "bin"))
    parts = {"train": binary.train, "test": binary.test}
    arrays = {f"{name}_{key}": getattr(part, key) for name, part in parts.items() for key in ("x", "y")}
    np.savez(tmp_path / "cifar.npz", **arrays)
    (tmp_path / "hub").mkdir()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    for name, part in parts.items():
        rows = {"img": [Image.fromarray(image) for image in part.x], "label": part.y.tolist()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub" / f"{name}.parquet")
    for other in (cifar10(tmp_path / "cifar.npz"), cifar10(hub=str(tmp_path / "hub"))):
        assert np.array_equal(other.train.x, binary.train.x)
        assert np.array_equal(other.test.y, binary.test.y)


def test_the_pickled_version_is_not_read_and_the_message_says_what_to_get(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"never read")
    with pytest.raises(NotHere, match=r"cifar-10-batches-py is the python version, which is pickled.*binary\.tar\.gz"):
        cifar10(tmp_path)
    with pytest.raises(NotHere, match="there is no file"):
        cifar10(tmp_path / "none.npz")


@pytest.mark.user_input
def test_damaged_files_of_cifar_are_one_clear_line(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    whole = (folder / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"61,459 bytes, expected a whole number of records of 3,073"):
        cifar10(folder)
    (folder / "test_batch.bin").write_bytes(bytes([10]) + whole[1:])
    with pytest.raises(ValueError, match="labels of cifar-10 lie between 0 and 9"):
        cifar10(folder)
    np.savez(tmp_path / "few.npz", train_x=np.zeros((2, 32, 32, 3), np.uint8), train_y=np.zeros(2, int))
    with pytest.raises(ValueError, match="has no array 'test_x'"):
        cifar10(tmp_path / "few.npz")
    x, y = np.zeros((2, 3, 32, 32), np.uint8), np.zeros(2, int)
    np.savez(tmp_path / "channels.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    with pytest.raises(ValueError, match=r"must be uint8 \(examples, 32, 32, 3\), got uint8 \(2, 3, 32, 32\)"):
        cifar10(tmp_path / "channels.npz")
    (folder / "test_batch.bin").write_bytes(whole)
    with pytest.raises(ValueError, match="num_validation=100"):
        cifar10(folder, num_validation=100)
    with pytest.raises(ValueError, match="give one of them"):
        cifar10(folder, hub="uoft-cs/cifar10")


@pytest.mark.parametrize("layout", ["flat", "distributed", "kaggle"])
def test_celeba_is_read_in_all_the_layouts_it_comes_in(tmp_path: Path, layout: str) -> None:
    splits = celeba(write_celeba(tmp_path, layout=layout))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [40, 16, 16]
    images = read_images(splits.train.x[:20], crop=178, size=32)
    assert images.shape == (20, 32, 32, 3)
    assert np.array_equal(images[:, :12].mean((1, 2, 3)) > 90, splits.train.y[:20] == 1)
    red = images[..., 0].mean((1, 2)) - images[..., 1].mean((1, 2))
    assert np.array_equal(red > 20, splits.train.attribute[:20] == 1)
    smiling = celeba(tmp_path, target="Smiling", attribute="Blond_Hair")
    assert np.array_equal(smiling.train.attribute, splits.train.y)


@pytest.mark.user_input
def test_damaged_celeba_is_one_clear_line(tmp_path: Path) -> None:
    folder = write_celeba(tmp_path)
    with pytest.raises(ValueError, match=r"has no attribute 'Blonde'; it has: Blond_Hair, Male, Smiling"):
        celeba(folder, target="Blonde")
    image = folder / "img_align_celeba" / "000003.jpg"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 72 images, 000003\.jpg"):
        celeba(folder)
    image.write_bytes(content[:200])
    with pytest.raises(ValueError, match=r"000003\.jpg cannot be decoded"):
        read_images(celeba(folder).train.x[:5])
    partition = folder / "list_eval_partition.txt"
    lines = partition.read_text().splitlines()
    partition.write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match=r"lacks 1 images of .*, 000001\.jpg"):
        celeba(folder)
    partition.write_text("\n".join([*lines, "x.jpg 3"]))
    with pytest.raises(ValueError, match="each at least once"):
        celeba(folder)
    attributes = folder / "list_attr_celeba.txt"
    text = attributes.read_text()
    attributes.write_text(text.replace(" -1 ", " 7 ", 1))
    with pytest.raises(ValueError, match="must be 1 or -1"):
        celeba(folder)
    attributes.write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(ValueError, match="says that it lists 72 images, it lists 71"):
        celeba(folder)
    with pytest.raises(NotHere, match=r"looked for list_attr_celeba\.txt in .*MECHANISMS_DATA"):
        celeba(tmp_path / "nowhere")


def test_a_folder_of_images_is_sorted_labelled_and_decoded_one_by_one(tmp_path: Path) -> None:
    split = image_folder(write_pets(tmp_path, per_class=6))
    assert split.y.tolist() == [0] * 6 + [1] * 6
    assert list(split.x) == sorted(split.x)
    assert read_images(split.x, size=24).shape == (12, 24, 24, 3)
    assert image_folder(tmp_path, classes=("dogs", "cats")).x[0] == split.x[6]


def test_images_are_cut_from_the_middle_and_grey_ones_and_palettes_become_colours(tmp_path: Path) -> None:
    pixels = np.zeros((10, 6, 3), np.uint8)
    pixels[2:8] = 255
    Image.fromarray(pixels).save(tmp_path / "tall.png")
    assert read_image(tmp_path / "tall.png").shape == (10, 6, 3)
    assert read_image(tmp_path / "tall.png", crop=6).min() == 255
    assert read_image(tmp_path / "tall.png", size=3).min() == 255
    Image.fromarray(pixels).convert("P").save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), pixels)


def test_brightness_of_a_damaged_file_is_not_a_number(tmp_path: Path) -> None:
    split = image_folder(write_pets(tmp_path, per_class=6))
    expected = [read_image(path).astype(float) @ (0.299, 0.587, 0.114) for path in split.x]
    Path(split.x[2]).write_bytes(b"no image")
    seen = []
    found = brightness(split.x, progress=lambda done, total: seen.append((done, total)))
    assert np.isnan(found[2])
    assert seen[-1] == (12, 12)
    keep = ~np.isnan(found)
    assert np.allclose(
        found[keep], [image.mean() / 255 for image, here in zip(expected, keep, strict=True) if here], atol=0.01
    )


@pytest.mark.user_input
def test_folders_without_a_class_or_images_are_one_clear_line(tmp_path: Path) -> None:
    folder = write_pets(tmp_path / "pets", per_class=2)
    with pytest.raises(ValueError, match=r"no folder for the class 'bird'; its folders: Cat, Dog"):
        image_folder(folder, classes=("cat", "bird"))
    for file in (folder / "Dog").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'Dog'} holds no image")):
        image_folder(folder)
    with pytest.raises(ValueError, match="different shapes"):
        read_images(write_and_list(folder))
    with pytest.raises(NotHere, match="one folder for each"):
        image_folder(tmp_path / "nowhere")


def write_and_list(folder: Path) -> list[str]:
    paths = [str(folder / f"{side}.png") for side in (3, 4)]
    for side, path in zip((3, 4), paths, strict=True):
        Image.new("RGB", (side, side)).save(path)
    return paths
