"""One rank of a test job: `python -m tests.parallel.rank FOLDER DEADLINE LAW...` under a launcher.

Runs each law and writes `LAW.RANK.json` with null or the error's traceback. A failed law ends the job, since the
other ranks may wait for this one. At the deadline, in seconds since 1970, a rank writes where it stands and ends.
"""

import faulthandler
import json
import os
import sys
import time
import traceback
from pathlib import Path


def main() -> None:
    folder, deadline, names = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["HOROVOD_RANK"]
    with (folder / f"stack.{rank}.txt").open("w") as stack:
        faulthandler.dump_traceback_later(max(1.0, deadline - time.time()), exit=True, file=stack)
        run(folder, names)
        faulthandler.cancel_dump_traceback_later()


def run(folder: Path, names: list[str]) -> None:
    # Slow imports come after the watch above was set.
    from cxr_hvd.collective.comm import start_comm
    from cxr_hvd.errors import leave
    from tests.parallel import command_laws, exchange_laws, laws, stopping_laws

    comm = start_comm()
    for name in names:
        own = folder / name
        own.mkdir(exist_ok=True)
        said, began = None, time.monotonic()
        try:
            modules = (laws, exchange_laws, stopping_laws, command_laws)
            law = next(getattr(module, name) for module in modules if hasattr(module, name))
            law(comm, own)
        except BaseException:
            said = traceback.format_exc()
        (folder / f"{name}.{comm.rank}.json").write_text(json.dumps(said))
        print(f"{name}: {time.monotonic() - began:.2f} s", flush=True)
        if said:
            leave(1)
    comm.close()


if __name__ == "__main__":
    main()
