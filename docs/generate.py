"""Writes the generated tables of the documentation: ``python docs/generate.py``; ``--check`` only says which are out of date.

Sources are the profiles, the operator registries and the stored results of conformance and benchmarks, so that the tables cannot say anything else than they do.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import _page, _runner
from edgekit.converters._emitters import EMITTER_MODULES
from edgekit.converters._registry import Registration
from edgekit.converters.conformance import read_results, support_matrix
from edgekit.device_profiles import PRECISIONS, list_profiles
from edgekit.router.simulation import COLUMNS, COMMON, DEFAULT_REQUESTS, DEFAULT_SEEDS, POLICIES, SCENARIOS, THRESHOLDS, Report, Row

DOCS = Path(__file__).resolve().parent
HEAD = "<!-- Written by docs/generate.py; `make check` fails when it is out of date. -->\n\n"


def devices() -> str:
    """One row per profile."""
    lines = [
        "# Devices",
        "",
        "Claims with sources; `edgekit devices show ID` prints them, and `edgekit devices probe --device ID` compares them with the machine it",
        "runs on. Memory is that of the usual variant.",
        "",
        "| `--device` | aliases | device | engine | versions | opset <= | fp32 | fp16 | int8 | memory | accelerators |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for profile in list_profiles():
        engine = profile.engine
        cells = [
            f"`{profile.id}`",
            ", ".join(f"`{alias}`" for alias in profile.aliases),
            profile.title,
            engine.name,
            engine.versions,
            str(engine.opset_max or "-"),
            *(profile.precisions.get(precision, "no") for precision in PRECISIONS),
            f"{profile.memory_bytes / 2**30:g} GiB" if profile.memory_bytes >= 2**30 else f"{profile.memory_bytes / 2**20:g} MiB",
            ", ".join(f"{count} {name}" for name, count in profile.accelerators.items()) or "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def operators() -> str:
    """One row per operator: which of our own front ends takes it, from which opset, under which rules."""
    lines = [
        "# Operators of the front ends of our own",
        "",
        "TFLite and Core ML are written by EdgeKit itself, operator by operator. A node that breaks a rule, or has no handler, is refused before",
        "any conversion starts, together with all others. ONNX Runtime, OpenVINO and TensorRT read ONNX themselves and are not listed.",
    ]
    for target in ("tflite", "coreml"):
        registrations = _registrations(target)
        names = {entry.op for entry in registrations}
        everywhere = set.intersection(*(set(_rules(entry)) for entry in registrations))
        lines += ["", f"## {target}: {len(names)} operators", ""]
        if everywhere:
            lines += [f"For all of them: {'; '.join(sorted(everywhere))}.", ""]
        lines += ["| operator | from opset | rules |", "|---|---|---|"]
        for entry in registrations:
            own = [rule for rule in _rules(entry) if rule not in everywhere]
            lines.append(f"| {entry.op} | {entry.since} | {'; '.join(own) or '-'} |")
    return HEAD + "\n".join(lines) + "\n"


def support() -> str:
    """What passes ONNX's own backend tests, from the stored results of `edgekit conformance` (``make conformance`` renews them)."""
    results = [read_results(path) for path in sorted((Path(__file__).resolve().parent / "conformance").glob("*.json"))]
    return HEAD + support_matrix(sorted(results, key=lambda entry: list(EMITTER_MODULES).index(entry.engine)))


