"""Installs this package into the Python that runs it, as it lies here and without its binaries: for work and tests.

    path/to/venv/bin/python dev_install.py

Takes no time and needs no compiler. The service's program is then named by ``GLIDEPATH_SPAWNER_BIN``. The wheel with
the binaries is made by ``build_wheel.sh``.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

NAME = "jupyterhub_glidepath"
VERSION = "0.1.0"
ENTRY_POINTS = """[jupyterhub.spawners]
glidepath = jupyterhub_glidepath.spawner:GlidepathSpawner
"""


def main() -> None:
    packages = Path(sysconfig.get_path("purelib"))
    if sys.prefix == sys.base_prefix:
        sys.exit("run this with the Python of a virtual environment")
    write_info(packages)
    source = Path(__file__).resolve().parent / "src"
    (packages / f"{NAME}.pth").write_text(f"{source}\n")
    print(f"jupyterhub-glidepath is {source} in {packages}")


def write_info(packages: Path) -> None:
    """Has whoever looks into this folder find the package's name, version and entry point."""
    info = packages / f"{NAME}-{VERSION}.dist-info"
    shutil.rmtree(info, ignore_errors=True)
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: jupyterhub-glidepath\nVersion: {VERSION}\n")
    (info / "INSTALLER").write_text("dev_install.py\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    record = [f"{info.name}/{name},," for name in ("METADATA", "INSTALLER", "entry_points.txt", "RECORD")]
    (info / "RECORD").write_text("\n".join([*record, f"{NAME}.pth,,", ""]))


if __name__ == "__main__":
    main()
