"""The command that makes something else of a file: `export`."""

from __future__ import annotations

from pathlib import Path

import click

import pyllamafile
from pyllamafile.cli import screen
from pyllamafile.cli.options import PATH, target_option
from pyllamafile.cli.screen import amount, bold, say, shown


@click.command()
@click.argument("file", type=PATH)
@click.option("--oci", type=PATH, required=True, metavar="DIR", help="The folder, which is made.")
@target_option("A Linux that the image is for. Repeat it.  [default: those of FILE]")
@click.option("--force", is_flag=True, help="Replace an image that exists.")
def export(file: Path, oci: Path, targets: tuple[str, ...], force: bool) -> None:
    """Write a llamafile as an image for containers.

    DIR becomes an OCI image layout, which podman, skopeo, umoci and buildah read, and registries
    take. No program for containers is needed to make it. Of each model there is a layer, which
    stays the same when `pyllamafile upgrade` changes the engine. FILE stays as it is.

    A container of it is the server at port 8080, and runs without root. It asks for a key: its
    log has one, or LLAMA_API_KEY gives yours. Arguments behind the image's name are the
    program's, as those behind FILE are.

    \b
    Examples:
      pyllamafile export phi3.llamafile --oci phi3-image
      podman pull oci:phi3-image
      skopeo copy --all --preserve-digests oci:phi3-image:latest docker://registry.example/phi3
    """  # noqa: D301
    with screen.progress() as tell:
        done = pyllamafile.export(file, oci, targets=targets, force=force, progress=tell)
    say(bold(str(done.path)), f" {amount(done.size)}  {done.digest}")
    for layer in done.layers:
        what = f"{layer.kind:<8}  {amount(layer.size):>8}  {layer.digest[:19]}  {layer.name}"
        say(f"  {shown(what)}")
