"""Modular recurrent networks, RIMs and BRIMs: every name, under the name of the paper.

Recurrent independent mechanisms (RIMs) split a recurrent layer into modules that compete for the input: at each step
the few that find most in it are updated, the others keep their state to the bit, and all talk through a narrow
attention. What is not touched is not forgotten, so such networks go on where the test is longer, larger or noisier than
the training. Bidirectional ones (BRIMs) have layers that also read what the layer above was one step before.

- `RIMCell`, `BRIMCell`: cells for `scan`, `Recurrent`, agents and streams; `RIM`, `BRIM`: in place of `torch.nn.LSTM`.
- `RIMState`, `RIMInfo`: what they carry, and what they record for pictures (`need_info=True`).
- `GroupLinear`, `GroupLSTMCell`, `GroupGRUCell`, `InputAttention`, `CommunicationAttention`: the parts.
- `activation_vector`, `specialisation`, `held_fraction`: which modules are at work, in numbers.
- `load_reference_state_dict`: weights of the authors' code.
- `parameter_groups`: which parameters are dynamics and which are attention.

Goyal et al., ICLR 2021, arXiv 1909.10893; Mittal et al., ICML 2020, arXiv 2006.16981. The equations stand in
`rim_cell`, `brim_cell` and `module_attention`.
"""

from mechanisms.recurrent.brim_cell import BRIMCell
from mechanisms.recurrent.grouped import GroupGRUCell, GroupLinear, GroupLSTMCell
from mechanisms.recurrent.module_activity import activation_vector, held_fraction, specialisation
from mechanisms.recurrent.module_attention import CommunicationAttention, InputAttention
from mechanisms.recurrent.parameter_groups import parameter_groups
from mechanisms.recurrent.rim_cell import RIMCell
from mechanisms.recurrent.rim_layers import BRIM, RIM
from mechanisms.recurrent.rim_reference import load_reference_state_dict
from mechanisms.recurrent.rim_states import RIMInfo, RIMState

__all__ = [
    "BRIM",
    "RIM",
    "BRIMCell",
    "CommunicationAttention",
    "GroupGRUCell",
    "GroupLSTMCell",
    "GroupLinear",
    "InputAttention",
    "RIMCell",
    "RIMInfo",
    "RIMState",
    "activation_vector",
    "held_fraction",
    "load_reference_state_dict",
    "parameter_groups",
    "specialisation",
]
