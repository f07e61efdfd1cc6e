"""Ladder networks on the CPU: each level's elementwise work as one call of C each way, in `ladder.c`.

A small ladder network is some hundred operations that take less time than starting them. Here a level of the encoder
is a matrix product and one call, and a level of the decoder a matrix product and three calls; the numbers are those of
the plain operations. `usable` says when: on the CPU, in single or double precision, with few threads (many share
torch's own operations out), outside of torch.compile and torch.func, and where a C compiler was found.

Shapes: M models (none or one axis), R rows, d units.
"""

import contextlib
import ctypes
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechanisms._base.compiled import CannotCompile, load_kernel

SOURCE = Path(__file__).with_name("ladder.c")
DEFINES = {torch.float32: ("-DREAL=float",), torch.float64: ("-DREAL=double", "-DDOUBLE")}
FEW = 4  # threads up to which one call of C outruns torch's many operations shared between them
SMALL = 1 << 17  # numbers of a level up to which more threads do not pay
MANY = 1 << 17  # rows up to which one sum in single precision is good to four digits and more; torch sums in parts
DEEP, WIDE = 4, 8  # what ladder.c takes of a perceptron
_local = threading.local()  # of each thread: whether the kernels are switched off


@contextlib.contextmanager
def plain_operations() -> Generator[None]:
    """Inside the block no kernel is used: what second derivatives and comparisons need.

    >>> with plain_operations():
    ...     usable(torch.ones(2, 3))
    False
    """
    before, _local.off = getattr(_local, "off", False), True
    try:
        yield
    finally:
        _local.off = before


def usable(*tensors: Tensor) -> bool:
    """Whether these go to the kernels."""
    if torch.compiler.is_compiling() or getattr(_local, "off", False):
        return False
    first = tensors[0]
    if first.device.type != "cpu" or first.dtype not in DEFINES or any(one.dtype != first.dtype for one in tensors):
        return False
    if first.numel() > SMALL and torch.get_num_threads() > FEW:
        return False
    if first.dim() > 1 and first.shape[-2] > MANY:
        return False
    if first.numel() == 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    try:
        _library(first.dtype)
    except CannotCompile:
        return False
    return True


def fit(z: Tensor, u: Tensor, own: tuple[int, ...]) -> bool:
    """Whether z and u (..., n, d) are of one shape, with parameters for each model and unit: those have `own` (..., d).

    The kernels read as much as z says there is; other shapes are left to torch, which broadcasts or refuses them.

    >>> fit(torch.ones(4, 5, 2), torch.ones(4, 5, 2), (2,))
    False
    """
    return z.dim() > 1 and z.shape == u.shape and (*z.shape[:-2], z.shape[-1]) == tuple(own)


def perceptron_fits(weights: Sequence[Tensor]) -> bool:
    """Whether a perceptron is small enough for the kernel."""
    return len(weights) <= DEEP and all(weight.shape[-1] <= WIDE for weight in weights)


def _struct(*names: tuple[str, Any]) -> type[ctypes.Structure]:
    return type("Job", (ctypes.Structure,), {"_fields_": names})


def _fields(kind: Any, *names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names)


_WHOLE, _POINTER = ctypes.c_int64, ctypes.c_void_p
_Normalise = _struct(
    *_fields(_WHOLE, "models", "rows", "units", "segments"),
    ("ends", _WHOLE * 3),
    *_fields(_WHOLE, "noisy", "relu"),
    ("epsilon", ctypes.c_double),
    *_fields(_POINTER, "pre", "noise", "beta", "h", "lateral", "target", "mean", "scale"),
    *_fields(_POINTER, "d_h", "d_lateral", "d_target", "d_scale", "d_pre", "d_beta"),
)
_Cost = _struct(
    *_fields(_WHOLE, "models", "rows", "units"),
    *_fields(_POINTER, "guess", "target", "scale", "cost", "d_cost", "d_guess", "d_target", "d_scale"),
)
_Vanilla = _struct(
    *_fields(_WHOLE, "models", "rows", "units", "terms"),
    ("place", _WHOLE * 9),
    *_fields(_POINTER, "z", "u", "weight", "out", "d_out", "d_z", "d_u", "d_weight"),
)
_Perceptron = _struct(
    *_fields(_WHOLE, "models", "rows", "units", "layers"),
    ("widths", _WHOLE * (DEEP + 1)),
    *_fields(_POINTER, "z", "u"),
    ("weight", _POINTER * DEEP),
    ("bias", _POINTER * DEEP),
    *_fields(_POINTER, "out", "d_out", "d_z", "d_u"),
    ("d_weight", _POINTER * DEEP),
    ("d_bias", _POINTER * DEEP),
)


