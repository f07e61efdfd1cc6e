"""Shape checks: every shape in a signature of the package is checked on every test, through jaxtyping and beartype.

Tests marked `user_input` (they feed wrong shapes on purpose) and `unhooked` (torch.compile with fullgraph) run in a
second process without the hook: `MECHANISMS_HOOK=0`. `make test` runs both.
"""

import os

import pytest

HOOKED = os.environ.get("MECHANISMS_HOOK", "1") == "1"

if HOOKED:
    from jaxtyping import install_import_hook

    install_import_hook("mechanisms", "beartype.beartype")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that belong to this process."""
    free = {"user_input", "unhooked"}
    keep, leave = [], []
    for item in items:
        belongs = (not free & {mark.name for mark in item.iter_markers()}) == HOOKED
        (keep if belongs else leave).append(item)
    items[:] = keep
    if leave:
        config.hook.pytest_deselected(items=leave)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Results and timings of the tests do not depend on how many cores there are."""
    import torch

    torch.set_num_threads(1)


# --- continuous integration: what is skipped is a failure -----------------------------------------------------------

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note skipped tests that are not marked `gpu`."""
    if report.skipped and "gpu" not in report.keywords and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note modules that are skipped as a whole."""
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With MECHANISMS_NO_SKIPS=1 a skipped test fails the run."""
    if os.environ.get("MECHANISMS_NO_SKIPS") == "1" and _skipped and session.exitstatus == 0:
        print(f"\nskipped although nothing but `gpu` may be: {', '.join(sorted(set(_skipped)))}")
        session.exitstatus = 1
