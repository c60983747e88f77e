"""Estimates the cycles of the kernels on a GPU that need not be here, by simulating the machine code of each.

Prints of every configuration what a program runs a chunk (gates and decode: in all): instructions a warp, bytes of
spilled registers moved to and from local memory, and the cycles of one program alone on a multiprocessor and of a round
of as many as it holds; each where spilled registers hit the L1 cache, and where they come from L2. Needs torch and
triton.

    python benchmarks/kernels_simulated.py --dim 64 --expansion 0 1 4 --chunk 64 --first --json estimates.json

What is simulated is one of the four schedulers of a multiprocessor of compute capability 9.0: its warps in order, an
instruction a cycle, with the stalls and scoreboards that the assembler wrote into the code, the pipes below and
barriers. What the other three take of shared pipes is what this one takes. Left out: conflicts of banks and registers,
misses of the instruction cache, and the bandwidth of L2 and HBM when every multiprocessor draws on them (about 24 and
13 bytes a cycle each): compare the bytes of local memory with it. Of a branch forward that has a condition the code
after it is run, calls are not followed, and all predicated instructions count as executed. Trust ratios of two kernels
sooner than cycles.
"""

import argparse
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kernels_resources

# Cycles from leaving a pipe to the result. Memory as measured on Ampere and Hopper (Luo et al., Benchmarking and
# Dissecting the Nvidia Hopper GPU Architecture, 2024, https://arxiv.org/abs/2402.13499), HBM with some load; products:
# that and its sequel (2501.12084), where a wgmma of n columns takes n / 2, and for mma.sync the stalls that ptxas
# writes before a use of its result. Barriers, fences and branches are guesses.
LATENCY = {
    "shared": 29, "L1": 33, "L2": 270, "HBM": 600, "shuffle": 24, "special": 16, "constant": 40, "register": 24,
    "HMMA": 24, "HGMMA": 32, "barrier": 24, "fence": 20, "branch": 8,
}  # fmt: skip
# Bytes a cycle and multiprocessor (shared memory and L1; L2), and cycles an instruction of one warp takes of a pipe of
# its scheduler: CUDA C++ Programming Guide, throughput of arithmetic instructions, 9.0, a quarter of a multiprocessor.
WIDTH = {"lsu": 128, "L2": 64}
PIPES = {"fma": 1, "integer": 2, "special": 8, "double": 2, "uniform": 1}
QUEUE = {"lsu": 64, "L2": 1024, "wgmma": 1024}  # cycles of work that a pipe takes in before instructions wait
MACS = 512  # bfloat16 products a cycle of a tensor core; TF32 half; mma.sync reaches 62 % of it (Luo et al.)
GROUP = {
    **dict.fromkeys(["FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2"], "fma"),
    **dict.fromkeys(["MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV"], "special"),
    **dict.fromkeys(["DFMA", "DADD", "DMUL", "DSETP"], "double"),
}
SCHEDULERS, SCOREBOARDS, PRODUCTS = 4, 6, 6  # the seventh scoreboard is wgmma's gsb0
SPINS = re.compile(r"ATOM|RED\b|SYNCS|LD\S*STRONG")


@dataclass
class Instruction:
    """One of 128 bits, with what the assembler wrote into bits 105 to 121 for the scheduler.

    Jia et al., Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking (2018),
    https://arxiv.org/abs/1804.06826, section 2.1. The yield flag and register reuse change nothing here.
    """

    address: int
    guard: str
    name: str
    operands: str
    control: int

    def __post_init__(self):
        self.base = self.name.split(".")[0]
        self.stall = max(self.control & 15, 1)
        self.write = self.control >> 5 & 7  # the scoreboard that the result clears; 7: none
        self.read = self.control >> 8 & 7  # the one that having read the operands clears
        self.waits = [board for board in range(SCOREBOARDS) if self.control >> 11 + board & 1]
        self.target = int(self.operands.split()[-1], 16) if self.base == "BRA" else None
        self.conditional = bool(self.guard or re.match(r"!?U?P\d", self.operands) or ".DIV" in self.name)


