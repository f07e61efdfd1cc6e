"""Networks with a state: one protocol for cells, one scan over time, and the methods that stand on them.

The names below are loaded when they are first used, so that `import mechanisms.recurrent` stays instant. The functions
`scan` and `zoneout` are not among them: their files have the same names, so they are imported from
`mechanisms.recurrent.scan` and `mechanisms.recurrent.zoneout`.
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.recurrent.agent_callback import FastSlowCallback as FastSlowCallback
    from mechanisms.recurrent.agent_core import SB3Core as SB3Core
    from mechanisms.recurrent.agent_core import make_cell as make_cell
    from mechanisms.recurrent.agent_encoders import BabyAIEncoder as BabyAIEncoder
    from mechanisms.recurrent.agent_encoders import MlpEncoder as MlpEncoder
    from mechanisms.recurrent.agent_env import SB3VecEnv as SB3VecEnv
    from mechanisms.recurrent.agent_policy import RecurrentPolicy as RecurrentPolicy
    from mechanisms.recurrent.agent_policy import unit_rows_ as unit_rows_
    from mechanisms.recurrent.agent_saving import load_agent as load_agent
    from mechanisms.recurrent.agent_saving import save_agent as save_agent
    from mechanisms.recurrent.agents import pack_state as pack_state
    from mechanisms.recurrent.agents import unpack_state as unpack_state
    from mechanisms.recurrent.analysis import gradient_flow as gradient_flow
    from mechanisms.recurrent.backtracking import SABInfo as SABInfo
    from mechanisms.recurrent.backtracking import SABState as SABState
    from mechanisms.recurrent.backtracking import SparseAttentiveBacktracking as SparseAttentiveBacktracking
    from mechanisms.recurrent.backtracking_layers import SABLSTM as SABLSTM
    from mechanisms.recurrent.batch_norm import BatchNormLSTMCell as BatchNormLSTMCell
    from mechanisms.recurrent.batch_norm import BatchNormLSTMState as BatchNormLSTMState
    from mechanisms.recurrent.batch_norm import BatchStatistics as BatchStatistics
    from mechanisms.recurrent.brim_cell import BRIMCell as BRIMCell
    from mechanisms.recurrent.cells import GRUCell as GRUCell
    from mechanisms.recurrent.cells import GRUState as GRUState
    from mechanisms.recurrent.cells import LSTMCell as LSTMCell
    from mechanisms.recurrent.cells import LSTMState as LSTMState
    from mechanisms.recurrent.cells import ModReLU as ModReLU
    from mechanisms.recurrent.cells import RNNCell as RNNCell
    from mechanisms.recurrent.cells import RNNState as RNNState
    from mechanisms.recurrent.cells import from_torch as from_torch
    from mechanisms.recurrent.checks import CellContractError as CellContractError
    from mechanisms.recurrent.checks import check_cell as check_cell
    from mechanisms.recurrent.conditional_norm import ConditionalNormLSTMCell as ConditionalNormLSTMCell
    from mechanisms.recurrent.densities import Likelihood as Likelihood
    from mechanisms.recurrent.densities import gaussian_kl as gaussian_kl
    from mechanisms.recurrent.densities import gaussian_nll as gaussian_nll
    from mechanisms.recurrent.fast_slow_sets import check_split as check_split
    from mechanisms.recurrent.fast_slow_sets import split_fast_slow as split_fast_slow
    from mechanisms.recurrent.grouped import GroupGRUCell as GroupGRUCell
    from mechanisms.recurrent.grouped import GroupLinear as GroupLinear
    from mechanisms.recurrent.grouped import GroupLSTMCell as GroupLSTMCell
    from mechanisms.recurrent.meta_gradients import check_twice_differentiable as check_twice_differentiable
    from mechanisms.recurrent.meta_gradients import maml_gradient as maml_gradient
    from mechanisms.recurrent.meta_gradients import reptile_step as reptile_step
    from mechanisms.recurrent.meta_rims import FastSlow as FastSlow
    from mechanisms.recurrent.module import Recurrent as Recurrent
    from mechanisms.recurrent.module_activity import activation_vector as activation_vector
    from mechanisms.recurrent.module_activity import held_fraction as held_fraction
    from mechanisms.recurrent.module_activity import specialisation as specialisation
    from mechanisms.recurrent.module_attention import CommunicationAttention as CommunicationAttention
    from mechanisms.recurrent.module_attention import InputAttention as InputAttention
    from mechanisms.recurrent.protocol import Cell as Cell
    from mechanisms.recurrent.protocol import Noise as Noise
    from mechanisms.recurrent.relevancy import RelevancyInfo as RelevancyInfo
    from mechanisms.recurrent.relevancy import RelevancyScreening as RelevancyScreening
    from mechanisms.recurrent.relevancy import RelevancyState as RelevancyState
    from mechanisms.recurrent.relevancy_layers import RelLSTM as RelLSTM
    from mechanisms.recurrent.relevancy_layers import RelRNN as RelRNN
    from mechanisms.recurrent.rim_cell import RIMCell as RIMCell
    from mechanisms.recurrent.rim_layers import BRIM as BRIM
    from mechanisms.recurrent.rim_layers import RIM as RIM
    from mechanisms.recurrent.rim_reference import load_reference_state_dict as load_reference_state_dict
    from mechanisms.recurrent.rim_states import RIMInfo as RIMInfo
    from mechanisms.recurrent.rim_states import RIMState as RIMState
    from mechanisms.recurrent.rotations import cayley_init_ as cayley_init_
    from mechanisms.recurrent.rotations import henaff_init_ as henaff_init_
    from mechanisms.recurrent.scan import ScanResult as ScanResult
    from mechanisms.recurrent.scan import scan_chunks as scan_chunks
    from mechanisms.recurrent.schedules import LinearSchedule as LinearSchedule
    from mechanisms.recurrent.self_attentive import SelfAttentiveCell as SelfAttentiveCell
    from mechanisms.recurrent.self_attentive import SelfAttentiveInfo as SelfAttentiveInfo
    from mechanisms.recurrent.self_attentive import SelfAttentiveState as SelfAttentiveState
    from mechanisms.recurrent.sparsifier import sparse_attention as sparse_attention
    from mechanisms.recurrent.states import detach as detach
    from mechanisms.recurrent.states import expand as expand
    from mechanisms.recurrent.states import freeze as freeze
    from mechanisms.recurrent.states import from_torch_state as from_torch_state
    from mechanisms.recurrent.states import reset as reset
    from mechanisms.recurrent.states import select as select
    from mechanisms.recurrent.states import state_from_dict as state_from_dict
    from mechanisms.recurrent.states import state_to_dict as state_to_dict
    from mechanisms.recurrent.states import to_torch_state as to_torch_state
    from mechanisms.recurrent.stochastic import StochasticCell as StochasticCell
    from mechanisms.recurrent.stochastic import StochasticOutput as StochasticOutput
    from mechanisms.recurrent.tasks import RecallScores as RecallScores
    from mechanisms.recurrent.tasks import adding_task as adding_task
    from mechanisms.recurrent.tasks import copying_task as copying_task
    from mechanisms.recurrent.tasks import denoise_task as denoise_task
    from mechanisms.recurrent.tasks import pixel_permutation as pixel_permutation
    from mechanisms.recurrent.tasks import recall_scores as recall_scores
    from mechanisms.recurrent.tasks import sequential_images as sequential_images
    from mechanisms.recurrent.z_forcing import ZForcing as ZForcing
    from mechanisms.recurrent.z_forcing import ZForcingOutput as ZForcingOutput
    from mechanisms.recurrent.zoneout import StaticState as StaticState
    from mechanisms.recurrent.zoneout import Zoneout as Zoneout
    from mechanisms.recurrent.zoneout_baselines import RecurrentDropoutLSTMCell as RecurrentDropoutLSTMCell
    from mechanisms.recurrent.zoneout_baselines import norm_stabilizer as norm_stabilizer
    from mechanisms.recurrent.zoneout_baselines import weight_noise as weight_noise
    from mechanisms.recurrent.zoneout_layers import ZoneoutGRU as ZoneoutGRU
    from mechanisms.recurrent.zoneout_layers import ZoneoutGRUCell as ZoneoutGRUCell
    from mechanisms.recurrent.zoneout_layers import ZoneoutLSTM as ZoneoutLSTM
    from mechanisms.recurrent.zoneout_layers import ZoneoutLSTMCell as ZoneoutLSTMCell
    from mechanisms.recurrent.zoneout_layers import ZoneoutRNN as ZoneoutRNN
    from mechanisms.recurrent.zoneout_layers import ZoneoutRNNCell as ZoneoutRNNCell

_HOMES: dict[str, str] = {
    "BRIM": "rim_layers",
    "BRIMCell": "brim_cell",
    "BabyAIEncoder": "agent_encoders",
    "BatchNormLSTMCell": "batch_norm",
    "BatchNormLSTMState": "batch_norm",
    "BatchStatistics": "batch_norm",
    "Cell": "protocol",
    "CellContractError": "checks",
    "CommunicationAttention": "module_attention",
    "ConditionalNormLSTMCell": "conditional_norm",
    "FastSlow": "meta_rims",
    "FastSlowCallback": "agent_callback",
    "GRUCell": "cells",
    "GRUState": "cells",
    "GroupGRUCell": "grouped",
    "GroupLSTMCell": "grouped",
    "GroupLinear": "grouped",
    "InputAttention": "module_attention",
    "LSTMCell": "cells",
    "LSTMState": "cells",
    "Likelihood": "densities",
    "LinearSchedule": "schedules",
    "MlpEncoder": "agent_encoders",
    "ModReLU": "cells",
    "Noise": "protocol",
    "RIM": "rim_layers",
    "RIMCell": "rim_cell",
    "RIMInfo": "rim_states",
    "RIMState": "rim_states",
    "RNNCell": "cells",
    "RNNState": "cells",
    "RecallScores": "tasks",
    "Recurrent": "module",
    "RecurrentDropoutLSTMCell": "zoneout_baselines",
    "RecurrentPolicy": "agent_policy",
    "RelLSTM": "relevancy_layers",
    "RelRNN": "relevancy_layers",
    "RelevancyInfo": "relevancy",
    "RelevancyScreening": "relevancy",
    "RelevancyState": "relevancy",
    "SABInfo": "backtracking",
    "SABLSTM": "backtracking_layers",
    "SABState": "backtracking",
    "SB3Core": "agent_core",
    "SB3VecEnv": "agent_env",
    "ScanResult": "scan",
    "SelfAttentiveCell": "self_attentive",
    "SelfAttentiveInfo": "self_attentive",
    "SelfAttentiveState": "self_attentive",
    "SparseAttentiveBacktracking": "backtracking",
    "StaticState": "zoneout",
    "StochasticCell": "stochastic",
    "StochasticOutput": "stochastic",
    "ZForcing": "z_forcing",
    "ZForcingOutput": "z_forcing",
    "Zoneout": "zoneout",
    "ZoneoutGRU": "zoneout_layers",
    "ZoneoutGRUCell": "zoneout_layers",
    "ZoneoutLSTM": "zoneout_layers",
    "ZoneoutLSTMCell": "zoneout_layers",
    "ZoneoutRNN": "zoneout_layers",
    "ZoneoutRNNCell": "zoneout_layers",
    "activation_vector": "module_activity",
    "adding_task": "tasks",
    "cayley_init_": "rotations",
    "check_cell": "checks",
    "check_split": "fast_slow_sets",
    "check_twice_differentiable": "meta_gradients",
    "copying_task": "tasks",
    "denoise_task": "tasks",
    "detach": "states",
    "expand": "states",
    "freeze": "states",
    "from_torch": "cells",
    "from_torch_state": "states",
    "gaussian_kl": "densities",
    "gaussian_nll": "densities",
    "gradient_flow": "analysis",
    "held_fraction": "module_activity",
    "henaff_init_": "rotations",
    "load_agent": "agent_saving",
    "load_reference_state_dict": "rim_reference",
    "make_cell": "agent_core",
    "maml_gradient": "meta_gradients",
    "norm_stabilizer": "zoneout_baselines",
    "pack_state": "agents",
    "pixel_permutation": "tasks",
    "recall_scores": "tasks",
    "reptile_step": "meta_gradients",
    "reset": "states",
    "save_agent": "agent_saving",
    "scan_chunks": "scan",
    "select": "states",
    "sequential_images": "tasks",
    "sparse_attention": "sparsifier",
    "specialisation": "module_activity",
    "split_fast_slow": "fast_slow_sets",
    "state_from_dict": "states",
    "state_to_dict": "states",
    "to_torch_state": "states",
    "unit_rows_": "agent_policy",
    "unpack_state": "agents",
    "weight_noise": "zoneout_baselines",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
