"""What is shipped, how its parts may depend on one another, and what else may lie over them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

import detect
import watermark

ROOT = Path(__file__).parents[1]

#: Set by `make test`, where the package is installed from its wheel and the checkout must not be what is tested.
INSTALLED = bool(os.environ.get("TAGGANT_INSTALLED"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files of the wheel: of the one that is installed, or of one that is built for this (2 s)."""
    if INSTALLED:
        return [path.as_posix() for path in metadata.files("taggant") or ()]
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("pip cannot fetch hatchling here; make test looks at the installed wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


def test_the_wheel_holds_the_packages_and_what_they_read(shipped: list[str]) -> None:
    names = set(shipped)
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("watermark", "detect")
        for path in (ROOT / package).rglob("*.py")
    }
    data = {
        "cli.py",
        "detect/report.html.j2",
        "detect/py.typed",
        "watermark/py.typed",
        "watermark/probe.txt",
    }
    shown = [path for path in (ROOT / "examples").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    examples = {f"detect/examples/{path.relative_to(ROOT / 'examples').as_posix()}" for path in shown}
    assert {"detect/examples/keyring.json", "detect/examples/smollm2.tiktoken"} <= examples
    assert (modules | data | examples) - names == set()


def test_the_wheel_holds_nothing_else(shipped: list[str]) -> None:
    kept = [name for name in shipped if "__pycache__" not in name and not name.startswith("..")]
    tops = {PurePosixPath(name).parts[0] for name in kept}
    assert {re.sub(r"-.*\.dist-info", ".dist-info", top) for top in tops} == {
        "cli.py",
        "detect",
        "watermark",
        "taggant.dist-info",
    }
    inner = {PurePosixPath(name).parts[1] for name in kept if name.startswith(("detect/", "watermark/"))}
    assert {"tests", "benchmarks", "docs"} & inner == set()
    assert [name for name in kept if name.endswith((".partial", ".pem", ".key"))] == []


def test_the_examples_are_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "examples").rglob("*")) < 5_000_000


def test_the_metadata() -> None:
    about = metadata.metadata("taggant")
    assert about["Name"] == "taggant"
    assert about["Version"] == watermark.__version__
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.11"
    assert {"report", "hf", "tokenizers", "test", "lint"} <= set(about.get_all("Provides-Extra") or ())
    (command,) = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "taggant"]
    assert command.value == "cli:main"


def test_the_core_install_needs_no_model_and_pins_nothing() -> None:
    required = metadata.requires("taggant") or []
    core = {re.split(r"[^A-Za-z0-9-]", line)[0] for line in required if "extra ==" not in line}
    assert core == {"numpy", "scipy", "numba", "tiktoken", "typer", "rich", "cryptography", "rfc8785"}
    assert [line for line in required if re.search(r"==\s*[0-9]|<|~=", line.partition(";")[0])] == []


@pytest.mark.skipif(not INSTALLED, reason="TAGGANT_INSTALLED is not set: this is a checkout")
def test_what_is_tested_is_what_is_installed() -> None:
    for package in (watermark, detect):
        assert package.__file__ is not None
        assert "site-packages" in Path(package.__file__).parts


@pytest.mark.parametrize("source", ["__version__ = '2.5.0'", "import a_module_that_is_not_there", "TAGGANT = 'else'"])
@pytest.mark.parametrize("name", ["watermark", "detect"])
def test_another_package_of_the_same_name_is_told(tmp_path: Path, name: str, source: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(source)
    for arguments in (["demo"], ["--version"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", "import cli; cli.main()", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "taggant: another package named 'watermark' or 'detect' lies over Taggant's (PyPI's `watermark` is one): "
            "install taggant in an environment of its own\n"
        )


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the top-level package and the line of each import, those inside functions and relative ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else str(node.module).partition(".")[0], node.lineno


@pytest.mark.parametrize(
    ("package", "forbidden"),
    # A user's own cli.py would be what `import cli` finds; a server imports the serving side alone.
    [("watermark", {"cli", "detect", ".", "typer", "rich"}), ("detect", {"cli", ".", "typer"})],
)
def test_who_imports_whom(package: str, forbidden: set[str]) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert len(paths) > 10
    found = [f"{path.name}:{line} {name}" for path in paths for name, line in _imports(path) if name in forbidden]
    assert found == []


@pytest.mark.parametrize("package", ["watermark", "detect"])
def test_importing_a_package_imports_nothing(package: str) -> None:
    code = f"import sys; before = set(sys.modules); import {package}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {package, "__future__"}


def test_a_server_imports_no_analysis_and_no_command() -> None:
    code = (
        "import sys\n"
        "from watermark.green_list import GreenList\n"
        "from watermark.keyring import Keyring\n"
        "print(*({name.partition('.')[0] for name in sys.modules} & {'detect', 'cli', 'typer', 'rich', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
