"""Where lm-eval's answers are kept, and when they go;
that lm-eval uses them is in tests/contract/serve.
"""

import pytest

from model_serve_flow.flow.results.measured import Model
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.measure.lm_eval_cache import cache_folder, forget_answers, request_cache


@pytest.fixture
def workspace(tmp_path):
    return Workspace.of(tmp_path, "ci")


def model(name="base", sha256="a" * 64):
    return Model(name=name, sha256=sha256, size_bytes=1)


def interrupted(workspace, *arguments):
    """A measurement that ends with an error after an answer; the file of its answers."""
    with pytest.raises(KeyboardInterrupt), request_cache(workspace, *arguments) as path:
        database = path.with_name(f"{path.name}_rank0.db")
        database.touch()
        raise KeyboardInterrupt
    return database


def test_every_model_protocol_and_measurement_has_a_cache_of_its_own(workspace):
    first = interrupted(workspace, model(), {"seed": 1})
    others = [
        interrupted(workspace, model(sha256="b" * 64), {"seed": 1}),
        interrupted(workspace, model(), {"seed": 2}),
        interrupted(workspace, model(), {"seed": 1}, "_again"),
        interrupted(workspace, model("w8a8-int8"), {"seed": 1}),
    ]
    assert len({first, *others}) == 5 and first.is_file()
    assert first.parent == workspace.root / "cache" / "lm-eval"


def test_a_finished_measurement_leaves_nothing_and_touches_no_other(workspace):
    stale = interrupted(workspace, model(), {"seed": 2})
    again = interrupted(workspace, model(), {"seed": 1}, "_again")
    with request_cache(workspace, model(), {"seed": 1}) as path:
        for name in ("_rank0.db", "_rank0.db-journal"):
            path.with_name(path.name + name).touch()
    assert not stale.exists() and list(cache_folder(workspace).iterdir()) == [again]


def test_all_of_a_model_can_be_forgotten_and_there_may_be_none(workspace):
    forget_answers(workspace, "base")
    interrupted(workspace, model(), {"seed": 1})
    interrupted(workspace, model(), {"seed": 1}, "_again")
    for measurement in ("base", "base_again"):
        forget_answers(workspace, measurement)
    assert list(cache_folder(workspace).iterdir()) == []


def test_the_folder_is_the_owners_alone_or_is_not_used(workspace, capsys):
    interrupted(workspace, model(), {"seed": 1})
    assert cache_folder(workspace).stat().st_mode & 0o777 == 0o700
    cache_folder(workspace).chmod(0o707)
    with request_cache(workspace, model(), {"seed": 1}) as path:
        assert path is None
    assert "others may write" in capsys.readouterr().out
