"""Relevancy screening beside its peers, in one run: `python benchmarks/bench_relevancy_screening.py [--quick]`.

Training steps (forward and backward, the input needs a gradient; I = 64; ν, ρ = 5, 10 at the smallest size, else 10,
15), medians of runs in turns:

(a) `RelevancyScreening` around an LSTM against the plain LSTM stepped in Python with its input projections hoisted.
    Target: at most 2.5 times its time at (T, B, H) = (200, 32, 128).
(b) against the released way of working, written anew: the relevant set is built at every step by a loop over its places
    and the rows of the batch, with one number read back for each, and the keys of all entries are computed again.
    Target: at least 3 times faster at (200, 32, 128).
(c) against our own single steps, full self-attention, and `torch.nn.LSTM`; reported.
(d) The state of one row at inference after T steps. Target: constant in T; that of full self-attention grows.
    Memory that autograd keeps is reported.

`--threads 2` reports two threads, `--device cuda` the single steps there.
Before timing, the released way and ours (released=True) must agree in outputs and gradients.
"""

import torch
from torch import Tensor, nn

from _turns import INPUTS, gradients_of, in_turns, milliseconds, options, ratio, saved_bytes, training, verdict
from mechanisms.recurrent._trees import tensors
from mechanisms.recurrent.cells import LSTMCell
from mechanisms.recurrent.relevancy import RelevancyScreening
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.self_attentive import SelfAttentiveCell

SIZES = [(30, 32, 64, 5, 10), (200, 10, 128, 10, 15), (200, 32, 128, 10, 15)]
GATED = (200, 32, 128, 10, 15)


