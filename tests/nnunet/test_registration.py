"""After registration nnU-Net's own search finds our trainers, and never suffers from them.

The searches run in subprocesses on a copy of nnU-Net's folders (files linked, as in an editable
installation), so that the environment's own registration is neither needed nor changed.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nnunetv2
import pytest

from nnssl.cli import register
from nnssl.nnunet import registration

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = "nnSSLContrastiveTrainer"

FIND = """
from os.path import join
import nnunetv2

def find(name):
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    except ImportError:  # before 2.8
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
        folder = join(nnunetv2.__path__[0], "training", "nnUNetTrainer")
        return recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")
    return recursive_find_trainer_class_by_name(name)

def error_of(name):
    try:
        return "none, found " + repr(find(name))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.fixture
def nnunet(tmp_path) -> Path:
    """A folder for PYTHONPATH with an nnU-Net whose trainer folder may be written."""
    original, copy = Path(nnunetv2.__path__[0]), tmp_path / "nnunet" / "nnunetv2"
    for folder in (Path(), Path("training"), Path("training", "nnUNetTrainer")):
        (copy / folder).mkdir(parents=True)
        for entry in (original / folder).iterdir():
            if entry.name not in (
                "training",
                "nnUNetTrainer",
                "__pycache__",
                "nnssl_registration.py",
            ):
                (copy / folder / entry.name).symlink_to(entry)
    return copy.parent


@pytest.fixture
def trainer_folder(nnunet) -> Path:
    return nnunet / "nnunetv2" / "training" / "nnUNetTrainer"


@pytest.fixture
def run_python(nnunet, tmp_path) -> Callable[..., str]:
    def run(code: str, *paths: Path, **variables: str) -> str:
        inherited = filter(None, [os.environ.get("PYTHONPATH")])
        path = os.pathsep.join(map(str, (*paths, nnunet, REPOSITORY, *inherited)))
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("nnssl_configs", "nnUNet_extTrainer", "nnssl_overrides")
        }
        environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    return run


def test_a_registered_nnunet_finds_every_trainer_and_names_what_is_wrong(run_python, tmp_path):
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "nnSSLMineTrainer.yaml").write_text(f"extends: {OURS}\n")
    (configs / "nnSSLBrokenTrainer.yaml").write_text("kind: pretrain\ntraining: {\n")
    code = f"""
from nnssl.cli import register
assert register.main(["--status"]) == 1
assert register.main([]) == 0
assert register.main([]) == 0, "twice is as good as once"
assert register.main(["--status"]) == 0
{FIND}
import pickle
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
for name in ("{OURS}", "nnSSLMineTrainer"):
    trainer = find(name)
    assert trainer is find(name)
    assert trainer.__name__ == trainer.config_name == name
    assert issubclass(trainer, nnUNetTrainer)
    assert pickle.loads(pickle.dumps(trainer)) is trainer
assert find("nnUNetTrainer_5epochs").__name__ == "nnUNetTrainer_5epochs"
print(error_of("nnSSLContrastivTrainer"))
print(error_of("nnSSLBrokenTrainer"))
assert register.main(["--undo"]) == 0
assert register.main(["--undo"]) == 0
assert register.main(["--status"]) == 1
"""
    output = run_python(code, nnssl_configs=str(configs))
    assert "ValueError: there is no trainer 'nnSSLContrastivTrainer' (did you mean" in output
    assert f"'{OURS}'" in output
    broken = configs / "nnSSLBrokenTrainer.yaml"
    assert f"ValueError: {broken}, line 3: not valid YAML" in output


def test_without_a_working_nnssl_stock_trainers_are_found(run_python, trainer_folder, tmp_path):
    registration.register(trainer_folder)
    (tmp_path / "bad" / "nnssl").mkdir(parents=True)
    (tmp_path / "bad" / "nnssl" / "__init__.py").write_text("raise RuntimeError('broken nnssl')\n")
    code = f"""
{FIND}
import sys
class Gone:  # a machine on which nnssl is not installed
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nnssl":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for state in ("broken", "gone"):
    if state == "gone":
        sys.meta_path.insert(0, Gone())
    for name in ("nnUNetTrainer", "nnUNetTrainer_5epochs", "nnUNetTrainerDA5"):
        assert find(name).__name__ == name
    assert not [name for name in sys.modules if name.partition(".")[0] == "nnssl"]
    assert error_of("MyTrainer").startswith(("RuntimeError: Could not", "none, found None"))
    print(state, error_of("{OURS}"))
"""
    broken, gone = run_python(code, tmp_path / "bad").strip().splitlines()[-2:]
    assert broken == "broken RuntimeError: broken nnssl"
    assert gone.startswith(("gone RuntimeError: Could not find", "gone none, found None"))


