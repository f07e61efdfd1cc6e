"""Loggers of the user's choice, through Lightning Fabric; the record keeps every curve in any case."""

import importlib.util
from pathlib import Path
from typing import Any

from mechanisms._base.extras import MissingExtra, require

LOGGERS = ("csv", "tensorboard", "mlflow", "wandb", "none")


def logger_class(kind: str) -> Any:
    """The class of a logger, with what it needs installed; None for "none".

    Raises:
        ValueError: an unknown kind.
        MissingExtra: a package is not installed.

    >>> logger_class("none") is None
    True
    """
    if kind == "none":
        return None
    if kind == "csv":
        return require("lightning_fabric.loggers", "lab").CSVLogger
    if kind == "tensorboard":
        require("tensorboard", "loggers")
        return require("lightning_fabric.loggers", "lab").TensorBoardLogger
    if kind in ("mlflow", "wandb"):
        loggers = require("lightning.pytorch.loggers", "lightning")
        if importlib.util.find_spec(kind) is None:
            raise MissingExtra(f"{kind} is not installed; get it with: pip install {kind}")
        return loggers.MLFlowLogger if kind == "mlflow" else loggers.WandbLogger
    raise ValueError(f"there is no logger {kind!r}; there are: {', '.join(LOGGERS)}")


def make_logger(kind: str, name: str, folder: Path) -> Any:
    """A logger with Fabric's `log_metrics(metrics, step)` and `finalize(status)`, or None for "none".

    Args:
        kind: "csv", "tensorboard", "mlflow", "wandb" or "none".
        name: of the run, for example "xrm/coloured-digits.laptop/erm.10".
        folder: of the log files.

    Raises:
        ValueError: an unknown kind.
        MissingExtra: the logger's package is not installed.

    >>> make_logger("csv", "xrm/coloured-digits.laptop/erm.10", Path("logs")).name
    'xrm/coloured-digits.laptop/erm.10'
    """
    chosen = logger_class(kind)
    if kind in ("csv", "tensorboard"):
        return chosen(root_dir=folder, name=name)
    if kind == "mlflow":
        return chosen(experiment_name=name.split("/")[0], run_name=name, save_dir=str(folder))
    return chosen and chosen(project="mechanisms", name=name, save_dir=str(folder))
