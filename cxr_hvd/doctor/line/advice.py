"""Which settings fit a line: the mildest under which a step takes little longer than without any exchange. Pure.

The order of preference: exchange every step in float32; average in the background at a pace of at most 8 steps in
float32, then in 16, then in 8 bits; then longer paces. The times are those of `partial.cost`, and so estimates.
"""

from dataclasses import dataclass

from cxr_hvd.partial.cost import SLOW_LINE_FACTOR, Layout, Link, overlapped_s, sum_s

WIRE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
"""The wires that are advised, from the most exact one on, with the bytes of a number."""

SHORT_PACES = (2, 4, 8)
LONG_PACES = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
BESIDE_A_STEP = 1.15
"""A step that takes so many times a step without exchange is left as it is."""

ROOM = 0.9
"""The share of a pace's steps that an exchange may take: lines vary."""

TWO_SITES = Layout(2, 1)
FAST_DELAY_S = 0.5e-3
FAST_BYTES_PER_S = 1e9 / 8


@dataclass(frozen=True)
class LineAdvice:
    """Settings for a line, and what they are expected to cost.

    Attributes:
        line: slow or fast, of `jobs render --set line=`.
        every: steps from one average to the next.
        wire: the type in which weights travel.
        overlap: whether averages run in the background.
        exchange_s: one exchange with these settings, in seconds.
        step_s: a step on average.
        compute_s: a step without any exchange.
        plain_step_s: a step that exchanges everything in float32 and waits for it.
        keeps_up: whether the line carries a round's bytes within its steps; where not, no setting does.
    """

    line: str
    every: int
    wire: str
    overlap: bool
    exchange_s: float
    step_s: float
    compute_s: float
    plain_step_s: float
    keeps_up: bool = True

    @property
    def settings(self) -> tuple[str, ...]:
        """What `--set` gets in `cxr-hvd train`; nothing where the defaults fit."""
        pairs = {"sharing.every": self.every, "sharing.overlap": "true", "sharing.wire": self.wire}
        if not self.overlap:
            return ()
        return tuple(f"{name}={value}" for name, value in pairs.items() if value != "float32")


def choose_line(link: Link) -> str:
    """Return `fast` for a local network, or `slow`: then Open MPI is to send only (decision 0037)."""
    return "fast" if link.delay_s < FAST_DELAY_S and link.bytes_per_s > FAST_BYTES_PER_S else "slow"


def advise(link: Link, exchange_bytes: int, compute_s: float, layout: Layout = TWO_SITES) -> LineAdvice:
    """Choose the mildest settings that fit.

    Args:
        link: the line, with the rate of its slower way.
        exchange_bytes: what a rank hands over in one exchange in float32.
        compute_s: a step without any exchange, in seconds, more than 0.
        layout: sites and ranks.
    """

    float32_s = SLOW_LINE_FACTOR * sum_s([exchange_bytes], layout, link) if exchange_bytes else 0.0
    plain_s, line = compute_s + float32_s, choose_line(link)
    if plain_s <= BESIDE_A_STEP * compute_s:
        return LineAdvice(line, 1, "float32", False, float32_s, plain_s, compute_s, plain_s)
    candidates = [(wire, every) for wire in WIRE_BYTES for every in SHORT_PACES]
    candidates += [(wire, every) for every in LONG_PACES for wire in WIRE_BYTES]
    for wire, every in candidates:
        wire_bytes = exchange_bytes * WIRE_BYTES[wire] // WIRE_BYTES["float32"]
        spent_s = SLOW_LINE_FACTOR * overlapped_s(wire_bytes, every, layout, link)
        keeps_up = spent_s <= ROOM * every * compute_s
        if keeps_up:
            break
    step_s = max(compute_s, spent_s / every)
    return LineAdvice(line, every, wire, True, spent_s, step_s, compute_s, plain_s, keeps_up)
