"""One rank of a test job: `python -m tests.parallel.rank FOLDER DEADLINE LAW...` under a launcher.

Runs each law and writes `LAW.RANK.json` with null or the error's traceback. A failed law ends the job, since the
other ranks may wait for this one. At the deadline, in seconds since 1970, every rank writes where it stands.
"""

import faulthandler
import json
import sys
import time
import traceback
from pathlib import Path

from cxr_hvd.collective.comm import HorovodComm
from cxr_hvd.errors import leave
from tests.parallel import laws


def main() -> None:
    folder, deadline, names = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    comm = HorovodComm()
    with (folder / f"stack.{comm.rank}.txt").open("w") as stack:
        faulthandler.dump_traceback_later(max(1.0, deadline - time.time()), exit=True, file=stack)
        for name in names:
            own = folder / name
            own.mkdir(exist_ok=True)
            said = None
            try:
                getattr(laws, name)(comm, own)
            except BaseException:
                said = traceback.format_exc()
            (folder / f"{name}.{comm.rank}.json").write_text(json.dumps(said))
            if said:
                leave(1)
        faulthandler.cancel_dump_traceback_later()
    comm.close()


if __name__ == "__main__":
    main()
