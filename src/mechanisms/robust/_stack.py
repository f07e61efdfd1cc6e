"""Many models of one architecture, trained side by side in one pass.

Small models on frozen features cost dispatch, not arithmetic: ten runs of a linear head pay ten times for calling the
same few operations. Here M models are one set of tensors of shape (M, *shape), one forward pass, one optimiser step.

- `ModelStack` holds the parameters of M modules. Linear heads and chains of linear layers and elementwise activations
  run as a few matrix products: with inputs shared by all models the first layer is ONE product with a
  (M * hidden, features) matrix. Everything else runs through `torch.func.functional_call` and `vmap`.
- `StackedOptimizer` is SGD with momentum, Adam or AdamW as in `torch.optim`, with a learning rate and weight decay per
  model, in a number of operations that depends on neither the number of models nor that of layers.
- `SharedBatches` draws one minibatch for all models; a model with a smaller batch size uses its first rows.

Shapes: M models, B rows of a batch, K outputs, d features.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

# Layers that act on every number by itself, so that they may see all models at once and in any layout.
_ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Softsign, nn.Hardtanh, nn.Identity, nn.Dropout,
)  # fmt: skip

OptimizerName = Literal["sgd", "adam", "adamw"]


class ModelStack:
    """M models of one architecture as one model with outputs (M, B, K).

    All trained parameters live in one flat tensor, one parameter after another and each with the models in front, so
    that an optimiser step is a few operations on one tensor; `parameters` are views of it, and their `grad` are views
    of `flat_grad`. The given modules are copied, not changed.

    Args:
        models: modules of one architecture, dtype and device; at least one. Parameters that do not require gradients
            stay fixed.

    Raises:
        ValueError: no model, or models that differ in architecture, dtype or device.

    >>> stack = ModelStack([nn.Linear(3, 2), nn.Linear(3, 2)])
    >>> stack(torch.ones(5, 3)).shape
    torch.Size([2, 5, 2])
    >>> stack.extract(1)
    Linear(in_features=3, out_features=2, bias=True)
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        if not models:
            raise ValueError("a stack needs at least one model, got none")
        different = next(
            (i for i, model in enumerate(models) if _architecture(model) != _architecture(models[0])), None
        )
        if different is not None:
            raise ValueError(
                f"models of a stack need the same architecture, dtype and device; model {different} differs from "
                f"model 0:\n{models[different]}\n{models[0]}"
            )
        self.num_models = len(models)
        self._template = copy.deepcopy(models[0])
        trained = {name for name, p in models[0].named_parameters() if p.requires_grad}
        if len({(p.dtype, p.device) for name, p in models[0].named_parameters() if name in trained}) != 1:
            raise ValueError("a stack needs trained parameters, all of one dtype and on one device")

        parameters, self.buffers = stack_module_state(list(models))
        self.buffers = dict(self.buffers)
        self.buffers.update({name: p.detach() for name, p in parameters.items() if name not in trained})
        stacked = {name: p.detach() for name, p in parameters.items() if name in trained}
        self.flat = torch.cat([p.reshape(-1) for p in stacked.values()])
        self.flat_grad = torch.zeros_like(self.flat)
        self.parameters: dict[str, nn.Parameter] = {}
        self._grads: dict[str, Tensor] = {}
        pieces = [p.numel() for p in stacked.values()]
        for (name, p), values, grad in zip(
            stacked.items(), self.flat.split(pieces), self.flat_grad.split(pieces), strict=True
        ):
            self.parameters[name] = nn.Parameter(values.view(p.shape))
            self.parameters[name].grad = self._grads[name] = grad.view(p.shape)
        self._chain = _linear_chain(self._template, trained)
        self.train(models[0].training)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.flat.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.flat.device

    def train(self, mode: bool = True) -> "ModelStack":
        """Set training mode (dropout, batch statistics) of all models."""
        self._template.train(mode)
        return self

    def eval(self) -> "ModelStack":
        """Set evaluation mode of all models."""
        return self.train(False)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs of all models for the same inputs, tracked by autograd.

        Args:
            inputs: (B, ...), seen by every model.

        Returns:
            (M, B, K). The memory layout is free: a chain of linear layers keeps the rows innermost.
        """
        if self._chain is not None and (self._chain[0] == "flatten" or inputs.dim() == 2):
            return self._run_chain(inputs)
        state = {**self.parameters, **self.buffers}

        def one(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return functional_call(self._template, state, (inputs,))

        return torch.vmap(one, in_dims=(0, None), randomness="different")(state, inputs)

    def vjp(self, inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Outputs (M, B, K) for shared inputs, and a function from their gradient to the parameters' gradients.

        The function overwrites every `grad` (no zeroing is needed before). A stack of linear layers has a closed form
        and records no graph, which is why a loss whose gradient is known, such as cross-entropy's softmax minus
        target, is best trained this way.

        >>> stack = ModelStack([nn.Linear(3, 2)])
        >>> outputs, pull = stack.vjp(torch.ones(5, 3))
        >>> pull(torch.ones(1, 5, 2))
        >>> stack.parameters["weight"].grad.tolist()
        [[[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]]
        """
        if type(self._template) is nn.Linear and inputs.dim() == 2 and inputs.dtype == self.dtype:
            with torch.no_grad():
                outputs = self._run_chain(inputs)

            def pull(grad: Tensor) -> None:
                columns = grad.detach().transpose(1, 2).reshape(-1, len(inputs))
                torch.mm(columns, inputs, out=self._grads["weight"].view(-1, inputs.shape[1]))
                if "bias" in self.parameters:
                    torch.sum(columns, 1, out=self._grads["bias"].view(-1))

            return outputs, pull

        with torch.enable_grad():
            tracked = self(inputs)

        def pull_tracked(grad: Tensor) -> None:
            self.flat_grad.zero_()
            torch.autograd.backward(tracked, grad.to(tracked.dtype))

        return tracked.detach(), pull_tracked

    def extract(self, index: int) -> nn.Module:
        """Model `index` as an ordinary module with parameters of its own."""
        model = copy.deepcopy(self._template)
        with torch.no_grad():
            own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            for name, stacked in {**self.parameters, **self.buffers}.items():
                own[name].copy_(stacked[index])
        return model

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers of all models, each (M, *shape), detached."""
        return {name: value.detach() for name, value in {**self.parameters, **self.buffers}.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: names or shapes differ.
        """
        own = self.state_dict()
        given, expected = ({name: tuple(value.shape) for name, value in one.items()} for one in (state, own))
        if given != expected:
            raise ValueError(f"the state does not belong to this stack: got {given}, expected {expected}")
        for name, value in own.items():
            value.copy_(state[name])

    def _run_chain(self, inputs: Tensor) -> Tensor:
        """Linear layers and activations with the layout (M, features, B): every product is contiguous."""
        hidden, first = inputs, True
        for step in self._chain or ():
            if step == "flatten":
                hidden = hidden.flatten(1)
            elif isinstance(step, nn.Module):
                hidden = step(hidden)
            else:
                weight, bias = self.parameters[step[0]], self.parameters.get(step[1])
                if first:
                    columns = _affine(hidden.T, weight.flatten(0, 1), None if bias is None else bias.flatten())
                    hidden = columns.view(self.num_models, -1, len(inputs))
                else:
                    hidden = _affine(hidden, weight, bias)
                first = False
        return hidden.mT


