"""Kernels: built once, kept privately, refused when someone else could have written them, never needed."""

import concurrent.futures
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mechanisms._base import compiled
from mechanisms._base.compiled import CannotCompile, load_kernel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a process that has loaded nothing."""
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "_loaded", {})
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text("#ifndef ANSWER\n#define ANSWER 42\n#endif\nint answer(void) { return ANSWER; }\n")
    return path


def why_not(source: Path) -> str:
    with pytest.raises(CannotCompile) as caught:
        load_kernel(source)
    return str(caught.value)


def forget() -> None:
    compiled._loaded.clear()


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    built: list[str] = []
    compile_ = compiled._compile
    monkeypatch.setattr(compiled, "_compile", lambda *given: (built.append(given[2]), compile_(*given))[1])
    return built


def test_a_kernel_is_built_once_and_then_read_from_the_cache(cache: Path, source: Path, monkeypatch) -> None:
    built = count_builds(monkeypatch)
    assert load_kernel(source).answer() == 42
    assert load_kernel(source).answer() == 42
    forget()
    assert load_kernel(source).answer() == 42
    assert len(built) == 1
    (kept,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700


def test_source_flags_and_compiler_make_different_kernels(cache: Path, source: Path, monkeypatch) -> None:
    assert load_kernel(source, ("-DANSWER=7",)).answer() == 7
    assert load_kernel(source).answer() == 42
    source.write_text("int answer(void) { return 43; }")
    forget()
    assert load_kernel(source).answer() == 43
    monkeypatch.setattr(compiled, "_processor", lambda: "another")
    forget()
    assert load_kernel(source).answer() == 43
    assert len(list(cache.iterdir())) == 4


def test_without_a_compiler_the_reason_is_said_each_time(cache: Path, source: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    for _ in range(2):
        with pytest.raises(CannotCompile, match="no C compiler is found"):
            load_kernel(source)
    forget()
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert "'no-such-compiler'" in why_not(source)


def test_a_source_that_does_not_compile_says_what_the_compiler_says(cache: Path, source: Path) -> None:
    source.write_text("int answer(void) { return nothing; }")
    assert "answer.c" in why_not(source)
    assert "nothing" in why_not(source)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_means_a_kernel_for_this_process(source: Path, monkeypatch) -> None:
    monkeypatch.setenv("MECHANISMS_CACHE", "/proc/self/nothing/here")
    monkeypatch.setattr(compiled, "_loaded", {})
    assert load_kernel(source).answer() == 42


def test_a_cache_that_can_only_be_read_is_read(cache: Path, source: Path, monkeypatch) -> None:
    load_kernel(source)
    forget()
    built = count_builds(monkeypatch)

    def refuse(*given: object, **named: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(compiled.tempfile, "mkstemp", refuse)
    assert load_kernel(source).answer() == 42
    assert built == []
    source.write_text("int answer(void) { return 44; }")
    forget()
    assert load_kernel(source).answer() == 44
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("others", [0o770, 0o707])
def test_a_cache_that_others_may_write_to_is_not_used(cache: Path, source: Path, others: int, monkeypatch) -> None:
    load_kernel(source)
    forget()
    built = count_builds(monkeypatch)
    cache.chmod(others)
    assert load_kernel(source).answer() == 42
    assert not built[0].startswith(str(cache))


@pytest.mark.parametrize("others", [0o770, 0o707])
def test_a_cache_that_others_may_replace_is_not_used(cache: Path, source: Path, others: int, monkeypatch) -> None:
    load_kernel(source)
    built = count_builds(monkeypatch)
    for above in (cache.parent, cache.parent.parent):
        forget()
        before = stat.S_IMODE(above.stat().st_mode)
        above.chmod(others)
        assert load_kernel(source).answer() == 42
        assert not built[-1].startswith(str(cache))
        above.chmod(others | stat.S_ISVTX)  # as /tmp: others may write, but not to what is the user's
        forget()
        assert load_kernel(source).answer() == 42
        above.chmod(before)
    assert len(built) == 2


def test_a_kernel_does_not_wait_for_another_to_be_built(cache: Path, source: Path, monkeypatch) -> None:
    begun, finish = threading.Event(), threading.Event()
    find = compiled._find

    def slowly(path: Path, flags: tuple[str, ...]) -> object:
        if flags:
            begun.set()
            assert finish.wait(60)
        return find(path, flags)

    monkeypatch.setattr(compiled, "_find", slowly)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(load_kernel, source, ("-DANSWER=7",))
        assert begun.wait(60)
        assert load_kernel(source).answer() == 42
        finish.set()
        assert slow.result().answer() == 7


def test_a_header_that_changes_builds_anew(cache: Path, source: Path, monkeypatch) -> None:
    header = source.with_name("number.h")
    header.write_text('#include "deeper.h"\n')
    source.with_name("deeper.h").write_text("#define NUMBER 1\n")
    source.write_text('#include "number.h"\nint answer(void) { return NUMBER; }\n')
    assert load_kernel(source).answer() == 1
    source.with_name("deeper.h").write_text("#define NUMBER 2\n")
    forget()
    assert load_kernel(source).answer() == 2
    header.unlink()
    forget()
    assert "number.h" in why_not(source)


def test_a_cache_or_kernel_of_someone_else_is_not_used(cache: Path, source: Path, monkeypatch) -> None:
    load_kernel(source)
    (kept,) = cache.iterdir()
    assert compiled._only_mine(kept)
    link = cache / "link.so"
    link.symlink_to(kept)
    assert not compiled._only_mine(link)
    link.unlink()
    forget()
    built = count_builds(monkeypatch)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert load_kernel(source).answer() == 42
    assert not built[0].startswith(str(cache))


def test_a_damaged_kernel_is_built_anew(cache: Path, source: Path) -> None:
    load_kernel(source)
    (kept,) = cache.iterdir()
    kept.unlink()  # not truncated in place: this process has it mapped
    kept.write_bytes(b"half of it")
    kept.chmod(0o700)
    forget()
    assert load_kernel(source).answer() == 42


def test_processes_that_build_at_once_all_succeed(cache: Path, source: Path) -> None:
    text = (
        "from pathlib import Path; from mechanisms._base.compiled import load_kernel; "
        f"print(load_kernel(Path({str(source)!r})).answer())"
    )

    def run(_: int) -> str:
        return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.strip()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == ["42"] * 4
    assert len(list(cache.iterdir())) == 1
