"""Preloads GuideLLM in the fork server, so that its processes need not import GuideLLM again.

Python imports this module once, in the fork server (`multiprocessing.set_forkserver_preload`).
GuideLLM starts a manager and its workers anew for each load.
"""

import gc
import importlib
import os

from model_serve_flow.system import processes

# GuideLLM logs in its main process only. It would mistake the fork server for a main process, so
# the console log is switched off here.
os.environ["GUIDELLM__LOGGING"] = '{"console_log_level": null}'
for _module in ("guidellm.backends.openai.http", "guidellm.scheduler.worker", "guidellm.schemas"):
    importlib.import_module(_module)
gc.freeze()  # keeps the memory pages of these objects shared by all forked processes

# If the fork server is gone, a worker is no longer a descendant of the driver. So each worker ends
# with the fork server, and the fork server ends with the driver.
processes.end_with_parent()
os.register_at_fork(after_in_child=processes.end_with_parent)
