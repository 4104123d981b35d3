"""The Kubernetes profile: planned jobs, pod specifications, and a run on its storage."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import mrpipe

for plugin in ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs"):
    pytest.importorskip(plugin, reason="the extra 'kubernetes' is not installed")

PROFILE = Path("workflow/profiles/kubernetes")


@pytest.fixture(scope="module")
def settings(project: Path) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((project / PROFILE / "profile.v9+.yaml").read_text())
    return settings


def on_volume(volume: Path) -> list[str]:
    """Arguments that replace the mount path of the profile's volume."""
    places = ["--default-storage-prefix", "--local-storage-prefix", "--remote-job-local-storage-prefix"]
    return [word for place in places for word in (place, str(volume))]


def test_all_files_are_planned_on_the_volume(
    snakemake: Any, tmp_path: Path, project: Path, tiny: dict[str, Any]
) -> None:
    outcome = snakemake("-n", "--profile", str(project / PROFILE), folder=tmp_path, config=tiny)
    assert outcome.code == 0, outcome.text
    assert "settings mosi" in outcome.jobs
    for line in re.findall(r"^ *(?:output|log|benchmark): (.*)$", outcome.text, flags=re.MULTILINE):
        paths = re.sub(r" \(.*?\)", "", line).split(", ")  # without flags
        assert all(path.startswith("/store/results/") for path in paths), line


class Api(BaseHTTPRequestHandler):
    """The subset of the Kubernetes API that the executor calls; jobs stay active."""

    jobs: list[dict[str, Any]]

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/namespaces/mrpipe/jobs"):
            self.jobs.append(content)
        self.answer(content)

    def do_GET(self) -> None:
        pods = self.path.split("?")[0].endswith("/pods")
        self.answer({"kind": "PodList", "items": []} if pods else {"kind": "Job", "status": {}})

    def do_DELETE(self) -> None:
        self.answer({"kind": "Status", "status": "Success"})

    def log_message(self, format: str, *args: Any) -> None:
        """Silences the request log."""


