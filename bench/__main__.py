"""``python -m bench [TOPIC …] [--quick]``: run the benchmarks, print one table, keep it in docs/.

Every ``bench_<topic>.py`` in this folder offers ``run(quick: bool) -> list[Row]``. Results of topics that were not
run now are kept from the last time, each with the machine and date it was measured on.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
from pathlib import Path

from bench.harness import Row
from morphogen.core.files import write_json, write_text
from morphogen.core.provenance import versions

HERE = Path(__file__).parent
STORE = HERE.parent / "docs" / "benchmarks.json"
PAGE = HERE.parent / "docs" / "benchmarks.md"


def machine() -> str:
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        name = names[0] if names else name
    gpu = f" + {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}"


def figure(row: dict) -> str:
    number = f"{row['value']:.3g} {row['unit']}".strip()
    if row["low"] is not None and row["high"] is not None:
        number += f" ({row['low']:.3g} to {row['high']:.3g})"
    return number


def page(results: dict[str, dict]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`python -m bench`). Ratios are paired: both sides run in turn in one process after a",
        "warm-up; the figure is the median, with the lowest and highest pair in brackets.",
        "",
    ]
    for key in sorted(results):
        entry = results[key]
        lines += [
            f"## {entry['topic']}",
            "",
            f"{entry['machine']}; {entry['threads']} thread(s); {entry['date']}"
            + ("; quick sizes" if entry["quick"] else ""),
            "",
            "| what | figure | goal | detail |",
            "|---|---|---|---|",
        ]
        lines += [f"| {r['name']} | {figure(r)} | {r['goal']} | {r['detail']} |" for r in entry["rows"]]
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    topics = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("topics", nargs="*", help=f"of: {', '.join(topics)} (all by default)")
    parser.add_argument("--quick", action="store_true", help="small sizes, a smoke run")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1: figures per core)")
    parser.add_argument("--no-save", action="store_true", help="print only, leave docs/ as it is")
    arguments = parser.parse_args()
    unknown = set(arguments.topics) - set(topics)
    if unknown:
        parser.error(f"no such topic: {', '.join(sorted(unknown))}")

    import torch

    torch.set_num_threads(arguments.threads)
    made: dict[str, dict] = {}
    place, failed = machine(), []
    for topic in arguments.topics or topics:
        print(f"\n{topic}", flush=True)
        try:
            rows: list[Row] = importlib.import_module(f"bench.bench_{topic}").run(arguments.quick)
        except Exception as error:  # one broken topic must not hide the others
            print(f"  failed: {type(error).__name__}: {error}", flush=True)
            failed.append(topic)
            continue
        for row in rows:
            goal = f"  [goal {row.goal}]" if row.goal else ""
            print(f"  {row.name:<58} {figure(row.as_dict()):<28}{goal}  {row.detail}", flush=True)
        device = "gpu" if torch.cuda.is_available() else "cpu"
        made[f"{topic}@{device}"] = {
            "topic": topic if device == "cpu" else f"{topic} (GPU)",
            "machine": place,
            "threads": arguments.threads,
            "date": datetime.date.today().isoformat(),
            "quick": arguments.quick,
            "versions": versions(),
            "rows": [row.as_dict() for row in rows],
        }
    if not arguments.no_save:
        # Read now and not before: another run may have written its topics meanwhile.
        results = (json.loads(STORE.read_text()) if STORE.is_file() else {}) | made
        write_json(STORE, results)
        write_text(PAGE, page(results))
        print(f"\nkept in {PAGE.relative_to(HERE.parent)} and {STORE.relative_to(HERE.parent)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
