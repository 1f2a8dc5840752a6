"""Problem: what a step asks for. Kernel: one row that can do it. Knows no backend and no numbers of a network."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.encoding import FIELD_BITS, Encoding

F32 = "f32"


FEW_LEVELS = 15  # that bit slices compare with (few_levels of csrc/kernels/dispatch.cc)


@dataclass(frozen=True, slots=True)
class Problem:
    """One operation of the flat program, as far as the choice of a kernel depends on it.

    `op`: a name of the program's steps; `w`: encoding of the weights, None without; `a`: what the step reads, an
    encoding or "f32"; `rows`: output channels; `depth`: K of one row (a pool: its window); `pixels`: output pixels;
    `tiles`: of 2 x 2 of them, where windows are 3 x 3 and one pixel apart, else 0; `largest`: |level| of 8-bit weights
    at hand, 0: as `w` has; `reach`: rows of the input that a window spans; `digits`: signed powers of two of a weight
    of at most 4 bits, on average, 0: all codes being as common; `by_law`: outputs are more than `FEW_LEVELS`, or
    residuals come in.
    """

    op: str
    w: Encoding | None
    a: Encoding | str
    rows: int = 1
    depth: int = 1
    pixels: int = 1
    groups: int = 1
    tiles: int = 0
    largest: int = 0
    reach: int = 1
    digits: float = 0.0
    by_law: bool = False

    @property
    def w_bits(self) -> int:
        """Bits of a weight, 0 without weights."""
        return 0 if self.w is None else self.w.bits

    @property
    def a_bits(self) -> int:
        """Bits of what is read; a float counts as 32."""
        return self.a.bits if isinstance(self.a, Encoding) else 32

    @property
    def bits(self) -> str:
        """For people: "w4a8", "a8", "f32"."""
        a = f"a{self.a_bits}" if isinstance(self.a, Encoding) else F32
        return a if self.w is None else f"w{self.w_bits}{a}"


def tiles(out: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> int:
    """Of 2 x 2 outputs that cover `out` where windows of 3 x 3 lie one pixel apart, without dilation; else 0."""
    near = kernel == (3, 3) and stride == dilation == (1, 1) and out != (1, 1)
    return -(-out[0] // 2) * -(-out[1] // 2) if near else 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of the table: which problems it computes exactly. `isa` is "reference" where numpy runs it.

    `lanes`, `group`: as kernels.def explains them.
    """

    name: str
    family: str
    op: str
    isa: str
    w_bits: range
    a_bits: range
    lanes: int = 1
    group: int = 1

    def fits(self, problem: Problem) -> str | None:
        """None if the row computes `problem`, else why not."""
        if problem.op != self.op:
            return f"computes {self.op}, not {problem.op}"
        for side, bits, known in (("w", problem.w_bits, self.w_bits), ("a", problem.a_bits, self.a_bits)):
            if bits not in known:
                return f"has {side}{known.start}..{side}{known.stop - 1}, not {side}{bits}"
        if self.family.startswith("winograd") and problem.tiles == 0:
            return "computes windows of 3 x 3, one pixel apart"
        if problem.w is not None and problem.w.bits not in FIELD_BITS:
            return f"has weights stored in {', '.join(map(str, FIELD_BITS))} bits, not {problem.w.bits}"
        if isinstance(problem.a, Encoding) and (problem.a.offset or not problem.a.has_zero or problem.a.name == "t2"):
            return f"has activations u1..u8 and i2..i8, not {problem.a.name}"
        return None
