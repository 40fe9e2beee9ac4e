"""Logs of vLLM 0.32 that died in several ways, recorded and then shortened;
frames of the tracebacks are left out.
"""

import pytest

from model_serve_flow.serve.engine_log import SILENT, root_cause

SERVICE_LINK = """
(APIServer pid=10458) WARNING 11-29 07:53:25 [arg_utils.py:1945] The global random seed is set to 0. Since VLLM_ENABLE_V1_MULTIPROCESSING is set to False, this may affect the random state of the Python process that launched vLLM.
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510] EngineCore failed to start.
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510]   File "/env/site-packages/vllm/v1/engine/core.py", line 1482, in run_engine_core
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510]     engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510]                   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510]   File "/env/site-packages/vllm/tracing/otel.py", line 175, in sync_wrapper
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510]     return func(*args, **kwargs)
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510]            ^^^^^^^^^^^^^^^^^^^^^
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510]            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510]   File "/env/site-packages/vllm/envs.py", line 538, in get_vllm_port
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510]     raise ValueError(
(EngineCore pid=10652) ERROR 11-29 07:54:00 [core.py:1510] ValueError: VLLM_PORT 'tcp://172.30.12.7:8000' appears to be a URI. This may be caused by a Kubernetes service discovery issue,check the warning in: https://docs.vllm.ai/en/latest/configuration/env_vars.html
Process EngineCore:
Traceback (most recent call last):
  File "/usr/lib/python3.11/multiprocessing/process.py", line 314, in _bootstrap
    return environment_variables[name]()
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/env/site-packages/vllm/envs.py", line 538, in get_vllm_port
    raise ValueError(
ValueError: VLLM_PORT 'tcp://172.30.12.7:8000' appears to be a URI. This may be caused by a Kubernetes service discovery issue,check the warning in: https://docs.vllm.ai/en/latest/configuration/env_vars.html
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "<frozen runpy>", line 88, in _run_code
    next(self.gen)
  File "/env/site-packages/vllm/v1/engine/utils.py", line 1351, in launch_core_engines
    wait_for_engine_startup(
  File "/env/site-packages/vllm/v1/engine/utils.py", line 1431, in wait_for_engine_startup
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""  # noqa: E501
WORKER = """
(EngineCore pid=24419) INFO 11-29 08:25:23 [multiproc_executor.py:153] DP group leader: node_rank=0, node_rank_within_dp=0, master_addr=127.0.0.1, mq_connect_ip=192.0.2.2 (local), world_size=1, local_world_size=1
(Worker pid=24645) INFO 11-29 08:26:07 [cpu_model_runner.py:68] Starting to load model /srv/models/base...
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953] WorkerProc failed to start.
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953] Traceback (most recent call last):
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953]   File "/env/site-packages/vllm/v1/executor/multiproc_executor.py", line 920, in worker_main
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953]     worker = WorkerProc(*args, **kwargs)
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953]              ^^^^^^^^^^^^^^^^^^^^^^^^^^^
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953]     pat = _compile(pattern, flags, ignore_unused, kwargs, True)
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953]           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953]   File "/env/site-packages/regex/_main.py", line 553, in _compile
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953]     raise error(caught_exception.msg, caught_exception.pattern,
(Worker pid=24645) ERROR 11-29 08:26:07 [multiproc_executor.py:953] regex._regex_core.error: missing ) at position 8
(EngineCore pid=24419) INFO 11-29 08:26:07 [multiproc_executor.py:479] [shutdown] Executor: waiting for worker exit count=1
(EngineCore pid=24419) ERROR 11-29 08:26:11 [core.py:1510] EngineCore failed to start.
(EngineCore pid=24419) ERROR 11-29 08:26:11 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=24419) ERROR 11-29 08:26:11 [core.py:1510]   File "/env/site-packages/vllm/v1/engine/core.py", line 1482, in run_engine_core
(EngineCore pid=24419) ERROR 11-29 08:26:11 [core.py:1510]     engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)
(EngineCore pid=24419) ERROR 11-29 08:26:11 [core.py:1510]                    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
(EngineCore pid=24419) ERROR 11-29 08:26:11 [core.py:1510]   File "/env/site-packages/vllm/v1/executor/multiproc_executor.py", line 815, in wait_for_ready
(EngineCore pid=24419) ERROR 11-29 08:26:11 [core.py:1510]     raise e from None
(EngineCore pid=24419) ERROR 11-29 08:26:11 [core.py:1510] Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
Process EngineCore:
Traceback (most recent call last):
  File "/usr/lib/python3.11/multiprocessing/process.py", line 314, in _bootstrap
    self.run()
  File "/usr/lib/python3.11/multiprocessing/process.py", line 108, in run
    raise e from None
Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
(APIServer pid=24099) INFO 11-29 08:26:16 [utils.py:628] [shutdown] Process manager: send sigterm to process EngineCore
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "<frozen runpy>", line 88, in _run_code
  File "/src/model_serve_flow/serve/vllm_main.py", line 17, in <module>
    wait_for_engine_startup(
  File "/env/site-packages/vllm/v1/engine/utils.py", line 1431, in wait_for_engine_startup
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""  # noqa: E501
ENGINE_KILLED = """
INFO:     Application startup complete.
(APIServer pid=24897) WARNING 11-29 08:27:52 [core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly; starting cleanup
(APIServer pid=24897) ERROR 11-29 08:27:52 [async_llm.py:906] AsyncLLM output_handler failed.
(APIServer pid=24897) ERROR 11-29 08:27:52 [async_llm.py:906] Traceback (most recent call last):
(APIServer pid=24897) ERROR 11-29 08:27:52 [async_llm.py:906]   File "/env/site-packages/vllm/v1/engine/async_llm.py", line 849, in output_handler
(APIServer pid=24897) ERROR 11-29 08:27:52 [async_llm.py:906]     outputs = await engine_core.get_output_async()
(APIServer pid=24897) ERROR 11-29 08:27:52 [async_llm.py:906]               ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
(APIServer pid=24897) ERROR 11-29 08:27:52 [async_llm.py:906]   File "/env/site-packages/vllm/v1/engine/core_client.py", line 1235, in get_output_async
(APIServer pid=24897) ERROR 11-29 08:27:52 [async_llm.py:906]     raise self._format_exception(outputs) from None
(APIServer pid=24897) ERROR 11-29 08:27:52 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
INFO:     127.0.0.1:56320 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error
INFO:     Finished server process [24897]
"""  # noqa: E501
BAD_CONFIG = """
(APIServer pid=10218) ERROR 11-29 07:52:29 [repo_utils.py:126] Error parsing config for /srv/models/base: The checkpoint you are trying to load has model type `no-such-model` but Transformers does not recognize this architecture. This could be because of an issue with the checkpoint, or because your version of Transformers is o
(APIServer pid=10218) ERROR 11-29 07:52:29 [repo_utils.py:126]
(APIServer pid=10218) ERROR 11-29 07:52:29 [repo_utils.py:126] You can update Transformers with the command `pip install --upgrade transformers`. If this does not work, and the checkpoint is very new, then there may not be a release version that supports this model yet. In this case, you can get the most up-to-date code by insta
(APIServer pid=10218) ERROR 11-29 07:52:31 [repo_utils.py:124] Error parsing config for /srv/models/base: The checkpoint you are trying to load has model type `no-such-model` but Transformers does not recognize this architecture. This could be because of an issue with the checkpoint, or because your version of Transformers is o
(APIServer pid=10218) ERROR 11-29 07:52:31 [repo_utils.py:124]
(APIServer pid=10218) ERROR 11-29 07:52:31 [repo_utils.py:124] You can update Transformers with the command `pip install --upgrade transformers`. If this does not work, and the checkpoint is very new, then there may not be a release version that supports this model yet. In this case, you can get the most up-to-date code by insta
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/env/site-packages/vllm/engine/arg_utils.py", line 2240, in create_engine_config
    model_config = self.create_model_config()
                   ^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/env/site-packages/vllm/engine/arg_utils.py", line 1955, in create_model_config
    return ModelConfig(
           ^^^^^^^^^^^^
  File "/env/site-packages/pydantic/_internal/_dataclasses.py", line 121, in __init__
    s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, The checkpoint you are trying to load has model type `no-such-model` but Transformers does not recognize this architecture. This could be because of an issue with the checkpoint, or because your version of Transformers is out of date.

"""  # noqa: E501
BAD_FLAG = """
                 [--gdn-prefill-backend {flashinfer,triton,cutedsl,aiter_flydsl}]
                 [--kda-prefill-backend {auto,triton,flashkda,flashinfer,fused}]
                 [--kda-decode-backend {auto,native,flashinfer,triton}]
                 [--enable-log-requests | --no-enable-log-requests]
                 [model_tag]
engine.py: error: unrecognized arguments: --no-such-flag
"""


def test_the_first_exception_of_the_engine_is_the_cause_and_not_the_servers_own():
    """VLLM_PORT=tcp://..., the address of a Kubernetes Service."""
    cause = root_cause(SERVICE_LINK)
    assert cause.startswith("ValueError: VLLM_PORT 'tcp://172.30.12.7:8000' appears to be a URI.")
    assert cause.endswith("(vllm/envs.py:538)") and "\n" not in cause
    assert (
        "Engine core initialization failed" in SERVICE_LINK.splitlines()[-1]
        and "Engine core" not in cause
    )


def test_the_cause_of_a_worker_comes_before_that_of_the_engine_which_only_points_to_it():
    """A quantization_config whose `ignore` holds a pattern that is no regular expression."""
    assert (
        root_cause(WORKER)
        == "regex._regex_core.error: missing ) at position 8 (regex/_main.py:553)"
    )


def test_an_engine_that_was_killed_left_no_cause_and_is_not_made_to_have_one():
    cause = root_cause(ENGINE_KILLED)
    assert cause.startswith(SILENT) and "EngineDeadError" in cause


def test_what_the_server_itself_cannot_read_is_the_cause_with_the_lines_of_its_message():
    cause = root_cause(BAD_CONFIG)
    assert cause.splitlines()[0].endswith("ValidationError: 1 validation error for ModelConfig")
    assert "has model type `no-such-model`" in cause


def test_a_log_without_an_exception_holds_no_cause():
    assert root_cause(BAD_FLAG) is None and root_cause("") is None


REQUEST = SERVICE_LINK.replace(
    "EngineCore failed to start.", "Unexpected error pre-processing request 7"
)


def test_of_a_server_that_was_killed_an_exception_of_one_request_is_not_the_cause():
    assert root_cause(REQUEST, ended_by_itself=False) is None
    assert root_cause(ENGINE_KILLED, ended_by_itself=False) is None
    assert root_cause(SERVICE_LINK, ended_by_itself=False) == root_cause(SERVICE_LINK)


def test_what_ended_the_engine_is_the_cause_though_another_traceback_stands_before_it():
    assert root_cause(REQUEST.replace("VLLM_PORT", "REQUEST") + WORKER) == root_cause(WORKER)


START = "(EngineCore_DP0 pid=1) ERROR 11-29 07:54:00 [core.py:1512] "


@pytest.mark.parametrize("link",
                         ["During handling of the above exception, another exception occurred:",
                                  ("The above exception was the direct cause of the following "
                                   "exception:")])  # fmt: skip
def test_of_a_chain_the_first_exception_is_the_cause_and_the_last_what_it_led_to(link):
    said = [
        "EngineCore encountered a fatal error.",
        "Traceback (most recent call last):",
        '  File "/env/site-packages/torch/a.py", line 1, in allocate',
        "torch.OutOfMemoryError: CUDA out of memory.",
        "Tried to allocate 2 GiB.",
        "",
        link,
        "",
        "Traceback (most recent call last):",
        '  File "/env/site-packages/vllm/b.py", line 2, in step',
        "    raise RuntimeError(x)",
        "RuntimeError: the step failed",
    ]
    noise = 'INFO:     127.0.0.1:56310 - "GET /health HTTP/1.1" 200 OK'
    log = "\n".join(f"{START}{line}\n{noise}" for line in said)
    assert root_cause(log).splitlines() == [
        "torch.OutOfMemoryError: CUDA out of memory.",
        "Tried to allocate 2 GiB. (torch/a.py:1)",
        "That led to: RuntimeError: the step failed (vllm/b.py:2)",
    ]


def test_a_message_of_a_thousand_lines_is_cut():
    first = "Traceback (most recent call last):\nValueError: "
    assert len(root_cause(first + "x\n" * 1000).splitlines()) <= 7
    assert len(root_cause(first + "x" * 100_000)) < 2000
