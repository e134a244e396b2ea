"""Transfers packages to a GPU machine without a network, as wheels cut into pieces.

Usage: python benchmarks/wheels.py collect [--to FOLDER] [--python 3.12] [--piece MIB] [PACKAGE...]   (with a network)
       python benchmarks/wheels.py install [--from FOLDER] [--site FOLDER]                            (on the machine)
``collect`` downloads for x86-64 Linux without dependencies: name these too. By default it downloads onnxruntime-gpu and
TensorRT for RTX. ``install`` joins the pieces, compares hashes and unpacks into a folder that the Makefile's GPU
targets put first on the path. Needs only Python and pip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER, SITE, LIST = ROOT / "build" / "gpu-wheels", ROOT / "build" / "gpu-site", "wheels.json"
PACKAGES = ("onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
# pip matches these exactly, and releases differ in the tag that they use.
_PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)))


def collect(packages: Sequence[str], folder: Path, python: str, piece: int) -> list[Path]:
    """Download wheels and cut them into pieces of at most ``piece`` bytes; return the pieces and the list of hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    with tempfile.TemporaryDirectory() as downloads:
        for package in packages:
            _download(package, Path(downloads), python)
        wheels = sorted(Path(downloads).glob("*.whl"))
        pieces = [written for wheel in wheels for written in _cut(wheel, folder, piece)]
        hashes = {wheel.name: _sha256(wheel) for wheel in wheels}
    (folder / LIST).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    return [*pieces, folder / LIST]


def _download(package: str, folder: Path, python: str) -> None:
    """Download a wheel, or build one from a pure Python source distribution."""
    pip = [sys.executable, "-m", "pip"]
    platforms = [argument for platform in _PLATFORMS for argument in ("--platform", platform)]
    chosen = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    done = subprocess.run(
        [*pip, "download", "--quiet", "--no-deps", *chosen, "--dest", str(folder), package],
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.returncode:
        return
    built = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), package]
    before = set(folder.glob("*.whl"))
    again = subprocess.run(built, capture_output=True, text=True, check=False)
    for wheel in set(folder.glob("*.whl")) - before:
        if not wheel.name.endswith("-none-any.whl"):
            sys.exit(f"error: {package} has no wheel for Python {python} on x86-64 Linux")
    if again.returncode:
        sys.exit(f"error: {package} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")


def _cut(wheel: Path, folder: Path, size: int) -> list[Path]:
    pieces = []
    with wheel.open("rb") as content:
        while chunk := content.read(size):
            pieces.append(folder / f"{wheel.name}.{len(pieces):02}")
            pieces[-1].write_bytes(chunk)
    return pieces


def install(folder: Path, site: Path) -> list[str]:
    """Join the pieces and unpack the wheels into ``site``; return their names. Exits if a piece is missing."""
    hashes: dict[str, str] = json.loads((folder / LIST).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as joined:
        for name, expected in hashes.items():
            wheel = Path(joined) / name
            with wheel.open("wb") as content:
                for piece in sorted(folder.glob(f"{name}.*")):
                    content.write(piece.read_bytes())
            if _sha256(wheel) != expected:
                sys.exit(f"error: {name} is not whole: bring all of its pieces, {folder / name}.00 and so on")
        wheels = [str(Path(joined) / name) for name in hashes]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        done = subprocess.run([*command, "--upgrade", "--target", str(site), *wheels], check=False)
    if done.returncode:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(f"error: pip could not install them: were they collected for this Python, with --python {version}?")
    return list(hashes)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Collect or install, and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="download and cut")
    collecting.add_argument("packages", nargs="*", default=PACKAGES)
    collecting.add_argument("--to", type=Path, default=FOLDER)
    collecting.add_argument("--python", default="3.12", help="version of the machine's Python")
    collecting.add_argument("--piece", type=int, default=55, help="most MiB of a piece")
    installing = commands.add_parser("install", help="join and unpack")
    installing.add_argument("--from", dest="source", type=Path, default=FOLDER)
    installing.add_argument("--site", type=Path, default=SITE)
    given = parser.parse_args(argv)
    if given.command == "install":
        print(f"{', '.join(install(given.source, given.site))}: installed into {given.site}")
        return 0
    for path in collect(given.packages, given.to, given.python, given.piece << 20):
        print(f"{path.stat().st_size / 2**20:6.1f} MiB {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
