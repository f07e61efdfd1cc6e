"""Agents in a file and back, without pickle: numbers as safetensors, settings as JSON.

stable-baselines3's own `save` pickles what it cannot write as JSON, classes and factories among it. Here an agent of
`RecurrentPPO` with a `RecurrentPolicy` is written as parameters, optimiser (with the phase of `FastSlow`), the present
states and observations, random streams and settings; so that it goes on as if it had not stopped, if its environment
does.
"""

import importlib
import io
import json
import math
import os
import zipfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechanisms._base.extras import require
from mechanisms._base.files import whole_file

require("sb3_contrib", "rl")  # first, for its clear message

import torch  # noqa: E402
from safetensors.numpy import load as load_arrays  # noqa: E402
from safetensors.numpy import save as save_arrays  # noqa: E402
from safetensors.torch import load as load_tensors  # noqa: E402
from safetensors.torch import save as save_tensors  # noqa: E402
from sb3_contrib import RecurrentPPO  # noqa: E402
from sb3_contrib.common.recurrent.type_aliases import RNNStates  # noqa: E402

from mechanisms.recurrent.agent_policy import RecurrentPolicy  # noqa: E402
from mechanisms.recurrent.meta_rims import FastSlow  # noqa: E402

FORMAT = 1
PARTS = ("agent.json", "policy.safetensors", "run.safetensors", "optimizer.pt")
ARGUMENTS = (
    "learning_rate",
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "clip_range",
    "clip_range_vf",
    "normalize_advantage",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "use_sde",
    "sde_sample_freq",
    "target_kl",
    "verbose",
    "seed",
)
COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_total_timesteps",
    "_episode_num",
    "_num_timesteps_at_start",
    "_current_progress_remaining",
)


def save_agent(model: RecurrentPPO, path: str | os.PathLike[str]) -> None:
    """Write an agent into one file.

    Settings that cannot be written (factories, schedules, classes) are left out, and have to be given to `load_agent`
    again.

    Args:
        model: an agent with a `RecurrentPolicy`, between two calls of `learn`.
        path: the file; what is there is replaced, at once and only by a whole one.

    Raises:
        TypeError: the policy is another one.

    >>> import tempfile
    >>> cell = {"name": "GRUCell", "hidden_size": 8}
    >>> model = RecurrentPPO(RecurrentPolicy, "CartPole-v1", policy_kwargs={"cell": cell}, device="cpu")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_agent(model, f"{folder}/agent.zip")
    ...     again = load_agent(f"{folder}/agent.zip", "CartPole-v1", device="cpu")
    >>> again.policy_kwargs["cell"]
    {'name': 'GRUCell', 'hidden_size': 8}
    """
    if not isinstance(model, RecurrentPPO) or not isinstance(model.policy, RecurrentPolicy):
        raise TypeError(f"{type(model).__name__} is no agent of RecurrentPPO with a RecurrentPolicy")
    settings, missing = _written({name: _plain(getattr(model, name)) for name in ARGUMENTS})
    policy, left_out = _written(model.policy_kwargs)
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - sb3 shuffles with numpy's global stream
    run = {
        "random.torch": torch.get_rng_state().numpy(),
        "random.numpy": np.asarray(numpy_state[1]),
        **_named_observation(model._last_obs),
        **({} if model._last_episode_starts is None else {"starts": np.asarray(model._last_episode_starts, np.bool_)}),
        **{f"state.{place}": leaf.cpu().numpy() for place, leaf in enumerate(_states(model._last_lstm_states))},
    }
    if model.device.type == "cuda":
        run["random.cuda"] = torch.cuda.get_rng_state(model.device).numpy()
    head = {
        "format": FORMAT,
        "arguments": settings,
        "policy_kwargs": policy,
        "missing": missing + left_out,
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "numpy": [int(numpy_state[2]), int(numpy_state[3]), float(numpy_state[4])],
        "episodes": [{name: float(value) for name, value in one.items()} for one in model.ep_info_buffer or []],
        "successes": [float(one) for one in model.ep_success_buffer or []],
    }
    optimizer = io.BytesIO()
    torch.save(model.policy.optimizer.state_dict(), optimizer)
    parts = {
        "agent.json": json.dumps(head, indent=1).encode(),
        "policy.safetensors": save_tensors(
            {name: one.detach().contiguous() for name, one in _own(model.policy).items()}
        ),
        "run.safetensors": save_arrays({name: np.ascontiguousarray(one) for name, one in run.items()}),
        "optimizer.pt": optimizer.getvalue(),
    }
    with whole_file(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def load_agent(
    path: str | os.PathLike[str],
    env: Any,
    *,
    continues: bool = True,
    policy: type[RecurrentPolicy] = RecurrentPolicy,
    policy_kwargs: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    **arguments: Any,
) -> RecurrentPPO:
    """An agent that `save_agent` has written.

    Go on with `model.learn(..., reset_num_timesteps=False)`: sb3 resets the environment otherwise. The random streams
    of torch and NumPy, which sb3 draws from, are set to where they were.

    Args:
        path: the file.
        env: its environment, with as many environments in it as before.
        continues: whether `env` stands where it stood when the agent was saved (restored by its own means, or the same
            object); then the agent goes on in the middle of its episodes. Otherwise its next rollout starts new ones.
        policy: the class of the policy.
        policy_kwargs: what is to be added to the policy's settings, or replaced; what could not be written has to be.
        device: where to.
        arguments: arguments of `RecurrentPPO` that are to be added or replaced.

    Raises:
        ValueError: it is no such file, settings are missing, or the environment is of another kind.

    >>> import tempfile
    >>> cell = {"name": "GRUCell", "hidden_size": 8}
    >>> model = RecurrentPPO(RecurrentPolicy, "CartPole-v1", policy_kwargs={"cell": cell}, device="cpu")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_agent(model, f"{folder}/agent.zip")
    ...     again = load_agent(f"{folder}/agent.zip", "CartPole-v1", learning_rate=1e-4, device="cpu")
    >>> again.learning_rate
    0.0001
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in PARTS}
        head = json.loads(parts["agent.json"])
        if head["format"] != FORMAT:
            raise ValueError(f"{path} has format {head['format']}; this version reads {FORMAT}")
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} was not written by save_agent") from error
    settings = {**_from_json(head["arguments"]), **arguments}
    kwargs = {**_from_json(head["policy_kwargs"]), **(policy_kwargs or {})}
    missing = [name for name in head["missing"] if name not in settings and name not in kwargs]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} could not be written with the agent (a factory, a schedule or a class); give it to "
            "load_agent again, in policy_kwargs or as an argument"
        )
    model = RecurrentPPO(policy, env, policy_kwargs=kwargs, device=device, **settings)
    _fill(model.policy, load_tensors(parts["policy.safetensors"]))
    optimizer = torch.load(io.BytesIO(parts["optimizer.pt"]), map_location=model.device, weights_only=True)
    if ("phase" in optimizer) != isinstance(model.policy.optimizer, FastSlow):
        kinds = ("FastSlow's", "another one's") if "phase" in optimizer else ("another one's", "FastSlow's")
        raise ValueError(
            f"the saved optimiser is {kinds[0]}, the policy's here {kinds[1]}; load the agent with the fast_slow that "
            "it was made with"
        )
    model.policy.optimizer.load_state_dict(optimizer)
    for name, value in head["counters"].items():
        setattr(model, name, value)
    run = load_arrays(parts["run.safetensors"])
    if continues:
        _continue(model, run)
    _restore_statistics(model, head)
    torch.set_rng_state(torch.from_numpy(run["random.torch"].copy()))
    if "random.cuda" in run and model.device.type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(run["random.cuda"].copy()), model.device)
    place, has, cached = head["numpy"]
    np.random.set_state(("MT19937", run["random.numpy"], place, has, cached))  # noqa: NPY002
    return model


# --- what is written --------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """sb3 wraps what is constant as a schedule."""
    constant = getattr(getattr(value, "value_schedule", None), "val", None)
    return value if constant is None else constant


def _written(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings as JSON takes them, and the names of those that it does not."""
    written, missing = {}, []
    for name, value in given.items():
        try:
            written[name] = _to_json(value)
        except TypeError:
            missing.append(name)
    return written, missing


def _to_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_to_json(part) for part in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _to_json(part) for name, part in value.items()}
    package = importlib.import_module("mechanisms.recurrent")
    name = getattr(value, "__name__", "")
    if name in package._HOMES and getattr(package, name) is value:
        return {"class": name}
    raise TypeError(f"{value!r} cannot be written as JSON")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"float"}:
        return float(value["float"])
    package = importlib.import_module("mechanisms.recurrent")
    if value.keys() == {"class"} and value["class"] in package._HOMES:
        return getattr(package, value["class"])
    return {name: _from_json(part) for name, part in value.items()}


