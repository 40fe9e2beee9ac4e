"""The utils.py of a notebook, for tests of what it draws and decides."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SEQUENCE = Path(__file__).resolve().parents[2] / "examples" / "serving-from-scratch"


def lesson(name: str) -> ModuleType:
    """Loads the utils.py of a module of serving from scratch by the module's name."""
    folder = SEQUENCE / name
    spec = importlib.util.spec_from_file_location(f"utils_of_{name}", folder / "utils.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    sys.path.append(str(folder))  # the files beside it, as in the notebook
    spec.loader.exec_module(module)
    return module
