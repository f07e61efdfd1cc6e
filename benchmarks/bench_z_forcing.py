"""Z-Forcing beside the way its code was released: `python benchmarks/bench_z_forcing.py [--quick] [--device cuda]`.

The peer takes one step after the other with everything in it, as the released code does: embedding, the small
networks of prior, posterior and auxiliary cost, the LSTM cell, the output and all costs; only the backward network
runs before, in one call of `nn.LSTM`. Ours takes all of that out of the loop but what the state needs.

(a) Training steps (noise drawn, forward and backward with all four costs) at T = 40, B = 32, frames of 200 samples,
    E = M = H / 2. Targets: at least 1.5 times faster on a CPU (one thread) at H = 128, twice on a GPU at H = 1024.
(b) Limit: forward and backward through two `nn.LSTM` of the same sizes, which is the least that the two networks cost.
(c) The importance-weighted bound with 20 samples in one batch against one sample after the other; reported.

All are measured in turns, so that a busy machine slows them alike; a ratio is the median of those of neighbouring runs.
Before timing, both are given the same weights and noise and must agree in all costs and gradients.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mechanisms.recurrent.z_forcing import ZForcing, ZForcingOutput

STEPS, ROWS, FRAME = 40, 32, 200
WEIGHTS = {"kl_weight": 0.5, "auxiliary_weight": 0.005, "backward_weight": 0.1}


def small(network: nn.Module, x: Tensor) -> Tensor:
    hidden = nn.functional.leaky_relu(network.first(x), 1 / 3).clamp(-3, 3)
    return network.second(hidden).clamp(-8, 8)


def density(x: Tensor, parameters: Tensor) -> Tensor:
    mu, logvar = parameters.chunk(2, -1)
    logvar = logvar.clamp(-8, 8)
    return 0.5 * (1.8378770664093453 + logvar + (x - mu) ** 2 / logvar.exp()).sum(-1)


class StepByStep:
    """The released way around the weights of a model of ours."""

    def __init__(self, model: ZForcing) -> None:
        self.model = model
        size = model.cell.input_size[0]
        weight = model.output.weight
        self.backward_network = nn.LSTM(size, model.hidden_size, device=weight.device, dtype=weight.dtype)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self.backward_network, f"{name}_l0", getattr(model.backward_cell, name))

    def __call__(self, x: Tensor, y: Tensor, noise: Tensor) -> ZForcingOutput:
        model, cell = self.model, self.model.cell
        lstm = cell.cell
        b = self.backward_network(model.embedding(y.flip(0)))[0].flip(0)
        h = c = x.new_zeros(x.shape[1], model.hidden_size)
        totals = [x.new_zeros(x.shape[1]) for _ in range(4)]
        latents, predictions = [], []
        for t in range(len(x)):
            embedded = model.embedding(x[t])
            prior = small(cell.prior, h)
            posterior = small(cell.posterior, torch.cat([h, b[t]], 1))
            mu_p, logvar_p = prior.chunk(2, 1)
            mu_q, logvar_q = posterior.chunk(2, 1)
            z = mu_q + torch.exp(logvar_q / 2) * noise[t]
            given = torch.cat([cell.latent(z), embedded], 1)
            h, c = torch.lstm_cell(given, (h, c), lstm.weight_ih, lstm.weight_hh, lstm.bias_ih, lstm.bias_hh)
            kl = 0.5 * (
                logvar_p - logvar_q + (logvar_q - logvar_p).exp() + (mu_q - mu_p) ** 2 / logvar_p.exp() - 1
            ).sum(1)
            mean, logvar = small(model.reconstruction, z).chunk(2, 1)
            prediction = model.output(h)
            costs = (
                density(y[t], prediction),
                kl,
                density(b[t].detach(), torch.cat([mean.tanh(), logvar], 1)),
                density(x[t], model.backward_output(b[t])),
            )
            totals = [total + cost for total, cost in zip(totals, costs, strict=True)]
            latents.append(z)
            predictions.append(prediction)
        steps = torch.full((x.shape[1],), len(x), device=x.device)
        return ZForcingOutput(*totals, torch.stack(latents), torch.stack(predictions), steps)


def make(size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[ZForcing, Tensor]:
    torch.manual_seed(0)
    model = ZForcing(FRAME, size, size // 4).to(device, dtype)
    return model, torch.randn(STEPS + 1, ROWS, FRAME, device=device, dtype=dtype)


def check_agreement(device: str = "cpu") -> None:
    """Costs, latents, predictions and gradients of both, in double precision."""
    model, frames = make(16, device, torch.float64)
    x, y = frames[:6], frames[1:7]
    noise = torch.randn(6, ROWS, 4, device=device, dtype=torch.float64)
    found, expected = model(x, y, noise=noise), StepByStep(model)(x, y, noise)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-9, atol=1e-9)
    one, two = (
        torch.autograd.grad(model.loss(output, **WEIGHTS), list(model.parameters())) for output in (found, expected)
    )
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)
    bound = model.elbo(x, y, num_samples=3, noise=noise.repeat(1, 3, 1))
    torch.testing.assert_close(bound, model.elbo(x, y, num_samples=2, noise=noise.repeat(1, 2, 1)), rtol=1e-9, atol=0)


def in_turns(runs: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    clock = time.perf_counter if device != "cpu" else time.thread_time
    for turn in range(rounds + 2):
        for name, run in runs.items():
            start = clock()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn > 1:  # the first turns warm up
                seconds[name].append(clock() - start)
    return seconds


def ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def training(model: ZForcing, run: Callable[[Tensor, Tensor, Tensor], ZForcingOutput], frames: Tensor) -> None:
    model.zero_grad()
    noise = torch.randn(STEPS, ROWS, model.latent_size, device=frames.device)
    model.loss(run(frames[:-1], frames[1:], noise), **WEIGHTS).backward()


def two_networks(size: int, device: str) -> Callable[[], None]:
    forward = nn.LSTM(size, size, device=device)
    backward = nn.LSTM(size // 2, size, device=device)
    x = torch.randn(STEPS, ROWS, size, device=device)

    def run() -> None:
        (forward(x)[0].sum() + backward(x[..., : size // 2])[0].sum()).backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and sizes: a check, not a measurement")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    device, quick = given.device, given.quick
    torch.set_num_threads(1)
    check_agreement(device)
    place = torch.cuda.get_device_name() if device != "cpu" else f"one thread, load {os.getloadavg()[0]:.1f}"
    print(f"{place}, torch {torch.__version__}; T = {STEPS}, B = {ROWS}, frames of {FRAME}")
    print(f"{'H':>5} {'steps':>9} {'ours':>9} {'limit':>9}   steps/ours             ours/limit")
    asked = (128, 1.5) if device == "cpu" else (1024, 2.0)
    sizes = [asked[0]] if quick else [48, 128, 256] if device == "cpu" else [256, 512, 1024, 2048]
    for size in sizes:
        model, frames = make(size, device)
        peer = StepByStep(model)
        runs = {
            "peer": lambda model=model, peer=peer, frames=frames: training(model, peer, frames),
            "ours": lambda model=model, frames=frames: training(
                model, lambda x, y, noise: model(x, y, noise=noise), frames
            ),
            "limit": two_networks(size, device),
        }
        seconds = in_turns(runs, 5 if quick else 15, device)
        faster, over = ratio(seconds["peer"], seconds["ours"]), ratio(seconds["ours"], seconds["limit"])
        times = " ".join(f"{statistics.median(seconds[name]) * 1e3:>6.1f} ms" for name in runs)
        target = f">= {asked[1]}: {'met' if faster >= asked[1] else 'missed'}" if size == asked[0] else ""
        print(f"{size:>5} {times}   {faster:5.2f} {target:<15}  {over:6.2f}", flush=True)

    model, frames = make(asked[0], device)
    x, y = frames[:-1, :4], frames[1:, :4]

    def one_by_one() -> None:
        for _ in range(20):
            model.elbo(x, y)

    with torch.no_grad():
        seconds = in_turns(
            {"loop": one_by_one, "batch": lambda: model.elbo(x, y, num_samples=20)}, 3 if quick else 9, device
        )
    print(f"bound with 20 samples, 4 rows, H = {asked[0]}: in one batch {ratio(*seconds.values()):.1f} times faster")


if __name__ == "__main__":
    main()