class ReleasedWay(nn.Module):
    """The released loop: lists of past states, and a relevant set gathered number by number."""

    def __init__(self, inputs: int, size: int, short_term: int, relevant: int) -> None:
        super().__init__()
        self.short_term, self.relevant = short_term, relevant
        self.cell = nn.LSTMCell(inputs, size)
        self.key, self.query = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        self.score = nn.Linear(size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, size = x.shape[1], self.cell.hidden_size
        states: list[Tensor] = []
        relevance = x.new_zeros(len(x), rows)
        places = torch.full((self.relevant, rows), -1, dtype=torch.int64)
        s, c, outputs = x.new_zeros(rows, size), x.new_zeros(rows, size), []
        previous = s
        for t, step in enumerate(x):
            if t:
                first = max(0, t - self.short_term)
                chosen = self.members(states, places, rows, size)
                entries = torch.stack([*states[first:], *chosen])
                query = self.query(previous).unsqueeze(0).repeat(len(entries), 1, 1)
                scores = self.score(torch.tanh(self.key(entries) + query)).squeeze(2)
                empty = torch.cat([torch.zeros(t - first, rows, dtype=torch.bool), places[: len(chosen)] < 0])
                weights = torch.softmax(scores.masked_fill(empty.to(scores.device), -torch.inf), 0)
                previous = s = 0.5 * (states[-1] + (weights.unsqueeze(2) * entries).sum(0))
                relevance[first:t] += weights[: t - first].detach()
            h, c = self.cell(step, (s, c))
            if t >= self.short_term:
                self.replace(t - self.short_term, relevance, places, rows)
            states.append(h)
            outputs.append(h)
        return torch.stack(outputs)

    def members(self, states: list[Tensor], places: Tensor, rows: int, size: int) -> list[Tensor]:
        """The relevant set (places, rows, size), element by element."""
        found = []
        for place in range(self.relevant):
            if not bool((places[place] >= 0).any()):
                break
            one = [
                states[member][row] if (member := places[place, row].item()) >= 0 else states[0].new_zeros(size)
                for row in range(rows)
            ]
            found.append(torch.stack(one))
        return found

    def replace(self, leaving: int, relevance: Tensor, places: Tensor, rows: int) -> None:
        """A free place, or that of the least relevant member when the state that leaves is more relevant."""
        known = relevance.cpu().gather(0, places.clamp(min=0)).masked_fill(places < 0, -torch.inf)
        least, where = known.min(0)
        where, every = where.unsqueeze(0), torch.arange(rows)
        enters = relevance[leaving].cpu() > least
        places.scatter_(0, where, torch.where(enters, leaving, places[where[0], every]).unsqueeze(0))


def ours_like(peer: ReleasedWay) -> RelevancyScreening:
    """Ours with the peer's weights."""
    inner = LSTMCell(peer.cell.input_size, peer.cell.hidden_size)
    cell = RelevancyScreening(inner, short_term=peer.short_term, relevant=peer.relevant, released=True)
    cell.load_state_dict(peer.state_dict())
    return cell


def check_agreement() -> None:
    """The released way, our kernel and our single steps, in double precision."""
    torch.manual_seed(0)
    peer = ReleasedWay(6, 24, 3, 4)
    ours = ours_like(peer).double()
    peer.double()
    x = torch.randn(30, 3, 6, dtype=torch.float64, requires_grad=True)
    expected = peer(x)
    theirs = dict(zip(["x", *dict(peer.named_parameters())], gradients_of(expected, x, peer), strict=True))
    for backend in ("auto", "eager"):
        found = scan(ours, x, backend=backend).output
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        mine = dict(zip(["x", *dict(ours.named_parameters())], gradients_of(found, x, ours), strict=True))
        for name, gradient in theirs.items():
            torch.testing.assert_close(mine[name], gradient, rtol=0, atol=1e-11)


def measure(sizes: tuple[int, int, int, int, int], rounds: int, threads: int, device: str) -> None:
    steps, rows, size, short_term, relevant = sizes
    torch.manual_seed(0)
    loop, plain = LSTMCell(INPUTS, size), nn.LSTM(INPUTS, size)
    peer = ReleasedWay(INPUTS, size, short_term, relevant)
    ours = RelevancyScreening(LSTMCell(INPUTS, size), short_term=short_term, relevant=relevant)
    full = SelfAttentiveCell(LSTMCell(INPUTS, size))
    for module in (loop, plain, peer, ours, full):
        module.to(device)
    x = torch.randn(steps, rows, INPUTS, device=device, requires_grad=True)
    seconds = in_turns(
        {
            "loop": training(lambda x: scan(loop, x, backend="eager").output, loop, x),
            "ours": training(lambda x: scan(ours, x).output, ours, x),
            "eager": training(lambda x: scan(ours, x, backend="eager").output, ours, x),
            "full attention": training(lambda x: scan(full, x).output, full, x),
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
            f"{slower:.2f} <= 2.5: {verdict(slower <= 2.5)}   "
            f"released way/ours {faster:.1f} >= 3: {verdict(faster >= 3)}"
        )
    print(f"{sizes}, {rounds} rounds, ms: {times}\n    ours/loop {gates}", flush=True)
    print(
        f"    reported: single steps/loop {ratio(seconds['eager'], seconds['loop']):.2f}, full attention/loop "
        f"{ratio(seconds['full attention'], seconds['loop']):.2f}, "
        f"ours/nn.LSTM {ratio(seconds['ours'], seconds['nn.LSTM']):.2f}"
    )


def measure_memory(device: str) -> None:
    ours = RelevancyScreening(LSTMCell(INPUTS, 128)).to(device)
    full = SelfAttentiveCell(LSTMCell(INPUTS, 128)).to(device)
    sizes: dict[str, list[int]] = {"ours": [], "full": []}
    for steps in (200, 2000):
        x = torch.randn(steps, 1, INPUTS, device=device)
        for name, cell in (("ours", ours), ("full", full)):
            with torch.no_grad():
                leaves = tensors(scan(cell, x).state)
            sizes[name].append(sum(leaf.untyped_storage().nbytes() for leaf in leaves))
    print(f"state of one row at inference after 200 and 2000 steps, bytes: ours {sizes['ours']}, full {sizes['full']}")
    print(f"    constant in T: {verdict(sizes['ours'][0] == sizes['ours'][1])}")
    x = torch.randn(200, 32, INPUTS, device=device)
    plain = saved_bytes(lambda: scan(LSTMCell(INPUTS, 128).to(device), x, backend="eager"))
    kept = {
        name: saved_bytes(lambda b=b: scan(ours, x, backend=b))
        for name, b in (("ours", "auto"), ("single steps", "eager"))
    }
    kept["full attention"] = saved_bytes(lambda: scan(full, x))
    print(
        "kept for the backward pass at (200, 32, 128), MB: "
        + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in {"plain loop": plain, **kept}.items())
    )


def main() -> None:
    chosen = options(__doc__)
    check_agreement()
    for sizes in SIZES[:1] if chosen.quick else SIZES:
        measure(sizes, 3 if chosen.quick else 9 if sizes[0] < 100 else 3, chosen.threads, chosen.device)
    if not chosen.quick:
        measure_memory(chosen.device)


if __name__ == "__main__":
    main()
