"""Loggers of the user's choice, through Lightning Fabric; the record keeps every curve in any case."""

from pathlib import Path
from typing import Any

from mechanisms._base.extras import MissingExtra, require

LOGGERS = ("csv", "tensorboard", "mlflow", "wandb", "none")


def make_logger(kind: str, name: str, folder: Path) -> Any:
    """A logger with Fabric's `log_metrics(metrics, step)` and `finalize(status)`, or None for "none".

    Args:
        kind: "csv", "tensorboard", "mlflow", "wandb" or "none".
        name: of the run, for example "xrm/coloured-digits.laptop/erm.10".
        folder: of the log files.

    Raises:
        ValueError: an unknown kind.
        MissingExtra: the logger's package is not installed.
    """
    if kind == "none":
        return None
    if kind == "csv":
        return require("lightning_fabric.loggers", "lab").CSVLogger(root_dir=folder, name=name)
    if kind == "tensorboard":
        try:
            return require("lightning_fabric.loggers", "lab").TensorBoardLogger(root_dir=folder, name=name)
        except ModuleNotFoundError as error:
            raise MissingExtra("tensorboard is not installed; pip install 'mechanisms[loggers]'") from error
    if kind in ("mlflow", "wandb"):
        loggers = require("lightning.pytorch.loggers", "lightning")
        if kind == "mlflow":
            return loggers.MLFlowLogger(experiment_name=name.split("/")[0], run_name=name, save_dir=str(folder))
        return loggers.WandbLogger(project="mechanisms", name=name, save_dir=str(folder))
    raise ValueError(f"there is no logger {kind!r}; there are: {', '.join(LOGGERS)}")
