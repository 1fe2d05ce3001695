"""Whose file it is: signatures that hold, that don't, and that nobody can read."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from fixtures import put_runtime, sparse_gguf
from judging import check_whole, contents, names, runs
from running import COMMAND, need
from strange import signature

import pyllamafile
from pyllamafile import zipalign
from pyllamafile.zipalign import Entry

MANIFEST, SIGNATURE = "llamafile.json", "llamafile.json.sig"
KEY = r"ssh-ed25519 SHA256:[\w+/]{43}"
FILE = "f.llamafile"


def made_key(name: str, *options: str) -> Path:
    options = options or ("-t", "ed25519", "-N", "")
    command = [need("ssh-keygen", "openssh-client"), "-q", *options, "-f", name, "-C", f"{name}@x"]
    subprocess.run(command, check=True)
    return Path(name)


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Two people's keys."""
    folder = tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("alice", "bob"):
            made_key(name)
    return folder


@pytest.fixture
def here(folder, model, keys, monkeypatch):
    """A llamafile, keys, and a home without any."""
    shutil.copy(model, "m.gguf")
    for path in keys.iterdir():
        shutil.copy(path, path.name)
    Path("notes.txt").write_text("notes\n" * 99)
    pyllamafile.build("m.gguf", FILE, args=["-c", "64"], add=["notes.txt"])
    Path("home").mkdir()
    for name in ("SSH_AUTH_SOCK", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "SSH_ASKPASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    return folder


@pytest.fixture
def signed(run, here):
    done = run("sign", FILE, "--key", "alice")
    assert (done.code, done.err) == (0, "signing with alice\n")
    assert re.fullmatch(f"{FILE}: signed with {KEY}\n", done.out)
    return Path(FILE)


def fingerprint(public: str) -> str:
    """By ssh-keygen."""
    command = ["ssh-keygen", "-l", "-f", public]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1]


def verdict(who: str = "alice.pub", file: Path | str = FILE) -> str:
    return pyllamafile.signed_by(file, who).verdict


# What holds


def test_signed_and_checked(run, here, model):
    before = contents(FILE)
    weights = pyllamafile.inspect(FILE).entries[0]
    assert run("sign", FILE, "--key", "alice").code == 0
    assert {k: v for k, v in contents(FILE).items() if k != SIGNATURE} == before
    assert pyllamafile.inspect(FILE).entries[0] == weights
    check_whole(Path(FILE), model)
    assert runs(FILE)
    assert run("verify", FILE) == (0, f"{FILE}: sound\n", "")
    key = f"ssh-ed25519 {fingerprint('alice.pub')}"
    said = f"{FILE}: sound\n{FILE}: signed by a key in alice.pub: {key}\n"
    assert run("verify", FILE, "--signed-by", "alice.pub") == (0, said, "")
    assert f"  signature     {key} (verify --signed-by checks it)\n" in run("inspect", FILE).out
    report = json.loads(run("inspect", "--json", FILE).out)
    assert (report["signed_with"], report["signature_problem"]) == (key, None)


def test_ssh_keygen_and_unzip_find_the_same(signed):
    """By the lines of FORMAT.md's section 8."""
    text = Path(pyllamafile.__file__).with_name("launcher").joinpath("FORMAT.md").read_text()
    lines = [line[4:] for line in text.split("## 8.")[1].splitlines() if line[4:8] == "unzi"]
    Path("ALLOWED").write_text(f"WHO {Path('alice.pub').read_text()}")
    need("unzip")
    for line in lines:
        subprocess.run(["sh", "-c", line.replace("FILE", FILE)], check=True)
    assert len(lines) == 2


def test_the_same_key_gives_the_same_file(run, here):
    shutil.copy(FILE, "other")
    for file in (FILE, "other"):
        assert run("sign", file, "--key", "alice").code == 0
    assert Path(FILE).read_bytes() == Path("other").read_bytes()


def test_signed_again_it_says_what_it_replaces(run, signed):
    done = run("sign", FILE, "--key", "bob")
    assert done.code == 0
    assert done.out.endswith(f"  in the place of ssh-ed25519 {fingerprint('alice.pub')}\n")
    assert [*contents(FILE)].count(SIGNATURE) == 1
    assert (verdict("bob.pub"), verdict()) == ("signed", "unknown")
    assert pyllamafile.verify(FILE) == []