def decoded(listing: str) -> list[Instruction]:
    """The longest function of what cuobjdump -sass prints: one of the mathematical library may come before it."""
    hexadecimal = r"/\* 0x([0-9a-f]{16}) \*/"
    line = rf"/\*([0-9a-f]{{4,}})\*/\s+(@\S+)?\s*([A-Z]\S*)\s*(.*?)\s*;\s*{hexadecimal}\s*{hexadecimal}"
    functions = [re.findall(line, text) for text in listing.split("Function :")]
    longest = max(functions, key=len)
    return [Instruction(int(at, 16), *named, int(high, 16) >> 41) for at, *named, _, high in longest]


def path(code: list[Instruction], trips: dict[int, int]) -> list[int]:
    """Indices of what a warp executes, with the loops that end at these indices run that often, others once."""
    where, left = {ins.address: i for i, ins in enumerate(code)}, dict(trips)
    found, i = [], 0
    while code[i].base not in ("EXIT", "RET") or code[i].conditional:
        found.append(i)
        target, jump = where.get(code[i].target), False
        if target is not None and target > i:
            jump = not code[i].conditional
        elif target is not None:
            left[i] = left.get(i, 1) - 1
            jump = left[i] > 0
            if not jump:
                left[i] = trips.get(i, 1)  # for the next time that the loop around it comes here
        i = target if jump else i + 1
    return found


def loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """First and last index of each loop that is reached, as they begin."""
    where = {ins.address: i for i, ins in enumerate(code)}
    ends = [(where[code[i].target], i) for i in path(code, {}) if code[i].base == "BRA"]
    return sorted((start, end) for start, end in ends if start <= end)


def chunks(code: list[Instruction], inner: Sequence[int], count: int, walk: bool = True) -> tuple[list[int], set[int]]:
    """The path over so many chunks, and what of the code lies in loops within the walk.

    The walk is the longest of the outermost loops; if there is none or ``walk`` is false the path is the program's.
    Other loops run ``inner`` times each, as they begin, the last number again for those after; a short one that waits
    for another program runs once.
    """
    found = loops(code)
    outermost = [a for a in found if not any(b != a and b[0] <= a[0] and a[1] <= b[1] for b in found)]
    nested = [loop for loop in found if loop not in outermost] if walk else found
    spins = [(a, b) for a, b in nested if b - a < 64 and any(SPINS.match(ins.name) for ins in code[a:b])]
    counted = [loop for loop in nested if loop not in spins]
    trips = {end: inner[min(i, len(inner) - 1)] for i, (_, end) in enumerate(counted)}
    if walk and outermost:
        trips[max(outermost, key=lambda loop: loop[1] - loop[0])[1]] = count
    return path(code, trips), {i for start, end in nested for i in range(start, end + 1)}


def moved(ins: Instruction) -> int:
    """Bytes that a load or store moves for a warp."""
    if ins.base in ("LDSM", "STSM"):
        matrices = re.search(r"\.M88\.(\d)", ins.name)
        return 128 * int(matrices[1]) if matrices else 128
    bits = re.search(r"\.[US]?(8|16|32|64|128)\b", ins.name)
    return 4 * int(bits[1]) if bits else 128


def cost(ins: Instruction, nested: bool, spills: str, sharing: int) -> tuple[str, float, float]:
    """The pipe it enters, for how many cycles, and those until its result afterwards.

    Global loads of 16 bytes are of tokens and kept states, which come from HBM; narrower ones are of vectors, which
    the launch before left in L2, and what an inner loop loads is loaded in every chunk and found there as well. So a
    kernel that lost its inner loop pays more for what it loads again: with ``LATENCY["HBM"]`` of 300 it does not.
    """
    base = ins.base

    def memory(pipe, latency):
        return pipe, sharing * max(moved(ins), 128) / WIDTH[pipe], LATENCY[latency]

    if base in ("LDS", "STS", "LDSM", "STSM", "ATOMS", "SYNCS"):
        return memory("lsu", "shared")
    if base in ("LDL", "STL"):
        return memory("lsu", "L1") if spills == "L1" else memory("L2", "L2")
    if base in ("LDG", "STG", "LDGSTS", "LD", "ST", "ATOM", "ATOMG", "RED") or base.startswith(("UTMA", "UBLK")):
        return memory("L2", "HBM" if ".128" in ins.name and not nested else "L2")
    if base == "SHFL":
        return "lsu", sharing, LATENCY["shuffle"]
    if base in ("HGMMA", "HMMA", "DMMA", "IMMA"):
        half = 2 if "TF32" in ins.name else 1
        if base == "HGMMA":
            n, k = map(int, re.search(r"\d+x(\d+)x(\d+)", ins.name).groups())
            return "wgmma", 16 * n * k * half / MACS, LATENCY["HGMMA"]
        k = {"1688": 8, "16816": 16}.get(ins.name.split(".")[1], 16)
        return "mma", 128 * k * half / MACS / 0.62, LATENCY["HMMA"]
    if base in ("MEMBAR", "FENCE"):
        return "other", 1, LATENCY["fence"]
    if base in ("LDC", "S2R", "S2UR", "CS2R", "R2UR", "VOTE", "REDUX"):
        return "other", 1, LATENCY["constant" if base == "LDC" else "register"]
    pipe = GROUP.get(base, "uniform" if base.startswith("U") else "integer")
    return pipe, PIPES[pipe], LATENCY["special"]


