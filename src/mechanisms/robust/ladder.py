"""Ladder networks: one classifier from few labels and many unlabelled examples, in one training run.

For whom has thousands of examples and labels for some dozens of them. An encoder runs twice, clean and with noise; a
decoder comes down from the class probabilities and at every level makes, from the noisy value there and from what comes
from above, a guess of the clean value. What it misses is added to the classification cost:

    encoder     z_l = N(W_l h_{l-1}) + s_l eps,   h_l = relu(z_l + beta_l),   logits = gamma (z_L + beta_L)
    decoder     u = N(V_{l+1} zhat_{l+1}),  at the top u = N(softmax(logits));   zhat_l = g_l(z_l, u)
    cost        CE(noisy logits of the labelled rows) + sum_l lambda_l mean(((zhat_l - mu_l) / sigma_l - z_l clean)^2)

N is batch normalisation without affine part, with statistics of their own for labelled and unlabelled rows and for the
clean and the noisy run. g_l is a combinator (`ladder_combinators`), the layers are dense or convolutional
(`ladder_layers`), the variants of the deconstruction study are lines of a table (`ladder_variants`), the training loop
is `ladder_training.train_ladders`, and `ladder_classifier.LadderClassifier` is all of it for scikit-learn.

References: Rasmus, Berglund, Honkala, Valpola, Raiko, "Semi-Supervised Learning with Ladder Networks", NIPS 2015,
arXiv 1507.02672; Pezeshki, Fan, Brakel, Courville, Bengio, "Deconstructing the Ladder Network Architecture", ICML 2016,
arXiv 1511.06430.

>>> network = LadderNetwork([8, 16, 3], generator=0)
>>> x, y = torch.randn(50, 8), torch.tensor([0, 1, 2, 0])
>>> network.losses(x[:4], y, x, generator=0).total.backward()
>>> network.update_statistics(x)
>>> network.eval()(x).shape
torch.Size([50, 3])
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechanisms._base.seeds import RandomState, as_seed, torch_generator
from mechanisms._base.validation import check_choice, check_number
from mechanisms.robust import _ladder_kernels as kernels
from mechanisms.robust._ladder_levels import EPSILON, full, normalise, normalise_level, reconstruction_cost
from mechanisms.robust._ladder_rows import check_batch, check_inputs, rows_of, scaled_noise
from mechanisms.robust.ladder_combinators import CombinatorSettings, Maker, make_combinator
from mechanisms.robust.ladder_layers import Layer, as_input, as_layer

__all__ = ["LadderLoss", "LadderNetwork"]

_CHUNK = 4096  # rows that are encoded at once when statistics are taken from a tensor


class LadderLoss(NamedTuple):
    """What `LadderNetwork.losses` returns; with M networks side by side every entry has M in front.

    Attributes:
        classification: cross-entropy of the noisy logits of the labelled rows, ().
        reconstruction: C_0 to C_L, weights included, (L + 1,); 0 where the weight is 0.
        total: their sum, (); what to call `backward` on.

    >>> network = LadderNetwork([2, 4, 2], generator=0)
    >>> loss = network.losses(torch.eye(2), torch.tensor([0, 1]), torch.eye(2))
    >>> loss.reconstruction.shape
    torch.Size([3])
    """

    classification: Tensor
    reconstruction: Tensor
    total: Tensor


class LadderNetwork(nn.Module):
    """A ladder network.

    Args:
        widths: the inputs, a number of features or (channels, height, width); then the layers, a number of units each
            or a layer of `ladder_layers`; the last has one unit per class.
        combinator: a name in `ladder_combinators.COMBINATORS`, or a function as `register_combinator` takes it.
        noise_std: standard deviation of the noise in the noisy run, one number for the inputs and all layers, or L + 1
            numbers, the inputs' first.
        reconstruction_weights: lambda_0 to lambda_L; the default is 1000, 10 and then 0.1, the reference's for 100
            labels. Below the lowest level with a weight there is no decoder; without any weight there is none at all.
        combinator_hidden: hidden units of the combinators "mlp" and "amlp".
        combinator_init_std: standard deviation of first weights that are random.
        detach_clean: whether no gradient runs through the clean run (target, mean and standard deviation). Default
            False, as in the paper.
        fused: whether small networks on the CPU use kernels in C. They have no second derivatives.
        generator: of the first weights: a seed, a generator, or None for a fresh one.
        device, dtype: as everywhere in `torch.nn`.

    W and V start as N(0, 1/fan_in), beta as 0, gamma as 1. Call `update_statistics` after training and before
    predicting. The weights of M networks may be stacked, with the models in front of every parameter: see
    `ladder_training.stack_ladders`.

    Raises:
        ValueError: fewer than two widths, fewer than two classes, a number of weights or noise levels other than L + 1,
            an unknown combinator, numbers out of range.

    Source: Rasmus et al. 2015, algorithm 1; first weights and weights of the costs from its code.

    >>> from mechanisms.robust.ladder_layers import ConvLayer, PoolLayer
    >>> network = LadderNetwork([(1, 8, 8), ConvLayer(4, 3), PoolLayer(2), 10], noise_std=0.2, generator=0)
    >>> x = torch.randn(20, 1, 8, 8)
    >>> network.losses(x[:10], torch.arange(10), x).reconstruction.shape
    torch.Size([4])
    """

    def __init__(
        self,
        widths: Sequence[int | tuple[int, int, int] | Layer],
        *,
        combinator: str | Maker = "vanilla",
        noise_std: float | int | Sequence[float | int] = 0.3,
        reconstruction_weights: Sequence[float | int] | None = None,
        combinator_hidden: Sequence[int] = (2, 2, 2),
        combinator_init_std: float | int = 0.5,
        detach_clean: bool = False,
        fused: bool = True,
        generator: RandomState = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths={widths!r}: expected the inputs, any hidden layers, and the number of classes")
        layers = [as_layer(layer) for layer in widths[1:]]
        shapes = [as_input(widths[0])]
        for layer in layers:
            shapes.append(layer.shape(shapes[-1]))
        if shapes[-1].positions != 1 or shapes[-1].channels < 2:
            raise ValueError(f"widths end with {widths[-1]!r}; expected the number of classes, at least 2")
        self.shapes = tuple(shapes)
        levels = len(shapes)
        std = _per_level("noise_std", [noise_std] * levels if isinstance(noise_std, float | int) else noise_std, levels)
        default = [1000.0, 10.0, *[0.1] * levels][:levels]
        weights = _per_level("reconstruction_weights", reconstruction_weights, levels, default)
        check_number(combinator_init_std, "combinator_init_std", at_least=0)
        self.detach_clean, self.fused = detach_clean, fused
        own = dtype or torch.get_default_dtype()
        self.register_buffer("noise_std", torch.tensor(std, dtype=own), persistent=False)
        self.register_buffer("reconstruction_weights", torch.tensor(weights, dtype=own), persistent=False)
        # Known without looking at the device: where there is noise, a cost, and the end of the decoder.
        self._noisy = tuple(value > 0 for value in std)
        self._costed = tuple(value > 0 for value in weights)
        self._lowest = self._costed.index(True) if any(self._costed) else levels

        numbers = torch_generator(as_seed(generator), "weights")
        self.up = nn.ModuleList(layer.up(below, numbers) for layer, below in zip(layers, shapes, strict=False))
        self.beta = nn.ParameterList(torch.zeros(shape.channels) for shape in shapes[1:])
        self.gamma = nn.Parameter(torch.ones(shapes[-1].channels))
        # Drawn after the encoder, and before the combinators: variants that differ in these begin with the same rest.
        down = {str(level): layers[level].down(shapes[level], numbers) for level in range(self._lowest, levels - 1)}
        settings = CombinatorSettings(tuple(combinator_hidden), float(combinator_init_std), numbers)
        made = {
            str(level): make_combinator(combinator, shapes[level].channels, settings)
            for level in range(self._lowest, levels)
        }
        self.down = nn.ModuleDict(
            {level: way for level, way in down.items() if getattr(made[level], "needs_vertical", True)}
        )
        self.combinators = nn.ModuleDict(made)
        for level, shape in enumerate(shapes[1:], start=1):
            self.register_buffer(f"mean_{level}", torch.zeros(shape.channels))
            self.register_buffer(f"variance_{level}", torch.ones(shape.channels))
        self.register_buffer("statistics_rows", torch.zeros((), dtype=torch.int64))
        self._has_statistics = False
        self.register_load_state_dict_post_hook(_look_for_statistics)
        self.to(device=device, dtype=dtype)

    @property
    def num_models(self) -> int | None:
        """How many networks these weights are; None for an ordinary one."""
        return len(self.gamma) if self.gamma.dim() == 2 else None

    @property
    def num_classes(self) -> int:
        """K."""
        return self.shapes[-1].channels

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the clean run.

        In evaluation mode with the statistics of `update_statistics`, so that a row's prediction does not depend on
        the rows beside it; in training mode with those of the batch.

        Args:
            x: (n, d_0) or (n, channels, height, width); M networks side by side take the same for all, or (M, n, d_0).

        Returns:
            (n, K), or (M, n, K); in at least single precision.

        Raises:
            NotFittedError: evaluation mode before `update_statistics`.
            ValueError: a shape that does not fit; training mode and one row.
        """
        check_inputs(x, "x", self)
        if self.training:
            if x.shape[-2 if x.dim() == 3 else 0] < 2:
                raise ValueError("x has 1 row: in training mode batch statistics need at least 2; call eval() first")
        elif not self._has_statistics:
            # Imported here: training needs nothing of scikit-learn.
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this LadderNetwork has no statistics yet; call update_statistics(...) after training")
        return self._logits(self._encode(rows_of(x, self.shapes[0]), len(self.up), fixed=not self.training))

    def losses(
        self,
        x_labelled: Tensor,
        y: Tensor,
        x_unlabelled: Tensor,
        *,
        noise: Sequence[Tensor] | None = None,
        generator: torch.Generator | int | None = None,
    ) -> LadderLoss:
        """The costs of a batch.

        The two parts have batch statistics of their own, so that labelled rows do not enter the reconstruction costs.
        Unlabelled batches are usually drawn from all examples, labelled ones included.

        Args:
            x_labelled: (n_l, ...), as in `forward`; at least two rows.
            y: (n_l,) labels, integers from 0 to K - 1; (M, n_l) for M networks with batches of their own.
            x_unlabelled: (n_u, ...); at least two rows. Not looked at where all weights are 0.
            noise: standard normal numbers of each level, L + 1 tensors (n_l + n_u, d_l), labelled rows first; the
                network scales them by `noise_std`. For images a row is one position: (rows * P, channels).
            generator: where the noise comes from, on the inputs' device, or a seed; None is torch's own.

        Raises:
            ValueError: one row in a part, shapes or labels that do not fit.

        >>> network = LadderNetwork([2, 3], noise_std=0.0, reconstruction_weights=[0, 0], generator=0)
        >>> loss = network.losses(torch.eye(2), torch.tensor([0, 1]), torch.eye(2))
        >>> bool(loss.total == loss.classification)
        True
        """
        labelled, y, unlabelled = check_batch(x_labelled, y, x_unlabelled, self)
        bottom = self.shapes[0].positions
        count, others = labelled.shape[-2] // bottom, unlabelled.shape[-2] // bottom
        with contextlib.nullcontext() if self.fused else kernels.plain_operations():
            if self._lowest == len(self.shapes):
                unlabelled, others = unlabelled[..., :0, :], 0
            drawn = scaled_noise(self, noise, generator, labelled, count + others)
            return self._losses(labelled, y, unlabelled, drawn, count, others)

    def update_statistics(self, loader: Tensor | Iterable[Any], *, statistics: str = "all") -> None:
        """Means and variances for prediction, from clean runs over training data.

        Args:
            loader: all training examples as one tensor; or what can be iterated over again and again, such as a
                `DataLoader`, and gives tensors, or tuples whose first entry is one. It is gone through once per layer,
                since the statistics of a layer need those below.
            statistics: "all" takes those of all rows together, each layer's with the layers below normalised as in
                prediction. "labelled" averages means and unbiased variances over batches that are normalised by
                themselves, as the reference does with its labelled batches; give it those.

        Raises:
            ValueError: no rows, one row in a batch under "labelled", an iterator that can be used but once.

        Source: Rasmus et al. 2015, the code; "all" is the more stable choice when there are few labels.

        >>> network = LadderNetwork([2, 3, 2], generator=0)
        >>> network.update_statistics([torch.randn(10, 2), torch.randn(4, 2)])
        >>> int(network.statistics_rows)
        14
        """
        check_choice(statistics, "statistics", ("all", "labelled"))
        if isinstance(loader, Iterator):
            raise ValueError("loader can be gone through once; give a DataLoader, a list of batches, or one tensor")
        rows = 0
        # Half of the levels with new statistics and half with old ones, after an interruption, would predict silently.
        self._has_statistics = False
        with torch.no_grad():
            self.statistics_rows.zero_()
            for level in range(1, len(self.shapes)):
                rows, mean, variance = self._moments(loader, level, fixed=statistics == "all")
                getattr(self, f"mean_{level}").copy_(mean)
                getattr(self, f"variance_{level}").copy_(variance)
            self.statistics_rows.fill_(rows)
        self._has_statistics = True

    def extra_repr(self) -> str:
        """Sizes and settings."""
        sizes = " ".join("x".join(map(str, shape[: 3 if shape.positions > 1 else 1])) for shape in self.shapes)
        models = "" if self.num_models is None else f"{self.num_models} models, "
        return f"{models}{sizes}, noisy={self._noisy}, costed={self._costed}"

    # --- the batch -----------------------------------------------------------------------------------------------

    def _losses(
        self,
        labelled: Float[Tensor, "*models rows_l units"],
        y: Int[Tensor, "*_ n_l"],
        unlabelled: Float[Tensor, "*models rows_u units"],
        noise: list[Tensor | None],
        count: int,
        others: int,
    ) -> LadderLoss:
        # Rows: labelled and unlabelled of the noisy run, then, where there is a decoder, unlabelled of the clean run.
        top = len(self.up)
        noisy = torch.cat([labelled, unlabelled], -2)
        if noise[0] is not None:
            noisy = noisy + noise[0]
        laterals: list[Tensor | None] = [noisy[..., labelled.shape[-2] :, :]]
        targets: list[tuple[Tensor | None, Tensor | None]] = [(unlabelled, None)]
        h = torch.cat([noisy, unlabelled], -2) if others else noisy
        for level in range(1, top + 1):
            positions = self.shapes[level].positions
            ends = (count, count + others, count + 2 * others) if others else (count,)
            one = normalise_level(
                self.up[level - 1](h),
                noise[level],
                self.beta[level - 1],
                tuple(positions * end for end in ends),
                relu=level < top,
            )
            h = one.h
            laterals.append(one.lateral)
            targets.append((one.target, one.scale))
        logits = self.gamma.unsqueeze(-2) * h[..., : count + others, :]
        scores = logits[..., :count, :].log_softmax(-1)
        y = y.expand(scores.shape[:-1])
        classification = scores.gather(-1, y.unsqueeze(-1)).squeeze(-1).mean(-1).neg()
        costs = self._decode(logits[..., count:, :], laterals, targets) if others else {}
        weights = full(self.reconstruction_weights)
        zero = torch.zeros_like(classification)
        reconstruction = torch.stack([costs.get(level, zero) for level in range(top + 1)], -1) * weights
        return LadderLoss(classification, reconstruction, classification + reconstruction.sum(-1))

    def _decode(
        self,
        logits: Float[Tensor, "*models rows classes"],
        laterals: list[Tensor | None],
        targets: list[tuple[Tensor | None, Tensor | None]],
    ) -> dict[int, Tensor]:
        """Unweighted costs of the levels that have a weight."""
        costs: dict[int, Tensor] = {}
        below = logits.softmax(-1)  # what comes down, not yet normalised
        for level in range(len(self.up), self._lowest - 1, -1):
            combinator, lateral, (target, scale) = self.combinators[str(level)], laterals[level], targets[level]
            assert lateral is not None
            assert target is not None
            guess = combinator(lateral, normalise(below) if getattr(combinator, "needs_vertical", True) else lateral)
            if guess.shape != lateral.shape:
                raise ValueError(
                    f"the combinator of level {level} returned shape {tuple(guess.shape)} for values of shape "
                    f"{tuple(lateral.shape)}; expected the same shape"
                )
            if self._costed[level]:
                if self.detach_clean:
                    target, scale = target.detach(), None if scale is None else scale.detach()
                costs[level] = reconstruction_cost(guess, target, scale)
            if str(level - 1) in self.down:
                below = self.down[str(level - 1)](guess)
        return costs

    # --- the clean run -------------------------------------------------------------------------------------------

    def _encode(self, h: Float[Tensor, "*models rows units"], levels: int, *, fixed: bool) -> Tensor:
        """Activations of the clean run at a level, with fixed statistics or with those of these rows."""
        for level in range(1, levels + 1):
            pre = full(self.up[level - 1](h))
            if fixed:
                mean, variance = (full(getattr(self, f"{name}_{level}")) for name in ("mean", "variance"))
                z = (pre - mean.unsqueeze(-2)) * (variance + EPSILON).rsqrt().unsqueeze(-2)
            else:
                z = normalise(pre)
            h = z + full(self.beta[level - 1]).unsqueeze(-2)
            if level < len(self.up):
                h = h.relu()
        return h

    def _logits(self, h: Tensor) -> Tensor:
        return full(self.gamma).unsqueeze(-2) * h

    def _moments(self, loader: Any, level: int, *, fixed: bool) -> tuple[int, Tensor, Tensor]:
        """Rows seen, and mean and variance at a level before its normalisation."""
        accurate = torch.float32 if self.gamma.device.type == "mps" else torch.float64
        seen, batches, mean, spread = 0, 0, torch.zeros(()), torch.zeros(())
        if isinstance(loader, Tensor):
            loader = loader.split(_CHUNK, -2 if loader.dim() == 3 else 0) if fixed else [loader]
        for batch in loader:
            x = (batch[0] if isinstance(batch, tuple | list) else batch).to(self.gamma.device)
            check_inputs(x, "loader's batch", self)
            pre = full(self.up[level - 1](self._encode(rows_of(x, self.shapes[0]), level - 1, fixed=fixed)))
            rows = pre.shape[-2]
            if not fixed and rows < 2:
                raise ValueError("a batch has 1 row: its variance is not defined; leave it out (drop_last=True)")
            own_variance, own_mean = torch.var_mean(pre.to(accurate), -2, correction=0 if fixed else 1)
            if fixed:  # two sets of rows as one
                share = rows / (seen + rows)
                away = own_mean - mean
                spread = spread + (own_variance - spread + (1 - share) * away.square()) * share
                mean = mean + away * share
            else:
                batches += 1
                mean, spread = mean + (own_mean - mean) / batches, spread + (own_variance - spread) / batches
            seen += rows
        if not seen:
            raise ValueError("loader gave no rows; statistics need the training data")
        return seen // self.shapes[level].positions, mean, spread


def _look_for_statistics(network: Any, keys: Any) -> None:
    network._has_statistics = bool(network.statistics_rows > 0)


def _per_level(
    name: str, values: Sequence[float | int] | None, levels: int, default: Sequence[float] = ()
) -> list[float]:
    given = list(default if values is None else values)
    if len(given) != levels:
        raise ValueError(
            f"{name} has {len(given)} values for {levels} levels (the inputs and {levels - 1} layers); got {given}"
        )
    return [check_number(value, f"{name}[{level}]", at_least=0) for level, value in enumerate(given)]
