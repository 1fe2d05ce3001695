"""The commands `runtimes list` and `runtimes build`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pyllamafile import native
from pyllamafile.cli import screen
from pyllamafile.cli.options import target_option
from pyllamafile.cli.screen import amount, complain, fail, print_table, say
from pyllamafile.errors import PyllamafileError
from pyllamafile.runtimes import Runtime
from pyllamafile.targets import TARGETS, WITH_GPU, host, select


@click.command("list")
def list_runtimes() -> None:
    """Say which runtimes are at hand.

    They are in the package or in the cache. Second programs, which can use a GPU, stand below the
    others. They are packed as what they have beside the first.
    """
    rows = []
    for target in (*TARGETS.values(), *WITH_GPU.values()):
        found = native.find(target)
        facts = ["not built", *[""] * 5]
        if found:
            size, packed = amount(found.size), amount(found.packed_size)
            levels = " ".join(found.levels)
            facts = [found.origin, found.llama_cpp, levels, size, packed, found.sha256[:16]]
        rows.append([target.name, *facts])
    if blob := native.find_shaders():
        where = "package" if blob.parent == native.PREBUILT else "cache"
        rows.append(["shaders", where, "", "", "", amount(blob.stat().st_size), ""])
    print_table(("target", "where", "llama.cpp", "levels", "size", "packed", "sha256"), rows)


@click.command("build")
@target_option("A target or a group. Repeat it for several.  [default: this system]")
@click.option("--all", "everything", is_flag=True, help="Compile all targets.")
@click.option("--gpu", is_flag=True, help="Compile what uses GPUs, too: programs and shaders.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    help="Compilers that run at once.  [default: one per processor]",
)
def build_runtimes(targets: tuple[str, ...], everything: bool, gpu: bool, jobs: int | None) -> None:
    """Compile the runtimes that are missing, and the web GUI.

    pip fetches llama.cpp's source, which is in the sdist of llama-cpp-python. zig compiles it, on
    any system for any target. The web GUI is built at the same time. What is finished stays if
    something else fails. The same command then goes on from there.

    With --gpu it also compiles the second programs of these targets, which can use a GPU, and the
    shaders for those that do so by Vulkan. For Linux each takes as long as a runtime, else two or
    three minutes, and the shaders take seven. `build` puts into a file what is at hand.
    """
    here = host()
    if everything:
        wanted = tuple(TARGETS.values())
    elif targets:
        wanted = select(targets)
    elif here:
        wanted = (here,)
    else:
        raise PyllamafileError("this system is no target", hint="name one with --target, or --all")
    if gpu:
        names = {target.name for target in wanted}
        wanted += tuple(each for each in WITH_GPU.values() if each.plain in names)
    there = {target.name: native.find(target) for target in wanted}
    for found in filter(None, there.values()):
        say(_line(found))
    if gui := native.find_gui():
        say(_line(gui))
    vulkan = any(target.gpu == "vulkan" for target in wanted)
    if vulkan and (found_shaders := native.find_shaders()):
        say(_line(found_shaders))
    missing = [target for target in wanted if not there[target.name]]
    shaders = vulkan and not found_shaders
    if not missing and gui and not shaders:
        return
    failed = []

    def complained(name: str, error: PyllamafileError) -> None:
        complain(error.message, error.hint)
        failed.append(name)

    with screen.progress(words=True) as tell:
        native.build_all(
            missing,
            gui=not gui,
            shaders=shaders,
            jobs=jobs,
            progress=tell,
            finished=lambda made: say(_line(made)),
            failed=complained,
        )
    count = len(missing) + (not gui) + shaders
    if failed and count > 1:
        fail(
            f"{len(failed)} of {count} failed: {', '.join(failed)}",
            hint="what was built stays; the same command tries the rest again",
        )
    if failed:
        sys.exit(1)


def _line(made: Runtime | Path) -> str:
    if isinstance(made, Path):
        return f"{'web GUI' if made.suffix == '.zip' else 'shaders'}  {made}"
    return f"{made.target}  {amount(made.size)}  {made.path}"