class StackedOptimizer:
    """SGD with momentum, Adam or AdamW over a `ModelStack`, with one learning rate and weight decay per model.

    The mathematics are those of `torch.optim.SGD`, `Adam` and `AdamW` (weight decay added to the gradient for the first
    two, decoupled for the last).

    Args:
        stack: the models; their `grad` are read by `step`.
        kind: "sgd", "adam" or "adamw".
        lr: learning rate, one number or M.
        weight_decay: one number or M, default 0.
        momentum: SGD's momentum, default 0; not used by the others.
        betas: Adam's decay rates, default (0.9, 0.999).
        eps: Adam's epsilon, default 1e-8.

    Raises:
        ValueError: an unknown kind, a negative setting, or a number of settings other than 1 and M.

    >>> stack = ModelStack([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    >>> _ = stack.flat.zero_()
    >>> optimizer = StackedOptimizer(stack, "sgd", lr=[0.1, 0.2])
    >>> stack(torch.ones(1, 1)).sum().backward()
    >>> optimizer.step()
    >>> [round(value, 4) for value in stack.flat.tolist()]
    [-0.1, -0.2]
    """

    def __init__(
        self,
        stack: ModelStack,
        kind: OptimizerName,
        *,
        lr: float | Sequence[float],
        weight_decay: float | Sequence[float] = 0.0,
        momentum: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if kind not in ("sgd", "adam", "adamw"):
            raise ValueError(f"optimizer is {kind!r}; choose 'sgd', 'adam' or 'adamw'")
        if momentum < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"momentum {momentum}, betas {betas} or eps {eps} is out of range")
        self._stack, self.kind = stack, kind
        self._momentum, self._betas, self._eps = momentum, betas, eps
        self.lr = self._per_number("lr", lr)
        self.weight_decay = self._per_number("weight_decay", weight_decay)
        self._decays = isinstance(self.weight_decay, Tensor) or self.weight_decay > 0
        self.num_steps = 0
        self._scratch = torch.empty_like(stack.flat)
        names = ("exp_avg", "exp_avg_sq") if kind != "sgd" else ("momentum_buffer",) if momentum else ()
        self.state = {name: torch.zeros_like(stack.flat) for name in names}

    @torch.no_grad()
    def step(self) -> None:
        """One update of all models."""
        self.num_steps += 1
        values, grad, scratch = self._stack.flat, self._stack.flat_grad, self._scratch
        if self._decays and self.kind == "adamw":
            values.mul_(1 - self.lr * self.weight_decay)
        elif self._decays:
            # Into memory kept for it: large temporaries cost more than the arithmetic.
            if isinstance(self.weight_decay, Tensor):
                grad = torch.addcmul(grad, values, self.weight_decay, out=scratch)
            else:
                grad = torch.add(grad, values, alpha=self.weight_decay, out=scratch)
        if self.kind == "sgd":
            if self._momentum:
                # torch.optim starts the buffer with the first gradient: the same as starting from zero.
                grad = self.state["momentum_buffer"].mul_(self._momentum).add_(grad)
            if isinstance(self.lr, Tensor):
                values.addcmul_(grad, self.lr, value=-1)
            else:
                values.add_(grad, alpha=-self.lr)
            return
        first, second = self._betas
        mean = self.state["exp_avg"].lerp_(grad, 1 - first)
        square = self.state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
        scale = torch.sqrt(square, out=scratch).div_((1 - second**self.num_steps) ** 0.5).add_(self._eps)
        correction = 1 - first**self.num_steps
        if isinstance(self.lr, Tensor):
            values.addcdiv_(mean, scale.div_(self.lr), value=-1 / correction)
        else:
            values.addcdiv_(mean, scale, value=-self.lr / correction)

    def _per_number(self, name: str, setting: float | Sequence[float]) -> float | Tensor:
        """One number when all models agree, else the setting of each number in `flat`.

        Spread over `flat` it costs memory, but a step stays a handful of operations however many tensors there are.
        """
        given = [float(setting)] if isinstance(setting, int | float) else [float(value) for value in setting]
        if len(given) not in (1, self._stack.num_models) or not all(value >= 0 for value in given):
            raise ValueError(
                f"{name} needs one non-negative number, or one for each of {self._stack.num_models} models; "
                f"got {setting}"
            )
        if len(set(given)) == 1:
            return given[0]
        rates = torch.tensor(given, dtype=self._stack.dtype, device=self._stack.device)
        return torch.cat([rates.repeat_interleave(p.numel() // len(given)) for p in self._stack.parameters.values()])


class SharedBatches:
    """Minibatches of row indices drawn on the device, one for all models of a stack.

    Rows come as by `DataLoader(shuffle=True, drop_last=True)`: a new permutation each epoch, no row twice in a batch.
    The batch has the largest of the batch sizes; a model with a smaller one uses the first rows, which `weights`
    says: loss and statistics of model m count row b by `weights[m, b]`, 1 or 0. When all batch sizes are as large as
    the data or larger, every batch is the whole data in order (full batch).

    Args:
        num_rows: rows of the data, n.
        batch_sizes: the batch size of each model.
        generator: source of the permutations; indices live on its device.

    Raises:
        ValueError: no rows, or a batch size below 1.

    >>> batches = SharedBatches(10, [4, 2], torch.Generator().manual_seed(0))
    >>> batches.draw().shape
    torch.Size([4])
    >>> batches.weights.tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, num_rows: int, batch_sizes: Sequence[int], generator: torch.Generator) -> None:
        if num_rows < 1 or not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(
                f"rows and batch sizes need to be at least 1, got {num_rows} rows, sizes {list(batch_sizes)}"
            )
        self.num_rows, self._generator = num_rows, generator
        self.batch_size = min(max(batch_sizes), num_rows)
        # With one smaller batch size among them the order must change: that model uses the first rows only.
        self._full_batch = min(batch_sizes) >= num_rows
        places = torch.arange(self.batch_size, device=generator.device)
        sizes = torch.tensor(batch_sizes, device=generator.device)
        self.weights: Float[Tensor, "models batch"] = (places < sizes[:, None]).to(torch.get_default_dtype())
        self._order = torch.arange(num_rows, device=generator.device)
        self._batches: list[Tensor] = []
        self._next = 0

    def draw(self) -> Int64[Tensor, " batch"]:
        """The row indices of the next batch."""
        if self._full_batch:
            return self._order
        if self._next == len(self._batches):
            self._order = torch.randperm(self.num_rows, generator=self._generator, device=self._generator.device)
            whole = self.num_rows // self.batch_size
            self._batches = list(self._order[: whole * self.batch_size].split(self.batch_size))
            self._next = 0
        self._next += 1
        return self._batches[self._next - 1]


def _architecture(model: nn.Module) -> tuple[Any, ...]:
    return type(model), [(name, tuple(p.shape), p.dtype, p.device) for name, p in model.named_parameters()]


def is_linear_chain(model: nn.Module) -> bool:
    """Whether a stack runs this model as a few matrix products: linear layers and elementwise activations, all trained.

    >>> is_linear_chain(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    True
    >>> is_linear_chain(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    False
    """
    return _linear_chain(model, {name for name, p in model.named_parameters() if p.requires_grad}) is not None


def _linear_chain(model: nn.Module, trained: set[str]) -> list[Any] | None:
    """The model as ("weight name", "bias name") pairs, activations and a leading "flatten"; None when it is more."""
    layers = list(model.named_children()) if type(model) is nn.Sequential else [("", model)]
    chain: list[Any] = []
    for name, layer in layers:
        if layer._forward_hooks or layer._forward_pre_hooks:
            return None
        if type(layer) is nn.Linear:
            prefix = f"{name}." if name else ""
            if not {prefix + own for own, _ in layer.named_parameters()} <= trained:
                return None
            chain.append((f"{prefix}weight", f"{prefix}bias"))
        elif type(layer) is nn.Flatten and not chain and (layer.start_dim, layer.end_dim) == (1, -1):
            chain.append("flatten")
        elif type(layer) in _ELEMENTWISE and any(isinstance(step, tuple) for step in chain):
            chain.append(layer)
        else:
            return None
    return chain if any(isinstance(step, tuple) for step in chain) else None


def _affine(columns: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight @ columns + bias for matrices or batches of them."""
    if bias is None:
        return weight @ columns
    product = torch.addmm if weight.dim() == 2 else torch.baddbmm
    return product(bias.unsqueeze(-1), weight, columns)