def test_a_damaged_signature_is_replaced(run, signed):
    zipalign.add(signed, [Entry(SIGNATURE, b"x" * 100_000)])
    done = run("sign", FILE, "--key", "alice")
    assert done.code == 0
    assert "  in the place of a damaged one\n" in done.out
    assert verdict() == "signed"


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_other_types_of_keys(run, here, kind):
    made_key("other", "-t", kind, "-N", "")
    assert run("sign", FILE, "--key", "other").code == 0
    assert verdict("other.pub") == "signed"
    assert verdict() == "unknown"
    assert fingerprint("other.pub") in run("inspect", FILE).out


def test_a_key_that_an_agent_has(here, run, monkeypatch):
    need("ssh-agent", "openssh-client")
    # A socket's path has to be short.
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", "agent"], stdout=subprocess.DEVNULL)
    try:
        while not Path("agent").exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", "agent")
        subprocess.run(["ssh-add", "-q", "bob"], check=True)
        Path("bob").unlink()
        assert run("sign", FILE, "--key", "bob.pub").code == 0
        assert verdict("bob.pub") == "signed"
        Path("home/.gitconfig").write_text(
            f"[gpg]\nformat = ssh\n[user]\nsigningkey = key::{Path('bob.pub').read_text()}"
        )
        need("git")
        done = run("sign", FILE)
        assert (done.code, done.err) == (0, "signing with git's user.signingkey\n")
    finally:
        agent.terminate()
        agent.wait()


def test_which_key_is_used(run, fails, here):
    home = Path("home/.ssh").absolute()
    fails(
        f"{home}: has no key to sign with",
        *("sign", FILE),
        hint="--key FILE names one; ssh-keygen -t ed25519 makes one",
    )
    home.mkdir()
    shutil.copy("alice", home / "id_ed25519")
    assert run("sign", FILE).err == f"signing with {home}/id_ed25519\n"
    need("git")
    git = Path("home/.gitconfig")
    git.write_text("[user]\nsigningkey = 0123456789ABCDEF\n")  # of GPG
    assert run("sign", FILE).err == f"signing with {home}/id_ed25519\n"
    git.write_text("[gpg]\nformat = ssh\n[user]\nsigningkey = ~/../bob\n")
    assert run("sign", FILE).err == "signing with ~/../bob, git's user.signingkey\n"
    assert verdict("bob.pub") == "signed"
    assert run("sign", FILE, "--key", "alice").err == "signing with alice\n"


@pytest.mark.slow
def test_4_gib(run, here):
    sparse_gguf(Path("w.gguf"), 1 << 32)
    pyllamafile.build("w.gguf", "w.llamafile")
    assert run("sign", "w.llamafile", "--key", "alice").code == 0
    assert verdict(file="w.llamafile") == "signed"
    assert Path("w.llamafile").stat().st_blocks * 512 < 1 << 30


# What doesn't hold


def test_the_verdicts_apart(run, here):
    def code(*words):
        done = run("verify", FILE, "--signed-by", *words)
        assert len(done.err.splitlines()) <= 1
        return done.code, done.err

    assert code("alice.pub") == (3, f"error: {FILE}: not signed\n")
    assert run("sign", FILE, "--key", "bob").code == 0
    key = f"ssh-ed25519 {fingerprint('bob.pub')}"
    assert code("alice.pub") == (4, f"error: {FILE}: signed by an unknown key: {key}\n")
    sound = Path(FILE).read_bytes()
    at = sound.rindex(b"notes\nnotes")
    Path(FILE).write_bytes(sound[:at] + b"N" + sound[at + 1 :])
    changed = "signed, but changed: not all in it is what was signed\n"
    assert code("bob.pub") == (5, f"error: {FILE}: 2 problems, {changed}")
    # Whoever that is, it is none of them.
    assert code("alice.pub") == (
        1,
        f"error: {FILE}: 2 problems, signed by an unknown key: {key}\n",
    )
    assert run("verify", FILE).code == 1
    Path(FILE).write_bytes(sound)
    zipalign.add(Path(FILE), [Entry(SIGNATURE, signature(b"another manifest"))])
    why = "signed, but changed: its signature is not of this manifest\n"
    assert code("alice.pub") == (5, f"error: {FILE}: {why}")
    assert run("verify", FILE).code == 0


