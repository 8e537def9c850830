"""Promises about the project's own files."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())


def named(requirement: str) -> str:
    return re.split(r"[<>=!~;\[]", requirement)[0].strip()


def test_the_conda_environment_installs_this_project_with_its_pins() -> None:
    environment = yaml.safe_load(Path("environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    assert pip["pip"] == ["-c constraints.txt", "-e .[dev]"]
    version = python.removeprefix("python=")
    assert PROJECT["project"]["requires-python"] == f">={version}"


def test_every_dependency_is_pinned_and_every_pin_is_allowed() -> None:
    pins = dict(
        line.split("==")
        for line in Path("constraints.txt").read_text().splitlines()
        if "==" in line
    )
    normal = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    project = PROJECT["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        assert named(requirement).lower() in normal, requirement


def test_releases_of_lightning_with_malicious_code_cannot_be_installed() -> None:
    (lightning,) = (
        Requirement(of) for of in PROJECT["project"]["dependencies"] if named(of) == "lightning"
    )
    for version in ("2.6.2", "2.6.3"):
        assert not lightning.specifier.contains(version)
    assert lightning.specifier.contains("2.6.6")
    # what pip and conda are told to install besides is held to the same
    pins = Path("constraints.txt").read_text().splitlines()
    assert "lightning==2.6.6" in pins
    others = [of for group in PROJECT["project"]["optional-dependencies"].values() for of in group]
    environment = Path("environment.yml").read_text()
    assert not any("lightning" in text for text in (*others, environment))


def test_no_registry_and_no_local_build_is_named() -> None:
    text = Path("constraints.txt").read_text()
    assert "+cpu" not in text
    assert "://" not in text


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["mdl.fit", "mdl.evaluate", "mdl.compare", "mdl.report", "mdl.pack"]
)
def test_no_command_imports_the_roof(module: str) -> None:
    assert "callbacks" not in modules_after(f"import {module}")


def test_the_roof_would_be_noticed() -> None:
    assert "callbacks" in modules_after("import callbacks.abdp")


def test_the_ground_floor_is_free_of_torch() -> None:
    ground = "import mdl.recipe, mdl.run_folder, mdl.space.architecture, mdl.data.domains"
    assert "torch" not in modules_after(ground)
