"""Imports run downward, and importing does nothing (design section 9)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "visavis"

# Lowest first. A module imports from lower ranks only; those on one rank do not know each other.
# The path of sight is a chain: points -> face model -> photo, matte, track -> avatar -> render.
RANKS = (
    {"types", "errors"},
    {"torchgraph"},
    {"backends", "clock", "config", "console", "media", "modelstore", "licenses"},
    {
        "audio",
        "video",
        "features",
        "motionfile",
        "smoothing",
        "facemodel",
        "facemesh",
        "raster",
        "softness",
    },
    {"motion", "idle", "mouth", "matte", "photo", "track"},
    {"likeness", "style", "encoder"},
    {"avatar", "turns", "voice"},
    {"headmesh", "eyes", "teeth", "film"},
    {"head"},
    {"render", "learn"},
    {"pipeline", "personal"},
    {"session", "bench"},
    {"export", "cli_train"},
    {"cli"},
    {"__main__", "__init__"},
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
OFFLINE = ("train", "models", "eval")  # what the runtime does not know of
MODULES = sorted(PACKAGE.glob("*.py"))


def imports(path: Path, *, lazy: bool) -> set[str]:
    """First names below ``visavis`` that a file imports; with ``lazy`` those in functions too.

    What stands under ``if TYPE_CHECKING`` is not run and does not count.
    """
    found = set()
    todo = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not lazy:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "visavis":
            names = [f"visavis.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("visavis.")}
        todo += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_run_downward(path):
    assert path.stem in RANK, f"give {path.stem} a rank in tests/test_imports.py"
    for name in imports(path, lazy=True) - {"train", "models", "eval", "serve"}:
        assert name in RANK, f"give {name} a rank in tests/test_imports.py"
        assert RANK[name] < RANK[path.stem], f"{path.stem} imports {name}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_the_runtime_does_not_know_training(path):
    lazily_allowed = {"export", "cli_train", "cli"}  # commands; export is given a torch net
    for lazy in (False, True):
        if lazy and path.stem in lazily_allowed:
            continue
        commands = {"eval"} if path.stem == "cli" else set()  # `visavis eval` is mounted there
        assert not imports(path, lazy=lazy) & (set(OFFLINE) - commands)


def test_serving_does_not_know_training():
    for path in (PACKAGE / "serve").rglob("*.py"):
        assert not imports(path, lazy=True) & set(OFFLINE), path


def test_importing_does_nothing():
    """Importing all of the runtime: no torch, no thread, no warning."""
    names = [path.stem for path in MODULES if path.stem not in ("__main__", "__init__")]
    code = f"""if True:
        import importlib, os, sys
        before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
        import visavis
        assert "openvino" not in sys.modules and "av" not in sys.modules, "import visavis is heavy"
        for name in {names!r}:
            importlib.import_module("visavis." + name)
        heavy = [m for m in ("torch", "onnx", "onnxruntime", "fastapi", "ray") if m in sys.modules]
        assert not heavy, heavy
        after = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
        assert after == before, (before, after)
    """
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_help_is_light():
    code = """if True:
        import sys
        from visavis import cli
        heavy = {"numpy", "cv2", "av", "numba", "openvino", "torch"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
