"""Debian packages that tests need: installed where root runs this on Debian, else named.

`python -m tests.servers.packages` sees to the programs that are no servers. Nothing here knows the project's own code.
"""

import os
import shutil
import subprocess
import sys


class UnavailableError(Exception):
    """A program cannot be had on this machine; the message says why."""


#: Program -> the package that has it.
PROGRAMS = {"strace": "strace", "systemd-analyze": "systemd", "ip": "iproute2"}


def ensure(program: str, package: str) -> None:
    """Install the package where the program is missing. Raises `UnavailableError`."""
    if shutil.which(program) is not None:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise UnavailableError(f"there is no {program} here; on Debian: apt-get install {package}")
    print(f"installing {package}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", package]):
        done = subprocess.run(["apt-get", *command], env=environment, check=False, stdout=sys.stderr)
        if done.returncode:
            raise UnavailableError(f"`apt-get {' '.join(command)}` ended with {done.returncode}")


def main() -> None:
    """Install what is missing. Where it cannot be had, its tests are left out: a failure only where CI is set."""
    for program, package in PROGRAMS.items():
        try:
            ensure(program, package)
        except UnavailableError as error:
            print(f"tests with {program} are left out: {error}", file=sys.stderr)
            if os.environ.get("CI") == "true":
                sys.exit(1)


if __name__ == "__main__":
    main()
