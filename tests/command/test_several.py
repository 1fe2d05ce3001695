"""More than one GGUF in a file: adapters, a projector, a draft, and models side by side."""

from __future__ import annotations

import base64
import json
import re
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loadable
import pytest
from fixtures import png, tiny_ear, tiny_gguf, tiny_lora, tiny_phi3, tiny_projector, wav
from running import ARTIFACTS, COMMAND, browsing, childless, children, ready, run, serving

import pyllamafile
from pyllamafile import Adapter, PyllamafileError, native, zipalign

# building


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def beside(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    """What fits the tiny model, by the option that takes it."""
    return {
        "lora": tiny_lora(tmp_path / "pirate.gguf", tiny),
        "mmproj": tiny_projector(tmp_path / "eye.gguf", width=32),
        "draft": tiny_gguf(tmp_path / "quick.gguf", name="Quick"),
    }


def test_what_goes_with_a_model_is_stored_behind_it_and_used(
    folder: Path, tiny: Path, beside: dict[str, Path]
) -> None:
    built = pyllamafile.build(
        tiny,
        lora=[beside["lora"], Adapter(tiny_lora(folder / "b.gguf", tiny, size=2), 0.25)],
        mmproj=beside["mmproj"],
        draft=beside["draft"],
        args=["-c", "64"],
    )
    assert built.models == ("tiny.gguf",)
    assert built.partners == (
        ("--lora", "pirate.gguf"),
        ("--lora", "b.gguf=0.25"),
        ("--mmproj", "eye.gguf"),
        ("--draft", "quick.gguf"),
    )
    assert pyllamafile.verify(built.path) == []
    report = pyllamafile.inspect(built.path)
    assert shlex.split(report.args or "") == [
        *("--lora", "@pirate"),
        *("--lora-scaled", "@b:0.25"),
        *("--mmproj", "@eye"),
        *("--model-draft", "@quick"),
        *("-c", "64"),
    ]
    assert [(model.file, model.kind) for model in report.models] == [
        ("tiny.gguf", "model"),
        ("pirate.gguf", "adapter"),
        ("b.gguf", "adapter"),
        ("eye.gguf", "projector"),
        ("quick.gguf", "model"),
    ]
    with zipfile.ZipFile(built.path) as archive:
        for name, path in {"pirate.gguf": beside["lora"], "eye.gguf": beside["mmproj"]}.items():
            member = archive.getinfo(name)
            assert archive.read(name) == path.read_bytes()
            assert member.compress_type == zipfile.ZIP_STORED
    assert {entry.alignment for entry in report.entries if entry.name.endswith(".gguf")} == {65536}


def test_what_does_not_fit_is_refused(folder: Path, tiny: Path, beside: dict[str, Path]) -> None:
    other = tiny_lora(folder / "other.gguf", tiny, arch="phi3")
    wider = tiny_gguf(folder / "wider.gguf", tokens=1000)
    shaped = tiny_lora(folder / "shaped.gguf", wider)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"lora": [tiny]}, "tiny.gguf: is a model, not a LoRA adapter"),
        ({"lora": [beside["mmproj"]]}, "eye.gguf: is a projector, not a LoRA adapter"),
        ({"mmproj": tiny}, "tiny.gguf: is a model, not a projector"),
        ({"draft": beside["lora"]}, "pirate.gguf: is a LoRA adapter, not a model"),
        ({"lora": [other]}, "other.gguf: is for phi3, and the model is llama"),
        ({"lora": [shaped]}, "shaped.gguf: is for another model"),
        ({"draft": wider}, "wider.gguf: has another vocabulary than the model"),
        ({"lora": [Adapter(beside["lora"], float("nan"))]}, "is no scale"),
        ({"lora": [folder / "none.gguf"]}, "none.gguf"),
        ({"lora": [tiny_lora(folder / "a:b.gguf", tiny)]}, "can't have a comma, a colon"),
    ]
    before = sorted(folder.iterdir())
    for options, message in refused:
        with pytest.raises(PyllamafileError, match=re.escape(message)):
            pyllamafile.build(tiny, **options)
    with pytest.raises(PyllamafileError, match="goes with a model, and there is none"):
        pyllamafile.build((), "x.llamafile", mmproj=beside["mmproj"])
    assert sorted(folder.iterdir()) == before


