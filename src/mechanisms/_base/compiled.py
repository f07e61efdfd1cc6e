"""Small C kernels: built on first use with the system's compiler, kept in the user's cache, loaded by ctypes.

Nothing is compiled or looked for when a module is imported. A kernel is never needed: whoever asks for one catches
`CannotCompile`, whose text says why there is none, and computes the same numbers another way.
"""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

from mechanisms._base.folders import cache_folder

FLAGS = ("-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
PATIENCE = 120  # seconds for one compilation, which takes one or two
INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


class CannotCompile(RuntimeError):
    """A kernel cannot be built here; the message says why."""


_loaded: dict[tuple[Path, tuple[str, ...]], ctypes.CDLL | CannotCompile] = {}
_building: dict[tuple[Path, tuple[str, ...]], threading.Lock] = {}
_lock = threading.Lock()


def load_kernel(source: Path, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library made of one C file: from this process, the user's cache, or the compiler, in this order.

    The compiler is `$CC`, else `cc`, `gcc` or `clang`. The library's name is a hash of the source, its headers,
    the flags, the processor and the compiler, so that a change of any of them builds anew. Only a cache that belongs to
    the user and that nobody else can write to or replace is read; without one the kernel is built for this process
    alone.

    Args:
        source: the C file; plain C, no headers but the standard ones and those beside it.
        flags: more options, such as `-DREAL=float`.

    Raises:
        CannotCompile: there is no compiler, or it fails; asked again, the same is said at once.

    >>> import sys
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = Path(folder) / "two.c"
    ...     _ = source.write_text("int two(void) { return 2; }")
    ...     load_kernel(source).two()
    2
    """
    key = (source, flags)
    if (found := _loaded.get(key)) is None:
        # Each kernel has a lock of its own: whoever wants another need not wait for this one's compiler.
        with _lock:
            own = _building.setdefault(key, threading.Lock())
        with own:
            if (found := _loaded.get(key)) is None:
                try:
                    found = _find(source, flags)
                except CannotCompile as error:
                    found = error
                _loaded[key] = found
    if isinstance(found, CannotCompile):
        raise CannotCompile(*found.args)
    return found


def _find(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    command = [*_compiler(), *FLAGS, _native(), *flags]
    name = f"{source.stem}-{_fingerprint(source, command)}.so"
    folder = _own_folder()
    if folder is not None:
        kept = folder / name
        if _only_mine(kept) and (library := _open(kept)) is not None:
            return library
        try:
            handle, part = tempfile.mkstemp(prefix=f".{name[:40]}.", suffix=".part", dir=folder)
            os.close(handle)
        except OSError:
            pass  # a cache that can be read only: built for this process below
        else:
            try:
                _compile(command, source, part)
                os.chmod(part, 0o700)
                # Renamed only when whole, so that processes which build at the same time replace like by like.
                os.replace(part, kept)
            finally:
                Path(part).unlink(missing_ok=True)
            if (library := _open(kept)) is not None:
                return library
            # Falls through where the cache forbids running what is in it (mounted noexec).
    with tempfile.TemporaryDirectory(prefix="mechanisms-") as place:
        built = f"{place}/{name}"
        _compile(command, source, built)
        library = _open(Path(built))  # once loaded, the file is no longer needed
        if library is None:
            raise CannotCompile(f"{source.name} was compiled, but neither the cache nor {place} lets it be loaded")
        return library


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CC", ""))
    for words in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        if (path := shutil.which(words[0])) is not None:
            return [path, *words[1:]]
    if chosen:
        raise CannotCompile(f"the compiler that CC names, {chosen[0]!r}, is not found")
    raise CannotCompile("no C compiler is found (cc, gcc or clang); install one, or name it in CC")


def _native() -> str:
    # GCC and Clang name the processor they run on so; on ARM and POWER -march takes architectures only.
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"


def _fingerprint(source: Path, command: list[str]) -> str:
    try:
        version = subprocess.run([command[0], "--version"], capture_output=True, timeout=PATIENCE, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(f"the compiler {command[0]} does not run: {error}") from None
    parts = [*source_texts(source), "\0".join(command).encode(), version, _processor().encode()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def source_texts(source: Path) -> list[bytes]:
    """The text of a C file and of the headers it includes from its own folder, each once, ordered by name.

    Raises:
        CannotCompile: one of them cannot be read.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "one.h").write_text("int one;")
    ...     _ = (Path(folder) / "two.c").write_text('#include "one.h"')
    ...     source_texts(Path(folder) / "two.c")
    [b'int one;', b'#include "one.h"']
    """
    found: dict[Path, bytes] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path not in found:
            try:
                found[path] = path.read_bytes()
            except OSError as error:
                raise CannotCompile(f"{path.name} cannot be read: {error}") from None
            waiting += [path.parent / name.decode() for name in INCLUDE.findall(found[path])]
    return [text for _, text in sorted(found.items())]


def _processor() -> str:
    """What the processor can do: a home shared between machines may hold kernels for several."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part", "cpu\t"))}
    return platform.machine() + "".join(sorted(told))


def _own_folder() -> Path | None:
    """The cache for kernels, if it is (or can be made) the user's alone."""
    try:
        folder = cache_folder() / "kernels"
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    return folder if _only_mine(folder) and _nobody_can_replace(folder) else None


def _nobody_can_replace(folder: Path) -> bool:
    """Whether no other user can put another folder in its place: who may write to a folder above can rename what is in
    it, unless that folder is sticky, as /tmp is."""
    if not hasattr(os, "getuid"):
        return True
    try:
        above = [parent.stat() for parent in folder.resolve().parents]
    except OSError:
        return False
    return all(
        found.st_uid in (0, os.getuid())
        and (not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or found.st_mode & stat.S_ISVTX)
        for found in above
    )


def _only_mine(path: Path) -> bool:
    """Whether it is there, belongs to this user, and nobody else may write to it. Loading a library runs its code."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return mine and not stat.S_ISLNK(found.st_mode) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compile(command: list[str], source: Path, target: str) -> None:
    try:
        done = subprocess.run(
            [*command, str(source), "-o", target],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(f"{command[0]} does not compile {source.name}: {error}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotCompile(f"{command[0]} does not compile {source.name}: {' '.join(said[:3]) or 'without a word'}")


def _open(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None
