"""What a file runs with: out of the package, the cache, a wheel of ours, or another llamafile."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from pyllamafile import arguments, documents, native, passages, persona, plan, zipalign
from pyllamafile.errors import (
    AccessError,
    DamagedError,
    NotFoundError,
    PyllamafileError,
    RefusedError,
    UnavailableError,
)
from pyllamafile.launcher import HeadProgram, dressed, pack
from pyllamafile.launcher.rsrc import Look
from pyllamafile.llamafile import (
    DOCUMENTS,
    GUI,
    GUI_NOTICES,
    LICENSES,
    PERSONA,
    PROOF,
    READ,
    RUNTIME,
    SHADERS,
    Llamafile,
    is_text,
    misfits,
    of_archive,
    second_name,
)
from pyllamafile.models import tiny
from pyllamafile.native import trial
from pyllamafile.ops.verify import verify
from pyllamafile.persona import Persona
from pyllamafile.progress import Progress, Step
from pyllamafile.runtimes import Runtime, Second
from pyllamafile.targets import TARGETS, WITH_GPU, Target, host, select, with_gpu
from pyllamafile.zipalign import Archive, Entry, Member

Format = Literal["portable", "elf"]
"""What a file is to the system that starts it: a script that is a Windows program, too, where it
has one; or an ELF program."""

_PREBUILT = "pyllamafile/native/prebuilt/"  # in a wheel of ours
_MOST_PROGRAM = 256 << 20  # bytes of a packed one; they have some MiB
_MOST = 16 << 20  # bytes of notices, or of facts with notices; they have some 100 KiB


@dataclass(frozen=True)
class Parts:
    """What an engine can be made of.

    Attributes:
        runtimes: The programs.
        gui: The web GUI's entries, or none.
        proof: The model of `--prove`.
        label: Where they are from, for messages; empty for what is at hand.
        shaders: Those for GPUs, if it has them.
    """

    runtimes: Sequence[Runtime]
    gui: Sequence[Entry]
    proof: Entry
    label: str = ""
    shaders: Entry | None = None

    def chosen(self, wanted: Sequence[str]) -> list[Runtime]:
        """The runtimes of these targets, in the table's order; all, if none is named.

        Raises:
            NotFoundError: One is missing.
        """
        there = {runtime.target: runtime for runtime in self.runtimes}
        missing = [name for name in wanted if name not in there]
        if missing:
            options = " ".join(f"--target {name}" for name in missing)
            others = [name for name in wanted if name in there]
            hints = [] if self.label else [f"pyllamafile runtimes build {options}"]
            hints += [" ".join(f"--target {name}" for name in others)] if others else []
            message = f"{self.label}: has no runtime" if self.label else "no runtime is at hand"
            raise NotFoundError(
                f"{message} for {', '.join(missing)}",
                hint=", or do without: ".join(hints) or None,
            )
        if not there:
            raise NotFoundError(f"{self.label}: has no runtimes")
        return [there[name] for name in TARGETS if name in (wanted or there)]


# The package and the cache


def runtimes_for(
    names: Sequence[str], gui: bool, progress: Progress, gpu: bool | None = None
) -> list[Runtime]:
    """The runtimes of these targets, or all at hand, or, if there is none yet, the host's.

    Args:
        names: Names of targets.
        gui: Whether the web GUI is wanted, too: it is then built beside them.
        progress: Told about every step.
        gpu: Whether they bring what uses GPUs, which is then built as well; None for what of that
            is at hand.

    Raises:
        PyllamafileError: One can't be built.
    """
    at_hand = {runtime.target: runtime for runtime in native.available()}
    here = host()
    if names:
        wanted = select(names)
    elif at_hand:
        wanted = select(at_hand)
    elif here:
        wanted = (here,)
    else:
        raise UnavailableError(
            "no runtime is at hand, and none can be built for the system that this runs on",
            hint="choose one to build: " + " ".join(f"--target {target}" for target in TARGETS),
        )
    plain = [target for target in wanted if target.name not in at_hand]
    seconds = _seconds(wanted) if gpu else []
    missing = plain + [target for target in seconds if native.find(target) is None]
    shaders = any(target.gpu == "vulkan" for target in seconds) and native.find_shaders() is None
    gui = gui and native.find_gui() is None
    if missing or shaders or gui:
        native.check_tools()
        progress(Step("notice", _announcement(missing, bool(at_hand), gui, shaders)))
        if plain and at_hand:
            progress(Step("notice", _instead(at_hand)))
        made: list[Runtime | Path] = []
        native.build_all(missing, gui=gui, shaders=shaders, progress=progress, finished=made.append)
        at_hand |= {each.target: each for each in made if isinstance(each, Runtime)}
    if gpu:
        at_hand |= {found.target: found for found in native.available()}
    found = [at_hand[target.name] for target in wanted]
    return without_gpus(found) if gpu is False else found


def _seconds(wanted: Sequence[Target]) -> list[Target]:
    """The second programs of targets.

    Raises:
        RefusedError: None of them has one.
    """
    found = [second for target in wanted if (second := with_gpu(target))]
    if not found:
        raise RefusedError(
            f"no program that uses GPUs is known for {', '.join(t.name for t in wanted)}",
            hint=f"there are such for {', '.join(row.plain for row in WITH_GPU.values())}",
        )
    return found


def without_gpus(runtimes: Sequence[Runtime]) -> list[Runtime]:
    """The same runtimes without what uses GPUs."""
    return [replace(runtime, gpu=None) for runtime in runtimes]


def take_shaders(runtimes: Sequence[Runtime]) -> bool:
    """Whether one of them brings a second program that takes shaders."""
    return any(r.gpu and WITH_GPU[r.gpu.target].gpu == "vulkan" for r in runtimes)


def shaders_entry(runtimes: Sequence[Runtime]) -> Entry | None:
    """The entry of the shaders for GPUs, if these runtimes take them: they are at hand then."""
    path = native.find_shaders() if take_shaders(runtimes) else None
    return plan.shaders_entry(path) if path else None


def _announcement(missing: Sequence[Target], others: bool, gui: bool, shaders: bool) -> str:
    """What is about to take minutes, and why."""
    if not missing and shaders:
        return "The shaders for GPUs are not at hand yet: compiling them, once. That takes minutes."
    if not missing:
        return "The web GUI is not at hand yet: building it, once. That takes about a minute."
    names = ", ".join(target.name for target in missing)
    what = f"No runtime for {names}" if others else "No runtime"
    pages = " and its web GUI" if gui else ""
    each = " for each" if len(missing) > 1 else ""
    return (
        f"{what} is at hand yet: compiling llama.cpp{pages}, once. "
        f"That takes about ten minutes{each} on two cores."
    )


def _instead(at_hand: Iterable[str]) -> str:
    """What can be had at once."""
    names = ", ".join(at_hand)
    return f"Without --target a file gets what is at hand, and nothing is compiled: {names}."


def host_runtime(progress: Progress) -> Runtime:
    """The runtime for the system that this runs on.

    Raises:
        PyllamafileError: There is none, and none can be built.
    """
    here = host()
    if here is None:
        raise UnavailableError("this takes a runtime for the system that it runs on")
    return runtimes_for([here.name], False, progress)[0]


def check_arguments(text: bytes, where: str, path: Path | None = None) -> None:
    """Refuse arguments that a runtime refuses: it knows llama.cpp's options, and their values.

    The runtime of this system is asked, if it is at hand. It looks for no file. A text with
    variables passes: what they stand for is known when the file starts.

    Args:
        text: The text of `.args`.
        where: What the text is from, for the message.
        path: The file that it is from, if it is from one.

    Raises:
        RefusedError: It does; the message has its reason.
    """
    here = host()
    runtime = native.find(here) if here else None
    if runtime is None or any(word.variables for word in arguments.parse(text)):
        return
    with trial.unpacked(runtime.program()) as program:
        said = trial.refusal(program, text)
    if said:
        raise RefusedError(
            f"{where}: {said}",
            hint="these become the default arguments of a file, which would not start with them",
            path=path,
        )


def check_weights(paths: Sequence[Path], otherwise: str | None) -> None:
    """Refuse weights that llama.cpp refuses.

    The runtime of this system is asked, if it is at hand: it loads all but the tensors.

    Args:
        paths: A model; of a split one all parts in order, in one folder.
        otherwise: What is wrong with them as far as can be known without a runtime.

    Raises:
        RefusedError: They can't be loaded; the message has the reason.
    """
    here = host()
    runtime = native.find(here) if here else None
    said = otherwise
    if runtime:
        with trial.unpacked(runtime.program()) as program:
            said = trial.weights_refusal(program, paths)
    if said:
        path = paths[0]
        raise RefusedError(
            said if str(path) in said else f"{path}: {said}",
            hint="a file with these weights would not start",
            path=path,
        )


def tokens(weights: Path, text: bytes) -> int | None:
    """How many tokens a text has for a model, by the runtime of this system; None without one.

    Args:
        weights: A GGUF.
        text: In UTF-8.
    """
    here = host()
    runtime = native.find(here) if here else None
    if runtime is None:
        return None
    with trial.unpacked(runtime.program()) as program:
        return trial.tokens(program, weights, text)


_TEXTS: Final[Mapping[str, Callable[[bytes], object]]] = {
    PERSONA: persona.said_in,
    READ: documents.check,
    DOCUMENTS: passages.facts,
}


def check_text(path: Path, name: str) -> None:
    """Refuse a file that is to become an entry which a runtime reads, and that is no such text.

    Args:
        path: Where it is.
        name: What the entry is called; with most names there is nothing to check.

    Raises:
        PyllamafileError: It can't be read, or is not what has such a name.
    """
    if name not in _TEXTS:
        return
    try:
        _TEXTS[name](path.read_bytes())
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    except RefusedError as error:
        raise RefusedError(f"{path}: {error.message}", path=path) from error


def gui_entries(progress: Progress) -> list[Entry]:
    """The web GUI's entries, built if it isn't at hand."""
    return plan.gui_entries(native.find_gui() or native.build_gui(progress=progress))


def proof_entry() -> Entry:
    """The entry of the model by which a file proves itself."""
    return plan.proof_entry(tiny.model())


def at_hand(
    wanted: Sequence[str], build: bool, gui: bool, progress: Progress, gpu: bool | None = None
) -> Parts:
    """What the package or the cache has.

    Args:
        wanted: Names of targets.
        build: Whether the runtimes of these may be compiled.
        gui: Whether the web GUI is wanted.
        progress: Told about every step.
        gpu: As `runtimes_for` has it.
    """
    may = build or gpu or not wanted
    found = runtimes_for(wanted, gui, progress, gpu) if may else native.available()
    pages = gui_entries(progress) if gui else ()
    return Parts(found, pages, proof_entry(), shaders=shaders_entry(found))


# The program that the file itself is


def one_linux(names: Sequence[str]) -> Sequence[str]:
    """The names of targets, if an ELF program can be all of them: one, by default the host's.

    Raises:
        RefusedError: It can't.
    """
    here = host()
    chosen = select(names) if names else (here,) if here else ()
    if [target.os for target in chosen] != ["linux"]:
        raise RefusedError(
            "a file of the format elf is for one Linux target",
            hint="choose it with --target linux-amd64 or --target linux-arm64",
        )
    return [target.name for target in chosen]


def head_program(
    runtimes: Sequence[Runtime], format: Format, version: str, who: Persona | None = None
) -> HeadProgram | None:
    """The program that the file itself is: on Windows there is no script to start one.

    Args:
        runtimes: What there is.
        format: What the file is to be.
        version: The version of pyllamafile that builds the file.
        who: Who the file says it is, which Windows shows.

    Raises:
        PyllamafileError: It can't be such a program.
    """
    system = "linux" if format == "elf" else "windows"
    for runtime in runtimes:
        if TARGETS[runtime.target].os == system:
            program = HeadProgram(runtime, runtime.program())
            return dressed(program, _look(runtime, version, who) if who else None)
    return None


def _look(runtime: Runtime, version: str, who: Persona) -> Look | None:
    """What Windows shows of a file that says who it is; None for what it shows of all others."""
    if not who.name and not who.picture:
        return None
    within = f"pyllamafile with llama.cpp {runtime.llama_cpp}"
    return Look(who.name, who.picture, version, runtime.target, within)


# A wheel, or another llamafile


def taken(path: Path, folder: Path, gui: bool) -> Parts:
    """What a wheel or a llamafile has; its runtimes are taken out into a folder.

    Args:
        path: The wheel or the llamafile.
        folder: A folder of the caller's, which it removes.
        gui: Whether the web GUI is wanted.

    Raises:
        PyllamafileError: It is neither, or it is damaged.
    """
    archive = zipalign.read(path)
    if any(member.name.startswith(_PREBUILT) for member in archive.members):
        return _from_wheel(path, archive, folder, gui)
    found = of_archive(path, archive)
    found.check_ours()
    for problem in verify(path, contents=False):
        raise DamagedError(
            f"{path}: {problem.where}: {problem.what}",
            hint="--engine takes a wheel of pyllamafile with runtimes in it, or a sound llamafile",
            path=path,
        )
    return _from_llamafile(found, folder, gui)


def _from_wheel(path: Path, archive: Archive, folder: Path, gui: bool) -> Parts:
    members = {member.name.removeprefix(_PREBUILT): member for member in archive.members}
    taken = _Wheel(path, members, folder)
    shaders = taken.shaders()
    runtimes = []
    for target in TARGETS.values():
        if f"{target.name}.json" in members:
            plain, second = taken.runtime(target.name), with_gpu(target)
            takes = second and (second.gpu != "vulkan" or shaders)
            if second and takes and f"{second.name}.json" in members:
                plain = replace(plain, gpu=taken.second(second.name, plain))
            runtimes.append(plain)
    pages = members.get("ui.zip")
    if not (gui and pages):
        return Parts(runtimes, (), proof_entry(), str(path), shaders)
    try:
        entries = plan.gui_entries(_taken_out(path, pages, folder))
        return Parts(runtimes, entries, proof_entry(), str(path), shaders)
    except PyllamafileError as error:
        raise DamagedError(f"{path}: ui.zip can't be understood", path=path) from error


@dataclass(frozen=True)
class _Wheel:
    """What a wheel brings, taken out.

    Attributes:
        path: The wheel.
        members: What is in its folder of runtimes, by name.
        folder: Where it is taken to.
    """

    path: Path
    members: Mapping[str, Member]
    folder: Path

    def runtime(self, target: str) -> Runtime:
        """A runtime with its facts."""
        return Runtime(**self._facts(target), path=self._file(f"{target}.gz"), origin="engine")

    def second(self, target: str, plain: Runtime) -> Second:
        """A second program with its facts."""
        path = self._file(f"{target}.zst")
        return Second(**self._facts(target), path=path, origin="engine", plain=plain)

    def shaders(self) -> Entry | None:
        """The shaders for GPUs, if there are any."""
        name = "shaders.zst"
        return plan.shaders_entry(self._file(name)) if name in self.members else None

    def _file(self, name: str) -> Path:
        if name not in self.members:
            raise DamagedError(f"{self.path}: {name} is missing", path=self.path)
        return _taken_out(self.path, self.members[name], self.folder)

    def _facts(self, target: str) -> dict[str, Any]:
        text = zipalign.content(self.path, self.members[f"{target}.json"], _MOST)
        with contextlib.suppress(ValueError, RecursionError):
            facts = json.loads(text)
            fits = not any(misfits(facts, _SHAPE, "it")) and len(facts) == len(_SHAPE)
            if fits and facts["target"] == target:
                return {**facts, "levels": tuple(facts["levels"])}
        raise DamagedError(f"{self.path}: {target}.json can't be understood", path=self.path)


def _taken_out(path: Path, member: Member, folder: Path) -> Path:
    out = folder / member.name.rpartition("/")[2]
    with out.open("wb") as file:
        file.writelines(zipalign.chunks(path, member))
    return out


# What a wheel says of a runtime: as the manifest does, but for where it is and for what it has
# beside it; and its notices.
_SHAPE: Final = {
    **{key: shape for key, shape in RUNTIME.items() if key not in ("offset", "gpu?")},
    "target": is_text,
    "licenses": {"*": is_text},
}


def _from_llamafile(found: Llamafile, folder: Path, gui: bool) -> Parts:
    """All notices in it come along: which ones are whose is not written there."""
    notices = {
        name.removeprefix(LICENSES).removesuffix(".txt"): _notice(found, name)
        for name in found.members
        if name.startswith(LICENSES) and name != GUI_NOTICES
    }
    runtimes = []
    for facts in found.runtimes:
        if facts["target"] not in TARGETS:
            raise DamagedError(
                f"{found.path}: has a runtime for {facts['target']!r}, which is no target",
                path=found.path,
            )
        with found.path.open("rb") as file:
            file.seek(facts["offset"])
            packed = file.read(facts["packed_size"])
        if hashlib.sha256(packed).hexdigest() != facts["packed_sha256"]:
            raise DamagedError(
                f"{found.path}: its runtime for {facts['target']} is damaged", path=found.path
            )
        if not facts["offset"]:  # the file's head, with a script in it that the next one replaces
            packed = pack(packed)
        path = folder / f"{facts['target']}.gz"
        path.write_bytes(packed)
        runtime = Runtime(
            target=facts["target"],
            path=path,
            packed_size=len(packed),
            packed_sha256=hashlib.sha256(packed).hexdigest(),
            size=facts["size"],
            sha256=facts["sha256"],
            llama_cpp=facts["llama_cpp"],
            levels=tuple(facts["levels"]),
            origin="engine",
            licenses=notices,
        )
        second = _second(found, facts["gpu"], runtime, folder) if "gpu" in facts else None
        runtimes.append(replace(runtime, gpu=second))
    pages = [
        plan.entry(found.path, member)
        for name, member in found.members.items()
        if gui and found.has_gui and (name.startswith(GUI) or name == GUI_NOTICES)
    ]
    proof = plan.entry(found.path, found.members[PROOF]) if _proves(found) else proof_entry()
    shaders = found.members.get(SHADERS) if found.gpus else None
    packed_shaders = plan.entry(found.path, shaders) if shaders else None
    return Parts(runtimes, pages, proof, str(found.path), packed_shaders)


def _second(
    found: Llamafile, facts: Mapping[str, Any], plain: Runtime, folder: Path
) -> Second | None:
    """The second program beside a plain one, if this version knows that there can be one."""
    row, name = with_gpu(TARGETS[plain.target]), second_name(plain.target)
    if row is None:
        return None
    if name not in found.digests:
        raise DamagedError(f"{found.path}: {name} is missing or damaged", path=found.path)
    packed = found.content(name, _MOST_PROGRAM)
    path = folder / f"{row.name}.zst"
    path.write_bytes(packed)
    return Second(
        **{key: getattr(plain, key) for key in ("llama_cpp", "levels", "origin", "licenses")},
        target=row.name,
        path=path,
        packed_size=len(packed),
        packed_sha256=found.digests[name].sha256,
        size=facts["size"],
        sha256=facts["sha256"],
        plain=plain,
    )


def _proves(found: Llamafile) -> bool:
    """Whether it has the model that its runtimes were recorded with, and nobody exchanged it."""
    return found.has_proof and PROOF in found.digests


def _notice(found: Llamafile, name: str) -> str:
    try:
        return found.content(name, _MOST).decode()
    except UnicodeDecodeError as error:
        raise DamagedError(f"{found.path}: {name} is not UTF-8", path=found.path) from error
