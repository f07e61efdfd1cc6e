"""All steps of an LSTM with a latent in one call, with its derivatives written by hand.

Time is dimension -3, so that an optional dimension of models in front runs several networks in one batch (`torch.vmap`
over stacked parameters comes here). Per step and direction remain two or three matrix products and a dozen pointwise
operations; gradients of the weights are one product each over all steps. M is the width of the hidden layer that gives
the latent, H of the LSTM, Z of the latent; gates are in the order i, f, g, o.
"""

from typing import Any

import torch
from torch import Tensor

SLOPE, BOUND, LIMIT = 1 / 3, 3.0, 8.0  # of the hidden layer's activation, and of means and log-variances


def lstm(hoisted: Tensor, h: Tensor, c: Tensor, w_h: Tensor) -> tuple[Tensor, Tensor]:
    """A plain LSTM over projected inputs: all h and all c, (..., T, B, H) each.

    Args:
        hoisted: inputs times their weights, biases included (..., T, B, 4H).
        h, c: the state before (..., B, H).
        w_h: recurrent weights (..., H, 4H).
    """
    return _Run.apply(hoisted, h, c, w_h, None, None, None, None)[:2]


def stochastic_lstm(
    hoisted: Tensor, h: Tensor, c: Tensor, w_h: Tensor, noise: Tensor, w_two: Tensor, b_two: Tensor, w_z: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An LSTM with a latent: all h and c (..., T, B, H), z (..., T, B, Z), and its means and log-variances (2Z).

    Args:
        hoisted: projected inputs of the gates, and of the hidden layer that gives the latent (..., T, B, 4H + M).
        h, c: the state before (..., B, H).
        w_h: weights of h to the gates and to that layer (..., H, 4H + M).
        noise: standard normal (..., T, B, Z).
        w_two, b_two: second layer (..., M, 2Z) and (..., 2Z).
        w_z: weights of z to the gates (..., Z, 4H).
    """
    return _Run.apply(hoisted, h, c, w_h, noise, w_two, b_two, w_z)[:4]


class _Run(torch.autograd.Function):
    """The loop forward and backward; what backward needs is among the outputs, where vmap can carry it."""

    @staticmethod
    def forward(
        hoisted: Tensor,
        h: Tensor,
        c: Tensor,
        w_h: Tensor,
        noise: Any,
        w_two: Any,
        b_two: Any,
        w_z: Any,
    ) -> tuple[Any, ...]:
        size, product = h.shape[-1], _product(h)
        outputs = h.new_empty(*hoisted.shape[:-1], size)
        cells, gates = torch.empty_like(outputs), h.new_empty(*hoisted.shape[:-1], 4 * size)
        z = statistics = layer = None
        if noise is not None:
            width, latent = w_two.shape[-2:]
            z = h.new_empty(noise.shape)
            statistics, layer = h.new_empty(*noise.shape[:-1], latent), h.new_empty(*noise.shape[:-1], width)
            b_two = b_two.unsqueeze(-2)
        wanted = (hoisted, outputs, cells, gates, noise, z, statistics, layer)
        steps = zip(*_by_step(wanted, hoisted), strict=True)
        for projected, own_h, own_c, own_gates, own_noise, own_z, mean_logvar, hidden in steps:
            u = product(projected, h, w_h)
            if own_noise is not None:
                first = u[..., 4 * size :]
                torch.maximum(first, first * SLOPE, out=hidden).clamp_(-BOUND, BOUND)
                product(b_two, hidden, w_two, out=mean_logvar).clamp_(-LIMIT, LIMIT)
                mean, logvar = mean_logvar.chunk(2, -1)
                torch.addcmul(mean, torch.exp(0.5 * logvar), own_noise, out=own_z)
                u = product(u[..., : 4 * size], own_z, w_z)
            i, f, g, o = own_gates.chunk(4, -1)
            torch.sigmoid(u, out=own_gates)
            torch.tanh(u[..., 2 * size : 3 * size], out=g)
            torch.mul(f, c, out=own_c).addcmul_(i, g)
            torch.mul(o, torch.tanh(own_c), out=own_h)
            h, c = own_h, own_c
        return outputs, cells, z, statistics, gates, layer

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _, h, c, w_h, _, w_two, _, w_z = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[kept for kept in output[4:] if kept is not None])
        ctx.save_for_backward(h, c, w_h, w_two, w_z, *output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_outputs: Any, d_cells: Any, d_z: Any, d_statistics: Any, *_: Any) -> tuple[Any, ...]:
        h, c, w_h, w_two, w_z, outputs, cells, z, statistics, gates, layer = ctx.saved_tensors
        size = h.shape[-1]
        i, f, g, o = gates.chunk(4, -1)
        before_h, before_c = _before(h, outputs), _before(c, cells)
        # What a gradient of c (of h, for the output gate) is multiplied by to be one of u.
        tanh_c = torch.tanh(cells)
        through = torch.cat([g * (i - i * i), before_c * (f - f * f), torch.addcmul(i, i * g, g, value=-1)], -1)
        through_o, through_c = tanh_c * (o - o * o), torch.addcmul(o, o * tanh_c, tanh_c, value=-1)
        width = 0 if layer is None else layer.shape[-1]
        d_u = gates.new_empty(*gates.shape[:-1], 4 * size + width)
        gate_views = d_u[..., : 4 * size].unflatten(-1, (4, size))
        kinds: list[Any] = [d_outputs, d_cells, through.unflatten(-1, (3, size)), through_o, through_c, f, gate_views]
        d_statistics_u = None
        if layer is not None:
            mean, _ = statistics.chunk(2, -1)
            free = (statistics.abs() < LIMIT).to(statistics.dtype)
            # z = mean + deviation noise, so that the log-variance's share of its gradient is half of (z - mean).
            spread = torch.cat([torch.ones_like(mean), 0.5 * (z - mean)], -1) * free
            own = torch.zeros_like(statistics) if d_statistics is None else d_statistics * free
            slope = ((layer > 0).to(layer.dtype) * (1 - SLOPE)).add_(SLOPE) * (layer.abs() < BOUND)
            d_statistics_u = torch.empty_like(statistics)
            pairs = (2, mean.shape[-1])
            kinds += [d_z, spread.unflatten(-1, pairs), own.unflatten(-1, pairs), slope, d_u]
            kinds += [d_statistics_u, d_statistics_u.unflatten(-1, pairs)]
            back_two, back_z = w_two.mT, w_z.mT
        else:
            kinds += [None] * 4 + [d_u] + [None] * 2
        back_h = w_h.mT
        d_h = d_c = None
        steps = list(zip(*_by_step(kinds, gates), strict=True))
        for (
            own_h, own_c, by_c, by_h, h_to_c, forget, d_gates,
            own_z, by_z, own_statistics, by_layer, whole, d_second, d_second_pairs,
        ) in reversed(steps):  # fmt: skip
            d_h = own_h if d_h is None else d_h if own_h is None else d_h + own_h
            if own_c is not None:
                d_c = own_c if d_c is None else d_c + own_c
            if d_h is None:
                d_h = torch.zeros_like(forget)
            d_c = d_h * h_to_c if d_c is None else torch.addcmul(d_c, d_h, h_to_c)
            torch.mul(d_c.unsqueeze(-2), by_c, out=d_gates[..., :3, :])
            torch.mul(d_h, by_h, out=d_gates[..., 3, :])
            d_c = d_c * forget
            if layer is not None:
                d_latent = torch.matmul(whole[..., : 4 * size], back_z)
                if own_z is not None:
                    d_latent = d_latent + own_z
                torch.addcmul(own_statistics, d_latent.unsqueeze(-2), by_z, out=d_second_pairs)
                torch.mul(torch.matmul(d_second, back_two), by_layer, out=whole[..., 4 * size :])
            d_h = torch.matmul(whole, back_h)
        d_w_h = _over_time(before_h, d_u)
        if layer is None:
            return d_u, d_h, d_c, d_w_h, None, None, None, None
        d_w_two, d_b_two = _over_time(layer, d_statistics_u), d_statistics_u.sum((-3, -2))
        return d_u, d_h, d_c, d_w_h, None, d_w_two, d_b_two, _over_time(z, d_u[..., : 4 * size])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, ...]:
        moved = [
            None
            if tensor is None
            else tensor.expand(info.batch_size, *tensor.shape)
            if place is None
            else tensor.movedim(place, 0)
            for tensor, place in zip(inputs, in_dims, strict=True)
        ]
        found = _Run.apply(*moved)
        return found, tuple(None if tensor is None else 0 for tensor in found)


def _product(like: Tensor) -> Any:
    """`input + a @ b`, for one network or for a batch of them."""
    return torch.addmm if like.dim() == 2 else torch.baddbmm


def _by_step(tensors: Any, like: Tensor) -> Any:
    """Each tensor's steps; `None` stays so at each of them."""
    time = like.dim() - 3  # from the front, where views with one more dimension behind agree
    return ([None] * like.shape[time] if tensor is None else tensor.unbind(time) for tensor in tensors)


def _before(first: Tensor, later: Tensor) -> Tensor:
    """What each step saw: the first state, then those after the steps."""
    return torch.cat([first.unsqueeze(-3), later[..., :-1, :, :]], -3)


def _over_time(left: Tensor, right: Tensor) -> Tensor:
    """Sum over steps and rows of the outer products of (..., T, B, m) and (..., T, B, n)."""
    return torch.matmul(left.flatten(-3, -2).mT, right.flatten(-3, -2))
