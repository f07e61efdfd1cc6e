import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechanisms.lab.bench import Bench
from mechanisms.lab.stages import load, load_or_compute, save


def test_nested_values_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    value = {
        "tensors": [shared, shared[::2], torch.tensor(3, dtype=torch.bfloat16)],
        "array": np.arange(4, dtype=np.uint8).reshape(2, 2),
        "flags": np.array([True, False]),
        "empty": torch.empty(0, 3),
        "plain": (1, 2.5, "text", None, True, np.float64(0.1)),
    }
    save(tmp_path / "stage", value)
    (back,) = load(tmp_path / "stage") or pytest.fail("not stored")
    torch.testing.assert_close(back["tensors"], value["tensors"], rtol=0, atol=0)
    assert isinstance(back["array"], np.ndarray)
    assert (back["array"] == value["array"]).all()
    assert back["flags"].dtype == bool
    assert back["plain"] == value["plain"]
    assert back["empty"].shape == (0, 3)


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": np.array(["text"])}, [lambda: 0]])
def test_what_would_need_pickle_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="a stage returned"):
        save(tmp_path / "stage", value)


def test_a_damaged_file_is_computed_anew(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    save(path, 1)
    path.write_bytes(path.read_bytes()[:-3] + b"???")
    path.write_bytes(b"\x08rubbish")
    assert load(path) is None
    value, seconds = load_or_compute(path, lambda: 2)
    assert (value, seconds is not None) == (2, True)
    assert load_or_compute(path, lambda: 3) == (2, None)


def test_stage_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    load_or_compute(tmp_path / "stages" / "toy" / "one", lambda: 1)
    save(tmp_path / "others" / "toy" / "two", 2)
    made = {path.name: (path.is_dir(), path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert {"stages", "others", "toy", "one", "two"} <= set(made)
    assert all(mode == (0o700 if is_folder else 0o600) for is_folder, mode in made.values())


def test_a_stage_inside_a_stage_is_waited_for_once(tmp_path: Path) -> None:
    bench = Bench(0, cache=tmp_path)

    def outer() -> int:
        time.sleep(0.05)
        return 1 + bench.cached("inner", lambda: (time.sleep(0.1), 1)[1])

    started = time.perf_counter()
    assert bench.cached("outer", outer) == 2
    assert 0.15 <= bench.waited <= time.perf_counter() - started
    assert 0.05 <= bench.stages["outer"] < 0.1 <= bench.stages["inner"]


@pytest.mark.parametrize("step", [float("nan"), float("inf")])
def test_a_curve_has_no_point_at_a_step_that_is_not_finite(step: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        Bench(0).log(step, loss=1.0)


def test_a_stage_is_computed_once_though_several_ask_at_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def slow() -> int:
        calls.append(1)
        time.sleep(0.2)
        return len(calls)

    threads = [threading.Thread(target=load_or_compute, args=(tmp_path / "stage", slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def test_stages_differ_by_seed_key_code_and_the_settings_they_depend_on(tmp_path: Path) -> None:
    def ask(key: str = "a", seed: int = 0, code: str = "", **settings: int) -> int:
        bench = Bench(seed, cache=tmp_path, code=code, owner="toy/line")
        return bench.cached(key, lambda: len(list(tmp_path.glob("*.safetensors"))), settings=settings)

    asked = [ask(), ask("b"), ask(seed=1), ask(code="x"), ask(width=3)]
    assert asked == [0, 1, 2, 3, 4]
    assert [ask(), ask("b"), ask(seed=1), ask(code="x"), ask(width=3)] == asked


def test_without_a_cache_the_stage_is_computed_and_timed() -> None:
    bench = Bench(0)
    assert bench.cached("a", lambda: 7) == 7
    assert bench.stages["a"] >= 0
