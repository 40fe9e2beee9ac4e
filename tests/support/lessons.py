"""The Python files of a notebook, for tests of what it draws, decides and computes."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SEQUENCE = Path(__file__).resolve().parents[2] / "examples" / "serving-from-scratch"


def lesson(name: str, file: str = "utils") -> ModuleType:
    """Loads a file of a module of serving from scratch by the module's name."""
    path = SEQUENCE / name / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"{file}_of_{name}", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent))  # the files beside it, as in the notebook
    spec.loader.exec_module(module)
    return module
