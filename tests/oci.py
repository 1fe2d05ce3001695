"""An OCI image layout by the image specification, read by json, hashlib and tarfile alone."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image."


@dataclass(frozen=True)
class Image:
    """The image of a target.

    Attributes:
        config: Its configuration.
        layers: The digests of its layers, the lowest first.
        files: What is in it, by name: mode and content.
    """

    config: dict[str, Any]
    layers: tuple[str, ...]
    files: dict[str, tuple[int, bytes]]


def images(folder: Path) -> dict[str, Image]:
    """Those of a layout, by their architectures. Everything in it is held against its digest."""
    assert json.loads((folder / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    seen: set[str] = set()

    def blob(descriptor: dict[str, Any], kind: str) -> bytes:
        assert descriptor["mediaType"] == OCI + kind
        algorithm, digest = descriptor["digest"].split(":")
        assert algorithm == "sha256"
        content = (folder / "blobs" / "sha256" / digest).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert len(content) == descriptor["size"]
        seen.add(digest)
        return content

    index = json.loads((folder / "index.json").read_text())
    assert (index["schemaVersion"], index["mediaType"]) == (2, f"{OCI}index.v1+json")
    (top,) = index["manifests"]
    assert top["annotations"]["org.opencontainers.image.ref.name"] == "latest"
    manifests = [top]
    if top["mediaType"] != f"{OCI}manifest.v1+json":
        manifests = json.loads(blob(top, "index.v1+json"))["manifests"]
    found = {}
    for descriptor in manifests:
        manifest = json.loads(blob(descriptor, "manifest.v1+json"))
        config = json.loads(blob(manifest["config"], "config.v1+json"))
        platform = descriptor["platform"]
        assert platform == {key: config[key] for key in ("os", "architecture")}
        layers = tuple(layer["digest"] for layer in manifest["layers"])
        assert config["rootfs"] == {"type": "layers", "diff_ids": [*layers]}  # not compressed
        assert len(config["history"]) == len(layers)
        files: dict[str, tuple[int, bytes]] = {}
        for layer in manifest["layers"]:
            blob(layer, "layer.v1.tar")
            files |= _unpacked(folder / "blobs" / "sha256" / layer["digest"][7:])
        found[platform["architecture"]] = Image(config, layers, files)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {"oci-layout", "index.json", *(f"blobs/sha256/{digest}" for digest in seen)}
    return found


def _unpacked(layer: Path) -> dict[str, tuple[int, bytes]]:
    """The files of a layer, each of whose folders stands in front of it."""
    files, folders = {}, {""}
    with tarfile.open(layer, "r:") as archive:
        for member in archive:
            assert member.isdir() or member.isreg()
            assert not re.search(r"(^|/)(\.wh\.|\.\.?(/|$))", member.name)
            assert member.name.rpartition("/")[0] in folders
            assert (member.uid, member.gid, member.mtime) == (0, 0, 315532800)
            if member.isdir():
                assert member.mode == 0o755
                folders.add(member.name)
            else:
                content = archive.extractfile(member)
                assert content
                assert not member.name.endswith(".gguf") or member.offset_data % 4096 == 0
                files[member.name] = (member.mode, content.read())
    return files
