"""The commands that look into a file: `inspect`, `verify`, `doctor`, `extract`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import pyllamafile
from pyllamafile.cli import screen
from pyllamafile.cli.options import PATH, complete_entries
from pyllamafile.cli.screen import amount, bold, fail, print_table, say, shown, styled
from pyllamafile.errors import PyllamafileError
from pyllamafile.models.gguf import KINDS

if TYPE_CHECKING:
    from pyllamafile import (
        Documents,
        EntryFacts,
        Host,
        ModelFacts,
        Persona,
        Report,
        SignatureCheck,
    )

_MOST_SHOWN = 20  # documents


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "-a", "--all", "everything", is_flag=True, help="List every file of the web GUI, too."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every entry.")
def inspect(file: Path, everything: bool, as_json: bool) -> None:
    """Say what is in a llamafile, a GGUF, or any zip."""
    report = pyllamafile.inspect(file)
    if as_json:
        import json

        click.echo(json.dumps(report.as_dict(), indent=2))
    elif everything or not report.entries:
        _print_report(report)
    else:
        _print_report(replace(report, entries=_folded(report.entries)))


def _folded(entries: Sequence[EntryFacts]) -> tuple[EntryFacts, ...]:
    """The same, with the dozens of files of the web GUI as one, and so the notices."""
    from pyllamafile import llamafile

    for folder in (llamafile.GUI, llamafile.LICENSES):
        entries = _with_one_row(entries, folder)
    return tuple(entries)


def _with_one_row(entries: Sequence[EntryFacts], folder: str) -> Sequence[EntryFacts]:
    files = [entry for entry in entries if entry.name.startswith(folder)]
    if len(files) < 2:
        return entries
    row = replace(
        files[0],
        name=f"{folder} ({len(files)} files, --all lists them)",
        size=sum(entry.size for entry in files),
        stored_size=sum(entry.stored_size for entry in files),
        method=", ".join(sorted({entry.method for entry in files})),
        alignment=min(entry.alignment for entry in files),
    )
    at = entries.index(files[0])
    rest = (entry for entry in entries[at:] if not entry.name.startswith(folder))
    return (*entries[:at], row, *rest)


def _print_report(report: Report) -> None:
    origin = {"called": report.name, "built by pyllamafile": report.built_by}
    facts = ", ".join(f"{what} {value}" for what, value in origin.items() if value)
    say(bold(str(report.path)), f" {amount(report.size)}  {shown(facts)}".rstrip())
    for label, problem in _problems(report).items():
        say(f"  {label:<12}  {shown(problem)}")
    if report.signed_with:
        say(f"  {'signature':<12}  {shown(report.signed_with)} (verify --signed-by checks it)")
    if report.runtimes:
        say("  " + ", ".join(f"{what} {amount(size)}" for what, size in _shares(report)))
    for model in report.models:
        _print_model(model)
    if report.runtimes:
        print_table(
            ("runtime", "llama.cpp", "levels", "offset", "size", "packed", "sha256"),
            [
                (
                    runtime.get("target"),
                    runtime.get("llama_cpp"),
                    " ".join(map(str, _list(runtime.get("levels")))),
                    runtime.get("offset"),
                    runtime.get("size"),
                    runtime.get("packed_size"),
                    str(runtime.get("sha256"))[:16],
                )
                for runtime in report.runtimes
            ],
        )
    for target, size in report.gpus.items():
        say(f"  {'GPUs':<12}  {shown(target)}, {amount(size)}")
    if report.state_problem:
        say(f"  {'state':<12}  {shown(report.state_problem)}")
    if report.state:
        kept = f"{report.state.tokens:,} tokens, keys in {report.state.conditions.get('keys')}"
        say(f"  {'state':<12}  {shown(kept)}, {amount(report.state.size)}")
    if report.persona_problem:
        say(f"  {'persona':<12}  {shown(report.persona_problem)}")
    if report.persona:
        _print_persona(report.persona)
    if report.read_problem:
        say(f"  {'read':<12}  {shown(report.read_problem)}")
    if report.read:
        say(f"  {'read':<12}  {report.read:,} bytes of text")
    if report.documents_problem:
        say(f"  {'documents':<12}  {shown(report.documents_problem)}")
    if report.documents:
        _print_documents(report.documents)
    if report.args_problem:
        say(bold(".args"))
        say(f"  {'problem':<12}  {shown(report.args_problem)}")
    if report.args is not None:
        say(bold(".args"))
        for line in report.args.splitlines():
            say(f"  {shown(line)}")
    if report.entries:
        print_table(
            ("offset", "align", "size", "stored", "method", "entry"),
            [
                (
                    entry.offset,
                    entry.alignment,
                    entry.size,
                    entry.stored_size,
                    entry.method,
                    entry.name,
                )
                for entry in report.entries
            ],
        )


def _print_persona(persona: Persona) -> None:
    say(bold("persona"))
    rows = {
        "name": persona.name,
        "greeting": persona.greeting,
        "accent": persona.accent,
        "icon": f"PNG, {amount(len(persona.icon))}" if persona.icon else None,
    }
    for what, value in rows.items():
        if value:
            say(f"  {what:<12}  {shown(value)}")
    for suggestion in persona.suggestions:
        say(f"  {'suggestion':<12}  {shown(suggestion)}")


def _print_documents(documents: Documents) -> None:
    count = len(documents.sources)
    by = f"words and vectors of {documents.dimension}" if documents.dimension else "words"
    say(bold("documents"))
    say(f"  {'passages':<12}  {documents.passages:,}, found by {by}")
    for source in documents.sources[:_MOST_SHOWN]:
        say(f"  {'document':<12}  {shown(source)}")
    if count > _MOST_SHOWN:
        say(f"  {'':<12}  and {count - _MOST_SHOWN:,} more (--json lists them)")


def _problems(report: Report) -> dict[str, str]:
    """What is wrong with the file as a whole, by what to call it."""
    problems = {}
    if report.problem:
        damaged = "its manifest can't be understood: " if report.maker == "damaged" else ""
        problems["newer" if report.maker == "newer" else "problem"] = damaged + report.problem
    if report.interrupted:
        ended = f"pyllamafile upgrade {report.path} ends it"
        problems["interrupted"] = f"an upgrade of it did not end: {ended}"
    if report.signature_problem:
        problems["signature"] = report.signature_problem
    return problems


def _shares(report: Report) -> Iterator[tuple[str, int]]:
    """What takes how many bytes of the file, down to the last one."""
    from pyllamafile import llamafile

    shares: dict[str, list[Any]] = {
        "runtimes": [runtime.get("packed_size") for runtime in report.runtimes],
        "weights": [e.stored_size for e in report.entries if e.name.endswith(".gguf")],
        "web GUI": [e.stored_size for e in report.entries if e.name.startswith(llamafile.GUI)],
        "GPUs": [e.stored_size for e in report.entries if e.name.startswith(llamafile.GPU)],
    }
    left = report.size
    if not report.gpus:
        del shares["GPUs"]
    for what, sizes in shares.items():
        size = sum(size for size in sizes if isinstance(size, int))
        left -= size
        yield what, size
    yield "other", left


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _print_model(model: ModelFacts) -> None:
    say(bold(model.file))
    template = model.chat_template
    rows: dict[str, Any] = {
        "problem": model.problem,
        "kind": None if model.kind in (None, "model") else KINDS[model.kind],
        "name": model.name,
        "architecture": model.architecture,
        "parameters": f"{model.parameters:,}" if model.parameters is not None else None,
        "quantization": model.quantization,
        "context": f"{model.context_length:,} tokens" if model.context_length else None,
        "tokenizer": model.tokenizer,
        "vocabulary": f"{model.vocabulary:,} tokens" if model.vocabulary else None,
        "tensors": model.tensors,
        "template": f"{len(template):,} characters" if template else None,
    }
    for label, value in rows.items():
        if value is not None:
            say(f"  {label:<12}  {shown(str(value))}")


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "--signed-by", "who", type=PATH, metavar="WHO", help="The people who may have signed it."
)
def verify(file: Path, who: Path | None) -> None:
    """Check everything that is in a llamafile.

    It checks the structure, the alignment, and the checksum and digest of everything in the file,
    the runtimes included. If something is wrong, it says what and where, and exits with 1.

    --signed-by also checks the signature that `pyllamafile sign` writes. WHO is a file of allowed
    signers, as ssh-keygen and git have them, or of public keys, such as github.com/USER.keys. It
    takes ssh-keygen of OpenSSH 8.2 or newer.

    \b
    Exit status with --signed-by:
      0  sound, and signed by one of them
      1  something is wrong in FILE, and none of them signed it
      3  sound, but not signed
      4  sound, but signed by an unknown key
      5  signed, but changed
    """  # noqa: D301
    check: SignatureCheck | None = None
    with screen.progress() as tell:
        if who:
            check = pyllamafile.signed_by(file, who, progress=tell)
        problems = check.problems if check else pyllamafile.verify(file, progress=tell)
    for problem in problems:
        say(shown(f"{problem.where}: {problem.what}"))
    faults = [f"{len(problems)} problem{'s' * (len(problems) > 1)}"] if problems else []
    if check and check.verdict != "signed":
        said, code = _VERDICTS[check.verdict]
        faults.append(said.format(key=f"{check.key_type} {check.fingerprint}", why=check.reason))
        code = 1 if problems and check.verdict != "changed" else code
        fail(f"{file}: {', '.join(faults)}", _ending(file) if problems else None, code)
    if faults:
        fail(f"{file}: {faults[0]}", _ending(file))
    say(shown(f"{file}: sound"))
    if check:
        name = check.by or f"a key in {who}"
        say(shown(f"{file}: signed by {name}: {check.key_type} {check.fingerprint}"))


# Of each verdict on a signature but the good one what to say, and the exit status.
_VERDICTS = {
    "unsigned": ("not signed", 3),
    "unknown": ("signed by an unknown key: {key}", 4),
    "changed": ("signed, but changed: {why}", 5),
}


def _ending(file: Path) -> str | None:
    """What ends an upgrade that was interrupted."""
    from pyllamafile import llamafile

    with contextlib.suppress(PyllamafileError):  # no archive: then it is something else
        llamafile.read(file).check_whole()
        return None
    return f"an upgrade of it was interrupted: pyllamafile upgrade {file} ends it"


@click.command()
@click.argument("file", type=PATH, required=False)
@click.option(
    "--on",
    "hosts",
    multiple=True,
    metavar="HOST[,HOST]",
    help="Look at these machines instead, by ssh: can they compute a part of the model?",
)
def doctor(file: Path | None, hosts: tuple[str, ...]) -> None:
    """Say why a llamafile doesn't start here, and what helps.

    It looks at FILE, if there is one, and at this machine: damage, permissions, programs that
    claim files which begin with MZ, the processor, the memory, and the folder that the file
    unpacks its program to. It exits with 1 if something keeps the file from starting.
    """
    if hosts:
        asked = [pyllamafile.examine_host(name, file) for each in hosts for name in each.split(",")]
        for host in asked:
            _print_host(host)
        if any(finding.fatal for host in asked for finding in host.findings):
            sys.exit(1)
        return
    findings = pyllamafile.examine(file)
    for finding in findings:
        word = styled("problem:", "red") if finding.fatal else bold("note:")
        say(word, shown(finding.what))
        say(bold("remedy:"), shown(finding.remedy))
    if any(finding.fatal for finding in findings):
        sys.exit(1)
    say(shown(f"{file or 'this machine'}: nothing keeps it from starting"))


def _print_host(host: Host) -> None:
    for finding in host.findings:
        word = styled("problem:", "red") if finding.fatal else bold("note:")
        say(shown(f"{host.name}:"), word, shown(f"{finding.what}; {finding.remedy}"))
    if not any(finding.fatal for finding in host.findings):
        amounts = {"memory": host.memory, "disk": host.disk}
        free = [f"{size / 1e9:.1f} GB of {what}" for what, size in amounts.items() if size]
        facts = f"{host.system}{', ' if free else ''}{' and '.join(free)}{' free' if free else ''}"
        say(shown(f"{host.name}: it can take part ({facts})"))


@click.command()
@click.argument("file", type=PATH)
@click.argument("names", nargs=-1, shell_complete=complete_entries)
@click.option(
    "-C",
    "--directory",
    type=PATH,
    default=Path(),
    help="The folder to write to.  [default: this one]",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
def extract(file: Path, names: tuple[str, ...], directory: Path, force: bool) -> None:
    """Take entries out of a llamafile or any zip, as files.

    It takes the entries called NAMES, or all. It writes nothing outside of the directory,
    whatever the names in the file say. The file stays as it is.
    """
    with screen.progress() as tell:
        paths = pyllamafile.extract(file, directory, names, force=force, progress=tell)
    for path in paths:
        say(shown(str(path)))
