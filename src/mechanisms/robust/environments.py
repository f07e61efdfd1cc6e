"""Discovered environments: the annotation of every example, and the twins that annotate new ones."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mechanisms._base.device import resolve_device
from mechanisms.robust._networks import call_network, check_factory, check_logits, floating_dtype, to_network
from mechanisms.robust._rows import as_rows, check_labels
from mechanisms.robust._settings import Setting
from mechanisms.robust.twins import cross_mistakes

_FORMAT = "mechanisms.environments.1"


@dataclass(frozen=True)
class Trial:
    """One combination of a search: its setting, its final flip rate, its environments and whether they are degenerate.

    >>> Trial(Setting(), flip_rate=0.1, degenerate=True, train=torch.tensor([0, 0])).score
    0.0
    """

    setting: Setting
    flip_rate: float
    degenerate: bool
    train: Int64[Tensor, " examples"] = field(compare=False, repr=False)

    @property
    def score(self) -> float:
        """What the search maximises: the flip rate, 0 when degenerate."""
        return 0.0 if self.degenerate else self.flip_rate


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Environments after a given number of steps.

    >>> Snapshot(100, 0.1, torch.tensor([0, 1]), None).step
    100
    """

    step: int
    flip_rate: float
    train: Int64[Tensor, " examples"]
    validation: Int64[Tensor, " validation"] | None


