"""One notebook without its folder and its kernel: copied, or opened with Colab's badge."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("beside", ["nothing", "a utils.py of something else"])
def test_it_says_in_one_sentence_what_to_run(tmp_path, beside):
    copy = tmp_path / "02_Base_Performance.ipynb"
    shutil.copy(EXAMPLES / "model-serve-flow" / copy.stem / copy.name, copy)
    if beside != "nothing":
        (tmp_path / "utils.py").write_text("helpful = True")
    notebook = nbformat.read(copy, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    with pytest.raises(CellExecutionError) as raised:
        client.execute()
    assert raised.value.ename == "ImportError"
    assert raised.value.evalue.endswith(
        "Open this notebook in a checkout of model-serve-flow, with the kernel 'model-serve-flow "
        "(serve)'. To install it, run there: PYTHONPATH=src python3 -m model_serve_flow kernels"
    )
    shown = [cell for cell in notebook.cells if cell.get("outputs")]
    assert len(shown) == 1, "and nothing else ran"
