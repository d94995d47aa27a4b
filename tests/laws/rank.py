"""One rank of a test job: `python -m tests.laws.rank FOLDER DEADLINE LAW...` under a launcher.

Runs each law and writes `LAW.RANK.json` with null or the error's traceback. A failed law ends the job, since the
other ranks may wait for this one. At the deadline, in seconds since 1970, a rank writes where it stands and ends;
`CXR_LAW_LIMIT_S` bounds each law as well, counted from its start.
"""

import faulthandler
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    folder, deadline, names = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["HOROVOD_RANK"]
    with (folder / f"stack.{rank}.txt").open("w") as stack:

        def end_after(limit_s: float) -> None:
            left_s = min(limit_s, deadline - time.time())
            faulthandler.dump_traceback_later(max(1.0, left_s), exit=True, file=stack)

        end_after(math.inf)
        run(folder, names, end_after)
        faulthandler.cancel_dump_traceback_later()


def run(folder: Path, names: list[str], end_after: Callable[[float], None]) -> None:
    # Slow imports come after the watch above was set.
    from cxr_hvd.comm.start import start_comm
    from cxr_hvd.errors import leave
    from tests.laws.law import load_laws

    laws = load_laws()
    comm = start_comm()
    for name in names:
        own_folder = folder / name
        own_folder.mkdir(exist_ok=True)
        error, began = None, time.monotonic()
        end_after(float(os.environ.get("CXR_LAW_LIMIT_S", "inf")))
        try:
            laws[name].function(comm, own_folder)
        except BaseException:
            error = traceback.format_exc()
        (folder / f"{name}.{comm.rank}.json").write_text(json.dumps(error))
        print(f"{name}: {time.monotonic() - began:.2f} s", flush=True)
        if error:
            leave(1)
    comm.close()


if __name__ == "__main__":
    main()
