"""Figures beside their baselines, one command each.

python -m benchmarks                        the list
python -m benchmarks NAME [ARGUMENT…]       one of them; NAME --help says what it measures, how, and its arguments
python -m benchmarks all [--full] [NAME…]   what `make bench` runs, or those named; --full takes two hours instead of forty minutes
python -m benchmarks keep [NAME…]           take results into docs/benchmarks (those the page shows, or those named), and write the page
python -m benchmarks page                   write docs/benchmarks.md and its pictures from docs/benchmarks/*.json

Results go to benchmarks/results/NAME.json, with the machine, the commit and the load average.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import msgspec

from benchmarks import _runner
from benchmarks._catalogue import BY_NAME, Entry, listing, suite
from benchmarks._results import plain

USAGE = 2


def main(arguments: Sequence[str]) -> int:
    command, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    if command in {"", "-h", "--help"}:
        print(f"{__doc__}\n{listing()}")
        return 0
    if command == "all":
        return run_all(rest)
    if command == "keep":
        return keep(rest)
    if command == "page":
        return usage(f"page takes no arguments, found {' '.join(rest)}") if rest else page()
    entry = BY_NAME.get(command)
    return unknown([command]) if entry is None else one(entry, rest)


def one(entry: Entry, arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        return subprocess.run([sys.executable, str(entry.path), "--help"], check=False).returncode
    record, why = _runner.run(entry, [*entry.fixed, *arguments])
    if record is not None:
        print(msgspec.json.format(msgspec.json.encode(plain(record)), indent=2).decode())
    if why:
        print(f"{entry.name}: {why}", file=sys.stderr)
    return 1 if why else 0


def run_all(arguments: list[str]) -> int:
    names = [argument for argument in arguments if argument != "--full"]
    if missing := set(names) - set(BY_NAME):
        return unknown(sorted(missing))
    outcomes = _runner.run_all(suite(names), full="--full" in arguments)
    print(f"\n{_runner.summary(outcomes)}\n`python -m benchmarks keep` takes these results into the documentation.", file=sys.stderr)
    return 1 if any(outcome.why for outcome in outcomes) else 0


def keep(names: list[str]) -> int:
    from benchmarks import _page

    records = _runner.read(_runner.RESULTS)
    if missing := set(names) - set(records):
        return usage(f"{', '.join(sorted(missing))}: no result in benchmarks/results; run it first")
    shown = {topic.name for topic in _page.TOPICS}
    for name in names or [name for name in records if name in shown]:
        _runner.write(records[name], _runner.KEPT)
    return page()


def page() -> int:
    from benchmarks import _page

    for path, text in _page.files(_runner.read(_runner.KEPT)).items():
        target = _runner.ROOT / "docs" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
        print(f"wrote docs/{path}")
    return 0


def unknown(names: Sequence[str]) -> int:
    return usage(f"no benchmark {', '.join(map(repr, names))}; there are\n{listing()}")


def usage(text: str) -> int:
    print(text, file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
