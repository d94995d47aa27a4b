"""A site's run folder: where its files are, its records, and what others may learn from it while a run goes on.

`runs/NAME/SITE/` belongs to one site, has mode 0700, and is written by that site's ranks alone: config, plan and
environment, metrics, ledgers, status of each rank, and the checkpoints that `checkpoint` writes and reads.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors

from cxr_hvd.config.file import load_config
from cxr_hvd.config.schema import Config
from cxr_hvd.errors import CheckpointError, UsageError
from cxr_hvd.files import point_link, read_plain, write_text
from cxr_hvd.yaml_text import dump_yaml

LATEST, BEST = "latest", "best"
MAX_LOG_BYTES = 1 << 31


class RunFolder:
    """The folder `run/SITE` of one site."""

    def __init__(self, run: Path, site: str) -> None:
        self.run = run
        self.path = run / site
        self.checkpoints = self.path / "checkpoints"

    def check_new(self) -> None:
        """Check that the folder holds no run.

        Raises:
            CheckpointError: it does.
        """
        if self.has_run():
            raise CheckpointError(
                f"{self.path} holds a run already: go on with --resume auto, replace it with --overwrite, "
                "or name another with --run"
            )

    def check_resumable(self) -> None:
        """Check that there is something to go on from.

        Raises:
            UsageError: there is no checkpoint.
        """
        if not self.steps():
            raise self.nothing_to_resume()

    def nothing_to_resume(self) -> UsageError:
        """Return the error of a run that is to go on from what is not there."""
        return UsageError(f"{self.path}: nothing to resume; start with --resume auto, or without")

    def open_new(self, overwrite: bool) -> None:
        """Make the folder, empty.

        Raises:
            CheckpointError: it holds a run already, and `overwrite` is False; or other files and no run.
        """
        is_run = self.has_run()
        if not overwrite:
            self.check_new()
        try:
            if not is_run and self.path.is_dir() and any(map(_is_strange, self.path.iterdir())):
                raise CheckpointError(
                    f"{self.path}: expected a run or nothing, found files that are of no run and are not "
                    "replaced; name another with --run"
                )
            if is_run:
                shutil.rmtree(self.path)
            self.checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot make the run folder ({error.strerror})") from error

    def has_run(self) -> bool:
        """Return whether a run was started in the folder."""
        marks = (self.checkpoints, self.path / "plan.json", self.path / "environment.json")
        return (self.path / "config.yaml").is_file() and any(mark.exists() for mark in marks)

    def write_record(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON or YAML record of the run, by the ending of `name`."""
        is_yaml = name.endswith(".yaml")
        text = dump_yaml(dict(content)) if is_yaml else json.dumps(content, indent=1)
        with disk_errors(self.path / name):
            write_text(self.path / name, text + "\n")

    def config(self, settings: tuple[str, ...] = ()) -> Config:
        """Read back the config that the run was started with."""
        if not (self.path / "config.yaml").is_file():
            raise CheckpointError(f"{self.path}: no run of a site here; expected config.yaml and checkpoints/")
        config = load_config(self.path / "config.yaml", settings)
        if self.path.name not in config.sites:
            raise CheckpointError(
                f"{self.path}: expected the folder of a site of its config.yaml, which names "
                f"{', '.join(config.sites)}; do not rename folders of sites"
            )
        return config

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint after so many steps is, or would be."""
        return self.checkpoints / f"step-{step}"

    def judged_checkpoint(self) -> Path:
        """Return the best checkpoint by validation, or the latest where nothing was validated."""
        best = self.checkpoints / BEST
        return best if best.exists() else self.checkpoints / LATEST

    def steps(self) -> list[int]:
        """Return the steps after which there is a checkpoint, the newest first."""
        names = [path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*")]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def go_back_to(self, step: int) -> None:
        """Point `latest` at a checkpoint, and remove newer and unfinished ones and later rows of its logs."""
        with disk_errors(self.path):
            point_link(self.checkpoints / LATEST, self.checkpoint(step))
            for newer in (other for other in self.steps() if other > step):
                shutil.rmtree(self.checkpoint(newer))
            for unfinished in self.checkpoints.glob(".*.part"):
                if unfinished.is_symlink():
                    unfinished.unlink()
                else:
                    shutil.rmtree(unfinished, ignore_errors=True)
            if not (self.checkpoints / BEST).exists():
                (self.checkpoints / BEST).unlink(missing_ok=True)
            cut_rows(self.path / "metrics.jsonl", step)
            cut_rows(self.path / "validation.jsonl", step)


def _is_strange(entry: Path) -> bool:
    """Say whether something is there that no run begins with: it makes `checkpoints` and a file beside a name."""
    return entry.name != "checkpoints" and not entry.name.endswith(".part")


def cut_rows(path: Path, first_step: int) -> None:
    """Keep the rows of a log before `first_step`: the others will be written again. Half a row is cut, too."""
    if not path.exists():
        return
    kept = []
    for line in read_plain(path, MAX_LOG_BYTES).decode(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] >= first_step:
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))


def sites_in(run: Path) -> list[str]:
    """Return the names of the sites whose folders are in a run and may be read from here."""
    sites = sorted(path.parent.name for path in run.glob("*/config.yaml"))
    if not sites:
        raise CheckpointError(f"{run}: no run here; expected one folder for each site, as `cxr-hvd train` makes")
    return sites


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one line."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot write ({error}); what was there before is whole: free the disk, then use "
            "--resume auto"
        ) from error
