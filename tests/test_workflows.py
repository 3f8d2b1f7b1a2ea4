"""What continuous integration may do: actions are pinned by hash, rights are the least, nothing from a request reaches a shell."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
WORKFLOWS = {name: yaml.safe_load(path.read_text()) for name, path in FILES.items()}
JOBS = [(name, job, WORKFLOWS[name]["jobs"][job]) for name in WORKFLOWS for job in WORKFLOWS[name]["jobs"]]
RIGHTS = {("book", "publish"): {"pages", "id-token"}, ("weekly", "book"): {"pages", "id-token"}, ("weekly", "report"): {"issues"},
          ("release", "publish"): {"id-token"}, ("release", "announce"): {"contents"}}  # fmt: skip


def steps(job):
    return job.get("steps", [])


def test_actions_are_pinned_by_hash_and_their_version_stands_beside_it():
    used = [line.strip() for path in FILES.values() for line in path.read_text().splitlines() if re.search(r"\buses:", line)]
    outside = [line for line in used if "uses: ./" not in line]
    assert [line for line in outside if not re.search(r"uses: [\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)] == []
    pins = {tuple(re.search(r"uses: ([\w-]+/[\w-]+)\S*@(\S+)", line).groups()) for line in outside}
    assert len({action for action, _ in pins}) == len(pins) > 5  # one version of each


@pytest.mark.parametrize(("name", "job", "content"), JOBS, ids=lambda v: v if isinstance(v, str) else "")
def test_rights_are_the_least_and_every_job_ends(name, job, content):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    writing = {right for right, level in content.get("permissions", {}).items() if level == "write"}
    assert writing == RIGHTS.get((name, job), set())
    assert "uses" in content or content["timeout-minutes"] <= 180
    for step in steps(content):
        if "actions/checkout@" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        if "actions/setup-python@" in step.get("uses", ""):
            assert step["with"].get("cache") == (None if (name, job) in (("release", "build"), ("release", "try")) else "pip")
        # Only what these files say themselves is put into a command.
        assert set(re.findall(r"\$\{\{ *([\w.-]+)", step.get("run", ""))) <= {"matrix.install", "matrix.tests"}
    assert "secrets" not in str(content)


def test_a_pipe_fails_where_its_first_command_does_and_an_upload_of_nothing_fails():
    assert [content["defaults"] for content in WORKFLOWS.values()] == [{"run": {"shell": "bash"}}] * 3  # with pipefail
    every = [step for _, _, job in JOBS for step in steps(job)]
    assert not any("shell" in step or "defaults" in job for step in every for _, _, job in JOBS)
    uploads = [step for step in every if "actions/upload-artifact@" in step.get("uses", "")]
    assert len(uploads) >= 3 and [step["with"] for step in uploads if step["with"].get("if-no-files-found") != "error"] == []


def test_a_folder_of_data_that_a_job_names_is_made_first():
    named = [(job["env"]["AMAML_DATA"], steps(job)) for _, _, job in JOBS if "AMAML_DATA" in job.get("env", {})]
    for folder, found in named:
        ran = [step["run"] for step in found if "run" in step]
        assert ran[0] == f"mkdir {folder}", ran
    assert len(named) == 1


def test_pages_figures_and_releases_are_never_cut_off():
    assert WORKFLOWS["book"]["concurrency"]["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"
    groups = [WORKFLOWS["book"]["jobs"]["publish"], WORKFLOWS["weekly"]["jobs"]["figures"], WORKFLOWS["release"]]
    assert [group["concurrency"]["cancel-in-progress"] for group in groups] == [False] * 3
    assert len({group["concurrency"]["group"] for group in groups}) == 3


def test_the_pages_that_are_published_are_those_that_were_checked():
    test, publish = (WORKFLOWS["book"]["jobs"][job] for job in ("test", "publish"))
    ran = [step.get("run") or step["uses"].partition("@")[0] for step in steps(test)]
    assert ran.index("make pages") < ran.index("actions/upload-pages-artifact") == len(ran) - 1
    assert [step["uses"].partition("@")[0] for step in steps(publish)] == ["actions/deploy-pages"] and "test" in publish["needs"]


def test_commands_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    called = {word for _, _, job in JOBS for step in steps(job) for word in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert {"book", "test", "test-all", "pages", "links", "figures", "test-faults", "test-twice"} <= called <= targets


def test_what_is_released_is_made_by_files_of_known_hashes_and_of_nothing_that_a_cache_holds():
    for job in ("build", "try"):
        found = steps(WORKFLOWS["release"]["jobs"][job])
        assert "cache" not in str(found)
        assert [step["run"] for step in found if "pip install" in step.get("run", "")] == [
            "python -m pip install --require-hashes --no-deps -r requirements.hashes"
        ]
    ran = [step.get("run") or step["uses"].partition("@")[0] for step in steps(WORKFLOWS["release"]["jobs"]["build"])]
    assert ran[-2:] == ['python -m tools.dist "$GITHUB_REF_NAME"', "actions/upload-artifact"]


def test_a_wheel_is_tried_on_every_python_that_is_promised_before_it_is_published():
    jobs = WORKFLOWS["release"]["jobs"]
    ran = [step.get("run") or step["uses"].partition("@")[0] for step in steps(jobs["try"])]
    assert ran[-2:] == ["actions/download-artifact", "python -m tools.dist try"] and jobs["try"]["needs"] == "build"
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    pythons = [found[1] for text in promised if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text))]
    assert jobs["try"]["strategy"]["matrix"]["python"] == pythons
    assert ["${{ matrix.python }}"] == [
        s["with"]["python-version"] for s in steps(jobs["try"]) if "setup-python@" in s.get("uses", "")
    ]
    assert jobs["publish"]["needs"] == ["test", "try"] and jobs["announce"]["needs"] == "publish"


def test_data_that_could_be_had_are_kept_and_every_job_that_reads_them_has_them():
    latest = "data-${{ hashFiles('data_scripts/*.py') }}-"
    run = latest + "${{ github.run_id }}-${{ github.run_attempt }}"  # a kept cache is never overwritten: its name is new each time
    reading = re.compile(r"make (data|book|test|refresh)\b")
    for name, job, content in JOBS:
        restored = [step["with"] for step in steps(content) if "actions/cache/restore@" in step.get("uses", "")]
        reads = any(reading.search(step.get("run", "")) for step in steps(content))
        assert restored == [{"path": "data", "key": run, "restore-keys": latest}] * reads, (name, job)
        saved = [step for step in steps(content) if "actions/cache/save@" in step.get("uses", "")]
        assert len(saved) == ((name, job) == ("book", "data"))
        for step in saved:  # whatever there is, unless it is no more than what was kept before
            assert step["with"] == {"path": "data", "key": run}
            assert step["if"] == "always() && steps.made.outputs.sets > steps.kept.outputs.sets"
    assert "data" in WORKFLOWS["book"]["jobs"]["test"]["needs"]
    # Where `book` has asked the hosts, no other job of the week asks first, and its failing tests stop none.
    for job in ("figures", "faults"):
        content = WORKFLOWS["weekly"]["jobs"][job]
        assert content["needs"] == "book" and content["if"] == "${{ !cancelled() }}"
    assert "make data" not in [step.get("run") for step in steps(WORKFLOWS["weekly"]["jobs"]["figures"])]


def test_a_week_with_a_job_that_fails_or_runs_out_of_time_is_reported():
    jobs = WORKFLOWS["weekly"]["jobs"]
    assert set(jobs["report"]["needs"]) == set(jobs) - {"report"}
    condition = "always() && github.event_name == 'schedule' && (contains(needs.*.result, '{}') || contains(needs.*.result, '{}'))"
    assert jobs["report"]["if"] == condition.format("failure", "cancelled")


def test_a_week_tries_the_faults_and_everything_twice_even_if_one_of_them_fails():
    ran = {step["run"]: step.get("if") for step in steps(WORKFLOWS["weekly"]["jobs"]["faults"]) if "run" in step}
    assert ran == {"make test-faults": None, "make test-twice": "${{ !cancelled() }}"}


def test_one_leg_installs_the_files_whose_hashes_are_known_before_torch():
    (leg,) = (
        leg for leg in WORKFLOWS["book"]["jobs"]["versions"]["strategy"]["matrix"]["include"] if "require-hashes" in leg["install"]
    )
    assert leg["install"].splitlines()[:2] == [
        "python -m pip install --require-hashes --no-deps -r requirements.hashes",
        "python -m pip install -r requirements.lock",
    ]


@pytest.mark.parametrize("shuffle", ["", "1"])
def test_all_parts_are_all_tests_once_and_what_tests_start_knows_of_no_part(monkeypatch, shuffle):
    left = []
    config = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: left.extend(items)))
    tests = [SimpleNamespace(nodeid=f"test_{n % 3}.py::test_{n}", path=Path(f"test_{n % 3}.py")) for n in range(50)]
    taken = []
    for part in ("0/3", "1/3", "2/3"):
        monkeypatch.setenv("AMAML_PART", part)
        monkeypatch.setenv("AMAML_SHUFFLE", shuffle)
        items = [*tests]
        conftest.pytest_collection_modifyitems(config, items)
        assert not {"AMAML_PART", "AMAML_SHUFFLE"} & set(os.environ)
        assert 10 < len(items) < 40
        taken += items
    assert sorted(test.nodeid for test in taken) == sorted(test.nodeid for test in tests) and len(left) == 100


def test_a_test_that_hangs_fails_by_its_name_and_the_others_run(tmp_path):
    """Even one that waits in C and holds the interpreter's lock, where no signal and no other thread is heard."""
    (tmp_path / "test_both.py").write_text(
        "import ctypes\n\n\ndef test_hangs():\n    ctypes.PyDLL(None).pause()\n\n\ndef test_other():\n    pass\n"
    )
    settings = ["-c", str(ROOT / "pyproject.toml"), "-o", "faulthandler_timeout=1", "-p", "no:cacheprovider", "-n", "1"]
    done = subprocess.run([sys.executable, "-m", "pytest", *settings, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout
    assert re.search(r"crashed while running '.*test_both.py::test_hangs'", done.stdout)
    assert "in test_hangs" in done.stderr + done.stdout
