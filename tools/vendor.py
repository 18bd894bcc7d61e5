"""Bring the page's libraries from npm again, or check that they are what the manifest says.

    python tools/vendor.py           check the files against their checksums
    python tools/vendor.py --fetch   fetch the versions in the manifest, and write files and checksums

Nothing is fetched when the service runs: the files are in the package.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "exporter" / "tachograph_exporter" / "web" / "vendor"
MANIFEST = VENDOR / "manifest.json"


def checksum(content: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()


def fetch() -> None:
    """Fetch every package at its version and keep the files that the manifest names."""
    manifest = json.loads(MANIFEST.read_text())
    for package in manifest["packages"]:
        with tempfile.TemporaryDirectory() as directory:
            command = ["npm", "pack", "--silent", f"{package['name']}@{package['version']}"]
            subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - from the manifest
            (archive,) = Path(directory).glob("*.tgz")
            with tarfile.open(archive) as files:
                for file in package["files"]:
                    member = files.extractfile(f"package/{file['from']}")
                    if member is None:
                        raise FileNotFoundError(f"{package['name']} has no {file['from']}")
                    content = member.read()
                    (VENDOR / file["file"]).write_bytes(content)
                    file["sha256"] = checksum(content)
    MANIFEST.write_text(json.dumps(manifest, indent=2) + "\n")


def faults() -> list[str]:
    """What differs from the manifest."""
    manifest = json.loads(MANIFEST.read_text())
    known = {file["file"]: file["sha256"] for package in manifest["packages"] for file in package["files"]}
    there = {path.name for path in VENDOR.iterdir()} - {MANIFEST.name}
    found = [f"{name} is not in the manifest" for name in sorted(there - known.keys())]
    for name, wanted in known.items():
        if name not in there or checksum((VENDOR / name).read_bytes()) != wanted:
            found.append(f"{name} is not what the manifest says")
    return found


if __name__ == "__main__":
    if "--fetch" in sys.argv[1:]:
        fetch()
    sys.exit("\n".join(faults()) or None)
