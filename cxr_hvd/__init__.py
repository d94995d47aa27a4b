"""Train one network at several institutions by partial weight averaging over MPI.

The library's names are imported when they are first used: torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr_hvd.comm.job import Job as Job
    from cxr_hvd.comm.start import join as join
    from cxr_hvd.data.cycle import cycle as cycle
    from cxr_hvd.data.dataset import StudyDataset as StudyDataset
    from cxr_hvd.deploy.network import load_model as load_model
    from cxr_hvd.deploy.predict import predict as predict
    from cxr_hvd.partial.averager import PartialAverager as PartialAverager
    from cxr_hvd.study.study_file import StudyFile as StudyFile

__version__ = "0.1.0"

_MODULES = {
    "Job": "cxr_hvd.comm.job",
    "PartialAverager": "cxr_hvd.partial.averager",
    "StudyDataset": "cxr_hvd.data.dataset",
    "StudyFile": "cxr_hvd.study.study_file",
    "cycle": "cxr_hvd.data.cycle",
    "join": "cxr_hvd.comm.start",
    "load_model": "cxr_hvd.deploy.network",
    "predict": "cxr_hvd.deploy.predict",
}
"""Where each name of the library is at home."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cxr_hvd' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
