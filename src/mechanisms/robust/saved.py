"""A discovery on a table in one file: the twins, and how tables become their features."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mechanisms.robust.environments import Environments
from mechanisms.robust.tables import TableEncoder


def discovery_bytes(found: Environments, encoder: TableEncoder) -> bytes:
    """The content of a safetensors file (no pickle) that `load_discovery` reads.

    Args:
        found: environments of a table's features, with the classes' texts as labels.
        encoder: made the features.

    >>> from mechanisms.robust.xrm import discover_environments
    >>> import numpy as np, pandas as pd
    >>> from mechanisms.robust.tables import encode
    >>> x = np.random.default_rng(0).standard_normal(40)
    >>> encoded = encode(pd.DataFrame({"size": x, "label": x + x[::-1] > 0}), "label")
    >>> labels = np.array(encoded.encoder.classes)[encoded.y]
    >>> found = discover_environments(encoded.x, labels, steps=20, search=1, random_state=0, device="cpu")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.safetensors"
    ...     _ = path.write_bytes(discovery_bytes(found, encoded.encoder))
    ...     load_discovery(path)[1] == encoded.encoder
    True
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "environments"
        found.save(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return save(tensors, metadata=metadata | {"table": encoder.to_json()})


def load_discovery(path: str | Path) -> tuple[Environments, TableEncoder]:
    """Read what `discovery_bytes` gave; nothing in the file is executed.

    Raises:
        ValueError: no such file, or another kind of file; one line.

    >>> load_discovery("nowhere.safetensors")
    Traceback (most recent call last):
        ...
    ValueError: there is no file nowhere.safetensors
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is a folder" if path.is_dir() else f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            table = (file.metadata() or {}).get("table")
        if table is None:
            raise ValueError("it was not saved with a table")
        return Environments.load(path), TableEncoder.from_json(table)
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is no discovery saved by `mech discover --save` ({lines[0]})") from None
