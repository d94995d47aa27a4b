"""How flat values become a mean: over all sites, as the wire sends them, or over the ranks of one site."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from cxr_hvd.comm.communicator import Parts, Wait
from cxr_hvd.comm.job import Job
from cxr_hvd.partial.buffers import FlatBuffer
from cxr_hvd.partial.wire import ShortWire, Wire32


class SharedMean:
    """The weighted mean over all ranks of values that follow a flat buffer of the model.

    On a short wire each rank sends how far its values are from the last mean, which all know, rather than where
    they are: small numbers keep their leading digits in few bits. All ranks start from equal buffers then.

    Args:
        name: tells this mean from others on the same wire.
        flat: of the model, as all ranks have it at the start.
        purpose: what travels, as the traffic table knows it.
        factor: what this rank's values count; all ranks' add up to 1.
    """

    def __init__(self, name: str, flat: FlatBuffer, purpose: str, wire: Wire32 | ShortWire, factor: float) -> None:
        self._name = name
        self._flat = flat
        self._purpose = purpose
        self._wire = wire
        self._factor = factor
        self._reference = flat.values.clone() if isinstance(wire, ShortWire) else None

    def begin(self, values: Tensor) -> Wait[None]:
        """Begin to replace values by their mean, in place; it is there after the wait. Collective: all ranks."""
        reference = self._reference
        if reference is None:
            return self._send(values.mul_(self._factor))
        way = (values - reference).mul_(self._factor)
        wait = self._send(way)

        def wait_and_take() -> None:
            wait()
            values.copy_(reference.add_(way))

        return wait_and_take

    def _send(self, values: Tensor) -> Wait[None]:
        return self._wire.begin_allreduce(self._name, replace(self._flat, values=values), self._purpose)

    def state(self) -> dict[str, Tensor]:
        """Return what has to be kept from one mean to the next: on a short wire the last mean."""
        return {} if self._reference is None else {f"reference/{self._name}": self._reference}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put it back."""
        if self._reference is not None:
            self._reference.copy_(state[f"reference/{self._name}"])


class SiteMean:
    """The mean over the ranks of one site, in float32."""

    def __init__(self, parts: Parts, job: Job) -> None:
        self._parts = parts
        self._job = job

    def begin(self, values: Tensor) -> Wait[None]:
        """Begin to replace values by their mean over the site, in place. Collective: the site's ranks."""
        values.div_(self._job.num_ranks_of_site)
        return self._job.comm.begin_allreduce(values, "private", self._parts, "site")
