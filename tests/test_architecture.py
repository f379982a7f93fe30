"""The house rules of docs/architecture.md, read from the syntax trees."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nnssl
from nnssl.nnunet import registration

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "nnssl"
ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = {
    "nnssl": 0,  # the version only
    "nnssl.common": 1,
    "nnssl.config": 2,
    "nnssl.losses": 3,
    "nnssl.modules": 4,
    "nnssl.views": 5,
    "nnssl.objectives": 6,
    "nnssl.finetuning": 7,
    "nnssl.nnunet": 8,
    "nnssl.convert": 9,
    "nnssl.data": 10,
    "nnssl.leakage": 11,
    "nnssl.cluster_maps": 12,
    "nnssl.probe": 13,
    "nnssl.training": 14,
    "nnssl.estimate": 15,
    "nnssl.studies": 16,
    "nnssl.studies.run": 17,
    "nnssl.studies.analysis": 18,
    "nnssl.studies.report": 19,
    "nnssl.external_trainers": 20,
    "nnssl.cli": 21,
}
METHOD_PACKAGES = ("losses", "modules", "views", "objectives", "finetuning")
FOREIGN_TO_METHODS = ("nnunetv2", "yaml", "os", "pathlib", "shutil", "glob", "json")
LONGEST_FILE = 500


def name_of(path: Path) -> str:
    """The dotted module name: nnssl/views/view.py is nnssl.views.view."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The longest listed package that holds the module."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(name for name in names if name in LAYERS)


def layer_of(module: str) -> int:
    return LAYERS[room_of(module)]


def imports(path: Path) -> Iterator[str]:
    """Every imported dotted name, `from a import b` as a.b; relative ones made absolute."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def names_in(path: Path) -> set[str]:
    """Names and attributes that a file uses."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {node.id for node in nodes if isinstance(node, ast.Name)}


