"""Imported once, by the server from which GuideLLM's processes are forked
(`multiprocessing.set_forkserver_preload`).

Each load has new processes, a manager and its workers. Forked from here they need not import
GuideLLM again.
"""

import gc
import importlib
import os

from model_serve_flow.system import processes

# GuideLLM logs in its main process only, and takes this one for a main process: its workers get
# that one's logger.
os.environ["GUIDELLM__LOGGING"] = '{"console_log_level": null}'
for _module in ("guidellm.backends.openai.http", "guidellm.scheduler.worker", "guidellm.schemas"):
    importlib.import_module(_module)
gc.freeze()  # pages with these objects stay shared by all that are forked

# A worker is nobody's descendant once the fork server is gone: each ends with it, as it does with
# the driver.
processes.end_with_parent()
os.register_at_fork(after_in_child=processes.end_with_parent)
