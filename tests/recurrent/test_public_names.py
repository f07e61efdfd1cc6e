"""What `import mechanisms.recurrent` offers."""

import subprocess
import sys

import pytest

import mechanisms.recurrent


def test_every_public_name_is_the_one_in_its_own_file() -> None:
    for name in mechanisms.recurrent.__all__:
        assert getattr(mechanisms.recurrent, name).__name__ == name


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = mechanisms.recurrent.nothing


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, mechanisms.recurrent; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
