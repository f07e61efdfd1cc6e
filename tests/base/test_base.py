import numpy as np
import pytest
import torch

from mechanisms._base.device import resolve_device
from mechanisms._base.extras import MissingExtra, require
from mechanisms._base.seeds import as_seed, numpy_generator, stream_seed, torch_generator
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
