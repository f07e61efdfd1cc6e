"""Groups of parameters: disjoint, complete, and each where it belongs."""

from typing import Any

import pytest
import torch
from torch import nn

from mechanisms.recurrent import LSTMCell, SparseAttentiveBacktracking, Zoneout, ZoneoutLSTM
from mechanisms.recurrent.bidirectional_rims import BRIM, RIM, BRIMCell, RIMCell, parameter_groups


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.core, self.head = nn.Linear(5, 3), Zoneout(RIMCell(3, 4, 6, 2), 0.1), nn.Linear(24, 2)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RIMCell(3, 4, 6, 2),
        lambda: RIMCell(3, 4, 6, 6, cell="gru", communicate=False, input_attention=False),
        lambda: BRIMCell(3, [4, 5], [6, 3], [4, 2]),
        lambda: RIM(3, 4, 6, 2, num_layers=2),
        lambda: BRIM(3, [4, 5], [6, 3], [4, 2]),
        Agent,
        lambda: LSTMCell(3, 4),
        lambda: nn.LSTM(3, 4),
        lambda: ZoneoutLSTM(3, 4),
        lambda: nn.ModuleList([nn.GRUCell(3, 4), nn.Linear(4, 1)]),
        lambda: SparseAttentiveBacktracking(LSTMCell(3, 4)),
    ],
)
def test_they_are_disjoint_and_complete(make: Any) -> None:
    module = make()
    groups = parameter_groups(module)
    assert list(groups) == ["dynamics", "input_attention", "communication", "other"]
    found = [id(parameter) for group in groups.values() for parameter in group]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in module.parameters()}
    assert groups["dynamics"]


def test_each_parameter_is_where_it_belongs() -> None:
    agent = Agent()
    names = {id(parameter): name for name, parameter in agent.named_parameters()}
    groups = {group: [names[id(one)] for one in found] for group, found in parameter_groups(agent).items()}
    assert groups["dynamics"] == [f"core.cell.dynamics.{name}" for name in ("weight_ih", "weight_hh", "bias")]
    assert all(name.startswith("core.cell.input_attention.") for name in groups["input_attention"])
    assert all(name.startswith("core.cell.communication.") for name in groups["communication"])
    assert len(groups["input_attention"]) == 3
    assert len(groups["communication"]) == 7
    assert sorted(groups["other"]) == ["encoder.bias", "encoder.weight", "head.bias", "head.weight", "scale"]


def test_shared_and_frozen_parameters_are_counted_once() -> None:
    agent = Agent()
    agent.head.weight = nn.Parameter(agent.head.weight.detach())
    tied = nn.ModuleList([agent, agent.core])
    agent.core.requires_grad_(False)
    assert sum(map(len, parameter_groups(tied).values())) == len(list(agent.parameters()))


def test_without_a_recurrent_cell_there_are_no_groups() -> None:
    with pytest.raises(TypeError, match=r"Sequential holds no recurrent cell.*divide the parameters yourself"):
        parameter_groups(nn.Sequential(nn.Linear(3, 4)))
