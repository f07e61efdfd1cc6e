"""The networks that are compared, by the name of the variant, and what stands around them.

A variant's name says what kind of network it is; how large it is stands in the settings, a class that inherits from
`Sizes`:

- "lstm": `hidden_size` units; "lstm-two-layers": two layers of them.
- "rims": `modules` modules of `module_size` units, of which `active` are updated; "rims-dense": all of them are;
  "rims-mute": without communication; "rims-alike": all modules are updated and read the whole input, without
  attention to it; "gru-rims": modules are GRUs.
- "brims": layers of `layer_modules` modules of `layer_sizes` units, of which `layer_active` are updated, from bottom
  to top; "hierarchical": the same without the way down; "brims-dense": all modules are updated;
  "attention": one module in each layer, as large as its modules together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mechanisms.lab import config

if TYPE_CHECKING:
    from torch import nn

RIMS: dict[str, dict[str, Any]] = {
    "rims": {},
    "rims-dense": {},
    "rims-mute": {"communicate": False},
    "rims-alike": {"input_attention": False},
    "gru-rims": {"cell": "gru"},
}
BRIMS: dict[str, dict[str, Any]] = {
    "brims": {},
    "brims-dense": {},
    "attention": {},
    "hierarchical": {"top_down": None},
}
ALL = ("lstm", "lstm-two-layers", *RIMS, "hierarchical", "brims", "brims-dense", "attention")


@config
class Sizes:
    """How large the networks are.

    Args:
        hidden_size: of the LSTM.
        modules, module_size, active: of RIMs.
        layer_modules, layer_sizes, layer_active: of BRIMs, from bottom to top.
        layer_input_heads, layer_comm_key_size: of BRIMs, in place of those below; 0 for the same.
        input_heads, key_size: of the attention to the input.
        value_size: of a head; 0 for 4 * units of a module / heads, the released code's.
        comm_heads, comm_key_size: of the communication.
        qkv_std: standard deviation of the first weights of all attention.
    """

    hidden_size: int = 96
    modules: int = 6
    module_size: int = 16
    active: int = 3
    layer_modules: tuple[int, ...] = (4, 4)
    layer_sizes: tuple[int, ...] = (14, 14)
    layer_active: tuple[int, ...] = (2, 2)
    layer_input_heads: int = 0
    layer_comm_key_size: int = 0
    input_heads: int = 1
    key_size: int = 32
    value_size: int = 0
    comm_heads: int = 4
    comm_key_size: int = 16
    qkv_std: float = 0.05


def make_network(variant: str, sizes: Sizes) -> Callable[[int], Any]:
    """A function from the input size to the network of a variant; see the module for the names."""

    def make(size: int) -> Any:
        from mechanisms.recurrent import BRIMCell, LSTMCell, Recurrent, RIMCell

        if variant not in RIMS and variant not in BRIMS:
            layers = 2 if variant == "lstm-two-layers" else 1
            return Recurrent(lambda inner: LSTMCell(inner, sizes.hidden_size), size, num_layers=layers)
        options: dict[str, Any] = {
            "input_heads": sizes.input_heads,
            "key_size": sizes.key_size,
            "value_size": sizes.value_size or None,
            "comm_heads": sizes.comm_heads,
            "comm_key_size": sizes.comm_key_size,
            "qkv_std": sizes.qkv_std,
        }
        if variant in RIMS:
            active = sizes.modules if variant in ("rims-dense", "rims-alike") else sizes.active
            options |= RIMS[variant]
            return Recurrent(lambda inner: RIMCell(inner, sizes.module_size, sizes.modules, active, **options), size)
        modules, units, active = sizes.layer_modules, sizes.layer_sizes, sizes.layer_active
        if variant == "attention":
            units = tuple(one * count for one, count in zip(units, modules, strict=True))
            modules = active = tuple(1 for _ in modules)
        elif variant == "brims-dense":
            active = modules
        heads, keys = sizes.layer_input_heads, sizes.layer_comm_key_size
        options |= {"input_heads": heads or sizes.input_heads, "comm_key_size": keys or sizes.comm_key_size}
        options |= BRIMS[variant]
        return Recurrent(lambda inner: BRIMCell(inner, units, modules, active, **options), size)

    return make


def in_frame(
    make: Callable[[int], Any], *, encoding: int = 0, dropout: float | int = 0.0
) -> Callable[[int], nn.Module]:
    """The same network with a linear encoding in front, and dropout before and behind.

    Without an encoding an input of zeros is the same as no input to the attention of RIMs.

    Args:
        make: makes the network from its input size.
        encoding: features of the encoding; 0 for none.
        dropout: rate before and behind the network.

    >>> import torch
    >>> from torch import nn
    >>> framed = in_frame(lambda size: make_network("lstm", Sizes(hidden_size=4))(size), encoding=3, dropout=0.5)(2)
    >>> framed(torch.zeros(5, 1, 2))[0].shape
    torch.Size([5, 1, 4])
    """
    from mechanisms.papers._rims.frame import Frame

    return lambda size: Frame(make, size, encoding, dropout)
