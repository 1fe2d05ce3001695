"""The command that says whose a file is: `sign`."""

from __future__ import annotations

from pathlib import Path

import click

import pyllamafile
from pyllamafile.cli import screen
from pyllamafile.cli.options import PATH
from pyllamafile.cli.screen import say, shown


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "--key",
    type=PATH,
    metavar="FILE",
    help="A private key, or a public one that an agent has.  [default: git's, or one in ~/.ssh]",
)
def sign(file: Path, key: Path | None) -> None:
    """Sign a llamafile with a key of SSH's, in place.

    The signature is of the manifest, which has the digest of everything in the file. Weights stay
    where they are. A signature that is there already is replaced. FILE has to be sound, so all of
    it is read before. If the command is killed, the file is as it was, or signed.

    Without --key it is the key that git signs with (user.signingkey, if gpg.format is ssh), or
    else the first of id_ed25519, id_ed25519_sk, id_ecdsa, id_ecdsa_sk and id_rsa in ~/.ssh. It
    takes ssh-keygen of OpenSSH, which asks for passphrases and agents.

    With an Ed25519 key the same file is the same again once it is signed. ECDSA, and keys on
    devices, sign in another way each time.

    `pyllamafile verify FILE --signed-by WHO` checks the signature.
    """
    with screen.progress() as tell:
        done = pyllamafile.sign(file, key=key, progress=tell)
    say(shown(f"{file}: signed with {done.key_type} {done.fingerprint}"))
    if done.replaced:
        say(shown(f"  in the place of {done.replaced}"))
