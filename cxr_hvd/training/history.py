"""What all ranks remember of the validations before: the best of them, and how long ago it was."""

from cxr_hvd.record import Record, Share, Step


class History(Record):
    """The validations of a run so far; part of a checkpoint's record.

    Attributes:
        best_auroc: the best that was agreed on; None before the first.
        best_step: after how many steps that was.
        num_since_best: validations since then.
    """

    best_auroc: Share | None = None
    best_step: Step | None = None
    num_since_best: Step = 0

    def after(self, step: int, agreed_auroc: float | None, min_delta: float) -> "History":
        """Return the history with one more validation. Pure."""
        is_best = agreed_auroc is not None and (
            self.best_auroc is None or agreed_auroc > self.best_auroc + min_delta
        )
        if is_best:
            return History(best_auroc=agreed_auroc, best_step=step)
        return self.model_copy(update={"num_since_best": self.num_since_best + 1})
