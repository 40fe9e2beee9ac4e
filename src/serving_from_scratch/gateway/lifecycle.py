"""Starts and ends predictors: at most `limit` at once, the least recently used one leaves first."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator

from serving_from_scratch.core.errors import PredictorFailed, Unavailable, UnknownModel
from serving_from_scratch.gateway.child import Child
from serving_from_scratch.gateway.predictors import Predictor, make_predictors
from serving_from_scratch.gateway.registry import Model, ModelSpec, ModelStore

HEALTH_EVERY = 0.5  # seconds
WAIT_SECONDS = 30.0  # that a request waits for room
START_SECONDS = 180.0  # that a predictor may take to start
TAIL_BYTES = 1000


class PredictorProcess:
    """One predictor that the gateway started, on a free port, with a key that only the two know."""

    def __init__(self, spec: ModelSpec, launcher: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = str(listener.getsockname()[1])
        command = launcher
        for word, value in {"{source}": spec.source, "{name}": spec.name, "{port}": port}.items():
            command = [part.replace(word, value) for part in command]
        key = secrets.token_hex()
        keys = dict.fromkeys(("SERVING_FROM_SCRATCH_API_KEY", "VLLM_API_KEY"), key)
        [self.predictor] = make_predictors(spec, [f"http://127.0.0.1:{port}"], key)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        try:
            self.child = Child(command, keys, self._log)
        except OSError as error:
            raise PredictorFailed(f"{spec.name} did not start: {error}.") from error

    async def until_healthy(self) -> None:
        """Waits until the predictor answers; ends it if that fails.

        Raises:
            PredictorFailed: it ended, or took longer than START_SECONDS; with the end of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self.predictor.healthy:
                if self.child.poll() is not None or time.monotonic() > deadline:
                    self._log.seek(-min(self._log.tell(), TAIL_BYTES), os.SEEK_END)
                    tail = self._log.read().decode(errors="replace").strip()
                    raise PredictorFailed(f"{self.predictor.name} did not start: {tail}")
                await asyncio.sleep(0.1)
                await self.predictor.check()
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        """Ends the process and all its children."""
        await self.predictor.close()
        await asyncio.to_thread(self.child.end)
        self._log.close()


class ModelPool:
    """Keeps the predictors of the models that are in use.

    Args:
        limit: how many models with a launcher are loaded at once.
    """

    def __init__(self, store: ModelStore, limit: int) -> None:
        self.store, self.limit = store, limit
        self.loaded: OrderedDict[str, Model] = OrderedDict()  # the least recently used first
        self._changed = asyncio.Condition()
        for model in store.models.values():
            self.connect(model)

    def connect(self, model: Model) -> None:
        """Makes the predictors of a model that others start."""
        if not model.spec.launcher:
            model.predictors = make_predictors(model.spec, model.spec.urls)

    @contextlib.asynccontextmanager
    async def use(self, model: Model) -> AsyncIterator[list[Predictor]]:
        """Loads the model if need be; it is not ended during the block.

        Raises:
            Unavailable: all loaded models were busy for WAIT_SECONDS.
            PredictorFailed: the model did not start.
        """
        try:
            async with self._changed, asyncio.timeout(WAIT_SECONDS):
                await self._changed.wait_for(lambda: self._admit(model))
        except TimeoutError as error:
            busy = ", ".join(self.loaded)
            raise Unavailable(f"No room for a model: {busy} are in use.", 5) from error
        try:
            if model.loading:  # shared by all who wait: the first who leaves must not end it
                await asyncio.shield(model.loading)
            yield model.predictors
        finally:
            model.in_flight -= 1
            await self._notify()

    async def remove(self, model: Model, seconds: float = 30.0) -> None:
        """Ends a model after its running requests, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with self._changed, asyncio.timeout(seconds):
                await self._changed.wait_for(lambda: not model.in_flight)
        self.loaded.pop(model.spec.name, None)
        await self._end(model)
        await self._notify()

    async def watch(self) -> None:
        """Asks all predictors for their health, for ever."""
        while True:
            models = list(self.store.models.values())
            checks = [predictor.check() for model in models for predictor in model.predictors]
            for outcome in await asyncio.gather(*checks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    logging.warning("A check of a predictor's health failed: %r.", outcome)
            await asyncio.sleep(HEALTH_EVERY)

    async def close(self) -> None:
        """Ends everything."""
        await asyncio.gather(*(self._end(model) for model in self.store.models.values()))

    def _admit(self, model: Model) -> bool:
        """Counts a request in; False while there is no room for its model."""
        if model.removed:
            raise UnknownModel(f"The model {model.spec.name!r} was removed.", "model")
        name = model.spec.name
        if model.spec.launcher:
            if not self._runs(model):
                self.loaded.pop(name, None)
                leaving = self._make_room()
                if leaving is None:
                    return False
                model.loading = asyncio.create_task(self._load(model, [*leaving, model.process]))
            self.loaded[name] = model
            self.loaded.move_to_end(name)
        model.in_flight += 1
        return True

    def _runs(self, model: Model) -> bool:
        """Whether the model is loaded or being loaded."""
        if model.spec.name not in self.loaded or model.loading is None:
            return False
        process = model.process
        return not model.loading.done() or (process is not None and process.child.poll() is None)

    def _make_room(self) -> list[PredictorProcess | None] | None:
        """Chooses what has to leave; None if everything is in use."""
        if len(self.loaded) < self.limit:
            return []
        idle = next((model for model in self.loaded.values() if self._idle(model)), None)
        if idle is None:
            return None
        del self.loaded[idle.spec.name]
        leaving, idle.process, idle.predictors = idle.process, None, []
        return [leaving]

    def _idle(self, model: Model) -> bool:
        """Whether nobody would notice if the model were ended."""
        return not model.in_flight and (model.loading is None or model.loading.done())

    async def _load(self, model: Model, leaving: list[PredictorProcess | None]) -> None:
        for process in filter(None, leaving):  # first, because both might not fit into memory
            await process.end()
        model.process = None
        try:
            launcher = self.store.launchers[model.spec.launcher]
            model.process = PredictorProcess(model.spec, launcher)
            await model.process.until_healthy()
            model.predictors = [model.process.predictor]
        except BaseException:
            self.loaded.pop(model.spec.name, None)
            model.process = None
            raise
        finally:
            await self._notify()

    async def _end(self, model: Model) -> None:
        if model.loading and not model.loading.done():
            model.loading.cancel()
            await asyncio.wait([model.loading])
        if model.process:
            await model.process.end()
        for predictor in model.predictors:
            await predictor.close()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
