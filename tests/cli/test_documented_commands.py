"""Every command that README and docs show is run: here, in the order of the pages, or by a test that is named.

The folder that they are typed in has configs of the shipped names, with small numbers. A command that nothing runs
has to be listed with the reason.
"""

# ruff: noqa: E501 -- commands stand in one line, as they are shown

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import typer

from cxr_hvd.cli.app import app as cxr_hvd
from lab.launch import BIN, PROJECT, environment, need_horovod
from preprocess.cli import app as cxr_preprocess
from tests.helpers.documented import documented_commands, documents

SMALL = """\
experiment: D
seed: 1
sites:
  chexpert: {ranks: 1, data: chexpert.h5}
  mimic:    {ranks: 1, data: mimic.h5}
labels:   {uncertain: zeros, blank: zeros}
model:    {name: tiny, image_size: 32}
training: {max_steps: 4, batch_size: 4, precision: fp32}
"""
# What is shown for the size of the real thing, and what stands for it here.
FOR_SHORT = {
    "/data/": "data/",
    "--train 20000 --test 10000": "--train 32 --test 16",
    "--seeds 5": "--seeds 1",
    "mpirun -np 8": "mpirun --bind-to none -np 2",
}
HERE = (
    "cxr-preprocess chexpert /data/chexpert --out chexpert.h5 --site chexpert --train 20000 --test 10000",
    "cxr-preprocess mimic-cxr /data/mimic-cxr --out mimic.h5 --site mimic --train 20000 --test 10000",
    "cxr-preprocess inspect chexpert.h5 mimic.h5",
    "cxr-hvd plan jobs/configs/D.yaml",
    "cxr-hvd train jobs/configs/D.yaml --run runs/D",
    "cxr-hvd evaluate runs/D",
    "cxr-hvd predict runs/D mimic.h5 --site chexpert --out answers.csv",
    "cxr-hvd export runs/D --site chexpert --with-private --to exported/chexpert",
    "cxr-hvd explain runs/D mimic.h5 --site mimic --label Pneumonia --studies 2 --out maps",
    "cxr-hvd predict runs/D scans/ --site mimic --out folder.csv",
    "cxr-hvd predict runs/D scans/*.png --site ensemble --out films.jsonl",
    "cxr-hvd predict runs/D scans/ --site averaged --table studies.csv --out table.csv",
    "mpirun -np 8 cxr-preprocess images scans/ --out scans.h5",
    "cxr-hvd predict runs/D scans.h5 --site mimic --out many.csv",
    "cxr-hvd experiment A B C D --seeds 5 --config jobs/configs/paper.yaml --out runs/paper",
    "cxr-hvd report runs/paper",
    "mpirun --bind-to none -np 2 cxr-hvd train jobs/configs/D.yaml --run runs/D --resume auto --time-limit 12:00:00",
    "cxr-hvd train jobs/configs/D.yaml --run runs/D --supervise 5",
    "cxr-hvd inspect-run runs/D --out curves.png",
    "mpirun --bind-to none -np 1 -x CXR_SITE=chexpert cxr-hvd train D.yaml : -np 1 -x CXR_SITE=mimic cxr-hvd train D.yaml",
    "cxr-hvd ledger verify runs/D",
    "cxr-hvd jobs machines",
    "cxr-hvd jobs render --machine slurm --set account=abc123 --set walltime=04:00:00 --out train.sh",
    "cxr-hvd jobs render preprocess --machine slurm --set nodes=2 --set root=/data/chexpert --out preprocess.sh",
    "cxr-hvd jobs render experiment --machine slurm --set 'names=C D' --set seeds=3 --out experiment.sh",
    "cxr-hvd jobs render --machine ssh --config D.yaml --set binding=applications --set 'hosts=chexpert=hospital-a mimic=hospital-b' --set 'options=--set sharing.every=8' --out between.sh",
    "cxr-hvd plan D.yaml --scale 2x1 --link-ms 20 --link-mbit 100",
    "cxr-hvd experiment A B C D --seeds 5 --config jobs/configs/paper.yaml --out runs/paper --dry-run",
    "cxr-hvd experiment A B C D --seeds 5 --config jobs/configs/paper.yaml --out runs/paper --time-limit 12:00:00",
)
IMAGE, SLURM, EXAMPLES = "lab/test_image.py", "lab/test_slurm.py", "examples/test_examples.py"
ACROSS = "cli/test_across.py"
HOSTS, LOOKS = "lab/test_two_hosts.py", "cli/test_operating.py"
BY_MPIRUN = "mpirun --bind-to none --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include wg0 --mca oob_tcp_if_include wg0"
ELSEWHERE = {
    "mpirun --bind-to none -np 2 cxr-hvd evaluate runs/C runs/D --across-sites": f"{ACROSS}::test_hospitals_judge_a_run_and_see_the_same",
    "cxr-hvd report runs/C runs/D": f"{ACROSS}::test_hospitals_judge_a_run_and_see_the_same",
    "horovodrun -np 2 python examples/plain_pytorch.py a.h5 b.h5": f"{EXAMPLES}::test_an_own_loop_shares_the_middle_of_its_network",
    "horovodrun -np 2 python examples/digits_two_sites.py": f"{EXAMPLES}::test_two_sites_read_more_digits_together_than_alone",
    "cxr-hvd onboard runs/D --data third.h5 --run runs/third --steps 200": "cli/test_onboard.py::test_it_goes_on_and_prints_the_same_as_json",
    "mpirun --bind-to none -np 1 cxr-hvd train three.yaml --set model.weights=runs/D/chexpert : -np 1 cxr-hvd train three.yaml --set "
    "model.weights=runs/third : -np 1 cxr-hvd train three.yaml --set model.weights=runs/D/mimic": "cli/test_onboard.py::test_it_joins_a_run_from_its_own_network",
    "cxr-hvd doctor": "unit/doctor/test_doctor.py::test_healthy_machine_has_no_failure",
    "make demo": f"{IMAGE}::test_the_demo_trains_on_two_ranks_inside",
    "cxr-hvd jobs submit train.sh": f"{SLURM}::test_a_job_whose_walltime_ends_queues_itself_again",
    "cxr-hvd inspect-run runs/train": f"{LOOKS}::test_a_profile_says_where_the_time_went",
    "horovodrun -np 2 -H hospital-a:1,hospital-b:1 cxr-hvd train D.yaml": f"{HOSTS}::test_two_hosts_train_to_the_weights",
    f"{BY_MPIRUN} -np 1 -host hospital-a -x PATH -x CXR_SITE=chexpert cxr-hvd train D.yaml : "
    "-np 1 -host hospital-b -x PATH -x CXR_SITE=mimic cxr-hvd train D.yaml": f"{HOSTS}::test_a_tunnel_hides_the_weights",
    "cxr-hvd train jobs/configs/D.yaml --set model.weights=weights/densenet121-a639ec97.pth": (
        "cli/test_weights.py::test_torchvisions_densenet121_starts_a_run"
    ),
    "cxr-hvd doctor --peer hospital-b": f"{HOSTS}::test_the_doctor_examines_the_line_by_ssh",
    "cxr-hvd doctor --peer hospital-b --interface wg0 --config D.yaml --compute-s 0.26": f"{HOSTS}::test_the_doctor_examines_the_line_by_ssh",
    "tools/gpu.sh --dry-run --out dry.json": "cli/test_gpu.py::test_the_dry_run_lists_ten_checks_and_has_all_figures",
    "docker build -t cxr_hvd .": f"{IMAGE}::test_without_a_command_it_shows_help",
    "docker run --rm cxr_hvd": f"{IMAGE}::test_without_a_command_it_shows_help",
    "docker run --rm --shm-size=1g cxr_hvd jobs/demo.sh": f"{IMAGE}::test_the_demo_trains_on_two_ranks_inside",
    "docker compose run --rm site-a": f"{IMAGE}::test_two_institutions_train_from_two_containers_with_two_disks",
}
NO_GPU = "tests have no GPU and no machine without a network: test_gpu.py runs both stages dry, and fills a folder at night"
NO_ENGINE = "there is no Docker engine: images are built by buildah and started by podman (docs/containers.md)"
NO_APPTAINER = "Debian has no Apptainer (docs/containers.md says what was tried instead)"
OWN_TUNNEL = "test_two_hosts.py sets up such a tunnel with keys of its own, and leaves /etc alone"
INSIDE = 'docker run --rm --shm-size=1g -v "$PWD/runs:/data"'
NOT_RUN = {
    "make test": "it is what runs this",
    "make demo DATA=path/to/images": "test_main_job.py trains on real X-rays with the same config, where they are",
    "git clone https://example.org/cxr_hvd && cd cxr_hvd && tools/install.sh": "it has run before this can",
    "tools/install.sh --without-mpi": "it compiles Horovod for minutes; test_install.py tries its parts",
    "umask 077; wg genkey > /etc/wireguard/key; wg pubkey < /etc/wireguard/key": OWN_TUNNEL,
    "wg-quick up wg0; ping -c 1 10.79.0.2": OWN_TUNNEL,
    "apt-get install wireguard-tools": "test_two_hosts.py installs it where it may",
    "horovodrun --gloo --network-interfaces wg0 -np 2 -H hospital-a:1,hospital-b:1 cxr-hvd train D.yaml": "through the "
    "tunnel by mpirun alone; by Gloo without a tunnel, in test_two_hosts.py",
    f"{INSIDE} -v /srv/chexpert:/images:ro cxr_hvd cxr-preprocess chexpert /images --out /data/chexpert.h5 "
    "--site chexpert": NO_ENGINE,
    f"{INSIDE} cxr_hvd horovodrun -np 2 cxr-hvd train /data/D.yaml --run runs/D": NO_ENGINE,
    "ssh cluster sha256sum weights/densenet121-a639ec97.pth": "tests have no second machine and download nothing",
    "tools/gpu_bundle.sh bundle --python 3.12 --torch 2.11": NO_GPU,
    "make gpu BUNDLE=bundle OUT=gpu.json STAGE=build": NO_GPU,
    "make gpu BUNDLE=bundle OUT=gpu.json STAGE=measure": NO_GPU,
    "docker compose build": NO_ENGINE,
    "docker compose down --volumes": NO_ENGINE,
    "docker build -t cxr_hvd:cuda --build-arg DEVICE=cuda --build-arg TORCH_BACKEND=cu130 --build-arg "
    "BUILD_BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04 --build-arg BASE=ubuntu:24.04 .": NO_ENGINE,
    "docker run --rm --gpus all --shm-size=1g cxr_hvd:cuda cxr-hvd doctor": NO_ENGINE,
    "docker save cxr_hvd -o cxr_hvd.tar && apptainer build cxr_hvd.sif apptainer.def": NO_APPTAINER,
    'apptainer exec --bind "$PWD/runs:/data" cxr_hvd.sif mpirun --bind-to none -np 2 cxr-hvd train D.yaml --run runs/D': NO_APPTAINER,
    'srun --mpi=pmix -n 2 apptainer exec --bind "$PWD/runs:/data" cxr_hvd.sif cxr-hvd train D.yaml --run runs/D': (
        NO_APPTAINER
    ),
}
# Each starts a run of its own in the same folder.
STARTS_ANEW = "mpirun --bind-to none -np 1 -x CXR_SITE"