@dataclass(frozen=True, eq=False)
class Twins:
    """Trained twin networks with the standardisation of their inputs.

    Attributes:
        a, b: the networks; they live on the CPU.
        mean, scale: (features,) taken off the inputs and divided out, or None.

    >>> twins = Twins(nn.Linear(2, 2), nn.Linear(2, 2), torch.zeros(2), torch.ones(2))
    >>> [tuple(logits.shape) for logits in twins.predict([torch.zeros(5, 2)])]
    [(5, 2), (5, 2)]
    """

    a: nn.Module
    b: nn.Module
    mean: Float[Tensor, " features"] | None = None
    scale: Float[Tensor, " features"] | None = None

    def prepare(self, inputs: Any) -> Any:
        """Inputs of the networks from rows of the user's data, centred before they are rounded to their dtype."""
        if self.mean is None or self.scale is None:
            return inputs
        if inputs.dim() != 2 or inputs.shape[1] != len(self.mean):
            raise ValueError(f"X has shape {tuple(inputs.shape)}, but the twins expect {len(self.mean)} features")
        # Large values that differ little, such as times in seconds, would be equal in single precision.
        wide = inputs.to(torch.promote_types(self.mean.dtype, inputs.dtype))
        centred = wide.sub(self.mean.to(wide.device)).div_(self.scale.to(wide.device))
        return centred.to(floating_dtype(self.a) or centred.dtype)

    def predict(self, batches: Iterable[Any], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """Logits (n, K) of both networks in evaluation mode, on the CPU, for batches in order."""
        chosen = resolve_device(device)
        a, b = self.a.to(chosen).eval(), self.b.to(chosen).eval()
        outputs = []
        with torch.no_grad():
            for batch in batches:
                # Prepared where the data are: not every device knows doubles.
                inputs = to_network(self.prepare(batch), a, chosen)
                outputs.append((call_network(a, inputs).cpu(), call_network(b, inputs).cpu()))
        self.a.cpu(), self.b.cpu()
        one, other = zip(*outputs, strict=True)
        return torch.cat(one), torch.cat(other)


@dataclass(frozen=True, eq=False)
class Environments:
    """What `discover_environments` found. All tensors are on the CPU.

    Attributes:
        train: (N,) environment 0 or 1 of each training example, in data-set order; 1 where a twin errs.
        validation: (V,) the same for the validation data, or None.
        flip_rate: share of training labels flipped at the end.
        flip_history: (step, flip rate) pairs over training.
        degenerate: whether some class lacks one of the environments in training or validation data.
        held_out_probabilities: (N, K) softmax of the twin that was not trained on the example.
        twin_of: (N,) which twin was trained on each example, 0 for a and 1 for b.
        trials: every combination that was tried.
        best_setting: the combination behind these environments.
        classes: (K,) the labels in the order of class indices.
        labels, validation_labels: class indices of the examples.
        snapshots: environments at the steps asked for.
        twins: the networks, which annotate new data.

    >>> from mechanisms.robust.xrm import discover_environments
    >>> x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    >>> found = discover_environments(x, y, search=2, steps=50, random_state=0, device="cpu")
    >>> found.train.shape, found.groups().max() <= 3, len(found.trials)
    (torch.Size([40]), tensor(True), 2)
    """

    train: Int64[Tensor, " examples"]
    validation: Int64[Tensor, " validation"] | None
    flip_rate: float
    flip_history: tuple[tuple[int, float], ...]
    degenerate: bool
    held_out_probabilities: Float[Tensor, "examples classes"]
    twin_of: Int64[Tensor, " examples"]
    trials: tuple[Trial, ...]
    best_setting: Setting
    classes: np.ndarray
    labels: Int64[Tensor, " examples"]
    validation_labels: Int64[Tensor, " validation"] | None
    snapshots: tuple[Snapshot, ...]
    twins: Twins

    def groups(self, y: Any = None, *, validation: bool = False) -> Int64[Tensor, " examples"]:
        """Groups 2 y + e of the training or validation data, as group-robust learners take them.

        Args:
            y: the labels as given to the discovery; default the remembered ones.
            validation: groups of the validation data instead.

        Raises:
            ValueError: no validation data, or labels that do not fit.
        """
        found, labels = (self.validation, self.validation_labels) if validation else (self.train, self.labels)
        if found is None or labels is None:
            raise ValueError("there are no validation environments: none were given to discover_environments")
        if y is not None:
            labels = self.encode(y)
        if len(labels) != len(found):
            raise ValueError(f"got {len(labels)} labels for {len(found)} annotated examples")
        return 2 * labels + found

    def counts(self, *, validation: bool = False) -> Int64[Tensor, "classes 2"]:
        """Number of examples by class and environment."""
        groups = self.groups(validation=validation)
        return groups.bincount(minlength=2 * len(self.classes)).view(-1, 2)

    def summary(self) -> str:
        """A table of class by environment counts, to print."""
        splits = ["train"] if self.validation is None else ["train", "validation"]
        width = max(5, *(len(str(label)) for label in self.classes))
        head = "  ".join(f"{split + ' e=' + e:>16}" for split in splits for e in "01")
        lines = [f"{'class':<{width}}  {head}"]
        tables = [self.counts(validation=split == "validation") for split in splits]
        for index, label in enumerate(self.classes):
            cells = "  ".join(f"{count:>16}" for table in tables for count in table[index].tolist())
            lines.append(f"{label!s:<{width}}  {cells}")
        lines.append(f"flip rate {self.flip_rate:.4f}" + (", degenerate" if self.degenerate else ""))
        return "\n".join(lines)

    def annotate(
        self, data: Any, y: Any = None, *, device: str | torch.device = "auto", num_workers: int = 0
    ) -> Int64[Tensor, " examples"]:
        """Environments of new labelled data.

        Args:
            data: array, DataFrame, tensor or map-style data set, as given to the discovery.
            y: labels of the same kind; None when a data set yields them.
            device: where to compute.
            num_workers: worker processes for a data set.

        Raises:
            ValueError: labels that the discovery has not seen, inputs of another shape, or NaN.
        """
        standardized = self.twins.mean is not None
        rows, labels = as_rows(data, y, to_float=standardized, exact=standardized, num_workers=num_workers)
        one, other = self.twins.predict(rows.in_order(), device)
        check_logits(one, other)
        return cross_mistakes(one, other, self.encode(labels))

    def encode(self, y: Any) -> Int64[Tensor, " examples"]:
        """Class indices of labels.

        Raises:
            ValueError: labels that the discovery has not seen.
        """
        return encode_labels(y, self.classes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file (no pickle), replacing it only when complete.

        Raises:
            TypeError: class labels other than integers, floats, booleans and strings.
        """
        if not all(isinstance(label, bool | int | float | str) for label in self.classes.tolist()):
            raise TypeError(f"only number and text labels can be saved, got {self.classes.tolist()[:5]}")
        tensors = {"train": self.train, "labels": self.labels, "twin_of": self.twin_of}
        tensors["held_out_probabilities"] = self.held_out_probabilities
        tensors["trials"] = torch.stack([trial.train for trial in self.trials]).bool()
        optional = {"validation": self.validation, "validation_labels": self.validation_labels}
        optional |= {"mean": self.twins.mean, "scale": self.twins.scale}
        for shot in self.snapshots:
            optional |= {f"snapshot.{shot.step}.train": shot.train, f"snapshot.{shot.step}.validation": shot.validation}
        tensors |= {name: value for name, value in optional.items() if value is not None}
        for twin, model in (("a", self.twins.a), ("b", self.twins.b)):
            tensors |= {f"twin.{twin}.{name}": value for name, value in model.state_dict().items()}
        about = {
            "flip_rate": self.flip_rate,
            "flip_history": self.flip_history,
            "degenerate": self.degenerate,
            "trials": [(asdict(trial.setting), trial.flip_rate, trial.degenerate) for trial in self.trials],
            "best_setting": asdict(self.best_setting),
            "classes": self.classes.tolist(),
            "snapshots": [(shot.step, shot.flip_rate) for shot in self.snapshots],
            "default_head": type(self.twins.a) is nn.Linear,
        }
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        try:
            whole = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
            save_file(whole, temporary, metadata={"format": _FORMAT, "about": json.dumps(about)})
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Callable[[], nn.Module] | None = None) -> "Environments":
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the factory given to the discovery; not needed for linear heads.

        Raises:
            ValueError: not such a file, or a factory is missing or does not fit.
        """
        if model is not None:
            check_factory(model)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a saved discovery: {error}") from None
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a saved discovery (format {metadata.get('format')!r}, not {_FORMAT!r})")
        try:
            return cls._from(json.loads(metadata["about"]), tensors, model, path)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a whole saved discovery ({type(error).__name__}: {error})") from None

    @classmethod
    def _from(
        cls, about: dict[str, Any], tensors: dict[str, Tensor], model: Callable[[], nn.Module] | None, path: Any
    ) -> "Environments":
        networks = [_rebuild(tensors, f"twin.{twin}.", about["default_head"], model, path) for twin in "ab"]
        return cls(
            train=tensors["train"],
            validation=tensors.get("validation"),
            flip_rate=about["flip_rate"],
            flip_history=tuple((step, rate) for step, rate in about["flip_history"]),
            degenerate=about["degenerate"],
            held_out_probabilities=tensors["held_out_probabilities"],
            twin_of=tensors["twin_of"],
            trials=tuple(
                Trial(Setting(**setting), rate, degenerate, train.long())
                for (setting, rate, degenerate), train in zip(about["trials"], tensors["trials"], strict=True)
            ),
            best_setting=Setting(**about["best_setting"]),
            classes=np.array(about["classes"]),
            labels=tensors["labels"],
            validation_labels=tensors.get("validation_labels"),
            snapshots=tuple(
                Snapshot(step, rate, tensors[f"snapshot.{step}.train"], tensors.get(f"snapshot.{step}.validation"))
                for step, rate in about["snapshots"]
            ),
            twins=Twins(networks[0], networks[1], tensors.get("mean"), tensors.get("scale")),
        )


def encode_labels(y: Any, classes: np.ndarray) -> Int64[Tensor, " examples"]:
    """Class indices of labels, by the classes of a discovery.

    Raises:
        ValueError: labels that are not among the classes.

    >>> encode_labels(["b", "a"], np.array(["a", "b"])).tolist()
    [1, 0]
    """
    given = check_labels(y.detach().cpu().numpy() if isinstance(y, Tensor) else y)
    unknown = sorted(set(given.tolist()) - set(classes.tolist()), key=str)
    if unknown:
        raise ValueError(f"labels {unknown[:5]} are not among the classes {classes.tolist()} of the training data")
    return torch.from_numpy(np.searchsorted(classes, given).astype(np.int64))


def missing_environments(environments: Tensor, labels: Tensor, num_classes: int) -> list[int]:
    """Classes that are present and lack one of the two environments.

    >>> missing_environments(torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 1, 1]), 3)
    [1]
    """
    counts = (2 * labels + environments).bincount(minlength=2 * num_classes).view(-1, 2)
    return ((counts.sum(1) > 0) & (counts.amin(1) == 0)).nonzero().flatten().tolist()


def _rebuild(
    tensors: dict[str, Tensor], prefix: str, default_head: bool, model: Callable[[], nn.Module] | None, path: Any
) -> nn.Module:
    """One network from its saved parameters."""
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if model is not None:
        network = model()
    elif default_head:
        num_classes, features = state["weight"].shape
        network = nn.Linear(features, num_classes, bias="bias" in state, dtype=state["weight"].dtype)
    else:
        raise ValueError(f"{path} holds networks of your own; pass the factory that made them as `model`")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the model does not fit the networks in {path}: {error}") from None
    return network.eval()
