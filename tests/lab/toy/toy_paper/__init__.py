"""A third party's paper: a line fitted by gradient descent, in as few lines as the laboratory asks for."""

from mechanisms.lab import Bench, Claim, Experiment, Figure, NotHere, Paper, at_least, better_than, config, exactly


@config
class Config:
    steps: int = 20
    lr: float = 0.05
    noise: float = 0.1
    pause: float = 0.0  # seconds per step, so that tests can interrupt a run
    sizes: tuple[int, ...] = (8, 8)


def run(settings, variant, bench: Bench):
    """Fit y = 2x + noise; the variant "slow" takes a tenth of the steps' length."""
    import time

    import torch

    def make_data():
        x = torch.randn(64, 1, generator=bench.generator("data"))
        return {"x": x, "y": 2 * x + settings.noise * torch.randn(64, 1, generator=bench.generator("noise"))}

    data = bench.cached("data", make_data)
    weight = torch.randn(1, 1, generator=bench.generator("weights")).requires_grad_()
    lr = settings.lr if variant == "fast" else settings.lr / 10
    for step in range(settings.steps):
        loss = (data["x"] @ weight - data["y"]).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= lr * gradient
        bench.progress(step + 1, settings.steps, loss=loss.detach())
        bench.log(step, loss=loss.detach())
        time.sleep(settings.pause)
    bench.note("a line")
    return {
        "error": float((weight - 2).detach().abs()),
        "seed": bench.seed,
        "near": [bool((weight - 2).detach().abs() < 1)] * 2,
        "tag": variant,
    }


def run_block(settings, variant, benches):
    """A block of seeds in one go."""
    return [{"value": float(bench.seed + 100 * len(benches))} for bench in benches]


def missing(settings, variant, bench):
    """Needs what is not here."""
    raise NotHere("the toy data are not in /nowhere; get them with: toy-get")


def broken(settings, variant, bench):
    """Fails for one variant."""
    if variant == "bad":
        raise RuntimeError("it broke <b>badly</b>")
    return {"one": 1.0}


def crash(settings, variant, bench):
    """One variant takes its process down with it, as running out of memory does."""
    import os
    import time

    if variant == "dies":
        os._exit(9)
    time.sleep(settings.pause)
    return {"one": 1.0}


def draw(cell):
    """A figure without the stock ones."""
    import plotly.graph_objects as go

    return go.Figure(go.Bar(x=cell.variants, y=[1 for _ in cell.variants]))


def joint(settings, variant, bench):
    """Train with the laboratory's loop; under torchrun the processes do it together."""
    import torch

    from mechanisms.lab.training import train

    x = torch.randn(64, 3, generator=bench.generator("data"))
    y = x @ torch.tensor([[1.0], [2.0], [3.0]])
    model = torch.nn.Linear(3, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
    train(
        bench,
        model,
        optimizer,
        loader,
        lambda network, batch: (network(batch[0]) - batch[1]).square().mean(),
        steps=settings.steps,
        evaluate=lambda network: {"error": float((network(x) - y).square().mean())},
        every=10,
    )
    return {"error": float((model(x) - y).square().mean()), "processes": bench.fabric.world_size}


def shared(settings, variant, bench):
    """A stage that trains with the laboratory's loop; under torchrun the processes do it together."""
    import torch

    from mechanisms.lab.training import train

    def encoder():
        model = torch.nn.Linear(3, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        x = torch.randn(64, 3, generator=bench.generator("data"))
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16)
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
        train(bench, model, optimizer, loader, lambda net, b: (net(b[0]) - b[1]).square().mean(), steps=settings.steps)
        return model.weight.detach()

    weight = bench.cached("encoder", encoder)
    return {"weight": float(weight.sum()), "processes": bench.fabric.world_size}


def threads(settings, variant, bench):
    """How many threads the libraries of NumPy, SciPy and scikit-learn would use."""
    import sklearn.cluster  # noqa: F401
    import threadpoolctl

    return {"threads": [library["num_threads"] for library in threadpoolctl.threadpool_info()]}


SCALES = {"smoke": Config(steps=3), "laptop": Config()}

paper = Paper(
    slug="toy",
    title="A line <i>fitted</i>",
    authors="Toy & Sons",
    year=2026,
    topic="toys",
    summary="Larger steps go further.",
    experiments=[
        Experiment(
            name="line",
            run=run,
            variants=("fast", "slow"),
            scales=SCALES,
            claims=[
                Claim("larger steps go further", better_than("error", "fast", "slow", higher=False), published="1 < 2"),
                Claim("slow is far off", at_least("error", "slow", 0.01)),
            ],
            figures=[Figure("bars", draw)],
        ),
        Experiment(name="blocks", run=run, run_seeds=run_block, block=5, variants=("all",), scales=SCALES),
        Experiment(name="missing", run=missing, variants=("all",), scales=SCALES),
        Experiment(
            name="broken",
            run=broken,
            variants=("bad", "good"),
            scales=SCALES,
            claims=[Claim("one is one", exactly("one", "good", 1.0, tolerance=0))],
        ),
        Experiment(name="crash", run=crash, variants=("dies", "lives"), scales=SCALES),
        Experiment(name="joint", run=joint, variants=("all",), scales=SCALES),
        Experiment(name="shared", run=shared, variants=("one", "two"), scales=SCALES),
        Experiment(name="threads", run=threads, variants=("all",), scales={"smoke": Config()}),
    ],
)
