"""Parts and claims from two dozen papers on learning that generalises.

Borrow a part by importing its file (`from mechanisms.robust.xrm import discover_environments`), or re-check a paper's
claims with the laboratory (`mech run xrm`, or `mechanisms.lab.run("xrm")`). Importing this package imports neither.

>>> import mechanisms
>>> mechanisms.__version__
'0.1.0'
"""

__version__ = "0.1.0"
