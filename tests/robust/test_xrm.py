"""Discovery of environments: whole runs, their warnings and their errors."""

import re
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from mechanisms.robust._rows import check_finite
from mechanisms.robust.xrm import (
    Environments,
    Search,
    Setting,
    discover_environments,
)

# A test of a warning-free run would otherwise pass or fail by the small sets used here.
from tests.robust.shortcuts import quiet, shortcut

# --- Whole discoveries ----------------------------------------------------------------------------------------------


def test_a_deterministic_shortcut_is_found_example_by_example() -> None:
    x, y, background = shortcut(800)
    new_x, new_y, new_background = shortcut(200, seed=1)
    found = discover_environments(x, y, validation=(new_x, new_y), random_state=0, device="cpu")
    assert torch.equal(found.train, (y != background).long())
    assert torch.equal(found.validation, (new_y != new_background).long())
    assert torch.equal(found.annotate(new_x, new_y), found.validation)
    assert not found.degenerate
    assert found.flip_rate == pytest.approx(0.1, abs=0.02)


def test_imbalanced_classes_do_not_make_the_small_one_grow() -> None:
    """Sizes of Waterbirds' groups, d = 64: a wrong centre of the features makes a tenth of the large class flip."""
    sizes = torch.tensor([3498, 184, 56, 1057])
    y, place = torch.tensor([0, 0, 1, 1]).repeat_interleave(sizes), torch.tensor([0, 1, 0, 1]).repeat_interleave(sizes)
    x = torch.randn(len(y), 64, generator=torch.Generator().manual_seed(0))
    x[:, :8] += ((2 * y - 1) * 1.5 / 8**0.5).unsqueeze(1)
    x[:, 8:16] += ((2 * place - 1) * 2.0 / 8**0.5).unsqueeze(1)
    found = discover_environments(x + 5, y, search=[Setting(1e-3)], steps=2000, random_state=0, device="cpu")
    minority = y != place
    assert float(found.train[minority].float().mean()) > 0.7
    assert float(found.train[~minority].float().mean()) < 0.03


def test_permuting_the_classes_leaves_the_environments_unchanged() -> None:
    x, y, _ = shortcut(600, classes=3)
    noisy = x.double() + torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    permutation = torch.tensor([2, 0, 1])
    options = {"random_state": 0, "steps": 200, "search": [Setting(0.01, 0.0, 64)], "device": "cpu"}
    one = discover_environments(noisy, y, **options)
    other = discover_environments(noisy, permutation[y], **options)
    assert torch.equal(one.train, other.train)
    torch.testing.assert_close(one.held_out_probabilities, other.held_out_probabilities[:, permutation])


@quiet
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_given_data_are_left_as_they_were(dtype: torch.dtype) -> None:
    x, y, _ = shortcut(100)
    x = x.to(dtype)
    before, labels = x.clone(), y.clone()
    discover_environments(x, y, validation=(x, y), steps=20, search=2, random_state=0, device="cpu")
    assert torch.equal(x, before)
    assert torch.equal(y, labels)


@quiet
def test_labels_of_any_dtype_and_inputs_of_any_kind_give_the_same_environments() -> None:
    pandas = pytest.importorskip("pandas")
    x, y, _ = shortcut(200)
    names = np.array(["cow", "horse"], dtype=object)[y]
    options = {"random_state": 0, "steps": 100, "search": 2, "device": "cpu"}
    expected = discover_environments(x, y, **options)
    for data, labels in [
        (x.numpy(), names),
        (pandas.DataFrame(x.numpy()), pandas.Series(names)),
        (x.tolist(), names.tolist()),
        (TensorDataset(x, y), None),
        (x, y.bool()),
    ]:
        assert torch.equal(discover_environments(data, labels, **options).train, expected.train)