def _library(dtype: torch.dtype) -> ctypes.CDLL:
    return load_kernel(SOURCE, DEFINES[dtype])


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _sizes(values: Tensor) -> tuple[int, int, int]:
    """Models, rows and units of (..., R, d)."""
    rows, units = values.shape[-2:]
    return values.numel() // max(1, rows * units), rows, units


def _refuse_second_derivatives() -> None:
    # Not once_differentiable: where the loss is linear in the output, that lets create_graph=True pass unnoticed.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused ladder kernels have no gradients of gradients (create_graph=True): build the network with "
            "fused=False"
        )


def _whole(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.contiguous()


class Normalise(torch.autograd.Function):
    """h, lateral, target and scale of `_ladder_levels.normalise_level`."""

    @staticmethod
    def forward(
        ctx: Any,
        pre: Tensor,
        noise: Tensor | None,
        beta: Tensor | None,
        ends: tuple[int, ...],
        relu: bool,
        epsilon: float,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        pre = pre.contiguous()
        models, rows, units = _sizes(pre)
        lead, segments = pre.shape[:-2], len(ends)
        noise, beta = _whole(noise), _whole(beta)
        h = torch.empty_like(pre)
        mean, scales = pre.new_empty(2, models, segments, units)
        lateral = target = scale = None
        if segments > 1:
            lateral = pre.new_empty(*lead, ends[1] - ends[0], units)
        if segments > 2:
            target = pre.new_empty(*lead, ends[2] - ends[1], units)
        job = _Normalise(models, rows, units, segments, ends, 0 if noise is None else noise.shape[-2], relu, epsilon)
        job.pre, job.noise, job.beta = _address(pre), _address(noise), _address(beta)
        job.h, job.lateral, job.target = _address(h), _address(lateral), _address(target)
        job.mean, job.scale = _address(mean), _address(scales)
        _library(pre.dtype).normalise(ctypes.byref(job))
        if segments > 2:
            scale = scales[:, -1].reshape(*lead, units).clone()
        ctx.save_for_backward(pre, beta, h, mean, scales)
        ctx.ends, ctx.relu = ends, relu
        ctx.set_materialize_grads(False)
        return h, lateral, target, scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        pre, beta, h, mean, scales = ctx.saved_tensors
        models, rows, units = _sizes(pre)
        d_h, d_lateral, d_target, d_scale = map(_whole, grads)
        d_pre = torch.empty_like(pre)
        d_beta = torch.empty_like(beta) if beta is not None and ctx.needs_input_grad[2] else None
        job = _Normalise(models, rows, units, len(ctx.ends), ctx.ends, 0, ctx.relu)
        job.pre, job.h, job.mean, job.scale = _address(pre), _address(h), _address(mean), _address(scales)
        job.d_h, job.d_lateral = _address(d_h), _address(d_lateral)
        job.d_target, job.d_scale = _address(d_target), _address(d_scale)
        job.d_pre, job.d_beta = _address(d_pre), _address(d_beta)
        _library(pre.dtype).normalise_back(ctypes.byref(job))
        return d_pre, None, d_beta, None, None, None


class Cost(torch.autograd.Function):
    """Mean of ((guess - target) scale)^2 of each model."""

    @staticmethod
    def forward(ctx: Any, guess: Tensor, target: Tensor, scale: Tensor | None) -> Tensor:
        guess, target, scale = guess.contiguous(), target.contiguous(), _whole(scale)
        cost = guess.new_empty(guess.shape[:-2])
        job = _Cost(*_sizes(guess), _address(guess), _address(target), _address(scale), _address(cost))
        _library(guess.dtype).cost(ctypes.byref(job))
        ctx.save_for_backward(guess, target, scale)
        return cost

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        guess, target, scale = ctx.saved_tensors
        d_cost = grads[0].contiguous()
        d_guess = torch.empty_like(guess)
        d_target = torch.empty_like(target) if ctx.needs_input_grad[1] else None
        d_scale = torch.empty_like(scale) if scale is not None and ctx.needs_input_grad[2] else None
        job = _Cost(*_sizes(guess), _address(guess), _address(target), _address(scale), None, _address(d_cost))
        job.d_guess, job.d_target, job.d_scale = _address(d_guess), _address(d_target), _address(d_scale)
        _library(guess.dtype).cost_back(ctypes.byref(job))
        return d_guess, d_target, d_scale


class Vanilla(torch.autograd.Function):
    """The combinator of `ladder_combinators.VanillaCombinator`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, u: Tensor, weight: Tensor, places: tuple[int, ...]) -> Tensor:
        z, u, weight = z.contiguous(), u.contiguous(), weight.contiguous()
        out = torch.empty_like(z)
        job = _Vanilla(*_sizes(z), weight.shape[-2], places, _address(z), _address(u), _address(weight), _address(out))
        _library(z.dtype).vanilla(ctypes.byref(job))
        ctx.save_for_backward(z, u, weight)
        ctx.places = places
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        z, u, weight = ctx.saved_tensors
        d_out = grads[0].contiguous()
        d_z = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        d_u = torch.empty_like(u) if ctx.needs_input_grad[1] else None
        d_weight = torch.empty_like(weight)
        job = _Vanilla(*_sizes(z), weight.shape[-2], ctx.places, _address(z), _address(u), _address(weight), None)
        job.d_out, job.d_z, job.d_u, job.d_weight = map(_address, (d_out, d_z, d_u, d_weight))
        _library(z.dtype).vanilla_back(ctypes.byref(job))
        return d_z, d_u, d_weight, None


class Perceptron(torch.autograd.Function):
    """The combinator of `ladder_combinators.PerceptronCombinator`; its weights, then its biases."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, u: Tensor, augmented: bool, *parameters: Tensor) -> Tensor:
        z, u = z.contiguous(), u.contiguous()
        parameters = tuple(one.contiguous() for one in parameters)
        out = torch.empty_like(z)
        job = _perceptron_job(z, u, augmented, parameters)
        job.out = _address(out)
        _library(z.dtype).perceptron(ctypes.byref(job))
        ctx.save_for_backward(z, u, *parameters)
        ctx.augmented = augmented
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        z, u, *parameters = ctx.saved_tensors
        d_out = grads[0].contiguous()
        d_z = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        d_u = torch.empty_like(u) if ctx.needs_input_grad[1] else None
        d_parameters = [torch.empty_like(one) for one in parameters]
        job = _perceptron_job(z, u, ctx.augmented, parameters)
        job.d_out, job.d_z, job.d_u = map(_address, (d_out, d_z, d_u))
        layers = len(parameters) // 2
        for place in range(layers):
            job.d_weight[place], job.d_bias[place] = (
                _address(d_parameters[place]),
                _address(d_parameters[layers + place]),
            )
        _library(z.dtype).perceptron_back(ctypes.byref(job))
        return d_z, d_u, None, *d_parameters


def _perceptron_job(z: Tensor, u: Tensor, augmented: bool, parameters: Sequence[Tensor]) -> Any:
    layers = len(parameters) // 2
    job = _Perceptron(*_sizes(z), layers)
    job.z, job.u = _address(z), _address(u)
    job.widths[0] = 3 if augmented else 2
    for place in range(layers):
        job.widths[place + 1] = parameters[place].shape[-1]
        job.weight[place], job.bias[place] = _address(parameters[place]), _address(parameters[layers + place])
    return job
