"""python -m benchmarks [NAME …] [--quick] [--only TEXT] [--ladder | --asm STEP] [--json FILE] [--png FILE]"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks import assembly, chart, machine
from benchmarks.clock import Goal, Rivals, table
from scratchgen import device

NAMES = ["engine", "matmul", "attention", "rows", "pieces", "convolution", "steps", "critics", "images", "startup"]
ASKED = ["cuda"]  # only when named: on a GPU
LADDERS = list(assembly.STEPS)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="How fast, beside what people use.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (default: these), cuda")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer cases")
    parser.add_argument("--ladder", action="store_true", help="matmul, attention: the steps from the naive to the fast one")
    parser.add_argument("--asm", metavar="STEP", help="the machine code of the steps that have this in their name")
    parser.add_argument("--only", metavar="TEXT", default="", help="the cases that have this in their name")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, and a picture of them beside it")
    parser.add_argument("--png", metavar="FILE", help="where the picture goes; of several ladders, the name is added")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in NAMES + ASKED:
            print(f"benchmarks: expected one of {', '.join(NAMES + ASKED)}, got {name!r}", file=sys.stderr)
            return 2
    if set(args.names) & set(ASKED) and device.obstacle():
        print(f"benchmarks: cuda: there is nothing to measure on, {device.obstacle()}.", file=sys.stderr)
        return 2
    names = args.names or (LADDERS if args.ladder or args.asm is not None else NAMES)
    if (args.ladder or args.asm is not None) and not set(names) <= set(LADDERS):
        option = "--ladder" if args.ladder else "--asm"
        print(f"benchmarks: {option} is for {' and '.join(LADDERS)}, got {' '.join(names)}", file=sys.stderr)
        return 2
    if args.asm is not None:
        try:
            print(assembly.report(names, args.asm))
        except ValueError as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 2
        return 0
    picture = Path(args.png) if args.png else Path(args.json).with_suffix(".png") if args.json else None
    found: dict = {"machine": machine.description()}
    print("  ".join(f"{k}: {v}" for k, v in found["machine"].items()))
    goals: list[Goal] = []
    for name in names:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        found[name] = (benchmark.ladder if args.ladder else benchmark.run)(args.quick, args.only)
        if found[name]:
            print(f"\n{name}\n{table(found[name])}", flush=True)
        if args.ladder and picture:
            several = picture.with_stem(f"{picture.stem}-{name}") if len(names) > 1 else picture
            chart.draw_ladder(found[name], several)
        elif not args.ladder:
            goals += benchmark.goals(found[name])
    found["goals"] = [goal.row() for goal in goals]
    if goals:
        print(f"\n{table(found['goals'])}")
    for who, why in Rivals.missing.items():
        print(f"missing: {who}: {why}")
    if Rivals.disturbed:
        print(f"disturbed: {Rivals.disturbed} turns, by other work on these cores")
    found |= {"missing": Rivals.missing, "disturbed turns": Rivals.disturbed}
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if goals and picture:
        chart.draw_goals(goals, picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
