"""What a run's records say, as parts of the page: the run in a sentence, its scores, curves and epochs, how it was made."""

from __future__ import annotations

import csv
import datetime
import html
import math
import re
from pathlib import Path
from typing import Any

from lae_fast.checkpoint import CheckpointError
from lae_fast.models.autoencoder import Autoencoder
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE

KINDS = {"lae": "Langevin autoencoder", "vae": "Variational autoencoder", "hoffman": "Hoffman's method"}
MOST_POINTS = 400  # of a curve
Lines = list[dict[str, Any]]  # of metrics.jsonl


def summary(record: dict[str, Any], lines: Lines, model: Autoencoder, epochs: int) -> str:
    """The run in a sentence; without its records, the model."""
    kind = KINDS.get(type(model).__name__.lower(), type(model).__name__)
    what = f"{kind} with {_counted(model.nz, 'latent dimension')}"
    if not lines:
        return f"{what}."
    data = re.split(r", (?=found|downloaded|because)", str(record.get("data", "images")))[0]
    return f"{what}, trained for {_counted(epochs, 'epoch')} on {data}."


def _counted(number: float, noun: str) -> str:
    text = f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
    return f"{text} {noun}{'' if number == 1 else 's'}"


def identity(record: dict[str, Any], epochs: int) -> dict[str, str]:
    """What a row of `lae_fast.score` or results.json says of the run, where they are of its weights of today."""
    options = record["options"]
    known = {name: str(options[name]) for name in ("model", "nz", "seed") if name in options}
    return known | {"epochs": str(epochs)}


def differences(values: dict[str, Any], expected: dict[str, str]) -> str:
    """Where scores are of another run, or of another state of it: in words; "": nowhere."""
    found = {name: values[name] for name in expected if values.get(name) is not None}
    return ", ".join(
        f"{name} {value}, not {expected[name]}"
        for name, value in found.items()
        if str(value) != expected[name]
    )