class Pairs(Dataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.x[index], int(self.y[index])


@quiet
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_features_of_other_dtypes_become_single_precision(dtype: torch.dtype) -> None:
    x, y, _ = shortcut(200)
    options = {"random_state": 0, "steps": 60, "search": 2, "device": "cpu"}
    found = discover_environments(x.to(dtype), y, **options)
    assert torch.equal(found.train, discover_environments(x.to(dtype).float(), y, **options).train)


class Bad(Pairs):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x, y = super().__getitem__(index)
        return (x * torch.inf if index == 37 else x), y


@quiet
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_row_of_a_data_set_that_is_not_finite_is_named(num_workers: int) -> None:
    x, y, _ = shortcut(60)
    options = {"model": lambda: nn.Linear(8, 2), "steps": 10, "search": [Setting(0.05, 0.0, 32)], "device": "cpu"}
    options |= {"num_workers": num_workers, "random_state": 0}
    with pytest.raises(ValueError, match="row 37 of the data set contains NaN"):
        discover_environments(Bad(x, y), **options)
    with pytest.raises(ValueError, match="row 37 of the data set contains NaN"):
        discover_environments(Pairs(x, y), validation=Bad(x, y), **options)
    with pytest.raises(ValueError, match="row 37 of the data set contains NaN"):
        discover_environments(Pairs(x, y), **options).annotate(Bad(x, y), device="cpu")


def test_large_finite_values_whose_sum_overflows_are_no_error() -> None:
    check_finite(torch.full((4, 2), 3e38), torch.arange(4))


@quiet
@pytest.mark.parametrize("num_workers", [0, 1])
def test_discovery_from_a_data_set_leaves_the_global_generator_alone(num_workers: int) -> None:
    x, y, _ = shortcut(60)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    discover_environments(
        Pairs(x, y), validation=Pairs(x, y), model=lambda: nn.Linear(8, 2), steps=3, search=[Setting(0.05, 0.0, 32)],
        num_workers=num_workers, random_state=0, device="cpu",
    ).annotate(Pairs(x, y), device="cpu")  # fmt: skip
    assert torch.equal(torch.rand(3), expected)


@quiet
@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
def test_an_offset_that_single_precision_would_not_survive_changes_nothing(form) -> None:
    x, y, background = shortcut(400)
    x = x.double().numpy()
    options = {"steps": 200, "search": [Setting(0.01)], "random_state": 0, "device": "cpu"}
    far = discover_environments(form(x + 1e8), y, validation=(form(x[:100] + 1e8), y[:100]), **options)
    assert torch.equal(far.train, (y != background).long())
    assert torch.equal(far.validation, far.train[:100])
    assert torch.equal(far.annotate(form(x + 1e8), y, device="cpu"), far.train)
    seconds = torch.from_numpy((x * 1000 + 2e9).round()).long()
    assert torch.equal(discover_environments(seconds, y, **options).train, far.train)


@quiet
def test_features_that_never_change_stay_unscaled_in_every_precision() -> None:
    x, y, _ = shortcut(100)
    x[:, 3] = 0.1
    for data in (x, x.double().numpy(), x.numpy()):
        twins = discover_environments(data, y, steps=5, search=1, random_state=0, device="cpu").twins
        assert float(twins.scale[3]) == 1


@quiet
def test_environments_do_not_depend_on_the_number_of_workers() -> None:
    x, y, _ = shortcut(200)
    options = {
        "model": lambda: nn.Linear(8, 2), "random_state": 0, "steps": 60, "search": [Setting(0.05, 0.0, 32)],
        "validation": Pairs(x[:50], y[:50]), "device": "cpu",
    }  # fmt: skip
    alone = discover_environments(Pairs(x, y), num_workers=0, **options)
    helped = discover_environments(Pairs(x, y), num_workers=2, **options)
    assert torch.equal(alone.train, helped.train)
    assert torch.equal(alone.validation, helped.validation)
    assert alone.flip_history == helped.flip_history
    assert torch.equal(alone.annotate(Pairs(x[:50], y[:50]), device="cpu"), alone.validation)


@quiet
def test_networks_that_mix_rows_and_image_tensors_are_trained_one_after_the_other() -> None:
    x, y, background = shortcut(300)
    images = x[:, :, None, None].expand(-1, -1, 2, 2).contiguous()

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))

    found = discover_environments(
        images, y, model=make, search=[Setting(0.05), Setting(0.02)], steps=120, random_state=0, device="cpu"
    )
    assert float((found.train == (y != background)).float().mean()) > 0.9
    assert len(found.trials) == 2