def test_there_is_something_to_read():
    assert {name_of(path) for path in FILES} >= {
        "nnssl",
        "nnssl.config.config",
        "nnssl.training.factory",
        "nnssl.external_trainers.nnssl_trainers",
    }
    assert "nnssl.config.read_config" in set(imports(PACKAGE / "training" / "factory.py"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_layer_imports_only_layers_below_it(path):
    own = layer_of(name_of(path))
    above = [
        name for name in imports(path) if name.split(".")[0] == "nnssl" and layer_of(name) > own
    ]
    # The forwarding module and the command line stand above the factory, which names no one above.
    assert above == []


def test_no_files_import_each_other_in_a_circle():
    """Neither directly nor through others; an import for type checking counts."""
    names = {name_of(path) for path in FILES}
    reached = {
        name_of(path): {module for name in imports(path) if (module := module_of(name, names))}
        - {name_of(path)}
        for path in FILES
    }
    try:
        order = list(TopologicalSorter(reached).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert order.index("nnssl.common.files") < order.index("nnssl.training.pretrainer")


def module_of(name: str, modules: set[str]) -> str | None:
    """The module that an imported name is, or lies in; None for other packages."""
    return next((n for n in (name, name.rpartition(".")[0]) if n in modules), None)


def test_every_package_has_a_layer_and_layers_are_distinct():
    packages = {name_of(path) for path in FILES if path.name == "__init__.py"}
    rooms = {name for name in packages if name.count(".") == 1} | {"nnssl"}
    assert rooms | {"nnssl.external_trainers"} <= set(LAYERS)
    assert len(set(LAYERS.values())) == len(LAYERS)


def test_the_environment_is_read_in_few_places():
    touching = {name_of(path) for path in FILES if mentions_the_environment(path)}
    assert touching == {"nnssl.common.environment", "nnssl.config.config", "nnssl.config.files"}
    reading = {
        name_of(path)
        for path in FILES
        if "nnssl.common.environment.read_variable" in set(imports(path))
    }
    others = {name for name in reading if not name.startswith("nnssl.nnunet.")}
    # one prints the environment, two hand it on to the runs of a study, one shows tracebacks
    printing, handing = (
        {"nnssl.cli.doctor"},
        {"nnssl.studies.run.devices", "nnssl.studies.run.grid"},
    )
    assert others == printing | handing | {"nnssl.common.errors"}


def mentions_the_environment(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


def test_a_class_name_stands_for_one_class():
    classes = Counter(
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in classes.items() if count > 1] == []


def purpose_of(path: Path) -> str:
    """First line of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def tree() -> str:
    """Rooms in the order of their layers, each with its files; a purpose for every line."""
    lines = []
    for room in sorted(LAYERS, key=LAYERS.__getitem__):
        folder = REPOSITORY / room.replace(".", "/")
        files = sorted(p for p in FILES if room_of(name_of(p)) == room and p.stem != "__init__")
        door = folder / "__init__.py"
        purpose = (
            purpose_of(door) if door.exists() else "What nnU-Net imports to find our trainers."
        )
        lines.append(f"{folder.relative_to(REPOSITORY)}/".ljust(27) + purpose)
        lines += [f"  {p.relative_to(folder)}".ljust(27) + purpose_of(p) for p in files]
    return "\n".join(line.rstrip() for line in lines)


def test_the_tree_in_the_documentation_is_the_tree():
    """`python tests/test_architecture.py` writes it anew."""
    assert tree() in ARCHITECTURE.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_its_purpose_in_one_line(path):
    assert 10 < len(purpose_of(path)) <= 100


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_training_mentions_the_trainer_of_nnunet(path):
    mentioned = [name for name in imports(path) if "nnUNetTrainer" in name]
    if path.parent != PACKAGE / "training":
        assert mentioned == []


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(PACKAGE).parts[0] in METHOD_PACKAGES], ids=name_of
)
def test_methods_know_neither_nnunet_nor_files_nor_yaml_nor_the_environment(path):
    foreign = [name for name in imports(path) if name.split(".")[0] in FOREIGN_TO_METHODS]
    assert foreign == []
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "open" not in calls


@pytest.mark.parametrize("path", sorted((PACKAGE / "losses").rglob("*.py")), ids=name_of)
def test_losses_never_see_a_network(path):
    allowed = ("nnssl.losses", "nnssl.common.distributed")
    seen = [name for name in imports(path) if name.startswith("nnssl.")]
    assert [name for name in seen if not name.startswith(allowed)] == []
    assert not [name for name in imports(path) if name.startswith("dynamic_network_architectures")]


def test_only_configuration_and_one_file_of_common_see_the_environment():
    seeing = {name_of(path) for path in FILES if "environ" in names_in(path)}
    assert seeing == {"nnssl.common.environment", "nnssl.config.config", "nnssl.config.files"}


def test_only_one_file_writes_and_renames():
    writing = {name_of(path) for path in FILES if names_in(path) & {"fsync", "mkstemp"}}
    assert writing == {"nnssl.common.files"}


def test_only_one_file_finds_the_folder_of_a_dataset():
    knowing = {name_of(path) for path in FILES if "Dataset{" in path.read_text(encoding="utf-8")}
    assert knowing == {"nnssl.nnunet.paths"}


def test_only_one_file_builds_the_planned_network():
    building = {name_of(path) for path in FILES if "get_network_from_plans" in names_in(path)}
    assert building == {"nnssl.nnunet.planned_network"}


def test_only_one_file_knows_the_insides_of_a_unet():
    knowing = {
        name_of(path)
        for path in FILES
        for name in imports(path)
        if name.startswith("dynamic_network_architectures")
    }
    assert knowing <= {"nnssl.modules.unet", "nnssl.modules.resnet_unet"}  # the latter is one


def test_configuration_reads_without_torch_and_nnunet():
    heavy = ("torch", "nnunetv2", "numpy")
    for path in (PACKAGE / "config").glob("*.py"):
        assert [name for name in imports(path) if name.split(".")[0] in heavy] == [], path


def test_the_forwarding_module_imports_nothing_when_it_is_loaded():
    tree = ast.parse(registration.SOURCE.read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_wildcard_imports(path):
    assert not [name for name in imports(path) if name.endswith(".*")]


def test_a_variant_is_a_yaml_file_not_a_class():
    classes = [
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    trainers = [name for name in classes if name.startswith("nnSSL")]
    assert sorted(trainers) == ["nnSSLFinetuner", "nnSSLPretrainer", "nnSSLSemiSupervised"]
    assert [name for name in classes if re.search(r"\d{2,}|_", name.strip("_"))] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_every_package_is_installed():
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    for folder in {path.parent for path in FILES}:
        listed = f'"{".".join(folder.relative_to(REPOSITORY).parts)}"' in setup
        assert (folder / "__init__.py").exists() or listed, folder


def test_console_scripts_exist():
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    scripts = re.findall(r'"nnssl_\w+ = ([\w.]+):(\w+)"', setup)
    assert len(scripts) == 20
    for module, function in scripts:
        tree = ast.parse((REPOSITORY / f"{module.replace('.', '/')}.py").read_text())
        assert function in [n.name for n in tree.body if isinstance(n, ast.FunctionDef)], module


def test_the_supported_nnunet_is_said_once_and_repeated_rightly():
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    assert f'"nnunetv2{registration.SUPPORTED}"' in setup
    assert re.fullmatch(r"\d+\.\d+\.\d+", nnssl.__version__)


if __name__ == "__main__":
    before, _, rest = ARCHITECTURE.read_text(encoding="utf-8").partition("```tree\n")
    ARCHITECTURE.write_text(
        f"{before}```tree\n{tree()}\n```{rest.partition('```')[2]}", encoding="utf-8"
    )