def test_a_draft_leaves_the_chat_template_alone(folder: Path, tmp_path: Path) -> None:
    model = tiny_gguf(folder / "phi.gguf", arch="phi3", template=None)
    draft = tiny_gguf(folder / "d.gguf", arch="phi3", template=None)
    built = pyllamafile.build(model, tmp_path / "x.llamafile", draft=draft)
    assert built.template
    assert built.untemplated == ()


def test_the_command_says_what_is_in_the_file(
    prebuilt: Path, folder: Path, tiny: Path, beside: dict[str, Path]
) -> None:
    def build(*options: str | Path) -> subprocess.CompletedProcess[str]:
        words = [*COMMAND, prebuilt, "build", "--gguf", tiny, "--force", *options]
        return subprocess.run(words, capture_output=True, text=True)

    done = build("--lora", f"{beside['lora']}=-0.5", "--draft", beside["draft"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  --lora    pirate.gguf=-0.5\n  --draft   quick.gguf\n" in done.stdout
    assert './tiny.llamafile -p "Once' in done.stdout
    done = build("--gguf", beside["draft"])
    assert './tiny.llamafile -m @tiny -p "Once' in done.stdout
    assert "./tiny.llamafile   # web GUI" in done.stdout  # which has them all
    done = build("--lora", f"{beside['lora']}=much")
    assert done.returncode == 2
    assert "'much' is no scale" in done.stderr
    done = build("--lora", tiny)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is a model, not a LoRA adapter" in done.stderr


# running

QUESTION = "What is the capital of France?"
CHANGED = "blk.0.attn_output.weight"


def answer(llamafile: Path, *options: str | Path) -> str:
    done = run(llamafile, "-p", "The capital of France is", "-n", "8", "--temp", "0", *options)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def call(url: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)


def chat(url: str, content: object = QUESTION, **more: object) -> Any:
    messages = [{"role": "user", "content": content}]
    # Computed anew each time, for what is taken from a cache was rounded otherwise.
    body = {"messages": messages, "max_tokens": 12, "temperature": 0, "cache_prompt": False, **more}
    return call(url, "v1/chat/completions", body)


def refusal(url: str, content: object = QUESTION, **more: object) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as raised:
        chat(url, content, **more)
    with raised.value as reply:
        return reply.code, reply.read().decode()


def said(reply: Any) -> str:
    return reply["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def make(smollm2: Path, runtime: Path, place: Path) -> Callable[..., Path]:
    """Builds SmolLM2 with something beside it."""

    def make(name: str, *more: Path, **options: Any) -> Path:
        path = place / f"{name}.llamafile"
        return pyllamafile.build([smollm2, *more], path, targets=["linux-amd64"], **options).path

    return make


@pytest.fixture(scope="module")
def adapter(smollm2: Path, place: Path) -> Path:
    return tiny_lora(place / "loud.gguf", smollm2, tensor=CHANGED, size=0.3)


@pytest.fixture(scope="module")
def adapted(make: Callable[..., Path], adapter: Path) -> Path:
    return make("adapted", lora=[adapter])


@pytest.mark.native
def test_an_adapter_inside_is_used(
    adapted: Path, adapter: Path, llamafile: Path, smollm2: Path
) -> None:
    plain = answer(llamafile)
    changed = answer(adapted)
    assert "Paris" in plain
    assert changed != plain
    for options in (["--lora", adapter], ["--lora", f"{adapted}@loud.gguf"]):
        assert answer(llamafile, *options) == changed
    # What the user says is stronger, and what is for one model is not for another.
    assert answer(adapted, "--lora-scaled", "@loud:0") == plain
    assert answer(adapted, "--lora", "@loud") == changed
    assert answer(adapted, "-m", smollm2) == plain
    assert answer(adapted, "-m", "@SmolLM2-135M-Instruct.Q4_1") == changed


@pytest.mark.native
def test_weights_of_the_wrong_kind_are_refused(adapted: Path, smollm2: Path) -> None:
    for options, message in {
        ("-m", "@loud"): "@loud: goes with a model and is none itself",
        ("-m", ""): "-m needs a value: a GGUF, a llamafile, or @NAME for one of several in here",
        ("--lora", str(smollm2)): f"--lora {smollm2}: is a model, not a LoRA adapter",
        ("--lora", "@nix"): f"--lora {adapted}: no weights called nix inside; it has "
        "SmolLM2-135M-Instruct.Q4_1.gguf, loud.gguf",
        ("--lora", "nix.gguf"): "--lora nix.gguf: No such file or directory",
    }.items():
        done = run(adapted, "-p", "x", *options)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == f"error: {message}\n"


@pytest.mark.native
def test_what_is_wrong_in_args_is_said_to_be_there(make: Callable[..., Path], place: Path) -> None:
    for name, words in {"model": ["-m", "@nix"], "lora": ["--lora", "@nix"]}.items():
        file = make(name)
        # What `build` and `add` refuse.
        zipalign.add(file, [zipalign.Entry(".args", " ".join(words).encode())])
        done = run(file, "-p", "x")
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: .args of this file: ")
        assert b"no weights called nix inside" in done.stderr


@pytest.mark.native
def test_the_server_switches_adapters(adapted: Path, server: str) -> None:
    plain = said(chat(server))
    with serving(adapted, "--nobrowser") as url:
        [listed] = call(url, "lora-adapters")
        assert (listed["id"], listed["path"], listed["scale"]) == (0, "@loud", 1)
        changed = said(chat(url))
        call(url, "lora-adapters", [{"id": 0, "scale": 0}])
        switched_off = said(chat(url))
        call(url, "lora-adapters", [{"id": 0, "scale": 1}])
        assert said(chat(url)) == changed
    assert switched_off == plain != changed


@pytest.fixture(scope="module")
def seeing(make: Callable[..., Path], place: Path) -> Path:
    return make("seeing", mmproj=tiny_projector(place / "eye.gguf", width=576))


@pytest.fixture(scope="module")
def pictures(place: Path) -> list[Path]:
    paths = [place / "red.png", place / "blue.png"]
    for path, colour in zip(paths, ((255, 0, 0), (0, 0, 255)), strict=True):
        path.write_bytes(png(colour))
    return paths


@pytest.mark.native
def test_seam_pictures_in_the_terminal(seeing: Path, pictures: list[Path], smollm2: Path) -> None:
    def look(picture: Path, *options: str | Path) -> str:
        question = ("-p", "What is in the picture?", "--image", picture)
        done = run(seeing, *question, "-n", "12", "--temp", "0", *options)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    red, blue = map(look, pictures)
    assert red != blue
    assert len(red.splitlines()) == 1
    assert red.endswith("\n")
    assert look(pictures[0], "--mmproj", seeing.parent / "eye.gguf") == red
    assert look(pictures[0], "--mmproj", f"{seeing}@eye") == red
    for options, message in {
        ("--no-mmproj",): "images and sound need a projector, and none goes with this model",
        ("-m", str(smollm2)): "images and sound need a projector, and none goes with this model",
        ("--mmproj", str(smollm2)): f"--mmproj {smollm2}: is a model, not a projector",
        ("--image", "nix.png"): "--image nix.png: no such file",
    }.items():
        done = run(seeing, "-p", "x", "--image", pictures[0], *options)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode().startswith(f"error: {message}")


@pytest.mark.native
def test_pictures_in_a_conversation(seeing: Path, pictures: list[Path]) -> None:
    def look(picture: Path, *options: str | Path, said: str) -> bytes:
        chat = ("--chat", "-n", "12", "--temp", "0", *options)
        done = run(seeing, *chat, stdin=f"{said}What is it?\n".encode())
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    red, blue = (look(picture, said=f"/image {picture}\n") for picture in pictures)
    assert red != blue
    assert look(pictures[0], "--image", pictures[0], said="") == red
    # Left to chance, an answer may be none at all.
    chat = ("--chat", "-n", "2", "--temp", "0")
    done = run(seeing, *chat, stdin=f"/image {pictures[0]}\nWhat is it?\n/context\n".encode())
    assert re.search(rb"\d+ of 8192 tokens, pictures not counted: 1\n$", done.stdout)
    asked = run(
        seeing, "--ask", "What is it?", "--image", pictures[0], *("-n", "12", "--temp", "0")
    )
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, red, b"")


def with_picture(path: Path) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is in the picture?"},
    ]


@pytest.mark.native
def test_pictures_over_the_api(seeing: Path, pictures: list[Path]) -> None:
    with serving(seeing, "--nobrowser") as url:
        assert call(url, "props")["modalities"]["vision"] is True
        red, blue = (chat(url, with_picture(path)) for path in pictures)
        assert said(red) != said(blue)
        blind = chat(url, "What is in the picture?")
        # The projector makes four embeddings of one.
        assert red["usage"]["prompt_tokens"] >= blind["usage"]["prompt_tokens"] + 4
    with serving(seeing, "--nobrowser", "--no-mmproj") as url:
        assert call(url, "props")["modalities"]["vision"] is False
        assert "image input is not supported" in refusal(url, with_picture(pictures[0]))[1]


@pytest.mark.native
@pytest.mark.browser
def test_pictures_in_the_gui(seeing: Path, pictures: list[Path]) -> None:
    with serving(seeing, "--nobrowser", "-n", "12") as url, browsing(url) as page:
        asked: list[str] = []

        def note(request: Any) -> None:
            if request.url.endswith("/v1/chat/completions"):
                asked.append(request.post_data or "")

        page.on("request", note)
        page.locator("input[type=file]").set_input_files(pictures[0])
        box = page.get_by_role("textbox").first
        page.get_by_role("img", name="red.png").wait_for()
        box.fill("What is in the picture?")
        box.press("Enter")
        page.get_by_text(re.compile(r"\d tokens$")).last.wait_for(timeout=60_000)
        page.screenshot(path=ARTIFACTS / "gui-picture.png")
        [question] = asked
        parts = json.loads(question)["messages"][-1]["content"]
        assert {part["type"] for part in parts} == {"image_url", "text"}
        assert page.get_by_text("error").count() == 0


@pytest.fixture(scope="module")
def hearing(make: Callable[..., Path], place: Path) -> Path:
    return make("hearing", mmproj=tiny_ear(place / "ear.gguf", width=576))


@pytest.fixture(scope="module")
def tones(place: Path) -> list[Path]:
    paths = [place / "low.wav", place / "high.wav"]
    for path, hertz in zip(paths, (200, 3000), strict=True):
        path.write_bytes(wav(hertz))
    return paths


@pytest.mark.native
def test_sounds_in_the_terminal(
    hearing: Path, seeing: Path, tones: list[Path], pictures: list[Path]
) -> None:
    def hear(tone: Path) -> bytes:
        question = ("-p", "What is to be heard?", "--audio", tone)
        done = run(hearing, *question, "-n", "12", "--temp", "0")
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    low, high = map(hear, tones)
    assert low != high == hear(tones[1])
    for file, what, option in (
        (hearing, b"vision", ("--image", pictures[0])),
        (seeing, b"audio", ("--audio", tones[0])),
    ):
        done = run(file, "-p", "x", *option)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"does not support %b input" % what in done.stderr


def with_sound(path: Path) -> list[dict[str, Any]]:
    data = base64.b64encode(path.read_bytes()).decode()
    return [
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "text", "text": "What is to be heard?"},
    ]