def _registrations(target: str) -> list[Registration[object]]:
    """All handlers of a target; its family modules register them when imported."""
    package = importlib.import_module(f"edgekit.converters.{target}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"edgekit.converters.{target}.{module.name}")
    return list(importlib.import_module(f"edgekit.converters.{target}._context").ops.registrations())


def _rules(entry: Registration[object]) -> list[str]:
    return [" ".join((rule.__doc__ or "").split()).rstrip(".") for rule in entry.constraints]


def simulation() -> str:
    """The simulator's page: its text, the scenarios as the code has them, and the stored result (``python -m benchmarks simulate --keep`` renews it)."""
    folder = Path(__file__).resolve().parent / "simulation"
    stored = msgspec.json.decode((folder / "results.json").read_bytes())
    report = msgspec.convert(stored["results"], Report)
    scenarios = [
        f"| `{entry.name}` | {'yes' if entry.fault else ''} | {entry.about} | {'; '.join(entry.sources)} |" for entry in SCENARIOS.values()
    ]
    met = sum(aim.met for aim in report.aims)
    missed = [f"- `{aim.scenario}`: {aim.aim}: {_measured(aim.measured)}" for aim in report.aims if not aim.met]
    parts = {
        "policies": ", ".join(f"`{name}`" for name in POLICIES),
        "requests": str(DEFAULT_REQUESTS),
        "seeds": str(DEFAULT_SEEDS),
        "common": " ".join(COMMON.split()),
        "scenarios": "\n".join(scenarios),
        "thresholds": ", ".join(map(str, THRESHOLDS)),
        "origin": _origin(stored),
        "results": _results(report.scenarios),
        "policies_table": _policies(report.scenarios),
        "aims": "\n".join([f"{met} of {len(report.aims)} are met.{' Not met:' if missed else ''}", "", *missed]).rstrip(),
        "columns": "\n".join(f"| `{name}` | {needed} | {meaning} |" for name, (needed, meaning) in COLUMNS.items()),
    }
    text = (folder / "simulation.md.in").read_text("utf-8")
    for name, part in parts.items():
        text = text.replace("{" + name + "}", part)
    return HEAD + text


def _origin(stored: dict[str, Any]) -> str:
    machine = f"{stored['cpus']} cores, load average {stored['load_average']:.1f}, Python {stored['python']}"
    total = f"{stored['requests_simulated'] / 1e6:.1f} million requests over all policies in {stored['seconds']:.0f} s"
    return f"Seeds {stored['seed']} to {stored['seed'] + stored['seeds'] - 1}, {stored['requests']} requests each; {total} ({machine})."


def _results(rows: Sequence[Row]) -> str:
    lines = [
        "| scenario | in its SLA | of oracle | cloud | of least | of blind least | twice | p95 holds | p50 / p99 ms | decision p50 / p99 us |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.policy == "edgekit":
            width = row.half_width
            cells = [
                f"`{row.scenario}`",
                _share(row.sla_hit_rate, width.sla_hit_rate),
                f"{row.attainment_vs_oracle:.4f}",
                _share(row.cloud_share, width.cloud_share),
                f"{row.cloud_share_vs_oracle_least:.3f}" + (f" ± {width.cloud_share_vs_oracle_least:.3f}" if width.cloud_share_vs_oracle_least else ""),
                f"{row.cloud_share_vs_blind_least:.3f}",
                f"{row.duplicates:.2%}",
                f"{row.p95_coverage:.1%}",
                f"{row.p50_ms:.0f} / {row.p99_ms:.0f}",
                f"{row.decision_us_p50:.0f} / {row.decision_us_p99:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _policies(rows: Sequence[Row]) -> str:
    lines = [f"| scenario | {' | '.join(f'`{name}`' for name in POLICIES)} |", "|---" * (len(POLICIES) + 1) + "|"]
    for scenario in dict.fromkeys(row.scenario for row in rows):
        cells = [f"{row.sla_hit_rate:.2%} / {row.cloud_share:.1%}" for row in rows if row.scenario == scenario]
        lines.append(f"| `{scenario}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(value: float, half_width: float | None) -> str:
    return f"{value:.2%}" + (f" ± {half_width:.2%}" if half_width is not None else "")


def _measured(value: float | list[str]) -> str:
    return ", ".join(value) if isinstance(value, list) else f"{value:.4g}"


PAGES: dict[str, Callable[[], str]] = {"devices.md": devices, "operators.md": operators, "support-matrix.md": support, "simulation.md": simulation}
PAGES |= {path: functools.partial(str, text) for path, text in _page.files(_runner.read(_runner.KEPT)).items()}


def outdated() -> list[str]:
    """Names of the pages whose file differs from what the code says."""
    return [name for name, make in PAGES.items() if not (DOCS / name).is_file() or (DOCS / name).read_text("utf-8") != make()]


def main(arguments: list[str]) -> int:
    """Write what is out of date, or report it."""
    names = outdated()
    if "--check" in arguments:
        for name in names:
            print(f"docs/{name} is out of date; run python docs/generate.py", file=sys.stderr)
        return 1 if names else 0
    for name in names:
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(PAGES[name](), "utf-8")
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
