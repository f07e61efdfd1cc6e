"""Sparse attentive backtracking beside its peers: `python benchmarks/bench_sparse_attentive_backtracking.py [--quick]`.

Training steps (forward and backward, the input needs a gradient; I = 64, k_trunc 5, k_top 5, k_att 2), medians of runs
in turns:

(a) `SparseAttentiveBacktracking` around an LSTM against the plain LSTM stepped in Python with its input projections
    hoisted. Target: at most twice its time at (T, B, H) = (200, 32, 128).
(b) against the released way of working, written anew: the memory is concatenated again at every step, the state is
    repeated beside each entry, and weights are repeated to the size of what they multiply. Target: at least 3 times
    faster at (200, 32, 128), with the additive score, which does more work than the released one.
(c) against our own single steps, and `torch.nn.LSTM`; both reported.
(d) Memory that autograd keeps at (1000, 8, 64), k_trunc 10, k_att 10. Target: with segments that are run again, at most
    a fifth of what full backpropagation through the plain loop keeps.

`--threads 2` reports two threads, `--device cuda` the single steps there.
Before timing, the released way and ours (released score and sparsifier) must agree in outputs and gradients.
"""

import torch
from torch import Tensor, nn

from _turns import INPUTS, gradients_of, in_turns, milliseconds, options, ratio, saved_bytes, training, verdict
from mechanisms.recurrent.backtracking import SparseAttentiveBacktracking
from mechanisms.recurrent.cells import LSTMCell
from mechanisms.recurrent.scan import scan

SIZES = [(30, 32, 64), (200, 10, 128), (200, 32, 128)]
GATED = (200, 32, 128)
K_TRUNC, K_TOP, K_ATT, EPSILON = 5, 5, 2, 1e-7


class ReleasedWay(nn.Module):
    """The released loop: everything that can be repeated is repeated."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.cell = nn.LSTMCell(inputs, size)
        self.weight = nn.Parameter(torch.randn(2 * size, 1) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        rows, size = x.shape[1], self.size
        h, c = x.new_zeros(rows, size), x.new_zeros(rows, size)
        memory, outputs = h.unsqueeze(1), []
        for t, step in enumerate(x):
            if (t + 1) % K_TRUNC == 0:
                h, c = h.detach(), c.detach()
            h, c = self.cell(step, (h, c))
            count = memory.shape[1]
            pairs = torch.cat([h.unsqueeze(1).repeat(1, count, 1), memory], 2)
            scores = torch.bmm(torch.tanh(pairs), self.weight.unsqueeze(0).repeat(rows, 1, 1)).squeeze(2)
            weights = self.sparse(scores)
            summary = (memory * weights.unsqueeze(2).repeat(1, 1, size)).sum(1)
            h = h + summary
            if (t + 1) % K_ATT == 0:
                memory = torch.cat([memory, h.unsqueeze(1)], 1)
            outputs.append(torch.cat([h, summary], 1))
        return torch.stack(outputs)

    def sparse(self, scores: Tensor) -> Tensor:
        count = scores.shape[1]
        if count <= K_TOP:
            return scores
        bar = scores.topk(K_TOP, 1).values[:, -1:] + EPSILON
        above = torch.clamp(scores - bar.repeat(1, count), min=0)
        return above / (above.sum(1, keepdim=True) + EPSILON).repeat(1, count)


def ours_like(peer: ReleasedWay) -> SparseAttentiveBacktracking:
    """Ours with the peer's weights."""
    size, inputs = peer.size, peer.cell.input_size
    cell = SparseAttentiveBacktracking(
        LSTMCell(inputs, size), k_trunc=K_TRUNC, k_top=K_TOP, k_att=K_ATT, score="released", sparsifier="released"
    )
    cell.cell.load_state_dict(peer.cell.state_dict())
    with torch.no_grad():
        cell.score.weight.copy_(peer.weight.t())
    return cell