@pytest.mark.native
def test_sounds_over_the_api(hearing: Path, tones: list[Path], pictures: list[Path]) -> None:
    with serving(hearing, "--nobrowser") as url:
        assert call(url, "props")["modalities"]["audio"] is True
        low, high = (chat(url, with_sound(path)) for path in tones)
        assert said(low) != said(high)
        deaf = chat(url, "What is to be heard?")
        # The projector makes 375 embeddings of one, which is filled up with silence.
        assert low["usage"]["prompt_tokens"] >= deaf["usage"]["prompt_tokens"] + 375
        assert "image input is not supported" in refusal(url, with_picture(pictures[0]))[1]


@pytest.mark.native
def test_seam_a_draft_changes_nothing_but_the_time(
    make: Callable[..., Path], smollm2: Path, runtime: Path, place: Path
) -> None:
    draft = place / "draft.gguf"
    done = run(runtime, "--quantize", "--allow-requantize", smollm2, draft, "Q2_K")
    assert done.returncode == 0
    drafted = make("drafted", draft=draft)
    body = {"max_tokens": 64, "ignore_eos": True}
    with serving(drafted, "--nobrowser") as url:
        quick = chat(url, **body)
    with serving(drafted, "--nobrowser", "-m", smollm2) as url:
        plain = chat(url, **body)
    assert said(quick) == said(plain)
    assert quick["timings"]["draft_n_accepted"] > 0
    assert "draft_n" not in plain["timings"]
    # It is no second model, and a mode that has no use for it leaves it alone.
    assert answer(drafted).startswith("The capital of France is Paris")


