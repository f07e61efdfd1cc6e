"""All steps of an LSTM with a latent in one call, with its derivatives written by hand.

Time is dimension -3, so that an optional dimension of models in front runs several networks in one batch (`torch.vmap`
over stacked parameters comes here). Per step and direction remain two or three matrix products and a dozen pointwise
operations; gradients of the weights are one product each over all steps. M is the width of the hidden layer that gives
the latent, H of the LSTM, Z of the latent; gates are in the order i, f, g, o.
"""

from typing import Any

import torch
from torch import Tensor

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward

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
        cells, squashed = torch.empty_like(outputs), torch.empty_like(outputs)
        gates = h.new_empty(*hoisted.shape[:-1], 4 * size)
        z = statistics = layer = None
        if noise is not None:
            width, latent = w_two.shape[-2:]
            z = h.new_empty(noise.shape)
            statistics, layer = h.new_empty(*noise.shape[:-1], latent), h.new_empty(*noise.shape[:-1], width)
            b_two = b_two.unsqueeze(-2)
        wanted = (hoisted, outputs, cells, squashed, gates, noise, z, statistics, layer)
        for step in zip(*_by_step(wanted, hoisted), strict=True):
            projected, own_h, own_c, own_squashed, own_gates, own_noise, own_z, mean_logvar, hidden = step
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
            torch.mul(o, torch.tanh(own_c, out=own_squashed), out=own_h)
            h, c = own_h, own_c
        return outputs, cells, z, statistics, gates, layer, squashed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _, h, c, w_h, _, w_two, _, w_z = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[kept for kept in output[4:] if kept is not None])
        ctx.save_for_backward(h, c, w_h, w_two, w_z, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        # Not once_differentiable: where the loss is linear in the output, that lets create_graph=True pass unnoticed.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the sequence in one call has no gradients of gradients (create_graph=True): step singly, with "
                "backend='eager' or scan(..., twice_differentiable=True)"
            )
        d_outputs, d_cells, d_z, d_statistics = grads[:4]
        h, c, w_h, w_two, w_z, outputs, cells, z, statistics, gates, layer, squashed = ctx.saved_tensors
        size = h.shape[-1]
        before_h, before_c = _before(h, outputs), _before(c, cells)
        width = 0 if layer is None else layer.shape[-1]
        d_u = gates.new_empty(*gates.shape[:-1], 4 * size + width)
        kinds: list[Any] = [d_outputs, d_cells, gates, squashed, before_c, d_u, d_z]
        own = spread = slope = d_second = None
        back: list[Any] = [None if weight is None else weight.mT for weight in (w_h, w_two, w_z)]
        if layer is not None:
            mean, _ = statistics.chunk(2, -1)
            free = (statistics.abs() < LIMIT).to(statistics.dtype)
            # z = mean + deviation noise, so that the log-variance's share of its gradient is half of (z - mean).
            spread = torch.cat([torch.ones_like(mean), 0.5 * (z - mean)], -1) * free
            own = torch.zeros_like(statistics) if d_statistics is None else d_statistics * free
            slope = ((layer > 0).to(layer.dtype) * (1 - SLOPE)).add_(SLOPE) * (layer.abs() < BOUND)
            d_second = torch.empty_like(statistics)
            pairs = (2, mean.shape[-1])
            own, spread = own.unflatten(-1, pairs), spread.unflatten(-1, pairs)
        kinds += [own, spread, slope, d_second, None if d_second is None else d_second.unflatten(-1, (2, -1))]
        d_h, d_c = torch.zeros_like(h), torch.zeros_like(c)
        for step in reversed(list(zip(*_by_step(kinds, gates), strict=True))):
            own_h, own_c, own_gates, tanh_c, c_before, d_own, own_z, *of_latent = step
            if own_h is not None:
                d_h = d_h + own_h
            if own_c is not None:
                d_c = d_c + own_c
            i, f, g, o = own_gates.chunk(4, -1)
            d_c = d_c + tanh_backward(d_h * o, tanh_c)
            d_i, d_f, d_g, d_o = d_own[..., : 4 * size].chunk(4, -1)
            sigmoid_backward(d_c * g, i, grad_input=d_i)
            sigmoid_backward(d_c * c_before, f, grad_input=d_f)
            tanh_backward(d_c * i, g, grad_input=d_g)
            sigmoid_backward(d_h * tanh_c, o, grad_input=d_o)
            d_c = d_c * f
            if layer is not None:
                own_statistics, by_z, by_layer, d_two, d_two_pairs = of_latent
                d_latent = torch.matmul(d_own[..., : 4 * size], back[2])
                if own_z is not None:
                    d_latent = d_latent + own_z
                torch.addcmul(own_statistics, d_latent.unsqueeze(-2), by_z, out=d_two_pairs)
                torch.mul(torch.matmul(d_two, back[1]), by_layer, out=d_own[..., 4 * size :])
            d_h = torch.matmul(d_own, back[0])
        d_w_h = _over_time(before_h, d_u)
        if layer is None or d_second is None:
            return d_u, d_h, d_c, d_w_h, None, None, None, None
        d_w_two, d_b_two = _over_time(layer, d_second), d_second.sum((-3, -2))
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
