r"""The machine code of a step of a ladder, reduced to its hot loop: `python -m benchmarks matmul --asm "vector tile"`.

LLVM prints a kernel as thousands of lines, of which one loop does the work: of all loops that hold no other loop, the one with
the most fused multiply-adds, counted in elements. What to look for:

    vfmadd231ps %zmm29, %zmm30, %zmm16      zmm16 ← zmm29 · zmm30 + zmm16 in each of 16 lanes (ymm: 8, xmm: 4; …ss: one alone)
    vbroadcastss (%rcx,%r8), %zmm30         one element from memory into all lanes
    vmovups (%r15), %zmm28                  a load;  with the address last, vmovups %zmm0, (%rax), a store

A core of today starts two multiply-adds and two loads a cycle. So a loop with fewer multiply-adds than loads waits for its
loads; and sums that are stored and loaded again at each step wait for each other.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import import_module

# The kernel that does a step's work: module and function. The last steps are the whole of `matmul` and of `attention`, which
# spend their time in the tile, as attention's step before the last does.
STEPS = {
    "matmul": {
        "i j k": ("ladder", "dot_products"),
        "i k j": ("ladder", "rows_of_b"),
        "blocked, packed": ("ladder", "blocked"),
        "4 × 4 in registers": ("ladder", "registers"),
        "register tile": ("ladder", "register_tile"),
        "vector tile": ("simd", "tile"),
    },
    "attention": {
        "materialised": ("attention_ladder", "materialised"),
        "online softmax": ("attention_ladder", "online"),
        "tiled": ("attention_ladder", "tiled"),
        "products by tiles": ("simd", "tile"),
        "from the weights": ("attention_ladder", "from_weights"),
        "by recomputation": ("attention_ladder", "recomputed"),
        "register tiles": ("simd", "tile"),
    },
}
# The textbook loop walks down a column of B and loads one element at a time. LLVM vectorises it too, for a B of one column,
# whose elements follow one another; what runs otherwise is the other version.
ONE_LANE = ("i j k",)
LANES = {"zmm": 16, "ymm": 8, "xmm": 4}  # float32


@dataclass
class Loop:
    """A loop's instructions and what there is of each kind."""

    lines: list[str]

    @property
    def multiply_adds(self) -> list[str]:
        """The vector register each fused multiply-add writes to; "one lane" for those on single elements."""
        found = [
            (m[1], m[2]) for line in self.lines if (m := re.search(r"\bvfn?m(?:add|sub)\w*?([ps])[sd]\b.*%([xyz]mm)\d+$", line))
        ]
        return [register if packed == "p" else "one lane" for packed, register in found]

    @property
    def elements(self) -> int:
        """Products that a pass through the loop adds up."""
        return sum(LANES.get(register, 1) for register in self.multiply_adds)

    def _memory(self, last: bool) -> list[str]:
        """Instructions that have an address for their last operand, or for another."""
        found = []
        for line in self.lines:
            name, _, operands = line.strip().partition("\t")
            listed = re.split(r",\s*(?![^(]*\))", operands.split("#")[0].strip())
            addresses = [i for i, operand in enumerate(listed) if "(" in operand]
            if not addresses or name.startswith(("lea", "prefetch", "nop", "j", "call")):
                continue
            written = addresses[-1] == len(listed) - 1 and not name.startswith(("cmp", "test"))
            if written == last:
                found.append(line)
        return found

    def summary(self) -> str:
        """The counts, as a sentence."""
        kinds = {kind: self.multiply_adds.count(kind) for kind in dict.fromkeys(self.multiply_adds)}
        loads, stores = self._memory(last=False), self._memory(last=True)
        spread = sum("broadcast" in line or "{1to" in line for line in loads)
        asked = sum("prefetch" in line for line in self.lines)
        adds = ", ".join(f"{count} on {kind}" + " registers" * (kind in LANES) for kind, count in kinds.items()) or "0"
        per_load = f"{len(self.multiply_adds) / len(loads):.2f}" if loads else "∞"
        return (
            f"fused multiply-adds: {adds}; loads: {len(loads)}, {spread} of them into all lanes; stores: {len(stores)}; "
            f"prefetches: {asked}; multiply-adds for each load: {per_load}"
        )


def hot_loop(text: str, one_lane: bool = False) -> Loop:
    """Of the loops of an assembler text that hold no other loop, the one that adds up the most products; then the shortest.

    `one_lane`: only the loops whose multiply-adds are on single elements. Raises ValueError where there is none.
    """
    lines = text.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\.L\w+):", line))}
    jumps = [(labels.get(m[1], i), i) for i, line in enumerate(lines) if (m := re.match(r"\s+j\w+\s+(\.L\w+)", line))]
    loops = [(begin, end) for begin, end in jumps if begin < end]
    inner = [(a, z) for a, z in loops if not any(a <= b and y <= z and (b, y) != (a, z) for b, y in loops)]
    found = [Loop([line for line in lines[a : z + 1] if not re.match(r"\s+\.", line)]) for a, z in inner]
    found = [loop for loop in found if not one_lane or set(loop.multiply_adds) == {"one lane"}]
    if not found:
        raise ValueError("hot_loop: expected a text with such a loop, got none")
    return max(found, key=lambda loop: (loop.elements, -len(loop.lines)))


def report(names: list[str], step: str) -> str:
    """The hot loop of each step of these ladders whose name contains `step`. Raises ValueError where that is none."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise ValueError(f"--asm: expected an x86-64 processor, whose instructions are counted, got {platform.machine()}")
    wanted = [(name, found) for name in names for found in STEPS[name] if step in found]
    if not wanted:
        known = ", ".join(repr(found) for name in names for found in STEPS[name])
        raise ValueError(f"--asm: expected a part of one of {known}, got {step!r}")
    parts = []
    for name, found in wanted:
        module, function = STEPS[name][found]
        loop = hot_loop(getattr(import_module(f"kernels.cpu.{module}"), function).assembly("f"), found in ONE_LANE)
        head = f"{name}, {found}: the hot loop of kernels.cpu.{module}.{function}, float32"
        parts.append("\n".join([head, *(line.expandtabs(8) for line in loop.lines), loop.summary()]))
    return "\n\n".join(parts)