class Warp:
    """Where a warp is: its scoreboards are the times at which what was put on each is done, in order."""

    def __init__(self, cta):
        self.cta, self.position, self.ready, self.waiting = cta, 0, 0, False
        self.done = [[0] for _ in range(SCOREBOARDS + 1)]
        self.stored = self.copied = 0

    def put(self, board, time):
        self.done[board].append(max(time, self.done[board][-1]))

    def left(self, board, most=0):
        """When at most so many of a scoreboard are not done."""
        return self.done[board][-1 - most] if most < len(self.done[board]) else 0

    def free(self, ins):
        """When it may issue its next instruction, as far as it alone decides."""
        time = max([self.ready, *(self.left(board) for board in ins.waits)])
        if ins.base == "DEPBAR" and (found := re.match(r"SB(\d), 0x([0-9a-f]+)", ins.operands)):
            time = max(time, self.left(int(found[1]), int(found[2], 16)))
        if ins.name.startswith("WARPGROUP.DEPBAR"):
            time = max(time, self.left(PRODUCTS, int(ins.operands.split()[-1], 16)))
        return time


def simulated(code: list[Instruction], order: list[int], costs: list[tuple], warps: int, ctas: int) -> float:
    """Cycles until every warp of one scheduler has gone this way through the code; the oldest that can goes first."""
    active = [Warp(n // warps) for n in range(warps * ctas) if n % SCHEDULERS == 0]
    free = {warp: warp.free(code[order[0]]) for warp in active}
    pipes, now, end = defaultdict(int), -1, 0
    while active:
        least, now, warp = now + 1, math.inf, None
        for other in active:
            pipe = costs[order[other.position]][0]
            at = max(least, free[other], pipes[pipe] - QUEUE.get(pipe, 0))
            if at < now and not other.waiting:
                now, warp = at, other
        i = order[warp.position]
        pipe, taken, latency = costs[i]
        left = max(now, pipes[pipe]) + taken
        if pipe != "other":
            pipes[pipe] = left
        issue(warp, code[i], now, left, left + latency)
        warp.position += 1
        if warp.position == len(order):
            active.remove(warp)
            end = max(end, warp.ready)
            continue
        if code[i].base == "BRA" and order[warp.position] != i + 1:
            warp.ready += LATENCY["branch"]
        free[warp] = warp.free(code[order[warp.position]])
        if code[i].name.startswith(("BAR.SYNC", "BAR.RED")):
            warp.waiting = True
            group = [other for other in active if other.cta == warp.cta]
            if all(other.waiting for other in group):
                for other in group:
                    other.waiting, free[other] = False, max(free[other], now + LATENCY["barrier"])
    return end


def issue(warp: Warp, ins: Instruction, now: float, taken: float, done: float) -> None:
    """Puts what an instruction will do on the scoreboards: ``taken`` is when it left its pipe."""
    base = ins.base
    warp.ready = now + ins.stall
    if base == "MEMBAR":
        done = taken = max(done, warp.stored + LATENCY["fence"])
    elif base == "LDGSTS":
        warp.copied = done
    elif base == "LDGDEPBAR":
        done = max(now, warp.copied)
    elif base in ("STS", "STSM", "STL"):
        warp.stored = taken
    elif base == "HGMMA" and "gsb0" in ins.operands:
        warp.put(PRODUCTS, done)
    if ins.write < SCOREBOARDS:
        warp.put(ins.write, done)
    if ins.read < SCOREBOARDS:
        warp.put(ins.read, taken)


def estimate(
    code: list[Instruction], warps: int, inner: Sequence[int], ctas: int = 1, spills: str = "L1", walk: bool = True
) -> float:
    """Cycles a chunk of decoded instructions: the difference between walks over two numbers of chunks."""
    few, many = 2, 5
    (short, nested), (long, _) = (chunks(code, inner, count, walk) for count in (few, many))
    costs = [cost(ins, i in nested, spills, min(SCHEDULERS, warps * ctas)) for i, ins in enumerate(code)]
    if len(short) == len(long):
        return simulated(code, long, costs, warps, ctas)
    return (simulated(code, long, costs, warps, ctas) - simulated(code, short, costs, warps, ctas)) / (many - few)


def cycles(
    binary: bytes, warps: int, inner: Sequence[int] = (1,), ctas: int = 1, spills: str = "L1", walk: bool = True
) -> float:
    """Cycles a chunk of a compiled kernel, of all ``ctas`` programs of that many warps on a multiprocessor together.

    ``inner``: how often the loops within the walk over the chunks run. ``spills``: where spilled registers lie, "L1" or
    "L2". ``walk=False``, or without loops: cycles of the program, whose loops run ``inner`` times.
    """
    return estimate(machine_code(binary), warps, inner, ctas, spills, walk)


def machine_code(binary: bytes) -> list[Instruction]:
    return decoded(kernels_resources.disassembled(binary, "cuobjdump", "-sass"))


def at_once(registers: int, warps: int, shared: int) -> int:
    """Programs that a multiprocessor holds: 64 Ki registers, 228 KB of shared memory, a KB of it each, and 64 warps."""
    return min(2**16 // (32 * warps * (registers + -registers % 8)), 228 * 1024 // (shared + 1024), 64 // warps)


def row(compiled: kernels_resources.Compiled) -> dict[str, object]:
    """What is printed of a kernel: cycles1 of one program, cyclesN of a round of as many as fit; serialised
    where every product of the tensor cores is waited for by itself, as those of one step always are."""
    code, walk = machine_code(compiled.binary), compiled.kernel.endswith(("_walk", "_forward", "_backward"))
    registers, spilled, *_ = kernels_resources.resources(compiled.binary)
    inner = (math.ceil(compiled.options.get("DH", 1) / compiled.tile) if compiled.tile else 1,)
    (one, _), (two, _) = (chunks(code, inner, count, walk) for count in (1, 2))
    chunk = (Counter(two) - Counter(one)) or Counter(one)
    local = sum(moved(code[i]) * n for i, n in chunk.items() if code[i].base in ("LDL", "STL"))
    found = {name: getattr(compiled, name) for name in ("kernel", "widths", "chunk", "tile", "warps", "stages")}
    if compiled.options.get("READS") is False:
        found["kernel"] = found["kernel"].replace("forward", "walk")
    groups, products = (sum(ins.name.startswith(name) for ins in code) for name in ("WARPGROUP.ARRIVE", "HGMMA"))
    found |= {
        "serialised": 0 < products <= groups,
        "registers": registers,
        "spilled": spilled,
        "shared": compiled.shared,
    }
    found |= {"instructions": chunk.total(), "local": local * compiled.warps}
    found["at_once"] = most = at_once(registers, compiled.warps, compiled.shared)
    for spills in ("", "_L2"):
        for name, ctas in (("cycles1", 1), ("cyclesN", most)):
            found[name + spills] = round(estimate(code, compiled.warps, inner, ctas, spills[1:] or "L1", walk))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="a file for what is printed")
    rows, seen = [], set()

    def show(compiled):
        if compiled.binary in seen:  # the gates of one depth are those of another
            return
        seen.add(compiled.binary)
        rows.append(found := row(compiled))
        alone, full = ([found[f"cycles{ctas}{spills}"] for spills in ("", "_L2")] for ctas in (1, "N"))
        print(
            f"{compiled}  registers {found['registers']:3}  spilled {found['spilled']:5}  shared {found['shared']:6}  "
            f"instructions {found['instructions']:6}  local {found['local'] / 1024:6.0f} KB  cycles "
            + f"  of {found['at_once']} ".join(" to ".join(f"{n:6}" for n in both) for both in (alone, full)),
            flush=True,
        )

    options = kernels_resources.main(parser, show)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
