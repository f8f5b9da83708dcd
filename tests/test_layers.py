"""Imports point one way, heavy libraries stay where they belong, and the public names exist."""

import ast
from pathlib import Path

import pytest

import radar
import radar_kernels

ROOT = Path(__file__).parent.parent

LAYERS = [
    {"radar_kernels"},
    {"radar.config"},
    {
        "radar.draft.tree",
        "radar.target.cache",
        "radar.metrics",
        "radar.target.compiled",
        "radar.target.layers",
        "radar.engine.sampler",
    },
    {"radar.target.attention"},
    {"radar.target", "radar.draft", "radar.policy", "radar.verify"},
    {"radar.engine"},
    {"radar.generation", "radar.generation.hf"},
    {"radar.decoder", "radar.autoregressive"},
    {"radar.custom_generate"},
    {"radar"},
    {"radar.tools.prompts", "radar.compare", "radar.profile", "radar.doctor", "radar.tools.verify", "radar.train"},
    {"radar.cli"},
]
ONLY_IN = {
    "triton": ("radar_kernels",),
    "transformers": ("radar.target", "radar.compare", "radar.generation.hf"),
    "safetensors": ("radar.draft.checkpoint", "radar.policy.lstm"),
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
    best = max(
        (
            (len(entry), index)
            for index, layer in enumerate(LAYERS)
            for entry in layer
            if f"{name}.".startswith(f"{entry}.") or name.startswith(f"{entry}_")
        ),
        default=None,
    )
    assert best is not None, f"{name} stands in no layer"
    return best[1]


def violations(name, tree):
    for imported in imports(tree):
        if imported.startswith("radar") and layer(imported) > layer(name):
            yield f"{name} imports {imported}, which stands above it"
        for library, places in ONLY_IN.items():
            if imported.split(".")[0] == library and not name.startswith(places):
                yield f"{name} imports {library}, which belongs in {', '.join(places)}"


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


def test_files_stay_short():
    long = {p.name: n for p in ROOT.glob("radar*/**/*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
