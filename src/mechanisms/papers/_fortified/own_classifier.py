"""A classifier of one's own and its data, as `mech attack` takes them: a factory, weights, and a .npz file.

Nothing in a file of weights or data is executed. The factory is code of the user's, imported as `python -m` would.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
INSIDE = ("state_dict", "model_state_dict", "model", "net")  # under which checkpoints keep the weights
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
SHOWN = 4  # names in a message


def build_classifier(factory: str, weights: Path) -> nn.Module:
    """A classifier in evaluation mode.

    Args:
        factory: "package.module:factory", importable from the current folder; called without arguments, it returns the
            network.
        weights: a .safetensors file, or a state_dict that torch.save wrote (.pt, .pth, .bin, .ckpt).

    Raises:
        ValueError: one line that says what is wrong with either, and what to do.

    >>> build_classifier("nowhere:net", Path("weights.pt"))
    Traceback (most recent call last):
        ...
    ValueError: nowhere:net: there is no module 'nowhere' (looked in the current folder and the installed packages)
    """
    from torch import nn

    make = _factory(factory)
    if not isinstance(make, nn.Module) and (reason := _needs_arguments(make)):
        raise ValueError(
            f"{factory} cannot be called without arguments ({reason}); write a function that returns the network"
        )
    try:
        model = make if isinstance(make, nn.Module) else make()
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"{factory} fails: {type(error).__name__}: {_first(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{factory} returned a {type(model).__name__}, expected a torch.nn.Module")
    state = read_weights(weights)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [_first(error)]
        raise ValueError(f"{weights} does not fit {factory}: {lines[0]}") from None
    if missing or unexpected:
        parts = [f"lacks {_names(missing)}"] * bool(missing) + [f"has {_names(unexpected)} in excess"] * bool(
            unexpected
        )
        raise ValueError(f"{weights} does not fit {factory}: it {' and '.join(parts)}")
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name; nothing in the file is executed.

    Raises:
        ValueError: no such file, another kind, damaged, or a pickled module; the message says how to convert it.

    >>> read_weights(Path("weights.h5"))
    Traceback (most recent call last):
        ...
    ValueError: there is no file weights.h5
    """
    if not path.is_file():
        raise ValueError(f"{path} is a folder; give a file" if path.is_dir() else f"there is no file {path}")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({_first(error)})") from None
    if suffix not in TORCH_SUFFIXES:
        raise ValueError(f"{path}: unknown suffix {suffix!r}; weights are .safetensors or {', '.join(TORCH_SUFFIXES)}")
    import torch

    damaged = f"{path} is damaged or was not written by torch.save"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which gets a message of its own
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(damaged if "Unsupported operand" in str(error) else _pickled(path)) from None
    except KeyError:
        raise ValueError(damaged) from None
    except (RuntimeError, EOFError, OSError, ValueError, AttributeError) as error:
        if "TorchScript" in str(error):
            raise ValueError(_pickled(path, "a TorchScript archive")) from None
        raise ValueError(f"{damaged} ({_first(error)})") from None
    return _state(content, path)


def read_images(path: Path, count: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`x` and `y` of a .npz file, `count` of them drawn without replacement, in the file's order.

    Raises:
        ValueError: no such file, Python objects in it, or no arrays x and y of one length.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     np.savez(file, x=np.zeros((5, 2)), y=np.arange(5))
    ...     file.flush()
    ...     read_images(Path(file.name), 3, seed=0)[0].shape
    (3, 2)
    """
    import numpy as np

    from mechanisms._base.seeds import numpy_generator
    from mechanisms.lab.data.files import read_arrays

    if path.suffix.lower() not in (".npz", ".npy"):
        raise ValueError(f"{path}: data are a .npz file with the arrays x and y: numpy.savez('data.npz', x=x, y=y)")
    arrays = read_arrays(path)
    if lacking := [name for name in ("x", "y") if name not in arrays]:
        raise ValueError(
            f"{path} has no array {' and no array '.join(map(repr, lacking))}; it has {_names(list(arrays))}"
        )
    x, y = arrays["x"], arrays["y"]
    if x.ndim < 2 or y.ndim < 1 or len(x) != len(y) or not len(x):
        raise ValueError(f"{path}: x has shape {x.shape} and y {y.shape}, expected (n, ...) and (n,)")
    if count is None or count >= len(x):
        return x, y
    chosen = np.sort(numpy_generator(seed, "images").choice(len(x), count, replace=False))
    return x[chosen], y[chosen]


def _factory(text: str) -> Any:
    name, colon, attribute = text.partition(":")
    if not colon or not name or not attribute or "/" in name or name.endswith(".py"):
        raise ValueError(f"{text!r}: write package.module:factory, for example networks.small:make_network")
    here = str(Path.cwd())
    if here not in sys.path:
        # As with `python -m`. It stays: factories import more of their package when they are called.
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"{text}: importing {name} fails: {error}") from error
        raise ValueError(
            f"{text}: there is no module {error.name!r} (looked in the current folder and the installed packages)"
        ) from None
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"{text}: importing {name} fails: {type(error).__name__}: {_first(error)}") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise ValueError(f"{text}: {name} has no {attribute!r}; it has {_names(public) or 'nothing to call'}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{text} is a {type(found).__name__}, expected a function or class that makes the network")
    return found


def _needs_arguments(make: Any) -> str:
    """Why it cannot be called without arguments; nothing where it can, or where it does not say."""
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        return str(error)
    except ValueError:  # what is written in C may have no signature
        pass
    return ""


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    import torch

    if isinstance(content, Mapping) and not all(isinstance(value, torch.Tensor) for value in content.values()):
        inner = next((content[key] for key in INSIDE if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            raise ValueError(
                f"{path} holds no state_dict but {_names(list(content))}; write one with "
                "torch.save(model.state_dict(), 'weights.pt')"
            )
        content = inner
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, no state_dict; write one with "
            "torch.save(model.state_dict(), 'weights.pt')"
        )
    state = {str(name): value for name, value in content.items()}
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _pickled(path: Path, what: str = "a pickled module or other Python objects") -> str:
    return (
        f"{path} holds {what}, not weights alone; it is not loaded, because that can run any code in it. If you trust "
        f"it, convert it once: import torch; found = torch.load({str(path)!r}, weights_only=False); "
        "torch.save(getattr(found, 'state_dict', lambda: found['state_dict'])(), 'weights.pt')"
    )


def _names(names: Any) -> str:
    shown = [repr(str(name)) for name in names]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
