"""Large memory that is used again: never while a tensor lives, in any type, and given up where it no longer fits."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mechanisms.recurrent import _spare_pages as spare_pages
from mechanisms.recurrent.rim_cell import RIMCell
from mechanisms.recurrent.scan import scan

SMALLEST = 1 << 12
kept = pytest.mark.skipif(spare_pages._LEND is None, reason="this system takes no pages back")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(spare_pages, "LARGE", SMALLEST)
    spare_pages._spare.clear()
    yield
    spare_pages._spare.clear()


def test_small_tensors_are_left_to_torch() -> None:
    one = spare_pages.empty(7, torch.float64)
    assert (one.shape, one.dtype) == ((7,), torch.float64)
    del one
    assert not spare_pages._spare


@kept
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.uint8])
def test_memory_returns_when_the_last_view_dies(dtype: torch.dtype) -> None:
    one = spare_pages.empty(SMALLEST + 9, dtype)
    one.fill_(3)
    view, pointer = one[5:].view(-1), one.data_ptr()
    del one
    assert not spare_pages._spare
    assert bool((view == 3).all())
    del view
    again = spare_pages.empty(SMALLEST, dtype)
    assert again.data_ptr() == pointer
    assert again.shape == (SMALLEST,)


@kept
def test_what_does_not_fit_is_given_up() -> None:
    for size in (SMALLEST, 3 * SMALLEST):
        spare_pages.empty(size, torch.uint8)
    assert [len(one) for one in spare_pages._spare] == [3 * SMALLEST]
    small = spare_pages.empty(SMALLEST, torch.uint8)  # less than half of what is spare
    assert not spare_pages._spare
    del small


@kept
def test_threads_never_share_memory() -> None:
    wrong: list[int] = []

    def work(own: int) -> None:
        for _ in range(50):
            pair = [spare_pages.empty(SMALLEST + own, torch.uint8).fill_(own) for _ in range(2)]
            wrong.extend(own for one in pair if not bool((one == own).all()))

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_gradients_are_the_same_in_memory_that_was_used(kind: str) -> None:
    """Two sequences alive at once, one gone through twice: nothing is handed out that is still needed."""
    torch.manual_seed(0)
    cell: nn.Module = RIMCell(5, 7, 4, 2, cell=kind, key_size=6, qkv_std=0.3).eval()
    first, second = torch.randn(2, 40, 3, 5)

    def gradients(x: torch.Tensor, backend: str) -> list[torch.Tensor]:
        return list(torch.autograd.grad(scan(cell, x, backend=backend).output.square().sum(), list(cell.parameters())))

    expected = [gradients(x, "eager") for x in (first, second)]
    for _ in range(2):
        losses = [scan(cell, x).output.square().sum() for x in (first, second)]
        for loss, wanted in (*zip(losses, expected, strict=True), (losses[0], expected[0])):
            found = torch.autograd.grad(loss, list(cell.parameters()), retain_graph=loss is losses[0])
            torch.testing.assert_close(list(found), wanted, rtol=1e-4, atol=1e-5)
        del losses, loss
