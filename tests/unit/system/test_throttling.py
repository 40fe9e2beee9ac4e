"""The machine's own counters of cores held back, as files of other machines have them."""

import os

import pytest

from model_serve_flow.flow import busy
from model_serve_flow.flow.busy import disturbance, disturbed, less_disturbed
from model_serve_flow.flow.results.measured import Busy
from model_serve_flow.system import throttling
from model_serve_flow.system.throttling import throttled_seconds

QUIET = Busy(
    load_average=0.1, cores=2, others_share=0.01, steal_share=0.0, throttled_share=0.0, seconds=10.0
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes counters: milliseconds of each hot core,
    and the text of cpu.stat of the own control group.
    """

    def of(heat=(), stat=None, group="0::/box", place="box/cpu.stat"):
        monkeypatch.setattr(throttling, "CORES", tmp_path / "cpu")
        monkeypatch.setattr(throttling, "CONTROL_GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(throttling, "OWN_GROUP", tmp_path / "own")
        for core, milliseconds in enumerate(heat):
            path = (
                tmp_path / "cpu" / f"cpu{core}" / "thermal_throttle" / "core_throttle_total_time_ms"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{milliseconds}\n")
        (tmp_path / "own").write_text(group + "\n")
        if stat is not None:
            (tmp_path / "cgroup" / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / place).write_text(stat)

    return of


def test_heat_counts_for_the_cores_that_are_ours(machine):
    machine(heat=(1500, 500, 9000))
    assert throttled_seconds({0, 1}) == 2.0


@pytest.mark.parametrize(
    ("stat", "group", "place"),
    [
        ("usage_usec 5\nnr_throttled 3\nthrottled_usec 2500000\n", "0::/box", "box/cpu.stat"),
        # a container sees its own as the root
        ("usage_usec 5\nthrottled_usec 2500000\n", "0::/elsewhere", "cpu.stat"),
        ("nr_throttled 3\nthrottled_time 2500000000\n", "4:cpu,cpuacct:/box", "cpu/box/cpu.stat"),
    ],
)
def test_a_quota_counts_in_both_versions_of_the_control_groups(machine, stat, group, place):
    machine(stat=stat, group=group, place=place)
    assert throttled_seconds({0}) == 2.5


def test_without_a_counter_it_is_not_known(machine):
    machine()
    assert throttled_seconds({0}) is None


def test_this_machine_answers():
    found = throttled_seconds(os.sched_getaffinity(0))
    assert found is None or found >= 0


def test_a_throttled_time_is_disturbed_though_nobody_else_computes():
    start = busy._Moment(0.0, 100, 40, 0, 40, throttled=1.0)
    end = busy._Moment(10.0, 120, 60, 0, 60, throttled=1.0 + busy.usable_cores())
    held = busy._between(start, end)
    assert held.throttled_share == pytest.approx(0.1) and disturbed(held)
    assert not disturbed(QUIET) and not disturbed(None)
    assert disturbed(QUIET.model_copy(update={"others_share": 0.3}))
    assert less_disturbed(QUIET, held) and not less_disturbed(held, QUIET)
    assert (
        disturbance([QUIET, held])
        == "other programs took up to 1% of the CPU, and it was held back for 10% of the time"
    )
