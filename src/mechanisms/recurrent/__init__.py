"""Networks with a state: one protocol for cells, one scan over time, and the methods that stand on them.

The names below are loaded when they are first used, so that `import mechanisms.recurrent` stays instant. The function
`scan` is not among them: its file has the same name, so it is imported from `mechanisms.recurrent.scan`.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.recurrent.cells import GRUCell as GRUCell
    from mechanisms.recurrent.cells import GRUState as GRUState
    from mechanisms.recurrent.cells import LSTMCell as LSTMCell
    from mechanisms.recurrent.cells import LSTMState as LSTMState
    from mechanisms.recurrent.cells import ModReLU as ModReLU
    from mechanisms.recurrent.cells import RNNCell as RNNCell
    from mechanisms.recurrent.cells import RNNState as RNNState
    from mechanisms.recurrent.cells import from_torch as from_torch
    from mechanisms.recurrent.module import Recurrent as Recurrent
    from mechanisms.recurrent.protocol import Cell as Cell
    from mechanisms.recurrent.protocol import Noise as Noise
    from mechanisms.recurrent.scan import ScanResult as ScanResult
    from mechanisms.recurrent.scan import scan_chunks as scan_chunks

_HOMES: dict[str, str] = {
    "Cell": "protocol",
    "GRUCell": "cells",
    "GRUState": "cells",
    "LSTMCell": "cells",
    "LSTMState": "cells",
    "ModReLU": "cells",
    "Noise": "protocol",
    "RNNCell": "cells",
    "RNNState": "cells",
    "Recurrent": "module",
    "ScanResult": "scan",
    "from_torch": "cells",
    "scan_chunks": "scan",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
