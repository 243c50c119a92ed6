"""Wheels for tests: made up, or repacked from what is installed here, so that none is fetched."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

CLOSURE = ("onnxruntime", "numpy", "protobuf", "packaging", "flatbuffers")
"""What ONNX Runtime needs, itself included."""
WORKS = b"print('{\"ok\": true}', flush=True)\n__import__('os')._exit(0)\n"
"""A module in place of ONNX Runtime that only says that it works."""


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    tag: str = "py3-none-any",
    *,
    requires: Iterable[str] = (),
    python: str = "",
    files: Mapping[str, bytes] | None = None,
    record: Mapping[str, str] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write a wheel; `record` changes lines of its RECORD, to none where the value is empty."""
    info = f"{name}-{version}.dist-info"
    headers = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    headers += [f"Requires-Dist: {one}" for one in requires]
    headers += [f"Requires-Python: {python}"] if python else []
    content = dict(files or {f"{name}/__init__.py": b"VERSION = '%s'\n" % version.encode()})
    content[f"{info}/METADATA"] = "\n".join((*headers, "", "")).encode()
    content[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nTag: {tag}\n".encode()
    lines = {path: f"{path},sha256={_sum(data)},{len(data)}" for path, data in content.items()}
    lines[f"{info}/RECORD"] = f"{info}/RECORD,,"
    lines |= record or {}
    content[f"{info}/RECORD"] = "\n".join((*filter(None, lines.values()), "")).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for one, data in content.items():
            archive.writestr(one, data)
    return path


def repack(folder: Path) -> Path:
    """Write wheels of ONNX Runtime as it is installed here, with all that it needs.

    What only tests and tools need is left out.
    """
    for name in CLOSURE:
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed here")
        tags = re.findall(r"^Tag: (\S+)", found.read_text("WHEEL") or "", re.M)
        files = {
            str(one): Path(str(found.locate_file(one))).read_bytes()
            for one in found.files or ()
            if not re.search(
                r"(^|/)(\.\.|tests|__pycache__|transformers|quantization)(/|$)", str(one)
            )
            and not re.search(r"\.dist-info/|\.pyc$|\.pyi$|\.a$", str(one))
        }
        requires = [one for one in found.requires or () if "extra" not in one]
        make_wheel(
            folder, name, found.version, _joined(tags), requires=requires, files=files
        )  # fmt: skip
    return folder


def interpreter() -> str:
    """Return the Python that the packages here were built for, without its environment."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def _joined(tags: list[str]) -> str:
    """Several tags as one file name has them."""
    return "-".join(
        ".".join(dict.fromkeys(part)) for part in zip(*(t.split("-") for t in tags), strict=True)
    )


def _sum(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
