"""What models remember of the beginnings of conversations, kept from one start to the next."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import loadable
import pytest
from running import post, run, serving

import pyllamafile
from pyllamafile import RefusedError, native
from pyllamafile.progress import Step
from pyllamafile.targets import TARGETS

pytestmark = pytest.mark.native

WORDS = "The keeper of the lighthouse counts the ships that pass, and writes them into a book. "
SECRET = "The secret password of the library is kumquat.\n"
QUESTION = "What is the secret password of the library?"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
LEAST = 256  # tokens; prefixes.cpp


@pytest.fixture(scope="module")
def reader(smollm2: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that has read some 350 tokens, and has no state."""
    return built(smollm2, tmp_path_factory.mktemp("reader"), state=False)


@pytest.fixture(scope="module")
def knower(smollm2: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a state."""
    return built(smollm2, tmp_path_factory.mktemp("knower"))


def built(smollm2: Path, folder: Path, **options: Any) -> Path:
    (folder / "book.md").write_text(WORDS * 18 + SECRET)
    return pyllamafile.build(
        smollm2,
        folder / "m.llamafile",
        read=folder / "book.md",
        targets=["linux-amd64"],
        **options,
    ).path


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYLLAMAFILE_CACHE": str(tmp_path / "cache")}


def states(env: dict[str, str], least: int = 0) -> list[Path]:
    """Those that are in the folder, or will be in a moment."""
    end = time.monotonic() + 20
    while True:
        found = sorted((Path(env["PYLLAMAFILE_CACHE"]) / "state").glob("*.state"))
        if len(found) >= least:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.02)


def chat(url: str, *messages: tuple[str, str], **more: Any) -> tuple[str, int, int]:
    """What was answered, and how many tokens of the question were evaluated and known."""
    said = [{"role": role, "content": content} for role, content in messages]
    answer = post(url, "v1/chat/completions", messages=said, **{**GREEDY, **more})
    timings = answer["timings"]
    return answer["choices"][0]["message"]["content"], timings["prompt_n"], timings["cache_n"]


def ask(*command: str | Path, env: dict[str, str]) -> tuple[bytes, str]:
    """What was answered, and what the log says of states."""
    words = [*command, "--temp", "0", "-n", "12", "-lv", "4"]
    done = run(*words, env=env)
    assert done.returncode == 0, done.stderr
    lines = [each for each in done.stderr.decode().splitlines() if re.search(" [IW] state: ", each)]
    return done.stdout, "\n".join(lines)


def test_seam_how_far_what_was_read_is_evaluated(
    smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    heard: list[Step] = []
    long = WORDS * 60
    (tmp_path / "long.md").write_text(long)
    made = pyllamafile.build(
        smollm2,
        tmp_path / "m.llamafile",
        read=tmp_path / "long.md",
        targets=["linux-amd64"],
        progress=heard.append,
    )
    shares = [step for step in heard if step.what == "evaluating what it has read" and step.total]
    assert {step.kind for step in shares} == {"share"}
    assert len(shares) > 2
    assert made.state is not None
    done = [step.done for step in shares]
    assert done == sorted(done)
    assert {step.total for step in shares} == {done[-1]}
    assert done[-1] >= made.state.tokens


def test_seam_what_was_read_is_not_evaluated_again(reader: Path, env: dict[str, str]) -> None:
    with serving(reader, "--nobrowser", env=env) as url:
        first, evaluated, known = chat(url, ("user", QUESTION))
        assert evaluated > LEAST
        assert known == 0
        (state,) = states(env, 1)
    assert len(first) > 8
    with serving(reader, "--nobrowser", env=env) as url:
        for slot in (0, 1):  # each on its first use
            again, evaluated, known = chat(url, ("user", QUESTION), id_slot=slot)
            assert again == first
            assert evaluated < 40
            assert known > LEAST
    with serving(reader, "--nobrowser", "--no-state", env=env) as url:
        anew, evaluated, _ = chat(url, ("user", QUESTION))
        assert anew == first
        assert evaluated > LEAST
    assert states(env) == [state]
    assert state.stat().st_mode & 0o777 == 0o600
    assert state.parent.stat().st_mode & 0o777 == 0o700


def test_the_numbers_are_the_same_bit_for_bit(reader: Path, env: dict[str, str]) -> None:
    """Whether a state was made, restored, or not wanted: batches end at the same places."""
    asked = {"messages": [{"role": "user", "content": QUESTION}], **GREEDY}
    asked |= {"logprobs": True, "top_logprobs": 5}
    found = []
    for words in ((), (), ("--no-state",)):
        with serving(reader, "--nobrowser", *words, env=env) as url:
            (choice,) = post(url, "v1/chat/completions", **asked)["choices"]
            found.append([
                [likely["logprob"] for likely in token["top_logprobs"]]
                for token in choice["logprobs"]["content"]
            ])  # fmt: skip
        states(env, 1)
    assert len(found[0]) > 4
    assert found[0] == found[1] == found[2]


def test_every_mode_has_the_same_state(reader: Path, env: dict[str, str]) -> None:
    first, log = ask(reader, "--ask", QUESTION, env=env)
    assert len(first) > 8
    assert "tokens kept" in log
    again, log = ask(reader, "--ask", QUESTION, env=env)
    assert again == first
    assert "tokens restored" in log
    words = ["--temp", "0", "-n", "12"]
    done = run(reader, "--chat", *words, "-lv", "4", stdin=QUESTION.encode(), env=env)
    assert done.stdout == first
    assert b"tokens restored" in done.stderr
    assert len(states(env)) == 1
    quiet = run(reader, "--ask", QUESTION, *words, env=env)
    assert (quiet.stdout, quiet.stderr) == (first, b"")


def test_a_long_system_prompt_is_kept(llamafile: Path, env: dict[str, str]) -> None:
    words = ["--ask", QUESTION, "-sys", WORDS * 18 + SECRET]
    first, log = ask(llamafile, *words, env=env)
    assert "tokens kept" in log
    again, log = ask(llamafile, *words, env=env)
    assert again == first
    assert "tokens restored" in log
    _, log = ask(llamafile, "--ask", QUESTION, "-sys", WORDS * 5, env=env)  # too short for it
    assert log == ""


def test_a_clients_own_is_kept_when_it_comes_again(llamafile: Path, env: dict[str, str]) -> None:
    long = ("system", WORDS * 18 + SECRET)
    with serving(llamafile, "--nobrowser", "--server", env=env) as url:
        first, evaluated, _ = chat(url, long, ("user", QUESTION), id_slot=0)
        assert evaluated > LEAST
        chat(url, ("user", "Hi."), id_slot=1)
        assert states(env) == []
        chat(url, long, ("user", "Who are you?"), id_slot=0)
        assert len(states(env, 1)) == 1
    with serving(llamafile, "--nobrowser", "--server", env=env) as url:
        again, evaluated, known = chat(url, long, ("user", QUESTION))
        assert again[:20] == first[:20]  # which was evaluated in other batches, and rounded so
        assert evaluated < 40 < LEAST < known


def test_a_clients_tools_are_its_own(reader: Path, env: dict[str, str]) -> None:
    function = {"name": "turnips", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    with serving(reader, "--nobrowser", "--jinja", env=env) as url:
        chat(url, ("user", QUESTION), tools=tools, id_slot=0)
        chat(url, ("user", "Hi."), id_slot=1, chat_template_kwargs={"x": 1})
        assert len(states(env, 1)) == 1  # without the tools


def test_what_was_made_with_other_options_is_another(reader: Path, env: dict[str, str]) -> None:
    for number, words in enumerate([[], ["-ctk", "q8_0"], ["--rope-scale", "2"], ["-fa", "off"]]):
        _, log = ask(reader, "--ask", QUESTION, *words, env=env)
        assert "tokens kept" in log, words
        assert len(states(env)) == number + 1
        _, log = ask(reader, "--ask", QUESTION, *words, env=env)
        assert "tokens restored" in log, words


def test_a_damaged_one_is_made_anew(reader: Path, env: dict[str, str]) -> None:
    first, _ = ask(reader, "--ask", QUESTION, env=env)
    ask(reader, "--ask", QUESTION, "-ctk", "q8_0", env=env)
    state, foreign = states(env, 2)
    good, other = state.read_bytes(), foreign.read_bytes()
    middle = len(good) // 2
    if b"keys f16" not in good:
        state, good, other = foreign, other, good
    wrong = {
        "empty": b"",
        "cut in front": good[:12],
        "cut": good[:middle],
        "longer": good + b"\0",
        "changed": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "zeros": bytes(len(good)),
        "foreign": other,
        "foreign, with our conditions": other.replace(b"keys q8_0\n", b"keys f16\n\n"),
    }
    for what, content in wrong.items():
        state.write_bytes(content)
        again, log = ask(reader, "--ask", QUESTION, env=env)
        assert again == first, what
        assert ("evaluated anew" in log) == (what != "empty"), what
        assert "tokens kept" in log, what
        assert state.read_bytes() == good, what
    state.unlink()
    state.symlink_to(foreign)
    again, log = ask(reader, "--ask", QUESTION, env=env)
    assert again == first
    assert state.read_bytes() == good
    assert not state.is_symlink()


def test_the_folder_has_a_bound(reader: Path, env: dict[str, str]) -> None:
    folder = Path(env["PYLLAMAFILE_CACHE"]) / "state"
    folder.mkdir(parents=True, mode=0o700)
    old, older, foreign = (
        folder / f"{'0' * 16}-{'1' * 32}.state",
        folder / f"{'0' * 16}-{'2' * 32}.state",
        folder / "large.txt",
    )
    for path, age in ((old, 100), (older, 200), (foreign, 300)):
        with path.open("wb") as file:
            file.truncate(2 << 30)  # a hole
        os.utime(path, (time.time() - age,) * 2)
    draft = folder / f"{'0' * 16}-{'1' * 32}.state.0.draft"
    draft.write_bytes(b"x")
    os.utime(draft, (0, 0))
    _, log = ask(reader, "--ask", QUESTION, env=env)
    assert "tokens kept" in log
    (own,) = set(states(env)) - {old}
    assert {path.name for path in folder.iterdir()} == {old.name, own.name, foreign.name}
    os.utime(own, (0, 0))
    ask(reader, "--ask", QUESTION, env=env)
    assert time.time() - own.stat().st_mtime < 100  # the one that was used last goes last


@pytest.mark.parametrize("how", ["a file", "open to others", "a link"])
def test_without_such_a_folder_it_goes_on(
    reader: Path, env: dict[str, str], tmp_path: Path, how: str
) -> None:
    folder = Path(env["PYLLAMAFILE_CACHE"]) / "state"
    folder.parent.mkdir(mode=0o700)
    if how == "a file":
        folder.write_bytes(b"")
    elif how == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    for _ in range(2):
        answer, log = ask(reader, "--ask", QUESTION, env=env)
        assert len(answer) > 8
        assert "tokens not kept, for it can't be written" in log
    assert not folder.is_dir() or not list(folder.iterdir())


def test_the_process_that_writes_them_may_do_nothing_else(
    reader: Path, env: dict[str, str]
) -> None:
    def of(process: Path, what: str) -> str:
        lines = (process / "status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(what + ":"))

    with serving(reader, "--nobrowser", "--no-chats", env=env) as url:
        chat(url, ("user", QUESTION))
        states(env, 1)
        processes = [path for path in Path("/proc").glob("[0-9]*") if own(path, reader)]
        assert len(processes) == 2
        assert {of(process, "Seccomp") for process in processes} == {"2"}
        (keeper,) = [each for each in processes if of(each, "PPid") in {p.name for p in processes}]
        links = [str(each.readlink()) for each in (keeper / "fd").iterdir()]
        assert not [link for link in links if link.startswith("socket")]
    end = time.monotonic() + 10
    while keeper.exists() and of(keeper, "State") != "Z":
        assert time.monotonic() < end
        time.sleep(0.02)


def own(process: Path, llamafile: Path) -> bool:
    try:
        return str(llamafile).encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_they_go_with_the_cache(reader: Path, env: dict[str, str]) -> None:
    ask(reader, "--ask", QUESTION, env=env)
    (state,) = states(env, 1)
    note = state.parent / "note.txt"
    note.write_bytes(b"x")
    size = state.stat().st_size / 1e6
    done = run(reader, "--clean-cache", env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    line = f"{state.parent}: 1 removed, {size:.1f} MB"
    assert done.stdout.decode().splitlines()[0] == line
    assert list(state.parent.iterdir()) == [note]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "mamba"])
@pytest.mark.parametrize("words", [(), ("-np", "2", "--no-kv-unified"), ("-ub", "64", "-b", "64")])
def test_every_kind_of_memory_is_restored(
    runtime: Path, env: dict[str, str], tmp_path: Path, architecture: str, words: tuple[str, ...]
) -> None:
    """That of all positions, of a window of them, and of a recurrent model."""
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    model = getattr(loadable, architecture)()
    keys = {f"{architecture}.context_length": 4096, "tokenizer.chat_template": template}
    weights = model.but(keys).write(tmp_path / "m.gguf")
    command = (runtime, "--server", "--nobrowser", "-m", weights, "-c", "4096", *words)
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 5, "temperature": 0}
    asked |= {"max_tokens": 6, "ignore_eos": True}
    found = []
    for _ in range(2):
        with serving(*command, "-sys", "Turnips cost seven. " * 20, env=env) as url:
            for question in ("What?", "And then?"):
                said = [{"role": "user", "content": question}]
                answer = post(url, "v1/chat/completions", messages=said, **asked)
                tops = [
                    {top["token"]: top["logprob"] for top in each["top_logprobs"]}
                    for each in answer["choices"][0]["logprobs"]["content"]
                ]
                found.append((answer["timings"]["cache_n"], tops))
            states(env, 1)
    (anew, first), (_, second), (known, third), (_, fourth) = found
    assert anew == 0
    assert known >= LEAST
    for one, other in ((first, third), (second, fourth)):
        for left, right in zip(one, other, strict=True):
            assert left == pytest.approx(right, abs=1e-3)


# In the file


def state_of(path: Path) -> zipfile.ZipInfo | None:
    with zipfile.ZipFile(path) as archive:
        return next((each for each in archive.infolist() if each.filename == ".state"), None)


def data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return member.header_offset + 30 + name + extra


def test_a_file_that_has_read_starts_with_its_state(
    knower: Path, reader: Path, env: dict[str, str]
) -> None:
    member = state_of(knower)
    assert member is not None
    assert member.compress_type == zipfile.ZIP_STORED
    assert data_offset(knower, member) % 65536 == 0
    with serving(knower, "--nobrowser", env=env) as url:
        for slot in (0, 1):
            first, evaluated, known = chat(url, ("user", QUESTION), id_slot=slot)
            assert evaluated < 40 < LEAST < known
        behind, evaluated, _ = chat(url, ("system", "Be kind."), ("user", QUESTION), id_slot=2)
        assert evaluated > LEAST  # another text stands in front
        assert len(behind) > 8
        chat(url, ("user", QUESTION), id_slot=3)
    assert states(env) == []
    with serving(reader, "--nobrowser", env=env) as url:
        assert chat(url, ("user", QUESTION))[0] == first
    shown = pyllamafile.inspect(knower).state
    assert shown is not None
    assert (shown.tokens, shown.size) == (known, member.file_size)
    assert shown.conditions["keys"] == "f16"
    assert pyllamafile.verify(knower) == []


@pytest.mark.parametrize("level", ["v2", "v3", "avxvnni", "avx512", "avx512bf16"])
def test_every_level_takes_it(knower: Path, reader: Path, env: dict[str, str], level: str) -> None:
    """What another level has made differs by rounding."""
    asked = {**env, "PYLLAMAFILE_CPU": level}
    if f"CPU level {level}\n" not in run(knower, "--version", env=asked).stdout.decode():
        pytest.skip(f"this processor has no {level}")
    answer, log = ask(knower, "--ask", QUESTION, env=asked)
    assert "tokens restored" in log
    anew, log = ask(reader, "--ask", QUESTION, "--no-state", env=asked)
    assert log == ""
    assert answer[:20] == anew[:20]


def test_what_does_not_fit_is_said_and_evaluated_anew(knower: Path, env: dict[str, str]) -> None:
    first, _ = ask(knower, "--ask", QUESTION, env=env)
    for words, why in {
        ("-ctk", "q8_0"): 'it was made with "keys f16", and here is "keys q8_0"',
        ("-sys", "Be kind."): "it is of another text or template",
    }.items():
        _, log = ask(knower, "--ask", QUESTION, *words, env=env)
        assert f"state: that in the file is not used: {why}\n" in log + "\n"
        assert "tokens kept" in log
        _, log = ask(knower, "--ask", QUESTION, *words, env=env)
        assert "tokens restored" in log
    again, log = ask(knower, "--ask", QUESTION, env=env)
    assert again == first
    assert "(in the file, " in log


def test_a_damaged_one_in_the_file(knower: Path, env: dict[str, str], tmp_path: Path) -> None:
    first, _ = ask(knower, "--ask", QUESTION, env=env)
    path = tmp_path / "m.llamafile"
    shutil.copy(knower, path)
    member = state_of(path)
    assert member is not None
    start = data_offset(path, member)
    middle = member.file_size // 2
    for at, size in ((start, 16), (start + 8, 8), (start + middle, 1), (start + 700, 100)):
        with path.open("r+b") as file:
            file.seek(at)
            good = file.read(size)
            file.seek(at)
            file.write(bytes(each ^ 0xFF for each in good))
        again, log = ask(path, "--ask", QUESTION, "-v", env=env)
        assert again == first, at
        assert "not used: it" in log, at
        wrong = pyllamafile.verify(path)
        assert {problem.where.split()[0] for problem in wrong} == {".state"}
        assert len(wrong) == (3 if at < start + 16 else 2)  # its form, checksum and digest
        with path.open("r+b") as file:
            file.seek(at)
            file.write(good)
    assert "(in the file, " in ask(path, "--ask", QUESTION, env=env)[1]


def test_changes_of_a_finished_file(knower: Path, reader: Path, tmp_path: Path) -> None:
    path, said = tmp_path / "m.llamafile", []
    shutil.copy(knower, path)
    (tmp_path / "args").write_text("--temp 0\n")
    (tmp_path / "note").write_text("Nothing of the model's.\n")

    def notices(step: pyllamafile.Step) -> None:
        said.extend([step.what] if step.kind == "notice" else [])

    pyllamafile.add(path, [(tmp_path / "note", "note")], progress=notices)
    assert (state_of(path) is not None, said) == (True, [])
    with pytest.raises(RefusedError, match="itself writes what has such a name"):
        pyllamafile.add(path, [(tmp_path / "note", ".state")])
    pyllamafile.add(path, [(tmp_path / "args", ".args")], progress=notices)
    assert state_of(path) is None
    how = f"`pyllamafile upgrade {path}` evaluates anew what it has read"
    assert said == [f"{path}: has no state any more: {how}"]
    assert pyllamafile.verify(path) == []
    done = pyllamafile.upgrade(path, progress=notices)
    assert done.state is not None
    assert done.size == path.stat().st_size
    assert state_of(path) is not None
    pyllamafile.upgrade(path, progress=notices)
    assert pyllamafile.verify(path) == []
    assert pyllamafile.inspect(path).state == done.state
    pyllamafile.remove(path, ".read", progress=notices)
    assert state_of(path) is None
    assert len(said) == 1
    shutil.copy(reader, path)  # built without one
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("llamafile.json"))["state"] is False
    assert pyllamafile.upgrade(path).state is None
    assert state_of(path) is None


def test_a_text_that_does_not_fit_is_refused(smollm2: Path, runtime: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"can't be evaluated: .*\(\d+ tokens\).*\(256 tokens\)"):
        built(smollm2, tmp_path, args=["-c", "256"])
    assert [path.name for path in tmp_path.iterdir()] == ["book.md"]


def test_the_first_of_several_models_has_it(
    smollm2: Path, runtime: Path, env: dict[str, str], tmp_path: Path
) -> None:
    loadable.qwen2().write(tmp_path / "more.gguf")
    (tmp_path / "book.md").write_text(WORDS * 18 + SECRET)
    path = pyllamafile.build(
        [smollm2, tmp_path / "more.gguf"],
        tmp_path / "m.llamafile",
        read=tmp_path / "book.md",
        targets=["linux-amd64"],
    ).path
    assert state_of(path) is not None
    with serving(path, "--nobrowser", env=env) as url:
        first, evaluated, known = chat(url, ("user", QUESTION), model=smollm2.stem)
        assert evaluated < 40 < LEAST < known
    with serving(path, "--nobrowser", "--no-state", env=env) as url:
        anew, evaluated, known = chat(url, ("user", QUESTION), model=smollm2.stem)
        assert anew == first
        assert evaluated > LEAST
    again, log = ask(path, "--ask", QUESTION, "-m", f"@{smollm2.name}", env=env)
    assert "(in the file, " in log
    assert again.decode().strip() == first.strip()
    assert states(env) == []


def test_a_file_for_another_system_has_one_too(smollm2: Path, knower: Path, tmp_path: Path) -> None:
    if native.find(TARGETS["linux-arm64"]) is None:
        pytest.skip("the runtime for linux-arm64 is missing: pyllamafile runtimes build")
    shutil.copy(knower.parent / "book.md", tmp_path)
    path = pyllamafile.build(
        smollm2, tmp_path / "m", read=tmp_path / "book.md", targets=["linux-arm64"]
    ).path
    with zipfile.ZipFile(path) as one, zipfile.ZipFile(knower) as other:
        assert one.read(".state") == other.read(".state")


def test_its_size_is_known_before(smollm2: Path, knower: Path) -> None:
    """To within the tokens of the template."""
    reading = pyllamafile.advise(smollm2, read=knower.parent / "book.md").reading
    state = pyllamafile.inspect(knower).state
    assert reading is not None
    assert state is not None
    assert reading.exact
    assert reading.fits
    assert 0 < state.tokens - reading.tokens < 16
    assert 0 < state.size / state.tokens - reading.per_token["f16"] < 50  # positions and tokens
    assert [*reading.per_token] == ["f16", "q8_0", "q4_0"]


def test_with_a_draft_there_is_none(
    smollm2: Path, runtime: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """Its memory would have to be kept, too."""
    said: list[str] = []
    (tmp_path / "long.md").write_text(WORDS * 50)
    shutil.copy(smollm2, tmp_path / "draft.gguf")
    built = pyllamafile.build(
        smollm2,
        tmp_path / "m.llamafile",
        draft=tmp_path / "draft.gguf",
        read=tmp_path / "long.md",
        targets=["linux-amd64"],
        progress=lambda step: said.append(step.what) if step.kind == "notice" else None,
    )
    assert built.state is None
    assert len(said) == 1
    assert said[0].startswith(f"{built.path}: has no state: its runtime makes none: it has a draft")
    for _ in range(2):
        answer, log = ask(built.path, "--ask", QUESTION, env=env)
        assert (len(answer) > 8, log) == (True, "")
    assert states(env) == []


def test_keys_and_values_of_fewer_bits(
    smollm2: Path, runtime: Path, knower: Path, env: dict[str, str], tmp_path: Path
) -> None:
    path = built(smollm2, tmp_path, read_as="q8_0")
    small, large = state_of(path), state_of(knower)
    assert small is not None
    assert large is not None
    assert small.file_size < 0.6 * large.file_size
    answer, log = ask(path, "--ask", QUESTION, env=env)
    assert len(answer) > 8
    assert "(in the file, " in log
    with pytest.raises(RefusedError, match="can't be 'f32'"):
        built(smollm2, tmp_path, read_as="f32", force=True)
    with pytest.raises(RefusedError, match="nothing is read"):
        pyllamafile.build(smollm2, tmp_path / "n", read_as="q8_0", targets=["linux-amd64"])
