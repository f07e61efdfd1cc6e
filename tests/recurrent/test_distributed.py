"""Data parallel training: two processes have the gradients of one process on the joined batch."""

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from mechanisms.recurrent import LSTMCell, Recurrent
from tests.recurrent.own_cells import Leaky

KINDS = {"LSTM": lambda size: LSTMCell(size, 4, learn_initial_state=True), "Leaky": lambda size: Leaky(size, 4)}


def network(kind: str) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(KINDS[kind], 3, num_layers=2, checkpoint=2 if kind == "Leaky" else None)


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    for kind in KINDS:
        model = nn.parallel.DistributedDataParallel(network(kind))
        x = batch()[:, 2 * rank : 2 * rank + 2]
        model(x, lengths=[5, 3])[0].square().sum().backward()
        if rank == 0:
            gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
            torch.save(gradients, Path(folder) / f"{kind}.pt")
    distributed.destroy_process_group()


def batch() -> torch.Tensor:
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, str(tmp_path)), nprocs=2)
    for kind in KINDS:
        alone = network(kind)
        alone(batch(), lengths=[5, 3, 5, 3])[0].square().sum().backward()
        together = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        for name, parameter in alone.named_parameters():
            assert parameter.grad is not None
            # Two processes average what one process sums.
            torch.testing.assert_close(2 * together[name], parameter.grad, rtol=1e-5, atol=1e-6)
