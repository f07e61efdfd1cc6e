"""Whether a cell keeps the contract of the protocol: the counterpart of scikit-learn's `check_estimator`."""

from collections.abc import Callable, Collection

from mechanisms._base.validation import check_number
from mechanisms.recurrent import _rules_rows, _rules_states, _rules_steps, _rules_torch
from mechanisms.recurrent._case import Case, CellContractError
from mechanisms.recurrent.protocol import Cell

# In this order: what is more basic first, so that the rule that is named is the one that is broken.
RULES: dict[str, Callable[[Case], None]] = {
    "contract": _rules_steps.contract,
    "purity": _rules_steps.purity,
    "noise": _rules_steps.noise,
    "modes": _rules_steps.modes,
    "hoisting": _rules_steps.hoisting,
    "rows": _rules_rows.rows,
    "dtype": _rules_torch.dtypes,
    "compile": _rules_torch.compiled,
    "device": _rules_torch.device,
    "scan": _rules_steps.loop,
    "lengths": _rules_rows.lengths,
    "chunks": _rules_rows.chunks,
    "reset": _rules_rows.resets,
    "detach": _rules_steps.detached,
    "gradient": _rules_torch.gradient,
    "checkpoint": _rules_rows.checkpoints,
    "sequence": _rules_steps.fused,
    "save": _rules_states.saved,
    "copies": _rules_torch.copies,
    "vmap": _rules_torch.mapped,
    "packing": _rules_states.packed,
    "memory": _rules_states.memory,
}


def check_cell(
    make_cell: Callable[[], Cell],
    *,
    batch_size: int = 3,
    steps: int = 7,
    tolerance: float | int = 1e-6,
    gradcheck: bool = True,
    compile: bool = True,
    skip: Collection[str] = (),
    seed: int = 0,
) -> None:
    """Check that a cell, of this package or of your own, keeps the contract; a few seconds, on the CPU.

    Args:
        make_cell: makes the cell; small sizes serve. It is called several times and must make cells of one kind.
        batch_size: rows of the sequences that are tried.
        steps: their length, at least 4.
        tolerance: for comparisons in float32. Those in float64 allow 1e-12.
        gradcheck: whether to compare gradients with numerical derivatives.
        compile: whether to try `torch.compile` (about a second).
        skip: rules to leave out.
        seed: for weights, inputs and noise.

    The rules, in the order in which they are tried:

    - contract: the state is a tree of tensors, batch first, and keeps its form over a step.
    - purity: a step draws nothing, writes nothing, changes no argument, and does not read `self.training`.
    - noise: follows from its generator, leads with (steps, batch), stays in its row, is silent in `eval()`.
    - modes: a step runs without noise, in `eval()`, and for no rows; `need_info` changes no number; `with_hidden` puts
      in what `hidden` reads.
    - hoisting: projecting all steps at once is projecting each alone.
    - rows: rows know nothing of each other.
    - dtype: everything follows the module's type, and keeps it under autocast.
    - compile: a step is one graph, without a branch on values.
    - device: nothing is made elsewhere than where the parameters are.
    - scan: a scan is a loop of steps.
    - lengths: a padded batch is its sequences alone.
    - chunks: two runs with the state handed over are one.
    - reset: a row that is reset starts anew.
    - detach: a detached state has no history.
    - gradient: gradients are the derivatives.
    - checkpoint: computing again in the backward pass changes nothing.
    - sequence: a fused path gives what the loop gives, in `eval()` too.
    - save: weights and state on disk are enough to go on.
    - copies: copies and pickles give the same and share nothing.
    - vmap: several models run in one batch.
    - packing: a packed initial state is zero, and packing loses nothing.
    - memory: the state does not grow, and nothing of a run is kept.

    Cells that declare `growing`, `rows_independent = False` or `exact_gradient = False` are held to the forms of these
    rules that apply to them: resets of the whole batch, equal lengths, no comparison with derivatives.

    Raises:
        CellContractError: a rule is broken; it names the rule, the leaf and the largest difference.
        ValueError: `skip` names an unknown rule, or there are too few steps.

    >>> from mechanisms.recurrent.cells import GRUCell
    >>> check_cell(lambda: GRUCell(3, 4), compile=False)
    """
    check_number(batch_size, "batch_size", at_least=1)
    check_number(steps, "steps", at_least=4)
    unknown = sorted(set(skip) - set(RULES))
    if unknown:
        raise ValueError(f"skip names {', '.join(unknown)}; the rules are {', '.join(RULES)}")
    left = set(skip) | ({"gradient"} if not gradcheck else set()) | ({"compile"} if not compile else set())
    case = Case(make_cell, batch_size, steps, tolerance, seed)
    for name, rule in RULES.items():
        if name in left:
            continue
        try:
            rule(case)
        except CellContractError:
            raise
        except Exception as error:
            raise CellContractError(name, f"{type(error).__name__}: {error}") from error