def _own(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, each under one name: sb3's policies hold their encoder under three."""
    seen: set[int] = set()
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


@torch.no_grad()
def _fill(policy: torch.nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
    own = _own(policy)
    differ = sorted(own.keys() ^ saved.keys()) or [name for name in own if own[name].shape != saved[name].shape]
    if differ:
        raise ValueError(
            f"the saved policy does not fit this one, at {', '.join(differ)}; load it with the settings that it was "
            "made with"
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _named_observation(observation: Any) -> dict[str, np.ndarray]:
    if observation is None:
        return {}
    if isinstance(observation, Mapping):
        return {f"observation.{name}": np.asarray(part) for name, part in observation.items()}
    return {"observation": np.asarray(observation)}


def _states(states: Any) -> list[torch.Tensor]:
    return [leaf for pair in states for leaf in pair]


def _continue(model: RecurrentPPO, run: Mapping[str, np.ndarray]) -> None:
    """The observations and states in the middle of the episodes."""
    parts = {name: one.copy() for name, one in run.items() if name.split(".")[0] == "observation"}
    leaves = [torch.from_numpy(run[f"state.{place}"].copy()).to(model.device) for place in range(4)]
    if [one.shape for one in leaves] != [one.shape for one in _states(model._last_lstm_states)]:
        raise ValueError(
            f"the saved states are those of {leaves[0].shape[1]} environments; the environment here has {model.n_envs}"
        )
    if not parts:
        return  # it was saved before its first rollout
    whole = {name.partition(".")[2]: part for name, part in parts.items()}
    model._last_obs = whole.get("", whole)  # pyrefly: ignore
    model._last_episode_starts = run["starts"].copy()
    model._last_lstm_states = RNNStates((leaves[0], leaves[1]), (leaves[2], leaves[3]))


def _restore_statistics(model: RecurrentPPO, head: Mapping[str, Any]) -> None:
    """The last episodes' returns and successes, which sb3 shows."""
    size = model._stats_window_size
    model.ep_info_buffer = deque(head["episodes"], maxlen=size)
    model.ep_success_buffer = deque(head["successes"], maxlen=size)