def test_the_external_folder_serves_a_read_only_nnunet(run_python):
    if not registration.supports_external():
        pytest.skip("nnU-Net before 2.8 knows no nnUNet_extTrainer")
    code = f"""
{FIND}
first = find("{OURS}")
assert find("{OURS}") is first
assert find("nnUNetTrainer_5epochs").__name__ == "nnUNetTrainer_5epochs"
print(error_of("nnSSLContrastivTrainer"))
from nnssl.cli import register
assert register.main(["--status"]) == 0
"""
    output = run_python(code, nnUNet_extTrainer=str(registration.EXTERNAL_FOLDER))
    assert "ValueError: there is no trainer 'nnSSLContrastivTrainer'" in output


def test_the_forwarding_module_imports_nothing_and_refuses_stock_names_at_once():
    code = """
import sys
before = set(sys.modules)
namespace = {"__name__": "forwarding"}
exec(compile(open(sys.argv[1]).read(), "forwarding", "exec"), namespace)
for name in ("nnUNetTrainer", "nnUNetTrainer_5epochs", "__path__"):
    try:
        namespace["__getattr__"](name)
    except AttributeError:
        continue
    raise SystemExit(f"{name} was not refused")
assert set(sys.modules) == before, set(sys.modules) - before
assert sys.excepthook is sys.__excepthook__
"""
    subprocess.run([sys.executable, "-c", code, str(registration.SOURCE)], check=True)


def test_the_external_folder_holds_exactly_one_file(capsys):
    assert register.main(["--path"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == REPOSITORY / "nnssl" / "external_trainers"
    assert [p.name for p in folder.iterdir() if p.name != "__pycache__"] == ["nnssl_trainers.py"]


def test_a_read_only_nnunet_is_refused_with_what_to_do_instead(trainer_folder, monkeypatch):
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    before = sorted(trainer_folder.iterdir())
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ValueError, match="Read-only file system") as caught:
        registration.register(trainer_folder)
    assert "export nnUNet_extTrainer=$(nnssl_register --path)" in str(caught.value)
    assert "needs nnU-Net >= 2.8" in str(caught.value)
    assert sorted(trainer_folder.iterdir()) == before


def test_an_outdated_module_is_renewed(trainer_folder):
    module = trainer_folder / registration.MODULE_NAME
    module.write_text("raise RuntimeError\n")
    assert registration.find_state(trainer_folder) == "outdated"
    registration.register(trainer_folder)
    assert registration.find_state(trainer_folder) == "registered"
    assert module.read_bytes() == registration.SOURCE.read_bytes()


def test_undo_removes_the_bytecode_too(trainer_folder):
    registration.register(trainer_folder)
    bytecode = trainer_folder / "__pycache__" / "nnssl_registration.cpython-311.pyc"
    bytecode.parent.mkdir()
    bytecode.touch()
    assert registration.undo(trainer_folder)
    assert not bytecode.exists()
    assert not registration.undo(trainer_folder)
    assert registration.find_state(trainer_folder) == "absent"


@pytest.mark.parametrize(
    ("found", "supported", "external"),
    [
        (None, False, False),
        ("2.6.1", False, False),
        ("2.6.2", True, False),
        ("2.7.0", True, False),
        ("2.8", True, True),
        ("2.8.1", True, True),
        ("2.9.0", False, True),
        ("2.10", False, True),
    ],
)
def test_versions(monkeypatch, found, supported, external):
    monkeypatch.setattr(registration, "nnunet_version", lambda: found)
    assert registration.is_supported() is supported
    assert registration.supports_external() is external


def test_no_nnunet_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(registration, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'nnunetv2>=2\.6\.2,<2\.9'"):
        register.main([])
