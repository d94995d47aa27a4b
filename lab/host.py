"""One host of `lab.two_hosts`: a user with a home of mode 0700, and an sshd with a view of the file system.

The user must be able to read this checkout and its Python. Folders below one that is closed to users (/root, as a
rule) are mounted into a private view of the file system that the host has; the closed folder itself stays closed.
"""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import janitor
from lab.commands import output_of, running, wait_until
from lab.launch import BIN, PROJECT
from lab.two_sites import Site

PORT = 2222

SSHD = """\
Port {port}
HostKey {folder}/host_key
PidFile none
UsePAM no
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
AllowUsers {user}
AuthorizedKeysFile .ssh/authorized_keys
PrintMotd no
LogLevel ERROR
"""


@dataclass(frozen=True)
class Host:
    """One host: namespace, user, home, and the process of its sshd, which holds its view of the files."""

    site: Site
    user: str
    home: Path
    sshd: int

    def command(self, *command: str) -> list[str]:
        """Return a command that runs the given one as this host's user, in its home, as after a login."""
        variables = [
            f"HOME={self.home}",
            f"USER={self.user}",
            f"LOGNAME={self.user}",
            "LANG=C.UTF-8",
            "COLUMNS=200",
        ]
        variables += [f"PATH={BIN}:/usr/local/bin:/usr/bin:/bin", "OMP_NUM_THREADS=1"]
        user = [f"--reuid={self.user}", f"--regid={self.user}", "--init-groups"]
        return [*self.as_root("setpriv", *user), "env", "-i", "-C", str(self.home), *variables, *command]

    def as_root(self, *command: str) -> list[str]:
        """Return a command that runs the given one at this host as root."""
        return ["nsenter", "--target", str(self.sshd), "--mount", "--uts", "--net", *command]


@contextmanager
def user_with_home(name: str, home: Path) -> Iterator[None]:
    """Make a user that nobody can log in as by a password, and its home of mode 0700."""
    janitor.run_at_end("userdel", "--force", name)
    output_of(
        ["useradd", "--no-create-home", "--no-log-init", "--home-dir", str(home), "--shell", "/bin/sh", name]
    )
    try:
        output_of(["usermod", "-p", "*", name])  # not locked, and no password fits
        home.mkdir(mode=0o700)
        (home / ".ssh").mkdir(mode=0o700)
        for path in (home, home / ".ssh"):
            shutil.chown(path, name, name)
        uid = home.stat().st_uid
        yield
    finally:
        _remove_user(name)
        for folder in (path for path in Path("/tmp").glob("ompi.*") if path.name.endswith(f".{uid}")):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_user(name: str) -> None:
    """Remove a user whose processes were ended; the kernel may need a moment for them."""
    for is_last in (False, False, False, True):
        try:
            output_of(["userdel", *(["--force"] if is_last else []), name])
            return
        except RuntimeError:
            if is_last:
                raise
            time.sleep(0.5)


@contextmanager
def running_sshd(site: Site, user: str, folder: Path) -> Iterator[int]:
    """Run an sshd at a site, with a view of the file system of its own; yield its process id."""
    config = folder / f"sshd-{site.host}"
    config.write_text(SSHD.format(port=PORT, folder=folder, user=user))
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    script = "\n".join(["set -e", *_view([PROJECT, Path(sys.prefix), Path(sys.base_prefix), folder])])
    command = site.command("sh", "-c", f'{script}\nexec "$0" "$@"', sshd, "-D", "-e", "-f", str(config))
    with running(command) as process:
        listening = f":{PORT:04X} "
        wait_until(lambda: listening in Path("/proc", str(process.pid), "net/tcp").read_text(), "an sshd", process)
        yield process.pid


def _view(needed: Iterable[Path]) -> list[str]:
    """Return the shell's lines that make paths reachable for everybody, where a folder above them is closed.

    Inside a private view: a closed folder is covered by an empty one that is open, with the needed ones in it.
    """
    lines = ["mount -t tmpfs -o mode=755 tmpfs /run", "mkdir /run/sshd"]
    resolved = sorted({path.resolve() for path in needed})
    tops = [path for path in resolved if not any(above in resolved for above in path.parents)]
    closed: dict[Path, list[Path]] = {}
    for path in tops:
        above = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        if above:
            closed.setdefault(above[0], []).append(path)
    for root, below in closed.items():
        staged = [(f"/run/staged-{number}", path) for number, path in enumerate(below)]
        lines += [f"mkdir {stage} && mount --bind '{path}' {stage}" for stage, path in staged]
        lines += [f"mount -t tmpfs -o mode=755 tmpfs '{root}'"]
        lines += [f"mkdir -p '{path}' && mount --move {stage} '{path}' && rmdir {stage}" for stage, path in staged]
    return lines
