import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mechanisms._base.device import resolve_device
from mechanisms._base.extras import MissingExtra, require
from mechanisms._base.lazy import lazy_names
from mechanisms._base.seeds import as_seed, numpy_generator, stream_seed, torch_generator
from mechanisms._base.validation import as_finite, check_choice, check_number
from mechanisms.lab.machine import device_name


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'mechanisms\[worlds\]'"):
        require("no_such_simulator.core", "worlds")


def test_a_broken_module_is_not_taken_for_a_missing_extra(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_here.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all") as caught:
        require("half_here", "lab")
    assert not isinstance(caught.value, MissingExtra)


def test_streams_of_one_seed_are_reproducible_and_distinct() -> None:
    names = [f"stream {i}" for i in range(1000)]
    seeds = {stream_seed(seed, name) for seed in (0, 1) for name in names}
    assert len(seeds) == 2000
    first, second = (torch.rand(5, generator=torch_generator(0, "a")) for _ in range(2))
    assert torch.equal(first, second)
    assert numpy_generator(0, "a").random() == numpy_generator(0, "a").random()


@pytest.mark.parametrize("state", [3, np.int64(3)])
def test_an_integer_random_state_is_itself(state: int) -> None:
    assert as_seed(state) == 3


def test_generators_give_reproducible_seeds_and_none_a_fresh_one() -> None:
    assert as_seed(np.random.default_rng(0)) == as_seed(np.random.default_rng(0))
    assert as_seed(np.random.RandomState(0)) == as_seed(np.random.RandomState(0))
    assert as_seed(torch.Generator().manual_seed(0)) == as_seed(torch.Generator().manual_seed(0))
    assert as_seed(None) != as_seed(None)


@pytest.mark.user_input
@pytest.mark.parametrize("state", ["3", 1.5, True])
def test_other_random_states_are_refused(state: object) -> None:
    with pytest.raises(TypeError, match="random_state is a"):
        as_seed(state)


def test_devices_are_found_and_unknown_ones_refused() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ValueError, match="'warp' cannot be used here"):
        resolve_device("warp")
    with pytest.raises(ValueError, match="'meta' holds shapes without numbers"):
        resolve_device("meta")


@pytest.mark.parametrize("name", ["cpu", "mps", "xpu"])
def test_only_cuda_devices_are_asked_for_a_model_name(name: str) -> None:
    assert device_name(torch.device(name)) == name


def test_lazy_names_are_found_in_their_homes_and_unknown_ones_are_told() -> None:
    names = lazy_names("mechanisms.lab.data", {"digits": "images", "read_table": ".table_files"})
    assert names("digits").__module__ == "mechanisms.lab.data.images"
    assert names("read_table").__module__ == "mechanisms.lab.table_files"
    with pytest.raises(AttributeError, match=r"'mechanisms.lab.data' has no attribute 'digit'"):
        names("digit")


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([1.0, float("nan"), float("inf")], ValueError, r"x has 2 of 3 values .* the first at \(1,\)"),
        (["a"], TypeError, "x must be a tensor or an array of numbers, got list"),
        (torch.zeros(2, dtype=torch.complex64), TypeError, "x must be real"),
    ],
)
def test_values_that_are_no_finite_numbers_are_refused(values: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_finite(values, "x")  # pyrefly: ignore


def test_finite_values_keep_their_type_and_integers_become_floating_point() -> None:
    assert as_finite(torch.ones(2, dtype=torch.float16), "x").dtype == torch.float16
    assert as_finite([1, 2], "x").dtype == torch.get_default_dtype()
    assert as_finite([1, 2], "x", dtype=torch.float64).dtype == torch.float64


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("value", "bounds", "error", "message"),
    [
        (0, {"above": 0}, ValueError, "lr=0: it must be > 0"),
        (1, {"above": -1, "below": 1}, ValueError, "lr=1: it must be > -1 and < 1"),
        (float("nan"), {}, ValueError, "lr=nan: it must be finite"),
        ("1", {}, TypeError, "lr must be a number, got '1'"),
        (True, {}, TypeError, "lr must be a number, got True"),
    ],
)
def test_a_number_out_of_bounds_is_refused(value: object, bounds: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_number(value, "lr", **bounds)  # pyrefly: ignore


def test_a_number_within_bounds_becomes_a_float() -> None:
    assert check_number(torch.tensor(1), "lr", at_least=1, at_most=1) == 1.0
    assert check_choice("a", "order", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="order='c': it must be one of 'a', 'b'"):
        check_choice("c", "order", ("a", "b"))


@pytest.mark.parametrize(
    "package", ["mechanisms.dynamics", "mechanisms.lab", "mechanisms.lab.data", "mechanisms.robust"]
)
def test_no_lazy_name_is_hidden_by_a_module_of_the_same_name(package: str) -> None:
    folder = Path(importlib.import_module(package).__path__[0])
    modules = {path.stem for path in folder.glob("*.py")}
    assert not modules & set(importlib.import_module(package)._HOMES)
