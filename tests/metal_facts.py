"""What others say of Metal and Foundation, and what our declarations say, in the same words.

A method is its owner and its selector, and the types of its result and its arguments as the
runtime of Objective-C encodes them: ``@`` an object, ``Q`` a number of 64 bits, ``^v`` a pointer.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCALARS = {
    "void": "v",
    "bool": "B",
    "BOOL": "B",
    "int": "i",
    "uint8_t": "C",
    "unsigned char": "C",
    "long": "q",
    "Integer": "q",
    "unsigned long": "Q",
    "unsigned long long": "Q",
    "uint64_t": "Q",
    "UInteger": "Q",
    "StringEncoding": "Q",
    "Range": "{_NSRange=QQ}",
    "_NSRange": "{_NSRange=QQ}",
    "Size": "{MTLSize=QQQ}",
}
POINTERS = {"void": "^v", "char": "*", "FastEnumerationState": "^{?=Q^@^Q[5Q]}"}


@dataclass
class Facts:
    """What somebody says.

    Attributes:
        methods: By owner and selector, the types of the result and of the arguments; "" where
            nothing is said. The selector of a class's own method begins with a +.
        enums: The types of enumerations, without MTL in front.
        values: Those of their constants.
        functions: The types of the result and of the arguments, one behind the other.
        constants: Names of variables.
    """

    methods: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    enums: dict[str, str] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)


def encoded(text: str, enums: Mapping[str, str]) -> str:
    """The encoding of a type that is written as in C, Objective-C or C++."""
    plain = re.sub(r"\b(const|class|enum|struct|signed|__unsafe_unretained)\b", "", text)
    plain = re.sub(r"\[\w*\]", "*", plain).strip()
    while "<" in plain:
        plain = re.sub(r"<[^<>]*>", "", plain)
    if "(^" in plain or plain.endswith(("Handler", "Block")):
        return "@?"
    bare = re.sub(r"[*\s]+$", "", plain).strip()
    stars = plain.count("*")
    name = re.sub(r"^(MTL|NS)(::)?(?=[A-Z])", "", bare)
    if stars == 0 and (scalar := SCALARS.get(name) or enums.get(name)):
        return scalar
    if stars == 1 and (pointer := POINTERS.get(name)):
        return pointer
    is_object = bare in ("id", "instancetype", "ObjectType", "KeyType")
    return "^@" if stars > (0 if is_object else 1) else "@"


# Ours, as the compiler reads them


def declared(zig: Path, sdk: Path, target: str, folder: Path) -> Facts:
    """All that our headers say to who compiles for a target."""
    texts = [path.read_text() for path in sdk.glob("*.framework/Headers/*.h")]
    names = {n for text in texts for n in re.findall(r"^@(?:interface|protocol) (\w+)", text, re.M)}
    probe = folder / "probe.m"
    probe.write_text("#import <Metal/Metal.h>\n")
    # zig writes an object, whatever it is told, and wants to find it.
    command = [zig, "cc", "-target", target, "-F", sdk, "-c", "-o", folder / "probe.o"]
    command += ["-Xclang", "-ast-dump=json", probe]
    done = subprocess.run(command, capture_output=True, check=False)
    nodes = json.loads(done.stdout)["inner"]
    facts = Facts()
    for kind, constants in _enumerations(nodes):
        if name := kind.get("name", "").removeprefix("MTL"):
            facts.enums[name] = encoded(_type(kind["fixedUnderlyingType"]), {})
        facts.values |= {each["name"]: _value(each) for each in constants}
    for node in nodes:
        name = node.get("name", "")
        if node["kind"] in ("ObjCInterfaceDecl", "ObjCProtocolDecl") and name in names:
            for method in _children(node, "ObjCMethodDecl"):
                selector = ("" if method["instance"] else "+") + method["name"]
                types = [method["returnType"]]
                types += [argument["type"] for argument in _children(method, "ParmVarDecl")]
                signature = tuple(encoded(_type(each), facts.enums) for each in types)
                facts.methods[name, selector] = signature
        elif node["kind"] == "FunctionDecl" and name.startswith(("NS", "MTL")):
            result = node["type"]["qualType"].rpartition("(")[0]
            arguments = [_type(each["type"]) for each in _children(node, "ParmVarDecl")]
            types = (encoded(text, facts.enums) for text in (result, *arguments))
            facts.functions[name] = "".join(types)
        elif node["kind"] == "VarDecl" and name.startswith(("NS", "MTL")):
            facts.constants.add(name)
    return facts


def _enumerations(nodes: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    for node in nodes:
        if node["kind"] == "EnumDecl":
            constants = _children(node, "EnumConstantDecl")
            if constants and constants[0]["name"].startswith(("NS", "MTL")):
                yield node, constants


def _children(node: Any, kind: str) -> list[Any]:
    return [child for child in node.get("inner", []) if child["kind"] == kind]


def _value(node: Any) -> int:
    """The number that a constant is given, whatever casts stand around it."""
    return int(node["value"]) if "value" in node else _value(node["inner"][0])


def _type(described: Mapping[str, str]) -> str:
    return described.get("desugaredQualType", described["qualType"])


# metal-cpp, by which Apple lets programs in C++ send the same messages

ENUMERATION = re.compile(r"_(?:MTL|NS)_(?:ENUM|OPTIONS)\(([\w:]+), (\w+)\)\s*\{(.*?)\}", re.DOTALL)
FUNCTION = re.compile(
    r"_(?:MTL|NS)_INLINE ([^;{}]+?)\s*\b(MTL|NS)::(\w+)(?:<[^>]*>)?::\w+\(([^{};]*)\)(?: const)?\n"
    r"\{\n[^;}]*?sendMessage<[^;]*?>\(([^,]*), _(?:MTL|NS)_PRIVATE_SEL\((\w+)\)"
)


def of_metal_cpp(folder: Path) -> Facts:
    """What its inline functions send, and its enumerations.

    Args:
        folder: The one with its headers.
    """
    text = "\n".join(path.read_text() for path in sorted(folder.rglob("*.hpp")))
    facts = Facts()
    for kind, name, body in ENUMERATION.findall(text):
        facts.enums[name] = encoded(kind, {})
        for constant, value, shift in re.findall(r"(\w+) = (\d+)(?: << (\d+))?,", body):
            number = int(value) << int(shift or 0)
            facts.values |= {space + constant: number for space in ("MTL", "NS")}
    selectors = dict(re.findall(r'_PRIVATE_DEF_SEL\((\w+),\s*"([^"]+)"\)', text))
    for result, space, owner, arguments, to, accessor in FUNCTION.findall(text):
        each = re.split(r",\s*(?![^(]*\))", arguments) if arguments.strip() else []
        types = [re.sub(r"(?<=[\s*&])\w+$", "", argument) for argument in each]
        selector = ("+" if "PRIVATE_CLS" in to else "") + selectors[accessor]
        signature = tuple(encoded(kind, facts.enums) for kind in (result, *types))
        facts.methods[space + owner, selector] = signature
    return facts


# PyObjC's metadata, made from Apple's headers, for what the runtime itself doesn't know


def of_pyobjc(text: str) -> Facts:
    """What a framework's metadata say; they are read, and not run.

    What they say of a protocol's methods has the owner NSObject.
    """
    facts = Facts()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            if name == "enums" and isinstance(value, ast.Constant):
                pairs = re.findall(r"\$(\w+)@(-?\d+)(?=\$)", value.value)
                facts.values |= {constant: int(number) for constant, number in pairs}
            elif name == "constants" and isinstance(value, ast.Constant):
                facts.constants |= set(re.findall(r"\$(\w+)", value.value))
            elif name == "functions" and isinstance(value, ast.Dict):
                for key, described in zip(value.keys, value.values, strict=True):
                    facts.functions[key.value] = _same(described.elts[0].value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "r":
            try:
                owner, selector, said = map(ast.literal_eval, node.args)
            except ValueError:
                continue  # it depends on the machine
            facts.methods[owner.decode(), selector.decode()] = _signature(selector.decode(), said)
    return facts


def _signature(selector: str, said: Mapping[str, Any]) -> tuple[str, ...]:
    arguments = [said.get("arguments", {}).get(2 + n, {}) for n in range(selector.count(":"))]
    return tuple(_described(each) for each in (said.get("retval", {}), *arguments))


def _described(each: Mapping[str, Any]) -> str:
    if "callable" in each:
        return "@?"
    said = _same(each.get("type", b""))
    return said or ("^@" if each.get("type_modifier") == b"o" else "")


def _same(encoding: bytes | str) -> str:
    """Without the letters for what is constant, or only read."""
    text = encoding if isinstance(encoding, str) else encoding.decode()
    plain = re.sub(r"^[nNoOrRV](?=[\^*@])", "", text)
    # Letters that are PyObjC's own: BOOL, a small number, and text of UTF-8.
    return {"Z": "B", "z": "C", "^t": "*"}.get(plain, plain)


# GNUstep's headers: another Foundation, of the same classes and methods

OWNED = re.compile(
    r"^@(?:interface|protocol)\s+(\w+)\b(?!\s*[;,])(.*?)^@end", re.DOTALL | re.MULTILINE
)
DECLARED = re.compile(r"^([-+])\s*\(([^;]*?);", re.DOTALL | re.MULTILINE)


def of_gnustep(folder: Path) -> Facts:
    """The methods of its classes and protocols.

    Args:
        folder: The one with Foundation's headers.
    """
    facts = Facts()
    for path in sorted(folder.glob("*.h")):
        text = re.sub(r"/\*.*?\*/|//[^\n]*|^#[^\n]*$", "", path.read_text(), flags=re.S | re.M)
        text = re.sub(r"GS_GENERIC_TYPE(?:_F)?\([^()]*\)", "id", text)
        text = re.sub(r"GS_GENERIC_CLASS\((\w+)[^()]*\)", r"\1", text)
        for owner, body in OWNED.findall(text):
            for sign, declaration in DECLARED.findall(body):
                parts = re.findall(r"(\w+)\s*(:)\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", declaration)
                result, _, rest = declaration.partition(")")
                plain = re.match(r"\s*(\w+)", rest)
                names = "".join(name + colon for name, colon, _ in parts) or (plain and plain[1])
                selector = ("+" if sign == "+" else "") + str(names)
                types = (result, *(kind for _, _, kind in parts))
                signature = tuple(encoded(kind.strip(), {}) for kind in types)
                facts.methods[owner, selector] = signature
    return facts