def check_agreement() -> None:
    """The released way, our kernel and our single steps, in double precision."""
    torch.manual_seed(0)
    peer = ReleasedWay(6, 24)
    with torch.no_grad():
        peer.weight.mul_(100)  # scores apart, else gradients of the weights are huge
    ours = ours_like(peer).double()
    peer.double()
    x = torch.randn(40, 3, 6, dtype=torch.float64, requires_grad=True)
    expected = peer(x)
    theirs = gradients_of(expected, x, peer)
    for backend in ("auto", "eager"):
        found = scan(ours, x, backend=backend).output
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        mine = gradients_of(found, x, ours)
        by_name = dict(zip([name for name, _ in ours.named_parameters()], mine[1:], strict=True))
        torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=1e-8)
        for (name, _), gradient in zip(peer.named_parameters(), theirs[1:], strict=True):
            own = by_name["score.weight"].t() if name == "weight" else by_name[name]
            torch.testing.assert_close(own, gradient, rtol=0, atol=1e-8 * max(1.0, float(gradient.abs().max())))


def measure(sizes: tuple[int, int, int], rounds: int, threads: int, device: str) -> None:
    steps, rows, size = sizes
    torch.manual_seed(0)
    settings = {"k_trunc": K_TRUNC, "k_top": K_TOP, "k_att": K_ATT}
    loop, plain, peer = LSTMCell(INPUTS, size), nn.LSTM(INPUTS, size), ReleasedWay(INPUTS, size)
    ours = SparseAttentiveBacktracking(LSTMCell(INPUTS, size), **settings)
    released = SparseAttentiveBacktracking(LSTMCell(INPUTS, size), score="released", **settings)
    for module in (loop, plain, peer, ours, released):
        module.to(device)
    x = torch.randn(steps, rows, INPUTS, device=device, requires_grad=True)
    seconds = in_turns(
        {
            "loop": training(lambda x: scan(loop, x, backend="eager").output, loop, x),
            "ours": training(lambda x: scan(ours, x).output, ours, x),
            "released": training(lambda x: scan(released, x).output, released, x),
            "eager": training(lambda x: scan(ours, x, backend="eager").output, ours, x),
            "peer": training(peer, peer, x),
            "nn.LSTM": training(lambda x: plain(x)[0], plain, x),
        },
        rounds,
        alone=threads == 1,
        device=device,
    )
    slower, faster = ratio(seconds["ours"], seconds["loop"]), ratio(seconds["peer"], seconds["ours"])
    times = " ".join(f"{name} {milliseconds(one):.1f}" for name, one in seconds.items())
    gates = f"{slower:.2f}   released way/ours {faster:.1f}"
    if sizes == GATED:
        gates = (
            f"{slower:.2f} <= 2: {verdict(slower <= 2)}   released way/ours {faster:.1f} >= 3: {verdict(faster >= 3)}"
        )
    print(f"{sizes}, {rounds} rounds, ms: {times}\n    ours/loop {gates}", flush=True)
    print(
        f"    reported: released score/loop {ratio(seconds['released'], seconds['loop']):.2f}, single steps/loop "
        f"{ratio(seconds['eager'], seconds['loop']):.2f}, ours/nn.LSTM {ratio(seconds['ours'], seconds['nn.LSTM']):.2f}"
    )


def measure_memory(device: str) -> None:
    x = torch.randn(1000, 8, INPUTS, device=device)
    plain = LSTMCell(INPUTS, 64).to(device)
    cell = SparseAttentiveBacktracking(LSTMCell(INPUTS, 64), k_trunc=10, k_att=10).to(device)
    full = saved_bytes(lambda: scan(plain, x, backend="eager"))
    whole, parts = saved_bytes(lambda: scan(cell, x)), saved_bytes(lambda: scan(cell, x, checkpoint=True))
    print(
        f"saved for the backward pass at (1000, 8, 64), MB: plain loop {full / 1e6:.1f}, ours {whole / 1e6:.1f}, with "
        f"segments run again {parts / 1e6:.2f}\n    segments/plain loop {parts / full:.3f} <= 0.2: "
        f"{verdict(parts <= full / 5)}"
    )
    for steps in (200, 2000):
        with torch.no_grad():
            state = scan(cell, torch.randn(steps, 1, INPUTS, device=device)).state
        size = sum(leaf.numel() * leaf.element_size() for leaf in (state.values, state.keys))
        print(f"store of one row after {steps} steps at inference: {size} bytes (an entry every 10 steps)")


def main() -> None:
    chosen = options(__doc__)
    check_agreement()
    for sizes in SIZES[:1] if chosen.quick else SIZES:
        measure(sizes, 3 if chosen.quick else 9 if sizes[0] < 100 else 5, chosen.threads, chosen.device)
    if not chosen.quick:
        measure_memory(chosen.device)


if __name__ == "__main__":
    main()