def tampered(**changes: object) -> None:
    """As somebody changes it who knows the format: the file is sound, and not what was signed."""
    manifest = json.loads(contents(FILE)[MANIFEST])
    text = json.dumps({**manifest, **changes}, indent=1, sort_keys=True)
    zipalign.add(Path(FILE), [Entry(MANIFEST, text.encode() + b"\n")])


def test_a_sound_file_that_is_not_what_was_signed(run, signed):
    tampered(name="another")
    assert run("verify", FILE).code == 0
    assert verdict() == verdict("bob.pub") == "changed"


def test_any_byte_that_counts(run, signed, rng):
    """Every part of the file, at random: in the head, the runtimes, the entries, the directory."""
    sound = signed.read_bytes()
    report, before = pyllamafile.inspect(FILE), contents(FILE)
    parts = [range(16384)]
    parts += [range(r["offset"], r["offset"] + r["packed_size"]) for r in report.runtimes]
    parts += [range(e.offset, e.offset + e.stored_size) for e in report.entries if e.stored_size]
    for part in parts:
        at = rng.choice(part)
        raw = bytearray(sound)
        raw[at] ^= 1 << rng.randrange(8)
        signed.write_bytes(raw)
        # The last byte of what is deflated has bits that say nothing.
        assert verdict() == "changed" or contents(FILE) == before, at


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (lambda old: b"", "its signature is damaged: no signature of OpenSSH's"),
        (lambda old: old[:-9], "its signature is damaged: no signature of OpenSSH's"),
        (lambda old: old + old, "its signature is damaged: no signature of OpenSSH's"),
        (lambda old: old * 40_000, "its signature is damaged: [0-9,]+ bytes"),
        (lambda old: signature(b"", namespace="git"), "its signature is for 'git', .*"),
        (lambda old: old.replace(b"A", b"B", 9), ".*"),
    ],
    ids=["empty", "cut", "twice", "large", "git's", "other bytes"],
)
def test_signatures_that_are_none(run, signed, text, why):
    old = contents(FILE)[SIGNATURE]
    zipalign.add(signed, [Entry(SIGNATURE, text(old))])
    done = run("verify", FILE, "--signed-by", "alice.pub")
    assert done.code == 5
    assert re.fullmatch(f"error: {FILE}: (1 problem, )?signed, but changed: {why}\n", done.err)
    assert run("inspect", FILE).code == 0


