"""The house: imports point one way and in no circle, libraries stay in their rooms, files are short."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import radar
import radar_kernels

ROOT = Path(__file__).parent.parent

LAYERS = [
    {"radar_kernels"},
    {"radar.errors", "radar.config", "radar.files", "radar.metrics"},
    {"radar.target", "radar.draft", "radar.policy"},
    {"radar.engine"},
    {"radar.generation"},
    {"radar.decoder", "radar.custom_generate"},
    {"radar.tools", "radar.replay", "radar.train", "radar.serve"},
    {"radar.fit"},
    {"radar.cli", "radar.__main__", "radar"},
]
ONLY_IN = {
    "triton": ("radar_kernels",),
    "transformers": ("radar.target", "radar.generation", "radar.tools"),
    **dict.fromkeys(
        ("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client"), ("radar.serve", "radar.cli.serve")
    ),
    "ray": ("radar.serve",),
    "safetensors": ("radar.draft.checkpoint", "radar.policy.network_files", "radar.tools.twins", "radar.replay"),
}


def modules():
    for package in ("radar", "radar_kernels"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            yield node.module


def layer(name):
    """Index of the layer whose entry is the longest prefix of the module's name."""
    best = max((len(entry), index) for index, layer in enumerate(LAYERS) for entry in layer if within(name, entry))
    assert best[0] > len("radar") or name == "radar", f"{name} stands in no layer"
    return best[1]


def within(name, package):
    return f"{name}.".startswith(f"{package}.")


def violations(name, tree):
    for imported in imports(tree):
        if imported.startswith("radar") and layer(imported) > layer(name):
            yield f"{name} imports {imported}, which stands above it"
        for library, places in ONLY_IN.items():
            if imported.split(".")[0] == library and not name.startswith(places):
                yield f"{name} imports {library}, which belongs in {', '.join(places)}"


def circle(graph):
    """Modules that import one another, in a circle; empty if there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        found = next((ring for other in sorted(graph.get(name, ())) if (ring := visit(other))), [])
        path.pop()
        done.add(name)
        return found

    return next((ring for name in sorted(graph) if (ring := visit(name))), [])


def import_graph():
    """Of all imports, those inside of functions too; a name imported from a package may be a module of it."""
    known = {name: tree for name, tree in modules() if name not in ("radar", "radar_kernels")}
    graph = {name: set() for name in known}
    for name, tree in known.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            graph[name] |= {one for one in names if one in known and one != name}
    return graph


def test_imports_go_in_no_circle():
    assert circle(import_graph()) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]  # the check can fail


def test_nothing_is_imported_for_annotations_alone():
    """That is how circles are hidden."""
    assert [name for name, tree in modules() if "TYPE_CHECKING" in ast.dump(tree)] == []


def test_imports_point_down():
    assert [text for name, tree in modules() for text in violations(name, tree)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("radar.draft.tree", "from radar.decoder import RadarDecoder"),
        ("radar.draft.tree", "import triton.language as tl"),
    ],
)
def test_the_check_can_fail(name, source):
    assert list(violations(name, ast.parse(source)))


@pytest.mark.parametrize("package", [radar, radar_kernels])
def test_public_names_exist_and_are_sorted(package):
    assert all(hasattr(package, name) for name in package.__all__)
    assert list(package.__all__) == sorted(package.__all__)


def test_every_public_object_is_documented():
    for package in (radar, radar_kernels):
        for name in package.__all__:
            assert (getattr(package, name).__doc__ or "").strip(), f"{package.__name__}.{name} has no docstring"


@pytest.mark.parametrize("place", ["radar", "radar_kernels", "bench", "tests"])
def test_files_stay_short(place):
    lines = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in (ROOT / place).rglob("*.py")}
    assert {str(path): n for path, n in lines.items() if n > 300} == {}
    if place in ("radar", "bench"):
        assert statistics.median(n for n in lines.values() if n > 1) <= 120


@pytest.mark.parametrize(("place", "most"), [("radar/train", 1400), ("radar/replay", 1500), ("bench", 4100)])
def test_what_only_serves_the_engine_stays_small(place, most):
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / place).rglob("*.py")) <= most


def test_results_and_decisions_stay_few():
    """A line of their README for each file; decisions, not a diary."""
    results = [path for path in (ROOT / "bench" / "results").rglob("*") if path.is_file()]
    described = (ROOT / "bench" / "results" / "README.md").read_text()
    assert len(results) <= 35
    assert [path.name for path in results if path.name not in described and path.name != "README.md"] == []
    assert len((ROOT / "bench" / "NOTES.md").read_text().splitlines()) <= 150


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--temprature", "1"], ["--version"]])
def test_help_and_mistakes_load_no_heavy_library(arguments):
    script = (
        "import sys\nfrom radar.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "sys.exit(repr(sorted({'torch', 'transformers', 'triton', 'numpy'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"
