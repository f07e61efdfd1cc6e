"""The hooks that send a module's output, or a model's input, through a layer, and what is checked when they are set."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Tape(threading.local):
    """What the layers of a pass got and gave, while it is traced; each thread has its own, for passes side by side."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, Tensor, Tensor]] | None = None

    def __reduce__(self) -> tuple[type["Tape"], tuple[()]]:
        # What belongs to threads cannot be copied; a copy of the model begins with an empty one.
        return Tape, ()


class Insertion:
    """The hooks of one layer; methods of an object, so that a deep copy of the model has the copied layer in them."""

    def __init__(self, where: str, place: int, layer: nn.Module, tape: Tape) -> None:
        self.where, self.place, self.layer, self.tape = where, place, layer, tape

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before the module's forward: its first input, denoised."""
        if not inputs:
            raise ValueError(f"{self.where} is not there: give the model its first input by place, not by keyword")
        return (self._denoised(inputs[0]), *inputs[1:])

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        """After it: its output, denoised."""
        return self._denoised(output)

    def _denoised(self, h: Any) -> Tensor:
        if not isinstance(h, Tensor):
            raise ValueError(f"{self.where} gives a {type(h).__name__}; name a module that gives one tensor")
        try:
            denoised = self.layer(h)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None
        if denoised.shape != h.shape:
            raise ValueError(
                f"{self.where}: its layer made {tuple(denoised.shape)} of {tuple(h.shape)}; shapes must stay"
            )
        if self.tape.entries is not None:
            self.tape.entries.append((self.place, h, denoised))
        return denoised


def inserted(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that hooks of the model's modules go through; they need be no modules of the model."""
    for module in model.modules():
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
            insertion = getattr(hook, "__self__", None)
            if isinstance(insertion, Insertion):
                yield insertion.layer


def modules_reached(model: nn.Module) -> Iterator[nn.Module]:
    """All modules that a pass may go through, those of inserted layers too; some of them twice."""
    yield from model.modules()
    for layer in inserted(model):
        yield from layer.modules()


def module_named(modules: dict[str, nn.Module], name: str) -> nn.Module:
    """The module of that name, or a KeyError that lists those there are."""
    if name not in modules or name == "":
        named = ", ".join(repr(one) for one in modules if one)
        raise KeyError(f"the model has no module named {name!r}; it has {named or 'none'}")
    return modules[name]


def check_layers(layers: Mapping[str, nn.Module], inputs: nn.Module | None, model: nn.Module) -> None:
    """Errors for what is no layer, for one that would stand twice, and for a model that asks no hooks any more."""
    if unwrapped(model) is not model:
        raise ValueError(
            "the model is compiled or distributed already; fortify it first, then compile or wrap the result"
        )
    every = list(layers.items()) + ([] if inputs is None else [("the input", inputs)])
    for name, layer in every:
        if not isinstance(layer, nn.Module):
            raise TypeError(f"the layer for {name!r} is a {type(layer).__name__}; give a module such as DenoisingLayer")
    if len({id(layer) for _, layer in every}) < len(every):
        raise ValueError("one layer stands for two names; make a layer for each")


def check_places(places: dict[str, nn.Module], inputs: bool, model: nn.Module) -> None:
    """Errors for a module under two names, and for one that has a layer already."""
    if len(set(map(id, places.values()))) < len(places):
        raise ValueError(f"two of the names {list(places)} are one module; fortify it once")
    before = [model._forward_pre_hooks] if inputs else []
    for hooks in [*before, *(module._forward_hooks for module in places.values())]:
        if any(isinstance(getattr(hook, "__self__", None), Insertion) for hook in hooks.values()):
            raise ValueError("the model is fortified there already; call remove() of its FortifiedModel first")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile."""
    while True:
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        inner = getattr(model, "_orig_mod", inner)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def full(h: Tensor) -> Tensor:
    """At least single precision: means of squares of half-precision states would lose most of their digits."""
    return h if h.dtype == torch.float64 else h.float()
