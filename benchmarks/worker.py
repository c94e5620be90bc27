"""Runs one case in a process of its own, so that neither allocator state nor compiled code of another case is there.

``python -m benchmarks.worker REQUEST`` takes a `Request` as JSON and prints a `CaseResult` as JSON.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable

import torch
from torch.utils.benchmark import Measurement

from benchmarks.agreement import check_agreement
from benchmarks.cases import find
from benchmarks.contenders import contenders
from benchmarks.cpu_device import CpuDevice
from benchmarks.cuda_device import CudaDevice
from benchmarks.device import Device
from benchmarks.floor import bytes_moved, copy_floor_tasks, floor_tasks
from benchmarks.inputs import build_rotation
from benchmarks.measure import measure_interleaved
from benchmarks.memory import peak_extra_bytes
from benchmarks.peers import peer_contenders
from benchmarks.request import Request
from benchmarks.results import PASSES, CaseResult, ContenderResult, Pass, Summary

DEVICES: dict[str, Callable[[], Device]] = {"cpu": CpuDevice, "cuda": CudaDevice}


def run_case(request: Request) -> CaseResult:
    """Measures every contender and the floor of the requested case in this process."""
    device = DEVICES[request.device]()
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    full_case = find(request.case)
    case = full_case.shrunk() if request.quick else full_case
    rotation = build_rotation(case, device)
    entries = contenders(
        case.loss,
        rotation,
        scale=case.scale,
        after_log_softmax=case.after_log_softmax,
        with_compile=request.with_compile,
        with_inplace=full_case.gradient_may_overwrite_logits,
    )
    check_agreement(entries)
    absent: dict[str, str] = {}
    if request.with_peers and case.scale == "none" and not case.after_log_softmax:  # they are called as they are
        peers, absent = peer_contenders(case, rotation, entries[0])
        entries += peers

    results: dict[str, ContenderResult] = {entry.name: {"times": {}, "peak_extra_bytes": {}} for entry in entries}
    floor: dict[Pass, Summary] = {}
    floors = (copy_floor_tasks if request.device == "cuda" else floor_tasks)(case, rotation)
    for which in PASSES:
        tasks = {entry.name: entry.tasks[which] for entry in entries if which in entry.tasks}
        measured = measure_interleaved(
            {**tasks, "floor": floors[which]},
            device,
            min_seconds_per_task=request.min_seconds,
            min_rounds=request.min_rounds,
        )
        floor[which] = summarize(measured.pop("floor"))
        for name, measurement in measured.items():
            results[name]["times"][which] = summarize(measurement)
    # After all timing: a profiler that ran once leaves hooks behind.
    for entry in entries:
        for which, task in entry.tasks.items():
            results[entry.name]["peak_extra_bytes"][which] = peak_extra_bytes(task, device)

    return {
        "case": case.name,
        "loss": case.loss,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "variant": case.variant,
        "device": request.device,
        "allocator": request.allocator,
        "threads": torch.get_num_threads(),
        "logits_bytes": rotation[0].logits_bytes,
        "inputs_in_rotation": len(rotation),
        "bytes_moved": bytes_moved(case, rotation[0]),
        "floor": floor,
        "contenders": results,
        "absent": absent,
    }


def summarize(measurement: Measurement) -> Summary:
    seconds = measurement.times
    q25, median, q75 = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "median_s": median,
        "q25_s": q25,
        "q75_s": q75,
        "minimum_s": min(seconds),
        "samples": len(seconds),
        "calls_per_sample": measurement.number_per_run,
    }


def main() -> None:
    # Libraries write to standard output as they like; the answer must stand there alone.
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        json.dump(run_case(Request(**json.loads(sys.argv[1]))), answer)


if __name__ == "__main__":
    main()
