"""Timing as `planish doctor --bench` times: events round a batch of calls, the median of the batches.

What is short is captured as a CUDA graph first, so that it is the kernels that are timed and not Python.
"""

import json
import statistics
import time

import torch

#: Seconds that a batch should take, batches, calls of a batch at most, and seconds below which a call is captured.
ROUND, BATCHES, MOST, SHORT = 0.02, 10, 200, 50e-6
#: Seconds after which three batches are enough.
PATIENCE = 1.5


def emit(library: str, name: str, shape: str, **values) -> None:
    """Prints one JSON line."""
    print(json.dumps({"library": library, "name": name, "shape": shape, **values}), flush=True)


class Clock:
    """Times calls on a device."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = torch.device(device), tiny
        self.cuda = self.device.type == "cuda"

    def wait(self) -> None:
        """Until everything is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def batch(self, work, calls: int) -> float:
        """Seconds of one call, in a batch."""
        if not self.cuda:
            began = time.perf_counter()
            for _ in range(calls):
                work()
            return (time.perf_counter() - began) / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    def time(self, work) -> dict:
        """What is measured of a call, in seconds."""
        work()
        self.wait()
        if self.tiny:
            return summary([self.batch(work, 1) for _ in range(2)], 1)
        first = self.batch(work, 1)
        calls = min(max(round(ROUND / first), 1), MOST)
        graph = self.captured(work, calls) if self.cuda and first < SHORT else None
        run = (lambda: self.batch(graph.replay, 1) / calls) if graph else (lambda: self.batch(work, calls))
        run()
        samples, began = [], time.perf_counter()
        while len(samples) < BATCHES and (len(samples) < 3 or time.perf_counter() - began < PATIENCE):
            samples.append(run())
        return {**summary(samples, calls), "recorded": graph is not None}

    def captured(self, work, calls: int):
        """A graph of so many calls; none if they cannot be captured."""
        try:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                work()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(calls):
                    work()
            return graph
        except RuntimeError:
            torch.cuda.synchronize()
            return None

    def peak_begin(self) -> int:
        """Bytes of tensors now, from where the peak counts."""
        if not self.cuda:
            return 0
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self, before: int) -> dict:
        """The peak since, where it is known."""
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated() - before} if self.cuda else {}


def summary(samples: list, calls: int) -> dict:
    """Median, fastest and slowest."""
    return {
        "state": "measured",
        "seconds": statistics.median(samples),
        "fastest": min(samples),
        "slowest": max(samples),
        "batches": len(samples),
        "launches": calls,
    }


def guarded(library: str, name: str, shape: str, measure) -> None:
    """Emits what `measure` gives, or why it failed: the rest goes on."""
    try:
        emit(library, name, shape, **measure())
    except torch.cuda.OutOfMemoryError as error:
        emit(library, name, shape, state="too_large", error=str(error).splitlines()[0])
    except Exception as error:  # noqa: BLE001 - any failure of a peer is a line of the report
        text = (str(error).strip() or repr(error)).splitlines()[0]
        emit(library, name, shape, state="failed", error=f"{type(error).__name__}: {text}")
