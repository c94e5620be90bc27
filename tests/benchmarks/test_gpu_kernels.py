"""The kernels' benchmark on a GPU: its table, and that the documentation has it."""

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.gpu_kernels import cases, main, markdown

ROOT = Path(__file__).parents[2]
RESULTS = {
    gpu: [ROOT / "benchmarks" / "results" / f"{gpu}-{name}.json" for name in ("kernels", "kernels-again")]
    for gpu in ("h100", "h200")
}


def test_of_two_runs_the_last_one_counts(tmp_path):
    files = []
    for number, fused in enumerate((100.0, 300.0)):
        rows = [
            {"case": "a", "pass": which, "fused": fused, "copy": 600.0, **({"torch": 50.0} if number == 0 else {})}
            for which in ("forward", "forward_backward")
        ]
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps({"GB/s": rows}))
    assert markdown(files).splitlines()[2:] == ["| `a` | 300 | 50% | 6.0x | - | 300 | 50% | 6.0x | - |"]


@pytest.mark.parametrize("gpu", RESULTS)
def test_the_documentation_has_the_table_of_the_results(gpu, capsys):
    main(["--markdown", *map(str, RESULTS[gpu])])
    assert capsys.readouterr().out in (ROOT / "docs" / "cuda_measured.md").read_text()


def test_the_results_are_of_cases_that_there_are():
    names = {case.name for case in cases()}
    for path in itertools.chain(*RESULTS.values()):
        assert {row["case"] for row in json.loads(path.read_text())["GB/s"]} <= names
