"""Reports numbers to Prometheus, and never a text or a key."""

from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serving_from_scratch.engine.llm_engine import LLMEngine

PREFIX = "serving_from_scratch_"


class EngineNumbers:
    """Reads an engine's counts when Prometheus asks for them."""

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        workload = self.engine.workload
        scheduler = workload.scheduler
        gauges = {
            "requests_waiting": len(scheduler.waiting),
            "requests_running": len(scheduler.running),
            "cache_free_tokens": scheduler.memory.free_tokens,
            "healthy": int(not self.engine.health()),
        }
        for name, value in gauges.items():
            yield GaugeMetricFamily(PREFIX + name, name.replace("_", " "), value=value)
        for name, total in asdict(workload.counts).items():
            yield CounterMetricFamily(PREFIX + name, name.replace("_", " "), value=total)
        ends = CounterMetricFamily(PREFIX + "requests", "requests by their end", labels=["end"])
        for reason, number in list(workload.finished.items()):
            ends.add_metric([reason], number)
        yield ends
