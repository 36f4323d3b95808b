"""The table of GPU figures in docs/performance.md, between two marks, made from the results.

python -m benchmarks.gpu.table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import FULL
from benchmarks.report import RESULTS
from training.judging.card import markdown_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- GPU figures: made by python -m benchmarks.gpu.table -->", "<!-- end of GPU figures -->"
COLUMNS = {
    "first job, s": "first_job_seconds",
    "last job, s": "last_job_seconds",
    "median, s": "median_job_seconds",
    "encode, s": "encode_seconds",
    "sample, s": "sample_seconds",
    "decode, s": "decode_seconds",
    "weights read after, s": "read_seconds",
    "loaded after, s": "load_seconds",
    "peak, allocator, GiB": "peak_allocated_gib",
    "peak, driver, GiB": "peak_driver_gib",
    "TFLOP/s in sampling": "sample_tflops_per_second",
    "slow-down planned": "planned_slow_down",
    "slow-down measured": "slow_down",
    "largest difference of a pixel": "largest_pixel_difference",
    "mean": "mean_pixel_difference",
    "deviation of the image": "image_deviation",
}
NOT_MEASURED = "No GPU has been at hand: not measured yet."


def main() -> None:
    DOCUMENT.write_text(replace_table(DOCUMENT.read_text(), render(load_results(RESULTS))))


def load_results(folder: Path) -> list[dict[str, Any]]:
    """Results of the full size, in the order of their file names."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [result for result in results if result["figures"].get("gpu_benchmark") == FULL.name]


def render(results: list[dict[str, Any]]) -> str:
    """A section for every result, or the words that there is none."""
    return "\n\n".join(map(_section, results)) or NOT_MEASURED


def replace_table(document: str, table: str) -> str:
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _section(result: dict[str, Any]) -> str:
    figures = result["figures"]
    edit, versions, ceiling = figures["edit"], result["versions"], figures.get("ceiling", {})
    gpu = result["machine"].get("gpu") or ceiling.get("gpu", "no GPU")
    heading = (
        f"{gpu}, {edit['pixels']}x{edit['pixels']}, {edit['steps']} steps, "
        f"torch {versions['torch']}, commit {result['commit'] or 'unknown'}, {result['measured_at'][:10]}; "
        f"large products: {ceiling.get('matmul_tflops_per_second', '?')} TFLOP/s"
    )
    modes = figures.get("modes", {})
    resident_seconds = modes.get("resident", {}).get("median_job_seconds")
    rows = [_row(name, mode, resident_seconds) for name, mode in modes.items()]
    return "\n\n".join(filter(None, [heading, markdown_table(["", *COLUMNS], rows), _remarks(figures)]))


def _row(name: str, mode: dict[str, Any], resident_seconds: float | None) -> list[str]:
    for ending, word in (("error", "failed"), ("skipped", "skipped")):
        if ending in mode:
            return [name, f"{word}: {mode[ending]}", *[""] * (len(COLUMNS) - 1)]
    if resident_seconds:
        mode = {**mode, "slow_down": round(mode["median_job_seconds"] / resident_seconds, 2)}
    return [name, *(str(mode.get(key, "")) for key in COLUMNS.values())]


def _remarks(figures: dict[str, Any]) -> str:
    """Figures outside the modes: a warm start, the comparison with a CPU, failures."""
    warm, check = figures.get("warm_load", {}), figures.get("check", {})
    remarks = []
    if "load_seconds_warm" in warm:
        remarks.append(
            "- Started again with files and compiled code in their caches: loaded after "
            f"{warm['load_seconds_warm']} s, ready {warm['ready_seconds_warm']} s after the start of the process."
        )
    if "is_close" in check:
        differences = ", ".join(f"`{name}` {value}" for name, value in check.items() if "_to_cpu" in name)
        remarks.append(f"- Latents of the shallow model, relative difference: {differences}.")
    remarks += [f"- Failed: {title}: {reason}." for title, reason in figures.get("failed", {}).items()]
    return "\n".join(remarks)


if __name__ == "__main__":
    main()
