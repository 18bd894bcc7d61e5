"""Check the page's libraries against their manifest, or fetch them from npm.

    python tools/vendor.py           check the files against their checksums
    python tools/vendor.py --fetch   fetch the manifest's versions, then write files and checksums

The files ship in the package; the running service fetches nothing.
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
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def fetch() -> None:
    """Fetch every package at its version and write the files that the manifest names."""
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


def differences() -> list[str]:
    """Every difference from the manifest, as a sentence."""
    manifest = json.loads(MANIFEST.read_text())
    checksums = {file["file"]: file["sha256"] for package in manifest["packages"] for file in package["files"]}
    names = {path.name for path in VENDOR.iterdir()} - {MANIFEST.name}
    lines = [f"{name} is not in the manifest" for name in sorted(names - checksums.keys())]
    for name, expected in checksums.items():
        if name not in names:
            lines.append(f"{name} is missing")
        elif checksum((VENDOR / name).read_bytes()) != expected:
            lines.append(f"{name} differs from its checksum in the manifest")
    return lines


if __name__ == "__main__":
    if "--fetch" in sys.argv[1:]:
        fetch()
    sys.exit("\n".join(differences()) or None)