@quiet
def test_the_same_seed_gives_the_same_environments_and_another_seed_other_ones() -> None:
    x, y, _ = shortcut(300)
    x = x + 2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    options = {"steps": 100, "search": 3, "device": "cpu"}
    one, same, other = (discover_environments(x, y, random_state=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(one.held_out_probabilities, same.held_out_probabilities)
    assert not torch.equal(one.twin_of, other.twin_of)


@quiet
def test_the_combination_with_most_flips_is_kept_and_trained_again_for_another_seed() -> None:
    x, y, _ = shortcut(300)
    options = {"steps": 150, "search": Search(trials=4), "device": "cpu"}
    searched = discover_environments(x, y, random_state=0, **options)
    again = discover_environments(x, y, random_state=5, search_seed=0, **options)
    best = max(searched.trials, key=lambda trial: trial.score)
    assert searched.flip_rate == best.flip_rate
    assert searched.best_setting == again.best_setting == best.setting
    assert again.trials == searched.trials
    direct = discover_environments(x, y, random_state=5, **(options | {"search": [best.setting]}))
    assert torch.equal(again.train, direct.train)


@quiet
@pytest.mark.parametrize("model", [None, lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))])
def test_a_snapshot_is_the_run_stopped_there(model) -> None:
    x, y, _ = shortcut(300)
    options = {"model": model, "random_state": 0, "search": [Setting(0.02)], "validation": (x[:90], y[:90])}
    long = discover_environments(x, y, steps=90, snapshots=(30, 60), device="cpu", **options)
    assert [shot.step for shot in long.snapshots] == [30, 60]
    for shot in long.snapshots:
        short = discover_environments(x, y, steps=shot.step, device="cpu", **options)
        assert torch.equal(shot.train, short.train)
        assert torch.equal(shot.validation, short.validation)
        assert shot.flip_rate == short.flip_rate


@quiet
@pytest.mark.parametrize("own_model", [False, True])
def test_a_saved_discovery_annotates_like_the_original(tmp_path, own_model: bool) -> None:
    x, y, _ = shortcut(300)
    names = np.array(["cow", "horse"])[y]
    make = (lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))) if own_model else None
    found = discover_environments(
        x, names, validation=(x[:60], names[:60]), model=make, steps=80, search=2, snapshots=[40], random_state=0,
        device="cpu",
    )  # fmt: skip
    found.save(tmp_path / "found.safetensors")
    loaded = Environments.load(tmp_path / "found.safetensors", make)
    assert [path.name for path in tmp_path.iterdir()] == ["found.safetensors"]
    new = torch.randn(100, 8), np.array(["cow", "horse"])[torch.randint(2, (100,))]
    assert torch.equal(loaded.annotate(*new, device="cpu"), found.annotate(*new, device="cpu"))
    for name in ("train", "validation", "held_out_probabilities", "twin_of", "labels"):
        assert torch.equal(getattr(loaded, name), getattr(found, name))
    assert loaded.trials == found.trials
    assert loaded.flip_history == found.flip_history
    assert loaded.summary() == found.summary()
    assert torch.equal(loaded.snapshots[0].validation, found.snapshots[0].validation)
    if own_model:
        with pytest.raises(ValueError, match="pass the factory"):
            Environments.load(tmp_path / "found.safetensors")


def test_groups_and_counts_combine_label_and_environment() -> None:
    x, y, background = shortcut(400)
    found = discover_environments(x, y, random_state=0, search=2, steps=300, device="cpu")
    assert torch.equal(found.groups(), 2 * y + (y != background).long())
    assert torch.equal(found.groups(y.numpy()), found.groups())
    assert int(found.counts().sum()) == 400


@quiet
def test_progress_counts_to_the_end() -> None:
    x, y, _ = shortcut(100)
    seen: list[tuple[int, int]] = []
    discover_environments(
        x, y, steps=50, search=2, random_state=0, search_seed=1, device="cpu", progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (100, 100)
    assert seen == sorted(seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_shortcut_is_found_on_an_accelerator() -> None:
    x, y, background = shortcut(800)
    for model in (None, lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))):
        found = discover_environments(
            x, y, validation=(x, y), model=model, search=[Setting(0.01)], steps=300, random_state=0, device="cuda"
        )
        assert torch.equal(found.train, (y != background).long())
        assert found.train.device.type == "cpu"


# --- Warnings and errors --------------------------------------------------------------------------------------------


def test_a_class_without_mistakes_is_called_degenerate() -> None:
    x, y, _ = shortcut(200)
    x[:, 0], x[:, 1] = 8.0 * (y == 0), 8.0 * (y == 1)
    with pytest.warns(UserWarning, match="predictable without a shortcut"):
        found = discover_environments(x, y, steps=200, search=2, random_state=0, device="cpu")
    assert found.degenerate
    assert all(trial.score == 0 for trial in found.trials)


