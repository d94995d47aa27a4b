"""What measurements on a GPU come to: what bounds a step, and whether a candidate is worth a setting."""

from bench.gpu_checks import NO_GPU, SPEED
from bench.guarded import Figures, Record

PAYS = 1.15
"""A candidate is worth a setting from this ratio on."""
BUSY = 0.85
"""A GPU that works for less than this share of a step waits for launches."""
WAITS_FOR_DATA = 0.1


def draw_conclusions(content: Record) -> None:
    """Draw the conclusions: the tenth check, what bounds a step, and whether a candidate pays."""
    records: dict[str, Record] = content["measurements"]
    steps = {name: record for name, record in records.items() if name.startswith(("step-", "kernels-"))}
    failed = [name for name, record in steps.items() if record["verdict"] != "pass"]
    speed: Record = {"verdict": "fail" if failed else "pass", "reason": ", ".join(failed), "seconds": 0.0}
    speed["seconds"] = round(sum(record["seconds"] for record in steps.values()), 2)
    if content["machine"].get("measured_on") == "cpu":
        speed["reason"] = speed["reason"] or "no GPU: sizes are tiny, and operators count as kernels"
    content.setdefault("checks", {})[SPEED] = speed
    on_gpu = content["machine"].get("measured_on", "cpu") != "cpu"
    bounds = {}
    for name, record in records.items():
        kind, _, setting = name.partition("-")
        if kind == "kernels" and record["verdict"] == "pass":
            run = records.get(f"run-{setting.partition('-')[2]}", {}).get("figures")
            bounds[setting] = bound_by(record["figures"], run) if on_gpu else NO_GPU
    candidates = {kind: judge(records, kind) for kind in ("cuda-graphs", "compile")}
    content["conclusions"] = {"bounds": bounds, "candidates": candidates}
    for name, conclusion in {**bounds, **candidates}.items():
        print(f"{name}: {conclusion}", flush=True)


def bound_by(kernels: Figures, run: Figures | None) -> str:
    """Say what bounds a step: data, launches, memory or arithmetic.

    Args:
        run: figures of a run with its loader at this batch size, where there are any.
    """
    if run and run["waiting_for_data"] > WAITS_FOR_DATA:
        return f"data: {run['waiting_for_data']:.0%} of a run is spent waiting for the loader"
    if kernels["busy_share"] < BUSY:
        return f"launches: the GPU works for {kernels['busy_share']:.0%} of a step of {kernels['kernels']} kernels"
    convolving = kernels["shares"].get("convolutions", 0.0)
    if convolving < 0.5:
        return f"memory: {1 - convolving:.0%} of the GPU's time is in norms, copies and elementwise kernels"
    return f"arithmetic: {convolving:.0%} of the GPU's time is in convolutions"


def judge(records: dict[str, Record], kind: str) -> str:
    """Say whether a candidate is worth a setting."""
    taken = {name: record["figures"] for name, record in records.items() if is_taken(name, kind, record)}
    if not taken:
        return "not measured: no setting"
    gains = [f"batch {name.rpartition('-')[2]} {taken[name]['bare_to_candidate']['median']}" for name in taken]
    if any(figures["pays"] for figures in taken.values()):
        return f"pays {PAYS} or more: {', '.join(gains)}"
    return f"does not reach {PAYS}, no setting: {', '.join(gains)}"


def is_taken(name: str, kind: str, record: Record) -> bool:
    """Return whether this is a real measurement of that candidate."""
    return name.startswith(f"{kind}-") and record["verdict"] == "pass" and record["figures"]["is_real"]
