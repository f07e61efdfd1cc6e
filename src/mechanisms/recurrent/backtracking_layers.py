"""Sparse attentive backtracking in place of `torch.nn.LSTM`: the top layer is reminded, those below are plain."""

import warnings
from typing import Any

import torch
from torch import Tensor

from mechanisms.recurrent.attentive_layers import AttentiveNetwork
from mechanisms.recurrent.backtracking import SparseAttentiveBacktracking
from mechanisms.recurrent.cells import LSTMCell
from mechanisms.recurrent.protocol import Cell, Device


class SABLSTM(AttentiveNetwork):
    """`torch.nn.LSTM` whose top layer attends sparsely to its own past, and backpropagates through what it attends to.

    The LSTM's parameters have torch's names: `load_state_dict(nn.LSTM(...).state_dict(), strict=False)` takes them, and
    leaves those of the attention (`key_weight_l0`, `query_weight_l0`, `score_weight_l0`) as they are.

    The output of a direction has size 2 * hidden_size, hidden state beside attended summary: read it with a layer of
    that size, or pass `readout="hidden"`. Layers below the top are plain and keep their whole gradient.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as for `torch.nn.LSTM`.
        k_trunc, k_top, k_att, score, sparsifier, attention_size, block_attention_gradient, max_memory, readout: as for
            `SparseAttentiveBacktracking`.
        backend: "auto" takes a fused path where there is one, "eager" single steps, "kernel" insists.
        device, dtype: of the parameters.

    Raises:
        ValueError: sizes below 1, unknown names, or `proj_size`.

    Source: section 3 of the paper; layers are not in it.

    >>> lstm = SABLSTM(3, 4, num_layers=2, k_trunc=5, k_top=2)
    >>> output, state = lstm(torch.randn(9, 2, 3))
    >>> output.shape, state[-1].values.shape
    (torch.Size([9, 2, 8]), torch.Size([2, 5, 4]))
    >>> output, state = lstm(torch.randn(4, 2, 3), state)  # goes on, with all that was stored
    >>> state[-1].values.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        bidirectional: bool = False,
        *,
        k_trunc: int | None = 10,
        k_top: int | None = 5,
        k_att: int = 2,
        score: str = "additive",
        sparsifier: str = "topk",
        attention_size: int | None = None,
        block_attention_gradient: bool = False,
        max_memory: int | None = None,
        readout: str = "both",
        backend: str = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
        proj_size: int = 0,
    ) -> None:
        def plain(size: int) -> Cell:
            return LSTMCell(size, hidden_size, bias, device=device, dtype=dtype)

        def reminded(size: int) -> Cell:
            return SparseAttentiveBacktracking(
                plain(size),
                k_trunc=k_trunc,
                k_top=k_top,
                k_att=k_att,
                score=score,
                sparsifier=sparsifier,
                attention_size=attention_size,
                block_attention_gradient=block_attention_gradient,
                max_memory=max_memory,
                readout=readout,
            )

        super().__init__(
            plain,
            reminded,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            backend,
            proj_size,
        )
        self.k_att = k_att

    def _begun(self, hx: Any, input: Any) -> Any:
        if isinstance(input, Tensor) and hx is None:
            steps = input.shape[1 if self.batch_first and input.dim() == 3 else 0]
            if steps < self.k_att:
                warnings.warn(
                    f"k_att={self.k_att} is longer than the {steps} steps of the input: nothing but the initial state "
                    "is ever stored; take a smaller k_att",
                    stacklevel=3,
                )
        return super()._begun(hx, input)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as a fresh network has them."""
        with self._lent() as network:
            for module in network.cells.modules():
                if isinstance(module, LSTMCell | SparseAttentiveBacktracking):
                    module.reset_parameters()