def test_the_second_opinion_on_signatures_is_the_same(signed, rng):
    """verify shares no code with what reads them otherwise."""
    armor = contents(FILE)[SIGNATURE]
    raw = base64.b64decode(b"".join(armor.splitlines()[1:-1]))
    texts, agreed = [armor, armor.replace(b"\n", b"\r\n"), armor + b" \n", b" " + armor], set()
    for _ in range(60):
        for source in (armor, raw):
            text = bytearray(source)
            for _ in range(rng.randrange(1, 3)):
                at = rng.randrange(len(text))
                text[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            if source is raw:
                text = base64.encodebytes(text)
                text = b"-----BEGIN SSH SIGNATURE-----\n%b-----END SSH SIGNATURE-----\n" % text
            texts.append(bytes(text))
    for text in texts:
        zipalign.add(signed, [Entry(SIGNATURE, text)])
        problem = pyllamafile.inspect(FILE).signature_problem
        assert bool(pyllamafile.verify(FILE, contents=False)) == bool(problem), text
        agreed.add(bool(problem))
    assert agreed == {False, True}


def test_two_signatures(run, signed):
    with zipfile.ZipFile(signed, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(SIGNATURE, signature(b"other"))
    assert run("verify", FILE, "--signed-by", "alice.pub").code == 5
    assert run("sign", FILE, "--key", "alice").code == 0
    assert [*contents(FILE)].count(SIGNATURE) == 1
    assert verdict() == "signed"


def test_changes_drop_it_and_say_so(run, signed, prebuilt):
    sound = signed.read_bytes()
    key = f"ssh-ed25519 {fingerprint('alice.pub')}"
    gone = f"{FILE}: is no longer signed by {key}: `pyllamafile sign` signs it again\n"
    put_runtime(prebuilt, b"#!/bin/sh\necho another\n")
    for words in (
        ("add", FILE, "alice.pub"),
        ("remove", FILE, "notes.txt"),
        ("zipalign", FILE, "alice.pub"),
        ("upgrade", FILE),
    ):
        signed.write_bytes(sound)
        done = run(*words)
        assert (done.code, done.err) == (0, gone), words
        assert SIGNATURE not in contents(FILE)
        assert run("verify", FILE, "--signed-by", "alice.pub").code == 3
    signed.write_bytes(sound)
    assert run("remove", FILE, SIGNATURE) == (0, "", "")
    assert run("verify", FILE, "--signed-by", "alice.pub").code == 3


def test_what_fails_leaves_it(fails, signed):
    fails(f"{FILE}: has no entry 'nothing'", "remove", FILE, "nothing", hint="inspect lists them")
    assert verdict() == "signed"


def test_its_name_is_ours(fails, signed):
    Path(SIGNATURE).write_text("x")
    ours = f"cannot add '{SIGNATURE}': pyllamafile itself writes what has such a name"
    fails(f"{FILE}: {ours}", "add", FILE, SIGNATURE)
    fails(f"{FILE}: cannot add '{SIGNATURE}': `.*` writes it", "zipalign", FILE, SIGNATURE)
    fails(ours, "build", "--gguf", "m.gguf", "-o", "o", "--add", SIGNATURE)


# What can't be signed


def test_what_cannot_be_signed(run, fails, here):
    hint = "it is a bare GGUF: `pyllamafile build` makes a llamafile of it"
    fails("m.gguf: .*", "sign", "m.gguf", "--key", "alice", hint=hint)
    with zipfile.ZipFile("foreign", "w") as file:
        file.write("m.gguf")
    done = run("sign", "foreign", "--key", "alice")
    assert (done.code, done.err.splitlines()[0]) == (
        1,
        "error: foreign: was not built by pyllamafile",
    )
    with zipfile.ZipFile(FILE, "a") as file:
        file.writestr("more", "more")
    before = Path(FILE).read_bytes()
    done = run("sign", FILE, "--key", "alice")
    assert done.code == 1
    assert done.err.startswith(f"error: {FILE}: is not sound: more (entry at offset ")
    assert Path(FILE).read_bytes() == before


def test_damaged_weights_are_not_signed(run, here):
    raw = bytearray(Path(FILE).read_bytes())
    raw[pyllamafile.inspect(FILE).entries[0].offset + 999] ^= 1
    Path(FILE).write_bytes(raw)
    done = run("sign", FILE, "--key", "alice")
    assert done.code == 1
    assert "is not sound: m.gguf" in done.err
    assert Path(FILE).read_bytes() == raw


def test_keys_that_cannot_sign(fails, here, monkeypatch):
    fails("nothing: no such key", "sign", FILE, "--key", "nothing")
    made_key("locked", "-t", "ed25519", "-N", "secret")
    # A terminal would be asked for the passphrase.
    monkeypatch.setenv("SSH_ASKPASS", "/bin/false")
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    before = names()
    Path("bob").unlink()
    for key in ("locked", "bob.pub", "notes.txt"):
        with pytest.raises(pyllamafile.RefusedError, match=f"{key}: ssh-keygen can't sign with it"):
            pyllamafile.sign(FILE, key=key)
    assert names() == [name for name in before if name != "bob"]
    assert verdict() == "unsigned"


def test_without_ssh_keygen(fails, signed, monkeypatch):
    monkeypatch.setenv("PATH", "")
    missing = "ssh-keygen is missing, which makes and checks signatures"
    hint = "install OpenSSH's client, for example: apt install openssh-client"
    fails(missing, "verify", FILE, "--signed-by", "alice.pub", hint=hint)
    with pytest.raises(pyllamafile.UnavailableError, match=missing):
        pyllamafile.sign(FILE, key="alice")


# Who may have signed

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFYDh5DEhXZBZbz1XOt74HVrdlHzpwBtqFSFwu8BBMm+"


@pytest.mark.parametrize(
    ("text", "by"),
    [
        ("{alice}\n", None),
        ("# of github.com\r\n\r\n{bob}\r\n{alice}\r\n", None),
        ("\ufeff{alice}", None),
        ("alice@x {alice}\n", "alice@x"),
        ("bob@x {bob}\nalice@x,al@y {alice}\n", "alice@x"),
        (
            'alice@x namespaces="git" {alice}\nalice@y namespaces="llamafile,file" {alice}',
            "alice@y",
        ),
        ('alice@x namespaces="git" {alice}', ...),
        ('alice@x valid-before="20010101" {alice}', ...),
        ("!alice@x {alice}", ...),
        ("bob@x {bob}", ...),
        ('"Alice A" {alice}', "Alice A"),
        ("*@x {alice}", "*@x"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_who_may_have_signed(signed, text, by, encoding):
    keys = {name: Path(f"{name}.pub").read_text().strip() for name in ("alice", "bob")}
    Path("who").write_bytes(text.format(**keys).encode(encoding))
    check = pyllamafile.signed_by(FILE, "who")
    assert (check.verdict, check.by) == (("unknown", None) if by is ... else ("signed", by))


def test_a_certificate(run, here):
    """By an authority: whoever has one of its certificates may sign, by the name in there."""
    made_key("authority")
    command = ["ssh-keygen", "-q", "-s", "authority", "-I", "x", "-n", "carol@x", "alice.pub"]
    subprocess.run(command, check=True)
    agentless = ["ssh-keygen", "-Y", "sign", "-n", "llamafile", "-f", "alice-cert.pub"]
    with zipfile.ZipFile(FILE) as file:
        manifest = file.read(MANIFEST)
    made = subprocess.run(agentless, input=manifest, capture_output=True)
    if made.returncode:
        pytest.skip(f"this ssh-keygen can't: {made.stderr.decode()}")
    zipalign.add(Path(FILE), [Entry(SIGNATURE, made.stdout)])
    Path("who").write_text(f"*@x cert-authority {Path('authority.pub').read_text()}")
    check = pyllamafile.signed_by(FILE, "who")
    assert (check.verdict, check.by) == ("signed", "carol@x")
    Path("who").write_text(f"*@x cert-authority {Path('bob.pub').read_text()}")
    assert verdict("who") == "unknown"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "who: no such file"),
        (b"", "who: has no public keys"),
        (b"# nobody\n\n", "who: has no public keys"),
        (b"Dear reader,\n", "who: line 1 is neither a public key nor an allowed signer"),
        (f"{PUBLIC}\nalice@x\n".encode(), "who: line 2 is neither .*"),
        (PUBLIC.replace("ssh-ed25519 ", "ssh-rsa ").encode(), "who: line 1 is neither .*"),
        (PUBLIC[:-9].encode(), "who: line 1 is neither .*"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "who: line 1 is a private key"),
        (bytes(100), "who: line 1 is neither .*"),
        # with a name, which else has all of it, and is in the environment of what is started
        pytest.param(b"\n" * 2_000_000, "who: is too long for a file of keys", id="2 MB"),
    ],
)
def test_files_without_keys(run, signed, content, error):
    if content is not None:
        Path("who").write_bytes(content)
    done = run("verify", FILE, "--signed-by", "who")
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(f"error: {error}\n(hint: .*\n)?", done.err)


def test_a_folder_is_no_file_of_keys(run, signed):
    assert run("verify", FILE, "--signed-by", "home").err == "error: home: is no file of keys\n"


# Interrupted


def test_killed_at_any_moment(here, monkeypatch):
    """It is the old file or the signed one. (What is written when is tested in test_zipalign.)"""
    states = []
    real = {name: getattr(os, name) for name in ("write", "ftruncate")}

    def spy(name, *arguments):
        done = real[name](*arguments)
        states.append(Path(FILE).read_bytes())
        return done

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(os, name, lambda *a, name=name: spy(name, *a))
        pyllamafile.sign(FILE, key="alice")
    found = []
    for state in states:
        Path("state").write_bytes(state)
        assert pyllamafile.verify("state") == []
        found.append(verdict(file="state"))
    assert set(found) <= {"unsigned", "signed"}
    assert found[-1] == "signed"
    assert sorted(found, reverse=True) == found


@pytest.mark.slow
def test_killed_for_real(here, prebuilt, rng):
    before = Path(FILE).read_bytes()
    done = set()
    for _ in range(10):
        Path(FILE).write_bytes(before)
        command = [*COMMAND, str(prebuilt), "sign", FILE, "--key", "alice"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.1, 0.5))
        process.kill()
        process.wait()
        assert pyllamafile.verify(FILE) == []
        done.add(verdict())
    assert done <= {"unsigned", "signed"}
