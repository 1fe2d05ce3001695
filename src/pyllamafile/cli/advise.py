"""The command `advise`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

import pyllamafile
from pyllamafile.cli.options import PATH, complete_files
from pyllamafile.cli.screen import amount, bold, print_table, say, shown

if TYPE_CHECKING:
    from pyllamafile import Advice, Reading


def _finite(
    context: click.Context, parameter: click.Parameter, memory: float | None
) -> float | None:
    """Refuse ``nan`` and ``inf``, which are numbers, too, and what no machine has."""
    if memory is not None and not memory < 1e9:
        raise click.BadParameter(f"no machine has {memory:g} GB.")
    return memory


@click.command()
@click.argument("source", metavar="SOURCE", shell_complete=complete_files)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=1),
    help="Tokens of context.  [default: the model's own, 4096 at most]",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    metavar="GB",
    help="The memory of another machine, in units of 10^9 bytes.  [default: this one's]",
)
@click.option(
    "--read",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="A document that the model is to have read. Repeat it for several documents.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def advise(
    source: str, context: int | None, memory: float | None, read: tuple[Path, ...], as_json: bool
) -> None:
    """Say which format to quantize a model to.

    SOURCE is a GGUF, hf:OWNER/REPO[:FILE-or-quant] or ollama:NAME[:TAG]. From the hub only the
    header is fetched.

    The sizes follow from the header by the quantizer's own rules. The memory is that of the
    weights, of keys and values for the context (in F16), and of the buffers for reading 512 tokens
    at once. It fits if an eighth of the machine's memory stays free. A format that is good for
    reading is fast with long prompts, and one that is good for writing is fast with long answers.
    On Windows a file below 4 GiB is one file, and a larger one is two.

    --read takes what `pyllamafile build --read` takes, and says how large the state would be: what
    the model remembers of the documents, for each --read-as. The tokens are counted by the runtime
    for this system if it is at hand; otherwise four bytes count as one.
    """
    machine = int(memory * 1e9) if memory else None
    advice = pyllamafile.advise(source, context=context, machine=machine, read=read)
    if as_json:
        click.echo(json.dumps(advice.as_dict(), indent=2))
    else:
        _print_advice(advice)


def _print_advice(advice: Advice) -> None:
    facts = [f"{advice.parameters / 1e6:,.0f} million parameters"]
    facts += [f"quantized to {advice.quantization}"] if advice.quantization else []
    say(bold(advice.name), f" {shown(', '.join(facts))}")
    own = f" of {advice.own_context:,}" if advice.own_context else ""
    machine = f"{amount(advice.usable)} of {amount(advice.machine)}"
    say(f"  context {advice.context:,}{own} tokens; the machine has {machine} for it")
    print_table(
        ("format", "file", "memory", "fits", "good for", "Windows"),
        [
            (
                row.format,
                amount(row.size),
                amount(row.memory.total),
                "yes" if row.fits else "no",
                row.good_for,
                "one file" if row.windows else "two files",
            )
            for row in advice.rows
        ],
        next((i for i, row in enumerate(advice.rows) if row.format == advice.recommended), None),
    )
    if advice.reading:
        _print_reading(advice.reading)
    say(shown(f"{advice.recommended or 'none'}: {advice.reason}"))


def _print_reading(reading: Reading) -> None:
    about = "" if reading.exact else "about "
    more = "" if reading.fits else ", more than the model was trained for"
    say(f"  reading {amount(reading.text)} of text, {about}{reading.tokens:,} tokens{more}")
    sizes = (
        f"{amount(size * reading.tokens)} in {type} ({size:,} bytes a token)"
        for type, size in reading.per_token.items()
    )
    say(f"  state {', '.join(sizes)}")
