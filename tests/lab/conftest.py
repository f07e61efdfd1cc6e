"""A third party's package with a paper of its own, installed as its users would install it."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the toy package."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, TOY]
    subprocess.run(command, check=True, capture_output=True)
    return site


@pytest.fixture
def toy(toy_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy paper is installed, caches are private to the test; gives an empty folder of results."""
    monkeypatch.syspath_prepend(str(toy_site))
    importlib.invalidate_caches()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(toy_site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return tmp_path / "results"


def mech(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `mech` in a process of its own."""
    command = [sys.executable, "-m", "mechanisms.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