def warnings_of(*args, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        discover_environments(*args, **({"device": "cpu", "random_state": 0} | options))
    return [str(one.message) for one in caught]


def test_the_degenerate_warning_says_which_environment_is_missing_where() -> None:
    x, y, _ = shortcut(400)
    easy = x[:40] + 8.0 * torch.eye(8)[y[:40]] * torch.tensor([3.0] * 2 + [0.0] * 6)
    easy[:, :2] = 8.0 * torch.eye(2)[y[:40]]
    hard = easy.clone()
    hard[:, :2] = 8.0 * torch.eye(2)[1 - y[:40]]
    options = {"steps": 200, "search": [Setting(0.01)]}
    (text,) = warnings_of(x, y, validation=(easy, y[:40]), **options)
    assert "no environment 1 in class 0 (validation), class 1 (validation): the twins made no held-out mistakes" in text
    assert "no environment 0" not in text
    assert "(train)" not in text
    (text,) = warnings_of(x, y, validation=(hard, y[:40]), **options)
    assert "no environment 0 in class 0 (validation), class 1 (validation): the twins err on all of it" in text
    assert "no environment 1" not in text
    (text,) = warnings_of(
        x, y, validation=(torch.cat([x[20:400:2], easy[1:2]]), torch.cat([y[20:400:2], y[1:2]])), **options
    )
    assert "a single example in class 1 (validation)" in text


@quiet
@pytest.mark.parametrize("one_pass", [True, False])
def test_twins_that_diverge_are_degenerate_and_the_others_are_kept(one_pass: bool) -> None:
    x, y, _ = shortcut(300)
    make = lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU() if one_pass else nn.LayerNorm(8), nn.Linear(8, 2))  # noqa: E731
    options = {"model": make, "steps": 60, "random_state": 0, "device": "cpu"}
    wild, tame = Setting(1e30), Setting(1e-5)
    with pytest.warns(UserWarning, match=r"diverged \(logits are not finite\); lower lr"):
        found = discover_environments(x, y, search=[wild], **options)
    assert found.degenerate
    assert found.trials[0].score == 0
    both = discover_environments(x, y, search=[wild, tame], **options)
    assert both.best_setting == tame
    with pytest.raises(ValueError, match="logits of row 0 are not finite"):
        found.annotate(x, y)


def test_flips_that_run_away_in_an_overparametrised_network_are_warned_about() -> None:
    """The setting in which environments decay after some steps: a wide network and Adam on Waterbirds-like data."""
    sizes = torch.tensor([3498, 184, 56, 1057])
    y, place = torch.tensor([0, 0, 1, 1]).repeat_interleave(sizes), torch.tensor([0, 1, 0, 1]).repeat_interleave(sizes)
    x = torch.randn(len(y), 64, generator=torch.Generator().manual_seed(0))
    x[:, :8] += ((2 * y - 1) * 1.5 / 8**0.5).unsqueeze(1)
    x[:, 8:16] += ((2 * place - 1) * 2.0 / 8**0.5).unsqueeze(1)
    make = lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 2))  # noqa: E731
    (text,) = warnings_of(x, y, model=make, search=[Setting(2e-3, 1e-4, 128, "adam")], standardize=True, steps=1000)
    assert "still rising" in text
    found = r"step: rate = .*, 1000: (0\.\d+)\)"
    assert re.search(found, text)[1] == re.search(r"flip rate is (0\.\d+)", text)[1]


def test_more_flipped_than_kept_labels_are_warned_about() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 200, generator=generator), torch.arange(60) % 4
    with pytest.warns(UserWarning, match="above 1/2"):
        discover_environments(x, y, steps=400, search=[Setting(0.1)], random_state=0, device="cpu")


def test_very_small_classes_are_split_evenly_with_a_warning() -> None:
    x, y = torch.randn(23, 3), torch.tensor([0] * 10 + [1] * 10 + [2] * 3)
    with pytest.warns(UserWarning, match="class 2 has fewer than four examples"):
        found = discover_environments(x, y, steps=5, search=1, random_state=0, device="cpu")
    assert found.twin_of[20:].unique().tolist() == [0, 1]


