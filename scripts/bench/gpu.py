#!/usr/bin/env python3
"""Ours on a GPU beside upstream's own Vulkan build, on the same device in one run.

    scripts/bench/gpu.py prepare FOLDER [--shape llama-1b] [--layers N] [--without-upstream]
    python3 FOLDER/gpu.py run [--types Q4_K_M,Q8_0,F16] [--seconds 300] [--rounds N]
                              [--prompt N] [--generate N]
    python3 FOLDER/gpu.py list [--rounds N]

`prepare` compiles all that is measured, on a machine without a GPU: our program and the shaders,
and upstream's llama-bench and llama-completion by its own CMakeLists.txt with GGML_VULKAN=ON, from
the same sdist, with the same compiler and the same modules, so that what differs is ours. The
folder, some 100 MB, takes nothing to run but Python, glibc 2.28 and a Vulkan driver; archived with
xz it is a tenth of that.

`run` is one command for a machine with a GPU. It makes a model of random weights with the sizes of
a real one, and quantizes it there. Ours and upstream's take turns until the seconds are over;
medians are printed with their ratio, which is above 1 where ours is faster. First of all it says
what it runs on. Where a device is named by hand, GGML_VK_VISIBLE_DEVICES is, as upstream has it.

`list` measures a start with a kept trial, which lists the devices, beside a start without a GPU and
what the driver takes by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve()
FACTS, OUTLINE, SHADERS, TINY = "prepared.json", "outline.gguf", "shaders.zip", "tiny.gguf"
OURS, THEIRS = "ours", "upstream"
MANIFESTS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")
START, FIRST = "devices listed, ms", "first token, ms"  # the less, the better

Measures = dict[str, float]

# The driver by itself: milliseconds until it has said how many devices it has. Of Vulkan's
# VkInstanceCreateInfo, eight words, all but the first (which type of structure it is) are empty.
DRIVER = """
import ctypes, time
began = time.perf_counter()
vulkan = ctypes.CDLL("libvulkan.so.1")
instance, count = ctypes.c_void_p(), ctypes.c_uint32()
vulkan.vkCreateInstance((ctypes.c_uint64 * 8)(1), None, ctypes.byref(instance))
vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
print(1e3 * (time.perf_counter() - began))
"""


# Here: what is compiled


def prepare(options: argparse.Namespace) -> None:
    sys.path.append(str(HERE.parent.parent))
    import in_venv

    in_venv.ensure("runtimes,test", "pyllamafile", "gguf", "zstandard")
    import zipfile

    from shapes import outline

    from pyllamafile import native
    from pyllamafile.llamafile import SHADERS as ENTRY
    from pyllamafile.models import tiny
    from pyllamafile.native.building import driver
    from pyllamafile.targets import WITH_GPU

    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    target = WITH_GPU["linux-amd64-gnu"]
    print("compiling our program and the shaders, unless they are in the cache ...", flush=True)
    ours = folder / "runtime"
    ours.write_bytes(native.build(target).program())
    ours.chmod(0o755)
    shaders = native.build_shaders()
    with zipfile.ZipFile(folder / SHADERS, "w") as archive:
        archive.write(shaders, ENTRY)
    if not options.without_upstream:
        for program in upstream(target.triple, shaders):
            shutil.copy(program, folder)
    (folder / TINY).write_bytes(tiny.model())
    tensors = outline(options.shape, options.layers, folder / OUTLINE)
    facts = {
        "pyllamafile": ours_is(),
        "llama.cpp": native.LLAMA_COMMIT,
        "zig": driver.ZIG,
        "shape": options.shape,
        "tensors": tensors,
    }
    (folder / FACTS).write_text(json.dumps(facts))
    shutil.copy(HERE, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder} is prepared, {size / 1e6:.0f} MB: python3 {folder / HERE.name} run")


def ours_is() -> str:
    """The commit of ours."""
    command = ["git", "-C", HERE.parent, "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def upstream(triple: str, blob: Path) -> list[Path]:
    """Upstream's programs with ggml-vulkan, by its own CMakeLists.txt."""
    import zstandard

    from pyllamafile import native
    from pyllamafile.native.building import driver, shaders, tools, vulkan
    from pyllamafile.progress import silent

    loader = Path("/usr/lib/x86_64-linux-gnu/libvulkan.so.1")
    if not loader.exists():
        raise SystemExit("upstream's build links libvulkan: apt install libvulkan1")
    zig, cmake, ninja = driver.programs()
    source = native.llama_source()
    folder = native.cache() / "bench" / f"upstream-vulkan-{native.SDIST_SHA256[:12]}"
    programs = [folder / "out" / "bin" / name for name in ("llama-bench", "llama-completion")]
    if all(program.exists() for program in programs):
        return programs
    print("compiling upstream's llama.cpp with GGML_VULKAN=ON, many minutes ...", flush=True)
    modules = folder / "modules"
    modules.mkdir(parents=True, exist_ok=True)
    for name, module in shaders.unpack(zstandard.decompress(blob.read_bytes())).items():
        (modules / f"{name}.spv").write_bytes(module)
    # What a glslc would make lies there already: upstream's generator asks for it by its name.
    glslc = folder / "glslc"
    glslc.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != -o ]; do shift; done\n'
        f'[ "$2" = - ] || cp {modules}/"${{2##*/}}" "$2"\n'
    )
    glslc.chmod(0o755)
    headers = vulkan.headers(silent) / "usr"
    words = ("-target", triple, "-mcpu=x86_64_v3")
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_C_COMPILER": tools.script(folder / "cc", zig, "cc", *words),
        "CMAKE_CXX_COMPILER": tools.script(folder / "c++", zig, "c++", *words),
        "CMAKE_AR": tools.script(folder / "ar", zig, "ar"),
        "CMAKE_RANLIB": tools.script(folder / "ranlib", zig, "ranlib"),
        # This machine's loader may want a newer glibc than the program has symbols of.
        "CMAKE_EXE_LINKER_FLAGS": "-s -Wl,--allow-shlib-undefined",
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_PREFIX_PATH": headers,
        "Vulkan_INCLUDE_DIR": headers / "include",
        "Vulkan_LIBRARY": loader,
        "Vulkan_GLSLC_EXECUTABLE": glslc,
        "GGML_VULKAN": "ON",
        **dict.fromkeys(
            (
                "BUILD_SHARED_LIBS", "GGML_NATIVE", "GGML_OPENMP", "GGML_CCACHE", "LLAMA_OPENSSL",
                "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER",
                "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI",
            ),
            "OFF",
        ),
    }  # fmt: skip
    configure = [cmake, "-S", source, "-B", folder / "out", "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    build = [ninja, "-C", folder / "out", *(program.name for program in programs)]
    # The generator of shaders is a project of its own, with what the environment names.
    env = {**tools.environment(), "CC": str(folder / "cc"), "CXX": str(folder / "c++")}
    env["PATH"] = f"{ninja.parent}:{env['PATH']}"
    log = folder / "log"
    with log.open("w") as out:
        for command in (configure, build):
            done = subprocess.run(command, stdout=out, stderr=out, env=env)
            if done.returncode:
                raise SystemExit(f"upstream's build failed: {log}")
    return programs


# There: what is measured


def run(options: argparse.Namespace) -> None:
    folder = HERE.parent
    facts = json.loads((folder / FACTS).read_text())
    began = time.monotonic()
    env = environment(folder)
    programs = programs_in(folder)
    print(f"ours {facts['pyllamafile']}, both llama.cpp {facts['llama.cpp']} by zig {facts['zig']}")
    models = {
        name: made(folder, facts, name, programs[OURS]["complete"][0])
        for name in options.types.split(",")
    }
    print(f"models of random weights, {facts['shape']}: made in {time.monotonic() - began:.0f} s")
    print("\n".join(machine(programs[OURS], env)), flush=True)
    print("speeds in tokens a second; ratios are ours to theirs\n", flush=True)
    rounds: dict[str, dict[str, list[Measures]]] = {
        name: {who: [] for who in programs} for name in models
    }
    done, longest = 0, 0.0
    while done < options.rounds:
        if done and time.monotonic() - began + longest > options.seconds:
            break
        start = time.monotonic()
        for name, model in models.items():
            for who, program in programs.items():
                rounds[name][who].append(measured(program, model, options, env))
        longest = max(longest, time.monotonic() - start)
        done += 1
    for name, of_all in rounds.items():
        for what in of_all[OURS][0]:
            medians = {
                who: statistics.median(each[what] for each in some) for who, some in of_all.items()
            }
            line = f"{name:8} {what:20} {medians[OURS]:9.1f}"
            if THEIRS in medians:
                ratio = medians[OURS] / medians[THEIRS]
                line += f"   upstream {medians[THEIRS]:9.1f} = {ratio:5.2f}"
            print(line)
    print(f"\nmedians of {done} rounds; {time.monotonic() - began:.0f} s in all")


def list_devices(options: argparse.Namespace) -> None:
    folder = HERE.parent
    # lavapipe is slower than the processor, and may take longer to be tried than a start waits.
    env = {**environment(folder), "PYLLAMAFILE_GPU_SECONDS": "600"}
    programs = programs_in(folder)
    ours = [*programs[OURS]["list"], *programs[OURS]["more"]]
    commands: dict[str, list[str | Path]] = {
        "the driver itself": [sys.executable, "-c", DRIVER],
        f"{OURS}, --gpu off": [*programs[OURS]["list"], "--gpu", "off"],
        **{who: [*each["list"], *each["more"]] for who, each in programs.items()},
    }
    print(output(ours, env)[0])  # and tries them, once
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            said, seconds = output(command, env)
            found[name].append(float(said) if DRIVER in command else 1e3 * seconds)
    print(f"medians of {options.rounds} rounds, in milliseconds")
    for name, times in found.items():
        print(f"{name:24} {statistics.median(times):7.1f}")


def programs_in(folder: Path) -> dict[str, dict[str, list[str | Path]]]:
    """What was prepared, with what stands before and behind their options."""
    silent = "--no-display-prompt"  # or the first byte would be of that
    ours: list[str | Path] = [folder / "runtime", "--llamafile", folder / SHADERS]
    programs = {
        OURS: {
            "bench": [*ours, "--bench"],
            "complete": [*ours, silent],
            "list": [*ours, "-m", folder / TINY, "--list-devices"],
            "more": ["--gpu", "vulkan"],
        }
    }
    if (folder / "llama-bench").exists():
        more = ["--no-warmup", "-no-cnv", silent]
        programs[THEIRS] = {
            "bench": [folder / "llama-bench"],
            "complete": [folder / "llama-completion", *more],
            "list": [folder / "llama-completion", "--list-devices"],
            "more": [],
        }
    return programs


def environment(folder: Path) -> dict[str, str]:
    """Variables for all programs; a container may have a driver and no manifest of it."""
    env = dict(os.environ)
    named = {"VK_ICD_FILENAMES", "VK_DRIVER_FILES"} & env.keys()
    if not named and not any(list(Path(place).glob("*.json")) for place in MANIFESTS):
        manifest = folder / "nvidia.json"
        driver = {"library_path": "libGLX_nvidia.so.0", "api_version": "1.3.0"}
        manifest.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": driver}))
        env["VK_ICD_FILENAMES"] = str(manifest)
        print("no manifest of a Vulkan driver is here; NVIDIA's library is tried")
    return env


def machine(ours: Mapping[str, Sequence[str | Path]], env: Mapping[str, str]) -> list[str]:
    """What this runs on; an exit with the reason where there is no GPU."""
    done = subprocess.run([*ours["list"], *ours["more"]], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    lines = [line.strip() for line in done.stdout.splitlines()[1:]]
    smi = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    if shutil.which(smi[0]):
        said = subprocess.run(smi, capture_output=True, text=True).stdout.strip()
        lines.append(f"nvidia-smi: {said}")
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "some processor",
    )
    libc = " ".join(platform.libc_ver())
    lines.append(f"{processor}, {os.cpu_count()} threads; Linux {platform.release()}, {libc}")
    return lines


def made(folder: Path, facts: Mapping[str, object], name: str, program: str | Path) -> Path:
    """The model in one type, made once."""
    path = folder / f"{facts['shape']}-{name}.gguf"
    if path.exists():
        return path
    plain = folder / f"{facts['shape']}-F16.gguf"
    if not plain.exists():
        filled(folder / OUTLINE, facts["tensors"], plain)
    if name != "F16":
        draft = path.with_suffix(".draft")
        command = [program, "--quantize", plain, draft, name]
        subprocess.run(command, check=True, capture_output=True)
        draft.rename(path)
    return path


def filled(outline: Path, tensors: object, path: Path) -> None:
    """Weights at random behind what describes them: the same numbers again and again."""
    rng = random.Random(1)
    count = 1_048_573  # a prime, so no two rows are alike
    numbers = [rng.gauss(0, 0.02) for _ in range(count)]
    halves = struct.pack(f"<{count}e", *numbers)
    draft = path.with_suffix(".draft")
    with draft.open("wb") as out:
        out.write(outline.read_bytes())
        for size, exact in tensors:  # type: ignore[attr-defined]
            out.write(bytes(-out.tell() % 32))
            if exact:
                out.write(struct.pack("<f", 1) * size)
                continue
            left = 2 * size
            while left:
                left -= out.write(halves[:left])
        out.write(bytes(-out.tell() % 32))
    draft.rename(path)


def measured(
    program: Mapping[str, Sequence[str | Path]],
    model: Path,
    options: argparse.Namespace,
    env: Mapping[str, str],
) -> Measures:
    """One round of one program."""
    sizes = ["-p", str(options.prompt), "-n", str(options.generate), "-ngl", "99"]
    bench = [*program["bench"], "-m", model, *sizes, "-r", "2", "-o", "json", *program["more"]]
    rows = json.loads(output(bench, env)[0])
    found = {}
    for row in rows:
        if "Vulkan" not in row["backends"] or not row["gpu_info"]:
            raise SystemExit(f"{bench[0]} used no GPU: {row['backends']}, {row['gpu_info']}")
        found["prompt" if row["n_prompt"] else "writing"] = row["avg_ts"]
    asked = ["-m", model, "-p", "Once upon a time", "-n", "1", "--temp", "0", "-ngl", "99"]
    found[FIRST] = 1e3 * output([*program["complete"], *asked, *program["more"]], env, True)[1]
    found[START] = 1e3 * output([*program["list"], *program["more"]], env)[1]
    return found


def output(
    command: Sequence[str | Path], env: Mapping[str, str], first: bool = False
) -> tuple[str, float]:
    """What a program writes, and the seconds until it ended, or wrote its first byte."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    head = process.stdout.read(1) if first else b""
    seconds = time.perf_counter() - start
    text, errors = process.communicate()
    if process.returncode:
        said = errors.decode(errors="replace").strip().splitlines()[-3:]
        raise SystemExit(f"{command[0]} ended with {process.returncode}: {' / '.join(said)}")
    if not first:
        seconds = time.perf_counter() - start
    return (head + text).decode(errors="replace"), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    here = commands.add_parser("prepare", help="compile what is measured into a folder")
    here.add_argument("folder", type=Path)
    here.add_argument("--shape", default="llama-1b", help="of shapes.py")
    here.add_argument("--layers", type=int, help="of that one, instead of all")
    here.add_argument("--without-upstream", action="store_true", help="ours alone")
    here.set_defaults(act=prepare)
    there = commands.add_parser("run", help="measure, on a machine with a GPU")
    there.add_argument("--types", default="Q4_K_M,Q8_0,F16")
    there.add_argument("--rounds", type=int, default=5, help="at the most")
    there.add_argument("--seconds", type=float, default=300, help="in all, about")
    there.add_argument("--prompt", type=int, default=512, help="tokens")
    there.add_argument("--generate", type=int, default=128, help="tokens")
    there.set_defaults(act=run)
    starts = commands.add_parser("list", help="measure a start that lists the devices")
    starts.add_argument("--rounds", type=int, default=15)
    starts.set_defaults(act=list_devices)
    options = parser.parse_args()
    options.act(options)


if __name__ == "__main__":
    main()
