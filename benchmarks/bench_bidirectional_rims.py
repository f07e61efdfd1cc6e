"""RIMs and BRIMs beside their peers, in one run: `python benchmarks/bench_bidirectional_rims.py [--quick]`.

Training steps are forward, backward and Adam; medians of runs in turns. The peers (`_rim_peers.py`) are the ways of
working of earlier implementations, written anew and checked to give our outputs before anything is timed.

(a) RIMs, T = 50, B = 64, input 600, 6 modules of 100 units, 4 active. Targets: at least 3.7 times faster than the dense
    way (4 is the stretch), 1.3 times faster than the grouped way (1.4), within 1.2 times of `nn.LSTM(600, 600)`.
(b) The same without gradients. Target: at least 4 times faster than the dense way.
(c) BRIMs, T = 196, B = 64, input 300, 6 modules of 50 units with 4 active below 3 of 100 with 2. Target: at least 4
    times faster than the dense way.
(d) What frozen parameters save in (a), as when modules and attention learn in turns; reported.
(e) Small sizes, where calls count: copying (T = 25, 6 modules of 16 units, 3 active) and an agent (T = 20 and 1, 4
    modules, 2 active), B = 64, against our own single steps and an `nn.LSTM` with as many units; reported.
(f) Memory that autograd keeps in (a); reported.

`--threads 2` reports two threads, `--device cuda` the single steps there. `--quick` takes few and short runs: a check.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from _rim_peers import Peer, difference, ours_like
from _turns import in_turns, milliseconds, options, ratio, saved_bytes, verdict
from mechanisms.recurrent.parameter_groups import parameter_groups
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.rim_cell import RIMCell
from mechanisms.recurrent.scan import scan

INPUTS, ROWS = 600, 64
RIM = {"size": [100], "modules": [6], "active": [4]}
BRIM_INPUTS = 300
BRIM = {"size": [50, 100], "modules": [6, 3], "active": [4, 2], "heads": 4, "comm_key": 32}


def check_agreement() -> None:
    """All peers at small sizes, in double precision; at the sizes that are timed they are compared again."""
    torch.manual_seed(0)
    for dense in (True, False):
        difference(Peer(12, [5], [6], [4], dense=dense).double(), 12, tolerance=1e-12)
        difference(Peer(12, [5, 4], [6, 3], [4, 2], dense=dense, heads=4, comm_key=8).double(), 12, tolerance=1e-12)


def update(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, backward and Adam; the input needs a gradient, as embeddings do."""
    optimizer = torch.optim.Adam([one for one in module.parameters() if one.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        run(x).square().mean().backward()
        optimizer.step()

    return step


def forward(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Without gradients."""

    def step() -> None:
        with torch.no_grad():
            run(x)

    return step


def over(cell: Cell, backend: str = "auto") -> Callable[[Tensor], Tensor]:
    return lambda x: scan(cell, x, backend=backend).output


def first(module: nn.LSTM) -> Callable[[Tensor], Tensor]:
    return lambda x: module(x)[0]


def report(title: str, seconds: dict[str, list[float]], targets: dict[str, tuple[float, float | None, bool]]) -> None:
    """Medians, and ratios beside targets: peer/ours at least so much, or (last entry) ours/peer at most."""
    print(f"{title}, ms: " + ", ".join(f"{name} {milliseconds(one):.1f}" for name, one in seconds.items()), flush=True)
    for name, (target, stretch, at_most) in targets.items():
        pair = (seconds["ours"], seconds[name]) if at_most else (seconds[name], seconds["ours"])
        found = ratio(*pair)
        met = verdict(found <= target if at_most else found >= target)
        said = f"ours/{name} {found:.2f} <= {target}" if at_most else f"{name}/ours {found:.2f} >= {target}"
        print(f"    {said}: {met}" + (f"   (stretch {stretch}: {verdict(found >= stretch)})" if stretch else ""))


def measure_rims(steps: int, rounds: int, threads: int, device: str) -> None:
    torch.manual_seed(0)
    dense, grouped = (Peer(INPUTS, **RIM, dense=one).to(device) for one in (True, False))
    print(f"(a) outputs agree to {max(difference(dense, INPUTS), difference(grouped, INPUTS)):.0e}")
    ours, plain = ours_like(dense, INPUTS).to(device), nn.LSTM(INPUTS, 600).to(device)
    x = torch.randn(steps, ROWS, INPUTS, device=device, requires_grad=True)
    runs = {"ours": over(ours), "dense way": dense, "grouped way": grouped, "nn.LSTM": first(plain)}
    modules = {"ours": ours, "dense way": dense, "grouped way": grouped, "nn.LSTM": plain}
    timing = {"alone": threads == 1, "device": device}
    seconds = in_turns({name: update(run, modules[name], x) for name, run in runs.items()}, rounds, **timing)
    targets = {"dense way": (3.7, 4.0, False), "grouped way": (1.3, 1.4, False), "nn.LSTM": (1.2, None, True)}
    report(f"    RIMs, training, T = {steps}, {rounds} rounds", seconds, targets)
    for module in modules.values():
        module.eval()
    seconds = in_turns({name: forward(run, x.detach()) for name, run in runs.items()}, rounds, **timing)
    report("(b) RIMs, without gradients", seconds, {"dense way": (4.0, None, False)})
    measure_frozen(ours, x, rounds, timing)
    kept = {name: saved_bytes(lambda run=run: run(x)) for name, run in runs.items() if name != "nn.LSTM"}
    kept["our single steps"] = saved_bytes(lambda: over(ours, "eager")(x))
    print("(f) kept for the backward pass, MB: " + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in kept.items()))


def measure_frozen(ours: Cell, x: Tensor, rounds: int, timing: dict[str, object]) -> None:
    """Training with one half of the parameters frozen."""
    ours.train()
    x = x.detach().requires_grad_()
    groups = parameter_groups(ours)
    modules = set(groups["dynamics"])
    frozen = {"ours": set(), "modules frozen": modules, "attention frozen": set(ours.parameters()) - modules}

    def part(which: set[nn.Parameter]) -> Callable[[], None]:
        run = over(ours)

        def step() -> None:
            for parameter in ours.parameters():
                parameter.requires_grad_(parameter not in which)
                parameter.grad = None
            run(x).square().mean().backward()

        return step

    seconds = in_turns({name: part(which) for name, which in frozen.items()}, rounds, **timing)
    said = ", ".join(f"{name} {ratio(one, seconds['ours']):.2f}" for name, one in seconds.items() if name != "ours")
    print(f"(d) forward and backward, of the time with all parameters ({milliseconds(seconds['ours']):.0f} ms): {said}")
    for parameter in ours.parameters():
        parameter.requires_grad_()


def measure_brims(steps: int, rounds: int, threads: int, device: str) -> None:
    torch.manual_seed(0)
    peer = Peer(BRIM_INPUTS, **BRIM, dense=True).to(device)
    print(f"(c) outputs agree to {difference(peer, BRIM_INPUTS):.0e}")
    ours, plain = ours_like(peer, BRIM_INPUTS).to(device), nn.LSTM(BRIM_INPUTS, 300, 2).to(device)
    x = torch.randn(steps, ROWS, BRIM_INPUTS, device=device, requires_grad=True)
    steps_of = {
        "ours": update(over(ours), ours, x),
        "dense way": update(peer, peer, x),
        "nn.LSTM, two layers": update(first(plain), plain, x),
    }
    seconds = in_turns(steps_of, rounds, alone=threads == 1, device=device)
    report(f"    BRIMs, training, T = {steps}, {rounds} rounds", seconds, {"dense way": (4.0, None, False)})
    print(f"    reported: ours/nn.LSTM {ratio(seconds['ours'], seconds['nn.LSTM, two layers']):.2f}")


def measure_small(rounds: int, threads: int, device: str) -> None:
    for name, steps, modules, active in (("copying", 25, 6, 3), ("agent", 20, 4, 2), ("agent", 1, 4, 2)):
        torch.manual_seed(0)
        cell = RIMCell(32, 16, modules, active, key_size=32, comm_key_size=16).to(device)
        plain = nn.LSTM(32, cell.output_size).to(device)
        x = torch.randn(steps, ROWS, 32, device=device, requires_grad=True)
        timing = {"alone": threads == 1, "device": device}
        runs = {"ours": over(cell), "single steps": over(cell, "eager"), "nn.LSTM": first(plain)}
        owners = {"ours": cell, "single steps": cell, "nn.LSTM": plain}
        training = in_turns({one: update(run, owners[one], x) for one, run in runs.items()}, rounds, **timing)
        cell.eval()
        acting = in_turns({one: forward(run, x.detach()) for one, run in runs.items()}, rounds, **timing)
        for what, seconds in (("training", training), ("without gradients", acting)):
            said = ", ".join(f"{one} {milliseconds(found):.2f}" for one, found in seconds.items())
            faster = ratio(seconds["single steps"], seconds["ours"])
            print(f"(e) {name}, T = {steps}, {what}, ms: {said}; single steps/ours {faster:.2f}", flush=True)


def main() -> None:
    chosen = options(__doc__)
    check_agreement()
    rounds = 2 if chosen.quick else 5
    measure_rims(10 if chosen.quick else 50, rounds, chosen.threads, chosen.device)
    measure_brims(10 if chosen.quick else 196, min(rounds, 3), chosen.threads, chosen.device)
    measure_small(5 if chosen.quick else 21, chosen.threads, chosen.device)


if __name__ == "__main__":
    main()
