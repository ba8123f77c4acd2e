"""Which figures a report has: their curves, units and scales, from the page's data alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tree = Mapping[str, Any]
Scale = str  # "linear", "log" (where values span much), "signed" (logarithmic on both sides of 0), "zero" (from 0)

_RATE_UNIT = "parameter unit⁴ / (rate · step)"
_MAX_HEAT = 6


@dataclass(frozen=True)
class Curve:
    """One line: values over steps; None is a gap."""

    label: str
    steps: Sequence[int]
    values: Sequence[float | None]


@dataclass(frozen=True)
class Lines:
    """Curves over the steps in one frame."""

    key: str
    title: str
    unit: str
    curves: Sequence[Curve]
    scale: Scale = "linear"
    says: str = ""


@dataclass(frozen=True)
class Heat:
    """Core norms (not squared) of one run: a row a core, a column a logged step, colour the norm."""

    key: str
    title: str
    names: Sequence[str]
    steps: Sequence[int]
    norms: Sequence[Sequence[float]]
    says: str = ""


def first_figure(runs: Sequence[Tree]) -> Lines:
    """The one plot of the first screen: the norm deviation."""
    return _balance(
        runs,
        "norm_deviation",
        "Norm deviation",
        "Q [parameter unit⁴]",
        "Q = Σ (s_k - mean s)², s_k the squared norm of core k. 0: all cores weigh the same.",
    )


def other_figures(runs: Sequence[Tree]) -> Iterator[tuple[str, list[Lines | Heat]]]:
    """(heading, figures) of every section of the page that has any; the norm deviation stands before them."""
    sections: list[tuple[str, list[Lines | Heat]]] = [
        ("How well it fits", [*_losses(runs), *_scores(runs)]),
        ("Balance of the cores", [*_companions(runs), *_heats(runs)]),
        ("What moves the norm deviation", [*_rates(runs)]),
        (
            "Sharpness",
            [
                _single(runs, "sam/loss_gap", "loss_gap", "Sharpness: loss at the perturbed weights minus loss",
                        "loss gap [unit of the loss]", "signed"),
                _single(runs, "sam/grad_norm", "grad_norm", "Gradient norm", "‖g‖ [loss unit / parameter unit]", "log"),
            ],
        ),
        ("Speed", [_single(runs, "time/steps_per_s", "speed", "Speed", "steps [1/s]", "zero")]),
    ]  # fmt: skip
    for heading, figures in sections:
        drawn = [figure for figure in figures if isinstance(figure, Heat) or figure.curves]
        if drawn:
            yield heading, drawn


def _single(runs: Sequence[Tree], key: str, name: str, title: str, unit: str, scale: Scale, says: str = "") -> Lines:
    return Lines(
        name,
        title,
        unit,
        [c for run in runs for c in _curve(run, key, run["name"] if len(runs) > 1 else title)],
        scale,
        says,
    )


def _curve(run: Tree, key: str, label: str) -> list[Curve]:
    points = run["series"].get(key)
    return [Curve(label, points["steps"], points["values"])] if points else []


def _losses(runs: Sequence[Tree]) -> Iterator[Lines]:
    yield _single(runs, "train/loss", "loss", "Training loss", "loss [unit as learnt]", "log")


def _scores(runs: Sequence[Tree]) -> Iterator[Lines]:
    """Of one run all parts together; of several a frame for each part."""
    columns = list(dict.fromkeys(run["column"] for run in runs if run["column"]))
    for column in columns:
        having = [run for run in runs if run["column"] == column]
        parts = list(dict.fromkeys(part for run in having for part in run["parts"]))
        directions = {run["higher_is_better"] for run in having}
        says = (
            {True: "Higher is better.", False: "Lower is better."}.get(directions.pop(), "")
            if len(directions) == 1
            else ""
        )
        unit, scale = f"{column} [{'no unit' if column.startswith('r2') else 'unit as scored'}]", "linear"
        if len(having) == 1:
            run = having[0]
            curves = [c for part in parts for c in _curve(run, f"{part}/{column}", part)]
            yield Lines(f"score_{column}", f"Score {column} on each part of the data", unit, curves, scale, says)
            continue
        for part in parts:
            curves = [c for run in having for c in _curve(run, f"{part}/{column}", run["name"])]
            yield Lines(f"score_{part}_{column}", f"Score {column}, {part}", unit, curves, scale, says)


def _balance(runs: Sequence[Tree], metric: str, title: str, unit: str, says: str, scale: Scale = "log") -> Lines:
    curves = []
    for run in runs:
        for network in run["networks"]:
            curves += _curve(run, f"balance/{network}/{metric}", _label(runs, run, network))
    return Lines(metric, title, unit, curves, scale, says)


def _label(runs: Sequence[Tree], run: Tree, network: str) -> str:
    """As much of run and network as tells a curve from the others."""
    words = [run["name"]] if len(runs) > 1 else []
    return ", ".join([*words, network] if len(run["networks"]) > 1 or not words else words)


def _companions(runs: Sequence[Tree]) -> Iterator[Lines]:
    yield _balance(
        runs,
        "relative_deviation",
        "Relative deviation",
        "Q / (mean s)² [no unit]",
        "The norm deviation without the tensor's scale.",
    )
    yield _balance(
        runs, "max_over_min", "Heaviest over lightest core", "max s / min s [no unit]", "1: all cores weigh the same."
    )
    yield _balance(
        runs,
        "covariance",
        "Covariance of core and gradient norms",
        "Cov(s, ‖g‖²) [loss unit²]",
        "Negative: heavy cores have small gradients, and SAM pulls the norms together. Positive: it drives them apart.",
        "signed",
    )


def _heats(runs: Sequence[Tree]) -> Iterator[Heat]:
    for run in runs[:_MAX_HEAT]:
        for position, (network, cores) in enumerate(run["cores"].items()):
            keys = [f"balance/{network}/core_norm_sq/{core}" for core in cores]
            found = [(core, run["series"][key]) for core, key in zip(cores, keys, strict=True) if key in run["series"]]
            steps = [
                step for step in (found[0][1]["steps"] if found else []) if all(step in p["steps"] for _, p in found)
            ]
            if not steps:
                continue
            squares = [dict(zip(points["steps"], points["values"], strict=True)) for _, points in found]
            norms = [[max(of_step[step], 0.0) ** 0.5 for step in steps] for of_step in squares]
            label = _label(runs, run, network) if len(runs) > 1 or len(run["cores"]) > 1 else ""
            left_out = f" Of {len(runs)} runs the first {_MAX_HEAT} are drawn." if len(runs) > _MAX_HEAT else ""
            yield Heat(
                f"core_norms_{runs.index(run)}_{position}",
                f"Core norms{f': {label}' if label else ''}",
                [core for core, _ in found],
                steps,
                norms,
                f"‖G_k‖ in parameter units; lighter is larger.{left_out}",
            )


def _rates(runs: Sequence[Tree]) -> Iterator[Lines]:
    """Predicted against measured of every network, then the parts it is made of."""
    for index, run in enumerate(runs):
        for position, network in enumerate(run["networks"]):
            prefix = f"balance/{network}/"
            name = _label(runs, run, network) if len(runs) > 1 or len(run["networks"]) > 1 else ""
            ending = f": {name}" if name else ""
            curves = [
                *_curve(run, prefix + "measured_rate", "measured"),
                *_curve(run, prefix + "predicted_rate_exact", "predicted, exact law"),
                *_curve(run, prefix + "predicted_rate", "predicted, first order in rho"),
            ]
            parts = run["attribution"][network]
            if parts["known"]:
                curves.append(Curve("all parts with a law", parts["steps"], parts["known"]))
            yield Lines(f"rates_{index}_{position}", f"Rate of Q{ending}", f"dQ/dt [{_RATE_UNIT}]", curves, "signed",
                        "Of single steps: the change of Q in that step over its learning rate.")  # fmt: skip
            shares = [Curve(term, parts["steps"], values) for term, values in parts["terms"].items()]
            # Of a base without a law all would be rest: the table and its notes say so.
            if len(shares) > 2:
                title = f"What the rate is made of{ending}"
                says = " ".join(parts["notes"])
                yield Lines(f"attribution_{index}_{position}", title, f"dQ/dt [{_RATE_UNIT}]", shares, "signed", says)