def test_an_uneventful_discovery_warns_of_nothing() -> None:
    x, y, _ = shortcut(800)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        discover_environments(x, y, random_state=0, device="cpu")


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3), 0


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("data", "y", "options", "error", "message"),
    [
        (torch.randn(9, 3), [1] * 9, {}, ValueError, "at least two classes are needed, got 1"),
        (torch.randn(9, 3), torch.rand(9), {}, ValueError, "Unknown label type"),
        (torch.randn(9, 3), [0, 1] * 4, {}, ValueError, "inconsistent numbers of samples"),
        (np.full((9, 3), np.nan), [0, 1, 0, 1, 0, 1, 0, 1, 0], {}, ValueError, "contains NaN"),
        (torch.full((8, 3), torch.nan), [0, 1] * 4, {}, ValueError, "contain NaN"),
        (torch.randn(9, 3), ["cow"] * 8 + ["elk"], {}, ValueError, "class elk has a single example"),
        (torch.randn(8, 3), None, {}, ValueError, "labels are needed"),
        (torch.randn(8), [0, 1] * 4, {}, ValueError, r"shape \(n, ...\)"),
        (torch.randn(8, 3, 2, 2), [0, 1] * 4, {}, ValueError, "pass a model"),
        (torch.randn(8, 3), [0, 1] * 4, {"validation": (torch.randn(1, 3), [7])}, ValueError, r"labels \[7\]"),
        (torch.randn(8, 3), [0, 1] * 4, {"validation": (torch.randn(1, 4), [1])}, ValueError, "expect 3 features"),
        (torch.randn(8, 3), [0, 1] * 4, {"validation": Pairs(torch.zeros(1, 3), [0])}, ValueError, "needs to be"),
        (torch.randn(8, 3), [0, 1] * 4, {"steps": 0}, ValueError, "at least 1"),
        (torch.randn(8, 3), [0, 1] * 4, {"steps": 3, "snapshots": [4]}, ValueError, "snapshots within"),
        (torch.randn(8, 3), [0, 1] * 4, {"search": []}, ValueError, "no combination"),
        (torch.randn(8, 3), [0, 1] * 4, {"search": 0}, ValueError, "at least one trial"),
        (
            torch.randn(8, 3),
            [0, 1] * 4,
            {"model": lambda: nn.Linear(3, 5)},
            ValueError,
            r"\(2, 5\), expected .*\(2, 2\)",
        ),
        (torch.randn(8, 3), [0, 1] * 4, {"model": lambda: nn.Linear(4, 2)}, ValueError, "cannot take inputs"),
        (torch.randn(8, 3), [0, 1] * 4, {"random_state": "x"}, TypeError, "random_state is a str"),
        (torch.randn(4, 3), ["cow", None, "elk", "cow"], {}, ValueError, r"label 1 is missing \(None\)"),
        (torch.randn(4, 3), [0, None, 1, 0], {}, ValueError, r"label 1 is missing"),
        (torch.randn(4, 3), np.array(["cow", np.nan, "elk", "cow"], object), {}, ValueError, r"label 1 is missing"),
        (torch.randn(4, 3), ["cow", 1, "cow", 1], {}, ValueError, "labels mix int, text"),
        ((torch.randn(4, 3), torch.arange(4) % 2), None, {}, TypeError, "X and y as two arguments"),
        (
            torch.randn(8, 3),
            [0, 1] * 4,
            {"model": nn.Linear(3, 2)},
            TypeError,
            "Linear, not a function; give a callable",
        ),
        (
            torch.randn(8, 3),
            [0, 1] * 4,
            {"model": lambda: nn.Linear(3, 2).requires_grad_(False)},
            ValueError,
            "unfreeze",
        ),
        (
            torch.randint(256, (8, 3, 4, 4), dtype=torch.uint8),
            [0, 1] * 4,
            {"model": lambda: nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten())},
            ValueError,
            r"cannot take inputs of torch.uint8 .* x.float\(\) / 255",
        ),
        (Endless(), None, {}, TypeError, "map-style Dataset with __len__"),
        (Pairs(torch.randn(8, 3), torch.arange(8) % 2), None, {}, ValueError, "pass a model"),
    ],
)
def test_mistakes_are_named(data, y, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        discover_environments(data, y, **({"device": "cpu", "random_state": 0} | options))


@quiet
@pytest.mark.parametrize("lost", ["train", "twin.a.weight", "trials", "about"])
def test_a_file_that_lacks_something_is_not_a_saved_discovery(tmp_path, lost: str) -> None:
    x, y, _ = shortcut(60)
    discover_environments(x, y, steps=3, search=1, random_state=0, device="cpu").save(tmp_path / "whole")
    with safe_open(tmp_path / "whole", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != lost}  # noqa: SIM118
    save_file(tensors, tmp_path / "part", {name: text for name, text in metadata.items() if name != lost})
    with pytest.raises(ValueError, match="is not a whole saved discovery"):
        Environments.load(tmp_path / "part")
