"""Gradients of one modular layer, while the kernel goes through its steps from the last to the first.

Shapes as in `_rim_jobs`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechanisms.recurrent._rim_jobs import OWN, LayerJob, LayerTensors, RunLayer, Space

if TYPE_CHECKING:
    from mechanisms.recurrent._rim_kernel import Run


class LayerGradients:
    """Gradients of one layer: room for those of a chunk of steps, and their sums."""

    def __init__(
        self,
        run: "Run",
        layer: RunLayer,
        job: LayerJob,
        needed: Sequence[bool],
        span: int,
        grads: Sequence[Any],
        parts: int,
    ) -> None:
        self.layer, self.job = layer, job
        shape, like, batch = layer.shape, run.like, run.batch
        self.wants = dict(zip(LayerTensors._fields, needed[layer.at : layer.at + OWN], strict=True))
        n, d, fed, keys = shape.modules, shape.size, shape.read + shape.size, shape.heads * shape.key
        told = shape.comm_heads * shape.comm_value
        sizes = {
            "query": (("query",), (n, d, keys)),
            "gates": (("ih", "hh"), (n, fed, 4 * d)),
            "bias": (("bias_ih", "bias_hh"), (n, 4 * d)),
            "talk": (("talk_query", "talk_key", "talk_value"), (n, d, shape.talk)),
            "delta": (("told", "gate"), (told, 2 * d)),
            "delta_bias": (("told_bias", "gate_bias"), (2 * d,)),
        }
        self.sums = {
            name: like.new_zeros(parts, *size)
            for name, (names, size) in sizes.items()
            if any(self.wants[one] for one in names)
        }
        job.point(**{f"sum_{name}": one for name, one in self.sums.items()})
        self.dh, self.dc = (
            torch.zeros_like(layer.own.h) if grad is None else grad.clone(memory_format=torch.contiguous_format)
            for grad in grads
        )
        self.count = torch.zeros(parts, n, dtype=torch.int64)
        job.point(dh=self.dh, dc=self.dc, count=self.count)
        self.slots: list[tuple[Tensor | None, Tensor | None]] = []  # gradients of the input and of the matrix
        for slot, (source, matrix) in enumerate(layer.slots):
            at = layer.at + OWN + 2 * slot
            grad_x = torch.empty_like(run.inputs[source]) if source >= 0 and needed[source] else None
            total = like.new_zeros(parts, *matrix.shape) if needed[at] or needed[at + 1] else None
            self.slots.append((grad_x, total))
            job.slot[slot].point(grad_x=grad_x, sum=total)
        room, rows = Space(), n * batch * span
        if "gates" in self.sums or "query" in self.sums:
            room.add(job, "rows", rows * fed)
        room.add(job, "dz", rows * 4 * d)
        room.add(job, "dq", rows * keys)
        room.add(job, "dqkv", rows * shape.talk)
        room.add(job, "dp", span * batch * shape.active * 2 * d)
        for slot in range(len(layer.slots)):
            room.add(job.slot[slot], "grad", span * batch * shape.kv)
        job.span, self.room = span, room.point(like.new_empty(room.total))
        run.pack_forward(layer, job)
        run.pack_backward(layer, job)

    def finish(self, found: list[Tensor | None]) -> None:
        """Put the layer's gradients in their places."""
        layer = self.layer
        shape, d = layer.shape, layer.shape.size
        sums = {name: one[0] if len(one) == 1 else one.sum(0) for name, one in self.sums.items()}
        gradients: dict[str, Tensor | None] = {"h": self.dh, "c": self.dc, "query": sums.get("query")}
        if "gates" in sums:
            read, own = sums["gates"].split([shape.read, d], 1)
            # A GRU's n has columns of its own for what h gives.
            gradients["ih"] = read[..., : 3 * d] if shape.gru else read
            gradients["hh"] = torch.cat([own[..., : 2 * d], own[..., 3 * d :]], 2) if shape.gru else own
        if "bias" in sums:
            bias = sums["bias"]
            gradients["bias_ih"] = bias[:, : 3 * d] if shape.gru else bias
            gradients["bias_hh"] = torch.cat([bias[:, : 2 * d], bias[:, 3 * d :]], 1) if shape.gru else None
        if "talk" in sums:
            ck, cv = shape.comm_heads * shape.comm_key, shape.comm_heads * shape.comm_value
            parts = sums["talk"].split([ck, ck, cv], 2)
            gradients |= zip(("talk_query", "talk_key", "talk_value"), parts, strict=True)
        if "delta" in sums:
            gradients["told"], gradients["gate"] = sums["delta"].t().split(d)
        if "delta_bias" in sums:
            gradients["told_bias"], gradients["gate_bias"] = sums["delta_bias"].split(d)
        for place, name in enumerate(LayerTensors._fields):
            if self.wants[name]:
                found[layer.at + place] = gradients.get(name)
        for slot, (grad_x, total) in enumerate(self.slots):
            at, keys = layer.at + OWN + 2 * slot, shape.heads * shape.key
            if total is not None:
                whole = total[0] if len(total) == 1 else total.sum(0)
                found[at], found[at + 1] = (whole[:keys] if keys else None), whole[keys:]
            if grad_x is not None:
                found[layer.slots[slot][0]] = grad_x
