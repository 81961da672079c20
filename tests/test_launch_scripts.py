"""The shell scripts of launch/: what --dry_run prints, and what they do with stand-ins for gcloud, srun and others."""

import contextlib
import json
import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMMAND = [
    "launch.train",
    "--config=configs/paper.py:ijepa_in1k_h14",
    "--config.image.scale=(0.3, 1)",
    "--x=it's $HOME",
]
AUTO = "--distributed=auto"
PROGRAMS = ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "git", "rm")


@pytest.fixture
def machine(tmp_path):
    """A folder `bin` of programs that only record their arguments, first on the path; `home` and a log `calls`."""
    for folder in ("bin", "home/tc_jepa/.venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in PROGRAMS:
        program(
            tmp_path / "bin" / name, f'[ "$1" = diff ] || echo "{name} $*" >> {tmp_path}/calls'
        )  # git diff only reads
    return tmp_path


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def environment(machine: Path) -> dict[str, str]:
    own = {"PATH": f"{machine / 'bin'}:{os.environ['PATH']}", "HOME": str(machine / "home")}
    return {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "PYTHON")} | own


def script(machine: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    call = [ROOT / "launch" / f"{name}.sh", *arguments]
    return subprocess.run(call, env=environment(machine), capture_output=True, text=True, timeout=60)


def printed(machine: Path, name: str, *arguments: str) -> list[str]:
    """The words of all that --dry_run prints, which must run nothing."""
    done = script(machine, name, "--dry_run", *arguments)
    assert done.returncode == 0, done.stderr
    assert not (machine / "calls").exists()
    return shlex.split(done.stdout)


def test_the_command_reaches_every_worker_of_a_slice_as_it_was_given(machine):
    python = f"import json, os, sys; json.dump([os.environ['JAX_PLATFORMS'], *sys.argv], open('{machine}/got', 'w'))"
    program(machine / "home/tc_jepa/.venv/bin/python", f'exec {sys.executable} -c "{python}" "$@"')
    program(machine / "bin/gcloud", 'last=${@: -1:1}; cd; exec bash -c "${last#--command=}"')
    run = ["run", "v5p", "--zone=z", "--project=p", "--", *COMMAND]
    words = printed(machine, "tpu_vm", *run)
    assert words[:-1] == ["gcloud", *"compute tpus tpu-vm ssh v5p --worker=all --zone=z --project=p".split()]
    assert script(machine, "tpu_vm", *run).returncode == 0
    while not (machine / "got").exists() or not (machine / "got").read_text():
        time.sleep(0.02)
    assert json.loads((machine / "got").read_text()) == ["tpu,cpu", "-c", "-m", *COMMAND, AUTO]


def test_a_second_command_on_a_slice_is_refused_and_stop_ends_the_first(machine):
    program(machine / "home/tc_jepa/.venv/bin/python", "exec sleep 30")
    program(machine / "bin/gcloud", 'last=${@: -1:1}; cd; exec bash -c "${last#--command=}"')
    assert script(machine, "tpu_vm", "run", "v5p", "--zone=z", "--", *COMMAND).returncode == 0
    pid = int((machine / "home/tc_jepa/run.pid").read_text())
    second = script(machine, "tpu_vm", "run", "v5p", "--zone=z", "--", *COMMAND)
    assert second.returncode == 1 and int((machine / "home/tc_jepa/run.pid").read_text()) == pid
    assert script(machine, "tpu_vm", "stop", "v5p", "--zone=z").returncode == 0
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("action", "start"),
    [
        ("create", "tpu-vm create v5p --spot"),
        ("queue", "queued-resources create v5p --node-id=v5p --spot"),
        ("status", "tpu-vm describe v5p --spot"),
        ("logs", "tpu-vm ssh v5p --worker=all --spot"),
        ("stop", "tpu-vm ssh v5p --worker=all --spot"),
        ("delete", "tpu-vm delete v5p --spot"),
        ("delete_queued", "queued-resources delete v5p --force --spot"),
    ],
)
def test_flags_of_gcloud_are_passed_on(machine, action, start):
    assert " ".join(printed(machine, "tpu_vm", action, "v5p", "--spot")).startswith(f"gcloud compute tpus {start}")


def test_setup_copies_the_commit_and_installs_it(machine):
    done = script(machine, "tpu_vm", "setup", "v5p", "--zone=z")
    assert done.returncode == 0
    calls = (machine / "calls").read_text()
    parts = [
        "git archive",
        "gcloud compute tpus tpu-vm scp",
        "v5p:tc_jepa.tar.gz",
        "--command=set -e",
        "jax[tpu]",
        "rm ",
    ]
    assert sorted(parts, key=calls.index) == parts


@pytest.mark.parametrize("gpus", ["8", "h100:8"])
def test_slurm_starts_a_process_for_each_gpu(machine, gpus):
    words = printed(machine, "slurm", "--nodes=4", f"--gpus-per-node={gpus}", "--partition=a", "--", *COMMAND)
    assert words[-len(COMMAND) - 2 :] == ["launch/slurm_job.sh", *COMMAND, AUTO]
    flags = {"--ntasks-per-node=8", "--nodes=4", f"--gpus-per-node={gpus}", "--partition=a", "--requeue"}
    assert words[0] == "sbatch" and flags | {"--signal=B:USR1@300"} <= set(words)


