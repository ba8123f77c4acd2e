"""What moved the norm deviation: its measured rate, split into the parts for which there is a law.

Legend: s_k squared core norms, gamma_k squared gradient norms, Q norm deviation, K cores of the network, eta learning
rate, w weight decay, rho radius of SAM, g gradient of all weights. All rates are per unit of eta x steps.
Source: arXiv:2508.10435, Theorem 3; the decay and the discreteness follow from s_k(t+1) - s_k(t) of a plain step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distsam.report.series import Rows
from distsam.runs.numbers import is_finite
from distsam.runs.rows import STEP

RESCALES = ("das", "nbar", "obar")
SAM_TERM, RESCALE_TERM, BOTH_TERM = "ascent (SAM)", "rescale", "ascent and rescale"
DECAY_TERM, DISCRETE_TERM, REST = "weight decay", "discrete steps", "rest"


@dataclass(frozen=True)
class Law:
    """Which parts of the rate can be computed for a run, from its config.

    Attributes:
        ascends, rescales: what the method does.
        is_plain: the base steps along the gradient, so the laws of gradient flow hold.
        eta: learning rate; None where it changes during the run.
        decay: w; None where it reaches the weights through the base's own scaling.
        rho: None where it changes, or does not divide by the norm of the whole gradient.
        clips: a clip factor, which no row holds, scales the gradient.
        notes: in words what cannot be told, and why.
    """

    ascends: bool
    rescales: bool
    is_plain: bool
    eta: float | None
    decay: float | None
    rho: float | None
    clips: bool
    notes: tuple[str, ...]


@dataclass
class Attribution:
    """Rates at the logged steps: (R,) each, in parameter unit^4 per learning rate x step; None where unknown."""

    steps: list[int] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    terms: dict[str, list[float | None]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def law_of(optim: Mapping[str, Any]) -> Law:
    """The law for the `optim` section of a config; nothing is known of a section that lacks method or base."""
    words = set(str(optim.get("method")).split("+"))
    rescales, ascends = bool(words & set(RESCALES)), bool(words - {*RESCALES, "base", "None"})
    base, decay = optim.get("base"), optim.get("weight_decay")
    is_plain = base == "sgd" and not optim.get("momentum")
    steady = {name: optim.get(f"{name}schedule") == "constant" and not optim.get(f"{name}warmup_steps")
              for name in ("", "rho_")}  # fmt: skip
    clips = optim.get("clip_norm") is not None
    is_decoupled = is_plain or base == "adamw"
    usable_decay = (
        float(decay) if isinstance(decay, int | float) and is_finite(decay) and (is_decoupled or not decay) else None
    )
    has_rho = steady["rho_"] and optim.get("scope") == "global" and not clips
    law = Law(
        ascends=ascends,
        rescales=rescales,
        is_plain=is_plain,
        eta=_positive(optim.get("lr")) if steady[""] else None,
        decay=usable_decay,
        rho=_positive(optim.get("rho")) if has_rho else None,
        clips=clips,
        notes=(),
    )
    return Law(**{**vars(law), "notes": tuple(_notes(law, str(base), optim))})


def attribute(rows: Rows, network: str, num_cores: int, law: Law) -> Attribution:
    """Split the measured rate of `network` at every logged step.

    Args:
        rows: of metrics.jsonl.
        network: its name in the rows.
        num_cores: K.
        law: which terms there are.

    Returns:
        The terms and, as the last one, the rest: measured minus their sum. A row without a measured rate (a skipped
        step, or step 0) is left out.
    """
    found = Attribution(notes=law.notes)
    split: list[dict[str, float | None]] = []
    for row in rows:
        numbers = _numbers(row, network)
        measured = numbers["measured_rate"]
        if measured is None:
            continue
        terms = _terms(numbers, row, num_cores, law)
        known = [value for value in terms.values() if value is not None]
        terms[REST] = measured - sum(known) if len(known) == len(terms) else None
        found.steps.append(row[STEP])
        found.measured.append(measured)
        split.append(terms)
    found.terms = {name: [terms[name] for terms in split] for name in (split[0] if split else ())}
    return found


def _terms(
    numbers: Mapping[str, float | None], row: Mapping[str, Any], num_cores: int, law: Law
) -> dict[str, float | None]:
    exact = numbers["predicted_rate_exact"]
    first, covariance = numbers["predicted_rate"], numbers["covariance"]
    terms: dict[str, float | None] = {}
    if law.ascends and law.rescales:
        rescale = None
        if law.rho is not None and first is not None and covariance is not None and is_finite(row.get("sam/grad_norm")):
            rescale = first - _first_order(law.rho, num_cores, covariance, row["sam/grad_norm"])
        if rescale is not None:
            terms[RESCALE_TERM] = rescale
        if law.is_plain:
            is_split = exact is not None and rescale is not None
            terms[SAM_TERM if is_split else BOTH_TERM] = exact - rescale if is_split else exact  # type: ignore[operator]
    elif law.rescales:
        terms[RESCALE_TERM] = exact
    elif law.ascends and law.is_plain:
        terms[SAM_TERM] = exact
    if law.decay:
        terms[DECAY_TERM] = _decay(numbers, law)
    if law.is_plain and law.eta is not None and not law.clips and covariance is not None:
        terms[DISCRETE_TERM] = 2 * law.eta * num_cores * covariance
    return terms


def _first_order(rho: float, num_cores: int, covariance: float, grad_norm: float) -> float:
    """4 rho u K Cov(s_k, gamma_k) with u = 1 / |g|: Theorem 3."""
    return 4 * rho * num_cores * covariance / grad_norm if grad_norm > 0 else 0.0


def _decay(numbers: Mapping[str, float | None], law: Law) -> float | None:
    """-4 w Q, of the Q before the step: the row holds the Q after it, and the rate between them."""
    after, measured = numbers["norm_deviation"], numbers["measured_rate"]
    if after is None or measured is None or law.decay is None:
        return None
    before = after if law.eta is None else after - law.eta * measured
    return -4 * law.decay * before


def _numbers(row: Mapping[str, Any], network: str) -> dict[str, float | None]:
    names = ("measured_rate", "predicted_rate", "predicted_rate_exact", "covariance", "norm_deviation")
    found = {name: row.get(f"balance/{network}/{name}") for name in names}
    return {name: value if is_finite(value) else None for name, value in found.items()}


def _notes(law: Law, base: str, optim: Mapping[str, Any]) -> Sequence[str]:
    notes = []
    if not optim:
        return ["Without a config no part of the rate can be told from the others."]
    if not law.is_plain:
        what = "sgd with momentum" if base == "sgd" else base
        notes.append(
            f"No law is known for {what}: its steps do not follow the gradient, so the predicted rate is that of plain "
            "steps, and the rest holds all that the base does by itself"
            + (", the ascent's share too." if law.ascends else ".")
        )
    if optim.get("weight_decay") and law.decay is None:
        notes.append(f"The L2 term passes through {base}'s own scaling: its share is in the rest.")
    if law.ascends and law.rescales and law.rho is None:
        notes.append(
            "The shares of ascent and rescale cannot be told apart: rho varies, is per core, or steps are clipped."
        )
    if law.is_plain and (law.eta is None or law.clips):
        notes.append("The learning rate varies or steps are clipped: the share of discrete steps is in the rest.")
    if law.is_plain and law.ascends:
        notes.append("Discrete steps are taken at leading order, with the first pass's gradient for the second's.")
    return notes


def _positive(value: Any) -> float | None:
    return float(value) if is_finite(value) and value > 0 else None
