"""Where downloads, cached stages and compiled kernels are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder for downloads and cached stages, made readable by its owner alone if it is missing.

    It is `$MECHANISMS_CACHE`, else `$XDG_CACHE_HOME/mechanisms`, else `~/.cache/mechanisms`.

    Raises:
        OSError: it cannot be made; the message names the folder and the variable that chooses another.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     os.environ["MECHANISMS_CACHE"] = f"{folder}/mine"
    ...     chosen = cache_folder()
    ...     del os.environ["MECHANISMS_CACHE"]
    >>> chosen.name
    'mine'
    """
    chosen = os.environ.get("MECHANISMS_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if chosen:
        folder = Path(chosen).expanduser()
    elif os.path.isabs(shared):  # the XDG specification asks to ignore relative values
        folder = Path(shared) / "mechanisms"
    else:
        folder = Path.home() / ".cache" / "mechanisms"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"the cache folder {folder} cannot be made ({reason}); MECHANISMS_CACHE chooses another"
        ) from None
    return folder
