"""placeholder"""

from mechanisms.lab import Paper

paper = Paper(slug="xrm", title="t", authors="a", year=2024, topic="robust", summary="s", experiments=[])
