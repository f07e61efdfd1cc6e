"""What `import mechanisms.robust` offers."""

import subprocess
import sys

import pytest

import mechanisms.robust


def test_every_public_name_is_the_one_in_its_own_file() -> None:
    for name in mechanisms.robust.__all__:
        assert getattr(mechanisms.robust, name).__name__ == name


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'xgboost'"):
        _ = mechanisms.robust.xgboost


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, mechanisms.robust; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