@pytest.mark.parametrize(
    ("sent", "answer", "requeued"),
    [
        (signal.SIGUSR1, 143, True),  # the limit is near: saved
        (signal.SIGUSR1, 0, False),  # the limit is near, and the last step was done
        (signal.SIGTERM, 143, False),  # scancel
        (None, 1, False),  # an error
    ],
)
def test_a_slurm_job_is_queued_again_at_its_limit_only(machine, sent, answer, requeued):
    wait = f"trap 'exit {answer}' TERM; touch {machine}/ready; while :; do sleep 0.02; done"
    program(machine / "bin/srun", f'echo "$@" > {machine}/got; ' + (wait if sent else f"exit {answer}"))
    job = subprocess.Popen(
        [ROOT / "launch/slurm_job.sh", *COMMAND],
        env=environment(machine) | {"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "12"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        if sent:
            while not (machine / "ready").exists():
                assert job.poll() is None
                time.sleep(0.02)
            job.send_signal(sent)
        assert job.wait(timeout=60) == answer
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert "--cpus-per-task=12" in (machine / "got").read_text()
    calls = (machine / "calls").read_text() if (machine / "calls").exists() else ""
    assert ("scontrol requeue 17" in calls) == requeued


def test_a_gpu_node_runs_one_process_on_the_gpus_given(machine):
    words = printed(machine, "gpu_node", "--gpus=0,3", "--", *COMMAND)
    assert words == [*"exec env JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES=0,3 .venv/bin/python -m".split(), *COMMAND]


GKE = ("run", "jepa", "--image=hub/jepa:1", "--accelerator=tpu-v5p-slice", "--topology=2x2x4", "--namespace=n")


@pytest.mark.parametrize("bucket", [None, "photos"])
def test_gke_starts_a_pod_for_each_host(machine, bucket):
    command = [*COMMAND, '--y="a\\b" $(HOME)']
    call = [*GKE, *([f"--bucket=gs://{bucket}"] if bucket else []), "--dry_run", "--", *command]
    done = script(machine, "gke", *call)
    manifest, _, last = done.stdout.strip().rpartition("\n")
    assert shlex.split(last) == ["kubectl", "apply", "--namespace=n", "--filename=-"]
    program(machine / "bin/kubectl", f"cat > {machine}/got")
    assert script(machine, "gke", *(word for word in call if word != "--dry_run")).returncode == 0
    assert (machine / "got").read_text().strip() == manifest
    (job,) = yaml.safe_load(manifest)["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 4
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    found = [word.replace("$$(", "$(") for word in container["command"]]  # as Kubernetes does
    assert found == ["python", "-m", *command, AUTO]
    assert container["resources"]["limits"] == {"google.com/tpu": 4} and container["image"] == "hub/jepa:1"
    assert ("volumes" in pod) == bool(bucket)
    if bucket:
        assert container["volumeMounts"][0]["mountPath"] == "/photos"
        assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "photos"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tpu_vm", ["run"]),
        ("tpu_vm", ["run", "--zone=z", "--", *COMMAND]),
        ("tpu_vm", ["run", "v5p", "--zone=z"]),
        ("tpu_vm", ["destroy", "v5p"]),
        ("tpu_vm", ["mount", "v5p", "--zone=z"]),
        ("slurm", ["--gpus-per-node=8"]),
        ("slurm", ["--nodes=2", "--", *COMMAND]),
        ("gpu_node", ["--gpu=1", "--", *COMMAND]),
        ("gpu_node", []),
        ("gke", ["run", "jepa", "--image=i", "--", *COMMAND]),
        ("gke", [*GKE, "--chips=3", "--", *COMMAND]),
        ("gke", [*GKE, "--topology=big", "--", *COMMAND]),
    ],
)
def test_what_is_missing_is_said_in_one_line(machine, name, arguments):
    done = script(machine, name, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (machine / "calls").exists() and not done.stdout


def test_how_processes_find_each_other_can_be_given(machine):
    given = "--distributed=10.0.0.1:1234,0,2"
    words = printed(machine, "slurm", "--gpus-per-node=1", "--", *COMMAND, given)
    assert words[-1] == given and AUTO not in words


def test_help_and_readme_give_commands_that_run(machine):
    scripts = sorted(path.stem for path in (ROOT / "launch").glob("*.sh") if path.stem not in ("shell", "slurm_job"))
    readme = (ROOT / "launch" / "README.md").read_text()
    for name in scripts:
        text = script(machine, name, "--help").stdout
        given = re.findall(rf"^ *(launch/{name}\.sh .*)$", (text + readme).replace("\\\n", ""), flags=re.M)
        assert given and f"launch/{name}.sh" in readme
        for line in given:
            words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)[1:]
            assert printed(machine, name, *words)
