"""The sharing plan as `plan.json` holds it."""

from cxr_hvd.ledger.plan_record import BufferRecord, PlanRecord, TensorRecord
from cxr_hvd.partial.plan import SharingPlan


def plan_record(plan: SharingPlan) -> PlanRecord:
    """Return a whole plan as `plan.json` holds it and the audit of a ledger reads it."""
    return PlanRecord(
        exchange=plan.exchange,
        wire=plan.wire,
        every=plan.every,
        overlap=plan.overlap,
        delay=plan.delay,
        moments=list(plan.moments),
        tensors=[
            TensorRecord(
                name=planned.spec.name,
                block=planned.spec.block,
                kind=str(planned.spec.kind),
                shape=list(planned.spec.shape),
                dtype=planned.spec.dtype,
                scope=str(planned.scope),
            )
            for planned in plan.tensors
        ],
        buffers=[
            BufferRecord(
                purpose=buffer.purpose,
                block=buffer.name,
                of_block=buffer.block,
                fragment=buffer.fragment,
                num_elements=buffer.num_elements,
                dtype=buffer.dtype,
                scope=str(buffer.scope),
                bytes_per_exchange=buffer.num_bytes,
            )
            for buffer in plan.buffers()
        ],
    )