def place(folder: Path) -> dict[str, str]:
    """Make the folder that commands are typed in; return their environment."""
    for name in ("jobs/configs/D.yaml", "jobs/configs/paper.yaml", "D.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SMALL)
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return environment(OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_mpi_yield_when_idle="1", **as_root)


def place_scans(folder: Path) -> None:
    """Make `scans/`, a folder of studies and of films, and a table of some of them."""
    for patient in sorted((folder / "data/chexpert").glob("*/train/patient*"))[:3]:
        shutil.copytree(patient, folder / "scans" / patient.name)
    for number, image in enumerate(sorted((folder / "scans").rglob("*.jpg"))[:2]):
        shutil.copy(image, folder / "scans" / f"{number}.png")  # what it is, its first bytes say
    (folder / "studies.csv").write_text("path,study\n0.png,exam 1\n1.png,exam 2\n")


def type_in(command: str, folder: Path, env: dict[str, str], limit_s: float = 300) -> None:
    """Run a command by a shell, as a user does; fail with what it said where it fails."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_is_shown_runs_as_it_is_shown(tmp_path: Path) -> None:
    need_horovod()
    env = place(tmp_path)
    for layout in ("chexpert", "mimic-cxr"):
        phantom = [
            "cxr-preprocess",
            "phantom",
            f"data/{layout}",
            "--layout",
            layout,
            "--studies",
            "64",
            "--seed",
            "1",
        ]
        type_in(shlex.join(phantom), tmp_path, env)
    place_scans(tmp_path)
    for command in HERE:
        typed = command
        if command.startswith(STARTS_ANEW):
            shutil.rmtree(tmp_path / "runs" / "D")
        for shown, small in FOR_SHORT.items():
            typed = typed.replace(shown, small)
        type_in(typed, tmp_path, env)
    assert (tmp_path / "runs/paper/report.html").is_file() and (tmp_path / "curves.png").is_file()


def test_every_command_that_is_shown_is_run_by_a_test_or_listed_with_a_reason() -> None:
    shown = {command.text for command in documented_commands()}
    assert shown == {*HERE, *ELSEWHERE, *NOT_RUN}


def test_the_tests_that_are_named_exist() -> None:
    for named in ELSEWHERE.values():
        file, _, function = named.partition("::")
        assert f"def {function}" in (PROJECT / "tests" / file).read_text(), named


def spans() -> Iterable[str]:
    """Give what stands in code within a line of text and begins with one of our commands."""
    for path in documents():
        for span in re.findall(r"`((?:cxr-hvd|cxr-preprocess) [^`]+)`", path.read_text(encoding="utf-8")):
            yield " ".join(span.split())


@pytest.mark.parametrize("span", sorted({*spans(), *(command for command in HERE if command.startswith("cxr"))}))
def test_verbs_and_options_that_are_named_exist(span: str) -> None:
    name, *rest = span.split()
    command: Any = typer.main.get_command(cxr_hvd if name == "cxr-hvd" else cxr_preprocess)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    verbs = getattr(command, "commands", {})
    assert not verbs or not rest or rest[0] in ("...", *verbs) or rest[0].startswith("-"), f"no verb {rest[0]}"
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    options = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert (verbs and rest[:1] == ["..."]) or options <= known, f"no option {options - known}"


def test_the_shell_finds_our_commands() -> None:
    assert os.access(BIN / "cxr-hvd", os.X_OK) and os.access(BIN / "cxr-preprocess", os.X_OK)