@pytest.fixture
def api() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of a fake cluster that runs nothing, and the jobs submitted to it."""
    handler = type("Recording", (Api,), {"jobs": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.jobs
    server.shutdown()


def test_pod_has_the_volume_and_a_gpu(
    api: tuple[str, list[dict[str, Any]]],
    checkout: Path,
    project: Path,
    tmp_path: Path,
    tiny: dict[str, Any],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shutil.which("rsync") is None or shutil.which("git") is None:
        pytest.skip("Snakemake ships its sources with git and rsync; apt-get install git rsync")
    address, jobs = api
    kube = {
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kube))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    # A verified store and validated settings: training is the first and only job.
    volume = tmp_path / "volume"
    for path in ("sealed/manifest.json", "results/verified/mosi.txt", "results/runs/mosi/settings.json"):
        (volume / path).parent.mkdir(parents=True)
        (volume / path).write_text("{}")
    config = {
        "datasets": {"mosi": {"store": str(volume / "sealed")}},
        "experiments": {"mosi": {"dataset": "mosi", "methods": ["missing_token"]}},
    }
    (checkout / "mine.yaml").write_text(yaml.safe_dump(config))
    for arguments in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *arguments], cwd=checkout, check=True)
    command = [sys.executable, "-m", "snakemake", "--profile", str(project / PROFILE), "runs", *on_volume(volume)]
    command += ["--configfile", "mine.yaml", "--rerun-triggers", "mtime"]
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(command, cwd=checkout, stdout=out, stderr=subprocess.STDOUT)
        end = time.monotonic() + 120
        while not jobs and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(120)
    assert jobs, (tmp_path / "out.txt").read_text()
    pod = jobs[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == settings["container-image"]
    assert {"name": "mrpipe", "mountPath": "/store"} in container["volumeMounts"]
    assert {"name": "mrpipe", "persistentVolumeClaim": {"claimName": "mrpipe"}} in pod["volumes"]
    assert pod["serviceAccountName"] == "mrpipe"
    # A training and its evaluation are one job with one GPU; limits equal requests.
    asked, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert (limits["cpu"], limits["memory"], limits["nvidia.com/gpu"]) == ("1000m", "8000M", "1")
    assert (asked["memory"], asked["nvidia.com/gpu"]) == ("8000M", "1")
    assert "--target-jobs 'cells:" in container["args"][1]
    # Pods fetch the sources from the volume.
    (sources,) = re.findall(r"--deploy-sources (\S+)", container["args"][1])
    assert sources.startswith(str(volume))


@pytest.mark.slow
def test_workflow_runs_with_its_files_in_the_storage(
    snakemake: Any, tmp_path: Path, tiny: dict[str, Any], settings: dict[str, Any]
) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("Snakemake's storage plugin copies with rsync; apt-get install rsync")
    volume = tmp_path / "volume"
    storage = ["--default-storage-provider", settings["default-storage-provider"], *on_volume(volume)[:4]]
    config = {key: {"mosi": tiny[key]["mosi"]} for key in ("datasets", "experiments")}
    outcome = snakemake(*storage, "--keep-storage-local-copies", "--show-failed-logs", folder=tmp_path, config=config)
    assert outcome.code == 0, outcome.text
    assert (volume / "results/report/index.html").is_file()
    # The final output gives the path of the store; the working directory holds no results.
    (place,) = re.findall(r"^store +(\S+)", outcome.text, flags=re.MULTILINE)
    mrpipe.open_store(place).verify(deep=True)
    assert not (tmp_path / "results").exists()
    # An existing store outside of the storage.
    other = {"datasets": {"mosi": {"store": place}}, "pathvars": {"results": "again"}}
    outcome = snakemake("stores", *storage, "--keep-storage-local-copies", folder=tmp_path, config=other)
    assert outcome.code == 0, outcome.text
    assert (volume / "again/verified/mosi.txt").is_file()


def test_image_copies_existing_files_and_pins_its_packages(project: Path, settings: dict[str, Any]) -> None:
    lines = (project / PROFILE / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    assert steps[0][0] == "FROM"
    assert {name for name, _ in steps} <= {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "ENTRYPOINT"}
    for sources in (body.split()[:-1] for name, body in steps if name == "COPY"):
        assert all((project / source).exists() for source in sources), sources
    installs = [part for name, body in steps if name == "RUN" for part in body.split("&&") if "pip " in part]
    assert installs
    assert all("-c constraints.txt" in part for part in installs)
    # The files that the package build reads are copied before it is installed.
    copied = {source for name, body in steps if name == "COPY" for source in body.split()[:-1]}
    assert {"pyproject.toml", "constraints.txt", "README.md", "Snakefile", "environment.yml"} <= copied
    assert {"mrpipe", "model", "workflow"} <= copied


def test_cluster_manifest_and_profile_agree(project: Path, settings: dict[str, Any]) -> None:
    parts = {part["kind"]: part for part in yaml.safe_load_all((project / PROFILE / "cluster.yaml").read_text())}
    claim, _, place = settings["kubernetes-persistent-volumes"][0].partition(":")
    assert parts["PersistentVolumeClaim"]["metadata"]["name"] == claim
    assert parts["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert parts["ServiceAccount"]["metadata"]["name"] == settings["kubernetes-service-account-name"]
    pod = parts["Pod"]["spec"]
    assert pod["containers"][0]["image"] == settings["container-image"]
    assert pod["containers"][0]["volumeMounts"] == [{"name": claim, "mountPath": place}]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    for key in ("default-storage-prefix", "local-storage-prefix", "remote-job-local-storage-prefix"):
        assert settings[key] == place
    # The role allows all calls of the executor.
    allowed = {(name, verb) for rule in parts["Role"]["rules"] for name in rule["resources"] for verb in rule["verbs"]}
    needed = {("jobs", "create"), ("jobs/status", "get"), ("jobs", "delete"), ("pods", "list"), ("pods", "delete")}
    assert needed | {("pods/log", "get"), ("secrets", "create"), ("secrets", "delete")} <= allowed