def row_of(folder: Path, table: Path | None, expected: dict[str, str]) -> dict[str, str]:
    """The run's row in a table of `lae_fast.score`, by default one that lies in the folder; {}: there is none. A table in the folder with
    one row is of this run, though it was scored under another name, if all else is the run's.

    Args:
        expected: the run's `identity`.

    Raises:
        CheckpointError: the table that was asked for cannot be read, or has no row of the run as it is now; or a table has two.
    """
    name = folder.resolve().name
    for path in [table] if table else sorted(folder.glob("*.csv")):
        try:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                everyone = [(reader.line_num, row) for row in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            if not table:  # whatever else lies in the folder
                continue
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        rows = [(line, row) for line, row in everyone if row.get("run") == name]
        if not rows and path.parent.resolve() == folder.resolve() and len(everyone) == 1:
            rows = [(line, row) for line, row in everyone if expected.items() <= row.items()]
        scored = [(line, row) for line, row in rows if _number(row.get("ais")) is not None]
        fitting = [(line, row) for line, row in scored if not differences(row, expected)]
        if len(fitting) > 1:
            lines = ", ".join(str(line) for line, _ in fitting)
            raise CheckpointError(f"{path} has several rows of {name}, in lines {lines}; expected one")
        if fitting:
            return fitting[0][1]
        if table and scored:
            found = "; ".join(f"line {line} is of {differences(row, expected)}" for line, row in scored)
            raise CheckpointError(f"{table} has no row of {name} as it is now: {found}")
        if table:
            others = ", ".join(dict.fromkeys(row["run"] for _, row in everyone if row.get("run")))
            of = f", but of {others}" if others else ""
            raise CheckpointError(f"{table} has no row of {name}{of}; expected a table of lae_fast.score")
    return {}


def scores(model: Autoencoder, record: dict[str, Any], values: dict[str, Any]) -> str:
    """The scores as a list of definitions, from results.json and a row of `lae_fast.score`."""
    n = {name: _number(value) for name, value in values.items()}

    def text(name: str, places: int = 2) -> str:
        return "unknown" if n.get(name) is None else f"{n[name]:.{places}f}"

    images = f"{text('images', 0)} test images"
    n_few = n.get("test_importance_bound_images")  # older runs do not say
    few = "" if n_few is None else f"; {n_few:.0f} test images"
    about = {
        "test_negative_elbo": (
            "Negative ELBO",
            f"reconstruction {text('test_reconstruction')} + rate {text('test_rate')}",
        ),
        "test_importance_bound": (
            "Importance bound",
            "-log p(x) is at most this, on average" + few,
        ),
        "ais": (
            "-log p(x), annealed",
            f"± {text('standard_error')}, gap {text('gap')} between forward and reverse; {images}",
        ),
        "quadrature": ("-log p(x), exact", f"by quadrature; {images}"),
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd>{text(key)}<small>{note}</small></dd></div>"
        for key, (name, note) in about.items()
        if n.get(key) is not None
    )
    if not record["options"]:  # of no run
        return ""
    if not items:
        return "<p>This run has no scores yet: it is tested when its training ends.</p>"
    pixels = "grey" if record["options"].get("binarize", "none") == "none" else "binary"
    note = "Nats per image; lower is better."
    if getattr(model.likelihood, "density_of", None) != pixels:
        note += " No probability of these pixels: compare with models of the same data and likelihood only."
    return f'<dl class="scores">{items}</dl><p class="note">{note}</p>'


def _number(value: Any) -> float | None:
    """A finite number, also as text; None: it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def curves(record: dict[str, Any], lines: Lines) -> list[dict[str, Any]]:
    """Charts for charts.js: series of points [epoch, value], those that this run has."""
    options = record["options"]

    def series(name: str, key: str) -> dict[str, Any]:
        points = [
            [line["epoch"], float(f"{line[key]:.5g}")] for line in lines if {key, "epoch"} <= line.keys()
        ]
        return {"name": name, "points": points[:: max(1, -(-len(points) // MOST_POINTS))]}

    aim = {"value": TARGET_ACCEPTANCE, "name": f"{TARGET_ACCEPTANCE}, the aim"}
    adapts = options.get("mh", True) and options.get("adaptation_rate") != 0
    charts: list[dict[str, Any]] = [
        {
            "title": "Loss, nats per image",
            "series": [series("training", "loss"), series("validation", "validation_negative_elbo")],
        },
        {
            "title": "Proposals of the chain",
            "series": [series("accepted", "acceptance_rate"), series("chains unmoved", "unmoved")],
            "range": [0, 1],
            "aim": aim if adapts and options.get("step_size") == "auto" else None,
        },
        {"title": "Step size", "series": [series("step size", "step_size")], "log": True},
    ]
    for chart in charts:
        for found in chart["series"] if chart.get("log") else ():
            found["points"] = [p for p in found["points"] if p[1] > 0]
        chart["series"] = [s for s in chart["series"] if s["points"]]
    return [chart for chart in charts if chart["series"]]


COLUMNS = {
    "epoch": ("Epoch", ".0f"),
    "loss": ("Training loss", ".2f"),
    "validation_negative_elbo": ("Validation, negative ELBO", ".2f"),
    "epoch_acceptance_rate": ("Accepted", ".2f"),
    "step_size": ("Step size", ".3g"),
}


def epochs(lines: Lines) -> str:
    """A table with a row for each epoch that has ended: its validation, and the last line of the log before."""
    rows: Lines = []
    latest: dict[str, Any] = {}
    for line in lines:
        latest = latest | line
        if "loss" not in line:  # the line that ends an epoch
            rows.append(latest)
            latest = {}
    columns = {key: about for key, about in COLUMNS.items() if any(key in row for row in rows)}
    head = "".join(f'<th scope="col">{name}</th>' for name, _ in columns.values())
    body = "".join(f"<tr>{_cells(row, columns)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: dict[str, Any], columns: dict[str, tuple[str, str]]) -> str:
    return "".join(f"<td>{format(row[key], f) if key in row else ''}</td>" for key, (_, f) in columns.items())


def making(record: dict[str, Any]) -> str:
    """How the run was made, as a list of definitions: command, data, machine, versions, options."""
    versions, options = record.get("versions") or {}, record["options"]
    facts = {
        "Command": record.get("command"),
        "Resumed by": ", ".join(map(str, record.get("resumed") or [])),
        "Data": record.get("data"),
        "Machine": versions.get("processor"),
        "GPU": versions.get("gpu"),
        "Versions": ", ".join(
            f"{name} {versions[name]}" for name in ("lae_fast", "torch") if name in versions
        ),
        "Options": ", ".join(f"{name} {value}" for name, value in options.items() if value is not None),
        "Page written": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
    }
    return "".join(
        f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items() if value
    )
