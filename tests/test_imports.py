"""The order of the modules."""

from __future__ import annotations

import ast
from pathlib import Path

import conntracker

ROOT = Path(conntracker.__file__).parent

# Each layer may import from those before it, and from itself.
LAYERS = (
    {"model", "clock", "steps", "owner", "tracetable", "traceonly"},
    {"wire", "rules", "sorting", "index"},
    {"sources", "assembly"},
    {"filters", "flows", "traces"},
    {"owners", "ownernumbers", "ownerwatch"},
    {"owning"},
    {"recording"},
    {"answers", "restore"},
    {"formats"},
    {"tracking", "rulewatch"},
    {"tracker", "tracer", "tracekeeper"},
    {"keeper", "output", "daemon", "lab"},
    {"tracing"},
    {"cli"},
)


def part_of(name: str) -> str | None:
    """conntracker.wire.netlink is of the part 'wire'; the package's own front door is of none."""
    words = name.split(".")
    return words[1] if words[0] == "conntracker" and len(words) > 1 else None


def imported(path: Path) -> set[str]:
    """The parts that a file imports from, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "conntracker" else [f"conntracker.{a.name}" for a in node.names]
            found |= {part for name in names if (part := part_of(name))}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names if (part := part_of(alias.name))}
    return found - {"__version__"}


def test_imports_go_one_way() -> None:
    """No module imports from a layer above its own."""
    level = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part.startswith("__"):
            continue
        wrong += [f"{path.name}: {other}" for other in imported(path) if level[other] > level[part]]
    assert wrong == []


def test_only_sources_have_sockets() -> None:
    """Netlink sockets and foreign libraries are opened in sources, and by the lab for its traffic."""
    allowed = {"sources", "lab", "cli"}
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        text = path.read_text()
        if part not in allowed and ("socket.socket(" in text or "CDLL(" in text):
            wrong.append(path.name)
    assert wrong == []
