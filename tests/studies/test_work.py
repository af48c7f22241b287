import json
import os
import time
from pathlib import Path

import psutil
import pytest
from launching import Launched
from tiny import OPTIONS, stored
from worked_on import count

from thalweg.records import files as records
from thalweg.studies.measured import paging
from thalweg.studies.measurements import work
from thalweg.studies.pages import settings as kept


def wanted(tmp_path, numbers):
    return [{"n": n, "marks": str(tmp_path / "marks")} for n in numbers]


def marks(tmp_path):
    return sorted(map(int, (tmp_path / "marks").read_text().split()))


def ignore(text):
    pass


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_setting_is_worked_on_once_and_never_again(tmp_path, jobs):
    work.carry_out(wanted(tmp_path, [1, 2, 3]), count, tmp_path, ignore, jobs=jobs)
    assert marks(tmp_path) == [1, 2, 3]
    work.carry_out(wanted(tmp_path, [3, 4]), count, tmp_path, ignore, jobs=jobs)
    assert marks(tmp_path) == [1, 2, 3, 4]
    assert [one.found for one in kept.finished(tmp_path)] == [{"square": 9}, {"square": 16}]
    assert records.read_json(tmp_path / "plan.json")["environment"] == records.environment()


def test_a_damaged_record_is_made_anew(tmp_path):
    settings = wanted(tmp_path, [5])
    work.carry_out(settings, count, tmp_path, ignore, jobs=1)
    (tmp_path / "records" / f"{kept.name_of(settings[0])}.json").write_text('{"settings": {')
    with pytest.raises(ValueError, match="0 of its 1 settings are done; run the same command again"):
        kept.finished(tmp_path)
    work.carry_out(settings, count, tmp_path, ignore, jobs=1)
    assert marks(tmp_path) == [5, 5]
    assert kept.finished(tmp_path)[0].found == {"square": 25}


def test_other_settings_are_other_records():
    one = {"base": "gd", "alpha": -5.0, "lr": 0.1}
    names = {
        kept.name_of(settings) for settings in (one, {**one, "lr": 0.2}, {**one, "grid": [1]}, {**one, "alpha": 5.0})
    }
    assert len(names) == 4


SCRIPT = """
import sys
from pathlib import Path
from worked_on import slow
from thalweg.studies.measurements import work
if __name__ == "__main__":
    work.carry_out([{"n": n} for n in range(3)], slow, Path(sys.argv[1]), print, jobs=2)
"""


def test_a_kill_loses_nothing_that_is_finished_and_leaves_no_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with open(os.devnull, "r+") as nothing:  # noqa: PTH123
        process = Launched([str(script), str(tmp_path)], [nothing.fileno()] * 3, environment, alone=True)
    try:
        for _ in range(600):
            if len(list(tmp_path.glob("records/*.json"))) == 2:
                break
            time.sleep(0.1)
    finally:
        workers = psutil.Process(process.pid).children(recursive=True)
        process.process.kill()
        process.wait()
    assert len(workers) > 2
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert sorted(one["found"]["square"] for one in stored(tmp_path).values()) == [0, 1]
    with pytest.raises(ValueError, match="2 of its 3 settings are done"):
        kept.finished(tmp_path)


@pytest.mark.parametrize("module", OPTIONS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_measurement_resumes_without_computing_again(module, tmp_path, monkeypatch):
    page = paging(module.__name__.rpartition(".")[2]).page
    work.run(module, OPTIONS[module], tmp_path, ignore)
    before = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    last = sorted(before)[-1]
    last.unlink()  # as if it had been killed then
    with pytest.raises(ValueError, match="settings are done"):
        page(tmp_path)
    done = []
    timed = work._timed
    monkeypatch.setattr(work, "_timed", lambda does, settings: done.append(settings) or timed(does, settings))
    work.run(module, OPTIONS[module], tmp_path, ignore)
    assert len(done) == 1
    after = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    assert after.keys() == before.keys()
    assert json.loads(after.pop(last))["found"] == json.loads(before.pop(last))["found"]
    assert after == before
    section = page(tmp_path)
    assert section.grids
    assert section.findings
    for picture in section.pictures:
        assert 0 < picture.path.stat().st_size < 300_000