@pytest.mark.native
def test_seam_a_draft_of_another_vocabulary_is_refused(
    smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    """Somebody has named it, and would wait for an answer that comes no sooner."""
    draft = loadable.llama().write(tmp_path / "draft.gguf")
    why = "its vocabulary is not the model's; give one of the same family, or none"
    for mode in (("--server", "--nobrowser"), ("--ask", "Hello?")):
        done = run(runtime, "-m", smollm2, "-md", draft, *mode)
        assert (done.returncode, b"Hello" in done.stdout) == (1, False)
        assert done.stderr.decode() == f"error: the draft can't be used: {why}\n"


@pytest.fixture(scope="module")
def several(make: Callable[..., Path], adapter: Path, place: Path) -> Path:
    """SmolLM2 with an adapter, a tiny Phi-3, and one that makes embeddings."""
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    phi3 = tiny_phi3(place / "phi3.gguf", vocabulary)
    embedding = tiny_phi3(place / "embed.gguf", vocabulary, pooling=1)
    return make("several models", phi3, embedding, lora=[adapter])


SEVERAL = ["SmolLM2-135M-Instruct.Q4_1", "embed", "phi3"]


@pytest.mark.native
def test_seam_the_server_has_all_models_and_loads_them_on_demand(
    several: Path, adapted: Path, server: str
) -> None:
    def status() -> dict[str, str]:
        return {row["id"]: row["status"]["value"] for row in call(url, "v1/models")["data"]}

    with serving(adapted, "--nobrowser") as url:
        changed = said(chat(url))
    with serving(several, "--nobrowser", "-c", "512") as url:
        assert status() == dict.fromkeys(SEVERAL, "unloaded")
        assert children(several) == []
        assert said(chat(url, model=SEVERAL[0])) == changed  # its adapter goes with it
        assert status() == {**dict.fromkeys(SEVERAL, "unloaded"), SEVERAL[0]: "loaded"}
        assert chat(url, model="phi3")["model"] == "phi3"
        made = call(url, "v1/embeddings", {"model": "embed", "input": "hello"})
        assert len(made["data"][0]["embedding"]) == 64
        assert len(children(several)) == 3
        call(url, "models/unload", {"model": "phi3"})
        deadline = time.monotonic() + 30
        while status()["phi3"] != "unloaded" and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(children(several)) == 2
        code, message = refusal(url, model="nix")
        assert code == 400
        assert "model 'nix' not found" in message
    assert childless(several)


@pytest.mark.native
def test_seam_what_models_say_is_no_output(several: Path, tmp_path: Path) -> None:
    """Their log goes to standard error, and standard output has our lines alone."""
    command = [str(several), "--nobrowser", "-v", "-c", "512"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        said(chat(ready(process), model="phi3", max_tokens=1))
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert rest == b""
    assert re.search(rb"^\[\d+\] .+", (tmp_path / "log").read_bytes(), re.M)


@pytest.mark.native
def test_seam_a_page_of_the_router_reaches_its_models(several: Path) -> None:
    def status(url: str, origin: str) -> int:
        body = json.dumps(
            {"model": "phi3", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        ).encode()
        headers = {"Content-Type": "application/json", "Origin": origin, "Sec-Fetch-Site": "x"}
        try:
            request = urllib.request.Request(url + "v1/chat/completions", body, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    allowed = "http://page.example"
    command = [several, "--nobrowser", "-c", "512", "--allow-origin", allowed]
    with serving(*command) as url:
        assert [status(url, page) for page in (url[:-1], allowed)] == [200, 200]
        assert status(url, "http://evil.example") == 403
        (child,) = children(several)
        port = re.search(r"--port\x00(\d+)", child)
        assert port
        assert status(f"http://127.0.0.1:{port[1]}/", url[:-1]) in (401, 403)


@pytest.mark.native
@pytest.mark.browser
def test_the_gui_offers_all_models(several: Path) -> None:
    def loaded() -> list[str]:
        rows = call(url, "v1/models")["data"]
        return [row["id"] for row in rows if row["status"]["value"] == "loaded"]

    with serving(several, "--nobrowser", "-c", "512", "-n", "12") as url, browsing(url) as page:
        page.get_by_role("button", name="SmolLM2").click()
        offered = page.get_by_role("option")
        offered.first.wait_for()
        first_lines = [row.split("\n")[0] for row in offered.all_inner_texts()]
        assert first_lines == ["SmolLM2", *SEVERAL[1:]]
        page.get_by_role("option", name="phi3").click()
        box = page.get_by_role("textbox").first
        box.fill("Hello")
        box.press("Enter")
        page.get_by_text(re.compile(r"\d tokens$")).last.wait_for(timeout=60_000)
        page.screenshot(path=ARTIFACTS / "gui-models.png")
        assert loaded() == ["phi3"]


@pytest.mark.native
def test_the_models_of_a_server_are_blind_if_wanted(
    make: Callable[..., Path], seeing: Path, place: Path
) -> None:
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    phi3 = tiny_phi3(place / "beside.gguf", vocabulary)
    file = make("seeing models", phi3, mmproj=seeing.parent / "eye.gguf")
    for options, sees in ((), True), (("--no-mmproj",), False):
        with serving(file, "--nobrowser", "-c", "512", *options) as url:
            chat(url, model=SEVERAL[0])
            assert call(url, f"props?model={SEVERAL[0]}")["modalities"]["vision"] is sees


@pytest.mark.native
def test_elsewhere_one_of_several_models_is_chosen(several: Path) -> None:
    done = run(several, "-p", "x")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        f"error: {several}: several models inside; choose one with -m @NAME, where NAME is one of "
        "SmolLM2-135M-Instruct.Q4_1.gguf, phi3.gguf, embed.gguf\n"
    )
    done = run(several, "-p", "x", "-n", "2", "-m", "@phi3")
    assert (done.returncode, done.stderr) == (0, b"")
    with serving(several, "--nobrowser", "-m", "@phi3", "-c", "512") as url:
        assert [row["id"] for row in call(url, "v1/models")["data"]] == ["phi3"]
