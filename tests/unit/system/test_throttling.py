"""The machine's own counters of cores held back, as files of other machines have them."""

import os

import pytest

from model_serve_flow.flow import busy
from model_serve_flow.flow.busy import disturbance, disturbed, less_disturbed
from model_serve_flow.flow.results.measured import Busy
from model_serve_flow.system import throttling
from model_serve_flow.system.gpu_throttling import gpu_throttled_seconds
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
        == "other programs took up to 1% of the CPU, and heat or a quota held CPU or GPU back for "
        "10% of the time"
    )


def counters(**times):
    inner = "".join(
        f"<clocks_event_reasons_counters_{name}>{time}</clocks_event_reasons_counters_{name}>"
        for name, time in times.items()
    )
    return f"<gpu><clocks_event_reasons_counters>{inner}</clocks_event_reasons_counters></gpu>"


@pytest.mark.parametrize(
    ("gpus", "seconds"),
    [
        # the power cap is the usual work of a GPU
        ([counters(sw_power_cap="9000000 us", hw_therm_slowdown="0 us")], 0.0),
        ([counters(sw_power_cap="9000000 us", sw_therm_slowdown="2500000 us")], 2.5),
        # as driver 575 on a laptop
        ([counters(sw_power_cap="91403239 us", sw_therm_slowdown="91403239 us",
                   hw_therm_slowdown="0 us", hw_power_brake="0 us")], 0.0),
        ([counters(hw_therm_slowdown="0 us"), counters(hw_power_braking="4000000 us")], 4.0),
        ([counters(hw_therm_slowdown="N/A")], None),
        (["<gpu></gpu>"], None),
        (["<gpu>"], None),
    ],
)  # fmt: skip
def test_heat_and_power_brakes_of_gpus_count(gpus, seconds, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    text = f"<nvidia_smi_log>{''.join(gpus)}</nvidia_smi_log>"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu_throttled_seconds() == seconds


def test_without_nvidia_smi_no_gpu_is_held_back(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_throttled_seconds() is None


def test_a_gpu_that_was_held_back_disturbs_a_load():
    start = busy._Moment(0.0, 100, 40, 0, 40, gpu_throttled=7.0)
    end = busy._Moment(10.0, 120, 60, 0, 60, gpu_throttled=8.0)
    held = busy._between(start, end)
    assert held.throttled_share == pytest.approx(0.1) and disturbed(held)
    unknown = busy._between(busy._Moment(0.0, 100, 40, 0, 40), end)
    assert unknown.throttled_share is None
