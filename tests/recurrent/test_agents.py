"""Packed states: zeros are the initial state, and nothing is lost."""

from typing import Any, NamedTuple

import pytest
import torch

from mechanisms.recurrent import Cell, LSTMCell, Recurrent, pack_state, unpack_state
from mechanisms.recurrent._trees import tensors
from tests.recurrent.own_cells import Growing, Pair

B, H = 3, 4


class SlotState(NamedTuple):
    h: Any
    index: Any
    used: Any


class Slots(Cell):
    """Empty slots have index -1, as memories of fixed size have."""

    input_size, output_size = 2, H

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        h = torch.zeros(batch_size, H, device=device, dtype=dtype)
        return SlotState(h, torch.full((batch_size, 5), -1, device=device), torch.zeros(batch_size, dtype=torch.bool))


def test_zeros_are_the_initial_state_also_where_that_is_learned_or_minus_one() -> None:
    learned = LSTMCell(2, H, learn_initial_state=True)
    torch.nn.init.normal_(learned.initial_h)
    for cell in (learned, Slots()):
        initial = cell.initial_state(B)
        assert bool((pack_state(cell, initial) == 0).all())
        for mine, theirs in zip(
            tensors(unpack_state(cell, pack_state(cell, initial) * 0)), tensors(initial), strict=True
        ):
            assert torch.equal(mine, theirs)
            assert mine.dtype == theirs.dtype


def test_packing_loses_nothing() -> None:
    state = SlotState(
        torch.randn(B, H), torch.tensor([[-1, 3, 2**24 - 2, 0, 7]] * B), torch.tensor([True, False, True])
    )
    packed = pack_state(Slots(), state)
    assert packed.shape == (B, H + 5 + 1)
    assert packed.dtype == torch.float32
    for mine, theirs in zip(tensors(unpack_state(Slots(), packed)), tensors(state), strict=True):
        assert torch.equal(mine, theirs)
    assert unpack_state(Slots(), packed, dtype=torch.float64).h.dtype == torch.float64
    _, state = Pair()((torch.randn(B, 3), torch.randn(B, 2)))
    assert pack_state(Pair(), state).shape == (B, 4 + 4 + 1)


def test_a_learned_initial_state_gets_gradients_at_an_episodes_start_only() -> None:
    cell = LSTMCell(2, H, learn_initial_state=True)
    packed = torch.zeros(B, 2 * H)
    start = torch.tensor([True, False, False])
    assert not unpack_state(cell, packed).h.requires_grad
    state = unpack_state(cell, packed, start=start)
    gradient = torch.autograd.grad(state.h.sum(), cell.initial_h)[0]
    assert gradient.tolist() == [1.0] * H


def test_a_rollout_is_reproduced_from_packed_states_and_flags() -> None:
    torch.manual_seed(0)
    core = Recurrent(lambda size: LSTMCell(size, H), 2, num_layers=2)
    x, flags = torch.randn(6, B, 2), torch.zeros(6, B, dtype=torch.bool)
    flags[[2, 4], [0, 1]] = True
    packed, outputs, kept = torch.zeros(B, 4 * H), [], None
    for t in range(6):
        packed = packed * ~flags[t].unsqueeze(1)
        if t == 1:
            kept = packed
        output, state = core.step(x[t], unpack_state(core, packed))
        packed = pack_state(core, state)
        outputs.append(output)
    assert kept is not None
    replayed, _ = core(x[1:], unpack_state(core, kept), reset=flags[1:])
    torch.testing.assert_close(replayed, torch.stack(outputs[1:]), rtol=0, atol=1e-6)


def test_what_cannot_be_packed_is_said() -> None:
    for cell in (Growing(2, H), Recurrent(Growing(2, H), 2)):
        with pytest.raises(TypeError, match=r"memory of Growing grows .* set max_memory"):
            pack_state(cell, Growing(2, H).initial_state(B))
    with pytest.raises(ValueError, match=r"shape \(3, 7\); expected \(batch, 8\)"):
        unpack_state(LSTMCell(2, H), torch.zeros(B, 7))
